"""Calls: functions called on the nodes one by one, without a job for each.

A mesh has one standing job, a *session*, for all its calls; an executor has its own. Calls go from the driver
to the node that it is connected to, and from there to processes that wait for them on all nodes.

A call is run at least once. It is sent again if the node that runs it, or the one that the driver is
connected to, is lost; so a function that changes something outside may do so twice. That the leader is lost
does no harm. When the driver ends, so do its sessions, with all that is under way in them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import pickle
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Callable, Generator, Generic, Iterable, Protocol, TypeVar

from . import _looking, _remote, pickling, ship
from .environment import Needs
from .errors import Cancelled, Error, Forked, as_iterator, from_core, from_parts

if TYPE_CHECKING:
    from . import _core
    from .job import Job
    from .mesh import Mesh

T = TypeVar("T")

_log = logging.getLogger("floe")

#: Arguments larger than this are put into the mesh first: they would hold up what is sent after them.
MAX_ARGUMENT_BYTES = 512 << 10

#: How many bytes of functions a session keeps known, so that they need not be pickled and sent again. Those
#: that were not called for longest make way.
MAX_DEFINED_BYTES = 32 << 20

#: What a function takes besides its code, in bytes, roughly.
_DEFINED_BYTES = 4 << 10

#: How long the thread that takes results waits for some before it looks whether it is still wanted, in
#: seconds.
_POLL = 1.0


class Waiting(Protocol):
    """What is told how a call ended."""

    def _settle(self, ok: bool, body: bytes, error: Any, node: str, elapsed_us: int) -> None: ...

    def _break(self, error: BaseException) -> None: ...

    def _leave(self, error: BaseException) -> None: ...


class Defined:
    """A function that a session knows. The session forgets it when nobody has this object any more."""

    __slots__ = ("number", "_session")

    def __init__(self, session: _core.Session, number: int) -> None:
        self.number = number
        self._session = session

    def __del__(self) -> None:
        # At the interpreter's end it may be half gone.
        forget = getattr(self._session, "forget", None)
        if forget is not None:
            forget([self.number])


class Calls:
    """A session, and what waits for its results."""

    def __init__(self, mesh: Mesh, label: str) -> None:
        from . import _core

        self.mesh = mesh
        try:
            self._session = mesh._core.session(label)
        except _core.CoreError as error:
            raise from_core(error) from None
        self._error: BaseException | None = None
        self._closed = False
        # Set when no more calls will come: the session then ends with the last result.
        self._finishing = False
        self._ids = itertools.count(1)
        self._pending: dict[int, Waiting] = {}
        #: Each with its size, the one that was used last at the end.
        self._functions: OrderedDict[Any, tuple[Defined, int, Any]] = OrderedDict()
        self._functions_bytes = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._drain, name="floe-results", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str:
        """The session's job."""
        return self._session.id

    @property
    def ended(self) -> bool:
        """Whether nothing can be called any more."""
        return self._closed or self._error is not None

    def defined(self, key: Any) -> Defined | None:
        """The function that was defined under this key, if it is still known."""
        with self._lock:
            known = self._functions.get(key)
            if known is None:
                return None
            self._functions.move_to_end(key)
            return known[0]

    def keep(self, key: Any, defined: Defined, code_bytes: int, kept: Any = None) -> None:
        """Has a function found under another key too; `kept` lives as long as that."""
        size = code_bytes + _DEFINED_BYTES
        # What is let go is let go outside of the lock: that may run code of the user's.
        former = [self._functions.get(key)]
        with self._lock:
            replaced = self._functions.pop(key, None)
            self._functions_bytes += size - (replaced[1] if replaced else 0)
            self._functions[key] = (defined, size, kept)
            while self._functions_bytes > MAX_DEFINED_BYTES and len(self._functions) > 1:
                _, oldest = self._functions.popitem(last=False)
                self._functions_bytes -= oldest[1]
                former.append(oldest)

    def define(self, function: _core.Function, key: Any, code_bytes: int = 0) -> Defined:
        """A function to be called; `key` tells it from all others."""
        if isinstance(self._error, Forked):
            raise self._error
        try:
            defined = Defined(self._session, self._session.define(function))
        except Exception as error:
            raise from_core(error) if hasattr(error, "kind") else error from None
        self.keep(key, defined, code_bytes)
        return defined

    def function(self, pickled: ship.Pickled, code: Callable[[], object], form: str) -> Defined:
        """As :meth:`define`, for a pickled function; `form` names what `code` makes of it."""
        key = (form, pickled.code, pickled.needs)
        defined = self.defined(key)
        if defined is None:
            function = self.mesh._shipper.function(code(), [pickled])
            defined = self.define(function, key, len(pickled.code))
        return defined

    def call(self, function: Defined, argument: bytes, waiting: Waiting, node: str | None = None) -> int:
        """Calls a function; `waiting` is told how that ended, in another thread."""
        if len(argument) > MAX_ARGUMENT_BYTES:
            argument = _remote.by_reference(*self.mesh._put_bytes(argument))
        number = next(self._ids)
        self._pending[number] = waiting
        if self._error is not None or self._closed:
            self._pending.pop(number, None)
            raise self._error or Error("the session is closed")
        try:
            self._session.call(function.number, number, argument, node)
        except Exception as error:
            self._pending.pop(number, None)
            raise from_core(error) if hasattr(error, "kind") else error from None
        return number

    def cancel(self, numbers: Iterable[int]) -> None:
        """Says that these calls are not wanted any more."""
        wanted = [number for number in numbers if self._pending.pop(number, None) is not None]
        if wanted and not self.ended:
            self._session.cancel(wanted)

    def finish(self, wait: bool, cancel: bool) -> None:
        """Ends the session once all calls have ended, which `cancel` brings about at once."""
        if cancel:
            for waiting in list(self._pending.values()):
                if isinstance(waiting, Result):
                    waiting.cancel()
        self._finishing = True
        if not self._pending:
            self.close()
        elif wait:
            self._thread.join()

    def close(self, told: bool = True) -> None:
        """Ends the session; what still waits is cancelled.

        Args:
            told: Whether those who wait are told. At the interpreter's end only daemon threads are left, and
                they end with it: an error would only be printed.
        """
        with self._lock:
            first, self._closed = not self._closed, True
        if first and not isinstance(self._error, Forked):
            self._session.close()
            if told:
                self._fail_all(Cancelled("the session was closed before the call ended"))
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5 * _POLL)

    def leave(self) -> None:
        """In a forked child: the session and its results are the parent's, whoever held this lock."""
        self._lock = threading.Lock()
        self._error = Forked()
        pending, self._pending = list(self._pending.values()), {}
        for waiting in pending:
            waiting._leave(self._error)

    def _drain(self) -> None:
        """Takes results as they come and tells who waits for them."""
        take, pop = self._session.results, self._pending.pop
        while not self._closed:
            if self._finishing and not self._pending:
                self.close()
                return
            try:
                results = take(_POLL)
            except Exception as ended:
                if not self._closed:
                    self._error = from_core(ended)
                    self._fail_all(self._error)
                return
            for number, ok, body, error, node, elapsed_us in results:
                waiting = pop(number, None)
                if waiting is not None:
                    try:
                        waiting._settle(ok, body, error, node, elapsed_us)
                    except Exception as failure:
                        _log.exception("a result could not be handed on")
                        # Whoever waits for it must not do so forever.
                        waiting._break(failure)

    def _fail_all(self, error: BaseException) -> None:
        while self._pending:
            try:
                _, waiting = self._pending.popitem()
            except KeyError:
                return
            waiting._break(error)


