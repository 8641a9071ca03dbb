//! Who looks at each node directly, without going over to another: to know the leader, to measure how long there
//! was none, and to ask a certain node about a job.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use floe_client::MeshKey;
use floe_protocol::message::Status;
use floe_protocol::{Request, Response};
use floe_transport::{CallError, Connection, Credentials, Role};
use libp2p::identity::Keypair;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::locked;

/// How often a node is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long a node may take to answer: longer, it counts as away.
const ANSWER: Duration = Duration::from_secs(1);

/// How old a view may be and still count.
const FRESH: Duration = Duration::from_millis(500);

/// Looks at every node. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub(super) struct Watch {
    sight: Arc<Sight>,
    _tasks: Arc<Vec<AbortOnDropHandle<()>>>,
}

struct Sight {
    identity: Keypair,
    credentials: Credentials,
    addresses: Arc<Mutex<Vec<String>>>,
    connections: Vec<Mutex<Option<Connection>>>,
    views: Mutex<Views>,
}

struct Views {
    /// What each node said last of itself as leader.
    leading: Vec<Option<(Instant, Status)>>,
    led: Instant,
    longest: Duration,
}

impl Watch {
    /// Looks at the nodes at these addresses, which may change.
    pub(super) fn start(key: MeshKey, addresses: Arc<Mutex<Vec<String>>>) -> Result<Self> {
        let nodes = locked(&addresses).len();
        let sight = Arc::new(Sight {
            identity: Keypair::generate_ed25519(),
            credentials: Credentials::new(key, Role::Driver),
            addresses,
            connections: (0..nodes).map(|_| Mutex::default()).collect(),
            views: Mutex::new(Views {
                leading: vec![None; nodes],
                led: Instant::now(),
                longest: Duration::ZERO,
            }),
        });
        let look = |node| AbortOnDropHandle::new(tokio::spawn(sight.clone().look(node)));
        let tasks = Arc::new((0..nodes).map(look).collect());
        Ok(Self { sight, _tasks: tasks })
    }

    /// The node that says that it leads, the one of the latest term if several do, and what else it says.
    pub(super) fn leader(&self) -> Option<(usize, Status)> {
        let views = locked(&self.sight.views);
        let fresh = views.leading.iter().enumerate().filter_map(|(node, view)| {
            let (at, status) = view.as_ref()?;
            (at.elapsed() < FRESH).then_some((node, status))
        });
        fresh.max_by_key(|(_, status)| (status.era, status.term)).map(|(node, status)| (node, status.clone()))
    }

    /// The longest time in which no node said that it leads.
    pub(super) fn leaderless(&self) -> Duration {
        let views = locked(&self.sight.views);
        views.longest.max(views.led.elapsed())
    }

    /// Asks this very node; nothing if it does not answer.
    pub(super) async fn ask(&self, node: usize, request: &Request) -> Option<Response> {
        self.sight.ask(node, request).await
    }
}

impl Sight {
    async fn look(self: Arc<Self>, node: usize) {
        loop {
            if let Some(Response::Status(status)) = self.ask(node, &Request::Status).await {
                let leads = status.leader == Some(status.node);
                let now = Instant::now();
                let mut views = locked(&self.views);
                if leads {
                    views.longest = views.longest.max(now - views.led);
                    views.led = now;
                }
                views.leading[node] = leads.then_some((now, status));
            }
            sleep(LOOK).await;
        }
    }

    async fn ask(&self, node: usize, request: &Request) -> Option<Response> {
        let connection = self.connection(node).await?;
        match connection.call(request, ANSWER).await {
            Ok((response, _)) => Some(response),
            // It may only be slow, or stand still.
            Err(CallError::Timeout { .. }) => None,
            Err(_) => {
                *locked(&self.connections[node]) = None;
                None
            }
        }
    }

    async fn connection(&self, node: usize) -> Option<Connection> {
        let present = locked(&self.connections[node]).clone();
        if let Some(connection) = present.filter(Connection::is_open) {
            return Some(connection);
        }
        // Whoever is there now: a node that was wiped is another one.
        let address = locked(&self.addresses)[node].split("/p2p/").next()?.parse().ok()?;
        let dialled = Connection::dial(&self.identity, self.credentials.clone(), address, ANSWER).await;
        let connection = dialled.ok()?;
        *locked(&self.connections[node]) = Some(connection.clone());
        Some(connection)
    }
}
