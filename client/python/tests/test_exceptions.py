"""Exceptions of functions arrive as what they are: kinds of exceptions, in all ways of calling."""

import asyncio
import builtins
import dataclasses
import functools
import json
import socket
import subprocess
import sys
import threading

import joblib
import pandas as pd
import pytest

import floe
from floe import _exceptions, errors, pickling

LIMIT = 24 << 10


class Plain(Exception):
    pass


class NeedsArguments(Exception):
    """Its text is no argument of its constructor."""

    def __init__(self, code, *, reason):
        super().__init__(f"failed with {code}")
        self.code, self.reason = code, reason


class Slots(Exception):
    __slots__ = ("a", "unset")

    def __init__(self, a):
        self.a = a


class OwnPickling(Exception):
    def __init__(self, a, b):
        self.pair = (a, b)

    def __reduce__(self):
        return OwnPickling, self.pair


class BadPickling(Exception):
    def __reduce__(self):
        raise ValueError("no")


class BadUnpickling(Exception):
    def __setstate__(self, state):
        raise ValueError("no")


class BadText(Exception):
    def __str__(self):
        raise ValueError("no")

    __repr__ = __str__


class NothingSet(Exception):
    def __setattr__(self, name, value):
        raise TypeError(f"{name} cannot be set")


class OwnNew(Exception):
    def __new__(cls, first, second):
        made = super().__new__(cls, first)
        made.second = second
        return made


class TwoBases(KeyError, AttributeError):
    pass


class OfAFile(OSError):
    def __init__(self, path):
        super().__init__(2, "is gone", path)
        self.where = path


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    a: int


class WithLock(Exception):
    guard = threading.Lock()


class Base(BaseException):
    pass


def raised(cls, *args):
    def function():
        raise cls(*args)

    return function


def caused():
    try:
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("inner") from error
    except ValueError:
        raise Plain("outer")


def suppressed():
    try:
        1 / 0
    except ZeroDivisionError:
        raise Plain("alone") from None


def noted():
    error = Plain("noted")
    error.__notes__ = ["one", "two"]
    error.details = {"items": [1, (2, "three")]}
    raise error


def circle():
    error, other = Plain("a"), Plain("b")
    error.__cause__, other.__context__, other.refers = other, error, error
    raise error


def grouped():
    inner = builtins.ExceptionGroup("inner", [ValueError(1), NeedsArguments(3, reason="r")])
    inner.exceptions[0].__cause__ = KeyError("k")
    raise builtins.BaseExceptionGroup("outer", [inner, Plain("p"), KeyboardInterrupt()])


def local_class():
    class Local(LookupError):
        pass

    raise Local("local")


#: What raises, by name.
KINDS = {
    "StopIteration": lambda: next(iter(())),
    "StopIteration with a value": raised(StopIteration, 5),
    "StopAsyncIteration": raised(StopAsyncIteration, "end"),
    "GeneratorExit": raised(GeneratorExit),
    "KeyboardInterrupt": raised(KeyboardInterrupt, "k"),
    "SystemExit": lambda: sys.exit(3),
    "a BaseException": raised(Base, "b"),
    "plain": raised(Plain, "p", 1, [2]),
    "needs arguments": raised(functools.partial(NeedsArguments, reason="why"), 3),
    "slots": raised(Slots, {"a": 1}),
    "own pickling": raised(OwnPickling, 1, 2),
    "bad pickling": raised(BadPickling, "q"),
    "nothing can be set": raised(NothingSet, "q"),
    "own __new__": raised(OwnNew, 1, 2),
    "two bases": raised(TwoBases, "q"),
    "an OSError of one's own": raised(OfAFile, "/nowhere"),
    "frozen": raised(Frozen, 3),
    "a cause and contexts": caused,
    "no context": suppressed,
    "notes and attributes": noted,
    "a circle": circle,
    "KeyError": lambda: {}["key"],
    "AttributeError": lambda: (1).missing,
    "FileNotFoundError": lambda: open("/nowhere/at/all"),
    "UnicodeDecodeError": lambda: b"\xff".decode(),
    "SyntaxError": lambda: compile("1 +", "file", "exec"),
    "JSONDecodeError": lambda: json.loads("{"),
    "CalledProcessError": lambda: subprocess.run([sys.executable, "-c", "exit(3)"], check=True),
    "TimeoutError": raised(TimeoutError, "late"),
    "CancelledError": raised(asyncio.CancelledError, "c"),
    "an error of Floe's": raised(floe.Crashed, "it crashed", "name", "how"),
}
if sys.version_info >= (3, 11):
    KINDS["groups"] = grouped


