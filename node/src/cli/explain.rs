//! `floe explain`

use clap::Args;
use floe_protocol::message::Status;
use floe_protocol::{Exchange, NodeId, Stage, StageGraph};
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::format::ListFormat;
use super::sql::Statement;
use super::{End, output};

/// Show the stages that a query becomes, without running it
///
/// Each stage with its operators, how its rows leave it, its partitions, and where it would run.
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    statement: Statement,
    /// How it is written
    #[arg(long, value_enum, default_value = "table")]
    format: ListFormat,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: ExplainArgs) -> anyhow::Result<End> {
    let text = args.statement.text()?;
    let found = args.connect.mesh_or_embedded().await?;
    let explained = async {
        let graph = args.statement.sql(&found.mesh, text).explain().await?;
        anyhow::Ok((graph, found.mesh.status().await?))
    };
    let explained = explained.await;
    found.close().await;
    let (graph, status) = explained?;
    match args.format {
        ListFormat::Table => {
            let name = |id| node_name(&status, id);
            output::print(format_args!("{}", floe_query::explain(&graph, &name)))?;
        }
        ListFormat::Json => output::print(format_args!("{:#}\n", as_json(&graph, &status)))?,
    }
    Ok(End::Done)
}

fn node_name(status: &Status, id: NodeId) -> String {
    let node = status.nodes.iter().find(|node| node.member.id == id);
    node.map_or_else(|| id.to_string(), |node| node.member.name.clone())
}

fn as_json(graph: &StageGraph, status: &Status) -> Value {
    let stages: Vec<_> = graph.stages.iter().map(|stage| stage_json(stage, status)).collect();
    json!({ "stages": stages })
}

fn stage_json(stage: &Stage, status: &Status) -> Value {
    let (exchange, keys, buckets) = match &stage.exchange {
        Exchange::Pass => ("pass", None, None),
        Exchange::Gather => ("gather", None, None),
        Exchange::Broadcast => ("broadcast", None, None),
        Exchange::Hash { keys, buckets } => ("hash", Some(keys), Some(buckets)),
        Exchange::Range { keys, buckets } => ("range", Some(keys), Some(buckets)),
    };
    json!({
        "stage": stage.id.0,
        "inputs": stage.inputs.iter().map(|input| input.stage.0).collect::<Vec<_>>(),
        "operators": stage.operators,
        "exchange": exchange,
        "keys": keys,
        "buckets": buckets,
        "partitions": stage.tasks.len(),
        "scan_bytes": stage.tasks.iter().map(|task| task.scan_bytes).sum::<u64>(),
        "single_because": stage.single_because,
        "nodes": nodes(stage, status),
    })
}

/// Where the stage's tasks may run: nodes that see its files, or any that lives.
fn nodes(stage: &Stage, status: &Status) -> Vec<String> {
    let may = |node: &NodeId| stage.seen_by.is_empty() || stage.seen_by.contains(node);
    let living = status.nodes.iter().filter(|node| node.alive).map(|node| node.member.id);
    living.filter(may).map(|node| node.to_string()).collect()
}
