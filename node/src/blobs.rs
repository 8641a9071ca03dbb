//! Bytes by content: code, arguments and shared objects that functions need, on this node's disk once they were
//! needed here.
//!
//! ```text
//!   driver ── PutBlob ──> a node ── PutBlob ──> other nodes, until [`COPIES`] have it
//!   a node that needs it ── GetBlob ──> any node that has it; asked once, however many tasks wait
//! ```
//!
//! A file here is whole and is what its name says: it is written beside its place, checked, and moved there. Nobody may
//! write to it. Functions get copies (`worker/hosts/lent.rs`), and a file that has changed all the same is compared with
//! its name before it is used again: one that no longer fits is had anew from another node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use floe_network::Network;
use floe_protocol::function::{Blob, MAX_BLOB_BYTES};
use floe_protocol::{BlobId, Failure, NodeId, Request, Response};
use floe_transport::call::{read_frame, write_frame};
use floe_transport::stream::{Body, send_body};
use floe_transport::{BlobHasher, blob_id};
use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, Stream, StreamExt, stream};
use tempfile::NamedTempFile;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::disk::{Disk, Promise};
use crate::plan::MAX_PLAN_BYTES;
use crate::private;
use crate::submit::blocking;
use crate::worker::hosts;

/// How many nodes are given a blob, two of them before its driver is told that it is kept: losing any one of them,
/// and then another before anybody fetched it, loses nothing.
const COPIES: usize = 3;

/// How long its driver waits for the second of them: a large blob over a slow link should not end in an error when one
/// node has it.
const SPREAD_PATIENCE: Duration = Duration::from_secs(15);

/// How much of a blob is written at once, on a thread that may wait for the disk.
const WRITTEN_BYTES: usize = 4 << 20;

/// How much of a blob is read at once.
const READ_BYTES: usize = 256 << 10;

/// How many bytes of blobs a node keeps. Beyond it those that were not used for longest go, if no job needs them.
const MAX_KEPT_BYTES: u64 = 16 << 30;

/// How many blobs a node keeps, likewise: each is an entry in memory and a file in one directory, however short.
const MAX_KEPT: usize = 100_000;

/// Blobs that were used within this time stay whatever the disk holds: a host may be about to open them.
const IN_USE: Duration = Duration::from_secs(15 * 60);

/// How long a node may take to begin answering.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a blob that no node has is looked for: one that has it may be coming back.
const SEARCH_PATIENCE: Duration = Duration::from_secs(10);

/// How long the pause is after the first look at all nodes; each further one is twice as long, so that a blob that is
/// nowhere costs every node a few questions.
const SEARCH_INTERVAL: Duration = Duration::from_millis(500);

/// Searches for drivers at a time: an id may be anything that came to a driver's mind, and each is asked of all nodes.
/// Whoever comes later tries again.
const MAX_SEARCHES: usize = 16;

/// When such a driver tries again.
const SEARCH_RETRY_MS: u64 = 500;

/// A node's blobs. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    disk: Disk,
    network: Network,
    index: Mutex<Index>,
    /// Held while a blob is fetched, so that many who want it fetch it once.
    fetching: Mutex<BTreeMap<BlobId, Arc<tokio::sync::Mutex<()>>>>,
    /// Places for searches on behalf of drivers.
    searches: Semaphore,
}

#[derive(Debug, Default)]
struct Index {
    blobs: BTreeMap<BlobId, Kept>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    bytes: u64,
    /// Its last use; of one that a former process left, when it was found: what the log says of it is yet to be heard.
    used: Instant,
    /// The file as it was when its digest was last compared; none if this process has not done so.
    stamp: Option<Stamp>,
}

/// What is different about a file that somebody has written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    inode: u64,
    modified: SystemTime,
}

/// A blob that is being received.
struct Part {
    file: NamedTempFile,
    promise: Promise,
    hasher: BlobHasher,
}

/// The directory for blobs is of no use.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {} for the code and objects of functions: {source}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

