//! A node's data directory: its lock, identity and mesh key.
//!
//! ```text
//!   lock          held while a node runs on the directory
//!   node.json     format version, secret key, which start it is, last port
//!   mesh.key      the mesh key, when the node joined by an invitation
//!   log.redb      the replicated log
//!   former/       identity and log of a node that this directory must not go on as
//!   partitions/   partitions on disk
//!   reserve       takes room, to be given up when the disk is full
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use floe_protocol::{Incarnation, InvitationId};
use floe_transport::MeshKey;
use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::disk::{Disk, Reserve};
use crate::private;

/// The format of data directories that this version writes and reads.
const FORMAT: u32 = 1;

/// An open data directory; the lock goes with it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    node: NodeFile,
    identity: Keypair,
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    secret: String,
    incarnation: u64,
    /// The marks of its last starts, the latest first.
    #[serde(default)]
    marks: Vec<u32>,
    port: u16,
    /// Whether a log was ever opened beside it.
    has_log: bool,
    /// The invitation by which the mesh key came.
    #[serde(default)]
    invitation: Option<InvitationId>,
}

/// Only what every version of `node.json` has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error("another floe runs on the data directory {}: stop it, or choose another with --data-dir", .0.display())]
    Locked(PathBuf),
    /// Every numbered directory is taken.
    #[error("all {} numbered data directories in {} are in use: stop a node, or name one with --data-dir",
        config::MAX_NUMBERED_DIRS, .0.display())]
    AllTaken(PathBuf),
    /// The operating system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged ({why}): remove the data directory to start as a new node", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a later version.
    #[error("{} was written by a newer floe (format {found}, this one reads up to {FORMAT}): update floe", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A key file without a key.
    #[error("{} holds no mesh key ({why}): make one with `floe key > FILE`", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

impl DataDir {
    /// Opens `path`, making it a new node's where it is empty, and counts this start.
    pub fn open(path: &Path) -> Result<Self, Error> {
        make_dir(path)?;
        let lock_path = path.join("lock");
        let lock = private::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
        }
        let file = path.join("node.json");
        let log = path.join("log.redb");
        let (mut node, identity) = match fs::read(&file) {
            Ok(bytes) => read_node(&file, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => new_node(&log)?,
            Err(source) => return Err(io_error("read", &file)(source)),
        };
        // A node that lost its log must not vote again under the same id: it no longer knows what it promised.
        if node.has_log && !log.exists() {
            return Err(Error::Damaged { path: log, why: "it is missing".to_owned() });
        }
        let mut mark = [0; 4];
        getrandom::fill(&mut mark)
            .map_err(|error| io_error("draw the mark of a start of", path)(error.into()))?;
        let former = Incarnation { number: node.incarnation, marks: node.marks };
        Incarnation { number: node.incarnation, marks: node.marks } = former.next(u32::from_be_bytes(mark));
        let dir = Self { path: path.to_owned(), node, identity, _lock: lock };
        dir.write_node()?;
        // At once, since whoever fills the disk need not wait for a node that has just started.
        if let Err(error) = dir.reserve().make(&dir.disk()?) {
            tracing::debug!(%error, "nothing can be set aside for a full disk");
        }
        Ok(dir)
    }

    /// Opens the first numbered directory under `nodes` that no process holds, and tells its number.
    pub fn open_numbered(nodes: &Path) -> Result<(Self, usize), Error> {
        for number in 0..config::MAX_NUMBERED_DIRS {
            match Self::open(&nodes.join(number.to_string())) {
                Err(Error::Locked(_)) => {}
                other => return Ok((other?, number)),
            }
        }
        Err(Error::AllTaken(nodes.to_owned()))
    }

