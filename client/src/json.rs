//! What a mesh says of itself and its jobs, as JSON: the same on the command line and in Python.

use floe_protocol::message::Status;
use floe_protocol::{JobPhase, JobStatus, NodeInfo};
use serde_json::{Value, json};

/// The mesh and its nodes.
pub fn mesh(status: &Status) -> Value {
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|NodeInfo { member, role, alive, load }| {
            json!({
                "id": member.id.to_string(),
                "name": member.name,
                "address": member.addresses.first(),
                "addresses": member.addresses,
                "role": role.name(),
                "alive": alive,
                "slots": member.slots,
                "memory_bytes": member.memory_bytes,
                "version": member.version,
                "running": load.running,
                "memory_used_bytes": load.memory_used_bytes,
                "spilled_bytes": load.spilled_bytes,
                "disk_free_bytes": load.disk_free_bytes,
                "disk_short": load.disk_short,
            })
        })
        .collect();
    json!({
        "mesh": status.era.map(|era| era.mesh.to_string()),
        "leader": status.leader.map(|leader| leader.to_string()),
        "answered_by": status.node.to_string(),
        "epoch": status.era.map(|era| era.epoch),
        "begun_by": status.era.map(|era| era.founder.to_string()),
        "term": status.term,
        "nodes": nodes,
    })
}

/// One job and its stages.
pub fn job(status: &JobStatus) -> Value {
    let stages: Vec<_> = status
        .stages
        .iter()
        .map(|stage| {
            json!({
                "stage": stage.stage.0,
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
    let (done, tasks) = status.tasks();
    json!({
        "id": status.id.to_string(),
        "label": status.label,
        "phase": status.phase.name(),
        "failure": failure,
        "other_ends": status.other_ends.iter().map(JobPhase::name).collect::<Vec<_>>(),
        "submitted_unix_ms": status.submitted_at.unix_ms(),
        "ended_unix_ms": status.ended_at.map(|at| at.unix_ms()),
        "tasks": tasks,
        "done": done,
        "waits_for": status.waits_for,
        "stages": stages,
    })
}
