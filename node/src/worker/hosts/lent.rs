//! Files of the node's that a child gets: as copies, since whoever runs as the node's user can write to whatever it can
//! read, whatever its mode.
//!
//! A file system that can (btrfs, XFS) makes copies that share their bytes until one of them is written to. Only the
//! executables of hosts are not copied, since each slot runs one: nobody can write to what is being executed, not even
//! root, and whoever comes to write to it afterwards is found out, as the node compares an object that was changed with its
//! name before it is used again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::private;

/// Gives a child a file, to be read only, in its own directory. One of this name that it has already, and that may have
/// been changed, gives way; whoever has that one open keeps it.
pub(super) async fn lend(disk: &Disk, file: PathBuf, dir: &Path, name: &str) -> io::Result<PathBuf> {
    put(disk, file, dir.join(name), 0o400).await
}

/// The same with a file that is to be executed, in a directory that may not be there yet.
pub(super) async fn lend_executable(
    disk: &Disk,
    file: PathBuf,
    dir: &Path,
    name: &str,
) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    put(disk, file, dir.join(name), 0o500).await
}

/// A file that is executed by a host for as long as that lives: under a name in the host's directory, so that it stays.
pub(super) async fn link_executable(
    disk: &Disk,
    file: PathBuf,
    dir: &Path,
    name: &str,
) -> io::Result<PathBuf> {
    let there = dir.join(name);
    let linked = fs::create_dir_all(dir).and_then(|()| fs::hard_link(&file, &there));
    match linked {
        // The object's too: who may execute it may no more write to it than before.
        Ok(()) => private::restrict(&there, 0o500).map(|()| there),
        Err(_) => lend_executable(disk, file, dir, name).await,
    }
}

async fn put(disk: &Disk, file: PathBuf, there: PathBuf, mode: u32) -> io::Result<PathBuf> {
    let disk = disk.clone();
    let copy = move || {
        let _room = disk.set_aside(fs::metadata(&file)?.len())?;
        let new = there.with_added_extension("new");
        let copied = fs::copy(&file, &new).and_then(|_| {
            private::restrict(&new, mode)?;
            fs::rename(&new, &there)
        });
        copied.inspect_err(|_| drop(fs::remove_file(&new)))?;
        Ok(there)
    };
    tokio::task::spawn_blocking(copy).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[tokio::test]
    async fn what_a_child_does_to_a_file_that_it_was_lent_is_its_own_affair() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::told(1 << 30);
        let own = dir.path().join("own");
        fs::write(&own, "as it was").unwrap();
        let lent = lend(&disk, own.clone(), dir.path(), "lent.zip").await.unwrap();
        assert_ne!(fs::metadata(&own).unwrap().ino(), fs::metadata(&lent).unwrap().ino());
        assert_eq!(fs::metadata(&lent).unwrap().mode() & 0o777, 0o400);
        fs::set_permissions(&lent, fs::Permissions::from_mode(0o600)).unwrap();
        let open = fs::File::open(&lent).unwrap();
        fs::write(&lent, "").unwrap();
        assert_eq!(fs::read_to_string(&own).unwrap(), "as it was");
        // Lent again, it is as it was, and what is open is cut no further.
        assert_eq!(lend(&disk, own.clone(), dir.path(), "lent.zip").await.unwrap(), lent);
        assert_eq!(fs::read_to_string(&lent).unwrap(), "as it was");
        assert_ne!(open.metadata().unwrap().ino(), fs::metadata(&lent).unwrap().ino());
        let program = lend_executable(&disk, own.clone(), &dir.path().join("bin"), "f").await.unwrap();
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o777, 0o500);
        let linked = link_executable(&disk, own.clone(), &dir.path().join("bin"), "host").await.unwrap();
        assert_eq!(fs::metadata(&linked).unwrap().ino(), fs::metadata(&own).unwrap().ino());
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o500);
        disk.tell(0);
        let error = lend(&disk, own, dir.path(), "another").await.unwrap_err();
        assert!(crate::disk::is_full(&error), "{error}");
    }
}
