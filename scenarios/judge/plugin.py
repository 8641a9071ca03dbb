"""A pytest plugin: every plan that a test collects is collected by a mesh too, and the two are compared.

The test itself goes on with Polars' own result, so it passes or fails as it would without this. `judge.py`
starts pytest with it, and says by `FLOE_JUDGE`, a JSON object, what `Settings` holds.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import cloudpickle
import polars as pl
import pytest
import verdict
from verdict import Verdict

import floe

#: How long a plan may take in the mesh, in seconds. Those of the tests take milliseconds.
PLAN_SECONDS = 30

#: How long to wait for a mesh that lost its nodes: the runner starts others.
MESH_SECONDS = 60

#: Plans up to this size are sent.
MAX_PLAN_BYTES = 8 << 20


@dataclass(frozen=True)
class Settings:
    """What the runner says."""

    #: The file with the addresses of the mesh's nodes; the runner writes it anew when it starts others.
    addresses: str
    #: The mesh's key.
    key_file: str
    #: Where the verdicts go, one JSON object a line.
    verdicts: str
    #: The file that tells which test runs, or was running when the process before this one ended.
    progress: str
    #: Where plans that did not come back equal are kept, if anywhere.
    keep: str | None
    #: Every how manieth test is taken.
    every: int
    #: Which of so many shards this is.
    shard: int
    shards: int


class Judge:
    """Sends plans to the mesh and writes down what came of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mesh: floe.Mesh | None = None
        self._out = open(settings.verdicts, "a", encoding="utf-8")
        self._busy = False
        #: The test that runs, and how many plans it has collected.
        self.test = ""
        self.plans = 0

    def watch(self, collect: Callable[..., Any]) -> Callable[..., Any]:
        """`LazyFrame.collect`, and then the same by the mesh."""

        def judged(frame: pl.LazyFrame, *args: Any, **options: Any) -> Any:
            # Comparing frames collects plans too, and so do functions of a plan, in threads of Polars.
            main = threading.current_thread() is threading.main_thread()
            if self._busy or not main or not self.test or options.get("background"):
                return collect(frame, *args, **options)
            try:
                result = collect(frame, *args, **options)
            except Exception as error:
                if isinstance(error, (TypeError, Warning)):  # Of the call, not of the plan.
                    raise
                self._judge(frame, error)
                raise
            if isinstance(result, pl.DataFrame):
                self._judge(frame, result)
            return result

        return judged

    def _judge(self, frame: pl.LazyFrame, wanted: pl.DataFrame | Exception) -> None:
        self._busy = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.plans += 1
                started = time.monotonic()
                plan = _serialized(frame)
                found = plan if isinstance(plan, Verdict) else self._verdict(plan, wanted)
                self._write(found, plan, time.monotonic() - started)
        finally:
            self._busy = False

    def _verdict(self, plan: bytes, wanted: pl.DataFrame | Exception) -> Verdict:
        try:
            got = self._collected(plan)
        except Exception as error:
            return verdict.of_error(error, wanted, plan)
        return verdict.of_frame(got, wanted, plan)

    def _collected(self, plan: bytes) -> pl.DataFrame:
        """A plan's result from the mesh, with one more try if it was another plan that ended the nodes."""
        lazy = pl.LazyFrame.deserialize(io.BytesIO(plan))
        for last in (False, True):
            try:
                job = self._connected().query(lazy, label=self.test[-60:])
                frame = job.collect(PLAN_SECONDS)
                assert isinstance(frame, pl.DataFrame)
                return frame
            except (floe.Unreachable, floe.Unavailable):
                if self._mesh is not None:
                    self._mesh.close()
                    self._mesh = None
                if last:
                    raise
                time.sleep(1)
        raise AssertionError("the last try returns or raises")

    def _connected(self) -> floe.Mesh:
        end = time.monotonic() + MESH_SECONDS
        while self._mesh is None:
            addresses = Path(self._settings.addresses).read_text().split()
            try:
                self._mesh = floe.connect(
                    addresses, key_file=self._settings.key_file, timeout=10, start=False
                )
            except floe.Error:
                if time.monotonic() > end:
                    raise
                time.sleep(1)
        return self._mesh

    def _write(self, found: Verdict, plan: bytes | Verdict, seconds: float) -> None:
        line = {
            "test": self.test,
            "plan": self.plans,
            "verdict": found.name,
            "kind": found.kind,
            "why": found.why,
            "ms": round(seconds * 1000, 1),
        }
        if self._settings.keep and isinstance(plan, bytes) and found.name not in verdict.RIGHT:
            name = hashlib.sha256(plan).hexdigest()[:16] + ".plan"
            (Path(self._settings.keep) / name).write_bytes(plan)
            line["kept"] = name
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()

    def begin(self, test: str) -> None:
        """Another test begins."""
        self.test, self.plans = test, 0
        if test:
            Path(self._settings.progress).write_text(test)

    def share(self, items: list[pytest.Item]) -> list[pytest.Item]:
        """The tests of this shard that are left, and of these a sample."""
        settings = self._settings
        share = items[:: settings.every][settings.shard :: settings.shards]
        reached = Path(settings.progress).read_text()
        done = next((at + 1 for at, item in enumerate(share) if item.nodeid == reached), 0)
        return share[done:]

    def close(self) -> None:
        """Leaves the mesh."""
        self._out.close()
        if self._mesh is not None:
            self._mesh.close()


def _serialized(frame: pl.LazyFrame) -> bytes | Verdict:
    try:
        plan = bytes(frame.serialize())
    except BaseException as error:  # Polars panics at some plans, which is no Exception.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return verdict.unserializable(error)
    if len(plan) > MAX_PLAN_BYTES:
        return Verdict("unserializable", "the plan is large", f"{len(plan)} bytes")
    return plan


_judge: Judge | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Puts the judge in the way of every plan."""
    global _judge
    _judge = Judge(Settings(**json.loads(os.environ["FLOE_JUDGE"])))
    pl.LazyFrame.collect = _judge.watch(pl.LazyFrame.collect)  # type: ignore[method-assign]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves the mesh."""
    if _judge is not None:
        _judge.close()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes this shard's tests."""
    if _judge is not None:
        items[:] = _judge.share(items)
        for item in items:
            # The nodes do not have the tests' own modules, as a user would say by `modules=`.
            if isinstance(item, pytest.Function):
                cloudpickle.register_pickle_by_value(item.module)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Tells the judge which test it is."""
    if _judge is not None:
        _judge.begin(item.nodeid)
    yield
    if _judge is not None:
        _judge.begin("")
