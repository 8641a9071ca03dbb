use std::path::Path;
use std::sync::Mutex;
use std::{env, fs};

use futures::FutureExt;
use futures::future::join_all;
use tempfile::TempDir;

use super::*;

/// Writes a program, by another process: a file that this one has open for writing might be handed down to a
/// process that another test starts, and then could not be run.
pub(super) fn write_program(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let write = r#"printf %s "$2" > "$1.new" && chmod 755 "$1.new" && mv "$1.new" "$1""#;
    let mut shell = std::process::Command::new("/bin/sh");
    let status = shell.args(["-c", write, "sh"]).arg(file).arg(text).status().unwrap();
    assert!(status.success());
}

/// Nobody but who waits.
#[derive(Debug)]
pub(super) struct Alone;

/// A machine whose Python and uv are scripts. What uv is asked to install is there at once; what is called
/// `slow` when the file `open` is there; `missing` is not.
struct Machine {
    root: TempDir,
}

const PYTHON: &str = r#"#!/bin/sh
for last; do :; done
case "$2 $3" in
    *implementation*) printf '\0floe\0cpython\0003.11.7\0'; printf %s "$0" ;;
    "-m venv") mkdir -p "$last/bin"
        printf '#!/bin/sh\n' > "$last/bin/python"; chmod 755 "$last/bin/python" ;;
    *) printf '\0floe\0d/nowhere\0=numpy==1.26.4\0=six==1.16.0' ;;
esac
"#;

const UV: &str = r#"#!/bin/sh
root=$(dirname "$0")/..
echo "$*" >> "$root/calls"
for last; do :; done
case "$1 $last" in
    venv*) if [ -e "$root/broken" ]; then mkdir -p "$last/rubbish"; exit 2; fi
         mkdir -p "$last/bin"; printf '#!/bin/sh\n' > "$last/bin/python"; chmod 755 "$last/bin/python" ;;
    "pip slow") echo $$ > "$root/pid.new"; mv "$root/pid.new" "$root/pid"
        while [ ! -e "$root/open" ]; do sleep 0.01; done; echo Installed ;;
    "pip missing") printf '\033[31merror\033[0m: no such thing\n'; exit 1 ;;
    "pip newer") case "$*" in *--constraint*) echo 'you require numpy==1.26.4'; exit 1 ;; esac ;;
    *) echo Installed ;;
esac
"#;

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        write_program(&root.path().join("bin/python3"), PYTHON);
        write_program(&root.path().join("bin/uv"), UV);
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What one node of the machine has.
    fn environments(&self) -> Environments {
        let path = env::join_paths([self.path("bin")]).unwrap();
        Environments::with(
            self.path("environments"),
            Places { path, ..Places::default() },
            Vec::new(),
            Arc::new(Alone),
        )
    }

    fn calls(&self, of: &str) -> usize {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.starts_with(of)).count()
    }
}

fn wanted(requirements: &[&str]) -> Python {
    Python {
        version: "3.11".to_owned(),
        requirements: requirements.iter().map(|text| (*text).to_owned()).collect(),
        ..Python::default()
    }
}

fn ignore(_: &str) {}

