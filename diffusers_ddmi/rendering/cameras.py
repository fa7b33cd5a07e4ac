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
"""Pinhole cameras: poses and intrinsics of a set of views, and the rays through their pixels."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal

import torch


Convention = Literal["opengl", "opencv"]
BoundsAlong = Literal["ray", "axis"]

# Both conventions have x to the right. OpenGL (also Blender, NeRF): y up, the camera looks along -z.
# OpenCV (also COLMAP): y down, the camera looks along +z. The same flip of two axes leads either way.
_FLIP_YZ = (1.0, -1.0, -1.0, 1.0)


class Cameras:
    r"""
    A batch of V pinhole cameras that share one picture size.

    A pixel in column i and row j (row 0 is the top) is seen along the ray through the image point
    `(i + pixel_offset, j + pixel_offset)`, in pixels from the picture's upper left corner.

    Args:
        camera_to_world (`torch.Tensor` of shape `(V, 4, 4)` or `(4, 4)`):
            Rigid poses (rotation and translation, no scale), in world units.
        focal (`float` or `torch.Tensor` of shape `()`, `(V,)` or `(V, 2)`):
            Focal lengths in pixels; the last form gives them for x and y.
        height, width (`int`): Picture size in pixels.
        near, far (`float`): Where along a ray the scene begins and ends, in world units, `0 <= near < far`.
        principal_point (`torch.Tensor` of shape `(2,)` or `(V, 2)`, *optional*):
            Image point (x, y) on the optical axis, in pixels; the picture's centre by default.
        convention (`"opengl"` or `"opencv"`):
            Camera axes that `camera_to_world` is given in. OpenGL: x right, y up, looking along -z; OpenCV: x right,
            y down, looking along +z. [`~Cameras.convert`] changes one into the other.
        pixel_offset (`float`): 0.5 for rays through pixel centres; 0 as in the original NeRF code, whose pictures are
            thereby shifted by half a pixel.
        bounds_along (`"ray"` or `"axis"`):
            Whether `near` and `far` are distances from the camera along each ray, or depths along the optical axis
            (planes, as in the original NeRF code).

    Raises:
        ValueError: for poses that are not finite, not rigid or of another shape, a focal length or picture size that
            is not positive, `near`/`far` out of order, and counts that differ.
    """

    def __init__(
        self,
        camera_to_world: torch.Tensor,
        focal: float | torch.Tensor,
        height: int,
        width: int,
        near: float,
        far: float,
        *,
        principal_point: torch.Tensor | None = None,
        convention: Convention = "opengl",
        pixel_offset: float = 0.5,
        bounds_along: BoundsAlong = "ray",
    ):
        _check_options(height, width, near, far, convention, bounds_along)
        camera_to_world = _as_float_tensor(camera_to_world, "camera_to_world")
        if camera_to_world.ndim == 2:
            camera_to_world = camera_to_world[None]
        check_rigid(camera_to_world)
        self.camera_to_world = camera_to_world
        self.focal = _per_view(focal, "focal", camera_to_world)
        if not (torch.isfinite(self.focal).all() and (self.focal > 0).all()):
            raise ValueError(f"`focal` must be positive (pixels), got {self.focal.flatten().tolist()[:8]}.")
        if principal_point is None:
            principal_point = torch.tensor([0.5 * width, 0.5 * height])
        self.principal_point = _per_view(principal_point, "principal_point", camera_to_world)
        self.height, self.width = height, width
        self.near, self.far = float(near), float(far)
        self.convention = convention
        self.pixel_offset = float(pixel_offset)
        self.bounds_along = bounds_along

    @classmethod
    def from_fov(
        cls,
        camera_to_world: torch.Tensor,
        fov_y: float,
        height: int,
        width: int,
        near: float,
        far: float,
        **options: Any,
    ) -> Cameras:
        """Cameras with square pixels and the vertical field of view `fov_y`, in radians; `options` as in [`Cameras`]."""
        return cls(camera_to_world, focal_from_fov(fov_y, height), height, width, near, far, **options)

    @classmethod
    def orbit(
        cls,
        num_views: int,
        radius: float = 2.0,
        elevation: float = 20.0,
        fov_y: float = math.radians(41.0),
        height: int = 128,
        width: int = 128,
        near: float | None = None,
        far: float | None = None,
        *,
        azimuth: float = 0.0,
        target: tuple[float, float, float] = (0.0, 0.0, 0.0),
        up: Literal["y", "z"] = "y",
        **options: Any,
    ) -> Cameras:
        """
        `num_views` cameras evenly around `target`, all looking at it, in OpenGL axes.

        Args:
            radius: distance from `target`, in world units.
            elevation: angle above the horizon, and `azimuth` that of the first view about the up axis, in degrees.
            fov_y: vertical field of view in radians.
            near, far: by default 0.4 and 1.6 times the radius, which holds an object of 1.2 radii about `target`.
            up: the world's up axis.

        Raises:
            ValueError: for a count below 1, a radius that is not positive, or an elevation outside (-90, 90).
        """
        if num_views < 1:
            raise ValueError(f"`num_views` must be at least 1, got {num_views}.")
        angles = torch.arange(num_views, dtype=torch.float64) * (2 * math.pi / num_views) + math.radians(azimuth)
        elevations = torch.full_like(angles, math.radians(elevation))
        poses = look_at_poses(angles, elevations, radius, target=target, up=up)
        near = 0.4 * radius if near is None else near
        far = 1.6 * radius if far is None else far
        return cls.from_fov(poses.float(), fov_y, height, width, near, far, **options)

    def __len__(self) -> int:
        return self.camera_to_world.shape[0]

    def __getitem__(self, index: int | slice | torch.Tensor) -> Cameras:
        """The chosen views, as [`Cameras`] again (one integer gives a batch of one)."""
        if isinstance(index, int):
            index = range(len(self))[index]
            index = slice(index, index + 1)
        return self._replace(
            camera_to_world=self.camera_to_world[index],
            focal=self.focal[index],
            principal_point=self.principal_point[index],
        )

    def __repr__(self) -> str:
        return (
            f"Cameras({len(self)} views of {self.height}x{self.width}, near={self.near:g}, far={self.far:g}, "
            f"convention={self.convention!r}, device={self.camera_to_world.device})"
        )

    @property
    def fov_y(self) -> torch.Tensor:
        """Vertical fields of view, in radians, `(V,)`."""
        return 2 * torch.atan(0.5 * self.height / self.focal[:, 1])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """The same cameras on another device or in another floating-point type."""
        return self._replace(
            camera_to_world=self.camera_to_world.to(device, dtype),
            focal=self.focal.to(device, dtype),
            principal_point=self.principal_point.to(device, dtype),
        )

    def convert(self, convention: Convention) -> Cameras:
        """The same cameras with their poses written in the axes of another convention."""
        _check_choice("convention", convention, ("opengl", "opencv"))
        if convention == self.convention:
            return self
        flip = self.camera_to_world.new_tensor(_FLIP_YZ)
        return self._replace(camera_to_world=self.camera_to_world * flip, convention=convention)

    def resize(self, height: int, width: int) -> Cameras:
        """The same cameras with pictures of another size that show the same section of the world."""
        scale = self.focal.new_tensor([width / self.width, height / self.height])
        return self._replace(
            focal=self.focal * scale, principal_point=self.principal_point * scale, height=height, width=width
        )

    def rays(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Origins and unit directions, world axes, of the rays of all pixels: `(V, H, W, 3)` each, rows from the top."""
        directions = _unit(torch.einsum("vij,vhwj->vhwi", self._rotation(), self._pixel_directions()))
        return self.camera_to_world[:, None, None, :3, 3].expand_as(directions), directions

    def rays_through(self, views: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Origins and unit directions, world axes, `(rays, 3)` each, of single rays.

        Args:
            views: `(rays,)`, the view that each belongs to.
            points: `(rays, 2)`, image points (x, y) in pixels from the upper left corner; the pixel in column i and row j is
                at `(i + pixel_offset, j + pixel_offset)`.
        """
        points = (points.to(self.focal) - self.principal_point[views]) / self.focal[views]
        directions = _unit(torch.einsum("rij,rj->ri", self._rotation()[views], _camera_directions(*points.unbind(-1))))
        return self.camera_to_world[views, :3, 3], directions

    def ray_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances along each ray at which the scene begins and ends, each `(V, H, W)`, in world units."""
        lengths = self._pixel_directions().norm(dim=-1)
        if self.bounds_along == "ray":
            lengths = torch.ones_like(lengths)
        return self.near * lengths, self.far * lengths

    def _pixel_directions(self) -> torch.Tensor:
        """Directions in OpenGL camera axes, reaching one unit along the optical axis, `(V, H, W, 3)`."""
        kwargs = {"device": self.focal.device, "dtype": self.focal.dtype}
        columns = torch.arange(self.width, **kwargs) + self.pixel_offset
        rows = torch.arange(self.height, **kwargs) + self.pixel_offset
        x = (columns - self.principal_point[:, :1]) / self.focal[:, :1]  # (V, W)
        y = (rows - self.principal_point[:, 1:]) / self.focal[:, 1:]  # (V, H)
        return _camera_directions(*torch.broadcast_tensors(x[:, None, :], y[:, :, None]))

    def _rotation(self) -> torch.Tensor:
        """From OpenGL camera axes to world axes, `(V, 3, 3)`."""
        return self.convert("opengl").camera_to_world[:, :3, :3]

    def _replace(self, **changes: Any) -> Cameras:
        names = ("camera_to_world", "focal", "height", "width", "near", "far", "principal_point", "convention")
        arguments = {name: getattr(self, name) for name in (*names, "pixel_offset", "bounds_along")}
        return Cameras(**{**arguments, **changes})


def _camera_directions(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Image points with y downwards, one unit in front of the camera, in OpenGL axes, `(..., 3)`."""
    return torch.stack([x, -y, -torch.ones_like(x)], dim=-1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def focal_from_fov(fov: float, size: int) -> float:
    """Focal length in pixels of a picture that is `size` pixels across and shows `fov` radians, `0 < fov < π`."""
    if not 0.0 < fov < math.pi:
        raise ValueError(
            f"A field of view lies between 0 and π radians, got {fov}. Use `math.radians` to convert an angle in degrees."
        )
    return 0.5 * size / math.tan(0.5 * fov)


def look_at_poses(
    azimuth: torch.Tensor,
    elevation: torch.Tensor,
    radius: float,
    *,
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    up: Literal["y", "z"] = "y",
) -> torch.Tensor:
    """
    Poses (OpenGL axes) on a sphere about `target`, looking at it with the horizon level.

    Args:
        azimuth, elevation: angles in radians, `(V,)`. Azimuth 0 looks from +z when y is up and from -y when z is up
            (an object's usual front), and grows towards +x.
        radius: distance from `target`, in world units.

    Returns:
        `(V, 4, 4)`, of the dtype of the angles.
    """
    _check_choice("up", up, ("y", "z"))
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius}.")
    if not (elevation.abs() < math.pi / 2).all():
        raise ValueError(
            "`elevation` must lie strictly between -90 and 90 degrees: a camera above a pole has no level horizon."
        )
    zero = torch.zeros_like(azimuth)
    outward = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], dim=-1)
    right = torch.stack([azimuth.cos(), zero, -azimuth.sin()], dim=-1)
    rotation = torch.stack(
        [right, torch.linalg.cross(outward, right), outward], dim=-1
    )  # columns: x, y, z of the camera
    if up == "z":
        y_up_to_z_up = rotation.new_tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        rotation = y_up_to_z_up @ rotation
    poses = torch.eye(4, dtype=azimuth.dtype).repeat(len(azimuth), 1, 1)
    poses[:, :3, :3] = rotation
    poses[:, :3, 3] = rotation[:, :, 2] * radius + rotation.new_tensor(target)
    return poses


def check_rigid(camera_to_world: torch.Tensor, tolerance: float = 1e-3) -> None:
    """
    Raises ValueError, naming the first bad view, unless every pose of `(V, 4, 4)` is finite, has an orthonormal,
    right-handed rotation (to `tolerance`) and the last row (0, 0, 0, 1).
    """
    if camera_to_world.ndim != 3 or camera_to_world.shape[1:] != (4, 4) or len(camera_to_world) == 0:
        raise ValueError(f"`camera_to_world` must have shape (views, 4, 4), got {tuple(camera_to_world.shape)}.")
    poses = camera_to_world.double()
    finite = torch.isfinite(poses).flatten(1).all(1)
    rotation = poses[:, :3, :3]
    identity = torch.eye(3, dtype=poses.dtype, device=poses.device)
    orthonormal = ((rotation.mT @ rotation - identity).abs() <= tolerance).flatten(1).all(1)
    proper = torch.linalg.det(torch.where(finite[:, None, None], rotation, identity)) > 0
    last_row = ((poses[:, 3] - poses.new_tensor([0.0, 0.0, 0.0, 1.0])).abs() <= tolerance).all(1)
    reasons = (
        (finite, "has entries that are not finite"),
        (last_row, "has a last row other than (0, 0, 0, 1); is it world-to-camera or transposed?"),
        (orthonormal, "is not rigid: its 3x3 part is no rotation (scaled or sheared axes); divide the scale out"),
        (proper, "is not rigid: its axes are left-handed (mirrored)"),
    )
    for good, reason in reasons:
        if not good.all():
            view = int((~good).nonzero()[0])
            raise ValueError(f"The pose of view {view} {reason}. Got {camera_to_world[view].tolist()}.")


def _per_view(value: float | torch.Tensor, name: str, camera_to_world: torch.Tensor) -> torch.Tensor:
    """`value` as `(V, 2)`, in (x, y) order, beside the poses."""
    views = len(camera_to_world)
    value = _as_float_tensor(value, name).to(camera_to_world)
    if name == "focal" and value.ndim <= 1:
        value = value.reshape(-1, 1).expand(-1, 2)
    if value.ndim == 1:
        value = value[None]
    if value.ndim != 2 or value.shape[1] != 2 or value.shape[0] not in (1, views):
        raise ValueError(
            f"`{name}` must be given once or for each of the {views} views, as (x, y) in pixels; got shape {tuple(value.shape)}."
        )
    return value.expand(views, 2)


def _as_float_tensor(value: Any, name: str) -> torch.Tensor:
    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`{name}` must be a tensor or numbers, got {type(value).__name__}.") from error
    return value if value.is_floating_point() else value.float()


def _check_options(height: int, width: int, near: float, far: float, convention: str, bounds_along: str) -> None:
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer (pixels), got {value!r}.")
    if not (0 <= near < far and math.isfinite(far)):
        raise ValueError(f"`near` and `far` must be finite with 0 <= near < far, got near={near}, far={far}.")
    _check_choice("convention", convention, ("opengl", "opencv"))
    _check_choice("bounds_along", bounds_along, ("ray", "axis"))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
