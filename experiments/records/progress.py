"""What a long command is at: a bar on a terminal, lines on standard error elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.records.files import say

T = TypeVar("T")
LINES = 20
"""Most lines of one loop, where there is no terminal."""


def told(items: Iterable[T], describe: Callable[[T], str] = str) -> Iterator[T]:
    """The items of a loop, each announced before it is handed on.

    Args:
      items: known beforehand.
      describe: what is said of one.
    """
    listed = list(items)
    console, n = Console(stderr=True), len(listed)
    if not console.is_terminal:
        every = -(-n // LINES)
        for k, item in enumerate(listed):
            if k % every == 0:
                say(f"{describe(item)} ({k + 1} of {n})")
            yield item
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=n)
        for k, item in enumerate(listed):
            bar.update(task, completed=k, description=escape(describe(item)))
            yield item


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Say what takes a while, as long as it takes."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(escape(text)):
            yield
    else:
        say(text)
        yield
