//! This process's executable, as nodes get it.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;
use floe_protocol::function::{Blob, Function, Host, Limits, Native, Payload, target};
use floe_protocol::message::{Request, Response};
use tokio::sync::OnceCell;

use super::host::is_host;
use super::registry::{Shape, functions, short};
use super::shared::is_served;
use crate::error::{Error, Result};
use crate::mesh::Mesh;

/// The executable's digest and size, once they are known: it does not change while it runs.
static EXECUTABLE: OnceCell<Blob> = OnceCell::const_new();

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
    if let Some(blob) = EXECUTABLE.get()
        && has(mesh, *blob).await?
    {
        return Ok(*blob);
    }
    let bytes = tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Error::Local(error.to_string()))?
        .map_err(|error| Error::Local(format!("this process's executable cannot be read: {error}")))?;
    let blob = mesh.put(bytes).await?;
    Ok(*EXECUTABLE.get_or_init(async || blob).await)
}

async fn has(mesh: &Mesh, blob: Blob) -> Result<bool> {
    let (answer, exchange) = mesh.ask(&Request::HasBlob { id: blob.id }, None).await?;
    match answer {
        Response::Has(has) => Ok(has),
        other => Err(exchange.unexpected(&other)),
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
    }
}
