//! Panics of functions, as errors.

use std::any::Any;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Mutex, Once, PoisonError};

use super::wire::Raised;

/// Where the last panic of this process happened. It may have been on a thread that the function started,
/// whose panic was then carried over to its own.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Makes panics known here, besides whatever else is done with them: by default they are printed, and so come
/// into the log.
pub(super) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(place(info));
            before(info);
        }));
    });
}

/// File, line and column. The calls that led there are in the log if `RUST_BACKTRACE` is set.
fn place(info: &PanicHookInfo<'_>) -> String {
    info.location().map(|location| format!("panicked at {location}")).unwrap_or_default()
}

/// Calls a function and makes an error of its panic.
pub(super) fn caught<R>(call: impl FnOnce() -> Result<R, Raised>) -> Result<R, Raised> {
    // What the function leaves half done is its own: nothing of the host's is in its hands.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let place = LAST.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let text = text(&*payload);
        let line = text.lines().next().unwrap_or_default();
        Err(Raised::with_traceback(&format!("panic: {line}"), &format!("{place}\n{text}")))
    })
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is not a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_text() {
        watch();
        let raised = caught::<()>(|| panic!("no {}", 7)).unwrap_err();
        assert_eq!(raised.message, "panic: no 7");
        assert!(raised.traceback.contains("no 7"), "{raised:?}");
        assert_eq!(caught(|| Ok(3)).unwrap(), 3);
    }
}