impl Blobs {
    /// Opens the blobs in `dir`, on `disk`. What a former process left half written is removed.
    pub fn open(dir: &Path, disk: Disk, network: Network) -> Result<Self, Error> {
        let index = scan(dir).map_err(|source| Error { path: dir.to_owned(), source })?;
        let inner = Inner {
            dir: dir.to_owned(),
            disk,
            network,
            index: Mutex::new(index),
            fetching: Mutex::default(),
            searches: Semaphore::new(MAX_SEARCHES),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Whether it is here. Then it stays for a while: whoever asks is about to name it.
    pub async fn has(&self, id: BlobId) -> bool {
        self.0.sound(id).await.is_some()
    }

    /// Whether it was here when it was last looked at.
    pub fn lists(&self, id: BlobId) -> bool {
        self.0.index().blobs.contains_key(&id)
    }

    /// Keeps a copy that somebody sends on a stream, or refuses it with [`Failure::Busy`] before it comes.
    pub async fn receive<S>(&self, blob: Blob, stream: S) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let promise = sized(blob).and_then(|()| self.0.disk.promise_object(blob.bytes));
        self.receive_promised(blob, promise, stream).await
    }

    /// The same with a job's plan, which a voter takes for as long as it takes what it agrees on.
    pub async fn receive_plan<S>(&self, plan: Blob, stream: S) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let promise = if plan.bytes > MAX_PLAN_BYTES {
            let message = format!("a plan of {} bytes is longer than any", plan.bytes);
            Err(Failure::Refused { message })
        } else {
            self.0.disk.promise_plan(plan.bytes)
        };
        self.receive_promised(plan, promise, stream).await
    }

    /// Keeps a plan of this node's own, `bytes` by its name.
    pub async fn put_plan(&self, plan: Blob, bytes: Bytes) -> Result<(), Failure> {
        drop(self.0.disk.promise_plan(plan.bytes)?);
        let inner = Arc::clone(&self.0);
        blocking(move || inner.write(plan, &bytes)).await?
    }

    async fn receive_promised<S>(
        &self,
        blob: Blob,
        promise: Result<Promise, Failure>,
        stream: S,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut body = Body::new(stream);
        match promise {
            Ok(promise) => self.take(blob, promise, &mut body).await,
            Err(failure) => {
                body.refuse(&failure).await;
                Err(failure)
            }
        }
    }

