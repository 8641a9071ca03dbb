"""Single calls, maps and executors, on real nodes."""

import asyncio
import concurrent.futures
import functools
import itertools
import os
import threading
import time

import numpy as np
import pytest

import floe

from conftest import wait_until


def square(n):
    return n * n


def square_all(part):
    return [n * n for n in part]


def fails(n):
    raise ValueError(f"no {n}")


class Point:
    """A class that no node can import."""

    def __init__(self, x):
        self.x = x

    def moved(self, by):
        return Point(self.x + by)

    def __eq__(self, other):
        return type(other) is Point and other.x == self.x


def test_the_snippet(mesh):
    results = [floe.parallel(square)(n) for n in range(100, 200)]
    assert floe.wait_all(results, timeout=60)
    assert [result.value for result in results] == [n * n for n in range(100, 200)]
    result, seen = results[0], []
    assert result.completed and result.successful and result.failure is None and result.wait(timeout=10)
    assert result.succeed(seen.append).fail(print) is result
    assert seen == [10_000]
    assert result.node in ("n0", "n1") and result.elapsed < 60


def test_failures(mesh):
    result, seen = floe.parallel(fails)(3), []
    result.succeed(print).fail(seen.append)
    assert result.wait(60) and result.completed and not result.successful
    wait_until("the callback", lambda: seen)
    assert type(result.failure) is ValueError and seen == [result.failure] and str(seen[0]) == "no 3"
    with pytest.raises(ValueError) as caught:
        result.value
    notes = getattr(caught.value, "__notes__", None) or [str(caught.value.__cause__)]
    assert "in fails" in notes[0] and "raise ValueError" in notes[0] and "_remote" not in notes[0]


def test_decorated(mesh):
    @floe.parallel
    def half(n):
        return n / 2

    @mesh.parallel(timeout=60)
    def third(n):
        return n / 3

    # Within another function it is what it was.
    @floe.parallel
    def sixth(n):
        return third(half(n))

    assert half(3).value == 1.5 and third(3).value == 1 and sixth(12).value == 2
    assert half.map(range(3)).collect() == [0, 0.5, 1]


def test_many_functions(mesh):
    results = [floe.parallel(lambda i=i: i)() for i in range(300)]
    assert [result.value for result in results] == list(range(300))


def test_what_travels(mesh):
    assert floe.parallel(Point.moved)(Point(1), by=2).value == Point(3)
    assert floe.parallel(Point(1).moved)(2).value == Point(3)
    assert floe.parallel(functools.partial(pow, 2))(10).value == 1024
    assert floe.parallel(lambda f: f(2))(lambda x: x + 1).value == 3
    array = np.arange(1 << 20)
    np.testing.assert_array_equal(floe.parallel(lambda a: a * 2)(array).value, array * 2)
    assert floe.parallel(len)(b"x" * (3 << 20)).value == 3 << 20
    assert len(floe.parallel(bytes)(3 << 20).value) == 3 << 20


def test_put_and_get(mesh):
    ref = mesh.put({"table": np.arange(100_000)})
    assert mesh.get(ref)["table"].sum() == ref.get()["table"].sum()
    assert floe.parallel(lambda table, i: int(table["table"][i]))(ref, 7).value == 7
    assert floe.parallel(lambda i, *, table: int(table["table"][i]))(7, table=ref).value == 7
    assert floe.parallel(lambda i: int(ref.get()["table"][i]))(8).value == 8
    assert mesh.map(lambda table: len(table["table"]), [ref] * 3).collect() == [100_000] * 3
    assert mesh.put({"a": 1}) == mesh.put({"a": 1})


def test_cancelling(mesh):
    blocked = [floe.parallel(time.sleep)(1.0) for _ in range(4)]
    waiting = floe.parallel(square)(3)
    assert waiting.cancel() and waiting.cancelled() and waiting.completed and not waiting.successful
    assert isinstance(waiting.failure, floe.Cancelled)
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    assert floe.wait_all([waiting, *blocked], timeout=60)


