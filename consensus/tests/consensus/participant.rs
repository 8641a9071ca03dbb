//! Nodes that carry on alone, come back and merge: golden scripts.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;

use floe_consensus::membership::ALONE_MS;
use floe_consensus::participant::HandedOver;
use floe_consensus::replica::TICK_MS;
use floe_consensus::state_machine::{Job, Rotated, Rotation};
use floe_consensus::{Action, Command, Entry, Reading, StateMachine};
use floe_protocol::message::MeshView;
use floe_protocol::{
    Claim, Era, Fence, Incarnation, InvitationId, JobPhase, KeyName, MeshId, NodeId, PeerMessage, RequestId,
    Secret, StageId, TaskId, WallTime, frame,
};
use goldenscript::Context;
use proptest::prelude::*;

use crate::cluster::{member, written};
use crate::mesh::{Mesh, name};
use crate::world::{graph, job};

/// Nothing that is awaited takes longer.
const AWAIT_MS: u64 = 60_000;

/// Without faults everything is well again after this long.
const CALM_MS: u64 = 60_000;

#[test]
fn scripts() {
    crate::run_scripts("participant", || Runner(Mesh::new()));
}

struct Runner(Mesh);

#[derive(goldenscript::Command)]
enum ScriptCommand {
    /// Nodes start with empty logs. If they find no mesh they found this one.
    Boot {
        ids: Vec<u64>,
        #[arg(key)]
        mesh: u64,
    },
    /// Time passes.
    Run(u64),
    /// Time passes until a message of this kind (from this node) is about to arrive.
    Await {
        kind: String,
        #[arg(key)]
        from: Option<u64>,
    },
    /// A node's driver submits a job of this many tasks, and one that gathers them.
    Submit {
        at: u64,
        id: u64,
        #[arg(key)]
        tasks: Option<u64>,
        /// The first stage's partition came with the submission, and lies here.
        #[arg(key)]
        held: Option<u64>,
    },
    Cancel {
        at: u64,
        id: u64,
    },
    /// A node gracefully leaves, as another one proposes.
    Leave {
        at: u64,
        who: u64,
    },
    /// As one node proposes, an invitation for so many nodes is made that lasts so long.
    Invite {
        at: u64,
        id: u64,
        #[arg(key)]
        uses: u32,
        #[arg(key)]
        lasts_ms: u64,
    },
    /// By way of one node, another comes by an invitation.
    Enter {
        at: u64,
        id: u64,
        who: u64,
    },
    /// A node is removed for good.
    Forget {
        at: u64,
        who: u64,
    },
    /// The mesh key is changed.
    Rotate {
        at: u64,
        from: u64,
        to: u64,
    },
    /// Who may come, as one node knows it.
    Door(u64),
    /// Nodes' workers end well all that they run.
    Finish(Vec<u64>),
    Kill(Vec<u64>),
    Start(Vec<u64>),
    /// Nodes stop and keep their connections.
    Pause(Vec<u64>),
    Resume(Vec<u64>),
    /// Nodes keep out of elections.
    Withhold(Vec<u64>),
    /// They take part again.
    Vote(Vec<u64>),
    /// Groups of nodes, numbers joined by dashes, lose sight of each other.
    Cut {
        some: String,
        others: String,
    },
    Heal,
    /// Messages of a kind are lost, from now on.
    Lose(String),
    /// They are not lost any more.
    Keep(String),
    /// A node's owner recovers the mesh: from the era that the node is of, or another.
    Recover {
        at: u64,
        #[arg(key)]
        era: Option<String>,
    },
    /// What nodes were told to run.
    Running(Vec<u64>),
    /// Where all nodes stand.
    Status,
}

fn numbers(text: &str) -> Vec<u64> {
    text.split('-').map(|id| id.parse().unwrap()).collect()
}

fn era(text: &str) -> Era {
    let parts: Vec<u64> = text.split('.').map(|part| part.parse().unwrap()).collect();
    Era { mesh: MeshId(parts[0].into()), epoch: parts[1], founder: NodeId(parts[2]) }
}

impl goldenscript::Runner for Runner {
    type Command = ScriptCommand;

