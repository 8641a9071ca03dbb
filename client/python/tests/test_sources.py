"""Sources and `map_reduce`; SQL from SQLite and from a real PostgreSQL server."""

import glob
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import floe

from conftest import DEADLINE, wait_until


def add(a, b):
    return a + b


def test_map_reduce(mesh):
    numbers = floe.source.range(1, 1001)
    assert mesh.map_reduce(numbers, sum, add).collect() == 500_500
    assert mesh.map_reduce(numbers, sum, add, 1).collect() == 500_500
    # Neighbours are folded in order, however many there are.
    letters = mesh.map_reduce(lambda: Letters(), "".join, add, 26)
    assert letters.collect() == "abcdefghijklmnopqrstuvwxyz"
    assert mesh.map_reduce(Letters, "".join, add, 5).collect() == "abcdefghijklmnopqrstuvwxyz"


class Letters:
    """Knows only on the node how long it is."""

    def __len__(self):
        return 26

    def read(self, offset, limit):
        return [chr(ord("a") + i) for i in range(offset, min(26, offset + limit))]


def test_bad_sources(mesh):
    with pytest.raises(ValueError, match="the source is empty"):
        mesh.map_reduce(floe.source.range(0), sum, add)
    with pytest.raises(TypeError, match="a source has __len__"):
        mesh.map_reduce([1, 2], sum, add)
    with pytest.raises(ValueError, match="at least 1"):
        mesh.map_reduce(floe.source.range(10), sum, add, 0)
    with pytest.raises(FileNotFoundError, match="this node sees no file under /nowhere"):
        mesh.map_reduce(floe.source.files("/nowhere/*"), len, add)
    with pytest.raises(FileNotFoundError, match="this node sees no database at"):
        mesh.map_reduce(floe.source.sql("sqlite:////nowhere/data.db", "SELECT 1"), len, add)
    with pytest.raises(ValueError, match="does not start with sqlite: or postgresql:"):
        floe.source.sql("oracle://x", "SELECT 1")
    with pytest.raises(ValueError, match="in memory"):
        floe.source.sql("sqlite://", "SELECT 1")
    with pytest.raises(ZeroDivisionError):
        mesh.map_reduce(floe.source.range(10), sum, lambda a, b: 1 // 0, 3).collect()


def test_files(mesh, tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.txt").write_text("x" * i)
    source = floe.source.files(tmp_path / "*.txt")
    assert len(source) == 7 and source.read(2, 2) == [str(tmp_path / "2.txt"), str(tmp_path / "3.txt")]
    sizes = mesh.map_reduce(source, lambda paths: sum(os.path.getsize(path) for path in paths), add, 3)
    assert sizes.collect() == 21
    assert len(floe.source.files(tmp_path)) == 7


@pytest.fixture
def sqlite(tmp_path):
    path = tmp_path / "data.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x, name TEXT COLLATE NOCASE)")
        rows = [(i % 10 if i % 2 else float(i % 10), "aA"[i % 2]) for i in range(1000)]
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    connection.close()
    return f"sqlite:///{path}", rows


def kinds(rows):
    return Counter((row[0], type(row[0]).__name__, row[1]) for row in rows)


def test_sqlite(mesh, sqlite):
    uri, rows = sqlite
    source = floe.source.sql(uri, "SELECT * FROM t ORDER BY random();")
    assert source.columns == ["x", "name"] and len(source) == 1000
    # Every row is in exactly one page, those that merely compare equal among them.
    assert mesh.map_reduce(source, kinds, add, 13).collect() == kinds(rows)
    frames = mesh.map_reduce(
        floe.source.sql(uri, "SELECT * FROM t", kind="pandas"),
        lambda frame: frame,
        lambda a, b: pd.concat([a, b]),
        4,
    ).collect()
    assert frames.shape == (1000, 2) and frames["x"].sum() == sum(row[0] for row in rows)
    for kind in ("polars", "arrow"):
        part = floe.source.sql(uri, "SELECT * FROM t", kind=kind).read(10, 5)
        assert part.shape == (5, 2)
    with pytest.raises(sqlite3.OperationalError):
        mesh.map_reduce(floe.source.sql(uri, "SELECT * FROM nothing"), len, add)


def server_programs():
    for directory in [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), *os.get_exec_path()]:
        if os.path.exists(os.path.join(directory, "initdb")) and os.path.exists(
            os.path.join(directory, "postgres")
        ):
            return directory
    return None


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """A PostgreSQL server on loopback, with the address of its database."""
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (initdb and postgres)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    directory = Path("/tmp", f"floe-pg-{os.getpid()}")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    as_user = []
    if os.geteuid() == 0:
        # The server refuses to run as root.
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(directory, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = str(directory / "data")
    initdb = [
        *as_user,
        f"{programs}/initdb",
        "-D",
        data,
        "-U",
        "floe",
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
    ]
    subprocess.run([*initdb, "--no-locale"], check=True, capture_output=True, cwd="/")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(directory / "log", "wb")
    server = subprocess.Popen(
        [
            *as_user,
            f"{programs}/postgres",
            "-D",
            data,
            "-k",
            str(directory),
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        + ["-p", str(port), "-c", "fsync=off"],
        stdout=log,
        stderr=log,
        cwd="/",
    )
    import psycopg

    uri = f"postgresql://floe@127.0.0.1:{port}/postgres"

    def answers():
        assert server.poll() is None, (directory / "log").read_text()
        try:
            psycopg.connect(uri).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until("PostgreSQL", answers, DEADLINE)
        yield uri
    finally:
        # Not SIGTERM, which waits for all connections to end: the nodes' processes keep theirs.
        server.send_signal(signal.SIGINT)
        server.wait()
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


def test_postgresql(mesh, postgresql):
    import psycopg

    with psycopg.connect(postgresql) as connection:
        connection.execute("CREATE TABLE t (i int, n numeric, s text, j json, p point)")
        connection.execute(
            """INSERT INTO t SELECT i % 7, CASE WHEN i % 2 = 0 THEN 1.0 ELSE 1.00 END, 'a%b ' || i % 3,
               '{"a": 1}', point(i % 5, 0) FROM generate_series(1, 5000) AS i"""
        )
        expected = Counter(connection.execute("SELECT i, n::text, s FROM t").fetchall())
    source = floe.source.sql(postgresql, "SELECT i, n, s FROM t WHERE s LIKE 'a%' -- all of them")
    assert len(source) == 5000 and source.columns == ["i", "n", "s"]
    # 1.0 and 1.00 are the same to an ORDER BY and not the same in the end.
    counted = mesh.map_reduce(
        source, lambda rows: __import__("collections").Counter((i, str(n), s) for i, n, s in rows), add, 17
    )
    assert counted.collect() == expected
    # Types that PostgreSQL has no order for.
    odd = floe.source.sql(postgresql, "SELECT j, p::text, i FROM t")
    assert mesh.map_reduce(odd, lambda rows: sum(row[2] for row in rows), add, 9).collect() == sum(
        i * count for (i, _, _), count in expected.items()
    )
    frame = floe.source.sql(postgresql, "SELECT i, s FROM t", kind="pandas")
    assert mesh.map_reduce(frame, lambda part: int(part["i"].sum()), add).collect() == sum(
        i * count for (i, _, _), count in expected.items()
    )
    with pytest.raises(psycopg.errors.UndefinedTable):
        mesh.map_reduce(floe.source.sql(postgresql, "SELECT * FROM nothing"), len, add)
    assert "floe@" not in repr(source)