/// Polls a future until something else is so.
async fn until(mut future: impl Future<Output = Outcome> + Unpin, condition: impl Fn() -> bool) {
    while !condition() {
        assert!((&mut future).now_or_never().is_none());
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn without_requirements_the_interpreter_is_the_answer() {
    let machine = Machine::new();
    let found = machine.environments().interpreter(&wanted(&[]), &ignore).await.unwrap();
    assert_eq!(found.python, machine.path("bin/python3"));
    assert!(!machine.path("environments").exists());
}

#[tokio::test]
async fn one_makes_it_and_all_see_how_far_it_is() {
    let machine = Machine::new();
    let environments = machine.environments();
    let seen = Mutex::new([Vec::new(), Vec::new(), Vec::new()]);
    let (seen, wanted) = (&seen, &wanted(&["slow"]));
    let ask = |n: usize| {
        let environments = &environments;
        Box::pin(async move {
            let say = move |line: &str| seen.lock().unwrap()[n].push(line.to_owned());
            environments.interpreter(wanted, &say).await
        })
    };
    let (mut first, mut second, mut third) = (ask(0), ask(1), ask(2));
    until(&mut first, || machine.path("pid").exists()).await;
    assert!((&mut second).now_or_never().is_none());
    fs::write(machine.path("open"), "").unwrap();
    assert!((&mut third).now_or_never().is_none());
    let made = [first.await.unwrap(), second.await.unwrap(), third.await.unwrap()];
    assert!(made.iter().all(|interpreter| interpreter.python == made[0].python));
    assert!(made[0].python.exists());
    assert_eq!((machine.calls("venv"), machine.calls("pip")), (1, 1));
    let seen = seen.lock().unwrap().clone();
    let name = &made[0].python.strip_prefix(machine.path("environments")).unwrap().to_str().unwrap()[..8];
    let python = machine.path("bin/python3").display().to_string();
    let creating = format!("environment {name}…: creating with uv (Python 3.11.7 ({python}))");
    let installing = format!("environment {name}…: installing slow");
    assert_eq!(seen[0][..3], [creating, installing, "Installed".to_owned()]);
    assert!(seen[0][3].starts_with(&format!("environment {name}…: ready after ")), "{seen:?}");
    assert!(seen[1..].iter().all(|lines| lines.ends_with(&seen[0][2..])), "{seen:?}");

    // It is there now, for other nodes of the machine as well.
    let again = machine.environments().interpreter(wanted, &ignore).await.unwrap();
    assert_eq!(again.python, made[0].python);
    assert_eq!(machine.calls("venv"), 1);
    let log = machine.path("environments").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let log = log.into_iter().find(|path| path.extension().is_some_and(|name| name == "log")).unwrap();
    assert!(fs::read_to_string(log).unwrap().contains("Installed\n"));
}

#[tokio::test]
async fn nodes_of_one_machine_make_it_once() {
    let machine = Machine::new();
    fs::write(machine.path("open"), "").unwrap();
    let nodes = [machine.environments(), machine.environments(), machine.environments()];
    let wanted = wanted(&["slow"]);
    let made = join_all(nodes.iter().map(|node| node.interpreter(&wanted, &ignore))).await;
    assert!(made.into_iter().all(|made| made.is_ok()));
    assert_eq!((machine.calls("venv"), machine.calls("pip")), (1, 1));
}

#[tokio::test]
async fn a_failure_is_told_in_one_line_and_not_repeated() {
    let machine = Machine::new();
    let environments = machine.environments();
    let expected = Failure::Unfit {
        needs: "the requirement missing".to_owned(),
        why: "error: no such thing".to_owned(),
    };
    for _ in 0..3 {
        let failure = environments.interpreter(&wanted(&["missing"]), &ignore).await.unwrap_err();
        assert_eq!(failure, expected);
    }
    assert_eq!((machine.calls("venv"), machine.calls("pip")), (1, 1));
    let left = machine.path("environments").read_dir().unwrap();
    assert!(left.into_iter().all(|entry| !entry.unwrap().path().is_dir()));
}

#[tokio::test]
async fn uv_is_to_leave_the_versions_that_are_there_if_it_can() {
    let machine = Machine::new();
    let environments = machine.environments();
    let made = environments.interpreter(&wanted(&["Six>1", "other"]), &ignore).await.unwrap();
    let there = made.python.parent().unwrap().with_file_name("floe-constraints.txt");
    assert_eq!(fs::read_to_string(there).unwrap(), "numpy==1.26.4\n");
    assert_eq!(machine.calls("pip"), 1);
    environments.interpreter(&wanted(&["newer"]), &ignore).await.unwrap();
    assert_eq!(machine.calls("pip"), 3);
}

#[tokio::test]
async fn without_a_sound_uv_venv_and_pip_do() {
    let machine = Machine::new();
    fs::write(machine.path("broken"), "").unwrap();
    let made = machine.environments().interpreter(&wanted(&["a"]), &ignore).await.unwrap();
    assert_eq!((machine.calls("venv"), machine.calls("pip")), (1, 0));
    assert!(!made.python.parent().unwrap().with_file_name("rubbish").exists());
}

#[tokio::test]
async fn what_nobody_waits_for_is_stopped_and_not_taken_for_whole() {
    let machine = Machine::new();
    let environments = machine.environments();
    let wanted = wanted(&["slow"]);
    {
        let mut asked = Box::pin(environments.interpreter(&wanted, &ignore));
        until(&mut asked, || machine.path("pid").exists()).await;
    }
    // Made anew only when the process that was stopped is gone.
    fs::remove_file(machine.path("pid")).unwrap();
    let mut asked = Box::pin(environments.interpreter(&wanted, &ignore));
    until(&mut asked, || machine.path("pid").exists()).await;
    assert_eq!((machine.calls("venv"), machine.calls("pip")), (2, 2));
    fs::write(machine.path("open"), "").unwrap();
    asked.await.unwrap();
}

#[tokio::test]
async fn a_half_made_one_is_made_anew() {
    let machine = Machine::new();
    let made = machine.environments().interpreter(&wanted(&["a"]), &ignore).await.unwrap();
    let dir = made.python.parent().unwrap().parent().unwrap().to_owned();
    drop(made);
    fs::remove_file(dir.join("ready")).unwrap();
    fs::write(dir.join("rubbish"), "").unwrap();
    machine.environments().interpreter(&wanted(&["a"]), &ignore).await.unwrap();
    assert!(dir.join("ready").exists());
    assert!(!dir.join("rubbish").exists());
    assert_eq!(machine.calls("venv"), 2);
}

#[tokio::test]
async fn what_is_no_version_or_requirement_is_refused() {
    let machine = Machine::new();
    let environments = machine.environments();
    let many: Vec<_> = (0..=MAX_REQUIREMENTS).map(|n| format!("a{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let long = "x".repeat(MAX_REQUIREMENT_BYTES + 1);
    for (requirements, part) in [
        (&["six", " --index-url=http://evil"][..], "is an option"),
        (&["-rfile"], "is an option"),
        (&[" "], "is empty"),
        (&["a\nb"], "control characters"),
        (&[&long], "is longer than 1024 bytes"),
        (&many, "may have 256 requirements, and this has 257"),
    ] {
        let failure = environments.interpreter(&wanted(requirements), &ignore).await.unwrap_err();
        assert!(matches!(&failure, Failure::Refused { message } if message.contains(part)), "{failure}");
    }
    let version = Python { version: "3.12; x".to_owned(), ..Python::default() };
    let failure = environments.interpreter(&version, &ignore).await.unwrap_err();
    assert_eq!(failure.to_string(), "\"3.12; x\" is no Python version: say major and minor, as 3.12");
}

#[tokio::test]
async fn another_version_is_unfit() {
    let machine = Machine::new();
    let wanted = Python { version: "3.12".to_owned(), ..wanted(&["a"]) };
    let failure = machine.environments().interpreter(&wanted, &ignore).await.unwrap_err();
    let python = machine.path("bin/python3");
    assert_eq!(
        failure.to_string(),
        format!("Python 3.12 cannot be had on this node: it has Python 3.11.7 ({})", python.display())
    );
}

#[test]
fn an_environment_is_named_by_all_that_it_is_made_of() {
    let base = |python: &str, version: &str| Found::new(python.into(), version);
    let packages = |version: &str| {
        let mut packages = Packages::default();
        packages.distributions.insert("numpy".to_owned(), version.to_owned());
        packages
    };
    let names = [
        key(&base("/a", "3.11.7"), &packages("1"), &["x".to_owned()]),
        key(&base("/b", "3.11.7"), &packages("1"), &["x".to_owned()]),
        key(&base("/a", "3.11.8"), &packages("1"), &["x".to_owned()]),
        key(&base("/a", "3.11.7"), &packages("2"), &["x".to_owned()]),
        key(&base("/a", "3.11.7"), &packages("1"), &["x".to_owned(), "y".to_owned()]),
    ];
    assert!(names.iter().all(|name| name.len() == 32));
    assert_eq!(std::collections::BTreeSet::from(names).len(), 5);
}

/// The machine's own Python, without uv and without an index.
async fn real(dir: &Path, base: Option<PathBuf>, variables: &[(&str, &str)]) -> (Environments, Python) {
    let found = Finder::new(Places::of_process(base)).find(None).await.unwrap();
    let wanted = Python { version: found.minor(), ..Python::default() };
    let places = Places { configured: Some(found.python), ..Places::default() };
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    (Environments::with(dir.to_owned(), places, variables, Arc::new(Alone)), wanted)
}

/// Makes a wheel with one module, which tells the version.
fn wheel(dir: &Path, name: &str, version: &str) -> String {
    const WRITE: &str = "import sys, zipfile
file, name, version = sys.argv[1:]
info = f'{name}-{version}.dist-info/'
with zipfile.ZipFile(file, 'w') as z:
    z.writestr(f'{name}.py', f'version = {version!r}')
    z.writestr(info + 'METADATA', f'Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n')
    z.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    z.writestr(info + 'RECORD', '')
";
    let file = dir.join(format!("{name}-{version}-py3-none-any.whl"));
    let mut python = std::process::Command::new("python3");
    assert!(python.args(["-c", WRITE]).arg(&file).args([name, version]).status().unwrap().success());
    format!("{name} @ file://{}", file.display())
}

fn evaluate(interpreter: &Interpreter, expression: &str) -> String {
    let mut python = std::process::Command::new(&interpreter.python);
    let output = python.args(["-c", &format!("print({expression})")]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn requirements_come_before_what_the_interpreter_has() {
    let dir = tempfile::tempdir().unwrap();
    let no_index = [("PIP_NO_INDEX", "1")];
    let (environments, mut wanted) = real(&dir.path().join("one"), None, &no_index).await;
    wanted.requirements =
        vec![wheel(dir.path(), "floe_test_a", "1.0"), wheel(dir.path(), "floe_test_b", "1.0")];
    let one = environments.interpreter(&wanted, &ignore).await.unwrap();
    assert_eq!(evaluate(&one, "__import__('floe_test_a').version"), "1.0");

    // A node whose interpreter is that of a virtual environment.
    let (environments, mut wanted) = real(&dir.path().join("two"), Some(one.python.clone()), &no_index).await;
    wanted.requirements = vec![wheel(dir.path(), "floe_test_b", "2.0")];
    let two = environments.interpreter(&wanted, &ignore).await.unwrap();
    assert_ne!(one.python, two.python);
    assert_eq!(evaluate(&two, "__import__('floe_test_a').version"), "1.0");
    assert_eq!(evaluate(&two, "__import__('floe_test_b').version"), "2.0");
    assert_eq!(evaluate(&two, "__import__('importlib.metadata').metadata.version('floe_test_b')"), "2.0");
    assert_eq!(evaluate(&one, "__import__('floe_test_b').version"), "1.0");
}

#[tokio::test]
async fn a_requirement_that_does_not_exist_is_told_with_pips_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let (environments, mut wanted) = real(dir.path(), None, &[("PIP_NO_INDEX", "1")]).await;
    wanted.requirements = vec!["floe-no-such-package==99.9".to_owned()];
    let failure = environments.interpreter(&wanted, &ignore).await.unwrap_err();
    let why = "ERROR: No matching distribution found for floe-no-such-package==99.9";
    let needs = "the requirement floe-no-such-package==99.9";
    assert_eq!(failure, Failure::Unfit { needs: needs.to_owned(), why: why.to_owned() });
}

/// Needs a package index.
#[tokio::test]
async fn requirements_come_from_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let (environments, mut wanted) = real(dir.path(), None, &[]).await;
    wanted.requirements = vec!["six==1.16.0".to_owned()];
    let made = environments.interpreter(&wanted, &ignore).await.unwrap();
    assert_eq!(evaluate(&made, "__import__('six').__version__"), "1.16.0");
}
