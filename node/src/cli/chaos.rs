//! `floe chaos`

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use floe_client::{Mesh, MeshKey};
use floe_protocol::message::{Fault, Request, Response, Status};
use floe_protocol::{Member, NodeId, NodeInfo};
use floe_transport::{Connection, Credentials, Role};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::confirm::agree;
use super::connect::ConnectArgs;
use super::interrupt::Interrupt;
use super::{End, output};
use crate::config::is_beyond_loopback;

/// How long faults may be asked for.
const TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);

/// The pause before each fault, in milliseconds: the mesh should get something done between them.
const GAP_MS: RangeInclusive<u64> = 500..=4_000;

/// How long a node stands still or is away, in milliseconds.
const PAUSE_MS: RangeInclusive<u64> = 300..=4_000;
const DOWN_MS: RangeInclusive<u64> = 500..=4_000;

/// How often nodes under a fault are looked for.
const LOOK: Duration = Duration::from_millis(200);

/// How long a node may take to be connected to and to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long the mesh may take at the end to be whole again.
const WHOLE: Duration = Duration::from_secs(60);

/// Let things go wrong with a mesh, to see it bear them: nodes crash and come back, or stand still for a while
///
/// Only nodes that were started with `floe up --allow-chaos` are hit; of these, those that listen on loopback alone, or
/// those that are named, and never more at once than the voters can bear. Jobs that run lose time and nothing else. Ctrl-C stops it; no node stays paused.
#[derive(Args, Debug)]
pub(super) struct ChaosArgs {
    /// Hit these nodes only, by name or id, wherever they listen
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// How long, as in 90s or 5min
    #[arg(long, default_value = "60s", value_parser = parse_time)]
    time: Duration,
    /// What the faults follow from; drawn and printed unless given
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Do not ask first
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: ChaosArgs) -> anyhow::Result<End> {
    let mut interrupt = Interrupt::listen()?;
    let mesh = args.connect.mesh().await?;
    let key = args.connect.key()?.context("there is no mesh key on this machine: name it with --key-file")?;
    let status = mesh.status().await?;
    let victims = victims(&args.nodes, &status)?;
    let names: BTreeSet<&str> = victims.values().map(|member| member.name.as_str()).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    ensure!(
        bearable(&status, &BTreeSet::new(), &victims).next().is_some(),
        "none of {names} can be hit: the mesh has {} voters, and bears no loss among them; start more nodes first",
        status.voters.len()
    );
    if !args.yes {
        let question = format!(
            "for {}, one or more of {names} at a time will crash and come back, or stand still; running jobs may be disturbed",
            humantime::format_duration(args.time)
        );
        tokio::select! {
            agreed = agree(&question) => if !agreed? { return Ok(End::Interrupted) },
            () = interrupt.wait() => return Ok(End::Interrupted),
        }
    }
    let seed = match args.seed {
        Some(seed) => seed,
        None => getrandom::u64().context("the system gives no random numbers")?,
    };
    output::print(format_args!("chaos with seed {seed} among {names}\n"))?;
    let mut monkey = Monkey::new(mesh, key, victims, seed);
    let stopped = tokio::select! {
        wreaked = monkey.wreak(args.time) => { wreaked?; false }
        () = interrupt.wait() => true,
    };
    tokio::select! {
        whole = monkey.mend() => whole?,
        () = interrupt.wait() => {
            output::note(format_args!("stopped without waiting: a node that is away comes back by itself"));
            return Ok(End::Interrupted);
        }
    };
    monkey.sum_up()?;
    Ok(match (monkey.under_fault.is_empty(), stopped) {
        (false, _) => End::Wrong,
        (true, true) => End::Interrupted,
        (true, false) => End::Done,
    })
}

/// Which nodes may be hit: those that are named, else those that only this machine reaches.
fn victims(named: &[String], status: &Status) -> anyhow::Result<BTreeMap<NodeId, Member>> {
    if named.is_empty() {
        let local = status.nodes.iter().filter(|node| node.alive && is_local(&node.member));
        let local: BTreeMap<_, _> = local.map(|node| (node.member.id, node.member.clone())).collect();
        ensure!(
            !local.is_empty(),
            "no node of this mesh listens on loopback only, and others are hit only if they are named; it has {}",
            list(&status.nodes)
        );
        return Ok(local);
    }
    let mut found = BTreeMap::new();
    for name in named {
        let same = |node: &&NodeInfo| node.member.name == *name || node.member.id.to_string() == *name;
        let nodes: Vec<_> = status.nodes.iter().filter(same).collect();
        // One that was wiped leaves its name to a node that is there.
        let alive: Vec<_> = nodes.iter().filter(|node| node.alive).collect();
        match (alive.as_slice(), nodes.len()) {
            ([node], _) => drop(found.insert(node.member.id, node.member.clone())),
            ([], 0) => bail!("no node is called `{name}`: the mesh has {}", list(&status.nodes)),
            ([], _) => bail!("node `{name}` is away already: name one that is alive"),
            _ => bail!("several nodes are called `{name}`: name one by its id: {}", list(&status.nodes)),
        }
    }
    Ok(found)
}

