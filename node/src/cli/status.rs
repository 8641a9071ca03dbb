//! `floe status`

use clap::Args;
use floe_client::json;
use floe_protocol::message::Status;
use floe_protocol::{Load, NodeInfo};

use super::connect::ConnectArgs;
use super::format::ListFormat;
use super::{End, output, table};
use crate::recovery::leaderless;

/// Show the mesh: its nodes, their roles and load, the leader
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// How it is written
    #[arg(long, value_enum, default_value = "table")]
    format: ListFormat,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<End> {
    let status = args.connect.mesh().await?.status().await?;
    match args.format {
        ListFormat::Table => output::print(format_args!("{}", as_table(&status)))?,
        ListFormat::Json => output::print(format_args!("{:#}\n", json::mesh(&status)))?,
    }
    Ok(End::Done)
}

fn as_table(status: &Status) -> String {
    let rows: Vec<_> = status.nodes.iter().map(row).collect();
    let nodes = table::layout(
        ["ID", "NAME", "ROLE", "ALIVE", "TASKS", "MEMORY", "SPILLED", "DISK", "VERSION", "ADDRESS"],
        &rows,
    );
    let leader = match status.leader {
        Some(leader) => {
            let named = status.nodes.iter().find(|node| node.member.id == leader);
            let name = named.map_or(String::new(), |node| format!(" ({})", node.member.name));
            format!("leader {leader}{name}, term {}", status.term)
        }
        None => leaderless(status),
    };
    match status.era {
        Some(era) => format!("{nodes}\nmesh {}, epoch {}: {leader}\n", era.mesh, era.epoch),
        None => "this node has no mesh yet: it is still looking for others\n".to_owned(),
    }
}

/// How much room its disk has; in words if it takes no work for want of it.
fn disk(load: &Load) -> String {
    let free = table::bytes(load.disk_free_bytes);
    if load.disk_short { format!("full, takes no work ({free} free)") } else { format!("{free} free") }
}

fn row(node: &NodeInfo) -> [String; 10] {
    let (member, load) = (&node.member, &node.load);
    [
        member.id.to_string(),
        member.name.clone(),
        node.role.name().to_owned(),
        if node.alive { "yes" } else { "no" }.to_owned(),
        format!("{}/{}", load.running, member.slots),
        format!("{} of {}", table::bytes(load.memory_used_bytes), table::bytes(member.memory_bytes)),
        table::bytes(load.spilled_bytes),
        disk(load),
        member.version.clone(),
        member.addresses.first().cloned().unwrap_or_default(),
    ]
}
