"""`mesh.map`: one function over many items, in chunks whose size fits the function."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Generator, Generic, Iterable, Iterator, Sequence, Sized, TypeVar

from . import _remote
from .call import Calls, Defined
from .errors import Cancelled, Forked, Stopped, as_iterator, from_parts
from .progress import Bar, Progress

if TYPE_CHECKING:
    from .mesh import Mesh

T = TypeVar("T")

#: How long a chunk should run, in seconds: long against what a call costs, short against what anybody waits
#: for.
_CHUNK_SECONDS = 0.005

#: By how much chunks grow at most from one to the next, since the first items may not be like the others.
_GROWTH = 4

#: The most items of a chunk.
_MAX_ITEMS = 8192

#: The most bytes of a chunk's items together, if it has more than one.
_MAX_BYTES = 256 << 10

#: How many chunks are under way for each slot of the mesh: one that runs, and some on their way to it.
_PER_SLOT = 3

#: How many chunks may have been taken from the items without having been asked for by the caller.
_AHEAD = 64

#: How often the size of the mesh is asked for, in seconds.
_SLOTS_AGE = 2.0


class _Chunk:
    """Some of the items, under way."""

    __slots__ = ("state", "position", "items", "node", "number")

    def __init__(self, state: _State, position: int, items: int, node: str | None) -> None:
        self.state = state
        self.position = position
        self.items = items
        self.node = node
        self.number = 0

    def _settle(self, ok: bool, body: bytes, error: Any, node: str, elapsed_us: int) -> None:
        if ok:
            self.state.arrived(self, body, None, elapsed_us)
        else:
            self.state.arrived(self, b"", from_parts(*error), elapsed_us)

    def _break(self, error: BaseException) -> None:
        self.state.arrived(self, b"", error, 0)

    def _leave(self, error: BaseException) -> None:
        # Another thread of the parent may have held it; the one that sends items is not here.
        self.state.changed = threading.Condition()
        self.state.exhausted = True
        self._break(error)


class _State:
    """What the caller, the thread that sends items and the one that takes results share."""

    def __init__(self, calls: Calls, function: Defined, items: Iterator[Any], total: int | None) -> None:
        self.calls = calls
        self.function = function
        self.items = items
        self.total = total
        self.changed = threading.Condition()
        self.arrivals: deque[tuple[int, bytes, BaseException | None]] = deque()
        self.flying: dict[int, _Chunk] = {}
        self.load: dict[str | None, int] = {}
        #: Chunks that were sent, and of these those that the caller has got.
        self.sent = 0
        self.taken = 0
        #: Items that were sent and that are done.
        self.items_sent = 0
        self.items_done = 0
        #: Set when all items were sent, or no more will be.
        self.exhausted = False
        self.failed = False
        self.cancelled = False
        #: Whether the caller waits for all results, so that none is too early.
        self.eager = False
        #: What the items' iterator raised.
        self.error: BaseException | None = None
        #: How long one item takes, in seconds; None until the first one is done.
        self.seconds: float | None = None
        self.bytes_per_item = 0.0
        self.process = os.getpid()

    def arrived(self, chunk: _Chunk, body: bytes, error: BaseException | None, elapsed_us: int) -> None:
        with self.changed:
            if self.flying.pop(chunk.position, None) is None:
                return
            self.load[chunk.node] -= 1
            self.items_done += chunk.items
            if error is not None or body[:1] == _remote.BROKEN:
                self.failed = True
            elif chunk.items:
                seconds = elapsed_us / 1e6 / chunk.items
                self.seconds = seconds if self.seconds is None else 0.5 * (self.seconds + seconds)
            self.arrivals.append((chunk.position, body, error))
            self.changed.notify_all()

    def cancel(self) -> None:
        if os.getpid() != self.process:
            return  # It is not this process's map.
        with self.changed:
            if self.cancelled:
                return
            self.cancelled = self.exhausted = True
            numbers = [chunk.number for chunk in self.flying.values()]
            self.flying.clear()
            self.changed.notify_all()
        self.calls.cancel(numbers)

    def here(self) -> None:
        """To be called before waiting: in a forked child nothing comes, for the threads are the parent's."""
        if os.getpid() == self.process:
            return
        self.process = os.getpid()
        # Another thread of the parent may have held it.
        self.changed = threading.Condition()
        if not self.ended():
            self.error, self.exhausted = Forked(), True
            self.flying.clear()

    def ended(self) -> bool:
        """Whether every chunk that was sent has arrived, and no more will be sent."""
        return self.exhausted and not self.flying


