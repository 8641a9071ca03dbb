//! One host: a process that runs functions over and over, and the conversation with it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use floe_protocol::function::{self, Argument, Blob, Native, Payload, Python};
use floe_protocol::session::{Call, CallResult, MAX_CALL_BYTES, Returned as CallReturned};
use floe_protocol::{BlobId, Failure, Function, frame};
use futures::FutureExt;
use tempfile::TempDir;
use tokio::io::AsyncBufReadExt;

use super::family::Family;
use super::lent;
use super::limits::{Allowed, Running, within};
use super::process::{self, Process, Start, Trouble};
use super::processes::Meter;
use super::wire::{self, Answer, AnswerType, ArgumentKind, Order, OutputKind, PROTOCOL, Raised, Section};
use super::{Blobs, Returned, frames};
use crate::disk::{self, Disk};
use crate::worker::environment::Interpreter;
use crate::worker::task_logs::TaskLog;

/// The Python host's own code: the file that is run, and the one that it loads from beside it.
const HOST_PY: &str = include_str!("../host.py");
const FRESH_PY: &str = include_str!("../fresh.py");

/// What tells a driver's executable to be a host.
const NATIVE_ENV: &str = "FLOE_FUNCTION_HOST";

/// How long a host may take until functions can come: an interpreter starts in a moment, but perhaps from a slow
/// disk, with all others at once.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// How many functions a host keeps ready. Beyond it the one that was not called for longest makes way.
const MAX_DEFINED: usize = 256;

/// How many bytes of code these have together; one function may exceed it alone. What code becomes in a host counts
/// towards the limit of whatever runs there.
const MAX_DEFINED_BYTES: u64 = 64 << 20;

/// Longer names are cut when hosts are told of them: they are for people.
const MAX_NAME_BYTES: usize = 1 << 10;

/// How much of an exception is kept: its line, its traceback, and the exception itself. Many of them may travel in
/// one frame.
const MAX_MESSAGE_BYTES: usize = 4 << 10;
const MAX_TRACEBACK_BYTES: usize = 16 << 10;
const MAX_EXCEPTION_BYTES: usize = 24 << 10;

/// What a host was started for: functions of the same run in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) host: function::Host,
    /// Of Python, the interpreter that was found or made for it; held for as long as the host lives.
    pub(super) interpreter: Option<Interpreter>,
}

/// What it takes to start and to run.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) family: &'a Family,
    pub(super) meter: &'a Meter,
    pub(super) blobs: &'a dyn Blobs,
    /// What the hosts' directories lie on.
    pub(super) disk: &'a Disk,
    /// How many threads a host's libraries should use.
    pub(super) threads: usize,
}

/// One run of a function.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) function: &'a Function,
    pub(super) allowed: Allowed,
    pub(super) around: Surroundings<'a>,
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) key: Key,
    process: Process,
    /// Its directory.
    scratch: PathBuf,
    /// Where it says which call it works on; open, since its directory goes when it ends.
    progress: File,
    defined: Defined,
    /// Whether a run was begun and not ended, or left something behind: then it is no longer known what state it is in.
    unsound: bool,
    /// Whether it has run calls since it was last known to be as new.
    unasked: bool,
}

/// A function within a host. It may have made way for another one meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    number: u32,
    /// Counts what had this number.
    version: u64,
}

/// The functions that a host knows.
#[derive(Debug, Default)]
struct Defined {
    numbers: HashMap<Content, u32>,
    slots: BTreeMap<u32, Slot>,
    /// Of all their code.
    bytes: u64,
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    content: Content,
    version: u64,
    used: u64,
}

/// What makes two functions of one host the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    name: String,
    code: Code,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Code {
    Inline(Bytes),
    Blob(Blob),
}

