"""What the nodes' Python processes call.

A function's code, as the nodes know it, is one of these objects, pickled: by reference to this module, which
travels along. Within it is the user's function, pickled by value. It is unpickled at the first call, so that
what goes wrong with that is an exception of the call like any other.

Only what a function works on is imported: a function of plain objects needs neither pandas nor pyarrow on its
node.
"""

from __future__ import annotations

import array
import collections
import functools
import importlib
import io
import os
import pickle
import re
import sys
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

from . import _exceptions, _looking, frames, fresh, pickling
from .errors import NotAFrame, VersionError
from .refs import Ref

# The host leaves this module out of the tracebacks that it makes: they are for the function's author.
__floe_hidden__ = True

#: The first byte of an argument that is not here but names the blob where it is; a pickle starts with 0x80.
BLOB = 0x42

#: First bytes of what a chunk of a map returns: all of it, or as far as an exception.
WHOLE, BROKEN = b"\0", b"\1"


def argument_of(data: Any) -> Any:
    """The argument that bytes are or refer to."""
    view = memoryview(data)
    if len(view) and view[0] == BLOB:
        name, size = pickle.loads(view[1:])
        return Ref(name, size, None, True).get()
    return pickle.loads(view)


def packed_items(items: Iterable[Any], first: int) -> tuple[bytes, int]:
    """Items for calls of their own that travel together, and how many they are; `first` is the number of the
    first.

    None of them shares anything with another one, even if they are one object here. Each is pickled as soon
    as its iterator gives it: it may give the same list again, with other values in it.
    """
    plain: list[Any] = []
    pickled: list[bytes] | None = None
    for item in items:
        if pickled is None:
            if fresh.is_plain(item):
                plain.append(item)
                continue
            pickled = [pickling.dumps(other) for other in plain]
        pickled.append(pickling.dumps(item, f"the item {first + len(pickled)}"))
    if pickled is None:
        return pickling.dumps(plain, "the items"), len(plain)
    return pickling.dumps(tuple(pickled), "the items"), len(pickled)


def items_of(argument: Any) -> Iterable[Any]:
    """Items that :func:`packed_items` made one argument of."""
    items = argument_of(argument)
    return (pickle.loads(item) for item in items) if type(items) is tuple else items


def by_reference(name: str, size: int) -> bytes:
    """An argument that is a blob."""
    return bytes([BLOB]) + pickle.dumps((name, size), pickling.PROTOCOL)


class _Sends:
    """Says how an exception is sent, for the host."""

    def exception(self, error: BaseException, limit: int) -> bytes:
        """An exception in at most so many bytes, for the driver."""
        return _exceptions.encode(error, limit, pickling.pickler_class())

    def described(self, error: BaseException) -> dict[str, Any]:
        """An exception as the native part describes those that it brings."""
        import floe_host

        return floe_host.raised(error, self)


class _Holder(_Sends):
    """Holds a pickled function, which each call gets as it was pickled."""

    def __init__(self, code: bytes, name: str) -> None:
        self.code = code
        self.name = name

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "pickled"}

    @functools.cached_property
    def pickled(self) -> fresh.Pickled:
        return fresh.Pickled(self.code)

    @property
    def function(self) -> Callable[..., Any]:
        """The function for one call."""
        return self.pickled.get()


class Call(_Holder):
    """Calls with positional and keyword arguments."""

    def __call__(self, argument: Any) -> bytes:
        args, kwargs = argument_of(argument)
        for value in args:
            if type(value) is Ref:
                args = tuple(item.get() if type(item) is Ref else item for item in args)
                break
        if kwargs:
            kwargs = {name: item.get() if type(item) is Ref else item for name, item in kwargs.items()}
        return pickling.dumps(self.function(*args, **kwargs), f"what {self.name} returned")


class Each(_Holder):
    """Calls with a list of positional arguments, once for each; the first exception is that of the whole."""

    def __call__(self, argument: Any) -> bytes:
        get, between = self.pickled.get, _between()
        values = []
        for item in items_of(argument):
            values.append(get()(*item))
            between()
        return pickling.dumps(values, f"what {self.name} returned")


class Chunk(_Holder):
    """Calls with a list of items, once for each."""

    def __init__(self, code: bytes, name: str, unpack: bool) -> None:
        super().__init__(code, name)
        self.unpack = unpack

    def __call__(self, argument: Any) -> bytes:
        get, unpack, between = self.pickled.get, self.unpack, _between()
        values: list[Any] = []
        try:
            for item in items_of(argument):
                if type(item) is Ref:
                    item = item.get()
                values.append(get()(*item) if unpack else get()(item))
                between()
        except BaseException as error:
            return BROKEN + pickling.dumps((_picklable(values), self.described(error)))
        try:
            return WHOLE + pickle.dumps(values, pickling.PROTOCOL)
        except Exception:
            return WHOLE + pickling.by_value(values, f"what {self.name} returned")


