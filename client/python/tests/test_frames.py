"""Frames on their way to the nodes and back, without any node."""

import io
import pickle
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from floe import _ipc, data, errors, frames


def back(value, kind):
    """A value that was stored as a file and read as the stream that drivers get."""
    encoded = frames.encode(value, kind)
    if encoded[0] == "object":
        return encoded[0], pickle.loads(encoded[1])
    assert encoded[2] == len(value)
    from_file = frames.decode(encoded[1], kind)
    table = pa.ipc.open_file(pa.py_buffer(encoded[1])).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    from_stream = frames.decode(sink.getvalue().to_pybytes(), kind)
    if kind == "pandas":
        pd.testing.assert_frame_equal(from_file, from_stream)
    return encoded[0], from_file


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "numpy"])
def test_a_library_that_another_thread_imports_just_now_has_no_frames_yet(monkeypatch, library):
    half = ModuleType(library)
    half.__spec__ = ModuleSpec(library, None)
    half.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, library, half)
    for value in (1, [1, 2], "text", object()):
        assert frames.kind_of(value) is None


PANDAS = {
    "numbers": (
        pd.DataFrame({"i": [1, 2], "f": [1.5, None], "b": [True, False], "u": np.uint8([1, 2])}),
        "frame",
    ),
    "slice": (pd.DataFrame({"i": range(10), "j": range(10)}).iloc[3:7], "frame"),
    "empty": (pd.DataFrame({"i": range(10), "f": 0.5}).iloc[:0], "frame"),
    "categories": (
        pd.DataFrame({"c": pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"], ordered=True)}),
        None,
    ),
    "times": (
        pd.DataFrame({"t": pd.to_datetime(["2020-01-01", None]), "d": pd.to_timedelta([1, 2], "h")}),
        "frame",
    ),
    "nullable": (
        pd.DataFrame({"i": pd.array([1, None], "Int64"), "b": pd.array([True, None], "boolean")}),
        "frame",
    ),
    "strings": (pd.DataFrame({"s": pd.array(["a", None], "string")}), None),
    "object": (pd.DataFrame({"o": pd.Series(["a", None, 3, b"x"], dtype=object)}), "object"),
    "named index": (pd.DataFrame({"i": [1, 2]}, index=pd.Index([5, 7], name="key")), "frame"),
    "text index": (pd.DataFrame({"i": [1, 2]}, index=["x", "y"]), None),
    "dates as index": (
        pd.DataFrame({"i": range(3)}, index=pd.date_range("2020", periods=3, freq="D")),
        "object",
    ),
    "two levels": (
        pd.DataFrame({"i": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, "a"), (2, "b")])),
        "object",
    ),
    "numbers as columns": (pd.DataFrame([[1, 2], [3, 4]]), "object"),
    "columns of one name": (pd.DataFrame([[1, 2]], columns=["a", "a"]), "object"),
    "named columns": (pd.DataFrame({"a": [1]}).rename_axis(columns="letters"), None),
    "no columns": (pd.DataFrame(index=range(3)), "object"),
    "a zone": (pd.DataFrame({"t": pd.date_range("2020", periods=2, tz="Europe/Berlin")}), None),
    "half floats": (pd.DataFrame({"h": np.float16([1.5])}), "object"),
    "periods": (pd.DataFrame({"p": pd.period_range("2020", periods=2, freq="M")}), "object"),
}


@pytest.mark.parametrize("name", PANDAS)
def test_pandas_comes_back_exactly(name):
    frame, expected = PANDAS[name]
    how, result = back(frame, "pandas")
    pd.testing.assert_frame_equal(result, frame, check_freq=True)
    assert type(result.index) is type(frame.index)
    assert expected in (None, how)


def as_stream(frame):
    """A frame's partition as drivers get it."""
    table = pa.ipc.open_file(frames.arrow_file(frames.pandas_table(frame))).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


@pytest.mark.parametrize("cuts", [[1], [1, 1], [1, 2]])
@pytest.mark.parametrize("name", [name for name, (_, how) in PANDAS.items() if how != "object"])
def test_joined_partitions_are_what_pandas_joins(name, cuts):
    frame = pd.concat([PANDAS[name][0]] * 2) if len(PANDAS[name][0]) else PANDAS[name][0]
    ends = [0, *cuts, len(frame)]
    parts = [frame.iloc[start:end] for start, end in zip(ends, ends[1:])]
    if any(frames.pandas_table(part) is None for part in parts):
        pytest.skip("this pandas has such frames pickled")
    joined = data.joined_pandas([as_stream(part) for part in parts])
    if joined is not None:
        pd.testing.assert_frame_equal(joined, pd.concat(parts), check_freq=True)
        assert type(joined.index) is type(pd.concat(parts).index)


def test_ranges_are_joined_to_a_range_and_what_differs_is_left_to_pandas():
    frame = pd.DataFrame({"i": range(10), "f": 0.5})
    joined = data.joined_pandas([as_stream(frame.iloc[:4]), as_stream(frame.iloc[4:])])
    assert joined.equals(frame) and type(joined.index) is pd.RangeIndex
    joined.loc[3, ["i", "f"]] = 7
    assert joined.loc[3].tolist() == [7, 7]
    gap = data.joined_pandas([as_stream(frame.iloc[:4]), as_stream(frame.iloc[6:])])
    assert gap.index.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    other = frame.astype({"i": float})
    assert data.joined_pandas([as_stream(frame), as_stream(other)]) is None
    assert data.joined_pandas([as_stream(frame), as_stream(frame.rename(columns={"f": "g"}))]) is None
    assert data.joined_pandas([as_stream(frame), as_stream(frame.set_index("i"))]) is None
    assert data.joined_pandas([as_stream(frame)]) is None
    wrapped = pa.table({"__floe_object__": pa.array([b"x"], pa.large_binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, wrapped.schema) as writer:
        writer.write_table(wrapped)
    assert data.joined_pandas([as_stream(frame), memoryview(sink.getvalue())]) is None


def test_attributes_survive():
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["unit"] = "m"
    assert back(frame, "pandas")[1].attrs == {"unit": "m"}


def test_values_may_be_written_to():
    for frame in (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2], "b": [1.0, 2.0], "c": [3, 4]})):
        result = back(frame, "pandas")[1]
        for column in result:
            result.loc[0, column] = 9
            assert result.loc[0, column] == 9


