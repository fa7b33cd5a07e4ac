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
Posed pictures and coloured points of scenes, as they lie on disk.

Two layouts are read: one `npz` file per scene (points2nerf and its SRN cars: `images`, `cam_poses`, `data`), and a folder per
scene with a `transforms.json` (Blender, instant-ngp, nerfstudio) and a point cloud beside it.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import trimesh
from PIL import Image

from ..rendering.cameras import check_rigid
from .pictures import check_header, to_rgb


POINT_CLOUD_NAMES = ("points.ply", "pointcloud.ply", "points3D.ply", "pointcloud.npz", "points.npz")
_NPZ_KEYS = ("images", "cam_poses", "data")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)

# Pictures over white, uint8 (V, H, W, 3), and their opacity (V, H, W) from 0 to 255, where it is known.
Pictures = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class SceneFile:
    """
    A scene whose pictures have not been decoded yet.

    Attributes:
        path: the `npz` or `transforms.json` file.
        points: `(points, 6)` float32, xyz in world units and rgb in [0, 1].
        poses: `(V, 4, 4)` float32, camera to world, OpenGL axes, rigid.
        height, width: of the pictures, in pixels.
        focal: `(V, 2)` in pixels, or None where the file does not tell.
        principal_point: `(V, 2)` in pixels from the upper left corner.
        read_pictures: decodes the pictures of the views with these numbers, of all for None; raises ValueError, naming
            the file, if one is damaged.
        separate: whether each picture is decoded for itself; else reading one costs as much as reading all.
    """

    path: Path
    points: np.ndarray
    poses: np.ndarray
    height: int
    width: int
    focal: np.ndarray | None
    principal_point: np.ndarray
    read_pictures: Callable[[np.ndarray | None], Pictures]
    separate: bool

    def fitted(self, longest_side: float) -> SceneFile:
        """The scene moved and scaled: the box around its points centred at the origin, with that longest side."""
        low, high = self.points[:, :3].min(axis=0), self.points[:, :3].max(axis=0)
        scale, middle = longest_side / max(float((high - low).max()), 1e-12), 0.5 * (low + high)
        points, poses = self.points.copy(), self.poses.copy()
        points[:, :3] = (points[:, :3] - middle) * scale
        poses[:, :3, 3] = (poses[:, :3, 3] - middle) * scale
        return replace(self, points=points, poses=poses)


def open_scene(path: Path) -> SceneFile:
    """
    Everything but the pixels of a scene file.

    Raises:
        ValueError: it cannot be read or is inconsistent; the message names the file and what is wrong.
    """
    try:
        return _open_transforms(path) if path.suffix.lower() == ".json" else _open_npz(path)
    except _UNREADABLE as error:
        cause = "the file is empty" if path.is_file() and path.stat().st_size == 0 else error
        raise ValueError(f"unusable scene {path}: {cause}") from error


def _open_npz(path: Path) -> SceneFile:
    with np.load(path, allow_pickle=False) as archive:
        missing = [key for key in _NPZ_KEYS if key not in archive.files]
        if missing:
            raise ValueError(
                f"no {' and no '.join(map(repr, missing))}; an npz scene holds images (V, H, W, 3), cam_poses (V, 4, 4) "
                f"and data (points, 6), this one holds {', '.join(archive.files) or 'nothing'}"
            )
        shape = _array_shape(archive, "images")
        poses, data = archive["cam_poses"], archive["data"]
        focal = archive["focal"] if "focal" in archive.files else None
    if len(shape) != 4 or shape[3] not in (3, 4) or 0 in shape:
        raise ValueError(f"images have shape {shape}, expected (V, H, W, 3) or (V, H, W, 4)")
    views, height, width = shape[:3]
    return SceneFile(
        path=path,
        points=check_points(data),
        poses=_checked_poses(poses, views),
        height=height,
        width=width,
        focal=None if focal is None else _checked_focal(focal, views),
        principal_point=np.tile(np.float32([0.5 * width, 0.5 * height]), (views, 1)),
        read_pictures=lambda views: _read_npz_pictures(path, views),
        separate=False,
    )


def _array_shape(archive: Any, key: str) -> tuple[int, ...]:
    """Shape of an array in an `npz`, from its header alone: pictures are most of the file."""
    with archive.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read_header(file)[0]


