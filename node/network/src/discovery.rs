//! Who might be there: a book of nodes and addresses, and when to dial which. Pure: it neither dials nor reads a
//! clock.
//!
//! It does not matter where an address comes from (`--join`, this machine's registry, mDNS, Kademlia, a hint, the
//! replicated list of members): every node in the book is dialled until it is connected.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

/// How many nodes one node connects to. Everyone knows everyone up to this size.
pub const MAX_CONNECTED_NODES: usize = 256;

/// How many nodes and addresses the book holds; beyond it the least promising one goes.
const MAX_KNOWN: usize = 1024;

/// How many addresses of one node are kept, the latest ones.
const MAX_ADDRESSES: usize = 16;

/// How many dials may be under way at once.
const MAX_DIALS: usize = 16;

/// The wait after a first failure; it doubles with each further one, up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(250);

/// The longest wait between two dials: how soon two halves of a mesh find each other again.
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// How long the node with the larger id waits for the other one to dial: when two nodes hear of each other at
/// once, one connection is enough.
const COURTESY: Duration = Duration::from_secs(1);

/// How long an address given without an identity waits for its node to come back by itself.
const ADDRESS_COURTESY: Duration = Duration::from_secs(5);

/// Whom to dial.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A node that is known by its identity.
    Peer(PeerId),
    /// Whoever answers there.
    Address(Multiaddr),
}

/// ```text
///              due                 connected
///   Waiting ---------> Dialing ----------------> Connected
///      ^                  | failed                   | disconnected
///      +------------------+--------------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { due: Instant },
    Dialing,
    Connected,
}

#[derive(Debug)]
struct Entry {
    state: State,
    addresses: Vec<Multiaddr>,
    /// Given by the user: never dropped.
    joined: bool,
    failures: u32,
    /// Who answered last at a [`Target::Address`].
    answered: Option<PeerId>,
}

/// The book.
pub(crate) struct AddressBook {
    me: PeerId,
    entries: BTreeMap<Target, Entry>,
}

impl AddressBook {
    pub(crate) fn new(me: PeerId) -> Self {
        Self { me, entries: BTreeMap::new() }
    }

    /// Takes an address from the user.
    pub(crate) fn join(&mut self, address: &Multiaddr, now: Instant) {
        let (address, peer) = split(address);
        if peer == Some(self.me) {
            return;
        }
        let target = peer.map_or_else(|| Target::Address(address.clone()), Target::Peer);
        if let Some(entry) = self.entry(target, now) {
            entry.joined = true;
            entry.state = State::Waiting { due: now };
            add(&mut entry.addresses, address);
        }
    }

    /// Takes what is said about a node. Its news counts; repetition changes nothing.
    pub(crate) fn learn(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) {
        if peer == self.me {
            return;
        }
        let due = now + if self.me < peer { Duration::ZERO } else { COURTESY };
        let Some(entry) = self.entry(Target::Peer(peer), due) else {
            return;
        };
        for address in addresses {
            let (address, named) = split(&address);
            let news = named.is_none_or(|named| named == peer) && add(&mut entry.addresses, address);
            if news && let State::Waiting { due: later } = &mut entry.state {
                entry.failures = 0;
                *later = due.min(*later);
            }
        }
    }

    /// Whom to dial now, and where. The caller reports how it went.
    pub(crate) fn next_dial(&mut self, now: Instant) -> Option<(Target, Vec<Multiaddr>)> {
        if !self.may_dial() {
            return None;
        }
        let (target, entry) =
            self.entries.iter_mut().find(|(_, entry)| entry.due().is_some_and(|due| due <= now))?;
        entry.state = State::Dialing;
        Some((target.clone(), entry.addresses.clone()))
    }

