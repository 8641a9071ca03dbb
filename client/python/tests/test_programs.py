"""Programs that end, fork and close as people's programs do."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

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
    assert (done.returncode, done.stderr) == (0, "")
    job = mesh.job(done.stdout.strip())
    assert job.status()["phase"] == "running"
    # Both slots are taken for long, and calls are served all the same.
    assert mesh.parallel(abs)(-3).result(60) == 3
    job.cancel()


def test_a_fork_is_told_at_once_and_can_connect(cluster):
    script = """
    before = mesh["n0"].apply(time.sleep, 600)
    half = mesh.map(abs, range(10**6))
    next(half)
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
    assert child == [f"{name}: {values.get(name, 'told')}: True" for name in names] and len(names) == 12
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


def test_closing_while_others_wait(cluster):
    with cluster.connect() as mesh:
        executor = mesh.executor()
        waits = [
            mesh.parallel(time.sleep)(600).result,
            executor.submit(time.sleep, 600).result,
            mesh.map(time.sleep, [600]).collect,
            lambda: executor.shutdown(wait=True),
        ]
        ended = []

        def wait(what):
            try:
                ended.append(what())
            except BaseException as error:
                ended.append(error)

        threads = [threading.Thread(target=wait, args=(what,)) for what in waits]
        for thread in threads:
            thread.start()
        wait_until("the calls", lambda: sum(job["phase"] == "running" for job in mesh.jobs()) >= 2)
        mesh.close()
        mesh.close()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(isinstance(error, floe.Cancelled) for error in ended) == 3, ended
    for what in (lambda: mesh.parallel(abs)(1), lambda: mesh.map(abs, [1]), lambda: mesh.nodes):
        with pytest.raises(floe.Error, match="the mesh is closed"):
            what()


def test_a_hundred_connections_at_once_and_many_that_come_and_go(cluster):
    def connect():
        return floe.connect(cluster.addresses, key_file=cluster.key_file)

    opened = [connect() for _ in range(100)]
    results = [mesh.parallel(abs)(-n) for n, mesh in enumerate(opened)]
    assert [result.result(60) for result in results] == list(range(100))
    # They hold on to no more processes than can run, but for a moment.
    for mesh in opened:
        mesh.close()
    for n in range(40):
        with connect() as mesh:
            assert mesh.parallel(abs)(-n).result(30) == n
    with connect() as mesh:
        wait_until(
            "the end of all sessions",
            lambda: sum(job["phase"] == "running" for job in mesh.jobs()) <= 1,
        )
    assert threading.active_count() < 20
