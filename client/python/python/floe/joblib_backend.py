"""A joblib backend: ``joblib.parallel_config(backend="floe")`` runs joblib's tasks on the mesh.

So does everything that is parallel through joblib, scikit-learn's ``GridSearchCV`` among it, unchanged.
``import floe`` must come before the backend is named.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, Callable

from joblib._parallel_backends import ParallelBackendBase, SequentialBackend

from . import _remote, environment, pickling, ship
from ._connect import default_mesh
from ._looking import attribute, imported, is_a
from .call import Calls, Defined, Result
from .environment import Needs
from .errors import Cancelled
from .mesh import Mesh
from .refs import Ref

#: Arguments of at least this size are put into the mesh, since joblib gives the same ones to many tasks. Each
#: task has them for itself all the same.
_SHARED_BYTES = 64 << 10

#: How many arrays are remembered. joblib makes some anew for each task, which nobody will see again.
_MAX_SHARED = 256


class FloeBackend(ParallelBackendBase):
    """Runs joblib's tasks on the nodes of a mesh: the one that was last connected to, unless `mesh` is given.

    What a function needs is given as for every call: ``parallel_config(backend="floe", requirements=[...])``.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = -1

    def __init__(self, nesting_level: int | None = None, mesh: Mesh | None = None, **options: Any) -> None:
        options.pop("inner_max_num_threads", None)
        super().__init__(nesting_level=nesting_level)
        self._mesh = mesh
        self._needs = Needs.of(options)
        self._under_way: set[Result[Any]] = set()
        self._shared: dict[int, tuple[Any, int, Ref[Any]]] = {}

    @property
    def mesh(self) -> Mesh:
        return self._mesh if self._mesh is not None else default_mesh()

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        slots = self.mesh._slots()
        if n_jobs is None:
            return slots
        return n_jobs if n_jobs > 0 else max(1, slots + 1 + n_jobs)

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Result[Any]:
        calls = self.mesh._calls()
        used: set[str] = set()
        tasks = []
        for function, args, kwargs in func.items:
            sent = {name: self._sent(value) for name, value in kwargs.items()}
            # Tasks are pickled one by one, so that none gets an object that another one has changed.
            task, modules = pickling.dumps_function(
                (function, tuple(map(self._sent, args)), sent), "a task of joblib's"
            )
            tasks.append(task)
            used |= modules
        argument = pickling.dumps(tasks, "joblib's tasks")
        number = self._defined(calls, used)
        result: Result[Any] = Result()
        result._calls = calls
        self._under_way.add(result)
        result.add_done_callback(self._under_way.discard)
        if callback is not None:
            result.add_done_callback(callback)
        result._number = calls.call(number, argument, result)
        return result

    # Before joblib 1.4 it was called so.
    apply_async = submit

    def retrieve_result_callback(self, out: Result[Any]) -> Any:
        if out.cancelled():
            raise Cancelled("joblib's tasks were cancelled")
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        for result in list(self._under_way):
            result.cancel()

    def terminate(self) -> None:
        self._shared.clear()

    stop_call = terminate

    def get_nested_backend(self) -> tuple[Any, int | None]:
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def _defined(self, calls: Calls, used: set[str]) -> Defined:
        """What runs joblib's tasks, with the libraries that they use."""
        modules = frozenset(name.partition(".")[0] for name in used) | {"joblib"}
        libraries = environment.libraries(modules, self._needs)
        key = ("joblib", self._needs, tuple(sorted(libraries.items())))
        defined = calls.defined(key)
        if defined is None:
            runner = ship.Pickled(_remote.Batch(), self._needs)
            function = calls.mesh._shipper.function(_remote.Batch(), [runner], modules, "joblib")
            defined = calls.define(function, key, len(runner.code))
        return defined

    def _sent(self, value: Any) -> Any:
        """An argument as it is sent: what is large travels once."""
        if _size(value) < _SHARED_BYTES:
            return value
        content = _checksum(value)
        known = self._shared.get(id(value))
        if known is not None and content is not None and known[1] == content:
            return known[2]
        put = self.mesh.put(value)
        ref: Ref[Any] = Ref(put.name, put.size, None, True)
        if content is not None:
            if len(self._shared) >= _MAX_SHARED:
                self._shared.pop(next(iter(self._shared)))
            # The value is kept with it, so that no other one gets its id.
            self._shared[id(value)] = (value, content, ref)
        return ref


def _checksum(value: Any) -> int | None:
    """What tells whether an array was written to since; None of what is not so easily looked through.

    Pickling such a thing again and finding that the mesh has it takes longer, and comes to the same.
    """
    numpy = imported("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.dtype.hasobject:
        return None
    if value.flags.c_contiguous or value.flags.f_contiguous:
        return zlib.crc32(value.reshape(-1, order="A").view(numpy.uint8).data)
    return None


def _size(value: Any) -> int:
    """About how large a value is, if it is of a kind that gets large."""
    if is_a(value, bytes, str, list, tuple, dict):
        return sys.getsizeof(value)
    size = attribute(value, "nbytes")
    if type(size) is int:
        return size
    pandas, polars = imported("pandas"), imported("polars")
    if pandas is not None and is_a(value, pandas.DataFrame, pandas.Series, pandas.Index):
        usage = value.memory_usage()
        return int(usage.sum()) if is_a(usage, pandas.Series) else int(usage)
    if polars is not None and is_a(value, polars.DataFrame, polars.Series):
        return int(value.estimated_size())
    # SciPy's sparse matrices.
    size = attribute(attribute(value, "data"), "nbytes")
    return size if type(size) is int else 0
