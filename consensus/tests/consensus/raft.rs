//! Replication: golden scripts, hostile messages, and random faults.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;

use floe_consensus::membership::{Change, survives};
use floe_consensus::{Command, MemoryLog, ProposeError};
use floe_protocol::{Era, NodeId, RequestId};
use goldenscript::Context;
use proptest::prelude::*;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry as RaftEntry, Message, MessageType, Snapshot};

use crate::cluster::{Cluster, cancel, describe_entry, member};

/// More messages than any script needs: a storm ends the test instead of running forever.
const MAX_DELIVERIES: usize = 10_000;

#[test]
fn scripts() {
    crate::run_scripts("raft", || Runner(Cluster::default()));
}

struct Runner(Cluster);

#[derive(goldenscript::Command)]
enum ScriptCommand {
    /// A node founds the mesh.
    Found(u64),
    /// Nodes start with empty logs and wait to be called.
    Start(Vec<u64>),
    /// Proposes, on a node, that another joins.
    Join {
        at: u64,
        who: u64,
        #[arg(key)]
        request: Option<u128>,
    },
    /// Proposes the end of an unknown job, which is refused.
    Cancel {
        at: u64,
        job: u64,
    },
    /// Proposes a change of voters and learners: lists of numbers.
    Change {
        at: u64,
        #[arg(key, optional)]
        promote: String,
        #[arg(key, optional)]
        demote: String,
        #[arg(key, optional)]
        learn: String,
        #[arg(key, optional)]
        remove: String,
    },
    /// Delivers messages until none is left, or so many.
    Deliver {
        limit: Option<usize>,
    },
    /// Ticks one node.
    Tick {
        id: u64,
        count: usize,
    },
    /// Ticks all nodes and delivers what they send, so many times.
    Run {
        count: usize,
    },
    Crash(Vec<u64>),
    Restart(Vec<u64>),
    /// Forgets a crashed node's entries after this one.
    Truncate {
        id: u64,
        last: u64,
    },
    /// Nodes' disks do not get on, until they do.
    Stall(Vec<u64>),
    GoOn(Vec<u64>),
    /// Loses all messages between a node and all others.
    Isolate(u64),
    Heal,
    /// A node begins the mesh's next era without the others.
    CarryOn(u64),
    /// A node leaves its era.
    LeaveEra(u64),
    /// Which era a node is of, who its members are, and which eras it has left.
    Era(u64),
    /// Who votes by a node's log: as it holds, and after each change that the node does not know to be agreed on; and
    /// whether the node goes on alone when nobody is heard.
    Votes(u64),
    /// Hands over the leadership.
    Transfer {
        from: u64,
        to: u64,
    },
    /// Asks for a read that is current.
    Read {
        at: u64,
        request: u128,
    },
    /// Takes snapshots after so many entries, on nodes opened from now on.
    Checkpoint(u64),
    /// Every node's standing.
    Status,
    /// A node's log.
    Log(u64),
}

fn numbers(text: &str) -> Vec<NodeId> {
    text.split('-').filter(|id| !id.is_empty()).map(|id| NodeId(id.parse().unwrap())).collect()
}

impl goldenscript::Runner for Runner {
    type Command = ScriptCommand;

