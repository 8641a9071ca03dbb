"""Functions over partitions, on real nodes."""

import array
import collections
import collections.abc
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import floe

import loopback
from conftest import DATA, wait_until


def parts_of(frame, n):
    return [frame.iloc[start:end] for start, end in floe.data.bounds(len(frame), n, 0)]


def flights():
    return pd.read_parquet(DATA / "flights.parquet").head(5000)


FUNCTIONS = {
    "the same": lambda part: part,
    "a new column": lambda part: part.assign(speed=part["distance"] / part["air_time"]),
    "fewer rows": lambda part: part[part["dep_delay"] > 30],
    "other columns": lambda part: part.groupby("carrier")[["distance"]].sum(),
    "a series": lambda part: part["distance"] * 2,
    "another index": lambda part: part.set_index(["carrier", "flight"]),
    "categories": lambda part: part.assign(carrier=part["carrier"].astype("category")),
    "types that differ": lambda part: part.assign(x=1 if part.index[0] == 0 else 0.5),
    "no rows": lambda part: part.iloc[:0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pandas_as_locally(mesh, name):
    frame, function = flights(), FUNCTIONS[name]
    expected = pd.concat([function(part) for part in parts_of(frame, 7)])
    result = mesh.parallelize(frame, function, 7).collect()
    assert type(result) is type(expected)
    (pd.testing.assert_frame_equal if result.ndim == 2 else pd.testing.assert_series_equal)(result, expected)
    assert type(result.index) is type(expected.index)


def test_frames_that_arrow_has_no_room_for(mesh):
    frame = pd.DataFrame({"o": [{1}, "a", None, 2.5]}, index=pd.date_range("2020", periods=4))
    result = mesh.parallelize(frame, lambda part: part, 2).collect()
    pd.testing.assert_frame_equal(result, pd.concat(parts_of(frame, 2)))


def test_functions_may_write_to_their_part(mesh):
    def write(part):
        part = part.copy()
        part.loc[part.index[0], "a"] = 100
        part["b"].to_numpy(copy=True)[0] = 1
        return part

    frame = pd.DataFrame({"a": range(4), "b": np.arange(4.0)})
    assert mesh.parallelize(frame, write, 2).collect()["a"].tolist() == [100, 1, 100, 3]


def test_polars(mesh):
    frame = pl.DataFrame({"a": range(100), "s": [str(i % 3) for i in range(100)]}).with_columns(
        c=pl.col("s").cast(pl.Categorical), d=pl.lit(None, pl.List(pl.Int8))
    )
    result = mesh.parallelize(frame, lambda part: part.with_columns(b=pl.col("a") * 2), 9).collect()
    assert result.equals(frame.with_columns(b=pl.col("a") * 2)) and result.schema == {
        **frame.schema,
        "b": pl.Int64,
    }
    assert mesh.parallelize(frame, lambda part: part["a"], 3).collect().equals(frame["a"])
    assert (
        mesh.parallelize(frame, lambda part: part.lazy().select("a"), 3).collect().equals(frame.select("a"))
    )


def test_arrow(mesh):
    table = pa.table({"a": range(10), "s": list("abcdefghij")})
    result = mesh.parallelize(table, lambda part: part.append_column("b", part["a"]), 3).collect()
    assert isinstance(result, pa.Table) and result.equals(table.append_column("b", table["a"]))


def test_lazy_frames(mesh):
    plan = (
        pl.scan_parquet(DATA / "flights.parquet")
        .filter(pl.col("carrier") == "UA")
        .select("carrier", "distance")
    )
    result = mesh.parallelize(plan, lambda part: part.with_columns(km=pl.col("distance") * 1.609)).collect()
    expected = plan.collect().with_columns(km=pl.col("distance") * 1.609)
    assert result.sort("distance").equals(expected.sort("distance"))


def test_arrays(mesh):
    array = np.arange(24.0).reshape(12, 2)
    np.testing.assert_array_equal(
        mesh.parallelize(array, lambda part: part.T @ part, 3, merge=sum).collect(), array.T @ array
    )
    result = mesh.parallelize(array, lambda part: part + 1, 5).collect()
    np.testing.assert_array_equal(result, array + 1)
    assert result.dtype == array.dtype


def test_sequences(mesh):
    assert (
        mesh.parallelize([1, "a", None, {2}], lambda part: part * 2, 2).collect()
        == [1, "a"] * 2 + [None, {2}] * 2
    )
    assert mesh.parallelize(range(10), lambda part: tuple(part), 3).collect() == tuple(range(10))
    assert mesh.parallelize(list(range(10)), sum, 4, merge=None).collect() == [3, 12, 13, 17]


def test_apply_as_keyword(mesh):
    assert mesh.parallelize([1, 2], apply=len, merge=None).collect() == [1, 1]


def test_raw_partitions(mesh):
    frame = pd.DataFrame({"a": range(5)})
    parts = mesh.parallelize(frame, lambda part: part * 2, 2, merge=None).collect()
    for part, expected in zip(parts, parts_of(frame * 2, 2), strict=True):
        pd.testing.assert_frame_equal(part, expected)
    assert mesh.parallelize(frame, lambda part: None, 2, merge=None).collect() == [None, None]
    job = mesh.parallelize(frame, lambda part: len(part), 2, merge=None)
    assert list(job.partitions()) == [3, 2]


def test_partitions_come_while_others_are_made(mesh, tmp_path):
    path = tmp_path / "go"

    def slow_last(part):
        import os
        import time

        while part["a"].iloc[0] and not os.path.exists(path):
            time.sleep(0.01)
        return part

    frame = pd.DataFrame({"a": range(2)})
    job = mesh.parallelize(frame, slow_last, 2)
    partitions = job.partitions()
    assert next(partitions)["a"].tolist() == [0]
    assert not job.completed
    path.touch()
    assert next(partitions)["a"].tolist() == [1] and next(partitions, None) is None
    pd.testing.assert_frame_equal(job.collect(), frame)


def test_partitions_end_with_what_went_wrong(mesh):
    def fails(part):
        if part == [1]:
            raise ZeroDivisionError("the second one")
        return part

    partitions = mesh.parallelize([0, 1], fails, 2).partitions()
    with pytest.raises(ZeroDivisionError, match="the second one"):
        list(partitions)


def test_merging_is_a_tree(mesh):
    calls = mesh.parallelize(
        list("abcdefghi"), lambda part: part[0], 9, merge=lambda parts: f"({' '.join(parts)})", fan_in=3
    )
    assert calls.collect() == "((a b c) (d e f) (g h i))"
    largest = mesh.parallelize(
        pd.DataFrame({"a": range(100)}),
        lambda part: part.nlargest(2, "a"),
        10,
        merge=lambda parts: pd.concat(parts).nlargest(2, "a"),
    )
    assert largest.collect()["a"].tolist() == [99, 98]


def test_more_partitions_than_rows(mesh):
    with pytest.warns(floe.PartitionWarning, match="2 partitions instead of 10"):
        job = mesh.parallelize(pd.DataFrame({"a": [1, 2]}), lambda part: part, 10)
    assert job.collect()["a"].tolist() == [1, 2]
    assert job.progress.total == 2


def test_empty_frames(mesh):
    frame = pd.DataFrame({"a": [1]}).iloc[:0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = mesh.parallelize(frame, lambda part: part.assign(b=part["a"] * 2)).collect()
    pd.testing.assert_frame_equal(result, frame.assign(b=frame["a"] * 2))


def test_jobs_can_be_watched_and_found_again(mesh):
    job = mesh.parallelize(pd.DataFrame({"a": range(4)}), lambda part: part, 4, label="watched")
    assert job.wait(60) and job.completed and job.successful and job.failure is None
    assert job.progress.done == job.progress.total == 4 and float(job.progress) == 1
    assert str(job.progress) == "4 of 4 tasks done (100%)"
    found = mesh.job(job.id)
    pd.testing.assert_frame_equal(found.collect(), pd.DataFrame({"a": range(4)}))
    assert ("watched", "succeeded") in [(status["label"], status["phase"]) for status in mesh.jobs()]
    job.release()


def test_what_functions_print_is_kept(mesh):
    def talk(part):
        print("part", part[0])
        return part

    job = mesh.parallelize(list(range(4)), talk, 4)
    assert job.collect() == [0, 1, 2, 3]
    assert sorted(line.text for line in job.logs()) == ["part 0", "part 1", "part 2", "part 3"]
    (line,) = job.logs(2)
    assert (line.text, line.task) == ("part 2", 2) and line.node in ("n0", "n1")


def test_logs_can_be_followed(mesh, tmp_path):
    def talk(part):
        import pathlib
        import time

        print("begun", flush=True)
        while not pathlib.Path(gate).exists():
            time.sleep(0.01)
        print("done")
        return part

    gate = str(tmp_path / "gate")
    job = mesh.parallelize([1], talk, 1)
    lines = job.logs(follow=True)
    assert next(lines).text == "begun"
    (tmp_path / "gate").touch()
    assert [line.text for line in lines] == ["done"]


def test_cancelling(mesh):
    def wait(part):
        import time

        time.sleep(600)

    job = mesh.parallelize([1, 2], wait, 2)
    job.cancel()
    with pytest.raises(floe.Cancelled):
        job.collect()
    assert job.phase == "cancelled" and isinstance(job.failure, floe.Cancelled)


def test_waiting_has_an_end(mesh):
    def wait(part):
        import time

        time.sleep(600)

    job = mesh.parallelize([1], wait, 1)
    assert not job.wait(0.2)
    with pytest.raises(TimeoutError):
        job.collect(timeout=0.2)
    assert not floe.wait_all([job], timeout=0.1)
    job.cancel()
    assert floe.wait_all([job], timeout=30)


def test_files(mesh, tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(str(i * i))
    assert mesh.map_files(tmp_path / "*.txt", lambda path: int(open(path).read())).collect() == [
        0,
        1,
        4,
        9,
        16,
    ]
    assert (
        mesh.map_files([tmp_path / "*.txt"], lambda path: int(open(path).read()), merge=sum).collect() == 30
    )
    with pytest.raises(floe.UnseenFile):
        mesh.map_files(tmp_path / "*.csv", len).collect()


def test_large_partitions(mesh):
    frame = pd.DataFrame({"a": np.arange(2_000_000), "b": np.random.default_rng(0).random(2_000_000)})
    result = mesh.parallelize(frame, lambda part: part.assign(c=part["a"] + part["b"]), 10).collect()
    pd.testing.assert_frame_equal(result, frame.assign(c=frame["a"] + frame["b"]))


def test_progress_while_running(mesh, tmp_path):
    def wait(part):
        import pathlib
        import time

        while part[0] and not pathlib.Path(gate).exists():
            time.sleep(0.01)
        return part

    gate = str(tmp_path / "gate")
    job = mesh.parallelize([0, 1], wait, 2)
    wait_until("one task of two", lambda: job.progress.done == 1)
    assert float(job.progress) == 0.5 and not job.completed
    (tmp_path / "gate").touch()
    assert job.wait_interactive().collect() == [0, 1]


class Numbers(collections.abc.Sequence):
    """A sequence that gives its items and nothing but them."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, position):
        if not isinstance(position, int):
            raise KeyError(position)
        return self.numbers[position]


#: Things that are no frames.
KINDS = {
    "a deque": collections.deque([1, "a", None], maxlen=5),
    "an array of Python's": array.array("d", [1.0, 2.0, 3.0]),
    "bytes that change": bytearray(b"abc"),
    "an Arrow array": pa.array([1, None, 3]),
    "an Arrow array of texts": pa.array(["a", None, "ccc"])[1:],
    "an Arrow array of categories": pa.array(["a", "b", "a"]).dictionary_encode(),
    "an Arrow array in chunks": pa.chunked_array([[1, 2], [3], []]),
    "nested Arrow": pa.array([{"a": [1, 2]}, None, {"a": []}]),
    "an index": pd.Index(["a", "b", "c"], name="letters"),
    "a range": pd.RangeIndex(2, 20, 3),
    "times": pd.date_range("2020", periods=5, tz="Europe/Berlin"),
    "several indexes": pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["n", None]),
    "categories": pd.Categorical(["a", None, "b"], categories=["b", "a", "c"], ordered=True),
    "an array of pandas": pd.array([1, None, 3], dtype="Int64"),
    "texts of pandas": pd.array(["a", None, "b"], dtype="string"),
    "a period": pd.period_range("2020", periods=3, freq="M").array,
}


def same(one, other):
    if isinstance(one, pd.Index):
        pd.testing.assert_index_equal(one, other)
    elif isinstance(one, pd.api.extensions.ExtensionArray):
        pd.testing.assert_extension_array_equal(one, other)
    else:
        assert one == other and type(one) is type(other)


def test_what_is_no_frame_comes_back_as_its_kind(mesh):
    jobs = [mesh.parallelize(value, lambda part: part, 2) for value in KINDS.values()]
    for value, job in zip(KINDS.values(), jobs, strict=True):
        same(job.collect(60), value)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_in_any_number_of_partitions(name):
    mesh, value = loopback.Loopback(), KINDS[name]
    for n in range(1, len(value) + 1):
        same(mesh.parallelize(value, lambda part: part, n).collect(), value)
    empty = collections.deque() if name == "a deque" else value[:0]
    same(mesh.parallelize(empty, lambda part: part).collect(), empty)
    # Each function gets a partition of the kind; what it makes of that is its own.
    kinds = mesh.parallelize(value, lambda part: [type(part), len(part)], 2, merge=None).collect()
    assert all(kind is type(value) for kind, _ in kinds) and sum(size for _, size in kinds) == len(value)
    assert repr(mesh.parallelize(value, list, 2).collect()) == repr(list(value))


def test_sequences_that_cannot_be_sliced():
    numbers = Numbers([1, 2, 3])
    assert loopback.Loopback().parallelize(numbers, lambda part: part, 2).collect() == [1, 2, 3]


def test_parts_of_an_arrow_array_travel_without_the_rest():
    for value in (pa.array(np.arange(100_000)), pa.chunked_array([np.arange(100_000)])):
        parts = floe.data.Partitioned(value, 100, 1)
        sizes = [len(part[1]) for part in parts.encoded()]
        assert len(sizes) == 100 and max(sizes) < 10_000


def test_what_does_not_go_together():
    for value, function, expected in [
        (pa.array([0, 1]), lambda part: part.cast("int8") if part[0].as_py() else part, "of int64 from"),
        (array.array("i", [0, 1]), lambda part: array.array("d", part) if part[0] else part, "of i from"),
        (pd.array([0, 1]), lambda part: part.astype("Int8") if part[0] else part, "of Int64 from"),
        (collections.deque([0, 1]), lambda part: list(part) if part[0] else part, "a collections.deque from"),
        (pd.Index([0, 1]), lambda part: list(part) if part[0] else part, "pandas.*Index from partition 0"),
    ]:
        with pytest.raises(floe.SchemaMismatch, match=expected):
            loopback.Loopback().parallelize(value, function, 2).collect()


def test_what_has_no_parts(mesh):
    for value in (np.array(3), iter([1]), {1, 2}, {"a": 1}, memoryview(b"ab"), "ab", None):
        with pytest.raises(TypeError, match="a length, which this numpy.ndarray has not|, not an? "):
            mesh.parallelize(value, len)


def test_many_results_wait_for_their_driver(mesh, tmp_path):
    ran = tmp_path / "ran"

    def note(part, ran=ran):
        with open(ran, "a") as file:
            file.write(f"{part['i'].iloc[0]}\n")
        return part

    # More than a mesh used to keep, and more than it lists.
    numbers = range(300)
    jobs = [mesh.parallelize(pd.DataFrame({"i": [i]}), note, 1) for i in numbers]
    wait_until("all have run", lambda: ran.exists() and len(ran.read_text().split()) >= len(numbers))
    assert [job.collect()["i"].iloc[0] for job in jobs] == list(numbers)
    assert sorted(map(int, ran.read_text().split())) == list(numbers), "each ran once"


def test_a_result_that_was_given_away_says_so(mesh):
    job = mesh.parallelize(pd.DataFrame({"i": [1]}), lambda part: part, 1)
    job.wait()
    job.release()
    with pytest.raises(floe.ResultFreed, match="its result was released at 20"):
        job.collect()