    /// When [`AddressBook::next_dial`] is next worth asking, unless something happens before.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if !self.may_dial() {
            return None;
        }
        self.entries.values().filter_map(Entry::due).min()
    }

    /// A dial failed.
    pub(crate) fn failed(&mut self, target: &Target, now: Instant) {
        if let Some(entry) = self.entries.get_mut(target)
            && entry.state == State::Dialing
        {
            let backoff = MIN_BACKOFF * 2_u32.saturating_pow(entry.failures.min(16));
            entry.failures = entry.failures.saturating_add(1);
            entry.state = State::Waiting { due: now + backoff.min(MAX_BACKOFF) };
        }
    }

    /// A dial was not begun, since the node is being dialled or connected already.
    pub(crate) fn postponed(&mut self, target: &Target, now: Instant) {
        if let Some(entry) = self.entries.get_mut(target)
            && entry.state == State::Dialing
        {
            entry.state = State::Waiting { due: now + COURTESY };
        }
    }

    /// Someone else answers at this address, perhaps ourselves.
    pub(crate) fn wrong_address(&mut self, target: &Target, address: &Multiaddr, now: Instant) {
        self.failed(target, now);
        let (address, _) = split(address);
        if let Some(entry) = self.entries.get_mut(target) {
            entry.addresses.retain(|other| *other != address);
            if entry.addresses.is_empty() {
                self.entries.remove(target);
            }
        }
    }

    /// Nobody is to be found there any more.
    pub(crate) fn forget(&mut self, target: &Target) {
        self.entries.remove(target);
    }

    /// A node is connected, perhaps because `target` was dialled.
    pub(crate) fn connected(&mut self, peer: PeerId, target: Option<&Target>, now: Instant) {
        if let Some(target) = target
            && let Some(entry) = self.entries.get_mut(target)
        {
            entry.answered = Some(peer);
            if *target != Target::Peer(peer) && matches!(target, Target::Peer(_)) {
                self.failed(target, now);
            }
        }
        // An entry of its own, so that it is dialled again when it is lost.
        self.entry(Target::Peer(peer), now);
        for entry in self.entries_of(peer) {
            entry.state = State::Connected;
            entry.failures = 0;
        }
    }

    /// The last connection to a node is gone.
    pub(crate) fn disconnected(&mut self, peer: PeerId, now: Instant) {
        let courtesy = if self.me < peer { Duration::ZERO } else { COURTESY };
        for entry in self.entries_of(peer) {
            let wait = if entry.answered.is_some() { ADDRESS_COURTESY } else { courtesy };
            entry.state = State::Waiting { due: now + wait + MIN_BACKOFF };
        }
        if self.entries.get(&Target::Peer(peer)).is_some_and(|entry| entry.addresses.is_empty()) {
            self.entries.remove(&Target::Peer(peer));
        }
    }

    /// Where a node can be reached, as far as is known.
    pub(crate) fn addresses(&self, peer: PeerId) -> Vec<Multiaddr> {
        self.entries.get(&Target::Peer(peer)).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    fn entries_of(&mut self, peer: PeerId) -> impl Iterator<Item = &mut Entry> {
        self.entries
            .iter_mut()
            .filter(move |(target, entry)| **target == Target::Peer(peer) || entry.answered == Some(peer))
            .map(|(_, entry)| entry)
    }

    /// The entry, made if there is none. `None` if the book is full of better ones.
    fn entry(&mut self, target: Target, due: Instant) -> Option<&mut Entry> {
        if !self.entries.contains_key(&target) && self.entries.len() >= MAX_KNOWN {
            let worst =
                self.entries.iter().filter(|(_, entry)| !entry.joined && entry.state != State::Connected);
            let (worst, _) = worst.max_by_key(|(_, entry)| entry.failures)?;
            let worst = worst.clone();
            self.entries.remove(&worst);
        }
        let state = State::Waiting { due };
        let fresh = Entry { state, addresses: Vec::new(), joined: false, failures: 0, answered: None };
        Some(self.entries.entry(target).or_insert(fresh))
    }

    fn may_dial(&self) -> bool {
        let count = |state| self.entries.values().filter(|entry| entry.state == state).count();
        count(State::Dialing) < MAX_DIALS && count(State::Connected) < MAX_CONNECTED_NODES
    }
}

impl Entry {
    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { due } if !self.addresses.is_empty() => Some(due),
            _ => None,
        }
    }
}

/// Adds an address, at the cost of the oldest one if there are too many. Whether it is new.
fn add(addresses: &mut Vec<Multiaddr>, address: Multiaddr) -> bool {
    if addresses.contains(&address) {
        return false;
    }
    if addresses.len() >= MAX_ADDRESSES {
        addresses.remove(0);
    }
    addresses.push(address);
    true
}

/// Takes `/p2p/PEER` off an address.
fn split(address: &Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let mut address = address.clone();
    match address.pop() {
        Some(Protocol::P2p(peer)) => (address, Some(peer)),
        Some(other) => (address.with(other), None),
        None => (address, None),
    }
}

/// Whether only this machine can use an address.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

