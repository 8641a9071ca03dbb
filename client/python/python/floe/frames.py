"""Frames and other values between Python and the store. Runs on both sides.

What lies in the store is an Arrow IPC file. A frame of the job's own kind is stored as its columns,
everything else is pickled. Either way a value comes back as it was.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, Union

from . import _ipc, pickling
from ._looking import imported, is_a

# As in `_remote`.
__floe_hidden__ = True

#: The kinds of frames, by the library that they are of.
KINDS = ("pandas", "polars", "arrow")

#: What the modules are called that the kinds are of.
MODULES = {"pandas": ("pandas", "pyarrow"), "polars": ("polars",), "arrow": ("pyarrow",), "numpy": ("numpy",)}

Encoded = Union["tuple[str, Any, int]", "tuple[str, Any]"]


def kind_of(value: Any) -> str | None:
    """The kind of a frame, None if it is none. Imports nothing."""
    pandas = imported("pandas")
    if pandas is not None and is_a(value, pandas.DataFrame):
        return "pandas"
    polars = imported("polars")
    if polars is not None and is_a(value, polars.DataFrame, polars.LazyFrame):
        return "polars"
    pyarrow = imported("pyarrow")
    if pyarrow is not None and is_a(value, pyarrow.Table, pyarrow.RecordBatch):
        return "arrow"
    return None


def encode(value: Any, kind: str | None, what: str = "what the function returned") -> Encoded:
    """A value for the store: ``("frame", an Arrow IPC file, its rows)`` or ``("object", bytes)``.

    A frame becomes a file only if it is of the job's kind, so that the driver knows what to make of it.
    """
    if kind is not None and kind_of(value) == kind:
        if kind == "polars":
            frame = _collected(value)
            if not any(map(_is_only_polars, frame.dtypes)):
                buffer = io.BytesIO()
                frame.write_ipc(buffer)
                return "frame", _ipc.standard_file(buffer.getvalue()), frame.height
            value = frame
        elif kind == "arrow":
            table = _table(value)
            return "frame", arrow_file(table), table.num_rows
        else:
            table = pandas_table(value)
            if table is not None:
                return "frame", arrow_file(table), table.num_rows
    return "object", pickling.dumps(_collected(value), what)


def _is_only_polars(dtype: Any) -> bool:
    """Whether Arrow does not know a type of Polars', or a type within it."""
    name = type(dtype).__name__ if not isinstance(dtype, type) else dtype.__name__
    inner = getattr(dtype, "inner", None)
    fields = getattr(dtype, "fields", None) or ()
    return (
        name in ("Int128", "UInt128")
        or (inner is not None and _is_only_polars(inner))
        or any(_is_only_polars(field.dtype) for field in fields)
    )


def _collected(value: Any) -> Any:
    """A lazy frame's result, anything else as it is."""
    polars = imported("polars")
    return value.collect() if polars is not None and is_a(value, polars.LazyFrame) else value


def decode(data: Any, kind: str | None) -> Any:
    """A value from the store: of an Arrow IPC file (as nodes have it) or stream (as drivers get it)."""
    wrapped = _ipc.object_in(data)
    if wrapped is not None:
        return pickle.loads(wrapped)
    kind = kind or _likely_kind(data)
    view = memoryview(data)
    file = bytes(view[:6]) == b"ARROW1"
    if kind == "polars":
        import polars

        # Polars would map a file that it got the path of; here it reads what is in memory.
        return polars.read_ipc(io.BytesIO(view)) if file else polars.read_ipc_stream(io.BytesIO(view))
    import pyarrow

    buffer = pyarrow.py_buffer(view)
    reader = pyarrow.ipc.open_file(buffer) if file else pyarrow.ipc.open_stream(buffer)
    table = reader.read_all()
    if kind == "pandas":
        return table_to_pandas(table) if b"pandas" in (table.schema.metadata or {}) else table.to_pandas()
    return table


def _likely_kind(data: Any) -> str:
    """The kind of a frame of which nobody said it."""
    from importlib.util import find_spec

    if (
        b'"pandas_version"' in bytes(memoryview(data)[: 64 << 10])
        and find_spec("pandas")
        and find_spec("pyarrow")
    ):
        return "pandas"
    for name, module in (("polars", "polars"), ("arrow", "pyarrow")):
        if find_spec(module) is not None:
            return name
    raise ImportError("the result is a frame, and neither polars nor pyarrow is installed to read it")


