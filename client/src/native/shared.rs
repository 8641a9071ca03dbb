//! Data that many calls share: it travels once to each node, however many functions read it there.

use std::any::{Any, TypeId};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use floe_protocol::BlobId;
use floe_protocol::function::Blob;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::object;
use crate::error::{Error, Result};
use crate::mesh::Mesh;

/// How many shared values a host keeps as values, so that the next call has them at once; the oldest goes
/// first.
const MAX_KEPT: usize = 16;

/// The node that started this process.
static NODE: OnceLock<Arc<Connection>> = OnceLock::new();

/// Values that were read before.
static KEPT: Mutex<VecDeque<Kept>> = Mutex::new(VecDeque::new());

struct Kept {
    blob: BlobId,
    kind: TypeId,
    value: Arc<dyn Any + Send + Sync>,
}

/// Why shared data cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// Only functions that a node calls can ask it for data.
    #[error("shared data can be read in functions that run on the mesh, and this process does not")]
    NotOnTheMesh,
    /// No node has it.
    #[error("shared data {blob} cannot be had: {why}")]
    Missing {
        /// Its id.
        blob: BlobId,
        /// The node's reason.
        why: String,
    },
    /// It cannot be read, or the node cannot be asked.
    #[error("shared data {blob} cannot be read: {why}")]
    Unreadable {
        /// Its id.
        blob: BlobId,
        /// Why.
        why: String,
    },
}

/// A value that was put into the mesh once, by [`Mesh::share`]; what functions are given of it is only its
/// id.
///
/// ```no_run
/// use floe_client::native::{Shared, SharedError};
///
/// fn known((words, dictionary): (Vec<String>, Shared<Vec<String>>)) -> Result<usize, SharedError> {
///     let dictionary = dictionary.get()?;
///     Ok(words.iter().filter(|word| dictionary.contains(word)).count())
/// }
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "", transparent)]
pub struct Shared<T> {
    blob: Blob,
    #[serde(skip)]
    value: PhantomData<fn() -> T>,
}

impl<T> Shared<T> {
    /// The bytes behind it.
    pub fn blob(&self) -> Blob {
        self.blob
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shared").field(&self.blob).finish()
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> Shared<T> {
    /// The value, within a function that runs on the mesh. The node gets it once, and this process reads it
    /// once.
    pub fn get(&self) -> Result<Arc<T>, SharedError> {
        let kind = TypeId::of::<T>();
        if let Some(value) = kept(self.blob.id, kind).and_then(|value| value.downcast().ok()) {
            return Ok(value);
        }
        let unreadable = |why| SharedError::Unreadable { blob: self.blob.id, why };
        let bytes = std::fs::read(blob(self.blob)?).map_err(|error| unreadable(error.to_string()))?;
        let value: Arc<T> = Arc::new(object::decode(&bytes).map_err(unreadable)?);
        keep(Kept { blob: self.blob.id, kind, value: value.clone() });
        Ok(value)
    }
}

/// The file that holds some bytes which were put into the mesh, within a function that runs on it. It must
/// not be changed: others read it too.
pub fn blob(blob: Blob) -> Result<PathBuf, SharedError> {
    let node = NODE.get().ok_or(SharedError::NotOnTheMesh)?;
    match node.blob(blob) {
        Ok(Ok(path)) => Ok(path),
        Ok(Err(why)) => Err(SharedError::Missing { blob: blob.id, why }),
        Err(error) => Err(SharedError::Unreadable { blob: blob.id, why: error.to_string() }),
    }
}

/// From now on the functions of this process can ask its node.
pub(super) fn serve_from(node: &Arc<Connection>) {
    // There is one pipe and one node; a second call would be of the same.
    let _ = NODE.set(node.clone());
}

/// Whether the functions of this process run on the mesh.
pub(super) fn is_served() -> bool {
    NODE.get().is_some()
}

fn kept(blob: BlobId, kind: TypeId) -> Option<Arc<dyn Any + Send + Sync>> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.iter().find(|kept| kept.blob == blob && kept.kind == kind).map(|kept| kept.value.clone())
}

fn keep(value: Kept) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= MAX_KEPT {
        kept.pop_front();
    }
    kept.push_back(value);
}

impl Mesh {
    /// Puts a value into the mesh, for functions to read with [`Shared::get`]. It travels once to each node
    /// where a function does so.
    pub async fn share<T: Serialize>(&self, value: &T) -> Result<Shared<T>> {
        let bytes =
            object::encode(value).map_err(|error| Error::Local(format!("the shared value: {error}")))?;
        let blob = self.put(Bytes::from(bytes)).await?;
        Ok(Shared { blob, value: PhantomData })
    }
}
