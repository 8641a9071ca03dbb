//! Makes an environment: a virtual environment with the requirements, in which all that the node's
//! interpreter has is importable too, after what was asked for.
//!
//! Not with `--system-site-packages`: in an interpreter that is a virtual environment itself, that means the
//! one below it. A `.pth` file names the interpreter's directories instead, before pip runs, so that pip
//! installs only what is not there in a version that fits.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::{env, fs, io};

use floe_protocol::Failure;
use tokio::process::Command;
use tokio::task::spawn_blocking;

use super::cache::{Making, Place};
use super::find::Found;
use super::flight::Lines;
use super::packages::{Packages, required_name};
use super::process::{self, Guardian};
use super::text::Printed;

/// Adds directories to the path of the environment whose interpreter runs it, after its own, each with what
/// its `.pth` files add. The name makes it the last of the environment's own `.pth` files.
const ADD_DIRECTORIES: &str = "import os, sys, sysconfig
own = sysconfig.get_path('purelib')
os.makedirs(own, exist_ok=True)
with open(os.path.join(own, 'zzz_floe_node.pth'), 'w') as f:
    f.write('import site; list(map(site.addsitedir, %s))\\n' % ascii(sys.argv[1:]))
";

/// How pip's environment variables are called for uv.
const PIP_FOR_UV: [(&str, &str); 4] = [
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
    ("PIP_CERT", "SSL_CERT_FILE"),
];

/// Variables with which pip and uv would work on another place than the one they are told to.
const MISLEADING: [&str; 10] = [
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_PYTHON",
    "PYTHONHOME",
    "PYTHONPATH",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_PROJECT",
    "VIRTUAL_ENV",
];

/// The file in an environment that tells uv which versions the interpreter has.
const CONSTRAINTS: &str = "floe-constraints.txt";

/// What is to be made, and of what.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) place: Place,
    pub(super) base: Found,
    pub(super) packages: Packages,
    /// Sorted.
    pub(super) requirements: Vec<String>,
    pub(super) uv: Option<PathBuf>,
    /// Environment variables besides this process's own.
    pub(super) variables: Vec<(OsString, OsString)>,
    pub(super) guardian: Arc<dyn Guardian>,
}

/// Says, and keeps for the log, which is written when it is dropped: also if the making broke off.
struct Record<'a> {
    plan: &'a Plan,
    lines: &'a Lines,
    printed: Printed,
}

impl Record<'_> {
    fn say(&mut self, line: &str) {
        self.printed.push(line);
        self.lines.say(line);
    }

    fn headline(&mut self, text: &str) {
        self.say(&format!("environment {}…: {text}", self.plan.place.name()));
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let log = self.plan.place.log();
        if let Err(error) = fs::write(&log, self.printed.text()) {
            tracing::warn!(log = %log.display(), %error, "cannot keep the log of an environment");
        }
    }
}

/// Makes it, up to saying that it is whole.
pub(super) async fn make(plan: &Plan, making: &Making, lines: &Lines) -> Result<(), Failure> {
    let mut record = Record { plan, lines, printed: Printed::default() };
    let made = match create(plan, making, &mut record).await {
        Ok(Some(uv)) => install_with_uv(uv, plan, making, &mut record).await,
        Ok(None) => install_with_pip(plan, making, &mut record).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &made {
        record.headline(&format!("failed: {failure}"));
    }
    made
}

/// Makes a virtual environment without the requirements; tells uv if that made it.
async fn create<'a>(
    plan: &'a Plan,
    making: &Making,
    record: &mut Record<'_>,
) -> Result<Option<&'a Path>, Failure> {
    let base = &plan.base;
    let mut made_by = None;
    if let Some(uv) = &plan.uv {
        record.headline(&format!("creating with uv ({base})"));
        let mut command = Command::new(uv);
        command.args(["venv", "--quiet", "--python"]).arg(&base.python).arg(plan.place.path());
        // Not in the node's directory, which may be a project's.
        command.current_dir("/");
        if run(plan, making, record, command).await? {
            made_by = Some(uv.as_path());
        } else {
            record.headline("uv does not work here; with venv instead");
            clear(plan, making).await?;
        }
    }
    if made_by.is_none() {
        record.headline(&format!("creating with venv ({base})"));
        let mut command = Command::new(&base.python);
        command.args(["-I", "-m", "venv"]);
        if plan.packages.pip {
            // The interpreter's own serves the environment too, and some seconds are saved.
            command.arg("--without-pip");
        }
        command.arg(plan.place.path()).current_dir("/");
        if !run(plan, making, record, command).await? {
            if record.printed.mentions(["ensurepip"].into_iter()) {
                return Err(plan.unfit(&format!(
                    "{} has neither pip nor ensurepip: install uv, or pip or venv for this Python",
                    base.python.display()
                )));
            }
            return Err(plan.unfit(&record.printed.reason()));
        }
    }
    let mut command = Command::new(plan.place.python());
    command.args(["-I", "-c", ADD_DIRECTORIES]).args(&plan.packages.directories).current_dir("/");
    if !run(plan, making, record, command).await? {
        return Err(plan.unfit(&record.printed.reason()));
    }
    Ok(made_by)
}

async fn install_with_pip(plan: &Plan, making: &Making, record: &mut Record<'_>) -> Result<(), Failure> {
    record.headline(&format!("installing {}", plan.requirements.join(", ")));
    let mut command = Command::new(plan.place.python());
    command.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"]);
    command.args(["--progress-bar", "off", "--"]).args(&plan.requirements);
    // `-m` looks for modules in the working directory, and here are none.
    command.current_dir(plan.place.path());
    if run(plan, making, record, command).await? {
        return Ok(());
    }
    Err(plan.unfit(&record.printed.reason()))
}

