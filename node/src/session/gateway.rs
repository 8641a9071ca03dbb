//! The driver's side of a session: which node gets which call, and what happens to it when the node is lost.
//!
//! ```text
//!             a seat has room           result
//!   waiting ─────────────────> under way ─────> told to the driver
//!      ^──── node lost, unfit, or the host crashed: tried again ────┘
//!      ^──── given back: it had not begun
//! ```
//!
//! A seat's room follows from how long calls took lately: short calls are sent ahead, so that its hosts never wait
//! for the network; long ones one a slot, so that a node that becomes free takes the next. A seat gives back what it was
//! sent behind a call that takes long after all; until it has results it gets a little from time to time, since it says
//! nothing of slots that become free.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use floe_protocol::session::{
    Call, CallFrame, CallResult, MAX_CALL_BYTES, MAX_CALLS, MAX_CALLS_BYTES, MAX_FUNCTIONS,
    MAX_FUNCTIONS_BYTES, ResultFrame,
};
use floe_protocol::{Failure, Function, JobId, NodeId, Request, Response, frame};
use floe_transport::call::{call, read_frame};
use futures::AsyncReadExt;
use libp2p::Stream;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::pace::Pace;
use super::waiting::{Held, Placed, Waiting};
use super::{seat, wire};
use crate::config;
use crate::mailbox::{Ask, Mailbox};
use crate::worker::Worker;

/// How often the gateway looks for nodes that came, and whether its session was ended by somebody else.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a node that gave no seat, or gave calls back, is left alone: longer than a seat takes to give back.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);

/// How much work a seat is sent ahead of its results, per slot: some round trips' worth, on a busy machine too.
const AHEAD_US: u64 = 20_000;

/// How many calls that is at most, per slot.
const MAX_AHEAD: usize = 512;

/// How often a call is tried whose host crashed, or whose node was lost while it ran: more of it is its own doing.
const MAX_TRIES: u32 = 3;

/// How many bytes of arguments share a frame; one call may exceed it alone. All of it is far below what a frame may be.
const MAX_FRAME_ARGUMENTS_BYTES: usize = 1 << 20;

/// How many frames of calls wait for a seat. A seat is sent no more than it has room for, so they are few.
const SEAT_FRAMES: usize = 64;

/// How many of them are kept for what is not calls.
const SPARE_FRAMES: usize = 16;

/// How many calls without a seat are passed over in search of one that has.
const MAX_BLOCKED: usize = 64;

/// A node that runs calls of this session.
struct Seat {
    name: String,
    slots: usize,
    /// Whether its disk is nearly full.
    short: bool,
    calls: mpsc::Sender<CallFrame>,
    defined: BTreeSet<u32>,
    /// Functions that it is to forget, once there is room for a frame.
    forgotten: Vec<u32>,
    /// Calls that it is to stop, likewise.
    unwanted: Vec<u64>,
    under_way: BTreeMap<u64, Placed>,
    /// Since it gave calls back and had no result.
    stuck: Option<Stuck>,
    /// Functions that it cannot run: what each needs, and why it cannot be had.
    unfit: BTreeMap<u32, (String, String)>,
    _pump: AbortOnDropHandle<()>,
}

/// A seat that gave calls back.
struct Stuck {
    /// It is left alone until then.
    until: Instant,
    /// How many calls it may have then: twice as many more each time that it keeps them.
    may_have: usize,
    more: usize,
}

/// What a seat says.
enum Said {
    Results(Vec<CallResult>),
    /// These had not begun, and would not soon.
    GivenBack(Vec<u64>),
    /// The node is lost, with what it ran.
    Gone,
    /// The node could not be had, or has no room: it ran nothing.
    Refused,
}

struct Gateway<'a> {
    mailbox: &'a Mailbox,
    worker: &'a Worker,
    session: JobId,
    functions: BTreeMap<u32, (Box<Function>, usize)>,
    /// Of all their definitions.
    functions_bytes: usize,
    seats: BTreeMap<NodeId, Seat>,
    /// Nodes that gave no seat, and when they are asked again.
    refused: BTreeMap<NodeId, Instant>,
    waiting: Waiting,
    pace: Pace,
    said: mpsc::Sender<(NodeId, Said)>,
    results: mpsc::Sender<ResultFrame>,
}

