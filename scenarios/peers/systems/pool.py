"""`concurrent.futures.ProcessPoolExecutor`: what there is without any of the others."""

import platform
from concurrent.futures import ProcessPoolExecutor

import pandas

from . import WORKERS, cut


class System:
    version = f"of Python {platform.python_version()}"

    def __init__(self, scratch):
        self.pool = ProcessPoolExecutor(WORKERS)

    def submit_all(self, function, arguments):
        futures = [self.pool.submit(function, argument) for argument in arguments]
        return [future.result() for future in futures]

    def call(self, function, argument):
        return self.pool.submit(function, argument).result()

    def map(self, function, arguments):
        # Without a chunk size its map is the same as one by one. Sixteen chunks a worker balance well.
        return list(self.pool.map(function, arguments, chunksize=max(1, len(arguments) // (16 * WORKERS))))

    def apply(self, function, frame, partitions):
        return pandas.concat(self.pool.map(function, cut(frame, partitions)))

    def stop(self):
        self.pool.shutdown()
