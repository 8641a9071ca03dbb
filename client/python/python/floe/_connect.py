"""Connecting to a mesh, and starting one where there is none."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any, Iterable

from .errors import NoMesh, from_core
from .mesh import Mesh
from .progress import say

#: How long a node may take from its start to its `ready` line, in seconds.
_READY_SECONDS = 60

#: How long a node may take to leave when its mesh is closed, in seconds.
_LEAVE_SECONDS = 10

_lock = threading.RLock()
_default: Mesh | None = None
_open: weakref.WeakSet[Mesh] = weakref.WeakSet()
_nodes: weakref.WeakSet[_Node] = weakref.WeakSet()


def connect(
    address: str | Iterable[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
    key: str | None = None,
    timeout: float | None = None,
    start: bool = True,
) -> Mesh:
    """Connects to a mesh through any of its nodes.

    `address` is one or several of the addresses that ``floe up`` prints (``/ip4/192.0.2.7/tcp/4001``);
    without one, ``FLOE_CONNECT`` names some, and without that it is this machine's mesh. `key_file` holds the
    mesh's key, or `key` is the key; else ``FLOE_KEY_FILE`` names the file, and else it is the user's own.
    Connecting takes `timeout` seconds at most.

    Where this machine has no mesh, a node is started, unless `start` is false. It ends with this program, or
    when the mesh is closed.
    """
    core = _native()
    addresses = _addresses(address)
    file = os.fspath(key_file) if key_file is not None else None
    if file is None and key is None:
        file = os.environ.get("FLOE_KEY_FILE") or None
    try:
        mesh = Mesh(core.Mesh.connect(addresses, file, key, timeout))
    except core.CoreError as error:
        if addresses or not start or getattr(error, "kind", "") != "no_mesh":
            raise from_core(error) from None
        mesh = _started(core, file, key, timeout)
    global _default
    with _lock:
        _default = mesh
        _open.add(mesh)
    return mesh


def default_mesh() -> Mesh:
    """The mesh that was last connected to; connects to one if there is none."""
    with _lock:
        if _default is not None and not _default._closed:
            return _default
        return connect()


def _native() -> Any:
    """The native part, which drivers have and nodes do not need."""
    try:
        from . import _core
    except ImportError as error:
        if "floe_host" in sys.modules:
            raise NoMesh(
                "a function that runs on a node cannot connect to the mesh: only drivers can"
            ) from None
        raise ImportError(
            "the native part of floe is not installed here: pip install floe-mesh, or ./client/python of its "
            f"repository, brings it ({error})"
        ) from None
    return _core


def _addresses(address: str | Iterable[str] | None) -> list[str]:
    if address is None:
        address = os.environ.get("FLOE_CONNECT", "").replace(",", " ").split()
    return [address] if isinstance(address, str) else [str(item) for item in address]


def binary() -> str | None:
    """The ``floe`` command: what ``FLOE_BINARY`` names, else this package's own, else the one on the path."""
    named = os.environ.get("FLOE_BINARY")
    if named:
        return named
    for name in ("floe", "floe.exe"):
        inside = Path(__file__).parent / "bin" / name
        if inside.is_file():
            return str(inside)
    return shutil.which("floe")


def _started(core: Any, key_file: str | None, key: str | None, timeout: float | None) -> Mesh:
    """A mesh of a node that is started for it."""
    command = binary()
    if command is None:
        raise NoMesh(
            "this machine has no mesh, and the floe command, which would start one, is neither in this "
            "package nor on the path (FLOE_BINARY may name it)"
        )
    if key is not None:
        raise NoMesh(
            "this machine has no mesh; start its nodes with `floe up --key-file`, since connect() has a key"
        )
    node = _Node(command, key_file, timeout)
    try:
        # The node has just said where it is, and made the key if there was none.
        mesh = Mesh(core.Mesh.connect([node.address], key_file, None, timeout), on_close=node.stop)
    except core.CoreError as error:
        node.stop()
        raise from_core(error) from None
    except BaseException:
        node.stop()
        raise
    say(f"no mesh on this machine, so a node was started ({node.address}); it ends with this program")
    return mesh


class _Node:
    """A node that lives no longer than this process: it ends when its standard input does."""

    def __init__(self, command: str, key_file: str | None, timeout: float | None) -> None:
        # There are no others on this machine that it should wait for before it founds a mesh.
        arguments = [command, "up", "--while-stdin", "--expect", "1"]
        arguments += ["--key-file", key_file] if key_file else []
        self._log = tempfile.TemporaryFile()
        try:
            # The node's own functions run in this interpreter, unless the user has said otherwise.
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={"FLOE_PYTHON": sys.executable, **os.environ},
                # Ctrl-C in the terminal is for this program, which still needs its node.
                start_new_session=True,
            )
        except OSError as error:
            raise NoMesh(f"this machine has no mesh, and {command} cannot be started: {error}") from None
        _nodes.add(self)
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(lines,), name="floe-node", daemon=True).start()
        try:
            self.address = self._ready(lines, timeout)
        except BaseException:
            self.stop()
            raise

    def _ready(self, lines: queue.SimpleQueue[bytes], timeout: float | None) -> str:
        """Waits for the line that says where the node is."""
        while True:
            try:
                line = lines.get(timeout=_READY_SECONDS if timeout is None else timeout)
            except queue.Empty:
                raise NoMesh(
                    f"a node was started, but is not ready after {timeout or _READY_SECONDS} s"
                ) from None
            if not line:
                self._process.wait()
                self._log.seek(0)
                said = self._log.read().decode(errors="replace").strip().splitlines()
                raise NoMesh(
                    "this machine has no mesh, and a node did not start: "
                    + (said[-1] if said else "it ended")
                )
            words = line.decode(errors="replace").split()
            if len(words) >= 2 and words[0] == "ready":
                return words[1]

    def _read(self, lines: queue.SimpleQueue[bytes]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            lines.put(line)
        lines.put(b"")

    def leave(self) -> None:
        """In a forked child: the node is the parent's, and ends with it, not with the last child."""
        assert self._process.stdin is not None
        # The number stays this object's: closed, it would be the next file's, and closed once more with this.
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._process.stdin.fileno(), inheritable=False)
            os.close(nothing)

    def stop(self) -> None:
        """Lets the node leave, and ends it if it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _in_forked_child() -> None:
    """What the parent has of a mesh stays its own. The child's default mesh is one that it connects to."""
    global _lock, _default
    # Another thread of the parent may have held it.
    _lock = threading.RLock()
    _default = None
    for mesh in list(_open):
        mesh._leave()
    for node in list(_nodes):
        node.leave()
    _open.clear()
    _nodes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


@atexit.register
def _close_all() -> None:
    """Ends sessions while Python can still run their threads."""
    for mesh in list(_open):
        with contextlib.suppress(Exception):
            mesh.close()