    async fn take<S>(&self, blob: Blob, promise: Promise, body: &mut Body<S>) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let broken = |what: &dyn std::fmt::Display| Failure::Unavailable {
            message: format!("object {} did not arrive whole: {what}", blob.id),
        };
        let mut part = Part { file: self.0.create()?, promise, hasher: BlobHasher::default() };
        let mut left = blob.bytes;
        let mut gathered = Vec::new();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| broken(&error))?;
            left =
                left.checked_sub(piece.len() as u64).ok_or_else(|| broken(&"it is longer than it said"))?;
            gathered.extend_from_slice(&piece);
            if gathered.len() >= WRITTEN_BYTES {
                part = part.write(std::mem::take(&mut gathered)).await?;
            }
        }
        let Part { file, hasher, promise: _promise } = part.write(gathered).await?;
        if left > 0 || hasher.finish() != blob.id {
            return Err(broken(&"it is not what its name says"));
        }
        let inner = Arc::clone(&self.0);
        blocking(move || inner.keep(blob, file)).await?
    }

    /// Whether there are more than a node keeps, or no more have room.
    pub fn are_many(&self) -> bool {
        self.0.index().are_many() || !self.0.disk.has_room_for_object(0)
    }

    /// Removes objects that nobody needs, as it seems, until there is room for others: not those that are needed by jobs,
    /// and none that was used a moment ago.
    pub fn free_unused(&self, needed: &BTreeSet<BlobId>) {
        let idle = self.0.index().idle(needed);
        for id in idle {
            if !self.are_many() {
                return;
            }
            self.0.remove_idle(id);
        }
    }

    /// Removes one that no job needs any more, unless it was used a moment ago: another such job may be on its way.
    pub fn free(&self, id: BlobId) {
        self.0.remove_idle(id);
    }

    /// Makes sure that another node has it too, if there is one that takes it soon enough. Further
    /// copies are made in the background.
    pub async fn spread(&self, blob: Blob) {
        let (copied, mut copies) = watch::channel(0);
        let blobs = self.clone();
        tokio::spawn(async move {
            for node in blobs.0.others(blob.id) {
                if *copied.borrow() + 1 >= COPIES {
                    break;
                }
                match blobs.copy_to(node, blob).await {
                    Ok(()) => copied.send_modify(|copies| *copies += 1),
                    Err(failure) => tracing::info!(%node, blob = %blob.id, %failure, "object not copied"),
                }
            }
        });
        // An error means that no node took it.
        let _ = timeout(SPREAD_PATIENCE, copies.wait_for(|copies| *copies > 0)).await;
    }

    async fn copy_to(&self, node: NodeId, blob: Blob) -> Result<(), Failure> {
        let network = &self.0.network;
        if let Ok(Response::Has(true)) =
            network.call(node, &Request::HasBlob { id: blob.id }, ANSWER_TIMEOUT).await
        {
            return Ok(());
        }
        let (file, _) = self.0.open(blob.id).await?;
        let sent = network.upload(node, &Request::PutBlob { blob }, pieces_of(file), ANSWER_TIMEOUT).await;
        match sent.map_err(Failure::internal)?.0 {
            Response::Done => Ok(()),
            Response::Failed(failure) => Err(failure),
            other => Err(Failure::internal(format!("node {node} answered an object with {other:?}"))),
        }
    }

    /// Answers [`Request::GetBlob`]; for a driver, after getting it from other nodes where it is not here.
    pub async fn serve<S>(&self, mut stream: S, id: BlobId, search: bool) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let found = match self.0.open(id).await {
            Err(_) if search => match self.search(id).await {
                Ok(()) => self.0.open(id).await,
                Err(failure) => Err(failure),
            },
            found => found,
        };
        let (file, bytes) = match found {
            Ok(found) => found,
            Err(failure) => {
                return write_frame(&mut stream, &Response::Failed(failure)).await.map_err(Failure::internal);
            }
        };
        write_frame(&mut stream, &Response::Blob { bytes }).await.map_err(Failure::internal)?;
        send_body(&mut stream, pieces_of(file)).await.map_err(Failure::internal)?;
        Ok(())
    }

    /// Gets a blob from another node for a driver.
    async fn search(&self, id: BlobId) -> Result<(), Failure> {
        let Ok(_place) = self.0.searches.try_acquire() else {
            let message =
                format!("object {id} is not here, and {MAX_SEARCHES} others are looked for elsewhere");
            return Err(Failure::Busy { message, retry_ms: SEARCH_RETRY_MS });
        };
        self.find(id, None).await.map(drop)
    }

    /// A file with these bytes, fetched from another node if it is not here yet.
    async fn find(&self, id: BlobId, bytes: Option<u64>) -> Result<PathBuf, Failure> {
        if let Some(path) = self.0.sound(id).await {
            return Ok(path);
        }
        let turn = Arc::clone(self.0.fetching().entry(id).or_default());
        let held = turn.lock().await;
        let found = self.fetch(id, bytes).await;
        drop(held);
        // Whoever waits has a handle of its own; a later one begins anew.
        self.0.fetching().remove(&id);
        found
    }

    async fn fetch(&self, id: BlobId, bytes: Option<u64>) -> Result<PathBuf, Failure> {
        let until = Instant::now() + SEARCH_PATIENCE;
        let mut pause = SEARCH_INTERVAL;
        loop {
            for node in self.0.others(id) {
                if let Some(path) = self.0.sound(id).await {
                    return Ok(path);
                }
                match self.fetch_from(node, id, bytes).await {
                    Ok(()) => {}
                    // No other node's copy needs less room.
                    Err(failure @ Failure::Exhausted { .. }) => return Err(failure),
                    Err(failure) => tracing::debug!(%node, blob = %id, %failure, "object not had"),
                }
            }
            if let Some(path) = self.0.sound(id).await {
                return Ok(path);
            }
            if Instant::now() >= until {
                return Err(missing(id));
            }
            sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
            pause *= 2;
        }
    }

    async fn fetch_from(&self, node: NodeId, id: BlobId, bytes: Option<u64>) -> Result<(), Failure> {
        let begin = async {
            let mut stream = self.0.network.open(node).await.map_err(Failure::internal)?;
            write_frame(&mut stream, &Request::GetBlob { id }).await.map_err(Failure::internal)?;
            let response: Response = read_frame(&mut stream).await.map_err(Failure::internal)?;
            Ok::<_, Failure>((stream, response))
        };
        let (stream, response) = timeout(ANSWER_TIMEOUT, begin).await.map_err(Failure::internal)??;
        match response {
            Response::Blob { bytes: announced } => {
                let blob = Blob { id, bytes: bytes.unwrap_or(announced) };
                sized(blob)?;
                // A task waits for it already.
                let promise = self.0.disk.set_aside(blob.bytes).map_err(|error| no_room(&error))?;
                self.take(blob, promise, &mut Body::new(stream)).await
            }
            Response::Failed(failure) => Err(failure),
            other => Err(Failure::internal(format!("node {node} answered a request with {other:?}"))),
        }
    }
}

