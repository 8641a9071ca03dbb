"""Lets py-polars' own unit tests judge the mesh: README.md beside this file."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path

import verdict
from nodes import Nodes
from shards import Shards

#: Where the tests are, if not said.
REPOSITORY = "https://github.com/pola-rs/polars"

#: The folders of `tests/unit` whose plans count.
FOLDERS = ("lazyframe", "operations", "functions", "sql", "io", "datatypes", "expr")

#: Tests that are left out: slow ones, ones for other machines, and generated ones, of thousands of plans.
MARKS = "not slow and not benchmark and not ci_only and not release and not docs and not hypothesis"


def main() -> int:
    """Runs the tests and says what came of their plans."""
    options = _arguments()
    version = metadata.version("polars")
    with tempfile.TemporaryDirectory(prefix="floe-judge-") as directory:
        work = Path(directory)
        tests = options.tests or _fetched(options.repository, f"py-{version}", work / "polars")
        if (tests / "py-polars").is_dir():
            tests = tests / "py-polars"
        paths = [str(tests / "tests" / "unit" / folder) for folder in options.folders]
        if missing := [path for path in paths if not Path(path).exists()]:
            raise SystemExit(f"judge: there is no {missing[0]}")
        options.json.write_text("")
        with Nodes(options.binary, work, options.nodes) as nodes:
            started = time.monotonic()
            deaths = _run(options, nodes, Shards(options, nodes, tests, paths, work))
            seconds = time.monotonic() - started
        lines = [json.loads(line) for line in options.json.read_text().splitlines()]
    print(_summary(version, lines, deaths, seconds, options.examples))
    bad = any(line["verdict"] in ("wrong", "misordered") for line in lines)
    return 1 if bad or deaths else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--binary", type=Path, default=os.environ.get("FLOE_BINARY", "floe"), help="the floe command")
    add(
        "--repository", default=REPOSITORY, help="where the tests are fetched from: an address or a directory"
    )
    add("--tests", type=Path, help="a directory that has them already (of py-polars, or of its repository)")
    add("--folders", nargs="+", default=FOLDERS, help="folders or files of tests/unit")
    add("--select", default="", help="pytest's -k")
    add("--marks", default=MARKS, help="pytest's -m")
    add("--every", type=int, default=1, help="take every so manieth test only")
    add("--jobs", type=int, default=2, help="so many processes run tests")
    add("--nodes", type=int, default=3, help="so many nodes make the mesh")
    add("--minutes", type=float, default=120, help="stop after so long, with what there is")
    add("--json", type=Path, default=Path("judge.jsonl"), help="where each plan's verdict goes")
    add("--keep", type=Path, help="a directory for the plans that did not come back equal")
    add("--examples", type=int, default=2, help="so many tests are named for each kind")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    return options


def _fetched(repository: str, tag: str, to: Path) -> Path:
    """The tests of one version, and nothing else of its repository."""

    def git(*words: str) -> None:
        subprocess.run(["git", *words], check=True, stdout=subprocess.DEVNULL)

    if "://" not in repository:
        repository = Path(repository).resolve().as_uri()
    git("-c", "advice.detachedHead=false", "clone", "--quiet", "--depth=1", "--filter=blob:none", "--sparse",
        "--branch", tag, repository, str(to))  # fmt: skip
    git("-C", str(to), "sparse-checkout", "set", "py-polars/tests")
    return to


def _run(options: argparse.Namespace, nodes: Nodes, shards: Shards) -> list[str]:
    """Runs all shards; returns what nodes died of."""
    end = time.monotonic() + options.minutes * 60
    deaths: list[str] = []
    with shards:
        while shards.go_on() and time.monotonic() < end:
            time.sleep(0.5)
            deaths += nodes.restart_dead()
        if shards.go_on():
            print("judge: the time is over; what follows is of a part of the tests", file=sys.stderr)
    return deaths


def _summary(
    version: str, lines: list[dict[str, str]], deaths: list[str], seconds: float, examples: int
) -> str:
    """What came of the plans, by verdict and by kind."""
    counts = Counter(line["verdict"] for line in lines)
    out = [f"{len(lines)} plans of py-polars {version}'s tests in {seconds:.0f} s"]
    out += [
        f"{counts[name]:7}  {name:15} {meaning}" for name, meaning in verdict.MEANING.items() if counts[name]
    ]
    counted = sum(count for name, count in counts.items() if name not in verdict.LEFT_OUT)
    equal = counts["equal"] + counts["reordered"]
    if counted:
        out.append(f"of {counted} that count, {100 * equal / counted:.2f} % came back equal")
    for name in reversed(verdict.MEANING):
        if name in ("equal", "reordered", "both fail") or not counts[name]:
            continue
        kinds: dict[str, list[str]] = defaultdict(list)
        for line in lines:
            if line["verdict"] == name:
                kinds[line["kind"]].append(line["test"])
        out.append(f"\n{name}:")
        for kind, tests in sorted(kinds.items(), key=lambda item: -len(item[1])):
            out.append(f"{len(tests):7}  {kind or '(nothing was said)'}")
            out += [f"         in {test}" for test in list(dict.fromkeys(tests))[:examples]]
    if deaths:
        out.append("\nnodes that died: " + "; ".join(deaths))
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(main())
