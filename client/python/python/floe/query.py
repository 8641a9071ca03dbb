"""Queries: plans of py-polars, and their results."""

from __future__ import annotations

import re
from typing import Any

from . import data, frames, pickling
from .errors import VersionError

#: The versions of py-polars whose plans the nodes are known to read: from the first to before the second.
SUPPORTED = ((1, 40), (2, 2))


def serialized(lazyframe: Any) -> bytes:
    """A LazyFrame's plan, as it is sent."""
    import polars

    if isinstance(lazyframe, polars.DataFrame):
        lazyframe = lazyframe.lazy()
    if not isinstance(lazyframe, polars.LazyFrame):
        raise TypeError(f"a Polars LazyFrame is needed, not {pickling.a(lazyframe)}")
    check_version(polars.__version__)
    return bytes(lazyframe.serialize())


def check_version(version: str) -> None:
    """Refuses a py-polars of which it is not known that the nodes read its plans."""
    match = re.match(r"(\d+)\.(\d+)", version)
    found = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not SUPPORTED[0] <= found < SUPPORTED[1]:
        (first_major, first_minor), (major, minor) = SUPPORTED
        raise VersionError(
            f"plans of Polars {version} may not be read aright by the nodes: this version of Floe takes "
            f"those of Polars {first_major}.{first_minor} to before {major}.{minor}"
        )


def joined(parts: list[Any]) -> Any:
    """A query's partitions as one frame. They are of one plan, and so of one schema."""
    if len(parts) == 1:
        return parts[0]
    kind = frames.kind_of(parts[0])
    if kind == "polars":
        import polars

        return polars.concat(parts, rechunk=False)
    if kind == "pandas":
        import pandas

        return pandas.concat(parts, ignore_index=True)
    return data.concat(parts, "the query")


def register(polars: Any) -> None:
    """Gives every LazyFrame its ``floe``."""
    if hasattr(polars.LazyFrame, "floe"):
        return

    class LazyFrameNamespace:
        """Floe's methods of a LazyFrame: ``lf.floe.collect()``."""

        def __init__(self, lazyframe: Any) -> None:
            self._lazyframe = lazyframe

        def collect(self, mesh: Any = None) -> Any:
            """The frame's result, computed by a mesh: the one that was last connected to, unless given."""
            return self._mesh(mesh).collect(self._lazyframe)

        def submit(self, mesh: Any = None) -> Any:
            """The frame as a job of a mesh."""
            return self._mesh(mesh).query(self._lazyframe)

        @staticmethod
        def _mesh(mesh: Any) -> Any:
            from ._connect import default_mesh

            return default_mesh() if mesh is None else mesh

    polars.api.register_lazyframe_namespace("floe")(LazyFrameNamespace)
