"""What Python can call can be sent, and does there what it does here: kinds and ways of calling."""

import abc
import collections
import contextlib
import dataclasses
import enum
import functools
import operator
import socket
import sqlite3
import sys
import threading
import typing
from typing import Generic, NamedTuple, TypeVar

import joblib
import numpy as np
import pandas as pd
import pytest

import floe
from floe import call as calls

T = TypeVar("T")


@functools.lru_cache(maxsize=7)
def cached(n):
    return n + 1


@functools.cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def tenfold(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) * 10

    return wrapper


@tenfold
@functools.lru_cache
def cached_and_wrapped(n):
    return n + 1


@functools.lru_cache
@tenfold
def wrapped_and_cached(n):
    return n + 1


@functools.singledispatch
def named(value):
    return f"something, {value!r}"


@named.register
def _(value: int):
    return f"int {value}"


@named.register(list)
def _(value):
    return [named(item) for item in value]


class Shape:
    factor = 3

    def __init__(self, n):
        self.n = n

    def times(self, n):
        return self.n * n

    @classmethod
    def named(cls, n):
        return cls.__name__, cls.factor * n

    @staticmethod
    def doubled(n):
        return 2 * n

    @property
    def size(self):
        return self.n

    @functools.cached_property
    def square(self):
        return self.n * self.n

    @functools.lru_cache  # noqa: B019
    def remembered(self, n):
        return self.square + n

    plus_ten = functools.partialmethod(lambda self, a, b: self.n + a + b, 10)

    @functools.singledispatchmethod
    def any(self, value):
        return "something"

    @any.register
    def _(self, value: int):
        return value + self.n


class Square(Shape):
    def times(self, n):
        return super().times(n) + 1


class Slots:
    __slots__ = ("n", "unset")

    def __init__(self, n):
        self.n = n

    def __call__(self, n):
        return self.n + n


class Inherited(Slots):
    __slots__ = ()


@dataclasses.dataclass
class Record:
    a: int
    b: list = dataclasses.field(default_factory=list)
    c: int = 5


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Frozen:
    a: int
    b: tuple = dataclasses.field(default_factory=tuple)


class Pair(NamedTuple):
    a: int
    b: int = 2


Triple = collections.namedtuple("Triple", "x y z", defaults=[3])


class Color(enum.Enum):
    RED = 1
    GREEN = 2
    SCARLET = 1


class Planet(enum.Enum):
    EARTH = (5.9, 6.4)
    MARS = (0.6, 3.4)

    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius

    @property
    def density(self):
        return self.mass / self.radius


class Labelled(enum.Enum):
    def __new__(cls, value, label):
        made = object.__new__(cls)
        made._value_, made.label = value, label
        return made

    A = (1, "first")


class Access(enum.Flag):
    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3


class Level(enum.IntEnum):
    LOW = 1


class Abstract(abc.ABC):
    @abc.abstractmethod
    def value(self): ...


class Concrete(Abstract):
    def value(self):
        return 4


class Box(Generic[T]):
    def __init__(self, content: T):
        self.content = content


class Meta(type):
    def __call__(cls, *args):
        made = super().__call__(*args)
        made.by_meta = True
        return made


class Made(metaclass=Meta):
    pass


class Descriptor:
    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, owner, cls=None):
        return self.name


class Described:
    field = Descriptor()


class Only:
    """There is one, which is known by its name."""

    def __reduce__(self):
        return "ONLY"


ONLY = Only()
NOTHING = object()
UserId = typing.NewType("UserId", int)
P = typing.ParamSpec("P")


