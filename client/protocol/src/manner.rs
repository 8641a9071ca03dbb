//! How each request is asked: by whom, and what beside two frames it takes.

use crate::Request;

impl Request {
    /// Whether only a node of the mesh may ask this.
    pub fn is_for_nodes(&self) -> bool {
        matches!(
            self,
            Self::Propose { .. }
                | Self::Inspect { .. }
                | Self::Plan { .. }
                | Self::Put { .. }
                | Self::PutPlan { .. }
                | Self::Seat { .. }
                | Self::Raft { .. }
                | Self::Mesh
                | Self::Survivor
                | Self::CarryOn { .. }
                | Self::Join { .. }
                | Self::Progress { .. }
                | Self::Made { .. }
        )
    }

    /// Whether nodes ask this to agree and to find each other: one short frame each way, but for snapshots.
    pub fn is_control(&self) -> bool {
        matches!(
            self,
            Self::Propose { .. }
                | Self::Join { .. }
                | Self::Mesh
                | Self::Status
                | Self::Survivor
                | Self::CarryOn { .. }
                | Self::Progress { .. }
                | Self::Made { .. }
                | Self::HasBlob { .. }
                | Self::Raft { .. }
        )
    }

    /// Whether a body follows the request. That of [`Request::Submit`] is the specification; frames come after it.
    pub fn has_body(&self) -> bool {
        matches!(
            self,
            Self::Submit { .. }
                | Self::Explain { .. }
                | Self::Plan { .. }
                | Self::Put { .. }
                | Self::PutBlob { .. }
                | Self::PutPlan { .. }
                | Self::Raft { .. }
        )
    }

    /// Whether it has bodies, or more than one answer, so that nothing follows on its stream. A submission without frames
    /// is none of those: another call may follow.
    pub fn is_long(&self) -> bool {
        let answered_at_length = matches!(
            self,
            Self::Result { .. }
                | Self::Partitions { .. }
                | Self::Partition { .. }
                | Self::Fetch { .. }
                | Self::Session { .. }
                | Self::Seat { .. }
                | Self::GetBlob { .. }
                | Self::Logs { .. }
        );
        answered_at_length || (self.has_body() && !matches!(self, Self::Submit { .. }))
    }
}