    fn run(&mut self, command: &ScriptCommand, _: &Context) -> Result<String, Box<dyn Error>> {
        let mesh = &mut self.0;
        match command {
            ScriptCommand::Boot { ids, mesh: number } => ids.iter().for_each(|id| mesh.boot(*id, *number)),
            ScriptCommand::Run(ms) => drop(mesh.run(*ms)),
            ScriptCommand::Await { kind, from } => {
                if !mesh.run_until(kind, *from, AWAIT_MS) {
                    return Err(format!("no {kind} was sent").into());
                }
            }
            ScriptCommand::Submit { at, id, tasks, held } => {
                let first = match held {
                    Some(node) => {
                        mesh.hold(*node, *id);
                        format!("held x1 at {node}")
                    }
                    None => format!("scan x{}", tasks.unwrap_or(1)),
                };
                let lines = [first, "gather x1 all 0".to_owned()];
                if let Err(error) = mesh.submit(*at, *id, graph(&lines)) {
                    writeln!(mesh.story, "n{at} does not take job {id}: {error}")?;
                }
            }
            ScriptCommand::Cancel { at, id } => {
                let ended_at = WallTime::from_unix_ms(mesh.now_ms);
                let end = Command::EndJob { job: job(*id), phase: JobPhase::Cancelled, ended_at };
                if let Err(error) = mesh.propose(*at, end, format!("cancel {id}")) {
                    writeln!(mesh.story, "n{at} does not cancel {id}: {error}")?;
                }
            }
            ScriptCommand::Leave { at, who } => {
                let leave = Command::Leave { node: NodeId(*who) };
                if let Err(error) = mesh.propose(*at, leave, format!("leave of n{who}")) {
                    writeln!(mesh.story, "n{at} does not let n{who} go: {error}")?;
                }
            }
            ScriptCommand::Invite { at, id, uses, lasts_ms } => {
                let (id, verifier) = (InvitationId(*id), Secret([0; 32]));
                let invite = Command::Invite { id, verifier, uses: *uses, lasts_ms: *lasts_ms };
                if let Err(error) = mesh.propose(*at, invite, format!("invitation {}", id.0)) {
                    writeln!(mesh.story, "n{at} does not take it: {error}")?;
                }
            }
            ScriptCommand::Enter { at, id, who } => {
                let enter = Command::Enter { invitation: InvitationId(*id), node: NodeId(*who) };
                if let Err(error) = mesh.propose(*at, enter, format!("n{who} by invitation {id}")) {
                    writeln!(mesh.story, "n{at} does not take it: {error}")?;
                }
            }
            ScriptCommand::Forget { at, who } => {
                let forget = Command::Forget { node: NodeId(*who) };
                if let Err(error) = mesh.propose(*at, forget, format!("forget n{who}")) {
                    writeln!(mesh.story, "n{at} does not take it: {error}")?;
                }
            }
            ScriptCommand::Rotate { at, from, to } => {
                let (from, to) = (KeyName(*from), KeyName(*to));
                let rotate =
                    Command::RotateKey(Rotation { from, to, salt: Secret([0; 32]), sealed: Secret([0; 32]) });
                if let Err(error) = mesh.propose(*at, rotate, "another key".to_owned()) {
                    writeln!(mesh.story, "n{at} does not take it: {error}")?;
                }
            }
            ScriptCommand::Door(id) => {
                let door = mesh.nodes[id].participant.state().door();
                let open = door.invitations().iter().filter(|(_, invitation)| invitation.is_open());
                let open: Vec<_> = open.map(|(id, _)| id.0).collect();
                let forgotten: Vec<_> = door.forgotten().iter().map(|node| node.0).collect();
                let line = door.keys().line.iter();
                let line = line.map(|Rotated { rotation, former }| {
                    format!("{} ({former:?}) -> {}", rotation.from.0, rotation.to.0)
                });
                let strayed = door.keys().strayed.iter();
                let strayed = strayed.map(|Rotated { rotation, former }| {
                    format!("strayed {} -> {} ({former:?})", rotation.from.0, rotation.to.0)
                });
                let keys = line.chain(strayed).collect::<Vec<_>>().join(", ");
                writeln!(mesh.story, "open {open:?} forgotten {forgotten:?} keys [{keys}]")?;
            }
            ScriptCommand::Finish(ids) => ids.iter().for_each(|id| mesh.finish(*id)),
            ScriptCommand::Kill(ids) => ids.iter().for_each(|id| mesh.kill(*id)),
            ScriptCommand::Start(ids) => ids.iter().for_each(|id| mesh.start(*id)),
            ScriptCommand::Pause(ids) => mesh.paused.extend(ids),
            ScriptCommand::Resume(ids) => mesh.paused.retain(|id| !ids.contains(id)),
            ScriptCommand::Withhold(ids) | ScriptCommand::Vote(ids) => {
                let withholds = matches!(command, ScriptCommand::Withhold(_));
                for id in ids {
                    let node = mesh.nodes.get_mut(id).ok_or("no such node")?;
                    node.participant.withhold_vote(withholds);
                }
            }
            ScriptCommand::Cut { some, others } => mesh.cut(&numbers(some), &numbers(others)),
            ScriptCommand::Heal => mesh.heal(),
            ScriptCommand::Lose(kind) => drop(mesh.lost.insert(kind.clone())),
            ScriptCommand::Keep(kind) => drop(mesh.lost.remove(kind)),
            ScriptCommand::Recover { at, era: text } => {
                let own = mesh.nodes[at].participant.state().era();
                let from = text.as_deref().map(era).or(own).ok_or("no era")?;
                let before = mesh.story.len();
                let line = match mesh.recover(*at, from) {
                    Ok(()) => format!("n{at} goes on from {}\n", name(from)),
                    Err(error) => format!("n{at} does not recover {}: {error}\n", name(from)),
                };
                mesh.story.insert_str(before, &line);
            }
            ScriptCommand::Running(ids) => {
                for id in ids {
                    let runs = mesh.runs(*id).join(" ");
                    writeln!(mesh.story, "n{id} runs [{runs}]")?;
                }
            }
            ScriptCommand::Status => mesh.status(),
        }
        Ok(std::mem::take(&mut mesh.story))
    }
}

