"""What travels to the nodes besides data: this package, the user's modules, functions with their needs."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import pickle
import sys
import threading
import types
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

from . import _looking, environment, pickling
from .environment import Module, Needs
from .errors import EnvironmentMismatch, Error, from_core

if TYPE_CHECKING:
    from . import _core

#: The time of all files in an archive, so that the same code always makes the same archive.
_TIME = (1980, 1, 1, 0, 0, 0)

#: Endings of native code, which would not fit the node and cannot be imported from an archive.
_NATIVE = {".so", ".pyd", ".dll", ".dylib"}

#: Parts of this package that no node needs.
_DRIVER_ONLY = {"_core", "bin"}


class Pickled:
    """A function as bytes, with what is known of it."""

    __slots__ = ("code", "used", "name", "needs")

    def __init__(self, function: Any, needs: Needs, what: str = "the function", called: bool = True) -> None:
        if called and not callable(function):
            raise TypeError(f"a function is needed, not {pickling.a(function)}")
        self.name = pickling.name_of(function)
        if called and _is_coroutine(function):
            raise TypeError(
                f"{self.name} is a coroutine function: called, it returns a coroutine, which only an event "
                f"loop can run; give a function that runs it: lambda *args: asyncio.run({self.name}(*args))"
            )
        self.needs = needs.over(environment.attached(function))
        self.code, self.used = pickling.dumps_function(function, f"{what} {self.name}")
        self._check_python()

    def _check_python(self) -> None:
        """Refuses code of this interpreter for one of another minor version."""
        asked = self.needs.python
        if (
            asked is not None
            and asked != environment.python_version()
            and "cloudpickle.cloudpickle" in self.used
        ):
            raise EnvironmentMismatch(
                f"{self.name} asks for Python {asked}, but it was compiled by Python "
                f"{environment.python_version()}, whose code Python {asked} cannot run: start the driver "
                f"with Python {asked}, or put the function into a module and give that as modules=[...]",
                f"Python {asked}",
                f"the driver runs Python {environment.python_version()}",
            )


def _is_coroutine(function: Any) -> bool:
    # Python asks whatever it is for a mark, which of these only functions have.
    while _looking.is_a(function, functools.partial, types.MethodType):
        function = function.func if _looking.is_a(function, functools.partial) else function.__func__
    if not _looking.is_a(function, types.FunctionType):
        function = type.__getattribute__(type(function), "__call__")
    return _looking.is_a(function, types.FunctionType) and inspect.iscoroutinefunction(function)


class Shipper:
    """What one mesh was sent already."""

    def __init__(self, core: _core.Mesh) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._archives: dict[Any, tuple[str, int]] = {}

    def function(
        self, code: object, pickled: Iterable[Pickled], libraries: Iterable[str] = (), name: str | None = None
    ) -> _core.Function:
        """A function for the nodes.

        `code` is what the host calls, of :mod:`floe._remote`; it holds the pickled functions. `libraries` are
        modules that the data needs besides.
        """
        from . import _core

        functions = list(pickled)
        needs = functions[0].needs
        modules = tuple(needs.modules or ())
        names = [_module_name(module) for module in modules]
        used = set(libraries).union(*(function.used for function in functions))
        return _core.Function(
            name=name or functions[0].name,
            version=needs.python or environment.python_version(),
            requirements=list(needs.requirements or ()),
            modules=[self._archive(module) for module in modules] + [self.package()],
            env=dict(needs.env or ()),
            libraries=environment.libraries(used, needs, names),
            code=pickle.dumps(code, pickling.PROTOCOL),
            memory_bytes=needs.memory,
            time_ms=None if needs.timeout is None else max(1, round(needs.timeout * 1000)),
        )

    def package(self) -> tuple[str, int]:
        """This package, with the driver's own cloudpickle."""
        return self._sent("floe", package_archive)

    def _archive(self, module: Module) -> tuple[str, int]:
        path = _module_path(module)
        # Files may change between two calls of a driver that goes on for long.
        stamp = tuple((name, file.stat().st_mtime_ns) for name, file in _files(path))
        return self._sent((path, stamp), lambda: module_archive(path))

    def _sent(self, key: Any, make: Callable[[], bytes]) -> tuple[str, int]:
        with self._lock:
            known = self._archives.get(key)
            if known is None:
                known = self._archives[key] = put(self._core, make())
            return known


def put(core: _core.Mesh, data: bytes) -> tuple[str, int]:
    """Sends bytes, unless the mesh has them."""
    from . import _core

    try:
        return core.put(data)
    except _core.CoreError as error:
        raise from_core(error) from None


def package_archive() -> bytes:
    """The pure Python of this package and of cloudpickle, in an archive that is always the same."""
    import cloudpickle

    here = Path(__file__).parent
    sources = [
        (name, path)
        for name, path in _files(here)
        if Path(name).parts[1].partition(".")[0] not in _DRIVER_ONLY
    ]
    return _zipped(sources + list(_files(Path(cloudpickle.__file__).parent)))


def module_archive(path: Path) -> bytes:
    """A module or package of the user's own."""
    files = list(_files(path))
    for name, _ in files:
        if Path(name).suffix in _NATIVE:
            raise Error(
                f"{path.stem} cannot be sent: {name} is native code, which fits only this machine; "
                "publish it as a package and name that in requirements=[...]"
            )
    return _zipped(files)


def _zipped(files: Iterable[tuple[str, Path]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _TIME), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a module or package, with their names relative to what is put on the path."""
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path.parent)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts[1:])
        if file.is_file() and not hidden and file.suffix != ".pyc":
            yield relative.as_posix(), file


def _module_path(module: Module) -> Path:
    """Where a module's code is: a file, or a package's directory."""
    if (
        isinstance(module, str)
        and not module.endswith(".py")
        and "/" not in module
        and not Path(module).is_dir()
    ):
        module = importlib.import_module(module)
    if isinstance(module, types.ModuleType):
        top = module.__name__.partition(".")[0]
        module = sys.modules.get(top, module)
        if hasattr(module, "__path__"):
            return Path(list(module.__path__)[0]).resolve()
        if getattr(module, "__file__", None):
            return Path(str(module.__file__)).resolve()
        raise Error(f"{module.__name__} has no file to send: it is built into Python")
    path = Path(module).resolve()
    if not path.exists():
        raise FileNotFoundError(f"there is no module at {path}")
    return path


def _module_name(module: Module) -> str:
    """The top-level name under which a module is imported."""
    if isinstance(module, types.ModuleType):
        return module.__name__.partition(".")[0]
    return (
        Path(module).stem
        if str(module).endswith(".py") or "/" in str(module)
        else str(module).partition(".")[0]
    )