class Batch(_Sends):
    """joblib's batches: functions with their arguments, each a pickle of its own."""

    def __call__(self, argument: Any) -> bytes:
        from joblib import parallel_config
        from joblib._parallel_backends import SequentialBackend

        results = []
        # What these functions do in parallel is done here, in turn: all nodes are busy with their like.
        with parallel_config(backend=SequentialBackend(nesting_level=1), n_jobs=1):
            for task in argument_of(argument):
                function, args, kwargs = pickle.loads(task)
                results.append(
                    function(
                        *[value.get() if type(value) is Ref else value for value in args],
                        **{
                            name: value.get() if type(value) is Ref else value
                            for name, value in kwargs.items()
                        },
                    )
                )
        return pickling.dumps(results, "what a task returned")


def _between() -> Callable[[], None]:
    """What makes the process as new between two items that came together."""
    import floe_host

    return floe_host.between


def _picklable(values: list[Any]) -> list[Any]:
    """As many of these as can be sent."""
    try:
        pickling.dumps(values)
    except Exception:
        return []
    return values


class _Task(_Holder):
    """A function over a job's partitions."""

    def __init__(self, code: bytes, name: str, kind: str | None, needed: str | None) -> None:
        super().__init__(code, name)
        self.kind = kind
        self.needed = needed

    def encoded(self, value: Any) -> frames.Encoded:
        if self.needed is not None:
            check(value, self.needed, self.name)
        return frames.encode(value, self.kind, f"what {self.name} returned")


class Part(_Task):
    """A function over one partition: a frame, or the slice of a sequence that came as the argument."""

    def __call__(self, argument: Any, partitions: Sequence[Any]) -> frames.Encoded:
        if partitions:
            value = frames.decode(partitions[0], self.kind)
        elif isinstance(argument, str):
            value = argument
        else:
            value = argument_of(argument)
        return self.encoded(self.function(value))


class Merge(_Task):
    """A function of a list of partitions that makes one of them."""

    def __call__(self, argument: Any, partitions: Sequence[Any]) -> frames.Encoded:
        return self.encoded(self.function([frames.decode(partition, self.kind) for partition in partitions]))


class Fold(_Task):
    """A function of two values that makes one of them."""

    def __call__(self, argument: Any, partitions: Sequence[Any]) -> frames.Encoded:
        values = [frames.decode(partition, self.kind) for partition in partitions]
        return self.encoded(functools.reduce(lambda one, other: self.function(one, other), values))


class Piece(_Task):
    """A function of what a source reads."""

    def __init__(self, source: bytes, code: bytes, name: str) -> None:
        super().__init__(code, name, None, None)
        self.source_code = source

    def __call__(self, argument: Any, partitions: Sequence[Any]) -> frames.Encoded:
        offset, limit = argument_of(argument)
        source = make_source(pickle.loads(self.source_code))
        return self.encoded(self.function(source.read(offset, limit)))


def run_plan(directory: str, foreign: str, dsl: bytes) -> Any:
    """The result of a plan that is foreign to the nodes, by the Polars that is installed here.

    Args:
        directory: The driver's, for paths that are relative.
        foreign: Why it is foreign.
        dsl: The plan.

    Raises:
        VersionError: This Polars is none that reads the plan.
        ModuleNotFoundError: A function in it is of a module that is not here.
    """
    import polars

    try:
        os.chdir(directory)
    except OSError:
        # Where there is no such directory nothing can be relative to it, and many plans read no files.
        pass
    try:
        plan = polars.LazyFrame.deserialize(io.BytesIO(dsl))
    except Exception as error:
        if found := re.search(r"No module named '([^']+)'", str(error)):
            raise ModuleNotFoundError(found.group(0), name=found.group(1)) from None
        raise VersionError(
            f"{foreign}; nor does Polars {polars.__version__}, which is installed on the node, read it: "
            f"{error}"
        ) from None
    return plan.collect()


class Length(_Holder):
    """How many items a source has."""

    def __call__(self, argument: Any) -> bytes:
        return pickling.dumps(len(make_source(self.function)))


def make_source(source: Any) -> Any:
    """A source, of itself or of what makes one."""
    made = not _looking.is_a(source, type) and _looking.answers(source, "read")
    return source if made else source()


