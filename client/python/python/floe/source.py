"""Sources: where :meth:`floe.Mesh.map_reduce` reads from.

A source has a length and can be read from any place: ``__len__()`` and ``read(offset, limit)``. It is made on
the nodes; what travels is how to make it. So a source of yours is any object that pickles small and opens
what it reads from when it is read, or a class or function without arguments that makes one.

What the function of a `map_reduce` gets is what ``read`` returns:

=============== =========================================================================
source          ``read(offset, limit)``
=============== =========================================================================
:class:`range`  a Python ``range``
:class:`files`  a list of paths, in order
:class:`sql`    a list of rows, each a tuple; or a frame, with ``kind=``
=============== =========================================================================
"""

from __future__ import annotations

import builtins
import importlib
import os
import urllib.parse
from typing import Any, Iterable, Protocol, Sequence, runtime_checkable

from . import _paths

__all__ = ["Source", "range", "files", "sql"]


@runtime_checkable
class Source(Protocol):
    """What :meth:`floe.Mesh.map_reduce` reads from."""

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def read(self, offset: int, limit: int) -> Any:
        """The items from `offset` on, `limit` of them or as many as there are."""
        ...


class range:
    """Numbers, as Python's ``range``.

    >>> list(range(10, 20, 2).read(1, 3))
    [12, 14, 16]
    """

    def __init__(self, start: int, stop: int | None = None, step: int = 1) -> None:
        self._range = builtins.range(start, stop, step) if stop is not None else builtins.range(start)

    def __len__(self) -> int:
        return len(self._range)

    def read(self, offset: int, limit: int) -> builtins.range:
        return self._range[offset : offset + limit]

    def __repr__(self) -> str:
        return f"floe.source.{self._range!r}"


