"""What can go wrong, typed.

Every error that Floe raises by itself is a :class:`Error`. What a function of yours raises comes back as
what it is, with the traceback of the node in its notes: a SystemExit and a KeyboardInterrupt too. Where an
iterator or a coroutine would have to raise a StopIteration, it is the cause of a RuntimeError.
"""

from __future__ import annotations

import pickle
from typing import Any, Mapping

from . import _exceptions

__all__ = [
    "Error",
    "NoMesh",
    "Unreachable",
    "Unavailable",
    "Busy",
    "Forked",
    "Refused",
    "VersionError",
    "QueryError",
    "UnseenFile",
    "FunctionError",
    "ContradictingEnds",
    "Crashed",
    "LimitExceeded",
    "MemoryLimitExceeded",
    "TimeLimitExceeded",
    "EnvironmentMismatch",
    "Cancelled",
    "Exhausted",
    "NoSuchJob",
    "ResultFreed",
    "Lost",
    "InternalError",
    "NotAFrame",
    "SchemaMismatch",
    "Unpicklable",
    "PartitionWarning",
]


class Error(Exception):
    """What went wrong, in a sentence."""


class NoMesh(Error):
    """There is no mesh to connect to, and none may or can be started."""


class Unreachable(Error, ConnectionError):
    """No node could be reached, or the last one that could is gone."""


class Unavailable(Error):
    """The mesh cannot decide now: it has no leader, or no majority. Trying again may help."""


class Busy(Unavailable):
    """The nodes have as much to do as they can hold, and went on having it for as long as was waited."""


class Forked(Error):
    """This process was forked from the one that the connection belongs to: it can connect anew."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "this process was forked from the one that this connection to the mesh belongs to: connect "
            "again here (floe.connect()), or start processes with the method `spawn`"
        )


class Refused(Error):
    """A node will not do this; the sentence says why."""


class ForeignPlan(Refused):
    """A plan that only the driver's own Polars runs as it is meant; the sentence says what is foreign."""


class VersionError(Error):
    """A version of Floe, Polars or a plan that does not fit; the sentence names both."""


class QueryError(Error):
    """A query is wrong; the sentence is Polars' own."""


class UnseenFile(Error, FileNotFoundError):
    """No node can read a file."""

    def __str__(self) -> str:
        # OSError would format an errno that there is not.
        return str(self.args[0]) if self.args else ""