def typed(function: typing.Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> UserId:
    return UserId(function(*args, **kwargs))


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


@contextlib.contextmanager
def context(n):
    yield n + 1


def in_context(n):
    with context(n) as value:
        return value


def closures():
    return [lambda n, i=i: n + i for i in range(3)] + [lambda n: n + i for i in range(3)]


def default(n, given=NOTHING, only=ONLY):
    return n, given is NOTHING, only is ONLY


def annotated(n: "Shape", *, more: Color = Color.RED) -> Box[int]:
    return n, more is Color.RED


#: Callables of one argument, a number.
KINDS = {
    "lru_cache": cached,
    "cache": fibonacci,
    "cached and wrapped": cached_and_wrapped,
    "wrapped and cached": wrapped_and_cached,
    "uses a cached one": lambda n: (cached(n), cached.cache_parameters(), cached.__name__),
    "singledispatch": named,
    "singledispatch within": lambda n: (named([n, "a", [n]]), named.__name__, named.dispatch(int)(3)),
    "singledispatchmethod": Shape(2).any,
    "partial": functools.partial(pow, 2),
    "partial of a partial": functools.partial(functools.partial(lambda a, b, c=0: (a, b, c), 1), c=3),
    "partialmethod": Shape(2).plus_ten,
    "bound method": Shape(2).times,
    "method that calls super": Square(2).times,
    "method of a class": Square.named,
    "static method": Shape.doubled,
    "cached method": Shape(3).remembered,
    "cached property": lambda n: (Shape(n).square, Shape(n).size),
    "class": lambda n: Shape(n).n,
    "class as such": Pair,
    "slots": Slots(1),
    "inherited call": Inherited(1),
    "dataclass": lambda n: (
        dataclasses.astuple(Record(n)),
        [field.name for field in dataclasses.fields(Record)],
        dataclasses.replace(Record(n), c=n),
        Record(n).b is Record(n).b,
        dataclasses.fields(Record)[0].default is dataclasses.MISSING,
    ),
    "frozen dataclass": lambda n: (Frozen(n), Frozen(n) < Frozen(n + 1), hash(Frozen(n)) == hash(Frozen(n))),
    "named tuple": lambda n: (Pair(n), Pair(n)._asdict(), Pair(n)._replace(b=n), Triple(n, 2).z),
    "enum": lambda n: (
        Color.RED,
        Color(2),
        Color.SCARLET is Color.RED,
        list(Color.__members__),
        Level.LOW + n,
    ),
    "enum with attributes": lambda n: (Planet.MARS.mass, Planet.EARTH.density, Labelled.A.label, Labelled(1)),
    "flags": lambda n: (
        Access.READ | Access.WRITE,
        Access.BOTH,
        Access(3) is Access.BOTH,
        Access.NONE,
        ~Access.READ,
    ),
    "abstract class": lambda n: (
        Concrete().value(),
        isinstance(Concrete(), Abstract),
        Abstract.__abstractmethods__,
    ),
    "generic class": lambda n: (Box(n).content, Box[int](n).content, Box.__parameters__[0].__name__),
    "metaclass": lambda n: Made().by_meta,
    "descriptor": lambda n: Described().field,
    "types": lambda n: (typed(pow, n, 2), UserId(n), typed.__annotations__["return"].__name__),
    "mutual recursion": lambda n: (even(n), odd(n)),
    "context manager": in_context,
    "closures of a loop": lambda n: [function(n) for function in closures()],
    "one closure of a loop": closures()[1],
    "the last closure of a loop": closures()[3],
    "compared by identity": default,
    "annotations": annotated,
    "itemgetter": lambda n: operator.itemgetter(1)([n, n + 1]),
    "attrgetter": operator.attrgetter("real"),
    "methodcaller": operator.methodcaller("bit_length"),
    "ufunc": np.square,
    "bound ufunc": functools.partial(np.add, 2),
    "vectorize": np.vectorize(cached),
    "builtin": abs,
    "method of a builtin": "abc".__mul__,
    "method of a type": int.bit_length,
    "default values": lambda n, *, a=[1], b={"c": (1, 2)}: (n, a, b),  # noqa: B006
    "generator within": lambda n: list(i for i in range(n)),
}


def submit(mesh, function, argument):
    with mesh.executor() as executor:
        return executor.submit(function, argument).result(60)


def plain(value):
    """What can be compared after it went to a node and back."""
    return repr(value)


def through_joblib(mesh, function, argument):
    with joblib.parallel_config(backend="floe"):
        return joblib.Parallel()([joblib.delayed(function)(argument)])[0]


#: Ways of calling one with a number.
WAYS = {
    "call": lambda mesh, f, n: mesh.parallel(f)(n).result(60),
    "map": lambda mesh, f, n: mesh.map(f, [n]).collect()[0],
    "submit": submit,
    "job": lambda mesh, f, n: mesh.parallelize([n], lambda part: [f(part[0])], 1, merge=None).collect(60)[0][
        0
    ],
    "map_reduce": lambda mesh, f, n: mesh.map_reduce(
        floe.source.range(n, n + 1), lambda part: f(list(part)[0]), lambda a, b: a, 1
    ).collect(60),
    "joblib": through_joblib,
    "argument": lambda mesh, f, n: mesh.parallel(lambda g, n: g(n))(f, n).result(60),
}


@pytest.mark.parametrize("way", WAYS)
def test_callables(mesh, way):
    for name, function in KINDS.items():
        got = WAYS[way](mesh, function, 3)
        assert plain(got) == plain(function(3)), (way, name)
        assert plain(type(got)) == plain(type(function(3))), (way, name)


def test_a_callable_itself_as_the_function_of_a_job(mesh):
    for name in ("lru_cache", "singledispatch", "bound method", "slots", "partial", "one closure of a loop"):
        function = KINDS[name]
        job = mesh.parallelize([1, 2], functools.partial(map_items, function), 2, merge=None)
        assert job.collect(60) == [[function(1)], [function(2)]], name


def map_items(function, part):
    return [function(item) for item in part]


def test_classes_of_the_driver_come_back_as_they_are(mesh):
    """With the objects of other processes no other methods come, which would see other variables."""
    before = vars(Shape)["times"]
    back = mesh.parallel(lambda n: [Shape(n), Color.SCARLET, Record(n), ONLY, NOTHING])(2).result(60)
    assert type(back[0]) is Shape and back[1] is Color.RED and back[2] == Record(2)
    assert back[3] is ONLY and back[4] is NOTHING
    assert mesh.parallel(lambda value: value is NOTHING)(NOTHING).result(60)
    assert mesh.parallel(lambda: NOTHING)().result(60) is NOTHING
    assert vars(Shape)["times"] is before and Shape(2).times.__globals__ is globals()


def test_changes_of_a_class_get_there(mesh):
    function = lambda: Shape.factor  # noqa: E731
    assert mesh.parallel(function)().result(60) == 3
    Shape.factor = 4
    try:
        assert mesh.map(lambda shape: type(shape).factor, [Shape(1)] * 4).collect() == [4] * 4
    finally:
        Shape.factor = 3


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a syntax of Python 3.12")
def test_type_parameters(mesh):
    names = {"__name__": "__main__"}
    exec(
        "type Pairs[T] = list[tuple[T, T]]\nclass Box[T]:\n    def get(self, x: T) -> T: return x\n"
        "def function[T](x: T) -> T: return Box().get(x), Pairs.__name__, Pairs[int].__args__",
        names,
    )
    assert mesh.parallel(names["function"])(3).result(60) == (3, "Pairs", (int,))


def test_many_functions(mesh):
    """Any number of different functions, through one executor and by calls, and none is kept for good."""
    count = 10_000
    with mesh.executor() as executor:
        futures = [executor.submit(lambda n=n: n + 1) for n in range(count)]
        assert sum(future.result(60) for future in futures) == count * (count + 1) // 2
        assert executor._calls._functions_bytes <= calls.MAX_DEFINED_BYTES
        kept = len(executor._calls._functions)
        assert kept < count
        # The first of them was let go, and is called again.
        first = futures[0]
        assert executor.submit(lambda: 1).result(60) == first.result()
    results = [mesh.parallel(lambda n=n: n)() for n in range(300)]
    assert [result.result(60) for result in results] == list(range(300))


def test_functions_that_are_large(mesh):
    """Each holds a megabyte: neither driver nor host keeps them all, nor has room for them."""
    count, limit = 66, 120
    with mesh.executor(memory=f"{limit}MB") as executor:
        for n in range(count):
            held = bytes([n]) * (1 << 20)
            assert executor.submit(lambda held=held: (len(held), held[0])).result(60) == (1 << 20, n)
        most = calls.MAX_DEFINED_BYTES + (2 << 20)
        assert executor._calls._functions_bytes <= most < count << 20
        # With what they hold, loaded, they would be too much.
        assert 2 * count > limit


class Conf:
    """Answers for every attribute, as classes for settings do, and raises what it likes."""

    def __init__(self, values):
        self.__dict__["d"] = values

    def __getattr__(self, name):
        return self.__dict__["d"][name]

    def __reduce__(self):
        return Conf, (self.__dict__["d"],)


class Asked(Exception):
    """An object was asked for something that nobody needs to know."""


class Wary(Conf):
    """Bears only what pickling asks for."""

    def __getattribute__(self, name):
        if name in ("__module__", "func", "__name__", "__doc__", "keys", "read", "nbytes"):
            raise Asked(name)
        return object.__getattribute__(self, name)

    def __reduce__(self):
        return Wary, (object.__getattribute__(self, "__dict__")["d"],)


class WaryMeta(type):
    def __getattr__(cls, name):
        # Python asks for these itself, when it makes objects and pickles them.
        raise (AttributeError if name in ("__slots__", "__getstate__") else Asked)(name)


class OfWaryMeta(metaclass=WaryMeta):
    def __init__(self, a):
        self.a = a


class Called(Conf):
    def __call__(self, n):
        return self.a + n

    def __reduce__(self):
        return Called, (self.__dict__["d"],)


class Answers(Exception):
    def __getattr__(self, name):
        raise RuntimeError(name)


def raises(n):
    error = Answers("told", n)
    error.extra = n
    raise error


#: Objects of such classes, whose attribute `a` is 1.
WARY = {
    "KeyError": Conf({"a": 1}),
    "any attribute": Wary({"a": 1}),
    "metaclass": OfWaryMeta(1),
    "callable": Called({"a": 1}),
}


@pytest.mark.parametrize("name", WARY)
@pytest.mark.parametrize("way", WAYS)
def test_objects_that_answer_for_attributes(mesh, way, name):
    """They are sent without being asked: as variables of a function, and as arguments."""
    held = WARY[name]
    assert WAYS[way](mesh, lambda n: (held.a, n), 3) == (1, 3)
    back = WAYS[way](mesh, lambda n: (held, [held], n), 3)
    assert type(back[0]) is type(held) and back[0].a == back[1][0].a == 1
    assert mesh.parallel(lambda x: x.a)(held).result(60) == 1
    assert mesh.map(lambda x: x.a, [held] * 2).collect() == [1, 1]
    assert mesh.get(mesh.put(held)).a == 1


def test_callables_that_answer_for_attributes(mesh):
    for function in (Called({"a": 1}), functools.partial(Called({"a": 1})), Called({"a": 1}).__call__):
        for way, call in WAYS.items():
            if way != "joblib":  # It asks them itself, for their names.
                assert call(mesh, function, 3) == 4, way
    assert mesh.apply(pd.Series([1, 2, 3]), Called({"a": 1}), 2, quiet=True).tolist() == [2, 3, 4]
    assert mesh.parallelize([1, 2], Called({"a": [1]}), 1).collect(60) == [1, 1, 2]


class OwnSource(Conf):
    def __len__(self):
        return 4

    def read(self, offset, limit):
        return list(range(offset, offset + limit))

    def __reduce__(self):
        return OwnSource, (self.__dict__["d"],)


class OwnSequence(OwnSource):
    def __getitem__(self, position):
        return list(range(4))[position]

    def __reduce__(self):
        return OwnSequence, (self.__dict__["d"],)


def test_data_that_answer_for_attributes(mesh):
    for source in (OwnSource({}), functools.partial(OwnSource, {})):
        assert mesh.map_reduce(source, sum, lambda a, b: a + b, 2).collect(60) == 6
    assert mesh.parallelize(OwnSequence({}), sum, 2, merge=None).collect(60) == [1, 5]
    with pytest.raises(floe.NotAFrame, match="returned .*Conf.*, where a list"):
        mesh.parallelize([1], lambda part: Conf({}), 1).collect(60)


@pytest.mark.parametrize("way", WAYS)
def test_exceptions_that_answer_for_attributes(mesh, way):
    with pytest.raises(Answers) as caught:
        WAYS[way](mesh, raises, 3)
    assert caught.value.args == ("told", 3) and vars(caught.value)["extra"] == 3
    held = Answers("held")
    assert WAYS[way](mesh, lambda n: (held.args, n), 3) == (("held",), 3)
    assert mesh.parallel(lambda error: error)(held).result(60).args == ("held",)


def test_what_cannot_be_sent_of_objects_that_answer_for_attributes(mesh):
    for held in (Conf({"lock": LOCK}), Wary({"lock": LOCK})):
        with pytest.raises(floe.Unpicklable, match="cannot send the arguments: .*a _thread.lock.* cannot be"):
            mesh.parallel(len)(held)


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def method(self, n):
        return n


class HoldsInSlot:
    __slots__ = ("inner",)


def connected():
    holder = HoldsInSlot()
    holder.inner = {"db": sqlite3.connect(":memory:")}

    def outer(n):
        return inner(n)

    def inner(n):
        return holder, n

    return outer


LOCK = threading.Lock()


@functools.lru_cache
def cached_with_lock(n):
    return LOCK, n


def test_what_cannot_be_sent_is_named_with_its_way(mesh):
    """At submission, before anything is sent."""
    with (
        open(__file__) as file,
        open(__file__, "rb") as binary,
        contextlib.closing(socket.socket()) as connection,
    ):
        held = {"log": [1, binary]}
        table = {
            "its variable 'LOCK' (a _thread.lock)": cached_with_lock,
            "'inner', its variable 'holder', its attribute 'inner', its item 'db' (a sqlite3.C": connected(),
            "its attribute 'sock' (a socket.socket)": Holder(sock=connection).method,
            "the variable 'held', its item 'log', its item 1 (an _io.BufferedReader)": lambda n: held,
            "the default value 0 (an _io.TextIOWrapper)": lambda n=file: n,
            "the argument 0 (a threading.Thread)": functools.partial(print, threading.Thread()),
            "the default of 'only' (a generator)": lambda n, *, only=(i for i in ()): n,
            "the variable 'mesh' (a floe.mesh.Mesh)": lambda n: mesh,
        }
        for expected, function in table.items():
            for way in (
                lambda f: mesh.parallel(f)(1),
                lambda f: mesh.map(f, [1]),
                lambda f: mesh.parallelize([1], f),
            ):
                with pytest.raises(floe.Unpicklable) as caught:
                    way(function)
                assert expected in str(caught.value)
        with pytest.raises(
            floe.Unpicklable, match="the arguments: the argument 0, its item 'a' .a _thread.lock"
        ):
            mesh.parallel(len)({"a": LOCK})
        with pytest.raises(
            floe.Unpicklable, match="cannot send the item 0: .*only its process can go on with a generator"
        ):
            mesh.map(len, [(i for i in ())]).collect()
        with pytest.raises(floe.Unpicklable, match="cannot send back what <lambda> returned.*a _thread.lock"):
            mesh.parallel(lambda: __import__("threading").Lock())().result(60)
