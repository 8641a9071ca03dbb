//! Who founds, who joins, who votes: golden scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;

use floe_consensus::membership::{Change, Configuration, Decision, genesis, next_change, wanted_voters};
use floe_protocol::message::MeshView;
use floe_protocol::{MeshId, NodeId};
use goldenscript::Context;
use proptest::prelude::*;

#[test]
fn scripts() {
    crate::run_scripts("membership", || Runner);
}

struct Runner;

#[derive(goldenscript::Command)]
enum ScriptCommand {
    /// What node `me` does after so long. Further arguments are views: `2=1-3` is node 2, connected to 1 and 3;
    /// `2=mesh-7` is of mesh 7, `2=mesh-7-3` of mesh 7 led by 3.
    Genesis {
        me: u64,
        ms: u64,
        #[arg(key)]
        expect: Option<usize>,
        #[arg(key, many, optional)]
        views: BTreeMap<u64, String>,
    },
    /// What the leader changes next. Nodes are numbers, joined by dashes.
    Next {
        leader: u64,
        #[arg(key)]
        members: String,
        #[arg(key)]
        voters: String,
        #[arg(key, optional)]
        learners: String,
        #[arg(key, optional)]
        dead: String,
        #[arg(key, optional)]
        lagging: String,
    },
    /// How many voters meshes of these sizes want.
    Wanted(Vec<usize>),
}

fn set(text: &str) -> BTreeSet<NodeId> {
    text.split('-').filter(|id| !id.is_empty()).map(|id| NodeId(id.parse().unwrap())).collect()
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(|id| format!("n{}", id.0)).collect::<Vec<_>>().join(" ")
}

fn view(node: u64, text: &str) -> MeshView {
    let mut view = MeshView { node: NodeId(node), mesh: None, leader: None, peers: vec![] };
    match text.strip_prefix("mesh-") {
        Some(mesh) => {
            let mut parts = mesh.split('-').map(|part| part.parse::<u64>().unwrap());
            view.mesh = parts.next().map(|id| MeshId(id.into()));
            view.leader = parts.next().map(NodeId);
        }
        None => view.peers = set(text).into_iter().chain([NodeId(node)]).collect(),
    }
    view
}

impl goldenscript::Runner for Runner {
    type Command = ScriptCommand;

    fn run(&mut self, command: &ScriptCommand, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut output = String::new();
        match command {
            ScriptCommand::Genesis { me, ms, expect, views } => {
                let views = views.iter().map(|(id, text)| (NodeId(*id), view(*id, text))).collect();
                match genesis(NodeId(*me), &views, *ms, *expect) {
                    Decision::Wait => writeln!(output, "n{me} waits")?,
                    Decision::Found => writeln!(output, "n{me} founds")?,
                    Decision::Join { through, mesh } => {
                        writeln!(output, "n{me} joins mesh {} through n{}", mesh.0, through.0)?;
                    }
                }
            }
            ScriptCommand::Next { leader, members, voters, learners, dead, lagging } => {
                let members = set(members);
                let (dead, lagging) = (set(dead), set(lagging));
                let configuration =
                    Configuration { voters: set(voters), learners: set(learners), outgoing: BTreeSet::new() };
                let alive = members.difference(&dead).copied().collect();
                let caught_up = members.difference(&lagging).copied().collect();
                match next_change(&members, &configuration, &alive, &caught_up, NodeId(*leader)) {
                    None => writeln!(output, "no change")?,
                    Some(Change { promote, demote, add_learners, remove }) => {
                        let parts = [
                            ("promote", promote),
                            ("demote", demote),
                            ("learn", add_learners),
                            ("remove", remove),
                        ];
                        let parts = parts.iter().filter(|(_, nodes)| !nodes.is_empty());
                        let parts: Vec<_> =
                            parts.map(|(what, nodes)| format!("{what} {}", names(nodes))).collect();
                        writeln!(output, "{}", parts.join(", "))?;
                    }
                }
            }
            ScriptCommand::Wanted(sizes) => {
                let pairs: Vec<_> = sizes.iter().map(|n| format!("{n}: {}", wanted_voters(*n))).collect();
                writeln!(output, "{}", pairs.join(", "))?;
            }
        }
        Ok(output)
    }
}

fn nodes() -> impl Strategy<Value = BTreeSet<NodeId>> {
    prop::collection::btree_set((1..12_u64).prop_map(NodeId), 0..11)
}

proptest! {
    /// Whatever is known, changes keep the leader's vote, end with the wanted number of voters or fewer (and
    /// those that left and cannot be spared), take only fit candidates, take no vote that a majority needs, and
    /// come to rest.
    #[test]
    fn changes_come_to_rest(members in nodes(), voters in nodes(), learners in nodes(), dead in nodes(), lagging in nodes()) {
        let leader = NodeId(1);
        let voters: BTreeSet<_> = voters.into_iter().chain([leader]).collect();
        let learners = learners.difference(&voters).copied().collect();
        let members: BTreeSet<_> = members.into_iter().chain([leader]).collect();
        let alive: BTreeSet<_> = members.difference(&dead).copied().chain([leader]).collect();
        let caught_up = members.difference(&lagging).copied().collect();
        let mut configuration = Configuration { voters, learners, outgoing: BTreeSet::new() };
        for _ in 0..4 {
            let Some(change) = next_change(&members, &configuration, &alive, &caught_up, leader) else { break };
            prop_assert!(change.promote.iter().all(|node| alive.contains(node) && caught_up.contains(node)));
            for node in change.promote { configuration.learners.remove(&node); configuration.voters.insert(node); }
            for node in change.demote { configuration.voters.remove(&node); configuration.learners.insert(node); }
            let mut gone = false;
            for node in change.remove { gone |= configuration.voters.remove(&node); configuration.learners.remove(&node); }
            let here = |node: &&NodeId| **node == leader || (alive.contains(node) && caught_up.contains(node));
            let majority = configuration.voters.iter().filter(here).count() * 2 > configuration.voters.len();
            prop_assert!(!gone || majority, "{:?}", configuration);
            configuration.learners.extend(change.add_learners);
            prop_assert!(configuration.voters.contains(&leader));
        }
        let rest = next_change(&members, &configuration, &alive, &caught_up, leader);
        prop_assert_eq!(rest, None, "{:?}", configuration);
        prop_assert!(configuration.voters.intersection(&members).count() <= wanted_voters(members.len()));
        prop_assert!(members.iter().all(|n| configuration.voters.contains(n) || configuration.learners.contains(n)));
    }
}
