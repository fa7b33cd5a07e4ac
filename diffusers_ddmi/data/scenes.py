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
"""
Scenes: coloured surface points (what the encoder eats) and rays with their colours (what the field is trained on).

Rows name a scene, by file or by seed, or hold it; decoding happens in [`SceneExamples`], so that a damaged file costs one
example and never a run, and goes no further than the views that an example is made of. [`open_row`] gives a
row's cameras and, as far as they are asked for, pictures, for evaluation.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..rendering.cameras import Cameras, focal_from_fov
from .field_of_view import estimate_fov_y
from .procedural_scenes import ProceduralScene, random_cameras
from .scene_files import POINT_CLOUD_NAMES, Pictures, SceneFile, check_points, decode_pictures, open_scene
from .sources import as_stream, caption_of, keep_readable, list_files, open_named, read_captions, split_folder


logger = logging.getLogger(__name__)

# Scenes that the field of view is estimated from.
_SCENES_FOR_FOV = 16
# Blank margin around the points, in their radius, between `near` and `far`.
_MARGIN = 0.05
_COLUMNS = ("images", "poses", "points", "near", "far")
# Views that the rays of one example come from, where each picture has to be decoded for itself.
_DECODED_VIEWS = 8


@dataclass(frozen=True)
class Scene:
    """
    A scene as it was captured.

    Attributes:
        points: `(points, 6)` float32, surface points: xyz in world units and rgb in [0, 1].
        cameras: the views, with `near` and `far` as distances along their rays.
        images: `(V, H, W, 3)` uint8; transparent pictures are laid over white.
        opacity: `(V, H, W)` uint8 from 0 to 255, or None where it is not known.
    """

    points: np.ndarray
    cameras: Cameras
    images: np.ndarray
    opacity: np.ndarray | None


@dataclass(frozen=True)
class OpenScene:
    """
    A scene whose pictures are decoded when they are asked for.

    Attributes:
        points, cameras: as in [`Scene`].
        read_pictures: numbers of views, or None for all -> their pictures and opacity, see `scene_files.SceneFile`.
        separate: whether each picture is decoded for itself.
    """

    points: np.ndarray
    cameras: Cameras
    read_pictures: Callable[[np.ndarray | None], Pictures]
    separate: bool

    def read(self, views: np.ndarray | None = None) -> Scene:
        """
        The scene with the pictures of the views with these numbers alone, in their order; by default with all.

        Raises:
            ValueError: a picture is damaged, or of another size than the others; the message names the file.
        """
        images, opacity = self.read_pictures(views)
        size, expected = images.shape[1:3], (self.cameras.height, self.cameras.width)
        if size != expected:
            raise ValueError(f"the pictures of a scene differ in size (height, width): {size} and {expected}")
        cameras = self.cameras if views is None else self.cameras[torch.from_numpy(views)]
        return Scene(self.points, cameras, images, opacity)


class SceneExamples:
    """
    Rows of [`load_scene_dataset`] -> training examples: a point cloud, and rays drawn evenly from all pixels of all views.

    Where each picture has to be decoded for itself, the rays of one example are those of 8 views, drawn anew for every
    example.

    The example is

        inputs     (P, 6)  points: xyz in world units, rgb in [0, 1]
        origins    (R, 3)  of the rays, world units
        directions (R, 3)  unit vectors
        targets    (R, 3)  colours in [0, 1] that the rays see, before white
        opacity    (R, 1)  in [0, 1], NaN where the pictures do not tell
        near, far  ()      distances along the rays between which the scene lies
        view_size  (2,)    height and width, where the rays are those of a whole view
        caption    str     where the data have any

    Args:
        num_points: P, drawn without repetition as far as there are enough.
        num_rays: R. `None` takes all pixels of one view, R = H·W, row-major, as whole pictures are compared; 0 makes
            examples without rays, whose pictures are not decoded (for training on latents).
        views: the views that rays are drawn from, e.g. `slice(0, -4)` to keep four for evaluation; all by default.

    Raises:
        ValueError: for a negative count; when called, a scene that cannot be used.
    """

    def __init__(self, num_points: int = 2048, num_rays: int | None = 1024, views: slice | None = None):
        if num_points < 1 or (num_rays is not None and num_rays < 0):
            raise ValueError(f"num_points must be positive and num_rays not negative, got {num_points} and {num_rays}")
        self.num_points = num_points
        self.num_rays = num_rays
        self.views = slice(None) if views is None else views

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        scene = None if self.num_rays == 0 else open_row(row)
        points = read_points(row) if scene is None else scene.points
        chosen = rng.permutation(len(points))[: self.num_points]
        if len(chosen) < self.num_points:
            chosen = np.concatenate([chosen, rng.integers(0, len(points), self.num_points - len(chosen))])
        example: dict[str, Any] = {"inputs": torch.from_numpy(points[chosen])}
        if scene is not None:
            example |= self._rays(scene, rng)
        if "caption" in row:
            example["caption"] = caption_of(row, rng)
        return example

    def _rays(self, scene: OpenScene, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        cameras = scene.cameras
        views = np.arange(len(cameras))[self.views]
        if len(views) == 0:
            raise ValueError(f"a scene of {len(cameras)} views has none in {self.views}")
        if self.num_rays is None:
            row, column = np.indices((cameras.height, cameras.width)).reshape(2, -1)
            view = np.full_like(row, rng.choice(views))
            size = {"view_size": torch.tensor([cameras.height, cameras.width])}
        else:
            size = {}
            if scene.separate and len(views) > _DECODED_VIEWS:
                views = rng.choice(views, _DECODED_VIEWS, replace=False)
            row, column = (rng.integers(0, side, self.num_rays) for side in (cameras.height, cameras.width))
            view = rng.choice(views, self.num_rays)
        pixels = torch.from_numpy(np.stack([column, row], axis=1)) + cameras.pixel_offset
        origins, directions = cameras.rays_through(torch.from_numpy(view), pixels)
        decoded, place = np.unique(view, return_inverse=True)
        shown = scene.read(decoded)
        rays = {
            "origins": origins,
            "directions": directions,
            "targets": torch.from_numpy(shown.images[place, row, column].astype(np.float32) / 255.0),
            "near": torch.tensor(cameras.near),
            "far": torch.tensor(cameras.far),
        }
        opacity = np.full((len(view), 1), np.nan, dtype=np.float32)
        if shown.opacity is not None:
            opacity[:, 0] = shown.opacity[place, row, column] / 255.0
        return {**rays, **size, "opacity": torch.from_numpy(opacity)}


def open_row(row: dict[str, Any]) -> OpenScene:
    """
    Points and cameras of a row of [`load_scene_dataset`], and what decodes its pictures.

    Raises:
        ValueError: the scene cannot be read or is inconsistent; the message names it.
    """
    if "seed" in row:
        scene = _draw_scene(tuple(row["seed"]), row["num_views"], row["size"])
        return OpenScene(scene.points, scene.cameras, partial(_drawn_pictures, scene), separate=False)
    if "path" not in row:
        return _open_row_of_pictures(row)
    file = _open_fitted(row)
    focal = file.focal if file.focal is not None else focal_from_fov(row["fov_y"], file.height)
    cameras = Cameras(
        torch.from_numpy(file.poses),
        torch.as_tensor(focal, dtype=torch.float32),
        file.height,
        file.width,
        row["near"],
        row["far"],
        principal_point=torch.from_numpy(file.principal_point),
    )
    return OpenScene(file.points, cameras, file.read_pictures, file.separate)


def read_points(row: dict[str, Any]) -> np.ndarray:
    """The points `(points, 6)` alone of a row of [`load_scene_dataset`]; no picture is decoded."""
    if "seed" in row:
        return _draw_points(tuple(row["seed"]))
    if "path" not in row:
        return check_points(row["points"])
    return _open_fitted(row).points


def load_scene_dataset(
    train_data_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    caption_column: str | None = None,
    strict: bool = False,
    dataset_config_name: str | None = None,
    cache_dir: str | None = None,
    *,
    fov_y: float | None = None,
    near: float | None = None,
    far: float | None = None,
    longest_side: float | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Rows of scenes for [`SceneExamples`] and [`open_row`], with a "caption" where the data have any.

    Args:
        train_data_dir: folder with, at any depth, scenes in either layout. (a) `npz` files with `images`
            (V, H, W, 3 or 4), `cam_poses` (V, 4, 4; camera to world, OpenGL axes), `data` (points, 6: xyz, rgb) and
            optionally `focal` in pixels, as points2nerf has them. (b) Folders with a `transforms.json` (or
            `transforms_train.json` …) of Blender, instant-ngp or nerfstudio, pictures of one size, and a coloured point
            cloud: the file that `ply_file_path` names, or one of `points.ply`, `pointcloud.ply`, `points3D.ply`,
            `pointcloud.npz`, `points.npz` beside it. Captions are read from `metadata.csv` or `metadata.jsonl` (columns
            `file_name`, a scene's file or folder, and `caption_column`); those of files in a folder `sampled` may stand
            beside it. Subfolders that are all named as splits are
            taken as splits.
        dataset_name: instead of a folder: "procedural", a hub id, or a local path that `datasets` loads, with columns
            `images` (a list of pictures), `poses`, `points`, `focal` (pixels) or `fov_y` (radians), `near`, `far`.
        split: of either source; a folder without split subfolders is all one split.
        streaming: an `IterableDataset`.
        caption_column: `None` takes the usual names.
        strict: an unusable scene raises. Otherwise it is named in a warning, skipped and counted.
        dataset_config_name, cache_dir: passed on to `datasets.load_dataset`.
        fov_y: vertical field of view in radians, for files that do not tell it. If it is not given it is estimated from
            how far the objects reach in pictures on white, to 1 or 2 %, with a warning.
        near, far: distances along the rays, in world units, between which all scenes lie. By default what holds
            the points of all scenes, seen from all cameras.
        longest_side: moves and scales every scene so that the box around its points is centred at the origin and has
            this longest side, e.g. 0.9 for models on the unit cube. By default world units stay as they are.

    Pictures are only looked at here as far as their size; damage further inside shows when they are decoded
    (`SceneExamples` raises `ValueError`, which the data set classes of `data.base` treat as a bad row).

    Raises:
        ValueError: both or neither source, a folder without one usable scene, with `strict` an unusable scene, a field of
            view that is neither given nor to be estimated, arguments out of range.
        FileNotFoundError: the source does not exist.
    """
    if (train_data_dir is None) == (dataset_name is None):
        raise ValueError(
            f"give either train_data_dir or dataset_name, got train_data_dir={train_data_dir!r} and dataset_name={dataset_name!r}"
        )
    if train_data_dir is not None:
        dataset = _load_folder(Path(train_data_dir), split, caption_column, strict, fov_y, near, far, longest_side)
        return as_stream(dataset) if streaming else dataset
    given = {"fov_y": fov_y, "near": near, "far": far, "longest_side": longest_side}
    if any(value is not None for value in given.values()):
        raise ValueError(f"{', '.join(given)} describe a folder; data set {dataset_name!r} holds its own")
    if dataset_name == "procedural":
        dataset = load_procedural_scenes(split)
        return as_stream(dataset) if streaming else dataset
    return _load_named(dataset_name, caption_column, split, streaming, dataset_config_name, cache_dir)


