"""Programs that end, fork and close as people's programs do."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

import floe

from conftest import wait_until

#: How long a program may take to end once it has nothing more to do, in seconds.
END_SECONDS = 2.0


def run(cluster, script, timeout=120):
    """A program of its own; how it ended, and how long that took after the last line of its text."""
    text = "import os, sys, time, threading\nimport floe\n"
    text += "mesh = floe.connect()\nwork = mesh.parallel(time.sleep)\n"
    text += textwrap.dedent(script)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(floe.__file__).parents[1]),
        "FLOE_CONNECT": ",".join(cluster.addresses),
        "FLOE_KEY_FILE": str(cluster.key_file),
    }
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=timeout
    )


ENDINGS = {
    "calls": "results = [work(600) for _ in range(20)]",
    "a map half read": "results = mesh.map(lambda n: n, range(10**6)); next(results)",
    "a map that nobody reads": "results = mesh.map(time.sleep, [600] * 8)",
    "an executor": "executor = mesh.executor(); future = executor.submit(time.sleep, 600)",
    "a thread that waits": "threading.Thread(target=work(600).result, daemon=True).start()",
    "sys.exit": "result = work(600); end = 3; sys.exit(3)",
    "an exception": "result = work(600); 1 / 0",
    "closed twice": "mesh.parallel(abs)(-1).value; mesh.close(); mesh.close()",
    "two connections": "other = floe.connect(); other.parallel(time.sleep)(600); mesh.parallel(abs)(1).value",
    "a callback": "work(600).succeed(print)",
    "a fork": "work(600)\nif os.fork() == 0: sys.exit(0)\nos.wait()",
    "a child that outlives it": "work(600)\nif os.fork() == 0: os.close(1); os.close(2); time.sleep(20)",
    "os._exit": "work(600); sys.stdout.flush(); os._exit(0)",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_program_ends_at_once_and_says_nothing(cluster, mesh, name):
    script = "end = 0\n" + ENDINGS[name]
    mark = "\nprint(time.monotonic(), flush=True)\n"
    if name in ("sys.exit", "an exception", "os._exit"):
        *first, last = script.rsplit("; ", 1)
        script = "; ".join(first) + mark + last
    else:
        script += "\nif os.getpid(): print(time.monotonic(), flush=True)\n"
    done = run(cluster, script)
    took = time.monotonic() - float(done.stdout.split()[-1])
    assert done.returncode == {"sys.exit": 3, "an exception": 1}.get(name, 0), done.stderr
    if name == "an exception":
        assert done.stderr.count("Traceback") == 1 and done.stderr.endswith("division by zero\n"), done.stderr
    else:
        assert done.stderr == ""
    assert took < END_SECONDS + 1, f"{took:.1f} s"


def test_a_program_with_a_job_ends_and_the_job_goes_on(cluster, mesh):
    script = """
    job = mesh.parallelize([1, 2], lambda part: time.sleep(600), 2, merge=None)
    lines = job.logs(follow=True)
    threading.Thread(target=lambda: list(lines), daemon=True).start()
    threading.Thread(target=job.collect, daemon=True).start()
    print(job.id)
    """
    done = run(cluster, script)
    job = mesh.job(done.stdout.strip())
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert job.status()["phase"] == "running"
        # Both slots are taken for long, and calls are served all the same.
        assert mesh.parallel(abs)(-3).result(60) == 3
    finally:
        # Whatever went wrong, the tests after this one need the slots.
        job.cancel()


def test_a_fork_is_told_at_once_and_can_connect(cluster):
    script = """
    before = mesh["n0"].apply(time.sleep, 600)
    half = mesh.map(abs, range(10**6))
    next(half)
    # Of this one nothing is under way: there is as much as may be there before it is read on.
    paused = mesh.map(abs, range(10**6), chunk=1)
    next(paused)
    while paused._state.flying or paused._state.sent < 64:
        time.sleep(0.01)
    executor = mesh.executor()
    executor.submit(abs, -1).result()
    job = mesh.parallelize([1], len, 1, merge=None)
    mesh.parallel(abs)(-1).result()

    def told(what):
        try:
            return f"value {what()}"
        except floe.Forked as error:
            return "told" if "connect again here" in str(error) else str(error)

    def anew():
        with floe.connect() as other:
            return other.parallel(abs)(-2).result()

    if os.fork() == 0:
        asked = {
            "call": lambda: mesh.parallel(abs)(-2).result(),
            "call before": lambda: before.result(),
            "map": lambda: mesh.map(abs, [1]).collect(),
            "map before": lambda: half.collect(),
            "paused map before": lambda: paused.collect(),
            "executor": lambda: executor.submit(abs, -1).result(),
            "job": lambda: mesh.parallelize([1], len, 1, merge=None).collect(),
            "job before": lambda: job.collect(),
            "status": lambda: mesh.nodes,
            "put": lambda: mesh.put(1),
            "sql": lambda: mesh.sql("SELECT 1"),
            "anew": anew,
            "default": lambda: floe.parallel(abs)(-5).result(),
        }
        for name, what in asked.items():
            begun = time.monotonic()
            print(name, told(what), time.monotonic() - begun < 5, sep=": ", flush=True)
        mesh.close()
        print(repr(mesh), flush=True)
        sys.exit(0)
    pid, status = os.wait()
    print("parent", status, [mesh.parallel(abs)(-n).result(20) for n in range(3)])
    print(job.collect(), executor.submit(abs, -4).result(), before.done())
    """
    done = run(cluster, script)
    assert done.stderr == ""
    *child, shown, parent, rest = done.stdout.splitlines()
    values = {"anew": "value 2", "default": "value 5"}
    names = [line.split(": ")[0] for line in child]
    assert child == [f"{name}: {values.get(name, 'told')}: True" for name in names] and len(names) == 13
    assert shown == "<floe.Mesh of the process that this one was forked from>"
    assert parent == "parent 0 [0, 1, 2]"
    assert rest == "[1] 4 False"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_server_that_forks_its_workers(cluster, tmp_path, method):
    """It connects before it has workers; these use what they find by default, and end as workers do."""
    program = tmp_path / "server.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing
            import floe

            @floe.parallel
            def double(n):
                return 2 * n

            def worker(n):
                return double(n).result(30), floe.default_mesh().map(abs, [-n]).collect()

            if __name__ == "__main__":
                with floe.connect() as mesh:
                    assert double(4).result(30) == 8
                    with multiprocessing.get_context({method!r}).Pool(2) as pool:
                        print(pool.map(worker, range(4)))
                    print([double(n).result(30) for n in range(3)])
            """
        )
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(floe.__file__).parents[1]),
        "FLOE_CONNECT": ",".join(cluster.addresses),
        "FLOE_KEY_FILE": str(cluster.key_file),
    }
    command = [sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[(0, [0]), (2, [1]), (4, [2]), (6, [3])]", "[0, 2, 4]"]


def ending(what):
    """A thread that does something, and a list for how that ends: what it returns or raises, and when."""
    ended = []

    def run():
        try:
            ended.append(what())
        except BaseException as error:
            ended.append(error)
        ended.append(time.monotonic())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, ended


def test_closing_while_others_wait(cluster):
    with cluster.connect() as mesh:
        executor = mesh.executor()
        waits = [
            mesh.parallel(time.sleep)(600).result,
            executor.submit(time.sleep, 600).result,
            mesh.map(time.sleep, [600]).collect,
            mesh.map(time.sleep, [600]).wait,
            lambda: executor.shutdown(wait=True),
        ]
        threads = [ending(what) for what in waits]
        wait_until("the calls", lambda: sum(job["phase"] == "running" for job in mesh.jobs()) >= 2)
        mesh.close()
        mesh.close()
        for thread, _ in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread, _ in threads)
    ends = [ended[0] for _, ended in threads]
    assert [isinstance(error, floe.Cancelled) for error in ends] == [True, True, True, False, False], ends
    for what in (lambda: mesh.parallel(abs)(1), lambda: mesh.map(abs, [1]), lambda: mesh.nodes):
        with pytest.raises(floe.Error, match="the mesh is closed"):
            what()


