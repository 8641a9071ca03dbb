"""Queries of py-polars and SQL."""

import os
import re
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import floe
from floe import query
from floe.job import _translated

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
    # Polars itself takes minutes for the schema of longer sums.
    count = 4_000 if shape in ("sum", "ors") else 12_000
    try:
        mesh.collect(DEEP[shape](count))
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


def test_large_frames_of_the_driver(mesh):
    frame = pl.DataFrame({"n": range(200_000)}).with_columns(key=pl.col("n") % 7)
    for plan in (
        frame.lazy().select("key", "n").filter(pl.col("n") > 9),
        frame.lazy().group_by("key").agg(pl.col("n").sum()).sort("key"),
        frame.lazy().sort("n", descending=True),
    ):
        assert mesh.collect(plan).equals(plan.collect())


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
        with pytest.raises(floe.VersionError, match=rf"{re.escape(version)}.*1\.40 to before 3\.0"):
            query.check_version(version)
    for version in ("1.40.0", "2.1.0", "2.1.5", "2.7.0"):
        query.check_version(version)


def test_the_types_of_a_result_are_those_of_the_drivers_polars(mesh):
    frame = pl.LazyFrame({"x": [1, 2, 2]})
    for plan in (
        frame.select(pl.len()),
        frame.sql("SELECT x, COUNT(*) AS n FROM self GROUP BY x ORDER BY x"),
    ):
        assert mesh.collect(plan).schema == plan.collect_schema()
        assert mesh.query(plan, kind="arrow").collect().num_rows == plan.collect().height
    # Nothing can be told here of a file that is nowhere, or that lies elsewhere.
    assert query.serialized(pl.scan_parquet("/nowhere.parquet")).schema == b""
    assert query.serialized(pl.scan_parquet("s3://no-bucket/x.parquet")).schema == b""
    assert query.serialized(frame.with_columns(pl.lit("s3://a/b"))).schema != b""
    narrow = pl.DataFrame(schema={"x": pl.Int8})
    wide = query.serialized(frame.select(pl.col("x") * 1000))
    sent = query.Plan(wide.dsl, query.serialized(narrow).schema)
    job = mesh._query_job(mesh._open().plan(sent.dsl, sent.schema, os.getcwd(), None), "polars", "narrow")
    with pytest.raises(floe.QueryError, match="2000"):
        job.collect()
    other = query.Plan(wide.dsl, query.serialized(pl.DataFrame(schema={"x": pl.Float64})).schema)
    with pytest.raises(floe.Error, match="the column x of the result has the type i64"):
        core = _translated(mesh._open().plan, other.dsl, other.schema, os.getcwd(), None)
        mesh._query_job(core, "polars", "floats").collect()


def tenfold(column):
    """Of a module that no node has."""
    return column * 10


def foreign_plans():
    frame = pl.LazyFrame({"x": [3, 1, None], "s": ["a", "b", "a"], "l": [[1, 2], [], None]})
    x, step = pl.col("x"), 2
    return {
        "map_elements": frame.select(x.map_elements(lambda x: x + step, return_dtype=pl.Int64)),
        "map_batches": frame.with_columns(x.map_batches(tenfold, return_dtype=pl.Int64).alias("y")),
        "pl.map_groups": frame.group_by("s", maintain_order=True).agg(
            pl.map_groups(["x"], lambda columns: columns[0].sum(), return_dtype=pl.Int64, returns_scalar=True)
        ),
        "rolling_map": frame.select(x.cast(pl.Float64).fill_null(0).rolling_map(lambda part: part.max(), 2)),
        "LazyFrame.map_batches": frame.map_batches(lambda df: df.reverse()),
        "map_groups": frame.group_by("s")
        .map_groups(lambda df: df.head(1), schema=frame.collect_schema())
        .sort("s"),
        "pl.fold": frame.select(pl.fold(pl.lit(1), lambda a, b: a + b, [x, x]).alias("x")),
        "pl.reduce": frame.select(pl.reduce(lambda a, b: a * b, [x, x]).alias("x")),
        "pl.defer": pl.defer(lambda: pl.DataFrame({"x": [step]}), schema={"x": pl.Int64}),
        "name.map": frame.select(x.name.map(lambda name: name + "!")),
        "a file": pl.scan_parquet(FLIGHTS)
        .select(pl.col("carrier").map_batches(lambda s: s.str.head(1)))
        .head(5),
    }


