//! A mesh of two, a mesh that lost its majority, and two meshes that meet.

use std::fs;
use std::path::Path;

use floe_client::Mesh;
use floe_protocol::{JobPhase, NodeRole};
use floe_scenarios::harness::{Cluster, DEADLINE, Node, wait_until};
use floe_scenarios::reference::same_rows;
use futures::future::join_all;

use crate::cluster;
use crate::workload::{ended, flights, half_done, slow_query};

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_of_two_has_two_voters_and_either_goes_on_alone() {
    let mut cluster = cluster().nodes(2).start().await.unwrap();
    let tables = flights(cluster.dir(), "parquet");
    let mesh = cluster.status(0).await.unwrap().era.unwrap().mesh;
    for (round, gone) in [0, 1].into_iter().enumerate() {
        let status = cluster.status(1 - gone).await.unwrap();
        assert!(status.nodes.iter().all(|node| node.role != NodeRole::Learner), "{status:?}");
        let left = cluster.client(1 - gone).await.unwrap();
        let job = half_done(&left, &tables).await;
        cluster.node(gone).kill().await.unwrap();
        let found = job.collect().await.unwrap();
        same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();
        assert_eq!(cluster.leader().await.unwrap(), 1 - gone);
        cluster.node(gone).restart().await.unwrap();
        cluster.settled().await.unwrap();
        // One more era of the same mesh each time, and the one that was away knows the job too.
        let era = cluster.status(gone).await.unwrap().era.unwrap();
        assert_eq!((era.mesh, era.epoch), (mesh, round as u64 + 2));
        let known = cluster.client(gone).await.unwrap().job(job.id()).status().await.unwrap();
        assert_eq!(known.phase, JobPhase::Succeeded);
    }
}

/// Each of the two is started alone while the other is off, and accepts a job: neither is lost when they meet.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_went_on_without_each_other_become_one_again() {
    let mut cluster = cluster().nodes(2).start().await.unwrap();
    let mut jobs = Vec::new();
    for alone in [0, 1] {
        for node in cluster.nodes_mut().iter_mut().filter(|node| node.runs()) {
            node.kill().await.unwrap();
        }
        cluster.node(alone).restart().await.unwrap();
        jobs.push(one_row(&cluster.client(alone).await.unwrap(), alone).await);
    }
    cluster.node(0).restart().await.unwrap();
    cluster.settled().await.unwrap();
    for i in [0, 1] {
        let mesh = cluster.client(i).await.unwrap();
        for job in &jobs {
            assert_eq!(mesh.job(*job).status().await.unwrap().phase, JobPhase::Succeeded);
        }
    }
}

/// The node that alone accepted a job dies, and the other one, which knows nothing of it, is all that is left: the
/// driver goes on there all the same, and it is one job again when both are back.
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_goes_on_where_nobody_knows_its_job() {
    let mut cluster = cluster().nodes(2).start().await.unwrap();
    let tables = flights(cluster.dir(), "parquet");
    let mesh = cluster.client(0).await.unwrap();
    cluster.node(1).kill().await.unwrap();
    let job = half_done(&mesh, &tables).await;
    cluster.node(0).kill().await.unwrap();
    cluster.node(1).restart().await.unwrap();
    let found = job.collect().await.unwrap();
    same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();
    cluster.node(0).restart().await.unwrap();
    cluster.settled().await.unwrap();
    for i in [0, 1] {
        let jobs = cluster.client(i).await.unwrap().jobs().await.unwrap();
        let phases: Vec<_> = jobs.iter().map(|job| (job.id, job.phase.clone())).collect();
        assert_eq!(phases, [(job.id(), JobPhase::Succeeded)]);
    }
}

