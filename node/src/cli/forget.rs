//! `floe forget`

use anyhow::{Context, bail};
use clap::Args;
use floe_protocol::message::Status;
use floe_protocol::{NodeId, NodeInfo};

use super::confirm::agree;
use super::connect::ConnectArgs;
use super::{End, output};

/// Remove a node from the mesh for good
///
/// It is no member any more, its connections are closed, what it ran runs elsewhere, and no node lets it in again, under
/// whatever name or address. It ends, and says why. To join again it has to start with an empty data directory and an
/// invitation. What it alone has goes with it: jobs that it accepted while it was cut off from the others, and results that
/// lie on no other node. That can be much if it is the node that is asked, and no other runs. The only member of a mesh is
/// not removed. Whoever had access to the machine may have copied the mesh key: `floe key rotate` shuts that out too.
#[derive(Args, Debug)]
pub(super) struct ForgetArgs {
    /// The node, by its name or its id, as `floe status` shows them; one that is no member any more by its id
    node: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: ForgetArgs) -> anyhow::Result<End> {
    let mesh = args.connect.mesh().await?;
    let status = mesh.status().await?;
    let named = named(&args.node, &status.nodes)?;
    let (node, name) = match named {
        Some(info) => (info.member.id, format!("{} ({})", info.member.name, info.member.id)),
        None => {
            let id = args.node.parse().with_context(|| {
                format!("no node is called `{}`: the mesh has {}", args.node, list(&status.nodes))
            })?;
            (id, args.node.clone())
        }
    };
    if !args.yes && !agree(&question(node, &name, &status)).await? {
        output::note(format_args!("nothing was changed"));
        return Ok(End::Wrong);
    }
    mesh.forget(node).await?;
    let done = if named.is_some() { "is removed, and" } else { "is no member of the mesh, and from now on" };
    output::note(format_args!(
        "{name} {done} is not let in again; if somebody may have copied the mesh key from it, change that too: floe key \
         rotate"
    ));
    Ok(End::Done)
}

/// What is to be agreed to: that it goes, and what may go with it.
fn question(node: NodeId, name: &str, status: &Status) -> String {
    let alive = |info: &NodeInfo| info.alive;
    let Some(known) = status.nodes.iter().find(|info| info.member.id == node) else {
        return format!(
            "{name} is no member of this mesh, or not any more; it is never let in again, should it come"
        );
    };
    let others = status.nodes.iter().filter(|info| info.member.id != node).any(alive);
    let lost = if !others {
        "; no other member is connected, so all that the mesh does not have on a node that is away is lost, its jobs and \
         results among it"
    } else if node == status.node {
        "; it is the node that is asked here: what only it has accepted, or holds, is lost"
    } else if !known.alive {
        "; it is cut off: what it has accepted meanwhile, and what only it holds, is lost"
    } else {
        ""
    };
    format!("{name} is removed from the mesh for good{lost}")
}

/// The member of this name or id, if there is one; several of one name have to be told apart.
fn named<'a>(name: &str, nodes: &'a [NodeInfo]) -> anyhow::Result<Option<&'a NodeInfo>> {
    let same = |node: &&NodeInfo| node.member.name == name || node.member.id.to_string() == name;
    match nodes.iter().filter(same).collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        [node] => Ok(Some(node)),
        several => {
            bail!("several nodes are called `{name}`: name one by its id: {}", list(several.iter().copied()))
        }
    }
}

fn list<'a>(nodes: impl IntoIterator<Item = &'a NodeInfo>) -> String {
    let names = nodes.into_iter().map(|node| format!("{} ({})", node.member.name, node.member.id));
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use floe_protocol::{Load, Member, NodeRole};

    use super::*;

    fn node(id: u64, alive: bool) -> NodeInfo {
        let member = Member {
            id: NodeId(id),
            peer: String::new(),
            name: format!("n{id}"),
            addresses: Vec::new(),
            slots: 1,
            memory_bytes: 0,
            version: String::new(),
            incarnation: floe_protocol::Incarnation::default(),
        };
        NodeInfo { member, role: NodeRole::Voter, alive, load: Load::default() }
    }

    #[test]
    fn the_question_says_what_goes_with_the_node() {
        let asked = |node_id: u64, alive: [bool; 2]| {
            let nodes = vec![node(1, alive[0]), node(2, alive[1])];
            let status = Status {
                node: NodeId(1),
                era: None,
                leader: None,
                term: 1,
                nodes,
                voters: Vec::new(),
                rival: None,
            };
            question(NodeId(node_id), "n", &status)
        };
        assert!(asked(2, [true, true]).ends_with("for good"));
        assert!(asked(2, [true, false]).contains("cut off"));
        assert!(asked(1, [true, true]).contains("asked here"));
        assert!(asked(1, [true, false]).contains("no other member is connected"));
        assert!(asked(3, [true, true]).contains("no member of this mesh"));
    }
}
