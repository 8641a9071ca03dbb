"""Random functions, data and shapes of calls: each way of calling gives what plain Python gives in one
process.

``pytest tests/test_generator.py --draws 20000`` tries more of them; what fails is made as small as can be,
and shown.
"""

import copy
import functools
import warnings

import cloudpickle
import hypothesis
import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from floe import data as partitions

import test_matrix
from test_apply import outcome, pandas_apply, same
from test_matrix import COLUMNS, INDEXES, PANDAS_FUNCTIONS, ROWS, same_pandas

# The nodes have neither.
cloudpickle.register_pickle_by_value(test_matrix)

# What functions do: lines of Python over `value`, and a number. Many raise for most values, which is as good.
COMPUTING = (
    "value = value + {n}",
    "value = {n} - value",
    "value = value * 2",
    "value = value / {n}",
    "value = {n} // value",
    "value = value % 3",
    "value = -value",
    "value = value < {n}",
    "value = [value, {n}]",
    "value = (value,)",
    "value = {{'k': value}}",
    "value = str(value)",
    "value = float(value)",
    "value = float('nan')",
    "value = len(value)",
    "value = sum(value)",
    "value = sorted(value)",
    "value = list(value)",
    "value = value if value else None",
    "value = [each for each in value if each != {n}]",
)

# Changes of what was given.
CHANGING = (
    "before = str(value); value.clear() if hasattr(value, 'clear') else None; value = before",
    "value.append({n}) if hasattr(value, 'append') else None",
    "value.fill({n}) if hasattr(value, 'fill') and value.sum() == 0 else None",
    "value[0].append({n}) if isinstance(value, tuple) else None",
    "value += {n}",
    "value += [{n}]",
    "value.append({n})",
    "value[0] = {n}",
    "value.clear()",
    "value['new'] = {n}",
)

# Changes of what the function carries: of numbers, with which it is kept for several calls, and of what
# changes itself.
COUNTING = ("count += 1; value = (value, count)", "total += {n} or 1; value = (value, total)")
REMEMBERING = (
    "seen.append({n}); value = (value, list(seen))",
    "kept.append({n}); value = (value, list(kept))",
    "table[{n}] = value; value = len(table)",
    "function.calls = getattr(function, 'calls', 0) + 1; value = (value, function.calls)",
)

ENDING = (
    "if value == {n}: raise ValueError(value, {n})",
    "if value == {n}: return None",
    "raise KeyError({n})",
    "assert value, 'nothing'",
)

FORMS = ("function", "partial", "object", "method", "lambda")


class Described:
    """A function that was drawn. It is made anew as often as needed, so that nothing of one run is in
    another."""

    def __init__(self, lines, form):
        self.lines = lines
        self.form = form

    @property
    def source(self):
        """It carries only what it uses: what carries nothing that changes is kept for several calls."""
        text = "\n".join(self.lines)
        carried = {"table": "table = {}", "total": "total = 0"}
        names = [each for name, each in carried.items() if name in text]
        variables = [
            f"    {name} = {value}" for name, value in {"seen": "[]", "count": "0"}.items() if name in text
        ]
        arguments = "value, kept=[]" if "kept" in text else "value"
        return "\n".join(
            [
                *names,
                "def make():",
                *variables,
                f"    def function({arguments}):",
                *(["        global total"] if "total" in text else []),
                *(["        nonlocal count"] if "count" in text else []),
                *(f"        {line}" for line in self.lines),
                "        return value",
                "    return function",
                "class Object:",
                "    def __init__(self): self.function = make()",
                "    def __call__(self, value): return self.function(value)",
                "    def method(self, value): return self.function(value)",
            ]
        )

    def make(self):
        names = {"__name__": "drawn"}
        exec(compile(self.source, "<drawn>", "exec"), names)
        if self.form == "object":
            return names["Object"]()
        if self.form == "method":
            return names["Object"]().method
        function = names["make"]()
        if self.form == "partial":
            return functools.partial(function)
        return (lambda value: function(value)) if self.form == "lambda" else function

    def __repr__(self):
        return f"{self.form} of {self.lines}"


NUMBERS = st.integers(-2, 3)


def lines(*kinds):
    return st.builds(lambda line, n: line.format(n=n), st.one_of(*map(st.sampled_from, kinds)), NUMBERS)


FUNCTIONS = st.builds(
    Described,
    # What one call could leave for another comes first, before anything raises.
    st.builds(
        lambda first, others: [first, *others],
        lines(CHANGING, COUNTING, REMEMBERING),
        st.lists(lines(COUNTING, CHANGING, REMEMBERING, COMPUTING, ENDING), max_size=3),
    ),
    st.sampled_from(FORMS),
)

PLAIN = st.one_of(
    NUMBERS, st.floats(width=16), st.text("ab", max_size=2), st.none(), st.booleans(), st.binary(max_size=2)
)

