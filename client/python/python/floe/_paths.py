"""Paths as the nodes take them.

The nodes expand what is sent to them as a path. A source runs in Python on a node, so the rule is here
once more, and both are tested with one table: a name that exists is that name; from the root on, only a
component that no entry has may be a pattern: ``*``, ``?``, ``[a-z]``, ``[!a-z]``, or ``**`` for any
directories below.
"""

from __future__ import annotations

import fnmatch
import os
import re
from typing import Any, Iterable

__all__ = ["expanded", "here", "text", "texts"]


def text(path: str | os.PathLike[str]) -> str:
    """A path as it is sent: as it was given, but for a leading ``~/``, which is the driver's home.

    Raises:
        TypeError: It is no path.
        ValueError: Its name is not UTF-8, which neither Polars nor the nodes can name.
    """
    found: Any = os.fspath(path)
    if not isinstance(found, str):
        raise TypeError(f"a path is a str or a pathlib.Path, not {type(found).__name__}: {found!r}")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of {found!r} is not UTF-8, which Polars cannot read; rename it") from None
    return os.path.expanduser("~") + found[1:] if found == "~" or found.startswith("~/") else found


def texts(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """One path or several, each as :func:`text`."""
    # Bytes would be several numbers; it is said that they are no path.
    return [text(path) for path in ([paths] if isinstance(paths, (str, bytes, os.PathLike)) else paths)]


def here() -> str:
    """The driver's directory, against which its relative paths are taken.

    Raises:
        ValueError: Its name is not UTF-8.
    """
    return text(os.getcwd())


def expanded(path: str) -> list[str]:
    """The files that an absolute path stands for, in the order of their names; none if there are none.

    Raises:
        ValueError: It is a pattern that cannot be read, or it leads to a name that is not UTF-8.
        OSError: A directory on the way cannot be read.
    """
    if os.path.isfile(path):
        files = {path}
    elif os.path.isdir(path):
        files = set(_below(path))
    else:
        files = _matching(path)
    return sorted(map(text, files), key=str.encode)


def _below(directory: str) -> list[str]:
    files, pending = [], [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    _no_loop(entry.path)
                    pending.append(entry.path)
                elif _is_file(entry.path):
                    files.append(entry.path)
    return files


def _matching(path: str) -> set[str]:
    if path.endswith("/"):
        return set()
    steps = [name for name in path.split("/") if name not in ("", ".")]
    files: set[str] = set()
    seen: set[tuple[str, int]] = set()
    pending = [("/", 0)]
    while pending:
        at = pending.pop()
        if at in seen:
            continue
        seen.add(at)
        found, index = at
        if index == len(steps):
            if _is_file(found):
                files.add(found)
            continue
        step = steps[index]
        literal = os.path.join(found, step)
        if os.path.lexists(literal):
            pending.append((literal, index + 1))
        elif re.search(r"[*?[]", step) and os.path.isdir(found):
            if step == "**":
                pending.append((found, index + 1))
            elif "**" in step:
                raise ValueError(
                    f"{path} is not a valid pattern: ** stands for directories and is a name of its own"
                )
            with os.scandir(found) as entries:
                for entry in entries:
                    if step != "**":
                        if fnmatch.fnmatchcase(entry.name, step):
                            pending.append((entry.path, index + 1))
                    elif entry.is_dir():
                        _no_loop(entry.path)
                        pending.append((entry.path, index))
    return files


def _is_file(path: str) -> bool:
    """Whether it is a file. A link that leads nowhere is an error, as it is for the nodes."""
    if os.path.islink(path):
        os.stat(path)
    return os.path.isfile(path)


def _no_loop(path: str) -> None:
    if os.path.islink(path):
        target, own = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
        if os.path.commonpath([target, own]) == target:
            raise ValueError(f"{path} is a link to a directory that it is in itself")
