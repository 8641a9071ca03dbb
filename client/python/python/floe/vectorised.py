"""A function of a row that is shown to be arithmetic, done for all rows at once.

A few rows on which calling a function with everything gives the same say nothing about the others. So it is
shown from the function's code: it only reads columns, does arithmetic with them and with constants, and
returns what comes of it. It calls nothing, jumps nowhere and stores nothing but in its own variables, so that
there is one way through it. Numbers are such that arrays do with them exactly what scalars do. All else is
called row by row.
"""

from __future__ import annotations

import dis
import inspect
import operator
import types
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, NoReturn

#: Instructions that move values, by what their names begin with: the versions of Python have many combined
#: ones.
_MOVES = ("LOAD_FAST", "STORE_FAST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_CONST", "RETURN_")

#: Others that do no more than arithmetic, comparisons and reading items; what else some of them may do, the
#: values refuse.
_OTHERS = frozenset(
    """RESUME CACHE NOP EXTENDED_ARG COPY_FREE_VARS LOAD_SMALL_INT BINARY_OP BINARY_SUBSCR COMPARE_OP
    UNARY_NEGATIVE UNARY_POSITIVE BINARY_ADD BINARY_SUBTRACT BINARY_MULTIPLY BINARY_TRUE_DIVIDE INPLACE_ADD
    INPLACE_SUBTRACT INPLACE_MULTIPLY INPLACE_TRUE_DIVIDE""".split()
)

#: Functions that take any number of arguments, or return before they have run.
_UNUSUAL = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)

#: Whole numbers up to this are the same as floats, and sums and products of those that stay below it do not
#: overflow.
_EXACT = 1 << 53


class NotShown(Exception):
    """A function was not shown to do the same for all rows at once."""


def computed(values: Any, function: Callable[[Any], Any]) -> Any:
    """What comes of a function of each row, or value, of a pandas or Polars frame or series.

    Raises:
        NotShown: It cannot be told without calling it row by row; the text says why.
    """
    _check(function)
    if type(values).__module__.partition(".")[0] == "pandas":
        return _pandas(values, function)
    return _polars(values, function)


def _check(function: Callable[[Any], Any]) -> None:
    """Refuses functions that do more than arithmetic."""
    if type(function) is not types.FunctionType:
        raise NotShown("its code cannot be looked at")
    code = function.__code__
    if code.co_argcount != 1 or code.co_kwonlyargcount or code.co_flags & _UNUSUAL:
        raise NotShown("it is not a plain function of one argument")
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name not in _OTHERS and not name.startswith(_MOVES):
            raise NotShown("its code does more than arithmetic with columns and constants")
    for cell in function.__closure__ or ():
        try:
            _constant(cell.cell_contents)
        except ValueError:
            raise NotShown("one of its variables has no value yet") from None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            _constant(function.__globals__.get(instruction.argval))


def _constant(value: Any) -> None:
    if type(value) not in (int, float):
        raise NotShown("it uses a variable that is no number")


def _pandas(values: Any, function: Callable[[Any], Any]) -> Any:
    import numpy
    import pandas

    if type(values) not in (pandas.DataFrame, pandas.Series) or values.attrs:
        raise NotShown("the data are more than a plain frame or series")
    if not values.flags.allows_duplicate_labels:
        raise NotShown("the data are more than a plain frame or series")
    if values.ndim == 1:
        # The function gets Python's numbers.
        result = _called(
            function, _Numbers(_array(values.dtype, lambda: values.to_numpy()), python=True), True
        )
        return pandas.Series(result, index=values.index, name=values.name)
    if not all(values.shape):
        raise NotShown("there is nothing to compute with")
    for dtype in values.dtypes:
        _array(dtype, lambda: None)
    # A row has one type for all its values.
    kind = numpy.result_type(*values.dtypes)
    if not values.columns.is_unique or not all(type(name) is str for name in values.columns):
        raise NotShown("columns are not called by texts, each by another one")

    def column(name: str, attribute: bool) -> _Numbers:
        if name not in values.columns or (attribute and hasattr(pandas.Series, name)):
            raise NotShown(f"there is no column {name!r}")
        return _Numbers(values[name].to_numpy().astype(kind, copy=False), python=False)

    return pandas.Series(_called(function, _Row(column, True), False), index=values.index)


def _polars(values: Any, function: Callable[[Any], Any]) -> Any:
    import polars

    def numbers(series: Any) -> _Numbers:
        if series.dtype not in (polars.Int64, polars.Float64) or series.null_count():
            raise NotShown("columns have nulls, or are not of int64 or float64")
        return _Numbers(series.to_numpy(), python=True)

    def column(name: str, _: bool) -> _Numbers:
        if name not in values.columns:
            raise NotShown(f"there is no column {name!r}")
        return numbers(values[name])

    if isinstance(values, polars.Series):
        return polars.Series(values.name, _called(function, numbers(values), True))
    return polars.Series("", _called(function, _Row(column, False), True))


def _array(dtype: Any, array: Callable[[], Any]) -> Any:
    if str(dtype) not in ("int64", "float64") or type(dtype).__module__.partition(".")[0] != "numpy":
        raise NotShown("columns are not all of int64 or float64")
    return array()


