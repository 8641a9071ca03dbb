//! Who founds, who joins, who votes: golden scripts.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;

use floe_consensus::membership::{
    ALONE_MS, Change, Configuration, Decision, SURVIVOR_MS, genesis, has_left, next_change, survives,
    wanted_voters,
};
use floe_protocol::message::MeshView;
use floe_protocol::{Era, MeshId, NodeId};
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
    /// `2=mesh-7` is of mesh 7 in its first era, `2=mesh-7-3` of the same led by 3, `2=mesh-7.2.4-3` in its epoch
    /// 2 begun by 4. `left=7.2.4` is an era that `me` has left; several are joined by dashes.
    Genesis {
        me: u64,
        ms: u64,
        #[arg(key)]
        expect: Option<usize>,
        #[arg(key, optional)]
        left: String,
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
    /// Whether `me`, up for so long, goes on without the others. Further arguments say how long ago it heard of
    /// whom.
    Survives {
        me: u64,
        #[arg(key)]
        voters: String,
        #[arg(key, optional)]
        outgoing: String,
        #[arg(key)]
        up: u64,
        #[arg(key, many, optional)]
        heard: BTreeMap<u64, u64>,
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

/// `7` is the first era of mesh 7, begun by 1; `7.2.4` is epoch 2 of it, begun by 4.
fn era(text: &str) -> Era {
    let mut parts = text.split('.').map(|part| part.parse::<u64>().unwrap());
    let mesh = MeshId(parts.next().unwrap().into());
    Era { mesh, epoch: parts.next().unwrap_or(1), founder: NodeId(parts.next().unwrap_or(1)) }
}

fn view(node: u64, text: &str) -> MeshView {
    let mut view = MeshView {
        node: NodeId(node),
        era: None,
        work_ms: None,
        leader: None,
        peers: vec![],
        ended: vec![],
        members: vec![],
        known: None,
    };
    match text.strip_prefix("mesh-") {
        Some(mesh) => {
            let mut parts = mesh.split('-');
            view.era = parts.next().map(era);
            view.leader = parts.next().map(|id| NodeId(id.parse().unwrap()));
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
            ScriptCommand::Genesis { me, ms, expect, left, views } => {
                let views = views.iter().map(|(id, text)| (NodeId(*id), view(*id, text))).collect();
                let left: Vec<_> = left.split('-').filter(|text| !text.is_empty()).map(era).collect();
                match genesis(NodeId(*me), &views, &left, *ms, *expect) {
                    Decision::Wait => writeln!(output, "n{me} waits")?,
                    Decision::Found => writeln!(output, "n{me} founds")?,
                    Decision::Join { through, era: Era { mesh, epoch, founder } } => {
                        let begun = format!("epoch {epoch} of mesh {}, begun by n{}", mesh.0, founder.0);
                        writeln!(output, "n{me} joins {begun}, through n{}", through.0)?;
                    }
                }
            }
            ScriptCommand::Survives { me, voters, outgoing, up, heard } => {
                let configuration =
                    Configuration { voters: set(voters), learners: BTreeSet::new(), outgoing: set(outgoing) };
                let heard = heard.iter().map(|(node, ago_ms)| (NodeId(*node), *ago_ms)).collect();
                let alone = survives(NodeId(*me), &[configuration], &heard, *up);
                writeln!(
                    output,
                    "n{me} {}",
                    if alone { "carries on alone" } else { "waits for the others" }
                )?;
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

fn some_era() -> impl Strategy<Value = Era> {
    // Few values, so that many are equal in part.
    let part = || prop_oneof![4 => 0..3_u64, 1 => Just(u64::MAX)];
    (part(), part(), part()).prop_map(|(mesh, epoch, founder)| Era {
        mesh: MeshId(mesh.into()),
        epoch,
        founder: NodeId(founder),
    })
}

proptest! {
    /// All nodes choose alike, whatever they compare in which order.
    #[test]
    fn eras_are_in_total_order(a in some_era(), b in some_era(), c in some_era()) {
        prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        prop_assert_eq!(a.cmp(&b).is_eq(), a == b);
        prop_assert!(!(a <= b && b <= c) || a <= c);
        prop_assert_eq!(a.partial_cmp(&b), Some(a.cmp(&b)));
        // What was given up for another loses against it, and never both for each other.
        prop_assert!(!a.supersedes(&b) || a > b);
        prop_assert!(!(a.supersedes(&b) && b.supersedes(&c)) || a.supersedes(&c));
        prop_assert!(!a.supersedes(&a));
    }

    /// A node goes on alone only if it votes, one other does, and that is silent: never out of three.
    #[test]
    fn only_the_rest_of_a_pair_survives(
        voters in nodes(),
        outgoing in nodes(),
        heard in prop::collection::btree_map((1..12_u64).prop_map(NodeId), 0..10_000_u64, 0..11),
        up_ms in 0..20_000_u64,
    ) {
        let me = NodeId(1);
        let configuration = Configuration { voters, learners: BTreeSet::new(), outgoing };
        let Configuration { voters, outgoing, .. } = &configuration;
        if survives(me, std::slice::from_ref(&configuration), &heard, up_ms) {
            let pair = |set: &BTreeSet<NodeId>| set.len() == 2 && set.contains(&me);
            prop_assert!(pair(voters) || pair(outgoing));
            prop_assert!(up_ms >= ALONE_MS || heard.values().any(|ago_ms| *ago_ms >= SURVIVOR_MS));
            let other = voters.union(outgoing).find(|node| heard.get(node).is_none_or(|ms| *ms >= SURVIVOR_MS));
            prop_assert!(other.is_some());
        }
        // While everybody speaks nobody does.
        let all = (1..12).map(|id| (NodeId(id), 0)).collect();
        prop_assert!(!survives(me, std::slice::from_ref(&configuration), &all, up_ms));
        // One configuration that needs no word of this node is enough to wait.
        let three = Configuration { voters: (1..4).map(NodeId).collect(), ..Configuration::default() };
        prop_assert!(!survives(me, &[configuration, three], &heard, up_ms));
    }

    /// Wherever a mesh can be joined it is, and an era that was left is not one of them.
    #[test]
    fn a_mesh_that_is_seen_is_joined_unless_it_was_left(
        eras in prop::collection::vec(prop::option::of(some_era()), 0..6),
        left in prop::collection::vec(some_era(), 0..4),
        elapsed_ms in 0..20_000_u64,
    ) {
        let views: BTreeMap<_, _> = (2..)
            .zip(&eras)
            .map(|(id, era)| (NodeId(id), MeshView { era: *era, ..view(id, "") }))
            .collect();
        let best = eras.iter().flatten().filter(|era| !has_left(&left, **era)).max();
        match genesis(NodeId(1), &views, &left, elapsed_ms, None) {
            Decision::Join { through, era } => {
                prop_assert_eq!(Some(&era), best);
                prop_assert_eq!(views[&through].era, Some(era));
            }
            other => prop_assert_eq!(best, None, "{:?}", other),
        }
    }

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
