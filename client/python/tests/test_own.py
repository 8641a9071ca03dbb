"""A call gets what it was given: what one call does to its arguments, or to what its function carries, no
other sees."""

import collections
import functools
import itertools
import os
import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import floe
from floe import fresh, joblib_backend, objects, pickling

import loopback

#: More than travels with a call.
LARGE = 1 << 20

CALLS = 6


class Box:
    def __init__(self, content):
        self.content = content


def use(value):
    """What a value holds, which is then changed in place."""
    if isinstance(value, Box):
        return use(value.content)
    if isinstance(value, np.ndarray):
        seen = float(value.sum())
        value += 1
        return seen
    if isinstance(value, pd.DataFrame):
        seen = float(value["x"].sum())
        value.loc[value.index[0], "x"] = 1e9
        value["more"] = 1
        return seen, list(value.columns)
    if isinstance(value, pd.Series):
        seen = float(value.sum())
        value.iloc[0] = 1e9
        return seen
    if isinstance(value, pl.DataFrame):
        seen = value.columns
        value.insert_column(0, pl.lit(1).alias(f"new {len(seen)}"))
        return seen
    seen = len(value)
    value.clear()
    return seen


VALUES = {
    "an array": lambda: np.ones(10),
    "a large array": lambda: np.ones(LARGE // 8),
    "an array for joblib": lambda: np.ones(32 << 10),
    "columns first": lambda: np.asfortranarray(np.ones((300, 300))),
    "every other": lambda: np.ones(LARGE // 4)[::2],
    "a list": lambda: [1, 2, 3],
    "a large list": lambda: list(range(LARGE // 4)),
    "a dictionary": lambda: {"a": 1},
    "a set": lambda: {1, 2},
    "bytes that change": lambda: bytearray(LARGE),
    "a frame": lambda: pd.DataFrame({"x": [1.0, 2.0]}),
    "a large frame": lambda: pd.DataFrame({"x": np.ones(LARGE // 8), "s": "x"}),
    "a series": lambda: pd.Series(np.ones(LARGE // 8)),
    "a frame of Polars": lambda: pl.DataFrame({"x": np.ones(LARGE // 8)}),
    "an object": lambda: Box(np.ones(LARGE // 8)),
}


def each_value():
    """The values by their names, with what using one gives."""
    for name, make in VALUES.items():
        yield name, make(), use(make())


def wrong(got):
    """Names of those that were given something else than they should have been, with what it was."""
    return {
        name: (found, wanted)
        for name, (found, wanted) in got.items()
        if any(value != wanted for value in found)
    }


def test_arguments_of_calls(mesh):
    values, call = list(each_value()), mesh.parallel(use)
    # One way after the other: between two sessions that take turns processes are replaced each time.
    got = {}
    for name, value, _ in values:
        got[name] = [result.result(60) for result in [call(value) for _ in range(3)]]
    with mesh.executor() as executor:
        for name, value, _ in values:
            futures = [executor.submit(use, value) for _ in range(3)]
            got[name] += [future.result(60) for future in futures]
            got[name] += executor.map(use, [value] * CALLS, chunksize=3)
    assert not wrong({name: (got[name], wanted) for name, _, wanted in values})
    for name, value, wanted in values:
        assert use(value) == wanted, name


def test_arguments_of_maps(mesh):
    got = {}
    for name, value, wanted in each_value():
        found = mesh.map(use, [value] * CALLS, chunk=CALLS).collect()
        found += mesh.map(
            lambda _, value: use(value), range(CALLS), itertools.repeat(value), chunk=3
        ).collect()
        got[name] = found, wanted
        assert use(value) == wanted
    assert not wrong(got)


def test_arguments_of_joblib(mesh):
    got = {}
    with joblib.parallel_config(backend="floe"):
        for name, value, wanted in each_value():
            found = []
            for size in (1, 3):
                found += joblib.Parallel(n_jobs=2, batch_size=size)(
                    joblib.delayed(use)(value) for _ in range(CALLS)
                )
            got[name] = found, wanted
            assert use(value) == wanted
    assert not wrong(got)


def test_what_was_put(mesh):
    def attempt(value):
        try:
            return use(value)
        except ValueError as error:
            return str(error)

    got = {}
    for name, value, wanted in each_value():
        ref = mesh.put(value)
        found = mesh.map(attempt, [ref] * CALLS, chunk=3).collect()
        found += [mesh.parallel(attempt)(ref).value, mesh.parallel(lambda: attempt(ref.get()))().value]
        got[name] = found, "output array is read-only" if isinstance(value, np.ndarray) else wanted
        assert use(ref.get()) == wanted and use(mesh.get(ref)) == wanted
    assert not wrong(got)


def test_tables_of_arrow_that_were_put_lie_in_memory_that_is_shared(mesh):
    table = pa.table({"x": np.arange(LARGE // 8)})
    ref = mesh.put(table)

    def mapped(table):
        address = table["x"].chunk(0).buffers()[1].address
        with open("/proc/self/maps") as maps:
            ranges = [line.split() for line in maps]
        for words in ranges:
            start, end = (int(word, 16) for word in words[0].split("-"))
            if start <= address < end:
                return len(words) > 5 and os.path.isabs(words[5])

    assert mesh.map(mapped, [ref] * 4, chunk=1).collect() == [True] * 4


def test_an_iterator_may_give_the_same_list_again(mesh):
    def rows():
        row = [0]
        for number in range(20):
            row[0] = number
            yield row

    assert mesh.map(list, rows(), chunk=7).collect() == [[number] for number in range(20)]
    with mesh.executor() as executor:
        assert list(executor.map(list, rows(), chunksize=7)) == [[number] for number in range(20)]


def test_an_array_that_the_driver_changes_between_tasks(mesh):
    array = np.zeros(LARGE // 4)
    backend = joblib_backend.FloeBackend(mesh=mesh)
    for number in range(3):
        array[-1] = number
        assert backend._sent(array).get()[-1] == number
    assert backend._sent(array) is backend._sent(array)


seen_by_the_script = []
total_of_the_script = 0


def with_a_global(value):
    seen_by_the_script.append(value)
    return len(seen_by_the_script)


def replacing_a_global(value):
    global total_of_the_script
    total_of_the_script += value
    return total_of_the_script


def with_a_default(value, seen=[]):  # noqa: B006
    seen.append(value)
    return len(seen)


def with_a_default_of_a_keyword(value, *, seen=set()):  # noqa: B006
    seen.add(len(seen))
    return len(seen)


def with_an_attribute(value):
    with_an_attribute.calls = getattr(with_an_attribute, "calls", 0) + 1
    return with_an_attribute.calls


def with_a_closure(value, seen):
    def inner(value):
        seen.append(value)
        return len(seen)

    return inner


def counting():
    count = 0

    def inner(value):
        nonlocal count
        count += 1
        return count

    return inner


class Counter:
    def __init__(self):
        self.count = 0

    def __call__(self, value):
        self.count += 1
        return self.count


class Total:
    total = 0

    @classmethod
    def add(cls, value):
        cls.total += value
        return cls.total


def with_a_class(value):
    return Total.add(value)


def with_a_partial(seen, value):
    seen.append(value)
    return len(seen)


FUNCTIONS = {
    "a variable of the script": with_a_global,
    "a number of the script": replacing_a_global,
    "a default": with_a_default,
    "a default of a keyword": with_a_default_of_a_keyword,
    "an attribute": with_an_attribute,
    "a closure": with_a_closure(0, []),
    "a number of a closure": counting(),
    "an object": Counter(),
    "a class": with_a_class,
    "a partial": functools.partial(with_a_partial, []),
    "a queue": functools.partial(with_a_partial, collections.deque()),
    "within another": lambda value: with_a_default(value) + with_a_global(value) - 1,
}


def test_what_functions_carry(mesh):
    got = {}
    with mesh.executor() as executor:
        for name, function in FUNCTIONS.items():
            call = mesh.parallel(function)
            found = [call(1).value for _ in range(3)]
            found += mesh.map(function, [1] * 12, chunk=6).collect()
            found += [each.result() for each in [executor.submit(function, 1) for _ in range(4)]]
            found += executor.map(function, [1] * 6, chunksize=3)
            got[name] = found, 1
    assert not wrong(got)


def test_what_functions_of_partitions_carry(mesh):
    got = {}
    for name, function in FUNCTIONS.items():
        found = mesh.parallelize(list(range(6)), lambda part: [function(1)], 6).collect()
        numbers = floe.source.range(1, 7)
        found += mesh.map_reduce(numbers, lambda _: [function(1)], lambda a, b: a + b, 6).collect()
        got[name] = found, 1
    assert not wrong(got)


def test_what_functions_of_joblib_carry(mesh):
    got = {}
    with joblib.parallel_config(backend="floe"):
        for name, function in FUNCTIONS.items():
            got[name] = (
                joblib.Parallel(n_jobs=2, batch_size=3)(joblib.delayed(function)(1) for _ in range(6)),
                1,
            )
    assert not wrong(got)


@functools.cache
def remembered(value):
    return object()


CONSTANT = (1, "two", 3.0, None, (b"4", 5j))

KEPT = {
    "no variables": lambda value: value * 2,
    "a constant": lambda value: (CONSTANT, value),
    "a module": lambda value: np.sqrt(value),
    "another": lambda value: KEPT_HELPER(value),
    "a builtin": len,
    "a class of a module": collections.OrderedDict,
    "a cache": lambda value: remembered(value),
}


def KEPT_HELPER(value):
    return KEPT_HELPER(value - 1) if value > 0 else 0


def test_what_carries_nothing_that_changes_is_kept():
    for name, function in KEPT.items():
        pickled = fresh.Pickled(pickling.dumps_function(function)[0])
        assert pickled.get() is pickled.get(), name
    for name, function in FUNCTIONS.items():
        if name == "a class":
            continue  # Unpickled in the process that defined it, it is that class.
        pickled = fresh.Pickled(pickling.dumps_function(function)[0])
        assert [pickled.get()(1) for _ in range(3)] == [1] * 3, name


def test_objects_come_back(tmp_path):
    values = [
        np.arange(10_000),
        np.arange(3),
        {"a": np.ones((50, 200), order="F"), "b": [np.arange(5_000)[::3]] * 2},
        np.array(["a", None, [1]] * 2_000, dtype=object),
        pd.DataFrame({"x": np.arange(5_000), "s": "x"}),
        b"x" * 10_000,
        None,
        lambda: 42,
    ]
    for number, value in enumerate(values):
        path = tmp_path / str(number)
        path.write_bytes(objects.packed(value, "the object"))
        for back in (objects.mapped(str(path)), objects.mapped(str(path)), objects.loaded(path.read_bytes())):
            if callable(value):
                assert back() == 42
            elif isinstance(value, dict):
                assert back["b"][0] is back["b"][1]
                back["a"] += 1
                np.testing.assert_array_equal(back["a"], value["a"] + 1)
            elif isinstance(value, np.ndarray):
                assert back.tolist() == value.tolist() and back.flags.writeable
                back[0] = 9
            else:
                assert (back.equals if isinstance(value, pd.DataFrame) else value.__eq__)(value) is True
    read_only = np.arange(10_000)
    read_only.flags.writeable = False
    assert not objects.loaded(objects.packed(read_only, "the object")).flags.writeable


def test_what_a_host_keeps_has_a_bound():
    host = loopback.new_host()
    codes = {
        number: pickling.dumps_function(functools.partial(len, bytes(1 << 20)))[0] for number in range(20)
    }
    codes[20] = pickling.dumps_function(functools.partial(len, bytes(host.LOADED_BYTES)))[0]
    codes.update(
        {number: pickling.dumps_function(functools.partial(abs, number))[0] for number in range(21, 30)}
    )
    wanted = (
        {number: 1 << 20 for number in range(20)} | {20: host.LOADED_BYTES} | {n: n for n in range(21, 30)}
    )
    for number, code in codes.items():
        host.define({"function": number, "name": "f"}, [code])
    for _ in range(2):
        for number in codes:
            assert host.function(number)() == wanted[number]
            assert sum(len(codes[kept]) for kept in host._functions) <= host.LOADED_BYTES
    assert 20 not in host._functions and set(range(21, 30)) <= set(host._functions)
    in_memory = [code.data for code in host._codes.values() if isinstance(code.data, bytes)]
    assert len(in_memory) == 9 and sum(map(len, in_memory)) < 9 * host.SMALL_CODE_BYTES
    host.define({"function": 21, "name": "g"}, [pickling.dumps_function(lambda: "new")[0]])
    assert host.function(21)() == "new"
    host.define({"function": 22, "name": "h"}, [b"no pickle"])
    with pytest.raises(pickle.UnpicklingError):
        host.function(22)()
