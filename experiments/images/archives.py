"""The published archives of CIFAR-10, CIFAR-100 and the MNIST family, read from disk as checked arrays."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.images.data import check_arrays
from experiments.images.raw import Raw

URLS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}


class Content(NamedTuple):
    """What is written: checked arrays, those of further features as `<feature>_<split>`; names of classes."""

    raw: Raw
    class_names: dict[str, list[str]]


def read_idx(files: dict[str, Path]) -> Content:
    """Read the four idx .gz files of the MNIST family, by the names x_train, y_train, x_test, y_test."""
    arrays = {}
    for key, path in files.items():
        magic, rank = (2051, 3) if key[0] == "x" else (2049, 1)
        try:
            data = gzip.decompress(Path(path).read_bytes())
            found, *shape = struct.unpack_from(f">{rank + 1}i", data)
            if found != magic or len(data) != 4 * (rank + 1) + np.prod(shape):
                raise ValueError(f"magic number {found}, expected {magic}; {len(data)} bytes for the shape {shape}")
        except FileNotFoundError:
            names = ", ".join(IDX_FILES.values())
            raise FileNotFoundError(f"There is no file {path}. The folder must hold {names}.") from None
        except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
            raise ValueError(f"{path} is no idx file of {key} ({error}). Get it again, still compressed.") from error
        arrays[key] = np.frombuffer(data, np.uint8, offset=4 * (rank + 1)).reshape(shape)
    arrays = {key: value[..., None] if key[0] == "x" else value for key, value in arrays.items()}
    where = str(Path(files["x_train"]).parent)
    return checked(Raw(arrays, where, f"the published idx files in {where}"), {})


class _Unpickler(pickle.Unpickler):
    """Reads the arrays and strings of a CIFAR batch and refuses all else: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_reconstruct", "ndarray", "dtype") and module.partition(".")[0] == "numpy":
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR archive contains")


def read_cifar(name: str, path: Path) -> Content:
    """Read the published cifar-10 or cifar-100 archive (.tar.gz), the python or the binary one."""
    fields = ("coarse_label", "label") if name == "cifar100" else ("label",)
    train = ["train"] if name == "cifar100" else [f"data_batch_{i}" for i in range(1, 6)]
    test = "test" if name == "cifar100" else "test_batch"
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path.absolute()}. Get {URLS[name].replace('binary', 'python')}.")
    try:
        with tarfile.open(path) as tar:
            files = {Path(m.name).name: f.read() for m in tar if m.isfile() and (f := tar.extractfile(m))}
        batch = _binary_batch if f"{test}.bin" in files else _pickled_batch
        parts = {s: [batch(files, b, fields) for b in bs] for s, bs in (("train", train), ("test", [test]))}
        class_names = _class_names(files, fields)
    except KeyError as error:
        listed = ", ".join(files) or "nothing"
        raise ValueError(f"{path} lacks {error}; it holds {listed}. Give the published {name} archive.") from error
    except (OSError, EOFError, ValueError, pickle.UnpicklingError, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read: it is broken, cut off or no archive ({error}). Get it again."
        ) from error
    arrays = {}
    for split, batches in parts.items():
        planes = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
        arrays[f"x_{split}"] = planes.transpose(0, 2, 3, 1).copy()
        for i, key in enumerate(fields):
            column = np.concatenate([labels[:, i] for _, labels in batches])
            arrays[f"{'y' if key == 'label' else key}_{split}"] = column
    return checked(Raw(arrays, str(path), f"the published archive {path.name}"), class_names)


def _binary_batch(files: dict[str, bytes], batch: str, fields: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(files[f"{batch}.bin"], np.uint8).reshape(-1, len(fields) + 3072)
    return rows[:, len(fields) :], rows[:, : len(fields)]


def _pickled_batch(files: dict[str, bytes], batch: str, fields: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    found = _Unpickler(io.BytesIO(files[batch]), encoding="bytes").load()
    keys = {"coarse_label": b"coarse_labels", "label": b"labels" if len(fields) == 1 else b"fine_labels"}
    return np.asarray(found[b"data"], np.uint8), np.stack([np.asarray(found[keys[f]]) for f in fields], 1)


def _class_names(files: dict[str, bytes], fields: tuple[str, ...]) -> dict[str, list[str]]:
    fine = "fine_label_names" if len(fields) == 2 else "label_names"
    keys = {"label": fine, "coarse_label": "coarse_label_names"}
    meta = "meta" if len(fields) == 2 else "batches.meta"
    if meta in files:
        found = _Unpickler(io.BytesIO(files[meta]), encoding="bytes").load()
        return {f: [name.decode() for name in found[keys[f].encode()]] for f in fields}
    texts = {f: files[f"{keys[f]}.txt" if len(fields) == 2 else f"{meta}.txt"] for f in fields}
    return {f: text.decode().split() for f, text in texts.items()}


def checked(raw: Raw, class_names: dict[str, list[str]]) -> Content:
    """What `check_arrays` makes of `raw`, with its further arrays."""
    arrays, n_classes = check_arrays(raw)
    return Content(raw._replace(arrays={**raw.arrays, **arrays}, n_classes=n_classes), class_names)
