"""Tables on a terminal of any width: nothing in them is cut off."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table


def show(table: Table, console: Console) -> None:
    """Print a table within the width of the console.

    Cells break between words. Where even so they do not fit, columns go on in further tables below, each with the first
    column; a word wider than the console breaks inside.
    """
    for part in parts(table, console):
        console.print(part)
        console.print()


def parts(table: Table, console: Console) -> list[Table]:
    """The table, or what it is divided into."""
    sizes = [_size(column, console) for column in table.columns]
    found: list[Table] = []
    start, n = 1, len(sizes)
    while start < n or not found:
        stop = n
        while stop > start + 1 and sum(size.minimum for size in (sizes[0], *sizes[start:stop])) > _room(
            console, 1 + stop - start
        ):
            stop -= 1
        chosen = [0, *range(start, stop)][:n]
        widths = _widths([sizes[i] for i in chosen], _room(console, len(chosen)))
        found.append(_of(table, chosen, widths, first=not found))
        start = max(stop, start + 1)
    return found


def _size(column: Column, console: Console) -> Measurement:
    """The longest word and the longest line of a column."""
    texts = (console.render_str(cell) if isinstance(cell, str) else cell for cell in (column.header, *column.cells))
    found = [Measurement.get(console, console.options.update(width=10_000), text) for text in texts]
    return Measurement(max(size.minimum for size in found), max(size.maximum for size in found))


def _room(console: Console, n_columns: int) -> int:
    """What is left for the texts of so many columns."""
    return console.width - 3 * (n_columns - 1)


def _widths(sizes: Sequence[Measurement], room: int) -> list[int]:
    """Of each column: its longest word, and of what is left as much as its lines need, those that need least first."""
    widths = [size.minimum for size in sizes]
    while (excess := sum(widths) - room) > 0:
        widest = max(range(len(widths)), key=lambda i: widths[i])
        widths[widest] -= min(excess, max(1, widths[widest] - sorted(widths)[-2] if len(widths) > 1 else excess))
    for i in sorted(range(len(widths)), key=lambda i: sizes[i].maximum - widths[i]):
        widths[i] += max(0, min(sizes[i].maximum - widths[i], room - sum(widths)))
    return widths


def _of(table: Table, chosen: Sequence[int], widths: Sequence[int], first: bool) -> Table:
    """Some columns; the title is above the first of the parts alone."""
    title = table.title if first else None
    part = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    columns = [table.columns[i] for i in chosen]
    for column, width in zip(columns, widths, strict=True):
        # Left to itself, rich takes from every column, and breaks words where others have room.
        part.add_column(column.header, justify=column.justify, overflow="fold", width=width)
    for row in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*row)
    return part
