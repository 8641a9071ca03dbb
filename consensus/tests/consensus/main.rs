//! Tests of the crate from outside: golden scripts under `tests/scripts`, and properties of whole meshes.
//!
//! A script shows commands and, below `---`, what came of them. After a wanted change of behaviour run the
//! tests once with `UPDATE_GOLDENFILES=1` and read the difference.

#![allow(clippy::unwrap_used)]

mod cluster;
mod membership;
mod mesh;
mod participant;
mod raft;
mod scale;
mod scheduler;
mod world;

/// Runs every script of a directory, each with a runner of its own.
fn run_scripts<R: goldenscript::Runner>(directory: &str, runner: impl Fn() -> R) {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(directory);
    let mut scripts: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", directory.display());
    for script in scripts {
        if let Err(error) = goldenscript::run(&mut runner(), &script) {
            panic!("{}: {error}", script.display());
        }
    }
}
