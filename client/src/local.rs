//! The mesh of this machine and user: where its key lies and which of its nodes run.

use std::path::{Path, PathBuf};

use floe_transport::MeshKey;
use floe_transport::registry::{all, local_nodes};

use crate::error::{Error, Result};

/// The user's Floe directory: `FLOE_HOME`, else `floe` in the platform's data directory.
pub fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("FLOE_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    let data = dirs::data_dir().ok_or(Error::Incomplete(
        "this user has no data directory: set FLOE_HOME to a directory for floe's data",
    ))?;
    Ok(data.join("floe"))
}

/// Where the mesh key of `floe up` lies that was given none.
pub fn key_file(home: &Path) -> PathBuf {
    home.join("mesh.key")
}

/// Where running nodes announce themselves to each other and to drivers.
pub fn registry(home: &Path) -> PathBuf {
    home.join("running")
}

/// The addresses of nodes on this machine that announced themselves under this key. Some may have died since.
pub fn nodes(home: &Path, key: &MeshKey) -> Vec<String> {
    local_nodes(&registry(home), &key.fingerprint()).iter().map(ToString::to_string).collect()
}

/// Whether nodes run on this machine, of whatever mesh.
pub fn any_node(home: &Path) -> bool {
    !all(&registry(home)).is_empty()
}

/// Where the mesh key lies that drivers use unless given another: what `FLOE_KEY_FILE` names, else the user's own
/// file.
pub fn user_key_file(home: &Path) -> PathBuf {
    match std::env::var_os("FLOE_KEY_FILE").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => key_file(home),
    }
}

/// Reads the mesh key that drivers use unless given another.
pub fn key() -> Result<MeshKey> {
    read_key(&user_key_file(&home()?))
}

/// Reads a mesh key from a file.
pub fn read_key(path: &Path) -> Result<MeshKey> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::Local(format!("the mesh key cannot be read from {}: {error}", path.display()))
    })?;
    text.trim()
        .parse()
        .map_err(|error| Error::Local(format!("{} holds no mesh key: {error}", path.display())))
}
