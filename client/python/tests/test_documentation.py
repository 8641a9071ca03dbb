"""What the documentation shows is true, and the examples print what they promise."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import floe

from conftest import DATA, HERE

MODULES = sorted(
    module.name
    for module in pkgutil.iter_modules(floe.__path__)
    if module.name not in ("_core", "joblib_backend")
)

#: What each example's last lines must show.
SHOWN = {
    "iris_area": "15.87",
    "flights_by_carrier": "UA",
    "pi_darts": "π is about 3.14",
    "integral": "∫₁¹⁰ eˣ dx = 22023.7476",
    "primes_futures": "45 primes are below 199",
    "word_count": "[('merrily', 4000), ('row', 3000)",
    "clean_csv": "12 files, 5400 of 6000 lines are good",
    "grid_search": "is right in 98.0% of the cases",
}


@pytest.mark.parametrize("name", MODULES)
def test_doctests(mesh, name):
    module = importlib.import_module(f"floe.{name}")
    names = {**vars(module), "floe": floe, "mesh": mesh, "flights": str(DATA / "flights.parquet")}
    failed, _ = doctest.testmod(module, globs=names, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_doctest_of_the_package(mesh):
    assert doctest.testmod(floe, extraglobs={"floe": floe, "mesh": mesh}).failed == 0


def run_blocks(readme, names):
    """Python in a README, run as one session."""
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        if "# not run here" not in block:
            exec(compile(block, readme.name, "exec"), names)


def test_readme(mesh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        Path(f"{i}.csv").write_text("a\n1\n")
    run_blocks(
        HERE.parent / "README.md", {"floe": floe, "mesh": mesh, "flights": str(DATA / "flights.parquet")}
    )


def test_readme_of_the_project(cluster, mesh, tmp_path, monkeypatch):
    import pandas as pd
    import polars as pl

    monkeypatch.chdir(tmp_path)
    # `floe.connect()` finds this mesh, and `FROM 'flights.parquet'` these flights.
    monkeypatch.setenv("FLOE_CONNECT", " ".join(cluster.addresses))
    monkeypatch.setenv("FLOE_KEY_FILE", str(cluster.key_file))
    Path("flights.parquet").symlink_to(DATA / "flights.parquet")
    names = {
        "iris": pd.DataFrame({"sepal_length": [5.1] * 20, "sepal_width": [3.5] * 20}),
        "words": ["floe", "mesh"],
        "is_prime": lambda n: all(n % d for d in range(2, n)),
        "lazyframe": pl.LazyFrame({"x": [1, 2, 3]}).select(pl.col("x").sum()),
        "chunk_sum": sum,
        "add": lambda a, b: a + b,
        "hostname": lambda: os.uname().nodename,
    }
    run_blocks(HERE.parents[2] / "README.md", names)
    assert all(future.done() for future in names["futures"])
    assert names["job"].collect()["area"].tolist() == [5.1 * 3.5] * 20
    names["mesh"].close()


def test_all_examples_are_known():
    assert {path.stem for path in (HERE.parent / "examples").glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_examples(cluster, mesh, name):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(floe.__file__).parents[1]),
        "FLOE_CONNECT": " ".join(cluster.addresses),
        "FLOE_KEY_FILE": str(cluster.key_file),
        "FLOE_EXAMPLE_FLIGHTS": str(DATA / "flights.parquet"),
    }
    done = subprocess.run(
        [sys.executable, HERE.parent / "examples" / f"{name}.py"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert SHOWN[name] in done.stdout
    # It is the mesh that the environment names; none was started.
    assert "a node was started" not in done.stderr


def test_public_names_are_documented():
    for name in floe.__all__:
        value = getattr(floe, name)
        assert value.__doc__, name
        if isinstance(value, type) and value.__module__.startswith("floe"):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (callable(member) or isinstance(member, property)):
                    assert member.__doc__ or any(
                        getattr(getattr(base, attribute, None), "__doc__", None) for base in value.__mro__[1:]
                    ), f"{name}.{attribute}"
