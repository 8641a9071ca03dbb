//! `floe recover`

use clap::Args;

use super::confirm::agree;
use super::connect::ConnectArgs;
use super::{End, output};
use crate::recovery::leaderless;

/// Go on without voters that are lost for good
///
/// A mesh decides by a majority of its voters. When a majority is gone, it accepts nothing until they are back; if
/// they never will be, this makes the rest go on with what they know. Refused while the mesh can decide by itself.
#[derive(Args, Debug)]
pub(super) struct RecoverArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: RecoverArgs) -> anyhow::Result<End> {
    let mesh = args.connect.mesh().await?;
    let status = mesh.status().await?;
    // A mesh that needs none is told so by its nodes, and nothing need be asked.
    if status.leader.is_none() && !args.yes {
        let question = format!(
            "{}\nGoing on without them loses what only they knew, unless they come back one day",
            leaderless(&status)
        );
        if !agree(&question).await? {
            output::note(format_args!("nothing was changed"));
            return Ok(End::Wrong);
        }
    }
    let node = mesh.recover().await?;
    let status = mesh.status().await?;
    let member = status.nodes.iter().find(|info| info.member.id == node);
    let name = member.map_or_else(|| node.to_string(), |info| info.member.name.clone());
    output::note(format_args!("recovered: the mesh goes on with what {name} knows; the other nodes join it"));
    Ok(End::Done)
}