impl Said {
    /// What a frame of a seat says; nothing if no seat sends such.
    fn of(frame: ResultFrame) -> Option<Self> {
        match frame {
            ResultFrame::Results { results, .. } => Some(Self::Results(results)),
            ResultFrame::GivenBack { calls } => Some(Self::GivenBack(calls)),
            ResultFrame::Ended(_) => None,
        }
    }
}

impl Seat {
    /// How many more calls it may have, where there may be so many for each slot.
    fn room(&self, ahead: usize) -> usize {
        let most = match &self.stuck {
            Some(stuck) if Instant::now() < stuck.until => 0,
            Some(stuck) => stuck.may_have.min(self.slots * ahead),
            None => self.slots * ahead,
        };
        most.saturating_sub(self.under_way.len())
    }

    /// It gave calls back.
    fn gave_back(&mut self) {
        let until = Instant::now() + REFUSED_PAUSE;
        self.stuck = Some(Stuck { until, may_have: self.under_way.len() + 1, more: 1 });
    }

    /// It has got calls; if it was stuck, it shows whether it keeps them.
    fn got(&mut self) {
        if let Some(stuck) = &mut self.stuck {
            stuck.until = Instant::now() + REFUSED_PAUSE;
            stuck.more = stuck.more.saturating_mul(2);
            stuck.may_have = self.under_way.len().saturating_add(stuck.more);
        }
    }

    /// Has it stop and forget what it is to; false if it has no room for that now.
    fn let_go(&mut self) -> bool {
        if !self.unwanted.is_empty() {
            let Ok(place) = self.calls.try_reserve() else { return false };
            place.send(CallFrame::Cancel { calls: std::mem::take(&mut self.unwanted) });
        }
        if !self.forgotten.is_empty() {
            let Ok(place) = self.calls.try_reserve() else { return false };
            place.send(CallFrame::Forget { functions: std::mem::take(&mut self.forgotten) });
        }
        true
    }
}

/// Serves a session's driver. True: it closed the session; false: it is gone, and may come back, here or elsewhere.
pub(super) async fn serve(
    mailbox: &Mailbox,
    worker: &Worker,
    session: JobId,
    stream: Stream,
    held: Held,
) -> bool {
    let (mut reader, writer) = stream.split();
    let (frames, mut received) = mpsc::channel::<CallFrame>(wire::FRAMES);
    let (results, sent) = mpsc::channel(wire::FRAMES);
    let (said, mut heard) = mpsc::channel(wire::FRAMES);
    let _read = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok(frame) = read_frame(&mut reader).await {
            if frames.send(frame).await.is_err() {
                break;
            }
        }
    }));
    // Ends once the gateway has dropped its sender and everything is written.
    let write = tokio::spawn(wire::write(writer, sent));
    let mut gateway = Gateway {
        mailbox,
        worker,
        session,
        functions: BTreeMap::new(),
        functions_bytes: 0,
        seats: BTreeMap::new(),
        refused: BTreeMap::new(),
        waiting: Waiting::new(held),
        pace: Pace::default(),
        said,
        results,
    };
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        let step = tokio::select! {
            frame = received.recv() => match frame {
                None => break Ok(false),
                Some(CallFrame::Close) => break Ok(true),
                Some(frame) => gateway.take(frame).await,
            },
            Some((node, said)) = heard.recv() => gateway.heard(node, said).await,
            _ = looks.tick() => gateway.look().await,
        };
        if let Err(failure) = step.and(gateway.dispatch().await) {
            break Err(failure);
        }
    };
    match outcome {
        Ok(closed) => closed,
        Err(failure) => {
            // The driver may be gone, and the frame with it.
            let _ = gateway.results.send(ResultFrame::Ended(failure)).await;
            drop(gateway);
            let _ = write.await;
            false
        }
    }
}

