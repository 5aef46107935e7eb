"""Image files as pixels: as a viewer shows them, in 8 bits a channel, or refused by the name of the file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
"""What Pillow may take a file for."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_PNG = b"\x89PNG\r\n\x1a\n"


def decode_images(
    files: Sequence[Path | bytes], names: Sequence[str], channels: int | None, size: int | None = None
) -> np.ndarray:
    """Decode images of one size to uint8 `[n, height, width, channels]`.

    They are turned as their EXIF orientation says. Opacity is a channel where four are asked for; elsewhere it must be
    full, since what shines through is not in the file.

    Args:
        files: their paths, or what they hold.
        names: of them, for errors.
        channels: 1, 3 or 4; `None` for 1 if all images are grey, else 3.
        size: height and width that each is brought to, as by `resize`; `None` leaves them.

    Raises:
        ValueError: an image is broken, has more than 8 bits a channel, inks for colours, or transparent pixels that
            are not asked for, is animated, or has another size than the first.
    """
    grey = True
    images = np.empty((0, 1, 1, channels or 1), np.uint8)
    for i, (file, name) in enumerate(zip(files, names, strict=True)):
        try:
            pixels, is_grey = _decode(file if isinstance(file, bytes) else file.read_bytes(), channels)
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise ValueError(f"{name} is no readable image ({error}). Replace or remove it.") from error
        grey &= is_grey
        if size is not None:
            pixels = resize(pixels, size)
        if i == 0:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            sizes = f"{pixels.shape[:2]} pixels, {names[0]} has {images.shape[1:3]}"
            raise ValueError(f"{name} has {sizes}. All images of a set must have one size: --image-size resizes them.")
        images[i] = pixels
    return images[..., :1].copy() if channels is None and grey else images


def _decode(content: bytes, channels: int | None) -> tuple[np.ndarray, bool]:
    """The pixels of one image, and whether it is grey."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        bits = content[24] if content.startswith(_PNG) else 8
        # The decoder may have cut them to 8 in silence, as it does those of three channels.
        if bits > 8 or image.mode[0] in "IF":
            raise ValueError("it has more than 8 bits a channel; convert it to 8 bits")
        if image.mode not in MODES:
            raise ValueError(f"its colours are {image.mode}, which depend on a printer; convert it to RGB")
        if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("it is animated; keep one frame")
        grey = image.mode in ("1", "L", "LA")
        turned: Any = ImageOps.exif_transpose(image)
        clear = turned.mode in ("LA", "PA", "RGBA") or "transparency" in turned.info
        if clear and channels != 4 and np.asarray(turned.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError("it has transparent pixels, whose colour is that of what lies behind; flatten it")
        wanted = {1: "L", 4: "RGBA"}.get(channels or 3, "RGB")
        pixels = np.asarray(turned if turned.mode == wanted else turned.convert(wanted))
    return pixels.reshape(*pixels.shape[:2], -1), grey


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """An image at another size: scaled, by bicubic interpolation, until the middle square of it has that side.

    Args:
        pixels: uint8 `[height, width, channels]`, with 1 to 4 channels.
        size: height and width of the result.

    Returns:
        uint8 `[size, size, channels]`.
    """
    from PIL import Image, ImageOps

    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(pixels, -1, 0)]
    fitted = [ImageOps.fit(channel, (size, size), Image.Resampling.BICUBIC) for channel in channels]
    return np.stack([np.asarray(channel) for channel in fitted], axis=-1)
