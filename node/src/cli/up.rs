//! `floe up`

use std::collections::BTreeSet;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use floe_client::local;
use floe_protocol::version::FLOE_VERSION;
use libp2p::Multiaddr;

use super::interrupt::Interrupt;
use super::{End, anew, output};
use crate::config::{self, Settings};
use crate::data_dir::{self, DataDir};
use crate::enter::enter;
use crate::fault::Faults;
use crate::keys::KeySource;
use crate::node::Node;
use crate::ticket::Ticket;

/// Start a node, which finds the others and becomes one mesh with them
///
/// It listens on loopback only and finds the nodes of this machine, unless --lan opens it to the network or a
/// ticket or an address leads it to others. It prints one line that starts with `ready`, and runs until Ctrl-C.
#[derive(Args, Debug)]
pub(super) struct UpArgs {
    /// What `floe invite` printed on a node of the mesh to join, or `-` to read it from standard input. It is needed once:
    /// the node keeps the mesh key that it got for it
    #[arg(value_parser = ticket)]
    ticket: Option<Ticket>,
    /// Listen on every network interface, and find nodes on the local network by mDNS
    #[arg(long)]
    lan: bool,
    /// What the node is called, in 1 to 128 bytes; the machine's name unless given
    #[arg(long, value_parser = config::parse_name)]
    name: Option<String>,
    /// Where the node keeps its identity, log and partitions; the first free one of the user's unless given
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen; may be given more than once
    #[arg(long, value_name = "MULTIADDR", value_parser = address)]
    listen: Vec<Multiaddr>,
    /// A node of the mesh to join; may be given more than once
    #[arg(long, value_name = "MULTIADDR", value_parser = address)]
    join: Vec<Multiaddr>,
    /// The file that holds the mesh key; the user's own, made when needed, unless given
    #[arg(long, value_name = "FILE", env = "FLOE_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// Memory for tasks and partitions, for example 256MiB; half the machine's unless given
    #[arg(long, value_name = "SIZE", value_parser = config::parse_memory)]
    memory: Option<u64>,
    /// How many tasks run at once; one a core unless given. With 0 the node is a witness: it votes and does no work
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// The Python that functions run with, where its version is the one they need; found unless given
    #[arg(long, value_name = "FILE", env = "FLOE_PYTHON")]
    python: Option<PathBuf>,
    /// Let `floe chaos` crash and pause this node
    #[arg(long)]
    allow_chaos: bool,
    /// End when standard input ends, as that of a program that started this node
    #[arg(long, hide = true)]
    while_stdin: bool,
    /// Wait for this many nodes, this one included, before founding a new mesh
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    expect: Option<u32>,
}

fn address(text: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|error| format!("it is not a multiaddress such as /ip4/192.0.2.1/tcp/4001: {error}"))
}

/// The longest ticket that is read.
const MAX_TICKET_BYTES: u64 = 64 << 10;

/// A ticket as it is given, or on the first line of standard input.
fn ticket(text: &str) -> Result<Ticket, String> {
    let mut line = String::new();
    let text = if text == "-" {
        let mut input = std::io::stdin().lock().take(MAX_TICKET_BYTES);
        input.read_line(&mut line).map_err(|error| format!("cannot read it from standard input: {error}"))?;
        if line.trim().is_empty() {
            return Err("nothing came from standard input: pipe in what `floe invite` printed".to_owned());
        }
        line.trim()
    } else {
        text
    };
    text.parse().map_err(|error| format!("{error}"))
}

