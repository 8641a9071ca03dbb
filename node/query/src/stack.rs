//! Stacks for plans that are deep.
//!
//! Whatever walks a plan, an expression or a statement from its root to its leaves recurses as deep as it is: to read
//! it, optimize it, write it down, and even to drop it. Polars guards some of these walks and not others, and a stack
//! that overflows ends the process. So all of them happen on a stack made for it.

/// The stack on which plans are read, optimized, cut, run and dropped. Of what is reserved only what is touched takes
/// memory, and it is given back when the work ends.
pub const DEEP_STACK_BYTES: usize = 512 << 20;

/// The stack of each thread that Polars starts, which is where expressions are computed and mostly dropped. Reserved
/// likewise. See [`configure_thread_stacks`].
pub const THREAD_STACK_BYTES: usize = 128 << 20;

/// Makes threads that ask for no stack size, as Polars' do, start with [`THREAD_STACK_BYTES`]. Polars has no setting
/// for it; Rust's standard library has, a variable that it reads when the first such thread starts.
///
/// # Safety
///
/// No other thread may run yet: the environment is changed for a moment. So a program calls it first of all.
pub unsafe fn configure_thread_stacks() {
    const VARIABLE: &str = "RUST_MIN_STACK";
    let before = std::env::var_os(VARIABLE);
    let wanted = before.as_ref().and_then(|value| value.to_str()?.parse::<usize>().ok());
    if wanted.is_some_and(|bytes| bytes >= THREAD_STACK_BYTES) {
        return;
    }
    // SAFETY: no other thread runs that could read the environment, as the caller promises.
    unsafe { std::env::set_var(VARIABLE, THREAD_STACK_BYTES.to_string()) };
    // Whatever comes of the thread, the size was read for it.
    drop(std::thread::Builder::new().spawn(|| ()).map(std::thread::JoinHandle::join));
    // The programs that this one starts should have what they would have without it.
    match before {
        // SAFETY: as above; the thread has ended.
        Some(value) => unsafe { std::env::set_var(VARIABLE, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(VARIABLE) },
    }
}

/// Runs `work` on a stack of [`DEEP_STACK_BYTES`], on this thread, unless most of one is left where it is called. What
/// is deep should be dropped within `work` too, rather than be returned from it.
pub fn on_deep_stack<T>(work: impl FnOnce() -> T) -> T {
    stacker::maybe_grow(DEEP_STACK_BYTES / 2, DEEP_STACK_BYTES, work)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A list whose drop recurses, as that of expressions does.
    struct Chain(#[expect(dead_code, reason = "it is there to be dropped")] Option<Box<Chain>>);

    #[test]
    fn what_overflows_a_thread_fits_and_panics_pass_through() {
        let small = std::thread::Builder::new().stack_size(256 << 10);
        let thread = small.spawn(|| {
            on_deep_stack(|| {
                let chain = (0..1_000_000).fold(Chain(None), |chain, _| Chain(Some(Box::new(chain))));
                on_deep_stack(|| drop(chain));
            });
            let caught = std::panic::catch_unwind(|| on_deep_stack(|| panic!("deep down")));
            caught.is_err()
        });
        assert!(thread.unwrap().join().unwrap());
    }
}
