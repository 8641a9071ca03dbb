"""Objects that the mesh keeps, by what they are."""

from __future__ import annotations

import pickle
import sys
import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: How many objects a process on a node keeps unpickled for the next call that uses them.
_KEPT = 16

_kept: OrderedDict[str, Any] = OrderedDict()
_lock = threading.Lock()


class Ref(Generic[T]):
    """Stands for an object that was put into the mesh; it is small, and travels to a node once.

    Given to a function as an argument, the function gets the object. Anywhere else, :meth:`get` does. All
    calls in one process share one object, so it should not be changed.
    """

    __slots__ = ("name", "size", "_mesh")

    def __init__(self, name: str, size: int, mesh: Any = None) -> None:
        #: The digest of the object's bytes.
        self.name = name
        #: How many bytes they are.
        self.size = size
        self._mesh = mesh

    def get(self) -> T:
        """The object."""
        host = sys.modules.get("floe_host")
        if host is None:
            if self._mesh is None:
                from ._connect import default_mesh

                return default_mesh().get(self)
            return self._mesh.get(self)
        with _lock:
            if self.name in _kept:
                _kept.move_to_end(self.name)
                return _kept[self.name]
        with open(host.blob(self.name, self.size), "rb") as file:
            value = pickle.load(file)
        with _lock:
            _kept[self.name] = value
            while len(_kept) > _KEPT:
                _kept.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Ref, (self.name, self.size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<floe.Ref {self.name[:8]}, {self.size} bytes>"
