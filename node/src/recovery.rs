//! When too few voters are left to elect a leader: saying what is lost, and going on without them.
//!
//! ```text
//!   floe recover ──> any node: asks all it is connected with ──> the one with the longest log: carries on alone,
//!                                                                in the mesh's next era; the others join it
//! ```
//!
//! What was accepted lies on a majority of the voters. If that majority is gone for good, the longest log that is
//! left is the best there is; should they come back after all, they hand over what only they knew.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floe_protocol::message::{Status, Survivor};
use floe_protocol::{Era, Failure, NodeId, Request, Response};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use crate::config;
use crate::mailbox::{Ask, Mailbox};

/// How long the node that carries on may take to lead.
const ELECTION_PATIENCE: Duration = Duration::from_secs(10);

/// How long a leader whose connection is gone may still be believed in.
const DISBELIEF: Duration = Duration::from_secs(5);

/// How often either is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What a mesh without a leader waits for, and what its owner can do about it.
pub fn leaderless(status: &Status) -> String {
    let silent: Vec<_> = status
        .nodes
        .iter()
        .filter(|info| status.voters.contains(&info.member.id) && !info.alive)
        .map(|info| info.member.name.as_str())
        .collect();
    let (lost, voters) = (silent.len(), status.voters.len());
    let names = silent.join(", ");
    let (subject, verb) = if lost == 1 { ("it", "does") } else { ("them", "do") };
    if let Some(rival) = &status.rival {
        let node = name_of(status, rival.node);
        let then = match rival.leader {
            Some(_) => "this node is about to join that".to_owned(),
            None => format!("that has no leader either, see `floe status` and `floe recover` there ({node})"),
        };
        format!(
            "no leader in this era: {node} is of epoch {} of mesh {}; {then}",
            rival.era.epoch, rival.era.mesh
        )
    } else if !status.nodes.iter().any(|info| info.member.id == status.node) {
        "no leader is heard of, and this node is no member any more: `floe status` at another node says who is missing"
            .to_owned()
    } else if silent.is_empty() {
        "no leader at the moment: the voters are electing one".to_owned()
    } else if voters == 2 && lost == 1 && status.voters.contains(&status.node) {
        format!(
            "no leader at the moment: {names} does not answer, and this node goes on alone in a few seconds"
        )
    } else if lost * 2 < voters {
        format!("no leader at the moment: {names} {verb} not answer, and the other voters are electing one")
    } else {
        format!(
            "no leader, and nothing is accepted: {lost} of the {voters} nodes with a vote {verb} not answer ({names}). \
             Start {subject} again; only if that is impossible for good, type `floe recover`"
        )
    }
}

/// Whether the mesh cannot decide by itself any more; if it can, the failure says why.
pub async fn needed(mailbox: &Mailbox) -> Result<(), Failure> {
    look(mailbox).await.map(drop)
}

/// Goes on without the voters that are gone: refused while the mesh can still agree by itself. Returns the node
/// whose log the mesh goes on with.
pub async fn recover(mailbox: &Mailbox) -> Result<NodeId, Failure> {
    let (chosen, era) = look(mailbox).await?;
    tracing::warn!(node = %chosen, "recovering the mesh with the longest log that is left");
    if chosen == mailbox.network().node() {
        mailbox.ask(|reply| Ask::CarryOn(era, reply)).await??;
    } else {
        let asked = mailbox.network().call(chosen, &Request::CarryOn { era }, config::CALL_TIMEOUT).await;
        match asked {
            Ok(Response::Done) => {}
            Ok(Response::Failed(failure)) => return Err(failure),
            Ok(other) => {
                return Err(Failure::internal(format!("{chosen} answered a recovery with {other:?}")));
            }
            Err(error) => return Err(unreachable(chosen, &error)),
        }
    }
    led(mailbox, chosen).await?;
    Ok(chosen)
}

/// Who is to go on, from which era: of the mesh's last era among the nodes that are left, the one with the longest
/// log.
async fn look(mailbox: &Mailbox) -> Result<(NodeId, Era), Failure> {
    let own = disbelieving(mailbox).await?;
    let Some(Era { mesh, .. }) = own.era else {
        return Err(refused("this node has no mesh yet, so there is nothing to recover".to_owned()));
    };
    let status = mailbox.ask(Ask::Status).await?;
    let (mut survivors, silent) = others(mailbox).await;
    survivors.insert(own.node, own);
    // Any of them may have the longest log, and one that is merely busy would lose what only it knows.
    if let Some(node) = silent.iter().find(|node| status.voters.contains(node)) {
        return Err(Failure::Unavailable {
            message: format!(
                "{} has a vote and is connected, but did not say within {} s what it holds: try again, or stop it first \
                 if it hangs",
                name_of(&status, *node),
                config::CALL_TIMEOUT.as_secs()
            ),
        });
    }
    if let Some(message) = needless(&status, &survivors) {
        return Err(refused(message));
    }
    let same = survivors.values().filter_map(|survivor| Some((survivor.era?, survivor)));
    let led: BTreeSet<Era> =
        survivors.values().filter(|s| s.leader.is_some()).filter_map(|s| s.era).collect();
    let same = same.filter(|(era, _)| era.mesh == mesh && !led.contains(era));
    let chosen = same.max_by_key(|(era, survivor)| (*era, survivor.log, Reverse(survivor.node)));
    let Some((era, Survivor { node: chosen, .. })) = chosen else {
        return Err(Failure::internal("this node does not know itself"));
    };
    let status = if *chosen == status.node {
        status
    } else {
        match mailbox.network().call(*chosen, &Request::Status, config::CALL_TIMEOUT).await {
            Ok(Response::Status(status)) => status,
            Ok(other) => return Err(Failure::internal(format!("{chosen} answered with {other:?}"))),
            Err(error) => return Err(unreachable(*chosen, &error)),
        }
    };
    let here = |node: &&NodeId| survivors.get(node).is_some_and(|survivor| survivor.era == Some(era));
    let voters: Vec<_> = status.voters.iter().filter(here).map(|node| name_of(&status, *node)).collect();
    if voters.len() * 2 > status.voters.len() {
        return Err(refused(format!(
            "a majority of the voters is here ({}) and elects a leader by itself; look at `floe status` in a few seconds",
            voters.join(", ")
        )));
    }
    Ok((*chosen, era))
}

