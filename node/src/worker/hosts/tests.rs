//! Hosts with real processes: the machine's own `python3`, and small programs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use floe_protocol::function::{Format, Host as Kind, Native, Payload, Program, ProgramFile, Python};
use floe_protocol::message::FileMark;
use floe_protocol::session::Returned as CallReturned;
use floe_protocol::{BlobId, JobId, StageId, TaskId};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::*;
use crate::worker::environment::Guardian;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node's hosts, and blobs that are files of their own.
pub(super) struct Fixture {
    hosts: Hosts,
    python: Python,
    dir: TempDir,
}

struct Files(PathBuf);

impl Blobs for Files {
    fn get(&self, blob: Blob) -> BoxFuture<'_, Result<PathBuf, Failure>> {
        let path = self.0.join(blob.id.to_string());
        let missing = move || Failure::Unavailable { message: format!("no node has {}", blob.id) };
        Box::pin(async move { if path.exists() { Ok(path) } else { Err(missing()) } })
    }

    fn put(&self, bytes: Bytes) -> BoxFuture<'_, Result<Blob, Failure>> {
        let blob = Blob { id: BlobId(bytes.len() as u128), bytes: bytes.len() as u64 };
        std::fs::write(self.0.join(blob.id.to_string()), &bytes).unwrap();
        Box::pin(async move { Ok(blob) })
    }
}

impl Fixture {
    /// Nothing, with a word, where there is no Python.
    #[allow(clippy::print_stderr)]
    fn new() -> Option<Self> {
        let version = "import sys; print('%d.%d' % sys.version_info[:2])";
        let Ok(output) = Command::new("python3").args(["-c", version]).output() else {
            eprintln!("skipped: there is no python3 here");
            return None;
        };
        let version = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Some(Self::with_guard(Guard::new(), Python { version, ..Python::default() }))
    }

    fn with_guard(guard: Guard, python: Python) -> Self {
        Self::with_memory(guard, python, 2 << 30)
    }

    fn with_memory(guard: Guard, python: Python, memory_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let config = HostsConfig {
            disk: Disk::of(dir.path()).unwrap(),
            slots: 2,
            memory_bytes,
            scratch: dir.path().join("scratch"),
            logs: dir.path().join("logs"),
            environments: dir.path().join("environments"),
            python: None,
        };
        Self { hosts: Hosts::with_guard(config, Arc::new(Files(blobs)), guard), python, dir }
    }

    /// A function `f` in Python.
    fn function(&self, source: &str) -> Function {
        self.function_with(source, Limits::default())
    }

    fn function_with(&self, source: &str, limits: Limits) -> Function {
        Function {
            name: "f".to_owned(),
            host: Kind::Python(self.python.clone()),
            code: Payload::Inline(pickled(source).into()),
            limits,
        }
    }

    fn blob(&self, id: u128, content: &[u8]) -> Blob {
        let blob = Blob { id: BlobId(id), bytes: content.len() as u64 };
        std::fs::write(self.dir.path().join("blobs").join(blob.id.to_string()), content).unwrap();
        blob
    }

    pub(super) async fn run(&self, function: &Function) -> Result<Returned, Failure> {
        self.run_with(0, function, Argument::None, Vec::new()).await
    }

    pub(super) async fn run_with(
        &self,
        number: u64,
        function: &Function,
        argument: Argument,
        inputs: Vec<Bytes>,
    ) -> Result<Returned, Failure> {
        let run = self.hosts.run_task(attempt(number), function, argument, inputs);
        timeout(PATIENCE, run).await.unwrap()
    }

    /// What a function in Python returns as an object, as text.
    async fn object(&self, source: &str) -> String {
        match self.run(&self.function(source)).await.unwrap() {
            Returned::Object(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            frame @ Returned::Frame { .. } => panic!("{frame:?}"),
        }
    }

    fn log(&self, number: u64) -> String {
        let parts = self.hosts.logs().read(JobId(1), None);
        let parts = parts.iter().filter(|part| part.attempt == attempt(number));
        parts.map(|part| String::from_utf8_lossy(&part.bytes).into_owned()).collect()
    }

    fn pooled(&self) -> usize {
        self.hosts.0.idle().pool.len()
    }

    /// A directory for a test's files.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether all children are gone.
    pub(super) fn is_alone(&self) -> bool {
        self.hosts.0.family.groups().is_empty()
    }
}

fn attempt(number: u64) -> AttemptId {
    AttemptId { task: TaskId { job: JobId(1), stage: StageId(0), partition: 0 }, attempt: number }
}

/// A pickle of the function `f` that a source text defines.
fn pickled(source: &str) -> Vec<u8> {
    let expression = format!("(lambda names: (exec({source:?}, names), names['f'])[1])({{}})");
    let mut code = b"\x80\x02cbuiltins\neval\nX".to_vec();
    code.extend_from_slice(&(expression.len() as u32).to_le_bytes());
    code.extend_from_slice(expression.as_bytes());
    code.extend_from_slice(b"\x85R.");
    code
}

fn call(id: u64, argument: &str) -> Call {
    Call { id, argument: Bytes::copy_from_slice(argument.as_bytes()) }
}

pub(super) async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, met).await.unwrap();
}

/// Whether a process is there. One that ended and was not waited for is not.
fn lives(process: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    kill(Pid::from_raw(process), None).is_ok() && !status.contains(") Z ")
}

pub(super) fn file_argument(path: &Path) -> Argument {
    let path_itself =
        floe_protocol::message::FilePath { path: path.to_str().unwrap().to_owned(), glob: false };
    let found = floe_query::inspect(&[path_itself]);
    let floe_protocol::message::Inspected::Files(mut marks) = found.into_iter().next().unwrap() else {
        panic!("{} is not there", path.display())
    };
    Argument::File(marks.pop().unwrap())
}