CHANGEABLE = st.one_of(
    st.lists(NUMBERS, max_size=3),
    st.tuples(st.lists(NUMBERS, max_size=2), NUMBERS),
    st.dictionaries(st.sampled_from("kl"), NUMBERS, max_size=2),
    st.sets(NUMBERS, max_size=2),
    st.lists(NUMBERS, min_size=1, max_size=3).map(np.array),
    st.sampled_from([2000, 40_000]).map(np.zeros),
)

VALUES = st.one_of(PLAIN, CHANGEABLE, CHANGEABLE)


@st.composite
def items(draw):
    """Some values, the same object here and there."""
    values = draw(st.lists(VALUES, min_size=1, max_size=4))
    places = draw(st.lists(st.integers(0, len(values) - 1), max_size=4))
    return [values[at] for at in places] * draw(st.sampled_from([2, 3, 1]))


def shown(value):
    """A value so that it can be compared, its types included."""
    if isinstance(value, BaseException):
        return type(value).__name__, repr(value.args)
    if isinstance(value, np.ndarray) and value.size > 100:
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, (list, tuple)):
        return type(value), [shown(each) for each in value]
    return type(value), repr(value)


def attempt(call):
    """What a call returns, or raises."""
    try:
        return call()
    except Exception as error:
        return error


def wanted_of_calls(described, values):
    """What each call by itself gives."""
    return [attempt(lambda: described.make()(copy.deepcopy(value))) for value in values]


def wanted_of_parts(described, values, bounds):
    """What a function that goes through a partition gives for each partition."""

    def of(part):
        function = described.make()
        return [function(value) for value in part]

    return [attempt(lambda: of(copy.deepcopy(values[start:end]))) for start, end in bounds]


def errors_of(results):
    return [result for result in results if isinstance(result, Exception)]


def agree(found, wanted):
    """Results in their order; or an exception, which is one of those that were to be expected."""
    failures = errors_of(wanted)
    if failures:
        assert shown(found) in [shown(failure) for failure in failures]
    else:
        assert shown(found) == shown(wanted)


def by_parallel(mesh, draw, described, values):
    call = mesh.parallel(described.make())
    results = [call(value) for value in values]
    assert shown([attempt(result.result) for result in results]) == shown(wanted_of_calls(described, values))


def by_executor(mesh, draw, described, values):
    function = described.make()
    with mesh.executor() as executor:
        results = [executor.submit(function, value) for value in values]
        assert shown([attempt(result.result) for result in results]) == shown(
            wanted_of_calls(described, values)
        )


def by_executor_map(mesh, draw, described, values):
    wanted = wanted_of_calls(described, values)
    with mesh.executor() as executor:
        found = attempt(
            lambda: list(executor.map(described.make(), values, chunksize=draw(st.integers(1, 4))))
        )
    agree(found, errors_of(wanted)[:1] or wanted)


def by_map(mesh, draw, described, values):
    wanted = wanted_of_calls(described, values)
    chunk, ordered = draw(st.sampled_from([None, 1, 2, 5])), draw(st.booleans())
    results = mesh.map(
        described.make(), iter(values) if draw(st.booleans()) else values, chunk=chunk, ordered=ordered
    )
    found = []
    failure = attempt(lambda: found.extend(each for each in iter_of(results, found)))
    if ordered:
        first = next((at for at, each in enumerate(wanted) if isinstance(each, Exception)), len(wanted))
        assert shown(found) == shown(wanted[:first])
        assert shown(failure) == shown((wanted[first : first + 1] or [None])[0])
    elif errors_of(wanted):
        assert shown(failure) in [shown(each) for each in errors_of(wanted)]
    else:
        assert sorted(map(str, map(shown, found))) == sorted(map(str, map(shown, wanted)))


def iter_of(results, found):
    """Takes results as they come, so that those before an exception are seen."""
    for each in results:
        found.append(each)
    return
    yield


def by_parallelize(mesh, draw, described, values):
    function, n = described.make(), draw(st.integers(1, 4))
    merge = draw(st.sampled_from(["concat", None, "function"]))

    def joined(parts):
        return [value for part in parts for value in part]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = mesh.parallelize(
            values,
            lambda part: [function(value) for value in part],
            n,
            merge=joined if merge == "function" else merge,
            fan_in=draw(st.integers(2, 3)),
        )
    wanted = wanted_of_parts(described, values, partitions.bounds(len(values), None, n))
    if not errors_of(wanted) and merge is not None:
        wanted = joined(wanted)
    agree(attempt(job.collect), wanted)


