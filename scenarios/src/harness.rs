//! Real `floe` processes for tests and scenarios, on loopback only, shut off from the user's own mesh.
//!
//! ```no_run
//! # async fn story() -> anyhow::Result<()> {
//! use floe_scenarios::harness::Cluster;
//!
//! let mut cluster = Cluster::builder("target/debug/floe").nodes(3).slots(1).start().await?;
//! let leader = cluster.leader().await?;
//! cluster.node(leader).kill().await?;
//! assert_ne!(cluster.leader().await?, leader);
//! # Ok(())
//! # }
//! ```

mod log;
mod mesh;
mod network;
mod process;
mod small_disk;

pub use log::LogLine;
pub use mesh::{Builder, Cluster};
pub use network::Network;
pub use process::{Finished, Floe, Node};
pub use small_disk::SmallDisk;

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How long a condition may take to hold. It only bounds a hang: on a busy two-core machine everything takes
/// a multiple of its usual time, and a test that passes never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What this machine lacks, or does not let us use. It is found in an error by `downcast_ref`, for those who would
/// rather skip than fail.
#[derive(Debug)]
pub struct Unavailable(pub &'static str);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine has no {} for us", self.0)
    }
}

/// Waits until `condition` yields a value, looking every few milliseconds; `what` names it in the error.
pub async fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {} s in vain until {what}", deadline.as_secs());
        }
        sleep(LOOK).await;
    }
}
