//! Becoming a member of a mesh, founding one where there is none, and leaving it in good order.

use std::collections::BTreeMap;
use std::time::Duration;

use floe_consensus::Command;
use floe_consensus::membership::{Decision, genesis};
use floe_consensus::rejoin::{Next, Rejoin, knows_leader};
use floe_protocol::message::MeshView;
use floe_protocol::{Failure, Member, NodeId, Request, Response};
use floe_transport::Refusal;
use futures::future::join_all;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{self, Settings};
use crate::mailbox::{Ask, Mailbox};
use crate::recovery;

/// How often a node without a mesh looks around.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Peers up to which it does so: of more, each is asked less often, so that the start of many nodes at once does not keep
/// them all busy answering each other.
const LOOKED_AT_ONCE: u32 = 8;

/// How often a node that leaves asks whether it may go.
const LEAVE_INTERVAL: Duration = Duration::from_millis(20);

/// How long a node waits for its mesh to have a leader before it says what it waits for.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);

/// How long a node that was told whom to join waits for any of them: a machine that is just starting too.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// How long one look waits for a peer's view.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes this node a member: of the mesh on its disk, else of one that a peer belongs to, else of one that
/// it founds. Returns once this node's own replicated state lists it as it is now.
///
/// A node that was told whom to join does not found a mesh of its own while none of them is there.
pub async fn form(mailbox: &Mailbox, member: &Member, settings: &Settings) -> Result<(), Failure> {
    let mut started = Instant::now();
    let (mut hinted, mut had_mesh) = (false, false);
    let mut rejoin = Rejoin::default();
    // Until it is known whether this directory has missed anything.
    let has_log = mailbox.mesh().await?.era.is_some();
    mailbox.tell(Ask::WithholdVote(has_log)).await;
    loop {
        let own = mailbox.mesh().await?;
        // A node that has just left its mesh for another looks around anew.
        if had_mesh && own.era.is_none() {
            started = Instant::now();
        }
        had_mesh = own.era.is_some();
        if own.era.is_some() {
            if !hinted && own.leader.is_none() && started.elapsed() > LEADER_PATIENCE {
                hinted = true;
                let status = mailbox.ask(Ask::Status).await?;
                tracing::warn!("{}", recovery::leaderless(&status));
                for (address, refusal) in wrong_keys(mailbox).await? {
                    tracing::warn!(
                        "{address} refused: {refusal}. If the mesh key was changed while this node was away, start it \
                         again with an invitation: it keeps what it holds"
                    );
                }
            }
            // The mesh is known; its leader learns this start's addresses and capacity.
            if announce(mailbox, member, &own, &mut rejoin).await? && listed(mailbox, member).await? {
                mailbox.tell(Ask::WithholdVote(false)).await;
                return Ok(());
            }
            sleep(look_interval(&own)).await;
            continue;
        }
        let views = views_of_peers(mailbox, &own).await;
        if views.is_empty() && !settings.join.is_empty() {
            if let Some(failure) = in_vain(mailbox, &settings.join, started.elapsed()).await? {
                return Err(failure);
            }
            sleep(look_interval(&own)).await;
            continue;
        }
        let elapsed_ms = started.elapsed().as_millis() as u64;
        match genesis(own.node, &views, &own.ended, elapsed_ms, settings.expect) {
            Decision::Join { through, .. } => join(mailbox, member, through, &views).await?,
            Decision::Found => {
                tracing::info!("no mesh found: founding one");
                match mailbox.ask(Ask::Found).await? {
                    Ok(()) if listed(mailbox, member).await? => {
                        mailbox.tell(Ask::WithholdVote(false)).await;
                        return Ok(());
                    }
                    Ok(()) => {}
                    // A mesh has spoken to this node meanwhile, and takes it in.
                    Err(failure) => tracing::info!(%failure, "not founding a mesh"),
                }
            }
            Decision::Wait => {}
        }
        sleep(look_interval(&own)).await;
    }
}

/// How long a node without a mesh waits before it asks all its peers again.
fn look_interval(own: &MeshView) -> Duration {
    let peers = u32::try_from(own.peers.len()).unwrap_or(u32::MAX);
    LOOK_INTERVAL * peers.div_ceil(LOOKED_AT_ONCE).max(1)
}

