"""Paths are paths: a file that exists under the name given is that file, patterns are patterns."""

import inspect
import json
import os
import subprocess
from pathlib import Path

import polars as pl
import pytest

import floe
from floe import _paths

from conftest import HERE

TABLE = json.loads((HERE.parents[2] / "node" / "query" / "tests" / "paths.json").read_text())

#: How py-polars scans each format, and writes it.
FORMATS = {
    "parquet": (pl.scan_parquet, pl.DataFrame.write_parquet),
    "csv": (pl.scan_csv, pl.DataFrame.write_csv),
    "ndjson": (pl.scan_ndjson, pl.DataFrame.write_ndjson),
    "arrow": (pl.scan_ipc, pl.DataFrame.write_ipc),
}


def named(path, ending="csv"):
    return path.removesuffix("X") + ending if path.endswith("X") else path


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """All files of the table as CSV, each with its number."""
    root = tmp_path_factory.mktemp("paths")
    for number, file in enumerate(TABLE["files"]):
        path = root / named(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"n\n{number}\n")
    return str(root)


def in_tree(tree, path):
    return f"{tree}/{named(path)}"


def really(paths):
    return [os.path.realpath(path) for path in paths]


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["path"])
def test_a_source_expands_as_the_nodes_do(tree, case):
    path = in_tree(tree, case["path"])
    if "error" in case:
        with pytest.raises(
            (ValueError, FileNotFoundError), match="is not a valid pattern|sees no file under"
        ):
            floe.source.files(path).read(0, 100)
    else:
        source = floe.source.files(path)
        assert really(source.read(0, 100)) == [in_tree(tree, file) for file in case["files"]]
        assert len(source) == len(case["files"])


def test_every_file_by_its_name(mesh, tree, monkeypatch):
    monkeypatch.chdir(tree)
    files = [in_tree(tree, file) for file in TABLE["files"]]
    for file in files:
        assert floe.source.files(file).read(0, 100) == [file]
    assert mesh.map_files(files, lambda path: path).collect() == files
    relative = ["./" + named(file) for file in TABLE["files"]]
    found = mesh.map_files(relative, lambda path: int(open(path).read().split()[1])).collect()
    assert found == list(range(len(files)))
    assert mesh.map_reduce(floe.source.files(files), list, lambda a, b: a + b, 3).collect() == sorted(
        files, key=str.encode
    )


def test_map_files_and_tables_expand_as_the_table_says(mesh, tree):
    cases = [case for case in TABLE["cases"] if "error" not in case]
    for case in cases:
        expected = [in_tree(tree, file) for file in case["files"]]
        found = mesh.map_files(in_tree(tree, case["path"]), lambda path: path).collect()
        assert really(found) == expected, case["path"]
    numbers = {file: number for number, file in enumerate(TABLE["files"])}
    query = " UNION ALL ".join(f"SELECT {i} AS i, n FROM t{i}" for i in range(len(cases)))
    tables = {f"t{i}": in_tree(tree, case["path"]) for i, case in enumerate(cases)}
    expected = [[i, numbers[file]] for i, case in enumerate(cases) for file in case["files"]]
    assert sorted(map(list, mesh.sql(query, tables).collect().rows())) == sorted(expected)
    for case in TABLE["cases"]:
        if "error" in case:
            with pytest.raises(floe.Error) as told:
                mesh.map_files(in_tree(tree, case["path"]), len)
            assert case["error"] in str(told.value), case["path"]


