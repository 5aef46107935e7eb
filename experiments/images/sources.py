"""Where image sets come from: digits, photographs, .npz, folders, prepared TFDS directories; all unchecked."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from experiments.images.decoding import decode_images
from experiments.images.folders import is_split, read_folder
from experiments.images.raw import KEYS, Raw, by_key, held_out

ARCHIVED = ("cifar10", "cifar100", "mnist", "fashion_mnist")
PREPARE = "python -m experiments.prepare_data"
_NPZ = "An .npz is written by np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)."
_VALIDATION = "Validation images are a share of the training images, validation_fraction: put these among them."


def read(name: str, data_dir: str | Path | None, image_size: int | None = None) -> Raw:
    """Read the set called `name`, as `experiments.images.data.load` describes it; `image_size` is that of folders."""
    path = Path(name).expanduser()
    if name == "digits":
        return _read_digits()
    if name == "photographs":
        return _read_photographs()
    if path.suffix == ".npz":
        return read_npz(path)
    if name.startswith((".", "~")) or path.is_absolute() or is_split(path):
        if (path / "dataset_info.json").is_file():
            return read_prepared(path)
        return read_folder(path, image_size)
    return read_prepared(_find_prepared(name, data_dir))


def _read_digits() -> Raw:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("'digits' comes with scikit-learn, which is missing: pip install scikit-learn") from error
    digits = load_digits()
    x, y = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None], digits.target
    test = held_out(y, 10)
    train = np.setdiff1d(np.arange(len(y)), test)
    source = f"scikit-learn's {len(y)} handwritten digits (from the UCI repository), a fixed fifth for testing"
    arrays, names = by_key(x[train], y[train], x[test], y[test]), tuple(map(str, range(10)))
    return Raw(arrays, "scikit-learn's digits", source, 10, class_names=names)


def _read_photographs() -> Raw:
    """Two photographs in patches of CIFAR's size, of which every fifth column is for testing: no pixel is in both."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError("'photographs' come with scikit-learn: pip install scikit-learn pillow") from error
    rows, columns = 13, 20  # of 32 x 32 pixels in 427 x 640
    cut = [photograph[: 32 * rows, : 32 * columns] for photograph in load_sample_images().images]
    x = np.stack(cut).reshape(2, rows, 32, columns, 32, 3).transpose(3, 0, 1, 2, 4, 5)
    y = np.broadcast_to(np.arange(2)[:, None], (columns, 2, rows))
    test = np.arange(columns) % 5 == 2
    x, y = x.reshape(columns, -1, 32, 32, 3), y.reshape(columns, -1)
    arrays = (part.reshape(-1, *part.shape[2:]) for part in (x[~test], y[~test], x[test], y[test]))
    source = f"{y.size} patches of scikit-learn's photographs of a temple and of a flower, a fixed fifth for testing"
    return Raw(by_key(*arrays), "scikit-learn's photographs", source, 2)


def read_npz(path: Path) -> Raw:
    """Read the arrays of an .npz; they are not checked yet."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path.absolute()}. {_NPZ}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise kinds of their own for a damaged header
        mixed = "Object arrays" in str(error)
        hint = "it holds Python objects, perhaps images of mixed sizes" if mixed else f"broken or cut off: {error}"
        raise ValueError(f"{path} cannot be read ({hint}). Write or copy it again. {_NPZ}") from error
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}. {_NPZ}")
    if other := [key for key in arrays if re.match("[xy]_", key) and key not in KEYS]:
        raise ValueError(f"{path} holds {', '.join(other)}, which nothing reads. {_VALIDATION} {_NPZ}")
    return Raw(arrays, str(path), f"the arrays in {path.name}", _read_n_classes(arrays, path))


def _read_n_classes(arrays: dict[str, np.ndarray], path: Path) -> int | None:
    n = arrays.get("n_classes")
    if n is None:
        return None
    if n.size != 1 or n.dtype.kind not in "iu" or not 1 <= n.item() < 2**31:
        shown = n.item() if n.size == 1 else f"an array of shape {n.shape}"
        raise ValueError(f"n_classes of {path} is {shown!r} ({n.dtype}); expected one integer of at least 1.")
    return int(n.item())


def data_root(data_dir: str | Path | None) -> Path:
    """The folder of prepared TFDS sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser().absolute()


