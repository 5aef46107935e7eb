"""Image sets as checked uint8 arrays, and what a training loop does to them; `load` never uses the network.

- "digits": scikit-learn's 1,797 handwritten digits of 8x8 pixels
- "some/file.npz": x_train, y_train, x_test, y_test (and n_classes, if some class has no training image)
- "./folder": Tiny-ImageNet as published, or train/<class>/*.png and test/<class>/*.png (.jpg, .jpeg)
- "cifar10", "mnist", ...: any image classification set of TFDS that lies prepared on disk as array_record,
  read without TensorFlow; `python -m experiments.prepare_data --help` says how to prepare one
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KEYS = ("x_train", "y_train", "x_test", "y_test")
ARCHIVED = ("cifar10", "cifar100", "mnist", "fashion_mnist")
PREPARE = "python -m experiments.prepare_data"
_NPZ = "An .npz is written by np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)."
_FOLDER = (
    "Allowed are train/<class>/ and test/<class>/ of .png, .jpg or .jpeg files, and Tiny-ImageNet as "
    "published (wnids.txt, train/<wnid>/images/, val/images/, val/val_annotations.txt)."
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, uint8 `[n, height, width, channels]`, and labels, int32 `[n]` below n_classes, in three splits.

    Validation images come from the published training images only. mean and std are those of x_train, float32
    `[channels]`, where 255 counts as 1; std is 1 for a constant channel. source: where the images are from.
    """

    name: str
    source: str
    n_classes: int
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class Raw(NamedTuple):
    """Unchecked arrays by the names in `KEYS`, the file or folder they lie in, a sentence on their origin."""

    arrays: dict[str, np.ndarray]
    where: str
    source: str
    n_classes: int | None = None


def load(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Read an image set, check it, and split a validation set off its training images.

    Args:
        name: as in this module's docstring; a TFDS name may name config and version: "emnist/balanced:3.1.0".
        data_dir: where prepared TFDS sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        validation_fraction: share of the training images kept for validation, in [0, 1).
        seed: chooses the validation images and those that `limit` keeps; the test images never depend on it.
        limit: train on so many of the remaining images; validation and test stay whole.
    Returns:
        The set. Within each split the images keep the order of their source.
    Raises:
        FileNotFoundError: nothing found; says what was looked for, where, and the command that gets it.
        ValueError: a broken file, a wrong shape, dtype or label, an empty split, an option out of range.
        ImportError: the package that reads this source is missing.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} is not in [0, 1); 0.1 keeps a tenth.")
    if limit is not None and (
        isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1
    ):
        raise ValueError(
            f"limit={limit!r} is not a positive integer; give a number of images, or None for all."
        )
    raw = _read(str(name), data_dir)
    arrays, n_classes = check_arrays(raw)
    order = np.random.default_rng(seed).permutation(len(arrays["x_train"]))
    n_validation = round(validation_fraction * len(order))
    n_train = len(order) - n_validation
    if n_train < 1 or (validation_fraction > 0 and n_validation < 1):
        raise ValueError(
            f"validation_fraction={validation_fraction} splits the {len(order)} training images of "
            f"{raw.where} into {n_train} and {n_validation}; neither may be empty. Give another fraction; "
            f"0 means no validation set."
        )
    if limit is not None and limit > n_train:
        raise ValueError(
            f"limit={limit} exceeds the {n_train} training images of {raw.where} that are left after "
            f"{n_validation} went to validation. Give at most {n_train}, or None for all."
        )
    validation, train = np.sort(order[:n_validation]), np.sort(order[n_validation:][:limit])
    x, y = arrays["x_train"], arrays["y_train"]
    splits = (x[train], y[train], x[validation], y[validation], arrays["x_test"], arrays["y_test"])
    return Dataset(str(name), raw.source, n_classes, *splits, *_mean_and_std(splits[0]))


