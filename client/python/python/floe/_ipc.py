"""Reads the one kind of Arrow IPC that must be read without an Arrow library: an object in its wrapping.

A function that returns no frame returns bytes. The nodes keep them as a frame of one row and one binary
column named ``__floe_object__``, so that everything between two functions is a frame. Neither the node's
interpreter nor the driver's needs pyarrow or Polars to get them out again.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import _core

#: What the only column of such a frame is called.
OBJECT_COLUMN = b"__floe_object__"

_MAGIC = b"ARROW1\0\0"

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

# What a footer says of a batch: where it is, and how long its parts are.
_BLOCK_BYTES = 24
_CONTINUATION = 0xFFFFFFFF

# `MessageHeader` and `Type` of Arrow's Message.fbs and Schema.fbs.
_SCHEMA, _RECORD_BATCH = 1, 3
_BINARY, _LARGE_BINARY, _BINARY_VIEW = 4, 19, 23


class _Table:
    """A flatbuffers table."""

    __slots__ = ("data", "at", "fields")

    def __init__(self, data: memoryview, at: int) -> None:
        self.data = data
        self.at = at
        vtable = at - struct.unpack_from("<i", data, at)[0]
        size = struct.unpack_from("<H", data, vtable)[0]
        self.fields = struct.unpack_from(f"<{size // 2 - 2}H", data, vtable + 4)

    def place(self, field: int) -> int | None:
        """Where a field's value is, None if it is absent."""
        offset = self.fields[field] if field < len(self.fields) else 0
        return self.at + offset if offset else None

    def number(self, field: int, form: str, default: int = 0) -> int:
        place = self.place(field)
        return default if place is None else struct.unpack_from("<" + form, self.data, place)[0]

    def table(self, field: int) -> _Table | None:
        place = self.place(field)
        return None if place is None else _Table(self.data, _follow(self.data, place))

    def vector(self, field: int) -> tuple[int, int]:
        """Where a vector's items start, and how many there are."""
        place = self.place(field)
        if place is None:
            return 0, 0
        start = _follow(self.data, place)
        return start + 4, struct.unpack_from("<I", self.data, start)[0]


def _follow(data: memoryview, place: int) -> int:
    return place + struct.unpack_from("<I", data, place)[0]


def view(buffer: _core.Buffer) -> memoryview:
    """What lies in a buffer of the native part, which lives for as long as somebody looks."""
    import ctypes

    array = (ctypes.c_char * len(buffer)).from_address(buffer.address)
    array._owner = buffer  # type: ignore[attr-defined]
    return memoryview(array).cast("B").toreadonly()


def object_in(data: Any) -> memoryview | None:
    """The object that an Arrow IPC file or stream wraps, None if it holds a frame of another kind."""
    view = memoryview(data).cast("B")
    return _object_in_file(view) if bytes(view[: len(_MAGIC)]) == _MAGIC else _object_in_stream(view)


def _object_in_file(view: memoryview) -> memoryview | None:
    # The footer has all that is needed, and not every writer keeps to the stream format before it.
    start = _footer_at(view)
    footer = _Table(view, _follow(view, start))
    schema = footer.table(1)
    kind = None if schema is None else _object_type(schema)
    if kind is None:
        return None
    blocks, count = footer.vector(3)
    for block in range(blocks, blocks + _BLOCK_BYTES * count, _BLOCK_BYTES):
        (offset,) = struct.unpack_from("<q", view, block)
        found = _object_in_stream(view[offset:], kind)
        if found is not None:
            return found
    return None


def standard_file(data: bytes) -> bytes:
    """An Arrow IPC file of Polars', with a stream in it as the format wants it.

    Versions of Polars write dictionaries behind what uses them, and the schema without the marker and length
    before it. Readers that follow the footer do not mind, but no stream can be cut out of such a file.
    """
    view = memoryview(data)
    start = len(_MAGIC)
    marked = struct.unpack_from("<I", view, start)[0] == _CONTINUATION
    footer_at = _footer_at(view)
    footer = bytearray(view[footer_at:])
    table = _Table(view, _follow(view, footer_at))
    blocks: list[tuple[int, int, int]] = []
    for field in (2, 3):
        first, count = table.vector(field)
        for place in range(first, first + _BLOCK_BYTES * count, _BLOCK_BYTES):
            offset, metadata, body = struct.unpack_from("<qi4xq", view, place)
            blocks.append((place - footer_at, offset, metadata + body))
    offsets = [offset for _, offset, _ in blocks]
    if marked and offsets == sorted(offsets):
        return data
    schema = view[start + 8 * marked : min(offsets, default=footer_at - len(_END_OF_STREAM))]
    pieces: list[bytes | bytearray | memoryview] = [
        _MAGIC,
        struct.pack("<Ii", _CONTINUATION, len(schema)),
        schema,
    ]
    at = start + 8 + len(schema)
    for place, offset, size in blocks:
        struct.pack_into("<q", footer, place, at)
        pieces.append(view[offset : offset + size])
        at += size
    return b"".join([*pieces, _END_OF_STREAM, footer])


def _footer_at(view: memoryview) -> int:
    # A file ends with its footer, the footer's size and the magic once more.
    end = len(view) - len(_MAGIC.rstrip(b"\0")) - 4
    return end - struct.unpack_from("<i", view, end)[0]


def _object_in_stream(view: memoryview, kind: int | None = None) -> memoryview | None:
    at = 0
    while at + 8 <= len(view):
        # Before Arrow 0.15 a message did not begin with this mark.
        size = struct.unpack_from("<I", view, at)[0]
        at += 4
        if size == _CONTINUATION:
            size = struct.unpack_from("<i", view, at)[0]
            at += 4
        if size == 0:
            return None
        message = _Table(view, _follow(view, at))
        body = at + size
        at = body + message.number(3, "q")
        header = message.table(2)
        if header is None:
            return None
        header_type = message.number(1, "B")
        if header_type == _SCHEMA:
            kind = _object_type(header)
            if kind is None:
                return None
        elif header_type == _RECORD_BATCH and kind is not None and header.number(0, "q") > 0:
            return _first_value(header, kind, view[body:at])
    return None


def _object_type(schema: _Table) -> int | None:
    """The type of an object's column, None if this is no object's schema."""
    start, count = schema.vector(1)
    if count != 1:
        return None
    field = _Table(schema.data, _follow(schema.data, start))
    name_start, name_length = field.vector(0)
    if bytes(schema.data[name_start : name_start + name_length]) != OBJECT_COLUMN:
        return None
    kind = field.number(2, "B")
    return kind if kind in (_BINARY, _LARGE_BINARY, _BINARY_VIEW) else None


def _first_value(batch: _Table, kind: int, body: memoryview) -> memoryview:
    """The value in a batch's first row."""
    if batch.place(3) is not None:
        raise ValueError("an object's frame must not be compressed")
    start, count = batch.vector(2)
    places = [struct.unpack_from("<qq", batch.data, start + 16 * i) for i in range(count)]
    buffers = [body[offset : offset + length] for offset, length in places]
    if kind == _BINARY_VIEW:
        (length,) = struct.unpack_from("<i", buffers[1], 0)
        if length <= 12:
            return buffers[1][4 : 4 + length]
        index, offset = struct.unpack_from("<ii", buffers[1], 8)
        return buffers[2 + index][offset : offset + length]
    first, second = struct.unpack_from("<qq" if kind == _LARGE_BINARY else "<ii", buffers[1], 0)
    return buffers[2][first:second]
