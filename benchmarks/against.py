"""This revision against an earlier one: single solves, networks and the solver swap, run and compiled.

    python -m benchmarks.against 849fef5
    python -m benchmarks.against 849fef5 --cases mlp digits --turns 1 --out /tmp/against.json

Both revisions run the same cases (`benchmarks/cases.py`, which is read from this checkout) in processes of their own,
in turn, so that what else the machine does meets both. Of every case: the shortest run of a turn and the seconds of
processor time of tracing and compiling; ratios are of the medians over turns, this revision by the other.
Fifteen minutes on two idle cores. Writes benchmarks/results/against_<platform>.json.
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
    turns: int = 3
    """Processes of each revision."""
    out: Path | None = None
    """Where the JSON goes; default benchmarks/results/against_<platform>.json."""


def run_cases(tree: Path, cases: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Measurements of one process that imports the library of a checkout."""
    command = [sys.executable, str(ROOT / "benchmarks" / "cases.py"), *cases]
    done = subprocess.run(
        command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} in {tree} failed:\n{done.stderr[-2000:]}")
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    turns: dict[str, list[Any]] = {"now": [], "then": []}
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "worktree", "add", "--detach", str(other), options.revision], cwd=ROOT, check=True)
        try:
            for turn in range(options.turns):
                for name, tree in (("then", other), ("now", ROOT)):
                    turns[name].append(run_cases(tree, options.cases))
                    print(f"turn {turn + 1} of {options.turns}: {name}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)
    rows, cases = [], {}
    for case in options.cases:
        median = {
            (name, key): statistics.median(turn[case][key] for turn in turns[name])
            for name in turns
            for key in ("run", "compile")
        }
        ratios = {key: median["now", key] / median["then", key] for key in ("run", "compile")}
        cases[case] = {"ratios": ratios} | {name: [turn[case] for turn in turns[name]] for name in turns}
        run, compiled = ([median["then", key], median["now", key], ratios[key]] for key in ("run", "compile"))
        rows.append([case, run[0] * 1e3, run[1] * 1e3, run[2], *compiled])
    columns = ("", f"{options.revision} ms", "now ms", "ratio", "compile s", "now", "ratio")
    harness.show("this revision against the other", columns, rows)
    path = options.out or harness.default_path("against")
    print("written to", harness.write(path, "against", {"revision": options.revision, "cases": cases}))


if __name__ == "__main__":
    main(command_line(Options, "python -m benchmarks.against", __doc__))
