"""What is sent, and what cannot be, without any node."""

import ast
import functools
import inspect
import os
import pickle
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import floe
from floe import environment, pickling, ship
from floe.environment import Needs

LOCK = threading.Lock()


def uses_lock():
    return LOCK


def refused(value, what="the argument"):
    with pytest.raises(floe.Unpicklable) as caught:
        pickling.dumps_function(value, what) if callable(value) else pickling.dumps(value, what)
    return str(caught.value)


def test_the_culprit_is_named():
    handle = open(__file__, "rb")
    held = {"log": [1, handle]}
    assert "the variable 'LOCK' (a _thread.lock) cannot be pickled" in refused(uses_lock)
    assert "the variable 'held', its item 'log', its item 1 (an _io.BufferedReader)" in refused(lambda: held)
    assert "the default value 0 (a _thread.lock)" in refused(lambda lock=LOCK: lock)
    assert "the item 2 (a _thread.lock)" in refused([1, 2, LOCK])
    assert refused(LOCK, "the object").startswith("cannot send the object: a _thread.lock cannot be pickled")
    assert "the argument 0 (a _thread.lock)" in refused(functools.partial(print, LOCK))
    handle.close()


def test_attributes_are_named():
    class Holder:
        def __init__(self):
            self.guard = LOCK

        def method(self):
            pass

    assert "its attribute 'guard' (a _thread.lock)" in refused(Holder().method)
    assert "the attribute 'guard' (a _thread.lock)" in refused(Holder())


def test_what_functions_use():
    def function(frame):
        import json.decoder

        import sklearn.linear_model as models

        return np.sum(frame), models, json.decoder

    _, used = pickling.dumps_function(function)
    assert {"numpy", "sklearn.linear_model", "json.decoder"} <= used
    libraries = environment.libraries(used, Needs())
    assert set(libraries) == {"numpy", "scikit-learn"}
    assert libraries["numpy"] == np.__version__
    pinned = Needs.of({"requirements": ["NumPy == 1.26", "scikit_learn>=1"]})
    assert set(environment.libraries(used, pinned)) == {"scikit-learn"}
    # What is merely named is not used.
    assert pickling.dumps_function(lambda: "pandas")[1].isdisjoint({"pandas"})
    assert "pandas" in {name.partition(".")[0] for name in pickling.dumps_function(lambda: pd.DataFrame)[1]}


def test_require_counts_as_use():
    @floe.require("sklearn.svm", np="numpy")
    def function():
        return np, sklearn  # noqa: F821

    assert {"sklearn.svm", "numpy"} <= pickling.dumps_function(function)[1]


