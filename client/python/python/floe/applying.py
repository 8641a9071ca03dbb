"""`mesh.apply`: a function of each row, called for all rows at once where it allows that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable

from . import _remote, pickling, progress

if TYPE_CHECKING:
    from .mesh import Mesh

#: How many rows are tried both ways. They are spread over all of the data.
_SAMPLE = 200

#: What it costs at least to have partitions computed elsewhere, in seconds.
_SENDING = 0.02


def apply(
    mesh: Mesh, values: Any, function: Callable[[Any], Any], n: int | None, how: str, quiet: bool, needs: Any
) -> Any:
    """See :meth:`floe.Mesh.apply`."""
    if how not in ("auto", "vectorised", "partitions"):
        raise ValueError(f"how is 'auto', 'vectorised' or 'partitions', not {how!r}")
    if not callable(function):
        raise TypeError(f"a function is needed, not {pickling.a(function)}")
    rows = _Rows.of(values, function)
    name = pickling.name_of(function)

    def say(how: str) -> None:
        if not quiet:
            progress.say(f"apply: {name} {how}")

    if not len(values):
        return rows.one_by_one(values)
    why: str | None = "as asked"
    if how != "partitions":
        result, why = _vectorised(rows, mesh if how == "auto" else None)
        if why is None:
            say(f"was called once, vectorised, for all {len(values)} rows")
            return result
        if how == "vectorised":
            raise ValueError(f"{name} cannot be vectorised: {why}")
    job = mesh.parallelize(values, _remote.OnRows(function), n, merge=None, label=f"apply {name}", **needs)
    parts = job.collect()
    say(f"was called row by row in {len(parts)} partitions on the nodes: {why}")
    return rows.joined(parts)


def _vectorised(rows: _Rows, mesh: Mesh | None) -> tuple[Any, str | None]:
    """The result of calling the function once, or why that cannot be or does not pay."""
    count = len(rows.values)
    size = min(_SAMPLE, count)
    sample = rows.take([i * (count - 1) // max(1, size - 1) for i in range(size)])
    started = time.perf_counter()
    wanted = rows.one_by_one(sample)
    by_row = time.perf_counter() - started
    started = time.perf_counter()
    try:
        found = rows.function(sample)
    except Exception as error:
        return None, f"with all rows at once it raises {type(error).__name__}"
    at_once = time.perf_counter() - started
    if not rows.same(found, wanted):
        return None, "with all rows at once it returns something else"
    if mesh is not None:
        scale = count / size
        if at_once * scale > by_row * scale / mesh._slots() + _SENDING:
            return None, "with all rows at once it is no faster"
    result = rows.function(rows.values)
    if not rows.fits(result):
        return None, "with all rows at once it returns something else"
    return rows.named(result, wanted), None


class _Rows:
    """A frame or series by rows, as its library does it."""

    def __init__(self, values: Any, function: Callable[[Any], Any]) -> None:
        self.values = values
        self.function = function
        self._by_row = _remote.OnRows(function)

    @staticmethod
    def of(values: Any, function: Callable[[Any], Any]) -> _Rows:
        library, name = type(values).__module__.partition(".")[0], type(values).__name__
        if name in ("DataFrame", "Series") and library in ("pandas", "polars"):
            return (_Pandas if library == "pandas" else _Polars)(values, function)
        raise TypeError(f"apply takes a pandas or Polars frame or series, not {pickling.a(values)}")

    def one_by_one(self, values: Any) -> Any:
        """The function's results for each row of these, here."""
        raise NotImplementedError

    def take(self, positions: list[int]) -> Any:
        raise NotImplementedError

    def same(self, found: Any, wanted: Any) -> bool:
        """Whether what came of all rows at once is what comes of them one by one."""
        raise NotImplementedError

    def fits(self, result: Any) -> bool:
        """Whether a result has a row for each of the values'."""
        raise NotImplementedError

    def named(self, result: Any, like: Any) -> Any:
        """The result, called as the other is."""
        raise NotImplementedError

    def joined(self, parts: list[Any]) -> Any:
        raise NotImplementedError


class _Pandas(_Rows):
    def one_by_one(self, values: Any) -> Any:
        return self._by_row(values)

    def take(self, positions: list[int]) -> Any:
        return self.values.iloc[positions]

    def same(self, found: Any, wanted: Any) -> bool:
        if type(found) is not type(wanted) or not found.index.equals(wanted.index):
            return False
        if found.ndim == 1:
            return found.dtype == wanted.dtype and bool(found.equals(wanted))
        return bool(found.equals(wanted)) and list(found.columns) == list(wanted.columns)

    def fits(self, result: Any) -> bool:
        return hasattr(result, "index") and bool(result.index.equals(self.values.index))

    def named(self, result: Any, like: Any) -> Any:
        return result.rename(like.name) if result.ndim == 1 else result

    def joined(self, parts: list[Any]) -> Any:
        import pandas

        return pandas.concat(parts)


class _Polars(_Rows):
    def one_by_one(self, values: Any) -> Any:
        return self.joined([self._by_row(values)])

    def take(self, positions: list[int]) -> Any:
        return self.values[positions]

    def same(self, found: Any, wanted: Any) -> bool:
        return type(found) is type(wanted) and found.dtype == wanted.dtype and bool(found.equals(wanted))

    def fits(self, result: Any) -> bool:
        return len(result) == len(self.values)

    def named(self, result: Any, like: Any) -> Any:
        return result.alias(like.name)

    def joined(self, parts: list[Any]) -> Any:
        import polars

        name = self.values.name if isinstance(self.values, polars.Series) else ""
        # The type is that of all values together, not of each partition's.
        return polars.Series(name, [value for part in parts for value in part], strict=False)
