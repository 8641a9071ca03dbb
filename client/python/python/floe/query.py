"""Queries: plans of py-polars, and their results."""

from __future__ import annotations

import io
import pickle
import re
import threading
from typing import Any, Iterator, NamedTuple

from . import data, frames, pickling
from .errors import VersionError

#: The versions of py-polars whose plans are sent: from the first to before the second. Those after 2.1 are
#: tried: what a node does not know it refuses by name, and a result whose types would be others too.
SUPPORTED = ((1, 40), (3, 0))


#: What stands before a path among a plan's sources, as msgpack has it, with the path's length.
_SOURCE = re.compile(rb"\xa5inner(?:([\xa0-\xbf])|\xd9(.)|\xda(..))", re.DOTALL)

_OBJECT_STORE = re.compile(rb"[a-z0-9]+://")


class Plan(NamedTuple):
    """A LazyFrame as it is sent."""

    #: The plan, as `LazyFrame.serialize` writes it.
    dsl: bytes
    #: The schema that this Polars gives its result, or nothing where it cannot tell.
    schema: bytes
    #: What of that the nodes' Polars would take for something else, in a sentence.
    foreign: str | None = None


def serialized(lazyframe: Any) -> Plan:
    """A LazyFrame as it is sent.

    Args:
        lazyframe: A LazyFrame, or a DataFrame.

    Returns:
        Its plan, and the schema of its result.

    Raises:
        TypeError: It is neither.
        VersionError: The nodes are not known to read the plans of this version of Polars.
    """
    import polars

    if isinstance(lazyframe, polars.DataFrame):
        lazyframe = lazyframe.lazy()
    if not isinstance(lazyframe, polars.LazyFrame):
        raise TypeError(f"a Polars LazyFrame is needed, not {pickling.a(lazyframe)}")
    check_version(polars.__version__)
    try:
        dsl = bytes(lazyframe.serialize())
    except Exception:
        # A function in it cannot be pickled by Polars; if not here either, it is said which and why.
        dsl, _ = by_value(lazyframe)
    if not all(map(_is_told, _sources(dsl))):
        return Plan(dsl, b"")
    return _with_schema(polars, lazyframe, dsl)


def by_value(lazyframe: Any) -> tuple[bytes, set[str]]:
    """A LazyFrame whose functions in Python travel as those of calls do.

    By itself Polars pickles by reference what it can, and so functions of ``__main__``, which is another
    program on the nodes.

    Args:
        lazyframe: A LazyFrame, or a DataFrame.

    Returns:
        Its plan, and the modules that its functions use.

    Raises:
        Unpicklable: One of the functions cannot be sent.
    """
    used: set[str] = set()
    failed: list[BaseException] = []
    here = threading.get_ident()

    def dumps(value: Any, *args: Any, **kwargs: Any) -> bytes:
        if threading.get_ident() != here:
            return plain(value, *args, **kwargs)
        try:
            pickled, modules = pickling.dumps_function(value, "a function in the plan")
        except Exception as error:
            # Polars would try another pickler and then say that serialization failed, and no more.
            failed.append(error)
            raise
        used.update(modules)
        return pickled

    # Polars looks for `dumps` whenever it pickles, and takes no pickler of its caller's.
    with _PICKLING:
        plain = pickle.dumps
        pickle.dumps = dumps  # type: ignore[assignment]
        try:
            return bytes(lazyframe.lazy().serialize()), used
        except Exception:
            if failed:
                raise failed[0] from None
            raise
        finally:
            pickle.dumps = plain


#: Held while another `dumps` stands in for that of pickle.
_PICKLING = threading.Lock()


def _sources(dsl: bytes) -> Iterator[bytes]:
    """The paths that a plan scans."""
    for found in _SOURCE.finditer(dsl):
        short, *longer = found.groups()
        size = short[0] & 31 if short else int.from_bytes(b"".join(filter(None, longer)), "big")
        yield dsl[found.end() : found.end() + size]


def _is_told(path: bytes) -> bool:
    """Whether Polars tells here the types of what lies under a path, as the nodes see it."""
    # The nodes refuse object stores; asking one for its types would wait for the network. Brackets in the
    # name of something that exists are a pattern to Polars and not to the nodes.
    return not _OBJECT_STORE.match(path) and b"[" not in path


def _with_schema(polars: Any, lazyframe: Any, dsl: bytes) -> Plan:
    """A plan with the schema of its result, as an Arrow IPC stream without rows.

    There is none if it cannot be told here: the files that are read may be where the nodes are and not here,
    and what is wrong with a plan is told by the node that plans it.
    """
    stream = io.BytesIO()
    try:
        empty = polars.DataFrame(schema=lazyframe.collect_schema())
        empty.write_ipc_stream(stream, compat_level=polars.CompatLevel.newest())
    except (Exception, polars.exceptions.PanicException):
        return Plan(dsl, b"")
    # Arrow's maps are lists of structs to a Polars before 2.0.
    foreign = None
    for name, dtype in empty.schema.items():
        if "Map(" in repr(dtype):
            foreign = f"the column {name} of the result is a Map, a type that came with py-polars 2.0"
    return Plan(dsl, stream.getvalue(), foreign)


def check_version(version: str) -> None:
    """Refuses a py-polars whose plans the nodes would not read, or perhaps not as they are meant."""
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