def _read_npz_pictures(path: Path, views: np.ndarray | None) -> Pictures:
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["images"]
    except _UNREADABLE as error:
        raise ValueError(f"unusable scene {path}: its images are damaged: {error}") from error
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating) or not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"unusable scene {path}: images must be uint8 or floats in [0, 1], got {images.dtype}")
        images = np.rint(255 * images).astype(np.uint8)
    images = images if views is None else images[views]
    if images.shape[-1] == 3:
        return images, None
    opacity = images[..., 3]
    over_white = images[..., :3] * (opacity[..., None] / 255.0) + (255.0 - opacity[..., None])
    return np.rint(over_white).astype(np.uint8), opacity


def _open_transforms(path: Path) -> SceneFile:
    meta = json.loads(path.read_text(encoding="utf-8"))
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not frames:
        raise ValueError("it lists no frames")
    without = [
        index for index, frame in enumerate(frames) if "transform_matrix" not in frame or "file_path" not in frame
    ]
    if without:
        raise ValueError(f"frame {without[0]} has no transform_matrix (pose) or no file_path")
    distorted = {
        key: value for frame in (meta, *frames) for key, value in frame.items() if key in _DISTORTION and value
    }
    if distorted:
        raise ValueError(
            f"the pictures are distorted ({distorted}) and cameras here are pinholes; undistort them first"
        )
    files = [_picture_file(path.parent, str(frame["file_path"])) for frame in frames]
    sizes = set()
    for file in files:
        check_header(file)
        with Image.open(file) as picture:
            sizes.add(picture.size)
    if len(sizes) > 1:
        raise ValueError(f"its pictures differ in size: {', '.join(f'{w}x{h}' for w, h in sorted(sizes))}")
    width, height = sizes.pop()
    intrinsics = np.array([_intrinsics(meta | frame, width, height) for frame in frames], dtype=np.float32)
    return SceneFile(
        path=path,
        points=_read_point_cloud(path.parent, meta.get("ply_file_path")),
        poses=_checked_poses([frame["transform_matrix"] for frame in frames], len(files)),
        height=height,
        width=width,
        focal=_checked_focal(intrinsics[:, :2], len(files)),
        principal_point=intrinsics[:, 2:],
        read_pictures=lambda views: decode_pictures(files if views is None else [files[view] for view in views]),
        separate=True,
    )


def _picture_file(folder: Path, name: str) -> Path:
    """The file of a frame; Blender's own data leave the suffix out."""
    for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in (".png", ".jpg", ".jpeg"))):
        if candidate.is_file():
            return candidate
    raise ValueError(f"its picture {name} does not exist")