class Items:
    """A source of values."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def read(self, offset, limit):
        return self.values[offset : offset + limit]


def by_map_reduce(mesh, draw, described, values):
    function, n = described.make(), draw(st.integers(1, 4))
    values = values or [0]
    n = min(n, len(values))
    job = mesh.map_reduce(
        Items(values), lambda piece: [function(value) for value in piece], lambda one, other: one + other, n
    )
    wanted = wanted_of_parts(described, values, partitions.bounds(len(values), None, n))
    agree(attempt(job.collect), wanted if errors_of(wanted) else [value for part in wanted for value in part])


def by_joblib(mesh, draw, described, values):
    function, size = described.make(), draw(st.sampled_from(["auto", 1, 3]))
    with joblib.parallel_config(backend="floe"):
        tasks = (joblib.delayed(function)(value) for value in values)
        found = attempt(lambda: joblib.Parallel(n_jobs=2, batch_size=size)(tasks))
    agree(found, wanted_of_calls(described, values))


ROW_LINES = (
    "value = row['a']",
    "value = row['b']",
    "value = row['a'] * 2 + row['b']",
    "value = row['a'] - row['b'] / 2",
    "value = row['a'] > row['b']",
    "value = row",
    "value = row.name",
    "value = -row.b if row.a else None",
    "value = pd.Series({{'p': row['a'], 'q': {n}}})",
    "value = [row['a']] * {n}",
    "value = pd.Timestamp(2020, 1, 1 + abs({n})) if row['b'] else pd.NaT",
)

COLUMNS_TO_APPLY = st.one_of(
    st.lists(st.integers(-3, 3), min_size=6, max_size=6).map(pd.Series),
    st.lists(st.integers(2**52, 2**62), min_size=6, max_size=6).map(pd.Series),
    st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=6, max_size=6).map(
        lambda values: pd.Series(values, dtype="float64")
    ),
    st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=6, max_size=6).map(
        lambda values: pd.Series(values, dtype="Int64")
    ),
    st.lists(st.sampled_from(["a", "b", None]), min_size=6, max_size=6).map(pd.Series),
    st.lists(st.sampled_from(["a", "b", None]), min_size=6, max_size=6).map(
        lambda values: pd.Series(pd.Categorical(values))
    ),
    st.lists(st.booleans(), min_size=6, max_size=6).map(pd.Series),
)


@st.composite
def frames_to_apply(draw):
    frame = pd.DataFrame({"a": draw(COLUMNS_TO_APPLY), "b": draw(COLUMNS_TO_APPLY)})
    frame.index = draw(st.sampled_from([pd.RangeIndex(6), pd.Index(list("xyzxyz"), name="i")]))
    frame = frame.iloc[: draw(st.integers(0, 6))]
    return frame if draw(st.booleans()) else frame["a"]


def by_apply(mesh, draw, described, values):
    frame, n = draw(frames_to_apply()), draw(st.integers(1, 3))
    first = draw(st.sampled_from(ROW_LINES)).format(n=draw(NUMBERS)) if frame.ndim == 2 else "value = row"
    drawn = Described([line for line in (first, *described.lines)], "function")

    def make():
        made = {"__name__": "drawn", "pd": pd}
        exec(compile(drawn.source.replace("function(value", "function(row"), "<drawn>", "exec"), made)
        return made["make"]()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = outcome(lambda: pandas_apply(frame.copy(deep=True), make()))
        found = outcome(lambda: mesh.apply(frame, make(), n, quiet=True))
    if isinstance(wanted, Exception) and isinstance(found, Exception):
        assert shown(found) == shown(wanted)
    else:
        assert same(found, wanted), f"{found!r} for {wanted!r}"


def by_frames(mesh, draw, described, values):
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3, unique=True))
    columns = {"c" if at == 0 else name: COLUMNS[name] for at, name in enumerate(names)}
    frame = pd.DataFrame({**columns, "k": range(ROWS)})
    if draw(st.booleans()):
        frame = frame.set_axis(INDEXES[draw(st.sampled_from(sorted(INDEXES)))])
    frame = frame.iloc[draw(st.integers(0, 4)) : draw(st.integers(4, ROWS))]
    function = PANDAS_FUNCTIONS[draw(st.sampled_from(sorted(PANDAS_FUNCTIONS)))]
    wanted = outcome(lambda: function(frame.copy(deep=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = outcome(lambda: mesh.parallelize(frame, function, draw(st.integers(1, 3))).collect())
    if isinstance(wanted, Exception):
        assert isinstance(found, Exception)
    else:
        assert same_pandas(found, wanted), f"{found!r} for {wanted!r}"


#: The ways of calling, and how many of a hundred draws are for each: those that make no job take least time.
WAYS = {
    "parallel": (by_parallel, 20),
    "executor": (by_executor, 14),
    "executor's map": (by_executor_map, 16),
    "map": (by_map, 22),
    "parallelize": (by_parallelize, 8),
    "map_reduce": (by_map_reduce, 5),
    "joblib": (by_joblib, 5),
    "apply": (by_apply, 5),
    "frames": (by_frames, 5),
}


@pytest.mark.parametrize("way", WAYS)
def test_as_plain_python(mesh, way, pytestconfig):
    draws = pytestconfig.getoption("draws")
    compare, share = WAYS[way]

    @hypothesis.settings(
        max_examples=max(1, (draws or 500) * share // 100),
        # The same ones each time, unless somebody asks for more.
        derandomize=draws is None,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(data=st.data(), described=FUNCTIONS, values=items())
    def check(data, described, values):
        compare(mesh, data.draw, described, values)

    check()
