"""The mesh, as a driver holds it."""

from __future__ import annotations

import functools
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping, Sequence, TypeVar, Union, overload

from . import _looking, _paths, _remote, applying, data, frames, objects, pickling, query, ship
from .call import Calls, Parallel, arguments, submit
from .environment import Needs, NeedsArguments
from .errors import Error, ForeignPlan, Forked, Unavailable
from .executor import Executor
from .job import Job, _translated
from .mapping import Map
from .refs import Ref
from .source import Source
from .view import View

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from . import _core

T = TypeVar("T")
A = TypeVar("A")

#: Without a number of partitions, so many are made for each slot: a slow node then holds up little.
_PARTITIONS_PER_SLOT = 2

#: How many partitions a merge takes at once, unless the call says otherwise.
_FAN_IN = 8

#: What merges partitions when nothing else is said: they are joined, in order.
CONCAT = "concat"

Merge = Union[str, None, Callable[["list[Any]"], Any]]


@dataclass(frozen=True)
class Node:
    """A node, as the mesh knows it."""

    #: Its id.
    id: str
    #: What it is called.
    name: str
    #: Its part in the mesh: ``leader``, ``voter``, ``learner``.
    role: str
    #: Whether it is there.
    alive: bool
    #: How many tasks it runs at once.
    slots: int
    #: Everything that is known of it.
    details: Mapping[str, Any]


