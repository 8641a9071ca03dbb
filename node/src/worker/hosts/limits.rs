//! What a host may take while it runs something, and stopping it where it takes more.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floe_protocol::Failure;
use floe_protocol::function::Limits;
use tokio::time::{Instant, sleep};

use super::process::{Exit, Trouble};
use super::processes::Meter;

/// How often a running host is looked at. What runs shorter is never looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long what a process that ended has said may take to arrive: it lies in a pipe already, unless somebody else
/// holds the other end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What one run may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    pub(super) memory_bytes: u64,
    pub(super) time: Option<Duration>,
}

/// Since when the present call runs. A batch of calls is many, one after another.
#[derive(Debug)]
pub(super) struct Running {
    begun: Instant,
    since_us: AtomicU64,
}

/// Which limit was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    Memory { took_bytes: u64, may_bytes: u64 },
    Output { took_bytes: u64, may_bytes: u64 },
    Time { may: Duration },
}

impl Allowed {
    /// What a function asks for, or a share of the node's memory.
    pub(super) fn new(limits: &Limits, share_bytes: u64) -> Self {
        Self {
            memory_bytes: limits.memory_bytes.unwrap_or(share_bytes),
            time: limits.time_ms.map(Duration::from_millis),
        }
    }
}

impl Running {
    pub(super) fn start() -> Self {
        Self { begun: Instant::now(), since_us: AtomicU64::new(0) }
    }

    /// The next call runs.
    pub(super) fn next(&self) {
        let us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.since_us.store(us, Ordering::Relaxed);
    }

    fn since(&self) -> Instant {
        self.begun + Duration::from_micros(self.since_us.load(Ordering::Relaxed))
    }
}

impl Exceeded {
    /// The failure of a function.
    pub(super) fn failure(self, name: &str) -> Failure {
        let (what, message) = match self {
            Self::Memory { took_bytes, may_bytes } => {
                let (took, may) = (size(took_bytes), size(may_bytes));
                ("memory", format!("it took {took} of memory, and may take {may}"))
            }
            Self::Output { took_bytes, may_bytes } => {
                let (took, may) = (size(took_bytes), size(may_bytes));
                ("memory", format!("it put out {took} or more, and may take {may} of memory"))
            }
            Self::Time { may } => ("time", format!("it ran for more than the {} it may take", time(may))),
        };
        Failure::Limit { name: name.to_owned(), what: what.to_owned(), message }
    }
}

/// Does some work with a process, until it takes more than it may or has ended. Whoever gets an error ends it.
pub(super) async fn within<T>(
    work: impl Future<Output = Result<T, Trouble>>,
    (meter, group): (&Meter, i32),
    mut exit: Exit,
    allowed: Allowed,
    running: &Running,
) -> Result<T, Trouble> {
    let exceeded = async {
        loop {
            let since = running.since();
            match allowed.time.map(|time| since + time) {
                Some(end) => sleep(LOOK_INTERVAL.min(end.saturating_duration_since(Instant::now()))).await,
                None => sleep(LOOK_INTERVAL).await,
            }
            if let Some(may) = allowed.time
                && running.since().elapsed() >= may
            {
                return Exceeded::Time { may };
            }
            let took_bytes = meter.resident(group, allowed.memory_bytes);
            if took_bytes > allowed.memory_bytes {
                return Exceeded::Memory { took_bytes, may_bytes: allowed.memory_bytes };
            }
        }
    };
    let ended = async {
        exit.ended().await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        biased;
        outcome = work => outcome,
        exceeded = exceeded => Err(Trouble::Exceeded(exceeded)),
        () = ended => Err(Trouble::Ended),
    }
}

/// A size for people: `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "bytes" {
        return if bytes == 1 { "1 byte".to_owned() } else { format!("{bytes} bytes") };
    }
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

/// A time for people: `1.5 s`.
fn time(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{} ms", time.as_millis());
    }
    let seconds = format!("{:.3}", time.as_secs_f64());
    format!("{} s", seconds.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!([size(1), size(1000), size(1024)], ["1 byte", "1000 bytes", "1 KiB"]);
        assert_eq!([size(3 << 29), size(100 << 20), size(1 << 34)], ["1.5 GiB", "100 MiB", "16 GiB"]);
        assert_eq!([size(1234 << 10), size(12_345 << 10)], ["1.21 MiB", "12.1 MiB"]);
        let times = [50, 1_000, 1_500, 90_000].map(|ms| time(Duration::from_millis(ms)));
        assert_eq!(times, ["50 ms", "1 s", "1.5 s", "90 s"]);
        let failure = Exceeded::Memory { took_bytes: 3 << 29, may_bytes: 1 << 30 }.failure("f");
        assert_eq!(failure.to_string(), "f was stopped: it took 1.5 GiB of memory, and may take 1 GiB");
    }
}
