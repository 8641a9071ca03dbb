//! How what goes wrong comes about, and how it ends.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use floe_protocol::{Era, NodeId};
use raft::Storage as _;

use super::{Copy, Event, MAX_NODES, Machine, World};
use crate::simulate::disk::{Fate, WRITE_MS};
use crate::simulate::faults::{Fault, Targets, draw};
use crate::simulate::node::Node;

/// Nodes that always stay.
const MIN_NODES: usize = 2;

/// Nodes that stay when a machine is lost for good: what was agreed on has to be on another disk.
const MIN_NODES_AFTER_LOSS: usize = 3;

impl World {
    pub(super) fn fault(&mut self) -> Result<(), String> {
        let leader = self.leader();
        let voters = leader.map(|leader| leader.participant.replica().standing().configuration.voters);
        let leader = leader.map(Node::id);
        let voters = voters.unwrap_or_default().into_iter().collect();
        let targets = Targets { running: self.running(), leader, voters };
        let Some(fault) = draw(&mut self.dice, &targets) else { return Ok(()) };
        self.tell(format!("FAULT {fault}"));
        self.tally.faults += 1;
        match fault {
            Fault::Kill { node, down_ms } => self.stop(node, down_ms),
            Fault::PowerCut { down_ms } => {
                for node in self.running() {
                    let wait_ms = self.dice.between(0..=500);
                    self.stop(node, down_ms + wait_ms);
                }
            }
            Fault::Lose { node } => self.lose(node),
            Fault::Write { node, fate, down_ms } => {
                if let Some(machine) = self.machines.get_mut(&node) {
                    machine.disk.next = fate;
                    machine.down_ms = down_ms;
                }
            }
            Fault::Slow { node, write_ms, ms } => {
                if let Some(machine) = self.machines.get_mut(&node) {
                    machine.disk.write_ms = write_ms;
                    self.after(ms, Event::Quicken(node));
                }
            }
            Fault::Pause { node, ms } => {
                if let Some(machine) = self.machines.get_mut(&node) {
                    machine.paused = true;
                    let life = machine.life;
                    self.after(ms, Event::Resume(node, life));
                }
            }
            Fault::Sleep { node, ms, told_ms } => {
                if let Some(machine) = self.machines.get_mut(&node) {
                    machine.paused = true;
                    machine.sleeps = Some((self.now_ms, told_ms));
                    let life = machine.life;
                    self.after(ms, Event::Resume(node, life));
                }
            }
            Fault::Cut { links, ms } => self.cut(links, ms),
            Fault::Weather { weather, ms } => {
                self.network.weather = weather;
                self.after(ms, Event::Brighten);
            }
            Fault::Clock { node, by_ms } => {
                if let Some(machine) = self.machines.get_mut(&node) {
                    machine.clocks.set(by_ms);
                }
            }
            Fault::LostQuorum { nodes, down_ms, recover_after_ms } => {
                for node in &nodes {
                    let wait_ms = self.dice.between(0..=3_000);
                    self.stop(*node, down_ms + wait_ms);
                }
                if let Some(node) = self.dice.pick(&self.running()) {
                    self.after(recover_after_ms, Event::Recover(node));
                }
            }
            Fault::Recover { node } => self.recover(node),
            Fault::PutBack { node, restarts, after_ms } => {
                if let Some(machine) = self.machines.get_mut(&node)
                    && let Some(of) = &machine.node
                {
                    machine.copy = Some(Copy {
                        era: of.era(),
                        voters: of.participant.replica().standing().configuration.voters.len(),
                        start: machine.start.clone(),
                        log: machine.disk.copy(),
                        held: of.held.clone(),
                    });
                    if restarts {
                        self.after(after_ms / 2, Event::Restart(node));
                    }
                    self.after(after_ms, Event::PutBack(node));
                }
            }
            Fault::Join => {
                if self.machines.len() < MAX_NODES && self.machines.values().all(Machine::has_mesh) {
                    let wait_ms = self.dice.between(0..=500);
                    self.add_machine(wait_ms);
                }
            }
            Fault::Leave { node } => return self.leave(node),
        }
        Ok(())
    }

    pub(super) fn cut(&mut self, links: BTreeSet<(NodeId, NodeId)>, ms: u64) {
        self.cuts += 1;
        let noticed_ms = self.now_ms + self.dice.between(100..=4_000);
        self.network.cut(self.cuts, links, noticed_ms);
        self.after(ms, Event::Heal(self.cuts));
    }