/// A pair that knows nothing but itself.
fn pair() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.boot(1, 7);
    mesh.boot(2, 7);
    mesh.run(6_000);
    assert_eq!(
        mesh.nodes[&2].participant.replica().standing().configuration.voters.len(),
        2,
        "{}",
        mesh.story
    );
    mesh
}

#[test]
fn a_node_that_slept_does_not_take_the_others_for_dead() {
    let mut mesh = pair();
    let era = mesh.nodes[&2].participant.state().era();
    let node = &mut mesh.nodes.get_mut(&2).unwrap().participant;
    // It wakes up, and the first it hears is not of its leader.
    let mut now_ms = mesh.now_ms + 20_000;
    let partition = TaskId { job: job(1), stage: StageId(0), partition: 0 };
    node.receive(Reading::at(now_ms), NodeId(3), PeerMessage::Lost { partition, node: NodeId(1) });
    let mut wait = |ms: u64| {
        for _ in 0..ms / TICK_MS {
            now_ms += TICK_MS;
            node.tick(Reading::at(now_ms), 1);
            while let Some(action) = node.poll().unwrap() {
                if let Action::Write(persist) = action {
                    node.persisted(written(&persist)).unwrap();
                }
            }
        }
        node.state().era()
    };
    assert_eq!(wait(ALONE_MS - 500), era, "the other had no time to speak");
    assert_ne!(wait(1_000), era, "it had");
}

#[test]
fn only_who_was_asked_can_say_that_jobs_are_in_its_hands() {
    let mut mesh = Mesh::new();
    (1..4).for_each(|id| mesh.boot(id, 5));
    mesh.boot(4, 9);
    mesh.cut(&[1, 2, 3], &[4]);
    mesh.run(8_000);
    mesh.submit(4, 20, graph(&["scan x1".to_owned()])).unwrap();
    mesh.heal();
    mesh.lost.insert("adopt".to_owned());
    mesh.run(3_000);
    let state = mesh.nodes[&4].participant.state();
    let (era, jobs_changed) = (state.era().unwrap(), state.jobs_changed());
    for from in [2, 3] {
        let adopted = PeerMessage::Adopted { era, jobs_changed, jobs: vec![job(20)] };
        mesh.say(from, 4, adopted);
    }
    mesh.run(1_500);
    assert_eq!(mesh.nodes[&4].participant.state().era(), Some(era), "{}", mesh.story);
    assert_eq!(mesh.nodes[&4].participant.state().yielded(), None);
}

