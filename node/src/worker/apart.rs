//! A query's work in a process of its own: planning, or a task, that a node may have died of. Whatever it does to its
//! process, the node goes on, and knows what did it.
//!
//! ```text
//!   node ── length, Order, bodies ──> stdin      the same executable, started with ENV set
//!        <── length, Answer, bodies ── stdout
//! ```
//!
//! The process ends when its stdin does: with the node, or when its work is no longer wanted. It volunteers to be the
//! first that the kernel ends where memory runs out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use floe_protocol::message::{FileMark, FilePath};
use floe_protocol::{Failure, Query, StageGraph, StageId, frame};
use floe_query::{Planned, Shape, Stop};
use nix::sys::signal::{SigHandler, Signal, raise, signal};
use polars::prelude::{DataFrame, IpcReader, SerReader};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hosts::how_it_ended;
use crate::store::ipc;

/// What tells this executable to do the work of a node and end.
pub const ENV: &str = "FLOE_APART";

/// Whether this executable knows what to do when it is told so.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// How much of what the process prints is kept for a failure's text: its last words.
const TAIL_BYTES: usize = 2 << 10;

/// The longest head of an order or an answer; a plan travels in it. What a driver may send is half of that.
const MAX_HEAD_BYTES: u64 = 2 << 30;

/// How often is looked whether the work is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Find the paths of a query.
    Paths(Query),
    /// Plan it.
    Plan(Query, Shape),
    /// Run a task. The bodies are its segments, of which each input has so many.
    Run { fragment: Bytes, split: Bytes, segments: Vec<Vec<u64>>, buckets: u32 },
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Paths(Vec<FilePath>),
    /// The bodies are the frames, each of so many bytes.
    Plan {
        graph: StageGraph,
        frames: Vec<(StageId, u32, u64)>,
        scans: Vec<(StageId, Vec<FileMark>)>,
    },
    /// The bodies are the buckets, each of so many bytes.
    Run(Vec<u64>),
}

/// To be called first by a program whose nodes are to survive such work. In the process that does it, it returns, with
/// `true`, when the work is done.
pub fn main_if_asked() -> bool {
    let asked = std::env::var_os(ENV).is_some();
    KNOWN.store(!asked, Ordering::Relaxed);
    if asked {
        // SAFETY: a program calls this before it starts a thread.
        unsafe { floe_query::configure_thread_stacks() };
        go_first();
        // A node that is gone wants no answer.
        drop(serve());
    }
    asked
}

/// Whether this executable can be such a process. Where it cannot, a node does all of its work itself.
pub fn is_known() -> bool {
    KNOWN.load(Ordering::Relaxed)
}

/// [`floe_query::paths`], apart.
pub fn paths(query: &Query) -> Result<Vec<FilePath>, Failure> {
    match ask("the query's planning", &Order::Paths(query.clone()), &[], &Stop::default())? {
        (Answer::Paths(paths), _) => Ok(paths),
        _ => Err(misunderstood()),
    }
}

/// [`floe_query::plan`], apart.
pub fn plan(query: &Query, shape: &Shape) -> Result<Planned, Failure> {
    let (answer, mut bodies) =
        ask("the query's planning", &Order::Plan(query.clone(), *shape), &[], &Stop::default())?;
    let Answer::Plan { graph, frames: places, scans } = answer else { return Err(misunderstood()) };
    let mut frames = Vec::new();
    for (stage, partition, bytes) in places {
        frames.push((stage, partition, take_frame(&mut bodies, bytes)?));
    }
    Ok(Planned { graph, frames, scans })
}

/// [`floe_query::run_until`], apart. `name` says what the task is.
pub fn run(
    name: &str,
    fragment: &Bytes,
    split: &Bytes,
    inputs: &[Vec<Bytes>],
    buckets: u32,
    stop: &Stop,
) -> Result<Vec<DataFrame>, Failure> {
    let lengths = |input: &Vec<Bytes>| input.iter().map(|segment| segment.len() as u64).collect();
    let segments = inputs.iter().map(lengths).collect();
    let order = Order::Run { fragment: fragment.clone(), split: split.clone(), segments, buckets };
    let bodies: Vec<&Bytes> = inputs.iter().flatten().collect();
    let (answer, mut bodies) = ask(name, &order, &bodies, stop)?;
    let Answer::Run(lengths) = answer else { return Err(misunderstood()) };
    lengths.into_iter().map(|bytes| take_frame(&mut bodies, bytes)).collect()
}

fn misunderstood() -> Failure {
    Failure::internal("a process answered another question than it was asked")
}

// ---- the node's side

