"""`mesh.apply`: a function of each row, as pandas applies it, on the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from . import _remote, pickling, progress, vectorised
from ._looking import imported
from .errors import from_parts

if TYPE_CHECKING:
    from .mesh import Mesh


def apply(
    mesh: Mesh, values: Any, function: Callable[[Any], Any], n: int | None, how: str, quiet: bool, needs: Any
) -> Any:
    """See :meth:`floe.Mesh.apply`."""
    if how not in ("auto", "vectorised", "partitions"):
        raise ValueError(f"how is 'auto', 'vectorised' or 'partitions', not {how!r}")
    if not callable(function):
        raise TypeError(f"a function is needed, not {pickling.a(function)}")
    rows = _Rows.of(values)
    name = pickling.name_of(function)

    def say(how: str) -> None:
        if not quiet:
            progress.say(f"apply: {name} {how}")

    if rows.is_quick(function):
        return rows.one_by_one(function)
    why = "as asked"
    if how != "partitions":
        try:
            result = vectorised.computed(values, function)
        except vectorised.NotShown as refused:
            why = str(refused)
        else:
            say(f"was called once, vectorised, for all {len(values)} rows")
            return result
        if how == "vectorised":
            raise ValueError(f"{name} cannot be vectorised: {why}")
    calls, each = rows.calls()
    if not len(calls):
        return rows.one_by_one(function)
    job = mesh.parallelize(calls, each(function), n, merge=None, label=f"apply {name}", **needs)
    parts: list[_remote.Outcome] = job.collect()
    if len(parts) > 1 and any(part.changed for part in parts):
        # What it does with a row may hang on the rows before.
        say("was called row by row here, for it changes variables of its own from row to row")
        return rows.one_by_one(function)
    for part in parts:
        if part.raised is not None:
            message = f"{name} failed: {part.raised['message']}"
            raise from_parts("exception", message, {"name": name, **part.raised})
    say(f"was called row by row in {len(parts)} partitions on the nodes: {why}")
    return rows.joined([value for part in parts for value in part.values])


class _Rows:
    """A frame or series by rows, as its library does it."""

    def __init__(self, values: Any) -> None:
        self.values = values

    @staticmethod
    def of(values: Any) -> _Rows:
        pandas, polars = _instance(values, "pandas"), _instance(values, "polars")
        if pandas or polars:
            return _Pandas(values) if pandas else _Polars(values)
        raise TypeError(f"apply takes a pandas or Polars frame or series, not {pickling.a(values)}")

    def is_quick(self, function: Callable[[Any], Any]) -> bool:
        """Whether its library itself calls the function at most once."""
        return not len(self.values)

    def one_by_one(self, function: Callable[[Any], Any]) -> Any:
        """The result of calling the function for each row, here."""
        raise NotImplementedError

    def calls(self) -> tuple[Any, type[_remote.OnRows]]:
        """What the function is to be called with, and how it is called with a part of that."""
        raise NotImplementedError

    def joined(self, results: list[Any]) -> Any:
        """The result, of what the function returned for each call."""
        raise NotImplementedError


class _Pandas(_Rows):
    """pandas tells both what the function is called with and what becomes of all that it returned."""

    def is_quick(self, function: Callable[[Any], Any]) -> bool:
        import numpy

        return not all(self.values.shape) or isinstance(function, numpy.ufunc)

    def one_by_one(self, function: Callable[[Any], Any]) -> Any:
        return _applied(self.values, function)

    def calls(self) -> tuple[Any, type[_remote.OnRows]]:
        if self.values.ndim == 2:
            return self.values, _remote.OnRows
        # What pandas makes of a value may hang on the others: on nulls among them, on their categories.
        arguments: list[Any] = []
        self.values.apply(lambda value: arguments.append(value))
        return arguments, _remote.OnValues

    def joined(self, results: list[Any]) -> Any:
        if self.values.ndim == 1:
            import numpy

            # What pandas makes of categories hangs on whether a null stayed the very object that it was.
            nulls = (numpy.nan if type(value) is float and value != value else value for value in results)
            return self.values.apply(lambda _: next(nulls))
        returned = iter(results)
        # pandas looks at the results, the index, the class of the frame and what is attached to it. Rows of
        # one column cost it least.
        frame = self.values._constructor({"": [0.0] * len(self.values)}, index=self.values.index)
        return frame.__finalize__(self.values).apply(lambda _: next(returned), axis=1)


class _Polars(_Rows):
    def one_by_one(self, function: Callable[[Any], Any]) -> Any:
        return self.joined([function(row) for row in _remote.polars_rows(self.values)])

    def calls(self) -> tuple[Any, type[_remote.OnRows]]:
        return self.values, _remote.OnRows

    def joined(self, results: list[Any]) -> Any:
        import polars

        name = self.values.name if isinstance(self.values, polars.Series) else ""
        # The type is that of all values together, not of each partition's.
        return polars.Series(name, results, strict=False)


def _instance(values: Any, library: str) -> bool:
    module = imported(library)
    return module is not None and isinstance(values, (module.DataFrame, module.Series))


def _applied(values: Any, function: Callable[[Any], Any]) -> Any:
    return values.apply(function, axis=1) if values.ndim == 2 else values.apply(function)
