//! How what happens in a run is told.

use floe_protocol::message::MeshView;
use floe_protocol::{AttemptId, PeerMessage, TaskId};
use protobuf::Message as _;
use raft::eraftpb::Message;

use super::node::Wire;

pub(super) fn name(attempt: AttemptId) -> String {
    let TaskId { job, stage, partition } = attempt.task;
    format!("{}/{stage}/{partition}#{:x}", job.0, attempt.attempt)
}

pub(super) fn describe(wire: &Wire) -> String {
    match wire {
        Wire::Peer(PeerMessage::Raft { era, message, .. }) => match Message::parse_from_bytes(message) {
            Ok(m) => format!(
                "{}: {:?} {}/{} +{} commit {} term {}{}",
                era.epoch,
                m.msg_type,
                m.index,
                m.log_term,
                m.entries.len(),
                m.commit,
                m.term,
                if m.reject { " rejects" } else { "" }
            ),
            Err(_) => "garbage".to_owned(),
        },
        Wire::Peer(PeerMessage::Assign(assignment)) => {
            format!("run {} at {}", name(assignment.attempt), assignment.fence)
        }
        Wire::Peer(PeerMessage::Abort { fence, attempts }) => {
            let attempts: Vec<_> = attempts.iter().map(|attempt| name(*attempt)).collect();
            format!("abort {} at {fence}", attempts.join(" "))
        }
        Wire::Peer(PeerMessage::Free { fence, jobs }) => {
            let jobs: Vec<_> = jobs.iter().map(|job| job.0.to_string()).collect();
            format!("free {} at {fence}", jobs.join(" "))
        }
        Wire::Peer(PeerMessage::AskInventory { fence }) => format!("inventory? at {fence}"),
        Wire::Peer(PeerMessage::Inventory(inventory)) => {
            let running: Vec<_> = inventory.running.iter().map(|attempt| name(*attempt)).collect();
            format!("holds {}, runs {}, at {}", inventory.held.len(), running.join(" "), inventory.fence)
        }
        Wire::Peer(PeerMessage::Lease { fence }) => format!("lease at {fence}"),
        Wire::Peer(PeerMessage::Alive { fence, .. }) => format!("alive at {fence}"),
        Wire::Peer(PeerMessage::Prepare { fence }) => format!("shall vote, at {fence}"),
        Wire::Peer(PeerMessage::Prepared { fence }) => format!("is ready to vote, at {fence}"),
        Wire::Peer(PeerMessage::Report(report)) => {
            format!("reports {}, well: {}", name(report.attempt), report.outcome.is_ok())
        }
        Wire::Peer(PeerMessage::Lost { partition, node }) => format!("{partition} is not on n{}", node.0),
        Wire::Peer(PeerMessage::Silent { fence, node }) => format!("n{} is silent, at {fence}", node.0),
        Wire::Peer(PeerMessage::View(view)) => format!("is told {}", of_mesh(view)),
        Wire::Peer(PeerMessage::Adopt { claim, jobs_changed, jobs, .. }) => {
            format!("hands over {} bytes of jobs as of {jobs_changed}, of {}", jobs.len(), claim.era)
        }
        Wire::Peer(PeerMessage::Adopted { era, jobs_changed, jobs }) => {
            format!("has adopted {} jobs as of {jobs_changed} of {era}", jobs.len())
        }
        Wire::Peer(PeerMessage::Copy { partition, to, .. }) => {
            format!("give n{} a copy of {partition}", to.0)
        }
        Wire::Peer(PeerMessage::Copied { partition, node, .. }) => {
            format!("n{} has a copy of {partition}", node.0)
        }
        Wire::Put { partition, .. } => format!("a copy of {partition}"),
        Wire::Kept(partition) => format!("has the copy of {partition}"),
        Wire::AskView => "what mesh?".to_owned(),
        Wire::View(view) => of_mesh(view),
        Wire::AskNeeded => "am I needed?".to_owned(),
        Wire::Needed(needed) => format!("needed: {needed}"),
        Wire::Propose { entry, .. } => format!("proposes {:x}", entry.request.0),
        Wire::Answer { proposed, .. } => format!("answers {proposed:?}"),
    }
}

pub(super) fn of_mesh(view: &MeshView) -> String {
    let era = view.era.map_or("no era".to_owned(), |era| era.to_string());
    format!("n{} is of {era}, led by {:?}", view.node.0, view.leader.map(|leader| leader.0))
}
