"""`concurrent.futures` over the mesh."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import time
import types
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, TypeVar

from . import _remote, ship
from .call import Calls, Defined, Result, arguments, submit
from .environment import Needs

if TYPE_CHECKING:
    from .mesh import Mesh

T = TypeVar("T")

#: What does not change while it is used, so that it is pickled once however often it is submitted.
_CONSTANT = (types.FunctionType, types.BuiltinFunctionType, type)


class Executor(concurrent.futures.Executor):
    """Runs calls on the nodes; :meth:`floe.Mesh.executor` makes one.

    It is used as any other executor is: with ``as_completed``, ``wait``, asyncio's ``run_in_executor``. It
    has a session of its own, which ends when it is shut down. A call runs at least once: again, if its node
    is lost.

    A function is pickled at its first call, and again if so many others were called since that it was let go.
    What it takes from its module's variables is what these held then.
    """

    def __init__(self, mesh: Mesh, needs: Needs, label: str) -> None:
        self._mesh = mesh
        self._needs = needs
        self._calls: Calls | None = Calls(mesh, label)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Result[T]:
        """Calls ``fn(*args, **kwargs)`` on some node."""
        calls = self._open()
        if type(fn) not in _CONSTANT:
            fn, args, kwargs = _constant(fn, args, kwargs)
        # By identity, whatever its class makes of comparing. The function is kept with it, so that no other
        # one gets its id.
        function = calls.defined(("fn", id(fn)))
        if function is None:
            function = self._define(calls, fn)
        result: Result[T] = Result()
        result._calls = calls
        result._number = calls.call(function, arguments(args, kwargs), result)
        return result

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """The results of calling `fn` with the items of the iterables, in order.

        With a `chunksize` that many items make one call. :meth:`floe.Mesh.map` finds a good size by itself
        and does not take all items at once.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        calls = self._open()
        pickled = ship.Pickled(fn, self._needs)
        function = calls.function(pickled, lambda: _remote.Each(pickled.code, pickled.name), "each")
        items = zip(*iterables)
        results: list[Result[Any]] = []
        while True:
            chunk, count = _remote.packed_items(itertools.islice(items, chunksize), len(results) * chunksize)
            if not count:
                break
            results.append(submit(calls, function, chunk))
        return itertools.chain.from_iterable(_in_order(results, timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls, and with `wait` waits for those under way; the last one ends the session."""
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.finish(wait=wait, cancel=cancel_futures)

    def _open(self) -> Calls:
        if self._calls is None:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._calls

    def _define(self, calls: Calls, function: Callable[..., Any]) -> Defined:
        pickled = ship.Pickled(function, self._needs)
        defined = calls.function(pickled, lambda: _remote.Call(pickled.code, pickled.name), "call")
        if type(function) in _CONSTANT:
            calls.keep(("fn", id(function)), defined, len(pickled.code), function)
        return defined


def _in_order(results: list[Result[Any]], timeout: float | None) -> Iterator[Any]:
    """What these return, in order. When the caller stops reading, the rest is cancelled."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        results.reverse()
        while results:
            left = None if deadline is None else deadline - time.monotonic()
            yield results.pop().result(left)
    finally:
        for result in results:
            result.cancel()


def _has_gaps(function: functools.partial[Any]) -> bool:
    """Whether some of its arguments are places for those of the call, as there are since Python 3.14."""
    gap = getattr(functools, "Placeholder", None)
    return gap is not None and any(value is gap for value in function.args)


def _constant(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The same call of a function that does not change: what does goes with the arguments."""
    while True:
        if type(function) is functools.partial and not _has_gaps(function):
            args, kwargs, function = function.args + args, {**function.keywords, **kwargs}, function.func
        elif issubclass(type(function), types.MethodType):
            args, function = (function.__self__, *args), function.__func__
        elif isinstance(vars(type(function)).get("__call__"), types.FunctionType):
            args, function = (function, *args), type(function).__call__
        else:
            return function, args, kwargs
        if type(function) in _CONSTANT:
            return function, args, kwargs
