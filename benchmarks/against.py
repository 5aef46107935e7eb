"""This revision against an earlier one: single solves, networks and the solver swap, run and compiled.

    python -m benchmarks.against 849fef5
    python -m benchmarks.against 849fef5 --cases mlp digits --turns 1 --out /tmp/against.json

Both revisions run the same cases (`benchmarks/cases.py`, which is read from this checkout), every case in processes of
its own, one revision right after the other and in an order that alternates: machines change their speed by the minute,
so that only neighbours can be compared. Of a process: its shortest run, and the least processor time of tracing and
compiling. A ratio is the median of those of the turns, this revision by the other; the least and the largest stand
beside it. Estimated: 25 minutes on two idle cores. Not measured here.
Writes benchmarks/results/against_<platform>.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import harness
from benchmarks.cases import CASES
from experiments.records.command import command_line

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare."""

    revision: Annotated[str, tyro.conf.Positional]
    """The earlier revision: anything that git knows."""
    cases: tuple[str, ...] = tuple(CASES)
    """Names of benchmarks/cases.py."""
    turns: int = 5
    """Processes of each revision and case."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/against_<platform>.json."""


def run_case(tree: Path, case: str) -> dict[str, float]:
    """Measurements of one process that imports the library of a checkout."""
    command = [sys.executable, str(ROOT / "benchmarks" / "cases.py"), case]
    done = subprocess.run(
        command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} in {tree} failed:\n{done.stderr[-2000:]}")
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found[case]


def take_turns(case: str, turns: int, trees: dict[str, Path]) -> dict[str, Any]:
    """What each tree gives in each turn, and the median, least and largest of the ratios of neighbours."""
    found: dict[str, Any] = {name: [] for name in trees}
    for turn in range(turns):
        for name in sorted(trees, reverse=turn % 2 == 1):
            found[name].append(run_case(trees[name], case))
    for key in ("run", "compile"):
        ratios = sorted(now[key] / then[key] for now, then in zip(found["now"], found["then"], strict=True))
        found[key] = {"ratio": statistics.median(ratios), "least": ratios[0], "largest": ratios[-1]}
    return found


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    rows, cases = [], {}
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "worktree", "add", "--detach", str(other), options.revision], cwd=ROOT, check=True)
        try:
            for case in options.cases:
                found = cases[case] = take_turns(case, options.turns, {"then": other, "now": ROOT})
                row = [case]
                for key, unit in (("run", 1e3), ("compile", 1.0)):
                    row += [unit * statistics.median(turn[key] for turn in found[name]) for name in ("then", "now")]
                    row += list(found[key].values())
                rows.append(row)
                print(f"{case}: run {found['run']['ratio']:.2f}, compile {found['compile']['ratio']:.2f}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)
    ratio = ("ratio", "least", "largest")
    columns = ("", f"{options.revision} ms", "now ms", *ratio, "compile s", "now", *ratio)
    harness.show("this revision by the other", columns, rows)
    path = options.out or harness.default_path("against")
    print("written to", harness.write(path, "against", {"revision": options.revision, "cases": cases}))


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.against", __doc__))
