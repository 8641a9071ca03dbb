"""Writes what one version of py-polars makes of every kind of plan and expression that it can write.

    python -m venv V && V/bin/pip install polars==2.1.0 && V/bin/python make.py

Run it once for each version, in an environment that has that version and nothing else of Polars. It writes
VERSION.parquet beside itself, a row for each plan: its text, what `LazyFrame.serialize` says, and the frame
that this version itself makes of it, as Arrow IPC; or the error, where Polars has none of it. Texts that a
version does not know (a method came later, or is gone) are left out; `-v` prints them. `--missing` names the
public methods that no text calls.

The tests read every plan of every version and compare what comes out. The texts are in texts.txt: each line
is an expression, selected from the frame in whose section it stands, or, in the section without a name, a
LazyFrame. `c` is `pl.col`, frames have the names that `frames` gives them.
"""

import io
import os
import re
import sys
import warnings
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl

warnings.simplefilter("ignore")
HERE = Path(__file__).parent
c = pl.col
NAN = float("nan")


def frames() -> dict[str, pl.LazyFrame]:
    """Small frames of every type, with nulls. They travel in the plans, so each has few columns."""
    at = datetime(2024, 2, 28, 23, 59, 58, 123456)
    times = [at, at + timedelta(hours=7), None, at - timedelta(days=400), at + timedelta(days=1)]
    return {
        "N": pl.LazyFrame(
            {
                "g": ["x", "y", "x", "y", "x", "z"],
                "i": [3, 1, None, 4, -5, 9],
                "j": [2, 7, 1, 8, 2, 8],
                "f": [1.5, -2.0, None, 0.25, NAN, 7.75],
                "b": [True, False, None, True, True, False],
            }
        ),
        "P": pl.LazyFrame(
            {"u": [0, 200, None, 7], "p": [0.5, 1.0, 2.0, 3.25], "k": [1, 2, 3, 4]},
            schema_overrides={"u": pl.UInt8},
        ),
        "S": pl.LazyFrame(
            {"s": ["ab", "Cd e", None, "123", "äöü", "a-b,c"], "r": ["b", "d", "x", "3", "", None]}
        ),
        "J": pl.LazyFrame({"s": ['{"a": 1, "b": [true]}', '{"a": null}', None]}),
        "D": pl.LazyFrame(
            {
                "s": ["2024-02-28", "2023-12-31", None],
                "t": ["2024-02-28 01:02:03", None, "2020-01-01 00:00:00"],
            }
        ),
        "T": pl.LazyFrame(
            {
                "t": times,
                "d": [date(2024, 2, 28), date(2023, 1, 1), None, date(1969, 12, 31), date(2024, 3, 2)],
                "e": [
                    timedelta(days=1, seconds=3),
                    timedelta(microseconds=5),
                    None,
                    timedelta(hours=-3),
                    timedelta(),
                ],
                "h": [time(1, 2, 3), time(23, 59, 59, 999999), None, time(0), time(12)],
                "v": [1, 2, 3, 4, 5],
            }
        ),
        "TZ": pl.LazyFrame({"z": times}).select(c("z").dt.replace_time_zone("Europe/Berlin")),
        "R": pl.LazyFrame(
            {
                "t": [datetime(2024, 1, 1, h) for h in (0, 1, 1, 3, 6)],
                "v": [1, 2, 3, 4, 5],
                "g": list("aabba"),
            }
        ),
        "L": pl.LazyFrame({"l": [[3, 1, 2], [], None, [7, None, 7]], "m": [[1], [2, 3], [4], None]}),
        "LS": pl.LazyFrame(
            {"l": [["a", "b"], [], None, ["c", None]], "b": [[True], [False, True], None, []]}
        ),
        "A": pl.LazyFrame(
            {"a": [[1, 2], [3, None], None], "x": [[5, 6], [7, 8], [9, 9]]},
            schema={"a": pl.Array(pl.Int64, 2), "x": pl.Array(pl.Int64, 2)},
        ),
        "AF": pl.LazyFrame({"a": [[1.0, 2.5], [3.0, None], None]}, schema={"a": pl.Array(pl.Float64, 2)}),
        "AB": pl.LazyFrame({"a": [[True, False], [True, None], None]}, schema={"a": pl.Array(pl.Boolean, 2)}),
        "AS": pl.LazyFrame({"a": [["u", "v"], ["w", None], None]}, schema={"a": pl.Array(pl.String, 2)}),
        "ST": pl.LazyFrame({"r": [{"a": 1, "b": "p"}, {"a": None, "b": "q"}, None]}),
        "B": pl.LazyFrame({"b": [b"ab\x01\x02", b"\xff", None, b"6162"]}),
        "B8": pl.LazyFrame({"b": [b"\x01\x02\x03\x04", b"\xff\x00\x00\x00"]}),
        "C": pl.LazyFrame({"c": ["x", "yy", None, "x"]}, schema={"c": pl.Categorical}),
        "E": pl.LazyFrame({"c": ["x", "yy", None, "x"]}, schema={"c": pl.Enum(["yy", "x"])}),
        "DE": pl.LazyFrame(
            {"d": [Decimal("1.25"), None, Decimal("-3.10")], "q": [2, 3, 4]},
            schema={"d": pl.Decimal(10, 2), "q": pl.Int64},
        ),
        "W": pl.LazyFrame({"k": ["x", "y", "x"], "p1": [1, 2, 3], "p2": [4, None, 6]}),
        "X": pl.LazyFrame({"i": [1, 3, 4, None], "o": ["one", "three", "four", "none"], "j": [2, 2, 8, 1]}),
        "MS": pl.LazyFrame({"a": [1, 3, 5], "b": ["x", "y", "z"]}),
        "MS2": pl.LazyFrame({"a": [2, 3, 6], "b": ["p", "q", "r"]}),
    }