fn list(nodes: &[NodeInfo]) -> String {
    let names = nodes.iter().map(|node| format!("{} ({})", node.member.name, node.member.id));
    names.collect::<Vec<_>>().join(", ")
}

/// Whether nobody but this machine reaches the node.
fn is_local(member: &Member) -> bool {
    let beyond = |address: &String| address.parse().map_or(true, |address| is_beyond_loopback(&address));
    !member.addresses.is_empty() && !member.addresses.iter().any(beyond)
}

/// Who of the victims may be hit now, with those `away` hit already: a majority of the voters must stay, and of
/// the rest one at a time is enough.
fn bearable<'a>(
    status: &Status,
    away: &BTreeSet<NodeId>,
    victims: &'a BTreeMap<NodeId, Member>,
) -> impl Iterator<Item = &'a Member> {
    let gone = |node: &NodeInfo| !node.alive || away.contains(&node.member.id);
    let gone: BTreeSet<_> =
        status.nodes.iter().filter(|node| gone(node)).map(|node| node.member.id).collect();
    let voters: BTreeSet<_> = status.voters.iter().copied().collect();
    // Of a pair, the one that is left goes on.
    let bears = if voters.len() == 2 { 1 } else { voters.len().saturating_sub(1) / 2 };
    let spare = bears.saturating_sub(voters.intersection(&gone).count());
    let most = bears.max(1);
    // Without a leader an election is under way, which should have its peace.
    let any = status.leader.is_some() && away.len() < most;
    victims.values().filter(move |member| {
        any && !gone.contains(&member.id) && (spare > 0 || !voters.contains(&member.id))
    })
}

/// Asks nodes for faults and waits for them to come back.
struct Monkey {
    mesh: Mesh,
    credentials: Credentials,
    identity: Keypair,
    victims: BTreeMap<NodeId, Member>,
    dice: Dice,
    start: Instant,
    /// Nodes that were hit and are not back.
    under_fault: BTreeMap<NodeId, Hit>,
    faults: BTreeMap<&'static str, u64>,
    longest_away: Duration,
}

/// A fault that a node is under.
struct Hit {
    at: Instant,
    /// When it is over at the earliest.
    over: Instant,
    /// How often the node had started; a crash is over when it has once more.
    incarnation: Option<u64>,
}

impl Monkey {
    fn new(mesh: Mesh, key: MeshKey, victims: BTreeMap<NodeId, Member>, seed: u64) -> Self {
        Self {
            mesh,
            credentials: Credentials::new(key, Role::Driver),
            identity: Keypair::generate_ed25519(),
            victims,
            dice: Dice(seed),
            start: Instant::now(),
            under_fault: BTreeMap::new(),
            faults: BTreeMap::new(),
            longest_away: Duration::ZERO,
        }
    }

    /// Hits one node after the other for this long.
    async fn wreak(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = self.start + time;
        loop {
            let next = Instant::now() + Duration::from_millis(self.dice.between(GAP_MS));
            while Instant::now() < next.min(end) {
                sleep_until((Instant::now() + LOOK).min(next).min(end)).await;
                self.look().await?;
            }
            if Instant::now() >= end {
                return Ok(());
            }
            // A mesh that cannot answer now has enough to bear.
            let Some(status) = self.look().await? else { continue };
            let away = self.under_fault.keys().copied().collect();
            let mut victims: Vec<_> = bearable(&status, &away, &self.victims).cloned().collect();
            // All is drawn whatever can be hit, so that what comes later follows from the seed too.
            let (which, crash) = (self.dice.next(), self.dice.next().is_multiple_of(2));
            let fault = if crash {
                Fault::Crash { down_ms: self.dice.between(DOWN_MS) }
            } else {
                Fault::Pause { pause_ms: self.dice.between(PAUSE_MS) }
            };
            if !victims.is_empty() {
                let victim = victims.swap_remove(which as usize % victims.len());
                let leads = status.leader == Some(victim.id);
                self.hit(&victim, leads, &status, fault).await?;
            }
        }
    }

