//! `floe recover`

use clap::Args;

use super::confirm::agree;
use super::connect::ConnectArgs;
use super::{End, output};
use crate::recovery::leaderless;

/// Go on without voters that are lost for good
///
/// A mesh decides by a majority of its voters. When a majority is gone, it accepts nothing until they are back. If
/// they never will be, this lets the node with the longest log go on, in the mesh's next epoch; the others that are
/// left join it. Should the lost ones come back after all, they join too, and hand over what only they knew. Refused
/// while the mesh can decide by itself.
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
    if !args.yes {
        // A mesh that needs none says so, and nothing need be asked.
        mesh.needs_recovery().await?;
        let question = format!(
            "{}\nGoing on without them loses what only they knew, unless they come back one day",
            leaderless(&mesh.status().await?)
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
