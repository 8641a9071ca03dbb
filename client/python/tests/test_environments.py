"""What functions need: requirements, Python versions, local modules, variables, limits."""

import os
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import floe
from floe import environment, ship


@pytest.fixture
def package(tmp_path, monkeypatch):
    directory = tmp_path / "secret_recipe"
    directory.mkdir()
    (directory / "__init__.py").write_text(
        "from secret_recipe.inner import twice\n\n\nclass Dish:\n    salt = 3\n"
    )
    (directory / "inner.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield directory
    for name in [name for name in sys.modules if name.startswith("secret_recipe")]:
        del sys.modules[name]


def test_modules(mesh, package):
    import secret_recipe

    def cook(x):
        import secret_recipe.inner

        return secret_recipe.inner.twice(x)

    assert floe.parallel(cook, modules=[secret_recipe])(4).value == 8
    assert floe.parallel(secret_recipe.twice, modules=["secret_recipe"])(4).value == 8
    assert mesh.parallelize(
        [1, 2], lambda part: [secret_recipe.twice(x) for x in part], 2, modules=[package]
    ).collect() == [2, 4]
    assert floe.parallel(secret_recipe.Dish, modules=[package])().value.salt == 3
    assert mesh[:].needing(modules=[package]).apply_sync(cook, 1) == [2, 2]
    with mesh.executor(modules=[package]) as executor:
        assert executor.submit(cook, 5).result() == 10
    with pytest.raises(ModuleNotFoundError) as caught:
        floe.parallel(cook)(4).value
    notes = getattr(caught.value, "__notes__", None) or [str(caught.value.__cause__)]
    assert "give it as modules=['secret_recipe']" in "\n".join(notes)


def test_a_changed_module_travels_again(mesh, package):
    def cook(x):
        import secret_recipe

        return secret_recipe.twice(x)

    assert floe.parallel(cook, modules=[package])(4).value == 8
    (package / "inner.py").write_text("def twice(x):\n    return 20 * x\n")
    os.utime(package / "inner.py", ns=(time.time_ns(), time.time_ns() + 10**9))
    assert mesh.map(cook, [4], modules=[package]).collect() == [80]


def test_variables(mesh):
    assert floe.parallel(lambda: os.environ["COLOUR"], env={"COLOUR": "red"})().value == "red"
    assert floe.parallel(lambda: os.environ.get("COLOUR"))().value is None
    assert mesh.parallelize([1], lambda part: [os.environ["COLOUR"]], env={"COLOUR": "blue"}).collect() == [
        "blue"
    ]

    @floe.requires(env={"COLOUR": "green"})
    def colour():
        return os.environ["COLOUR"]

    assert floe.parallel(colour)().value == "green"
    assert floe.parallel(colour, env={"COLOUR": "black"})().value == "black"
    with mesh.executor() as executor:
        assert executor.submit(colour).result() == "green"
    assert (
        floe.parallel(floe.function(lambda: os.environ["COLOUR"], env={"COLOUR": "grey"}))().value == "grey"
    )


def wheel(directory: Path, name: str, version: str) -> Path:
    """A distribution that no index has."""
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return path


def test_requirements(mesh, tmp_path):
    made = wheel(tmp_path, "floe_test_dish", "1.5")

    def version():
        import floe_test_dish

        return floe_test_dish.VERSION, sys.prefix

    needs = {"requirements": [f"floe_test_dish @ {made.as_uri()}"]}
    found, first = floe.parallel(version, **needs)().value
    assert found == "1.5" and first != sys.prefix
    # It is made once, and used again.
    assert mesh[:].needing(**needs).apply_sync(version) == [("1.5", first)] * 2
    job = mesh.parallelize(pd.DataFrame({"a": [1, 2]}), lambda part: part.assign(v=version()[0]), 2, **needs)
    assert job.collect()["v"].tolist() == ["1.5", "1.5"]


@pytest.mark.parametrize("way", ["call", "job"])
def test_a_requirement_that_does_not_exist(mesh, way):
    needs = {"requirements": ["floe-no-such-distribution==1.0"]}
    started = time.monotonic()
    with pytest.raises(floe.EnvironmentMismatch) as caught:
        if way == "call":
            floe.parallel(len, **needs)("x").value
        else:
            mesh.parallelize(list(range(20)), len, 20, merge=None, **needs).collect()
    # The installer's last word, once.
    assert "floe-no-such-distribution" in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert time.monotonic() - started < 60


def test_a_library_of_another_version(mesh, monkeypatch):
    monkeypatch.setattr(
        environment, "distribution_of", lambda top: ("pandas", "0.1.2") if top == "pandas" else None
    )
    with pytest.raises(floe.EnvironmentMismatch) as caught:
        mesh.parallelize(pd.DataFrame({"a": [1]}), lambda part: part).collect()
    assert "pandas 0.1.2" in str(caught.value) and pd.__version__ in str(caught.value)
    with pytest.raises(floe.EnvironmentMismatch, match="pandas 0.1.2"):
        floe.parallel(lambda: pd.DataFrame())().value


def test_another_python(mesh, monkeypatch):
    monkeypatch.setattr(environment, "python_version", lambda: "3.99")
    # A function that no earlier test has defined.
    for way in (
        lambda: floe.parallel(lambda x: -x)(1).value,
        lambda: mesh.parallelize([1], len, merge=None).collect(),
    ):
        with pytest.raises(floe.EnvironmentMismatch) as caught:
            way()
        assert "3.99" in str(caught.value) and f"3.{sys.version_info.minor}" in str(caught.value)


def test_plain_objects_need_nothing(mesh):
    function = ship.Pickled(lambda x: x, environment.Needs())
    assert environment.libraries(function.used, function.needs) == {}


@pytest.mark.parametrize("way", ["call", "job"])
def test_limits(mesh, way):
    def run(function, **needs):
        if way == "call":
            return floe.parallel(function, **needs)(0).result(120)
        return mesh.parallelize([0], function, merge=None, **needs).collect(120)

    def hang(_):
        time.sleep(600)

    def fill(_):
        data = []
        while True:
            data.append(bytearray(b"x" * (16 << 20)))

    with pytest.raises(floe.TimeLimitExceeded) as caught:
        run(hang, timeout=0.5)
    assert (
        caught.value.what == "time" and "hang" in str(caught.value) and isinstance(caught.value, TimeoutError)
    )
    with pytest.raises(floe.MemoryLimitExceeded) as caught:
        run(fill, memory="200MiB")
    assert caught.value.what == "memory" and isinstance(caught.value, MemoryError)
    assert run(lambda _: 1) in (1, [1])