    /// Puts away what makes its node itself, the identity and the log, since the mesh knows better what became of that
    /// node. The next start on the directory is a new node's, with the key and the partitions that lie here.
    pub fn begin_anew(path: &Path) -> Result<(), Error> {
        let (former, log, file) = (path.join("former"), path.join("log.redb"), path.join("node.json"));
        match fs::remove_dir_all(&former) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &former)(error));
            }
            _ => {}
        }
        make_dir(&former)?;
        let bytes = fs::read(&file).map_err(io_error("read", &file))?;
        let (node, _) = read_node(&file, &bytes)?;
        write_private(&former.join("node.json"), &bytes)?;
        // The log first: an identity without its log is refused, and with it would be the former node's.
        match fs::rename(&log, former.join("log.redb")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("put away", &log)(error));
            }
            _ => {}
        }
        let (new, _) = new_node(&log)?;
        // Its ticket is worth the key that lies here, and needs no second use.
        let new = NodeFile { invitation: node.invitation, ..new };
        write_private(&file, &encode_node(&file, &new)?)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's key.
    pub fn identity(&self) -> &Keypair {
        &self.identity
    }

    /// Which start of its node this is.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { number: self.node.incarnation, marks: self.node.marks.clone() }
    }

    /// The TCP port it listened on last time, 0 if it never did.
    pub fn port(&self) -> u16 {
        self.node.port
    }

    /// Remembers the port, so that the node is found where it was.
    pub fn remember_port(&mut self, port: u16) -> Result<(), Error> {
        if self.node.port == port {
            return Ok(());
        }
        self.node.port = port;
        self.write_node()
    }

    /// What it lies on.
    pub fn disk(&self) -> Result<Disk, Error> {
        Disk::of(&self.path).map_err(io_error("look at the disk of", &self.path))
    }

    /// Room that is kept for when there is none.
    pub fn reserve(&self) -> Reserve {
        Reserve::of(&self.path)
    }

    /// The mesh key that came by this invitation, if one did: a node that is started again with its ticket needs no
    /// second use of it.
    pub fn key_by(&self, invitation: InvitationId) -> Option<Result<MeshKey, Error>> {
        let came = self.node.invitation == Some(invitation) && self.key_file().exists();
        came.then(|| read_key(&self.key_file()))
    }

    /// Keeps the mesh key that came by an invitation.
    pub fn keep_key(&mut self, key: &MeshKey, invitation: InvitationId) -> Result<(), Error> {
        write_key(&self.key_file(), key)?;
        self.node.invitation = Some(invitation);
        self.write_node()
    }

    /// Where the log lies.
    pub fn log_file(&self) -> PathBuf {
        self.path.join("log.redb")
    }

    /// Remembers that there is a log now, so that one that goes missing is noticed.
    pub fn remember_log(&mut self) -> Result<(), Error> {
        if self.node.has_log {
            return Ok(());
        }
        self.node.has_log = true;
        self.write_node()
    }

    /// Where the directory's own mesh key lies, if it has one.
    pub fn key_file(&self) -> PathBuf {
        self.path.join("mesh.key")
    }

    fn write_node(&self) -> Result<(), Error> {
        let path = self.path.join("node.json");
        let text = encode_node(&path, &self.node)?;
        // A node that cannot start would be a voter less.
        let written = self.reserve().lend(|| try_write(&path, &text, |_| Ok(())));
        written.map_err(io_error("write", &path))
    }
}

fn encode_node(file: &Path, node: &NodeFile) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(node).map_err(|error| io_error("encode", file)(io::Error::other(error)))
}

fn read_node(file: &Path, bytes: &[u8]) -> Result<(NodeFile, Keypair), Error> {
    let damaged =
        |why: &dyn std::fmt::Display| Error::Damaged { path: file.to_owned(), why: why.to_string() };
    let Format { format } = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
    if format > FORMAT {
        return Err(Error::Newer { path: file.to_owned(), found: format });
    }
    let node: NodeFile = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
    let secret = HEXLOWER.decode(node.secret.as_bytes()).map_err(|error| damaged(&error))?;
    let identity = Keypair::ed25519_from_bytes(secret).map_err(|error| damaged(&error))?;
    Ok((node, identity))
}

/// A log without its identity would let a second node vote under the first one's id, so it is refused.
fn new_node(log: &Path) -> Result<(NodeFile, Keypair), Error> {
    if log.exists() {
        return Err(Error::Damaged {
            path: log.with_file_name("node.json"),
            why: "it is missing beside a log".to_owned(),
        });
    }
    let identity = Keypair::generate_ed25519();
    let secret = identity
        .clone()
        .try_into_ed25519()
        .map_err(|error| Error::Damaged { path: log.with_file_name("node.json"), why: error.to_string() })?;
    let secret = HEXLOWER.encode(secret.secret().as_ref());
    Ok((
        NodeFile {
            format: FORMAT,
            secret,
            incarnation: 0,
            marks: Vec::new(),
            port: 0,
            has_log: false,
            invitation: None,
        },
        identity,
    ))
}

/// Reads a mesh key from a file.
pub fn read_key(path: &Path) -> Result<MeshKey, Error> {
    let text = fs::read_to_string(path).map_err(io_error("read the mesh key from", path))?;
    text.trim().parse().map_err(|error| Error::BadKey { path: path.to_owned(), why: format!("{error}") })
}

/// Reads the mesh key of `path`, making one there if there is none. Two processes that start together end
/// with the same key.
pub fn read_or_make_key(path: &Path) -> Result<MeshKey, Error> {
    if !path.exists() {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        write_private(&temporary, format!("{}\n", MeshKey::generate()).as_bytes())?;
        // A hard link, unlike a rename, fails where another process was first.
        let linked = fs::hard_link(&temporary, path);
        fs::remove_file(&temporary).map_err(io_error("remove", &temporary))?;
        if let Err(error) = linked
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(io_error("write the mesh key to", path)(error));
        }
    }
    read_key(path)
}

/// Writes a mesh key where only its owner can read it.
pub fn write_key(path: &Path, key: &MeshKey) -> Result<(), Error> {
    write_private(path, format!("{key}\n").as_bytes())
}

/// The modes that a key file may have which somebody made for several: beyond its owner, its group may read it.
const SHARED: u32 = 0o640;