/// Two workers and a small machine that only votes: any one of them may go.
#[tokio::test(flavor = "multi_thread")]
async fn a_witness_votes_and_runs_nothing() {
    let mut cluster = cluster().nodes(3).witnesses(1).start().await.unwrap();
    let tables = flights(cluster.dir(), "parquet");
    let status = cluster.status(0).await.unwrap();
    assert!(status.nodes.iter().all(|node| node.role != NodeRole::Learner), "{status:?}");
    let witness = status.nodes.iter().find(|node| node.member.slots == 0).unwrap().member.id;
    let worker = usize::from(cluster.leader().await.unwrap() == 0);
    // Its driver may well be connected to it.
    let mesh = cluster.client(2).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    cluster.node(worker).kill().await.unwrap();
    let found = job.collect().await.unwrap();
    same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();
    let ran = ended(&job).await.timeline;
    assert!(!ran.is_empty() && ran.iter().all(|run| run.node != witness), "{ran:?}");
    assert_eq!(cluster.status(2).await.unwrap().era.unwrap().epoch, 1, "a majority was there all along");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_directory_and_a_backup_start_as_new_nodes_and_a_foreign_log_is_refused() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let (home, first) = (cluster.dir().to_owned(), cluster.node(0).address().to_owned());
    let args = |data: &Path| {
        let data = data.to_string_lossy().into_owned();
        let key = cluster.key_file().to_string_lossy().into_owned();
        ["--listen".into(), "/ip4/127.0.0.1/tcp/0".into(), "--join".into(), first.clone()]
            .into_iter()
            .chain(["--data-dir".to_owned(), data, "--key-file".to_owned(), key])
            .collect::<Vec<String>>()
    };
    let floe = cluster.floe().clone();
    let foreign = home.join("foreign");
    copy_files(&cluster.data_dir(2), &foreign);
    fs::copy(cluster.data_dir(1).join("log.redb"), foreign.join("log.redb")).unwrap();
    let refused = floe.run(["up".to_owned()].into_iter().chain(args(&foreign))).await.unwrap();
    let refused = refused.failure().unwrap();
    assert!(refused.contains("log.redb is that of node") && refused.contains("data directory"), "{refused}");

    // A copy gives way to the node that runs, be that the leader, and goes on as a new one.
    let leader = cluster.leader().await.unwrap();
    let mut twins = Vec::new();
    for original in [leader, (leader + 1) % 3] {
        let copy = home.join(format!("copy-{original}"));
        copy_files(&cluster.data_dir(original), &copy);
        let twin = home.join(format!("twin-{original}"));
        twins.push(Node::spawn(floe.clone(), &twin, args(&copy)).unwrap());
    }
    for twin in &mut twins {
        twin.ready().await.unwrap();
        assert!(twin.log().contains("this data directory is a copy"), "{}", twin.log());
    }
    wait_until("the copies are new nodes beside the originals", DEADLINE, async || {
        let status = cluster.status(0).await.ok()?;
        (status.nodes.iter().filter(|node| node.alive).count() == 5).then_some(())
    })
    .await
    .unwrap();
    let status = cluster.status(0).await.unwrap();
    for original in 0..3 {
        let peer = cluster.node(original).peer();
        let node = status.nodes.iter().find(|node| node.member.peer == peer).expect("it is still there");
        assert_eq!((node.alive, node.member.incarnation.number), (true, 1), "{status:?}");
    }
    drop(twins);

    // So does one whose directory is put back as it was before its last start, though it counts as many.
    let stopped = (cluster.leader().await.unwrap() + 1) % 3;
    cluster.node(stopped).kill().await.unwrap();
    let backup = home.join("backup");
    copy_files(&cluster.data_dir(stopped), &backup);
    cluster.node(stopped).restart().await.unwrap();
    let former = cluster.node(stopped).peer().to_owned();
    cluster.node(stopped).kill().await.unwrap();
    copy_files(&backup, &cluster.data_dir(stopped));
    cluster.node(stopped).restart().await.unwrap();
    assert_ne!(cluster.node(stopped).peer(), former);
    assert!(cluster.data_dir(stopped).join("former").join("log.redb").exists());
    let one = cluster.run(stopped, &["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");

    // A copy that was made since its last start lacks entries that it acknowledged. It is found out by that, or catches up
    // first, and never stays behind.
    let backup = home.join("later-backup");
    copy_files(&cluster.data_dir(stopped), &backup);
    let mesh = cluster.client(stopped).await.unwrap();
    let mut kept = Vec::new();
    for value in 0..10 {
        let job = mesh.sql(format!("SELECT {value} AS one")).await.unwrap();
        job.wait().await.unwrap();
        kept.push(job.id());
    }
    drop(mesh);
    cluster.node(stopped).kill().await.unwrap();
    copy_files(&backup, &cluster.data_dir(stopped));
    cluster.node(stopped).restart().await.unwrap();
    let mesh = cluster.client(stopped).await.unwrap();
    for (value, job) in kept.into_iter().enumerate() {
        let found = mesh.job(job).collect().await.unwrap();
        assert_eq!(found.column("one").unwrap().get(0).unwrap().try_extract::<usize>().unwrap(), value);
    }
}

/// Copies a directory's own files.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_majority_is_told_and_recovered_and_its_return_loses_nothing() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let refused = cluster.run(0, &["recover", "--yes"]).await.unwrap().failure().unwrap();
    assert!(refused.contains("the mesh is well") && refused.contains("nothing to recover"), "{refused}");

    let tables = flights(cluster.dir(), "parquet");
    let leader = cluster.leader().await.unwrap();
    let left = (leader + 1) % 3;
    let mesh = cluster.client(left).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    for gone in (0..3).filter(|i| *i != left) {
        cluster.node(gone).kill().await.unwrap();
    }
    // There is no terminal to ask at, whatever the one that is left still believes of its leader.
    let unasked = cluster.run(left, &["recover"]).await.unwrap().failure().unwrap();
    assert!(unasked.contains("--yes"), "{unasked}");
    let told = wait_until("the status says what is lost and what to type", DEADLINE, async || {
        let text = cluster.run(left, &["status"]).await.unwrap().success().unwrap();
        text.contains("floe recover").then_some(text)
    })
    .await
    .unwrap();
    assert!(told.contains("2 of the 3 nodes with a vote do not answer"), "{told}");
    for gone in (0..3).filter(|i| *i != left) {
        assert!(told.lines().last().unwrap().contains(&format!("node-{gone}")), "{told}");
    }

    let status = cluster.status(left).await.unwrap();
    assert_eq!((status.leader, status.era.unwrap().epoch), (None, 1), "nothing was changed");

    let done = cluster.run(left, &["recover", "--yes"]).await.unwrap();
    assert!(done.stderr.contains("recovered"), "{}", done.stderr);
    let again = cluster.run(left, &["recover", "--yes"]).await.unwrap().failure().unwrap();
    assert!(again.contains("nothing to recover"), "{again}");
    let found = job.collect().await.unwrap();
    same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();

    for gone in (0..3).filter(|i| *i != left) {
        cluster.node(gone).restart().await.unwrap();
    }
    cluster.settled().await.unwrap();
    for i in 0..3 {
        let status = cluster.status(i).await.unwrap();
        assert_eq!((status.nodes.len(), status.era.unwrap().epoch), (3, 2), "{status:?}");
    }
}

