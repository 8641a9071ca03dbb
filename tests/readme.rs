//! What the README shows is true: its commands run, its Rust compiles. Its Python is run by the package's tests.

use std::path::{Path, PathBuf};
use std::{env, fs};

use floe_scenarios::harness::Floe;

use crate::{FLOE, cluster};

const README: &str = include_str!("../README.md");

/// Commands that are shown and not run, by how they begin.
const NOT_RUN: [(&str, &str); 4] = [
    ("cargo ", "the build and the tests themselves"),
    ("pip install", "the package's tests install it"),
    ("floe up", "the nodes are up already, and the command stays"),
    ("floe invite", "needs a node that listens on the network"),
];

/// The contents of the README's code blocks in some language.
fn blocks(language: &str) -> Vec<&'static str> {
    let start = format!("```{language}\n");
    let ends = README.split(&*start).skip(1).map(|rest| rest.split("```").next().unwrap());
    let found: Vec<_> = ends.collect();
    assert!(!found.is_empty(), "the README has no block of {language}");
    found
}

#[test]
fn its_rust_is_that_of_an_example() {
    let lines = |text: &str| text.trim().lines().map(|line| format!("{}\n", line.trim())).collect::<String>();
    let example = lines(include_str!("../client/examples/readme.rs"));
    for block in blocks("rust") {
        assert!(
            example.contains(&lines(block)),
            "client/examples/readme.rs does not have this block:\n{block}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_commands_run() {
    let cluster = cluster().nodes(3).start().await.unwrap();
    let directory = cluster.dir().join("clone");
    lay_out(&directory);
    let driver = cluster.args(0, &[]);
    let path = env::join_paths(
        [Path::new(FLOE).parent().unwrap().to_owned()]
            .into_iter()
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
    );
    let shell = Floe::new("/bin/sh", cluster.dir())
        .env("PATH", path.unwrap().to_str().unwrap())
        .env("FLOE_CONNECT", &driver[1])
        .env("FLOE_KEY_FILE", &driver[3]);
    let mut run = 0;
    for line in blocks("sh").into_iter().flat_map(str::lines).filter(|line| !line.is_empty()) {
        if NOT_RUN.iter().any(|(start, _)| line.starts_with(start)) {
            continue;
        }
        let mut command = shell.command(["-c", line]);
        let output = command.current_dir(&directory).output().await.unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {out}{err}");
        run += 1;
    }
    assert!(run >= 5, "only {run} commands were run");
    assert_eq!(fs::read_to_string(directory.join("cleaned/b.csv")).unwrap(), "n\n2\n");
}

/// A directory that has what the commands name.
fn lay_out(directory: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};

    fs::create_dir_all(directory.join("logs")).unwrap();
    let scenarios: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    symlink(scenarios.canonicalize().unwrap(), directory.join("scenarios")).unwrap();
    for (name, n) in [("a", 1), ("b", 2)] {
        fs::write(directory.join(format!("logs/{name}.csv")), format!("n\n{n}\n")).unwrap();
    }
    let program = directory.join("clean.py");
    fs::write(&program, "#!/bin/sh\nexec cat\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}
