//! Notices a peer that fell silent: a machine that lost power resets no connection.

use std::time::Duration;

use libp2p_ping::{Behaviour, Config, Event, Failure};

/// How often each end of a connection asks for a sign of life.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a sign of life may take. It is missed twice before the peer is given up, since a busy machine is not a dead
/// one: the second time on a new stream, for which libp2p waits ten seconds. How soon work moves elsewhere is the leader's
/// lease to decide.
pub const PING_TIMEOUT: Duration = Duration::from_secs(8);

/// The behaviour, for a swarm of nodes or a driver.
pub fn behaviour() -> Behaviour {
    Behaviour::new(Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT))
}

/// Whether a connection should be given up after this event. libp2p tells of a failure from the second in a row on, which
/// is that no stream was opened in time, and so not called a timeout.
pub fn is_dead(event: &Event) -> bool {
    matches!(event.result, Err(Failure::Timeout | Failure::Other { .. }))
}
