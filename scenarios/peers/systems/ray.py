"""Ray: one node with two CPUs."""

import os

# Before Ray is imported, which reads it then.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pandas
import ray

from . import WORKERS, cut

# Room for the frame, its parts and their results. The default takes 30 % of the machine's memory, at once.
OBJECT_STORE_BYTES = 1 << 30


class System:
    version = ray.__version__

    def __init__(self, scratch):
        self.remote = {}
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            # Also where its sockets are, whose paths must be short: not in a longer one.
            _temp_dir=str(scratch),
        )

    def _remote(self, function):
        # A user decorates a function once.
        if function not in self.remote:
            self.remote[function] = ray.remote(function)
        return self.remote[function]

    def submit_all(self, function, arguments):
        function = self._remote(function)
        return ray.get([function.remote(argument) for argument in arguments])

    def call(self, function, argument):
        return ray.get(self._remote(function).remote(argument))

    def map(self, function, arguments):
        return None

    def apply(self, function, frame, partitions):
        function = self._remote(function)
        return pandas.concat(ray.get([function.remote(ray.put(part)) for part in cut(frame, partitions)]))

    def stop(self):
        ray.shutdown()
