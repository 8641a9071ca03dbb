"""Measures one system once, in a process of its own. `compare.py` runs this; it is of no use to people.

The measured functions are defined here, in the program that runs, as they would be in a user's script.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import traceback
from pathlib import Path

import numpy
import pandas

import systems

WARM_CALLS = 500
WARM_TRIPS = 200
WARM_FRAMES = 3
FRAMES = 5
"""How often the whole frame is measured. The first time the memory for it is new to every process, and in a virtual
machine to the host too, which costs more than anything else and differs from run to run."""
WARM_ROWS_PER_PARTITION = 1000
WARM_SECONDS = 60
"""How long both workers may take to answer for the first time."""


def noop(argument):
    return argument


def process(_):
    import os
    import time

    # Long enough that the other worker gets the next one.
    time.sleep(0.01)
    return os.getpid()


def legs(frame):
    """The length of each row's great circle in km and its first bearing, row by row in plain Python: the work
    that people want spread because it cannot be vectorised, or was not."""
    import math

    lengths = []
    bearings = []
    for row in frame.itertuples(index=False):
        origin, goal = math.radians(row.from_lat), math.radians(row.to_lat)
        apart = math.radians(row.to_lon - row.from_lon)
        half = (
            math.sin((goal - origin) / 2) ** 2 + math.cos(origin) * math.cos(goal) * math.sin(apart / 2) ** 2
        )
        lengths.append(2 * 6371.0088 * math.asin(min(1.0, math.sqrt(half))))
        east = math.sin(apart) * math.cos(goal)
        north = math.cos(origin) * math.sin(goal) - math.sin(origin) * math.cos(goal) * math.cos(apart)
        bearings.append(math.degrees(math.atan2(east, north)) % 360)
    return frame.assign(km=lengths, bearing=bearings)


def example_frame(rows):
    random = numpy.random.default_rng(4)
    return pandas.DataFrame(
        {
            "leg": numpy.arange(rows),
            "from_lat": random.uniform(-90, 90, rows),
            "from_lon": random.uniform(-180, 180, rows),
            "to_lat": random.uniform(-90, 90, rows),
            "to_lon": random.uniform(-180, 180, rows),
        }
    )


def warm(system):
    """Calls until both workers have answered; returns how many processes did."""
    end = time.monotonic() + WARM_SECONDS
    seen = set()
    while len(seen) < systems.WORKERS:
        if time.monotonic() > end:
            raise RuntimeError(f"{len(seen)} of {systems.WORKERS} workers answered within {WARM_SECONDS} s")
        seen.update(system.submit_all(process, range(10 * systems.WORKERS)))
    return len(seen)


def check(what, right):
    if not right:
        raise RuntimeError(f"wrong results from {what}")


def measure_calls(system, options):
    """Calls a second: one by one, and by `map` where the system has one."""
    measured = {}
    arguments = range(options.calls)
    for name, run in [("one_by_one_per_s", system.submit_all), ("map_per_s", system.map)]:
        if run(noop, range(WARM_CALLS)) is None:
            continue
        start = time.perf_counter()
        results = run(noop, arguments)
        measured[name] = options.calls / (time.perf_counter() - start)
        check(name, list(results) == list(arguments))
    return measured


def measure_trips(system, options):
    for argument in range(WARM_TRIPS):
        system.call(noop, argument)
    times = []
    for argument in range(options.trips):
        start = time.perf_counter()
        result = system.call(noop, argument)
        times.append((time.perf_counter() - start) * 1000)
        check("one call", result == argument)
    return {"p50_ms": percentile(times, 0.5), "p99_ms": percentile(times, 0.99)}


def measure_frames(system, options):
    frame = example_frame(options.rows)
    few = frame.head(WARM_ROWS_PER_PARTITION * options.partitions)
    for _ in range(WARM_FRAMES):
        system.apply(legs, few, options.partitions)
    reference = pandas.read_pickle(options.reference)
    times = []
    for _ in range(FRAMES):
        start = time.perf_counter()
        result = system.apply(legs, frame, options.partitions)
        times.append(time.perf_counter() - start)
        check("the frame", result.equals(reference) and result.index.equals(reference.index))
        del result
    return {"seconds": statistics.median(times), "first_seconds": times[0]}


def percentile(values, part):
    """The value that `part` of the values are below or at."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


MEASURES = {"calls": measure_calls, "trips": measure_trips, "frames": measure_frames}


def write(path, measured):
    """Whole or not at all: this process may be ended at any moment for taking too long."""
    path.with_suffix(".part").write_text(json.dumps(measured))
    path.with_suffix(".part").replace(path)


def one_line(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=[*systems.NAMES, "reference"])
    parser.add_argument("--measures", type=lambda text: text.split(","), default=list(MEASURES))
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--trips", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    if options.system == "reference":
        frame = example_frame(options.rows)
        start = time.perf_counter()
        result = legs(frame)
        seconds = time.perf_counter() - start
        result.to_pickle(options.reference)
        write(options.out, {"frames": {"seconds": seconds}})
        return

    measured = {}
    try:
        system = systems.start(options.system, options.scratch)
    except ModuleNotFoundError as error:
        traceback.print_exc()
        write(options.out, {"error": f"not installed: {error}"})
        return
    except Exception as error:
        traceback.print_exc()
        write(options.out, {"error": one_line(error)})
        return
    measured["version"] = system.version
    try:
        measured["processes"] = warm(system)
        for name in options.measures:
            try:
                measured[name] = MEASURES[name](system, options)
            except Exception as error:
                traceback.print_exc()
                measured[name] = {"error": one_line(error)}
            write(options.out, measured)
    except Exception as error:
        traceback.print_exc()
        measured["error"] = one_line(error)
    write(options.out, measured)
    sys.stdout.flush()
    system.stop()


if __name__ == "__main__":
    main()
