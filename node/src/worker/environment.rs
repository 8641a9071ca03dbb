//! The Python interpreters of a machine, and environments in which a function's requirements are installed.
//!
//! An environment is made once, in a directory named by all that it is made of, and used by every node of the
//! machine:
//!
//! ```text
//!   DIR/3f2a…/        a virtual environment; `ready` in it is written last, and touched at every use
//!   DIR/3f2a….lock    held, shared, by who uses it; alone, by who makes or removes it
//!   DIR/3f2a….log     the end of what pip or uv printed at the last try
//! ```
//!
//! What the interpreter itself has can be imported in its environments too. If something is installed into
//! the interpreter, or removed, its environments are made anew.

mod cache;
mod find;
mod flight;
mod make;
mod packages;
mod process;
mod text;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use floe_protocol::Failure;
use floe_protocol::function::Python;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use self::cache::{InUse, Making, Place, State};
use self::find::{Finder, Found, Places, Version};
use self::flight::{Flights, Lines, Outcome};
use self::make::Plan;
use self::packages::{Lists, Packages};
pub(crate) use self::process::{Guarded, Guardian};

/// How long making an environment may take, and how long another node is waited for that makes it.
const MAKING_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How often it is looked whether another node has made an environment.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The most requirements of one function.
const MAX_REQUIREMENTS: usize = 256;

/// The longest requirement.
const MAX_REQUIREMENT_BYTES: usize = 1024;

/// Counts the ways in which environments are made: another one does not use those of this.
const FORMAT: &str = "floe environment 1";

/// Finds interpreters and makes environments. Cheap to clone; clones share what they know.
#[derive(Clone)]
pub(crate) struct Environments(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    finder: Finder,
    lists: Lists,
    flights: Arc<Flights>,
    /// Environment variables for pip and uv, besides this process's own.
    variables: Vec<(OsString, OsString)>,
    /// Who looks after pip and uv.
    guardian: Arc<dyn Guardian>,
}

/// An interpreter that can be started. Keep it as long as the process runs: its environment is not removed as
/// long as it, or a clone, lives. Two are equal if they are the same program.
#[derive(Clone, Debug)]
pub(crate) struct Interpreter {
    /// The program.
    pub(crate) python: PathBuf,
    _in_use: Option<InUse>,
}

impl PartialEq for Interpreter {
    fn eq(&self, other: &Self) -> bool {
        self.python == other.python
    }
}

impl Eq for Interpreter {}

impl Environments {
    /// Environments are kept in `dir`; `python` is the interpreter to be preferred. Looks at nothing yet.
    pub(crate) fn new(dir: PathBuf, python: Option<PathBuf>, guardian: Arc<dyn Guardian>) -> Self {
        Self::with(dir, Places::of_process(python), Vec::new(), guardian)
    }

    fn with(
        dir: PathBuf,
        places: Places,
        variables: Vec<(OsString, OsString)>,
        guardian: Arc<dyn Guardian>,
    ) -> Self {
        let finder = Finder::new(places);
        let (lists, flights) = (Lists::default(), Arc::default());
        Self(Arc::new(Inner { dir, finder, lists, flights, variables, guardian }))
    }

