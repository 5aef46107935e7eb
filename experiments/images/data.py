"""Image sets as checked uint8 arrays, and what a training loop does to them; `load` never uses the network.

- "digits": scikit-learn's 1,797 handwritten digits of 8x8 pixels
- "photographs": 520 colour patches of 32x32 pixels from scikit-learn's two photographs, a class each
- "some/file.npz": x_train, y_train, x_test, y_test (and n_classes, if some class has no training image)
- "./folder": .png, .jpg or .jpeg files below train/<class>/, val/<class>/ and test/<class>/, the latter two or not,
  or below <class>/; Tiny-ImageNet as published. `experiments.images.folders` says what is then tested on
- "cifar10", "mnist", ...: any image classification set of TFDS that lies prepared on disk as array_record,
  read without TensorFlow; `python -m experiments.prepare_data --help` says how to prepare one
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.images.decoding import resize
from experiments.images.raw import Raw
from experiments.images.sources import read


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, uint8 `[n, height, width, channels]`, and labels, int32 `[n]` below n_classes, in three splits.

    Validation images are those of a folder that has training, validation and test images, else a share of the
    training images. mean and std are those of x_train, float32
    `[channels]`, where 255 counts as 1; std is 1 for a constant channel. source: where the images are from;
    notes: what was not read there. class_names: in the order of the labels, or none.
    path: the file or folder, absolute.
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
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    path: str | None = None


def load(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Read an image set, check it, and split a validation set off its training images, unless it has one.

    Args:
        name: as in this module's docstring; a TFDS name may name config and version: "emnist/balanced:3.1.0".
        data_dir: where prepared TFDS sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        validation_fraction: share of the training images kept for validation, in [0, 1).
        seed: chooses the validation images and those that `limit` keeps; the test images never depend on it.
        limit: train on so many of the remaining images; validation and test stay whole.
        image_size: height and width that images are brought to: the middle square, scaled. Default: what they have,
            one size for all.
    Returns:
        The set. Within each split the images keep the order of their source.
    Raises:
        FileNotFoundError: nothing found; says what was looked for, where, and the command that gets it.
        ValueError: a broken file, a wrong shape, dtype or label, an empty split, an option out of range.
        ImportError: the package that reads this source is missing.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} is not in [0, 1); 0.1 keeps a tenth.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1):
        raise ValueError(f"limit={limit!r} is not a positive integer; give a number of images, or None for all.")
    if image_size is not None and not 1 <= image_size <= 4096:
        raise ValueError(f"image_size={image_size!r} is not in 1..4096; give the height of the images, or None.")
    raw = read(str(name), data_dir, image_size)
    arrays, n_classes = check_arrays(raw)
    if image_size is not None:
        arrays = {key: _resized(value, image_size) if key[0] == "x" else value for key, value in arrays.items()}
    order = np.random.default_rng(seed).permutation(len(arrays["x_train"]))
    own = "x_validation" in arrays
    n_validation = 0 if own else round(validation_fraction * len(order))
    n_train = len(order) - n_validation
    if n_train < 1 or (validation_fraction > 0 and n_validation < 1 and not own):
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
    held_out = (arrays["x_validation"], arrays["y_validation"]) if own else (x[validation], y[validation])
    splits = (x[train], y[train], *held_out, arrays["x_test"], arrays["y_test"])
    mean, std, constant = _mean_and_std(splits[0])
    if constant.all():
        raise ValueError(
            f"all training images of {raw.where} are of one and the same colour. Check how they were made."
        )
    class_names = raw.class_names if len(raw.class_names) == n_classes else ()
    path = str(Path(raw.where).absolute()) if Path(raw.where).exists() else None
    return Dataset(str(name), raw.source, n_classes, *splits, mean, std, raw.notes, class_names, path)


def _resized(x: np.ndarray, size: int) -> np.ndarray:
    return x if x.shape[1:3] == (size, size) else np.stack([resize(image, size) for image in x])


def _mean_and_std(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each channel, and whether it is constant."""
    channels = range(x.shape[-1])
    counts = np.zeros((len(channels), 256), np.int64)
    for start in range(0, len(x), 1024):  # by histogram: exact sums, and never a wide copy of all images
        block = x[start : start + 1024]
        counts += np.stack([np.bincount(block[..., c].ravel(), minlength=256) for c in channels])
    levels, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    constant = (counts > 0).sum(1) == 1
    return mean.astype(np.float32), np.where(constant, 1, std).astype(np.float32), constant