class files:
    """Paths of files, as the nodes see them, in order of their names.

    `patterns` are paths, patterns (``**`` for any directories below) or directories, which stand for all
    files below them. A name that exists is never a pattern, and a leading ``~/`` is the driver's home. All
    nodes must see the same files under them.
    """

    def __init__(self, patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> None:
        # Relative paths are the driver's. They are not normalized, which would make another path of `name/`.
        self._patterns = [os.path.join(_paths.here(), pattern) for pattern in _paths.texts(patterns)]
        self._paths: list[str] | None = None

    def _found(self) -> list[str]:
        if self._paths is None:
            paths = {path for pattern in self._patterns for path in _paths.expanded(pattern)}
            self._paths = sorted(paths, key=str.encode)
            if not self._paths:
                raise FileNotFoundError(f"this node sees no file under {', '.join(self._patterns)}")
        return self._paths

    def __len__(self) -> int:
        return len(self._found())

    def read(self, offset: int, limit: int) -> list[str]:
        return self._found()[offset : offset + limit]

    def __getstate__(self) -> dict[str, Any]:
        return {"_patterns": self._patterns, "_paths": None}

    def __repr__(self) -> str:
        return f"floe.source.files({self._patterns!r})"


class sql:
    """The rows of a query, read by the nodes from the database itself.

    `uri` is ``sqlite:///path/to/file`` (a file that all nodes see) or ``postgresql://user@host/database``,
    for which the nodes need ``psycopg`` or ``psycopg2`` (``requirements=["psycopg[binary]"]`` has it
    installed).

    Each task reads its own page. Pages are cut from all rows in an order that leaves nothing open, so that
    every row is in exactly one of them, whatever order the query asks for. The data must not change
    meanwhile.

    With `kind` ``pandas``, ``polars`` or ``arrow`` a page is a frame of that library, without it a list of
    tuples.
    """

    def __init__(self, uri: str, query: str, kind: str | None = None) -> None:
        self._uri = uri
        self._query = query.strip().rstrip(";")
        if kind not in (None, "pandas", "polars", "arrow"):
            raise ValueError(f"kind is 'pandas', 'polars' or 'arrow', not {kind!r}")
        self._kind = kind
        self._database: _Database | None = None
        scheme = urllib.parse.urlsplit(uri).scheme
        if scheme not in _SCHEMES:
            raise ValueError(f"{uri!r} does not start with sqlite: or postgresql:")
        # Relative paths are the driver's.
        self._paths = _sqlite_paths(uri) if scheme == "sqlite" else []

    def _open(self) -> _Database:
        if self._database is None:
            self._database = (
                _Sqlite(self._paths, self._query) if self._paths else _Postgresql(self._uri, self._query)
            )
        return self._database

    @property
    def columns(self) -> list[str]:
        """The names of the query's columns, where the database can be reached."""
        return self._open().columns

    def __len__(self) -> int:
        return self._open().count()

    def read(self, offset: int, limit: int) -> Any:
        database = self._open()
        rows = database.page(offset, limit)
        if self._kind == "pandas":
            import pandas

            return pandas.DataFrame.from_records(rows, columns=database.columns)
        if self._kind == "polars":
            import polars

            return polars.DataFrame(rows, schema=database.columns, orient="row", infer_schema_length=None)
        if self._kind == "arrow":
            import pyarrow

            values = zip(*rows) if rows else ([] for _ in database.columns)
            return pyarrow.table([pyarrow.array(list(column)) for column in values], names=database.columns)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        # A connection is one process's own.
        return {**self.__dict__, "_database": None}

    def __repr__(self) -> str:
        # Without what may be a password in the URI.
        parts = urllib.parse.urlsplit(self._uri)
        return f"floe.source.sql('{parts.scheme}://{parts.hostname or ''}{parts.path}', {self._query!r})"


class _Database:
    """A query on an open database."""

    columns: list[str]

    def count(self) -> int:
        raise NotImplementedError

    def page(self, offset: int, limit: int) -> list[tuple[Any, ...]]:
        raise NotImplementedError


def _sqlite_paths(uri: str) -> list[str]:
    """Where the file of a ``sqlite:`` URI may be, the likeliest place first.

    ``sqlite:///path`` is relative for SQLAlchemy and absolute for everybody else.
    """
    path = urllib.parse.unquote(uri[len("sqlite:") :])
    if path.startswith("////"):
        return [path[3:]]
    paths = [path[3:], path[2:]] if path.startswith("///") else [path.removeprefix("//")]
    if paths[0] in ("", ":memory:"):
        raise ValueError("a database in memory is one process's own: the nodes need a file")
    return [os.path.abspath(path) for path in paths]


class _Sqlite(_Database):
    def __init__(self, paths: Sequence[str], query: str) -> None:
        import sqlite3

        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            raise FileNotFoundError(f"this node sees no database at {' or '.join(paths)}")
        self._connection = sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=ro", uri=True)
        self._query = query
        described = self._connection.execute(f"SELECT * FROM ({query}\n) LIMIT 0").description
        self.columns = [column[0] for column in described]

    def count(self) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM ({self._query}\n)").fetchone()[0])

    def page(self, offset: int, limit: int) -> list[tuple[Any, ...]]:
        # Values that compare equal but are not the same, as 1 and 1.0 or 'a' and 'A' under NOCASE, need an
        # order too.
        names = [f"c{i}" for i, _ in enumerate(self.columns)]
        order = ", ".join(f"{name} COLLATE BINARY, typeof({name})" for name in names)
        return self._connection.execute(
            f"WITH page({', '.join(names)}) AS ({self._query}\n) "
            f"SELECT * FROM page ORDER BY {order} LIMIT ? OFFSET ?",
            (limit, offset),
        ).fetchall()


class _Postgresql(_Database):
    def __init__(self, uri: str, query: str) -> None:
        try:
            driver: Any = importlib.import_module("psycopg")
        except ImportError:
            try:
                driver = importlib.import_module("psycopg2")
            except ImportError:
                raise ModuleNotFoundError(
                    "this node needs psycopg or psycopg2 to read from PostgreSQL", name="psycopg"
                ) from None
        self._connection = driver.connect(uri)
        # A percent sign is the drivers' mark of a value.
        self._query = query.replace("%", "%%")
        self.columns = []
        self._rows(f"SELECT * FROM ({self._query}\n) AS page LIMIT %s", (0,))

    def _rows(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, tuple(values))
                if not self.columns:
                    self.columns = [column[0] for column in cursor.description]
                return [tuple(row) for row in cursor.fetchall()]
        finally:
            # Each page is its own transaction; an idle one would keep the server from cleaning up.
            self._connection.rollback()

    def count(self) -> int:
        return int(self._rows(f"SELECT count(*) FROM ({self._query}\n) AS page LIMIT %s", (1,))[0][0])

    def page(self, offset: int, limit: int) -> list[tuple[Any, ...]]:
        # By columns first, so that pages are what one would expect. Rows that compare equal there but are not
        # the same, as 1.0 and 1.00, are told apart by their text; types that have no order have only that.
        text = 'CAST(page AS text) COLLATE "C"'
        columns = ", ".join(str(i + 1) for i, _ in enumerate(self.columns))
        selected = f"SELECT * FROM ({self._query}\n) AS page ORDER BY"
        try:
            return self._rows(f"{selected} {columns}, {text} LIMIT %s OFFSET %s", (limit, offset))
        except Exception as error:
            if getattr(error, "sqlstate", getattr(error, "pgcode", None)) != _NO_SUCH_OPERATOR:
                raise
            return self._rows(f"{selected} {text} LIMIT %s OFFSET %s", (limit, offset))


#: PostgreSQL's code for a type that has no ordering operator.
_NO_SUCH_OPERATOR = "42883"

_SCHEMES = ("sqlite", "postgresql", "postgres")