    fn run(&mut self, command: &ScriptCommand, _: &Context) -> Result<String, Box<dyn Error>> {
        let cluster = &mut self.0;
        match command {
            ScriptCommand::Found(id) => {
                let result = cluster.found(*id);
                taken(cluster, *id, result)?;
            }
            ScriptCommand::Start(ids) => ids.iter().for_each(|id| cluster.open(*id, MemoryLog::new())),
            ScriptCommand::Join { at, who, request } => {
                let result = cluster.propose(*at, Command::Join { member: member(*who) }, *request);
                taken(cluster, *at, result)?;
            }
            ScriptCommand::Cancel { at, job } => {
                let result = cluster.propose(*at, cancel(*job), None);
                taken(cluster, *at, result)?;
            }
            ScriptCommand::Change { at, promote, demote, learn, remove } => {
                let change = Change {
                    promote: numbers(promote),
                    demote: numbers(demote),
                    add_learners: numbers(learn),
                    remove: numbers(remove),
                };
                let result = cluster.running.get_mut(at).ok_or("not running")?.change(&change);
                cluster.drain(*at);
                taken(cluster, *at, result)?;
            }
            ScriptCommand::Deliver { limit } => {
                let limit = limit.unwrap_or(MAX_DELIVERIES);
                let delivered = (0..limit).take_while(|_| cluster.deliver()).count();
                assert!(delivered < MAX_DELIVERIES, "a storm of messages");
            }
            ScriptCommand::Tick { id, count } => (0..*count).for_each(|_| cluster.tick(*id)),
            ScriptCommand::Run { count } => run(cluster, *count),
            ScriptCommand::Crash(ids) => ids.iter().for_each(|id| cluster.crash(*id)),
            ScriptCommand::Restart(ids) => ids.iter().for_each(|id| cluster.restart(*id)),
            ScriptCommand::Truncate { id, last } => cluster.truncate_log(*id, *last),
            ScriptCommand::Stall(ids) => cluster.stalled.extend(ids),
            ScriptCommand::GoOn(ids) => ids.iter().for_each(|id| cluster.go_on(*id)),
            ScriptCommand::Isolate(id) => {
                let all: Vec<_> = cluster.running.keys().chain(cluster.crashed.keys()).copied().collect();
                cluster.cut.extend(all.iter().flat_map(|other| [(*id, *other), (*other, *id)]));
            }
            ScriptCommand::Heal => cluster.cut.clear(),
            ScriptCommand::CarryOn(id) => {
                let result = cluster.carry_on(*id);
                taken(cluster, *id, result)?;
            }
            ScriptCommand::LeaveEra(id) => cluster.leave_era(*id),
            ScriptCommand::Era(id) => {
                let replica = cluster.running.get(id).ok_or("not running")?;
                let name = |era: Era| format!("epoch {} begun by n{}", era.epoch, era.founder.0);
                let era = replica.state().era().map_or("no era".to_owned(), name);
                let members: Vec<_> = replica.state().members().values().map(|m| m.name.clone()).collect();
                let left: Vec<_> = replica.log().left().iter().map(|era| name(*era)).collect();
                let (members, left) = (members.join(" "), left.join(", "));
                writeln!(cluster.story, "n{id}: {era}, members=[{members}] left=[{left}]")?;
            }
            ScriptCommand::Votes(id) => {
                let configurations = cluster.running.get(id).ok_or("not running")?.configurations();
                let voters = |set: &BTreeSet<NodeId>| {
                    set.iter().map(|node| format!("n{}", node.0)).collect::<Vec<_>>().join(" ")
                };
                let texts = configurations.iter().map(|configuration| {
                    let joint = match voters(&configuration.outgoing) {
                        outgoing if outgoing.is_empty() => outgoing,
                        outgoing => format!(" with [{outgoing}]"),
                    };
                    format!("[{}]{joint}", voters(&configuration.voters))
                });
                let texts: Vec<_> = texts.collect();
                let alone = survives(NodeId(*id), &configurations, &BTreeMap::new(), u64::MAX);
                let then = if alone { "goes on alone" } else { "waits" };
                writeln!(cluster.story, "n{id}: {}; {then}", texts.join(", then "))?;
            }
            ScriptCommand::Transfer { from, to } => {
                cluster.running.get_mut(from).ok_or("not running")?.transfer_leader(NodeId(*to))?;
                cluster.drain(*from);
            }
            ScriptCommand::Read { at, request } => {
                let taken = cluster.running.get_mut(at).ok_or("not running")?.read_index(RequestId(*request));
                cluster.drain(*at);
                if !taken {
                    return Err("cannot be read now".into());
                }
            }
            ScriptCommand::Checkpoint(entries) => cluster.checkpoint_entries = *entries,
            ScriptCommand::Status => status(cluster)?,
            ScriptCommand::Log(id) => {
                let parts = cluster.running.get(id).ok_or("not running")?.log().parts().clone();
                let snapshot = parts.snapshot.get_metadata();
                writeln!(cluster.story, "snapshot at {}/{}", snapshot.index, snapshot.term)?;
                for entry in &parts.entries {
                    let committed =
                        if entry.index <= parts.hard_state.commit { "" } else { " (not committed)" };
                    writeln!(cluster.story, "{}{committed}", describe_entry(entry))?;
                }
            }
        }
        Ok(std::mem::take(&mut cluster.story))
    }
}