impl Host {
    /// Starts a host and waits until functions can come.
    pub(super) async fn start(
        key: Key,
        scratch: TempDir,
        name: &str,
        log: TaskLog,
        around: Surroundings<'_>,
    ) -> Result<Self, Failure> {
        let dir = scratch.path().to_owned();
        let (progress_path, progress) = progress_file(&dir).map_err(on_disk)?;
        let (python, needs) = match &key.host {
            function::Host::Python(python) => (Some(python), format!("Python {}", python.version)),
            function::Host::Native(native) => (None, format!("an executable for {}", native.target)),
            function::Host::Program(_) => return Err(Failure::internal("a program is not a host")),
        };
        let started = match &key.host {
            function::Host::Native(native) => start_native(native, scratch, log, around).await?,
            _ => start_python(&key, scratch, log, around).await?,
        };
        let mut host = Self {
            key: key.clone(),
            process: started,
            scratch: dir,
            progress,
            defined: Defined::default(),
            unsound: true,
            unasked: false,
        };
        let (modules, libraries) = match python {
            Some(python) => (host.lend_modules(python, around).await?, python.libraries.clone()),
            None => Default::default(),
        };
        let order = Order::Hello {
            protocol: PROTOCOL,
            modules,
            libraries: &libraries,
            progress: progress_path.to_string_lossy().into_owned(),
        };
        let answer = match host.hello(&order, around).await {
            Ok(answer) => answer,
            Err(trouble) => return Err(host.not_ready(trouble, needs, name).await),
        };
        match answer.type_ {
            AnswerType::Unfit => {
                return Err(Failure::Unfit {
                    needs: cut(answer.needs, MAX_MESSAGE_BYTES),
                    why: cut(answer.why, MAX_MESSAGE_BYTES),
                });
            }
            AnswerType::Ready => {}
            _ => {
                let trouble = Trouble::Rubbish("its first message is not that it is ready".to_owned());
                return Err(host.process.conclude(trouble, name).await);
            }
        }
        if let (Some(python), Some(interpreter)) = (python, &key.interpreter)
            && !is_version(&answer.version, &python.version)
        {
            let why = format!("{} is Python {}", interpreter.python.display(), cut(answer.version, 100));
            return Err(Failure::Unfit { needs, why });
        }
        host.unsound = false;
        Ok(host)
    }

    async fn hello(&mut self, order: &Order<'_>, around: Surroundings<'_>) -> Result<Answer, Trouble> {
        let (group, exit) = (self.process.group(), self.process.exit());
        let Process { stdin, stdout, .. } = &mut self.process;
        let hello = async {
            let pipe = stdin.as_mut().ok_or(Trouble::Ended)?;
            wire::write(pipe, order, &[]).await?;
            Ok(wire::read(stdout, 0).await?.0)
        };
        let allowed = Allowed { memory_bytes: u64::MAX, time: Some(READY_PATIENCE) };
        within(hello, (around.meter, group), exit, allowed, &Running::start()).await
    }

    /// Why a host is not ready.
    async fn not_ready(&mut self, trouble: Trouble, needs: String, name: &str) -> Failure {
        if let Trouble::Exceeded(_) = trouble {
            let text = format!("it was not ready within {} s", READY_PATIENCE.as_secs());
            return self.process.conclude(Trouble::Rubbish(text), name).await;
        }
        let ended = matches!(trouble, Trouble::Ended);
        match self.process.conclude(trouble, name).await {
            // It does not run here, but may elsewhere.
            Failure::Crashed { how, output, .. } if ended && !how.contains("SIGKILL") => {
                Failure::Unfit { needs, why: format!("the process {how} before it was ready{output}") }
            }
            failure => failure,
        }
    }

    async fn lend_modules(
        &self,
        python: &Python,
        Surroundings { blobs, disk, .. }: Surroundings<'_>,
    ) -> Result<Vec<String>, Failure> {
        let mut modules = Vec::with_capacity(python.modules.len());
        for (index, module) in python.modules.iter().enumerate() {
            let file = blobs.get(*module).await?;
            let name = format!("module-{index}.zip");
            let there = lent::lend(disk, file, &self.scratch, &name).await.map_err(on_disk)?;
            modules.push(there.to_string_lossy().into_owned());
        }
        Ok(modules)
    }

