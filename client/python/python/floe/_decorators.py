"""Decorators that need no mesh at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, TypeVar, overload

from . import _remote
from ._connect import default_mesh
from .call import Parallel
from .environment import Needs, NeedsArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


@overload
def parallel(function: Callable[..., T], **needs: Unpack[NeedsArguments]) -> Parallel[T]: ...
@overload
def parallel(
    function: None = None, **needs: Unpack[NeedsArguments]
) -> Callable[[Callable[..., T]], Parallel[T]]: ...
def parallel(function: Callable[..., Any] | None = None, **needs: Unpack[NeedsArguments]) -> Any:
    """Makes a function that runs on the mesh when it is called, and returns a :class:`Result` at once.

    The mesh is the one that was last connected to; the first call connects to one if there is none.

    >>> results = [parallel(divmod)(n, 7) for n in range(20, 23)]
    >>> [result.value for result in results]
    [(2, 6), (3, 0), (3, 1)]
    """
    checked = Needs.of(needs)
    if function is None:
        return lambda fn: Parallel(default_mesh, fn, checked)
    return Parallel(default_mesh, function, checked)


def require(*modules: str, **aliases: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Imports modules where a function is called, as if the function's own module had imported them.

    So the driver need not have them, and a script can say what it uses beside what uses it. Other names are
    given as ``require(np="numpy")``.

    >>> @require("math", fractions_="fractions")
    ... def half(n):
    ...     return math.floor(n * fractions_.Fraction(1, 2))
    >>> half(9)
    4
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        return _remote.Required(function, modules, aliases)

    return decorate