    /// An interpreter of the wanted version in which the requirements can be imported. Making its environment
    /// may take minutes; `say` gets lines that tell how far it is. Dropping the future stops the making,
    /// unless others wait for it too.
    ///
    /// [`Failure::Unfit`] if this machine lacks the version, or cannot install the requirements;
    /// [`Failure::Refused`] for what is no version or requirement.
    pub(crate) async fn interpreter(
        &self,
        wanted: &Python,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Interpreter, Failure> {
        let version = read_version(&wanted.version)?;
        let requirements = read_requirements(&wanted.requirements)?;
        let base = self.0.finder.find(version).await?;
        if requirements.is_empty() {
            return Ok(Interpreter { python: base.python, _in_use: None });
        }
        let packages = self
            .0
            .lists
            .of(&base)
            .await
            .map_err(|why| make::unfit(&requirements, &format!("{} {why}", base.python.display())))?;
        let plan = Plan {
            place: Place::new(&self.0.dir, key(&base, &packages, &requirements)),
            base,
            packages,
            requirements,
            uv: self.0.finder.places().uv(),
            variables: self.0.variables.clone(),
            guardian: Arc::clone(&self.0.guardian),
        };
        let key = plan.place.path().to_string_lossy().into_owned();
        self.0.flights.outcome(&key, say, |lines| environment(self.0.dir.clone(), plan, lines)).await
    }
}

/// The environment of a plan, made if it is not there.
async fn environment(dir: PathBuf, plan: Plan, lines: Lines) -> Outcome {
    let begun = Instant::now();
    let mut waited = 0;
    loop {
        let state = plan.place.enter().map_err(|error| plan.unfit_io("use", &plan.place.path(), &error))?;
        match state {
            State::Ready(in_use) => {
                return Ok(Interpreter { python: plan.place.python(), _in_use: Some(in_use) });
            }
            State::Missing(making) => {
                let made = make_in_time(&plan, &making, &lines).await;
                drop(making);
                remove_unused(dir.clone()).await;
                made?;
            }
            State::Busy if begun.elapsed() > MAKING_LIMIT => {
                return Err(plan.unfit(&format!(
                    "another process has been making it for more than {} minutes",
                    MAKING_LIMIT.as_secs() / 60
                )));
            }
            State::Busy => {
                // Once may be another's glance at the lock.
                waited += 1;
                if waited == 2 {
                    lines.say(&format!("environment {}…: another process makes it", plan.place.name()));
                }
                sleep(LOOK_INTERVAL).await;
            }
        }
    }
}

async fn make_in_time(plan: &Plan, making: &Making, lines: &Lines) -> Result<(), Failure> {
    let begun = Instant::now();
    make::clear(plan, making).await?;
    let made = timeout(MAKING_LIMIT, make::make(plan, making, lines)).await.unwrap_or_else(|_| {
        let minutes = MAKING_LIMIT.as_secs() / 60;
        Err(plan.unfit(&format!(
            "it was not made within {minutes} minutes; what was printed is in {}",
            plan.place.log().display()
        )))
    });
    if let Err(failure) = made {
        // What is left is not whole, so nothing hangs on this.
        if let Err(error) = make::clear(plan, making).await {
            tracing::debug!(%error, "a half-made environment stays");
        }
        return Err(failure);
    }
    plan.place
        .finish(making, &plan.description())
        .map_err(|error| plan.unfit_io("finish", &plan.place.path(), &error))?;
    let seconds = begun.elapsed().as_secs_f64();
    lines.say(&format!("environment {}…: ready after {seconds:.1} s", plan.place.name()));
    Ok(())
}

async fn remove_unused(dir: PathBuf) {
    let removed = spawn_blocking(move || cache::remove_unused(&dir)).await;
    if let Err(error) = removed.map_err(io::Error::other).flatten() {
        tracing::warn!(%error, "cannot remove environments that are not used");
    }
}

/// The name of an environment: a digest of all that it is made of.
fn key(base: &Found, packages: &Packages, requirements: &[String]) -> String {
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    };
    add(FORMAT.as_bytes());
    add(base.version.as_bytes());
    add(base.python.as_os_str().as_bytes());
    packages.directories.iter().for_each(|dir| add(dir.as_os_str().as_bytes()));
    for (name, version) in &packages.distributions {
        add(format!("{name}=={version}").as_bytes());
    }
    // What is installed is a name and a version, so the count tells it from what is required.
    add(&(requirements.len() as u64).to_le_bytes());
    requirements.iter().for_each(|requirement| add(requirement.as_bytes()));
    HEXLOWER.encode(&digest.finalize()[..16])
}

/// Nothing for any version.
fn read_version(text: &str) -> Result<Option<Version>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let version = Version::parse(text).ok_or_else(|| Failure::Refused {
        message: format!("{text:?} is no Python version: say major and minor, as 3.12"),
    })?;
    Ok(Some(version))
}

/// In order and each once. They are arguments of pip, so none may be one of its options.
fn read_requirements(texts: &[String]) -> Result<Vec<String>, Failure> {
    let refused = |message: String| Err(Failure::Refused { message });
    if texts.len() > MAX_REQUIREMENTS {
        return refused(format!(
            "a function may have {MAX_REQUIREMENTS} requirements, and this has {}",
            texts.len()
        ));
    }
    let mut requirements = Vec::with_capacity(texts.len());
    for text in texts {
        let requirement = text.trim();
        if requirement.is_empty() {
            return refused("a requirement is empty: say a package's name, as nltk==3.9.1".to_owned());
        }
        if requirement.len() > MAX_REQUIREMENT_BYTES {
            let start: String = requirement.chars().take(60).collect();
            return refused(format!("the requirement {start}… is longer than {MAX_REQUIREMENT_BYTES} bytes"));
        }
        if requirement.starts_with('-') {
            return refused(format!(
                "the requirement {requirement} is an option: options of pip are set on the nodes, by its \
                 configuration or environment variables"
            ));
        }
        if requirement.contains(|c: char| c.is_control()) {
            return refused(format!("the requirement {requirement:?} holds control characters"));
        }
        requirements.push(requirement.to_owned());
    }
    requirements.sort();
    requirements.dedup();
    Ok(requirements)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