def outcome(function):
    try:
        return function()
    except BaseException as error:
        return error


def described(error, seen=()):
    """All that is to be told of an exception, in what can be compared."""
    if error is None or id(error) in seen or len(seen) > 8:
        return None if error is None else "again"
    seen = (*seen, id(error))

    def plain(value):
        if isinstance(value, BaseException):
            return described(value, seen)
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return repr(value)

    attributes = {name: plain(value) for name, value in vars(error).items() if name != "__notes__"}
    members = {
        name: plain(getattr(error, name, None))
        for name in ("value", "code", "errno", "strerror", "filename", "a", "unset", "msg", "lineno", "start")
    }
    notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("on the node")]
    return {
        "type": type(error),
        "text": outcome(lambda: str(error)) if not isinstance(error, BadText) else "",
        "args": plain(error.args),
        "attributes": attributes,
        "members": members,
        "notes": notes,
        "cause": described(_cause(error), seen),
        "context": described(error.__context__, seen),
        # The account of the node's traceback is a cause before Python 3.11.
        "suppress": error.__suppress_context__ if sys.version_info >= (3, 11) else None,
        "members of the group": [described(member, seen) for member in getattr(error, "exceptions", ())],
    }


def _is_account(cause):
    """Whether a cause is what tells of the node's traceback where there are no notes."""
    return type(cause) is floe.FunctionError and str(cause).startswith("on the node")


def _cause(error):
    return None if _is_account(error.__cause__) else error.__cause__


def same(got, function):
    expected = outcome(function)
    assert described(got) == described(expected)


@pytest.mark.parametrize("name", KINDS)
def test_kinds(mesh, name):
    """Each kind, by a call, by an item of a map, and by a job."""
    function = KINDS[name]
    same(outcome(lambda: mesh.parallel(function)().result(60)), function)
    same(outcome(lambda: mesh.map(lambda _: function(), [1]).collect()), lambda: (lambda _: function())(1))
    job = mesh.parallelize([1], lambda _: function(), 1, merge=None)
    same(outcome(lambda: job.collect(60)), function)
    same(job.failure, function)
    assert not job.successful and job.phase == "failed"


class Bad:
    """A source whose second half cannot be read."""

    def __len__(self):
        return 4

    def read(self, offset, limit):
        return KINDS["StopIteration"]() if offset else [1]


def add(a, b):
    return a + b


async def awaited(thing):
    return await asyncio.wait_for(thing, 60)


async def gathered(*things):
    return await asyncio.wait_for(asyncio.gather(*things), 60)


def submitted(mesh, function, way):
    with mesh.executor() as executor:
        return way(executor, function)


def through_asyncio(mesh, function):
    async def main():
        with mesh.executor() as executor:
            loop = asyncio.get_running_loop()
            return await asyncio.wait_for(loop.run_in_executor(executor, function, 1), 60)

    return asyncio.run(main())


def called_back(mesh, function):
    heard, told = [], threading.Event()
    mesh.parallel(function)(1).succeed(lambda _: told.set()).fail(
        lambda error: (heard.append(error), told.set())
    )
    assert told.wait(60)
    raise heard[0]


def through_joblib(mesh, function):
    with joblib.parallel_config(backend="floe"):
        return joblib.Parallel()([joblib.delayed(function)(1)])