impl Gateway<'_> {
    /// Takes in what the driver sends.
    async fn take(&mut self, frame: CallFrame) -> Result<(), Failure> {
        match frame {
            CallFrame::Define { function, definition } => {
                let bytes = frame::encode(&definition).map_err(Failure::internal)?.len();
                if let Some((_, former)) = self.functions.insert(function, (definition, bytes)) {
                    self.functions_bytes -= former;
                }
                self.functions_bytes += bytes;
                if self.functions.len() > MAX_FUNCTIONS || self.functions_bytes > MAX_FUNCTIONS_BYTES {
                    let message = format!(
                        "the driver defined more functions at once than the {MAX_FUNCTIONS}, or the \
                         {MAX_FUNCTIONS_BYTES} bytes of them, that one session may have"
                    );
                    return Err(Failure::Refused { message });
                }
            }
            CallFrame::Forget { functions } => self.forget(&functions)?,
            CallFrame::Calls { function, node, calls } => {
                if !self.functions.contains_key(&function) {
                    let message = format!("function {function} was called before it was defined");
                    return Err(Failure::Refused { message });
                }
                for call in calls {
                    self.waiting.push(Placed { function, only: node, call, tries: 0 });
                }
                let under_way: usize = self.seats.values().map(|seat| seat.under_way.len()).sum();
                // A driver of this version keeps to half of it.
                let too_many = self.waiting.len() + under_way > 2 * MAX_CALLS
                    || self.waiting.bytes() > 2 * MAX_CALLS_BYTES + MAX_CALL_BYTES;
                if too_many {
                    let message = "the driver sent more calls than it may have under way".to_owned();
                    return Err(Failure::Refused { message });
                }
            }
            CallFrame::Cancel { calls } => {
                let unwanted: BTreeSet<u64> = calls.iter().copied().collect();
                self.waiting.cancel(&unwanted);
                for seat in self.seats.values_mut() {
                    let its: Vec<u64> =
                        calls.iter().copied().filter(|call| seat.under_way.remove(call).is_some()).collect();
                    seat.unwanted.extend(its);
                    seat.let_go();
                }
            }
            CallFrame::Close => {}
        }
        Ok(())
    }

    /// Forgets functions, here and on all seats.
    fn forget(&mut self, functions: &[u32]) -> Result<(), Failure> {
        let gone: BTreeSet<u32> = functions.iter().copied().collect();
        let under_way = self.seats.values().flat_map(|seat| seat.under_way.values());
        if self.waiting.iter().chain(under_way).any(|placed| gone.contains(&placed.function)) {
            let message = "the driver has functions forgotten whose calls are under way".to_owned();
            return Err(Failure::Refused { message });
        }
        for function in &gone {
            if let Some((_, bytes)) = self.functions.remove(function) {
                self.functions_bytes -= bytes;
            }
        }
        self.pace.forget(functions);
        for seat in self.seats.values_mut() {
            seat.unfit.retain(|function, _| !gone.contains(function));
            let known: Vec<u32> = gone.iter().copied().filter(|gone| seat.defined.remove(gone)).collect();
            seat.forgotten.extend(known);
            seat.let_go();
        }
        Ok(())
    }

    /// Takes in what a seat says.
    async fn heard(&mut self, node: NodeId, said: Said) -> Result<(), Failure> {
        match said {
            Said::Results(results) => {
                let mut told = Vec::with_capacity(results.len());
                if let Some(seat) = self.seats.get_mut(&node) {
                    seat.stuck = None;
                    seat.let_go();
                }
                for result in results {
                    let Some(seat) = self.seats.get_mut(&node) else { break };
                    // Of one that was cancelled, nobody wants to hear.
                    let Some(placed) = seat.under_way.remove(&result.id) else { continue };
                    match result.outcome {
                        Err(Failure::Unfit { needs, why }) => {
                            seat.unfit.insert(placed.function, (needs, why));
                            self.waiting.put_back(placed);
                        }
                        Err(Failure::Crashed { .. }) if placed.tries + 1 < MAX_TRIES => {
                            self.waiting.put_back(Placed { tries: placed.tries + 1, ..placed });
                        }
                        _ => {
                            self.pace.note(placed.function, result.elapsed_us);
                            told.push(result);
                        }
                    }
                }
                self.tell(node, told).await
            }
            Said::GivenBack(calls) => {
                let Some(seat) = self.seats.get_mut(&node) else { return Ok(()) };
                for call in calls.iter().rev() {
                    // Those that are not there were cancelled.
                    if let Some(placed) = seat.under_way.remove(call) {
                        self.waiting.put_back(placed);
                    }
                }
                seat.gave_back();
                Ok(())
            }
            Said::Gone => self.lost(node).await,
            Said::Refused => {
                self.refused.insert(node, Instant::now() + REFUSED_PAUSE);
                let seat = self.seats.remove(&node);
                for (_, placed) in seat.into_iter().flat_map(|seat| seat.under_way).rev() {
                    self.waiting.put_back(placed);
                }
                Ok(())
            }
        }
    }

    /// A node is gone: its calls run elsewhere, but those that must run there, or take nodes with them.
    async fn lost(&mut self, node: NodeId) -> Result<(), Failure> {
        let Some(seat) = self.seats.remove(&node) else { return Ok(()) };
        let mut told = Vec::new();
        for (id, placed) in seat.under_way.into_iter().rev() {
            if placed.only == Some(node) || placed.tries + 1 >= MAX_TRIES {
                let outcome = Err(Failure::NodeLost { node });
                told.push(CallResult { id, outcome, elapsed_us: 0 });
            } else {
                self.waiting.put_back(Placed { tries: placed.tries + 1, ..placed });
            }
        }
        self.tell(node, told).await
    }

    async fn tell(&self, node: NodeId, results: Vec<CallResult>) -> Result<(), Failure> {
        if results.is_empty() {
            return Ok(());
        }
        let told = self.results.send(ResultFrame::Results { node, results }).await;
        // A driver that takes nothing any more is noticed by what it does not send.
        told.map_err(|_| Failure::Cancelled)
    }

    /// Why a call can run on none of the nodes that are here; nothing if it can, or none is here yet.
    fn nowhere(&self, placed: &Placed) -> Option<Failure> {
        let allowed = |node: &NodeId| placed.only.is_none_or(|only| only == *node);
        let mut needed = None;
        let mut looked = Vec::new();
        for (_, seat) in self.seats.iter().filter(|(node, _)| allowed(node)) {
            let (needs, why) = seat.unfit.get(&placed.function)?;
            needed = Some(needs.clone());
            looked.push(format!("{}: {why}", seat.name));
        }
        needed.map(|needs| Failure::NoneFits { needs, looked: looked.join("; ") })
    }

    /// Opens seats at nodes that are new, and ends with the session's job.
    async fn look(&mut self) -> Result<(), Failure> {
        let session = self.session;
        match self.mailbox.ask(|reply| Ask::Progress(session, reply)).await? {
            Ok(floe_protocol::JobStatus { phase: floe_protocol::JobPhase::Failed(failure), .. }) => {
                return Err(failure);
            }
            Ok(job) if job.phase.is_terminal() => return Err(Failure::Cancelled),
            Err(Failure::Freed { .. }) => return Err(Failure::Cancelled),
            // A node that is behind does not know it yet.
            Ok(_) | Err(_) => {}
        }
        let status = self.mailbox.ask(Ask::Status).await?;
        for info in status.nodes {
            let id = info.member.id;
            let reachable = id == status.node || self.mailbox.network().is_connected(id);
            if !reachable {
                self.refused.remove(&id);
            }
            let refused = self.refused.get(&id).is_some_and(|until| Instant::now() < *until);
            if let Some(seat) = self.seats.get_mut(&id) {
                seat.short = info.load.disk_short;
                continue;
            }
            if !reachable || info.member.slots == 0 || refused {
                continue;
            }
            let (calls, pump) = self.open_seat(id, id == status.node);
            let seat = Seat {
                name: info.member.name,
                slots: info.member.slots as usize,
                short: info.load.disk_short,
                calls,
                defined: BTreeSet::new(),
                forgotten: Vec::new(),
                unwanted: Vec::new(),
                under_way: BTreeMap::new(),
                stuck: None,
                unfit: BTreeMap::new(),
                _pump: pump,
            };
            self.seats.insert(id, seat);
        }
        // What only a node can run that is not here is not waited for: it may never come.
        let is_here = |node: NodeId| self.seats.contains_key(&node) || self.refused.contains_key(&node);
        for (node, placed) in self.waiting.take_lost(is_here) {
            let outcome = Err(Failure::NodeLost { node });
            self.tell(node, vec![CallResult { id: placed.call.id, outcome, elapsed_us: 0 }]).await?;
        }
        Ok(())
    }

    fn open_seat(&self, node: NodeId, here: bool) -> (mpsc::Sender<CallFrame>, AbortOnDropHandle<()>) {
        let said = self.said.clone();
        if here {
            let (calls, mut results) = seat::start(self.worker.clone(), node, self.session);
            let pump = async move {
                while let Some(told) = results.recv().await.and_then(Said::of) {
                    if said.send((node, told)).await.is_err() {
                        return;
                    }
                }
                let _ = said.send((node, Said::Gone)).await;
            };
            return (calls, AbortOnDropHandle::new(tokio::spawn(pump)));
        }
        let (calls, queued) = mpsc::channel(SEAT_FRAMES);
        let network = self.mailbox.network().clone();
        let session = self.session;
        let pump = async move {
            let opened = async {
                let mut stream = network.open(node).await.ok()?;
                let request = Request::Seat { session };
                let answer = call(&mut stream, &request, config::CALL_TIMEOUT).await.ok()?;
                (answer == Response::Done).then_some(stream)
            };
            let Some(stream) = opened.await else {
                let _ = said.send((node, Said::Refused)).await;
                return;
            };
            {
                let (mut reader, writer) = stream.split();
                let read = async {
                    while let Some(told) = read_frame(&mut reader).await.ok().and_then(Said::of) {
                        if said.send((node, told)).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = read => {}
                    () = wire::write(writer, queued) => {}
                }
            }
            let _ = said.send((node, Said::Gone)).await;
        };
        (calls, AbortOnDropHandle::new(tokio::spawn(pump)))
    }

    /// Sends waiting calls to seats with room, the least busy first.
    async fn dispatch(&mut self) -> Result<(), Failure> {
        for queue in self.waiting.queues() {
            self.dispatch_from(queue).await?;
        }
        Ok(())
    }

    async fn dispatch_from(&mut self, queue: Option<NodeId>) -> Result<(), Failure> {
        let mut blocked = Vec::new();
        while let Some(first) = self.waiting.pop(queue) {
            let Some((node, room)) = self.choose(&first) else {
                if let Some(failure) = self.nowhere(&first) {
                    let result = CallResult { id: first.call.id, outcome: Err(failure), elapsed_us: 0 };
                    self.tell(self.mailbox.network().node(), vec![result]).await?;
                    continue;
                }
                blocked.push(first);
                // Others, of another function, may have room; but who looks at all of them for each result spends more
                // than that gains.
                if blocked.len() >= MAX_BLOCKED {
                    break;
                }
                continue;
            };
            let function = first.function;
            let mut bytes = first.call.argument.len();
            let mut chosen = vec![first];
            // Shared among the seats where there is little.
            let share = match queue {
                Some(_) => usize::MAX,
                None => self.waiting.count(queue).div_ceil(self.seats.len().max(1)).max(1),
            };
            while chosen.len() < room.min(share) {
                let fits = |next: &Placed| {
                    next.function == function && bytes + next.call.argument.len() <= MAX_FRAME_ARGUMENTS_BYTES
                };
                let Some(next) = self.waiting.pop_if(queue, fits) else { break };
                bytes += next.call.argument.len();
                chosen.push(next);
            }
            self.send(node, function, chosen);
        }
        for placed in blocked.into_iter().rev() {
            self.waiting.put_back(placed);
        }
        Ok(())
    }

    /// The seat for a call, and how many like it have room there.
    fn choose(&self, placed: &Placed) -> Option<(NodeId, usize)> {
        let ahead = self.pace.calls_in(AHEAD_US, placed.function, MAX_AHEAD);
        let here = self.mailbox.network().node();
        // One whose disk is short gets calls only where all are, or none other will do: a driver waits, and calls need
        // little of a disk.
        let any_ample = self.seats.values().any(|seat| !seat.short);
        let seats = self.seats.iter().filter(|(node, seat)| {
            placed.only.map_or(!any_ample || !seat.short, |only| only == **node)
                && !seat.unfit.contains_key(&placed.function)
                && seat.room(ahead) > 0
                && seat.calls.capacity() > SPARE_FRAMES
        });
        // Among equals this node itself, since that spares a hop.
        let best = seats
            .min_by_key(|(node, seat)| (seat.under_way.len() * 1024 / seat.slots.max(1), **node != here));
        best.map(|(node, seat)| (*node, seat.room(ahead)))
    }

    /// Never waits, since a seat may be waiting for this gateway to take its results.
    fn send(&mut self, node: NodeId, function: u32, chosen: Vec<Placed>) {
        let Some(seat) = self.seats.get_mut(&node) else { return };
        // What it is to forget may be defined again now.
        let mut sound = seat.let_go();
        if seat.defined.insert(function)
            && let Some((definition, _)) = self.functions.get(&function).cloned()
        {
            sound &= seat.calls.try_send(CallFrame::Define { function, definition }).is_ok();
        }
        let calls: Vec<Call> = chosen.iter().map(|placed| placed.call.clone()).collect();
        // All are of one queue.
        let only = chosen.first().and_then(|placed| placed.only);
        for placed in chosen {
            seat.under_way.insert(placed.call.id, placed);
        }
        seat.got();
        sound = sound && seat.calls.try_send(CallFrame::Calls { function, node: only, calls }).is_ok();
        if !sound {
            tracing::debug!(%node, "a session's seat is gone; its pump says so too");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_seat_that_gave_calls_back_is_tried_with_ever_more() {
        let (calls, _frames) = mpsc::channel(SEAT_FRAMES);
        let mut seat = Seat {
            name: "n0".to_owned(),
            slots: 2,
            short: false,
            calls,
            defined: BTreeSet::new(),
            forgotten: Vec::new(),
            unwanted: Vec::new(),
            under_way: BTreeMap::new(),
            stuck: None,
            unfit: BTreeMap::new(),
            _pump: AbortOnDropHandle::new(tokio::spawn(async {})),
        };
        let send = |seat: &mut Seat, id| {
            let call = Call { id, argument: bytes::Bytes::new() };
            seat.under_way.insert(id, Placed { function: 0, only: None, call, tries: 0 });
            seat.got();
        };
        send(&mut seat, 0);
        assert_eq!(seat.room(8), 15);
        // One runs for long, and what was sent after it came back.
        seat.gave_back();
        assert_eq!(seat.room(8), 0);
        let paused = |seat: &mut Seat| seat.stuck.as_mut().unwrap().until = Instant::now();
        paused(&mut seat);
        assert_eq!(seat.room(8), 1);
        send(&mut seat, 1);
        assert_eq!(seat.room(8), 0);
        paused(&mut seat);
        assert_eq!(seat.room(8), 2);
        send(&mut seat, 2);
        paused(&mut seat);
        assert_eq!(seat.room(8), 4);
        assert_eq!(seat.room(1), 0);
        // It came back again.
        seat.under_way.remove(&2);
        seat.gave_back();
        paused(&mut seat);
        assert_eq!(seat.room(8), 1);
    }
}