class Mesh:
    """A connection to a mesh; :func:`floe.connect` makes one. Leave it with ``close()`` or a ``with`` block.

    It goes on through another node when the one that it is connected to is lost.
    """

    def __init__(self, core: _core.Mesh, on_close: Callable[[], None] | None = None) -> None:
        self._core = core
        self._on_close = on_close
        self._shipper = ship.Shipper(core)
        self._lock = threading.RLock()
        self._session: Calls | None = None
        self._executors: list[Calls] = []
        self._names: dict[str, str] = {}
        self._closed = False
        self._forked = False

    # Nodes.

    def status(self) -> dict[str, Any]:
        """What the node that this is connected to knows: itself, the leader, all nodes."""
        status = json.loads(_translated(self._open().status))
        self._names.update((node["id"], node["name"]) for node in status["nodes"])
        return status

    @property
    def nodes(self) -> list[Node]:
        """The nodes, by name."""
        nodes = [
            Node(
                node["id"],
                node["name"],
                node.get("role", ""),
                bool(node.get("alive", True)),
                int(node.get("slots") or 0),
                node,
            )
            for node in self.status()["nodes"]
        ]
        return sorted(nodes, key=lambda node: (node.name, node.id))

    def __getitem__(self, names: slice | str | tuple[str, ...] | list[str]) -> View:
        """Some of the nodes: ``mesh[:]``, ``mesh["name"]``, ``mesh["one", "other"]``.

        >>> mesh[:].apply_sync(lambda: 6 * 7)
        [42, 42]
        """
        if isinstance(names, slice):
            if names != slice(None):
                raise TypeError("mesh[:] is all nodes, mesh['name'] is one: they have no order to cut")
            return View(self, None)
        return View(self, names if isinstance(names, str) else tuple(names))

    # Functions over partitions.

    def parallelize(
        self,
        data: Any,
        apply: Callable[[Any], Any],
        n: int | None = None,
        *,
        merge: Merge = CONCAT,
        fan_in: int = _FAN_IN,
        label: str | None = None,
        **needs: Unpack[NeedsArguments],
    ) -> Job[Any]:
        """Calls a function with each of `n` partitions of some data, on all nodes.

        `data` is a pandas, Polars or Arrow frame, a Polars LazyFrame (whose partitions the mesh makes, so
        that `n` has no say), a NumPy array, an index or array of pandas or Arrow, or a sequence. The function
        gets a partition of the same kind (a list, of a sequence that cannot be sliced); what it returns is
        joined in order: frames to a frame, arrays to an array, lists to a list. With
        ``merge=None`` the result is the list of what it returned, whatever that is. With a function, that
        makes one value of a list of them; it is called on the nodes with up to `fan_in` neighbours at once,
        then with what it returned, until one is left.

        >>> import pandas as pd
        >>> frame = pd.DataFrame({"x": range(6)})
        >>> mesh.parallelize(frame, lambda part: part * 10, 3).collect()["x"].tolist()
        [0, 10, 20, 30, 40, 50]
        >>> mesh.parallelize(frame, len, 3, merge=None).collect()
        [2, 2, 2]
        >>> mesh.parallelize(list(range(100)), sum, 10, merge=sum).collect()
        4950
        """
        function = ship.Pickled(apply, Needs.of(needs))
        if frames.kind_of(data) == "polars" and hasattr(data, "collect"):
            return self._parallelize_plan(data, function, merge, fan_in, label)
        parts = _partitioned(data, n, self._default_partitions)
        needed = parts.needed if merge == CONCAT else None
        task = _remote.Part(function.code, function.name, parts.kind, needed)
        encoded = list(parts.encoded())
        shipped = self._shipper.function(task, [function], parts.modules)
        merging = self._merging(merge, function, parts.kind, parts.modules)
        label = label or function.name
        if encoded and all(part[0] == "frame" for part in encoded):
            files = [(part[2], part[1]) for part in encoded]  # type: ignore[misc]
            core = _translated(self._open().map_frames, label, shipped, files, merging, fan_in)
        else:
            # Frames that Arrow has no room for are pickled, all of them alike.
            pickled = [
                part[1] if part[0] == "object" else pickling.dumps(parts.part(*bounds), "the data")
                for part, bounds in zip(encoded, parts.bounds)
            ]
            core = _translated(self._open().map_arguments, label, shipped, pickled, merging, fan_in)
        return self._job(core, parts.kind, function.name, merge)

    def _parallelize_plan(
        self, plan: Any, function: ship.Pickled, merge: Merge, fan_in: int, label: str | None
    ) -> Job[Any]:
        modules = frames.MODULES["polars"]
        sent = query.serialized(plan)
        if sent.foreign is not None:
            raise ForeignPlan(sent.foreign)
        task = _remote.Part(function.code, function.name, "polars", "polars" if merge == CONCAT else None)
        core = _translated(
            self._open().map_plan,
            label or function.name,
            self._shipper.function(task, [function], modules),
            sent.dsl,
            sent.schema,
            _paths.here(),
            self._merging(merge, function, "polars", modules),
            fan_in,
        )
        return self._job(core, "polars", function.name, merge)

    def map_files(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        apply: Callable[[str], Any],
        *,
        merge: Merge = None,
        fan_in: int = _FAN_IN,
        label: str | None = None,
        **needs: Unpack[NeedsArguments],
    ) -> Job[Any]:
        """Calls a function with the path of each file under these paths or patterns, on nodes that see it.

        A name that exists is that file, or all files below that directory; only another is a pattern.
        The result is the list of what it returned, in order of the paths, unless `merge` says otherwise; that
        is as for :meth:`parallelize`.
        """
        function = ship.Pickled(apply, Needs.of(needs))
        task = _remote.Part(function.code, function.name, None, "items" if merge == CONCAT else None)
        core = _translated(
            self._open().map_files,
            label or function.name,
            self._shipper.function(task, [function]),
            _paths.texts(paths),
            _paths.here(),
            self._merging(merge, function, None, ()),
            fan_in,
        )
        return self._job(core, None, function.name, merge)

    def map_reduce(
        self,
        source: Source | Callable[[], Source],
        map_fn: Callable[[Any], A],
        reduce_fn: Callable[[A, A], A],
        n: int | None = None,
        *,
        label: str | None = None,
        **needs: Unpack[NeedsArguments],
    ) -> Job[A]:
        """Folds what a function makes of the pieces of a source.

        `source` has a length and a ``read(offset, limit)``, as those of :mod:`floe.source`; it is made on the
        nodes, from a small object or a function without arguments. `map_fn` gets what ``read`` returns for
        each of `n` ranges of its length; `reduce_fn` makes one of two neighbouring results, in a tree on the
        nodes. It should not matter to it how they are grouped.

        >>> numbers = floe.source.range(1, 101)
        >>> mesh.map_reduce(numbers, sum, lambda a, b: a + b).collect()
        5050
        """
        asked = Needs.of(needs)
        function, reducing = ship.Pickled(map_fn, asked), ship.Pickled(reduce_fn, asked)
        reducing.needs = reducing.needs.over(function.needs)
        made = _pickled_source(source, function.needs)
        length = self._length(made)
        if length == 0:
            raise ValueError("the source is empty: there is nothing to reduce")
        ranges = data.bounds(length, n, self._default_partitions())
        core = _translated(
            self._open().map_arguments,
            label or f"{function.name}, {reducing.name}",
            self._shipper.function(_remote.Piece(made.code, function.code, function.name), [function, made]),
            [pickling.dumps((start, end - start)) for start, end in ranges],
            self._shipper.function(_remote.Fold(reducing.code, reducing.name, None, None), [reducing]),
            _FAN_IN,
        )
        return self._job(core, None, function.name, reduce_fn)

    def _length(self, source: ship.Pickled) -> int:
        """How long a source is. A node tells: the driver need not be able to reach what it reads from."""
        calls = self._calls()
        number = calls.function(source, lambda: _remote.Length(source.code, source.name), "length")
        return submit(calls, number, arguments((), {})).result()

    def apply(
        self,
        df: Any,
        fn: Callable[[Any], Any],
        n: int | None = None,
        *,
        how: str = "auto",
        quiet: bool = False,
        **needs: Unpack[NeedsArguments],
    ) -> Any:
        """What ``df.apply(fn, axis=1)`` or ``series.apply(fn)`` returns: a function of each row, or value.

        The result is what pandas makes of all that the function returns: its values, type, index, name, and
        the exception of the first row that raises.

        A function that is shown, from its code, to do nothing but arithmetic with columns of numbers, as
        ``lambda row: row.a * row.b`` does, is computed for all rows at once, here. Any other one is called
        for each row, in partitions on the nodes; if it changes variables of its own, so that a row may hang
        on those before, here.

        Args:
            df: A pandas or Polars frame or series. Polars frames give rows as dictionaries, and the result is
            a
                Polars series.
            fn: What is called with each row, or value.
            n: The number of partitions.
            how: ``"auto"``, or one of the two ways: ``"vectorised"`` or ``"partitions"``.
            quiet: Whether to say nothing on stderr of which way it was.
            **needs: What the function needs; see :func:`floe.requires`.

        Returns:
            What pandas returns, or a Polars series.

        Raises:
            ValueError: ``how="vectorised"`` was asked for and the function was not shown to allow it.
            Exception: What the function raises for the first row for which it does.
        """
        return applying.apply(self, df, fn, n, how, quiet, needs)

    # Functions, one call at a time.

    @overload
    def parallel(self, function: Callable[..., T], **needs: Unpack[NeedsArguments]) -> Parallel[T]: ...
    @overload
    def parallel(
        self, function: None = None, **needs: Unpack[NeedsArguments]
    ) -> Callable[[Callable[..., T]], Parallel[T]]: ...
    def parallel(self, function: Callable[..., Any] | None = None, **needs: Unpack[NeedsArguments]) -> Any:
        """Makes a function that runs on the mesh when it is called, and returns a :class:`Result` at once.

        >>> @mesh.parallel
        ... def square(n):
        ...     return n * n
        >>> results = [square(n) for n in range(5)]
        >>> floe.wait_all(results, timeout=60)
        True
        >>> [result.value for result in results]
        [0, 1, 4, 9, 16]
        """
        checked = Needs.of(needs)
        if function is None:
            return lambda fn: Parallel(lambda: self, fn, checked)
        return Parallel(lambda: self, function, checked)

    def map(
        self,
        function: Callable[..., T],
        /,
        *items: Iterable[Any],
        ordered: bool = True,
        chunk: int | None = None,
        **needs: Unpack[NeedsArguments],
    ) -> Map[T]:
        """Calls a function with each item; with several iterables, with one item of each.

        Items are sent in chunks whose size follows how long the function takes (or `chunk` items each), to
        whichever node has room, and taken from their iterable as they are needed. Results come in order of
        the items, or with ``ordered=False`` as they are completed. The first exception ends the map.

        >>> mesh.map(lambda n: n * n, range(5)).collect()
        [0, 1, 4, 9, 16]
        >>> sorted(mesh.map(pow, [2, 3], [10, 3], ordered=False))
        [27, 1024]
        """
        return self._map(function, items, ordered, chunk, None, Needs.of(needs))

    def _map(
        self,
        function: Callable[..., Any],
        items: Sequence[Iterable[Any]],
        ordered: bool,
        chunk: int | None,
        nodes: Sequence[str] | None,
        needs: Needs,
    ) -> Map[Any]:
        if not items:
            raise TypeError("map needs something to map over")
        pickled = ship.Pickled(function, needs)
        calls = self._calls()
        several = len(items) > 1
        number = calls.function(
            pickled,
            lambda: _remote.Chunk(pickled.code, pickled.name, several),
            "chunks" if several else "chunk",
        )
        return Map(self, calls, number, items, ordered=ordered, chunk=chunk, nodes=nodes, label=pickled.name)

    def executor(self, *, label: str = "executor", **needs: Unpack[NeedsArguments]) -> Executor:
        """A :class:`concurrent.futures.Executor` whose calls run on the nodes.

        >>> with mesh.executor() as executor:
        ...     futures = [executor.submit(pow, n, 2) for n in range(4)]
        >>> [future.result() for future in futures]
        [0, 1, 4, 9]
        """
        self._open()
        executor = Executor(self, Needs.of(needs), label)
        assert executor._calls is not None
        with self._lock:
            self._executors = [calls for calls in self._executors if not calls.ended]
            self._executors.append(executor._calls)
        return executor

    # Objects.

    def put(self, value: T) -> Ref[T]:
        """Keeps an object in the mesh. It travels to each node once, whatever number of calls use it there.

        Each call has it as it was put: see :class:`floe.Ref`.

        >>> table = mesh.put({n: n * n for n in range(1000)})
        >>> mesh.parallel(lambda squares, n: squares[n])(table, 30).value
        900
        """
        name, size = self._put_bytes(objects.packed(value, "the object"))
        return Ref(name, size, self)

    def get(self, ref: Ref[T]) -> T:
        """The object that a reference stands for."""
        return objects.loaded(_translated(self._open().get, ref.name, ref.size))

    def _put_bytes(self, value: bytes) -> tuple[str, int]:
        return ship.put(self._open(), value)

    # Queries.

    def sql(
        self,
        text: str,
        tables: Mapping[str, str | os.PathLike[str]] | None = None,
        *,
        kind: str | None = None,
        label: str | None = None,
    ) -> Job[Any]:
        """A query in Polars SQL, over files: quoted in the text, or named in `tables`.

        The result is a Polars frame, or an Arrow table where Polars is not installed; `kind` asks for
        ``"polars"``, ``"arrow"`` or ``"pandas"``.

        >>> mesh.sql("SELECT COUNT(*) AS n FROM flights", {"flights": flights}).collect()["n"].item()
        336776
        """
        named = {name: _paths.text(path) for name, path in (tables or {}).items()}
        core = _translated(self._open().sql, text, named, _paths.here(), label)
        return self._query_job(core, kind, label or "the query")

    def query(
        self,
        lazyframe: Any,
        *,
        kind: str | None = None,
        label: str | None = None,
        **needs: Unpack[NeedsArguments],
    ) -> Job[Any]:
        """A Polars LazyFrame, run by the mesh, with a handle to watch it.

        A plan that is foreign to the nodes' Polars, since it calls Python or uses what only another version
        has, runs whole in a Python process of one node, by the Polars that is installed there: it has to be
        of the driver's version, and the files that the plan scans have to be on that node. `needs` are of
        that process.
        """
        plan = query.serialized(lazyframe)
        asked = Needs.of(needs)
        try:
            if plan.foreign is not None:
                raise ForeignPlan(plan.foreign)
            core = _translated(self._open().plan, plan.dsl, plan.schema, _paths.here(), label)
        except ForeignPlan as foreign:
            core = self._foreign_plan(lazyframe, foreign, asked, label)
        return self._query_job(core, kind or "polars", label or "the query")

    def _foreign_plan(
        self, lazyframe: Any, foreign: ForeignPlan, needs: Needs, label: str | None
    ) -> _core.Job:
        """A job of a plan that only a Python process with the driver's Polars runs."""
        dsl, used = query.by_value(lazyframe)
        function = ship.Pickled(functools.partial(_remote.run_plan, _paths.here(), str(foreign)), needs)
        return _translated(
            self._open().map_arguments,
            label or "the query",
            self._shipper.function(
                _remote.Part(function.code, "the query", "polars", "polars"),
                [function],
                {*frames.MODULES["polars"], *used},
                "the query",
            ),
            [pickling.dumps(dsl, "the plan")],
        )

    def collect(self, lazyframe: Any, **needs: Unpack[NeedsArguments]) -> Any:
        """A Polars LazyFrame's result, computed by the mesh. ``lf.floe.collect()`` does the same.

        >>> import polars as pl
        >>> mesh.collect(pl.LazyFrame({"x": [1, 2, 3]}).select(pl.col("x").sum()))["x"].item()
        6

        Functions in Python may be part of it, as :meth:`query` says:

        >>> plan = pl.LazyFrame({"x": [1, 2]}).select(pl.col("x").map_batches(lambda x: x * 10))
        >>> mesh.collect(plan)["x"].to_list()
        [10, 20]
        """
        return self.query(lazyframe, **needs).collect()

    def _query_job(self, core: _core.Job, kind: str | None, name: str) -> Job[Any]:
        if kind not in (None, *frames.KINDS):
            raise ValueError(f"kind is 'polars', 'arrow' or 'pandas', not {kind!r}")
        return Job(core, self, kind=kind, name=name, assemble=query.joined)

    # Jobs.

    def jobs(self) -> list[dict[str, Any]]:
        """What runs and ran: each as :meth:`Job.status` tells it."""
        return json.loads(_translated(self._open().jobs))

    def job(self, id: str) -> Job[Any]:
        """A job by its id, whoever submitted it."""
        return Job(_translated(self._open().job, id), self, name=f"job {id}")

    def _job(self, core: _core.Job, kind: str | None, name: str, merge: Any) -> Job[Any]:
        if merge is None:
            return Job(core, self, kind=kind, name=name, assemble=list)
        if merge == CONCAT:
            return Job(
                core,
                self,
                kind=kind,
                name=name,
                assemble=lambda parts: data.concat(parts, name),
                joined=data.joined_pandas if kind == "pandas" else None,
            )
        return Job(core, self, kind=kind, name=name, assemble=lambda parts: parts[0])

    def _merging(
        self, merge: Merge, function: ship.Pickled, kind: str | None, modules: Sequence[str]
    ) -> _core.Function | None:
        """What merges on the nodes, if something does."""
        if merge is None or merge == CONCAT:
            return None
        if not callable(merge):
            raise TypeError(f"merge is a function of a list of partitions, None or 'concat', not {merge!r}")
        pickled = ship.Pickled(merge, function.needs)
        return self._shipper.function(
            _remote.Merge(pickled.code, pickled.name, kind, None), [pickled], modules
        )

    # The connection.

    def close(self) -> None:
        """Ends the calls that are under way, and the node, if one was started for this. Jobs go on.

        Whoever waits for a call or a job gets :class:`floe.errors.Cancelled`. A job that goes on is found
        again by its id, through another connection: ``floe.connect().job(id)``. A forked child closes nothing
        of its parent's.
        """
        self._close(told=True)

    def _close(self, told: bool) -> None:
        """Closes; `told` as in :meth:`Calls.close`."""
        with self._lock:
            if self._closed or self._forked:
                return
            self._closed = True
            sessions = [self._session, *self._executors]
        if told:
            # A node that was started for this ends with it, and takes its jobs along.
            self._core.close(self._on_close is not None)
        for calls in sessions:
            if calls is not None:
                try:
                    calls.close(told)
                except Exception:
                    pass  # The mesh ends sessions that nobody attends.
        if self._on_close is not None:
            self._on_close()

    def _leave(self) -> None:
        """In a forked child: the connection is the parent's, whoever held this lock."""
        self._lock = threading.RLock()
        self._forked = True
        for calls in [self._session, *self._executors]:
            if calls is not None:
                calls.leave()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<floe.Mesh, closed>"
        if self._forked:
            return "<floe.Mesh of the process that this one was forked from>"
        return f"<floe.Mesh of {', '.join(node.name for node in self.nodes)}>"

    def _open(self) -> _core.Mesh:
        if self._forked:
            raise Forked()
        if self._closed:
            raise Error("the mesh is closed")
        return self._core

    def _calls(self) -> Calls:
        """The session for single calls, opened when it is first needed."""
        self._open()
        with self._lock:
            if self._session is None or self._session.ended:
                self._session = Calls(self, "calls")
            return self._session

    def _slots(self, nodes: Sequence[str] | None = None) -> int:
        """How many tasks these nodes run at once; all unless given by their ids."""
        return max(
            1, sum(node.slots for node in self.nodes if node.alive and (nodes is None or node.id in nodes))
        )

    def _default_partitions(self) -> int:
        return self._slots() * _PARTITIONS_PER_SLOT

    def _node_name(self, id: str) -> str:
        if id not in self._names:
            try:
                self.status()
            except Error:
                return id
        return self._names.get(id, id)

    def _node_ids(self, names: str | tuple[str, ...] | None) -> list[tuple[str, str]]:
        """The ids and names of the nodes that are there, all of them or those named."""
        nodes = [node for node in self.nodes if node.alive]
        if names is None:
            return [(node.id, node.name) for node in nodes]
        found = []
        for name in [names] if isinstance(names, str) else names:
            matching = [node for node in nodes if name == node.name] or [
                node for node in nodes if name == node.id
            ]
            if len(matching) > 1:
                raise Error(f"{len(matching)} nodes are called {name}: name one by its id")
            if not matching:
                there = ", ".join(node.name for node in nodes)
                raise Unavailable(f"no node called {name} is there; there are {there}")
            found.append((matching[0].id, matching[0].name))
        return found


def _partitioned(values: Any, n: int | None, default: Callable[[], int]) -> data.Partitioned:
    return data.Partitioned(values, n, default() if n is None else 1)


def _pickled_source(source: Any, needs: Needs) -> ship.Pickled:
    """A source, or what makes one, as it is sent."""
    if not callable(source) and not all(_looking.answers(source, name) for name in ("read", "__len__")):
        raise TypeError(
            "a source has __len__() and read(offset, limit), or is a function that makes one, "
            f"not {pickling.a(source)}"
        )
    return ship.Pickled(source, needs, what="the source", called=False)
