"""Objects as the mesh keeps them, so that whoever uses one has it for itself. Runs on both sides.

An object is a pickle, followed by the large buffers in it (NumPy arrays, Arrow columns). A process on a node
maps them copy-on-write: whoever only reads them shares the file's pages with all others, and what somebody
writes to them is seen by nobody else. So nothing that was loaded needs to be kept for the next call.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from typing import Any

from . import pickling
from ._looking import imported

# As in `_remote`.
__floe_hidden__ = True

#: What such an object begins with; a pickle alone begins with 0x80.
_MAGIC = b"floe-ob1"

#: After it: how long the pickle is, and how many buffers there are. Then for each its length, and whether it
#: may be written to.
_HEAD = struct.Struct("<QQ")
_BUFFER = struct.Struct("<Q?7x")

#: Where buffers begin: processors read from there fastest, and some libraries insist.
_ALIGNED = 64


def packed(value: Any, what: str) -> bytes:
    """An object as it is put into the mesh.

    Args:
        value: The object.
        what: What an error calls it.

    Returns:
        Its bytes, for :func:`loaded` and :func:`mapped`.

    Raises:
        Unpicklable: It holds something that cannot be pickled.
    """
    buffers: list[memoryview] = []
    data = pickling.dumps(value, what, buffers)
    pieces: list[bytes | memoryview] = [_MAGIC, _HEAD.pack(len(data), len(buffers))]
    pieces += [_BUFFER.pack(buffer.nbytes, not buffer.readonly) for buffer in buffers]
    pieces.append(data)
    at = len(_MAGIC) + _HEAD.size + _BUFFER.size * len(buffers) + len(data)
    for buffer in buffers:
        gap = -at % _ALIGNED
        pieces += [bytes(gap), buffer]
        at += gap + buffer.nbytes
    return b"".join(pieces)


def loaded(data: Any) -> Any:
    """The object that bytes are, with memory of its own."""
    view = memoryview(data)
    if bytes(view[: len(_MAGIC)]) != _MAGIC:
        return pickle.loads(view)
    return _unpacked(memoryview(bytearray(view)))


def mapped(path: str) -> Any:
    """The object that a file holds; its pages are copied when they are written to, and not before."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            file.seek(0)
            return pickle.load(file)
        return _unpacked(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)))


def _unpacked(view: memoryview) -> Any:
    at = len(_MAGIC)
    size, count = _HEAD.unpack_from(view, at)
    at += _HEAD.size
    described = [_BUFFER.unpack_from(view, at + _BUFFER.size * i) for i in range(count)]
    at += _BUFFER.size * count
    data = view[at : at + size]
    at += size
    buffers = []
    for length, writable in described:
        at += -at % _ALIGNED
        buffer = view[at : at + length]
        buffers.append(buffer if writable else buffer.toreadonly())
        at += length
    return pickle.loads(data, buffers=buffers)


def guarded(value: Any) -> Any:
    """An object that calls share, read-only if its type can be.

    Each call has the object for itself. But who writes to an array that was put into the mesh believes that
    others see it, and should hear that they do not. Arrow's tables cannot be written to in any case.
    """
    numpy = imported("numpy")
    if numpy is not None and issubclass(type(value), numpy.ndarray):
        value.flags.writeable = False
    return value
