//! Programs over files, their logs and limits, and drivers that find their mesh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use floe_scenarios::harness::{Cluster, DEADLINE, Finished, wait_until};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::{FLOE, cluster, floe};

/// An example of the Rust client, which cargo has built beside the binary under test.
fn example(name: &str) -> PathBuf {
    Path::new(FLOE).with_file_name("examples").join(name)
}

/// The executable of a driver travels to the nodes and runs its functions there.
#[tokio::test(flavor = "multi_thread")]
async fn rust_functions_run_on_the_nodes_and_a_node_that_dies_changes_nothing() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    for name in ["iris_area", "word_count", "primes"] {
        let program = example(name).display().to_string();
        cluster.run(0, &["run", &program]).await.unwrap().success().unwrap();
    }
    // The leader goes while calls are under way.
    let leader = cluster.leader().await.unwrap();
    let program = example("primes").display().to_string();
    let driver = cluster.floe().command(cluster.args((leader + 1) % 3, &["run", &program])).spawn().unwrap();
    wait_until("the session is there", DEADLINE, async || {
        let jobs = cluster.run((leader + 1) % 3, &["jobs"]).await.ok()?.success().ok()?;
        jobs.lines().any(|line| line.contains("running")).then_some(())
    })
    .await
    .unwrap();
    cluster.node(leader).kill().await.unwrap();
    let output = driver.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether a node lists so many sessions, of drivers that open one after the other: some may have ended.
fn sessions(cluster: &Cluster, node: usize, count: usize) -> impl AsyncFn() -> Option<()> {
    async move || {
        let jobs = cluster.run(node, &["jobs"]).await.ok()?.success().ok()?;
        (jobs.lines().skip(1).count() >= count).then_some(())
    }
}

/// What waits for a node that is stopped hears of it on whichever node, the next leader too, which gives it up itself.
#[tokio::test(flavor = "multi_thread")]
async fn calls_on_a_leader_that_is_stopped_go_on_elsewhere() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let program = example("primes").display().to_string();
    let through =
        |node: usize| cluster.floe().command(cluster.args(node, &["run", &program])).spawn().unwrap();
    let drivers = [1, 2].map(|other| through((leader + other) % 3));
    let seen = sessions(&cluster, (leader + 1) % 3, drivers.len());
    wait_until("both drivers have sessions", DEADLINE, seen).await.unwrap();
    cluster.node(leader).stop().unwrap();
    for driver in drivers {
        let output =
            tokio::time::timeout(DEADLINE, driver.wait_with_output()).await.expect("it ends").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    cluster.node(leader).resume().unwrap();
}