/// Starts a process, gives it its work, and waits for what comes of it. Returns the answer and its bodies.
fn ask(name: &str, order: &Order, bodies: &[&Bytes], stop: &Stop) -> Result<(Answer, Bytes), Failure> {
    let mut child = start().map_err(|error| {
        Failure::internal(format!("a process of its own cannot be started for {name}: {error}"))
    })?;
    let (Some(mut stdin), Some(mut stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Failure::internal("a process was started without its pipes"));
    };
    let (ended, mut said) = (AtomicBool::new(false), Vec::new());
    let printed = std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            // Why one did not listen to its end is told by how it ended.
            drop(write_head(&mut stdin, order).and_then(|()| write_bodies(&mut stdin, bodies)));
            stdin
        });
        let printing = scope.spawn(move || tail(stderr));
        let watching = scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                if stop.load(Ordering::Relaxed) {
                    // It was not waited for yet, so this is no other process.
                    drop(child.kill());
                }
                std::thread::park_timeout(LOOK);
            }
        });
        // What was read before an error is no whole answer.
        drop(stdout.read_to_end(&mut said));
        ended.store(true, Ordering::Release);
        watching.thread().unpark();
        // Its stdin is open until here: it ends with it.
        drop(writing.join());
        printing.join().unwrap_or_default()
    });
    let status = child.wait();
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::Cancelled);
    }
    let said = Bytes::from(said);
    let mut rest: &[u8] = said.as_ref();
    if let Ok(answer) = read_head::<Result<Answer, Failure>>(&mut rest) {
        return answer.map(|answer| (answer, said.slice(said.len() - rest.len()..)));
    }
    let how = status.map_or_else(|error| format!("ended, nobody knows how ({error})"), how_it_ended);
    let output = match printed.trim() {
        "" => String::new(),
        printed => format!("; the last it printed was: {printed}"),
    };
    Err(Failure::Crashed { name: name.to_owned(), how, output })
}

fn start() -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(ENV, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn()
}

/// The end of what a process prints.
fn tail(mut stderr: ChildStderr) -> String {
    let (mut tail, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stderr.read(&mut piece) {
        tail.extend_from_slice(&piece[..read]);
        if tail.len() > TAIL_BYTES {
            tail.drain(..tail.len() - TAIL_BYTES);
        }
    }
    String::from_utf8_lossy(&tail).into_owned()
}

fn take_frame(bodies: &mut Bytes, bytes: u64) -> Result<DataFrame, Failure> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes > bodies.len() {
        return Err(Failure::internal("a process ended in the middle of its answer"));
    }
    let file = bodies.split_to(bytes);
    IpcReader::new(io::Cursor::new(file)).finish().map_err(Failure::internal)
}

// ---- the process's side

/// Does what the order says, and answers.
fn serve() -> io::Result<()> {
    let mut orders = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let order: Order = read_head(&mut orders)?;
    let mut inputs = Vec::new();
    if let Order::Run { segments, .. } = &order {
        for lengths in segments {
            let read = |bytes: &u64| read_exactly(&mut orders, *bytes).map(Bytes::from);
            inputs.push(lengths.iter().map(read).collect::<io::Result<Vec<Bytes>>>()?);
        }
    }
    end_with(orders);
    let (answer, bodies) = match work(order, inputs) {
        Ok((answer, bodies)) => (Ok(answer), bodies),
        Err(failure) => (Err(failure), Vec::new()),
    };
    write_head(&mut answers, &answer)?;
    write_bodies(&mut answers, &bodies.iter().collect::<Vec<_>>())
}

fn work(order: Order, inputs: Vec<Vec<Bytes>>) -> Result<(Answer, Vec<Bytes>), Failure> {
    match order {
        Order::Paths(query) => Ok((Answer::Paths(floe_query::paths(&query)?), Vec::new())),
        Order::Plan(query, shape) => {
            let Planned { graph, frames, scans } = floe_query::plan(&query, &shape)?;
            let (mut places, mut bodies) = (Vec::new(), Vec::new());
            for (stage, partition, frame) in frames {
                let body = write(&frame)?;
                places.push((stage, partition, body.len() as u64));
                bodies.push(body);
            }
            Ok((Answer::Plan { graph, frames: places, scans }, bodies))
        }
        Order::Run { fragment, split, buckets, .. } => {
            let frames = floe_query::run(&fragment, &split, inputs, buckets)?;
            let bodies = frames.iter().map(write).collect::<Result<Vec<_>, _>>()?;
            Ok((Answer::Run(bodies.iter().map(|body| body.len() as u64).collect()), bodies))
        }
    }
}

fn write(frame: &DataFrame) -> Result<Bytes, Failure> {
    let mut file = Vec::new();
    ipc::write(frame, None, &mut file).map_err(Failure::internal)?;
    Ok(file.into())
}

/// Whoever shall end this process closes its stdin; signals are for the node.
fn end_with(mut stdin: File) {
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: to ignore a signal runs no code.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let wait = move || {
        while matches!(stdin.read(&mut [0]), Ok(1..)) {}
        let _ = raise(Signal::SIGKILL);
    };
    // Without it the process is merely slower to end.
    drop(std::thread::Builder::new().spawn(wait));
}

/// Where memory runs out, the kernel shall end this process rather than the node.
fn go_first() {
    // Only Linux asks, and it may not allow it.
    drop(std::fs::write("/proc/self/oom_score_adj", "1000"));
}

// ---- what both speak

fn write_head(to: &mut impl Write, head: &impl Serialize) -> io::Result<()> {
    let bytes = frame::encode(head).map_err(io::Error::other)?;
    to.write_all(&(bytes.len() as u64).to_be_bytes())?;
    to.write_all(&bytes)
}

fn read_head<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    if length > MAX_HEAD_BYTES {
        return Err(io::Error::other("too long a head"));
    }
    frame::decode(&read_exactly(from, length)?).map_err(io::Error::other)
}

fn write_bodies(to: &mut impl Write, bodies: &[&Bytes]) -> io::Result<()> {
    for body in bodies {
        to.write_all(body)?;
    }
    to.flush()
}

/// Reads so many bytes, without believing that they come.
fn read_exactly(from: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}
