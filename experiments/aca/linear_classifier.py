"""What a linear classifier of the pixels makes of a config's images: what a network has to beat.

    python -m experiments.aca.linear_classifier node18_small

Softmax regression on the training images of the config, each channel scaled as the networks see it, without crop
and flip. Its L2 penalty is the one of several that does best on the validation images (the first where there are
none); the test images are read once. Writes RUN_DIR/linear.json. Ten seconds for the digits on two cores.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from experiments import configs
from experiments.records.command import check_settings
from experiments.records.environment import environment
from experiments.records.files import write_json
from experiments.records.progress import told
from experiments.training.config import Config
from experiments.training.steps import dataset_of


@dataclasses.dataclass(frozen=True)
class Options:
    """How to fit, and where the result goes."""

    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    """L2 penalties a training image, as multiples of half the squared norm of the weights."""
    max_iterations: int = 200
    """Of L-BFGS."""
    run_dir: Path | None = None
    """Folder of the result; default runs/<config>."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("penalties", min(self.penalties, default=0) > 0, "one or more above 0"),
            ("max_iterations", self.max_iterations >= 1, "at least 1"),
        )


def linear_classifier(config: Config, options: Options) -> dict[str, Any]:
    """Accuracy of the best penalty on the test images, and of each on the others.

    Raises:
      ValueError, OSError, ImportError: for data that cannot be had.
    """
    start, dataset = time.perf_counter(), dataset_of(config)

    def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = getattr(dataset, f"x_{split}"), getattr(dataset, f"y_{split}")
        x = (images.astype(np.float32) / 255 - dataset.mean) / dataset.std
        return x.reshape(len(x), int(np.prod(x.shape[1:]))), labels

    (x, y), validation = pixels("train"), pixels("validation")
    rows: list[dict[str, Any]] = []
    models: list[LogisticRegression] = []
    for penalty in told(options.penalties, lambda penalty: f"penalty {penalty:g}"):
        model = LogisticRegression(C=1 / (penalty * len(x)), max_iter=options.max_iterations)
        with warnings.catch_warnings():
            # Stopping early is a penalty too.
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(model.fit(x, y))
        held_out = float(model.score(*validation)) if len(validation[0]) else None
        rows.append({"penalty": penalty, "train_accuracy": float(model.score(x, y)), "validation_accuracy": held_out})
    # Of equals the first.
    best = max(range(len(rows)), key=lambda i: rows[i]["validation_accuracy"] or 0.0)
    return {
        "config": config.to_json(),
        "data": dataset.source,
        "n_train": len(x),
        "n_test": len(dataset.x_test),
        "penalty": rows[best]["penalty"],
        "test_accuracy": float(models[best].score(*pixels("test"))),
        "penalties": rows,
        "seconds": time.perf_counter() - start,
        "environment": environment(),
    }


def main() -> None:
    """The command line."""
    name, config, options = configs.command_line(Options, "python -m experiments.aca.linear_classifier")
    folder = options.run_dir or Path("runs") / name
    try:
        record = linear_classifier(config, options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    write_json(folder / "linear.json", record)
    for row in record["penalties"]:
        held_out = "none" if row["validation_accuracy"] is None else f"{row['validation_accuracy']:.4f}"
        print(f"penalty {row['penalty']:g}: training {row['train_accuracy']:.4f}, validation {held_out}")
    print(f"test accuracy {record['test_accuracy']:.4f} on {record['n_test']} images, {record['n_train']} trained on")
    print(f"written: {folder}/linear.json")


if __name__ == "__main__":
    main()