def load_procedural_scenes(
    split: str = "train", num_scenes: int = 1024, num_views: int = 16, size: int = 64, seed: int = 0
) -> datasets.Dataset:
    """
    Rows `{"seed", "num_views", "size", "caption"}` of coloured furniture and vehicles, seen by random cameras.

    The caption tells kind and colours, e.g. "a red car with a brown roof". Scenes lie in [-0.5, 0.5]³, y up. They are
    drawn by [`SceneExamples`]; `ProceduralScene.from_seed(row["seed"])` is the same scene as an exact radiance field.

    Args:
        split: "train" or "test"; their scenes differ.
        num_scenes: how many; scene i is the same whatever the number.
        num_views, size: pictures of each scene, and their side in pixels.
        seed: another seed gives other scenes.

    Raises:
        ValueError: an unknown split or a number below 1.
    """
    if split not in ("train", "test"):
        raise ValueError(f"the procedural scenes have splits 'train' and 'test', got {split!r}")
    if min(num_scenes, num_views, size) < 1:
        raise ValueError(
            f"num_scenes, num_views and size must be at least 1, got {num_scenes}, {num_views} and {size}"
        )
    seeds = [[seed, int(split == "test"), i] for i in range(num_scenes)]
    return datasets.Dataset.from_dict(
        {
            "seed": seeds,
            "num_views": [num_views] * num_scenes,
            "size": [size] * num_scenes,
            "caption": [ProceduralScene.from_seed(item).caption for item in seeds],
        }
    )


