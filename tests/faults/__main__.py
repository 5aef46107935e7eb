"""Try many faults, print what came of them, and write it down: `python -m tests.faults --trials 10000`.

The trials come in pieces, each drawn from a seed of its own. A piece that is done is kept in --parts, so that a run
that was ended goes on with the next one, and categories may be tried one by one (`--only kills`). All that is there is
put together in --out after every piece; each row says by which revision it was tried, and `--anew kills` tries it once
more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# What takes long to import is imported where it is used: processes that are to be killed start from this module.
from tests.faults.tally import Tally, Trials  # noqa: E402

SHARES = {
    **{"arguments": 0.45, "npz": 0.15, "images": 0.1, "prepared": 0.05},
    **{"checkpoints": 0.1, "manifests": 0.05, "metrics": 0.002},
}
"""Of --trials, by category; the other categories have as many trials as there are cases, or as --kills says."""
CATEGORIES = (*SHARES, "numbers", "crashes", "kills")
AT_ONCE = {"arguments": 500, "kills": 20}
"""Trials in a piece, if not 250."""
NOT_TRIED = (
    "power cuts, which may lose what the system said was written",
    "file systems of other kinds than that of the temporary folder",
    "states between two writes inside TensorStore, which the interpreter does not tell of",
    "kills while the interpreter imports, before the folder of a run is touched",
    "two faults at once, but for repeated kills",
    "runs of several processes, and accelerators",
)


class Piece(NamedTuple):
    """Some trials of a category, with the name of the file that keeps what came of them."""

    category: str
    name: str
    run: Callable[[Path], Trials]


def pieces(n_trials: int, n_kills: int, seed: int) -> list[Piece]:
    """All pieces, the cheap ones first."""
    from tests.faults import arguments, damage, killed, runs

    drawn: dict[str, Callable[[Path, int, int], Trials]] = {
        "arguments": lambda place, n, seed: arguments.trials(n, seed),
        "npz": damage.arrays_of_npz,
        "images": damage.image_files,
        "prepared": damage.prepared_sets,
        "checkpoints": runs.flipped_checkpoints,
        "manifests": lambda place, n, seed: runs.flipped_records(place, "manifest.json", n, seed),
        "metrics": lambda place, n, seed: runs.flipped_records(place, "metrics.jsonl", n, seed),
        "kills": killed.kills,
    }
    found = [
        Piece("numbers", f"numbers_{scheme}", lambda place, scheme=scheme: damage.not_finite((scheme,)))
        for scheme in damage.SCHEMES
    ]
    found.append(Piece("arguments", "arguments_all", lambda place: arguments.every()))
    found.append(Piece("crashes", "crashes", runs.crash_states))
    for category, several in drawn.items():
        left, size, at = n_kills if category == "kills" else int(n_trials * SHARES[category]), 0, 0
        while left > 0:
            size = min(AT_ONCE.get(category, 250), left)
            run = lambda place, several=several, size=size, first=seed + at: several(place, size, first)
            found.append(Piece(category, f"{category}_{size}_seed_{seed + at}", run))
            left, at = left - size, at + 1
    return sorted(found, key=lambda piece: CATEGORIES.index(piece.category))


def tried(piece: Piece) -> dict[str, Any]:
    """What came of a piece."""
    import jax

    from experiments.records.environment import environment

    tally, began, here = Tally(), time.monotonic(), environment()
    with tempfile.TemporaryDirectory() as folder:
        for category, outcome, what in piece.run(Path(folder)):
            tally.add(category, outcome, what)
            if outcome in ("silent", "unclear"):
                print(f"{category}: {outcome}: {what}", flush=True)
    jax.clear_caches()
    return tally.record(seconds=round(time.monotonic() - began), environment=here)


def together(parts: list[dict[str, Any]]) -> Tally:
    """One tally of several records."""
    tally = Tally()
    for part in parts:
        tally.take(part, part["environment"]["revision"])
    return tally


def main() -> int:
    """The command; 1 where something was silent or unclear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help="how many, about; those without a draw beside")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CATEGORIES, default=CATEGORIES, help="categories to try")
    parser.add_argument("--anew", nargs="+", choices=CATEGORIES, default=[], help="categories to try once more")
    parser.add_argument("--parts", type=Path, default=ROOT / "runs" / "faults", help="folder of the pieces")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "faults.json")
    options = parser.parse_args()
    tally, seconds, record = Tally(), 0, {}
    options.parts.mkdir(parents=True, exist_ok=True)
    for category in options.anew:
        for path in options.parts.glob(f"{category}*.json"):
            path.unlink()
    for piece in pieces(options.trials, options.kills, options.seed):
        path = options.parts / f"{piece.name}.json"
        if not path.exists() and piece.category in options.only:
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(tried(piece), indent=1) + "\n")
            os.replace(partial, path)
        found = [json.loads(other.read_text()) for other in sorted(options.parts.glob("*.json"))]
        tally, seconds = together(found), sum(part["seconds"] for part in found)
        record = {"seed": options.seed, "seconds": seconds, "not_tried": NOT_TRIED}
        tally.write(options.out, **record, environment=found[-1]["environment"] if found else None)
        print(f"{piece.name}: {tally.tried} tried in {seconds} s", flush=True)
    print(tally.table())
    return 1 if tally.bad() else 0


if __name__ == "__main__":
    sys.exit(main())
