//! Sessions: many short calls between a driver and hosts on all nodes, without a job of its own for each.
//!
//! ```text
//!   driver ── CallFrame ──> the node it is connected to ── CallFrame ──> other nodes ──> hosts
//!          <─ ResultFrame ─                             <─ ResultFrame ─
//! ```
//!
//! A session is one standing job in the log ([`crate::Work::Calls`]); its calls are not. Each call runs at least
//! once: what was on its way with a node that is lost is sent again, by the driver where it was the driver's node.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::function::{Blob, Function};
use crate::ids::NodeId;

/// How many calls a driver may have under way in one session; it keeps further ones to itself until results come.
pub const MAX_CALLS: usize = 8192;

/// How many bytes of arguments these may have together. One call may exceed it alone.
pub const MAX_CALLS_BYTES: usize = 16 << 20;

/// The largest argument or result that travels in a frame; larger ones go as blobs.
pub const MAX_CALL_BYTES: usize = 1 << 20;

/// How many functions of one session its gateway and seats hold at once. Beyond that the driver has them forget some
/// that are not under way, and defines them again when they are called again.
pub const MAX_FUNCTIONS: usize = 4096;

/// How many bytes the definitions of these have together, as they are encoded: many nodes hold those of many sessions.
pub const MAX_FUNCTIONS_BYTES: usize = 4 << 20;

/// Towards the hosts, on a session's stream after it was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallFrame {
    /// The function that later calls name by this number.
    Define {
        /// Its number in this session.
        function: u32,
        /// The function. Its host is not [`crate::function::Host::Program`].
        definition: Box<Function>,
    },
    /// These functions are not called any more, unless they are defined again. None of their calls is under way.
    Forget {
        /// Their numbers.
        functions: Vec<u32>,
    },
    /// Call a function, once for each of these.
    Calls {
        /// Its number.
        function: u32,
        /// The node that it is to run on; any unless given.
        node: Option<NodeId>,
        /// The calls.
        calls: Vec<Call>,
    },
    /// These need not be run any more. Those that have not begun are dropped; of none of them a result is awaited.
    Cancel {
        /// The calls.
        calls: Vec<u64>,
    },
    /// No more calls will come, and no result is awaited: the session is over.
    Close,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its number in this session, chosen by the driver.
    pub id: u64,
    /// What it is called with, at most [`MAX_CALL_BYTES`].
    pub argument: Bytes,
}

/// Towards the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResultFrame {
    /// Calls that have ended.
    Results {
        /// Where they ran.
        node: NodeId,
        /// How they ended.
        results: Vec<CallResult>,
    },
    /// From a seat to its gateway: calls that have not begun and would wait for long behind others. They run wherever
    /// there is room.
    GivenBack {
        /// Their numbers.
        calls: Vec<u64>,
    },
    /// The session has ended, with this failure: nothing more will come.
    Ended(Failure),
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallResult {
    /// Its number.
    pub id: u64,
    /// What it returned, or why it did not.
    pub outcome: Result<Returned, Failure>,
    /// How long it ran.
    pub elapsed_us: u64,
}

/// What a call returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Returned {
    /// Bytes that the driver understands.
    Inline(Bytes),
    /// More than [`MAX_CALL_BYTES`] of them.
    Blob(Blob),
}
