//! This process's executable, as nodes get it.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;
use floe_protocol::function::{Blob, Function, Host, Limits, Native, Payload, target};
use floe_protocol::message::{Request, Response};
use floe_transport::BlobHasher;
use tokio::sync::OnceCell;

use super::host::is_host;
use super::registry::{Shape, functions, short};
use super::shared::is_served;
use crate::error::{Error, Result};
use crate::mesh::Mesh;

/// The executable's digest and size, once they are known: it does not change while it runs.
static EXECUTABLE: OnceCell<Blob> = OnceCell::const_new();

/// How much of it is read at once.
const READ_BYTES: usize = 1 << 20;

/// A function of this process by the name that its other processes know it by.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    /// For people.
    name: String,
    /// For hosts.
    code: String,
}

impl Registered {
    /// Looks a function up, or says how it has to be registered.
    pub(super) fn find<F: 'static>(shape: Shape, _: &F) -> Result<Self> {
        if is_host() && !is_served() {
            return Err(Error::Local(
                "this process was started by a node to call functions, but came here instead: put \
                 `floe_client::functions![...]` before everything else in main"
                    .to_owned(),
            ));
        }
        let name = std::any::type_name::<F>();
        let code = functions()
            .code(shape, name, std::any::TypeId::of::<F>())
            .map_err(|error| Error::Local(error.to_string()))?;
        Ok(Self { name: short(name).to_owned(), code })
    }

    /// What people call it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The function as the mesh can run it, which has the executable by then.
    pub(super) async fn on(self, mesh: &Mesh, limits: Limits) -> Result<Function> {
        let host = Host::Native(Native { executable: put(mesh).await?, target: target() });
        Ok(Function { name: self.name, host, code: Payload::Inline(self.code.into()), limits })
    }
}

/// Puts the executable into a mesh, unless it has it already.
async fn put(mesh: &Mesh) -> Result<Blob> {
    let blob = *EXECUTABLE.get_or_try_init(|| aside(digest)).await?;
    if has(mesh, blob).await? {
        return Ok(blob);
    }
    match mesh.put(aside(read).await?).await {
        // Only the answer was lost, or other nodes are slow to get their copies: it is there.
        Err(error) if has(mesh, blob).await.unwrap_or(false) => {
            tracing::debug!(%error, "the executable is in the mesh, though putting it failed");
            Ok(blob)
        }
        put => put,
    }
}

/// Reads the executable on a thread that may wait.
async fn aside<T: Send + 'static>(read: fn() -> io::Result<T>) -> Result<T> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Error::Local(error.to_string()))?
        .map_err(|error| Error::Local(format!("this process's executable cannot be read: {error}")))
}

async fn has(mesh: &Mesh, blob: Blob) -> Result<bool> {
    let (answer, exchange) = mesh.ask(&Request::HasBlob { id: blob.id }, &[]).await?;
    match answer {
        Response::Has(has) => Ok(has),
        other => Err(exchange.unexpected(&other)),
    }
}

/// Its digest, without holding it in memory: the mesh mostly has it.
fn digest() -> io::Result<Blob> {
    let mut file = File::open(path()?)?;
    let (mut hasher, mut bytes, mut chunk) = (BlobHasher::default(), 0, vec![0; READ_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Blob { id: hasher.finish(), bytes }),
            read => {
                hasher.update(chunk.get(..read).unwrap_or_default());
                bytes += read as u64;
            }
        }
    }
}

fn read() -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    File::open(path()?)?.read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// Where the executable can be read, even if its file was replaced since, by a new build perhaps.
fn path() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_read_as_it_runs() {
        let running = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(read().unwrap() == running);
        let blob = Blob { id: floe_transport::blob_id(&running), bytes: running.len() as u64 };
        assert_eq!(digest().unwrap(), blob);
    }
}