/// Two groups with one key that did not see each other founded a mesh each.
#[tokio::test(flavor = "multi_thread")]
async fn two_meshes_with_one_key_become_one_and_keep_their_jobs() {
    let mut older = cluster().nodes(1).start().await.unwrap();
    let mut younger = cluster().nodes(2).key_of(&older).unwrap().start().await.unwrap();
    let meshes = [older.status(0).await.unwrap().era, younger.status(0).await.unwrap().era];
    assert_ne!(meshes[0], meshes[1]);
    let jobs = [
        one_row(&older.client(0).await.unwrap(), 0).await,
        one_row(&younger.client(0).await.unwrap(), 1).await,
    ];
    let _bridge = bridge(&mut older, younger.node(1).address()).await;
    let clients = join_all([older.client(0), younger.client(0), younger.client(1)]).await;
    for mesh in clients.into_iter().map(Result::unwrap) {
        wait_until("all nodes are of the older mesh", DEADLINE, async || {
            let status = mesh.status().await.unwrap();
            let alive = status.nodes.iter().filter(|node| node.alive).count();
            (status.era == meshes[0] && status.leader.is_some() && alive == 4).then_some(())
        })
        .await
        .unwrap();
        for job in &jobs {
            assert_eq!(mesh.job(*job).status().await.unwrap().phase, JobPhase::Succeeded);
        }
    }
}

/// A node with the data of a mesh that lost its majority is not made to overrule another one.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_another_mesh_is_not_recovered_beside_one_that_is_well() {
    let mut well = cluster().nodes(1).start().await.unwrap();
    let mut other = cluster().nodes(3).key_of(&well).unwrap().start().await.unwrap();
    for i in 1..3 {
        other.node(i).kill().await.unwrap();
    }
    let _bridge = bridge(&mut well, other.node(0).address()).await;
    let refused = wait_until("recover is refused for the mesh that is well", DEADLINE, async || {
        let text = other.run(0, &["recover", "--yes"]).await.unwrap().failure().unwrap();
        text.contains("holds the data of mesh").then_some(text)
    })
    .await
    .unwrap();
    assert!(refused.contains("empty data directory"), "{refused}");
    let status = other.status(0).await.unwrap();
    assert_eq!((status.era.unwrap().epoch, status.nodes.len()), (1, 3), "nothing was changed");
}

/// A new node that knows of this cluster and of another one, and joins this one.
async fn bridge(cluster: &mut Cluster, other: &str) -> Node {
    let dir = cluster.dir().join("bridge");
    let first = cluster.node(0).address().to_owned();
    let args = [
        "--join",
        &first,
        "--join",
        other,
        "--data-dir",
        &dir.join("data").to_string_lossy(),
        "--key-file",
        &cluster.key_file().to_string_lossy(),
    ]
    .map(str::to_owned);
    let mut node = Node::spawn(cluster.floe().clone(), &dir, args).unwrap();
    node.ready().await.unwrap();
    node
}

/// Runs a query of one row to its end and yields the job's id.
async fn one_row(mesh: &Mesh, number: usize) -> floe_protocol::JobId {
    let job = mesh.sql(format!("SELECT {number} AS number")).await.unwrap();
    assert_eq!(ended(&job).await.phase, JobPhase::Succeeded);
    job.id()
}
