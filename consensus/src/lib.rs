//! What a Floe mesh agrees on and decides: replicated log, state machine, membership, scheduler.
//!
//! ```text
//!   participant: a node's part in all of it
//!   ┌──────────────────────────────────────────────────────────────────────────────────────────────┐
//!   │ command ──> replica (raft-rs) ──> state_machine ──> event ──> scheduler (on the leader) ──> effects
//!   │                │    ▲
//!   │             log.rs  └ membership: who founds, who votes     healing: when two eras meet
//!   └──────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! This crate does no IO. It holds no socket, file, thread, clock or random number: time comes in as a
//! number, messages and entries go out as values, and the same inputs always give the same outputs. (One
//! exception is raft-rs, which draws election timeouts at random; [`replica::Config`] can narrow the range to
//! one value.) It knows neither Polars nor libp2p: fragments and splits are bytes here.

pub mod checkpoint;
pub mod clock;
pub mod command;
pub mod event;
pub mod log;
pub mod membership;
pub mod participant;
pub mod rejoin;
pub mod replica;
pub mod scheduler;
pub mod state_machine;

pub use checkpoint::Checkpoint;
pub use clock::{Clock, Now, Reading};
pub use command::{Command, Entry};
pub use event::Event;
pub use log::{LogError, LogParts, MemoryLog, Persist};
pub use participant::{Action, Order, Participant};
pub use replica::{Output, ProposeError, Replica, StepError, Written};
pub use scheduler::{Effect, Input, Scheduler};
pub use state_machine::StateMachine;
