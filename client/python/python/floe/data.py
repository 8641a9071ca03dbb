"""Data in partitions and back. What is done here is done in the driver."""

from __future__ import annotations

import array
import collections
import copy
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Iterator

from . import _ipc, _remote, frames, pickling
from ._looking import answers, imported, is_a, name_of
from .errors import PartitionWarning, SchemaMismatch


class Partitioned:
    """What :meth:`floe.Mesh.parallelize` was given, cut up."""

    def __init__(self, data: Any, n: int | None, default: int) -> None:
        #: The kind of the frames, None if these are no frames.
        self.kind = frames.kind_of(data)
        series = _series_kind(data)
        #: What the default merge can join; see :func:`floe._remote.check`.
        self.needed = self.kind or series or ("numpy" if _is_array(data) else "items")
        if self.kind is None and series is None and not _is_sequence(data):
            raise TypeError(
                "data is a pandas, Polars or Arrow frame, a NumPy array, or a sequence such as a list, "
                f"not {pickling.a(data)}"
            )
        if self.kind == "arrow":
            data = frames._table(data)
        self._column = _column_kind(data)
        needed = (self._column,) if self._column is not None else frames.MODULES.get(self.needed, ())
        #: The libraries that a node needs to read the partitions.
        self.modules: tuple[str, ...] = needed
        self._data = data
        self.rows = _length(data)
        self.bounds = bounds(self.rows, n, default)

    def part(self, start: int, end: int) -> Any:
        """The rows from `start` to before `end`, as the function gets them."""
        if self.needed == "pandas":
            return self._data.iloc[start:end]
        if self.needed in ("polars", "arrow"):
            return self._data.slice(start, end - start)
        if self._column == "pyarrow":
            return _cut_out(self._data[start:end])
        if is_a(self._data, collections.deque):
            return collections.deque(itertools.islice(self._data, start, end))
        try:
            return self._data[start:end]
        except Exception:
            # Many sequences give their items and nothing but them.
            return [self._data[row] for row in range(start, end)]

    def encoded(self) -> Iterator[frames.Encoded]:
        """The partitions as they are sent."""
        for start, end in self.bounds:
            yield frames.encode(self.part(start, end), self.kind, "the data")


def _is_array(data: Any) -> bool:
    numpy = imported("numpy")
    return numpy is not None and is_a(data, numpy.ndarray) and data.ndim > 0


def _series_kind(data: Any) -> str | None:
    """The kind of a series, None if it is none."""
    for kind in ("pandas", "polars"):
        library = imported(kind)
        if library is not None and is_a(data, library.Series):
            return kind
    return None


def _column_kind(data: Any) -> str | None:
    """The library of a column's values without a frame: an index, an array of Arrow's; None if it is none."""
    pandas, pyarrow = imported("pandas"), imported("pyarrow")
    if pandas is not None and is_a(data, pandas.Index, pandas.api.extensions.ExtensionArray):
        return "pandas"
    if pyarrow is not None and is_a(data, pyarrow.Array, pyarrow.ChunkedArray):
        return "pyarrow"
    return None


def _is_sequence(data: Any) -> bool:
    cls = type(data)
    if _is_array(data) or issubclass(cls, Sequence):
        # The memory behind a view is the driver's.
        return not issubclass(cls, (str, bytes, memoryview))
    return hasattr(cls, "__len__") and hasattr(cls, "__getitem__") and not answers(data, "keys")


