//! How long and how often a call is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// How long a call goes on through other nodes before it gives up. An election after a lost leader takes about
/// a second, a node declared dead ten: whatever is not answered by now will not be soon.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long connecting goes on by default: no job hangs on it yet, so its user should hear sooner.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause before the first repetition; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is left of a call's time.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    since: Instant,
    limit: Duration,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { since: Instant::now(), limit, pause: FIRST_PAUSE }
    }

    /// How long it has been.
    pub(crate) fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// How long it may still take.
    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited())
    }

    /// Waits before the next try, longer each time; `false` once there is no time for another.
    pub(crate) async fn pause(&mut self) -> bool {
        let Some(pause) = self.next_pause(self.left()) else {
            return false;
        };
        tokio::time::sleep(pause).await;
        true
    }

    fn next_pause(&mut self, left: Duration) -> Option<Duration> {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        (pause < left).then_some(pause)
    }

    /// There was progress: the time starts anew.
    pub(crate) fn renew(&mut self) {
        *self = Self::new(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_within_the_limit() {
        let mut patience = Patience::new(Duration::from_secs(5));
        let mut left = Duration::from_secs(5);
        let mut pauses = Vec::new();
        while let Some(pause) = patience.next_pause(left) {
            left -= pause;
            pauses.push(pause);
        }
        assert!(pauses.is_sorted() && pauses.last() == Some(&LONGEST_PAUSE), "{pauses:?}");
        assert!(left <= LONGEST_PAUSE, "the time was used");
    }
}
