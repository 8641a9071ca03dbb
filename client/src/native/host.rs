//! The loop of a host: the driver's own executable, started by a node to call the functions it registered.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use super::connection::Connection;
use super::panics::{caught, watch};
use super::progress::Progress;
use super::registry::{Callable, functions};
use super::results::Results;
use super::wire::{Answer, ArgumentKind, Message, Order, OutputKind, PROTOCOL, Raised, WireError};
use super::{object, shared, stdio};

/// Set in the processes that a node starts as hosts.
pub(super) const HOST_VARIABLE: &str = "FLOE_FUNCTION_HOST";

/// The stack of the thread that calls functions, as large as a main thread's usually is.
const STACK_BYTES: usize = 8 << 20;

/// Whether this process was started by a node to call functions.
pub(super) fn is_host() -> bool {
    std::env::var_os(HOST_VARIABLE).is_some_and(|value| !value.is_empty())
}

/// Serves the node that started this process, and ends it when the node does.
pub(super) fn serve_and_exit() -> ! {
    // A thread of its own: `main` may be within an async runtime, and functions may want one themselves.
    let host = std::thread::Builder::new().name("functions".to_owned()).stack_size(STACK_BYTES);
    let served = host.spawn(serve_stdio).map_err(WireError::from).and_then(|thread| {
        thread.join().unwrap_or_else(|_| Err(WireError::Unwritable("the host itself panicked".to_owned())))
    });
    let code = match served {
        Ok(()) => 0,
        Err(error) => {
            // The log, if it can still be written to.
            let _ = writeln!(std::io::stderr(), "the host of functions ends: {error}");
            1
        }
    };
    std::process::exit(code)
}

fn serve_stdio() -> Result<(), WireError> {
    let (input, output) = stdio::take()?;
    let connection = Arc::new(Connection::new(input, output));
    shared::serve_from(&connection);
    serve(&connection, &|code| functions().get(code))
}

/// Finds the function that some code names.
type Find<'a> = dyn Fn(&[u8]) -> Result<Arc<Callable>, String> + 'a;

/// Answers a node until it has closed the pipe.
pub(super) fn serve(connection: &Arc<Connection>, find: &Find<'_>) -> Result<(), WireError> {
    watch();
    let mut host = Host { connection: connection.clone(), find, defined: BTreeMap::new(), progress: None };
    while let Some(message) = connection.next()? {
        if !host.answer(message)? {
            break;
        }
        // What was printed belongs to the log now, not once a buffer is full.
        let _ = std::io::stdout().flush();
    }
    Ok(())
}

struct Host<'a> {
    connection: Arc<Connection>,
    find: &'a Find<'a>,
    /// The node's numbers for functions. One that is not there shows with each call.
    defined: BTreeMap<u32, Result<Arc<Callable>, Raised>>,
    progress: Option<Progress>,
}

