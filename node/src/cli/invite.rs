//! `floe invite`

use anyhow::{Context, bail};
use clap::Args;
use libp2p::Multiaddr;

use super::connect::ConnectArgs;
use super::{End, output};
use crate::config::is_beyond_loopback;
use crate::ticket::{MAX_ADDRESSES, Ticket};

/// Print a ticket with which another machine joins: `floe up TICKET`
///
/// The ticket holds the mesh key and addresses of this mesh: give it only to those who may run code on it.
#[derive(Args, Debug)]
pub(super) struct InviteArgs {
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: InviteArgs) -> anyhow::Result<End> {
    let status = args.connect.mesh().await?.status().await?;
    if status.nodes.is_empty() {
        bail!("the node has not joined or founded its mesh yet: wait until `floe up` prints its ready line");
    }
    let key = args.connect.key()?.context("there is no mesh key on this machine")?;
    let living = status.nodes.iter().filter(|node| node.alive);
    let mut addresses: Vec<Multiaddr> = living
        .flat_map(|node| &node.member.addresses)
        .filter_map(|address| address.parse().ok())
        .filter(is_beyond_loopback)
        .collect();
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() {
        bail!(
            "this mesh listens on loopback only, where no other machine can reach it: \
             stop a node and start it again with `floe up --lan`, then invite"
        );
    }
    output::print(format_args!("{}\n", Ticket { key, addresses }))?;
    Ok(End::Done)
}
