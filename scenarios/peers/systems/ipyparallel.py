"""ipyparallel: a local cluster of two engines, through its load-balanced view."""

import os

import pandas

from . import WORKERS, cut


class System:
    def __init__(self, scratch):
        # Read when it is imported: profiles and connection files belong into the scratch directory.
        os.environ["IPYTHONDIR"] = str(scratch)
        import ipyparallel

        self.version = ipyparallel.__version__
        self.cluster = ipyparallel.Cluster(n=WORKERS)
        self.client = self.cluster.start_and_connect_sync()
        self.view = self.client.load_balanced_view()

    def submit_all(self, function, arguments):
        calls = [self.view.apply_async(function, argument) for argument in arguments]
        return [call.get() for call in calls]

    def call(self, function, argument):
        return self.view.apply_async(function, argument).get()

    def map(self, function, arguments):
        # Without a chunk size its map is the same as one by one. Sixteen chunks a worker balance well.
        return self.view.map_sync(function, arguments, chunksize=max(1, len(arguments) // (16 * WORKERS)))

    def apply(self, function, frame, partitions):
        return pandas.concat(self.view.map_sync(function, cut(frame, partitions)))

    def stop(self):
        self.client.close()
        self.cluster.stop_cluster_sync()
