"""Bars."""

import io
import sys

from floe import progress
from floe.progress import Bar, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines():
    assert (
        progress.line_of("f", Progress(5, 10), 2.0)
        == f"f:  50%|{'█' * 15 + ' ' * 15}| 5/10 [00:02<00:02, 2.5 tasks/s]"
    )
    assert progress.line_of("f", Progress(5, None, unit="items"), 2.0) == "f: 5 items [00:02, 2.5/s]"
    assert progress.line_of("f", Progress(0, 10), 0.0).endswith("| 0/10 [00:00<?, 0.0 tasks/s]")
    assert "1:00:00" in progress.line_of("f", Progress(1, 2), 3600)


def test_terminals_and_pipes(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Bar("f")
    bar.show(Progress(1, 2))
    bar.show(Progress(1, 2))
    bar.show(Progress(2, 2), last=True)
    assert terminal.getvalue().count("\r") == 2 and terminal.getvalue().endswith("\n")
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    Bar("f").show(Progress(2, 2), last=True)
    assert pipe.getvalue() == ""


def test_notebooks(monkeypatch):
    shown = []

    class Handle:
        def update(self, line):
            shown.append(repr(line))

    class IPython:
        class display:
            @staticmethod
            def display(line, display_id):
                shown.append(repr(line))
                return Handle()

        class ZMQInteractiveShell:
            pass

        @classmethod
        def get_ipython(cls):
            return cls.ZMQInteractiveShell()

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    monkeypatch.setitem(sys.modules, "IPython.display", IPython.display)
    bar = Bar("f")
    bar.show(Progress(1, 2))
    bar.show(Progress(2, 2), last=True)
    assert len(shown) == 2 and "100%" in shown[1]


def test_sentences():
    assert str(Progress(3, 4, 1)) == "3 of 4 tasks done (75%), 1 running"
    assert str(Progress(3, None, unit="items")) == "3 items done"
    assert float(Progress(1, 4)) == 0.25 and float(Progress(0, 0)) == 0.0
