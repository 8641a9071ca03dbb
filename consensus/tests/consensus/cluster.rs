//! Several replicas, their disks and the messages between them, in memory and in one thread. A crash loses all but what
//! was written to the disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use bytes::Bytes;
use floe_consensus::replica::Config;
use floe_consensus::{Command, Entry, Event, MemoryLog, Output, Persist, ProposeError, Replica, Written};
use floe_protocol::{Era, Incarnation, JobId, Member, MeshId, NodeId, RequestId, WallTime};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry as RaftEntry, EntryType, Message, MessageType};

/// The mesh of every test.
pub(crate) const MESH: MeshId = MeshId(0xf10e);

/// Its first era, where node 1 founds it.
pub(crate) const ERA: Era = Era { mesh: MESH, epoch: 1, founder: NodeId(1) };

/// Replicas by number, and what is on its way between them.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) running: BTreeMap<u64, Replica>,
    /// What is on the nodes' disks, and what is being written there.
    pub(crate) disks: BTreeMap<u64, MemoryLog>,
    writing: BTreeMap<u64, Persist>,
    /// Nodes whose disks do not get on.
    pub(crate) stalled: BTreeSet<u64>,
    pub(crate) crashed: BTreeMap<u64, MemoryLog>,
    /// Whether a node hears that what it sent was lost, as connections tell.
    pub(crate) says_what_is_lost: bool,
    pub(crate) network: VecDeque<(u64, u64, Bytes)>,
    pub(crate) cut: BTreeSet<(u64, u64)>,
    /// Entries between snapshots; 0 for the usual.
    pub(crate) checkpoint_entries: u64,
    /// What happened since it was last taken.
    pub(crate) story: String,
    requests: u128,
}

/// A member with a short name.
pub(crate) fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        peer: format!("peer-{id}"),
        name: format!("n{id}"),
        addresses: vec![],
        slots: 2,
        memory_bytes: 1 << 30,
        version: "0.1.0".to_owned(),
        incarnation: Incarnation::default(),
    }
}

/// What is on a disk after this write.
pub(crate) fn write(disk: &mut MemoryLog, persist: &Persist) -> Written {
    disk.write(persist).unwrap();
    let written = written(persist);
    if let (Some(snapshot), Some(checkpoint)) = (&written.checkpoint, &persist.checkpoint) {
        disk.checkpointed(snapshot.clone(), checkpoint.dropped, false);
    }
    written
}

/// What whoever wrote this says.
pub(crate) fn written(persist: &Persist) -> Written {
    Written { checkpoint: persist.checkpoint.as_ref().map(|checkpoint| checkpoint.encode().unwrap()) }
}

impl Cluster {
    pub(crate) fn open(&mut self, id: u64, log: MemoryLog) {
        let mut config = Config::new(NodeId(id));
        // Each node has its own fixed patience, so that elections replay.
        config.election_ticks = 10 + id as usize..11 + id as usize;
        if self.checkpoint_entries > 0 {
            (config.checkpoint_entries, config.kept_entries) = (self.checkpoint_entries, 2);
        }
        self.disks.insert(id, log.clone());
        self.running.insert(id, Replica::open(config, log).unwrap());
        self.drain(id);
    }

    /// A disk gets on again.
    pub(crate) fn go_on(&mut self, id: u64) {
        self.stalled.remove(&id);
        self.drain(id);
    }

    /// A node founds the mesh, on a new log unless it runs already.
    pub(crate) fn found(&mut self, id: u64) -> Result<(), ProposeError> {
        if !self.running.contains_key(&id) {
            self.open(id, MemoryLog::new());
        }
        let request = self.request();
        self.running.get_mut(&id).unwrap().found(request, MESH, member(id))?;
        self.drain(id);
        Ok(())
    }

    pub(crate) fn crash(&mut self, id: u64) {
        if self.running.remove(&id).is_some() {
            self.stalled.remove(&id);
            self.writing.remove(&id);
            self.crashed.insert(id, self.disks[&id].clone());
            self.network.retain(|(_, to, _)| *to != id);
            // What it had taken in and not written is lost, and nobody hears so but by its connections.
            if self.says_what_is_lost {
                self.running.values_mut().for_each(|peer| peer.report_unreachable(NodeId(id)));
            }
        }
    }