def _find_prepared(name: str, data_dir: str | Path | None) -> Path:
    root, (stem, _, version) = data_root(data_dir), name.partition(":")
    found = [file.parent for file in root.glob(f"{stem}/{version or '*'}/dataset_info.json")]
    if found := [folder for folder in found if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]:
        return max(found, key=lambda folder: tuple(map(int, folder.name.split("."))))
    meant = next(iter(difflib.get_close_matches(stem, ("digits", "photographs", *ARCHIVED), 1, 0.7)), stem)
    there = sorted(p.parent.relative_to(root).as_posix() for p in root.glob("[!.]*/**/dataset_info.json"))
    archive = "FOLDER_OF_THE_FOUR_GZ_FILES" if "mnist" in meant else f"cifar-{meant[5:]}-python.tar.gz"
    options = f"--data-dir {shlex.quote(str(root))}"
    lines = [
        f"There is no prepared data set {name!r}: looked for {root / stem}/{version or '<version>'}/dataset_info.json.",
        f"Did you mean {meant!r}?" if meant != stem else "",
        f"Prepared in {root}: {', '.join(there)}." if there else "",
        "Loading downloads nothing. Prepare the set once, by one of",
        f"  {PREPARE} from-archive {meant} {archive} {options}" if meant in ARCHIVED else "",
        f"  {PREPARE} from-arrays {meant} FILE.npz {options}",
        f"  {PREPARE} download {meant} {options}    (uses the network)",
        f"Of the folder {name} here ./{name} reads the images." if Path(name).is_dir() else "",
        "No preparation is needed for 'digits', a path ending in .npz, or a folder such as ./my_images.",
    ]
    raise FileNotFoundError("\n".join(line for line in lines if line))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {_again(path.parent)}") from error


def _again(folder: Path) -> str:
    return f"Prepare the set again with --overwrite (see {PREPARE} --help); its folder is {folder}."


def read_prepared(folder: Path) -> Raw:
    """Read and decode data_dir/name/version as TFDS wrote it in array_record, without TensorFlow.

    A set without a "test" split is tested on its published "validation" split, and its source says so.
    """
    described = _read_json(folder / "dataset_info.json")
    if (written := described.get("fileFormat", "tfrecord")) != "array_record":
        raise ValueError(f"{folder} is in {written}; without TensorFlow only array_record is read. {_again(folder)}")
    columns = []
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
        info, features = builder.info, dict(builder.info.features or {})
        image, label = info.supervised_keys or ("image", "label")
        pictures: Any = features.get(image)
        classes: Any = features.get(label)
        test = "test" if "test" in info.splits else "validation"
        if isinstance(pictures, tfds.features.Image) and isinstance(classes, tfds.features.ClassLabel):
            for split in ("train", test):
                records = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
                columns.append(records.__getitems__(range(len(records))))
                # A file that is cut off at a boundary of its blocks is read as one of empty records.
                if empty := [i for i, example in enumerate(columns[-1]) if None in (example[image], example[label])]:
                    raise ValueError(f"{len(empty)} records of split {split!r} are empty, the first is {empty[0]}")
    except Exception as error:  # array_record, protobuf, json and TFDS each raise kinds of their own
        # TensorFlow is asked for by kinds of features that no image classification set has.
        if isinstance(error, ImportError) and error.name != "tensorflow":
            packages = "pip install tensorflow-datasets array_record importlib_resources pillow (no TensorFlow)"
            raise ImportError(f"Reading {folder} needs packages that are missing ({error}): {packages}") from error
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder} is broken or incomplete ({fault}). {_again(folder)}") from error
    if not columns:
        raise ValueError(f"{folder} is no image classification set; its features are {', '.join(features)}.")
    arrays = []
    for split, examples in zip(("train", test), columns, strict=True):
        names = [f"{folder}, split {split!r}, record {i}," for i in range(len(examples))]
        arrays.append(decode_images([example[image] for example in examples], names, pictures.shape[-1]))
        arrays.append(np.asarray([example[label] for example in examples]))
    source = f"TFDS {described['name']} {folder.name} in {folder}"
    if (folder / "metadata.json").is_file():
        source += f", prepared from {_read_json(folder / 'metadata.json').get('source', 'arrays')}"
    source += "" if test == "test" else "; its published validation split is the test set"
    return Raw(by_key(*arrays), str(folder), source, classes.num_classes, class_names=tuple(classes.names))
