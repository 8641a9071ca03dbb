//! Who may come to a mesh: strangers, guests with tickets, nodes that were removed, and a key that is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use floe::enter::enter;
use floe::ticket::Ticket;
use floe_client::{InvitationSecret, MeshKey};
use floe_protocol::{Secret, frame};
use floe_scenarios::harness::{Cluster, DEADLINE, Floe, Node, wait_until};
use floe_scenarios::reference::same_rows;
use floe_transport::{Connection, Credentials, Role};
use futures::future::join_all;
use libp2p::identity::Keypair;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::workload::{flights, half_done, slow_query};
use crate::{cluster, floe};

const ANY_PORT: &str = "/ip4/127.0.0.1/tcp/0";

/// Hundreds of sockets that stand open, and dials that are refused one after the other, keep nobody out; and the log
/// tells of them in numbers, with nothing of their own text.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_take_nobodys_place_and_leave_no_word_in_the_log() {
    const MARK: &str = "in\u{1b}[31mtruder";
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let (address, port) = (cluster.node(0).address().to_owned(), cluster.node(0).port().unwrap());
    let idle = join_all((0..300).map(|number| async move {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let greeting = [MARK, "\u{13}/multistream/1.0.0\n", ""][number % 3];
        socket.write_all(greeting.as_bytes()).await.unwrap();
        socket
    }))
    .await;
    let key = fs::read_to_string(cluster.key_file()).unwrap().trim().parse().unwrap();
    let mut foreign = Credentials::new(key, Role::Node);
    foreign.polars = MARK.to_owned();
    let stranger = Credentials::new(MeshKey::generate(), Role::Driver);
    for credentials in [foreign, stranger].iter().cycle().take(40) {
        let (identity, address) = (Keypair::generate_ed25519(), address.parse().unwrap());
        let dial = Connection::dial(&identity, credentials.clone(), address, DEADLINE);
        dial.await.unwrap_err();
    }
    let joined = cluster.add().await.unwrap();
    let one = cluster.run(0, &["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
    assert_eq!(cluster.together().await.unwrap(), 0, "node {joined} is in");
    drop(idle);
    let told = wait_until("the log counts them", DEADLINE, async || {
        let log = cluster.nodes()[0].log();
        log.contains("connections in the last").then_some(log)
    });
    let log = told.await.unwrap();
    assert!(!log.contains("truder"), "a stranger's text: {log}");
    let lines = log.lines().filter(|line| line.contains("refused")).count();
    assert!(lines < 10, "{lines} lines for what was to be counted: {log}");
}

/// A ticket to this cluster's running nodes. `floe invite` names no addresses of loopback.
fn ticket(cluster: &Cluster, secret: &InvitationSecret) -> String {
    let running = cluster.nodes().iter().filter(|node| node.runs());
    let addresses = running.map(|node| node.address().parse().unwrap()).collect();
    Ticket { secret: secret.clone(), addresses }.to_string()
}

/// Another machine, as far as it has nothing of this mesh.
fn elsewhere(cluster: &Cluster, name: &str) -> Floe {
    floe(&cluster.dir().join(name))
}

fn joining<'a>(ticket: &'a str, data: &'a str) -> [&'a str; 5] {
    [ticket, "--listen", ANY_PORT, "--data-dir", data]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_admits_one_node_survives_who_made_it_and_is_worth_nothing_afterwards() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let secret = InvitationSecret::generate().unwrap();
    let hour = Duration::from_secs(3600);
    let leader = cluster.leader().await.unwrap();
    cluster.client(leader).await.unwrap().invite(&secret, 1, hour).await.unwrap();
    // Any node takes it, also when the one that made it is gone.
    cluster.node(leader).kill().await.unwrap();
    let text = ticket(&cluster, &secret);
    let key = fs::read_to_string(cluster.key_file()).unwrap();
    let guest = elsewhere(&cluster, "guest");
    let data = guest.home().join("data");
    let data = data.to_str().unwrap();
    let dir = cluster.dir().join("guest-out");
    let mut node = Node::spawn(guest.clone(), &dir, joining(&text, data)).unwrap();
    node.ready().await.unwrap();
    let kept = Path::new(data).join("mesh.key");
    assert_eq!(fs::read_to_string(&kept).unwrap(), key, "it has the mesh's own key now");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let status = guest.run(["status", "--format", "json"]).await.unwrap().success().unwrap();
    assert!(status.contains(node.peer()), "a driver on its machine needs no more: {status}");

    // Started again, with its ticket or without, it needs no second use.
    node.restart().await.unwrap();
    assert!(node.terminate().await.unwrap().success());

    let refused = |text: String, name: &'static str| {
        let floe = elsewhere(&cluster, name);
        let data = floe.home().join("data").to_string_lossy().into_owned();
        async move { floe.run(["up"].iter().chain(&joining(&text, &data))).await.unwrap().failure().unwrap() }
    };
    let unknown = ticket(&cluster, &InvitationSecret::generate().unwrap());
    let short = InvitationSecret::generate().unwrap();
    let living = (0..3).find(|i| cluster.nodes()[*i].runs()).unwrap();
    let mesh = cluster.client(living).await.unwrap();
    mesh.invite(&short, 256, Duration::from_millis(300)).await.unwrap();
    let expired = async {
        // Its time is the leader's: whoever comes too early is let in.
        let early = ticket(&cluster, &short).parse().unwrap();
        wait_until("the invitation expires", DEADLINE, async || {
            enter(&Keypair::generate_ed25519(), &early).await.is_err().then_some(())
        })
        .await
        .unwrap();
        refused(ticket(&cluster, &short), "late").await
    };
    let (used, unknown, expired) =
        futures::join!(refused(text.clone(), "second"), refused(unknown, "third"), expired);
    assert!(used.contains("used up") && used.contains("floe invite"), "{used}");
    assert!(unknown.contains("not known there"), "{unknown}");
    assert!(expired.contains("expired"), "{expired}");
    for error in [&used, &unknown, &expired] {
        assert_eq!(error.lines().filter(|line| line.starts_with("error")).count(), 1, "{error}");
    }
    let bad = mesh.invite(&InvitationSecret::generate().unwrap(), 0, hour).await.unwrap_err();
    assert!(bad.to_string().contains("not 0"), "{bad}");

    // From standard input, where nobody else sees it.
    let secret = InvitationSecret::generate().unwrap();
    mesh.invite(&secret, 1, hour).await.unwrap();
    let guest = elsewhere(&cluster, "quiet");
    let data = guest.home().join("data").to_string_lossy().into_owned();
    let mut command = guest.command(["up"].iter().chain(&joining("-", &data)));
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let line = format!("{}\n", ticket(&cluster, &secret));
    child.stdin.take().unwrap().write_all(line.as_bytes()).await.unwrap();
    let ready = wait_until("it is a member", DEADLINE, async || {
        let status = mesh.status().await.ok()?;
        (status.nodes.iter().filter(|node| node.alive).count() == 3).then_some(())
    });
    ready.await.unwrap();
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_node_ends_and_is_refused_and_what_ran_on_it_goes_on() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let tables = flights(cluster.dir(), "parquet");
    let leader = cluster.leader().await.unwrap();
    let (gone, stays) = ((leader + 1) % 3, (leader + 2) % 3);
    let mesh = cluster.client(stays).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    let name = cluster.nodes()[gone].name();
    let asked = cluster.run(stays, &["forget", &name]).await.unwrap().failure().unwrap();
    assert!(asked.contains("--yes"), "{asked}");
    let unknown = cluster.run(stays, &["forget", "attic", "--yes"]).await.unwrap().failure().unwrap();
    assert!(unknown.contains("attic") && unknown.contains(&name), "{unknown}");
    let done = cluster.run(stays, &["forget", &name, "--yes"]).await.unwrap();
    assert!(done.status.success() && done.stderr.contains("floe key rotate"), "{}", done.stderr);
    assert_eq!(cluster.node(gone).wait().await.unwrap().code(), Some(1));
    let log = cluster.nodes()[gone].log();
    // It hears so from its mesh, or from whoever does not let it in any more.
    assert!(log.contains("for good (`floe forget`)") && log.contains("empty data directory"), "{log}");
    same_rows(&job.collect().await.unwrap(), &tables.run(&slow_query()).unwrap(), false).unwrap();
    cluster.settled().await.unwrap();
    let status = cluster.status(stays).await.unwrap();
    assert_eq!((status.nodes.len(), status.era.unwrap().epoch), (2, 1), "{status:?}");

    // It knows the key still, and is not let in.
    assert!(cluster.node(gone).restart().await.is_err());
    wait_until("it ends again", DEADLINE, async || cluster.node(gone).has_ended().unwrap().then_some(()))
        .await
        .unwrap();
    assert!(cluster.nodes()[gone].log().matches("floe forget").count() >= 2);
    // The leader can be forgotten as well, and a mesh of two goes on as one.
    let (first, name) = (cluster.leader().await.unwrap(), cluster.nodes()[leader].name());
    let other = if first == leader { stays } else { leader };
    let name = if first == leader { name } else { cluster.nodes()[first].name() };
    cluster.run(other, &["forget", &name, "--yes"]).await.unwrap().success().unwrap();
    assert_eq!(cluster.node(first).wait().await.unwrap().code(), Some(1));
    cluster.settled().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_mesh_changes_its_key_and_loses_nothing() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let tables = flights(cluster.dir(), "parquet");
    // One that is away meanwhile, with a key file of its own.
    let former: MeshKey = fs::read_to_string(cluster.key_file()).unwrap().trim().parse().unwrap();
    let own = cluster.dir().join("own-key");
    fs::copy(cluster.key_file(), &own).unwrap();
    let data = cluster.dir().join("away-data").display().to_string();
    let first = cluster.node(0).address().to_owned();
    let args =
        ["--listen", ANY_PORT, "--join", &first, "--data-dir", &data, "--key-file", own.to_str().unwrap()];
    let mut away = Node::spawn(cluster.floe().clone(), &cluster.dir().join("away"), args).unwrap();
    away.ready().await.unwrap();
    away.kill().await.unwrap();

    let mesh = cluster.client(1).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    let rotate = ["key"].into_iter().map(str::to_owned).chain(cluster.args(2, &["rotate"]));
    let done = cluster.floe().run(rotate).await.unwrap();
    assert!(done.status.success() && done.stderr.contains("new key"), "{}", done.stderr);
    let key_file = cluster.key_file().to_owned();
    let key = wait_until("the key file holds the new key", DEADLINE, async || {
        let key: MeshKey = fs::read_to_string(&key_file).ok()?.trim().parse().ok()?;
        (key != former).then_some(key)
    });
    let key = key.await.unwrap();
    assert!(done.stderr.contains(&key.fingerprint()), "{}", done.stderr);
    assert_eq!(key_file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    same_rows(&job.collect().await.unwrap(), &tables.run(&slow_query()).unwrap(), false).unwrap();
    assert_eq!(cluster.status(0).await.unwrap().era.unwrap().epoch, 1);

    // A driver may still come with the former key, but no node that is not a member: it would be given the new one.
    let dial = |role| {
        let (identity, address) = (Keypair::generate_ed25519(), first.parse().unwrap());
        let credentials = Credentials::new(former.clone(), role);
        async move { Connection::dial(&identity, credentials, address, DEADLINE).await }
    };
    let refused = dial(Role::Node).await.unwrap_err().to_string();
    assert!(refused.contains("wrong mesh key"), "{refused}");
    dial(Role::Driver).await.unwrap();
    // Once more, so that the one that is away misses two changes.
    let rotate = ["key"].into_iter().map(str::to_owned).chain(cluster.args(2, &["rotate"]));
    cluster.floe().run(rotate).await.unwrap().success().unwrap();
    let between = key;
    let key = wait_until("the key file holds the key after that", DEADLINE, async || {
        let key: MeshKey = fs::read_to_string(&key_file).ok()?.trim().parse().ok()?;
        (key != between).then_some(key)
    });
    let key = key.await.unwrap();

    // Nodes come back, new ones join, and one that was away learns of it with the first key.
    cluster.node(1).restart().await.unwrap();
    cluster.add().await.unwrap();
    away.restart().await.unwrap();
    wait_until("the one that was away has the new key", DEADLINE, async || {
        (fs::read_to_string(&own).ok()?.trim().parse() == Ok(key.clone())).then_some(())
    })
    .await
    .unwrap();
    let one = cluster.run(1, &["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
    // No key was written where it could be read by others, nor into a log.
    let text = key.to_string();
    let encoded = frame::encode(&Secret(key.to_bytes())).unwrap();
    let name = frame::encode(&key.name()).unwrap();
    for node in cluster.nodes() {
        assert!(!node.log().contains(&text));
        let log = fs::read(node.dir().join("data/log.redb")).unwrap();
        let holds = |bytes: &[u8]| log.windows(bytes.len()).any(|window| window == bytes);
        assert!(holds(&name), "what was agreed on is looked for where it lies");
        assert!(!holds(&key.to_bytes()) && !holds(&encoded), "the key lies in the replicated log");
    }
    away.kill().await.unwrap();
}
