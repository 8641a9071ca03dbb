"""Pickling, by value where that is needed, that names what cannot be pickled.

Runs on both sides. ``cloudpickle`` travels with this package.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from typing import Any, Callable, Iterator, Union

from . import _culprit, _looking, _reducers
from ._culprit import a as a
from .errors import Unpicklable

# As in `_remote`.
__floe_hidden__ = True

#: The protocol of everything that is sent: the last one of the oldest supported Python.
PROTOCOL = 5


#: How a pickle names `object`.
_BARE = b"\x8c\x06object\x94"

#: What a call's arguments are called: a tuple and a dictionary.
ARGUMENTS = "the arguments"


#: Smaller buffers stay within a pickle: outside it they would only take more room.
_LEAST_BUFFER_BYTES = 4 << 10

#: Buffers that lie outside a pickle.
Buffers = Union["list[memoryview]", None]


def dumps(value: Any, what: str = "the argument", buffers: Buffers = None) -> bytes:
    """Pickles a value: as Python does where that is enough, else by value.

    If a list of buffers is given, the large ones go there instead of into the pickle.
    """
    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=_into(buffers))
    except Exception:
        return by_value(value, what, buffers)
    # What is defined in the driver's script is pickled by its name, which means nothing on a node; the same
    # holds for modules that the user registered with cloudpickle.
    # So does an object that is compared by identity.
    if b"__main__" in data or _BARE in data:
        return by_value(value, what, buffers)
    registered = _registered()
    if registered and any(name.encode() in data for name in registered):
        return by_value(value, what, buffers)
    return data


def by_value(value: Any, what: str, buffers: Buffers = None) -> bytes:
    """Pickles a value with all the code that it refers to and that the nodes may not have."""
    return dumps_function(value, what, buffers)[0]


def _into(buffers: Buffers) -> Callable[[pickle.PickleBuffer], bool] | None:
    """What takes the buffers that are to lie outside a pickle, as the standard library wants it."""
    if buffers is None:
        return None
    found = buffers
    # Of an attempt that failed.
    found.clear()

    def stays(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= _LEAST_BUFFER_BYTES:
            found.append(raw)
        return raw.nbytes < _LEAST_BUFFER_BYTES

    return stays


def dumps_function(
    function: Any, what: str = "the function", buffers: Buffers = None
) -> tuple[bytes, set[str]]:
    """A pickled function, and the modules that it or anything it holds comes from or imports.

    Those imported within a function count as well, even if it never gets there.
    """
    buffer = io.BytesIO()
    pickler = pickler_class()(buffer, PROTOCOL, _into(buffers))
    try:
        pickler.dump(function)
    except Exception as error:
        raise unpicklable(function, error, what) from error
    return buffer.getvalue(), pickler.used


def _registered() -> set[str]:
    cloudpickle = _looking.imported("cloudpickle")
    return cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else set()


def _travels(module: Any) -> bool:
    """Whether a module's content is pickled by value, since the nodes do not have the module."""
    if not isinstance(module, str):
        return False
    # A module that is not loaded here is one of the driver's, of which only this came.
    if module == "__main__" or module not in sys.modules:
        return True
    return any(module == name or module.startswith(name + ".") for name in _registered())


@functools.lru_cache(maxsize=1)
def pickler_class() -> Any:
    """What pickles by value. It is made when it is first needed, since loading cloudpickle takes a while."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        """Looks at everything on its way."""

        def __init__(
            self,
            file: Any,
            protocol: int,
            buffer_callback: Callable[[pickle.PickleBuffer], bool] | None = None,
        ) -> None:
            super().__init__(file, protocol, buffer_callback=buffer_callback)
            #: The modules of what was pickled.
            self.used: set[str] = set()

        def reducer_override(self, obj: Any) -> Any:
            _note(obj, self.used)
            if type(obj) is types.CodeType:
                return _code(obj, self.dispatch_table[types.CodeType])
            reduced = _reducers.reduced(obj, _travels)
            if reduced is not NotImplemented:
                return reduced
            plain = super().reducer_override(obj)
            return _reducers.reduced_class(obj, plain) if _looking.is_a(obj, type) else plain

    return Pickler


def _note(obj: Any, used: set[str]) -> None:
    if type(obj) is types.CodeType:
        used.update(_imports(obj))
        return
    module = _looking.attribute(obj, "__name__" if _looking.is_a(obj, types.ModuleType) else "__module__")
    if type(module) is str:
        used.add(module)
    names = _looking.attribute(obj, "__floe_imports__")
    if type(names) is tuple:
        used.update(names)


def _code(code: types.CodeType, reduce: Callable[[Any], Any]) -> Any:
    """Code as cloudpickle has it, but with the name of its file, which belongs into tracebacks."""
    make, arguments = reduce(code)
    return make, tuple(code.co_filename if item == "<dynamic-code>" else item for item in arguments)


def _imports(code: types.CodeType) -> Iterator[str]:
    """Modules that code imports."""
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            yield str(instruction.argval)


def unpicklable(value: Any, error: BaseException, what: str) -> Unpicklable:
    """The error that names what of a value cannot be pickled."""
    if isinstance(error, Unpicklable):
        return error
    verb = "cannot send" if not what.startswith("what ") else "cannot send back"
    names = _arguments(*value) if what == ARGUMENTS else None
    try:
        reason = _culprit.sentence(value, error, pickler_class(), PROTOCOL, names)
    except Exception:
        # To find it some objects have to be asked, of which one did not bear it.
        reason = f"{a(value)} cannot be pickled: {_culprit.text_of(error)}"
    return Unpicklable(f"{verb} {what}: {reason}")


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """A call's arguments, by the names under which the user knows them."""
    named = [(f"the argument {name!r}", value) for name, value in kwargs.items()]
    return [(f"the argument {index}", value) for index, value in enumerate(args)] + named


def name_of(function: Any) -> str:
    """What people call a function."""
    while not (name := _looking.attribute(function, "__name__")):
        inner = _looking.attribute(function, "func")
        if inner is None:
            return str(type.__getattribute__(type(function), "__name__"))
        function = inner
    return str(name)
