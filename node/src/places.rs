//! How many calls a node serves at once, in shares that do not take each other's room.
//!
//! ```text
//!   nodes: what they need to agree and to find each other   no place, never refused
//!   nodes: partitions, objects, seats, logs                 places of their own
//!   drivers                                                 places of their own, and of a crowd each a fair part
//! ```
//!
//! Whoever gets no place is told [`Failure::Busy`] before anything was read of what it sends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use floe_network::Caller;
use floe_protocol::{Failure, Request};
use libp2p::PeerId;

/// Calls for data that a node serves to other nodes at once.
const MAX_NODE_CALLS: usize = 2_048;

/// Calls that a node serves to drivers at once. Most of them are drivers that wait, which costs little.
const MAX_DRIVER_CALLS: usize = 4_096;

/// So many calls a driver has in any case, if the node serves any more.
const FAIR_CALLS: usize = 64;

/// When to try again.
const RETRY_MS: u64 = 250;

/// The calls that are served. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    nodes: usize,
    drivers: usize,
    by_driver: BTreeMap<PeerId, usize>,
}

/// A call's place, until this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    whose: Whose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Nobody,
    Node,
    Driver(PeerId),
}

impl Places {
    /// A place for this call, if there is one.
    pub fn take(&self, from: &Caller, request: &Request) -> Result<Place, Failure> {
        let whose = match from {
            Caller::Node(_) if request.is_control() => Whose::Nobody,
            Caller::Node(_) => Whose::Node,
            Caller::Driver(peer) | Caller::Guest { peer, .. } => Whose::Driver(*peer),
        };
        self.lock().take(whose)?;
        Ok(Place { places: self.clone(), whose })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Every change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn take(&mut self, whose: Whose) -> Result<(), Failure> {
        match whose {
            Whose::Nobody => {}
            Whose::Node if self.nodes >= MAX_NODE_CALLS => {
                return Err(busy(format!("this node serves {MAX_NODE_CALLS} calls of other nodes already")));
            }
            Whose::Node => self.nodes += 1,
            Whose::Driver(peer) => {
                let own = self.by_driver.get(&peer).copied().unwrap_or(0);
                let drivers = self.by_driver.len() + usize::from(own == 0);
                let fair = (MAX_DRIVER_CALLS / drivers).max(FAIR_CALLS);
                // As long as there is plenty nobody is counted.
                let crowded = self.drivers >= MAX_DRIVER_CALLS / 2;
                if self.drivers >= MAX_DRIVER_CALLS || (crowded && own >= fair) {
                    return Err(busy(format!(
                        "this node serves {} calls of {drivers} drivers, {own} of them of this one",
                        self.drivers
                    )));
                }
                self.drivers += 1;
                *self.by_driver.entry(peer).or_default() += 1;
            }
        }
        Ok(())
    }

    fn give_back(&mut self, whose: Whose) {
        match whose {
            Whose::Nobody => {}
            Whose::Node => self.nodes -= 1,
            Whose::Driver(peer) => {
                self.drivers -= 1;
                if let Some(own) = self.by_driver.get_mut(&peer) {
                    *own -= 1;
                    if *own == 0 {
                        self.by_driver.remove(&peer);
                    }
                }
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().give_back(self.whose);
    }
}

fn busy(message: String) -> Failure {
    Failure::Busy { message, retry_ms: RETRY_MS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_busy(taken: Result<(), Failure>) -> bool {
        match taken {
            Ok(()) => false,
            Err(Failure::Busy { .. }) => true,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_driver_cannot_take_the_places_of_another_nor_of_nodes() {
        let mut taken = Taken::default();
        let (greedy, modest) = (PeerId::random(), PeerId::random());
        let mut own = 0;
        while !is_busy(taken.take(Whose::Driver(greedy))) {
            own += 1;
        }
        assert_eq!(own, MAX_DRIVER_CALLS, "alone it may have all");
        assert!(is_busy(taken.take(Whose::Driver(modest))));
        // As soon as it gives some back they are not its own again.
        for _ in 0..10 {
            taken.give_back(Whose::Driver(greedy));
        }
        for _ in 0..10 {
            assert!(!is_busy(taken.take(Whose::Driver(modest))));
        }
        taken.give_back(Whose::Driver(greedy));
        assert!(is_busy(taken.take(Whose::Driver(greedy))), "it has more than its part");
        for _ in 0..MAX_NODE_CALLS {
            assert!(!is_busy(taken.take(Whose::Node)));
        }
        assert!(is_busy(taken.take(Whose::Node)));
        assert!(!is_busy(taken.take(Whose::Nobody)), "what nodes need to agree is never refused");
    }

    #[test]
    fn nothing_is_left_of_calls_that_were_served() {
        let places = Places::default();
        let driver = Caller::Driver(PeerId::random());
        let place = places.take(&driver, &Request::Status);
        assert_eq!(places.lock().drivers, 1);
        drop(place);
        let taken = places.lock();
        assert!((taken.nodes, taken.drivers, taken.by_driver.is_empty()) == (0, 0, true));
    }
}
