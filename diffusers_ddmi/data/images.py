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
"""Pictures: folders, `datasets` by name, handwritten digits and procedural scenes, and the multi-scale training examples.

Rows hold the encoded file, `{"image": {"bytes": …, "path": …}}`, or the `seed` of a procedural scene; "caption" is there
only where the data have any. Decoding happens in [`ImageExamples`], so that a damaged file costs one example and never a run.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

from .coloured_shapes import ColouredShapesScene, scene_seeds
from .pictures import IMAGE_SUFFIXES, check_header, decode_picture, largest_square, resize_square
from .sources import (
    as_stream,
    caption_feature,
    caption_of,
    keep_readable,
    list_files,
    load_named,
    read_captions,
    split_folder,
)


DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class ImageExamples:
    """Rows of pictures -> training examples with targets at several scales (DDMI, multi-scale training on crops).

    The whole picture is its largest square (central, or at random), enlarged or reduced to s·R pixels a side for one
    scale s out of `scales`. The example is

        inputs  (3, R, R)  the whole picture at `resolution` R, in [-1, 1]
        targets (N, 3)     RGB in [-1, 1] of an R×R window of the picture at s·R pixels; of all of it where s = 1
        coords  (N, 2)     the window's pixel centres (x, y) in the whole picture's [-1, 1]², row-major
        scale   ()         1/s, exactly R / round(s·R): the read-out's scale input
        caption str        where the row has one; of several captions, one at random

    No detail is invented: a scale above 1 is drawn only for pictures whose shorter side has at least s·R pixels; the
    probabilities of the others are normalised. Pictures smaller than R itself are enlarged to R (scale 1), since the
    encoder needs that size. All resizing is bicubic with the filter widened when reducing, so nothing aliases.

    Args:
        resolution: side R in pixels of `inputs` and of the target window.
        scales: factors s ≥ 1; must hold 1.
        probabilities: of each scale; sum 1. The defaults are the official ones.
        num_coords: random subset of so many coordinates (N), without repetition; `None` keeps the whole window,
            N = R², in row-major order, which losses on pictures (perceptual, adversarial) need.
        random_flip: mirror half of the pictures.
        center_crop: the central square of the picture instead of one at random.

    Raises:
        ValueError: arguments outside these ranges; when called, a picture that cannot be read.
    """

    def __init__(
        self,
        resolution: int,
        scales: Sequence[float] = (1.0, 1.5, 2.0),
        probabilities: Sequence[float] | None = None,
        num_coords: int | None = None,
        random_flip: bool = False,
        center_crop: bool = True,
    ):
        if probabilities is None:
            probabilities = (
                (0.3, 0.3, 0.4) if tuple(scales) == (1.0, 1.5, 2.0) else [1 / max(len(scales), 1)] * len(scales)
            )
        _check_example_arguments(resolution, scales, probabilities, num_coords)
        self.resolution = resolution
        self.sides = np.array([round(scale * resolution) for scale in scales])
        self.probabilities = np.array(probabilities, dtype=np.float64)
        self.num_coords = num_coords
        self.random_flip = random_flip
        self.center_crop = center_crop

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        picture = self._picture(row)
        if self.random_flip and rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        square = largest_square(picture.size, None if self.center_crop else rng)
        side = self._draw_side(min(picture.size), rng)

        size = self.resolution
        inputs = resize_square(picture, square, size)  # (R, R, 3)
        corner = rng.integers(0, side - size + 1, 2)  # of the window among the sR × sR pixels: left, top
        targets = inputs if side == size else self._window(picture, square, side, corner)  # (R, R, 3)
        centres = (2.0 * np.arange(side) + 1.0) / side - 1.0
        x, y = np.meshgrid(*(centres[first : first + size] for first in corner))
        coords, targets = np.stack([x, y], axis=-1).reshape(-1, 2), targets.reshape(-1, 3)
        if self.num_coords is not None:
            chosen = rng.choice(size * size, self.num_coords, replace=False)
            coords, targets = coords[chosen], targets[chosen]

        example = {
            "inputs": torch.from_numpy(np.ascontiguousarray(inputs.transpose(2, 0, 1))),
            "coords": torch.from_numpy(coords.astype(np.float32)),
            "targets": torch.from_numpy(np.ascontiguousarray(targets)),
            "scale": torch.tensor(size / side, dtype=torch.float32),
        }
        if "caption" in row:
            example["caption"] = caption_of(row, rng)
        return example

    def _picture(self, row: dict[str, Any]) -> Image.Image:
        if row.get("seed") is None:
            return decode_picture(row["image"])
        side = int(self.sides.max())
        values = ColouredShapesScene.from_seed(row["seed"]).draw(side, side)
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))

    def _window(self, picture: Image.Image, square: tuple[int, ...], side: int, corner: np.ndarray) -> np.ndarray:
        pixel = (square[2] - square[0]) / side
        left, top = np.array(square[:2]) + corner * pixel
        window = (left, top, left + self.resolution * pixel, top + self.resolution * pixel)
        return resize_square(picture, window, self.resolution)

    def _draw_side(self, available: int, rng: np.random.Generator) -> int:
        supported = (self.sides <= available) | (self.sides == self.resolution)
        probabilities = self.probabilities * supported
        if probabilities.sum() == 0.0:
            return self.resolution
        return int(rng.choice(self.sides, p=probabilities / probabilities.sum()))


def load_image_dataset(
    train_data_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    strict: bool = False,
    dataset_config_name: str | None = None,
    cache_dir: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Rows `{"image": {"bytes", "path"}, "caption": str}` of pictures; "caption" only where the data have any.

    Args:
        train_data_dir: folder of pictures, subfolders included, in any mixture of sizes, modes and formats
            ([`IMAGE_SUFFIXES`]). Captions are read from `metadata.csv` or `metadata.jsonl` beside the pictures
            (columns `file_name` and `caption_column`). Subfolders that are all named as splits are taken as splits.
        dataset_name: instead of a folder: "digits", "procedural", a hub id, or a local path that `datasets` loads.
        split: of either source; a folder without split subfolders is all one split.
        streaming: an `IterableDataset`.
        image_column, caption_column: column names, found by type and by usual names when `None`.
        strict: an unreadable file raises. Otherwise it is named in a warning, skipped and counted.
        dataset_config_name, cache_dir: passed on to `datasets.load_dataset`.

    Files whose header cannot be read are found here; damage further inside a file shows only when it is decoded
    (`ImageExamples` raises `ValueError`, which the data set classes of `data.base` treat as a bad item).

    Raises:
        ValueError: both or neither source, a folder without one readable picture, with `strict` an unreadable file.
        FileNotFoundError: the source does not exist.
    """
    if (train_data_dir is None) == (dataset_name is None):
        raise ValueError(
            f"give either train_data_dir or dataset_name, got train_data_dir={train_data_dir!r} and dataset_name={dataset_name!r}"
        )
    if train_data_dir is not None:
        dataset = _load_folder(split_folder(train_data_dir, split), caption_column, strict)
    elif dataset_name == "digits":
        dataset = load_digits(split)
    elif dataset_name == "procedural":
        dataset = load_procedural_images(split)
    else:
        return load_named(
            dataset_name,
            image_column,
            datasets.Image,
            caption_column,
            split=split,
            streaming=streaming,
            config=dataset_config_name,
            cache_dir=cache_dir,
        )
    return as_stream(dataset) if streaming else dataset