def test_subclasses_stay_what_they_are():
    how, result = back(Special({"a": [1]}), "pandas")
    assert how == "object" and type(result).__name__ == "Special"


class Special(pd.DataFrame):
    @property
    def _constructor(self):
        return Special


def test_polars_and_arrow():
    frame = pl.DataFrame(
        {"a": [1, None], "s": ["x", "y"], "l": [[1], []], "c": pl.Series(["a", "b"], dtype=pl.Categorical)}
    )
    how, result = back(frame, "polars")
    assert how == "frame" and result.equals(frame) and result.schema == frame.schema
    table = pa.table({"a": [1, None], "s": ["x", "y"]})
    how, result = back(table.slice(1), "arrow")
    assert how == "frame" and result.equals(table.slice(1))


def test_lazy_frames_are_collected():
    assert back(pl.LazyFrame({"a": [1]}).select(pl.col("a") + 1).collect(), "polars")[1].item() == 2


BINARY = [pa.binary(), pa.large_binary(), *([pa.binary_view()] if hasattr(pa, "binary_view") else [])]


@pytest.mark.parametrize("size", [0, 1, 12, 13, 100_000])
@pytest.mark.parametrize("column", BINARY, ids=str)
@pytest.mark.parametrize("writer", ["file", "stream"])
def test_objects_need_no_arrow_library(size, column, writer):
    value = bytes(i % 251 for i in range(size))
    table = pa.table({"__floe_object__": pa.array([value], column)})
    sink = pa.BufferOutputStream()
    new = pa.ipc.new_file if writer == "file" else pa.ipc.new_stream
    with new(sink, table.schema) as out:
        out.write_table(table)
    assert bytes(_ipc.object_in(sink.getvalue())) == value


def test_objects_of_polars():
    # Polars writes files that do not keep to the stream format before their footer.
    buffer = io.BytesIO()
    pl.DataFrame({"__floe_object__": [b"x" * 100]}).write_ipc(buffer)
    assert bytes(_ipc.object_in(buffer.getvalue())) == b"x" * 100
    buffer = io.BytesIO()
    pl.DataFrame({"a": [1]}).write_ipc(buffer)
    assert _ipc.object_in(buffer.getvalue()) is None


@pytest.mark.parametrize("rows", [0, 1, 1000, 300_000])
def test_files_of_polars_have_a_stream_in_them(rows):
    frame = pl.DataFrame(
        {"a": range(rows), "s": pl.Series([str(i % 3) for i in range(rows)], dtype=pl.Categorical)}
    )
    _, file, _ = frames.encode(frame, "polars")
    assert pl.read_ipc(io.BytesIO(file)).equals(frame)
    assert pa.ipc.open_file(file).read_all().num_rows == rows
    assert pa.ipc.open_stream(file[8:]).read_all().num_rows == rows


def test_partitions_are_even():
    assert data.bounds(10, 3, 0) == [(0, 4), (4, 7), (7, 10)]
    assert data.bounds(10, None, 2) == [(0, 5), (5, 10)]
    assert data.bounds(0, None, 2) == [(0, 0)]


def test_more_partitions_than_rows():
    with pytest.warns(errors.PartitionWarning, match="3 partitions instead of 7: there are only 3 rows"):
        assert len(data.bounds(3, 7, 0)) == 3


@pytest.mark.parametrize("n", [0, -1])
def test_no_partitions(n):
    with pytest.raises(ValueError, match="at least 1"):
        data.bounds(3, n, 0)


def test_partitions_are_a_number():
    with pytest.raises(TypeError, match="number of partitions"):
        data.bounds(3, 2.5, 0)


def test_differences_are_shown():
    def refused(values):
        with pytest.raises(errors.SchemaMismatch) as caught:
            data.concat(values, "f")
        return str(caught.value)

    message = refused([pl.DataFrame({"a": [1], "b": ["x"]}), pl.DataFrame({"a": [1.0], "c": [1]})])
    assert message.endswith(
        "partition 1 from partition 0: 'b' (String) is missing; 'c' (Int64) is added; "
        "'a' is Float64 instead of Int64"
    )
    assert "'b' (int64) is added" in refused([pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1], "b": [1]})])
    assert "'a' is double instead of int64" in refused([pa.table({"a": [1]}), pa.table({"a": [1.0]})])
    swapped = refused([pd.DataFrame({"a": [1], "b": [1]}), pd.DataFrame({"b": [1], "a": [1]})])
    assert "their order is 'b', 'a'" in swapped
    shapes = refused([np.zeros((2, 2)), np.zeros((2, 3))])
    assert "of shape (2, 2) from partition 0, but (2, 3) from partition 1" in shapes
    assert "from partition 0, but a list from partition 1" in refused([pd.DataFrame({"a": [1]}), [1]])