    /// Waits until the mesh is whole again: all that were hit are back, and a leader is there.
    async fn mend(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < WHOLE {
            let status = self.look().await?;
            if self.under_fault.is_empty() && status.is_some_and(|status| status.leader.is_some()) {
                return self.say(format_args!("the mesh is whole again"));
            }
            sleep(LOOK).await;
        }
        let missing = self.under_fault.keys().map(|node| self.name(*node)).collect::<Vec<_>>().join(", ");
        self.say(format_args!("the mesh is not whole after {} s: {missing} is not back", WHOLE.as_secs()))
    }

    fn sum_up(&self) -> anyhow::Result<()> {
        let count = |kind| self.faults.get(kind).copied().unwrap_or(0);
        output::print(format_args!(
            "crashes: {}, pauses: {}, in {:.0} s; the longest away {:.1} s\n",
            count("crash"),
            count("pause"),
            self.start.elapsed().as_secs_f64(),
            self.longest_away.as_secs_f64()
        ))
    }

    /// Asks a node for a fault.
    async fn hit(
        &mut self,
        victim: &Member,
        leads: bool,
        status: &Status,
        fault: Fault,
    ) -> anyhow::Result<()> {
        let known = status.nodes.iter().find(|node| node.member.id == victim.id);
        let (kind, ms, incarnation) = match fault {
            Fault::Crash { down_ms } => ("crash", down_ms, known.map(|node| node.member.incarnation.number)),
            Fault::Pause { pause_ms } => ("pause", pause_ms, None),
        };
        let addresses = known.map_or(&victim.addresses, |node| &node.member.addresses);
        let answer = self.ask(addresses, &Request::Fault(fault)).await;
        match answer {
            Some(Response::Failed(failure)) => {
                self.victims.remove(&victim.id);
                ensure!(
                    !self.victims.is_empty(),
                    "none of these nodes takes faults; {}: {failure}",
                    victim.name
                );
                self.say(format_args!("{} would not {kind}: {failure}", victim.name))
            }
            // Without an answer it may have happened all the same.
            _ => {
                let at = Instant::now();
                let over = at + Duration::from_millis(ms);
                self.under_fault.insert(victim.id, Hit { at, over, incarnation });
                *self.faults.entry(kind).or_default() += 1;
                let role = if leads { ", the leader," } else { "" };
                let seconds = ms as f64 / 1e3;
                match answer {
                    Some(_) => self.say(format_args!("{kind}: {}{role} for {seconds:.1} s", victim.name)),
                    None => self.say(format_args!("{kind}: {}{role} gave no answer", victim.name)),
                }
            }
        }
    }

    /// Asks this very node. The client would go over to another.
    async fn ask(&self, addresses: &[String], request: &Request) -> Option<Response> {
        for address in addresses.iter().filter_map(|address| address.parse::<Multiaddr>().ok()) {
            let dialled = Connection::dial(&self.identity, self.credentials.clone(), address, ANSWER).await;
            if let Ok(connection) = dialled {
                return connection.call(request, ANSWER).await.ok().map(|(response, _)| response);
            }
        }
        None
    }

    /// Asks how the mesh is, and notes who is back; nothing if it cannot answer soon.
    async fn look(&mut self) -> anyhow::Result<Option<Status>> {
        let Ok(Ok(status)) = timeout(ANSWER, self.mesh.status()).await else { return Ok(None) };
        let now = Instant::now();
        let is_back = |node: NodeId, hit: &Hit| {
            let listed = status.nodes.iter().find(|info| info.member.id == node);
            let started = |info: &NodeInfo| {
                hit.incarnation.is_none_or(|before| info.member.incarnation.number > before)
            };
            now >= hit.over && listed.is_some_and(|info| info.alive && started(info))
        };
        let back: Vec<_> = self
            .under_fault
            .iter()
            .filter(|(node, hit)| is_back(**node, hit))
            .map(|(node, _)| *node)
            .collect();
        for node in back {
            if let Some(hit) = self.under_fault.remove(&node) {
                let away = hit.at.elapsed();
                self.longest_away = self.longest_away.max(away);
                self.say(format_args!("{} is back after {:.1} s", self.name(node), away.as_secs_f64()))?;
            }
        }
        Ok(Some(status))
    }

    fn name(&self, node: NodeId) -> &str {
        self.victims.get(&node).map_or("", |member| &member.name)
    }

    fn say(&self, what: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
        output::print(format_args!("{:7.1} s  {what}\n", self.start.elapsed().as_secs_f64()))
    }
}

