"""What a function needs on the node that runs it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
import types
import weakref
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping, TypedDict, TypeVar, Union

if TYPE_CHECKING:
    from typing_extensions import Unpack

F = TypeVar("F", bound=Callable[..., Any])

Module = Union[types.ModuleType, str, Path]


class NeedsArguments(TypedDict, total=False):
    """The keyword arguments that every call that takes a function takes besides."""

    requirements: Iterable[str]
    python: str
    modules: Iterable[Module]
    env: Mapping[str, str]
    memory: int | str
    timeout: float


#: What sizes may end in.
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS.update({"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "b": 1})

#: Distributions that travel with every function, whatever the node has.
_TRAVELLING = {"floe-mesh", "cloudpickle"}


@dataclass(frozen=True)
class Needs:
    """What a function needs; None is what was not said."""

    #: What pip or uv is to install, each as in a requirements file.
    requirements: tuple[str, ...] | None = None
    #: Major and minor version, as ``3.12``; the driver's unless given.
    python: str | None = None
    #: Local code: modules, their names, or paths of files and packages.
    modules: tuple[Module, ...] | None = None
    #: Environment variables.
    env: tuple[tuple[str, str], ...] | None = None
    #: Bytes that the process may take.
    memory: int | None = None
    #: Seconds that one call may take.
    timeout: float | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Needs:
        """Checks the keyword arguments of a call."""
        known = {field.name for field in fields(cls)}
        for name in arguments:
            if name not in known:
                raise TypeError(
                    f"unexpected argument {name!r}: a function's needs are {', '.join(sorted(known))}"
                )
        needs: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
        if "requirements" in needs:
            needs["requirements"] = _strings("requirements", needs["requirements"])
        if "python" in needs and not re.fullmatch(r"3\.\d+", str(needs["python"])):
            raise ValueError(f"python is a minor version such as '3.12', not {needs['python']!r}")
        if "modules" in needs:
            given = needs["modules"]
            needs["modules"] = (given,) if isinstance(given, (str, Path, types.ModuleType)) else tuple(given)
        if "env" in needs:
            needs["env"] = tuple(
                sorted((str(name), str(value)) for name, value in dict(needs["env"]).items())
            )
        if "memory" in needs:
            needs["memory"] = _size(needs["memory"])
        if "timeout" in needs and not float(needs["timeout"]) > 0:
            raise ValueError(f"timeout is a number of seconds above 0, not {needs['timeout']!r}")
        return cls(**needs)

    def over(self, other: Needs) -> Needs:
        """These, and the other's where these say nothing."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(other, **{name: value for name, value in said.items() if value is not None})

    def pinned(self) -> set[str]:
        """Distributions of which the requirements name the version."""
        names = set()
        for requirement in self.requirements or ():
            match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^]]*\])?\s*(===?|@)", requirement)
            if match:
                names.add(normalized(match.group(1)))
        return names


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"{name} is a list of strings, not the string {value!r}")
    return tuple(str(item) for item in value)


def _size(value: int | str) -> int:
    """Bytes of ``2GiB``, ``500 MB`` or a number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if not match or match.group(2).lower() not in _UNITS:
        raise ValueError(f"memory is a number of bytes or a size such as '2GiB', not {value!r}")
    size = int(float(match.group(1)) * _UNITS[match.group(2).lower()])
    if size <= 0:
        raise ValueError(f"memory is a size above 0, not {value!r}")
    return size


# What `requires` attached, beside the functions and not on them, so that it does not travel with them.
_attached: weakref.WeakKeyDictionary[Any, Needs] = weakref.WeakKeyDictionary()


def requires(**needs: Unpack[NeedsArguments]) -> Callable[[F], F]:
    """Says what a function needs wherever it is called, as a decorator.

    Arguments of the call itself win over these.

    >>> @requires(requirements=["nltk==3.9.1"], memory="1GiB")
    ... def tokens(text):
    ...     import nltk
    ...     return nltk.wordpunct_tokenize(text)
    """
    checked = Needs.of(needs)

    def decorate(function: F) -> F:
        _attached[function] = checked.over(attached(function))
        return function

    return decorate


def function(function: F, **needs: Unpack[NeedsArguments]) -> F:
    """The function, with what it needs attached: :func:`requires` for functions that are already there.

    >>> fast = function(lambda x: x + 1, timeout=10)
    >>> fast(1)
    2
    """
    return requires(**needs)(function)


def attached(function: Any) -> Needs:
    """What was attached to a function."""
    while issubclass(type(function), functools.partial):
        function = function.func
    try:
        return _attached.get(function, Needs())
    except Exception:  # Not hashable or not weakly referable: nothing can have been attached.
        return Needs()


def normalized(name: str) -> str:
    """A distribution's name as packages compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def python_version() -> str:
    """This interpreter's major and minor version."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def libraries(modules: Iterable[str], needs: Needs, shipped: Iterable[str] = ()) -> dict[str, str]:
    """Installed distributions that these modules belong to, with their versions.

    Those are left out that the needs pin, that travel with the function, and what comes with Python.
    """
    pinned = needs.pinned()
    left_out = set(shipped)
    found: dict[str, str] = {}
    for top in sorted({module.partition(".")[0] for module in modules} - left_out):
        distribution = distribution_of(top)
        if distribution is None:
            continue
        name, version = distribution
        if normalized(name) not in _TRAVELLING and normalized(name) not in pinned:
            found[name] = version
    return found


@functools.lru_cache(maxsize=1024)
def distribution_of(top: str) -> tuple[str, str] | None:
    """The installed distribution that a top-level module belongs to, and its version."""
    if top in sys.stdlib_module_names or top in ("__main__", "floe", "floe_host"):
        return None
    if not _is_installed(top):
        return None
    try:
        # Most are called as their module is, and to list them all takes long.
        version = importlib.metadata.version(top)
        return (normalized(top), version) if version else None
    except importlib.metadata.PackageNotFoundError:
        pass
    names = set(_packages().get(top, ()))
    # Of a namespace that several share it is not known which is meant.
    if len(names) != 1:
        return None
    (name,) = names
    return normalized(name), importlib.metadata.version(name)


@functools.lru_cache(maxsize=1)
def _packages() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _origin(top: str) -> str | None:
    """The file of a top-level module, as far as it has one."""
    module = sys.modules.get(top)
    if module is not None:
        origin = getattr(module, "__file__", None)
        return str(origin) if origin else None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None


@functools.lru_cache(maxsize=1)
def _library_paths() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return tuple(str(Path(path).resolve()) for path in paths if path)


def _is_installed(top: str) -> bool:
    """Whether a module is where packages are installed to, rather than the user's own code."""
    origin = _origin(top)
    if origin is None:
        return top in sys.builtin_module_names or bool(_packages().get(top))
    return "site-packages" in origin or "dist-packages" in origin or origin.startswith(_library_paths())


def is_local(top: str) -> bool:
    """Whether a module is code of the user's own, which nodes do not have."""
    if top == "__main__" or top in sys.stdlib_module_names:
        return False
    origin = _origin(top)
    return origin is not None and origin.endswith(".py") and not _is_installed(top)