def _cut_out(part: Any) -> Any:
    """A part of an Arrow array without the rest of it, which its pickle would have too."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"": part})
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    column = pyarrow.ipc.open_stream(sink.getvalue()).read_all().column(0)
    return column if is_a(part, pyarrow.ChunkedArray) else pyarrow.concat_arrays(column.chunks or [part])


def _length(data: Any) -> int:
    """How many rows there are to cut."""
    try:
        return len(data)
    except TypeError as error:
        # An array of no dimensions has none.
        raise TypeError(
            f"data that is cut into partitions has a length, which this {name_of(type(data))} has not "
            f"({error}): give an array of at least one dimension, or a list"
        ) from None


def bounds(rows: int, n: int | None, default: int) -> list[tuple[int, int]]:
    """Where partitions start and end: as even as can be, the larger ones first.

    There is at least one, which may be empty.
    """
    if n is not None and (isinstance(n, bool) or not hasattr(n, "__index__")):
        raise TypeError(f"n is the number of partitions, not {n!r}")
    if n is not None and n <= 0:
        raise ValueError(f"n is the number of partitions, at least 1, not {n}")
    wanted = default if n is None else int(n)
    count = max(1, min(wanted, rows))
    if n is not None and count < n:
        warnings.warn(
            f"{count} partition{'s' if count > 1 else ''} instead of {n}: there are only {rows} rows",
            PartitionWarning,
            stacklevel=4,
        )
    size, longer = divmod(rows, count)
    starts = [i * size + min(i, longer) for i in range(count + 1)]
    return list(zip(starts, starts[1:]))


def concat(values: list[Any], name: str) -> Any:
    """Partitions made one value, in order."""
    for value in values:
        _remote.check(value, "items", name)
    first = values[0]
    if len(values) == 1:
        return list(first) if isinstance(first, range) else first
    kind = frames.kind_of(first) or _series_kind(first)
    if kind == "pandas":
        return _concat_pandas(values, name)
    if kind == "polars":
        return _concat_polars(values, name)
    if kind == "arrow":
        return _concat_arrow(values, name)
    if _is_array(first):
        return _concat_arrays(values, name)
    column = _column_kind(first)
    if column is not None:
        return (_concat_columns if column == "pandas" else _concat_arrow_columns)(values, name)
    for cls in (collections.deque, array.array, bytearray):
        if is_a(first, cls):
            _alike(values, cls, name)
            return _concat_items(values, name)
    _alike(values, (list, tuple, range), name)
    if all(isinstance(value, tuple) for value in values):
        return tuple(item for value in values for item in value)
    return [item for value in values for item in value]


def _concat_items(values: list[Any], name: str) -> Any:
    """Containers of items that can be extended."""
    _same_types(values, [getattr(value, "typecode", "") for value in values], name)
    joined = copy.copy(values[0])
    for value in values[1:]:
        joined.extend(value)
    return joined


def _concat_columns(values: list[Any], name: str) -> Any:
    """Indexes of pandas, or arrays."""
    import pandas

    if is_a(values[0], pandas.Index):
        _alike(values, pandas.Index, name)
        return values[0].append(values[1:])
    _alike(values, type(values[0]), name)
    _same_types(values, [value.dtype for value in values], name)
    return pandas.concat([pandas.Series(value) for value in values]).array


def _concat_arrow_columns(values: list[Any], name: str) -> Any:
    import pyarrow

    _alike(values, (pyarrow.Array, pyarrow.ChunkedArray), name)
    _same_types(values, [value.type for value in values], name)
    if all(is_a(value, pyarrow.Array) for value in values):
        return pyarrow.concat_arrays(values)
    chunks = [value.chunks if is_a(value, pyarrow.ChunkedArray) else [value] for value in values]
    return pyarrow.chunked_array(itertools.chain.from_iterable(chunks), values[0].type)


def _same_types(values: list[Any], types: list[Any], name: str) -> None:
    """Refuses values whose items are of other types than the first one's."""
    for position, dtype in enumerate(types):
        if dtype != types[0]:
            raise SchemaMismatch(
                f"{name} returned values of different types: {pickling.a(values[0])} of {types[0]} from "
                f"partition 0, but of {dtype} from partition {position}"
            )


def _alike(values: list[Any], types: Any, name: str) -> None:
    for position, value in enumerate(values):
        if not isinstance(value, types):
            raise SchemaMismatch(
                f"{name} returned different things: {pickling.a(values[0])} from partition 0, but "
                f"{pickling.a(value)} from partition {position}"
            )


def _concat_pandas(values: list[Any], name: str) -> Any:
    import pandas

    cls = pandas.DataFrame if isinstance(values[0], pandas.DataFrame) else pandas.Series
    _alike(values, cls, name)
    if cls is pandas.DataFrame:
        _same_columns([_pandas_schema(value) for value in values], name, types=False)
    joined = pandas.concat(values)
    # pandas looks anew at what an index of objects holds, and may find texts.
    dtype = values[0].index.dtype
    if dtype != joined.index.dtype and all(value.index.dtype == dtype for value in values):
        joined.index = joined.index.astype(dtype)
    return joined


def joined_pandas(parts: list[memoryview]) -> Any:
    """What joining these partitions as pandas frames gives; None if only pandas can tell.

    Joined as Arrow tables they are copied once instead of twice.
    """
    import pyarrow

    if len(parts) < 2 or any(_ipc.object_in(part) is not None for part in parts):
        return None
    tables = [pyarrow.ipc.open_stream(pyarrow.py_buffer(part)).read_all() for part in parts]
    first = tables[0].schema
    described = [_described(table.schema) for table in tables]
    if described[0] is None or not all(
        table.schema.equals(first) and description is not None and description[0] == described[0][0]
        for table, description in zip(tables, described)
    ):
        return None
    # Categories of one partition may be others than those of the next.
    if any(pyarrow.types.is_dictionary(field.type) for field in first):
        return None
    joined = pyarrow.concat_tables([table.replace_schema_metadata(first.metadata) for table in tables])
    if any(table.num_rows == joined.num_rows for table in tables):
        # All others are empty, so that its columns might be shown rather than copied.
        return None
    frame = joined.to_pandas()
    ranges = [description[1] for description in described if description is not None]
    if ranges[0] is not None:
        frame.index = ranges[0].append(ranges[1:])
    return frame