class Map(Generic[T]):
    """The results of a map, as they come; iterate over it once, or :meth:`collect` them.

    Items are taken from their iterable as there is room for them, some way ahead of what the caller has read,
    or without such a bound once it waits for all of them.
    """

    def __init__(
        self,
        mesh: Mesh,
        calls: Calls,
        function: Defined,
        iterables: Sequence[Iterable[Any]],
        *,
        ordered: bool,
        chunk: int | None,
        nodes: Sequence[str] | None,
        label: str,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is a number of items, at least 1, not {chunk}")
        items = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables)
        lengths = [len(items) if isinstance(items, Sized) else None for items in iterables]
        total = None if None in lengths else min(length for length in lengths if length is not None)
        self._state = _State(calls, function, items, total)
        self._label = label
        self._values: Iterator[T] = _read(self._state, ordered, label)
        weakref.finalize(self, self._state.cancel)
        feeder = threading.Thread(
            target=_feed, args=(self._state, mesh, chunk, nodes), name=f"floe-map-{label}", daemon=True
        )
        feeder.start()

    @property
    def progress(self) -> Progress:
        """How many items are done."""
        state = self._state
        total = state.total if state.total is not None else (state.items_sent if state.exhausted else None)
        return Progress(
            state.items_done, total, sum(chunk.items for chunk in list(state.flying.values())), "items"
        )

    @property
    def completed(self) -> bool:
        """Whether all items are done."""
        return self._state.ended()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return next(self._values)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def collect(self) -> list[T]:
        """All results that were not read yet, in a list. Ctrl-C meanwhile cancels the map."""
        self._hurry()
        try:
            return list(self)
        except Stopped as stopped:
            error = stopped.__cause__
        # Where nothing is iterated over it is raised as it is. Not within the handler: that would give it a
        # context.
        raise error or RuntimeError("a map stopped")

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until all items are done or `timeout` seconds are over, and tells whether they are."""
        return self._wait(timeout, None)

    def wait_interactive(self) -> Map[T]:
        """Waits until all items are done, and shows a bar meanwhile in a terminal or a notebook."""
        self._wait(None, Bar(self._label))
        return self

    def cancel(self) -> None:
        """Sends no more items, and drops the results of those under way."""
        self._state.cancel()

    def __await__(self) -> Generator[Any, None, list[T]]:
        return asyncio.get_running_loop().run_in_executor(None, self._list).__await__()

    def _list(self) -> list[T]:
        """As :meth:`collect`, for a coroutine, which raises no StopIteration."""
        self._hurry()
        return list(self)

    def _hurry(self) -> None:
        self._state.here()
        with self._state.changed:
            self._state.eager = True
            self._state.changed.notify_all()

    def _wait(self, timeout: float | None, bar: Bar | None) -> bool:
        state = self._state
        deadline = None if timeout is None else time.monotonic() + timeout
        self._hurry()
        try:
            while True:
                with state.changed:
                    ended = state.ended()
                    if not ended:
                        left = 0.1 if deadline is None else min(0.1, deadline - time.monotonic())
                        if left <= 0:
                            return False
                        state.changed.wait(left)
                if bar is not None:
                    bar.show(self.progress, last=ended)
                if ended:
                    return True
        except KeyboardInterrupt:
            self.cancel()
            raise


def _read(state: _State, ordered: bool, name: str) -> Iterator[Any]:
    """The results in the order that was asked for. It must not hold the map, whose end ends all this."""
    early: dict[int, tuple[bytes, BaseException | None]] = {}
    position = 0
    while True:
        arrival = early.pop(position, None) if ordered else None
        while arrival is None:
            state.here()
            with state.changed:
                while not state.arrivals:
                    if state.ended():
                        if state.error is not None:
                            raise state.error
                        if state.cancelled:
                            raise Cancelled("the map was cancelled")
                        return
                    # Woken now and then so that Ctrl-C is seen on every platform.
                    state.changed.wait(1.0)
                number, body, error = state.arrivals.popleft()
            if not ordered or number == position:
                arrival = body, error
            else:
                early[number] = body, error
        position += 1
        with state.changed:
            state.taken += 1
            state.changed.notify_all()
        yield from _values_of(state, name, *arrival)


def _values_of(state: _State, name: str, body: bytes, error: BaseException | None) -> Iterator[Any]:
    """The values of a chunk, and what it raised after them."""
    if error is None:
        status = body[:1]
        try:
            value = pickle.loads(memoryview(body)[1:])
        except BaseException as failure:  # Of what a function returned, this may run the user's code.
            status, error = b"", failure
        if status == _remote.WHOLE:
            yield from value
            return
        if status == _remote.BROKEN:
            values, described = value
            yield from values
            message = f"{name} failed: {described['message']}"
            error = from_parts("exception", message, {"name": name, **described})
    state.cancel()
    raise as_iterator(error or RuntimeError(f"{name} returned nothing that is known"), name)


def _feed(state: _State, mesh: Mesh, fixed: int | None, nodes: Sequence[str] | None) -> None:
    """Sends items for as long as there are some, no faster than they are done."""
    size = fixed or 1
    places: Sequence[str | None] = nodes or [None]
    slots, asked = 1, float("-inf")
    try:
        while True:
            if time.monotonic() - asked > _SLOTS_AGE:
                # Workers that come while a map runs take part in it.
                slots, asked = mesh._slots(nodes), time.monotonic()
            window = max(2, slots * _PER_SLOT)
            with state.changed:
                while not state.exhausted and (
                    len(state.flying) >= window
                    or (state.sent - state.taken >= max(_AHEAD, window) and not state.eager)
                ):
                    state.changed.wait(_SLOTS_AGE)
                if state.exhausted or state.failed:
                    break
                if fixed is None:
                    size = _next_size(state, size, slots)
                node = min(places, key=lambda place: state.load.get(place, 0))
            argument, count = _remote.packed_items(itertools.islice(state.items, size), state.items_sent)
            if not count:
                break
            state.bytes_per_item = len(argument) / count
            with state.changed:
                if state.exhausted:
                    break
                chunk = _Chunk(state, state.sent, count, node)
                state.flying[chunk.position] = chunk
                state.load[node] = state.load.get(node, 0) + 1
                state.sent += 1
                state.items_sent += count
            try:
                chunk.number = state.calls.call(state.function, argument, chunk, node)
            except BaseException as error:
                chunk._break(_unless_closed(error, mesh))
                break
    except BaseException as error:
        state.error = _unless_closed(error, mesh)
    finally:
        with state.changed:
            state.exhausted = True
            state.changed.notify_all()


def _unless_closed(error: BaseException, mesh: Mesh) -> BaseException:
    """What whoever waits for a map is told of an error: that the mesh was closed, if that is behind it."""
    return Cancelled("the mesh was closed before the map ended") if mesh._closed else error


def _next_size(state: _State, size: int, slots: int) -> int:
    """How many items the next chunk should have."""
    if state.seconds is None:
        return 1
    wanted = _CHUNK_SECONDS / max(state.seconds, 1e-9)
    if state.bytes_per_item:
        wanted = min(wanted, _MAX_BYTES / state.bytes_per_item)
    if state.total is not None:
        # At the end all slots should be done at about the same time.
        wanted = min(wanted, (state.total - state.items_sent) / (2 * slots))
    return max(1, min(int(wanted), size * _GROWTH, _MAX_ITEMS))