class Result(concurrent.futures.Future, Generic[T]):
    """What a call will return: a :class:`concurrent.futures.Future`, and more; awaitable in asyncio.

    Callbacks run in a thread that takes the results of all calls: they should be quick, and not wait for
    another call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: Calls | None = None
        self._number = 0
        self._node: str | None = None
        self._elapsed_us: int | None = None

    # What the session's thread does.

    def _settle(self, ok: bool, body: bytes, error: Any, node: str, elapsed_us: int) -> None:
        self._node = node
        self._elapsed_us = elapsed_us
        if ok:
            try:
                value = pickle.loads(body)
            except BaseException as failure:
                self._break(failure)
            else:
                self._finish(self.set_result, value)
        else:
            self._break(from_parts(*error))

    def _break(self, error: BaseException) -> None:
        self._finish(self.set_exception, error)

    def _leave(self, error: BaseException) -> None:
        # Another thread of the parent may have held it, and what is called back is called there.
        self._condition = threading.Condition()
        self._done_callbacks: list[Any] = []
        self._break(error)

    def _finish(self, setter: Callable[[Any], None], value: Any) -> None:
        try:
            setter(value)
        except concurrent.futures.InvalidStateError:
            pass  # It was cancelled meanwhile.

    # What users do.

    @property
    def completed(self) -> bool:
        """Whether the call has ended, however it did."""
        return self.done()

    @property
    def successful(self) -> bool:
        """Whether the call has ended and returned something."""
        return self.done() and not self.cancelled() and super().exception(0) is None

    @property
    def value(self) -> T:
        """What the call returned; waits for it, and raises what it raised."""
        return self.result()

    @property
    def failure(self) -> BaseException | None:
        """What the call raised; None if it returned something or has not ended."""
        if not self.done():
            return None
        if self.cancelled():
            return Cancelled("the call was cancelled")
        return super().exception(0)

    @property
    def node(self) -> str | None:
        """The name of the node that ran the call, once it has ended."""
        if self._node is None or self._calls is None:
            return None
        return self._calls.mesh._node_name(self._node)

    @property
    def elapsed(self) -> float | None:
        """How long the call ran on its node, in seconds, once it has ended."""
        return None if self._elapsed_us is None else self._elapsed_us / 1e6

    def result(self, timeout: float | None = None) -> T:
        """What the call returned; raises what it raised.

        It raises TimeoutError if the call has not ended within `timeout` seconds. Ctrl-C cancels the call.
        """
        try:
            return super().result(timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, None if it returned something; waits as :meth:`result` does."""
        try:
            error = super().exception(timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise
        if isinstance(error, StopIteration) and _in_event_loop():
            # It would be set on a future of asyncio, which takes none: whoever awaits it would wait forever.
            return as_iterator(error, "the call")
        return error

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the call has ended or `timeout` seconds are over, and tells whether it has."""
        try:
            self.exception(timeout)
        except concurrent.futures.CancelledError:
            return True
        except (TimeoutError, concurrent.futures.TimeoutError):
            return self.done()
        return True

    def succeed(self, callback: Callable[[T], Any]) -> Result[T]:
        """Calls back with what the call returned, once it has."""

        def done(future: Any) -> None:
            if self.successful:
                callback(future.result())

        self.add_done_callback(done)
        return self

    def fail(self, callback: Callable[[BaseException], Any]) -> Result[T]:
        """Calls back with what the call raised, if it does."""

        def done(_: Any) -> None:
            failure = self.failure
            if failure is not None:
                callback(failure)

        self.add_done_callback(done)
        return self

    def cancel(self) -> bool:
        """Cancels the call. One that runs already is not stopped, but what it returns is dropped."""
        if not super().cancel():
            return False
        # Those who wait with `concurrent.futures.wait` are told by this.
        try:
            self.set_running_or_notify_cancel()
        except Exception:  # Somebody cancelled it twice at the same time.
            pass
        if self._calls is not None:
            self._calls.cancel([self._number])
        return True

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def submit(calls: Calls, function: Defined, argument: bytes, node: str | None = None) -> Result[Any]:
    """Calls a function and returns what will come of it."""
    result: Result[Any] = Result()
    result._calls = calls
    result._number = calls.call(function, argument, result, node)
    return result


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """A call's arguments, pickled."""
    return pickling.dumps((args, kwargs), pickling.ARGUMENTS)


class Parallel(Generic[T]):
    """A function that runs on the mesh when it is called; see :func:`floe.parallel`."""

    def __init__(self, mesh: Callable[[], Mesh], function: Callable[..., T], needs: Needs) -> None:
        self.__wrapped__ = function
        self.__name__ = pickling.name_of(function)
        self.__doc__ = _looking.attribute(function, "__doc__")
        self._mesh = mesh
        self._needs = needs
        self._pickled: ship.Pickled | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Result[T]:
        """Calls the function on some node."""
        if self._pickled is None:
            self._pickled = ship.Pickled(self.__wrapped__, self._needs)
        pickled = self._pickled
        calls = self._mesh()._calls()
        number = calls.function(pickled, lambda: _remote.Call(pickled.code, pickled.name), "call")
        return submit(calls, number, arguments(args, kwargs))

    def map(self, *iterables: Iterable[Any], **how: Any) -> Any:
        """:meth:`floe.Mesh.map` of the function."""
        return self._mesh().map(self.__wrapped__, *iterables, **how)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remote.Local, (), {"function": self.__wrapped__}


def wait_all(results: Iterable[Result[Any] | Job[Any]], timeout: float | None = None) -> bool:
    """Waits until all of these have ended or `timeout` seconds are over, and tells whether they have.

    How they ended is theirs to tell: nothing is raised here. Ctrl-C meanwhile cancels those that have not.
    """
    waited = list(results)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        futures = [result for result in waited if isinstance(result, concurrent.futures.Future)]
        done = not concurrent.futures.wait(futures, timeout).not_done
        for other in waited:
            if not isinstance(other, concurrent.futures.Future):
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                done = other.wait(left) and done
        return done
    except KeyboardInterrupt:
        for result in waited:
            result.cancel()
        raise
