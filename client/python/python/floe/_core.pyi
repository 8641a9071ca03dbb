"""The native part: `floe-client`, as the modules of this package use it.

Its functions block without the GIL, and raise KeyboardInterrupt when Ctrl-C is pressed meanwhile.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__version__: str

class CoreError(Exception):
    """What went wrong; :func:`floe.errors.from_core` makes Floe's own exceptions of it."""

    kind: str
    details: dict[str, str | bytes | int]

class Function:
    """A function and what it takes to call it."""

    def __init__(
        self,
        name: str,
        version: str,
        requirements: list[str],
        modules: list[tuple[str, int]],
        env: dict[str, str],
        libraries: dict[str, str],
        code: bytes,
        memory_bytes: int | None,
        time_ms: int | None,
    ) -> None: ...
    @property
    def name(self) -> str: ...

class Mesh:
    """A connection to a mesh through any of its nodes."""

    @staticmethod
    def connect(addresses: list[str], key_file: str | None, key: str | None, timeout: float | None) -> Mesh:
        """Without addresses, this machine's mesh; `no_mesh` if there is none."""

    def status(self) -> str:
        """The mesh, as JSON."""

    def jobs(self) -> str:
        """All jobs' statuses, as JSON."""

    def sql(self, text: str, tables: Mapping[str, str], directory: str, label: str | None) -> Job: ...
    def plan(self, dsl: bytes, schema: bytes, directory: str, label: str | None) -> Job: ...
    def map_arguments(
        self, label: str, function: Function, arguments: list[bytes], merge: Function | None, fan_in: int
    ) -> Job: ...
    def map_frames(
        self,
        label: str,
        function: Function,
        frames: list[tuple[int, bytes]],
        merge: Function | None,
        fan_in: int,
    ) -> Job: ...
    def map_plan(
        self,
        label: str,
        function: Function,
        dsl: bytes,
        schema: bytes,
        directory: str,
        merge: Function | None,
        fan_in: int,
    ) -> Job: ...
    def map_files(
        self,
        label: str,
        function: Function,
        paths: list[str],
        directory: str,
        merge: Function | None,
        fan_in: int,
    ) -> Job: ...
    def put(self, data: bytes) -> tuple[str, int]:
        """Keeps bytes in the mesh; what it has already is not sent again."""

    def get(self, blob: str, size: int) -> bytes: ...
    def job(self, id: str) -> Job: ...
    def session(self, label: str) -> Session: ...
    def close(self, jobs_end: bool) -> None:
        """Ends all that waits, which raises `cancelled`; what begins to wait later is refused alike."""

class Buffer:
    @property
    def address(self) -> int: ...
    def __len__(self) -> int: ...

class Partitions(Iterator[Buffer]):
    """A result's partitions, each as soon as it is there."""

    def __next__(self) -> Buffer: ...

class Logs(Iterator[tuple[str, int, int, int, bytes]]):
    """Node, stage, partition, attempt, and what was printed."""

    def __next__(self) -> tuple[str, int, int, int, bytes]: ...

class Job:
    """One submission."""

    @property
    def id(self) -> str: ...
    def status(self) -> str:
        """Its status, as JSON."""

    def wait(self, timeout: float | None) -> str | None:
        """Its last status, as JSON; None if it has not ended by then."""

    def check(self) -> None:
        """Raises what it failed with."""

    def partitions(self) -> Partitions:
        """An Arrow IPC stream for each partition of the result."""

    def cancel(self) -> None: ...
    def release(self) -> None: ...
    def release_later(self) -> None: ...
    def logs(self, partition: int | None, follow: bool) -> Logs: ...

class Session:
    """A standing job, for calls."""

    @property
    def id(self) -> str: ...
    def define(self, function: Function) -> int: ...
    def call(self, function: int, id: int, argument: bytes, node: str | None) -> None:
        """Never waits for the mesh."""

    def results(
        self, timeout: float
    ) -> Sequence[tuple[int, bool, bytes, tuple[str, str, dict[str, Any]] | None, str, int]]:
        """Id, whether it returned, what, or else kind, message and details; node, microseconds."""

    def cancel(self, ids: list[int]) -> None: ...
    def forget(self, functions: list[int]) -> None: ...
    def close(self) -> None: ...
