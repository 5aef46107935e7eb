"""The data of a run, known again by its digests: nothing is trained on or judged by other images without a word."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.images.data import Dataset
from experiments.records.digests import digest
from experiments.records.files import RunError, say
from experiments.training.config import Config
from experiments.training.steps import dataset_of

SPLITS = ("train", "validation", "test")


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What a run keeps about its data: source, place, classes, scaling, and shape and SHA-256 of every array.

    Cost: about a second a gigabyte on a processor with SHA instructions.
    """
    arrays = {f"{kind}_{split}": getattr(dataset, f"{kind}_{split}") for split in SPLITS for kind in "xy"}
    return {
        "source": dataset.source,
        "path": dataset.path,
        "image_shape": list(dataset.x_train.shape[1:]),
        "n_classes": dataset.n_classes,
        "class_names": list(dataset.class_names) or None,
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "arrays": {name: {"shape": list(array.shape), "sha256": digest(array)} for name, array in arrays.items()},
    }


def changes(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two fingerprints differ in, a sentence each; scaling follows from the training images."""
    found = []
    if kept.get("n_classes") != now["n_classes"]:
        found.append(f"{kept.get('n_classes')} classes then, {now['n_classes']} now")
    before = kept.get("arrays", {})
    for name, array in now["arrays"].items():
        then = before.get(name, {})
        if then.get("shape") != array["shape"]:
            found.append(f"{name} had shape {then.get('shape')}, has {array['shape']}")
        elif then.get("sha256") != array["sha256"]:
            found.append(f"{name} has other values")
    return found


def located(config: Config, kept: dict[str, Any] | None, data_dir: str | Path | None = None) -> Config:
    """The config of a run with its data where it lies now.

    Args:
      config: of the run.
      kept: its fingerprint, which says where it found its data; `None` of a run that kept none.
      data_dir: the folder that the data lies in now, or of the prepared sets, if it was moved.
    """
    if data_dir is not None:
        place = Path(data_dir).expanduser().absolute()
        moved, named = place / Path(config.dataset).name, Path(config.dataset).suffix == ".npz"
        if named or (moved / "train").is_dir() or config.dataset.startswith((".", "~", "/")):
            return dataclasses.replace(config, dataset=str(moved))
        return dataclasses.replace(config, data_dir=str(place))
    found = (kept or {}).get("path")
    return dataclasses.replace(config, dataset=found) if found and Path(found).exists() else config


def data_of_run(
    config: Config,
    kept: dict[str, Any] | None,
    accept_new_data: bool = False,
    data_dir: str | Path | None = None,
) -> Dataset:
    """The data of a run, with the scaling that it was trained with.

    Args:
      config: of the run.
      kept: its fingerprint; `None` of a run of a version that kept none, whose data is not checked.
      accept_new_data: whether other data than that of the run will do.
      data_dir: as of `located`.

    Raises:
      RunError: for other data than that of the run, by what differs.
      ValueError, OSError, ImportError: as `experiments.images.data.load`.
    """
    dataset = dataset_of(located(config, kept, data_dir))
    for note in dataset.notes:
        say(note)
    if kept is None:
        return dataset
    if found := changes(kept, fingerprint(dataset)):
        what = f"the data is not that of the run ({kept.get('source')}): {'; '.join(found)}"
        if not accept_new_data:
            raise RunError(
                f"{what}. Put back the data of the run, say by --data-dir where it lies, or go on with what is there "
                "by --accept-new-data"
            )
        say(f"{what}; it is used as --accept-new-data asks, scaled as the data of the run was")
    mean, std = (np.asarray(kept[name], np.float32) for name in ("mean", "std"))
    if mean.shape != dataset.mean.shape:
        raise RunError(f"the data has {len(dataset.mean)} channels, that of the run had {len(mean)}: give such data")
    return dataclasses.replace(dataset, mean=mean, std=std)