def changed_plans():
    """What the Polars of the nodes computes otherwise than that of the driver, or not at all."""
    frame = pl.LazyFrame(
        {"i": [1, 2], "f": [1.5, float("nan")], "d": [Decimal("-2.75"), Decimal("99.99")], "b": [None, True]},
        schema={"i": pl.Int64, "f": pl.Float64, "d": pl.Decimal(10, 2), "b": pl.Boolean},
    )
    other = pl.LazyFrame({"j": [2]})
    whole = pl.LazyFrame({"d": [-3, -2, 99, 100]}, schema={"d": pl.Int64})
    large = pl.LazyFrame({"i": [2**63 - 1], "u": [2**63]}, schema={"i": pl.Int64, "u": pl.UInt64})
    plans = {
        "decimal keys": whole.join(frame, left_on="d", right_on=pl.col("d").cast(pl.Int64)).sort("d"),
        "decimals in lists": frame.select(pl.col("d").implode().cast(pl.List(pl.Int64))),
        "decimals of lists": frame.select(pl.col("d").implode().list.eval(pl.element().cast(pl.Int64))),
        "decimals in structs": frame.select(pl.struct("d").cast(pl.Struct({"d": pl.Int64}))),
        "decimals of structs": frame.select(pl.struct("d").struct.with_fields(pl.field("d").cast(pl.Int64))),
        "large numbers between": large.select(pl.col("i").is_between("u", "u")),
        "large numbers twice": large.select((pl.col("i") >= pl.col("u")) & (pl.col("i") <= pl.col("u"))),
        "max_horizontal": frame.select(pl.max_horizontal("i", "f")),
        "decimal to integer": frame.select(pl.col("d").cast(pl.Int64)),
        "large numbers": pl.LazyFrame(
            {"i": [2**60, 2**60 + 1], "u": [2**60 + 1, 2**60 + 1]}, schema={"i": pl.Int64, "u": pl.UInt64}
        ).select(pl.col("i") == pl.col("u")),
        "remainder of decimals": frame.select(pl.col("d") % 2),
        "no columns": pl.LazyFrame().with_columns(x=1),
        "dropped columns": frame.select([]).with_columns(x=1),
        "hash": frame.select(pl.col("i").hash()),
        "categories": frame.select(pl.col("i").cast(pl.String).cast(pl.Categorical).hash()),
        "file names": pl.scan_parquet(f"file://{FLIGHTS}", include_file_paths="path").select("path").head(1),
        "sql": frame.sql("SELECT i, SUM(f) AS s FROM self GROUP BY ROLLUP(i) ORDER BY i, s"),
    }
    if pl.__version__ >= "2.1":
        plans["join_where"] = (
            frame.select("i").join_where(other, pl.col("i") >= pl.col("j"), how="left").sort("i")
        )
    return plans


@pytest.mark.parametrize("name", changed_plans())
def test_no_plan_has_other_values_than_the_drivers_polars_gives(mesh, name):
    plan = changed_plans()[name]
    polars.testing.assert_frame_equal(mesh.collect(plan), plan.collect())


def test_maps_stay_maps(mesh, tmp_path):
    maps = pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"m": maps, "x": [1, 2, 3]}), tmp_path / "maps.parquet")
    for plan in (pl.scan_parquet(tmp_path / "maps.parquet"), pl.from_arrow(pa.table({"m": maps})).lazy()):
        polars.testing.assert_frame_equal(mesh.collect(plan), plan.collect())
    assert mesh.collect(pl.scan_parquet(tmp_path / "maps.parquet").select("x"))["x"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("name", foreign_plans())
def test_what_only_the_drivers_polars_runs_runs_in_python(mesh, name):
    plan = foreign_plans()[name]
    polars.testing.assert_frame_equal(mesh.collect(plan), plan.collect())


def test_what_goes_wrong_in_a_plan_that_runs_in_python(mesh):
    frame = pl.LazyFrame({"x": [1, 2]})
    # Of several rows any may fail first.
    fails = frame.head(1).select(pl.col("x").map_elements(lambda x: {}[x], return_dtype=pl.Int64))
    with pytest.raises(Exception, match="1") as own:
        fails.collect()
    with pytest.raises(own.type, match="1"):
        mesh.collect(fails)
    with pytest.raises(floe.errors.Unpicklable, match="lock"):
        lock = threading.Lock()
        mesh.collect(frame.map_batches(lambda df: df if lock else df))
    job = mesh.query(frame.map_batches(lambda df: df), kind="pandas", label="mine")
    assert job.collect()["x"].tolist() == [1, 2] and job.status()["label"] == "mine"
    with pytest.raises(floe.TimeLimitExceeded):
        mesh.collect(frame.map_batches(lambda df: time.sleep(600) or df), timeout=0.5)
    # Joined partitions come from the nodes, which have no Python for them.
    with pytest.raises(floe.Refused, match="LazyFrame.map_batches is a Python function"):
        mesh.parallelize(frame.map_batches(lambda df: df), lambda part: part)


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
other = pl.LazyFrame({{"a": [1, 3], "t": [pl.Series(["b", "a"]), None]}})
for plan in (
    small.join(other, on="a", how="left", maintain_order="left"),
    small.join_where(other, pl.col("a") < pl.col("a_right")),
    small.sql("SELECT s, COUNT(*) AS n FROM self WHERE a IS NOT NULL GROUP BY s ORDER BY s"),
    other.select(pl.col("t").list.reverse(), pl.col("t").list.n_unique().alias("n")),
    small.select(pl.len(), pl.col("a").quantile(0.5)),
):
    here, there = plan.collect(), plan.floe.collect(mesh)
    assert there.equals(here) and there.schema == here.schema, (there, here)
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
