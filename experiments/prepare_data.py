"""Write image sets as prepared TFDS directories (array_record), without TensorFlow.

from-arrays takes an .npz, from-archive a published archive on disk; only download uses the network. The result,
DATA_DIR/name/version, is read by `experiments.data.load` and by plain `tfds.data_source`. It is written aside,
read back, compared with what went in, and renamed last: a killed preparation leaves nothing that looks prepared.
Records keep the order of their source.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import re
import struct
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.data import ARCHIVED, PREPARE, Raw, check_arrays, data_root, read_npz, read_prepared

_URLS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}


class Content(NamedTuple):
    """What is written: checked arrays, those of further features as `<feature>_<split>`; names of classes."""

    raw: Raw
    class_names: dict[str, list[str]]


def from_arrays(
    name: str, npz: Path, data_dir: Path | None = None, source: str | None = None, overwrite: bool = False
) -> Path:
    """Prepare a set from an .npz of arrays.

    Args:
        name: a TFDS name such as cifar10, for its official version and features, or a name of your own.
        npz: x_train, y_train, x_test, y_test: uint8 images (n, height, width, channels), integer labels (n,).
            A further feature of the official set is two more arrays: coarse_label_train, coarse_label_test.
        data_dir: where prepared sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        source: a sentence on where the images came from; it is stored, and shown with results.
        overwrite: replace the set if it is there already.
    """
    raw = read_npz(npz.expanduser())
    content = _checked(raw._replace(source=source or raw.source), {})
    return write_prepared(name, lambda _: content, data_dir=data_dir, overwrite=overwrite)


def from_archive(name: str, path: Path, data_dir: Path | None = None, overwrite: bool = False) -> Path:
    """Prepare CIFAR-10, CIFAR-100, MNIST or Fashion-MNIST from its published archive.

    Args:
        name: cifar10, cifar100, mnist or fashion_mnist.
        path: cifar-10-python.tar.gz, cifar-100-python.tar.gz (or the -binary ones), or the folder that holds
            train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-... and t10k-labels-... .
        data_dir: where prepared sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        overwrite: replace the set if it is there already.
    """
    if name not in ARCHIVED:
        raise ValueError(
            f"name={name!r} has no archive that is known here; allowed are {', '.join(ARCHIVED)}."
        )
    path = path.expanduser()
    mnist = "mnist" in name
    content = (
        read_idx({key: path / file for key, file in _IDX_FILES.items()}) if mnist else read_cifar(name, path)
    )
    return write_prepared(name, lambda _: content, data_dir=data_dir, overwrite=overwrite)


def download(name: str, data_dir: Path | None = None, overwrite: bool = False) -> Path:
    """Download a set over the network and prepare it, by TFDS's own download_and_prepare and its checksums.

    Args:
        name: cifar10, cifar100, mnist, fashion_mnist, or another TFDS set, which needs TensorFlow here.
        data_dir: where prepared sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        overwrite: replace the set if it is there already.
    """
    Console(stderr=True).print("Without a network TFDS tries for more than three minutes before it gives up.")

    def fetch(manager: Any) -> Content:
        if "mnist" in name:
            return read_idx(manager.download({key: _URLS[name] + file for key, file in _IDX_FILES.items()}))
        return read_cifar(name, Path(manager.download(_URLS[name])))

    fetched = fetch if name in ARCHIVED else None
    return write_prepared(name, fetched, data_dir=data_dir, overwrite=overwrite, network=True)


def write_prepared(
    name: str,
    fetch: Callable[[Any], Content] | None,
    *,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
    network: bool = False,
) -> Path:
    """Write data_dir/name/version atomically and verify it.

    Args:
        name: a TFDS name, with its config if it has any ("emnist/balanced"), or a new name.
        fetch: gives the content; it gets TFDS's download manager. None: TFDS's own builder makes the content.
        data_dir: where prepared sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        overwrite: replace the set if it is there already.
        network: whether fetch downloads; the files then stay in data_dir/downloads, for a second try.
    Returns:
        The folder of the set.
    Raises:
        FileExistsError: it is there already.
        ValueError: content that does not fit the official set, or that was not read back as it was written.
    """
    if not re.fullmatch(r"[a-z]\w*(/[\w.-]+)?", name):
        raise ValueError(
            f"name={name!r} is not a TFDS name: lower-case letters, digits and _, such as my_digits."
        )
    started, root = time.perf_counter(), data_root(data_dir)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=root) as staging, _progress() as advance:
        builder = _builder(name, fetch, Path(staging), advance)
        built = Path(builder.data_dir)
        final = root / built.relative_to(staging)
        if final.exists() and not overwrite:
            raise FileExistsError(f"{final} is there already. Add --overwrite to replace it.")
        _download_and_prepare(builder, root / "downloads" if network else None)
        counts = _verify(builder, built, advance)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rename(Path(staging) / "replaced")
        built.rename(final)
    seconds = time.perf_counter() - started
    _say(
        f"{final}: {counts}, read back and compared, {seconds:.1f} s. "
        f"Use it by load({name!r}, data_dir={str(root)!r})."
    )
    return final


def _builder(
    name: str, fetch: Callable[[Any], Content] | None, staging: Path, advance: Callable[..., None]
) -> Any:
    """TFDS's own builder of `name`, or one with its name, version and features that writes our content."""
    import tensorflow_datasets as tfds

    stem, _, config = name.partition("/")
    options: dict[str, Any] = {"data_dir": staging, "file_format": "array_record"}
    if config:
        options["config"] = config
    try:
        official = tfds.builder_cls(stem)
    except tfds.core.DatasetNotFoundError:
        official = None
    if fetch is None:
        if official is None:
            raise ValueError(f"TFDS has no set {name!r} to download. Its catalogue lists the names.")
        return official(**options)
    base: Any = official or tfds.core.GeneratorBasedBuilder
    make, known = fetch, None if official else fetch(None)

    with tfds.core.registered.skip_registration():

        class Prepared(base):  # type: ignore[misc]
            name = stem
            VERSION = official.VERSION if official else tfds.core.Version("1.0.0")
            content: Content | None = None

            def _info(self) -> Any:
                if known is None:
                    info = super()._info()
                    features, keys = info.features, info.supervised_keys
                    about = {key: getattr(info, key) for key in ("description", "homepage", "citation")}
                else:
                    picture = tfds.features.Image(shape=known.raw.arrays["x_train"].shape[1:])
                    label = tfds.features.ClassLabel(num_classes=known.raw.n_classes)
                    features, keys = {"image": picture, "label": label}, ("image", "label")
                    about = {"description": known.raw.source}
                # without shuffling, the order, and so every seeded split, is that of the published files
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(dict(features)),
                    supervised_keys=keys,
                    disable_shuffling=True,
                    metadata=tfds.core.MetadataDict(),
                    **about,
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
                self.content = known or make(dl_manager)
                _check_fits(self.content.raw, dict(self.info.features), name)
                self.info.metadata["source"] = self.content.raw.source
                for feature, names in self.content.class_names.items():
                    self.info.features[feature].names = names
                return {split: self._generate_examples(split) for split in ("train", "test")}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                arrays = self.content.raw.arrays if self.content else {}
                further = set(self.info.features) - {"image", "label", "id"}
                n = len(arrays[f"y_{split}"])
                for i in range(n):
                    example: dict[str, Any] = {key: int(arrays[f"{key}_{split}"][i]) for key in further}
                    example |= {"image": _png(arrays[f"x_{split}"][i]), "label": int(arrays[f"y_{split}"][i])}
                    if "id" in self.info.features:
                        example["id"] = f"{split}_{i:05d}"
                    advance(f"writing {split}", i + 1, n)
                    yield i, example

    return Prepared(**options)