    pub(crate) fn restart(&mut self, id: u64) {
        if let Some(log) = self.crashed.remove(&id) {
            // Through the parts, as a durable log would.
            let log = MemoryLog::from_parts(log.parts().clone()).unwrap();
            self.open(id, log);
        }
    }

    pub(crate) fn tick(&mut self, id: u64) {
        if let Some(replica) = self.running.get_mut(&id) {
            replica.tick();
            self.drain(id);
        }
    }

    /// A node begins the mesh's next era, with what is in its log.
    pub(crate) fn carry_on(&mut self, id: u64) -> Result<(), ProposeError> {
        let result = self.running.get_mut(&id).unwrap().carry_on();
        self.drain(id);
        result
    }

    /// A node leaves its era with an empty log.
    pub(crate) fn leave_era(&mut self, id: u64) {
        let replica = self.running.get_mut(&id).unwrap();
        let era = replica.state().era().unwrap();
        replica.leave(era);
        self.drain(id);
    }

    /// Proposes under a fresh request id, or the given one.
    pub(crate) fn propose(
        &mut self,
        id: u64,
        command: Command,
        request: Option<u128>,
    ) -> Result<(), ProposeError> {
        let request = request.map(RequestId).unwrap_or_else(|| self.request());
        let result = self.running.get_mut(&id).unwrap().propose(&Entry { request, command });
        self.drain(id);
        result
    }

    /// Delivers the next message, if there is one. Cut links and crashed nodes lose it.
    pub(crate) fn deliver(&mut self) -> bool {
        let Some((from, to, bytes)) = self.network.pop_front() else { return false };
        let message = Message::parse_from_bytes(&bytes).unwrap();
        let lost = self.cut.contains(&(from, to)) || !self.running.contains_key(&to);
        let quiet = matches!(message.msg_type, MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse);
        if !quiet {
            let note = if lost { " (lost)" } else { "" };
            writeln!(self.story, "n{from} -> n{to} {}{note}", describe(&message)).unwrap();
        }
        if lost {
            let sender = self.running.get_mut(&from).filter(|_| self.says_what_is_lost);
            if let Some(sender) = sender {
                sender.report_unreachable(NodeId(to));
            }
        } else {
            if let Err(error) = self.running.get_mut(&to).unwrap().step(&bytes) {
                writeln!(self.story, "n{to} refuses: {error}").unwrap();
            }
            self.drain(to);
        }
        true
    }

    /// The node that leads at the highest term, with its state current.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leading = self.running.iter().filter(|(_, replica)| replica.leads());
        leading.max_by_key(|(_, replica)| replica.standing().term).map(|(id, _)| *id)
    }

    pub(crate) fn drain(&mut self, id: u64) {
        let mut sent = Vec::new();
        while let Some(output) = self.next_output(id) {
            sent.extend(output.send);
            for event in &output.events {
                if let Some(event) = describe_event(event) {
                    writeln!(self.story, "n{id}: {event}").unwrap();
                }
            }
        }
        // raft-rs walks its peers in no particular order.
        sent.sort_by_key(|(to, _)| *to);
        self.network.extend(sent.into_iter().map(|(to, bytes)| (id, to.0, bytes)));
    }

    /// What a replica does next, be it that its disk got on.
    fn next_output(&mut self, id: u64) -> Option<Output> {
        let replica = self.running.get_mut(&id)?;
        if let Some(output) = replica.take_output().unwrap() {
            return Some(output);
        }
        if let Some(persist) = replica.take_write() {
            self.writing.insert(id, persist);
        }
        if self.stalled.contains(&id) {
            return None;
        }
        let written = write(self.disks.get_mut(&id)?, &self.writing.remove(&id)?);
        Some(replica.persisted(written).unwrap())
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }
}

impl Cluster {
    /// Writes to a crashed node's log as its disk would after damage or a restore from an old copy.
    pub(crate) fn truncate_log(&mut self, id: u64, last: u64) {
        let log = self.crashed.get_mut(&id).unwrap();
        let mut parts = log.parts().clone();
        parts.entries.retain(|entry| entry.index <= last);
        parts.hard_state.commit = parts.hard_state.commit.min(last);
        *log = MemoryLog::from_parts(parts).unwrap();
    }
}