def _load_folder(
    folder: Path,
    split: str,
    caption_column: str | None,
    strict: bool,
    fov_y: float | None,
    near: float | None,
    far: float | None,
    longest_side: float | None,
) -> datasets.Dataset:
    if fov_y is not None:
        focal_from_fov(fov_y, 1)  # raises if it is out of range
    if longest_side is not None and not longest_side > 0:
        raise ValueError(f"longest_side must be positive, got {longest_side}")
    if not list(folder.glob("transforms*.json")):  # Blender names folders of pictures like splits
        folder = split_folder(folder, split)
    paths = _find_scenes(folder, split)
    if not paths:
        raise ValueError(f"no scenes in {folder}; expected npz files or folders with a transforms.json")
    bounds: dict[Path, tuple[float, float]] = {}
    unknown: list[SceneFile] = []

    def check(path: Path) -> None:
        scene = open_scene(path)
        if scene.focal is None and fov_y is None and len(unknown) < _SCENES_FOR_FOV:
            unknown.append(scene)
        bounds[path] = _distances(scene if longest_side is None else scene.fitted(longest_side))

    paths = keep_readable(paths, check, strict, "scene")
    nearest, farthest = min(bounds[path][0] for path in paths), max(bounds[path][1] for path in paths)
    near, far = (nearest if near is None else near), (farthest if far is None else far)
    if not 0 <= near < far:
        raise ValueError(f"near and far must satisfy 0 <= near < far, got near={near} and far={far}")
    if unknown:
        fov_y = estimate_fov_y(unknown)
        logger.warning(
            "the scenes of %s do not tell their field of view; estimated %.1f degrees (fov_y=%.4f) from the objects' "
            "outlines: give fov_y if you know it",
            folder,
            math.degrees(fov_y),
            fov_y,
        )
    columns: dict[str, list[Any]] = {"path": [str(path) for path in paths]}
    for name, value in (("fov_y", fov_y), ("near", near), ("far", far), ("longest_side", longest_side)):
        columns[name] = [None if value is None else float(value)] * len(paths)
    captions = read_captions(folder, [_name_in_metadata(path) for path in paths], caption_column)
    if captions is not None:
        columns["caption"] = captions
    return datasets.Dataset.from_dict(columns)