    /// Whether it may be used again: it has ended no run half-way, lives, and has said nothing unasked.
    pub(super) fn is_sound(&mut self) -> bool {
        let quiet = self.process.stdout.fill_buf().now_or_never().is_none();
        quiet && !self.unsound && !self.process.exit().is_over()
    }

    /// Whether it has ended no run half-way, and nothing was left behind in it.
    pub(super) fn is_whole(&self) -> bool {
        !self.unsound
    }

    /// Ends it, gently.
    pub(super) async fn part(self) {
        self.process.part().await;
    }

    /// The memory it takes.
    pub(super) fn resident(&self, meter: &Meter) -> u64 {
        meter.resident(self.process.group(), u64::MAX)
    }

    /// Whom what it prints from now on belongs to.
    pub(super) fn belongs_to(&self, log: TaskLog) {
        self.process.printed.belongs_to(log);
    }

    /// Whether it has run calls since it was last known to be as new.
    pub(super) fn is_unasked(&self) -> bool {
        self.unasked
    }

    /// Whether what ran before left it so that others may run there. After calls it looks while the results are on their
    /// way already, so that it has to be asked.
    pub(super) async fn is_as_new(&mut self, around: Surroundings<'_>) -> bool {
        if !std::mem::take(&mut self.unasked) {
            return true;
        }
        let (group, exit) = (self.process.group(), self.process.exit());
        let ask = async {
            wire::write(self.process.stdin.as_mut().ok_or(Trouble::Ended)?, &Order::Check, &[]).await?;
            Ok(wire::read(&mut self.process.stdout, 0).await?.0)
        };
        let allowed = Allowed { memory_bytes: u64::MAX, time: Some(READY_PATIENCE) };
        let answer = within(ask, (around.meter, group), exit, allowed, &Running::start()).await;
        answer.is_ok_and(|answer| matches!(answer.type_, AnswerType::Ready))
    }

    /// Runs a function once.
    pub(super) async fn task(
        &mut self,
        Run { function, allowed, around }: Run<'_>,
        argument: Argument,
        inputs: Vec<Bytes>,
    ) -> Result<Returned, Failure> {
        self.unsound = true;
        let running = Running::start();
        let (group, exit) = (self.process.group(), self.process.exit());
        let work = async {
            let number = self.define(function, around.blobs).await?.number;
            running.next();
            let (kind, mut sections) = argument_section(argument, around.blobs).await?;
            sections.extend(inputs.into_iter().map(Section::Bytes));
            let order = Order::Task { function: number, argument: kind };
            wire::write(self.stdin()?, &order, &sections).await?;
            drop(sections);
            loop {
                let (answer, sections) = wire::read(&mut self.process.stdout, allowed.memory_bytes).await?;
                match answer.type_ {
                    AnswerType::Need => self.lend_blob(&answer, around).await?,
                    _ => return Ok((answer, sections)),
                }
            }
        };
        let outcome = within(work, (around.meter, group), exit, allowed, &running).await;
        let (answer, sections) = match outcome {
            Ok(said) => said,
            Err(trouble) => return Err(self.process.conclude(trouble, &function.name).await),
        };
        self.process.printed.drain();
        let body = sections.into_iter().next();
        let output = match (answer.type_, answer.kind, body) {
            (AnswerType::Returned, Some(OutputKind::Object), Some(body)) => Ok(Returned::Object(body)),
            (AnswerType::Returned, Some(OutputKind::Frame), Some(file)) => {
                match frames::check(file.clone(), answer.rows).await {
                    Ok(()) => Ok(Returned::Frame { file, rows: answer.rows }),
                    Err(what) => return Err(self.misunderstood(&function.name, &what).await),
                }
            }
            (AnswerType::Raised, _, exception) => Err(exception_failure(
                &function.name,
                Raised {
                    message: answer.message,
                    traceback: answer.traceback,
                    exception: exception.unwrap_or_default(),
                },
            )),
            _ => {
                return Err(self
                    .misunderstood(&function.name, "it answered a task with something else")
                    .await);
            }
        };
        self.unsound = is_spent(&function.name, &answer.spent);
        output
    }

