//! Settings of a node, their defaults, and where things lie on disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use floe_protocol::node::check_name;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::fault::Faults;

/// How often a node tells the others of its load.
pub const HINT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a proposal is repeated before its submitter is told that the mesh cannot decide.
pub const PROPOSE_PATIENCE: Duration = Duration::from_secs(30);

/// How long one node waits for another's answer to a call without a body.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node that was asked to stop hands over before it stops anyway.
pub const LEAVE_PATIENCE: Duration = Duration::from_secs(3);

/// How many events may wait for the loop; senders wait beyond it.
pub const MAILBOX: usize = 1024;

/// The largest job specification, its in-memory frames included.
pub const MAX_SPEC_BYTES: usize = 1 << 30;

/// A node's memory budget unless told otherwise, as a part of the machine's memory.
const DEFAULT_MEMORY_PART: u64 = 2;

/// The smallest memory budget that still runs tasks.
pub const MIN_MEMORY_BYTES: u64 = 16 << 20;

/// How many numbered data directories a machine may have.
pub const MAX_NUMBERED_DIRS: usize = 64;

/// What `floe up` was told, with defaults filled in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the node is called.
    pub name: String,
    /// Where to listen; empty for the default.
    pub listen: Vec<Multiaddr>,
    /// Known nodes of the mesh.
    pub join: Vec<Multiaddr>,
    /// Whether the default is every interface, or loopback only.
    pub everywhere: bool,
    /// Whether to look for nodes on the local network.
    pub mdns: bool,
    /// Memory for tasks and partitions.
    pub memory_bytes: u64,
    /// Tasks at once.
    pub slots: u32,
    /// Wait for this many nodes, itself included, before founding a mesh.
    pub expect: Option<usize>,
    /// Where nodes of this machine and user find each other; none for an embedded node.
    pub registry: Option<PathBuf>,
    /// Where the Python environments that functions ask for are made, shared by the nodes of this machine and user;
    /// the data directory's own unless set.
    pub environments: Option<PathBuf>,
    /// The Python that functions run with, where its version fits; found unless set.
    pub python: Option<PathBuf>,
    /// Whether it lets things go wrong with itself when a driver asks.
    pub faults: Faults,
}

/// Where numbered data directories lie.
pub fn nodes(home: &Path) -> PathBuf {
    home.join("nodes")
}

/// Where Python environments are made.
pub fn environments(home: &Path) -> PathBuf {
    home.join("environments")
}

/// Tasks at once unless told otherwise: one a core.
pub fn default_slots() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// The memory budget unless told otherwise.
pub fn default_memory_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    (system.total_memory() / DEFAULT_MEMORY_PART).max(MIN_MEMORY_BYTES)
}

/// What a node is called unless told otherwise: the machine's name, or `floe` where it has none; the second
/// node of a machine and those after it are numbered.
pub fn default_name(number: usize) -> String {
    let machine = sysinfo::System::host_name()
        .and_then(|name| name.split('.').next().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "floe".to_owned());
    if number == 0 { machine } else { format!("{machine}-{}", number + 1) }
}

/// Whether another machine may reach the address.
pub fn is_beyond_loopback(address: &Multiaddr) -> bool {
    address.iter().all(|part| match part {
        Protocol::Ip4(ip) => !ip.is_loopback() && !ip.is_unspecified(),
        Protocol::Ip6(ip) => !ip.is_loopback() && !ip.is_unspecified(),
        _ => true,
    })
}

/// Reads what a node is to be called.
pub fn parse_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// Reads a size such as `256MiB`, `1.5GB` or `1073741824`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("`{text}` is not a size: use for example 256MiB or 4GB")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` is not a size: use for example 256MiB or 4GB"))?;
    let bytes = number * scale as f64;
    if bytes > u64::MAX as f64 / 2.0 {
        return Err(format!("`{text}` is more memory than any machine has"));
    }
    Ok(bytes as u64)
}

/// Reads a memory budget: a size large enough to work with.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes < MIN_MEMORY_BYTES {
        return Err(format!("{text} is too little: a node needs at least {}MiB", MIN_MEMORY_BYTES >> 20));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_kinds_of_units_and_nonsense_is_refused() {
        assert_eq!(parse_size("256MiB"), Ok(256 << 20));
        assert_eq!(parse_size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "MiB", "12 parsecs", "1e99GB", "-1", "1.2.3", "99999999999999999999GB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_memory("1MiB").is_err());
    }
}