def _find_scenes(folder: Path, split: str) -> list[Path]:
    """`npz` scenes, and one transforms file (the split's, where there are several) of each folder that has any."""
    transforms: dict[Path, dict[str, Path]] = {}
    for path in list_files(folder, {".json"}):
        if path.stem.startswith("transforms"):
            transforms.setdefault(path.parent, {})[path.stem] = path
    names = (f"transforms_{split}", "transforms") + (("transforms_val",) if split == "validation" else ())
    chosen = [next((files[name] for name in names if name in files), None) for files in transforms.values()]
    archives = [
        path
        for path in list_files(folder, {".npz"})
        if not (path.parent in transforms and path.name in POINT_CLOUD_NAMES)
    ]
    return sorted([*archives, *(path for path in chosen if path is not None)])


def _distances(scene: SceneFile) -> tuple[float, float]:
    """Between which distances from the cameras the points lie, with a margin."""
    low, high = scene.points[:, :3].min(axis=0), scene.points[:, :3].max(axis=0)
    middle = 0.5 * (low + high)
    radius = (1 + _MARGIN) * float(np.linalg.norm(scene.points[:, :3] - middle, axis=1).max())
    distances = np.linalg.norm(scene.poses[:, :3, 3] - middle, axis=1)
    far = float(distances.max()) + max(radius, 1e-6)
    return max(float(distances.min()) - radius, 0.01 * far), far


