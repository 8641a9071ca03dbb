"""How things are pickled that neither Python nor cloudpickle can pickle, or that they would change.

Each kind has two functions side by side: one takes an object apart, the other, which runs where it is
unpickled, puts it together again. Something that other objects may refer to is made empty first and filled
afterwards, so that circles find it.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import functools
import io
import pickle
import sys
import threading
import types
import typing
import weakref
from typing import Any, Callable, Mapping

from . import _exceptions
from ._looking import attribute, is_a, module_of

# As in `_remote`.
__floe_hidden__ = True

#: Values that dataclasses compare by identity, by their names.
_SENTINELS = {
    id(value): name
    for name, value in vars(dataclasses).items()
    if name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
}

#: What all functions that `functools.singledispatch` makes have in common.
_DISPATCH_CODE = functools.singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]

#: Classes that were made here of their pickles.
_received: weakref.WeakSet[type] = weakref.WeakSet()

#: Objects that are known by their names, as they were made here of their pickles.
_named: dict[tuple[str, str], Any] = {}
_lock = threading.Lock()

#: How many of these are kept.
_MAX_NAMED = 4096


def reduced(obj: Any, by_value: Callable[[Any], bool]) -> Any:
    """What an object is taken apart into, as `__reduce__` has it; NotImplemented if it is nothing special.

    `by_value` tells whether a module's content travels, since the nodes do not have it.
    """
    reducer = _REDUCERS.get(type(obj))
    if reducer is not None:
        return reducer(obj, by_value)
    if type(obj) is types.FunctionType and obj.__code__ is _DISPATCH_CODE:
        return NotImplemented if importable(obj, by_value) else _dispatch(obj)
    if is_a(obj, BaseException):
        return _exceptions.reduced(obj)
    if id(obj) in _SENTINELS:
        return getattr, (dataclasses, _SENTINELS[id(obj)])
    cls = type(obj)
    if is_a(obj, type):
        return NotImplemented
    # Looking at what a class says of pickling costs more than most pickling, and only one whose objects go by
    # their names needs it.
    if by_value(module_of(cls)) and not is_a(obj, enum.Enum):
        return _singleton(obj, cls)
    return NotImplemented


def importable(obj: Any, by_value: Callable[[Any], bool]) -> bool:
    """Whether the nodes find this very object under its name in a module."""
    module = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or by_value(module):
        return False
    return found(module, name) is obj


def found(module: str, name: str) -> Any:
    """What a loaded module has under a name, which may have dots; None if nothing."""
    place: Any = sys.modules.get(module)
    for part in name.split("."):
        try:
            place = getattr(place, part, None)
        except Exception:  # A module may answer for what it does not have, and so may a metaclass.
            return None
    return place


# Functions that remember what they returned. Their copies begin without memories.


def _cached(obj: Any, by_value: Callable[[Any], bool]) -> Any:
    if importable(obj, by_value):
        return NotImplemented
    return (_make_cached, (obj.cache_parameters(),), (obj.__wrapped__, vars(obj)), None, None, _fill_cached)


class _Later:
    """Stands for a function until that is there."""

    def __init__(self) -> None:
        self.function: Any = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _make_cached(parameters: Mapping[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(_Later())


def _fill_cached(obj: Any, state: tuple[Any, dict[str, Any]]) -> None:
    function, attributes = state
    later = obj.__wrapped__
    obj.__dict__.update(attributes)
    obj.__wrapped__ = later.function = function


# Functions that choose by the type of their argument.


def _dispatch(obj: Any) -> Any:
    registry = {cls: function for cls, function in obj.registry.items() if cls is not object}
    own = ("registry", "dispatch", "register", "_clear_cache", "__wrapped__")
    attributes = {name: value for name, value in vars(obj).items() if name not in own}
    names = {name: getattr(obj, name) for name in functools.WRAPPER_ASSIGNMENTS if hasattr(obj, name)}
    state = (obj.registry[object], registry, attributes, names)
    return _make_dispatch, (obj.__name__,), state, None, None, _fill_dispatch


def _make_dispatch(name: str) -> Any:
    def empty(_: Any) -> None: ...

    empty.__name__ = name
    return functools.singledispatch(empty)


def _fill_dispatch(obj: Any, state: tuple[Any, dict[type, Any], dict[str, Any], dict[str, Any]]) -> None:
    function, registry, attributes, names = state
    obj.register(object, function)
    for cls, implementation in registry.items():
        obj.register(cls, implementation)
    obj.__dict__.update(attributes)
    for name, value in names.items():
        setattr(obj, name, value)
    obj.__wrapped__ = function


def _cached_property(obj: Any, _: Callable[[Any], bool]) -> Any:
    # Before Python 3.12 it holds a lock.
    state = {name: value for name, value in vars(obj).items() if name != "lock"}
    return _make_cached_property, (), state, None, None, _fill_attributes


def _make_cached_property() -> Any:
    return functools.cached_property(_Later())


def _fill_attributes(obj: Any, state: dict[str, Any]) -> None:
    obj.__dict__.update(state)


def _dispatch_method(obj: Any, _: Callable[[Any], bool]) -> Any:
    # Since Python 3.13 it remembers, weakly, what it was called on.
    state = {name: value for name, value in vars(obj).items() if name != "_method_cache"}
    return _make_dispatch_method, (), state, None, None, _fill_attributes


def _make_dispatch_method() -> Any:
    return functools.singledispatchmethod(_Later())


# Containers that keep nothing alive. What is in them there is what else is there of it.


def _weak(obj: Any, _: Callable[[Any], bool]) -> Any:
    content = list(obj) if isinstance(obj, weakref.WeakSet) else list(obj.items())
    return type(obj), (), content, None, None, _fill_weak


def _fill_weak(obj: Any, content: list[Any]) -> None:
    obj.update(content)


# Files: cloudpickle would send the content of one that is open for reading.


def _file(obj: Any, _: Callable[[Any], bool]) -> Any:
    if obj is sys.stdout or obj is sys.stderr:
        return getattr, (sys, "stdout" if obj is sys.stdout else "stderr")
    raise pickle.PicklingError("an open file belongs to the process that opened it")


# Types that are only names.


def _new_type(obj: Any, by_value: Callable[[Any], bool]) -> Any:
    if importable(obj, by_value):
        return NotImplemented
    return _make_new_type, (obj.__name__, obj.__supertype__, obj.__module__)


def _make_new_type(name: str, supertype: Any, module: str) -> Any:
    made = typing.NewType(name, supertype)  # type: ignore[misc]
    made.__module__ = module
    return made


def _type_alias(obj: Any, by_value: Callable[[Any], bool]) -> Any:
    if importable(obj, by_value):
        return NotImplemented
    return _make_type_alias, (obj.__name__, obj.__value__, obj.__type_params__)


def _make_type_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    return getattr(typing, "TypeAliasType")(name, value, type_params=parameters)  # noqa: B009


def _param_spec(obj: Any, by_value: Callable[[Any], bool]) -> Any:
    return NotImplemented if importable(obj, by_value) else (typing.ParamSpec, (obj.__name__,))


def _type_var_tuple(obj: Any, by_value: Callable[[Any], bool]) -> Any:
    return NotImplemented if importable(obj, by_value) else (type(obj), (obj.__name__,))


# Objects that are known by their names: one that a module of the user's holds and that is compared by
# identity. Here and there it is the same one in each pickle.


def _singleton(obj: Any, cls: type) -> Any:
    if cls in copyreg.dispatch_table or not _says_how(cls):
        return NotImplemented
    name = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if not isinstance(name, str):
        return name
    return _named_object, (module_of(cls), name, cls), attribute(obj, "__dict__") or None


def _says_how(cls: type) -> bool:
    """Whether a class, rather than one of Python's own, says how its objects are pickled."""
    return any(
        "__reduce__" in vars(base) or "__reduce_ex__" in vars(base)
        for base in cls.__mro__
        if module_of(base) != "builtins"
    )


