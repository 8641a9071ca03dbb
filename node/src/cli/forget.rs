//! `floe forget`

use anyhow::{Context, bail};
use clap::Args;
use floe_protocol::NodeInfo;

use super::confirm::agree;
use super::connect::ConnectArgs;
use super::{End, output};

/// Remove a node from the mesh for good
///
/// It is no member any more, its connections are closed, what it ran runs elsewhere, and no node lets it in again, under
/// whatever name or address. It ends, and says why. To join again it has to start with an empty data directory and an
/// invitation. Whoever had access to the machine may have copied the mesh key: `floe key rotate` shuts that out too.
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
    if !args.yes && !agree(&format!("{name} is removed from the mesh for good")).await? {
        output::note(format_args!("nothing was changed"));
        return Ok(End::Wrong);
    }
    mesh.forget(node).await?;
    output::note(format_args!(
        "{name} is removed, and is not let in again; if somebody may have copied the mesh key from it, change that too: \
         floe key rotate"
    ));
    Ok(End::Done)
}

/// The member of this name or id, if there is one; several of one name have to be told apart.
fn named<'a>(name: &str, nodes: &'a [NodeInfo]) -> anyhow::Result<Option<&'a NodeInfo>> {
    let same = |node: &&NodeInfo| node.member.name == name || node.member.id.to_string() == name;
    match nodes.iter().filter(same).collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        [node] => Ok(Some(node)),
        _ => bail!("several nodes are called `{name}`: name one by its id: {}", list(nodes)),
    }
}

fn list(nodes: &[NodeInfo]) -> String {
    let names = nodes.iter().map(|node| format!("{} ({})", node.member.name, node.member.id));
    names.collect::<Vec<_>>().join(", ")
}
