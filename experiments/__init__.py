"""Commands on top, a folder a paper with one readable script a claim, and below them what they share.

Run from the repository root, as `python -m experiments.NAME` or `python -m experiments.PAPER.NAME`. What a run trained,
`experiments.load(run)` gives back, ready to use.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from experiments.training.trained import Trained


def load(run: str | Path, checkpoint: Literal["latest", "best"] = "latest") -> Trained:
    """What a run of `experiments.train` trained: the network, its variables and `predict`, from any working folder.

        trained = experiments.load("runs/digits")
        probabilities = trained.predict(images)         uint8 [n, height, width, channels] -> float32 [n, classes]
        logits = trained.net.apply(trained.variables, trained.normalize(images))

    A compressed run is loaded in the same way. The arrays are checked against their SHA-256 digests, as by --resume.

    Args:
      run: the folder of the run, which holds manifest.json, on this machine or as gs://BUCKET/FOLDER.
      checkpoint: which of its checkpoints.

    Raises:
      experiments.records.files.RunError: if there is no run or no such checkpoint, it is damaged, or its network, of
        the user's own, cannot be built.
    """
    # Whoever imports `experiments` for something else needs neither Orbax nor TensorBoard.
    from experiments.training.trained import load as load_trained

    return load_trained(run, checkpoint)


def _end_in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, KeyboardInterrupt):
        chain = chain.__cause__ or chain.__context__
    if chain is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print("\nstopped", file=sys.stderr)


# Python is about to run one of these as a command, which Ctrl-C may meet while it still imports.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _end_in_one_line