impl Kept {
    fn is_in_use(&self) -> bool {
        self.used.elapsed() <= IN_USE
    }
}

impl Part {
    async fn write(mut self, bytes: Vec<u8>) -> Result<Self, Failure> {
        blocking(move || {
            self.hasher.update(&bytes);
            let write = self.promise.take(bytes.len() as u64).and_then(|()| self.file.write_all(&bytes));
            write.map_err(|error| no_room(&error))?;
            Ok(self)
        })
        .await?
    }
}

impl hosts::Blobs for Blobs {
    fn get(&self, blob: Blob) -> BoxFuture<'_, Result<PathBuf, Failure>> {
        Box::pin(self.find(blob.id, Some(blob.bytes)))
    }

    fn put(&self, bytes: Bytes) -> BoxFuture<'_, Result<Blob, Failure>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            blocking(move || {
                let blob = Blob { id: blob_id(&bytes), bytes: bytes.len() as u64 };
                inner.write(blob, &bytes)?;
                Ok(blob)
            })
            .await?
        })
    }
}

impl Inner {
    fn path(&self, id: BlobId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn create(&self) -> Result<NamedTempFile, Failure> {
        NamedTempFile::with_prefix_in(".part-", &self.dir).map_err(|error| no_room(&error))
    }

    /// Keeps bytes by their name.
    fn write(&self, blob: Blob, bytes: &[u8]) -> Result<(), Failure> {
        let mut file = self.create()?;
        let written = self.disk.take(blob.bytes).and_then(|()| file.write_all(bytes));
        written.map_err(|error| no_room(&error))?;
        self.keep(blob, file)
    }

    /// Moves a whole file to its place, where it is after a power cut, too.
    fn keep(&self, blob: Blob, file: NamedTempFile) -> Result<(), Failure> {
        let path = self.path(blob.id);
        private::restrict(file.path(), 0o400).map_err(|error| no_room(&error))?;
        file.as_file().sync_all().map_err(|error| no_room(&error))?;
        {
            // Nobody must find it old, and remove it, between the two.
            let mut index = self.index();
            file.persist(&path).map_err(|error| no_room(&error.error))?;
            let stamp = Stamp::of(&path).map_err(Failure::internal)?;
            let kept = Kept { bytes: blob.bytes, used: Instant::now(), stamp: Some(stamp) };
            if index.blobs.insert(blob.id, kept).is_none() {
                index.bytes += blob.bytes;
            }
        }
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|error| no_room(&error))
    }

    /// Removes one unless it was used lately.
    fn remove_idle(&self, id: BlobId) {
        self.remove_if(id, |kept| !kept.is_in_use());
    }

    /// Removes one if that holds of it at this moment: whoever uses it next must find all of it, or nothing.
    fn remove_if(&self, id: BlobId, condition: impl FnOnce(&Kept) -> bool) {
        let mut index = self.index();
        if index.take_if(id, condition)
            && let Err(error) = fs::remove_file(self.path(id))
        {
            tracing::warn!(blob = %id, %error, "an object cannot be removed");
        }
    }

    /// The file, if it is here and what its name says, marked as used now.
    async fn sound(self: &Arc<Self>, id: BlobId) -> Option<PathBuf> {
        let inner = Arc::clone(self);
        blocking(move || inner.look_at(id)).await.ok().flatten()
    }