/// A node that stops in order gives back what it has not done: no call fails, and none counts as tried.
#[tokio::test(flavor = "multi_thread")]
async fn calls_on_nodes_that_are_stopped_in_order_go_on_elsewhere() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let program = example("primes").display().to_string();
    let through =
        |node: usize| cluster.floe().command(cluster.args(node, &["run", &program])).spawn().unwrap();
    let drivers = [through(0), through(1), through(2)];
    let seen = sessions(&cluster, 0, drivers.len());
    wait_until("all drivers have sessions", DEADLINE, seen).await.unwrap();
    for node in [1, 2] {
        cluster.node(node).terminate().await.unwrap();
        cluster.node(node).restart().await.unwrap();
    }
    for driver in drivers {
        let output =
            tokio::time::timeout(DEADLINE, driver.wait_with_output()).await.expect("it ends").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Writes a program that any node can run.
fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Some CSV files of a line each, with what a careless reader changes: a leading zero, a quoted comma.
fn inputs(dir: &Path, count: usize) -> String {
    let logs = dir.join("logs");
    fs::create_dir(&logs).unwrap();
    for n in 0..count {
        fs::write(logs.join(format!("{n}.csv")), format!("id,text\n00{n},\"a, b\"\n")).unwrap();
    }
    logs.join("*.csv").display().to_string()
}

async fn map(cluster: &Cluster, program: &Path, args: &[&str]) -> Finished {
    let program = program.display().to_string();
    let args: Vec<&str> = ["map", "--program", &program].into_iter().chain(args.iter().copied()).collect();
    cluster.run(0, &args).await.unwrap()
}

/// The job that was submitted last.
async fn last_job(cluster: &Cluster) -> String {
    let jobs = cluster.run(0, &["jobs"]).await.unwrap().success().unwrap();
    jobs.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap().to_owned()
}

/// Whether a process is there, be it as a zombie that its parent has yet to notice.
fn is_alive(pid: i32) -> bool {
    let gone = kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !gone && !state.contains(") Z")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_over_files_and_each_result_is_a_file() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let files = inputs(cluster.dir(), 5);
    let program = script(cluster.dir(), "clean.sh", "echo \"on $FLOE_PARTITION\" >&2; sed 's/a,/A,/'");
    let out = cluster.dir().join("cleaned");
    let out_arg = out.display().to_string();
    let finished = map(&cluster, &program, &["--in", &files, "--out", &out_arg]).await;
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(finished.stderr.contains("5 rows of 5 files"), "{}", finished.stderr);
    for n in 0..5 {
        let text = fs::read_to_string(out.join(format!("{n}.csv"))).unwrap();
        assert_eq!(text, format!("id,text\n00{n},\"A, b\"\n"), "text stays as it was written");
    }
    let job = last_job(&cluster).await;
    let logs = cluster.run(1, &["logs", &job]).await.unwrap().success().unwrap();
    for n in 0..5 {
        assert!(logs.contains(&format!("0/{n} | on {n}\n")), "{logs}");
    }
    let one = cluster.run(0, &["logs", &job, "3", "--follow"]).await.unwrap().success().unwrap();
    assert!(one.ends_with("0/3 | on 3\n") && one.lines().count() == 1, "{one}");

    // As one, typed, and as NDJSON from a program with arguments.
    let as_one = map(&cluster, Path::new("cat"), &["--in", &files, "--typed", "--format", "csv"]).await;
    assert_eq!(
        as_one.success().unwrap(),
        "id,text\n0,\"a, b\"\n1,\"a, b\"\n2,\"a, b\"\n3,\"a, b\"\n4,\"a, b\"\n"
    );
    let echo = script(cluster.dir(), "echo.sh", "cat >/dev/null; echo \"{\\\"said\\\": \\\"$1\\\"}\"");
    let said =
        map(&cluster, &echo, &["--in", &files, "--stdout", "ndjson", "--format", "csv", "--", "hello"]).await;
    assert_eq!(said.success().unwrap(), "said\nhello\nhello\nhello\nhello\nhello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_with_a_program_is_told_and_the_mesh_goes_on() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let files = inputs(cluster.dir(), 3);
    let expect = async |text: &str, args: &[&str], wanted: &[&str]| {
        let program = script(cluster.dir(), "program.sh", text);
        let args: Vec<&str> = ["--in", files.as_str()].into_iter().chain(args.iter().copied()).collect();
        let error = map(&cluster, &program, &args).await.failure().unwrap();
        for part in wanted {
            assert!(error.contains(part), "`{part}` is missing: {error}");
        }
        assert_eq!(error.lines().filter(|line| line.starts_with("error")).count(), 1, "{error}");
    };
    expect("echo broken pump >&2; exit 3", &[], &["program.sh on", ".csv", "exit status 3", "broken pump"])
        .await;
    expect("kill -SEGV $$", &[], &["signal 11"]).await;
    expect("printf '\\377\\000\\001' ", &["--stdout", "arrow"], &["Arrow"]).await;
    expect("exec sleep 600", &["--time", "300ms"], &["300 ms"]).await;
    expect("exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'", &["--memory", "64MiB"], &["memory", "64"])
        .await;
    let missing = map(&cluster, Path::new("no-such-command"), &["--in", &files]).await.failure().unwrap();
    assert!(missing.contains("no-such-command") && missing.contains("no node can run"), "{missing}");
    let unseen = map(&cluster, Path::new("cat"), &["--in", "/no/such/*.csv"]).await.failure().unwrap();
    assert!(unseen.contains("/no/such/*.csv"), "{unseen}");
    let unread = map(&cluster, Path::new("./no-such-program"), &["--in", &files]).await.failure().unwrap();
    assert!(unread.contains("no-such-program cannot be read"), "{unread}");
    // It still works.
    let finished = map(&cluster, Path::new("cat"), &["--in", &files, "--format", "csv"]).await;
    assert_eq!(finished.success().unwrap().lines().count(), 4);
}

/// A program that says its process id, and that of a child of its own, and stays.
fn staying(dir: &Path) -> PathBuf {
    let pids = dir.join("pids");
    fs::create_dir(&pids).unwrap();
    let dir = pids.display();
    script(
        pids.parent().unwrap(),
        "stay.sh",
        &format!(
            "sleep 1000 & echo $! > {dir}/$$.part; echo $$ >> {dir}/$$.part; mv {dir}/$$.part {dir}/$$; wait"
        ),
    )
}

async fn pids(dir: &Path, programs: usize) -> Vec<i32> {
    wait_until("the programs run", DEADLINE, async || {
        let files = fs::read_dir(dir.join("pids")).unwrap().map(|entry| entry.unwrap().path());
        let whole: Vec<_> = files.filter(|path| path.extension().is_none()).collect();
        let text = whole.iter().map(|path| fs::read_to_string(path).unwrap()).collect::<String>();
        let pids: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
        (whole.len() >= programs).then_some(pids)
    })
    .await
    .unwrap()
}

async fn all_gone(pids: &[i32]) {
    wait_until("the programs are gone", DEADLINE, async || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_cancel_nor_a_stop_nor_a_kill_leaves_an_orphan() {
    let mut cluster = cluster().nodes(2).start().await.unwrap();
    let files = inputs(cluster.dir(), 2);
    let program = staying(cluster.dir()).display().to_string();
    for end in ["cancel", "leave", "kill"] {
        let submit = ["map", "--program", &program, "--in", &files];
        let mut driver = cluster.floe().command(cluster.args(0, &submit)).spawn().unwrap();
        let running = pids(cluster.dir(), 2).await;
        assert_eq!(running.len(), 4);
        match end {
            "cancel" => {
                let job = last_job(&cluster).await;
                cluster.run(1, &["cancel", &job]).await.unwrap().success().unwrap();
                all_gone(&running).await;
                driver.wait().await.unwrap();
            }
            "leave" => {
                let job = last_job(&cluster).await;
                cluster.node(1).terminate().await.unwrap();
                // One of the two was its; the other goes on until it is cancelled.
                wait_until("the programs of the node that left are gone", DEADLINE, async || {
                    (running.iter().filter(|pid| !is_alive(**pid)).count() >= 2).then_some(())
                })
                .await
                .unwrap();
                cluster.run(0, &["cancel", &job]).await.unwrap().success().unwrap();
                all_gone(&running).await;
                driver.wait().await.unwrap();
                cluster.node(1).restart().await.unwrap();
                cluster.settled().await.unwrap();
            }
            _ => {
                for node in 0..2 {
                    cluster.node(node).kill().await.unwrap();
                }
                all_gone(&running).await;
                driver.kill().await.unwrap();
            }
        }
        fs::remove_dir_all(cluster.dir().join("pids")).unwrap();
        fs::create_dir(cluster.dir().join("pids")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_over_files_outlives_a_node() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let files = inputs(cluster.dir(), 12);
    let begun = cluster.dir().join("begun");
    fs::create_dir(&begun).unwrap();
    let text = format!("touch {}/$FLOE_PARTITION; sleep 0.3; cat", begun.display());
    let program = script(cluster.dir(), "slow.sh", &text).display().to_string();
    let leader = cluster.leader().await.unwrap();
    let driver = cluster
        .floe()
        .command(
            cluster
                .args((leader + 1) % 3, &["map", "--program", &program, "--in", &files, "--format", "csv"]),
        )
        .spawn()
        .unwrap();
    wait_until("some files are done", DEADLINE, async || {
        (fs::read_dir(&begun).unwrap().count() >= 4).then_some(())
    })
    .await
    .unwrap();
    cluster.node(leader).kill().await.unwrap();
    let output = driver.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let ids: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    let mut wanted: Vec<String> = (0..12).map(|n| format!("00{n}")).collect();
    // By their paths.
    wanted.sort_by_key(|id| format!("{}.csv", &id[2..]));
    assert_eq!(ids, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_run_finds_its_mesh() {
    let home = tempfile::tempdir().unwrap();
    let program =
        script(home.path(), "driver.sh", "[ -s \"$FLOE_KEY_FILE\" ] && echo \"$FLOE_CONNECT $1 $2\"; exit 7");
    let program = program.display().to_string();
    // Without a mesh it gets one for itself.
    let alone = floe(home.path()).run(["run", &program, "--an", "argument"]).await.unwrap();
    assert_eq!(alone.status.code(), Some(7), "{}", alone.stderr);
    let text = String::from_utf8(alone.stdout).unwrap();
    assert!(text.starts_with("/ip4/127.0.0.1/tcp/") && text.ends_with(" --an argument\n"), "{text}");

    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let found = cluster.run(0, &["run", &program]).await.unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    assert!(text.starts_with(cluster.node(0).address()), "{text}");
    let missing = cluster.run(0, &["run", "./no-such-driver"]).await.unwrap().failure().unwrap();
    assert!(missing.contains("no-such-driver cannot be started"), "{missing}");
}