fn taken(cluster: &mut Cluster, at: u64, result: Result<(), ProposeError>) -> std::fmt::Result {
    match result {
        Ok(()) => Ok(()),
        Err(error) => writeln!(cluster.story, "n{at} refuses: {error}"),
    }
}

fn run(cluster: &mut Cluster, count: usize) {
    for _ in 0..count {
        let ids: Vec<_> = cluster.running.keys().copied().collect();
        for id in ids {
            cluster.tick(id);
        }
        assert!((0..MAX_DELIVERIES).any(|_| !cluster.deliver()), "a storm of messages");
    }
}

fn status(cluster: &mut Cluster) -> std::fmt::Result {
    let names =
        |ids: &BTreeSet<NodeId>| ids.iter().map(|id| format!("n{}", id.0)).collect::<Vec<_>>().join(" ");
    for (id, replica) in &cluster.running {
        let standing = replica.standing();
        let role = if standing.leads { "leads" } else { "follows" };
        let leader = standing.leader.map_or("nobody".to_owned(), |leader| format!("n{}", leader.0));
        let former = &standing.voting - &standing.configuration.voting();
        writeln!(
            cluster.story,
            "n{id} {role}{} term={} committed={} applied={} members={} voters=[{}] learners=[{}]{}{}",
            if standing.leads { String::new() } else { format!(" {leader}") },
            standing.term,
            standing.committed,
            standing.applied,
            replica.state().members().len(),
            names(&standing.configuration.voters),
            names(&standing.configuration.learners),
            if standing.configuration.outgoing.is_empty() { "" } else { " joint" },
            if former.is_empty() { String::new() } else { format!(" asks=[{}]", names(&former)) },
        )?;
    }
    Ok(())
}

/// Three voters with a few entries.
fn three_voters() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.found(1).unwrap();
    for id in [2, 3] {
        cluster.open(id, MemoryLog::new());
        cluster.propose(1, Command::Join { member: member(id) }, None).unwrap();
    }
    let learn = Change { add_learners: vec![NodeId(2), NodeId(3)], ..Change::default() };
    cluster.running.get_mut(&1).unwrap().change(&learn).unwrap();
    cluster.drain(1);
    run(&mut cluster, 6);
    let promote = Change { promote: vec![NodeId(2), NodeId(3)], ..Change::default() };
    cluster.running.get_mut(&1).unwrap().change(&promote).unwrap();
    cluster.drain(1);
    run(&mut cluster, 6);
    assert_eq!(cluster.running[&2].standing().configuration.voters.len(), 3, "{}", cluster.story);
    cluster.story.clear();
    cluster
}

fn number() -> impl Strategy<Value = u64> {
    // Mostly near what the logs hold: that is where raft-rs looks closely.
    prop_oneof![60 => 0..14_u64, 1 => Just(u64::MAX), 1 => Just(1 << 56), 1 => any::<u64>()]
}

