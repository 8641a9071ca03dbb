//! The `floe` binary.

use std::process::ExitCode;

/// Polars and Arrow allocate much and from many threads, which the system's allocator is slow at. jemalloc,
/// unlike mimalloc, gives back what a job needed soon after it ended.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How: half a second after it was freed, by a thread of jemalloc's own. A node that waits for work must be
/// small, and one with a memory budget must not hold twice of it.
// SAFETY: jemalloc reads a NUL-terminated string through this symbol, once, when it starts.
#[unsafe(export_name = "_rjem_malloc_conf")]
static JEMALLOC: &[u8; 59] = b"background_thread:true,dirty_decay_ms:500,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    if floe::worker::hosts::guard::main_if_asked() {
        return ExitCode::SUCCESS;
    }
    if floe::worker::apart::main_if_asked() {
        return ExitCode::SUCCESS;
    }
    floe::cli::main()
}