impl Host<'_> {
    /// Does what is wanted; `false` ends the host.
    fn answer(&mut self, message: Message) -> Result<bool, WireError> {
        match message.order {
            Order::Hello { protocol: PROTOCOL, progress } => {
                if let Some(path) = progress {
                    self.progress = Some(Progress::open(&path)?);
                }
                self.connection.say(&Answer::Ready { version: env!("CARGO_PKG_VERSION") }, &[])?;
            }
            Order::Hello { protocol, .. } => {
                let needs = format!("a node that speaks version {PROTOCOL} of the protocol of hosts");
                let why = format!("it speaks version {protocol}: driver and nodes need the same floe");
                self.connection.say(&Answer::Unfit { needs: &needs, why: &why }, &[])?;
                return Ok(false);
            }
            Order::Define { function, name: _ } => {
                let code = message.sections.first().map(Vec::as_slice).unwrap_or_default();
                let found = (self.find)(code).map_err(|error| Raised::new(&error));
                self.defined.insert(function, found);
            }
            Order::Forget { functions } => {
                for function in functions {
                    self.defined.remove(&function);
                }
            }
            Order::Task { function, argument } => self.task(function, argument, message.sections)?,
            Order::Calls { function } => self.calls(function, message.sections)?,
            // The answer to a question that nobody waits for any more.
            Order::Blob { .. } => {}
        }
        Ok(true)
    }

    fn function(&self, function: u32) -> Result<Arc<Callable>, Raised> {
        let undefined = || Err(Raised::new(&format!("function {function} was not defined")));
        self.defined.get(&function).cloned().unwrap_or_else(undefined)
    }

    fn task(&self, function: u32, argument: ArgumentKind, sections: Vec<Vec<u8>>) -> Result<(), WireError> {
        let function = self.function(function);
        match function.and_then(|function| caught(|| run(&function, argument, sections))) {
            Ok(Output::Frame { file, rows }) => {
                let answer = Answer::Returned { kind: OutputKind::Frame, rows: Some(rows) };
                self.connection.say(&answer, &[&file])
            }
            Ok(Output::Object(object)) => {
                let answer = Answer::Returned { kind: OutputKind::Object, rows: None };
                self.connection.say(&answer, &[&object])
            }
            Err(Raised { message, traceback }) => {
                let answer = Answer::Raised { message: &message, traceback: &traceback };
                self.connection.say(&answer, &[&[]])
            }
        }
    }

    fn calls(&self, function: u32, sections: Vec<Vec<u8>>) -> Result<(), WireError> {
        let [ids, lengths, arguments] = sections
            .try_into()
            .map_err(|sections: Vec<_>| malformed(format!("calls in {} sections", sections.len())))?;
        let calls = split(&ids, &lengths, &arguments)?;
        let function = self.function(function).and_then(|function| match &*function {
            Callable::Value(_) => Ok(function),
            Callable::Frames(_) => Err(Raised::new("a function of frames was called with a value")),
        });
        let results = Results::new(&self.connection);
        let run = |results: &Results<'_>| {
            for (id, argument) in calls {
                if let Some(progress) = &self.progress {
                    progress.set(id)?;
                }
                let begun = Instant::now();
                let outcome = function.clone().and_then(|function| match &*function {
                    Callable::Value(call) => caught(|| call(argument)),
                    Callable::Frames(_) => Err(Raised::default()),
                });
                let _ = std::io::stdout().flush();
                results.add(id, outcome, begun.elapsed())?;
            }
            Ok(())
        };
        results.collect(ids.len() > ID_BYTES, run)
    }
}

const ID_BYTES: usize = size_of::<u64>();
const LENGTH_BYTES: usize = size_of::<u32>();

/// The calls in a message.
fn split<'a>(ids: &[u8], lengths: &[u8], mut arguments: &'a [u8]) -> Result<Vec<(u64, &'a [u8])>, WireError> {
    let (ids, loose_id) = ids.as_chunks::<ID_BYTES>();
    let (lengths, loose_length) = lengths.as_chunks::<LENGTH_BYTES>();
    if !loose_id.is_empty() || !loose_length.is_empty() || ids.len() != lengths.len() {
        return Err(malformed(format!("{} ids and {} lengths of calls", ids.len(), lengths.len())));
    }
    let mut calls = Vec::with_capacity(ids.len());
    for (id, length) in ids.iter().zip(lengths) {
        let (argument, rest) = arguments
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or_else(|| malformed("an argument that is cut off".to_owned()))?;
        calls.push((u64::from_le_bytes(*id), argument));
        arguments = rest;
    }
    if arguments.is_empty() { Ok(calls) } else { Err(malformed("arguments without calls".to_owned())) }
}

fn malformed(reason: String) -> WireError {
    WireError::Malformed(reason)
}

enum Output {
    Frame { file: Vec<u8>, rows: u64 },
    Object(Vec<u8>),
}

/// Runs one task.
fn run(function: &Callable, argument: ArgumentKind, mut sections: Vec<Vec<u8>>) -> Result<Output, Raised> {
    match (function, argument) {
        (Callable::Frames(call), ArgumentKind::None) => {
            let frame = call(sections)?;
            Ok(Output::Frame { file: frame.file, rows: frame.rows })
        }
        (Callable::Value(call), ArgumentKind::None) => {
            // What the tasks before it returned, as one list.
            let values: Vec<_> = sections
                .iter()
                .map(|file| object::unwrap_file(file))
                .collect::<Result<_, _>>()
                .map_err(|error| Raised::new(&error))?;
            drop(sections);
            Ok(Output::Object(call(&object::list(&values))?))
        }
        (Callable::Value(call), ArgumentKind::Bytes) if sections.len() == 1 => {
            let argument = sections.swap_remove(0);
            Ok(Output::Object(call(&argument)?))
        }
        (Callable::Frames(_) | Callable::Value(_), _) => {
            Err(Raised::new("a Rust function was given another kind of input than it takes"))
        }
    }
}
