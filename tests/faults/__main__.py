"""Try many faults, print what came of them, and write it down: `python -m tests.faults --trials 10000`."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from experiments.records.environment import environment  # noqa: E402
from tests.faults import arguments, damage, runs  # noqa: E402
from tests.faults.tally import Tally  # noqa: E402

NOT_TRIED = (
    "power cuts, which may lose what the system said was written",
    "file systems of other kinds than that of the temporary folder",
    "states between two writes inside TensorStore, which the interpreter does not tell of",
    "two faults at once, but for repeated kills",
)


def main() -> int:
    """The command; 1 where something was silent or unclear."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="how many, about; kills and crash states beside")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "faults" / "faults.json")
    options = parser.parse_args()
    n, seed, tally, began = options.trials, options.seed, Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kinds = itertools.chain(
            [arguments.trials(n // 2, seed), damage.arrays_of_npz(place, n // 8, seed)],
            [damage.image_files(place, n // 8, seed), damage.not_finite()],
            runs.all_trials(place, n // 8, options.kills, seed),
        )
        for kind in kinds:
            for category, outcome, what in kind:
                tally.add(category, outcome, what)
                if outcome in ("silent", "unclear"):
                    print(f"{category}: {outcome}: {what}", flush=True)
            seconds = round(time.monotonic() - began)
            # After each kind, so that what was found stays when the process is ended.
            tally.write(options.out, seed=seed, seconds=seconds, not_tried=NOT_TRIED, environment=environment())
            print(f"{tally.tried} tried in {seconds} s", flush=True)
    print(tally.table())
    return 1 if tally.bad() else 0


if __name__ == "__main__":
    sys.exit(main())
