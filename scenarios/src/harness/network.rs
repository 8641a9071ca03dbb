//! Several machines on this one: network namespaces joined by a bridge, which can be cut in two.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Unavailable;
use super::process::Floe;

/// Tells the networks of this process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// What all machines are connected to.
const BRIDGE: &str = "bridge";

/// What those are connected to that are cut off from the others.
const ISLAND: &str = "island";

/// Machines on one network. Dropping it takes them down.
///
/// It needs Linux and the right to make network namespaces, as root has. The bridges have a namespace of their
/// own, so that nothing of the machine's own network is touched.
#[derive(Debug)]
pub struct Network {
    name: String,
    machines: usize,
    homes: TempDir,
}

impl Network {
    /// A network of machines; the error is [`Unavailable`] where there can be none.
    pub fn new(machines: usize) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let homes = tempfile::Builder::new().prefix("floe-").tempdir()?;
        let network = Self { name: format!("floe{}-{number}", std::process::id()), machines, homes };
        network.build().context(Unavailable("network namespaces"))?;
        Ok(network)
    }

    fn build(&self) -> Result<()> {
        let switch = self.switch();
        ip(&format!("netns add {switch}"))?;
        for bridge in [BRIDGE, ISLAND] {
            ip(&format!("-n {switch} link add {bridge} type bridge"))?;
            ip(&format!("-n {switch} link set {bridge} up"))?;
        }
        for machine in 0..self.machines {
            let namespace = self.namespace(machine);
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link add eth0 type veth peer name port{machine} netns {switch}"))?;
            ip(&format!("-n {namespace} addr add {}/24 dev eth0", self.address(machine)))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            // Multicast needs a route where there is no default one.
            ip(&format!("-n {namespace} route add default dev eth0"))?;
            ip(&format!("-n {switch} link set port{machine} master {BRIDGE} up"))?;
        }
        Ok(())
    }

    /// How many machines it has.
    pub fn machines(&self) -> usize {
        self.machines
    }

    /// A machine's address, without a port.
    pub fn address(&self, machine: usize) -> String {
        // The bridge is nobody else's, so that every network may have the same addresses.
        format!("10.213.0.{}", machine + 1)
    }

    /// `binary` on this machine, with a home of its own.
    pub fn floe(&self, binary: impl AsRef<Path>, machine: usize) -> Floe {
        Floe::new(binary, self.home(machine)).through(["ip", "netns", "exec", &self.namespace(machine)])
    }

    /// A machine's home directory.
    pub fn home(&self, machine: usize) -> PathBuf {
        self.dir().join(machine.to_string())
    }

    /// The directory in which all homes lie. It is seen by all machines.
    pub fn dir(&self) -> &Path {
        self.homes.path()
    }

    /// Cuts these machines off from the others; among themselves they stay connected. Nobody is told: what is
    /// sent across is lost.
    pub fn cut_off(&self, machines: &[usize]) -> Result<()> {
        self.plug(machines, ISLAND)
    }

    /// Undoes [`Network::cut_off`].
    pub fn heal(&self) -> Result<()> {
        self.plug(&(0..self.machines).collect::<Vec<_>>(), BRIDGE)
    }

    fn plug(&self, machines: &[usize], bridge: &str) -> Result<()> {
        for machine in machines {
            ip(&format!("-n {} link set port{machine} master {bridge}", self.switch()))?;
        }
        Ok(())
    }

    fn namespace(&self, machine: usize) -> String {
        format!("{}-{machine}", self.name)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Deleting a namespace that was never made fails, and that is all right.
        for machine in 0..self.machines {
            let _ = ip(&format!("netns del {}", self.namespace(machine)));
        }
        let _ = ip(&format!("netns del {}", self.switch()));
    }
}

fn ip(args: &str) -> Result<()> {
    let output = Command::new("ip").args(args.split_whitespace()).output().context("cannot run `ip`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {args}`: {}", said.trim_end());
    Ok(())
}