#: What the default merge can join, by what went in: the types' names, and what they are called together.
_NEEDED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "pandas": (("pandas.DataFrame", "pandas.Series"), "a pandas DataFrame or Series"),
    "polars": (("polars.DataFrame", "polars.LazyFrame", "polars.Series"), "a Polars DataFrame or Series"),
    "arrow": (("pyarrow.Table", "pyarrow.RecordBatch"), "an Arrow Table"),
}

_ARRAYS = (("numpy.ndarray",), "an array")

#: What can be joined besides, though nobody needs it.
_COLUMNS = ("pandas.Index", "pandas.api.extensions.ExtensionArray", "pyarrow.Array", "pyarrow.ChunkedArray")
_ITEMS = (list, tuple, range, collections.deque, array.array, bytearray)

_SEQUENCES = "a list, a tuple, an array or a frame"


def check(value: Any, needed: str, name: str) -> None:
    """Refuses what cannot be joined with the other partitions."""
    everything = [*(types for types, _ in _NEEDED.values()), _ARRAYS[0], _COLUMNS]
    if _looking.is_a(value, *(cls for types in everything for cls in _loaded(types))):
        return
    if needed == "items" and _looking.is_a(value, *_ITEMS):
        return
    wanted = {"items": _SEQUENCES, "numpy": _ARRAYS[1]}.get(needed) or _NEEDED[needed][1]
    if value is None:
        returned = "None"
    else:
        try:
            text = repr(value)
            text = text if len(text) <= 60 else text[:57] + "..."
            returned = f"{text} ({pickling.a(value)})"
        except Exception:  # It is the user's code, and may do anything.
            returned = pickling.a(value)
    raise NotAFrame(
        f"{name} returned {returned}, where {wanted} is needed, since the partitions are joined; with "
        "merge=None they come as a list, and merge=FUNCTION says how to make one value of such a list"
    )


def _loaded(names: Iterable[str]) -> list[type]:
    """Of these types, those whose library is in use: values of the others there cannot be."""
    found = []
    for name in names:
        library, *path = name.split(".")
        value: Any = _looking.imported(library)
        for part in path:
            value = getattr(value, part, None)
        if value is not None:
            found.append(value)
    return found


class Required:
    """A function that finds certain modules imported when it is called."""

    def __init__(
        self, function: Callable[..., Any], modules: Sequence[str], aliases: Mapping[str, str]
    ) -> None:
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        #: What pickling counts among the modules that a function uses.
        self.__floe_imports__ = (*modules, *aliases.values())
        self._modules = modules
        self._aliases = aliases
        self._ready = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": False}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.prepare()
        return self.__wrapped__(*args, **kwargs)

    def prepare(self) -> None:
        """Imports the modules."""
        if self._ready:
            return
        names = self.__wrapped__.__globals__
        for module in self._modules:
            importlib.import_module(module)
            # As `import a.b` does, which gives the name `a`.
            top = module.partition(".")[0]
            names[top] = sys.modules[top]
        for name, module in self._aliases.items():
            names[name] = importlib.import_module(module)
        self._ready = True


class Local:
    """What becomes of a parallel function within another one that runs on a node: the function itself."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Outcome(NamedTuple):
    """What came of calling a function with the rows of a partition."""

    #: What it returned, as far as it came.
    values: list[Any]
    #: What it raised then.
    raised: dict[str, Any] | None
    #: Whether what it carries with it is no longer what it was.
    changed: bool


class OnRows(_Sends):
    """Calls a function with each row of a partition of a frame, or with each value of a Polars series."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__name__ = pickling.name_of(function)

    def __call__(self, part: Any) -> Outcome:
        if type(self.function) is Required:
            # What this changes of its variables is no row's doing.
            self.function.prepare()
        watched = fresh.Watched(self.function)
        values: list[Any] = []
        try:
            self.call(part, values)
        except BaseException as error:
            return Outcome(_picklable(values), self.described(error), watched.changed())
        return Outcome(values, None, watched.changed())

    def call(self, part: Any, values: list[Any]) -> None:
        """Calls the function with each row."""
        function = self.function
        if type(part).__module__.startswith("polars"):
            for row in polars_rows(part):
                values.append(function(row))
            return
        from pandas import Series

        def record(row: Any) -> None:
            value = function(row)
            # pandas uses one object for all rows.
            values.append(value.copy() if _looking.is_a(value, Series) else value)

        part.apply(record, axis=1)


class OnValues(OnRows):
    """Calls a function with each of some values."""

    def call(self, part: Any, values: list[Any]) -> None:
        function = self.function
        for value in part:
            values.append(function(value))


def polars_rows(values: Any) -> Iterable[Any]:
    """The rows of a Polars frame as dictionaries, or the values of a series."""
    return values.iter_rows(named=True) if hasattr(values, "iter_rows") else values