/// Writes a mesh key in place of another. Whose the file is and who may read it stays as it was, if that is not more than
/// its group and if this process may give it away; else it is open to this process's user only. Whether it stayed.
pub fn replace_key(path: &Path, key: &MeshKey) -> Result<bool, Error> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

    let replace = || {
        let before = fs::metadata(path)?;
        let mode = before.mode() & 0o777;
        let mut stays = mode & !SHARED == 0;
        try_write(path, format!("{key}\n").as_bytes(), |file| {
            let now = file.metadata()?;
            if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
                // The mode comes after: a group that is not the one it was open to must never see it.
                stays &= fchown(file, Some(before.uid()), Some(before.gid())).is_ok();
            }
            if stays { file.set_permissions(fs::Permissions::from_mode(mode)) } else { Ok(()) }
        })?;
        Ok(stays)
    };
    replace().map_err(io_error("write", path))
}

/// A directory that is there already stays as open as its owner made it: what is in it has modes of its own.
fn make_dir(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("create the directory", path))
}

/// Writes a file whole or not at all, readable by its owner only.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    try_write(path, bytes, |_| Ok(())).map_err(io_error("write", path))
}

/// Writes a file aside, open to its owner only; then whoever may read it is decided, and then it takes its place.
fn try_write(path: &Path, bytes: &[u8], open: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let write = || {
        let mut file = private::options().create(true).write(true).truncate(true).open(&temporary)?;
        private::restrict(&temporary, 0o600)?;
        file.write_all(bytes)?;
        open(&file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // An older one must not be there again after a power cut.
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_identity_outlives_its_process_and_one_process_at_a_time_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("node");
        let mut first = DataDir::open(&path).unwrap();
        let peer = first.identity().public();
        assert_eq!(first.incarnation().number, 1);
        let first_start = first.incarnation();
        first.remember_port(4810).unwrap();
        assert!(matches!(DataDir::open(&path), Err(Error::Locked(_))));
        drop(first);
        let second = DataDir::open(&path).unwrap();
        assert_eq!(second.identity().public(), peer);
        assert_eq!((second.incarnation().number, second.port()), (2, 4810));
        assert!(second.incarnation().follows(&first_start) && !first_start.follows(&second.incarnation()));
    }

    #[test]
    fn room_for_the_next_start_is_set_aside_by_the_first() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        assert!(dir.reserve().give_up());
        drop(dir);
        assert!(DataDir::open(temp.path()).unwrap().reserve().give_up());
    }

    #[test]
    fn numbered_directories_are_taken_in_order() {
        let temp = tempfile::tempdir().unwrap();
        let (first, _) = DataDir::open_numbered(temp.path()).unwrap();
        let (second, number) = DataDir::open_numbered(temp.path()).unwrap();
        assert_eq!(number, 1);
        assert_eq!(first.path(), temp.path().join("0"));
        assert_eq!(second.path(), temp.path().join("1"));
        drop(first);
        assert_eq!(DataDir::open_numbered(temp.path()).unwrap().0.path(), temp.path().join("0"));
    }

    #[test]
    fn in_a_directory_that_all_can_enter_all_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        drop(DataDir::open(temp.path()).unwrap());
        for entry in fs::read_dir(temp.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
    }

    #[test]
    fn a_damaged_or_newer_directory_is_refused_by_file_name() {
        let temp = tempfile::tempdir().unwrap();
        drop(DataDir::open(temp.path()).unwrap());
        let file = temp.path().join("node.json");
        for bad in [
            "",
            "{}",
            "{\"format\":1}",
            "\0\0",
            "{\"format\":1,\"secret\":\"zz\",\"incarnation\":1,\"port\":0}",
        ] {
            fs::write(&file, bad).unwrap();
            let error = DataDir::open(temp.path()).unwrap_err().to_string();
            assert!(error.contains("node.json is damaged"), "{bad}: {error}");
        }
        fs::write(&file, "{\"format\":99,\"soul\":true}").unwrap();
        let error = DataDir::open(temp.path()).unwrap_err().to_string();
        assert!(error.contains("newer floe"), "{error}");
        fs::remove_file(&file).unwrap();
        fs::write(temp.path().join("log.redb"), "x").unwrap();
        assert!(DataDir::open(temp.path()).unwrap_err().to_string().contains("missing beside a log"));
    }

    #[test]
    fn a_log_that_went_missing_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = DataDir::open(temp.path()).unwrap();
        fs::write(dir.log_file(), "x").unwrap();
        dir.remember_log().unwrap();
        drop(dir);
        drop(DataDir::open(temp.path()).unwrap());
        fs::remove_file(temp.path().join("log.redb")).unwrap();
        let error = DataDir::open(temp.path()).unwrap_err().to_string();
        assert!(error.contains("log.redb is damaged (it is missing)"), "{error}");
    }

    #[test]
    fn a_key_is_made_once_and_a_bad_one_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("home").join("mesh.key");
        let key = read_or_make_key(&path).unwrap();
        assert_eq!(read_or_make_key(&path).unwrap().to_string(), key.to_string());
        fs::write(&path, "sesame").unwrap();
        assert!(read_key(&path).unwrap_err().to_string().contains("floe key"));
        assert!(read_key(&temp.path().join("none")).is_err());
    }
}
