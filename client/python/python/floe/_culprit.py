"""Finds what of a value cannot be pickled, and by which way it is reached.

A pickler in Python goes the way of the one that failed and remembers where it is. What is on that way is
told in the user's terms: variables, attributes, items. What lies between, such as the state that an object is
taken apart into, is passed over.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import types
from typing import Any, Iterator, Mapping

from ._looking import is_a, name_of

# As in `_remote`.
__floe_hidden__ = True

#: How many steps of the way are told; of a longer one the middle is left out.
_MAX_STEPS = 12

#: How many attributes of an object are looked at besides its class.
_MAX_ATTRIBUTES = 64

#: How much is told of why something cannot be pickled.
_MAX_REASON = 500

#: Why there is no sending some kinds of objects, and what to do instead.
_ADVICE: Mapping[str, str] = {
    "_thread.lock": "a lock holds back threads of one process only; make it within the function",
    "_thread.RLock": "a lock holds back threads of one process only; make it within the function",
    "threading.Thread": "a thread belongs to its process; start it within the function",
    "socket.socket": "a connection belongs to its process; open it within the function",
    "generator": "only its process can go on with a generator; make a list of it",
    "async_generator": "only its process can go on with a generator; make a list of it",
    "coroutine": "only the event loop that made it can go on with it; use asyncio.run within the function",
    "_asyncio.Task": "only its event loop can go on with it; use asyncio.run within the function",
    "_asyncio.Future": "only its event loop can go on with it; use asyncio.run within the function",
    "sqlite3.Connection": "a connection belongs to its process; open it within the function",
    "sqlite3.Cursor": "a cursor belongs to its process; open it within the function",
    "frame": "a frame is where this process stands; send what you need of it",
    "traceback": "a traceback refers to frames of this process; send its text",
    "weakref.ReferenceType": "it keeps nothing alive that could be sent; send what it refers to",
    "_io.TextIOWrapper": "send its name or its content, and open it within the function",
    "_io.BufferedReader": "send its name or its content, and open it within the function",
    "_io.BufferedWriter": "send its name, and open it within the function",
    "_io.BufferedRandom": "send its name, and open it within the function",
    "_io.FileIO": "send its name or its content, and open it within the function",
    "floe.mesh.Mesh": "it is this program's connection",
    "floe._core.Mesh": "it is this program's connection",
    "floe.view.View": "it is this program's connection",
    "floe.executor.Executor": "it is this program's connection",
    "floe.job.Job": "send its id or what it returned",
    "floe.mapping.Map": "send what it returned",
    "floe.call.Result": "send what it returned",
}

#: What of the user's terms ends the way: what is within these is none of his.
_WHOLE = ("threading.Thread", "socket.socket", "floe.")


def sentence(
    value: Any,
    error: BaseException,
    pickler_class: Any,
    protocol: int,
    names: list[tuple[str, Any]] | None = None,
) -> str:
    """What of a value cannot be pickled, where it is, and why; `names` are what its parts are called."""
    trail, reason = _trail(value, pickler_class, protocol)
    if reason is None:
        # What failed before goes well now, so there is no telling where it was.
        trail, reason = [value], error
    trail, reason = _past_classes(trail, reason, pickler_class, protocol)
    steps, culprit = _told(trail, names)
    if len(steps) > _MAX_STEPS:
        half = _MAX_STEPS // 2
        steps = [*steps[:half], f"... {len(steps) - _MAX_STEPS} further steps ...", *steps[-half:]]
    where = ", ".join(steps)
    thing = f"{where} ({a(culprit)})" if where else a(culprit)
    if isinstance(reason, RecursionError):
        return f"{thing} cannot be pickled: it is nested too deeply, within itself or too many others"
    advice = next((_ADVICE[name] for name in map(name_of, type(culprit).__mro__) if name in _ADVICE), None)
    return f"{thing} cannot be pickled: {text_of(reason)}" + (f" ({advice})" if advice else "")


def text_of(reason: BaseException) -> str:
    """What an exception says, or what it is if it says nothing."""
    try:
        return str(reason)[:_MAX_REASON] or type(reason).__name__
    except Exception:
        return type(reason).__name__


def a(value: Any) -> str:
    """What a value is, with its article: ``a _thread.lock``, ``an int``."""
    name = name_of(type(value))
    return f"{'an' if name.lstrip('_')[:1].lower() in 'aeiou' else 'a'} {name}"


def _trail(value: Any, pickler_class: Any, protocol: int) -> tuple[list[Any], BaseException | None]:
    """The objects from a value down to the one that cannot be pickled, and why that cannot."""
    trail: list[Any] = []
    # Its reducers are asked, it writes nothing itself.
    reducers = pickler_class(io.BytesIO(), protocol)

    class Tracer(pickle._Pickler):
        dispatch_table = reducers.dispatch_table

        def reducer_override(self, obj: Any) -> Any:
            return reducers.reducer_override(obj)

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            trail.append(obj)
            super().save(obj, save_persistent_id)  # type: ignore[misc]
            # Only what fails stays.
            trail.pop()

    try:
        Tracer(io.BytesIO(), protocol).dump(value)
    except Exception as error:
        return trail, error
    return [], None


def _past_classes(
    trail: list[Any], reason: BaseException, pickler_class: Any, protocol: int
) -> tuple[list[Any], BaseException]:
    """The same, by an object's own attribute where that fails as well as the object's class does.

    Classes come first in a pickle, but an attribute is nearer to the user.
    """
    for at, (value, below) in enumerate(zip(trail, [*trail[1:], None])):
        own = is_a(value, type, types.FunctionType, types.MethodType)
        if own or not any(item is type(value) for item in (below, *trail[at + 1 : at + 4])):
            continue
        for part in list(_attributes(value).values())[:_MAX_ATTRIBUTES]:
            further, why = _trail(part, pickler_class, protocol)
            if why is not None:
                return [*trail[: at + 1], *further], why
    return trail, reason


def _told(trail: list[Any], names: list[tuple[str, Any]] | None) -> tuple[list[str], Any]:
    """The way in the user's terms, and what is at its end."""
    steps: list[str] = []
    culprit = trail[0]
    at = 1
    while at < len(trail) and not _is_whole(culprit):
        parts: dict[int, str] = {}
        for name, part in names or _parts(culprit):
            parts.setdefault(id(part), name)
        step = next((index for index in range(at, len(trail)) if id(trail[index]) in parts), None)
        if step is None:
            # What it is taken apart into says where, if it holds anything that the user knows.
            step = next((index for index in range(at, len(trail)) if _is_known(trail[index])), None)
            if step is None:
                break
            name = "something that it holds"
        else:
            name = parts[id(trail[step])]
        steps.append(name if not steps else name.replace("the ", "its ", 1))
        culprit = trail[step]
        names = None
        at = step + 1
    return steps, culprit