def _mean_and_std(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    channels = range(x.shape[-1])
    counts = np.zeros((len(channels), 256), np.int64)
    for start in range(0, len(x), 1024):  # by histogram: exact sums, and never a wide copy of all images
        block = x[start : start + 1024]
        counts += np.stack([np.bincount(block[..., c].ravel(), minlength=256) for c in channels])
    levels, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    return mean.astype(np.float32), np.where((counts > 0).sum(1) == 1, 1, std).astype(np.float32)


def _read(name: str, data_dir: str | Path | None) -> Raw:
    path = Path(name).expanduser()
    if name == "digits":
        return _read_digits()
    if path.suffix == ".npz":
        return read_npz(path)
    if name.startswith((".", "~")) or path.is_absolute() or (path / "train").is_dir():
        return _read_folder(path)
    return read_prepared(_find_prepared(name, data_dir))


def _by_key(*arrays: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(KEYS, arrays, strict=True))


def _read_digits() -> Raw:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "'digits' comes with scikit-learn, which is missing: pip install scikit-learn"
        ) from error
    digits = load_digits()
    x, y = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None], digits.target
    rng = np.random.default_rng(0)  # not the caller's seed: everybody must be tested on the same images
    members = [rng.permutation(np.flatnonzero(y == digit)) for digit in range(10)]
    test = np.sort(np.concatenate([m[: round(0.2 * len(m))] for m in members]))
    train = np.setdiff1d(np.arange(len(y)), test)
    source = (
        f"scikit-learn's {len(y)} handwritten digits (from the UCI repository), a fixed fifth for testing"
    )
    return Raw(_by_key(x[train], y[train], x[test], y[test]), "scikit-learn's digits", source, 10)


def read_npz(path: Path) -> Raw:
    """Read the arrays of an .npz; they are not checked yet."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path.absolute()}. {_NPZ}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        mixed = "Object arrays" in str(error)
        hint = (
            "it holds Python objects, perhaps images of mixed sizes"
            if mixed
            else f"broken or cut off: {error}"
        )
        raise ValueError(f"{path} cannot be read ({hint}). Write or copy it again. {_NPZ}") from error
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}. {_NPZ}"
        )
    n_classes = int(arrays["n_classes"]) if "n_classes" in arrays else None
    return Raw(arrays, str(path), f"the arrays in {path.name}", n_classes)


def _read_folder(path: Path) -> Raw:
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path.absolute()}. {_FOLDER}")
    source = f"the images in {path}"
    if (path / "wnids.txt").is_file():
        classes, train, test = _list_tiny_imagenet(path)
        source += "; Tiny-ImageNet's published validation images are the test set, its test labels are secret"
    else:
        found = (
            sorted(d.name for d in path.glob(f"{split}/[!.]*") if d.is_dir()) for split in ("train", "test")
        )
        classes, tested = found
        if missing := sorted(set(tested) - set(classes)):
            raise ValueError(
                f"{path}/test has the class {missing[0]!r}, {path}/train lacks it. Use the same names."
            )
        train = [(file, i) for i, c in enumerate(classes) for file in _images_in(path / "train" / c)]
        test = [(file, classes.index(c)) for c in tested for file in _images_in(path / "test" / c)]
    for split, listed in (("training", train), ("test", test)):
        if not listed:
            raise ValueError(f"{path} holds no {split} images where they are looked for. {_FOLDER}")
    files, n = [file for file, _ in train + test], len(train)
    x, y = (
        decode_images(files, [str(file) for file in files], None),
        np.asarray([label for _, label in train + test]),
    )
    return Raw(_by_key(x[:n], y[:n], x[n:], y[n:]), str(path), source, len(classes))


def _list_tiny_imagenet(path: Path) -> tuple[list[str], list[tuple[Path, int]], list[tuple[Path, int]]]:
    classes = sorted((path / "wnids.txt").read_text().split())
    index = {wnid: label for label, wnid in enumerate(classes)}
    train = [(file, i) for wnid, i in index.items() for file in _images_in(path / "train" / wnid / "images")]
    annotations = path / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise ValueError(f"{annotations} is missing: the set was not unpacked completely. Unpack it again.")
    test = []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        file, wnid = [*line.split(), "", ""][:2]
        if wnid not in index:
            raise ValueError(
                f"{annotations}, line {number}: {line!r} is no file name with a class of wnids.txt."
            )
        test.append((path / "val" / "images" / file, index[wnid]))
    return classes, train, test


def _images_in(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.glob("[!.]*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise ValueError(
            f"{folder} is missing or holds no .png, .jpg or .jpeg. Unpack the set again. {_FOLDER}"
        )
    return found


def data_root(data_dir: str | Path | None) -> Path:
    """The folder of prepared TFDS sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return (
        Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser().absolute()
    )


