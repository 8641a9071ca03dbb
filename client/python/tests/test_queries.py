"""Queries of py-polars and SQL, and `mesh.apply`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import floe
from floe import query

from conftest import DATA

FLIGHTS = str(DATA / "flights.parquet")


def test_lazy_frames(mesh):
    plan = (
        pl.scan_parquet(FLIGHTS).group_by("carrier").agg(pl.len(), pl.col("distance").sum()).sort("carrier")
    )
    expected = plan.collect()
    assert mesh.collect(plan).equals(expected)
    assert plan.floe.collect().equals(expected)
    assert plan.floe.collect(mesh).equals(expected)
    assert plan.floe.submit().collect().equals(expected)
    job = mesh.query(plan, label="carriers")
    assert job.wait_interactive().collect().equals(expected) and job.progress.done > 0
    assert mesh.collect(pl.LazyFrame({"x": [3, 1]}).sort("x"))["x"].to_list() == [1, 3]
    assert mesh.collect(pl.DataFrame({"x": [1]})).item() == 1


def chained(first, step, count):
    for number in range(count):
        first = step(first, number)
    return first


ROWS = pl.LazyFrame({"x": [1, 2, 3]})

DEEP = {
    "columns": lambda n: chained(ROWS, lambda frame, _: frame.with_columns(x=pl.col("x") + 1), n),
    "filters": lambda n: chained(ROWS, lambda frame, i: frame.filter(pl.col("x") > -i), n),
    "unions": lambda n: chained(ROWS, lambda frame, _: pl.concat([frame, ROWS]), n // 5),
    "sum": lambda n: ROWS.select(chained(pl.col("x"), lambda e, _: e + 1, n // 2)),
    "calls": lambda n: ROWS.select(chained(pl.col("x"), lambda e, _: e.abs(), n // 2)),
    "ors": lambda n: ROWS.filter(chained(pl.col("x") == -1, lambda e, i: e | (pl.col("x") == i), n // 2)),
}


@pytest.mark.parametrize("shape", DEEP)
def test_deep_plans_are_answered_or_refused(mesh, shape):
    deep = DEEP[shape](1500)
    assert mesh.collect(deep).equals(deep.collect())
    try:
        mesh.collect(DEEP[shape](30_000))
    except floe.Error as error:
        assert "too deep" in str(error) or "too large" in str(error) or "of at most" in str(error)
    assert mesh.collect(ROWS).height == 3


def test_deep_statements_are_answered_or_refused(mesh, tmp_path):
    pl.DataFrame({"x": [1, 2, 5000]}).write_parquet(tmp_path / "t.parquet")

    def statement(count):
        ors = " OR ".join(f"x = {i}" for i in range(count))
        return f"SELECT x FROM '{tmp_path}/t.parquet' WHERE {ors}"

    assert mesh.sql(statement(1500)).collect()["x"].to_list() == [1, 2]
    with pytest.raises(floe.Error, match="too deep: more than"):
        mesh.sql(statement(20_000)).collect()
    assert mesh.sql("SELECT 1 AS x").collect().item() == 1


def test_relative_paths_are_the_drivers(mesh, monkeypatch):
    monkeypatch.chdir(DATA)
    assert mesh.collect(pl.scan_parquet("airlines.parquet")).height == 16
    assert mesh.sql("SELECT * FROM a", {"a": "airlines.parquet"}).collect().height == 16


def test_sql(mesh):
    result = mesh.sql(f"SELECT origin, COUNT(*) AS n FROM '{FLIGHTS}' GROUP BY origin ORDER BY n").collect()
    assert result.rows() == [("LGA", 104662), ("JFK", 111279), ("EWR", 120835)]
    table = mesh.sql("SELECT * FROM f LIMIT 3", {"f": FLIGHTS}, kind="arrow").collect()
    assert isinstance(table, pa.Table) and table.num_rows == 3
    frame = mesh.sql("SELECT dep_delay FROM f LIMIT 3", {"f": FLIGHTS}, kind="pandas").collect()
    assert isinstance(frame, pd.DataFrame) and len(frame) == 3
    assert mesh.sql("SELECT * FROM f WHERE dep_delay > 100000", {"f": FLIGHTS}).collect().height == 0


def test_wrong_queries(mesh):
    with pytest.raises(floe.QueryError):
        mesh.sql("SELECT nothing FROM f", {"f": FLIGHTS}).collect()
    with pytest.raises(floe.UnseenFile, match="/nowhere.parquet"):
        mesh.collect(pl.scan_parquet("/nowhere.parquet"))
    with pytest.raises(TypeError, match="LazyFrame is needed, not an int"):
        mesh.collect(3)
    with pytest.raises(ValueError):
        mesh.sql("SELECT 1", kind="excel")


def test_polars_versions_outside_the_tested_range():
    for version in ("1.39.3", "0.20.1", "3.0.0", "what"):
        with pytest.raises(floe.VersionError, match=rf"{re.escape(version)}.*1\.40 to before 2\.2"):
            query.check_version(version)
    for version in ("1.40.0", "2.1.0", "2.1.5"):
        query.check_version(version)


#: Of each minor version that is accepted the last one, and the first of all.
VERSIONS = ["1.40.0", "1.41.2", "1.42.1", "1.43.2", "1.44.2", "2.0.0", "2.1.0"]

SCRIPT = f"""
import sys
import polars as pl, floe
assert pl.__version__ == sys.argv[1], pl.__version__
mesh = floe.connect(sys.argv[2].split(), key_file=sys.argv[3])
plan = (
    pl.scan_parquet({FLIGHTS!r})
    .filter(pl.col("dep_delay").is_not_null() & pl.col("carrier").str.starts_with("U"))
    .with_columns(hour=pl.col("time_hour").dt.hour())
    .with_columns(late=pl.when(pl.col("arr_delay") > 15).then(1).otherwise(0))
    .group_by("carrier", "hour")
    .agg(pl.len(), pl.col("late").sum(), pl.col("distance").mean().alias("mean"))
    .sort("carrier", "hour")
)
here, there = plan.collect(), plan.floe.collect(mesh)
assert there.equals(here), (there, here)
small = pl.LazyFrame({{"a": [1, None, 3], "s": ["x", "y", None]}}).unique("a").sort("a", nulls_last=True)
assert mesh.collect(small).equals(small.collect())
print("same")
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_plans_of_other_versions(cluster, mesh, version, tmp_path_factory):
    """A driver with another py-polars, in a directory of its own."""
    in_environment = sys.prefix != sys.base_prefix
    cache = (
        (Path(sys.prefix) if in_environment else tmp_path_factory.getbasetemp()) / "polars-versions" / version
    )
    if not (cache / "polars").exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            str(cache),
        ]
        done = subprocess.run([*pip, f"polars=={version}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"polars {version} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(cache), str(Path(floe.__file__).parents[1])]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, version, " ".join(cluster.addresses), str(cluster.key_file)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == "same\n", done.stderr


def test_apply_vectorised(mesh, capfd):
    frame = pd.DataFrame({"a": np.arange(1000.0), "b": np.arange(1000.0)})
    result = mesh.apply(frame, lambda row: row.a * row.b + 1)
    pd.testing.assert_series_equal(result, frame.apply(lambda row: row.a * row.b + 1, axis=1))
    assert "was called once, vectorised, for all 1000 rows" in capfd.readouterr().err


def test_apply_in_partitions(mesh, capfd):
    frame = pd.DataFrame({"a": np.arange(1000), "s": [str(i) for i in range(1000)]})

    def grade(row):
        return "small" if row.a < 500 else row.s

    pd.testing.assert_series_equal(mesh.apply(frame, grade, 3), frame.apply(grade, axis=1))
    assert re.search(
        "grade was called row by row in 3 partitions on the nodes: .*ValueError", capfd.readouterr().err
    )
    # It can be called with all rows, but does something else then.
    pd.testing.assert_series_equal(
        mesh.apply(frame, lambda row: len(row.s)), frame.apply(lambda row: len(row.s), axis=1)
    )
    assert "something else" in capfd.readouterr().err
    with pytest.raises(
        ValueError, match="grade cannot be vectorised: with all rows at once it raises ValueError"
    ):
        mesh.apply(frame, grade, how="vectorised")
    result = mesh.apply(frame, lambda row: row.a * 2, how="partitions", quiet=True)
    pd.testing.assert_series_equal(result, frame.apply(lambda row: row.a * 2, axis=1))
    assert capfd.readouterr().err == ""


def test_apply_to_series_and_polars(mesh):
    series = pd.Series([1.0, 2.0, 3.0], name="x", index=["a", "b", "c"])
    for function in (lambda x: x * 2, lambda x: x if x > 1 else 0.0):
        pd.testing.assert_series_equal(mesh.apply(series, function, quiet=True), series.apply(function))
    frame = pl.DataFrame({"a": [1, 2, 3], "b": [4, 5, None]})
    assert mesh.apply(frame, lambda row: row["a"] * 2, quiet=True).to_list() == [2, 4, 6]
    assert mesh.apply(frame, lambda row: row["a"] if row["b"] else None, quiet=True).to_list() == [1, 2, None]
    assert mesh.apply(frame["a"], lambda value: value if value > 1 else 0, quiet=True).to_list() == [0, 2, 3]
    empty = pd.DataFrame({"a": [1.0]}).iloc[:0]
    pd.testing.assert_frame_equal(mesh.apply(empty, lambda row: row), empty.apply(lambda row: row, axis=1))
    with pytest.raises(TypeError, match="apply takes a pandas or Polars frame or series, not a list"):
        mesh.apply([1], len)
    with pytest.raises(ZeroDivisionError):
        mesh.apply(series, lambda x: 1 // 0)