    fn look_at(&self, id: BlobId) -> Option<PathBuf> {
        let path = self.path(id);
        let known = {
            let mut index = self.index();
            let kept = index.blobs.get_mut(&id)?;
            kept.used = Instant::now();
            kept.stamp
        };
        let stamp = Stamp::of(&path).ok();
        if stamp.is_none() || stamp != known {
            if digest_of(&path).ok() != Some(id) {
                tracing::error!(blob = %id, path = %path.display(), "an object's file was changed: it is had anew");
                // Unless it was had anew meanwhile.
                self.remove_if(id, |kept| kept.stamp == known);
                return None;
            }
            if let Some(kept) = self.index().blobs.get_mut(&id) {
                kept.stamp = stamp;
            }
        }
        // For the next process, which knows of no use but this.
        let accessed = FileTimes::new().set_accessed(SystemTime::now());
        let touched = File::open(&path).and_then(|file| file.set_times(accessed));
        if let Err(error) = touched {
            tracing::debug!(blob = %id, %error, "the time of an object's use is not noted");
        }
        Some(path)
    }

    /// The file, to be read, and its length.
    async fn open(self: &Arc<Self>, id: BlobId) -> Result<(File, u64), Failure> {
        let path = self.sound(id).await.ok_or_else(|| missing(id))?;
        let open = move || {
            let file = File::open(path)?;
            let bytes = file.metadata()?.len();
            Ok::<_, io::Error>((file, bytes))
        };
        blocking(open).await?.map_err(Failure::internal)
    }

    /// The nodes that are connected, beginning at a place that depends on the blob, so that not all blobs lie on the
    /// same ones.
    fn others(&self, id: BlobId) -> Vec<NodeId> {
        let here = self.network.node();
        let connected = self.network.peers().into_iter().filter(|peer| peer.connected && peer.node != here);
        let mut nodes: Vec<NodeId> = connected.map(|peer| peer.node).collect();
        if !nodes.is_empty() {
            let first = (id.0 % nodes.len() as u128) as usize;
            nodes.rotate_left(first);
        }
        nodes
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Every change is whole before the lock is given back.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetching(&self) -> MutexGuard<'_, BTreeMap<BlobId, Arc<tokio::sync::Mutex<()>>>> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { bytes: found.len(), inode: found.ino(), modified: found.modified()? })
    }
}

impl Index {
    fn forget(&mut self, id: BlobId) {
        if let Some(kept) = self.blobs.remove(&id) {
            self.bytes -= kept.bytes;
        }
    }

    /// Takes one out if that holds of it at this moment.
    fn take_if(&mut self, id: BlobId, condition: impl FnOnce(&Kept) -> bool) -> bool {
        let takes = self.blobs.get(&id).is_some_and(condition);
        if takes {
            self.forget(id);
        }
        takes
    }

    fn are_many(&self) -> bool {
        self.bytes > MAX_KEPT_BYTES || self.blobs.len() > MAX_KEPT
    }

    /// Those that are not in use and that nobody needs, beginning with what was not used for longest.
    fn idle(&self, needed: &BTreeSet<BlobId>) -> Vec<BlobId> {
        let idle = self.blobs.iter().filter(|(id, kept)| !kept.is_in_use() && !needed.contains(id));
        let mut idle: Vec<_> = idle.map(|(id, kept)| (kept.used, *id)).collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, id)| id).collect()
    }
}

/// Refuses an object that is too large.
fn sized(blob: Blob) -> Result<(), Failure> {
    if blob.bytes <= MAX_BLOB_BYTES {
        return Ok(());
    }
    let message = format!(
        "{} bytes are too many for one object: at most {} GiB travel as one",
        blob.bytes,
        MAX_BLOB_BYTES >> 30
    );
    Err(Failure::Refused { message })
}

/// What a file holds, by its digest.
fn digest_of(path: &Path) -> io::Result<BlobId> {
    let (mut file, mut hasher) = (File::open(path)?, BlobHasher::default());
    let mut piece = vec![0; READ_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&piece[..read]),
        }
    }
}

/// A file piece by piece, each read when it is wanted. It is not mapped: who cuts it off must not end this process.
fn pieces_of(file: File) -> impl Stream<Item = Result<Bytes, Failure>> + Send + Unpin {
    let next = |mut file: File| async move {
        let read = blocking(move || {
            let mut piece = vec![0; READ_BYTES];
            let read = file.read(&mut piece)?;
            piece.truncate(read);
            Ok::<_, io::Error>((Bytes::from(piece), file))
        });
        match read.await?.map_err(Failure::internal)? {
            (piece, _) if piece.is_empty() => Ok(None),
            more => Ok(Some(more)),
        }
    };
    Box::pin(stream::try_unfold(file, next))
}