#[tokio::test]
async fn tasks_get_their_argument_and_partitions_and_return_objects() {
    let Some(it) = Fixture::new() else { return };
    let echo = it.function("def f(a, p): return ('object', repr((a, [bytes(x) for x in p])).encode())");
    let text = |returned: Result<Returned, Failure>| match returned.unwrap() {
        Returned::Object(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        frame @ Returned::Frame { .. } => panic!("{frame:?}"),
    };
    let inputs = vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"two")];
    assert_eq!(text(it.run_with(0, &echo, Argument::None, inputs).await), "(None, [b'one', b'', b'two'])");
    let inline = Argument::Payload(Payload::Inline(Bytes::from_static(b"argument")));
    assert_eq!(text(it.run_with(0, &echo, inline, Vec::new()).await), "(b'argument', [])");
    let blob = Argument::Payload(Payload::Blob(it.blob(7, b"large")));
    assert_eq!(text(it.run_with(0, &echo, blob, Vec::new()).await), "(b'large', [])");
    let path = it.dir.path().join("file [1].txt");
    std::fs::write(&path, "text").unwrap();
    let mark = FileMark { path: path.to_str().unwrap().to_owned(), bytes: 9, mark: 0 };
    let failure = it.run_with(0, &echo, Argument::File(mark), Vec::new()).await.unwrap_err();
    assert!(matches!(failure, Failure::Blind { .. }), "{failure}");
    let path = it.dir.path().join("file.txt");
    std::fs::write(&path, "text").unwrap();
    let file = it.run_with(0, &echo, file_argument(&path), Vec::new()).await;
    assert_eq!(text(file), format!("('{}', [])", path.display()));
    let large = it.function("def f(a, p): return ('object', bytes(p[0])[::-1])");
    let input: Bytes = (0..20_000_000u32).map(|n| n as u8).collect();
    let returned = it.run_with(0, &large, Argument::None, vec![input.clone()]).await.unwrap();
    let reversed: Vec<u8> = input.iter().rev().copied().collect();
    assert!(returned == Returned::Object(reversed.into()));
}

#[tokio::test]
async fn code_travels_as_a_blob_too() {
    let Some(it) = Fixture::new() else { return };
    let mut function = it.function("");
    function.code = Payload::Blob(it.blob(3, &pickled("def f(a, p): return ('object', b'from a blob')")));
    assert_eq!(it.run(&function).await, Ok(Returned::Object(Bytes::from_static(b"from a blob"))));
    function.code = Payload::Blob(Blob { id: BlobId(4), bytes: 9 });
    let failure = it.run(&function).await.unwrap_err();
    assert_eq!(failure.to_string(), format!("no node has {}", BlobId(4)));
}

#[tokio::test]
async fn hosts_are_used_again() {
    let Some(it) = Fixture::new() else { return };
    let pid = "import os\ndef f(a, p): return ('object', str(os.getpid()).encode())";
    let first = it.object(pid).await;
    assert_eq!(it.object(pid).await, first);
    let other = it.object(&pid.replace("f(a, p)", "f(*_)")).await;
    assert_eq!(other, first, "for other code too");
    let mut function = it.function(pid);
    function.host = Kind::Python(Python {
        env: BTreeMap::from([("COLOUR".to_owned(), "blue".to_owned())]),
        ..it.python.clone()
    });
    let returned = it.run(&function).await.unwrap();
    assert_ne!(returned, Returned::Object(first.clone().into()), "not for another environment");
    assert_eq!(it.pooled(), 2);
    it.hosts.shutdown().await;
    assert!(!lives(first.parse().unwrap()));
    let failure = it.run(&function).await.unwrap_err();
    assert!(matches!(failure, Failure::Unavailable { .. }), "{failure}");
}

/// A function in Python that runs in hosts of its own.
fn of_kind(it: &Fixture, kind: usize, source: &str) -> Function {
    let env = BTreeMap::from([("KIND".to_owned(), kind.to_string())]);
    Function { host: Kind::Python(Python { env, ..it.python.clone() }), ..it.function(source) }
}

#[tokio::test]
async fn functions_of_several_kinds_by_turns_find_their_hosts_again() {
    let Some(it) = Fixture::new() else { return };
    let pid = "import os\ndef f(a, p): return ('object', str(os.getpid()).encode())";
    let mut rounds = Vec::new();
    for _ in 0..2 {
        let mut round = Vec::new();
        for kind in 0..pool::KINDS_KEPT {
            round.push(it.run(&of_kind(&it, kind, pid)).await.unwrap());
        }
        rounds.push(round);
    }
    assert_eq!(rounds[0], rounds[1]);
    assert_eq!(it.pooled(), pool::KINDS_KEPT);
    assert!(!it.hosts.are_many(), "idle hosts are in nobody's way");
    // One more makes the one go that was not used for longest.
    it.run(&of_kind(&it, pool::KINDS_KEPT, pid)).await.unwrap();
    assert_eq!(it.pooled(), pool::KINDS_KEPT);
    assert_ne!(it.run(&of_kind(&it, 0, pid)).await.unwrap(), rounds[0][0]);
}

#[tokio::test]
async fn idle_hosts_hold_no_more_memory_than_their_part() {
    let Some(it) = Fixture::new() else { return };
    let it = Fixture::with_memory(Guard::new(), it.python, 400 << 20);
    let holds = "import json\ndef f(*_):\n    json.held = b'x' * (80 << 20)\n    return ('object', b'')";
    for (kind, pooled) in [(0, 1), (1, 2), (2, 2)] {
        it.run(&of_kind(&it, kind, holds)).await.unwrap();
        assert_eq!(it.pooled(), pooled, "each of them is less than half of what one may hold");
    }
}

