"""dask.distributed: a local cluster of two worker processes with one thread each."""

import dask
import distributed
import pandas

from . import WORKERS, cut


class System:
    version = distributed.__version__

    def __init__(self, scratch):
        dask.config.set({"temporary-directory": str(scratch)})
        self.cluster = distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self.client = distributed.Client(self.cluster)
        self.client.wait_for_workers(WORKERS)

    def submit_all(self, function, arguments):
        # Not pure: a call with an argument seen before is a call, and its key needs no hash of the argument.
        futures = [self.client.submit(function, argument, pure=False) for argument in arguments]
        return self.client.gather(futures)

    def call(self, function, argument):
        return self.client.submit(function, argument, pure=False).result()

    def map(self, function, arguments):
        return self.client.gather(self.client.map(function, arguments, pure=False))

    def apply(self, function, frame, partitions):
        parts = self.client.scatter(cut(frame, partitions), hash=False)
        return pandas.concat(self.client.gather(self.client.map(function, parts, pure=False)))

    def stop(self):
        self.client.close()
        self.cluster.close()
