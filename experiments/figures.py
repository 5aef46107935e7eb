"""Pictures of finished runs, from what their folders keep: nothing is trained or evaluated here.

    python -m experiments.figures weights runs/digits runs/digits_euler     theta(t), ContinuousNet Fig. 8
    python -m experiments.figures training runs/digits runs/digits_euler    progress of training, Fig. 7
    python -m experiments.figures swap runs/digits runs/digits_euler        solver swaps, Fig. 9

Seconds. Written into --out, by default pictures/ in the first run's folder. `swap` draws what evaluate_solvers wrote.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from experiments.records import pictures
from experiments.records.command import command_line
from experiments.records.files import RunError, expand, place, reached, read, read_manifest, read_metrics, results_in
from experiments.records.swaps import read_swap
from experiments.training import models, own
from experiments.training.config import Config
from ode_nets.remanifest import check_exchangeable
from ode_nets.weights import Basis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Options:
    """Which picture of which runs."""

    figure: Annotated[Literal["weights", "training", "swap"], tyro.conf.Positional]
    """What to draw."""
    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of one run or more, drawn together; `weights` shows the levels of the first."""
    out: Path | None = None
    """Folder of the picture."""
    block: str = ""
    """Block whose weights are drawn; default: the last."""

    def __post_init__(self) -> None:
        if not self.run_dirs:
            raise ValueError("run_dirs=(): expected the folder of at least one run")
        expand(self, "run_dirs", to=place)


def config_of(folder: Path) -> Config:
    """The config of a run.

    Raises:
      RunError: if there is no run.
    """
    record = read_manifest(folder)
    if record is None:
        raise RunError(f"there is no run in {folder}: it has no manifest.json")
    return Config.from_json(record["config"])


def method_of(folder: Path) -> str:
    """The scheme of a run, or the architecture where that has none."""
    model = config_of(folder).model
    return getattr(model, "scheme", None) or models.name_of(model)


def snapshots(folder: Path) -> dict[str, list[tuple[Basis, np.ndarray]]]:
    """Some weights of each block at the end of each level: basis and coefficients `[M, n_weights]`.

    Raises:
      RunError: if the run kept none.
      ValueError: for a network without a basis.
    """
    paths = sorted((folder / "snapshots").glob("level_*.npz"), key=lambda path: int(path.stem[6:]))
    if not paths:
        raise RunError(f"{folder} holds no snapshots: train it to its end, or to its first refinement")
    levels = [dict(np.load(io.BytesIO(read(path)))) for path in paths]
    # What depends on the number of classes is not looked at.
    config = config_of(folder)
    own.find(config, (read_manifest(folder) or {}).get("source"))
    net: Any = models.build(config, 10)
    if levels[0]:
        check_exchangeable(net, "basis")
    return {
        name: [(type(net.basis)(len(level[name])), level[name]) for level in levels] for name in sorted(levels[0])
    }


def read_snapshots(folder: Path, block: str = "") -> tuple[str, list[tuple[Basis, np.ndarray]]]:
    """The name of a block, by default the last, and its `snapshots`.

    Raises:
      RunError: as `snapshots`, or if there is no such block.
    """
    found = snapshots(folder)
    if not found or (block and block not in found):
        raise RunError(f"block={block!r}: the blocks of {folder} are {', '.join(found) or 'none'}")
    block = block or list(found)[-1]
    return block, found[block]


def draw_weights(folders: Sequence[Path], block: str = "") -> Figure:
    """Fig. 8 of the levels of the first run and of the ends of all."""
    block, levels = read_snapshots(folders[0], block)
    ends = [(folder, *read_snapshots(folder, block)[1][-1]) for folder in folders]
    finals = [(f"{folder.name} ({method_of(folder)})", *end) for folder, *end in ends]
    return pictures.draw_weights(levels, finals, block)


def draw_training(folders: Sequence[Path]) -> Figure:
    """Fig. 7 of some runs.

    Raises:
      RunError: for a run without a finished epoch.
    """
    runs: list[tuple[str, list[dict[str, Any]]]] = []
    for folder in folders:
        runs.append((f"{folder.name} ({method_of(folder)})", read_metrics(folder)))
        if not runs[-1][1]:
            raise RunError(f"{folder} holds no finished epoch yet")
    return pictures.draw_training(runs)


def draw(options: Options) -> Path:
    """Draw one picture; where it was written."""
    folders = [reached(folder) for folder in options.run_dirs]
    if options.figure == "weights":
        figure = draw_weights(folders, options.block)
    elif options.figure == "training":
        figure = draw_training(folders)
    else:
        figure = pictures.draw_swap([read_swap(folder) for folder in folders])
    path = (options.out or results_in(folders[0], "pictures")) / f"{options.figure}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def main() -> None:
    """The command line."""
    try:
        options = command_line(Options, "python -m experiments.figures", __doc__)
        print(f"written: {draw(options)}")
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