def test_waiting_has_an_end(mesh):
    result = floe.parallel(time.sleep)(1.5)
    assert not result.wait(0.05) and not floe.wait_all([result], timeout=0.05)
    with pytest.raises((TimeoutError, concurrent.futures.TimeoutError)):
        result.result(timeout=0.05)
    assert result.wait(60)


def test_nodes(mesh):
    assert mesh[:].nodes == ["n0", "n1"]
    pids = mesh[:].apply_sync(os.getpid)
    assert len(set(pids)) == 2
    one = mesh["n1"].apply(square, 4)
    assert one.value == 16 and one.node == "n1"
    results = mesh["n1", "n0"].apply(square, n=3)
    assert [result.value for result in results] == [9, 9] and [result.node for result in results] == [
        "n1",
        "n0",
    ]
    assert set(mesh["n0"].map(lambda _: os.getppid(), range(20), chunk=1).collect()) != set(
        mesh["n1"].map(lambda _: os.getppid(), range(20), chunk=1).collect()
    )
    with pytest.raises(floe.Unavailable, match="no node called elsewhere is there; there are n0, n1"):
        mesh["elsewhere"].apply(square, 1)
    with pytest.raises(ValueError, match="no 1"):
        mesh[:].apply_sync(fails, 1)
    with pytest.raises(TypeError):
        mesh[1:2]


def test_map(mesh):
    assert mesh.map(square, range(1000)).collect() == [n * n for n in range(1000)]
    assert sorted(mesh.map(square, range(100), ordered=False)) == sorted(n * n for n in range(100))
    assert list(mesh.map(pow, [2, 3], [3, 2])) == [8, 9]
    assert mesh.map(square, []).collect() == []
    assert mesh.map(square, (n for n in range(5)), chunk=2).wait_interactive().collect() == [0, 1, 4, 9, 16]
    finished = mesh.map(square, range(50))
    assert finished.wait(60) and finished.completed and str(finished.progress) == "50 of 50 items done (100%)"


def test_map_takes_what_it_needs(mesh):
    taken = itertools.count()
    results = mesh.map(square, taken)
    assert list(itertools.islice(results, 10)) == [n * n for n in range(10)]
    results.cancel()
    with pytest.raises(floe.Cancelled):
        list(results)
    assert next(taken) < 1_000_000
    results = mesh.map(lambda n: n, itertools.count(), chunk=1)
    next(results)
    wait_until("some look-ahead", lambda: results._state.sent >= 64)
    assert results._state.sent <= 80
    results = None
    wait_until(
        "its thread's end", lambda: not [t for t in threading.enumerate() if t.name.startswith("floe-map")]
    )


def test_map_balances(mesh):
    # One item takes as long as all the others together: whoever has it does nothing else.
    def work(n):
        import time

        time.sleep(1.0 if n == 0 else 0.02)
        return os.getpid()

    by_process = mesh.map(work, range(40)).collect()
    assert by_process.count(by_process[0]) <= 20