fn describe(m: &Message) -> String {
    let verdict = if m.reject { "refuses" } else { "grants" };
    let place = format!("{}/{}", m.index, m.log_term);
    let text = match m.msg_type {
        MessageType::MsgAppend => {
            let entries: Vec<_> = m.entries.iter().map(describe_entry).collect();
            format!("append after {place} [{}] commit={}", entries.join(", "), m.commit)
        }
        MessageType::MsgAppendResponse if m.reject => {
            format!("lacks {}, has {}/{}", m.index, m.reject_hint, m.log_term)
        }
        MessageType::MsgAppendResponse => format!("has {}", m.index),
        MessageType::MsgSnapshot => {
            let metadata = m.get_snapshot().get_metadata();
            format!("snapshot at {}/{}", metadata.index, metadata.term)
        }
        MessageType::MsgRequestPreVote => format!("would you vote for {place}?"),
        MessageType::MsgRequestVote => format!("vote for {place}!"),
        MessageType::MsgRequestPreVoteResponse => format!("{verdict} a vote beforehand"),
        MessageType::MsgRequestVoteResponse => format!("{verdict} the vote"),
        MessageType::MsgReadIndex => return "what is committed?".to_owned(),
        MessageType::MsgReadIndexResp => format!("committed {}", m.index),
        MessageType::MsgTimeoutNow => "campaign now".to_owned(),
        other => format!("{other:?}"),
    };
    format!("{text} term={}", m.term)
}

pub(crate) fn describe_entry(entry: &RaftEntry) -> String {
    let what = match entry.entry_type {
        EntryType::EntryNormal if entry.data.is_empty() => "noop".to_owned(),
        EntryType::EntryNormal => match Entry::decode(&entry.data).map(|entry| entry.command) {
            Ok(Command::Join { member }) => format!("join {}", member.name),
            Ok(Command::Leave { node }) => format!("leave n{}", node.0),
            Ok(Command::EndJob { job, .. }) => format!("end {}", job.0),
            Ok(other) => format!("{other:?}"),
            Err(_) => "garbage".to_owned(),
        },
        _ => {
            let Ok(change) = ConfChangeV2::parse_from_bytes(&entry.data) else { return "garbage".to_owned() };
            let changes = change.changes.iter().map(|single| match single.change_type {
                ConfChangeType::AddNode => format!("n{} votes", single.node_id),
                ConfChangeType::AddLearnerNode => format!("n{} learns", single.node_id),
                ConfChangeType::RemoveNode => format!("n{} removed", single.node_id),
            });
            let changes = changes.collect::<Vec<_>>();
            if changes.is_empty() { "leave joint".to_owned() } else { changes.join(" + ") }
        }
    };
    format!("{}/{} {what}", entry.index, entry.term)
}

fn describe_event(event: &Event) -> Option<String> {
    Some(match event {
        Event::Applied { request, outcome: Ok(()) } => format!("request {} applied", request.0),
        Event::Applied { request, outcome: Err(error) } => format!("request {} refused: {error}", request.0),
        Event::MeshFounded { .. } => "mesh founded".to_owned(),
        Event::MemberJoined { member } => format!("member {} joined", member.name),
        Event::MemberLeft { node } => format!("member n{} left", node.0),
        Event::Restored { index } => format!("state restored at {index}"),
        Event::CarriedOn { era } => format!("carries on in epoch {}", era.epoch),
        Event::Reconfigured => "reconfigured".to_owned(),
        Event::Elected { term } => format!("elected in term {term}"),
        Event::Deposed { term } => format!("deposed from term {term}"),
        Event::LeaderChanged { leader: Some(leader), term } => {
            format!("follows n{} in term {term}", leader.0)
        }
        Event::LeaderChanged { leader: None, term } => format!("follows nobody in term {term}"),
        Event::ReadReady { request } => format!("read {} ready", request.0),
        other => format!("{other:?}"),
    })
}

/// A command that is refused: the job is unknown.
pub(crate) fn cancel(job: u64) -> Command {
    Command::EndJob {
        job: JobId(job),
        phase: floe_protocol::JobPhase::Cancelled,
        ended_at: WallTime::from_unix_ms(0),
    }
}