def _check_fits(raw: Raw, features: dict[str, Any], name: str) -> None:
    other = f"Or give another --name, such as my_{name.partition('/')[0]}, which may hold any images."
    if not {"image", "label"} <= set(features):
        raise ValueError(
            f"TFDS's {name} has the features {', '.join(features)}, not image and label. {other}"
        )
    shape, given = features["image"].shape, raw.arrays["x_train"].shape[1:]
    if any(allowed not in (None, size) for allowed, size in zip(shape, given, strict=True)):
        raise ValueError(
            f"{raw.where} holds images {given}; {name} is defined with {shape}. Give those. {other}"
        )
    n_classes = features["label"].num_classes
    highest = max(int(raw.arrays[key].max()) for key in ("y_train", "y_test"))
    if n_classes is not None and highest >= n_classes:
        raise ValueError(
            f"{raw.where} holds the label {highest}; {name} has labels below {n_classes}. {other}"
        )
    for feature in set(features) - {"image", "label", "id"}:
        for split in ("train", "test"):
            column = raw.arrays.get(f"{feature}_{split}", np.zeros(0))
            if column.shape != raw.arrays[f"y_{split}"].shape or column.dtype.kind not in "iu":
                raise ValueError(
                    f"{raw.where} lacks {feature}_{split}, one integer an image, which {name} also has. Add "
                    f"{feature}_train and {feature}_test to the arrays. {other}"
                )


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _download_and_prepare(builder: Any, downloads: Path | None) -> None:
    import tensorflow_datasets as tfds

    if downloads is None:
        tfds.disable_progress_bar()  # ours says the same; a download keeps TFDS's
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS calls every preparation a download
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format="array_record",
            )
    except ImportError as error:
        raise ImportError(
            f"Preparing {builder.name} needs a package that is missing ({error}). TFDS's own builders, and "
            f"sets of more than 1 GB, need TensorFlow here: pip install tensorflow-cpu. Reading needs none."
        ) from error


