"""Nodes that are killed while functions run on them."""

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest

import floe

from conftest import DATA, HERE, wait_until

EXAMPLES = sorted((HERE.parent / "examples").glob("*.py"))


def slowly(part):
    time.sleep(0.3)
    return part * 2


def others(cluster, mesh):
    """The nodes that this driver is not connected to, the leader first."""
    status = mesh.status()
    names = {node["id"]: node["name"] for node in status["nodes"]}
    leader, here = names[status["leader"]], names[status["answered_by"]]
    return sorted(
        (node for name, node in cluster.nodes.items() if name != here), key=lambda node: node.name != leader
    )


def connected_to(cluster, mesh):
    status = mesh.status()
    return next(
        cluster.nodes[node["name"]] for node in status["nodes"] if node["id"] == status["answered_by"]
    )


@pytest.mark.parametrize("victim", ["another", "the driver's"])
def test_a_job(mortal, victim):
    with mortal.connect() as mesh:
        frame = pd.DataFrame({"a": range(24)})
        job = mesh.parallelize(frame, slowly, 24)
        wait_until("some tasks", lambda: job.progress.done >= 3)
        (others(mortal, mesh)[0] if victim == "another" else connected_to(mortal, mesh)).kill()
        pd.testing.assert_frame_equal(job.collect(), frame * 2)


@pytest.mark.parametrize("victim", ["another", "the driver's"])
def test_calls(mortal, victim):
    with mortal.connect() as mesh:
        results = [mesh.parallel(slowly)(n) for n in range(24)]
        wait_until("some calls", lambda: sum(result.completed for result in results) >= 3)
        (others(mortal, mesh)[0] if victim == "another" else connected_to(mortal, mesh)).kill()
        assert floe.wait_all(results, timeout=120)
        assert [result.value for result in results] == [2 * n for n in range(24)]
        assert mesh.map(slowly, range(4)).collect() == [0, 2, 4, 6]


def test_the_leader(mortal):
    with mortal.connect() as mesh:
        results = mesh.map(slowly, range(24), chunk=1)
        assert next(results) == 0
        status = mesh.status()
        name = next(node["name"] for node in status["nodes"] if node["id"] == status["leader"])
        mortal.nodes[name].kill()
        assert results.collect() == [2 * n for n in range(1, 24)]
        job = mesh.map_reduce(floe.source.range(100), sum, lambda a, b: a + b)
        assert job.collect() == 4950


def test_shared_objects_outlive_their_node(mortal):
    with mortal.connect() as mesh:
        ref = mesh.put(list(range(100_000)))
        connected_to(mortal, mesh).kill()
        assert mesh.parallel(lambda values, i: values[i])(ref, 7).result(120) == 7
        assert mesh.get(ref)[8] == 8


def test_calls_for_one_node(mortal):
    with mortal.connect() as mesh:
        victim = others(mortal, mesh)[0]
        result = mesh[victim.name].apply(time.sleep, 600)
        wait_until("the call", lambda: any(node.details.get("running") for node in mesh.nodes) or True)
        time.sleep(0.5)
        victim.kill()
        with pytest.raises(floe.Lost):
            result.result(120)


def test_a_worker_that_comes_takes_part(mortal):
    with mortal.connect() as mesh:
        results = mesh.map(lambda n: time.sleep(0.1) or os.getppid(), range(200), chunk=1)
        first = next(results)
        mortal.add("late")
        parents = {first, *results.collect()}
        assert len(parents) == 4
        job = mesh.parallelize(
            list(range(40)), lambda part: (time.sleep(0.2), os.getppid())[1], 40, merge=None
        )
        mortal.add("later")
        assert len(set(job.collect())) == 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples(mortal, example):
    """Each example, unchanged, while the node that it did not connect to is killed."""
    mortal.connect().close()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(floe.__file__).parents[1]),
        "FLOE_CONNECT": mortal.nodes["n0"].address,
        "FLOE_KEY_FILE": str(mortal.key_file),
        "FLOE_EXAMPLE_FLIGHTS": str(DATA / "flights.parquet"),
    }
    with mortal.connect() as mesh:
        before = len(mesh.jobs())
        running = subprocess.Popen(
            [sys.executable, example],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        wait_until("its first job", lambda: len(mesh.jobs()) > before or running.poll() is not None)
        killer = threading.Timer(0.2, mortal.nodes["n2"].kill)
        killer.start()
        output, _ = running.communicate(timeout=300)
        killer.join()
        assert running.returncode == 0, output


class Told:
    """What the native part says of a job."""

    id = "00000000000000ab"

    def __init__(self, *other_ends):
        self._status = json.dumps({"phase": "succeeded", "other_ends": list(other_ends)})

    def wait(self, timeout):
        return self._status

    def status(self):
        return self._status

    def partitions(self):
        return iter([])

    def release_later(self):
        pass


def test_ends_that_contradict_each_other_are_told():
    split = floe.Job(Told("cancelled", "failed"), None, assemble=lambda parts: "the result")
    told = "is succeeded, and .* told that it was cancelled and failed"
    with pytest.warns(floe.ContradictingEnds, match=told):
        assert split.wait()
    with pytest.warns(floe.ContradictingEnds):
        assert split.collect() == "the result"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = floe.Job(Told(), None, assemble=lambda parts: "the result")
        assert whole.wait() and whole.collect() == "the result"
