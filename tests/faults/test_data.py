"""Images and arrays that are not what they look like: read as they are meant, or refused by name."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments.images.data import load
from experiments.images.decoding import decode_images
from experiments.images.sources import read_npz
from image_arrays import make_arrays, save

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def decoded(path, channels=None):
    return decode_images([path], [str(path)], channels)[0]


def write(path, image, **options):
    image.save(path, **options)
    return path


def png16(path):
    """A PNG of three channels of 16 bits, which Pillow reads as one of 8."""
    rows = b"".join(b"\0" + row.tobytes() for row in (PIXELS.astype(">u2") * 256))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_orientation_says(orientation, tmp_path):
    image = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decoded(write(tmp_path / "a.png", image, exif=exif))
    flipped = PIXELS[:, ::-1] if orientation in (2, 4, 5, 7) else PIXELS
    quarters = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    np.testing.assert_array_equal(turned, np.rot90(flipped, quarters))


def test_opacity_is_kept_where_it_is_asked_for_and_must_be_full_elsewhere(tmp_path):
    opaque = np.dstack([PIXELS, np.full((4, 6), 255, np.uint8)])
    path = write(tmp_path / "a.png", Image.fromarray(opaque))
    np.testing.assert_array_equal(decoded(path), PIXELS)
    np.testing.assert_array_equal(decoded(path, 4), opaque)
    opaque[1, 2, 3] = 200
    path = write(tmp_path / "b.png", Image.fromarray(opaque))
    np.testing.assert_array_equal(decoded(path, 4), opaque)
    with pytest.raises(ValueError, match=r"b\.png is no readable image \(it has transparent pixels"):
        decoded(path)
    palette = Image.fromarray(PIXELS).quantize(8)
    np.testing.assert_array_equal(decoded(write(tmp_path / "c.png", palette)), np.asarray(palette.convert("RGB")))
    with pytest.raises(ValueError, match=r"d\.png .*transparent pixels"):
        decoded(write(tmp_path / "d.png", palette, transparency=palette.getpixel((0, 0))))


def test_what_8_bits_or_three_colours_cannot_hold_is_refused_by_name(tmp_path):
    with Image.open(png16(tmp_path / "a.png")) as image:
        assert image.mode == "RGB"
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    for path, says in (
        (tmp_path / "a.png", "more than 8 bits a channel"),
        (write(tmp_path / "b.png", Image.fromarray(PIXELS[..., 0].astype(np.uint16))), "more than 8 bits a channel"),
        (write(tmp_path / "c.jpg", Image.fromarray(PIXELS).convert("CMYK")), "CMYK"),
        (write(tmp_path / "d.png", frames[0], save_all=True, append_images=frames[1:]), "animated"),
        (write(tmp_path / "e.png", frames[0], format="TIFF"), "cannot identify"),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} is no readable image .*{says}"):
            decoded(path)


@pytest.fixture
def folder(tmp_path):
    for i, place in enumerate(f"{split}/{name}" for split in ("train", "test") for name in ("cat", "dog")):
        (tmp_path / place).mkdir(parents=True)
        write(tmp_path / place / "0.png", Image.fromarray(PIXELS + np.uint8(i)))
    return tmp_path


def test_files_that_are_not_read_are_counted_and_named(folder):
    assert load(folder, validation_fraction=0).notes == ()
    for name in "abcdefg":
        (folder / "train" / "cat" / f"{name}.webp").write_bytes(b"")
    (note,) = load(folder, validation_fraction=0).notes
    assert "7 of 11 files are not read: train/cat/a.webp" in note
    assert "train/cat/e.webp and 2 more" in note


def test_validation_images_that_nothing_reads_are_refused(folder, tmp_path):
    (folder / "val").mkdir()
    with pytest.raises(ValueError, match=r"val holds no folder of a class"):
        load(folder)
    with pytest.raises(ValueError, match=r"holds x_val, y_val, which nothing reads"):
        load(save(tmp_path / "a.npz", x_val=make_arrays()["x_test"], y_val=make_arrays()["y_test"]))


def test_images_of_one_colour_are_refused(tmp_path):
    x = np.full((40, 6, 5, 3), 7, np.uint8)
    with pytest.raises(ValueError, match=r"all training images of .*a\.npz are of one and the same colour"):
        load(save(tmp_path / "a.npz", x_train=x))


GOOD = make_arrays()
FAULTS = {
    "floats to 1": ({"x_train": GOOD["x_train"] / 255}, r"floats in \[0, 1\]: np.round\(255 \* x\)"),
    "floats to 255": ({"x_train": GOOD["x_train"] / 1.0}, r"floats in \[0, 255\]: np.round\(x\)"),
    "channels first": ({"x_train": np.zeros((40, 3, 4, 4), np.uint8)}, "channels first"),
    "one-hot": ({"y_train": np.eye(4, dtype=int)[GOOD["y_train"]]}, "argmax"),
    "objects": ({"y_train": np.array([None] * 40)}, "Python objects"),
    "beyond 32 bits": ({"y_test": GOOD["y_test"] + 2**33}, "fit 32 bits"),
    "unsigned": ({"y_train": GOOD["y_train"].astype(np.uint64) + np.uint64(2**63)}, "fit 32 bits"),
} | {
    f"n_classes {n!r}": ({"n_classes": n}, "n_classes of .*expected one integer of at least 1")
    for n in (0, -3, 4.0, "4", [4, 4], [], 2**40, True)
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_arrays_are_named(fault, tmp_path):
    changes, says = FAULTS[fault]
    with pytest.raises(ValueError, match=says) as caught:
        load(save(tmp_path / "bad.npz", **changes))
    assert "bad.npz" in str(caught.value)


def test_a_flipped_bit_of_a_header_is_named_or_does_not_matter(tmp_path):
    path = save(tmp_path / "a.npz", **{name: value[:4] for name, value in GOOD.items()})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    central = whole.rindex(b"PK\x01\x02")
    for bit in rng.choice(8 * (len(whole) - central), 200, replace=False):
        content = bytearray(whole)
        content[central + bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        try:
            arrays = read_npz(path).arrays
        except ValueError as error:
            assert "a.npz" in str(error)  # noqa: PT017 - not every flip matters
            continue
        for name, value in GOOD.items():
            np.testing.assert_array_equal(arrays[name], value[:4])