def _name_in_metadata(path: Path) -> Path:
    """What metadata call a scene: a transforms file by its folder, and files in `sampled` as if they lay beside it."""
    if path.suffix.lower() == ".json":
        return path.parent
    above = path.parent.name == "sampled" and not list(path.parent.glob("metadata.*"))
    return path.parent.parent / path.name if above else path


def _load_named(
    name: str, caption_column: str | None, split: str, streaming: bool, config: str | None, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    dataset = open_named(name, split=split, streaming=streaming, config=config, cache_dir=cache_dir)
    pictures = (dataset.features or {}).get("images")
    if isinstance(getattr(pictures, "feature", None), datasets.Image):  # each is decoded when it is needed
        dataset = dataset.cast_column("images", datasets.List(datasets.Image(decode=False)))
    present = dataset.column_names or list(next(iter(dataset.take(1)), {}))
    missing = [column for column in _COLUMNS if column not in present]
    if not {"focal", "fov_y"} & set(present):
        missing.append("focal or fov_y")
    if caption_column is not None and caption_column not in present:
        missing.append(caption_column)
    if missing:
        raise ValueError(f"data set {name!r} has no column {', '.join(missing)}; it has {', '.join(sorted(present))}")
    if caption_column not in (None, "caption"):
        dataset = dataset.rename_column(caption_column, "caption")
    return dataset


def _open_fitted(row: dict[str, Any]) -> SceneFile:
    file = open_scene(Path(row["path"]))
    return file if row["longest_side"] is None else file.fitted(row["longest_side"])


def _open_row_of_pictures(row: dict[str, Any]) -> OpenScene:
    pictures = row["images"]
    poses = torch.as_tensor(np.asarray(row["poses"], dtype=np.float32))
    if len(poses) != len(pictures) or len(pictures) == 0:
        raise ValueError(
            f"{len(pictures)} images but {len(poses)} poses; expected one pose for each, and at least one"
        )
    height, width = decode_pictures(pictures[:1])[0].shape[1:3]
    focal = row.get("focal")
    focal = focal_from_fov(row["fov_y"], height) if focal is None else torch.as_tensor(np.float32(focal))
    cameras = Cameras(poses, focal, height, width, row["near"], row["far"])

    def read_pictures(views: np.ndarray | None) -> Pictures:
        return decode_pictures(pictures if views is None else [pictures[view] for view in views])

    return OpenScene(check_points(row["points"]), cameras, read_pictures, separate=True)


def _drawn_pictures(scene: Scene, views: np.ndarray | None) -> Pictures:
    return (scene.images, scene.opacity) if views is None else (scene.images[views], scene.opacity[views])


@lru_cache(maxsize=256)
def _draw_scene(seed: tuple[int, ...], num_views: int, size: int) -> Scene:
    """A procedural scene; kept, since drawing takes as long as a training step of a small model."""
    cameras = random_cameras(num_views, size, np.random.default_rng((*seed, 1)))
    images, opacity = ProceduralScene.from_seed(seed).draw(cameras)
    return Scene(_draw_points(seed), cameras, images, opacity)


@lru_cache(maxsize=256)
def _draw_points(seed: tuple[int, ...]) -> np.ndarray:
    return ProceduralScene.from_seed(seed).sample_points(4096, np.random.default_rng((*seed, 2)))