def texts():
    """Every text, with the name of its frame."""
    frame = ""
    for line in (HERE / "texts.txt").read_text().splitlines():
        if heading := re.fullmatch(r"\[(\w*)\]", line):
            frame = heading[1]
        elif line:
            yield frame, line


def rows():
    """A row for every text that this version can make a plan of."""
    for frame, text in texts():
        try:
            made = eval(compile(text, "texts.txt", "eval"), names)
            plan = names[frame].select(made) if frame else made
            # Pickled functions say where they come from, which is nobody's business.
            home = str(Path(sys.prefix)).encode()
            bytes_ = plan.serialize().replace(home, b"-" * len(home))
        except Exception as error:  # This version has no such method, or writes no such plan.
            if "-v" in sys.argv:
                print(f"{frame}: {text}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            continue
        row = {"text": f"{frame}: {text}" if frame else text, "plan": bytes_, "result": None, "error": None}
        try:
            if "sink_" in text or "collect_all" in text:
                raise RuntimeError("not run: it writes")
            out = io.BytesIO()
            plan.collect().write_ipc(out, compat_level=pl.CompatLevel.newest())
            row["result"] = out.getvalue()
        except BaseException as error:  # A panic of Polars is no Exception.
            row["error"] = str(error).splitlines()[0][:200]
        yield row


def missing() -> None:
    """Names the public methods that no text calls."""
    said = "\n".join(text for _, text in texts())
    for kind, prefix in [(pl.Expr, ""), (pl.LazyFrame, "")]:
        for name in dir(kind):
            if not name.startswith("_") and not re.search(rf"\.{name}\b", said):
                print(f"{kind.__name__}.{prefix}{name}")
    for space in "str dt list arr struct bin cat name ext map".split():
        for name in dir(type(getattr(c("a"), space, None))):
            if not name.startswith("_") and not re.search(rf"\.{space}\.{name}\b", said):
                print(f"Expr.{space}.{name}")
    for name in dir(pl):
        if name[0].islower() and callable(getattr(pl, name)) and not re.search(rf"pl\.{name}\b", said):
            print(f"pl.{name}")


if __name__ == "__main__":
    DATA = HERE / "files"
    os.chdir(DATA)
    names = {name: value for name, value in globals().items() if name != "__file__"} | frames()
    if "--missing" in sys.argv:
        missing()
    else:
        frame = pl.DataFrame(
            list(rows()),
            schema={"text": pl.String, "plan": pl.Binary, "result": pl.Binary, "error": pl.String},
        )
        to = HERE / f"{pl.__version__}.parquet"
        frame.write_parquet(to, compression="zstd", compression_level=19, statistics=False)
        without = frame["result"].null_count()
        print(f"{to.name}: {frame.height} plans, {without} without a result, {to.stat().st_size} bytes")
