"""Frames of all types, indexes and ways of merging, each compared with the function over the whole frame."""

import datetime
import decimal
import warnings

import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from loopback import Loopback

ROWS = 9

#: One partition, and some of which functions leave rows in the middle one only.
PARTITIONS = (1, 4)


def some(*values):
    """Values that alternate, as many as there are rows."""
    return [values[row % len(values)] for row in range(ROWS)]


def outcome(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except Exception as error:
            return error


def same_pandas(found, wanted):
    if type(found) is not type(wanted):
        return False
    try:
        if wanted.ndim == 2:
            pd.testing.assert_frame_equal(found, wanted, check_exact=True, check_column_type="exact")
        else:
            pd.testing.assert_series_equal(found, wanted, check_exact=True)
    except AssertionError:
        return False
    return True


DATE, TIME, ONE = datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1, 12), decimal.Decimal("1.10")
TIMES = pd.to_datetime(some("2020-01-01", None))

COLUMNS = {
    **{name: pd.Series(range(ROWS), dtype=name) for name in ("int8", "int64", "uint16")},
    "large": pd.Series(range(ROWS), dtype="uint64") + 2**63,
    **{name: pd.Series(some(1.5, None, -0.0), dtype=name) for name in ("float16", "float32", "float64")},
    "bool": pd.Series(some(True, False)),
    "complex": pd.Series(some(1j, 2)),
    "text": pd.Series(some("a", None, "ß\0")),
    "text of objects": pd.Series(some("a", "b"), dtype=object),
    "text and NaN": pd.Series(some("a", np.nan), dtype=object),
    "string": pd.Series(some("a", None), dtype="string"),
    "string of Python": pd.Series(some("a", None), dtype="string[python]"),
    "objects": pd.Series(some("a", None, 3, b"x", [1]), dtype=object),
    "nothing": pd.Series([None] * ROWS, dtype=object),
    "bytes": pd.Series(some(b"a", b""), dtype=object),
    "dates": pd.Series([DATE] * ROWS),
    "decimals": pd.Series(some(ONE, None)),
    "lists": pd.Series(some([1], [2, 3], None)),
    "dictionaries": pd.Series(some({"a": 1}, {"b": 2})),
    **{
        f"datetime64[{unit}]": pd.Series(TIMES).astype(f"datetime64[{unit}]")
        for unit in ("s", "ms", "us", "ns")
    },
    "zone": pd.Series(pd.date_range("2020-03-29", periods=ROWS, freq="h", tz="Europe/Berlin")),
    "UTC": pd.Series(pd.date_range("2020", periods=ROWS, tz="UTC")),
    "offset": pd.Series(TIMES).dt.tz_localize(datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
    "timedelta": pd.Series(pd.to_timedelta(some(1, None), "h")),
    "timedelta64[s]": pd.Series(pd.to_timedelta(some(1, None), "h")).astype("timedelta64[s]"),
    "period": pd.Series(pd.period_range("2020", periods=ROWS, freq="M")),
    "interval": pd.Series(pd.interval_range(0, ROWS)),
    "categories": pd.Series(pd.Categorical(some("b", "a", None), categories=["z", "b", "a"])),
    "ordered": pd.Series(pd.Categorical(some("b", "a", None), categories=["z", "b", "a"], ordered=True)),
    "numbers as categories": pd.Series(pd.Categorical(some(3, 1, None))),
    "times as categories": pd.Series(pd.Categorical(pd.to_datetime(some("2020-01-01", "2021-01-01")))),
    "no categories": pd.Series(pd.Categorical([None] * ROWS)),
    **{name: pd.Series(some(1, None), dtype=name) for name in ("Int64", "UInt8", "Float64", "Float32")},
    "boolean": pd.Series(some(True, None, False), dtype="boolean"),
    "sparse": pd.Series(pd.arrays.SparseArray(some(0, 1))),
    "Arrow's int64": pd.Series(some(1, None), dtype="int64[pyarrow]"),
    "Arrow's text": pd.Series(some("a", None), dtype=pd.ArrowDtype(pa.string())),
    "Arrow's list": pd.Series(some([1], None, []), dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "Arrow's struct": pd.Series(some({"a": 1}, None), dtype=pd.ArrowDtype(pa.struct([("a", pa.int64())]))),
    "Arrow's decimal": pd.Series(some(ONE, None), dtype=pd.ArrowDtype(pa.decimal128(10, 2))),
    "Arrow's date": pd.Series(some(DATE, None), dtype=pd.ArrowDtype(pa.date32())),
    "Arrow's time": pd.Series(some(pd.Timestamp(TIME), None), dtype=pd.ArrowDtype(pa.timestamp("ns"))),
}

INDEXES = {
    "steps": pd.RangeIndex(0, 2 * ROWS, 2, name="r"),
    "from five": pd.RangeIndex(5, 5 + ROWS),
    "backwards": pd.RangeIndex(ROWS, 0, -1),
    "a tuple as name": pd.RangeIndex(ROWS, name=("a", 1)),
    "a number as name": pd.Index([row * row for row in range(ROWS)], name=3),
    "a column's name": pd.Index([row * row for row in range(ROWS)], name="c"),
    "small numbers": pd.Index(range(ROWS), dtype="uint8"),
    "floats": pd.Index(some(1.0, None)),
    "repeated": pd.Index(some(1, 1, 2)),
    "bools": pd.Index(some(True, False)),
    "nullable": pd.Index(some(1, None), dtype="Int64"),
    "text": pd.Index(list("abcdefghi"), name="t"),
    "text of objects": pd.Index(list("abcdefghi"), dtype=object),
    "objects": pd.Index(some("a", 1, None), dtype=object),
    "times with a frequency": pd.date_range("2020", periods=ROWS, freq="D", name="d"),
    "times": pd.DatetimeIndex(some("2020-01-01", "2021-01-01")),
    "a zone": pd.date_range("2020", periods=ROWS, tz="Europe/Berlin"),
    "spans": pd.timedelta_range("1h", periods=ROWS, freq="h"),
    "periods": pd.period_range("2020", periods=ROWS, freq="M"),
    "categories": pd.CategoricalIndex(some("a", "b")),
    "intervals": pd.interval_range(0, ROWS),
    "two levels": pd.MultiIndex.from_arrays([some(1, 2, None), list("abcdefghi")], names=["x", None]),
    "levels of times": pd.MultiIndex.from_product([pd.date_range("2020", periods=3), list("abc")]),
}


def rows_of_the_middle(frame):
    position = np.asarray(frame["k"])
    return frame[(position >= 3) & (position < 5)]


def changed_in_place(frame):
    frame["k"] += 1
    frame["new"] = frame["k"] * 0.5
    frame.loc[frame["k"] > 100, "c"] = None
    return frame


def written_to(frame):
    """Every row's value is written over by itself, where it lies."""
    for row in range(len(frame)):
        frame.iloc[row, 0] = frame.iloc[row, 0]
    return frame


PANDAS_FUNCTIONS = {
    "itself": lambda frame: frame,
    "some rows": rows_of_the_middle,
    "no rows": lambda frame: frame[np.asarray(frame["k"]) < 0],
    "a new column": lambda frame: frame.assign(z=frame["k"] * 2.5),
    "a column": lambda frame: frame["c"],
    "no columns": lambda frame: frame[[]],
    "in place": changed_in_place,
}

MERGES = {"concat": "concat", "a function": pd.concat}


def pandas_differences(frames, functions):
    found = []
    for label, frame in frames.items():
        for name, function in functions.items():
            wanted = outcome(lambda: function(frame.copy(deep=True)))
            if isinstance(wanted, Exception):
                continue
            for partitions in PARTITIONS:
                for merge in MERGES if name == "some rows" else ["concat"]:
                    job = outcome(
                        lambda: Loopback().parallelize(frame, function, partitions, merge=MERGES[merge])
                    )
                    result, expected = job if isinstance(job, Exception) else job.collect(), wanted
                    if merge == "a function":
                        # What pandas itself makes of the partitions.
                        parts = Loopback().parallelize(frame, function, partitions, merge=None).collect()
                        expected = pd.concat(parts)
                    if not same_pandas(result, expected):
                        found.append(
                            f"{label}, {name}, {partitions} partitions, {merge}: {result!r} for {expected!r}"
                        )
    return found


def test_types_of_pandas():
    frames = {name: pd.DataFrame({"c": column, "k": range(ROWS)}) for name, column in COLUMNS.items()}
    assert not pandas_differences(frames, PANDAS_FUNCTIONS)


def test_indexes_of_pandas():
    frames = {}
    for name, index in INDEXES.items():
        for column in ("text", "numbers as categories"):
            frames[f"{name} of {column}"] = pd.DataFrame({"c": COLUMNS[column], "k": range(ROWS)}).set_axis(
                index
            )
    assert not pandas_differences(frames, PANDAS_FUNCTIONS)


def test_columns_of_pandas():
    numbers = np.arange(2 * ROWS).reshape(ROWS, 2)
    frames = {
        "a name": pd.DataFrame(numbers, columns=pd.Index(["c", "k"], name="names")),
        "a tuple as name": pd.DataFrame(numbers, columns=pd.Index(["c", "k"], name=("a", 1))),
        "numbers": pd.DataFrame(numbers),
        "times": pd.DataFrame(numbers, columns=pd.date_range("2020", periods=2)),
        "repeated": pd.DataFrame(numbers, columns=["a", "a"]),
        "levels": pd.DataFrame(numbers, columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
        "objects": pd.DataFrame(numbers, columns=pd.Index(["c", "k"], dtype=object)),
    }
    functions = {"itself": lambda frame: frame, "no rows": lambda frame: frame.iloc[:0]}
    assert not pandas_differences(frames, functions)


def test_values_of_pandas_may_be_written_to():
    for name, column in COLUMNS.items():
        frame = pd.DataFrame({"c": column, "k": range(ROWS)})
        wanted = outcome(lambda: written_to(frame.copy(deep=True)))
        if isinstance(wanted, Exception):
            continue
        # As a partition on a node, and as a result in the driver.
        assert same_pandas(Loopback().parallelize(frame, written_to, 1).collect(), wanted), name
        assert same_pandas(
            written_to(Loopback().parallelize(frame, lambda part: part, 3).collect()), wanted
        ), name


POLARS_COLUMNS = {
    "int64": pl.Series(range(ROWS)),
    "int8": pl.Series(range(ROWS), dtype=pl.Int8),
    "uint64": pl.Series(some(2**64 - 1, 0), dtype=pl.UInt64),
    "int128": pl.Series(some(2**100, None), dtype=pl.Int128),
    "float32": pl.Series(some(0.1, None), dtype=pl.Float32),
    "float64": pl.Series(some(0.1, float("nan"), None)),
    "bool": pl.Series(some(True, None)),
    "text": pl.Series(some("a", "ßöä" * 9, None)),
    "bytes": pl.Series(some(b"a", None)),
    "null": pl.Series([None] * ROWS),
    "date": pl.Series(some(DATE, None)),
    "milliseconds": pl.Series(some(TIME, None), dtype=pl.Datetime("ms")),
    "zone": pl.Series(some(TIME, None)).dt.replace_time_zone("Europe/Berlin"),
    "duration": pl.Series(some(datetime.timedelta(1), None)),
    "time": pl.Series(some(datetime.time(1), None)),
    "categories": pl.Series(some("a", "b", None), dtype=pl.Categorical),
    "enum": pl.Series(some("a", "b", None), dtype=pl.Enum(["z", "b", "a"])),
    "decimal": pl.Series(some(ONE, None), dtype=pl.Decimal(20, 4)),
    "list": pl.Series(some([1], [], None)),
    "array": pl.Series(some([1, 2], None), dtype=pl.Array(pl.Int64, 2)),
    "struct": pl.Series(some({"a": 1, "b": "x"}, None)),
    "structs in lists": pl.Series(some([{"a": 1}], [])),
    "categories in lists": pl.Series(some(["a"], ["b"]), dtype=pl.List(pl.Categorical)),
    "categories in structs": pl.Series(some({"a": "x"}, {"a": "y"}), dtype=pl.Struct({"a": pl.Categorical})),
    "int128 in lists": pl.Series(some([2**100], None), dtype=pl.List(pl.Int128)),
    "lists of nothing": pl.Series([[]] * ROWS),
    "decimals in lists": pl.Series(some([ONE], None), dtype=pl.List(pl.Decimal(10, 2))),
}


def with_nulls_at_the_end(frame):
    return frame.with_columns(z=pl.Series([value if value < 4 else None for value in frame["k"]]))


POLARS_FUNCTIONS = {
    "itself": lambda frame: frame,
    "some rows": lambda frame: frame.filter((pl.col("k") >= 3) & (pl.col("k") < 5)),
    "no rows": lambda frame: frame.filter(pl.col("k") < 0),
    "a column": lambda frame: frame["c"],
    "lazily": lambda frame: frame.lazy().with_columns(pl.col("k") * 0.5),
    "nulls": lambda frame: frame.with_columns(z=pl.lit(None)),
    "nulls in some": with_nulls_at_the_end,
}


def test_polars():
    found = []
    for label, column in POLARS_COLUMNS.items():
        frame = pl.DataFrame({"c": column, "k": range(ROWS)})
        for name, function in POLARS_FUNCTIONS.items():
            wanted = function(frame)
            wanted = wanted.collect() if isinstance(wanted, pl.LazyFrame) else wanted
            for partitions in PARTITIONS:
                for merge in ("concat", pl.concat, None):
                    if merge != "concat" and name == "nulls in some":
                        continue
                    result = outcome(
                        lambda: Loopback().parallelize(frame, function, partitions, merge=merge).collect()
                    )
                    if isinstance(result, list):
                        result = pl.concat(result)
                    compare = pl.testing.assert_frame_equal
                    if isinstance(wanted, pl.Series):
                        compare = pl.testing.assert_series_equal
                    try:
                        compare(result, wanted, check_exact=True)
                    except (AssertionError, TypeError):
                        found.append(
                            f"{label}, {name}, {partitions} partitions, {merge}: {result!r} for {wanted!r}"
                        )
    assert not found


ARROW_COLUMNS = {
    "int64": pa.array(range(ROWS)),
    "dictionary": pa.array(some("a", "b", None)).dictionary_encode(),
    "dictionaries that differ": pa.chunked_array(
        [pa.array(texts).dictionary_encode() for texts in (["a", "b"], ["c", "b"], ["d"] * 5)]
    ),
    "dictionaries in lists": pa.array(some(["a"], ["b"]), pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "map": pa.array(some([("a", 1)], []), pa.map_(pa.string(), pa.int64())),
    "null": pa.nulls(ROWS),
    "decimal256": pa.array(some(ONE, None), pa.decimal256(50, 3)),
    "float16": pa.array(np.arange(ROWS, dtype="float16")),
    "months": pa.array(some((1, 2, 3), None), pa.month_day_nano_interval()),
    "bytes of one size": pa.array(some(b"ab", None), pa.binary(2)),
    "lists of one size": pa.array(some([1, 2], None), pa.list_(pa.int64(), 2)),
    "struct": pa.array(some({"a": 1}, None)),
    "zone": pa.array([0] * ROWS, pa.timestamp("ns", "Europe/Berlin")),
}


def with_a_dictionary(table):
    return table.append_column(
        "z", pa.array([str(value) for value in table["k"].to_pylist()]).dictionary_encode()
    )


ARROW_FUNCTIONS = {
    "itself": lambda table: table,
    "some rows": lambda table: table.filter(pc.and_(pc.greater_equal(table["k"], 3), pc.less(table["k"], 5))),
    "no rows": lambda table: table.slice(0, 0),
    "metadata": lambda table: table.replace_schema_metadata({"a": "b"}),
    "a batch": lambda table: table.combine_chunks().to_batches()[0],
    "other dictionaries": with_a_dictionary,
    "nulls in some": lambda table: table.append_column(
        "z", pa.array([value if value < 4 else None for value in table["k"].to_pylist()])
    ),
}


def test_arrow():
    found = []
    for label, column in ARROW_COLUMNS.items():
        table = pa.table({"c": column, "k": pa.array(range(ROWS))})
        for name, function in ARROW_FUNCTIONS.items():
            wanted = function(table)
            wanted = pa.Table.from_batches([wanted]) if isinstance(wanted, pa.RecordBatch) else wanted
            for partitions in PARTITIONS:
                for merge in ("concat", pa.concat_tables):
                    if merge != "concat" and name in ("nulls in some", "a batch"):
                        continue
                    result = outcome(
                        lambda: Loopback().parallelize(table, function, partitions, merge=merge).collect()
                    )
                    if not (
                        isinstance(result, pa.Table)
                        and result.schema.equals(wanted.schema, check_metadata=True)
                        and result.to_pylist() == wanted.to_pylist()
                    ):
                        found.append(
                            f"{label}, {name}, {partitions} partitions, {merge}: {result!r} for {wanted!r}"
                        )
    assert not found


ARRAYS = {
    "floats": np.arange(9.0),
    "rows": np.arange(18).reshape(9, 2),
    "columns first": np.asfortranarray(np.arange(18).reshape(9, 2)),
    "no columns": np.zeros((9, 0, 2)),
    "objects": np.array(some("a", 1, None), dtype=object),
    "text": np.array(some("a", "bbb")),
    "times": np.array(some("2020", "NaT"), dtype="datetime64[s]"),
    "fields": np.array([(row, row / 2) for row in range(ROWS)], dtype=[("a", "i4"), ("b", "f8")]),
    "records": np.rec.array([(row, row / 2) for row in range(ROWS)], dtype=[("a", "i4"), ("b", "f8")]),
    "a mask": np.ma.masked_array(np.arange(9), mask=[row % 2 for row in range(ROWS)]),
    "the other byte order": np.arange(9, dtype=">i4"),
    "every other": np.arange(18)[::2],
    "longdouble": np.arange(9, dtype="longdouble"),
    "empty": np.arange(0),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("partitions", PARTITIONS)
def test_arrays(name, partitions):
    array = ARRAYS[name]
    for function in (lambda part: part, lambda part: part[part != part] if part.ndim == 1 else part[:0]):
        wanted = function(array)
        found = outcome(lambda: Loopback().parallelize(array, function, partitions).collect())
        assert type(found) is type(wanted) and found.dtype == wanted.dtype and found.shape == wanted.shape
        assert repr(found.tolist()) == repr(wanted.tolist())
        assert np.ma.getmaskarray(found).tolist() == np.ma.getmaskarray(wanted).tolist()


def test_some_on_nodes(mesh):
    """A node and its store do with them what is done above."""
    every = pd.DataFrame({name: column for name, column in COLUMNS.items() if "categor" not in name})
    found = mesh.parallelize(every.assign(k=range(ROWS)), PANDAS_FUNCTIONS["some rows"], 4).collect()
    assert same_pandas(found, PANDAS_FUNCTIONS["some rows"](every.assign(k=range(ROWS))))
    plain = pd.DataFrame(
        {name: COLUMNS[name] for name in ("int8", "float64", "numbers as categories", "UTC", "Int64")}
    )
    assert same_pandas(mesh.parallelize(plain, lambda part: part, 4).collect(), plain)
    typed = pl.DataFrame({name: column for name, column in POLARS_COLUMNS.items() if "int128" not in name})
    typed = typed.with_columns(k=pl.Series(range(ROWS)))
    for function in (POLARS_FUNCTIONS["some rows"], POLARS_FUNCTIONS["no rows"], with_nulls_at_the_end):
        pl.testing.assert_frame_equal(mesh.parallelize(typed, function, 4).collect(), function(typed))
    wide = pl.DataFrame({name: column for name, column in POLARS_COLUMNS.items() if "int128" in name})
    pl.testing.assert_frame_equal(mesh.parallelize(wide, lambda part: part, 4).collect(), wide)
    table = pa.table({"k": pa.array(range(ROWS)), **ARROW_COLUMNS})
    for function in (ARROW_FUNCTIONS["itself"], with_a_dictionary):
        assert mesh.parallelize(table, function, 4).collect().to_pylist() == function(table).to_pylist()
