"""Objects that the mesh keeps, by what they are."""

from __future__ import annotations

import sys
from typing import Any, Generic, TypeVar

from . import objects

T = TypeVar("T")


class Ref(Generic[T]):
    """Stands for an object that was put into the mesh; it is small, and travels to a node once.

    Given to a function as an argument, the function gets the object. Anywhere else, :meth:`get` does. Every
    call has the object as it was put, whatever other calls do to theirs: a NumPy array is read-only, as
    Arrow's tables are, and any other object is loaded anew. The memory of large arrays and columns, also of
    those within other objects, is shared by all processes of a node until one writes to it.
    """

    __slots__ = ("name", "size", "_mesh", "_own")

    def __init__(self, name: str, size: int, mesh: Any = None, own: bool = False) -> None:
        #: The digest of the object's bytes.
        self.name = name
        #: How many bytes they are.
        self.size = size
        self._mesh = mesh
        # Whether it is but an argument that is large, which a call may do with what it likes.
        self._own = own

    def get(self) -> T:
        """The object."""
        host = sys.modules.get("floe_host")
        if host is None:
            if self._mesh is None:
                from ._connect import default_mesh

                return default_mesh().get(self)
            return self._mesh.get(self)
        value = objects.mapped(host.blob(self.name, self.size))
        return value if self._own else objects.guarded(value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Ref, (self.name, self.size, None, self._own)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<floe.Ref {self.name[:8]}, {self.size} bytes>"
