"""What comes of one plan: whether the mesh's answer is that of Polars in one process.

A difference counts only if Polars itself is sure: what two runs of the same plan, or its two engines, give
differently (random numbers, the order of groups) is not determined by the plan.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import dataclass

import polars as pl
from polars.testing import assert_frame_equal

import floe

#: The verdicts, from best to worst, and what they mean.
MEANING = {
    "equal": "the same rows, types and order",
    "reordered": "the same rows in another order, and Polars promises none",
    "both fail": "Polars raises, and so does the mesh",
    "undetermined": "another answer, but Polars gives another one each time too",
    "one engine": "the answer of one of Polars' engines, and not of the other",
    "unserializable": "Polars cannot serialize the plan, or not read it back",
    "writes": "the plan writes files, which a mesh refuses",
    "refused": "the mesh refuses the plan, with a sentence",
    "answered": "the mesh has an answer where Polars raises",
    "failed": "the mesh fails where Polars has an answer",
    "misordered": "the same rows in another order than Polars' engines give",
    "wrong": "another answer",
}

#: Verdicts that need no look.
RIGHT = ("equal", "reordered", "both fail", "undetermined", "unserializable", "writes")

#: Verdicts that do not count: what cannot be sent, or has no answer to compare with.
LEFT_OUT = ("both fail", "undetermined", "unserializable", "writes", "answered")

#: How often Polars' streaming engine runs a plan to show whether it gives the same each time.
RUNS = 3

#: What is in a plan with a group_by, join or unique that need not keep an order.
NO_ORDER = re.compile(rb"maintain_order(\xc2|\xa4None)")

#: What is in a plan with an inequality join, whose order both engines share.
INEQUALITY = re.compile(rb"predicates[\x91-\x9f]")

#: Sums of floats may differ in their last bits, as they do between two runs of Polars.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What came of a plan."""

    #: One of `MEANING`.
    name: str
    #: What plans of the same kind have in common.
    kind: str = ""
    #: What was said of this one.
    why: str = ""


def unserializable(error: BaseException) -> Verdict:
    """Of a plan that Polars does not serialize."""
    return Verdict("unserializable", kind_of(str(error)), _short(error))


def of_error(error: Exception, wanted: pl.DataFrame | Exception, plan: bytes) -> Verdict:
    """Of a plan that the mesh did not answer."""
    if isinstance(wanted, Exception):
        return Verdict("both fail", kind_of(str(error)), _short(error))
    if isinstance(error, floe.Refused):
        if "writes files" in str(error):
            return Verdict("writes", kind_of(str(error)), _short(error))
        try:
            pl.LazyFrame.deserialize(io.BytesIO(plan))
        except Exception as unread:
            return Verdict("unserializable", "Polars cannot read it back", _short(unread))
        return Verdict("refused", kind_of(str(error)), _short(error))
    if isinstance(again := _again(plan, "auto"), BaseException):
        return Verdict("undetermined", "Polars does not repeat it", _short(again))
    return Verdict("failed", kind_of(str(error)), _short(error))


def of_frame(got: pl.DataFrame, wanted: pl.DataFrame | Exception, plan: bytes) -> Verdict:
    """Of a plan that the mesh answered."""
    if isinstance(wanted, Exception):
        if isinstance(_again(plan, "streaming"), pl.DataFrame):
            return Verdict("both fail", "only Polars' in-memory engine raises", _short(wanted))
        return Verdict("answered", kind_of(str(wanted)), _short(wanted))
    difference = _difference(got, wanted)
    if difference is None:
        return Verdict("equal")
    if got.schema == pl.LazyFrame.deserialize(io.BytesIO(plan)).collect_schema() != wanted.schema:
        return Verdict("undetermined", "Polars' result is not of the types that it says", difference)
    again = _again(plan, "auto")
    if isinstance(again, BaseException):
        return Verdict("undetermined", "Polars does not repeat it", _short(again))
    streamed = [_again(plan, "streaming") for _ in range(RUNS)]
    frames = [frame for frame in streamed if isinstance(frame, pl.DataFrame)]
    if _difference(got, wanted, ordered=False) is None:
        unsure = any(_difference(frame, wanted) is not None for frame in [again, *frames])
        name = (
            "reordered" if unsure or NO_ORDER.search(plan) and not INEQUALITY.search(plan) else "misordered"
        )
        return Verdict(name, kind_of(difference), difference)
    if any(_difference(one, other, ordered=False) for one in frames for other in frames) or _difference(
        again, wanted, ordered=False
    ):
        return Verdict("undetermined", "Polars does not repeat it", difference)
    if any(_difference(got, frame, ordered=False) is None for frame in frames):
        return Verdict("one engine", kind_of(difference), difference)
    fresh = _in_another_process(plan)
    if fresh is not None and _difference(got, fresh, ordered=False) is None:
        return Verdict("undetermined", "it depends on what else Polars did in its process", difference)
    return Verdict("wrong", kind_of(difference), difference)


def _again(plan: bytes, engine: str) -> pl.DataFrame | BaseException:
    """The plan's result, once more, by one of Polars' engines."""
    try:
        return pl.LazyFrame.deserialize(io.BytesIO(plan)).collect(engine=engine)  # type: ignore[call-overload,no-any-return]
    except BaseException as error:  # A panic of Polars is no Exception.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return error


def _in_another_process(plan: bytes) -> pl.DataFrame | None:
    """The plan's result in a process that did nothing before: it may give categories other codes."""
    code = "import io, sys, polars as pl; plan = io.BytesIO(sys.stdin.buffer.read())\n"
    code += "pl.LazyFrame.deserialize(plan).collect().write_ipc(sys.stdout.buffer)"
    done = subprocess.run([sys.executable, "-c", code], input=plan, capture_output=True)
    return pl.read_ipc(io.BytesIO(done.stdout)) if done.returncode == 0 else None


def _difference(got: pl.DataFrame, wanted: pl.DataFrame, ordered: bool = True) -> str | None:
    """What differs, in words."""
    if got.schema != wanted.schema:
        return f"schema {dict(got.schema)} instead of {dict(wanted.schema)}"
    if got.height != wanted.height:
        return f"{got.height} rows instead of {wanted.height}"
    try:
        assert_frame_equal(
            got,
            wanted,
            check_row_order=ordered,
            check_exact=False,
            rel_tol=TOLERANCE,
            abs_tol=TOLERANCE,
            categorical_as_str=True,
        )
    except AssertionError as error:
        return str(error)
    except BaseException as error:  # Some types cannot be compared, or sorted: their text can.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        left, right = ([repr(row) for row in frame.rows()] for frame in (got, wanted))
        if left == right or (not ordered and sorted(left) == sorted(right)):
            return None
        return f"values differ: {left[:3]} instead of {right[:3]}"
    return None


def kind_of(text: str) -> str:
    """A message without what is this plan's own: names, numbers, paths, values."""
    text = text.split("\n\n")[0].strip()
    text = re.sub(r"(/[\w.=%+\-\[\]]+)+", "PATH", text)
    text = re.sub(r"`[^`]*`|\"[^\"]*\"|'[^']*'", "…", text)
    text = re.sub(r"0x[0-9a-f]+|-?\d[\d_.,]*", "N", text)
    return " ".join(text.split())[:140]


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