#: Ways of calling a function with an argument, by name.
WAYS = {
    "call": lambda mesh, f: mesh.parallel(f)(1).result(60),
    "value": lambda mesh, f: mesh.parallel(f)(1).value,
    "callback": called_back,
    "await a call": lambda mesh, f: asyncio.run(awaited(mesh.parallel(f)(1))),
    "gather": lambda mesh, f: asyncio.run(gathered(mesh.parallel(f)(1), mesh.parallel(f)(1))),
    "map": lambda mesh, f: mesh.map(f, [1, 2, 3]).collect(),
    "iterate over a map": lambda mesh, f: list(mesh.map(f, [1, 2, 3])),
    "await a map": lambda mesh, f: asyncio.run(awaited(mesh.map(f, [1, 2, 3]))),
    "submit": lambda mesh, f: submitted(mesh, f, lambda executor, f: executor.submit(f, 1).result(60)),
    "map of an executor": lambda mesh, f: submitted(mesh, f, lambda e, f: list(e.map(f, [1, 2]))),
    "map in chunks": lambda mesh, f: submitted(mesh, f, lambda e, f: list(e.map(f, [1, 2], chunksize=2))),
    "run_in_executor": through_asyncio,
    "view": lambda mesh, f: mesh[:].apply_sync(f, 1),
    "parts": lambda mesh, f: mesh.parallelize([1, 2], lambda part: f(part), 2, merge=None).collect(60),
    "joined": lambda mesh, f: mesh.parallelize([1, 2], lambda part: [f(part)], 2).collect(60),
    "joined frames": lambda mesh, f: mesh.parallelize(pd.DataFrame({"a": [1, 2]}), f, 2).collect(60),
    "partitions": lambda mesh, f: list(mesh.parallelize([1, 2], f, 2, merge=None).partitions()),
    "await a job": lambda mesh, f: asyncio.run(awaited(mesh.parallelize([1, 2], f, 2, merge=None))),
    "merging": lambda mesh, f: mesh.parallelize([1, 2], lambda part: part, 2, merge=f).collect(60),
    "map_reduce": lambda mesh, f: mesh.map_reduce(floe.source.range(0, 4), f, add, 2).collect(60),
    "reducing": lambda mesh, f: mesh.map_reduce(floe.source.range(0, 4), sum, lambda a, b: f(a), 2).collect(
        60
    ),
    "joblib": through_joblib,
}


#: What cannot be raised by an iterator or a coroutine as it is.
RAISED = {
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "needs arguments": NeedsArguments,
}


@pytest.mark.parametrize("way", WAYS)
def test_ways(mesh, way):
    """However a function is called, what it raised is raised, and nothing looks like an end."""
    for name, cls in RAISED.items():
        kind = KINDS[name]

        def function(_, kind=kind):
            return kind()

        got = outcome(lambda: WAYS[way](mesh, function))
        if cls is StopIteration and not isinstance(got, StopIteration):
            # As of a generator or a coroutine that raises it.
            assert isinstance(got, RuntimeError), (way, got)
            got = got.__cause__
        assert isinstance(got, cls), (way, name, got)


def test_values_before_an_exception_are_those_of_before(mesh):
    seen = []

    def fails_at_three(n):
        return n if n < 3 else KINDS["KeyboardInterrupt"]()

    with pytest.raises(KeyboardInterrupt):
        for value in mesh.map(fails_at_three, range(10), chunk=5):
            seen.append(value)
    assert seen == [0, 1, 2]
    seen.clear()
    with pytest.raises(RuntimeError) as caught:
        for value in mesh.map(lambda n: n if n < 3 else next(iter(())), range(10), chunk=2):
            seen.append(value)
    assert seen == [0, 1, 2] and type(caught.value.__cause__) is StopIteration


def test_a_source_that_stops(mesh):
    for way in (lambda job: job.collect(60), lambda job: list(job.partitions())):
        got = outcome(lambda: way(mesh.map_reduce(Bad, sum, add, 2)))
        assert isinstance(got, StopIteration) or isinstance(got.__cause__, StopIteration)


def test_what_cannot_be_sent_stays_and_the_rest_comes(mesh):
    def function():
        error = NeedsArguments(threading.Lock(), reason=socket.socket())
        error.frame, error.kept = sys._getframe(), [1]
        error.args += (threading.Lock(), "text")
        raise error

    for got in (
        outcome(lambda: mesh.parallel(function)().result(60)),
        outcome(lambda: mesh.parallelize([1], lambda _: function(), 1).collect(60)),
    ):
        assert type(got) is NeedsArguments and got.kept == [1]
        assert "failed with <unlocked _thread.lock" in str(got) and got.args[2] == "text"
        assert "socket" in repr(got.reason) and "frame" in repr(got.frame)
        if sys.version_info >= (3, 11):
            told = " ".join(got.__notes__)
            assert "its attribute 'reason', a socket.socket" in told and "its attribute 'frame'" in told


