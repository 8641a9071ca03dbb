//! `floe invite`

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use floe_consensus::state_machine::MAX_LASTS_MS;
use floe_transport::InvitationSecret;
use libp2p::Multiaddr;

use super::connect::ConnectArgs;
use super::{End, output};
use crate::config::is_beyond_loopback;
use crate::ticket::{MAX_ADDRESSES, Ticket};

/// Print a ticket with which another machine joins: `floe up TICKET`
///
/// The ticket holds addresses of this mesh and a secret that admits one node, or as many as --uses says. The mesh gives
/// such a node its key; the ticket is worth nothing any more once it is used up or its time is over. Until then whoever
/// has it can join and run code on the mesh's nodes.
#[derive(Args, Debug)]
pub(super) struct InviteArgs {
    /// How many nodes it admits
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// For how long, for example 10min, 1h or 7days; up to 30days
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = parse_time)]
    lasts: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: InviteArgs) -> anyhow::Result<End> {
    let mesh = args.connect.mesh().await?;
    let status = mesh.status().await?;
    if status.nodes.is_empty() {
        bail!("the node has not joined or founded its mesh yet: wait until `floe up` prints its ready line");
    }
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
    let secret = InvitationSecret::generate()?;
    mesh.invite(&secret, args.uses, args.lasts).await?;
    output::print(format_args!("{}\n", Ticket { secret, addresses }))?;
    Ok(End::Done)
}

/// How long it may last.
fn parse_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a time: give for example 10min, 1h or 7days"))?;
    let most = Duration::from_millis(MAX_LASTS_MS);
    if time.as_millis() == 0 {
        return Err("nobody could come by it: give it some time, for example 10min".to_owned());
    }
    if time > most {
        let most = most.as_secs() / 86_400;
        return Err(format!(
            "an invitation lasts up to {most} days: one that is forgotten is a door that stands open"
        ));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::unwrap_used)]
    fn an_invitation_lasts_some_time_and_not_too_long() {
        assert_eq!(parse_time("30days"), Ok(Duration::from_secs(30 * 86_400)));
        for (text, why) in
            [("0s", "nobody could come"), ("60days", "up to 30 days"), ("soon", "`soon` is not")]
        {
            let error = parse_time(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
