"""Write image sets as prepared TFDS directories (array_record), without TensorFlow.

    python -m experiments.prepare_data from-archive cifar10 cifar-10-python.tar.gz
    python -m experiments.prepare_data from-arrays my_set images.npz --data-dir data
    python -m experiments.prepare_data download cifar100

from-arrays takes an .npz, from-archive a published archive on disk; only download uses a network. The result,
DATA_DIR/name/version, is read by `experiments.images.data.load` and by plain `tfds.data_source`. It is written
aside, read back, compared with what went in, and renamed last: a killed preparation leaves nothing that looks
prepared. Records keep the order of their source. 60,000 images of 32x32 take 45 seconds on two cores.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.images.archives import IDX_FILES, URLS, Content, checked, read_cifar, read_idx
from experiments.images.raw import Raw
from experiments.images.sources import ARCHIVED, PREPARE, data_root, read_npz, read_prepared
from experiments.records.command import flags_of, folded, refuse_values_of_flags


def from_arrays(
    name: Annotated[str, tyro.conf.Positional],
    npz: Annotated[Path, tyro.conf.Positional],
    data_dir: Path | None = None,
    source: str | None = None,
    overwrite: bool = False,
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
    content = checked(raw._replace(source=source or raw.source), {})
    return write_prepared(name, lambda _: content, data_dir=data_dir, overwrite=overwrite)


def from_archive(
    name: Annotated[str, tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional],
    data_dir: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Prepare CIFAR-10, CIFAR-100, MNIST or Fashion-MNIST from its published archive.

    Args:
        name: cifar10, cifar100, mnist or fashion_mnist.
        path: cifar-10-python.tar.gz, cifar-100-python.tar.gz (or the -binary ones), or the folder that holds
            train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-... and t10k-labels-... .
        data_dir: where prepared sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        overwrite: replace the set if it is there already.
    """
    if name not in ARCHIVED:
        raise ValueError(f"name={name!r} has no archive that is known here; allowed are {', '.join(ARCHIVED)}.")
    path = path.expanduser()
    mnist = "mnist" in name
    content = read_idx({key: path / file for key, file in IDX_FILES.items()}) if mnist else read_cifar(name, path)
    return write_prepared(name, lambda _: content, data_dir=data_dir, overwrite=overwrite)


def download(name: Annotated[str, tyro.conf.Positional], data_dir: Path | None = None, overwrite: bool = False) -> Path:
    """Download a set over the network and prepare it, by TFDS's own download_and_prepare and its checksums.

    Args:
        name: cifar10, cifar100, mnist, fashion_mnist, or another TFDS set, which needs TensorFlow here.
        data_dir: where prepared sets lie; default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        overwrite: replace the set if it is there already.
    """
    Console(stderr=True).print("Without a network TFDS tries for more than three minutes before it gives up.")

    def fetch(manager: Any) -> Content:
        if "mnist" in name:
            return read_idx(manager.download({key: URLS[name] + file for key, file in IDX_FILES.items()}))
        return read_cifar(name, Path(manager.download(URLS[name])))

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
        raise ValueError(f"name={name!r} is not a TFDS name: lower-case letters, digits and _, such as my_digits.")
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
        f"{final}: {counts}, read back and compared, {seconds:.1f} s. Use it by load({name!r}, data_dir={str(root)!r})."
    )
    return final


def _builder(name: str, fetch: Callable[[Any], Content] | None, staging: Path, advance: Callable[..., None]) -> Any:
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

        class Prepared(base):
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
                tfds.disable_progress_bar()  # TFDS's are for the download, ours for what follows
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
    other = f"Or give another name, such as my_{name.partition('/')[0]}, which may hold any images."
    if not {"image", "label"} <= set(features):
        raise ValueError(f"TFDS's {name} has the features {', '.join(features)}, not image and label. {other}")
    shape, given = features["image"].shape, raw.arrays["x_train"].shape[1:]
    if any(allowed not in (None, size) for allowed, size in zip(shape, given, strict=True)):
        raise ValueError(f"{raw.where} holds images {given}; {name} is defined with {shape}. Give those. {other}")
    n_classes = features["label"].num_classes
    highest = max(int(raw.arrays[key].max()) for key in ("y_train", "y_test"))
    if n_classes is not None and highest >= n_classes:
        raise ValueError(f"{raw.where} holds the label {highest}; {name} has labels below {n_classes}. {other}")
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
    except OSError as error:
        if downloads is None:
            raise
        raise OSError(
            f"{builder.name} could not be downloaded or unpacked ({error}). Check the network and try again; "
            f"what is complete in {downloads} is kept. Without a network use from-archive or from-arrays."
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
            raise ValueError(f"{built}, split {split!r}: {wanted} rows given, {count} written, {found} read back.")
    if content:
        back = read_prepared(built).arrays
        different = [key for key in back if not np.array_equal(back[key], content.raw.arrays[key])]
        if different:
            raise ValueError(f"{', '.join(different)} read back from {built} are not what was written. Check the disk.")
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


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def _deferred(command: Callable[..., Path]) -> Callable[..., Callable[[], Path]]:
    """The same arguments, read without running the command."""

    @functools.wraps(command)
    def read(*args: Any, **kwargs: Any) -> Callable[[], Path]:
        return functools.partial(command, *args, **kwargs)

    return read


def main() -> None:
    """The command line; a fault is one clear sentence and exit status 1."""
    commands: dict[str, Callable[..., Path]] = {
        "from-arrays": from_arrays,
        "from-archive": from_archive,
        "download": download,
    }
    later = {name: _deferred(command) for name, command in commands.items()}
    refuse_values_of_flags(sys.argv[1:], flags_of(*commands.values()))
    if sys.argv[1:2] in (["-h"], ["--help"], []):
        print(folded(__doc__ or "", Console().width), end="\n\n")
    try:
        tyro.extras.subcommand_cli_from_dict(later, prog=PREPARE, description="")()
    except (ValueError, OSError, ImportError) as error:
        _say(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
