"""What users do wrong: each has its sentence and its type, and the mesh goes on."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

import floe

from conftest import wait_until

FRAME = pd.DataFrame({"a": range(4)})


@pytest.fixture(autouse=True)
def the_mesh_goes_on(mesh):
    yield
    assert floe.parallel(abs)(-1).result(60) == 1


def test_no_frame(mesh):
    def mean(part):
        return part["a"].mean()

    with pytest.raises(
        floe.NotAFrame,
        match=r"mean returned .*[02]\.5.* \(a numpy\.float64\), where a pandas DataFrame or Series is needed",
    ):
        mesh.parallelize(FRAME, mean, 2).collect()
    with pytest.raises(floe.NotAFrame, match="<lambda> returned None, where a Polars DataFrame"):
        mesh.parallelize(pl.DataFrame({"a": [1]}), lambda part: None).collect()
    with pytest.raises(TypeError, match="where a list, a tuple, an array or a frame is needed"):
        mesh.parallelize([1, 2], sum, 2).collect()
    assert mesh.parallelize(FRAME, mean, 2, merge=None).collect() == [0.5, 2.5]


def test_schemas_that_differ(mesh):
    def odd(part):
        return part.with_columns(b=pl.lit(1)) if part["a"][0] else part

    with pytest.raises(floe.SchemaMismatch, match=r"partition 1 from partition 0: 'b' \(Int32\) is added"):
        mesh.parallelize(pl.DataFrame({"a": [0, 1]}), odd, 2).collect()
    job = mesh.parallelize(
        pl.DataFrame({"a": [0, 1]}), odd, 2, merge=lambda parts: pl.concat(parts, how="diagonal")
    )
    assert job.collect()["b"].to_list() == [None, 1]


def test_what_cannot_be_sent(mesh):
    lock = threading.Lock()
    with pytest.raises(floe.Unpicklable, match="cannot send the function <lambda>: the variable 'lock'"):
        floe.parallel(lambda: lock)()
    with pytest.raises(floe.Unpicklable, match="cannot send the function <lambda>: the variable 'lock'"):
        mesh.parallelize(FRAME, lambda part: lock)
    with pytest.raises(floe.Unpicklable, match="cannot send the arguments: the argument 0 .a _thread.lock"):
        floe.parallel(len)(lock)
    with pytest.raises(floe.Unpicklable, match="cannot send back what <lambda> returned: a generator"):
        floe.parallel(lambda: (i for i in []))().value
    with pytest.raises(floe.Unpicklable, match="cannot send back what <lambda> returned"):
        mesh.parallelize(FRAME, lambda part: (i for i in []), merge=None).collect()
    with pytest.raises(floe.Unpicklable, match="cannot send the object"):
        mesh.put(lock)


def test_wrong_arguments(mesh):
    for n in (0, -3):
        with pytest.raises(ValueError, match="at least 1"):
            mesh.parallelize(FRAME, len, n)
    with pytest.raises(TypeError, match="a function is needed, not an int"):
        mesh.parallelize(FRAME, 3)
    with pytest.raises(TypeError, match="data is a pandas, Polars or Arrow frame"):
        mesh.parallelize(3, len)
    with pytest.raises(TypeError, match="merge is a function"):
        mesh.parallelize(FRAME, len, merge="sum")
    with pytest.raises(TypeError, match="unexpected argument 'colour'"):
        mesh.parallelize(FRAME, len, colour="red")
    with pytest.raises(floe.NoSuchJob):
        mesh.job("0123456789abcdef").collect()


class Unusual(Exception):
    def __init__(self, code, text):
        super().__init__(f"{text} ({code})")


class Usual(Exception):
    pass


def test_exceptions_keep_their_type(mesh):
    def fails(part):
        if part["a"].iloc[0] == 0:
            raise KeyError("no such column")
        return part

    with pytest.raises(KeyError) as caught:
        mesh.parallelize(FRAME, fails, 2).collect()
    notes = getattr(caught.value, "__notes__", None) or [str(caught.value.__cause__)]
    assert "on the node, in fails:" in notes[0] and "raise KeyError" in notes[0]

    def usual():
        raise Usual("well")

    with pytest.raises(Usual, match="well"):
        floe.parallel(usual)().value

    # Its class takes other arguments than it keeps.
    def unusual():
        raise Unusual(3, "odd")

    with pytest.raises(Unusual, match=r"^odd \(3\)") as caught:
        floe.parallel(unusual)().value
    assert caught.value.args == ("odd (3)",)


def test_merges_that_fail(mesh):
    def merge(parts):
        raise RuntimeError("will not go together")

    with pytest.raises(RuntimeError, match="will not go together") as caught:
        mesh.parallelize(FRAME, lambda part: part, 4, merge=merge).collect()
    assert "in merge" in (getattr(caught.value, "__notes__", None) or [str(caught.value.__cause__)])[0]


CRASHES = {
    "segfault": (lambda _: __import__("ctypes").string_at(0), "SIGSEGV"),
    "exit": (lambda _: os._exit(3), "exit status 3"),
    "kill": (lambda _: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    "abort": (lambda _: os.abort(), "SIGABRT"),
}


@pytest.mark.parametrize("name", CRASHES)
@pytest.mark.parametrize("way", ["call", "job", "map"])
def test_crashes(mesh, name, way):
    function, how = CRASHES[name]
    with pytest.raises(floe.Crashed, match=how):
        if way == "call":
            floe.parallel(function)(0).result(120)
        elif way == "map":
            mesh.map(function, [0]).collect()
        else:
            mesh.parallelize([0], function, merge=None).collect(120)


def test_exits(mesh):
    with pytest.raises(SystemExit) as caught:
        floe.parallel(lambda: sys.exit(3))().result(60)
    assert caught.value.code == 3


def test_rubbish_on_stdout_is_a_log(mesh):
    def rubbish(part):
        os.write(1, b"\xff\x00\x01\x80 rubbish \xfe" * 1000)
        return part

    job = mesh.parallelize([1, 2], rubbish, 2)
    assert job.collect() == [1, 2]
    assert any("rubbish" in line.text for line in job.logs())


def processes_with(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            pass
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_a_driver_that_vanishes(cluster, mesh, tmp_path):
    """Its session ends with all that runs in it; a job goes on, for whoever knows its id."""
    mark = f"FLOE_TEST_MARK={os.getpid()}-vanishes"
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys, time
            import floe
            mesh = floe.connect({cluster.addresses!r}, key_file={str(cluster.key_file)!r})
            env = dict([{mark!r}.split("=")])
            job = mesh.parallelize([1, 2], lambda part: time.sleep(1) or part, 2)
            sleeping = mesh.parallel(lambda: time.sleep(600), env=env)()
            print(job.id, flush=True)
            time.sleep(600)
            """
        )
    )
    driver = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=_environment())
    try:
        job = driver.stdout.readline().decode().strip()
        wait_until("the call's process", lambda: processes_with(mark))
    finally:
        driver.kill()
        driver.wait()
    wait_until("the end of the call's process", lambda: not processes_with(mark), 120)
    assert mesh.job(job).collect() in ([1, 2], [[1], [2]])