def _called(function: Callable[[Any], Any], argument: Any, python: bool) -> Any:
    """The array that a function makes of what stands for all rows."""
    import numpy

    # Python's floats warn of nothing.
    quiet: ContextManager[Any] = numpy.errstate(all="ignore") if python else nullcontext()
    try:
        with quiet:
            result = function(argument)
    except NotShown:
        raise
    except Exception as error:
        raise NotShown(f"it raises {type(error).__name__}") from error
    if type(result) is not _Numbers:
        raise NotShown("it returns something that is not computed from the row")
    return result.array.copy()


def _refused(*_: Any) -> NoReturn:
    raise NotShown("its code does more than arithmetic with columns and constants")


class _Row:
    """Stands for a row: it has columns, and nothing else."""

    __slots__ = ("column", "attributes")

    def __init__(self, column: Callable[[str, bool], _Numbers], attributes: bool) -> None:
        self.column = column
        self.attributes = attributes

    def __getitem__(self, name: Any) -> _Numbers:
        if type(name) is not str:
            _refused()
        return object.__getattribute__(self, "column")(name, False)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or not object.__getattribute__(self, "attributes"):
            _refused()
        return object.__getattribute__(self, "column")(name, True)

    __bool__ = __iter__ = __len__ = __str__ = __repr__ = __format__ = __contains__ = _refused
    __eq__ = __ne__ = __hash__ = _refused


class _Numbers:
    """Stands for a number of a row: those of all rows, in an array."""

    __slots__ = ("array", "python")

    def __init__(self, array: Any, python: bool) -> None:
        self.array = array
        #: Whether rows have Python's numbers instead of NumPy's.
        self.python = python

    def __getattribute__(self, name: str) -> Any:
        if name not in ("array", "python", "_with", "_bounds"):
            _refused()
        return object.__getattribute__(self, name)

    def _bounds(self) -> tuple[int, int] | None:
        """The least and the greatest of whole numbers, None of others."""
        kind = self.array.dtype.kind
        if kind == "f":
            return None
        if kind != "i":
            _refused()
        return (int(self.array.min()), int(self.array.max())) if len(self.array) else (0, 0)

    def _with(self, other: Any, do: Callable[[Any, Any], Any], turned: bool = False) -> _Numbers:
        if type(other) is _Numbers:
            second, bounds = other.array, other._bounds()
        elif type(other) is int:
            second, bounds = other, (other, other)
        elif type(other) is float:
            second, bounds = other, None
        else:
            _refused()
        ours = self._bounds()
        for each in (ours, bounds):
            if each is not None and max(map(abs, each)) > _EXACT:
                raise NotShown("its whole numbers are too large to be the same as floats")
        if ours is not None and bounds is not None and do in (operator.add, operator.sub, operator.mul):
            if max(abs(do(one, two)) for one in ours for two in bounds) > _EXACT:
                raise NotShown("its whole numbers are too large to be the same as floats")
        first, second = (second, self.array) if turned else (self.array, second)
        if do is operator.truediv and self.python:
            import numpy

            if not numpy.all(second):
                raise NotShown("it divides by zero")
        return _Numbers(do(first, second), self.python)

    def __add__(self, other: Any) -> _Numbers:
        return self._with(other, operator.add)

    def __radd__(self, other: Any) -> _Numbers:
        return self._with(other, operator.add, True)

    def __sub__(self, other: Any) -> _Numbers:
        return self._with(other, operator.sub)

    def __rsub__(self, other: Any) -> _Numbers:
        return self._with(other, operator.sub, True)

    def __mul__(self, other: Any) -> _Numbers:
        return self._with(other, operator.mul)

    def __rmul__(self, other: Any) -> _Numbers:
        return self._with(other, operator.mul, True)

    def __truediv__(self, other: Any) -> _Numbers:
        return self._with(other, operator.truediv)

    def __rtruediv__(self, other: Any) -> _Numbers:
        return self._with(other, operator.truediv, True)

    def __neg__(self) -> _Numbers:
        return (
            self._with(-1, operator.mul) if self._bounds() is not None else _Numbers(-self.array, self.python)
        )

    def __pos__(self) -> _Numbers:
        self._bounds()
        return self

    def __lt__(self, other: Any) -> _Numbers:
        return self._with(other, operator.lt)

    def __le__(self, other: Any) -> _Numbers:
        return self._with(other, operator.le)

    def __gt__(self, other: Any) -> _Numbers:
        return self._with(other, operator.gt)

    def __ge__(self, other: Any) -> _Numbers:
        return self._with(other, operator.ge)

    def __eq__(self, other: object) -> _Numbers:  # type: ignore[override]
        return self._with(other, operator.eq)

    def __ne__(self, other: object) -> _Numbers:  # type: ignore[override]
        return self._with(other, operator.ne)

    __bool__ = __iter__ = __len__ = __str__ = __repr__ = __format__ = __hash__ = _refused
    __int__ = __float__ = __index__ = __contains__ = __getitem__ = _refused