pub(super) async fn run(args: UpArgs) -> anyhow::Result<End> {
    let mut interrupt = Interrupt::listen()?;
    let home = local::home()?;
    let (mut data_dir, number) = match &args.data_dir {
        Some(path) => (DataDir::open(path)?, 0),
        None => DataDir::open_numbered(&config::nodes(&home))?,
    };
    let key = tokio::select! {
        key = key(&args, &mut data_dir) => key?,
        () = interrupt.wait() => return Ok(End::Interrupted),
    };
    let while_stdin = args.while_stdin;
    let settings = settings(args, &home, number);
    output::note(format_args!(
        "floe {FLOE_VERSION}: node {} keeps its data in {} and looks for the others",
        settings.name,
        data_dir.path().display()
    ));
    let dir = data_dir.path().to_owned();
    let starting = Node::start(settings, data_dir, key);
    let mut node = tokio::select! {
        started = starting => match started {
            Err(error) if error.is_superseded() => return Err(anew::start_again(&dir, error)),
            started => started?,
        },
        () = interrupt.wait() => return Ok(End::Interrupted),
    };
    let address = node.addresses().into_iter().next().context("the node has no address")?;
    output::print(format_args!("ready {address}\n"))?;
    tokio::select! {
        error = node.failed() => match error.is_superseded() {
            true => Err(anew::start_again(&dir, error)),
            false => Err(error.into()),
        },
        () = interrupted_or_abandoned(&mut interrupt, while_stdin) => {
            tracing::info!("leaving the mesh");
            tokio::select! {
                left = node.leave() => left?,
                // A second Ctrl-C: whoever pressed it does not want to wait.
                () = interrupt.wait() => {}
            }
            Ok(End::Done)
        }
    }
}

/// Ends with Ctrl-C, or, for a node that lives as long as the program which started it, with standard input.
async fn interrupted_or_abandoned(interrupt: &mut Interrupt, while_stdin: bool) {
    // On a thread of its own, which nothing waits for: a read from standard input cannot be given up.
    let (abandoned, ended) = tokio::sync::oneshot::channel();
    if while_stdin {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = abandoned.send(());
        });
        tokio::select! {
            _ = ended => {}
            () = interrupt.wait() => {}
        }
    } else {
        interrupt.wait().await;
    }
}

/// The mesh key: what the ticket's invitation is worth, the one of the given file, the data directory's own, or the
/// user's.
async fn key(args: &UpArgs, data_dir: &mut DataDir) -> anyhow::Result<KeySource> {
    let (own, users) = (data_dir.key_file(), local::key_file(&local::home()?));
    let found = |key, file: &Path| {
        // Drivers of this machine read the user's own.
        let files = [file.to_owned(), users.clone()].into_iter().collect::<BTreeSet<_>>();
        KeySource { key, files: files.into_iter().collect() }
    };
    if let Some(ticket) = &args.ticket {
        let invitation = ticket.secret.id();
        let key = match data_dir.key_by(invitation) {
            Some(key) => key?,
            None => {
                let key = enter(data_dir.identity(), ticket).await?;
                // The node must find its way back in when it is started again.
                data_dir.keep_key(&key, invitation)?;
                key
            }
        };
        // A machine without a key of its own has one now, so that drivers on it need no --key-file.
        if !users.exists() {
            data_dir::write_key(&users, &key)?;
        }
        return Ok(found(key, &own));
    }
    let file = match &args.key_file {
        Some(file) => file.clone(),
        None if own.exists() => own,
        None => return Ok(found(data_dir::read_or_make_key(&users)?, &users)),
    };
    Ok(found(data_dir::read_key(&file)?, &file))
}

/// `number` tells the nodes of one machine apart, from 0.
fn settings(args: UpArgs, home: &Path, number: usize) -> Settings {
    let mut join = args.join;
    join.extend(args.ticket.into_iter().flat_map(|ticket| ticket.addresses));
    Settings {
        name: args.name.unwrap_or_else(|| config::default_name(number)),
        listen: args.listen,
        // Whoever joins nodes of other machines must be reachable by them.
        everywhere: args.lan || join.iter().any(config::is_beyond_loopback),
        mdns: args.lan,
        join,
        memory_bytes: args.memory.unwrap_or_else(config::default_memory_bytes),
        slots: args.slots.unwrap_or_else(config::default_slots),
        expect: args.expect.map(|count| count as usize),
        registry: Some(local::registry(home)),
        environments: Some(config::environments(home)),
        python: args.python,
        faults: if args.allow_chaos { Faults::Allowed } else { Faults::NotAllowed },
    }
}

impl UpArgs {
    /// Gives Polars as many threads as the node has slots, unless its user decided otherwise. To be called
    /// before any other thread runs.
    pub(super) fn configure_threads(&self) {
        const THREADS: &str = "POLARS_MAX_THREADS";
        if std::env::var_os(THREADS).is_none() {
            let slots = self.slots.unwrap_or_else(config::default_slots).max(1);
            // SAFETY: the caller has started no thread yet that could read the environment meanwhile.
            unsafe { std::env::set_var(THREADS, slots.to_string()) };
        }
    }
}