/// What to tell others of the addresses we listen on: those that other machines can use, if there are any. A
/// loopback address would lead another machine to itself.
pub(crate) fn announced<'a>(listening: impl Iterator<Item = &'a Multiaddr>) -> Vec<Multiaddr> {
    // A link-local address means nothing without the interface it belongs to.
    let link_local = |address: &Multiaddr| match address.iter().next() {
        Some(Protocol::Ip6(ip)) => ip.is_unicast_link_local(),
        _ => false,
    };
    let mut usable: Vec<_> = listening.filter(|address| !link_local(address)).cloned().collect();
    usable.sort();
    if usable.iter().any(|address| !is_loopback(address)) {
        usable.retain(|address| !is_loopback(address));
    }
    usable
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    /// Three identities in order; the book is the middle one's.
    fn cast() -> (PeerId, AddressBook, PeerId) {
        let mut peers = [PeerId::random(), PeerId::random(), PeerId::random()];
        peers.sort();
        (peers[0], AddressBook::new(peers[1]), peers[2])
    }

    #[test]
    fn the_smaller_id_dials_at_once_and_the_larger_one_waits_a_moment() {
        let (smaller, mut book, larger) = cast();
        let now = Instant::now();
        book.learn(larger, [address(1)], now);
        book.learn(smaller, [address(2)], now);
        assert_eq!(book.next_dial(now), Some((Target::Peer(larger), vec![address(1)])));
        assert_eq!(book.next_dial(now), None);
        assert_eq!(book.next_due(), Some(now + COURTESY));
        assert_eq!(book.next_dial(now + COURTESY), Some((Target::Peer(smaller), vec![address(2)])));
    }

    #[test]
    fn failures_space_dials_out_and_a_new_address_brings_them_forward() {
        let (_, mut book, peer) = cast();
        let mut now = Instant::now();
        book.learn(peer, [address(1)], now);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let (target, _) = book.next_dial(now).unwrap();
            book.failed(&target, now);
            book.learn(peer, [address(1)], now); // said again: no news
            waits.push((book.next_due().unwrap() - now).as_millis());
            now = book.next_due().unwrap();
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        let (target, _) = book.next_dial(now).unwrap();
        book.failed(&target, now);
        book.learn(peer, [address(2)], now);
        assert_eq!(book.next_dial(now), Some((Target::Peer(peer), vec![address(1), address(2)])));
    }

    #[test]
    fn a_joined_address_is_dialled_until_someone_answers_and_again_when_it_is_lost() {
        let (_, mut book, peer) = cast();
        let now = Instant::now();
        book.join(&address(1), now);
        let (target, _) = book.next_dial(now).unwrap();
        assert_eq!(target, Target::Address(address(1)));
        book.connected(peer, Some(&target), now);
        book.learn(peer, [address(1)], now);
        assert_eq!(book.next_due(), None);
        book.disconnected(peer, now);
        // First the node itself, whom its identity tells from others; then whoever answers there.
        assert_eq!(book.next_dial(now + MIN_BACKOFF), Some((Target::Peer(peer), vec![address(1)])));
        assert_eq!(book.next_dial(now + MIN_BACKOFF), None);
        assert_eq!(book.next_dial(now + ADDRESS_COURTESY + MIN_BACKOFF), Some((target, vec![address(1)])));
        // The node came back: its address is at rest too.
        book.connected(peer, None, now);
        assert_eq!(book.next_due(), None);
    }

    #[test]
    fn an_address_at_which_another_answers_is_dropped() {
        let (_, mut book, peer) = cast();
        let now = Instant::now();
        book.learn(peer, [address(1), address(2)], now);
        let (target, _) = book.next_dial(now).unwrap();
        book.wrong_address(&target, &address(1).with_p2p(peer).unwrap(), now);
        assert_eq!(book.addresses(peer), [address(2)]);
        book.wrong_address(&target, &address(2), now);
        assert_eq!(book.next_due(), None);
        // Our own address given to us to join.
        let me = book.me;
        book.join(&address(3).with_p2p(me).unwrap(), now);
        assert_eq!(book.next_due(), None);
    }

    #[test]
    fn the_book_is_bounded_and_keeps_what_the_user_gave() {
        let (_, mut book, _) = cast();
        let now = Instant::now();
        book.join(&address(1), now);
        for _ in 0..2 * MAX_KNOWN {
            book.learn(PeerId::random(), [address(2)], now);
        }
        assert_eq!(book.entries.len(), MAX_KNOWN);
        assert!(book.entries.contains_key(&Target::Address(address(1))));
        let dials = std::iter::from_fn(|| book.next_dial(now + COURTESY)).count();
        assert_eq!(dials, MAX_DIALS);
    }

    #[test]
    fn other_machines_are_not_told_of_loopback_addresses() {
        let lan: Multiaddr = "/ip4/192.168.1.7/tcp/1".parse().unwrap();
        let link: Multiaddr = "/ip6/fe80::1/tcp/1".parse().unwrap();
        assert_eq!(announced([address(1), lan.clone(), link].iter()), [lan]);
        assert_eq!(announced([address(1)].iter()), [address(1)]);
    }
}
