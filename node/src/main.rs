//! The `floe` binary.

use std::process::ExitCode;

/// Polars and Arrow allocate much and from many threads, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    floe::cli::main()
}
