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
"""Sheets of pictures with captions, and files of pictures and animations."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import replacing


def contact_sheet(
    images: Sequence[np.ndarray | Image.Image],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    padding: int = 8,
) -> np.ndarray:
    """One `(height, width, 3)` uint8 picture of many, row by row, with an optional caption under each.

    Args:
        images: uint8 `(height, width, 3)` arrays or PIL images; smaller ones are centred in the cell of the largest.
        columns: pictures in a row; about as many as rows when not given.
        captions: one per image, wrapped to the width of a cell.
    """
    if not images:
        raise ValueError("`images` is empty: a contact sheet needs at least one picture.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"Got {len(captions)} captions for {len(images)} images: give one per image.")
    if columns is not None and columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    pictures = [_as_picture(image) for image in images]
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    cell_width, cell_height = (max(sizes) for sizes in zip(*(picture.size for picture in pictures)))
    font = ImageFont.load_default(max(10, cell_width // 16))
    texts = [_wrap(caption, font, cell_width) for caption in captions] if captions is not None else []
    line_height = sum(font.getmetrics()) + 2
    text_height = line_height * max((len(lines) for lines in texts), default=0)

    rows = math.ceil(len(pictures) / columns)
    step_x, step_y = cell_width + padding, cell_height + text_height + padding
    sheet = Image.new("RGB", (padding + columns * step_x, padding + rows * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        left, top = padding + index % columns * step_x, padding + index // columns * step_y
        offset = ((cell_width - picture.width) // 2, (cell_height - picture.height) // 2)
        sheet.paste(picture.convert("RGB"), (left + offset[0], top + offset[1]))
        for line, text in enumerate(texts[index] if texts else []):
            middle = left + cell_width / 2
            draw.text((middle, top + cell_height + line * line_height), text, "#333333", font, anchor="ma")
    return np.asarray(sheet)


def save_image(image: np.ndarray | Image.Image, path: str | os.PathLike) -> None:
    """Writes a picture in the format of the file's suffix (PNG, JPEG, WebP, ...), whole or not at all."""
    _save_atomically(_as_picture(image), path, Image.registered_extensions())


def save_gif(frames: Sequence[np.ndarray | Image.Image], path: str | os.PathLike, fps: float = 12.0) -> None:
    """Writes an endless GIF (or animated WebP or PNG), whole or not at all.

    Args:
        frames: at least one picture, all of one size, uint8 `(height, width, 3)` or PIL.
        fps: frames per second.
    """
    if not len(frames):
        raise ValueError("`frames` is empty: an animation needs at least one picture.")
    if fps <= 0:
        raise ValueError(f"`fps` must be positive, got {fps}.")
    pictures = [_as_picture(frame) for frame in frames]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"All frames of an animation need one size, got {sorted(sizes)}.")
    options = {"save_all": True, "append_images": pictures[1:], "duration": 1000 / fps, "loop": 0}
    _save_atomically(pictures[0], path, {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}, **options)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks `text` between words into lines at most `width` pixels long (a longer word keeps a line of its own)."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _as_picture(image: np.ndarray | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"A picture must be a PIL image or a uint8 array (height, width, 3), got {got}.")
    return Image.fromarray(image)


def _save_atomically(picture: Image.Image, path: str | os.PathLike, formats: dict[str, str], **options) -> None:
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise ValueError(f"Cannot write {path.name!r}: the suffix must be one of {sorted(formats)}.")
    with replacing(path) as temporary:
        picture.save(temporary, format=formats[path.suffix.lower()], **options)
