"""Real nodes on loopback, started from the binary that FLOE_BINARY names, with a home of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator

import cloudpickle
import pytest

#: How long anything may take that the tests wait for, in seconds.
DEADLINE = 60.0

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "scenarios" / "data" / "nycflights13"

# Nothing of the user's own may be seen from here, before floe looks at any of it.
for _name in [name for name in os.environ if name.startswith("FLOE_") and name != "FLOE_BINARY"]:
    del os.environ[_name]
_home = tempfile.mkdtemp(prefix="floe-py-")
os.environ["FLOE_HOME"] = _home


def wait_until(what: str, condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Waits for a condition, and fails with what was waited for."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about within {deadline} s"
        time.sleep(0.02)


class Node:
    """One ``floe up``."""

    def __init__(self, cluster: Cluster, name: str, *arguments: str) -> None:
        self.name = name
        self.log = cluster.directory / f"{name}.log"
        command = [
            cluster.binary,
            "up",
            *("--name", name),
            *("--data-dir", str(cluster.directory / name)),
            *("--key-file", str(cluster.key_file)),
            *("--listen", "/ip4/127.0.0.1/tcp/0"),
            *arguments,
        ]
        for address in cluster.addresses:
            command += ["--join", address]
        if not cluster.addresses:
            # There are no others that it should wait for before it founds a mesh.
            command += ["--expect", "1"]
        environment = {**os.environ, "FLOE_HOME": str(cluster.directory), "FLOE_PYTHON": sys.executable}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        assert self.process.stdout is not None
        self.address = ""
        for line in self.process.stdout:
            words = line.decode().split()
            if words[:1] == ["ready"]:
                self.address = words[1]
                break
        assert self.address, f"{name} is not ready: {self.log.read_text()[-2000:]}"

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Lets it leave."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


class Cluster:
    """Some nodes that are one mesh."""

    def __init__(self, binary: str, directory: Path, count: int, slots: int = 1) -> None:
        self.binary = binary
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.key_file = directory / "mesh.key"
        if not self.key_file.exists():
            key = subprocess.run([binary, "key"], check=True, capture_output=True).stdout
            self.key_file.write_bytes(key)
            self.key_file.chmod(0o600)
        self.slots = slots
        self.nodes: dict[str, Node] = {}
        for index in range(count):
            self.add(f"n{index}")

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes.values() if node.process.poll() is None]

    def add(self, name: str) -> Node:
        node = self.nodes[name] = Node(self, name, "--slots", str(self.slots))
        return node

    def connect(self):  # type: ignore[no-untyped-def]
        """A mesh as soon as all the nodes are in it."""
        import floe

        mesh = floe.connect(self.addresses, key_file=self.key_file, timeout=DEADLINE)
        here = {name for name, node in self.nodes.items() if node.process.poll() is None}
        wait_until("one mesh", lambda: {node.name for node in mesh.nodes if node.alive} >= here)
        wait_until("a leader", lambda: mesh.status()["leader"])
        return mesh

    def stop(self) -> None:
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGINT)
        for node in self.nodes.values():
            node.stop()


@pytest.fixture(scope="session")
def binary() -> str:
    """The floe command."""
    found = os.environ.get("FLOE_BINARY") or shutil.which("floe")
    if not found:
        pytest.fail("FLOE_BINARY must name the floe command that is to be tested")
    return found


@pytest.fixture(scope="session")
def cluster(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with a slot each, for all tests that do them no harm."""
    cluster = Cluster(binary, tmp_path_factory.mktemp("mesh"), 2)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def shared_mesh(cluster: Cluster):  # type: ignore[no-untyped-def]
    mesh = cluster.connect()
    yield mesh
    mesh.close()


@pytest.fixture
def mesh(shared_mesh):  # type: ignore[no-untyped-def]
    """The mesh of the two nodes, as the one that was last connected to."""
    import floe._connect

    floe._connect._default = shared_mesh
    yield shared_mesh


@pytest.fixture
def mortal(binary: str, tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes that may be killed."""
    cluster = Cluster(binary, tmp_path / "mortal", 3)
    yield cluster
    for node in cluster.nodes.values():
        node.kill()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--draws", type=int, help="how many random calls test_generator.py compares; other ones each time"
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the tests define is in no module that a node has."""
    for item in session.items:
        module = getattr(item, "module", None)
        if module is not None and Path(module.__file__ or "").parent == HERE:
            cloudpickle.register_pickle_by_value(module)


def pytest_sessionfinish(session: pytest.Session) -> None:
    shutil.rmtree(_home, ignore_errors=True)
