"""What a long command is at is said on standard error, in few lines where there is no terminal."""

from __future__ import annotations

import pytest

from experiments.records.progress import LINES, told, working


def test_items_are_announced_before_they_are_handed_on(capsys):
    seen = []
    for item in told({"a": 1, "b": 2}, lambda name: f"compiling {name}"):
        seen.append((item, capsys.readouterr().err))
    assert seen == [("a", "compiling a (1 of 2)\n"), ("b", "compiling b (2 of 2)\n")]
    assert list(told([])) == []


def test_a_long_loop_is_told_in_few_lines(capsys):
    assert list(told(range(1000))) == list(range(1000))
    assert len(capsys.readouterr().err.splitlines()) == LINES


def test_on_a_terminal_there_is_a_bar_that_leaves_nothing_behind(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert list(told("ab", lambda letter: f"[{letter}]")) == ["a", "b"]
    shown = capsys.readouterr().err
    assert "0/2" in shown
    assert "(1 of 2)" not in shown


def test_an_error_inside_comes_through(capsys):
    with pytest.raises(ValueError, match="of mine"), working("long work"):
        raise ValueError("of mine")
    assert capsys.readouterr().err == "long work\n"