def load_digits(split: str = "train", size: int = 64) -> datasets.Dataset:
    """Handwritten digits, white on black, with captions such as "a handwritten seven"; nothing is downloaded.

    The 1797 scans that scikit-learn carries (UCI "Optical Recognition of Handwritten Digits"): "train" is the first
    1500, "test" the others. Each of a scan's 8×8 numbers counts the inked pixels in a 4×4 block of a 32×32 bitmap;
    the picture shows the ink's outline at `size`² pixels: an empty block around the scan, Lanczos interpolation, and a
    soft threshold about half ink.

    Raises:
        ValueError: an unknown split or a size below 10.
    """
    from sklearn.datasets import load_digits as load_scans

    if size < 10:
        raise ValueError(f"size must be at least 10 (8 blocks and a margin), got {size}")
    scans = load_scans()
    rows = {"train": slice(0, 1500), "test": slice(1500, None)}
    if split not in rows:
        raise ValueError(f"the digits have splits 'train' and 'test', got {split!r}")
    images, digits = scans.images[rows[split]] / 16.0, scans.target[rows[split]]
    pictures = []
    for scan in np.pad(images, ((0, 0), (1, 1), (1, 1))).astype(np.float32):
        ink = np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.LANCZOS))
        edge = np.clip((ink - 0.2) / 0.6, 0.0, 1.0)
        pictures.append(_encode_png(edge * edge * (3.0 - 2.0 * edge)))
    return _rows(pictures, [f"a handwritten {DIGIT_WORDS[digit]}" for digit in digits])


