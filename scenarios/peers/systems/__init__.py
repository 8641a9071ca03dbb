"""The systems that are compared, each behind the same few methods.

Every system runs two worker processes that do one thing at a time, is used as its own documentation tells a
user to, and keeps its defaults unless said otherwise beside the setting.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import pandas

NAMES = {
    "floe": "floe",
    "dask": "dask.distributed",
    "ray": "Ray",
    "ipyparallel": "ipyparallel",
    "pool": "ProcessPoolExecutor",
}
"""What each system is called in tables, by the name of its module here."""

WORKERS = 2


class System(Protocol):
    """A started system. Making one starts it, in `scratch`, where it may leave whatever it likes."""

    version: str

    def __init__(self, scratch: Path) -> None: ...

    def submit_all(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
        """Submits one call an argument, one by one, and gathers the results in the order of the arguments."""

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """One call there and back."""

    def map(self, function: Callable[[Any], Any], arguments: range) -> list[Any] | None:
        """The same as `submit_all` through the system's own `map`, which may batch. `None`: it has none."""

    def apply(
        self,
        function: Callable[[pandas.DataFrame], pandas.DataFrame],
        frame: pandas.DataFrame,
        partitions: int,
    ) -> pandas.DataFrame:
        """Cuts `frame`, runs `function` on each part, and puts the results together in order."""

    def stop(self) -> None: ...


def start(name: str, scratch: Path) -> System:
    """Starts the system of that name. Raises what it raises, `ImportError` where it is not installed."""
    return importlib.import_module(f"{__name__}.{name}").System(scratch)


def cut(frame: pandas.DataFrame, partitions: int) -> list[pandas.DataFrame]:
    """The frame in that many parts of as equal lengths as can be."""
    ends = [len(frame) * part // partitions for part in range(partitions + 1)]
    return [frame.iloc[start:end] for start, end in itertools.pairwise(ends)]