/// Keeps a node that runs a member: an older start's leave may be agreed only after it came back, and its mesh may
/// merge into another. Ends with a node that stops; or because another process runs as this node, which only a copied
/// data directory can bring about: two that vote under one name would break what the voters agree on.
pub async fn stay(mailbox: Mailbox, member: Member, settings: Settings) -> Failure {
    let stopped = || Failure::Unavailable { message: "the node stops".to_owned() };
    let mut changes = mailbox.changes();
    while changes.changed().await.is_ok() {
        let Ok(status) = mailbox.ask(Ask::Status).await else { return stopped() };
        if status.nodes.iter().any(|info| info.member == member) {
            continue;
        }
        let twin = |other: &Member| {
            other.id == member.id
                && other.incarnation != member.incarnation
                && other.incarnation.number >= member.incarnation.number
        };
        if let Some(info) = status.nodes.iter().find(|info| twin(&info.member)) {
            let message = format!(
                "another process, at {}, runs as this node: its data directory is a copy of this one",
                info.member.addresses.first().map_or("an unknown address", String::as_str)
            );
            return Failure::Superseded { message };
        }
        tracing::warn!("this node is not listed as a member any more: joining again");
        while let Err(failure) = form(&mailbox, &member, &settings).await {
            tracing::warn!(%failure, "not a member again yet");
            if is_final(&failure) {
                if matches!(failure, Failure::Refused { .. }) {
                    // One that the mesh has removed is heard until the others can agree without it.
                    let _ = timeout(config::LEAVE_PATIENCE, unneeded(&mailbox)).await;
                }
                return failure;
            }
            if mailbox.mesh().await.is_err() {
                return stopped();
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
    stopped()
}

/// Whether trying again would bring the same.
fn is_final(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused { .. } | Failure::Superseded { .. })
}

/// Leaves the mesh: what this node leads goes to another first. Returns when the others can go on without it,
/// or after [`config::LEAVE_PATIENCE`].
pub async fn leave(mailbox: &Mailbox) {
    let handed_over = async {
        let status = mailbox.ask(Ask::Status).await?;
        if status.era.is_none() || !status.nodes.iter().any(|n| n.alive && n.member.id != status.node) {
            return Ok(());
        }
        mailbox.propose(Command::Leave { node: status.node }).await?;
        unneeded(mailbox).await
    };
    match timeout(config::LEAVE_PATIENCE, handed_over).await {
        Ok(Ok(())) => tracing::info!("left the mesh"),
        Ok(Err(failure)) => tracing::warn!(%failure, "stopped without leaving the mesh"),
        Err(_) => tracing::warn!("stopped before the mesh took over"),
    }
}

/// Waits until the mesh can decide without this node.
async fn unneeded(mailbox: &Mailbox) -> Result<(), Failure> {
    while needed(mailbox).await? {
        sleep(LEAVE_INTERVAL).await;
    }
    Ok(())
}

/// Whether the mesh cannot decide without this node yet: it leads, or its vote counts. Only the leader knows, for
/// whoever is no voter any more is told nothing more.
async fn needed(mailbox: &Mailbox) -> Result<bool, Failure> {
    let own = mailbox.ask(Ask::Status).await?;
    let Some(leader) = own.leader.filter(|leader| *leader != own.node) else { return Ok(true) };
    match mailbox.network().call(leader, &Request::Status, LOOK_TIMEOUT).await {
        Ok(Response::Status(status)) => {
            Ok(status.leader != Some(leader) || status.voters.contains(&own.node))
        }
        Ok(_) | Err(_) => Ok(true),
    }
}

/// Tells the leader of this node's mesh where it is now. Returns whether that is agreed on; it may be refused for good,
/// since the mesh knows of another start of this node.
///
/// A node that had left hears nothing of its mesh any more, so it asks its peers who leads.
async fn announce(
    mailbox: &Mailbox,
    member: &Member,
    own: &MeshView,
    rejoin: &mut Rejoin,
) -> Result<bool, Failure> {
    let views = if knows_leader(own) { BTreeMap::new() } else { views_of_peers(mailbox, own).await };
    let look = rejoin.look(&member.incarnation, own, &views);
    mailbox.tell(Ask::WithholdVote(look.withholds)).await;
    let outcome = match look.next {
        Next::Tell(leader) => {
            let request = Request::Join { member: member.clone() };
            match mailbox.network().call(leader, &request, config::CALL_TIMEOUT).await {
                Ok(Response::Done) => Ok(()),
                Ok(Response::Failed(failure)) => Err(failure),
                Ok(answer) => Err(Failure::internal(format!("the leader answered {answer:?}"))),
                Err(error) => Err(Failure::internal(error)),
            }
        }
        Next::Propose => mailbox.join(member.clone()).await,
        Next::Wait => return Ok(false),
        Next::HasMissed => {
            let message = format!(
                "the mesh knows of a start of node {} that this data directory has missed: it was put back from a backup, or \
                 is a copy",
                member.name
            );
            return Err(Failure::Superseded { message });
        }
        Next::IsLedByAnother => {
            let message = format!(
                "another process runs as node {} and leads the mesh: this data directory is a copy",
                member.name
            );
            return Err(Failure::Superseded { message });
        }
    };
    match outcome {
        Ok(()) => Ok(true),
        Err(failure) if is_final(&failure) => Err(failure),
        Err(failure) => {
            tracing::debug!(%failure, "not announced to the mesh yet");
            Ok(false)
        }
    }
}

async fn views_of_peers(mailbox: &Mailbox, own: &MeshView) -> BTreeMap<NodeId, MeshView> {
    let network = mailbox.network();
    let calls = own.peers.iter().filter(|peer| **peer != own.node).map(|peer| async {
        match network.call(*peer, &Request::Mesh, LOOK_TIMEOUT).await {
            Ok(Response::Mesh(view)) => Some((*peer, view)),
            Ok(_) | Err(_) => None,
        }
    });
    join_all(calls).await.into_iter().flatten().collect()
}

/// Why none of the nodes to join will take this one in, once that is certain or it has waited long enough.
async fn in_vain(
    mailbox: &Mailbox,
    join: &[Multiaddr],
    waited: Duration,
) -> Result<Option<Failure>, Failure> {
    let refused = mailbox.ask(Ask::Refusals).await?;
    let named = join.iter().find_map(|address| {
        let refusal =
            refused.iter().find(|(from, _)| same_place(from, address)).map(|(_, refusal)| refusal)?;
        matches!(refusal, Refusal::WrongKey { .. } | Refusal::Protocol { .. } | Refusal::Polars { .. })
            .then(|| format!("{address} refused: {refusal}"))
    });
    if let Some(message) = named {
        return Ok(Some(Failure::Refused { message }));
    }
    if waited < JOIN_PATIENCE {
        return Ok(None);
    }
    let addresses: Vec<String> = join.iter().map(Multiaddr::to_string).collect();
    let message = format!(
        "nobody answered within {} s at {}; check that a node listens there and that this machine can reach it",
        JOIN_PATIENCE.as_secs(),
        addresses.join(", ")
    );
    Ok(Some(Failure::Unavailable { message }))
}

/// Who holds another key than this node.
async fn wrong_keys(mailbox: &Mailbox) -> Result<Vec<(Multiaddr, Refusal)>, Failure> {
    let mut refusals = mailbox.ask(Ask::Refusals).await?;
    refusals.retain(|(_, refusal)| matches!(refusal, Refusal::WrongKey { .. }));
    refusals.truncate(1);
    Ok(refusals)
}

/// Whether two addresses lead to the same port, whichever peer they expect there.
fn same_place(one: &Multiaddr, other: &Multiaddr) -> bool {
    let place = |address: &Multiaddr| -> Multiaddr {
        address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
    };
    place(one) == place(other)
}

/// Asks to be taken in by the mesh that `through` belongs to, and waits for what the mesh then sends.
async fn join(
    mailbox: &Mailbox,
    member: &Member,
    through: NodeId,
    views: &BTreeMap<NodeId, MeshView>,
) -> Result<(), Failure> {
    let request = Request::Join { member: member.clone() };
    let leader = views.get(&through).and_then(|view| view.leader);
    let target = leader.unwrap_or(through);
    match mailbox.network().call(target, &request, config::CALL_TIMEOUT).await {
        Ok(Response::Done) => {
            // The leader's snapshot reaches this node next, and with it the mesh's id.
            let mut changes = mailbox.changes();
            let known = async {
                while mailbox.mesh().await.is_ok_and(|own| own.era.is_none()) {
                    let _ = timeout(LOOK_INTERVAL, changes.changed()).await;
                }
            };
            // Otherwise look around again.
            let _ = timeout(config::CALL_TIMEOUT, known).await;
        }
        Ok(Response::Failed(failure)) if is_final(&failure) => return Err(failure),
        Ok(answer) => tracing::debug!(%target, ?answer, "not taken in yet"),
        Err(error) => tracing::debug!(%target, %error, "not taken in yet"),
    }
    Ok(())
}

/// Waits until this node's own state lists it with this start's addresses, and a leader is known. False if that
/// does not come about for a while, or the mesh has merged into another meanwhile.
async fn listed(mailbox: &Mailbox, member: &Member) -> Result<bool, Failure> {
    let mut changes = mailbox.changes();
    let until = Instant::now() + config::CALL_TIMEOUT;
    while Instant::now() < until {
        changes.mark_unchanged();
        let status = mailbox.ask(Ask::Status).await?;
        let listed = status.nodes.iter().any(|info| info.member == *member);
        if listed && status.leader.is_some() {
            return Ok(true);
        }
        if status.era.is_none() {
            return Ok(false);
        }
        let _ = timeout(LOOK_INTERVAL, changes.changed()).await;
    }
    Ok(false)
}