/// What this node has, once it does not believe in a leader any more whose connection is gone.
async fn disbelieving(mailbox: &Mailbox) -> Result<Survivor, Failure> {
    let until = Instant::now() + DISBELIEF;
    loop {
        let own = mailbox.ask(Ask::Survivor).await?;
        let gone =
            own.leader.is_some_and(|leader| leader != own.node && !mailbox.network().is_connected(leader));
        if !gone || Instant::now() > until {
            return Ok(own);
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// What the nodes that are connected hold, and which of them did not say so.
async fn others(mailbox: &Mailbox) -> (BTreeMap<NodeId, Survivor>, Vec<NodeId>) {
    let network = mailbox.network();
    let peers = network.peers().into_iter().filter(|peer| peer.connected);
    let calls = peers.map(|peer| async move {
        match network.call(peer.node, &Request::Survivor, config::CALL_TIMEOUT).await {
            Ok(Response::Survivor(survivor)) => Ok((peer.node, survivor)),
            Ok(_) | Err(_) => Err(peer.node),
        }
    });
    let (mut survivors, mut silent) = (BTreeMap::new(), Vec::new());
    for answer in join_all(calls).await {
        match answer {
            Ok((node, survivor)) => drop(survivors.insert(node, survivor)),
            Err(node) => silent.push(node),
        }
    }
    (survivors, silent)
}

/// Why a mesh must not be recovered by force, as far as living leaders tell.
fn needless(status: &Status, survivors: &BTreeMap<NodeId, Survivor>) -> Option<String> {
    let own = status.era?;
    let led =
        survivors.values().filter_map(|survivor| Some((survivor.era?, survivor.leader?, survivor.node)));
    let (era, leader, node) = led.max_by_key(|(era, ..)| (era.mesh == own.mesh, *era))?;
    let (leader, node) = (name_of(status, leader), name_of(status, node));
    if era == own {
        Some(format!("the mesh is well: {leader} leads it, as {node} says; there is nothing to recover"))
    } else if era.mesh != own.mesh {
        Some(format!(
            "this node holds the data of mesh {}, and {node}, which it is connected with, is of mesh {}, which is \
             well. To join that one as a new node, start with an empty data directory; to go on with the other, start \
             the rest of its nodes",
            own.mesh, era.mesh
        ))
    } else if era.supersedes(&own) {
        Some(format!(
            "the mesh has been recovered already, and {node} is in its epoch {}; this node joins it by itself in a few \
             seconds",
            era.epoch
        ))
    } else {
        // A former era that still has a leader, or another of the same epoch, joins the one that this begins.
        None
    }
}

fn name_of(status: &Status, node: NodeId) -> String {
    let member = status.nodes.iter().find(|info| info.member.id == node);
    member.map_or_else(|| node.to_string(), |info| info.member.name.clone())
}

fn unreachable(chosen: NodeId, error: &dyn std::fmt::Display) -> Failure {
    let message = format!("{chosen}, which has the longest log, cannot be asked: {error}; try again");
    Failure::Unavailable { message }
}

/// Waits until the node that carries on leads.
async fn led(mailbox: &Mailbox, chosen: NodeId) -> Result<(), Failure> {
    let until = Instant::now() + ELECTION_PATIENCE;
    while Instant::now() < until {
        let own = mailbox.ask(Ask::Survivor).await?;
        let leader = if own.node == chosen {
            own.leader
        } else {
            match mailbox.network().call(chosen, &Request::Survivor, config::CALL_TIMEOUT).await {
                Ok(Response::Survivor(survivor)) => survivor.leader,
                Ok(_) | Err(_) => None,
            }
        };
        if leader == Some(chosen) {
            return Ok(());
        }
        sleep(LOOK_INTERVAL).await;
    }
    let message = format!("{chosen} carries on, but does not lead yet: look at `floe status`");
    Err(Failure::Unavailable { message })
}

fn refused(message: String) -> Failure {
    Failure::Refused { message }
}