/// What a former process left.
fn scan(dir: &Path) -> io::Result<Index> {
    private::create_dir(dir)?;
    let mut index = Index::default();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| name.parse::<BlobId>().ok());
        match id {
            Some(id) => {
                let bytes = entry.metadata()?.len();
                index.bytes += bytes;
                private::restrict(&entry.path(), 0o400)?;
                index.blobs.insert(id, Kept { bytes, used: Instant::now(), stamp: None });
            }
            None => fs::remove_file(entry.path())?,
        }
    }
    Ok(index)
}

fn missing(id: BlobId) -> Failure {
    Failure::Unavailable { message: format!("object {id} lies on no node that is here: put it again") }
}

fn no_room(error: &io::Error) -> Failure {
    Failure::Exhausted { what: "disk".to_owned(), message: format!("an object cannot be written: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_and_what_is_in_use_stays() {
        let mut index = Index::default();
        let mut add = |id, used: Instant| {
            index.blobs.insert(BlobId(id), Kept { bytes: 100, used, stamp: None });
            index.bytes += 100;
        };
        let before = |uses: u32| Instant::now().checked_sub(IN_USE * uses).unwrap();
        let long_ago = before(2);
        add(1, Instant::now());
        add(2, long_ago);
        add(3, before(3));
        add(4, Instant::now());
        add(5, before(3));
        let needed = BTreeSet::from([BlobId(5)]);
        let left = "all that is left is in use, or a job needs it";
        assert_eq!(index.idle(&needed), [BlobId(3), BlobId(2)], "{left}");
        assert_eq!(index.idle(&BTreeSet::new()), [BlobId(3), BlobId(5), BlobId(2)]);
        // One that was used since the list was made stays.
        index.blobs.get_mut(&BlobId(3)).unwrap().used = Instant::now();
        assert!(!index.take_if(BlobId(3), |kept| !kept.is_in_use()) && index.blobs.contains_key(&BlobId(3)));
        assert!(index.take_if(BlobId(2), |kept| !kept.is_in_use()) && !index.blobs.contains_key(&BlobId(2)));
        assert!(!index.are_many());
        for id in 0..MAX_KEPT as u128 {
            index.blobs.insert(BlobId(100 + id), Kept { bytes: 0, used: long_ago, stamp: None });
        }
        assert!(index.are_many(), "however short they are");
    }

    #[test]
    fn a_file_that_was_changed_no_longer_fits_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(blob_id(b"whole").to_string());
        fs::write(&path, b"whole").unwrap();
        let index = scan(dir.path()).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!((index.blobs.len(), mode), (1, 0o400));
        let stamp = Stamp::of(&path).unwrap();
        assert_eq!((digest_of(&path).unwrap(), Stamp::of(&path).unwrap()), (blob_id(b"whole"), stamp));
        private::restrict(&path, 0o600).unwrap();
        fs::write(&path, b"WHOLE").unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), stamp);
        assert_ne!(digest_of(&path).unwrap(), blob_id(b"whole"));
    }

    #[tokio::test]
    async fn a_file_is_sent_piece_by_piece_to_its_end_wherever_that_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let bytes: Vec<u8> = (0..3 * READ_BYTES + 5).map(|at| at as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let whole: Vec<Bytes> =
            pieces_of(File::open(&path).unwrap()).map(|piece| piece.unwrap()).collect().await;
        assert_eq!((whole.len(), whole.concat()), (4, bytes));
        let mut cut = pieces_of(File::open(&path).unwrap());
        cut.next().await.unwrap().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert!(cut.next().await.is_none());
    }

    #[test]
    fn what_a_former_process_left_half_written_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let id = blob_id(b"whole");
        fs::write(dir.path().join(id.to_string()), b"whole").unwrap();
        fs::write(dir.path().join(".part-x"), b"ha").unwrap();
        let index = scan(dir.path()).unwrap();
        assert_eq!((index.bytes, index.blobs.len()), (5, 1));
        assert!(index.blobs.contains_key(&id));
        // What jobs need of it is not known before the log was read to its end.
        assert_eq!(index.idle(&BTreeSet::new()), []);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