    async fn misunderstood(&mut self, name: &str, what: &str) -> Failure {
        self.process.conclude(Trouble::Rubbish(what.to_owned()), name).await
    }

    /// Runs a function once for each call. `done` counts the calls that have a result; so does what was reported.
    /// Without an error, those without one did not run, since the host cannot be used any more.
    pub(super) async fn calls(
        &mut self,
        Run { function, allowed, around }: Run<'_>,
        number: Number,
        calls: &[Call],
        done: &mut usize,
        results: &mut (dyn FnMut(Vec<CallResult>) + Send),
    ) -> Result<(), Failure> {
        self.unsound = true;
        self.unasked = matches!(self.key.host, function::Host::Python(_));
        let running = Running::start();
        let (group, exit) = (self.process.group(), self.process.exit());
        let work = async {
            wire::write_calls(self.stdin()?, number.number, calls).await?;
            while *done < calls.len() {
                let (answer, sections) = wire::read(&mut self.process.stdout, allowed.memory_bytes).await?;
                match answer.type_ {
                    AnswerType::Need => self.lend_blob(&answer, around).await?,
                    AnswerType::Spent => return Ok(answer.spent),
                    AnswerType::Results => {
                        running.next();
                        let open = calls.get(*done..).unwrap_or_default();
                        let ended = take_results(sections, open, &function.name, around.blobs).await?;
                        *done += ended.len();
                        results(ended);
                        if !answer.spent.is_empty() {
                            return Ok(answer.spent);
                        }
                    }
                    _ => {
                        let text = "it answered calls with something else than results".to_owned();
                        return Err(Trouble::Rubbish(text));
                    }
                }
            }
            Ok(String::new())
        };
        let outcome = within(work, (around.meter, group), exit, allowed, &running).await;
        match outcome {
            Ok(spent) => {
                self.unsound = is_spent(&function.name, &spent);
                Ok(())
            }
            Err(trouble) => Err(self.process.conclude(trouble, &function.name).await),
        }
    }

    /// Tells it a function, unless it knows it.
    pub(super) async fn known(
        &mut self,
        function: &Function,
        around: Surroundings<'_>,
    ) -> Result<Number, Failure> {
        self.unsound = true;
        match self.define(function, around.blobs).await {
            Ok(number) => {
                self.unsound = false;
                Ok(number)
            }
            Err(trouble) => Err(self.process.conclude(trouble, &function.name).await),
        }
    }

    /// Whether a function still has the number that it was given.
    pub(super) fn still_known(&mut self, number: Number) -> bool {
        self.defined.touch(number)
    }

    /// The call that it works on, or worked on when it ended, if it has said so.
    pub(super) fn present_call(&self) -> Option<u64> {
        let mut id = [0; 8];
        self.progress.read_exact_at(&mut id, 0).ok()?;
        Some(u64::from_le_bytes(id))
    }

    fn stdin(&mut self) -> Result<&mut tokio::process::ChildStdin, Trouble> {
        self.process.stdin.as_mut().ok_or(Trouble::Ended)
    }

    async fn define(&mut self, function: &Function, blobs: &dyn Blobs) -> Result<Number, Trouble> {
        let content = Content::of(function);
        if let Some(number) = self.defined.find(&content) {
            return Ok(number);
        }
        let code = payload_section(&function.code, blobs).await?;
        let (number, former) = self.defined.insert(content);
        if !former.is_empty() {
            wire::write(self.stdin()?, &Order::Forget { functions: &former }, &[]).await?;
        }
        let name = floor(&function.name, MAX_NAME_BYTES);
        let order = Order::Define { function: number.number, name };
        wire::write(self.stdin()?, &order, &[code]).await?;
        Ok(number)
    }