class FunctionError(Error):
    """A function raised an exception that cannot be had here, since its class or its pickle cannot."""

    def __init__(self, message: str, name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        #: What the function is called.
        self.name = name
        #: Where the exception came from, as text.
        self.remote_traceback = remote_traceback


class Crashed(Error):
    """The process that ran a function ended or was killed, or did not keep to the protocol."""

    def __init__(self, message: str, name: str = "", how: str = "", output: str = "") -> None:
        super().__init__(message)
        #: What the function is called.
        self.name = name
        #: How the process ended: ``was killed by signal 11 (SIGSEGV)``, ``ended with exit status 3``.
        self.how = how
        #: The end of what it printed.
        self.output = output


class LimitExceeded(Error):
    """A function took more than it may, and was stopped."""

    def __init__(self, message: str, name: str = "", what: str = "") -> None:
        super().__init__(message)
        #: What the function is called.
        self.name = name
        #: ``memory`` or ``time``.
        self.what = what


class MemoryLimitExceeded(LimitExceeded, MemoryError):
    """A function took more memory than it may, and was stopped."""


class TimeLimitExceeded(LimitExceeded, TimeoutError):
    """A function ran for longer than it may, and was stopped."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class EnvironmentMismatch(Error):
    """No node has or can make what a function needs: an interpreter, a library, a version of one."""

    def __init__(self, message: str, needs: str = "", looked: str = "") -> None:
        super().__init__(message)
        #: What was needed.
        self.needs = needs
        #: Which nodes were tried, and why each cannot.
        self.looked = looked


class Cancelled(Error):
    """Somebody cancelled the job or the call."""


class Exhausted(Error):
    """Memory or disk ran out on a node."""


class NoSuchJob(Error, LookupError):
    """The mesh does not know the job. If it ever did, it ended so long ago that it is forgotten."""


class ResultFreed(NoSuchJob):
    """The job has ended, and its result is not kept any more; the sentence says why and since when."""


class Lost(Error):
    """The node, partition or object that is asked for is gone."""


class InternalError(Error):
    """A fault of Floe's own."""


class NotAFrame(Error, TypeError):
    """A function returned no frame where one is needed."""


class SchemaMismatch(Error, ValueError):
    """Partitions cannot be made one frame, since their columns differ."""


class Unpicklable(Error, pickle.PicklingError):
    """Something cannot be sent; the sentence names it."""


class ContradictingEnds(UserWarning):
    """A job has ended, and parts of the mesh that were cut off from each other told different ends.

    What this driver is told stands: a result goes before none. Somebody else may have been told otherwise.
    """


class PartitionWarning(UserWarning):
    """There are fewer partitions than were asked for, since there are fewer rows."""


_BY_KIND: dict[str, type[Error]] = {
    "no_mesh": NoMesh,
    "unreachable": Unreachable,
    "unavailable": Unavailable,
    "busy": Busy,
    "forked": Forked,
    "refused": Refused,
    "foreign": ForeignPlan,
    "version": VersionError,
    "query": QueryError,
    "unseen": UnseenFile,
    "exception": FunctionError,
    "crashed": Crashed,
    "limit": LimitExceeded,
    "unfit": EnvironmentMismatch,
    "cancelled": Cancelled,
    "exhausted": Exhausted,
    "no_such_job": NoSuchJob,
    "freed": ResultFreed,
    "lost": Lost,
    "result_changed": Lost,
    "internal": InternalError,
}


def from_core(error: BaseException) -> BaseException:
    """The exception to raise for one of the native part's."""
    return from_parts(getattr(error, "kind", "internal"), str(error), getattr(error, "details", None) or {})


def from_parts(kind: str, message: str, details: Mapping[str, Any]) -> BaseException:
    """The exception of this kind: for what a function raised, its own exception where that can be had."""

    def text(key: str) -> str:
        return str(details.get(key) or "")

    if kind == "exception":
        return _raised(message, text("name"), text("message"), text("traceback"), details.get("exception"))
    if kind == "crashed":
        return Crashed(message, text("name"), text("how"), text("output"))
    if kind == "limit":
        cls = {"memory": MemoryLimitExceeded, "time": TimeLimitExceeded}.get(text("what"), LimitExceeded)
        return cls(message, text("name"), text("what"))
    if kind == "unfit":
        return EnvironmentMismatch(message, text("needs"), text("looked"))
    return _BY_KIND.get(kind, Error)(message)


def _raised(whole: str, name: str, message: str, traceback: str, sent: Any) -> BaseException:
    """What a function raised, with the node's traceback."""

    def absent(line: str) -> FunctionError:
        return FunctionError(f"{name} failed: {line}", name, traceback)

    error: BaseException | None = None
    missing: list[str] = []
    if sent:
        try:
            error, itself, missing = _exceptions.decode(sent, absent)
            if not itself:
                error.args = (whole or f"{name} failed: {message}",)
        except BaseException:  # Classes of the user's are made anew, which may do anything.
            error = None
    if error is None:
        error = FunctionError(whole or f"{name} failed: {message}", name, traceback)
    _annotate(error, name, traceback, missing)
    return error


def _annotate(error: BaseException, name: str, traceback: str, missing: list[str]) -> None:
    """Puts the node's traceback where Python shows it."""
    notes = []
    if traceback:
        notes.append(
            f"on the node, in {name}:\n{traceback.rstrip()}"
            if name
            else f"on the node:\n{traceback.rstrip()}"
        )
    notes += [f"of this exception this did not come from the node: {what}" for what in missing]
    if isinstance(error, ModuleNotFoundError) and error.name:
        notes.append(_missing_module(str(error.name).partition(".")[0]))
    if not notes:
        return
    attributes = object.__getattribute__(error, "__dict__")
    own = attributes.get("__notes__", [])
    if hasattr(error, "add_note") and isinstance(own, list):
        # Not by `add_note`, which classes that allow no attributes to be set refuse.
        attributes["__notes__"] = [*own, *notes]
        return
    # Before Python 3.11 there are no notes; a cause is shown above the exception. It goes to the end of those
    # that there are.
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        further = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if further is None:
            _exceptions.set_own(error, "__cause__", FunctionError("\n".join(notes), name, traceback))
            return
        error = further


def as_iterator(error: BaseException, name: str) -> BaseException:
    """What an iterator or a coroutine raises for an exception.

    A StopIteration there would look like the end of the results, so it is the cause of another one, as Python
    does it for generators.
    """
    if not isinstance(error, StopIteration):
        return error
    stopped = Stopped(f"{name} raised StopIteration, which would look like the end of its results here")
    stopped.__cause__ = error
    return stopped


class Stopped(RuntimeError):
    """A function raised StopIteration, which is the cause of this."""


def _missing_module(name: str) -> str:
    """What to do about a module that the node does not have."""
    from .environment import distribution_of, is_local

    if is_local(name):
        return (
            f"{name} is code of this machine: give it as modules=[{name!r}], and it travels with the function"
        )
    found = distribution_of(name)
    if found is not None:
        return f"requirements=['{found[0]}=={found[1]}'] has it installed on the nodes"
    return f"requirements=[...] has what provides {name} installed on the nodes"
