"""Some nodes of a mesh, to call functions on each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Iterable, TypeVar

from . import _remote, ship
from .call import Result, arguments, submit
from .environment import Needs, NeedsArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .mapping import Map
    from .mesh import Mesh

T = TypeVar("T")


class View:
    """Some nodes: ``mesh[:]``, ``mesh["name"]``, ``mesh["one", "other"]``.

    Of one node, a call has one result; of several, or all, it has a list of them, by the nodes' names for
    ``mesh[:]`` and else in the order given. A node that is lost meanwhile is no reason to call elsewhere: the
    result then fails.
    """

    def __init__(self, mesh: Mesh, names: str | tuple[str, ...] | None, needs: Needs | None = None) -> None:
        self._mesh = mesh
        self._names = names
        self._needs = needs or Needs()

    def needing(self, **needs: Unpack[NeedsArguments]) -> View:
        """The same nodes, for functions that need something."""
        return View(self._mesh, self._names, Needs.of(needs).over(self._needs))

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes that are there now."""
        return [name for _, name in self._mesh._node_ids(self._names)]

    def apply(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function on each of these nodes: a :class:`Result`, or a list of them."""
        pickled = ship.Pickled(function, self._needs)
        calls = self._mesh._calls()
        number = calls.function(pickled, lambda: _remote.Call(pickled.code, pickled.name), "call")
        argument = arguments(args, kwargs)
        results: list[Result[T]] = [
            submit(calls, number, argument, node) for node, _ in self._mesh._node_ids(self._names)
        ]
        return results[0] if isinstance(self._names, str) else results

    def apply_sync(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`apply`, and waits: what the function returned, or a list of that. Ctrl-C cancels."""
        results = self.apply(function, *args, **kwargs)
        if isinstance(results, Result):
            return results.result()
        try:
            return [result.result() for result in results]
        except BaseException:
            for result in results:
                result.cancel()
            raise

    def map(
        self,
        function: Callable[..., T],
        /,
        *items: Iterable[Any],
        ordered: bool = True,
        chunk: int | None = None,
        **needs: Unpack[NeedsArguments],
    ) -> Map[T]:
        """:meth:`floe.Mesh.map` on these nodes only."""
        nodes = None if self._names is None else [node for node, _ in self._mesh._node_ids(self._names)]
        return self._mesh._map(function, items, ordered, chunk, nodes, Needs.of(needs).over(self._needs))

    def __repr__(self) -> str:
        names = (
            "all nodes"
            if self._names is None
            else ", ".join([self._names] if isinstance(self._names, str) else self._names)
        )
        return f"<floe.View of {names}>"