def arrow_file(table: Any) -> Any:
    """An Arrow table as an IPC file, in a buffer of pyarrow's."""
    import pyarrow

    # A file has one dictionary a column.
    table = table.unify_dictionaries()

    def write(sink: Any) -> None:
        with pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    # Written for its size first, which costs little: a buffer that grows is copied again and again.
    counted = pyarrow.MockOutputStream()
    write(counted)
    buffer = pyarrow.allocate_buffer(counted.size())
    write(pyarrow.FixedSizeBufferWriter(buffer))
    return buffer


def _table(value: Any) -> Any:
    import pyarrow

    return value if isinstance(value, pyarrow.Table) else pyarrow.Table.from_batches([value])


def pandas_table(frame: Any) -> Any:
    """A pandas frame as an Arrow table, None if it would not come back exactly as it is.

    Arrow has no room for all that a pandas frame may be: a frequency, a column of mixed objects, a subclass.
    What is not known to survive is pickled.
    """
    import pandas

    if type(frame) is not pandas.DataFrame or frame.attrs or not frame.flags.allows_duplicate_labels:
        return None
    columns = frame.columns
    if not len(columns) or type(columns) is not pandas.Index or not columns.is_unique:
        return None
    if not all(type(name) is str for name in columns) or not all(_survives(dtype) for dtype in frame.dtypes):
        return None
    index = frame.index
    # What describes a frame in Arrow is JSON.
    if not all(name is None or type(name) is str for name in (index.name, columns.name)):
        return None
    # In a file categories come with rows.
    if not len(frame) and any(isinstance(dtype, pandas.CategoricalDtype) for dtype in frame.dtypes):
        return None
    if type(index) is not pandas.RangeIndex and (
        type(index) is not pandas.Index or not _survives(index.dtype)
    ):
        return None
    try:
        import pyarrow
    except ImportError:
        return None
    try:
        table = pyarrow.Table.from_pandas(frame, nthreads=1)
    except (pyarrow.ArrowException, TypeError, ValueError):
        return None
    # What holds for one frame of such columns and such an index holds for all.
    of_columns = (tuple(columns), columns.dtype, columns.name, tuple(frame.dtypes))
    shape = (*of_columns, type(index), index.dtype, index.name)
    same = _KNOWN.get(shape)
    if same is None:
        if len(_KNOWN) >= _MAX_KNOWN:
            _KNOWN.clear()
        same = _KNOWN[shape] = _same(frame.iloc[:1], table_to_pandas(table.slice(0, 1)))
    return table if same else None


#: Shapes of frames of which it is known whether they come back as they are, and how many are remembered.
_KNOWN: dict[Any, bool] = {}
_MAX_KNOWN = 64


def _same(sample: Any, back: Any) -> bool:
    """Whether a frame's first row came back as it was: names and types; values of these types survive."""
    import pandas

    columns, index = sample.columns, sample.index
    same = (
        type(back.columns) is type(columns)
        and back.columns.equals(columns)
        and back.columns.dtype == columns.dtype
        and back.columns.name == columns.name
        and list(back.dtypes) == list(sample.dtypes)
    )
    # A range is kept as its three numbers, which do not go with one row.
    if type(index) is pandas.RangeIndex:
        return same
    return same and (
        type(back.index) is type(index)
        and back.index.dtype == index.dtype
        and back.index.name == index.name
        and back.index.equals(index)
    )


def _survives(dtype: Any) -> bool:
    """Whether values of this type come back from Arrow exactly."""
    import pandas

    if isinstance(dtype, pandas.CategoricalDtype):
        return dtype.categories is not None and _survives(dtype.categories.dtype)
    name = type(dtype).__name__
    if type(dtype).__module__.partition(".")[0] == "pandas":
        return name in ("StringDtype", "BooleanDtype") or re.fullmatch(r"U?Int\d+Dtype", name) is not None
    # Neither half floats nor long doubles.
    kind = getattr(dtype, "kind", "O")
    return kind in "iubMm" or (kind == "f" and dtype.itemsize in (4, 8))


def table_to_pandas(table: Any) -> Any:
    """A pandas frame of an Arrow table that was one, with values that may be written to."""
    frame = table.to_pandas()
    # A column that is alone of its type is not copied but shown, as are the codes of categories, and Arrow's
    # memory is read-only.
    names = [str(dtype) for dtype in frame.dtypes]
    for position, dtype in enumerate(frame.dtypes):
        alone = names.count(names[position]) == 1 and getattr(dtype, "kind", "O") in "iufMm"
        if alone or hasattr(dtype, "categories"):
            frame.isetitem(position, frame.iloc[:, position].copy(deep=True))
    return frame