def test_what_is_too_large_is_cut(mesh):
    def function(what):
        if what == "text":
            raise ValueError("x" * 100_000_000)
        if what == "items":
            raise Plain([0] * 1_000_000)
        if what == "chain":
            error = None
            for n in range(1000):
                error, former = Plain(n), error
                error.__context__ = former
            raise error
        error = Plain("short")
        error.__notes__ = ["y" * 1_000_000]
        error.__cause__ = ValueError("z" * 1_000_000)
        raise error

    got = outcome(lambda: mesh.parallel(function)("text").result(60))
    assert type(got) is ValueError and str(got).startswith("xxx") and len(str(got)) < LIMIT
    assert "100000000 characters are too many" in str(got)
    got = outcome(lambda: mesh.parallel(function)("items").result(60))
    assert type(got) is Plain and repr(got.args[0]).startswith("[0, 0")
    got = outcome(lambda: mesh.parallel(function)("chain").result(60))
    assert type(got) is Plain and got.args == (999,) and got.__context__.__context__.args == (997,)
    got = outcome(lambda: mesh.parallelize(["both"], lambda part: function(part[0]), 1).collect(60))
    assert type(got) is Plain and got.args == ("short",) and type(got.__cause__) is ValueError


def test_exceptions_that_are_returned(mesh):
    """They are values like others: nobody calls their constructors again."""
    names = ("needs arguments", "own pickling", "an OSError of one's own", "frozen", "slots", "two bases")

    def function():
        return [(name, outcome(KINDS[name])) for name in names]

    for got in (
        mesh.parallel(function)().result(60),
        mesh.map(lambda _: function(), [1]).collect()[0],
        mesh.parallel(lambda pairs: pairs)(function()).result(60),
    ):
        for name, error in got:
            same(error, KINDS[name])


def test_classes(mesh):
    """Those of the driver are the driver's own, those of the node come along, else it is a FunctionError."""
    got = outcome(lambda: mesh.parallel(local_class)().result(60))
    assert type(got).__name__ == "Local" and isinstance(got, LookupError) and str(got) == "local"
    got = outcome(lambda: mesh.parallel(raised(BadUnpickling, "q"))().result(60))
    assert type(got) is BadUnpickling and got.args == ("q",)
    got = outcome(lambda: mesh.parallel(raised(BadText, "q"))().result(60))
    assert type(got) is BadText and got.args == ("q",)

    def unknown():
        import types

        module = types.ModuleType("only_on_the_node")
        sys.modules["only_on_the_node"] = module
        exec("class Strange(Exception): pass", module.__dict__)
        raise module.Strange("s") from ValueError("v")

    got = outcome(lambda: mesh.parallel(unknown)().result(60))
    assert type(got) is floe.FunctionError and "Strange: s" in str(got) and type(_cause(got)) is ValueError


def test_any_room():
    """However little room there is, what comes is an exception of the class, and fits."""
    error = outcome(noted)
    error.__cause__ = NeedsArguments("c" * 5000, reason=list(range(5000)))
    error.large = "l" * 100_000
    for limit in (1 << 10, 5 << 10, 6 << 10, 8 << 10, LIMIT, 1 << 20):
        data = _exceptions.encode(error, limit, pickling.pickler_class())
        assert len(data) <= limit
        if data:
            got, itself, _ = _exceptions.decode(data, errors.FunctionError)
            assert itself and type(got) is Plain
    assert got.large == error.large and got.__cause__.reason == list(range(5000))
    if sys.version_info >= (3, 11):
        many = builtins.ExceptionGroup("many", [Plain(n) for n in range(1000)])
        data = _exceptions.encode(many, LIMIT, pickling.pickler_class())
        got, itself, missing = _exceptions.decode(data, errors.FunctionError)
        assert itself and got.exceptions[7].args == (7,) and "of its 1000 exceptions" in missing[0]


def test_a_class_that_cannot_be_sent_is_found_by_its_name(mesh):
    data = _exceptions.encode(WithLock("w"), LIMIT, pickling.pickler_class())
    got, itself, _ = _exceptions.decode(data, errors.FunctionError)
    assert itself and type(got) is WithLock and got.args == ("w",)


def test_coroutine_functions_are_refused_at_once(mesh):
    async def fetch():
        return 1

    for way in (mesh.parallel(fetch), lambda: mesh.map(fetch, [1]), lambda: mesh.parallelize([1], fetch)):
        with pytest.raises(TypeError, match="fetch is a coroutine function.*asyncio.run"):
            way()
    assert mesh.parallel(lambda: asyncio.run(fetch()))().result(60) == 1
    got = outcome(lambda: mesh.parallel(lambda: (n for n in ()))().result(60))
    assert isinstance(got, floe.Unpicklable) and "a generator cannot be pickled" in str(got)