    /// Answers that a blob is needed.
    async fn lend_blob(
        &mut self,
        need: &Answer,
        Surroundings { blobs, disk, .. }: Surroundings<'_>,
    ) -> Result<(), Trouble> {
        let id: BlobId = need.blob.parse().map_err(|_| {
            Trouble::Rubbish(format!("it needs the blob {}", wire::shown(need.blob.as_bytes())))
        })?;
        let found = blobs.get(Blob { id, bytes: need.bytes }).await;
        let lent = match found {
            Ok(file) => lent::lend(disk, file, &self.scratch, &need.blob).await.map_err(on_disk),
            Err(failure) => Err(failure),
        };
        let (path, missing) = match lent {
            Ok(path) => (Some(path), None),
            // Another node may have the room.
            Err(failure @ Failure::Exhausted { .. }) => return Err(Trouble::Failed(failure)),
            Err(failure) => (None, Some(cut(failure.to_string(), MAX_MESSAGE_BYTES))),
        };
        let path = path.map(|path| path.to_string_lossy().into_owned());
        let order = Order::Blob { blob: &need.blob, path: path.as_deref(), missing: missing.as_deref() };
        Ok(wire::write(self.stdin()?, &order, &[]).await?)
    }
}

impl Defined {
    fn find(&mut self, content: &Content) -> Option<Number> {
        let number = *self.numbers.get(content)?;
        let version = self.slots.get(&number)?.version;
        self.touch(Number { number, version }).then_some(Number { number, version })
    }

    fn touch(&mut self, number: Number) -> bool {
        self.clock += 1;
        match self.slots.get_mut(&number.number) {
            Some(slot) if slot.version == number.version => {
                slot.used = self.clock;
                true
            }
            _ => false,
        }
    }

    /// Gives a function a number; returns those of the functions that make way for it.
    fn insert(&mut self, content: Content) -> (Number, Vec<u32>) {
        let bytes = content.bytes();
        let mut former = Vec::new();
        while self.slots.len() >= MAX_DEFINED || self.bytes + bytes > MAX_DEFINED_BYTES {
            let oldest = self.slots.iter().min_by_key(|(_, slot)| slot.used).map(|(number, _)| *number);
            let Some((oldest, slot)) = oldest.and_then(|oldest| Some((oldest, self.slots.remove(&oldest)?)))
            else {
                break;
            };
            self.bytes -= slot.content.bytes();
            self.numbers.remove(&slot.content);
            former.push(oldest);
        }
        self.bytes += bytes;
        self.clock += 1;
        // There are at most so many, so one of the first numbers is free.
        let number = (0..).find(|number| !self.slots.contains_key(number)).unwrap_or_default();
        let (version, used) = (self.clock, self.clock);
        self.slots.insert(number, Slot { content: content.clone(), version, used });
        self.numbers.insert(content, number);
        (Number { number, version }, former)
    }
}

impl Content {
    fn of(function: &Function) -> Self {
        let code = match &function.code {
            Payload::Inline(bytes) => Code::Inline(bytes.clone()),
            Payload::Blob(blob) => Code::Blob(*blob),
        };
        Self { name: function.name.clone(), code }
    }

    fn bytes(&self) -> u64 {
        match &self.code {
            Code::Inline(bytes) => bytes.len() as u64,
            Code::Blob(blob) => blob.bytes,
        }
    }
}

async fn start_native(
    native: &Native,
    scratch: TempDir,
    log: TaskLog,
    around: Surroundings<'_>,
) -> Result<Process, Failure> {
    let needs = format!("an executable for {}", native.target);
    let here = function::target();
    if native.target != here {
        return Err(Failure::Unfit { needs, why: format!("this node is {here}") });
    }
    let file = around.blobs.get(native.executable).await?;
    let program = lent::link_executable(around.disk, file, &scratch.path().join("bin"), "host").await;
    let program = program.map_err(on_disk)?;
    let mut env: Vec<_> = process::thread_env(around.threads).collect();
    env.push((NATIVE_ENV, "1".to_owned()));
    let start = Start { program: &program, arguments: Vec::new(), env, scratch, log, adopts: true };
    let started = Process::start(start, around.family).await;
    started.map_err(|error| not_started(&error, needs, around.family))
}