def _environment():
    return {**os.environ, "PYTHONPATH": str(Path(floe.__file__).parents[1])}


INTERRUPTED = {
    "a job": "mesh.parallelize([1, 2], lambda part: time.sleep(600), 2, merge=None).collect()",
    "a call": "mesh.parallel(time.sleep)(600).value",
    "all calls": "floe.wait_all([mesh.parallel(time.sleep)(600) for _ in range(3)])",
    "a map": "mesh.map(time.sleep, [600] * 4).collect()",
    "a bar": "mesh.map(time.sleep, [600] * 4).wait_interactive()",
    "an executor": "mesh.executor().submit(time.sleep, 600).result()",
}


@pytest.mark.parametrize("what", INTERRUPTED)
def test_interrupting(cluster, mesh, what, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys, threading, time
            import floe
            mesh = floe.connect({cluster.addresses!r}, key_file={str(cluster.key_file)!r})
            before = set(status["id"] for status in mesh.jobs())
            threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                {INTERRUPTED[what]}
            except KeyboardInterrupt:
                print("interrupted", *[s["id"] for s in mesh.jobs() if s["id"] not in before], flush=True)
            mesh.close()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=_environment(), timeout=120
    )
    words = done.stdout.split()
    assert words[:1] == ["interrupted"], done.stderr
    wait_until("the end of its jobs", lambda: all(mesh.job(id).completed for id in words[1:]), 120)