def _verify(builder: Any, built: Path, advance: Callable[..., None]) -> str:
    """Read the set in `built` back and compare it with what was written; the counts in words."""
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    content: Content | None = getattr(builder, "content", None)
    for i, (split, count) in enumerate(counts.items()):
        advance("reading back", i, len(counts))
        found = len(builder.as_data_source(split))
        wanted = len(content.raw.arrays[f"y_{split}"]) if content else count
        if not wanted == count == found:
            raise ValueError(
                f"{built}, split {split!r}: {wanted} rows given, {count} written, {found} read back."
            )
    if content:
        back = read_prepared(built).arrays
        different = [key for key in back if not np.array_equal(back[key], content.raw.arrays[key])]
        if different:
            raise ValueError(
                f"{', '.join(different)} read back from {built} are not what was written. Check the disk."
            )
    advance("reading back", len(counts), len(counts))
    return " and ".join(f"{count} {split}" for split, count in counts.items()) + " images"


@contextlib.contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            if done % 100 == 0 or done == total:
                progress.update(tasks[what], completed=done)

        yield advance


def read_idx(files: dict[str, Path]) -> Content:
    """Read the four idx .gz files of the MNIST family, by the names x_train, y_train, x_test, y_test."""
    arrays = {}
    for key, path in files.items():
        magic, rank = (2051, 3) if key[0] == "x" else (2049, 1)
        try:
            data = gzip.decompress(Path(path).read_bytes())
            found, *shape = struct.unpack_from(f">{rank + 1}i", data)
            if found != magic or len(data) != 4 * (rank + 1) + np.prod(shape):
                raise ValueError(
                    f"magic number {found}, expected {magic}; {len(data)} bytes for the shape {shape}"
                )
        except FileNotFoundError:
            names = ", ".join(_IDX_FILES.values())
            raise FileNotFoundError(f"There is no file {path}. The folder must hold {names}.") from None
        except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
            raise ValueError(
                f"{path} is no idx file of {key} ({error}). Get it again, still compressed."
            ) from error
        arrays[key] = np.frombuffer(data, np.uint8, offset=4 * (rank + 1)).reshape(shape)
    arrays = {key: value[..., None] if key[0] == "x" else value for key, value in arrays.items()}
    where = str(Path(files["x_train"]).parent)
    return _checked(Raw(arrays, where, f"the published idx files in {where}"), {})


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
        raise FileNotFoundError(
            f"There is no file {path.absolute()}. Get {_URLS[name].replace('binary', 'python')}."
        )
    try:
        with tarfile.open(path) as tar:
            files = {Path(m.name).name: f.read() for m in tar if m.isfile() and (f := tar.extractfile(m))}
        batch = _binary_batch if f"{test}.bin" in files else _pickled_batch
        parts = {s: [batch(files, b, fields) for b in bs] for s, bs in (("train", train), ("test", [test]))}
        class_names = _class_names(files, fields)
    except KeyError as error:
        listed = ", ".join(files) or "nothing"
        raise ValueError(
            f"{path} lacks {error}; it holds {listed}. Give the published {name} archive."
        ) from error
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
    return _checked(Raw(arrays, str(path), f"the published archive {path.name}"), class_names)


def _binary_batch(
    files: dict[str, bytes], batch: str, fields: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(files[f"{batch}.bin"], np.uint8).reshape(-1, len(fields) + 3072)
    return rows[:, len(fields) :], rows[:, : len(fields)]


def _pickled_batch(
    files: dict[str, bytes], batch: str, fields: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
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


def _checked(raw: Raw, class_names: dict[str, list[str]]) -> Content:
    arrays, n_classes = check_arrays(raw)
    return Content(raw._replace(arrays={**raw.arrays, **arrays}, n_classes=n_classes), class_names)


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def main() -> None:
    """The command line; a fault is one clear sentence and exit status 1."""
    commands: dict[str, Callable[..., Any]] = {
        "from-arrays": from_arrays,
        "from-archive": from_archive,
        "download": download,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog=PREPARE, description=__doc__)
    except (ValueError, OSError, ImportError) as error:
        _say(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
