"""Functions that are as new for every call.

What a function carries with it (the variables of its closure and of its script, its defaults) belongs to the
call: what one call does to it, no other call sees. So a function is unpickled anew for each call, unless it
carries nothing that can be changed and nothing in it was replaced, which :class:`Kept` tells.

A module's variables are of the process. So are a function's that a module of the node defines.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import functools
import operator
import pickle
import re
import sys
import types
import uuid
from typing import Any, Callable

from . import _reducers, pickling
from ._looking import attribute, imported, is_a, module_of
from .refs import Ref

# As in `_remote`.
__floe_hidden__ = True

#: Types whose values cannot be changed.
_CONSTANT = frozenset(
    {
        *(bool, int, float, complex, str, bytes, range, slice, type(None), type(...), type(NotImplemented)),
        *(datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
        *(decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern, Ref),
        *(operator.itemgetter, operator.attrgetter),
    }
)

#: Variables and attributes that Python itself makes.
_OF_PYTHON = frozenset({"__builtins__", "__annotations__", "__annotate__", "__type_params__"})

#: The most values that are looked at for one function. One that carries more is unpickled anew.
_MAX_VALUES = 10_000


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text or the like, or a tuple of some: shared, it does nobody any
    harm."""
    kind = type(value)
    return kind in _CONSTANT or (kind is tuple and all(type(part) in _CONSTANT for part in value))


class Pickled:
    """A pickled function, to be had for one call after the other."""

    __slots__ = ("code", "_kept")

    def __init__(self, code: bytes) -> None:
        self.code = code
        self._kept: Kept | None = None

    def get(self) -> Any:
        """The function for the next call."""
        kept = self._kept
        if kept is not None and kept.unchanged():
            return kept.function
        function = pickle.loads(self.code)
        self._kept = Kept.of(function)
        return function


class Kept:
    """A function that carries nothing that can be changed, and what it looks like while nothing was
    replaced."""

    __slots__ = ("function", "_names", "_functions", "_cells")

    def __init__(self, function: Callable[..., Any], seen: _Seen) -> None:
        self.function = function
        self._names = tuple((names, tuple(names), tuple(names.values())) for names in seen.names)
        self._functions = tuple(
            (each, each.__code__, each.__defaults__, each.__kwdefaults__) for each in seen.functions
        )
        self._cells = tuple((cell, cell.cell_contents) for cell in seen.cells)

    @staticmethod
    def of(function: Any) -> Kept | None:
        """None if the function may carry something that a call can change."""
        seen = _Seen()
        return Kept(function, seen) if seen.constant(function) else None

    def unchanged(self) -> bool:
        """Whether it is as it was unpickled."""
        for function, code, defaults, keywords in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
            ):
                return False
        for names, keys, values in self._names:
            if len(names) != len(keys) or not all(map(operator.is_, names.values(), values)):
                return False
            if tuple(names) != keys:
                return False
        try:
            for cell, content in self._cells:
                if cell.cell_contents is not content:
                    return False
        except ValueError:  # It was emptied.
            return False
        return True


class Watched:
    """A function of which somebody will want to know whether it has changed what it carries."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._kept = Kept.of(function)
        self._before = None if self._kept is not None else self._pickled()

    def changed(self) -> bool:
        """Whether it has; if that cannot be told, too."""
        if self._kept is not None:
            return not self._kept.unchanged()
        return self._before is None or self._pickled() != self._before

    def _pickled(self) -> bytes | None:
        try:
            return pickling.dumps_function(self._function)[0]
        except Exception:
            return None


class _Seen:
    """What belongs to a function, as far as it was looked at."""

    def __init__(self) -> None:
        #: Dictionaries: the functions' variables, their attributes, defaults of keywords.
        self.names: list[dict[str, Any]] = []
        self.functions: list[types.FunctionType] = []
        self.cells: list[types.CellType] = []
        self._ids: set[int] = set()

    def constant(self, function: Any) -> bool:
        """Whether nothing that belongs to a function can be changed but by replacing it."""
        # A list instead of calls of itself: how deep values lie within one another is not for us to limit.
        todo = [function]
        while todo:
            value = todo.pop()
            kind = type(value)
            if kind in _CONSTANT or id(value) in self._ids:
                continue
            self._ids.add(id(value))
            if len(self._ids) > _MAX_VALUES:
                return False
            if kind is tuple or kind is frozenset:
                todo += value
            elif kind is types.FunctionType:
                if not _of_a_module(value):
                    self._note(value, todo)
            elif kind is functools._lru_cache_wrapper:
                # What it has remembered is meant for the calls to come.
                todo.append(value.__wrapped__)
                if value.__dict__:
                    self._note_names(value.__dict__, todo)
            elif not _is_constant(value):
                return False
        return True

    def _note(self, function: types.FunctionType, todo: list[Any]) -> None:
        self.functions.append(function)
        self._note_names(function.__globals__, todo)
        # Looking at these makes them, so only where there is something in them.
        if function.__dict__:
            self._note_names(function.__dict__, todo)
        else:
            self.names.append(function.__dict__)
        if function.__kwdefaults__:
            self._note_names(function.__kwdefaults__, todo)
        todo.append(function.__defaults__)
        for cell in function.__closure__ or ():
            if id(cell) not in self._ids:
                self._ids.add(id(cell))
                self.cells.append(cell)
                try:
                    todo.append(cell.cell_contents)
                except ValueError:
                    # An empty cell is filled by a call, if at all.
                    todo.append([])

    def _note_names(self, names: dict[str, Any], todo: list[Any]) -> None:
        if id(names) not in self._ids:
            self._ids.add(id(names))
            self.names.append(names)
            todo += [value for name, value in names.items() if name not in _OF_PYTHON]


def _of_a_module(function: types.FunctionType) -> bool:
    """Whether a function is one that a module defines: unpickling it again finds the same one."""
    module = sys.modules.get(function.__module__)
    return module is not None and function.__globals__ is module.__dict__


def _is_constant(value: Any) -> bool:
    """Whether a value cannot be changed, or is one that unpickling finds in a module again."""
    if is_a(value, types.ModuleType):
        return sys.modules.get(attribute(value, "__name__")) is value
    if is_a(value, types.BuiltinFunctionType):
        return value.__self__ is None or is_a(value.__self__, types.ModuleType)
    if is_a(value, type):
        return _found(value) is value
    numpy = imported("numpy")
    return numpy is not None and (
        is_a(value, numpy.ufunc, numpy.dtype) or (is_a(value, numpy.generic) and not is_a(value, numpy.void))
    )


def _found(value: type) -> Any:
    """What a module has under a class's name."""
    return _reducers.found(module_of(value), type.__getattribute__(value, "__qualname__"))