def sleeping(part):
    print("begun", flush=True)
    time.sleep(600)
    return part


async def awaited(job):
    return await job


#: Ways of waiting for a job of two partitions that sleep.
WAITS = {
    "collect": lambda job: job.collect(),
    "collect with a limit": lambda job: job.collect(timeout=500),
    "wait": lambda job: job.wait(),
    "wait with a limit": lambda job: job.wait(500),
    "wait_interactive": lambda job: job.wait_interactive(),
    "wait_all": lambda job: floe.wait_all([job]),
    "partitions": lambda job: list(job.partitions()),
    "the next partition": lambda job: next(job.partitions()),
    "logs": lambda job: list(job.logs(follow=True)),
    "logs of a task": lambda job: list(job.logs(1, follow=True)),
    "await": lambda job: asyncio.run(awaited(job)),
}


def test_closing_while_others_wait_for_jobs(cluster):
    mesh, other = cluster.connect(), cluster.connect()
    before = {job["id"] for job in other.jobs()}
    job = mesh.parallelize([1, 2], sleeping, 2)
    # These have no slot until the first one ends.
    numbers = floe.source.range(1, 5)
    plan = pl.LazyFrame({"x": [1]})
    jobs = {
        "sql": mesh.sql("SELECT 1"),
        "a plan": mesh.query(plan),
        "map_reduce": mesh.map_reduce(numbers, lambda part: time.sleep(600), max, 2),
        "map_files": mesh.map_files(__file__, lambda path: time.sleep(600)),
    }
    try:
        wait_until("the first job", lambda: any(job.logs()))
        threads = {name: ending(lambda wait=wait: wait(job)) for name, wait in WAITS.items()}
        threads.update({name: ending(each.collect) for name, each in jobs.items()})
        threads["mesh.collect"] = ending(lambda: mesh.collect(plan))
        threads["apply"] = ending(lambda: mesh.apply(pd.Series([1, 2]), time.sleep, 2, how="partitions"))
        half_read = job.logs(follow=True)
        assert next(half_read).text == "begun"
        wait_until("all of them", lambda: len({job["id"] for job in other.jobs()} - before) >= 7)
        time.sleep(0.5)
        assert not any(ended for _, ended in threads.values())
        begun = time.monotonic()
        mesh.close()
        assert time.monotonic() - begun < END_SECONDS
        for thread, _ in threads.values():
            thread.join(30)
        ends = {name: ended for name, (_, ended) in threads.items()}
        assert all(len(ended) == 2 and ended[1] - begun < END_SECONDS for ended in ends.values()), ends
        for name, (error, _) in ends.items():
            assert isinstance(error, floe.Cancelled), (name, error)
            known = job if name in WAITS else jobs.get(name)
            if known is not None:
                assert str(error) == (
                    f"the mesh was closed before job {known.id} had ended; the job itself goes on: "
                    f'floe.connect().job("{known.id}") has it again'
                )
        # So does what begins to wait now; what is only asked is answered as before.
        for what in (job.wait, job.collect, lambda: next(half_read)):
            with pytest.raises(floe.Cancelled, match="the job itself goes on"):
                what()
        assert job.phase == other.job(job.id).phase == "running"
    finally:
        for each in other.jobs():
            if each["phase"] == "running":
                other.job(each["id"]).cancel()
        other.close()