def _intrinsics(values: dict[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    """Focal lengths and principal point (x, y), in pixels of a picture of that size."""
    scale_x, scale_y = width / values.get("w", width), height / values.get("h", height)
    if "fl_x" in values:
        x = float(values["fl_x"]) * scale_x
        y = float(values["fl_y"]) * scale_y if "fl_y" in values else x
    elif "camera_angle_x" in values:
        angle = float(values["camera_angle_x"])
        if not 0 < angle < math.pi:
            raise ValueError(f"camera_angle_x must lie between 0 and π (radians), but is {angle:g}")
        x = y = 0.5 * width / math.tan(0.5 * angle)
    else:
        raise ValueError("it gives neither fl_x nor camera_angle_x, so that the focal length is unknown")
    return x, y, values.get("cx", 0.5 * width / scale_x) * scale_x, values.get("cy", 0.5 * height / scale_y) * scale_y


def _read_point_cloud(folder: Path, name: str | None) -> np.ndarray:
    candidates = [folder / name] if name else [folder / candidate for candidate in POINT_CLOUD_NAMES]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ValueError(
            f"no coloured point cloud; put one of {', '.join(POINT_CLOUD_NAMES)} beside it (npz: data (points, 6), or points "
            "and colors), or name a ply file in ply_file_path"
        )
    if file.suffix.lower() == ".npz":
        with np.load(file, allow_pickle=False) as archive:
            if "data" in archive.files:
                return check_points(archive["data"])
            if not {"points", "colors"} <= set(archive.files):
                raise ValueError(f"{file.name} holds neither data nor points and colors")
            return check_points(_joined(archive["points"], archive["colors"]))
    cloud = trimesh.load(file, process=False)
    visual = getattr(cloud, "visual", None)
    colors = np.asarray(visual.vertex_colors) if visual is not None and visual.kind == "vertex" else []
    if len(colors) == 0:
        raise ValueError(f"the points of {file.name} have no colours")
    return check_points(_joined(cloud.vertices, colors))


def _joined(points: np.ndarray, colors: np.ndarray) -> np.ndarray:
    if points.ndim != 2 or colors.ndim != 2 or len(points) != len(colors):
        raise ValueError(f"points of shape {points.shape} do not go with colors of shape {colors.shape}")
    scale = 255.0 if np.issubdtype(colors.dtype, np.integer) else 1.0
    return np.concatenate([points[:, :3], colors[:, :3] / scale], axis=1)


def decode_pictures(pictures: Sequence[Any]) -> Pictures:
    """
    Pictures (paths, encoded bytes, dicts of `datasets.Image` or Pillow images) of one size.

    Raises:
        ValueError: one cannot be decoded, or they differ in size.
    """
    colors, opacities = zip(*(_decode(picture) for picture in pictures))
    shapes = {color.shape[:2] for color in colors}
    if len(shapes) > 1:
        raise ValueError(f"the pictures of a scene differ in size (height, width): {sorted(shapes)}")
    known = all(opacity is not None for opacity in opacities)
    return np.stack(colors), np.stack(opacities) if known else None


def _checked_poses(poses: Any, views: int) -> np.ndarray:
    poses = np.asarray(poses, dtype=np.float32)
    if poses.ndim != 3 or poses.shape[1:] not in ((4, 4), (3, 4)):
        raise ValueError(f"poses have shape {poses.shape}, expected ({views}, 4, 4)")
    if len(poses) != views:
        raise ValueError(f"{views} images but {len(poses)} poses")
    if poses.shape[1] == 3:
        poses = np.concatenate([poses, np.tile(np.float32([[[0, 0, 0, 1]]]), (views, 1, 1))], axis=1)
    check_rigid(torch.from_numpy(poses))
    return poses


def _checked_focal(focal: Any, views: int) -> np.ndarray:
    focal = np.asarray(focal, dtype=np.float32)
    if focal.ndim < 2:
        focal = np.tile(focal.reshape(-1, 1), (1, 2))
    if not (np.isfinite(focal).all() and (focal > 0).all()):
        raise ValueError(f"the focal length must be positive (pixels), got {focal.min():g}")
    if focal.shape not in ((1, 2), (views, 2)):
        raise ValueError(f"{views} images but {len(focal)} focal lengths")
    return np.tile(focal, (views // len(focal), 1))


def check_points(points: Any) -> np.ndarray:
    """Coloured points as `(points, 6)` float32 with rgb in [0, 1] (8-bit colours are scaled); raises ValueError."""
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 6 or len(points) == 0 or not np.issubdtype(points.dtype, np.number):
        raise ValueError(f"points have shape {points.shape}, expected (points, 6): xyz and rgb")
    if not np.isfinite(points).all():
        raise ValueError("some points are not finite")
    low, high = points[:, 3:].min(), points[:, 3:].max()
    if low < 0 or high > 255:
        raise ValueError(f"point colours lie in [{low:g}, {high:g}], expected [0, 1]")
    points = points.astype(np.float32)
    if high > 1:  # 8-bit colours
        points[:, 3:] /= 255.0
    return points


def _decode(picture: Any) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(picture, str | Path):
        picture = {"bytes": None, "path": str(picture)}
    elif isinstance(picture, bytes):
        picture = {"bytes": picture, "path": None}
    try:
        image = datasets.Image().decode_example(picture) if isinstance(picture, dict) else picture
        opacity = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        return np.asarray(to_rgb(image)), opacity
    except (OSError, ValueError, SyntaxError, EOFError, AttributeError, Image.DecompressionBombError) as error:
        name = picture.get("path") if isinstance(picture, dict) else None
        raise ValueError(f"unreadable picture {name or '(no file name)'}: {error}") from error