async fn start_python(
    key: &Key,
    scratch: TempDir,
    log: TaskLog,
    around: Surroundings<'_>,
) -> Result<Process, Failure> {
    let (function::Host::Python(python), Some(interpreter)) = (&key.host, &key.interpreter) else {
        return Err(Failure::internal("a Python host has no interpreter"));
    };
    let script = scratch.path().join("host.py");
    std::fs::write(&script, HOST_PY).map_err(on_disk)?;
    std::fs::write(scratch.path().join("fresh.py"), FRESH_PY).map_err(on_disk)?;
    let mut env: Vec<_> = process::thread_env(around.threads).collect();
    env.extend(process::own_env(&python.env));
    let arguments: Vec<&OsStr> = vec![script.as_os_str()];
    let start = Start { program: &interpreter.python, arguments, env, scratch, log, adopts: true };
    let started = Process::start(start, around.family).await;
    started.map_err(|error| {
        let error = io::Error::new(error.kind(), format!("{}: {error}", interpreter.python.display()));
        not_started(&error, format!("Python {}", python.version), around.family)
    })
}

fn not_started(error: &io::Error, needs: String, family: &Family) -> Failure {
    if family.is_closed() {
        return Failure::Unavailable { message: "this node is stopping".to_owned() };
    }
    process::no_room(error)
        .unwrap_or_else(|| Failure::Unfit { needs, why: format!("it does not start: {error}") })
}

pub(super) fn on_disk(error: io::Error) -> Failure {
    if disk::is_full(&error) {
        return Failure::Exhausted {
            what: "disk".to_owned(),
            message: format!("a host's directory has no room: {error}"),
        };
    }
    process::no_room(&error).unwrap_or_else(|| Failure::internal(format!("a host's directory: {error}")))
}

/// A file for the number of a call.
fn progress_file(scratch: &Path) -> io::Result<(PathBuf, File)> {
    let path = scratch.join("progress");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    file.write_all_at(&[0; 8], 0)?;
    Ok((path, file))
}

