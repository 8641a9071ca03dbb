"""Functions and queries over a mesh of machines, from Python.

>>> import floe
>>> mesh = floe.connect()                        # doctest: +SKIP
>>> mesh.map(lambda n: n * n, range(4)).collect()
[0, 1, 4, 9]

The README of this package shows what there is; each function's own text says how it is used. On the nodes
this package is there as well, without its native part: :mod:`floe.source` works there, :func:`connect` does
not.
"""

from __future__ import annotations

import sys as _sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import source as source
    from ._connect import connect as connect
    from ._connect import default_mesh as default_mesh
    from ._decorators import parallel as parallel
    from ._decorators import require as require
    from .call import Parallel as Parallel
    from .call import Result as Result
    from .call import wait_all as wait_all
    from .environment import function as function
    from .environment import requires as requires
    from .errors import Busy as Busy
    from .errors import Cancelled as Cancelled
    from .errors import ContradictingEnds as ContradictingEnds
    from .errors import Crashed as Crashed
    from .errors import EnvironmentMismatch as EnvironmentMismatch
    from .errors import Error as Error
    from .errors import Exhausted as Exhausted
    from .errors import Forked as Forked
    from .errors import FunctionError as FunctionError
    from .errors import InternalError as InternalError
    from .errors import LimitExceeded as LimitExceeded
    from .errors import Lost as Lost
    from .errors import MemoryLimitExceeded as MemoryLimitExceeded
    from .errors import NoMesh as NoMesh
    from .errors import NoSuchJob as NoSuchJob
    from .errors import NotAFrame as NotAFrame
    from .errors import PartitionWarning as PartitionWarning
    from .errors import QueryError as QueryError
    from .errors import Refused as Refused
    from .errors import ResultFreed as ResultFreed
    from .errors import SchemaMismatch as SchemaMismatch
    from .errors import TimeLimitExceeded as TimeLimitExceeded
    from .errors import Unavailable as Unavailable
    from .errors import Unpicklable as Unpicklable
    from .errors import Unreachable as Unreachable
    from .errors import UnseenFile as UnseenFile
    from .errors import VersionError as VersionError
    from .executor import Executor as Executor
    from .job import Job as Job
    from .job import LogLine as LogLine
    from .mapping import Map as Map
    from .mesh import Mesh as Mesh
    from .mesh import Node as Node
    from .progress import Progress as Progress
    from .refs import Ref as Ref
    from .view import View as View

# Where each name is. They are loaded when they are asked for: a node's process needs next to none of them.
_HOME = {
    **dict.fromkeys(["Parallel", "Result", "wait_all"], "call"),
    **dict.fromkeys(["connect", "default_mesh"], "_connect"),
    **dict.fromkeys(["parallel", "require"], "_decorators"),
    **dict.fromkeys(["function", "requires"], "environment"),
    **dict.fromkeys(["Job", "LogLine"], "job"),
    **dict.fromkeys(["Mesh", "Node"], "mesh"),
    "Executor": "executor",
    "Map": "mapping",
    "Progress": "progress",
    "Ref": "refs",
    "View": "view",
    **dict.fromkeys(
        [
            "Busy",
            "Cancelled",
            "ContradictingEnds",
            "Crashed",
            "EnvironmentMismatch",
            "Error",
            "Exhausted",
            "Forked",
            "FunctionError",
            "InternalError",
            "LimitExceeded",
            "Lost",
            "MemoryLimitExceeded",
            "NoMesh",
            "NoSuchJob",
            "NotAFrame",
            "PartitionWarning",
            "QueryError",
            "Refused",
            "ResultFreed",
            "SchemaMismatch",
            "TimeLimitExceeded",
            "Unavailable",
            "Unpicklable",
            "Unreachable",
            "UnseenFile",
            "VersionError",
        ],
        "errors",
    ),
}

__all__ = [*sorted(_HOME), "source"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("source", "errors"):
        return importlib.import_module(f"floe.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("floe-mesh")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'floe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"floe.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if "floe_host" not in _sys.modules:
    # So that `joblib.parallel_config(backend="floe")` and `lazyframe.floe` work from now on.
    from . import _on_import

    _on_import.install()
