"""`mesh.apply`: values, types, index, name and errors are those of pandas, for all rows."""

import datetime
import decimal
import functools
import warnings

import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pytest

from floe import _remote, applying, vectorised

from loopback import Loopback

ROWS = 12


def some(first, second):
    """A column whose kinds of values alternate."""
    return [first, second] * (ROWS // 2)


def with_attributes(frame):
    frame.attrs["unit"] = "m"
    return frame


FRAMES = {
    "floats": pd.DataFrame({"a": np.linspace(0, 5, ROWS), "b": some(1.0, None)}),
    "ints": pd.DataFrame({"a": range(ROWS), "b": range(ROWS, 0, -1)}),
    "large ints": pd.DataFrame({"a": [2**60 + i for i in range(ROWS)], "b": -3}),
    "numbers": pd.DataFrame({"a": range(ROWS), "b": np.linspace(0, 1, ROWS)}),
    "texts": pd.DataFrame({"a": range(ROWS), "b": list("abcdefghijkl")}),
    "nullable": pd.DataFrame(
        {"a": pd.array([1] * 6 + [None] * 6, "Int64"), "b": pd.array([None] * ROWS, "Float64")}
    ),
    "one nullable type": pd.DataFrame(
        {"a": pd.array(some(1, None), "Int64"), "b": pd.array([3] * ROWS, "Int64")}
    ),
    "times": pd.DataFrame(
        {
            "a": pd.date_range("2020", periods=ROWS, tz="Europe/Berlin"),
            "b": pd.to_datetime(some("2020-01-01", None)),
        }
    ),
    "spans": pd.DataFrame(
        {"a": pd.to_timedelta(range(ROWS), "h"), "b": pd.period_range("2020", periods=ROWS)}
    ),
    "categories": pd.DataFrame(
        {"a": pd.Categorical(list("abc") * 4), "b": pd.Categorical([None, *"ab"] * 4)}
    ),
    "objects": pd.DataFrame(
        {"a": [[1], {"x": 2}, None, "s"] * 3, "b": [datetime.date(2020, 1, 1)] * ROWS}, dtype=object
    ),
    "two levels": pd.DataFrame(
        {"a": range(ROWS), "b": 1.5}, pd.MultiIndex.from_product([range(4), list("xyz")], names=["i", "j"])
    ),
    "dates as index": pd.DataFrame(
        {"a": range(ROWS), "b": 1.5}, pd.date_range("2020", periods=ROWS, name="d")
    ),
    "repeated index": pd.DataFrame({"a": range(ROWS), "b": 1.5}, [1, 1, 2] * 4),
    "bools": pd.DataFrame({"a": some(True, False), "b": True}),
    "one row": pd.DataFrame({"a": [1.0], "b": [2.0]}),
    "no rows": pd.DataFrame({"a": [], "b": []}),
    "no columns": pd.DataFrame(index=range(4)),
    "attributes": with_attributes(pd.DataFrame({"a": range(ROWS), "b": 1.5})),
}


def value(row):
    return row["a"] if isinstance(row, pd.Series) else row


def first(row):
    """What differs between partitions: true only for some of the first rows."""
    return str(value(row)) < "3"


FUNCTIONS = {
    "itself": lambda row: row,
    "a value": value,
    "an attribute": lambda row: row.b,
    "arithmetic": lambda row: row.a * row.b + 1,
    "arithmetic with a value": lambda value: 2 * value - 1.5,
    "a quotient": lambda row: row.a / row.b,
    "a quotient of constants": lambda value: 1 / value,
    "a comparison": lambda row: row.a > row.b,
    "a remainder": lambda row: row["a"] % 2,
    "None": lambda row: None,
    "a constant": lambda row: 3,
    "text": lambda row: str(value(row)),
    "bytes": lambda row: b"x",
    "large": lambda row: 2**70,
    "complex": lambda row: 1j,
    "decimal": lambda row: decimal.Decimal(1),
    "int32": lambda row: np.int32(3),
    "float32": lambda row: np.float32(0.1),
    "a period": lambda row: pd.Period("2020"),
    "a span": lambda row: pd.Timedelta(1, "h"),
    "a set": lambda row: {1},
    "a list": lambda row: ["x", value(row)],
    "lists of other lengths": lambda row: [1] if first(row) else [1, 2],
    "a tuple": lambda row: (1, 2),
    "a dictionary": lambda row: {"k": value(row)},
    "an array": lambda row: np.array([1, 2]),
    "a series": lambda row: pd.Series({"p": value(row), "q": 1}),
    "other series": lambda row: pd.Series({"p": 1}) if first(row) else pd.Series({"q": 2.5}),
    "series, then values": lambda row: pd.Series({"p": 1}) if first(row) else 1,
    "values, then series": lambda row: 1 if first(row) else pd.Series({"p": 1}),
    "null, then values": lambda row: np.nan if first(row) else value(row),
    "ints, then floats": lambda row: 1 if first(row) else 2.5,
    "ints, then text": lambda row: 1 if first(row) else "x",
    "ints, then None": lambda row: 1 if first(row) else None,
    "ints, then NA": lambda row: 1 if first(row) else pd.NA,
    "None, then text": lambda row: None if first(row) else "x",
    "bools": first,
    "bools, then None": lambda row: True if first(row) else None,
    "NaT, then times": lambda row: pd.NaT if first(row) else pd.Timestamp("2020"),
    "times, then dates": lambda row: pd.Timestamp("2020") if first(row) else datetime.date(2020, 1, 1),
    "a zone": lambda row: pd.Timestamp("2020", tz="UTC"),
    "zones": lambda row: pd.Timestamp("2020", tz="UTC" if first(row) else "Europe/Berlin"),
    "a name": lambda row: str(row.name),
    "the length": len,
    "the sum": np.sum,
    "the greatest": max,
    "the type": type,
    "nulls": pd.isna,
    "a ufunc": np.sqrt,
    "a partial": functools.partial(isinstance, 3, (int,)) and functools.partial(str.format, "{}"),
    "an error": lambda row: 1 // (0 if str(value(row)) > "5" else 1),
    "a missing column": lambda row: row["missing"],
}


def outcome(call):
    """What it returns or raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except Exception as error:
            return error


def pandas_apply(values, function):
    return values.apply(function, axis=1) if values.ndim == 2 else values.apply(function)


def same(found, wanted):
    """Whether one pandas object, or exception, is the other in all that can be seen of it."""
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, Exception):
        return str(found) == str(wanted)
    if not isinstance(wanted, (pd.DataFrame, pd.Series)):
        return repr(found) == repr(wanted)
    if wanted.ndim == 1 and wanted.dtype == object:
        inner = [repr(each) for each in found] == [repr(each) for each in wanted]
        wanted, found, plain = wanted.astype(str), found.astype(str), found.dtype == object
        if not (inner and plain):
            return False
    compare = pd.testing.assert_frame_equal if wanted.ndim == 2 else pd.testing.assert_series_equal
    try:
        compare(found, wanted, check_exact=True, check_freq=True, check_index_type="exact")
    except AssertionError:
        return False
    return found.attrs == wanted.attrs


@pytest.mark.parametrize("frame", FRAMES)
def test_apply_gives_what_pandas_gives(frame):
    wrong = []
    for name, function in FUNCTIONS.items():
        for values in (FRAMES[frame], *(FRAMES[frame][column] for column in FRAMES[frame])):
            wanted = outcome(lambda: pandas_apply(values, function))
            found = outcome(
                lambda: applying.apply(Loopback(), values, function, None, "partitions", True, {})
            )
            if not same(found, wanted):
                wrong.append(f"{name} of {values.ndim} dimensions: {found!r} instead of {wanted!r}")
    assert not wrong, "\n".join(wrong)


COUNT = 3
NAMES = ["a"]

SHOWN = {
    "a column": lambda row: row["a"],
    "an attribute": lambda row: row.a,
    "a product": lambda row: row.a * row["b"] + 1,
    "a quotient": lambda row: row.a / row.b,
    "a global": lambda row: row.a * COUNT,
    "negative": lambda row: -row.a - 2.5,
    "a comparison": lambda row: row.a >= row.b,
    "the right side": lambda row: 3 - row.a,
}

NOT_SHOWN = {
    "a sample": lambda row: row["a"] / max(1.0, np.max(row["b"])),
    "a condition": lambda row: 1 if row.a > 2 else 0,
    "and": lambda row: row.a > 1 and row.b > 1,
    "a chain": lambda row: 1 < row.a < 3,
    "a call": lambda row: abs(row.a),
    "a method": lambda row: row.a.round(1),
    "text": lambda row: "%s" % row.a,  # noqa: UP031
    "a formatted text": lambda row: f"{row.a}",
    "a name that rows have": lambda row: row.size + row.a,
    "inside": lambda row: row._mgr,
    "a list": lambda row: [row.a, row.b],
    "a constant": lambda row: 3,
    "the row": lambda row: row,
    "two columns": lambda row: row[NAMES],
    "a column that is missing": lambda row: row["c"],
    "identity": lambda row: row.a is None,
    "membership": lambda row: "a" in row,
    "a power": lambda row: row.a**2,
    "a floor": lambda row: row.a // 2,
    "an argument more": lambda row, by=2: row.a * by,
    "a builtin": np.mean,
}


def test_what_is_called_for_all_rows_at_once():
    frame = pd.DataFrame({"a": np.linspace(0, 5, ROWS), "b": np.linspace(-1, 1, ROWS), "size": 1.0})
    for name, function in SHOWN.items():
        assert same(vectorised.computed(frame, function), frame.apply(function, axis=1)), name
    for name, function in NOT_SHOWN.items():
        with pytest.raises(vectorised.NotShown):
            vectorised.computed(frame, function)
            pytest.fail(f"{name} was shown to be the same")


@pytest.mark.parametrize(
    "values, function",
    [
        (pd.Series([1, 2**62]), lambda value: value * 4),  # Python's whole numbers do not overflow.
        (pd.Series([2**53 + 1]), lambda value: value + 0.5),
        (pd.Series([1.0, 0.0]), lambda value: 1 / value),  # Nor do Python's floats divide by zero.
        (pd.Series([1, None], dtype="Int64"), lambda value: value + 1),
        (pd.Series([1], dtype="int8"), lambda value: value + 1),
        (pd.Series([True]), lambda value: value + 1),
        (pd.Series(["a"]), lambda value: value + "b"),
        (pd.DataFrame({"a": [1.0], "s": ["x"]}), lambda row: row.a + 1),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), lambda row: row["a"] + 1),
        (pd.DataFrame([[1.0]], columns=pd.MultiIndex.from_tuples([("a", "b")])), lambda row: row["a"] + 1),
        (pl.Series([1.0, None]), lambda value: value + 1),
        (pl.Series([1], dtype=pl.Int8), lambda value: value + 1),
        (pl.DataFrame({"a": [1.0]}), lambda row: row.a + 1),
    ],
)
def test_what_numbers_would_make_differ_is_not_shown(values, function):
    with pytest.raises(vectorised.NotShown):
        vectorised.computed(values, function)


def test_functions_that_remember():
    frame = pd.DataFrame({"a": range(ROWS), "b": 1.5})

    def running(total=0.0):
        def add(row):
            nonlocal total
            total += row["a"]
            return total

        return add

    def seen(known):
        def count(row):
            known.append(row["a"])
            return len(known)

        return count

    wanted = frame.apply(running(), axis=1)
    assert same(applying.apply(Loopback(), frame, running(), 3, "auto", True, {}), wanted)
    kept = []
    assert applying.apply(Loopback(), frame, seen(kept), 3, "auto", True, {}).tolist() == list(
        range(1, ROWS + 1)
    )
    assert kept == list(range(ROWS))


def test_functions_that_require_modules_change_nothing_by_that(monkeypatch):
    frame = pd.DataFrame({"a": range(ROWS)})
    names = {"__name__": "drawn"}
    exec("def power(row): return math.pow(row['a'], 2)", names)
    required = _remote.Required(names["power"], ["math"], {})
    monkeypatch.setattr(applying._Pandas, "one_by_one", lambda *_: pytest.fail("it was called here"))
    found = applying.apply(Loopback(), frame, required, 3, "auto", True, {})
    assert found.tolist() == [float(number**2) for number in range(ROWS)]


POLARS = pl.DataFrame(
    {"a": [1, 2, 3, 4], "b": [4.0, 5.0, None, 0.5], "s": ["x", None, "y", "z"], "l": [[1], [], None, [2]]}
)


@pytest.mark.parametrize(
    "function, wanted",
    [
        (lambda row: row["a"] * 2, pl.Series("", [2, 4, 6, 8])),
        (lambda row: row["a"] * 0.5, pl.Series("", [0.5, 1.0, 1.5, 2.0])),
        (lambda row: row["b"], pl.Series("", [4.0, 5.0, None, 0.5])),
        (lambda row: 1 if row["a"] < 4 else 2.5, pl.Series("", [1.0, 1.0, 1.0, 2.5])),
        (lambda row: None if row["a"] < 4 else "x", pl.Series("", [None, None, None, "x"])),
        (lambda row: row["l"], pl.Series("", [[1], [], None, [2]])),
        (lambda row: {"n": row["a"]}, pl.Series("", [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}])),
        (lambda row: row["a"] > 2, pl.Series("", [False, False, True, True])),
    ],
)
@pytest.mark.parametrize("how", ["auto", "partitions"])
def test_polars(function, wanted, how):
    found = applying.apply(Loopback(), POLARS, function, None, how, True, {})
    pl.testing.assert_series_equal(found, wanted)


def test_on_nodes(mesh, capfd):
    frame = pd.DataFrame({"a": np.arange(1000.0), "b": np.arange(1000.0)})
    assert same(mesh.apply(frame, SHOWN["a product"]), frame.apply(SHOWN["a product"], axis=1))
    assert "was called once, vectorised, for all 1000 rows" in capfd.readouterr().err
    frame = pd.DataFrame({"a": np.arange(1000), "s": [str(i) for i in range(1000)]})

    def grade(row):
        return "small" if row.a < 500 else row.s

    assert same(mesh.apply(frame, grade, 3), frame.apply(grade, axis=1))
    assert (
        "grade was called row by row in 3 partitions on the nodes: its code does more"
        in capfd.readouterr().err
    )
    with pytest.raises(ValueError, match="grade cannot be vectorised: its code does more than arithmetic"):
        mesh.apply(frame, grade, how="vectorised")
    result = mesh.apply(frame, lambda row: row.a * 2, how="partitions", quiet=True)
    assert same(result, frame.apply(lambda row: row.a * 2, axis=1))
    assert capfd.readouterr().err == ""
    series = pd.Series([1.0, 2.0, 3.0], name="x", index=["a", "b", "c"])
    assert same(mesh.apply(series, lambda x: x if x > 1 else 0, 3), series.apply(lambda x: x if x > 1 else 0))
    assert mesh.apply(POLARS["a"], lambda value: value if value > 1 else 0, quiet=True).to_list() == [
        0,
        2,
        3,
        4,
    ]
    with pytest.raises(TypeError, match="apply takes a pandas or Polars frame or series, not a list"):
        mesh.apply([1], len)


def test_the_first_row_that_raises_is_the_error(mesh):
    frame = pd.DataFrame({"a": range(8)})

    def fails(row):
        if row.a > 2:
            raise KeyError(int(row.a))
        return row.a

    with pytest.raises(KeyError) as caught:
        mesh.apply(frame, fails, 8, quiet=True)
    assert caught.value.args == (3,)
    notes = getattr(caught.value, "__notes__", None) or [str(caught.value.__cause__)]
    assert "in fails" in notes[0]
