"""The processes that run the tests, each a part of them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from nodes import Nodes

HERE = Path(__file__).resolve().parent

#: How often a process that a test ended is started again, to go on with the next test.
MAX_RESTARTS = 20

#: How pytest ends when it has run tests, and when there were none.
PYTEST_ENDS = (0, 1, 5)

#: How it ends when it could not run them.
PYTEST_FAILS = (2, 3, 4)


class Shards:
    """Runs of pytest side by side. Left by `with`, they have ended."""

    def __init__(
        self, options: argparse.Namespace, nodes: Nodes, tests: Path, paths: list[str], work: Path
    ) -> None:
        self._options = options
        self._nodes = nodes
        self._tests = tests
        self._paths = paths
        self._work = work
        self._restarts = 0
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Shards:
        for shard in range(self._options.jobs):
            self._running[shard] = self._start(shard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def go_on(self) -> bool:
        """Starts again what a test ended; whether anything runs."""
        for shard, process in list(self._running.items()):
            ended = process.poll()
            if ended is None:
                continue
            del self._running[shard]
            if ended in PYTEST_ENDS:
                continue
            if ended in PYTEST_FAILS:
                raise SystemExit(f"judge: pytest could not run: {self._log(shard).read_text()[-2000:]}")
            test = self._progress(shard).read_text()
            print(f"judge: {test or 'no test'} ended its process ({ended})", file=sys.stderr)
            if self._restarts < MAX_RESTARTS and test:
                self._restarts += 1
                self._running[shard] = self._start(shard)
        return bool(self._running)

    def _progress(self, shard: int) -> Path:
        """The file with the test that a shard is at."""
        return self._work / f"shard-{shard}.at"

    def _log(self, shard: int) -> Path:
        """What a shard's pytest writes."""
        path: Path = self._options.json.with_suffix(f".shard-{shard}.log")
        return path

    def _start(self, shard: int) -> subprocess.Popen[bytes]:
        """A process that runs a part of the tests, from the one after that which the last one ended at."""
        options = self._options
        self._progress(shard).touch()
        settings = {
            "addresses": str(self._nodes.addresses),
            "key_file": str(self._nodes.key_file),
            "verdicts": str(options.json.resolve()),
            "progress": str(self._progress(shard)),
            "keep": str(options.keep.resolve()) if options.keep else None,
            "every": options.every,
            "shard": shard,
            "shards": options.jobs,
        }
        command = [sys.executable, "-m", "pytest", "-qq", "--tb=no", "--no-header"]
        command += ["--continue-on-collection-errors", "-p", "plugin", "-p", "no:cacheprovider"]
        command += ["-o", "addopts=--import-mode=importlib", "-c", str(HERE / "pytest.ini")]
        command += ["--rootdir", str(self._tests), f"--basetemp={self._work / f'tests-{shard}'}"]
        command += ["-m", options.marks]
        command += ["-k", options.select] if options.select else []
        environment = {
            **os.environ,
            "FLOE_JUDGE": json.dumps(settings),
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with open(self._log(shard), "ab") as log:
            return subprocess.Popen(
                [*command, *self._paths], cwd=self._tests, env=environment, stdout=log, stderr=log
            )
