"""Progress: a bar on a terminal, lines in a log, nothing where nobody looks or it is over at once."""

import io
import time

import pytest

from umarvel_hf import progress
from umarvel_hf.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.02)
    monkeypatch.setattr(progress, "SECONDS_BEFORE_THE_FIRST", 0.02)


def watched(monkeypatch, stream, **options):
    monkeypatch.setattr("sys.stderr", stream)
    for _ in Progress(range(10), "items", **options):
        time.sleep(0.02)
    return stream.getvalue()


def test_a_terminal_sees_a_bar_that_is_redrawn(monkeypatch):
    written = watched(monkeypatch, Terminal(), show=True)
    assert written.count("\r") > 1 and "items: 100%" in written


def test_a_log_gets_whole_lines(monkeypatch, quick):
    written = watched(monkeypatch, io.StringIO(), show=True)
    assert "\r" not in written and "\x1b" not in written
    lines = [line for line in written.splitlines() if line]
    assert len(lines) > 1 and all(line.startswith("items: ") for line in lines)
    assert lines[-1].startswith("items: 100%") and "10/10" in lines[-1]


def test_what_is_quick_says_nothing_in_a_log(monkeypatch):
    assert watched(monkeypatch, io.StringIO(), show=True) == ""


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
@pytest.mark.parametrize("show", [False, None])
def test_nothing_is_shown_where_nobody_looks(monkeypatch, quick, stream, show):
    assert watched(monkeypatch, stream(), show=show) == ""