def check_arrays(raw: Raw) -> tuple[dict[str, np.ndarray], int]:
    """Images as uint8, labels as int32, of each split that there is, and the number of classes.

    Raises:
        ValueError: a wrong shape, dtype or value; names the file, the fault and the remedy.
    """
    given = [split for split in ("train", "validation", "test") if f"x_{split}" in raw.arrays]
    x = {split: _check_images(raw.arrays[f"x_{split}"], f"x_{split} of {raw.where}") for split in given}
    y = {split: _check_labels(raw.arrays[f"y_{split}"], len(x[split]), f"y_{split} of {raw.where}") for split in x}
    if other := next((split for split in given if x[split].shape[1:] != x["train"].shape[1:]), None):
        shapes = f"{x['train'].shape[1:]}, its {other} images {x[other].shape[1:]}"
        raise ValueError(f"The training images of {raw.where} are {shapes}; both need one height, width and channels.")
    present = np.unique(y["train"])
    n_classes = raw.n_classes or int(present[-1]) + 1
    for split, labels in y.items():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= n_classes:
            raise ValueError(
                f"y_{split} of {raw.where} holds labels {low}..{high}; allowed are 0..{n_classes - 1}, by "
                f"{'the declared n_classes' if raw.n_classes else 'y_train'}. Renumber them from 0."
            )
    if raw.n_classes is None and len(present) < n_classes:
        gap = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise ValueError(
            f"y_train of {raw.where} goes up to {n_classes - 1} but never is {gap}. Labels count from 0 "
            f"without gaps: renumber them, or store n_classes={n_classes} beside the arrays if that class "
            f"has no training image."
        )
    images = {f"x_{split}": x[split] for split in given}
    return images | {f"y_{split}": y[split].astype(np.int32) for split in given}, n_classes


def _check_images(x: np.ndarray, what: str) -> np.ndarray:
    # Small enough, images with channels first look like rows of few pixels.
    first = x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] != x.shape[1]
    if x.ndim != 4 or x.shape[-1] not in (1, 2, 3, 4) or 0 in x.shape or first:
        hint = "Add a last axis to grey images: x[..., None]." if x.ndim == 3 else "Reshape them."
        hint = "It looks like channels first: x.transpose(0, 2, 3, 1)." if x.ndim == 4 else hint
        hint = "It is empty: add images." if 0 in x.shape else hint
        raise ValueError(
            f"{what} has shape {x.shape}; allowed is (n, height, width, channels), channels 1 to 4. {hint}"
        )
    if x.dtype.kind in "iu" and x.min() >= 0 and x.max() <= 255:
        return x.astype(np.uint8, copy=False)
    found, hint = (
        f"{x.dtype} values",
        "Convert them by .astype(np.uint8) where they are whole numbers 0..255.",
    )
    if x.dtype.kind in "iuf":
        found += f" from {x.min()} to {x.max()}"
        hint = "Rescale them to 0..255."
        if x.dtype.kind == "f" and 0 <= x.min() <= x.max() <= 255:
            scale, where = ("255 * ", "[0, 1]") if x.max() <= 1 else ("", "[0, 255]")
            hint = f"They are floats in {where}: np.round({scale}x).astype(np.uint8) has them as integers."
    if x.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(x)))):
        found, hint = f"{x.dtype} values, {bad} of them NaN or infinite", f"Repair or drop those. {hint}"
    raise ValueError(f"{what} holds {found}; images are integers 0..255, best uint8. {hint}")


def _check_labels(y: np.ndarray, n_images: int, what: str) -> np.ndarray:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{what} is {y.dtype} of shape {y.shape}; labels are integers of shape (n,), one an image. Use "
            f"y.reshape(-1) for a column, y.argmax(1) for one-hot rows, y.astype(np.int32) for whole floats."
        )
    if len(y) and not -(2**31) <= int(y.min()) <= int(y.max()) < 2**31 - 1:
        raise ValueError(f"{what} holds labels {y.min()}..{y.max()}; they count from 0 and fit 32 bits: renumber them.")
    if len(y) != n_images:
        raise ValueError(f"{what} has {len(y)} labels for {n_images} images. Give each image one label, in its order.")
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
