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
"""Shapes: Occupancy Networks' ShapeNet, folders of meshes, procedural furniture; and their training examples.

A row has a `name`, a `caption` (or a list of them) where there are any, and points with their occupancies:

    surface      (K, 3)   points on the surface
    points       (M, 3)   points at which occupancy is known, in and about the cube [-0.5, 0.5]³, y up
    occupancies  (M/8,)   one bit per point, eight to a byte, first point in the highest bit (`numpy.packbits`)
    num_uniform  int      so many of the points, the first, are uniform in the cube; the others lie near the surface

or, instead of these, where to get them: `folder` (of Occupancy Networks' files) or `seed` (of procedural furniture).
[`ShapeExamples`] takes all of them.
"""

from __future__ import annotations

import csv
import logging
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml

from .furniture import Furniture, load_furniture
from .mesh_sampling import sample_queries
from .solids import Solid
from .sources import CAPTION_COLUMNS, as_stream, caption_of, keep_readable, open_named, split_folder


logger = logging.getLogger(__name__)

# Queries of an example of procedural furniture that is to have all of them.
_ALL_QUERIES = 16384
_COLUMNS = ("surface", "points", "occupancies")
_ONET_SPLITS = {"train": "train.lst", "validation": "val.lst", "val": "val.lst", "test": "test.lst"}