#[tokio::test]
async fn the_environment_is_the_functions() {
    let Some(mut it) = Fixture::new() else { return };
    it.python.env = BTreeMap::from([
        ("COLOUR".to_owned(), "blue".to_owned()),
        ("OMP_NUM_THREADS".to_owned(), "7".to_owned()),
    ]);
    let source = "import os, sys\n\
        def f(a, p):\n    \
            floe = [name for name in os.environ if name.startswith('FLOE_')]\n    \
            e = os.environ\n    \
            where = os.path.basename(os.getcwd()), os.listdir('.')\n    \
            state = sys.modules['__main__'].__dict__.get('serve'), sys.stdin.read(), os.nice(0)\n    \
            return ('object', repr((e['COLOUR'], e['OMP_NUM_THREADS'], floe, where, state)).encode())";
    assert_eq!(it.object(source).await, "('blue', '7', ['FLOE_HOST_ID'], ('work', []), (None, '', 5))");
    let threads =
        it.object("import os\ndef f(*_): return ('object', os.environ['POLARS_MAX_THREADS'].encode())");
    assert_eq!(threads.await, it.hosts.0.threads.to_string());
}

#[tokio::test]
async fn exceptions_come_with_their_traceback_and_pickle_and_leave_the_host_warm() {
    let Some(it) = Fixture::new() else { return };
    let source = "def g(x):\n    raise ValueError('bad\\nvalue', x)\ndef f(a, p):\n    g(3)";
    let failure = it.run(&it.function(source)).await.unwrap_err();
    let Failure::Exception { name, message, traceback, exception } = failure else { panic!("{failure:?}") };
    assert_eq!((name.as_str(), message.as_str()), ("f", "ValueError: ('bad\\nvalue', 3)"));
    let lines: Vec<_> = traceback.lines().map(str::trim).collect();
    assert_eq!(lines[0], "Traceback (most recent call last):");
    assert!(lines[1].contains("in f") && lines.iter().any(|line| line.contains("in g")), "{traceback}");
    assert!(!traceback.contains("host.py"), "{traceback}");
    assert!(exception.windows(10).any(|bytes| bytes == b"ValueError"));
    let cases = [
        ("import sys\ndef f(*_): sys.exit(3)", "SystemExit: 3"),
        ("def f(*_): raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(a=0, b=0): return 1 + f()", "RecursionError: maximum recursion depth exceeded"),
        ("def f(*_): return 7", "TypeError: a task must put out a frame or an object, not int"),
        ("f = 7", "TypeError: the code of f is <class 'int'>, which cannot be called"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def f(*_): raise UserWarning('one\\ntwo' * 9000)", "UserWarning: one two"),
        (
            "class E(Exception):\n    def __str__(self): raise KeyError\ndef f(*_): raise E",
            "E: (its text cannot be had: KeyError)",
        ),
    ];
    for (source, expected) in cases {
        let failure = it.run(&it.function(source)).await.unwrap_err();
        let Failure::Exception { message, traceback, exception, .. } = &failure else {
            panic!("{failure:?}")
        };
        assert!(message.starts_with(expected) || message.contains(&format!(".{expected}")), "{message}");
        assert!(message.len() <= 4096 && traceback.len() <= 16 << 10 && exception.len() <= 24 << 10);
        // Again: code that cannot be loaded says so each time.
        let again = it.run(&it.function(source)).await.unwrap_err();
        assert!(matches!(&again, Failure::Exception { message: text, .. } if text == message), "{again:?}");
    }
    assert_eq!(it.pooled(), 1);
    assert_eq!(it.hosts.0.family.groups().len(), 1);
}

#[tokio::test]
async fn a_process_that_ends_is_a_crash_that_says_how() {
    let Some(it) = Fixture::new() else { return };
    let crash = |source: &'static str| async {
        match it.run(&it.function(source)).await.unwrap_err() {
            Failure::Crashed { how, output, .. } => (how, output),
            failure => panic!("{failure:?}"),
        }
    };
    let segfault =
        "import os, signal\ndef f(*_):\n    print('so far')\n    os.kill(os.getpid(), signal.SIGSEGV)";
    let (how, output) = crash(segfault).await;
    assert_eq!(how, "was killed by signal 11 (SIGSEGV)");
    assert!(output.starts_with("; the last it printed was:\nso far\nFatal Python error"), "{output}");
    let (how, output) = crash("import os\ndef f(*_): os._exit(3)").await;
    assert_eq!((how.as_str(), output.as_str()), ("ended with exit status 3", ""));
    let kill = "import os\ndef f(*_): os.kill(os.getpid(), 9)";
    assert_eq!(crash(kill).await.0, "was killed by signal 9 (SIGKILL), perhaps because memory ran out");
    let rubbish = "import os\n\
        def f(*_):\n    \
            for fd in range(3, 20):\n        \
                try: os.write(fd, b'print(\\xff)\\n' * 10)\n        \
                except OSError: pass\n    \
            while True: pass";
    let (how, _) = crash(rubbish).await;
    assert!(
        how.starts_with("did not keep to the host protocol: instead of a message it wrote \"print(\\xff)"),
        "{how}"
    );
    let frame = "def f(*_): return ('frame', b'rubbish', 3)";
    let (how, _) = crash(frame).await;
    assert!(how.starts_with("did not keep to the host protocol: its frame cannot be read"), "{how}");
    assert_eq!(it.pooled(), 0);
    until(|| it.is_alone()).await;
    let left: Vec<_> = std::fs::read_dir(it.dir.path().join("scratch")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn limits_end_a_function_with_what_it_took() {
    let Some(it) = Fixture::new() else { return };
    let limits = Limits { memory_bytes: Some(200 << 20), time_ms: None };
    let fill = "import time\ndef f(*_):\n    x = bytearray(300 << 20)\n    time.sleep(60)";
    let failure = it.run(&it.function_with(fill, limits)).await.unwrap_err();
    let Failure::Limit { what, message, .. } = &failure else { panic!("{failure:?}") };
    assert_eq!(what, "memory");
    assert!(
        message.starts_with("it took ") && message.ends_with("MiB of memory, and may take 200 MiB"),
        "{message}"
    );
    let children = "import os, time\n\
        def f(*_):\n    \
            if os.fork() == 0 or os.fork() == 0:\n        \
                x = bytearray(120 << 20)\n    \
            time.sleep(60)";
    let failure = it.run(&it.function_with(children, limits)).await.unwrap_err();
    assert!(matches!(&failure, Failure::Limit { what, .. } if what == "memory"), "{failure:?}");
    let shared = "import os, time\n\
        def f(*_):\n    \
            x = bytearray(120 << 20)\n    \
            if os.fork() == 0: time.sleep(60)\n    \
            time.sleep(0.5)\n    \
            return ('object', b'shared')";
    let returned = it.run(&it.function_with(shared, limits)).await;
    assert_eq!(returned, Ok(Returned::Object(Bytes::from_static(b"shared"))), "memory is counted once");
    let limits = Limits { memory_bytes: None, time_ms: Some(100) };
    let hang = "def f(*_):\n    while True: pass";
    let failure = it.run(&it.function_with(hang, limits)).await.unwrap_err();
    assert_eq!(failure.to_string(), "f was stopped: it ran for more than the 100 ms it may take");
    let limits = Limits { memory_bytes: Some(100 << 20), time_ms: None };
    let large =
        "def f(*_): return ('object', memoryview(bytearray(1 << 20)).cast('B') if 0 else b'x' * (101 << 20))";
    let failure = it.run(&it.function_with(large, limits)).await.unwrap_err();
    assert!(matches!(&failure, Failure::Limit { what, .. } if what == "memory"), "{failure:?}");
}

#[tokio::test]
async fn prints_are_the_attempts_own() {
    let Some(it) = Fixture::new() else { return };
    let source = "import os, sys\n\
        def f(a, p):\n    \
            print('out', bytes(a).decode(), end='')\n    \
            sys.stdout.flush()\n    \
            sys.stderr.write(' err ')\n    \
            os.system('echo child')\n    \
            print('last', end='')\n    \
            return ('object', b'')";
    let function = it.function(source);
    for number in 0..20 {
        let argument = Argument::Payload(Payload::Inline(number.to_string().into()));
        it.run_with(number, &function, argument, Vec::new()).await.unwrap();
        assert_eq!(it.log(number), format!("out {number} err child\nlast"));
    }
    let chatty =
        it.function("def f(*_):\n    for n in range(100000): print('x' * 100)\n    return ('object', b'')");
    it.run_with(50, &chatty, Argument::None, Vec::new()).await.unwrap();
    assert!(it.log(50).ends_with("bytes were not kept]\n"));
}

#[tokio::test]
async fn giving_up_a_run_kills_the_whole_group() {
    let Some(it) = Fixture::new() else { return };
    let source = "import os, subprocess, sys, time\n\
        def f(*_):\n    \
            child = subprocess.Popen(['sleep', '600'])\n    \
            stray = subprocess.Popen(['sleep', '600'], start_new_session=True)\n    \
            print(os.getpid(), child.pid, stray.pid)\n    \
            time.sleep(600)";
    let function = it.function(source);
    let processes =
        || -> Vec<i32> { it.log(0).split_whitespace().map_while(|process| process.parse().ok()).collect() };
    let run = it.hosts.run_task(attempt(0), &function, Argument::None, Vec::new());
    tokio::select! {
        outcome = run => panic!("{outcome:?}"),
        () = until(|| processes().len() == 3) => {}
    }
    let processes = processes();
    until(|| processes.iter().all(|process| !lives(*process))).await;
    assert_eq!((it.pooled(), it.hosts.running()), (0, 0));
}

#[tokio::test]
async fn what_a_function_started_does_not_outlive_its_host() {
    let Some(it) = Fixture::new() else { return };
    let source = "import os, subprocess\n\
        def f(*_):\n    \
            print(subprocess.Popen(['sleep', '600']).pid)\n    \
            os._exit(0)";
    let failure = it.run(&it.function(source)).await.unwrap_err();
    assert!(failure.to_string().contains("ended with exit status 0"), "{failure}");
    let child = it.log(0).trim().parse().unwrap();
    until(|| !lives(child)).await;
}

/// Starts a process that has lost its parent, left its group and its session, with another environment if one is given;
/// returns its number.
const DAEMON: &str = "import ctypes, os, signal, subprocess, sys, threading, time\n\
    def daemon(env=None):\n    \
        start = 'import os, time\\nif os.fork(): os._exit(0)\\nos.setsid()\\n'\n    \
        start += 'if os.fork(): os._exit(0)\\nprint(os.getpid(), flush=True)\\nos.close(1); os.close(2)\\ntime.sleep(600)'\n    \
        command = [sys.executable, '-c', start]\n    \
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)\n    \
        return made.stdout\n";

#[tokio::test]
async fn daemons_end_with_the_run_that_started_them() {
    let Some(it) = Fixture::new() else { return };
    let ends = [
        ("returns", "return ('object', made)"),
        ("raises", "print(made.decode()); raise ValueError"),
        ("ends its process", "print(made.decode(), flush=True); os._exit(3)"),
        ("is killed", "print(made.decode(), flush=True); os.kill(os.getpid(), 9)"),
        ("takes too long", "print(made.decode(), flush=True); time.sleep(600)"),
    ];
    for (number, (how, end)) in ends.iter().enumerate() {
        let limits = Limits {
            time_ms: Some(if *how == "takes too long" { 5_000 } else { 60_000 }),
            ..Limits::default()
        };
        let source = format!("{DAEMON}def f(*_):\n    made = daemon()\n    {end}");
        let number = number as u64;
        let function = it.function_with(&source, limits);
        let returned = it.run_with(number, &function, Argument::None, Vec::new()).await;
        let said = match returned {
            Ok(Returned::Object(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => it.log(number),
        };
        let daemon = said.split_whitespace().next().unwrap().parse().unwrap();
        until(|| !lives(daemon)).await;
    }
    let program = program(
        &it,
        "#!/bin/sh\ncat >/dev/null\nsetsid sleep 600 >/dev/null 2>&1 &\necho $! >&2\n",
        Format::Csv,
        Format::Csv,
    );
    it.run_with(10, &program, Argument::None, Vec::new()).await.unwrap();
    let daemon = it.log(10).trim().parse().unwrap();
    until(|| !lives(daemon)).await;
}

/// Makes a host one that adopts no orphans.
#[cfg(target_os = "linux")]
const ADOPTS_NONE: &str = "ctypes.CDLL(None).prctl(36, 0)";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_shed_its_environment_ends_with_a_host_that_ended_by_itself() {
    let Some(it) = Fixture::new() else { return };
    let ends = ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), signal.SIGSEGV)"];
    let cases = ends.iter().flat_map(|end| ["pass", ADOPTS_NONE].map(|first| (first, end)));
    for (number, (first, end)) in cases.enumerate() {
        let source = format!(
            "{DAEMON}def f(*_):\n    \
                {first}\n    \
                print(subprocess.Popen(['sleep', '600'], start_new_session=True, env={{}}).pid)\n    \
                print(daemon({{}}).decode(), flush=True)\n    \
                {end}"
        );
        let number = number as u64;
        let ended = it.run_with(number, &it.function(&source), Argument::None, Vec::new()).await;
        assert!(matches!(ended, Err(Failure::Crashed { .. })), "{ended:?}");
        let said = it.log(number);
        let processes: Vec<i32> = said.split_whitespace().map_while(|process| process.parse().ok()).collect();
        assert_eq!(processes.len(), 2, "{said}");
        until(|| !processes.iter().any(|process| lives(*process))).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_shed_its_environment_and_is_adopted_by_none_ends_with_its_run() {
    let Some(it) = Fixture::new() else { return };
    let source = format!("{DAEMON}def f(*_):\n    {ADOPTS_NONE}\n    return ('object', daemon({{}}))");
    let daemon = it.object(&source).await.trim().parse().unwrap();
    until(|| !lives(daemon)).await;
    let script = "#!/bin/sh\ncat >/dev/null\nenv -i setsid sleep 600 >/dev/null 2>&1 &\necho $! >&2\n";
    it.run_with(1, &program(&it, script, Format::Csv, Format::Csv), Argument::None, Vec::new())
        .await
        .unwrap();
    let daemon = it.log(1).trim().parse().unwrap();
    until(|| !lives(daemon)).await;
}

#[tokio::test]
async fn a_host_in_which_something_was_left_is_replaced_and_no_call_is_lost() {
    let Some(it) = Fixture::new() else { return };
    let leaves = [
        ("a thread", "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"),
        ("a process", "kept.append(subprocess.Popen(['sleep', '600']))"),
        ("a daemon", "daemon()"),
        ("a file", "kept.append(open('/etc/passwd')); time.sleep(0.001)"),
        ("a priority", "os.nice(1)"),
    ];
    for (what, leave) in leaves {
        let source = format!(
            "{DAEMON}kept = []\ndef f(a):\n    if bytes(a) == b'leave': {leave}\n    return str(os.getpid()).encode()"
        );
        let function = it.function(&source);
        let mut calls: Vec<_> = (0..6).map(|id| call(id, if id == 2 { "leave" } else { "" })).collect();
        let mut results = Vec::new();
        while !calls.is_empty() {
            let mut host = it.hosts.call_host(attempt(0), &function).await.unwrap();
            let mut report = |ended: Vec<CallResult>| results.extend(ended);
            let ran = timeout(PATIENCE, host.call(1, &function, calls, &mut report)).await.unwrap();
            calls = ran.unwrap();
        }
        let returned = |result: &CallResult| match &result.outcome {
            Ok(CallReturned::Inline(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{what}: {other:?}"),
        };
        let processes: Vec<_> = results.iter().map(returned).collect();
        assert_eq!(results.iter().map(|result| result.id).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5], "{what}");
        assert!(processes[..3].iter().all(|process| *process == processes[0]), "{what}: {processes:?}");
        assert!(processes[3..].iter().all(|process| *process == processes[3]), "{what}: {processes:?}");
        assert_ne!(processes[2], processes[3], "{what}");
        let first = processes[0].parse().unwrap();
        until(|| !lives(first)).await;
    }
}

#[tokio::test]
async fn calls_run_in_order_and_results_come_as_they_end() {
    let Some(it) = Fixture::new() else { return };
    let source = "import time\n\
        def f(a):\n    \
            a = bytes(a)\n    \
            if a == b'bad': raise ValueError('bad')\n    \
            if a == b'large': return b'x' * (2 << 20)\n    \
            if a == b'none': return None\n    \
            return memoryview(a * 2)";
    let function = it.function(source);
    let mut host = it.hosts.call_host(attempt(0), &function).await.unwrap();
    assert!(host.serves(&function));
    let calls = ["a", "bad", "", "large", "none"];
    let calls = calls.iter().enumerate().map(|(n, argument)| call(10 + n as u64, argument)).collect();
    let mut results = Vec::new();
    host.call(1, &function, calls, &mut |ended| results.extend(ended)).await.unwrap();
    let ids: Vec<_> = results.iter().map(|result| result.id).collect();
    assert_eq!(ids, [10, 11, 12, 13, 14]);
    let inline = |text: &'static str| Ok(CallReturned::Inline(Bytes::from_static(text.as_bytes())));
    assert_eq!((&results[0].outcome, &results[2].outcome), (&inline("aa"), &inline("")));
    let Err(Failure::Exception { message, exception, .. }) = &results[1].outcome else {
        panic!("{results:?}")
    };
    assert_eq!(message, "ValueError: bad");
    assert!(!exception.is_empty());
    let Ok(CallReturned::Blob(blob)) = &results[3].outcome else { panic!("not a blob") };
    assert_eq!(blob.bytes, 2 << 20);
    assert!(results[4].outcome.as_ref().unwrap_err().to_string().contains("TypeError"));
    // Many at once, and of more functions than it keeps.
    for key in 0..300 {
        let source = format!("def f(a): return b'{key}' + bytes(a)");
        let mut results = Vec::new();
        let calls = (0..10).map(|n| call(n, &n.to_string())).collect();
        host.call(100 + key, &it.function(&source), calls, &mut |ended| results.extend(ended)).await.unwrap();
        assert_eq!(results.len(), 10);
        assert_eq!(results[9].outcome, Ok(CallReturned::Inline(format!("{key}9").into())));
    }
    let mut results = Vec::new();
    host.call(1, &function, vec![call(1, "again")], &mut |ended| results.extend(ended)).await.unwrap();
    assert_eq!(results[0].outcome, inline("againagain"));
    drop(host);
    assert_eq!(it.pooled(), 1);
}

#[tokio::test]
async fn a_result_does_not_wait_for_a_long_call_after_it() {
    let Some(it) = Fixture::new() else { return };
    let source = "import os, time\n\
        def f(a):\n    \
            path = bytes(a).decode()\n    \
            while path and not os.path.exists(path): time.sleep(0.001)\n    \
            return b''";
    let function = it.function(source);
    let gate = it.dir.path().join("gate");
    let mut host = it.hosts.call_host(attempt(0), &function).await.unwrap();
    let calls = vec![call(1, ""), call(2, ""), call(3, gate.to_str().unwrap())];
    let mut seen = Vec::new();
    let mut report = |ended: Vec<CallResult>| {
        seen.extend(ended.iter().map(|result| result.id));
        if seen.len() == 2 {
            std::fs::write(&gate, "").unwrap();
        }
    };
    timeout(PATIENCE, host.call(1, &function, calls, &mut report)).await.unwrap().unwrap();
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test]
async fn the_call_that_ended_its_host_is_the_first_of_the_unfinished() {
    let Some(it) = Fixture::new() else { return };
    let source = "import os\ndef f(a):\n    if bytes(a) == b'die': os._exit(7)\n    return b'done'";
    let function = it.function(source);
    let mut host = it.hosts.call_host(attempt(0), &function).await.unwrap();
    let calls: Vec<_> = (1..100).map(|id| call(id, if id == 40 { "die" } else { "live" })).collect();
    let mut results = Vec::new();
    let mut report = |ended: Vec<CallResult>| results.extend(ended);
    let ended = host.call(1, &function, calls, &mut report).await.unwrap_err();
    assert!(ended.failure.to_string().contains("ended with exit status 7"), "{}", ended.failure);
    assert_eq!(ended.unfinished[0].id, 40);
    let mut all: Vec<_> = results.iter().map(|result| result.id).collect();
    all.extend(ended.unfinished.iter().map(|call| call.id));
    all.sort_unstable();
    assert_eq!(all, (1..100).collect::<Vec<_>>());
    drop(host);
    assert_eq!(it.pooled(), 0);
}

#[tokio::test]
async fn time_is_limited_for_each_call_and_not_for_a_batch() {
    let Some(it) = Fixture::new() else { return };
    let limits = Limits { memory_bytes: None, time_ms: Some(1_500) };
    let function =
        it.function_with("import time\ndef f(a):\n    time.sleep(float(bytes(a)))\n    return b''", limits);
    let mut host = it.hosts.call_host(attempt(0), &function).await.unwrap();
    let seconds = |id| if id == 40 { "600" } else { "0.05" };
    let calls = (0..50).map(|id| call(id, seconds(id))).collect();
    let ended = host.call(1, &function, calls, &mut |_| {}).await.unwrap_err();
    assert!(matches!(ended.failure, Failure::Limit { .. }), "{}", ended.failure);
    assert_eq!(ended.unfinished.iter().map(|call| call.id).collect::<Vec<_>>(), (40..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn dropping_a_batch_of_calls_ends_the_host() {
    let Some(it) = Fixture::new() else { return };
    let function = it.function("import time\ndef f(a):\n    print('here')\n    time.sleep(600)");
    let mut host = it.hosts.call_host(attempt(0), &function).await.unwrap();
    let mut report = |_| {};
    tokio::select! {
        _ = host.call(1, &function, vec![call(1, "")], &mut report) => panic!("it slept too little"),
        () = until(|| it.log(0) == "here\n") => {}
    }
    drop(host);
    assert_eq!(it.pooled(), 0);
    until(|| it.is_alone()).await;
}

#[tokio::test]
async fn functions_get_blobs_while_they_run() {
    let Some(it) = Fixture::new() else { return };
    let source = "import floe_host\n\
        def f(a, p):\n    \
            name, size = bytes(a).decode().split()\n    \
            paths = {floe_host.blob(name, int(size)) for _ in range(3)}\n    \
            try: floe_host.blob('0' * 32, 1)\n    \
            except LookupError as error: missing = str(error)\n    \
            return ('object', open(paths.pop(), 'rb').read() + missing.encode())";
    let blob = it.blob(5, b"shared; ");
    let argument = format!("{} {}", blob.id, blob.bytes);
    let argument = Argument::Payload(Payload::Inline(argument.into()));
    let returned = it.run_with(0, &it.function(source), argument, Vec::new()).await.unwrap();
    let expected = format!("shared; no node has {}", BlobId(0));
    assert_eq!(returned, Returned::Object(expected.into()));
}

#[tokio::test]
async fn what_a_function_writes_to_an_object_is_seen_by_no_other() {
    let Some(it) = Fixture::new() else { return };
    let source = "import floe_host, mmap, os\n\
        def f(a, p):\n    \
            name, size = bytes(a).decode().split()\n    \
            path = floe_host.blob(name, int(size))\n    \
            found = open(path, 'rb').read() + b' %o %d' % (os.stat(path).st_mode & 0o777, os.getpid())\n    \
            os.chmod(path, 0o600)\n    \
            with open(path, 'r+b') as file:\n        \
                mapped = mmap.mmap(file.fileno(), 0)\n        \
                mapped[0:1] = b'X'\n        \
                mapped.flush()\n    \
            os.truncate(path, 3)\n    \
            return ('object', found)";
    let blob = it.blob(5, b"shared");
    let argument = Argument::Payload(Payload::Inline(format!("{} {}", blob.id, blob.bytes).into()));
    let mut found = Vec::new();
    for number in 0..2 {
        let Returned::Object(bytes) =
            it.run_with(number, &it.function(source), argument.clone(), Vec::new()).await.unwrap()
        else {
            panic!("it is an object")
        };
        found.push(String::from_utf8(bytes.to_vec()).unwrap());
    }
    assert!(found[0].starts_with("shared 400 "), "{found:?}");
    assert_eq!(found[0], found[1], "in the same process, too");
    let own = it.dir.path().join("blobs").join(blob.id.to_string());
    assert_eq!(std::fs::read(own).unwrap(), b"shared");
}

#[tokio::test]
async fn what_is_not_here_makes_the_node_unfit() {
    let Some(it) = Fixture::new() else { return };
    let with = |python: Python| Function { host: Kind::Python(python), ..it.function("def f(*_): pass") };
    let libraries = BTreeMap::from([("floe-no-such-library".to_owned(), "1.0".to_owned())]);
    let failure = it.run(&with(Python { libraries, ..it.python.clone() })).await.unwrap_err();
    let text = "floe-no-such-library 1.0 cannot be had on this node: floe-no-such-library is not installed";
    assert_eq!(failure.to_string(), text);
    let native = Native { executable: it.blob(8, b"#!/bin/sh\nexit 1\n"), target: "m68k-amiga".to_owned() };
    let failure =
        it.run(&Function { host: Kind::Native(native.clone()), ..it.function("") }).await.unwrap_err();
    assert!(matches!(&failure, Failure::Unfit { needs, .. } if needs.contains("m68k-amiga")), "{failure}");
    assert!(failure.to_string().contains(&function::target()), "{failure}");
    let native = Native { target: function::target(), ..native };
    let failure =
        it.run(&Function { host: Kind::Native(native.clone()), ..it.function("") }).await.unwrap_err();
    assert!(
        failure.to_string().ends_with("the process ended with exit status 1 before it was ready"),
        "{failure}"
    );
    let talks = Native { executable: it.blob(9, b"#!/bin/sh\necho Hello, world.\nsleep 600\n"), ..native };
    let failure = it.run(&Function { host: Kind::Native(talks), ..it.function("") }).await.unwrap_err();
    let rubbish = "did not keep to the host protocol: instead of a message it wrote \"Hello, world.\\n\"";
    assert!(failure.to_string().contains(rubbish), "{failure}");
}

#[tokio::test]
async fn modules_come_before_what_is_installed() {
    let Some(mut it) = Fixture::new() else { return };
    let zip = it.dir.path().join("module.zip");
    let script = "import sys, zipfile\n\
        with zipfile.ZipFile(sys.argv[1], 'w') as file: file.writestr('colorsys.py', 'def hue(): return \"blue\"')";
    assert!(Command::new("python3").args(["-c", script]).arg(&zip).status().unwrap().success());
    let module = it.blob(6, &std::fs::read(&zip).unwrap());
    it.python.modules = vec![module];
    let source = "import colorsys\ndef f(*_): return ('object', colorsys.hue().encode())";
    assert_eq!(it.object(source).await, "blue");
}

/// Not a test but the guard's process of the next one.
#[test]
fn guard_process() {
    guard::guard_if_asked();
}

#[tokio::test]
async fn what_builds_a_package_ends_with_whoever_waits_for_it_and_with_a_killed_node() {
    let arguments =
        ["--exact", "worker::hosts::tests::guard_process", "--nocapture"].map(str::to_owned).to_vec();
    let family = Family::new(Guard::with_command(std::env::current_exe().unwrap(), arguments));
    let dir = tempfile::tempdir().unwrap();
    for killed in [false, true] {
        let pids = dir.path().join(killed.to_string());
        let script = format!(
            "setsid sh -c 'sleep 600 & wait' & echo $$ $! > {0}.new; mv {0}.new {0}; wait",
            pids.display()
        );
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", &script]);
        let helper = family.start(command).unwrap();
        until(|| pids.exists()).await;
        let pids = std::fs::read_to_string(&pids).unwrap();
        let pids: Vec<i32> = pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.len() == 2 && pids.iter().all(|pid| lives(*pid)), "{pids:?}");
        if killed {
            family.guard().abandon();
            until(|| !pids.iter().any(|pid| lives(*pid))).await;
        }
        drop(helper);
        until(|| !pids.iter().any(|pid| lives(*pid)) && family.len() == 0).await;
    }
    // One that ends by itself is told how.
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "exit 3"]);
    assert_eq!(family.start(command).unwrap().wait().await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn the_guard_ends_what_a_killed_node_leaves() {
    let Some(python) = Fixture::new().map(|it| it.python.clone()) else { return };
    let arguments =
        ["--exact", "worker::hosts::tests::guard_process", "--nocapture"].map(str::to_owned).to_vec();
    let guard = Guard::with_command(std::env::current_exe().unwrap(), arguments);
    let it = Fixture::with_guard(guard, python);
    let pid = "import os\ndef f(*_): return ('object', str(os.getpid()).encode())";
    let first: i32 = it.object(pid).await.parse().unwrap();
    let guard = it.hosts.0.family.guard().process().unwrap();
    assert!(lives(guard));
    // Should somebody kill it, there is another.
    kill(Pid::from_raw(guard), nix::sys::signal::Signal::SIGKILL).unwrap();
    until(|| !lives(guard)).await;
    it.run(&it.function("import os\ndef f(*_): os._exit(1)")).await.unwrap_err();
    until(|| it.is_alone()).await;
    let second: i32 = it.object(pid).await.parse().unwrap();
    assert_ne!(first, second);
    // Where nothing else tells of it, a process must have kept its environment.
    #[cfg(target_os = "linux")]
    let (first, bare) = (ADOPTS_NONE, "{}");
    #[cfg(not(target_os = "linux"))]
    let (first, bare) = ("pass", "None");
    let function = it.function(&format!(
        "{DAEMON}def f(*_):\n    \
            kept = daemon()\n    \
            {first}\n    \
            print((kept + daemon({bare}) + b'.').decode(), flush=True)\n    \
            time.sleep(600)"
    ));
    let run = it.hosts.run_task(attempt(7), &function, Argument::None, Vec::new());
    let node_is_killed = async {
        until(|| it.log(7).trim().ends_with('.')).await;
        let log = it.log(7);
        let daemons: Vec<i32> = log.split_whitespace().map_while(|daemon| daemon.parse().ok()).collect();
        assert_eq!(daemons.len(), 2, "{log}");
        let guard = it.hosts.0.family.guard();
        let others = guard.process().unwrap();
        assert!(lives(second) && lives(others) && daemons.iter().all(|daemon| lives(*daemon)));
        guard.abandon();
        until(|| !lives(second) && !daemons.iter().any(|daemon| lives(*daemon))).await;
    };
    let (ended, ()) = tokio::join!(run, node_is_killed);
    ended.unwrap_err();
}

pub(super) fn program(it: &Fixture, script: &str, stdin: Format, stdout: Format) -> Function {
    let id = script.bytes().fold(7_u128, |id, byte| id.wrapping_mul(31).wrapping_add(byte.into()));
    let blob = it.blob(id, script.as_bytes());
    let file = ProgramFile::Blob { blob, name: "clean.sh".to_owned() };
    program_of(file, stdin, stdout)
}

fn program_of(file: ProgramFile, stdin: Format, stdout: Format) -> Function {
    let program = Program {
        file,
        arguments: vec!["one".to_owned(), "two words".to_owned()],
        stdin,
        stdout,
        typed: false,
        env: BTreeMap::from([("COLOUR".to_owned(), "blue".to_owned())]),
    };
    Function {
        name: "clean.sh".to_owned(),
        host: Kind::Program(program),
        code: Payload::Inline(Bytes::new()),
        limits: Limits::default(),
    }
}

pub(super) fn a_fixture() -> Fixture {
    Fixture::with_guard(Guard::new(), Python::default())
}

#[tokio::test]
async fn a_program_that_fails_has_its_last_words_told_and_one_that_is_missing_makes_the_node_unfit() {
    let it = a_fixture();
    let exits = program(
        &it,
        "#!/bin/sh\ncat >/dev/null\necho 'no such luck' >&2\nexit 9\n",
        Format::Csv,
        Format::Csv,
    );
    let failure = it.run(&exits).await.unwrap_err();
    let text = "clean.sh failed: it ended with exit status 9; the last it printed was:\nno such luck";
    assert_eq!(failure.to_string(), text);
    assert_eq!(it.log(0), "no such luck\n");
    let missing = ProgramFile::OnPath("floe-no-such-program".to_owned());
    let failure = it.run(&program_of(missing, Format::Csv, Format::Csv)).await.unwrap_err();
    let text = "the program `floe-no-such-program` cannot be had on this node: it is not on the node's PATH";
    assert_eq!(failure.to_string(), text);
    let cases: [(&str, &[u8], &str); 6] = [
        ("a", b"#!/no/such/interpreter -x\n", "`/no/such/interpreter`, the interpreter of a, cannot be had"),
        ("b", b"#!/usr/bin/env floe-no-such\n", "`floe-no-such`, the interpreter of b, cannot be had"),
        ("c", b"#!/bin/sh\r\necho\r\n", "c cannot be run: its first line ends with \\r\\n"),
        ("d", b"print('no first line')\n", "d cannot be run: it is neither an executable nor a script"),
        ("e", b"\x7fELF of some other machine", "a machine that e was made for cannot be had on this node"),
        ("../f", b"#!/bin/sh\n", "`../f` is not a name for a program"),
    ];
    for (name, content, expected) in cases {
        let blob = it.blob(content.len() as u128 + 2000, content);
        let file = ProgramFile::Blob { blob, name: name.to_owned() };
        let failure = it.run(&program_of(file, Format::Csv, Format::Csv)).await.unwrap_err();
        assert!(failure.to_string().contains(expected), "{failure}");
    }
    let limits = Limits { memory_bytes: Some(1 << 20), time_ms: Some(5_000) };
    let endless = program(
        &it,
        "#!/bin/sh\nwhile :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaa; done\n",
        Format::Csv,
        Format::Csv,
    );
    let failure = it.run(&Function { limits, ..endless }).await.unwrap_err();
    assert!(matches!(failure, Failure::Limit { .. }), "{failure}");
    until(|| it.is_alone()).await;
}