def _bare(obj: Any, by_value: Callable[[Any], bool]) -> Any:
    """An `object()`, which is good for nothing but to be compared."""
    with _lock:
        for key, value in _named.items():
            if value is obj:
                return _named_object, (*key, object)
    for module, content in list(sys.modules.items()):
        if by_value(module):
            for name, value in list(vars(content).items()):
                if value is obj:
                    return _named_object, (module, name, object)
    return NotImplemented


def _named_object(module: str, name: str, cls: type) -> Any:
    here = found(module, name)
    if type(here) is cls:
        return here
    with _lock:
        known = _named.get((module, name))
        if type(known) is not cls:
            if len(_named) >= _MAX_NAMED:
                _named.pop(next(iter(_named)))
            known = _named[module, name] = object.__new__(cls)
        return known


# Classes that travel. One that comes back to where it was defined is left as it is there: what was defined
# anew elsewhere has other functions, with other module variables.


def reduced_class(obj: type, plain: Any) -> Any:
    """How a class is taken apart, given how cloudpickle does that."""
    from cloudpickle import cloudpickle

    if not isinstance(plain, tuple) or len(plain) < 6 or plain[5] is not cloudpickle._class_setstate:
        return plain
    make, arguments, state = plain[:3]
    members: dict[str, dict[str, Any]] = {}
    if issubclass(obj, enum.Enum):
        # Cloudpickle forgets aliases, and what `__init__` and `__new__` gave to members.
        names = obj.__members__
        values = {name: member.value for name, member in names.items()}
        arguments = tuple(
            values if isinstance(item, dict) and index == 3 else item for index, item in enumerate(arguments)
        )
        members = {name: _attributes(member) for name, member in names.items() if member.name == name}
        state = ({name: value for name, value in state[0].items() if name not in names}, state[1])
    elif "__slots__" in vars(obj) and not _is_named_tuple(obj):
        # Slots are made with the class or not at all, and cloudpickle sets them afterwards.
        slots = vars(obj)["__slots__"]
        slots = slots if isinstance(slots, (str, dict)) else tuple(slots)
        keywords = {**arguments[3], "__slots__": slots}
        arguments = (*arguments[:3], keywords, *arguments[4:])
        kept = {name: value for name, value in state[0].items() if not _is_slot(name, value, obj)}
        state = (kept, state[1])
    return _make_class, (make, arguments), (state, members), None, None, _fill_class


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and any("_fields" in vars(base) for base in cls.__mro__)