class ShapeExamples:
    """Rows of shapes -> training examples.

        inputs  (P, 3)  points on the surface, what the encoder gets
        coords  (N, 3)  query positions (x, y, z) in and about [-0.5, 0.5]³
        targets (N, 1)  occupancy there, 0 or 1
        caption str     where the row has one; of several captions, one at random

    Points are drawn anew for every example: those of procedural furniture from the shape itself, others out of the row's,
    without repetition (with repetition only where a row has fewer). Half of the furniture's queries are uniform in the cube,
    half lie near the surface.

    Args:
        num_input_points: P.
        num_queries: N; `None` gives all of the row's points in their order, as evaluation wants them (16384 of furniture).
        point_noise: standard deviation of normal noise on `inputs`, along each axis, in lengths of the cube's side
            (0.005 in Convolutional Occupancy Networks).
        uniform_queries: only queries that are uniform in the cube, as the volumetric IoU wants them.

    Raises:
        ValueError: arguments outside these ranges; when called, a row whose files cannot be read, without points, with
            values that are not finite, or with fewer bits than points.
    """

    def __init__(
        self,
        num_input_points: int = 2048,
        num_queries: int | None = 2048,
        point_noise: float = 0.0,
        uniform_queries: bool = False,
    ):
        if num_input_points < 1 or (num_queries is not None and num_queries < 1):
            raise ValueError(
                f"num_input_points and num_queries must be at least 1, got {num_input_points} and {num_queries}"
            )
        if not 0.0 <= point_noise < 1.0:
            raise ValueError(f"point_noise must lie in [0, 1), got {point_noise}")
        self.num_input_points = num_input_points
        self.num_queries = num_queries
        self.point_noise = point_noise
        self.uniform_queries = uniform_queries

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        draw = self._draw_furniture if "seed" in row else self._draw_stored
        inputs, coords, inside = draw(row, rng)  # (P, 3), (N, 3), (N,)
        if self.point_noise:
            inputs = inputs + self.point_noise * rng.standard_normal(inputs.shape)
        example: dict[str, Any] = {
            "inputs": torch.from_numpy(inputs.astype(np.float32)),
            "coords": torch.from_numpy(coords.astype(np.float32)),
            "targets": torch.from_numpy(inside.astype(np.float32)[:, None]),
        }
        if "caption" in row:
            example["caption"] = caption_of(row, rng)
        return example

    def _draw_furniture(self, row: Mapping[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        solid = _furniture_solid(tuple(int(number) for number in row["seed"]))
        inputs, _ = solid.sample_surface(self.num_input_points, rng)
        count = self.num_queries or _ALL_QUERIES
        coords = sample_queries(inputs, count if self.uniform_queries else count - count // 2, count, rng)
        return inputs, coords, solid.contains(coords)

    def _draw_stored(self, row: Mapping[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        if "folder" in row:
            row = {**row, **read_onet_model(Path(row["folder"]))}
        surface, points = _checked_points(row, "surface"), _checked_points(row, "points")  # (K, 3), (M, 3)
        bits = np.asarray(row["occupancies"], dtype=np.uint8)
        if 8 * len(bits) < len(points):
            raise ValueError(f"shape {row.get('name')!r} has {len(points)} points but {8 * len(bits)} occupancies")
        available = int(row["num_uniform"]) if self.uniform_queries else len(points)
        inputs = surface[_choose(len(surface), self.num_input_points, rng)]
        queries = np.arange(available) if self.num_queries is None else _choose(available, self.num_queries, rng)
        return inputs, points[queries], bits[queries // 8] >> (7 - queries % 8) & 1


@lru_cache(maxsize=4096)
def _furniture_solid(seed: tuple[int, ...]) -> Solid:
    return Furniture.from_seed(seed).solid


def _checked_points(row: Mapping[str, Any], column: str) -> np.ndarray:
    points = np.asarray(row[column])
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"shape {row.get('name')!r}: {column!r} must be (points, 3), got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"shape {row.get('name')!r}: {column!r} holds values that are not finite")
    return points


def _choose(available: int, count: int, rng: np.random.Generator) -> np.ndarray:
    if available < 1:
        raise ValueError("the shape has no points of the kind that is asked for")
    return rng.choice(available, count, replace=available < count)


def load_shape_dataset(
    train_data_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    caption_column: str | None = None,
    strict: bool = False,
    dataset_config_name: str | None = None,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    captions_file: str | os.PathLike | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Rows of shapes (columns: see the module) from a folder, a data set by name, or our generator.

    Args:
        train_data_dir: folder in Occupancy Networks' layout ([`load_onet_folder`]), or of meshes
            ([`meshes.load_mesh_folder`], which prepares them once).
        dataset_name: instead of a folder: "procedural" ([`furniture.load_furniture`]), a hub id, or a local path of a
            data set that has these columns.
        split: of either source.
        streaming: an `IterableDataset`.
        caption_column: name of the captions' column; found by its usual names when `None`.
        strict: an unreadable shape raises. Otherwise it is named in a warning, skipped and counted.
        dataset_config_name: of a data set by name.
        cache_dir: where prepared meshes, or downloads, are kept.
        num_proc: processes that prepare meshes; `None`: one per processor.
        captions_file: CSV of Text2Shape for Occupancy Networks' layout; found in the folder by itself when it is there.

    Raises:
        ValueError: both or neither source, nothing readable in the folder, a data set without the columns, a
            `captions_file` for data in another layout.
        FileNotFoundError: the source or the `captions_file` does not exist.
    """
    if (train_data_dir is None) == (dataset_name is None):
        raise ValueError(
            f"give either train_data_dir or dataset_name, got train_data_dir={train_data_dir!r} and dataset_name={dataset_name!r}"
        )
    if captions_file is not None and (train_data_dir is None or not is_onet_folder(Path(train_data_dir).expanduser())):
        raise ValueError(
            f"captions_file={str(captions_file)!r} belongs to Occupancy Networks' layout, and {train_data_dir or dataset_name} "
            "has another; captions of meshes stand in a metadata.csv or metadata.jsonl beside them"
        )
    if dataset_name is not None and dataset_name != "procedural":
        arguments = {"split": split, "streaming": streaming, "config": dataset_config_name, "cache_dir": cache_dir}
        return _load_named(dataset_name, caption_column, **arguments)
    if dataset_name == "procedural":
        dataset = load_furniture(split=split)
    elif is_onet_folder(Path(train_data_dir).expanduser()):
        dataset = load_onet_folder(train_data_dir, split, captions_file, strict=strict)
    else:
        from .meshes import load_mesh_folder  # needs libigl, which nothing else here does

        folder = split_folder(train_data_dir, split)
        dataset = load_mesh_folder(folder, caption_column, strict, cache_dir=cache_dir, num_proc=num_proc)
    return as_stream(dataset) if streaming else dataset


def _load_named(
    name: str, caption_column: str | None, **arguments: Any
) -> datasets.Dataset | datasets.IterableDataset:
    dataset = open_named(name, **arguments)
    columns = dataset.column_names or list(next(iter(dataset.take(1)), {}))
    missing = [column for column in (*_COLUMNS, caption_column) if column and column not in columns]
    if missing:
        raise ValueError(
            f"data set {name!r} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}. "
            f"Shapes need {', '.join(_COLUMNS)}, as a prepared folder of meshes has them."
        )
    found = caption_column or next((column for column in CAPTION_COLUMNS if column in columns), None)
    if found not in (None, "caption"):
        dataset = dataset.rename_column(found, "caption")
    return dataset.with_format("numpy")


# --------------------------------------------------------------------------------------------- Occupancy Networks' layout


def is_onet_folder(folder: Path) -> bool:
    """Whether `folder` holds `<class>/<id>/points.npz` or `<id>/points.npz`."""
    return any(next(folder.glob(pattern), None) is not None for pattern in ("*/*/points.npz", "*/points.npz"))


def load_onet_folder(
    folder: str | os.PathLike,
    split: str = "train",
    captions_file: str | os.PathLike | None = None,
    strict: bool = False,
) -> datasets.Dataset:
    """Rows of the ShapeNet that Occupancy Networks preprocessed: `name`, `folder`, and `caption` where there are any.

    The layout is `<class>/<id>/points.npz` (`points`, `occupancies`, packed to bits or not) and `pointcloud.npz`
    (`points`), with `<class>/train.lst`, `val.lst` and `test.lst` of ids, and names of the classes in `metadata.yaml`; or
    that of one class alone. A class without any list is all one split. All query points there are uniform (in the cube
    [-0.55, 0.55]³).

    Where the folder of one class is given, and the `metadata.yaml` beside it names that class, it and the captions beside
    it are read as if the whole were given.

    Captions are those of Text2Shape (a CSV with columns `modelId` and `description`; all of a shape's captions are kept, as a
    list) where there is such a file, and names of classes for shapes without; none without either.

    Args:
        split: "train", "validation" or "test".
        captions_file: `None` takes a `captions*.csv` in `folder` if there is one.
        strict: a shape that lacks a file raises; otherwise it is named in a warning, skipped and counted. Damage within
            a file shows only when it is read for an example (`ValueError`).

    Raises:
        FileNotFoundError: no such folder or `captions_file`, or a class has lists but none for `split`.
        ValueError: an unknown split, no usable shape, a caption file without the columns.
    """
    folder = Path(folder).expanduser().absolute()
    if split not in _ONET_SPLITS:
        raise ValueError(f"split must be one of {', '.join(_ONET_SPLITS)}, got {split!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; expected <class>/<id>/points.npz in it")
    single = next(folder.glob("*/points.npz"), None) is not None
    classes = (
        [folder] if single else sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    )
    models = [model for path in classes for model in _models_of(path, _ONET_SPLITS[split])]
    models = keep_readable(models, _check_files, strict, "shape")

    root = _root_of_class(folder) if single else folder
    if captions_file is None:
        captions_file = next((file for place in (folder, root) for file in sorted(place.glob("captions*.csv"))), None)
    captions = _read_text2shape(captions_file)
    names = _read_class_names(root)
    columns: dict[str, list] = {"name": [f"{model.parent.name}/{model.name}" for model in models]}
    columns["folder"] = [str(model) for model in models]
    if captions or names:
        columns["caption"] = [captions.get(m.name) or names.get(m.parent.name, []) for m in models]
    return datasets.Dataset.from_dict(columns)


def _models_of(folder: Path, list_name: str) -> list[Path]:
    lists = {path.name for path in folder.glob("*.lst")}
    if not lists:
        return sorted(path.parent for path in folder.glob("*/points.npz"))
    if list_name not in lists:
        raise FileNotFoundError(f"{folder} has no {list_name}; it has {', '.join(sorted(lists))}")
    return [folder / line.strip() for line in (folder / list_name).read_text().splitlines() if line.strip()]


def _check_files(model: Path) -> None:
    missing = [name for name in ("points.npz", "pointcloud.npz") if not (model / name).is_file()]
    if missing:
        raise ValueError(f"{model}: no {' and no '.join(missing)}")


def read_onet_model(folder: Path) -> dict[str, Any]:
    """The columns `surface`, `points`, `occupancies` and `num_uniform` of one shape in Occupancy Networks' layout.

    Raises:
        ValueError: a file that is missing, damaged or lacks an array; the message names it.
    """
    queries = _read_arrays(folder / "points.npz", ("points", "occupancies"))
    points, occupancies = queries["points"], queries["occupancies"]
    if occupancies.shape == points.shape[:1]:
        occupancies = np.packbits(occupancies > 0)
    surface = _read_arrays(folder / "pointcloud.npz", ("points",))["points"]
    return {"surface": surface, "points": points, "occupancies": occupancies, "num_uniform": len(points)}


def _read_arrays(file: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays]
            if missing:
                raise ValueError(f"no array {', '.join(missing)}; it has {', '.join(arrays)}")
            return {name: arrays[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error


def _root_of_class(folder: Path) -> Path:
    """The folder of all classes, where it tells the name of this one and `folder` has no `metadata.yaml`; else `folder`."""
    if (folder / "metadata.yaml").is_file():
        return folder
    try:
        named = _read_class_names(folder.parent)
    except (ValueError, OSError, yaml.YAMLError):  # of something else
        return folder
    return folder.parent if folder.name in named else folder


def _read_text2shape(file: str | os.PathLike | None) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = defaultdict(list)
    if file is None:
        return captions
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}; expected Text2Shape's captions as CSV")
    with open(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        missing = {"modelId", "description"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; it has {rows.fieldnames}")
        for row in rows:
            if row["description"]:
                captions[row["modelId"]].append(row["description"])
    return captions


def _read_class_names(folder: Path) -> dict[str, list[str]]:
    """The first of each class's names, by the class's folder."""
    file = folder / "metadata.yaml"
    if not file.is_file():
        return {}
    entries = yaml.safe_load(file.read_text()) or {}
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{file}: expected a mapping of classes to their 'id' and 'name'")
    return {str(key): [str(entry["name"]).split(",")[0]] for key, entry in entries.items() if entry.get("name")}
