"""What the nodes do with functions and frames, done in this process: with the same code, and all that is sent
as bytes."""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
import types
from pathlib import Path
from typing import Any, Callable, Iterator

import pyarrow

from floe import _remote, data, frames, pickling
from floe.mesh import _partitioned

#: The host's functions that describe what was raised.
_HOST = Path(__file__).parents[3] / "node" / "src" / "worker" / "host.py"


def new_host() -> types.ModuleType:
    """The host without its pipes: what functions call, and what keeps them."""
    source = _HOST.read_text().partition("# Beginning and end.")[0]
    source = source.replace('sys.modules["floe_host"] = sys.modules["__main__"]', "")
    source = source.replace('sys.modules["__main__"] = types.ModuleType("__main__")', "")
    module = types.ModuleType("floe_host")
    module.__file__ = str(_HOST)
    exec(compile(source, str(_HOST), "exec"), module.__dict__)
    return module


_host = functools.cache(new_host)


@contextlib.contextmanager
def on_a_node() -> Iterator[None]:
    """What runs within this runs as on a node."""
    sys.modules["floe_host"] = _host()
    try:
        yield
    finally:
        del sys.modules["floe_host"]


class Done:
    """A job that has ended."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def collect(self) -> Any:
        return self.value


class Loopback:
    """As much of a mesh as parallelize and apply need."""

    def parallelize(
        self,
        values: Any,
        function: Callable[[Any], Any],
        n: int | None = None,
        *,
        merge: Any = "concat",
        fan_in: int = 8,
        label: str | None = None,
    ) -> Done:
        code, _ = pickling.dumps_function(function)
        name = pickling.name_of(function)
        parts = _partitioned(values, n, lambda: 4)
        kind, needed = parts.kind, parts.needed if merge == "concat" else None
        task = pickle.dumps(_remote.Part(code, name, kind, needed))
        encoded = list(parts.encoded())
        outputs = []
        with on_a_node():
            call = pickle.loads(task)
            for part, bounds in zip(encoded, parts.bounds):
                if all(each[0] == "frame" for each in encoded):
                    outputs.append(call(None, [memoryview(bytes(part[1]))]))
                else:
                    whole = part[1] if part[0] == "object" else pickling.dumps(parts.part(*bounds))
                    outputs.append(call(whole, []))
            if callable(merge):
                merging = _remote.Merge(pickling.dumps_function(merge)[0], "merge", kind, None)
                while True:
                    groups = [outputs[i : i + fan_in] for i in range(0, len(outputs), fan_in)]
                    outputs = [merging(None, [stored(output) for output in group]) for group in groups]
                    if len(outputs) == 1:
                        break
        streams = [sent(output) for output in outputs]
        if callable(merge):
            return Done(frames.decode(streams[0], kind))
        if merge is None:
            return Done([frames.decode(stream, kind) for stream in streams])
        joined = data.joined_pandas(streams) if kind == "pandas" else None
        if joined is None:
            joined = data.concat([frames.decode(stream, kind) for stream in streams], name)
        return Done(joined)


def stored(output: Any) -> memoryview:
    """What lies in the store for another function: an Arrow IPC file."""
    if output[0] == "frame":
        return memoryview(bytes(output[1]))
    table = pyarrow.table({"__floe_object__": pyarrow.array([bytes(output[1])], pyarrow.large_binary())})
    return memoryview(bytes(frames.arrow_file(table)))


def sent(output: Any) -> memoryview:
    """The stream that a driver gets."""
    reader = pyarrow.ipc.open_file(pyarrow.py_buffer(stored(output)))
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, reader.schema) as writer:
        for index in range(reader.num_record_batches):
            writer.write_batch(reader.get_batch(index))
    return memoryview(sink.getvalue())