def _is_whole(value: Any) -> bool:
    return any(name_of(cls).startswith(_WHOLE) for cls in type(value).__mro__)


def _is_known(value: Any) -> bool:
    """Whether a value is something that a user would recognize, rather than a container made for pickling."""
    return type(value) not in (tuple, dict, list, str, bytes, int, type, types.BuiltinFunctionType) and not (
        is_a(value, types.CodeType, types.FunctionType)
    )


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling a value would pickle besides, by the name under which the user knows it."""
    if is_a(value, types.MethodType):
        yield "the object that it is a method of", value.__self__
        yield "the function", value.__func__
        value = value.__func__
    if is_a(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif is_a(value, types.BuiltinMethodType):
        yield "the object that it is a method of", value.__self__
    if is_a(value, collections.defaultdict):
        yield "the default factory", value.default_factory
    if is_a(value, dict, types.MappingProxyType):
        for key, part in value.items():
            yield f"the item {_short(key)}", part
            yield f"the key {_short(key)}", key
    elif is_a(value, list, tuple, set, frozenset, collections.deque):
        for index, part in enumerate(value):
            yield f"the item {index}", part
    elif is_a(value, functools.partial, functools.partialmethod):
        yield "the function", value.func
        for index, part in enumerate(value.args):
            yield f"the argument {index}", part
        for name, part in value.keywords.items():
            yield f"the argument {name!r}", part
    elif is_a(value, BaseException):
        for index, part in enumerate(value.args):
            yield f"the argument {index}", part
    elif is_a(value, classmethod, staticmethod):
        yield "the function", value.__func__
    elif is_a(value, property):
        for accessor in (value.fget, value.fset, value.fdel):
            yield "the accessor", accessor
    if is_a(value, type):
        for name, part in vars(value).items():
            yield f"the attribute {name!r}", part
        for base in value.__bases__:
            yield "the base class", base
    elif not is_a(value, types.ModuleType):
        for name, part in _attributes(value).items():
            yield f"the attribute {name!r}", part
        yield "the class", type(value)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            yield f"the variable {name!r}", cell.cell_contents
        except ValueError:  # The cell is still empty.
            pass
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield f"the variable {name!r}", function.__globals__[name]
    for index, default in enumerate(function.__defaults__ or ()):
        yield f"the default value {index}", default
    for name, default in (function.__kwdefaults__ or {}).items():
        yield f"the default of {name!r}", default
    for cls, implementation in getattr(function, "registry", {}).items():
        yield f"the implementation for {getattr(cls, '__name__', cls)}", implementation
    for name, annotation in function.__annotations__.items():
        yield f"the annotation of {name!r}", annotation


def _attributes(value: Any) -> dict[str, Any]:
    """What an object's dictionary and its slots hold."""
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except Exception:
        found = {}
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            slot = vars(cls).get(name)
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    found[name] = slot.__get__(value, cls)
                except Exception:  # It is not set, or cannot be read.
                    pass
    return found


def _short(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:
        text = a(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code and the code within it may look up in its module."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names