#[test]
fn an_era_that_nobody_is_of_does_not_keep_a_node_from_joining() {
    let mut mesh = Mesh::new();
    mesh.boot(2, 9);
    let nonsense = Era { mesh: MeshId(0), epoch: u64::MAX, founder: NodeId(u64::MAX) };
    mesh.say(3, 2, PeerMessage::Lease { fence: Fence { era: nonsense, term: u64::MAX } });
    mesh.boot(1, 7);
    mesh.run(12_000);
    let eras: Vec<_> = mesh.nodes.values().map(|node| node.participant.state().era()).collect();
    assert!(eras[0].is_some() && eras[0] == eras[1], "{eras:?}\n{}", mesh.story);
}

#[test]
fn a_node_that_obeyed_another_era_follows_the_one_that_it_founds() {
    let mut mesh = Mesh::new();
    mesh.boot(2, 9);
    let other = Era { mesh: MeshId(5), epoch: 1, founder: NodeId(3) };
    mesh.say(3, 2, PeerMessage::Lease { fence: Fence { era: other, term: 7 } });
    mesh.run(12_000);
    mesh.submit(2, 20, graph(&["scan x1".to_owned()])).unwrap();
    mesh.run(1_000);
    assert_eq!(mesh.runs(2).len(), 1, "{}", mesh.story);
}

/// Messages that no correct node sends, and some that it does.
fn nonsense() -> impl Strategy<Value = PeerMessage> {
    let number = || prop_oneof![4 => 0..4_u64, 1 => Just(u64::MAX), 1 => 5..10_u64];
    let era = move || {
        let parts = (prop_oneof![3 => Just(7), 1 => number()], number(), number());
        parts.prop_map(|(mesh, epoch, founder)| Era {
            mesh: MeshId(mesh.into()),
            epoch,
            founder: NodeId(founder),
        })
    };
    let eras = move || prop::collection::vec(era(), 0..200);
    let members = prop::collection::vec((0..9_u64).prop_map(member), 0..20);
    let view = (number(), prop::option::of(era()), prop::option::of(number()), eras(), members);
    let work_ms = || prop::option::of(0..3_u64);
    let claim = (era(), work_ms()).prop_map(|(era, work_ms)| Claim { era, work_ms });
    let view = (view, work_ms()).prop_map(|((node, era, leader, ended, members), work_ms)| MeshView {
        work_ms,
        node: NodeId(node),
        era,
        leader: leader.map(NodeId),
        peers: vec![],
        ended,
        members,
        known: None,
    });
    let some_jobs = prop::collection::vec((0..30_u64, 0..6_usize), 0..4).prop_map(|jobs| {
        let jobs: Vec<_> = jobs.into_iter().map(|(id, flaw)| (job(id), flawed_job(flaw))).collect();
        frame::encode(&HandedOver { jobs, ..HandedOver::default() }).unwrap()
    });
    let jobs = prop_oneof![3 => some_jobs, 1 => prop::collection::vec(any::<u8>(), 0..40)];
    let ids = || prop::collection::vec((0..30_u64).prop_map(job), 0..30);
    let fence = move || (era(), number()).prop_map(|(era, term)| Fence { era, term });
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        4 => view.prop_map(|view| PeerMessage::View(Box::new(view))),
        4 => (claim, eras(), number(), jobs).prop_map(|(claim, ended, jobs_changed, jobs)| PeerMessage::Adopt {
            claim,
            ended,
            jobs_changed,
            jobs: jobs.into(),
        }),
        2 => (era(), number(), ids()).prop_map(|(era, jobs_changed, jobs)| PeerMessage::Adopted {
            era,
            jobs_changed,
            jobs,
        }),
        1 => (era(), bytes()).prop_map(|(era, bytes)| PeerMessage::Raft {
            era,
            incarnation: Incarnation::default(),
            message: bytes.into(),
        }),
        1 => fence().prop_map(|fence| PeerMessage::Lease { fence }),
        1 => fence().prop_map(|fence| PeerMessage::AskInventory { fence }),
        1 => (fence(), ids()).prop_map(|(fence, jobs)| PeerMessage::Free { fence, jobs }),
    ]
}

/// A job that runs, or what a faulty node might make of one.
fn flawed_job(flaw: usize) -> Job {
    let mut state = StateMachine::default();
    let graph = graph(&["scan x2".to_owned(), "gather x1 all 0".to_owned()]);
    let submit = Command::Submit {
        job: job(1),
        label: "q".to_owned(),
        graph,
        owner: 1,
        submitted_at: WallTime::from_unix_ms(0),
    };
    state.apply(1, &Entry { request: RequestId(1), command: submit });
    let mut job = state.job(job(1)).unwrap().clone();
    match flaw {
        0 => {}
        1 => job.stages.clear(),
        2 => job.work = None,
        3 => job.phase = JobPhase::Succeeded,
        4 => job.phase = JobPhase::Cancelled,
        _ => job.work.as_mut().unwrap().outputs.clear(),
    }
    job
}

