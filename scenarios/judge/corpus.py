"""A pytest plugin that makes a corpus of plans over files of few rows, for tests of how plans are split.

Frames of the tests are small, and a mesh runs small plans as one task. With this, a frame of two rows or more
that becomes lazy is written to Arrow IPC files first, and what is lazy scans these. Each collected plan is
kept in the directory that `FLOE_CORPUS` names. `cargo nextest run -p floe-query corpus --run-ignored only`
with `FLOE_TEST_PLANS` naming it too runs them all, with a task for each file.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import polars as pl

#: A frame is written to so many files at most.
MAX_FILES = 4

_directory = Path(os.environ["FLOE_CORPUS"])
_collect: Any = pl.LazyFrame.collect
_lazy: Any = pl.DataFrame.lazy
_busy = False
_frames = 0


def _scanned(frame: pl.DataFrame) -> pl.LazyFrame:
    """A lazy frame of files with a frame's rows."""
    global _busy, _frames
    main = threading.current_thread() is threading.main_thread()
    if _busy or not main or frame.height < 2 or not frame.width:
        return _lazy(frame)  # type: ignore[no-any-return]
    _busy = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _frames += 1
            folder = _directory / f"{os.getpid()}-{_frames}"
            folder.mkdir()
            files = min(frame.height, MAX_FILES)
            bounds = [frame.height * number // files for number in range(files + 1)]
            for number, (start, end) in enumerate(zip(bounds, bounds[1:])):
                frame[start:end].write_ipc(folder / f"{number}.arrow", compression="uncompressed")
            return pl.scan_ipc(folder / "*.arrow")
    except BaseException as error:  # What cannot be written stays in memory; panics are no Exception.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return _lazy(frame)  # type: ignore[no-any-return]
    finally:
        _busy = False


def _kept(frame: pl.LazyFrame, *args: Any, **options: Any) -> Any:
    """`LazyFrame.collect`, and the plan is kept."""
    global _busy
    if not _busy:
        _busy = True
        try:
            plan = bytes(frame.serialize())
            (_directory / (hashlib.sha256(plan).hexdigest()[:16] + ".plan")).write_bytes(plan)
        except Exception:
            pass  # Not every plan can be serialized.
        finally:
            _busy = False
    return _collect(frame, *args, **options)


setattr(pl.DataFrame, "lazy", _scanned)  # noqa: B010
setattr(pl.LazyFrame, "collect", _kept)  # noqa: B010