def test_closing_a_mesh_of_ones_own_ends_its_jobs(tmp_path):
    """Its node was started for it, and ends with it."""
    script = f"""
    import os, threading, time
    os.environ["FLOE_HOME"] = {str(tmp_path)!r}
    import floe
    mesh = floe.connect()
    job = mesh.parallelize([1], lambda part: time.sleep(600), 1)
    threading.Timer(0.5, mesh.close).start()
    try:
        job.collect()
    except floe.Cancelled as error:
        print(str(error).replace(job.id, "ID"))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(floe.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "the mesh was closed, and job ID ended with the node that was started for it\n", (
        done.stderr
    )


def test_a_hundred_connections_at_once_and_many_that_come_and_go(cluster):
    def connect():
        return floe.connect(cluster.addresses, key_file=cluster.key_file)

    with connect() as mesh:
        before = {job["id"] for job in mesh.jobs() if job["phase"] == "running"}
    opened = [connect() for _ in range(100)]
    results = [mesh.parallel(abs)(-n) for n, mesh in enumerate(opened)]
    assert [result.result(60) for result in results] == list(range(100))
    # They hold on to no more processes than can run, but for a moment.
    for mesh in opened:
        mesh.close()
    for n in range(12):
        with connect() as mesh:
            assert mesh.parallel(abs)(-n).result(30) == n
    with connect() as mesh:
        wait_until(
            "the end of all sessions",
            lambda: all(job["phase"] != "running" or job["id"] in before for job in mesh.jobs()),
        )
    assert threading.active_count() < 20