/// What happens to a mesh, in the order of its nodes' numbers.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill(u64),
    Start(u64),
    Cut(u64, u64),
    Lose(u64),
    Heal,
    Pause(u64),
    Resume,
    Submit(u64),
    Cancel(u64),
    Finish(u64),
    Recover(u64),
    Run(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    let node = || 1..6_u64;
    prop_oneof![
        2 => node().prop_map(Fault::Kill),
        3 => node().prop_map(Fault::Start),
        3 => (node(), node()).prop_map(|(a, b)| Fault::Cut(a, b)),
        1 => (2..20_u64).prop_map(Fault::Lose),
        2 => Just(Fault::Heal),
        1 => node().prop_map(Fault::Pause),
        2 => Just(Fault::Resume),
        4 => node().prop_map(Fault::Submit),
        1 => (1..20_u64).prop_map(Fault::Cancel),
        2 => node().prop_map(Fault::Finish),
        1 => node().prop_map(Fault::Recover),
        6 => (50..4_000_u64).prop_map(Fault::Run),
    ]
}

/// Lets faults happen to nodes that are cut in two at first, and all be well again in the end.
fn survive(nodes: u64, apart: u64, faults: &[Fault]) -> Mesh {
    let mut mesh = Mesh::new();
    (1..=nodes).for_each(|id| mesh.boot(id, if id <= apart { 5 } else { 9 }));
    let (some, others): (Vec<_>, Vec<_>) = (1..=nodes).partition(|id| *id <= apart);
    mesh.cut(&some, &others);
    mesh.run(5_000);
    let mut jobs = 0;
    for fault in faults {
        match *fault {
            Fault::Kill(id) => mesh.kill(id),
            Fault::Start(id) => mesh.start(id),
            Fault::Cut(a, b) if a != b => mesh.cut(&[a], &[b]),
            Fault::Cut(..) => {}
            Fault::Lose(every) => mesh.lose_every = Some(every),
            Fault::Heal => mesh.heal(),
            Fault::Pause(id) if mesh.nodes.contains_key(&id) => drop(mesh.paused.insert(id)),
            Fault::Pause(_) => {}
            Fault::Resume => mesh.paused.clear(),
            Fault::Submit(at) => {
                jobs += 1;
                let lines = ["scan x2".to_owned(), "gather x1 all 0".to_owned()];
                let _ = mesh.submit(at, jobs, graph(&lines));
            }
            Fault::Cancel(id) => {
                let end = Command::EndJob {
                    job: job(id),
                    phase: JobPhase::Cancelled,
                    ended_at: WallTime::from_unix_ms(1),
                };
                let leader = mesh.leader().unwrap_or_default();
                let _ = mesh.propose(leader, end, format!("cancel {id}"));
            }
            Fault::Finish(id) if !mesh.paused.contains(&id) => mesh.finish(id),
            Fault::Finish(_) => {}
            Fault::Recover(at) => {
                if let Some(era) = mesh.nodes.get(&at).and_then(|node| node.participant.state().era()) {
                    let _ = mesh.recover(at, era);
                }
            }
            Fault::Run(ms) => drop(mesh.run(ms)),
        }
    }
    mesh.paused.clear();
    mesh.heal();
    (1..=nodes).for_each(|id| mesh.start(id));
    mesh.run(CALM_MS);
    for _ in 0..8 {
        (1..=nodes).for_each(|id| mesh.finish(id));
        mesh.run(3_000);
    }
    mesh
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever a peer sends: nobody panics, and once it is silent all is well again.
    #[test]
    fn no_message_makes_a_participant_panic(
        messages in prop::collection::vec((1..5_u64, 1..4_u64, nonsense(), 0..500_u64), 1..40),
    ) {
        let mut mesh = Mesh::new();
        (1..4).for_each(|id| mesh.boot(id, 7));
        mesh.run(5_000);
        for (from, to, message, ms) in messages {
            mesh.say(from, to, message);
            mesh.run(ms);
        }
        mesh.run(CALM_MS);
        for _ in 0..8 {
            (1..4).for_each(|id| mesh.finish(id));
            mesh.run(3_000);
        }
        mesh.status();
        let eras: BTreeSet<_> = mesh.nodes.values().map(|node| node.participant.state().era()).collect();
        prop_assert_eq!(eras.len(), 1, "{}", mesh.story);
        prop_assert!(mesh.leader().is_some(), "{}", mesh.story);
        let leader = &mesh.nodes[&mesh.leader().unwrap()].participant;
        prop_assert!(leader.state().jobs().values().all(|job| job.phase.is_terminal()), "{}", mesh.story);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happened: once all nodes are there and see each other they are of one era with one leader, which
    /// knows every job that was ever accepted, and ends it.
    #[test]
    fn all_become_one_mesh_that_has_every_job(
        nodes in 2..6_u64,
        apart in 0..4_u64,
        faults in prop::collection::vec(fault(), 1..40),
    ) {
        let mut mesh = survive(nodes, apart, &faults);
        mesh.status();
        let eras: BTreeSet<_> = mesh.nodes.values().map(|node| node.participant.state().era()).collect();
        prop_assert_eq!(eras.len(), 1, "{}", mesh.story);
        let leader = mesh.leader();
        prop_assert!(leader.is_some(), "{}", mesh.story);
        let state = mesh.nodes[&leader.unwrap()].participant.state();
        prop_assert_eq!(state.members().len() as u64, nodes, "{}", mesh.story);
        for id in &mesh.accepted {
            let phase = state.job(job(*id)).map(|job| job.phase.is_terminal());
            prop_assert_eq!(phase, Some(true), "job {}\n{}", id, mesh.story);
        }
    }
}

/// A mesh of three that has nothing to do, its leader first.
fn idle() -> (Mesh, [u64; 3]) {
    let mut mesh = Mesh::new();
    (1..=3).for_each(|id| mesh.boot(id, 7));
    mesh.run(20_000);
    let leads = |id: &u64| mesh.nodes[id].participant.replica().leads();
    let leader = (1..=3).find(leads).unwrap();
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    (mesh, [leader, others[0], others[1]])
}

#[test]
fn an_idle_mesh_is_woken_by_its_leaders_heartbeats_alone() {
    let (mut mesh, ids) = idle();
    const SECONDS: u64 = 10;
    let mut due = [0; 3];
    for _ in 0..SECONDS * 1_000 / TICK_MS {
        for (count, id) in due.iter_mut().zip(&ids) {
            *count += u64::from(mesh.nodes[id].participant.quiet_ticks() == 1);
        }
        mesh.run(TICK_MS);
    }
    let [leader, followers @ ..] = due;
    assert!(leader <= 6 * SECONDS, "an idle leader has {leader} ticks with something to do");
    assert_eq!(followers, [0, 0], "followers have more to do than to hear their leader");
    // It has its eyes open again as soon as there is something to do.
    mesh.submit(ids[0], 1, graph(&["scan x2".to_owned()])).unwrap();
    mesh.run(TICK_MS);
    assert_eq!(mesh.nodes[&ids[0]].participant.quiet_ticks(), 1);
}

#[test]
fn whoever_sleeps_through_quiet_ticks_campaigns_no_later() {
    let campaign = |quietly: bool| {
        let (mut mesh, [leader, follower, _]) = idle();
        let begin_ms = mesh.now_ms;
        mesh.paused.insert(leader);
        let node = &mut mesh.nodes.get_mut(&follower).unwrap().participant;
        let (mut now_ms, mut last) = (begin_ms, 0);
        loop {
            let ticks = if quietly { node.quiet_ticks() } else { 1 };
            now_ms += u64::from(ticks) * TICK_MS;
            last = if node.replica().leader().is_some() { ticks } else { last };
            node.tick(Reading::at(now_ms), ticks);
            let mut asks = false;
            while let Some(action) = node.poll().unwrap() {
                asks |= matches!(action, Action::Send(_, PeerMessage::Raft { .. }));
            }
            if asks {
                return (now_ms - begin_ms, last);
            }
            assert!(now_ms < begin_ms + AWAIT_MS);
        }
    };
    let (alone_ms, _) = campaign(false);
    // And with a tick of its own, so that it has heard all that came meanwhile.
    assert_eq!(campaign(true), (alone_ms, 1));
}