/// SplitMix64: small, and the same for a seed in every version, unlike a library's generator.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (from, to) = range.into_inner();
        from + self.next() % (to - from + 1)
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a time: give for example 90s or 5min"))?;
    if TIME.contains(&time) {
        return Ok(time);
    }
    let [from, to] = [TIME.start(), TIME.end()].map(|bound| humantime::format_duration(*bound));
    Err(format!("{text} is no time for chaos: give {from} to {to}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use floe_protocol::{Load, NodeRole};

    use super::*;
    use crate::fault;

    fn node(id: u64, address: &str, alive: bool) -> NodeInfo {
        let member = Member {
            id: NodeId(id),
            peer: String::new(),
            name: format!("n{id}"),
            addresses: vec![address.to_owned()],
            slots: 1,
            memory_bytes: 0,
            version: String::new(),
            incarnation: floe_protocol::Incarnation::default(),
        };
        NodeInfo { member, role: NodeRole::Voter, alive, load: Load::default() }
    }

    fn status(nodes: Vec<NodeInfo>, voters: &[u64]) -> Status {
        let voters: Vec<_> = voters.iter().copied().map(NodeId).collect();
        Status {
            node: NodeId(1),
            era: None,
            leader: voters.first().copied(),
            term: 0,
            nodes,
            voters,
            rival: None,
        }
    }

    const HERE: &str = "/ip4/127.0.0.1/tcp/4001";
    const THERE: &str = "/ip4/192.0.2.7/tcp/4001";

    #[test]
    fn only_loopback_and_named_nodes_are_hit() {
        let status = status(vec![node(1, HERE, true), node(2, THERE, true), node(3, HERE, false)], &[1]);
        let hit = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            victims(&names, &status).map(|found| found.into_keys().map(|id| id.0).collect::<Vec<_>>())
        };
        assert_eq!(hit(&[]).unwrap(), [1]);
        assert_eq!(hit(&["n2"]).unwrap(), [2]);
        assert_eq!(hit(&["0000000000000002", "n1"]).unwrap(), [1, 2]);
        let error = hit(&["n7"]).unwrap_err().to_string();
        assert!(error.contains("`n7`") && error.contains("n1 (0000000000000001), n2 ("), "{error}");
        assert!(hit(&["n3"]).unwrap_err().to_string().contains("away already"));
        let far = super::tests::status(vec![node(2, THERE, true)], &[2]);
        assert!(victims(&[], &far).unwrap_err().to_string().contains("only if they are named"));
    }

    #[test]
    fn a_majority_of_the_voters_is_never_hit() {
        let all = |count| (1..=count).map(|id| node(id, HERE, true)).collect::<Vec<_>>();
        let hittable = |status: &Status, away: &[u64]| {
            let away = away.iter().copied().map(NodeId).collect();
            bearable(status, &away, &victims(&[], status).unwrap()).map(|m| m.id.0).collect::<Vec<_>>()
        };
        assert!(hittable(&status(all(1), &[1]), &[]).is_empty());
        // The only voter of two is spared, the other is not; of a pair either may go.
        assert_eq!(hittable(&status(all(2), &[1]), &[]), [2]);
        let pair = status(all(2), &[1, 2]);
        assert_eq!(hittable(&pair, &[]), [1, 2]);
        assert!(hittable(&pair, &[2]).is_empty());
        let three = status(all(3), &[1, 2, 3]);
        assert_eq!(hittable(&three, &[]), [1, 2, 3]);
        assert!(hittable(&three, &[2]).is_empty());
        let five = status(all(7), &[1, 2, 3, 4, 5]);
        assert_eq!(hittable(&five, &[2]), [1, 3, 4, 5, 6, 7]);
        assert!(hittable(&five, &[2, 3]).is_empty());
        // One that is dead already counts, whoever killed it.
        let mut wounded = all(4);
        wounded[0].alive = false;
        assert_eq!(hittable(&status(wounded, &[1, 2, 3]), &[]), [4]);
        let mut electing = status(all(3), &[1, 2, 3]);
        electing.leader = None;
        assert!(hittable(&electing, &[]).is_empty());
    }

    #[test]
    fn what_is_asked_for_is_within_the_nodes_limits() {
        assert!(fault::PAUSE_MS.contains(PAUSE_MS.start()) && fault::PAUSE_MS.contains(PAUSE_MS.end()));
        assert!(fault::DOWN_MS.contains(DOWN_MS.start()) && fault::DOWN_MS.contains(DOWN_MS.end()));
        let mut dice = Dice(1);
        assert!((0..1_000).all(|_| PAUSE_MS.contains(&dice.between(PAUSE_MS))));
    }

    #[test]
    fn times_that_make_no_sense_are_refused() {
        assert_eq!(parse_time("2min"), Ok(Duration::from_secs(120)));
        for bad in ["", "60", "-5s", "1ms", "3weeks"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
