"""Pickling, by value where that is needed, that names what cannot be pickled.

Runs on both sides. ``cloudpickle`` travels with this package.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from typing import Any, Callable, Iterator, Union

from .errors import Unpicklable

# As in `_remote`.
__floe_hidden__ = True

#: The protocol of everything that is sent: the last one of the oldest supported Python.
PROTOCOL = 5

#: How many attempts to pickle a part of something finding the culprit may take.
_MAX_ATTEMPTS = 200


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
    if b"__main__" in data:
        return by_value(value, what, buffers)
    registered = _registered()
    if registered and any(name.encode() in data for name in registered):
        return by_value(value, what, buffers)
    return data


def by_value(value: Any, what: str, buffers: Buffers = None) -> bytes:
    """Pickles a value with all the code that it refers to and that the nodes may not have."""
    import cloudpickle

    try:
        return cloudpickle.dumps(value, PROTOCOL, buffer_callback=_into(buffers))
    except Exception as error:
        raise unpicklable(value, error, what) from error


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


def _registered() -> set[str]:
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle.list_registry_pickle_by_value() if cloudpickle is not None else set()


def dumps_function(function: Any, what: str = "the function") -> tuple[bytes, set[str]]:
    """A pickled function, and the modules that it or anything it holds comes from or imports.

    Those imported within a function count as well, even if it never gets there.
    """
    import cloudpickle

    used: set[str] = set()

    class Pickler(cloudpickle.Pickler):
        """Looks at everything on its way."""

        def reducer_override(self, obj: Any) -> Any:
            _note(obj, used)
            if isinstance(obj, types.CodeType):
                return _code(obj, self.dispatch_table[types.CodeType])
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    try:
        Pickler(buffer, PROTOCOL).dump(function)
    except Exception as error:
        raise unpicklable(function, error, what) from error
    return buffer.getvalue(), used


def _note(obj: Any, used: set[str]) -> None:
    if isinstance(obj, types.ModuleType):
        used.add(obj.__name__)
    elif isinstance(obj, types.CodeType):
        used.update(_imports(obj))
    else:
        module = getattr(obj, "__module__", None)
        if isinstance(module, str):
            used.add(module)
        names = getattr(obj, "__floe_imports__", None)
        if isinstance(names, tuple):
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
    path, culprit = _culprit(value)
    where = ", ".join(path)
    thing = f"{where} ({a(culprit)})" if where else f"{a(culprit)}"
    verb = "cannot send" if not what.startswith("what ") else "cannot send back"
    return Unpicklable(f"{verb} {what}: {thing} cannot be pickled: {error}")


def a(value: Any) -> str:
    """What a value is, with its article: ``a _thread.lock``, ``an int``."""
    cls = type(value)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return f"{'an' if name.lstrip('_')[:1].lower() in 'aeiou' else 'a'} {name}"


def _culprit(value: Any) -> tuple[list[str], Any]:
    """The innermost part of a value that cannot be pickled, and the way to it."""
    attempts = 0
    seen: set[int] = set()

    def fails(part: Any) -> bool:
        nonlocal attempts
        attempts += 1
        import cloudpickle

        try:
            cloudpickle.dumps(part, PROTOCOL)
        except Exception:
            return True
        return False

    path: list[str] = []
    while True:
        seen.add(id(value))
        for name, part in _parts(value):
            if attempts >= _MAX_ATTEMPTS:
                return path, value
            if id(part) not in seen and fails(part):
                path.append(name if not path else name.replace("the ", "its ", 1))
                value = part
                break
        else:
            return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling a value would pickle besides, by the name under which the user knows it."""
    if isinstance(value, types.MethodType):
        yield "the object that it is a method of", value.__self__
        value = value.__func__
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            try:
                yield f"the variable {name!r}", cell.cell_contents
            except ValueError:  # The cell is still empty.
                pass
        for name in sorted(_global_names(value.__code__)):
            if name in value.__globals__:
                yield f"the variable {name!r}", value.__globals__[name]
        for index, default in enumerate(value.__defaults__ or ()):
            yield f"the default value {index}", default
        for name, default in (value.__kwdefaults__ or {}).items():
            yield f"the default of {name!r}", default
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"the item {key!r}", part
            yield f"the key {key!r}", key
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, part in enumerate(value):
            yield f"the item {index}", part
    elif type(value).__module__ == "functools" and hasattr(value, "func"):
        yield "the function", value.func
        yield "the arguments", (value.args, value.keywords)
    elif not isinstance(value, (type, types.ModuleType)):
        for name, part in getattr(value, "__dict__", {}).items():
            yield f"the attribute {name!r}", part


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code and the code within it may look up in its module."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def name_of(function: Any) -> str:
    """What people call a function."""
    while hasattr(function, "func") and not hasattr(function, "__name__"):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name)
