"""Connecting, and starting a node where there is no mesh."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import floe

from conftest import wait_until


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(Path(floe.__file__).parents[1]), **more}


def run(script, **more):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=120,
    )


def test_addresses_and_keys(cluster, monkeypatch):
    key = cluster.key_file.read_text().strip()
    first, second = cluster.addresses
    with floe.connect(first, key_file=cluster.key_file) as mesh:
        assert {node.name for node in mesh.nodes} >= {"n0", "n1"}
        assert repr(mesh) == "<floe.Mesh of n0, n1>"
    with floe.connect([first, second], key=key) as mesh:
        assert mesh.status()["leader"]
    monkeypatch.setenv("FLOE_CONNECT", f"{first},{second}")
    monkeypatch.setenv("FLOE_KEY_FILE", str(cluster.key_file))
    with floe.connect() as mesh:
        assert mesh.map(abs, [-1]).collect() == [1]
    with pytest.raises(floe.Error, match="the mesh is closed"):
        mesh.jobs()


def test_wrong_addresses_and_keys(cluster, tmp_path):
    with pytest.raises(floe.Unreachable):
        floe.connect("/ip4/127.0.0.1/tcp/1", key_file=cluster.key_file, timeout=3)
    other = subprocess.run([cluster.binary, "key"], check=True, capture_output=True, text=True).stdout.strip()
    with pytest.raises(floe.Error):
        floe.connect(cluster.addresses, key=other, timeout=5)
    with pytest.raises(floe.Error):
        floe.connect("rubbish", key_file=cluster.key_file, timeout=3)
    with pytest.raises(floe.Error, match="no mesh key|cannot be read"):
        floe.connect(cluster.addresses, key_file=tmp_path / "none")


def test_no_mesh(tmp_path, binary):
    script = "import floe\ntry: floe.connect(start=False)\nexcept floe.NoMesh as error: print(error)"
    done = run(script, FLOE_HOME=str(tmp_path))
    assert "floe up" in done.stdout, done.stderr
    done = run("import floe\nfloe.connect()", FLOE_HOME=str(tmp_path), FLOE_BINARY=str(tmp_path / "none"))
    assert "cannot be started" in done.stderr
    script = "import floe\ntry: floe.connect()\nexcept floe.NoMesh as error: print(error)"
    done = run(script, FLOE_HOME=str(tmp_path), FLOE_BINARY="/bin/false")
    assert "a node did not start" in done.stdout, done.stderr


STARTS = """
import os, sys
import floe
mesh = floe.connect()
assert mesh.map(abs, [-1, 2]).collect() == [1, 2]
print(mesh.parallel(os.getppid)().value, *[node.name for node in mesh.nodes], flush=True)
"""


def test_a_node_is_started(tmp_path, binary):
    done = run(STARTS, FLOE_HOME=str(tmp_path), FLOE_BINARY=binary)
    assert done.returncode == 0, done.stderr
    assert "no mesh on this machine, so a node was started" in done.stderr
    assert len(done.stdout.split()) == 2
    process = int(done.stdout.split()[0])
    wait_until("the node's end", lambda: not _runs(process))


def test_the_node_does_not_outlive_its_program(tmp_path, binary):
    script = STARTS + "sys.stdin.read()\n"
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(FLOE_HOME=str(tmp_path), FLOE_BINARY=binary),
    )
    line = driver.stdout.readline()
    process = int(line.split()[0])
    # A second driver finds that node, and starts none.
    done = run(STARTS, FLOE_HOME=str(tmp_path), FLOE_BINARY="/bin/false")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    driver.kill()
    driver.wait()
    wait_until("the node's end", lambda: not _runs(process))


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_default_mesh(mesh):
    assert floe.default_mesh() is mesh
    assert floe.parallel(abs)(-3).value == 3


def test_joblib_may_be_imported_at_any_time():
    for script in (
        "import floe, joblib",
        "import joblib, floe",
        "import floe\nfrom joblib import Parallel\nimport joblib",
        "import joblib.parallel\nimport floe",
    ):
        done = run(
            script
            + "\nwith joblib.parallel_config(backend='floe'): print(joblib.parallel.get_active_backend()[0])"
        )
        assert "FloeBackend" in done.stdout, done.stderr
    done = run("import floe, polars\nprint(polars.LazyFrame({'a': [1]}).floe.collect)")
    assert "collect" in done.stdout, done.stderr
    done = run("import floe, joblib\nprint(joblib.parallel.__spec__.loader, joblib.parallel.__loader__)")
    assert "floe" not in done.stdout