def test_archives_are_always_the_same():
    first, second = ship.package_archive(), ship.package_archive()
    assert first == second
    import io
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(first)).namelist()
    assert "floe/_remote.py" in names and "cloudpickle/cloudpickle.py" in names
    assert not [name for name in names if "_core" in name or name.startswith("floe/bin") or "pycache" in name]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own."""
    directory = tmp_path / "local_package"
    directory.mkdir()
    (directory / "__init__.py").write_text("from .inner import twice\n")
    (directory / "inner.py").write_text("def twice(x):\n    return 2 * x\n")
    (directory / "table.txt").write_text("7")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield directory
    for name in [name for name in sys.modules if name.startswith("local_package")]:
        del sys.modules[name]


def test_modules_by_name_path_and_object(package):
    import io
    import zipfile

    import local_package

    expected = ["local_package/__init__.py", "local_package/inner.py", "local_package/table.txt"]
    for module in (local_package, "local_package", package, str(package), local_package.inner):
        path = ship._module_path(module)
        assert zipfile.ZipFile(io.BytesIO(ship.module_archive(path))).namelist() == expected
        assert ship._module_name(module) == "local_package"
    assert environment.is_local("local_package") and not environment.is_local("numpy")


def test_native_modules_are_refused(package):
    (package / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    with pytest.raises(floe.Error, match="local_package cannot be sent: .*fast.* is native code"):
        ship.module_archive(package)


def test_needs_are_checked():
    assert Needs.of({"memory": "2GiB"}).memory == 2 << 30
    assert Needs.of({"memory": "1.5 MB"}).memory == 1_500_000
    assert Needs.of({"env": {"B": 2, "A": "1"}}).env == (("A", "1"), ("B", "2"))
    for wrong, error in [
        ({"requirements": "nltk"}, TypeError),
        ({"python": "3.12.1"}, ValueError),
        ({"python": "2.7"}, ValueError),
        ({"memory": "much"}, ValueError),
        ({"memory": 0}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"colour": "red"}, TypeError),
    ]:
        with pytest.raises(error):
            Needs.of(wrong)


def test_needs_of_the_call_win():
    @floe.requires(requirements=["a==1"], timeout=3)
    def function():
        pass

    pickled = ship.Pickled(function, Needs.of({"timeout": 5}))
    assert pickled.needs.requirements == ("a==1",) and pickled.needs.timeout == 5
    # They are not part of what travels.
    assert b"a==1" not in pickled.code


def test_code_does_not_move_between_versions():
    with pytest.raises(
        floe.EnvironmentMismatch, match=r"asks for Python 3\.\d+, but it was compiled by Python 3"
    ):
        ship.Pickled(lambda: 1, Needs.of({"python": "3.99"}))
    # What is importable is not compiled here.
    assert ship.Pickled(textwrap.dedent, Needs.of({"python": "3.99"})).needs.python == "3.99"


def test_errors_can_be_pickled():
    for name in floe.errors.__all__:
        cls = getattr(floe.errors, name)
        error = pickle.loads(pickle.dumps(cls("a sentence")))
        assert type(error) is cls and str(error) == "a sentence"


def test_the_package_works_without_its_native_part(tmp_path):
    """As on the nodes: from an archive, with nothing else installed."""
    import subprocess

    archive = tmp_path / "floe.zip"
    archive.write_bytes(ship.package_archive())
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import floe, floe._remote
assert floe.__file__.startswith(sys.argv[1])
assert list(floe.source.range(5).read(1, 2)) == [1, 2]
try:
    floe.connect()
except ImportError as error:
    print(error)
assert not {"numpy", "pandas", "polars", "pyarrow", "joblib"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, str(archive)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the native part of floe is not installed here")


def test_importing_is_cheap():
    import subprocess

    large = {"numpy", "pandas", "polars", "pyarrow", "joblib", "asyncio"}
    script = f"import sys, floe; print(sorted({large!r} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(floe.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_native_part_is_what_its_stub_says():
    """Every public name of the one is in the other, and every class has the same members."""
    from floe import _core

    package = Path(floe.__file__).parent
    assert (package / "py.typed").exists()
    said = {}
    for node in ast.parse((package / "_core.pyi").read_text()).body:
        if isinstance(node, ast.ClassDef):
            said[node.name] = {getattr(member, "name", "__doc__") for member in node.body}
        elif isinstance(node, ast.AnnAssign):
            said[node.target.id] = set()
    there = {name for name in vars(_core) if not name.startswith("_")} | {"__version__"}
    # What hands out a job's partitions is never named.
    assert there <= set(said) and set(said) - there <= {"Buffer"}
    for name, members in said.items():
        if name in there and isinstance(value := getattr(_core, name), type) and name != "CoreError":
            public = {member for member in vars(value) if not member.startswith("_")}
            assert {member for member in members if not member.startswith("_")} == public, name


def test_public_names_are_typed():
    """What a user can call says what it takes and returns."""
    untyped = []
    for name in floe.__all__:
        value = getattr(floe, name)
        members = vars(value).items() if isinstance(value, type) else [(name, value)]
        for member, function in members:
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and not member.startswith("_"):
                arguments = list(inspect.signature(function).parameters)
                named = set(arguments) - {"self", "cls"} | {"return"}
                if missing := named - set(function.__annotations__):
                    untyped.append(f"{name}.{member}: {sorted(missing)}")
    assert not untyped
