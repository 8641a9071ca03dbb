//! The nodes of this machine, found through a directory: each running node keeps one small file in it.
//!
//! It holds no secret, only the key's fingerprint, so that meshes on one machine keep apart without trying each
//! other's doors.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

use crate::node_id;

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 16 << 10;

/// How many files are looked at in one scan.
const MAX_FILES: usize = 1024;

const EXTENSION: &str = "json";

/// One running node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its libp2p identity.
    #[serde(with = "text")]
    pub peer: PeerId,
    /// Where it listens.
    pub addresses: Vec<Multiaddr>,
    /// Its mesh key's fingerprint.
    pub fingerprint: String,
    /// Those of keys before that count too: whoever has not heard of the new one finds the node by them.
    #[serde(default)]
    pub former: Vec<String>,
    /// Its process.
    pub pid: u32,
}

/// This process's own entry. Removed when dropped.
#[derive(Debug)]
pub struct Listed {
    dir: PathBuf,
    entry: Entry,
}

impl Listed {
    /// Writes the entry of a node of this process.
    pub fn new(dir: &Path, peer: PeerId, addresses: Vec<Multiaddr>, fingerprint: String) -> io::Result<Self> {
        let entry = Entry { peer, addresses, fingerprint, former: Vec::new(), pid: std::process::id() };
        let listed = Self { dir: dir.to_owned(), entry };
        listed.write()?;
        Ok(listed)
    }

    /// Writes it again if someone removed it: a process that cannot see ours, in a container say, may take us for
    /// dead.
    pub fn renew(&self) -> io::Result<()> {
        if self.path().exists() { Ok(()) } else { self.write() }
    }

    /// Writes it again with other addresses, if they are others.
    pub fn update(&mut self, addresses: Vec<Multiaddr>) -> io::Result<()> {
        if self.entry.addresses == addresses {
            return Ok(());
        }
        self.entry.addresses = addresses;
        self.write()
    }

    /// Writes it again under another key, if it is another.
    pub fn rekey(&mut self, fingerprint: String, former: Vec<String>) -> io::Result<()> {
        if (&self.entry.fingerprint, &self.entry.former) == (&fingerprint, &former) {
            return Ok(());
        }
        (self.entry.fingerprint, self.entry.former) = (fingerprint, former);
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        // Written aside and renamed, so that nobody reads half of it.
        let aside = self.dir.join(format!(".{}", node_id(&self.entry.peer)));
        fs::write(&aside, serde_json::to_vec(&self.entry)?)?;
        fs::rename(&aside, self.path())
    }

    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.{EXTENSION}", node_id(&self.entry.peer)))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path());
    }
}

/// The running nodes whose key has this fingerprint, in order of id.
pub fn scan(dir: &Path, fingerprint: &str) -> Vec<Entry> {
    let has = |entry: &Entry| {
        entry.fingerprint == fingerprint || entry.former.iter().any(|former| former == fingerprint)
    };
    all(dir).into_iter().filter(has).collect()
}

/// All running nodes, of whatever mesh, in order of id. Files of processes that are gone are removed.
pub fn all(dir: &Path) -> Vec<Entry> {
    let Ok(files) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = files
        .take(MAX_FILES)
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| read(path)).collect()
}

/// Where this machine's nodes with such a key listen, as addresses that end in `/p2p/PEER`.
pub fn local_nodes(dir: &Path, fingerprint: &str) -> Vec<Multiaddr> {
    let entries = scan(dir, fingerprint);
    entries
        .into_iter()
        .flat_map(|Entry { peer, addresses, .. }| {
            addresses.into_iter().filter_map(move |address| address.with_p2p(peer).ok())
        })
        .collect()
}

fn read(path: &Path) -> Option<Entry> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut text).ok()?;
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    if is_running(entry.pid) {
        return Some(entry);
    }
    let _ = fs::remove_file(path);
    None
}

#[cfg(unix)]
fn is_running(pid: u32) -> bool {
    use nix::errno::Errno;
    use nix::sys::signal::kill;
    use nix::unistd::Pid;
    // Zero and negative numbers would mean groups of processes.
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0) else {
        return false;
    };
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

#[cfg(not(unix))]
fn is_running(_: u32) -> bool {
    // Whoever dials a dead address finds out.
    true
}

/// A peer id as its text.
mod text {
    use libp2p::PeerId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(peer: &PeerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(peer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Multiaddr {
        "/ip4/127.0.0.1/tcp/4001".parse().unwrap()
    }

    #[test]
    fn a_listed_node_is_found_by_its_fingerprint_until_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let peer = PeerId::random();
        let mut listed = Listed::new(dir.path(), peer, vec![address()], "abc".into()).unwrap();
        assert_eq!(local_nodes(dir.path(), "abc"), [address().with_p2p(peer).unwrap()]);
        assert!(local_nodes(dir.path(), "def").is_empty());
        fs::remove_file(listed.path()).unwrap();
        listed.renew().unwrap();
        assert_eq!(scan(dir.path(), "abc").len(), 1);
        listed.rekey("new".into(), vec!["abc".into(), "older".into()]).unwrap();
        assert_eq!((scan(dir.path(), "abc").len(), scan(dir.path(), "new").len()), (1, 1));
        listed.rekey("new".into(), vec![]).unwrap();
        assert_eq!((scan(dir.path(), "abc").len(), scan(dir.path(), "new").len()), (0, 1));
        drop(listed);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_of_the_dead_are_removed_and_garbage_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let entry = Entry {
            peer: PeerId::random(),
            addresses: vec![address()],
            fingerprint: "abc".into(),
            former: Vec::new(),
            pid: child.id(),
        };
        let dead = dir.path().join("dead.json");
        fs::write(&dead, serde_json::to_vec(&entry).unwrap()).unwrap();
        fs::write(dir.path().join("garbage.json"), b"{").unwrap();
        assert!(scan(dir.path(), "abc").is_empty());
        assert!(!dead.exists());
        assert!(local_nodes(&dir.path().join("nowhere"), "abc").is_empty());
    }
}