def _described(schema: Any) -> tuple[Any, Any] | None:
    """What an Arrow schema says of its pandas frame: what partitions must share, and the index if a range.

    None if it is of no such frame.
    """
    import json

    import pandas

    said = (schema.metadata or {}).get(b"pandas")
    if said is None:
        return None
    description = json.loads(said)
    indexes = description.pop("index_columns")
    description.pop("partition_columns", None)
    if len(indexes) == 1 and isinstance(indexes[0], dict):
        index = indexes[0]
        return (description, "range"), pandas.RangeIndex(
            index["start"], index["stop"], index["step"], name=index["name"]
        )
    return (description, indexes), None


def _pandas_schema(frame: Any) -> list[tuple[Any, str]]:
    return [(column, str(dtype)) for column, dtype in zip(frame.columns, frame.dtypes)]


def _concat_polars(values: list[Any], name: str) -> Any:
    import polars

    cls = polars.DataFrame if isinstance(values[0], polars.DataFrame) else polars.Series
    _alike(values, cls, name)
    if cls is polars.Series:
        frames_ = _typed_polars([value.to_frame() for value in values], name)
        return polars.concat([frame.to_series() for frame in frames_])
    return polars.concat(_typed_polars(values, name))


def _typed_polars(values: list[Any], name: str) -> list[Any]:
    """Frames of the same columns. Where a partition has only nulls, their type is the other partitions'."""
    import polars

    types: dict[str, Any] = {}
    for value in values:
        types.update((column, dtype) for column, dtype in value.schema.items() if dtype != polars.Null)
    values = [
        value.cast(
            {
                column: types[column]
                for column, dtype in value.schema.items()
                if dtype == polars.Null and column in types
            }
        )
        for value in values
    ]
    _same_columns(
        [[(column, repr(dtype)) for column, dtype in value.schema.items()] for value in values], name
    )
    return values


def _concat_arrow(values: list[Any], name: str) -> Any:
    import pyarrow

    _alike(values, (pyarrow.Table, pyarrow.RecordBatch), name)
    tables = [frames._table(value) for value in values]
    # Where a partition has only nulls, their type is the other partitions'.
    types = {
        field.name: field.type for table in tables for field in table.schema if field.type != pyarrow.null()
    }
    tables = [
        table.cast(
            pyarrow.schema(
                [
                    field.with_type(types.get(field.name, field.type))
                    if field.type == pyarrow.null()
                    else field
                    for field in table.schema
                ],
                table.schema.metadata,
            )
        )
        if any(field.type == pyarrow.null() for field in table.schema)
        else table
        for table in tables
    ]
    _same_columns([[(field.name, str(field.type)) for field in table.schema] for table in tables], name)
    return pyarrow.concat_tables(tables)


def _concat_arrays(values: list[Any], name: str) -> Any:
    import numpy

    _alike(values, numpy.ndarray, name)
    for position, value in enumerate(values):
        if value.ndim == 0 or value.shape[1:] != values[0].shape[1:]:
            raise SchemaMismatch(
                f"{name} returned arrays that cannot be joined: of shape {values[0].shape} from partition 0, "
                f"but {value.shape} from partition {position}"
            )
    if any(isinstance(value, numpy.ma.MaskedArray) for value in values):
        # NumPy's other function takes the masks away.
        return numpy.ma.concatenate(values)  # type: ignore[no-untyped-call]
    first = values[0]
    same = all(value.dtype == first.dtype for value in values)
    joined = numpy.concatenate(values, dtype=first.dtype if same else None)
    return joined.view(type(first)) if all(type(value) is type(first) for value in values) else joined


def _same_columns(schemas: list[list[tuple[Any, str]]], name: str, types: bool = True) -> None:
    """Refuses partitions with other columns than the first. Of types, pandas takes care itself."""
    for position, schema in enumerate(schemas):
        ours, theirs = ([item if types else item[0] for item in columns] for columns in (schemas[0], schema))
        if ours != theirs:
            raise SchemaMismatch(
                f"the partitions that {name} returned differ in their columns, partition {position} "
                f"from partition 0: {_difference(schemas[0], schema, types)}"
            )


def _difference(first: list[tuple[Any, str]], other: list[tuple[Any, str]], types: bool) -> str:
    ours, theirs = dict(first), dict(other)
    found = [f"{column!r} ({dtype}) is missing" for column, dtype in first if column not in theirs]
    found += [f"{column!r} ({dtype}) is added" for column, dtype in other if column not in ours]
    if types:
        found += [
            f"{column!r} is {theirs[column]} instead of {dtype}"
            for column, dtype in first
            if column in theirs and theirs[column] != dtype
        ]
    if not found:
        order = ", ".join(repr(column) for column, _ in other)
        found = [f"their order is {order}"]
    return "; ".join(found)
