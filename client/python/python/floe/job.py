"""Jobs: functions over partitions, and queries."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import time
import warnings
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Generator, Generic, Iterator, TypeVar

from . import _ipc, data, frames
from .errors import ContradictingEnds, Error, as_iterator, from_core
from .progress import Bar, Progress

if TYPE_CHECKING:
    from . import _core
    from .mesh import Mesh

T = TypeVar("T")

#: What the nodes call the stage whose partitions came with the submission.
_SENT = "frames of the driver"

#: How often a bar asks for the job's status, in seconds.
_POLL = 0.2


@dataclass(frozen=True)
class LogLine:
    """Something that a function's process printed."""

    #: The name of the node.
    node: str
    #: The job's stage.
    stage: int
    #: The stage's task.
    task: int
    #: Which attempt at it, from 0.
    attempt: int
    #: What it printed, without the end of the line.
    text: str

    def __str__(self) -> str:
        return self.text


class Job(Generic[T]):
    """One submission, on its way or done. Awaiting it in asyncio collects it.

    It goes on whatever becomes of this program: :meth:`floe.Mesh.job` finds it again by its :attr:`id`. Its
    result is kept for an hour, or until it is released; once it was collected, for as long as this object is.
    """

    def __init__(
        self,
        core: _core.Job,
        mesh: Mesh,
        *,
        kind: str | None = None,
        name: str = "the function",
        assemble: Callable[[list[Any]], Any] | None = None,
        joined: Callable[[list[memoryview]], Any] | None = None,
    ) -> None:
        self._core = core
        self._mesh = mesh
        self._kind = kind
        self._name = name
        self._assemble = assemble
        #: Makes the result of the partitions as they came, if that can be done: it is faster.
        self._joined = joined
        #: Frees the result once it was collected and nobody has this object any more.
        self._freeing: weakref.finalize[..., Job[T]] | None = None

    @property
    def id(self) -> str:
        """Its id: 16 hexadecimal digits."""
        return self._core.id

    def status(self) -> dict[str, Any]:
        """All that is known of it: ``phase``, ``stages`` with their tasks, times.

        ``other_ends`` says how else it ended, where parts of the mesh that were cut off disagree;
        ``waits_for`` which nodes it waits for that are away, if it cannot go on without them.
        """
        return json.loads(_translated(self._core.status))

    @property
    def phase(self) -> str:
        """``running``, ``succeeded``, ``failed`` or ``cancelled``."""
        return str(self.status()["phase"])

    @property
    def progress(self) -> Progress:
        """How many of its tasks are done."""
        return _progress(self.status())

    @property
    def completed(self) -> bool:
        """Whether it has ended, however it did."""
        return self.phase != "running"

    @property
    def successful(self) -> bool:
        """Whether it has ended well."""
        return self.phase == "succeeded"

    @property
    def failure(self) -> BaseException | None:
        """Why it failed; None if it did not, or not yet."""
        from . import _core

        if self.phase in ("running", "succeeded"):
            return None
        try:
            self._core.check()
        except _core.CoreError as error:
            return from_core(error)
        return None

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it has ended or `timeout` seconds are over, and tells whether it has.

        How it ended is not told here, unless two parts of the mesh contradict each other in it
        (:class:`floe.ContradictingEnds`). Ctrl-C meanwhile cancels it.
        """
        with _cancelling(self):
            ended = _translated(self._core.wait, timeout)
        if ended is not None:
            self._tell_contradiction(json.loads(ended))
        return ended is not None

    def _tell_contradiction(self, status: dict[str, Any] | None = None) -> None:
        if status is None:
            try:
                status = self.status()
            except Error:
                return  # Its result is here, or why there is none.
        if status["other_ends"]:
            warnings.warn(
                f"job {self.id} is {status['phase']}, and drivers in a part of the mesh that was cut off from"
                f" this one were told that it was {' and '.join(status['other_ends'])}",
                ContradictingEnds,
                stacklevel=3,
            )

    def wait_interactive(self) -> Job[T]:
        """Waits until it has ended, and shows a bar meanwhile in a terminal or a notebook."""
        bar = Bar(self._name)
        with _cancelling(self):
            while _translated(self._core.wait, _POLL) is None:
                bar.show(self.progress)
            bar.show(self.progress, last=True)
        return self

    def partitions(self) -> Iterator[Any]:
        """Its result's partitions, in order, each as soon as it was made."""
        take = self._taker()
        while True:
            try:
                part = take()
            except StopIteration as error:
                failure = as_iterator(error, self._name)
            else:
                if part is None:
                    return
                yield frames.decode(part, self._kind)
                continue
            raise failure

    def _taker(self) -> Callable[[], memoryview | None]:
        """What gives its partitions, one after the other as they arrive, and None after the last.

        It is no iterator, since the function may have raised StopIteration.
        """
        parts: Any = None

        def take() -> memoryview | None:
            nonlocal parts
            with _cancelling(self):
                if parts is None:
                    parts = iter(_translated(self._core.partitions))
                part = _translated(next, parts, None)
                return None if part is None else _ipc.view(part)

        return take

    def collect(self, timeout: float | None = None) -> T:
        """Waits for its result and returns it; raises what went wrong.

        It raises TimeoutError if it has not ended within `timeout` seconds; it then goes on. Ctrl-C cancels
        it. Where two parts of the mesh contradict each other in how it ended, it warns of that with
        :class:`floe.ContradictingEnds`.
        """
        started = time.monotonic()
        if timeout is not None and not self.wait(timeout):
            raise TimeoutError(f"job {self.id} has not ended within {time.monotonic() - started:.1f} s")
        try:
            value = self._collect()
        except Exception:
            self._tell_contradiction()
            raise
        self._tell_contradiction()
        if self._freeing is None:
            self._freeing = weakref.finalize(self, self._core.release_later)
            self._freeing.atexit = False
        return value

    def _collect(self) -> Any:
        take = self._taker()
        if self._joined is not None:
            encoded = []
            while (part := take()) is not None:
                encoded.append(part)
            joined = self._joined(encoded)
            if joined is not None:
                return joined
            parts = [frames.decode(part, self._kind) for part in encoded]
        else:
            # One partition is decoded while the next one arrives.
            with concurrent.futures.ThreadPoolExecutor(1, "floe-decode") as decoder:
                decoded = []
                while (part := take()) is not None:
                    decoded.append(decoder.submit(frames.decode, part, self._kind))
                parts = [future.result() for future in decoded]
        return self._assemble(parts) if self._assemble is not None else _plain(parts, self._name)

    def cancel(self) -> None:
        """Stops it. If it has ended, nothing changes."""
        _translated(self._core.cancel)

    def release(self) -> None:
        """Says that its result is no longer needed."""
        _translated(self._core.release)

    def logs(self, task: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """What its functions print: of one task or of all, and with `follow` until it has ended."""
        rest: dict[tuple[Any, ...], bytes] = {}
        chunks = iter(_translated(self._core.logs, task, follow))
        while True:
            try:
                node, stage, partition, attempt, printed = _translated(next, chunks)
            except StopIteration:
                break
            source = (node, stage, partition, attempt)
            *lines, rest[source] = (rest.get(source, b"") + bytes(printed)).split(b"\n")
            for line in lines:
                yield self._line(source, line)
        for source, line in rest.items():
            if line:
                yield self._line(source, line)

    def _line(self, source: tuple[Any, ...], line: bytes) -> LogLine:
        node, stage, partition, attempt = source
        return LogLine(self._mesh._node_name(node), stage, partition, attempt, line.decode(errors="replace"))

    def __await__(self) -> Generator[Any, None, T]:
        return self._collected().__await__()

    async def _collected(self) -> T:
        try:
            value, error = await asyncio.get_running_loop().run_in_executor(None, self._outcome)
        except asyncio.CancelledError:
            # Its thread returns once the job has ended.
            self.cancel()
            raise
        if error is not None:
            raise as_iterator(error, self._name)
        return value

    def _outcome(self) -> tuple[Any, BaseException | None]:
        """What it returned and what it raised: a thread cannot hand every exception to a coroutine."""
        try:
            return self.collect(), None
        except BaseException as error:
            return None, error

    def __repr__(self) -> str:
        return f"<floe.Job {self.id}: {self._name}>"


def _progress(status: dict[str, Any]) -> Progress:
    # What the driver sent along is no work.
    stages = [stage for stage in status["stages"] if stage["name"] != _SENT]
    done, total, running = (sum(stage[key] for stage in stages) for key in ("done", "tasks", "running"))
    return Progress(done, total, running)


def _plain(parts: list[Any], name: str) -> Any:
    """The result of a job of which only the id was known: joined if that makes sense, else the partitions."""
    if len(parts) == 1:
        return parts[0]
    return data.concat(parts, name) if parts and all(frames.kind_of(part) for part in parts) else parts


def _translated(function: Callable[..., Any], *args: Any) -> Any:
    """Calls the native part, whose errors become Floe's."""
    from . import _core

    try:
        return function(*args)
    except _core.CoreError as error:
        failure = from_core(error)
    # Not within the handler: `from None` would take away the cause that it has before Python 3.11.
    raise failure


class _cancelling:
    """Cancels a job when Ctrl-C is pressed while this waits for it."""

    def __init__(self, job: Job[Any]) -> None:
        self._job = job

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            try:
                self._job.cancel()
            except Exception:
                pass  # Whoever pressed Ctrl-C does not want to hear of something else now.