def _find_prepared(name: str, data_dir: str | Path | None) -> Path:
    root, (stem, _, version) = data_root(data_dir), name.partition(":")
    found = [file.parent for file in root.glob(f"{stem}/{version or '*'}/dataset_info.json")]
    if found := [folder for folder in found if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]:
        return max(found, key=lambda folder: tuple(map(int, folder.name.split("."))))
    close = difflib.get_close_matches(stem, ("digits", *ARCHIVED), 1, 0.7)
    there = sorted(
        {p.parent.parent.relative_to(root).as_posix() for p in root.glob("[!.]*/**/dataset_info.json")}
    )
    archive = "FOLDER_OF_THE_FOUR_GZ_FILES" if "mnist" in stem else f"cifar-{stem[5:]}-python.tar.gz"
    lines = [
        f"There is no prepared data set {name!r}: looked for "
        f"{root / stem}/{version or '<version>'}/dataset_info.json.",
        f"Did you mean {close[0]!r}?" if close and close[0] != stem else "",
        f"Prepared in {root}: {', '.join(there)}." if there else "",
        "Loading downloads nothing. Prepare the set once, by one of",
        f"  {PREPARE} from-archive --name {stem} --path {archive} --data-dir {root}"
        if stem in ARCHIVED
        else "",
        f"  {PREPARE} from-arrays --name {stem} --npz FILE.npz --data-dir {root}",
        f"  {PREPARE} download --name {stem} --data-dir {root}    (uses the network)",
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
        raise ValueError(
            f"{folder} is in {written}; without TensorFlow only array_record is read. {_again(folder)}"
        )
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
    except ImportError as error:
        packages = "pip install tensorflow-datasets array_record importlib_resources pillow (no TensorFlow)"
        raise ImportError(
            f"Reading {folder} needs packages that are missing ({error}): {packages}"
        ) from error
    except Exception as error:  # array_record, protobuf, json and TFDS each raise kinds of their own
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
    return Raw(_by_key(*arrays), str(folder), source, classes.num_classes)


def decode_images(files: Sequence[Path | bytes], names: Sequence[str], channels: int | None) -> np.ndarray:
    """Decode images of one size to uint8 `[n, height, width, channels]`.

    channels None means 1 if all images are grey, else 3. names stand for the images in errors.

    Raises:
        ValueError: an image is broken, has more than 8 bits a channel, or another size than the first.
    """
    from PIL import Image

    wanted = {1: "L", 4: "RGBA"}.get(channels or 3, "RGB")
    modes = set()
    images = np.empty((0, 1, 1, channels or 1), np.uint8)
    for i, (file, name) in enumerate(zip(files, names, strict=True)):
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                if image.mode[0] in "IF":
                    raise ValueError(
                        f"mode {image.mode} has more than 8 bits a channel; convert it to 8 bits"
                    )
                modes.add(image.mode)
                pixels = np.asarray(image if image.mode == wanted else image.convert(wanted))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise ValueError(f"{name} is no readable image ({error}). Replace or remove it.") from error
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if i == 0:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            sizes = f"{pixels.shape[:2]} pixels, {names[0]} has {images.shape[1:3]}"
            raise ValueError(
                f"{name} has {sizes}. All images of a set must have one size: resize them first."
            )
        images[i] = pixels
    return images[..., :1].copy() if channels is None and modes <= {"1", "L", "LA"} else images


def check_arrays(raw: Raw) -> tuple[dict[str, np.ndarray], int]:
    """Images as uint8, labels as int32, and the number of classes.

    Raises:
        ValueError: a wrong shape, dtype or value; names the file, the fault and the remedy.
    """
    x = {
        split: _check_images(raw.arrays[f"x_{split}"], f"x_{split} of {raw.where}")
        for split in ("train", "test")
    }
    y = {
        split: _check_labels(raw.arrays[f"y_{split}"], len(x[split]), f"y_{split} of {raw.where}")
        for split in x
    }
    if x["train"].shape[1:] != x["test"].shape[1:]:
        shapes = f"{x['train'].shape[1:]}, its test images {x['test'].shape[1:]}"
        raise ValueError(
            f"The training images of {raw.where} are {shapes}; both need one height, width and channels."
        )
    present = np.unique(y["train"])
    n_classes = raw.n_classes or int(present[-1]) + 1
    for split, labels in y.items():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= n_classes:
            allowed = f"0..{n_classes - 1}" + ("" if raw.n_classes else ", as in the training images")
            raise ValueError(
                f"y_{split} of {raw.where} holds labels {low}..{high}; allowed are {allowed}. Renumber them."
            )
    if raw.n_classes is None and len(present) < n_classes:
        gap = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise ValueError(
            f"y_train of {raw.where} goes up to {n_classes - 1} but never is {gap}. Labels count from 0 "
            f"without gaps: renumber them, or store n_classes={n_classes} beside the arrays if that class "
            f"has no training image."
        )
    return _by_key(x["train"], y["train"].astype(np.int32), x["test"], y["test"].astype(np.int32)), n_classes


def _check_images(x: np.ndarray, what: str) -> np.ndarray:
    if x.ndim != 4 or x.shape[-1] not in (1, 2, 3, 4) or 0 in x.shape:
        hint = "Add a last axis to grey images: x[..., None]." if x.ndim == 3 else "Reshape them."
        hint = "It looks like channels first: x.transpose(0, 2, 3, 1)." if x.ndim == 4 else hint
        hint = "It is empty: add images." if 0 in x.shape else hint
        raise ValueError(
            f"{what} has shape {x.shape}; allowed is (n, height, width, channels), channels 1 to 4. {hint}"
        )
    found = f"{x.dtype} values"
    if x.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(x)))):
        found += f", {bad} of them NaN or infinite"
    elif x.dtype.kind in "iuf":
        low, high = x.min(), x.max()
        if x.dtype.kind != "f" and low >= 0 and high <= 255:
            return x.astype(np.uint8, copy=False)
        found += f" from {low} to {high}"
    raise ValueError(
        f"{what} holds {found}; images are integers 0..255, best uint8. Repair NaN first; convert floats "
        f"in [0, 1] by np.round(255 * x).astype(np.uint8), in [0, 255] by np.round(x).astype(np.uint8)."
    )