fn entry() -> impl Strategy<Value = RaftEntry> {
    (number(), number(), prop::collection::vec(any::<u8>(), 0..8), 0..3_i32).prop_map(
        |(index, term, data, kind)| {
            let entry_type = match kind {
                0 => raft::eraftpb::EntryType::EntryNormal,
                1 => raft::eraftpb::EntryType::EntryConfChange,
                _ => raft::eraftpb::EntryType::EntryConfChangeV2,
            };
            RaftEntry { entry_type, index, term, data: data.into(), ..RaftEntry::default() }
        },
    )
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let ids = || prop::collection::vec(0..5_u64, 0..4);
    let data = prop_oneof![
        Just(floe_consensus::StateMachine::default().snapshot().unwrap()),
        prop::collection::vec(any::<u8>(), 0..9)
    ];
    (number(), number(), ids(), ids(), ids(), ids(), any::<bool>(), data).prop_map(
        |(index, term, voters, learners, voters_outgoing, learners_next, auto_leave, data)| {
            let conf = ConfState {
                voters,
                learners,
                voters_outgoing,
                learners_next,
                auto_leave,
                ..Default::default()
            };
            let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
            let metadata = snapshot.mut_metadata();
            (metadata.index, metadata.term) = (index, term);
            *metadata.mut_conf_state() = conf;
            snapshot
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let term = prop_oneof![10 => 2..4_u64, 1 => number()];
    let numbers = (term, number(), number(), number(), number(), number());
    let contents =
        (prop::collection::vec(entry(), 0..3), prop::option::of(snapshot()), any::<bool>(), number());
    (0..19_i32, 0..5_u64, numbers, contents, prop::collection::vec(any::<u8>(), 0..66)).prop_map(
        |(
            kind,
            from,
            (term, log_term, index, commit, commit_term, hint),
            (entries, snapshot, reject, request),
            context,
        )| {
            // Some in sequence, some not.
            let mut entries: Vec<RaftEntry> = entries;
            if reject {
                entries.iter_mut().zip(1..).for_each(|(entry, n)| {
                    (entry.index, entry.term) = (index.saturating_add(n), log_term);
                });
            }
            let mut message = Message {
                from,
                term,
                log_term,
                index,
                commit,
                commit_term,
                reject,
                reject_hint: hint,
                request_snapshot: request,
                entries: entries.into(),
                context: context.into(),
                ..Message::default()
            };
            message.msg_type = protobuf::ProtobufEnum::from_i32(kind).unwrap_or(MessageType::MsgAppend);
            if let Some(snapshot) = snapshot {
                message.set_snapshot(snapshot);
            }
            message
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever a peer sends, in any role, the node answers or refuses; it goes on ticking and applying.
    #[test]
    fn no_message_makes_a_replica_panic(
        messages in prop::collection::vec((1..4_u64, message(), 0..8_u8), 1..40),
        garbage in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut cluster = three_voters();
        for (to, mut message, disk) in messages {
            message.to = to;
            match disk {
                0 => drop(cluster.stalled.insert(to)),
                1 => cluster.go_on(to),
                _ => {}
            }
            let bytes = message.write_to_bytes().unwrap();
            let _ = cluster.running.get_mut(&to).unwrap().step(&bytes);
            cluster.drain(to);
            cluster.tick(to);
        }
        let _ = cluster.running.get_mut(&1).unwrap().step(&garbage);
        cluster.network.clear();
        run(&mut cluster, 2);
    }

    /// Under lost messages, cuts, crashes and slow disks, no two nodes ever differ in what they applied; and once all is
    /// well again a leader is found and all agree.
    #[test]
    fn replicas_never_differ_and_recover(faults in prop::collection::vec((0..9_u8, 1..4_u64, 1..4_u64), 1..60)) {
        let mut cluster = three_voters();
        cluster.checkpoint_entries = 5;
        cluster.says_what_is_lost = true;
        let mut joined = 10;
        for (fault, a, b) in faults {
            match fault {
                0 => cluster.crash(a),
                1 => cluster.restart(a),
                2 => cluster.cut.extend([(a, b), (b, a)]),
                3 => cluster.cut.clear(),
                4 => drop(cluster.network.pop_front()),
                5 => drop(cluster.stalled.insert(a)),
                6 => cluster.go_on(a),
                _ => {}
            }
            if let Some(leader) = cluster.leader() {
                joined += 1;
                let _ = cluster.propose(leader, Command::Join { member: member(joined) }, None);
            }
            run(&mut cluster, usize::from(fault) * 3);
            check_agreement(&cluster);
        }
        cluster.cut.clear();
        (1..4).for_each(|id| cluster.go_on(id));
        (1..4).for_each(|id| cluster.restart(id));
        run(&mut cluster, 60);
        let leader = cluster.leader().expect("three connected voters elect a leader");
        cluster.propose(leader, Command::Join { member: member(99) }, None).unwrap();
        run(&mut cluster, 10);
        check_agreement(&cluster);
        for replica in cluster.running.values() {
            prop_assert!(replica.state().members().contains_key(&NodeId(99)), "{}", cluster.story);
        }
    }
}

/// Nodes that have applied as much have the same state.
fn check_agreement(cluster: &Cluster) {
    for (a, replica) in &cluster.running {
        for (b, other) in cluster.running.range(a + 1..) {
            if replica.state().applied() == other.state().applied() {
                assert_eq!(replica.state(), other.state(), "n{a} and n{b} differ\n{}", cluster.story);
            }
        }
    }
    let mut terms = BTreeSet::new();
    for replica in cluster.running.values().filter(|replica| replica.leads()) {
        assert!(terms.insert(replica.standing().term), "two leaders in one term");
    }
}
