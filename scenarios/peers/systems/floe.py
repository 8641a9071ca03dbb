"""Floe: a mesh of two nodes with one slot each."""

import os
import subprocess
import sys
import time

import floe

from . import WORKERS

# Set by `compare.py`: the binary that is to be measured.
BINARY = "FLOE_PEERS_BINARY"
READY_SECONDS = 60


class System:
    def __init__(self, scratch):
        self.nodes = []
        binary = os.environ[BINARY]
        self.version = subprocess.check_output([binary, "--version"], text=True).split()[-1]
        key_file = scratch / "mesh.key"
        key_file.write_text(subprocess.check_output([binary, "key"], text=True))
        key_file.chmod(0o600)
        address = None
        for number in range(WORKERS):
            joined = _start_node(binary, scratch / f"node-{number}", key_file, address)
            self.nodes.append(joined)
            address = address or _ready(joined)
        self.mesh = floe.connect(address, key_file=str(key_file))
        _wait(lambda: len(self.mesh.nodes) == WORKERS, f"{WORKERS} nodes in the mesh")
        self.executor = self.mesh.executor()

    def submit_all(self, function, arguments):
        futures = [self.executor.submit(function, argument) for argument in arguments]
        return [future.result() for future in futures]

    def call(self, function, argument):
        return self.executor.submit(function, argument).result()

    def map(self, function, arguments):
        return self.mesh.map(function, arguments).collect()

    def apply(self, function, frame, partitions):
        return self.mesh.parallelize(frame, function, partitions).collect()

    def stop(self):
        self.executor.shutdown()
        self.mesh.close()
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.wait()


def _start_node(binary, home, key_file, address):
    home.mkdir()
    # Nothing that this shell says about Floe holds for the nodes; their functions run on this interpreter.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOE_")}
    environment["FLOE_HOME"] = str(home)
    environment["FLOE_PYTHON"] = sys.executable
    command = [binary, "up", "--slots", "1", "--name", home.name, "--listen", "/ip4/127.0.0.1/tcp/0"]
    command += ["--data-dir", str(home / "data"), "--key-file", str(key_file)]
    if address:
        command += ["--join", address]
    with open(home / "log", "wb") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )


def _ready(node):
    """The address in the line that a node prints once it can be dialled."""
    for line in node.stdout:
        if line.startswith("ready "):
            return line.split()[1]
    raise RuntimeError(f"a node ended before it was ready, with status {node.wait()}")


def _wait(condition, what):
    end = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {READY_SECONDS} s: {what}")
        time.sleep(0.05)