/// Whether `3.12.4` is a `3.12`.
fn is_version(full: &str, wanted: &str) -> bool {
    full.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

async fn payload_section(payload: &Payload, blobs: &dyn Blobs) -> Result<Section, Trouble> {
    match payload {
        Payload::Inline(bytes) => Ok(Section::Bytes(bytes.clone())),
        Payload::Blob(blob) => {
            let path = blobs.get(*blob).await.map_err(Trouble::Failed)?;
            Ok(Section::File(path, blob.bytes))
        }
    }
}

async fn argument_section(
    argument: Argument,
    blobs: &dyn Blobs,
) -> Result<(ArgumentKind, Vec<Section>), Trouble> {
    match argument {
        Argument::None => Ok((ArgumentKind::None, Vec::new())),
        Argument::Payload(payload) => {
            Ok((ArgumentKind::Bytes, vec![payload_section(&payload, blobs).await?]))
        }
        Argument::File(mark) => Ok((ArgumentKind::Path, vec![Section::Bytes(mark.path.into())])),
    }
}

/// The results in a message, which must be those of the next calls. What is too large for a frame becomes a blob.
async fn take_results(
    sections: Vec<Bytes>,
    open: &[Call],
    name: &str,
    blobs: &dyn Blobs,
) -> Result<Vec<CallResult>, Trouble> {
    let mut ended = Vec::new();
    for raw in wire::results(sections)? {
        if open.get(ended.len()).is_none_or(|call| call.id != raw.id) {
            return Err(Trouble::Rubbish(format!(
                "it has a result of call {}, which it does not run",
                raw.id
            )));
        }
        let outcome = if raw.raised {
            let raised: Raised = frame::decode(&raw.body)
                .map_err(|error| Trouble::Rubbish(format!("an exception of it cannot be read: {error}")))?;
            Err(exception_failure(name, raised))
        } else if raw.body.len() > MAX_CALL_BYTES {
            blobs.put(raw.body).await.map(CallReturned::Blob)
        } else {
            Ok(CallReturned::Inline(raw.body))
        };
        ended.push(CallResult { id: raw.id, outcome, elapsed_us: raw.elapsed_us });
    }
    Ok(ended)
}

/// Whether a function left its host so that no other may run there.
fn is_spent(name: &str, spent: &str) -> bool {
    if !spent.is_empty() {
        let left = floor(spent, MAX_MESSAGE_BYTES);
        tracing::debug!(name, left, "a function left something behind: its process is replaced");
    }
    !spent.is_empty()
}

fn exception_failure(name: &str, raised: Raised) -> Failure {
    let message = if raised.message.is_empty() { "it did not say why".to_owned() } else { raised.message };
    let fits = raised.exception.len() <= MAX_EXCEPTION_BYTES;
    Failure::Exception {
        name: name.to_owned(),
        message: cut(message, MAX_MESSAGE_BYTES),
        traceback: cut(raised.traceback, MAX_TRACEBACK_BYTES),
        exception: if fits { raised.exception } else { Bytes::new() },
    }
}

/// As much of a text as fits.
pub(super) fn cut(mut text: String, bytes: usize) -> String {
    let end = floor(&text, bytes).len();
    text.truncate(end);
    text
}

fn floor(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str) -> Function {
        Function {
            name: name.to_owned(),
            host: function::Host::Python(Python::default()),
            code: Payload::Inline(Bytes::from_static(b"code")),
            limits: Default::default(),
        }
    }

    #[test]
    fn functions_have_numbers_until_others_make_them_go() {
        let mut defined = Defined::default();
        let contents: Vec<_> = (0..=MAX_DEFINED).map(|n| Content::of(&function(&n.to_string()))).collect();
        let numbers: Vec<_> = contents[..MAX_DEFINED].iter().map(|c| defined.insert(c.clone()).0).collect();
        assert_eq!(defined.find(&contents[0]), Some(numbers[0]));
        let (last, former) = defined.insert(contents[MAX_DEFINED].clone());
        assert_eq!(last.number, numbers[1].number, "that of the one not used for longest");
        assert_eq!(former, [numbers[1].number]);
        assert_eq!(defined.find(&contents[1]), None);
        assert!(!defined.touch(numbers[1]));
        assert!(defined.touch(numbers[0]) && defined.touch(last));
    }

    #[test]
    fn functions_take_no_more_bytes_than_they_may() {
        let large = |n: u64| {
            let blob = Blob { id: BlobId(n.into()), bytes: MAX_DEFINED_BYTES / 2 - 10 };
            Content::of(&Function { code: Payload::Blob(blob), ..function("large") })
        };
        let mut defined = Defined::default();
        let small = defined.insert(Content::of(&function("small"))).0;
        let (first, second) = (defined.insert(large(1)).0, defined.insert(large(2)).0);
        assert!(defined.touch(small) && defined.touch(first) && defined.touch(second));
        let (third, former) = defined.insert(large(3));
        assert_eq!((third.number, former), (small.number, vec![small.number, first.number]));
        assert!(!defined.touch(small) && !defined.touch(first) && defined.touch(second));
        let blob = Blob { id: BlobId(4), bytes: 2 * MAX_DEFINED_BYTES };
        let (_, former) =
            defined.insert(Content::of(&Function { code: Payload::Blob(blob), ..function("huge") }));
        assert_eq!((former.len(), defined.slots.len()), (2, 1));
        assert_eq!(defined.insert(large(5)).1.len(), 1);
        assert_eq!((defined.bytes, defined.numbers.len()), (MAX_DEFINED_BYTES / 2 - 10, 1));
    }

    #[test]
    fn a_minor_version_is_compared_as_a_whole() {
        assert!(is_version("3.12.4", "3.12") && is_version("3.12", "3.12") && is_version("3.12.4", "3.12.4"));
        assert!(!is_version("3.12.4", "3.1") && !is_version("3.1.4", "3.12"));
    }
}
