"""Folders of image files, in the layouts that they are found in: which file is of which class and split."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.images.decoding import SUFFIXES, decode_images
from experiments.images.raw import Raw, held_out

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of the folders of each split, in any case."""
LAYOUTS = (
    "Allowed are .png, .jpg and .jpeg files anywhere below train/<class>/, with val/<class>/ and test/<class>/ or "
    "without; below <class>/ alone; and Tiny-ImageNet as published (wnids.txt, train/<wnid>/images/, val/images/, "
    "val/val_annotations.txt)."
)
_FIFTH = "; a fixed fifth of each class is the test set"


class Listing(NamedTuple):
    """Classes in the order of their labels; files with labels by split; what is said of the origin; what was read."""

    classes: list[str]
    files: dict[str, list[tuple[Path, int]]]
    remark: str
    roots: tuple[Path, ...]


def is_split(folder: Path) -> bool:
    """Whether training images lie in a folder of their own there."""
    return any((folder / name).is_dir() for name in SPLITS["train"])


def read_folder(path: Path, image_size: int | None) -> Raw:
    """Read and decode a folder of images.

    Args:
        path: the folder, in one of the `LAYOUTS`. Without test images the validation images are the test set, and
            without those too a fixed fifth of each class.
        image_size: height and width that images are brought to; `None` for those they have, one for all.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: another layout, classes of one split alone, images that cannot be read or differ in size.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path.absolute()}. {LAYOUTS}")
    if (path / "wnids.txt").is_file():
        listing = _tiny_imagenet(path)
    elif found := _split_folders(path):
        listing = _splits(path, found)
    else:
        listing = _classes(path)
    for split, listed in listing.files.items():
        if not listed:
            raise ValueError(f"{path} holds no {split} images where they are looked for. {LAYOUTS}")
    pairs = [pair for listed in listing.files.values() for pair in listed]
    files, labels = [file for file, _ in pairs], np.asarray([label for _, label in pairs])
    x = decode_images(files, [str(file) for file in files], None, image_size)
    arrays, start = {}, 0
    for split, listed in listing.files.items():
        arrays[f"x_{split}"] = x[start : start + len(listed)]
        arrays[f"y_{split}"] = labels[start : start + len(listed)]
        start += len(listed)
    notes = _unread(path, listing.roots, set(files))
    source, classes = f"the images in {path}{listing.remark}", tuple(listing.classes)
    return Raw(arrays, str(path), source, len(classes), notes, classes)


def _split_folders(path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _folders_in(path):
        split = next((split for split, names in SPLITS.items() if folder.name.lower() in names), None)
        if split in found:
            raise ValueError(f"{found[split]} and {folder} both look like the {split} images. Keep one of them.")
        if split:
            found[split] = folder
    return found


def _splits(path: Path, folders: dict[str, Path]) -> Listing:
    if "train" not in folders:
        there = " and ".join(folder.name for folder in folders.values())
        raise ValueError(f"{path} holds {there} and no train. {LAYOUTS}")
    classes = [folder.name for folder in _folders_in(folders["train"])]
    files: dict[str, list[tuple[Path, int]]] = {}
    for split, folder in sorted(folders.items(), key=lambda item: list(SPLITS).index(item[0])):
        names = [inner.name for inner in _folders_in(folder)]
        if not names:
            raise ValueError(f"{folder} holds no folder of a class, so that its images have no labels. {LAYOUTS}")
        if missing := sorted(set(names) - set(classes)):
            raise ValueError(f"{folder} has the class {missing[0]!r}, {folders['train']} lacks it. Use the same names.")
        files[split] = [(file, classes.index(name)) for name in names for file in _images_in(folder / name)]
    remark = ""
    if "test" not in files:
        if "validation" in files:
            remark = f"; those in {folders['validation'].name} are the test set"
            files["test"] = files.pop("validation")
        else:
            remark = _FIFTH
            files = _apart(path, files["train"], len(classes))
    return Listing(classes, files, remark, tuple(folders.values()))


def _classes(path: Path) -> Listing:
    folders = _folders_in(path)
    if len(folders) == 1 and (inner := _folders_in(folders[0])):
        what = "is the only folder there" if len(inner) > 1 else "is the only class"
        raise ValueError(f"{folders[0]} {what}: give {folders[0]} itself, or a second class. {LAYOUTS}")
    if len(folders) < 2:
        there = f"only the folder {folders[0].name!r}" if folders else "no folders"
        raise ValueError(f"{path} holds {there}: no training images of two classes or more. {LAYOUTS}")
    listed = [(file, label) for label, folder in enumerate(folders) for file in _images_in(folder)]
    classes = [folder.name for folder in folders]
    return Listing(classes, _apart(path, listed, len(classes)), _FIFTH, tuple(folders))


def _apart(path: Path, listed: list[tuple[Path, int]], n_classes: int) -> dict[str, list[tuple[Path, int]]]:
    """The same fifth of each class as a test set."""
    test = set(held_out(np.asarray([label for _, label in listed]), n_classes).tolist())
    if not test:
        raise ValueError(
            f"{path} has no test images, and {len(listed)} in {n_classes} classes are too few to keep a fifth of each "
            "for it: add a folder test with those of every class"
        )
    return {
        "train": [pair for i, pair in enumerate(listed) if i not in test],
        "test": [listed[i] for i in sorted(test)],
    }


def _tiny_imagenet(path: Path) -> Listing:
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
            raise ValueError(f"{annotations}, line {number}: {line!r} is no file name with a class of wnids.txt.")
        test.append((path / "val" / "images" / file, index[wnid]))
    remark = "; Tiny-ImageNet's published validation images are the test set, its test labels are secret"
    return Listing(classes, {"train": train, "test": test}, remark, ())


def _folders_in(path: Path) -> list[Path]:
    return sorted(folder for folder in path.glob("[!.]*") if folder.is_dir())


def _images_in(folder: Path) -> list[Path]:
    """All images below a folder."""
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not any(part[0] == "." for part in file.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(f"{folder} is missing or holds no .png, .jpg or .jpeg. Fill or remove it. {LAYOUTS}")
    return found


def _unread(path: Path, roots: tuple[Path, ...], used: set[Path]) -> tuple[str, ...]:
    """A note on the files below the folders of splits or classes that are no images of a class, if there are any."""
    found = sorted(file for root in roots for file in root.rglob("*") if file.is_file())
    left = [str(file.relative_to(path)) for file in found if file not in used]
    if not left:
        return ()
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return (f"{path}: {len(left)} of {len(found)} files are not read: {', '.join(left[:5])}{more}. {LAYOUTS}",)