/// uv does not see what the interpreter has. So that both fit together, what it installs besides the
/// requirements is to be of the versions that are there; if that cannot be, of any.
async fn install_with_uv(
    uv: &Path,
    plan: &Plan,
    making: &Making,
    record: &mut Record<'_>,
) -> Result<(), Failure> {
    let others = plan.others();
    let constraints: String = others.iter().map(|(name, version)| format!("{name}=={version}\n")).collect();
    let file = plan.place.path().join(CONSTRAINTS);
    fs::write(&file, constraints).map_err(|error| plan.unfit_io("write", &file, &error))?;
    record.headline(&format!("installing {}", plan.requirements.join(", ")));
    let install = || {
        let mut command = Command::new(uv);
        command.args(["pip", "install", "--no-progress", "--python"]).arg(plan.place.python());
        if plan.is_set("PIP_NO_INDEX") {
            command.arg("--no-index");
        }
        command.current_dir(plan.place.path());
        command
    };
    let mut command = install();
    command.arg("--constraint").arg(&file).arg("--").args(&plan.requirements);
    if run(plan, making, record, command).await? {
        return Ok(());
    }
    let names = others.iter().map(|(name, _)| *name).chain([CONSTRAINTS]);
    if record.printed.mentions(names) {
        record.headline("trying again with other versions than this node has");
        let mut command = install();
        command.arg("--").args(&plan.requirements);
        if run(plan, making, record, command).await? {
            return Ok(());
        }
    }
    Err(plan.unfit(&record.printed.reason()))
}

/// Runs one command; true if it ended well.
async fn run(
    plan: &Plan,
    making: &Making,
    record: &mut Record<'_>,
    mut command: Command,
) -> Result<bool, Failure> {
    for name in MISLEADING {
        command.env_remove(name);
    }
    command.envs(plan.variables_for_uv());
    // A user's own directory is not this environment.
    command.env("PIP_USER", "0").env("NO_COLOR", "1").env("UV_NO_WRAP", "1");
    command.env("UV_PYTHON_DOWNLOADS", "never").env("PYTHONUNBUFFERED", "1");
    command.envs(plan.variables.iter().map(|(name, value)| (name, value)));
    record.printed.begin_command();
    let program = PathBuf::from(command.as_std().get_program());
    let stdin = making.share();
    let stdin = stdin.map_err(|error| plan.unfit_io("share the lock of", &plan.place.path(), &error))?;
    match process::lines(&*plan.guardian, command, Stdio::from(stdin), &mut |line| record.say(line)).await {
        Ok(status) if status.success() => Ok(true),
        Ok(status) => {
            // Not through `say`, or it would be the reason.
            record.lines.say(&format!("ended with {status}"));
            Ok(false)
        }
        Err(error) => {
            record.say(&format!("cannot run {}: {error}", program.display()));
            Ok(false)
        }
    }
}

/// Removes what is there of the environment. Goes on when it is dropped, and holds the lock until it has
/// ended.
pub(super) async fn clear(plan: &Plan, making: &Making) -> Result<(), Failure> {
    let failed = |error| plan.unfit_io("remove", &plan.place.path(), &error);
    let (place, lock) = (plan.place.clone(), making.share().map_err(failed)?);
    let cleared = spawn_blocking(move || {
        let cleared = place.clear();
        drop(lock);
        cleared
    });
    cleared.await.map_err(io::Error::other).flatten().map_err(failed)
}

impl Plan {
    /// That the requirements cannot be had.
    pub(super) fn unfit(&self, why: &str) -> Failure {
        unfit(&self.requirements, why)
    }

    /// The same, for the operating system's reasons.
    pub(super) fn unfit_io(&self, what: &str, path: &Path, error: &io::Error) -> Failure {
        self.unfit(&format!("cannot {what} {}: {error}", path.display()))
    }

    /// What the environment was made of, for people who look into its directory.
    pub(super) fn description(&self) -> String {
        format!("{}\n{}\n", self.base, self.requirements.join("\n"))
    }

    /// What is installed besides what is required, and in which versions.
    fn others(&self) -> Vec<(&str, &str)> {
        let required: BTreeSet<_> = self.requirements.iter().map(|text| required_name(text)).collect();
        let there = self.packages.distributions.iter().filter(|(name, _)| !required.contains(*name));
        there.map(|(name, version)| (name.as_str(), version.as_str())).collect()
    }

    /// What is set for pip only, under uv's names.
    fn variables_for_uv(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = Vec::new();
        for (pip, uv) in PIP_FOR_UV {
            let (Some(value), None) = (self.variable(pip), self.variable(uv)) else { continue };
            let value = match uv {
                "UV_FIND_LINKS" => {
                    let value = value.to_string_lossy();
                    value.split_whitespace().collect::<Vec<_>>().join(",").into()
                }
                _ => value,
            };
            variables.push((uv, value));
        }
        variables
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        let own = self.variables.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
        own.or_else(|| env::var_os(name)).filter(|value| !value.is_empty())
    }

    fn is_set(&self, name: &str) -> bool {
        self.variable(name).is_some_and(|value| !["0", "false", "no", "off"].iter().any(|no| value == *no))
    }
}

/// The most requirements that a sentence names.
const MAX_NAMED: usize = 5;

/// That an environment with these requirements cannot be had.
pub(super) fn unfit(requirements: &[String], why: &str) -> Failure {
    let needs = match requirements {
        [one] => format!("the requirement {one}"),
        several if several.len() <= MAX_NAMED => format!("an environment with {}", several.join(", ")),
        many => {
            let named = many[..MAX_NAMED].join(", ");
            format!("an environment with {named} and {} more", many.len() - MAX_NAMED)
        }
    };
    Failure::Unfit { needs, why: why.to_owned() }
}