def _check_labels(y: np.ndarray, n_images: int, what: str) -> np.ndarray:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{what} is {y.dtype} of shape {y.shape}; labels are integers of shape (n,), one an image. Use "
            f"y.reshape(-1) for a column, y.argmax(1) for one-hot rows, y.astype(np.int32) for whole floats."
        )
    if len(y) != n_images:
        raise ValueError(
            f"{what} has {len(y)} labels for {n_images} images. Give each image one label, in its order."
        )
    return y


def epoch_permutation(seed: int | jax.Array, epoch: int | jax.Array, n: int) -> jax.Array:
    """The order in which epoch `epoch` visits n training images: a permutation of 0..n-1, int32 `[n]`.

    It depends on nothing but its arguments; seed and epoch may be traced, n is static. Cost: sorts of n keys.
    """
    if n < 1:
        raise ValueError(f"n={n} images cannot be permuted; give a positive integer.")
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))


def augment(key: jax.Array, images: jax.Array, pad: int = 4, *, flip: bool = True) -> jax.Array:
    """Shift each image by up to `pad` pixels each way, zeros moving in, and mirror it with probability 1/2.

    Args:
        key: PRNG key; every image of the batch draws its own shift and mirroring.
        images: `[n, height, width, channels]`, uint8 or float, before normalisation (zero is black).
        pad: largest shift, static; 4 is the crop of the papers' CIFAR-10 recipes.
        flip: whether to mirror at all, static; False for digits, which mirroring would turn into other signs.
    Returns:
        An array like images. pad=0 with flip=False returns them unchanged.
    Raises:
        ValueError: images of another rank, or a negative pad.
    """
    if images.ndim != 4 or pad < 0:
        raise ValueError(f"images of shape {images.shape}, pad={pad}; allowed are [n, h, w, c] and pad >= 0.")
    shift_key, flip_key = jax.random.split(key)
    n, size = images.shape[0], images.shape[1:]
    if pad:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(shift_key, (n, 2), 0, 2 * pad + 1)
        images = jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), size))(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (n, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def normalize(images: jax.Array, mean: np.ndarray | jax.Array, std: np.ndarray | jax.Array) -> jax.Array:
    """Standardise images of 0..255 channel by channel: (images / 255 - mean) / std.

    Args:
        images: `[..., channels]` of any real dtype.
        mean, std: `[channels]`, where 255 counts as 1, as in `Dataset`.
    Returns:
        float32, of the shape of images.
    Raises:
        ValueError: mean or std have another length than the images have channels.
    """
    shapes = (jnp.shape(mean), jnp.shape(std))
    if shapes != (images.shape[-1:],) * 2:
        raise ValueError(
            f"mean and std have shapes {shapes}; images of shape {images.shape} need {images.shape[-1:]} for "
            f"both. Use those of the Dataset that the images come from."
        )
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
