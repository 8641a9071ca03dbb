//! What the mesh says of itself and its jobs, as JSON.

use floe_client::{JobPhase, JobStatus, Status};
use serde_json::{Value, json};

pub(crate) fn mesh(status: &Status) -> Value {
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": node.member.id.to_string(),
                "name": node.member.name,
                "role": node.role.name(),
                "alive": node.alive,
                "addresses": node.member.addresses,
                "slots": node.member.slots,
                "memory_bytes": node.member.memory_bytes,
                "version": node.member.version,
                "running": node.load.running,
            })
        })
        .collect();
    json!({
        "node": status.node.to_string(),
        "leader": status.leader.map(|leader| leader.to_string()),
        "mesh": status.era.map(|era| era.mesh.to_string()),
        "epoch": status.era.map(|era| era.epoch),
        "term": status.term,
        "nodes": nodes,
    })
}

pub(crate) fn job(status: &JobStatus) -> Value {
    let stages: Vec<_> = status
        .stages
        .iter()
        .map(|stage| {
            json!({
                "name": stage.name,
                "tasks": stage.tasks,
                "running": stage.running,
                "done": stage.done,
                "rows": stage.rows,
                "bytes": stage.bytes,
            })
        })
        .collect();
    let failure = match &status.phase {
        JobPhase::Failed(failure) => Some(failure.to_string()),
        JobPhase::Running | JobPhase::Succeeded | JobPhase::Cancelled => None,
    };
    json!({
        "id": status.id.to_string(),
        "label": status.label,
        "phase": status.phase.name(),
        "failure": failure,
        "stages": stages,
        "submitted_unix_ms": status.submitted_unix_ms,
        "ended_unix_ms": status.ended_unix_ms,
    })
}