    /// Somebody types `floe recover` at a node: of its mesh's last era, as far as the node reaches, whoever has the
    /// longest log is told to carry on, unless that era has a leader.
    pub(super) fn recover(&mut self, id: NodeId) {
        let reached = |machine: &&Machine| !machine.paused && self.network.serves(id, machine.id);
        let reached = self.machines.values().filter(reached).filter_map(|machine| machine.node.as_deref());
        let survivors: Vec<_> = reached.map(|node| node.participant.survivor()).collect();
        let Some(own) = survivors.iter().find(|survivor| survivor.node == id).and_then(|s| s.era) else {
            return;
        };
        let led = survivors.iter().filter(|survivor| survivor.leader.is_some()).filter_map(|s| s.era);
        let led: BTreeSet<Era> = led.collect();
        if self.calm || led.iter().any(|era| era.mesh != own.mesh || *era == own || era.supersedes(&own)) {
            return;
        }
        let same = survivors.iter().filter_map(|survivor| Some((survivor.era?, survivor)));
        let same = same.filter(|(era, _)| era.mesh == own.mesh && !led.contains(era));
        let longest = same.max_by_key(|(era, survivor)| (*era, survivor.log, Reverse(survivor.node)));
        let Some((era, chosen)) = longest.map(|(era, survivor)| (era, survivor.node)) else { return };
        self.tell(format!("n{} is to carry on alone from {era}", chosen.0));
        let life = self.machines[&chosen].life;
        let wait_ms =
            if self.dice.chance(800) { self.dice.between(1..=50) } else { self.dice.between(50..=3_000) };
        self.after(wait_ms, Event::CarryOn(chosen, life, era));
    }

    pub(super) fn carry_on(&mut self, id: NodeId, life: u64, era: Era) -> Result<(), String> {
        let event = Event::CarryOn(id, life, era);
        if self.unless_paused(id, life, event).is_none() || !self.is_awake(id, life) {
            return Ok(());
        }
        let mut outcome = Ok(());
        self.with_node(id, life, |node| outcome = node.participant.recover(era))?;
        if outcome.is_ok() {
            self.recovering.insert(id);
        }
        self.tally.recovered += u64::from(outcome.is_ok());
        self.tell(format!("n{} carries on: {outcome:?}", id.0));
        Ok(())
    }

    /// A machine never comes back. Three voters bear the loss of one, so that one is all a run loses; and what an
    /// era agreed on is lost with a machine that was alone in it.
    fn lose(&mut self, id: NodeId) {
        let era = self.machines.get(&id).and_then(|machine| machine.node.as_ref()?.era());
        let bears = self.leader().is_some_and(|leader| {
            let configuration = leader.participant.replica().standing().configuration;
            leader.era() == era && configuration.voters.len() >= 3 && configuration.outgoing.is_empty()
        });
        if self.lost || !bears || self.staying() <= MIN_NODES_AFTER_LOSS {
            return;
        }
        self.lost = true;
        self.stop(id, 1);
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.gone = true;
        }
    }

    /// The copy of a node's directory is put back. Like the loss of a machine it is a fault that a run has once; and what the
    /// node has said since has to be on the disks of all that may think that they have a vote, for nobody else can know of
    /// it.
    pub(super) fn put_back(&mut self, id: NodeId) {
        let Some(copy) = self.machines.get_mut(&id).and_then(|machine| machine.copy.take()) else { return };
        let is_known = self.leader().is_some_and(|leader| {
            let standing = leader.participant.replica().standing();
            let configuration = &standing.configuration;
            let (term, agreed) =
                (standing.term, leader.participant.replica().log().parts().hard_state.commit);
            let knows = |machine: &Machine| {
                let log = machine.disk.durable();
                machine.node.as_ref().is_none_or(|node| node.era() == leader.era())
                    && log.parts().hard_state.term == term
                    && log.last_index().is_ok_and(|last| last == agreed)
            };
            let has_log = |machine: &&Machine| !machine.gone && !machine.disk.durable().is_empty();
            copy.era == leader.era()
                && copy.voters >= 3
                && configuration.voters.len() >= 3
                && configuration.outgoing.is_empty()
                && self.machines.values().filter(has_log).all(knows)
        });
        let bears = self.staying() >= MIN_NODES_AFTER_LOSS && self.machines.len() < MAX_NODES;
        if self.calm || self.lost || !is_known || !bears {
            return;
        }
        self.lost = true;
        self.tally.put_back += 1;
        self.tell(format!("n{}'s directory is put back as of start {}", id.0, copy.start.number));
        let down_ms = self.dice.between(1..=2_000);
        self.stop(id, down_ms);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        (machine.start, machine.held, machine.put_back) = (copy.start, copy.held, true);
        if let Err(error) = machine.disk.put_back(copy.log) {
            self.tell(format!("n{}'s disk is in disorder: {error}", id.0));
        }
    }

    /// Machines that are neither gone nor about to go.
    fn staying(&self) -> usize {
        let stays = |machine: &&Machine| {
            !machine.gone && !machine.node.as_ref().is_some_and(|node| node.is_leaving())
        };
        self.machines.values().filter(stays).count()
    }

    /// A node leaves, unless too few would stay.
    fn leave(&mut self, id: NodeId) -> Result<(), String> {
        if self.staying() <= MIN_NODES {
            return Ok(());
        }
        let life = self.machines[&id].life;
        self.with_node(id, life, Node::leave)
    }

    pub(super) fn calm_down(&mut self) -> Result<(), String> {
        self.calm = true;
        self.network.heal_all();
        self.tell("CALM: everything heals".to_owned());
        let ids: Vec<_> = self.machines.keys().copied().collect();
        for id in ids {
            if let Some(machine) = self.machines.get_mut(&id) {
                (machine.disk.next, machine.disk.write_ms) = (Fate::Written, WRITE_MS);
            }
            let machine = &self.machines[&id];
            if machine.paused {
                self.resume(id, machine.life)?;
            } else if machine.node.is_none() && !machine.gone {
                self.after(1, Event::Boot(id));
            }
        }
        Ok(())
    }
}