def _is_slot(name: str, value: Any, cls: type) -> bool:
    return name == "__slots__" or (
        isinstance(value, types.MemberDescriptorType) and value.__objclass__ is cls
    )


def _attributes(member: Any) -> dict[str, Any]:
    own = ("_name_", "__objclass__", "_sort_order_")
    return {name: value for name, value in vars(member).items() if name not in own}


def _make_class(make: Callable[..., type], arguments: tuple[Any, ...]) -> type:
    from cloudpickle import cloudpickle

    # The last but one is what the class is known by wherever it gets to.
    known = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(arguments[-2])
    if known is not None:
        return typing.cast(type, known)
    made = make(*arguments)
    _received.add(made)
    return made


def _fill_class(cls: type, state: tuple[Any, dict[str, dict[str, Any]]]) -> None:
    if cls not in _received:
        return
    from cloudpickle import cloudpickle

    attributes, members = state
    cloudpickle._class_setstate(cls, attributes)
    for name, values in members.items():
        typing.cast(Any, cls).__members__[name].__dict__.update(values)


_REDUCERS: dict[type, Callable[[Any, Callable[[Any], bool]], Any]] = {
    functools._lru_cache_wrapper: _cached,
    functools.cached_property: _cached_property,
    functools.singledispatchmethod: _dispatch_method,
    weakref.WeakKeyDictionary: _weak,
    weakref.WeakValueDictionary: _weak,
    weakref.WeakSet: _weak,
    io.TextIOWrapper: _file,
    typing.NewType: _new_type,
    typing.ParamSpec: _param_spec,
    object: _bare,
}
for _name, _reducer in (("TypeAliasType", _type_alias), ("TypeVarTuple", _type_var_tuple)):
    if hasattr(typing, _name):
        _REDUCERS[getattr(typing, _name)] = _reducer
