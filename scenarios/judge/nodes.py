"""The mesh that is judged: nodes on loopback that live no longer than the runner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class Nodes:
    """Some nodes of one mesh. `addresses` is a file with where they are."""

    def __init__(self, binary: Path, directory: Path, count: int) -> None:
        self._binary = str(binary)
        self._directory = directory
        self._count = count
        self._meshes = 0
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.addresses = directory / "addresses"
        self.key_file = directory / "mesh.key"

    def __enter__(self) -> Nodes:
        key = subprocess.run([self._binary, "key"], check=True, capture_output=True).stdout
        self.key_file.touch(mode=0o600)
        self.key_file.write_bytes(key)
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def restart_dead(self) -> list[str]:
        """Starts a new mesh if a node has ended; says which did, and its last words.

        A new one, since the old one would run again what it died of.
        """
        dead = [name for name, node in self._nodes.items() if node.poll() is not None]
        if not dead:
            return []
        said = [f"{name}: {self._last_words(name)}" for name in dead]
        self._stop()
        self._start()
        return said

    def _start(self) -> None:
        self._meshes += 1
        home = self._directory / f"mesh-{self._meshes}"
        home.mkdir()
        addresses: list[str] = []
        for number in range(self._count):
            name = f"node-{self._meshes}-{number}"
            command = [
                self._binary,
                "up",
                "--while-stdin",
                "--name",
                name,
                "--slots",
                "2",
                "--memory",
                "1GiB",
            ]
            command += ["--data-dir", str(home / name), "--key-file", str(self.key_file)]
            command += ["--listen", "/ip4/127.0.0.1/tcp/0"]
            command += ["--join", addresses[0]] if addresses else ["--expect", "1"]
            environment = {key: value for key, value in os.environ.items() if not key.startswith("FLOE_")}
            environment.update(FLOE_HOME=str(home), FLOE_PYTHON=sys.executable)
            with open(self._directory / f"{name}.log", "wb") as log:
                node = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
                )
            self._nodes[name] = node
            addresses.append(self._address(name, node))
        self.addresses.write_text("\n".join(addresses))

    def _address(self, name: str, node: subprocess.Popen[bytes]) -> str:
        assert node.stdout is not None
        for line in node.stdout:
            words = line.decode(errors="replace").split()
            if words[:1] == ["ready"]:
                return words[1]
        raise SystemExit(f"judge: {name} did not start: {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        lines = (self._directory / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "it said nothing"

    def _stop(self) -> None:
        for node in self._nodes.values():
            node.kill()
            node.wait()
        self._nodes.clear()
