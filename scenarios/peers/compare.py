"""Measures every system several times, in turn, and prints each figure beside its target. `run` starts it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
import report
import systems

TURN_SECONDS = 600
"""How long one system may take for one round; then it is ended and counts as failed."""
LOG_LINES = 15


class Turns:
    """Runs `measure.py` for one system at a time, in a process namespace of its own: when its first process
    ends, for whatever reason, the kernel ends all the others: nothing of one system runs beside the next."""

    def __init__(self, options, scratch):
        self.options = options
        self.scratch = scratch
        self.reference = scratch / "reference.pickle"

    def run(self, name, label):
        """What was measured, with what went wrong under `error`."""
        options = self.options
        # Short, since sockets lie below it and the paths of those are limited.
        place = self.scratch / label
        (place / "s").mkdir(parents=True)
        out = place / "out"
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # The first process of a namespace must look after orphans, which a shell does.
        command += ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, measure.__file__, name]
        for option in ["calls", "trips", "rows", "partitions"]:
            command += [f"--{option}", str(getattr(options, option))]
        command += ["--measures", ",".join(options.measures), "--reference", str(self.reference)]
        command += ["--scratch", str(place / "s"), "--out", str(out)]
        environment = dict(os.environ)
        if options.binary:
            environment["FLOE_PEERS_BINARY"] = str(options.binary)
        try:
            trouble = run(command, place / "log", environment)
            measured = json.loads(out.read_text()) if out.exists() else {}
            if trouble:
                measured.setdefault("error", trouble)
            errors = [measured.get("error")] + [
                measured.get(what, {}).get("error") for what in options.measures
            ]
            for error in filter(None, errors):
                say(f"{name}: {error}")
            if any(errors) and not options.logs:
                say(*last_lines(place / "log"))
            return measured
        finally:
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                shutil.copy(place / "log", options.logs / f"{label}.log")
                for node in (place / "s").glob("node-*/log"):
                    shutil.copy(node, options.logs / f"{label}-{node.parent.name}.log")
            shutil.rmtree(place, ignore_errors=True)


def run(command, log, environment):
    """Runs the command with its output in the file `log`. Returns what went wrong, or `None`."""
    with open(log, "wb") as file:
        # A session of its own: Ctrl-C is for this program, which then ends the other.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        status = process.wait(TURN_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done within {TURN_SECONDS} s"
    finally:
        # With it goes the namespace's first process, and with that all others.
        process.kill()
        process.wait()
    return f"ended with status {status}" if status else None


def last_lines(log):
    return log.read_text(errors="replace").splitlines()[-LOG_LINES:]


def say(*lines):
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def compare(options, scratch):
    turns = Turns(options, scratch)
    machine = describe_machine()
    if machine["load"] > 0.5:
        say(f"the machine is busy (load {machine['load']:.1f}): these figures will mean little")
    say("the frame's function, in one process without any system")
    alone = turns.run("reference", "reference")
    if "error" in alone:
        sys.exit(f"peers: there is nothing to check results against: {alone['error']}")
    rounds = {name: [] for name in options.only}
    for number in range(options.rounds):
        # Each round begins with another system, so that none always runs after the same one.
        first = number % len(options.only)
        for name in options.only[first:] + options.only[:first]:
            say(f"round {number + 1} of {options.rounds}: {systems.NAMES[name]}")
            rounds[name].append(turns.run(name, f"{name}-{number + 1}"))
    settings = {name: getattr(options, name) for name in ["rounds", "calls", "trips", "rows", "partitions"]}
    return {"machine": machine, "settings": settings, "alone": alone, "rounds": rounds}


def describe_machine():
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model[0] if model else platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def names(choices):
    def parse(text):
        chosen = text.split(",")
        for name in chosen:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(choices)}")
        return chosen

    return parse


def at_least_one(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def main():
    parser = argparse.ArgumentParser(prog="scenarios/peers/run")
    parser.add_argument("--only", type=names(list(systems.NAMES)), default=list(systems.NAMES))
    parser.add_argument("--measures", type=names(list(measure.MEASURES)), default=list(measure.MEASURES))
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--calls", type=at_least_one, default=10_000)
    parser.add_argument("--trips", type=at_least_one, default=1_000)
    parser.add_argument("--rows", type=at_least_one, default=2_000_000)
    parser.add_argument("--partitions", type=at_least_one, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--binary", type=Path)
    options = parser.parse_args()

    # As Ctrl-C: clean up, then end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scratch = Path(tempfile.mkdtemp(prefix="floe-peers-"))
    try:
        results = compare(options, scratch)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    summary = report.summarize(results, options.measures)
    print(report.text(summary, results))
    if options.json:
        options.json.write_text(json.dumps({**summary, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