@pytest.mark.parametrize("ending", FORMATS)
def test_plans_of_py_polars(mesh, tmp_path, ending):
    scan, write = FORMATS[ending]
    for number, name in enumerate(["run [1]/part [1]", "run [1]/part 1", "run 1/part 1", "run 1/part [1]"]):
        path = tmp_path / f"{name}.{ending}"
        path.parent.mkdir(exist_ok=True)
        write(pl.DataFrame({"n": [number]}), path)

    def read(*paths, **options):
        given = [str(tmp_path / path) for path in paths]
        return mesh.collect(scan(given if len(given) > 1 else given[0], **options))["n"].to_list()

    part = f"run [1]/part [1].{ending}"
    assert read(part) == [0]
    if "glob" in inspect.signature(scan).parameters:
        assert read(part, glob=False) == [0]
        with pytest.raises(floe.Error, match=r"run \*"):
            read("run *", glob=False)
    assert read(f"run [1]/part 1.{ending}", part) == [1, 0]
    assert read("run [1]", "run 1") == [1, 0, 2, 3]
    assert read(f"run [1]/*.{ending}", part) == [1, 0, 0]
    assert read(f"run [0-9]/part*.{ending}") == [2, 3]
    # Beside a file that a pattern of its name would match, and without it.
    os.remove(tmp_path / f"run [1]/part 1.{ending}")
    assert read(part) == [0]


def test_partitions_of_a_directory(mesh, tmp_path):
    for year in (2023, 2024):
        for month in (1, 2):
            path = tmp_path / "by [year]" / f"year={year}" / f"month={month}" / "part [1].parquet"
            path.parent.mkdir(parents=True)
            pl.DataFrame({"n": [year * 100 + month]}).write_parquet(path)
    root = str(tmp_path / "by [year]")
    whole = mesh.collect(pl.scan_parquet(root)).sort("n")
    assert whole.columns == ["n", "year", "month"]
    assert (whole["year"] * 100 + whole["month"]).to_list() == whole["n"].to_list()
    assert mesh.collect(pl.scan_parquet(root, hive_partitioning=False)).columns == ["n"]
    some = pl.scan_parquet(f"{root}/year=2024/**/*.parquet", hive_partitioning=True)
    assert mesh.collect(some).sort("n").rows() == [(202401, 2024, 1), (202402, 2024, 2)]
    assert mesh.collect(pl.scan_parquet(f"{root}/**/*.parquet")).columns == ["n"]


def test_the_command_line(cluster, tree, tmp_path):
    connect = ["--connect", cluster.addresses[0], "--key-file", str(cluster.key_file)]

    def run(*arguments):
        done = subprocess.run(
            [cluster.binary, *arguments, *connect], capture_output=True, text=True, cwd=tree
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    name = "run [2024]/part [1].csv"
    number = str(TABLE["files"].index("run [2024]/part [1].X"))
    options = ["--program", "cat", "--out", str(tmp_path / "out")]
    run("map", *options, "--format", "csv", "--in", name)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["part [1].csv"]
    assert (tmp_path / "out" / "part [1].csv").read_text().split() == ["n", number]
    assert run("sql", f"SELECT n FROM '{name}'", "--format", "csv").split() == ["n", number]
    assert run("sql", "SELECT n FROM t", "--table", f"t={name}", "--format", "csv").split() == ["n", number]


def test_what_is_no_path_is_refused(mesh, tmp_path):
    name = os.fsdecode(b"bad\xff.csv")
    (tmp_path / name).write_text("n\n1\n")
    for call in (
        lambda path: mesh.map_files(path, len),
        lambda path: mesh.sql("SELECT n FROM t", {"t": path}),
        floe.source.files,
    ):
        with pytest.raises(ValueError, match="is not UTF-8, which Polars cannot read; rename it"):
            call(str(tmp_path / name))
        with pytest.raises(TypeError, match="a path is a str or a pathlib.Path, not bytes"):
            call(b"x.csv")
    for path in (tmp_path, tmp_path / "*.csv"):
        with pytest.raises(floe.Error, match="the name of this file is not UTF-8"):
            mesh.map_files(path, len)
        with pytest.raises(ValueError, match="is not UTF-8"):
            floe.source.files(path).read(0, 1)


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "again").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "**" / "*.csv"):
        with pytest.raises(ValueError, match="a link to a directory that it is in itself"):
            floe.source.files(path).read(0, 1)
    (tmp_path / "again").unlink()
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        floe.source.files(tmp_path / "*.csv").read(0, 1)


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("n\n1\n")
    assert floe.source.files("~/a.csv").read(0, 9) == [str(tmp_path / "a.csv")]
    assert _paths.text("~/a.csv") == f"{tmp_path}/a.csv"
    assert _paths.text(Path("./~a.csv")) == "~a.csv"
