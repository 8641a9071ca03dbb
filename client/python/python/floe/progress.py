"""How far something is: a number, a sentence, a bar in a terminal or a notebook."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from ._looking import imported

#: How often a bar is drawn anew at most, in seconds.
_INTERVAL = 0.1

_WIDTH = 30
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Progress:
    """How many tasks, items or calls are done."""

    #: How many are done.
    done: int
    #: How many there are, None if that is not known yet.
    total: int | None
    #: How many run now.
    running: int = 0
    #: What they are.
    unit: str = "tasks"

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 0.0

    def __float__(self) -> float:
        return self.fraction

    def __str__(self) -> str:
        of = f"{self.done} of {self.total}" if self.total is not None else f"{self.done}"
        percent = f" ({self.fraction:.0%})" if self.total else ""
        running = f", {self.running} running" if self.running else ""
        return f"{of} {self.unit} done{percent}{running}"

    __repr__ = __str__


class Bar:
    """Shows progress where somebody may look: on a terminal or in a notebook. Elsewhere it is silent."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = time.monotonic()
        self._drawn = 0.0
        self._handle: Any = None
        self._mode = "notebook" if _in_notebook() else "terminal" if sys.stderr.isatty() else None

    def show(self, progress: Progress, last: bool = False) -> None:
        """Draws the bar, if it was not just drawn."""
        now = time.monotonic()
        if self._mode is None or (not last and now - self._drawn < _INTERVAL):
            return
        self._drawn = now
        line = line_of(self._label, progress, now - self._started)
        if self._mode == "terminal":
            sys.stderr.write(f"\r\x1b[2K{line}" + ("\n" if last else ""))
            sys.stderr.flush()
        else:
            from IPython.display import display

            if self._handle is None:
                self._handle = display(_Line(line), display_id=True)
            else:
                self._handle.update(_Line(line))


class _Line:
    """A line of text as a notebook shows it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def line_of(label: str, progress: Progress, elapsed: float) -> str:
    """A bar as text."""
    rate = progress.done / elapsed if elapsed > 0 else 0.0
    if not progress.total:
        return f"{label}: {progress.done} {progress.unit} [{_time(elapsed)}, {rate:.1f}/s]"
    eighths = round(progress.fraction * _WIDTH * 8)
    full, rest = divmod(eighths, 8)
    bar = ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_WIDTH)
    left = _time((progress.total - progress.done) / rate) if rate > 0 else "?"
    return (
        f"{label}: {progress.fraction:4.0%}|{bar}| {progress.done}/{progress.total} "
        f"[{_time(elapsed)}<{left}, {rate:.1f} {progress.unit}/s]"
    )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _in_notebook() -> bool:
    """Whether this runs in Jupyter, whose kernels draw what they are given."""
    ipython = imported("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def say(message: str) -> None:
    """Tells the user something in passing."""
    print(f"floe: {message}", file=sys.stderr, flush=True)
