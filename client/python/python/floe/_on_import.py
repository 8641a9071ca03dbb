"""Registers Floe with joblib and Polars when these are imported, before or after Floe; imports neither."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Callable, Sequence


def _joblib(module: ModuleType) -> None:
    """joblib makes a backend by whatever is registered under its name."""

    def make(*args: Any, **options: Any) -> Any:
        from .joblib_backend import FloeBackend

        return FloeBackend(*args, **options)

    module.register_parallel_backend("floe", make)


def _polars(module: ModuleType) -> None:
    from .query import register

    register(module)


_WANTED: dict[str, Callable[[ModuleType], None]] = {"joblib.parallel": _joblib, "polars": _polars}


class _Loader(importlib.abc.Loader):
    """Does what another loader does, and then something more."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module shall look as if this had never been here.
        spec = module.__spec__
        module.__loader__ = self._loader
        if spec is not None:
            spec.loader = self._loader
        self._loader.exec_module(module)
        try:
            self._then(module)
        except Exception:
            pass  # A version that knows no such thing; nothing may go wrong for those who only import it.


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the other finders find."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        then = _WANTED.get(name)
        if then is None:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader, then)
                    return spec
        return None


def install() -> None:
    """Registers with what is imported already, and watches for the rest. Repeating it changes nothing."""
    missing = False
    for name, then in _WANTED.items():
        module = sys.modules.get(name)
        if module is None:
            missing = True
            continue
        try:
            then(module)
        except Exception:
            pass  # As above.
    if missing and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
