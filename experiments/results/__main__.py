"""Write the generated part of results/README.md: every figure and table of the five papers, a row each.

    python -m experiments.results            writes it
    python -m experiments.results --check    says whether it is what the JSON gives, and fails where it is not

Seconds, as nothing is run here. What a row says was measured is read from the JSON that it names, which also names device and
revision; a row without one was not run. What lies outside of the two marks in results/README.md is left as it is.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from experiments.records.command import command_line
from experiments.results import aca, anodev2, continuous_net, lecture, ott
from experiments.results.rows import Row, render

ROOT = Path(__file__).parents[2]
PAPERS: dict[str, tuple[Row, ...]] = {
    "ContinuousNet": continuous_net.ROWS,
    "ANODEV2": anodev2.ROWS,
    "ACA": aca.ROWS,
    "When are Neural ODE solutions proper ODEs? (Ott)": ott.ROWS,
    "The lecture": lecture.ROWS,
}
MARKS = ("<!-- written by `python -m experiments.results` -->", "<!-- end of what it writes -->")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to do with the table."""

    check: bool = False
    """Compare with what is there, and write nothing."""


def page(text: str, root: Path) -> str:
    """The page with its generated part made anew.

    Raises:
      ValueError: without the two marks.
    """
    before, first, rest = text.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not (first and last):
        raise ValueError(f"results/README.md: expected {MARKS[0]!r} and then {MARKS[1]!r} in it")
    return f"{before}{first}\n{render(PAPERS, root)}\n{last}{after}"


def main() -> None:
    """The command line."""
    options = command_line(Options, "python -m experiments.results", __doc__)
    path = ROOT / "results" / "README.md"
    before = path.read_text()
    try:
        after = page(before, ROOT)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if not options.check:
        path.write_text(after)
    elif before != after:
        sys.exit("error: results/README.md is not what the JSON gives; run python -m experiments.results")


if __name__ == "__main__":
    main()
