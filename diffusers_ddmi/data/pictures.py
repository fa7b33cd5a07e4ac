# Copyright 2026 The diffusers_ddmi Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Decoding and resizing of single pictures, for pictures and for the frames of clips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps


IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture as 8-bit RGB, upright.

    The EXIF orientation is applied, transparency (also of palettes) is laid over white, 16-bit greys are scaled so that
    65535 becomes 255, and floating-point greys must lie in [0, 1]. CMYK, YCbCr, Lab and palettes are converted by Pillow.

    Raises:
        ValueError: grey values outside the range of their mode, so that white is unknown.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        white = 1.0 if image.mode == "F" else 65535.0
        low, high = float(values.min()), float(values.max())
        if not (low >= 0.0 and high <= white):
            raise ValueError(
                f"a picture of mode {image.mode!r} must hold values in [0, {white:g}], got [{low:g}, {high:g}]; "
                "save it as 8- or 16-bit"
            )
        return Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def decode_picture(picture: Any) -> Image.Image:
    """A row's picture as 8-bit RGB.

    Args:
        picture: `{"bytes": encoded file or None, "path": path or None}` as `datasets` keeps it, a path, or a Pillow image.

    Raises:
        ValueError: it cannot be read; the message names the file and the cause.
    """
    if isinstance(picture, str | os.PathLike):
        picture = {"bytes": None, "path": os.fspath(picture)}
    if not isinstance(picture, Image.Image | dict):
        raise TypeError(
            f"a picture must be a path, a Pillow image or a dict of 'bytes' and 'path', got {type(picture).__name__}"
        )
    try:
        # `datasets` knows how to open remote paths too; images that are decoded already pass through.
        return to_rgb(datasets.Image().decode_example(picture))
    except (OSError, ValueError, SyntaxError, EOFError, AttributeError, Image.DecompressionBombError) as error:
        # Pillow's decoders fail with all of these on damaged files.
        path = picture.get("path") if isinstance(picture, dict) else None
        raise ValueError(f"unreadable picture {path or '(no file name)'}: {error}") from error


def check_header(file: Path) -> None:
    """Raises `ValueError`, naming the file, unless `file` begins like a picture; the pixels are not decoded."""
    try:
        with Image.open(file):
            pass
    except (OSError, Image.DecompressionBombError) as error:
        cause = "the file is empty" if file.stat().st_size == 0 else error
        raise ValueError(f"unreadable picture {file}: {cause}") from error


def largest_square(size: tuple[int, int], rng: np.random.Generator | None = None) -> tuple[int, int, int, int]:
    """The central, or with `rng` a random, largest square (left, top, right, bottom) of a picture of `size` (width, height)."""
    side = min(size)
    free = np.array(size) - side
    left, top = free // 2 if rng is None else rng.integers(0, free + 1)
    return int(left), int(top), int(left) + side, int(top) + side


def resize_square(picture: Image.Image, square: tuple[float, float, float, float], side: int) -> np.ndarray:
    """The part `square` = (left, top, right, bottom) of an RGB picture at `side`² pixels: float32 (side, side, 3) in [-1, 1].

    The filter reaches beyond the square where the picture goes on, so a part comes out as it is in the resized whole.
    """
    resized = picture.resize((side, side), Image.Resampling.BICUBIC, box=square)
    return np.asarray(resized, dtype=np.float32) / 127.5 - 1.0
