"""The data of a run, known again by its digests: nothing is trained on or judged by other images without a word."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.images.data import Dataset
from experiments.records.digests import digest
from experiments.records.files import RunError, say
from experiments.training.config import Config
from experiments.training.steps import dataset_of

SPLITS = ("train", "validation", "test")


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What a run keeps about its data: source, classes, scaling, and shape and SHA-256 of every array.

    Cost: about a second a gigabyte on a processor with SHA instructions.
    """
    arrays = {f"{kind}_{split}": getattr(dataset, f"{kind}_{split}") for split in SPLITS for kind in "xy"}
    return {
        "source": dataset.source,
        "n_classes": dataset.n_classes,
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


def data_of_run(config: Config, kept: dict[str, Any] | None, accept_new_data: bool = False) -> Dataset:
    """The data of a run, with the scaling that it was trained with.

    Args:
      config: of the run.
      kept: its fingerprint; `None` of a run of a version that kept none, whose data is not checked.
      accept_new_data: whether other data than that of the run will do.

    Raises:
      RunError: for other data than that of the run, by what differs.
      ValueError, OSError, ImportError: as `experiments.images.data.load`.
    """
    dataset = dataset_of(config)
    for note in dataset.notes:
        say(note)
    if kept is None:
        return dataset
    if found := changes(kept, fingerprint(dataset)):
        what = f"the data is not that of the run ({kept.get('source')}): {'; '.join(found)}"
        if not accept_new_data:
            raise RunError(f"{what}. Put back the data of the run, or go on with what is there by --accept-new-data")
        say(f"{what}; it is used as --accept-new-data asks, scaled as the data of the run was")
    mean, std = (np.asarray(kept[name], np.float32) for name in ("mean", "std"))
    if mean.shape != dataset.mean.shape:
        raise RunError(f"the data has {len(dataset.mean)} channels, that of the run had {len(mean)}: give such data")
    return dataclasses.replace(dataset, mean=mean, std=std)
