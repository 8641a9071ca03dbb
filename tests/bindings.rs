//! The Python package: built and installed into a virtual environment that is made once, then its own tests.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::FLOE;

/// What the package's tests and examples need besides what it itself requires.
const REQUIREMENTS: &[&str] = &[
    "maturin>=1.9,<2",
    "pytest>=8",
    "hypothesis>=6",
    "cloudpickle>=3",
    "numpy",
    "pandas",
    "polars>=1.40",
    "pyarrow",
    "scikit-learn",
    "joblib",
    "psycopg[binary]",
];

/// About half of the tests, by the time that they take: they run beside the others, with a mesh of their own. Most of them
/// wait: for nodes that were killed, for programs that end.
const BESIDE: [&str; 6] = [
    "tests/test_bad_input.py",
    "tests/test_connect.py",
    "tests/test_documentation.py",
    "tests/test_environments.py",
    "tests/test_failures.py",
    "tests/test_programs.py",
];

/// What of cargo's environment is its user's.
const KEPT: [&str; 2] = ["CARGO_HOME", "CARGO_NET_OFFLINE"];

/// Needs Python 3.10 or later and, the first time, the package index.
#[test]
#[expect(clippy::print_stderr, reason = "whoever runs the tests should see what was skipped")]
fn the_python_package_passes_its_tests() {
    let Some(python) = python() else {
        eprintln!("skipped: there is no Python 3.10 or later on this machine");
        return;
    };
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/python");
    let environment = environment(&python);
    let bin = environment.join("bin");
    let mut build = Command::new(bin.join("maturin"));
    build.args(["develop", "--quiet", "--locked"]).current_dir(&package).env("VIRTUAL_ENV", &environment);
    // What cargo tells a test of its package is not for another cargo: some build scripts of dependencies run again
    // when it changes, and all that stands on them, Polars too, is built again. For the same reason this builds in a
    // place of its own.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_") && !KEPT.iter().any(|kept| *kept == name) {
            build.env_remove(name);
        }
    }
    run(build.env("CARGO_TARGET_DIR", target_dir().join("python")));
    let pytest = || {
        let mut tests = Command::new(bin.join("python"));
        tests.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).current_dir(&package);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLOE_") {
                tests.env_remove(name);
            }
        }
        tests.env("FLOE_BINARY", FLOE).env("VIRTUAL_ENV", &environment).env("PYTHONDONTWRITEBYTECODE", "1");
        tests
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| run(pytest().args(BESIDE)));
        run(pytest().arg("tests").args(BESIDE.map(|file| format!("--ignore={file}"))));
        beside.join().unwrap();
    });
}

/// An interpreter that is new enough.
fn python() -> Option<PathBuf> {
    let new_enough = |python: &str| {
        let check = "import sys, venv; sys.exit(sys.version_info < (3, 10))";
        let status = Command::new(python).args(["-c", check]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    ["python3", "python3.13", "python3.12", "python3.11", "python3.10"]
        .into_iter()
        .find(|python| new_enough(python))
        .map(PathBuf::from)
}

/// Where cargo builds, from where it put the binary under test.
fn target_dir() -> PathBuf {
    Path::new(FLOE).ancestors().nth(2).unwrap().to_owned()
}

/// A virtual environment with [`REQUIREMENTS`], made once for each interpreter and list.
fn environment(python: &Path) -> PathBuf {
    let version = Command::new(python).arg("-VV").output().unwrap().stdout;
    let mut hasher = DefaultHasher::new();
    (version, REQUIREMENTS).hash(&mut hasher);
    let environment = target_dir().join(format!("python-{:016x}", hasher.finish()));
    let complete = environment.join("complete");
    if !complete.exists() {
        run(Command::new(python).args(["-m", "venv", "--clear"]).arg(&environment));
        run(Command::new(environment.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(REQUIREMENTS));
        fs::write(complete, "").unwrap();
    }
    environment
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?} ended with {status}");
}