def load_procedural_images(split: str = "train", num_images: int = 2048, seed: int = 0) -> datasets.Dataset:
    """Rows `{"seed", "caption"}` of coloured shapes before clouds, with captions such as "a red disc and a blue cross".

    [`ImageExamples`] draws them at the size that it needs, so all its scales are there at any resolution.

    Args:
        split: "train" or "test"; their pictures differ.
        num_images: how many; picture i is the same whatever the number.
        seed: another seed gives other pictures.

    Raises:
        ValueError: an unknown split or a number below 1.
    """
    seeds = scene_seeds(split, num_images, seed)
    captions = [ColouredShapesScene.from_seed(item).picture_caption for item in seeds]
    return datasets.Dataset.from_dict({"seed": seeds, "caption": captions})


def _load_folder(folder: Path, caption_column: str | None, strict: bool) -> datasets.Dataset:
    files = list_files(folder, IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"no pictures in {folder}; expected files with one of {', '.join(sorted(IMAGE_SUFFIXES))}")
    files = keep_readable(files, check_header, strict, "picture")
    pictures = [{"bytes": None, "path": str(file)} for file in files]
    return _rows(pictures, read_captions(folder, files, caption_column))


def _rows(pictures: list[dict[str, Any]], captions: list[str] | list[list[str]] | None) -> datasets.Dataset:
    columns: dict[str, Any] = {"image": pictures}
    features: dict[str, Any] = {"image": datasets.Image(decode=False)}
    if captions is not None:
        columns["caption"], features["caption"] = captions, caption_feature(captions)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _encode_png(values: np.ndarray) -> dict[str, Any]:
    data = io.BytesIO()
    Image.fromarray(np.rint(values * 255.0).astype(np.uint8)).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def _check_example_arguments(
    resolution: int, scales: Sequence[float], probabilities: Sequence[float], num_coords: int | None
) -> None:
    if not isinstance(resolution, int | np.integer) or resolution < 1:
        raise ValueError(f"resolution must be a positive whole number of pixels, got {resolution!r}")
    if 1 not in scales or min(scales) < 1:
        raise ValueError(f"scales must hold 1 and none below 1, got {tuple(scales)}")
    if len(probabilities) != len(scales):
        raise ValueError(f"scales and probabilities must be as many, got {len(scales)} and {len(probabilities)}")
    if min(probabilities) < 0 or abs(sum(probabilities) - 1.0) > 1e-6:
        raise ValueError(f"probabilities must be at least 0 with sum 1, got {tuple(probabilities)}")
    if num_coords is not None and not 1 <= num_coords <= resolution**2:
        raise ValueError(
            f"num_coords must lie in [1, {resolution**2}], the pixels of a window at resolution {resolution}, got {num_coords}"
        )