def test_map_fails_at_its_place(mesh):
    results, values = mesh.map(lambda n: 1 // (n - 5), range(100)), []
    with pytest.raises(ZeroDivisionError) as caught:
        for value in results:
            values.append(value)
    assert values == [1 // (n - 5) for n in range(5)]
    assert getattr(caught.value, "__notes__", None) or caught.value.__cause__
    with pytest.raises(ZeroDivisionError):
        mesh.map(lambda n: 1 // 0, range(100), ordered=False).wait_interactive().collect()


def test_map_of_a_failing_iterable(mesh):
    def items():
        yield 1
        raise RuntimeError("no more")

    results = mesh.map(square, items())
    with pytest.raises(RuntimeError, match="no more"):
        list(results)
    with pytest.raises(ValueError):
        mesh.map(square, [1], chunk=0)
    with pytest.raises(TypeError):
        mesh.map(square)
    with pytest.raises(floe.Unpicklable, match="cannot send the item 0: a _thread.lock"):
        mesh.map(square, [threading.Lock()]).collect()


def test_executor(mesh):
    with mesh.executor() as executor:
        futures = [executor.submit(square, n) for n in range(500)]
        assert all(isinstance(future, concurrent.futures.Future) for future in futures)
        done, waiting = concurrent.futures.wait(futures, timeout=60)
        assert not waiting and {future.result() for future in done} == {n * n for n in range(500)}
        assert [f.result() for f in concurrent.futures.as_completed([executor.submit(square, 3)])] == [9]
        assert list(executor.map(pow, range(5), itertools.repeat(2))) == [0, 1, 4, 9, 16]
        assert list(executor.map(pow, range(5), itertools.repeat(2), chunksize=2)) == [0, 1, 4, 9, 16]
        assert isinstance(executor.submit(fails, 1).exception(), ValueError)
        assert executor.submit(functools.partial(int, base=2), "101").result() == 5
        assert executor.submit(Point(1).moved, 1).result() == Point(2)
        assert executor.submit(lambda *, a: a, a=1).result() == 1
        slow = executor.submit(time.sleep, 0.3)
    assert slow.done()
    with pytest.raises(RuntimeError):
        executor.submit(square, 1)


def test_executor_shuts_down_at_once(mesh):
    executor = mesh.executor()
    futures = [executor.submit(time.sleep, 0.2) for _ in range(50)]
    executor.shutdown(wait=True, cancel_futures=True)
    assert sum(future.cancelled() for future in futures) >= 40


def test_asyncio(mesh):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        assert await floe.parallel(square)(5) == 25
        slow = floe.parallel(time.sleep)
        await asyncio.gather(*[slow(0.2) for _ in range(2)])
        assert await mesh.parallelize([1, 2, 3], lambda part: part * 2, 3) == [1, 1, 2, 2, 3, 3]
        assert await mesh.map(square, range(3)) == [0, 1, 4]
        loop = asyncio.get_running_loop()
        with mesh.executor() as executor:
            assert await loop.run_in_executor(executor, square, 6) == 36
        with pytest.raises(ValueError):
            await floe.parallel(fails)(1)
        ticking.cancel()
        assert ticks > 10

    asyncio.run(main())


def test_asyncio_cancels(mesh):
    async def main():
        job = mesh.parallelize([1], lambda part: __import__("time").sleep(600), 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(job, 0.3)
        return job

    job = asyncio.run(main())
    wait_until("the job's end", lambda: job.phase == "cancelled")


def test_many_arguments_of_some_size(mesh):
    """Together they are far more than one frame takes."""
    with mesh.executor() as executor:
        futures = [executor.submit(len, bytes(400_000 + n)) for n in range(120)]
        assert [future.result(timeout=120) for future in futures] == [400_000 + n for n in range(120)]


@pytest.mark.parametrize("place", ["n0", "n1", "n0, a hundred times"])
def test_others_pass_a_call_that_takes_long(cluster, mesh, place):
    """Each node has one slot: what waited behind the call would wait for ten minutes."""
    node, _, many = place.partition(",")
    held = [mesh[node].apply(time.sleep, 600) for _ in range(100 if many else 1)]
    try:
        # Calls of a kind that is known to be short are sent ahead, to both nodes.
        assert mesh.map(abs, range(2000)).collect() == list(range(2000))
        assert mesh.map(abs, range(20_000)).collect() == list(range(20_000))
        for n in range(4):
            assert mesh.parallelize([n], square_all, 1).collect(60) == [n * n]
            assert mesh.parallel(square)(n).result(60) == n * n
        with cluster.connect() as other:
            assert other[node].apply(square, 9).result(60) == 81
        assert not held[0].done()
    finally:
        for call in held:
            call.cancel()
