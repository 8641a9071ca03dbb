//! Bad input gets a clear sentence and a non-zero exit, and nothing is lost.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use floe_scenarios::harness::{Cluster, DEADLINE, wait_until};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::workload::airlines;
use crate::{cluster, floe};

/// Still there, and still right.
async fn answers(cluster: &Cluster, i: usize) {
    let query = format!("SELECT COUNT(*) AS n FROM '{}'", airlines().display());
    let answer = cluster.run(i, &["sql", &query, "--format", "csv"]).await.unwrap().success().unwrap();
    assert_eq!(answer, "n\n16\n");
}

/// What every sentence on standard error must be: not empty, said once, without a backtrace or debug output.
fn sentence(stderr: &str, words: &[&str]) {
    let lower = stderr.to_lowercase();
    for word in words {
        assert!(lower.contains(&word.to_lowercase()), "`{word}` is missing: {stderr}");
    }
    for mark in ["stack backtrace", "RUST_BACKTRACE", "Custom {", "Err(", "internal error"] {
        assert!(!stderr.contains(mark), "not a sentence for a user: {stderr}");
    }
    assert!(!stderr.trim().is_empty(), "nothing was said");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_cannot_be_answered_says_why_and_harms_nothing() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let dir = cluster.dir();
    let good = airlines().display().to_string();
    let whole = fs::read(airlines()).unwrap();
    let cut = dir.join("cut.parquet");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    // The footer is whole and some of the data is not: planning succeeds and running fails.
    let rotten = dir.join("rotten.parquet");
    let mut bytes = whole.clone();
    bytes[8..200].fill(0xff);
    fs::write(&rotten, bytes).unwrap();
    let empty = dir.join("empty.csv");
    fs::write(&empty, "").unwrap();
    let (cut, rotten, empty) = (cut.display(), rotten.display(), empty.display());
    let cases: Vec<(String, Vec<&str>)> = vec![
        ("SELEC nothing".to_owned(), vec!["selec"]),
        ("".to_owned(), vec![]),
        (format!("SELECT nonsense FROM '{good}'"), vec!["nonsense"]),
        (format!("SELECT carrier + 1 FROM '{good}' WHERE"), vec![]),
        ("SELECT * FROM no_such_table".to_owned(), vec!["no_such_table"]),
        (
            "SELECT * FROM '/no/such/file.parquet'".to_owned(),
            vec!["/no/such/file.parquet", "node-0", "node-1"],
        ),
        ("SELECT * FROM '/no/such/*.csv'".to_owned(), vec!["/no/such/"]),
        (format!("SELECT * FROM '{cut}'"), vec!["cut.parquet"]),
        (format!("SELECT * FROM '{rotten}'"), vec![]),
        (format!("SELECT x FROM '{empty}'"), vec![]),
        (format!("SELECT CAST(name AS INTEGER) AS i FROM '{good}'"), vec!["conversion"]),
    ];
    for (statement, words) in &cases {
        let stderr = cluster.run(0, &["sql", statement]).await.unwrap().failure();
        let stderr = stderr.unwrap_or_else(|error| panic!("{statement}: {error:#}"));
        sentence(&stderr, words);
        if statement.contains("nonsense") {
            assert_eq!(stderr.matches("nonsense").count(), 1, "said once: {stderr}");
        }
    }
    let explained = cluster.run(1, &["explain", "SELEC nothing"]).await.unwrap().failure().unwrap();
    sentence(&explained, &["selec"]);
    answers(&cluster, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_cannot_be_written_is_said_before_anything_runs() {
    let cluster = cluster().nodes(1).start().await.unwrap();
    let query = format!("SELECT * FROM '{}'", airlines().display());
    for bad in ["/no/such/directory/out.csv", "/"] {
        let run = cluster.run(0, &["sql", &query, "--format", "csv", "-o", bad]).await.unwrap();
        sentence(&run.failure().unwrap(), &[bad]);
    }
    let run = cluster.run(0, &["sql", &query, "--format", "sculpture"]).await.unwrap();
    sentence(&run.failure().unwrap(), &["sculpture", "csv"]);
    assert!(cluster.client(0).await.unwrap().jobs().await.unwrap().is_empty(), "nothing was submitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_may_not_or_cannot_connect_is_told_why() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let floe = floe(home.path());
    let address = cluster.node(0).address().to_owned();
    let other = home.path().join("other-key");
    fs::write(&other, floe.run(["key"]).await.unwrap().success().unwrap()).unwrap();
    let other = other.display().to_string();
    let garbage = home.path().join("garbage-key");
    fs::write(&garbage, "sesame").unwrap();
    let garbage = garbage.display().to_string();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let closed = format!("/ip4/127.0.0.1/tcp/{closed}");
    let key = cluster.key_file().display().to_string();

    let cases: [(&[&str], &[&str]); 8] = [
        (&["status", "--connect", &address, "--key-file", &other], &["key"]),
        (&["status", "--connect", &address], &["key"]),
        (&["status", "--connect", &address, "--key-file", &garbage], &["garbage-key", "floe key"]),
        (&["status", "--connect", &address, "--key-file", "/no/such/key"], &["/no/such/key"]),
        // The time waited is part of the sentence.
        (&["status", "--connect", &closed, "--key-file", &key], &[&closed, " s"]),
        (&["status", "--connect", "not an address", "--key-file", &key], &["not an address"]),
        (&["status"], &["floe up"]),
        (&["cancel", "xyz", "--connect", &address, "--key-file", &key], &["xyz"]),
    ];
    // Together, since one of them waits for as long as a driver tries.
    let floe = &floe;
    let told = cases.map(|(args, words)| async move {
        let stderr = floe.run(args).await.unwrap().failure();
        sentence(&stderr.unwrap_or_else(|error| panic!("{args:?}: {error:#}")), words);
    });
    join_all(told).await;
    let unknown = cluster.run(0, &["cancel", "0123456789abcdef"]).await.unwrap().failure().unwrap();
    sentence(&unknown, &["0123456789abcdef"]);
    answers(&cluster, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_start_says_why() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let floe = floe(home.path());
    let port = cluster.node(0).port().unwrap();
    let taken = format!("/ip4/127.0.0.1/tcp/{port}");
    let busy = cluster.dir().join("node-0").join("data").display().to_string();
    let fresh = home.path().join("fresh").display().to_string();
    let cases: [(&[&str], &[&str]); 8] = [
        (&["up", "floe1nonsense"], &["ticket"]),
        (&["up", "nonsense"], &["ticket"]),
        (&["up", "--data-dir", &busy], &[&busy]),
        (&["up", "--data-dir", &fresh, "--listen", &taken], &[&port.to_string()]),
        (&["up", "--data-dir", &fresh, "--listen", "nowhere"], &["nowhere"]),
        (&["up", "--data-dir", "/proc/no/such"], &["/proc/no"]),
        (&["up", "--data-dir", &fresh, "--memory", "1KiB"], &["1KiB"]),
        (&["up", "--data-dir", &fresh, "--slots", "none"], &["slots"]),
    ];
    for (args, words) in cases {
        let run = floe.run(args).await.unwrap();
        let stderr = run.failure().unwrap_or_else(|error| panic!("{args:?}: {error:#}"));
        sentence(&stderr, words);
    }
    answers(&cluster, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_newer_data_directory_is_refused_by_file_name() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    assert!(cluster.node(0).terminate().await.unwrap().success());
    let data = cluster.dir().join("node-0").join("data");
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 4] = [
        ("node.json", |file| fs::write(file, "{").unwrap()),
        ("node.json", |file| {
            let text = fs::read_to_string(file).unwrap();
            let mut node: serde_json::Value = serde_json::from_str(&text).unwrap();
            node["format"] = 1_000_000.into();
            fs::write(file, node.to_string()).unwrap();
        }),
        ("log.redb", |file| fs::write(file, "this is no log").unwrap()),
        ("log.redb", |file| {
            let mut bytes = fs::read(file).unwrap();
            let half = bytes.len() / 2;
            bytes[..half].fill(0x5a);
            fs::write(file, bytes).unwrap();
        }),
    ];
    for (name, harm) in harms {
        let file = data.join(name);
        let intact = fs::read(&file).unwrap();
        harm(&file);
        let data = data.display().to_string();
        let run = cluster.floe().run(["up", "--data-dir", &data]).await.unwrap();
        sentence(&run.failure().unwrap(), &[name]);
        fs::write(&file, intact).unwrap();
    }
    // Refusing has changed nothing.
    cluster.node(0).restart().await.unwrap();
    answers(&cluster, 0).await;
}

/// Whoever does not speak the protocol is dropped, the first of them named in the log (the log must not be
/// flooded either, see `door.rs`), and the node goes on.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_is_dropped_and_logged() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let port = cluster.node(0).port().unwrap();
    let multistream = b"\x13/multistream/1.0.0\n";
    let greetings: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: floe\r\n\r\n",
        &[0xff; 4096],
        &[0; 4096],
        // A length that asks for more than any message has.
        &[&multistream[..], &[0xff, 0xff, 0xff, 0xff, 0x7f], &[0x41; 4096]].concat(),
        // Noise agreed upon, then anything but Noise.
        &[&multistream[..], b"\x07/noise\n", &[0xff; 70_000]].concat(),
    ];
    let dropped = greetings.map(|greeting| async move {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let ours = stream.local_addr().unwrap().port();
        // The node may hang up before it has read everything.
        let _ = stream.write_all(greeting).await;
        let dropped = timeout(DEADLINE, async {
            let mut rest = [0; 1024];
            while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        });
        dropped.await.expect("the node hangs up");
        ours
    });
    let dropped = join_all(dropped).await;
    wait_until("the node logs the first that it dropped", DEADLINE, async || {
        let log = cluster.node(0).log();
        dropped.iter().any(|port| log.contains(&format!("/tcp/{port}"))).then_some(())
    })
    .await
    .unwrap();
    answers(&cluster, 0).await;
}

/// A file that disappears or changes between two queries is not answered from what was there before.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_is_read_anew() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let file = cluster.dir().join("t.csv");
    let query = format!("SELECT SUM(x) AS s FROM '{}'", file.display());
    for (text, sum) in [("x\n1\n2\n", "3"), ("x\n10\n20\n30\n", "60")] {
        fs::write(&file, text).unwrap();
        let answer = cluster.run(0, &["sql", &query, "--format", "csv"]).await.unwrap().success().unwrap();
        assert_eq!(answer, format!("s\n{sum}\n"));
    }
    fs::remove_file(&file).unwrap();
    sentence(&cluster.run(1, &["sql", &query]).await.unwrap().failure().unwrap(), &["t.csv"]);
}
