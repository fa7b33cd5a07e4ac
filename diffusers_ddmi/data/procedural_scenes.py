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
Coloured furniture and vehicles built from boxes, cylinders and wedges: scenes whose geometry is known exactly.

A scene is a union of convex parts in the cube [-0.5, 0.5]³, y up, its longest side 0.9. Rays are intersected with it in closed
form, so that pictures, depth, surface points and a radiance field all come from the same few formulas in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ..rendering.cameras import Cameras, look_at_poses


PALETTE = {
    "red": (0.85, 0.15, 0.13),
    "orange": (0.95, 0.55, 0.12),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.20, 0.62, 0.25),
    "blue": (0.15, 0.35, 0.80),
    "purple": (0.55, 0.25, 0.68),
    "pink": (0.95, 0.55, 0.70),
    "brown": (0.50, 0.31, 0.17),
    "grey": (0.55, 0.56, 0.58),
    "black": (0.10, 0.10, 0.11),
}
_GLASS = (0.62, 0.80, 0.92)
_TYRE = (0.08, 0.08, 0.09)
_LIGHT = np.array([0.45, 0.80, 0.40]) / np.linalg.norm([0.45, 0.80, 0.40])
_LONGEST_SIDE = 0.9


class Hits(NamedTuple):
    """
    Where rays meet a scene.

    Attributes:
        color: `(rays, 3)` in [0, 1]; 0 where a ray meets nothing.
        distance: `(rays,)` along the ray; inf where it meets nothing.
    """

    color: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class Part:
    """
    A convex solid: a box, a cylinder about its own y axis, or a wedge (a box cut from its upper edge at -x to its lower
    edge at +x).

    Args:
        kind: `"box"`, `"cylinder"` or `"wedge"`.
        center: of the bounding box, `(3,)`, world units.
        half_size: half the side lengths along the part's axes, `(3,)`; a cylinder's radius is the first.
        color: `(3,)` in [0, 1].
        rotation: `(3, 3)`, part to world axes.
    """

    kind: str
    center: np.ndarray
    half_size: np.ndarray
    color: np.ndarray
    rotation: np.ndarray

    def planes(self) -> tuple[np.ndarray, np.ndarray]:
        """Outward normals `(faces, 3)` and offsets `(faces,)` of the flat faces, in the part's axes."""
        axes = np.concatenate([np.eye(3), -np.eye(3)])
        offsets = np.concatenate([self.half_size, self.half_size])
        if self.kind == "cylinder":
            return axes[[1, 4]], offsets[[1, 4]]
        if self.kind == "wedge":
            slope = np.array([self.half_size[1], self.half_size[0], 0.0])
            return np.stack([slope / np.linalg.norm(slope), *axes[2:]]), np.array([0.0, *offsets[2:]])
        return axes, offsets

    def margins(self, points: np.ndarray) -> np.ndarray:
        """Distances `(points, faces)` of points in the part's axes beyond each face; all negative inside."""
        normals, offsets = self.planes()
        margins = points @ normals.T - offsets
        if self.kind == "cylinder":
            radial = np.hypot(points[:, 0], points[:, 2]) - self.half_size[0]
            margins = np.concatenate([margins, radial[:, None]], axis=1)
        return margins

    def to_part(self, points: np.ndarray) -> np.ndarray:
        """World points `(points, 3)` in the part's axes."""
        return (points - self.center) @ self.rotation

    def shaded(self, points: np.ndarray) -> np.ndarray:
        """The part's colour `(points, 3)` at points in its own axes, lit as the face that is nearest."""
        face = self.margins(points).argmax(axis=1)
        normals = self.planes()[0]
        chosen = normals[np.minimum(face, len(normals) - 1)]
        if self.kind == "cylinder":
            round_side = face == len(normals)
            chosen[round_side] = points[round_side] * [1.0, 0.0, 1.0] / self.half_size[0]
            chosen /= np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-6)
        light = chosen @ (self.rotation.T @ _LIGHT)
        return self.color * (0.75 + 0.25 * light[:, None])

    def crossing(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances `(rays,)` at which rays, in the part's axes, enter and leave; `enter > leave` where they miss."""
        normals, offsets = self.planes()
        slopes = directions @ normals.T
        slopes = np.where(np.abs(slopes) < 1e-9, 1e-9, slopes)
        distances = (offsets - origins @ normals.T) / slopes
        enter = np.where(slopes < 0, distances, -np.inf).max(axis=1)
        leave = np.where(slopes > 0, distances, np.inf).min(axis=1)
        if self.kind == "cylinder":
            o, d = origins[:, [0, 2]], directions[:, [0, 2]]
            a = np.maximum((d * d).sum(1), 1e-12)
            b = (o * d).sum(1) / a
            root = b * b - ((o * o).sum(1) - self.half_size[0] ** 2) / a
            width = np.sqrt(np.maximum(root, 0.0))
            enter = np.where(root > 0, np.maximum(enter, -b - width), np.inf)
            leave = np.minimum(leave, -b + width)
        return enter, leave


@dataclass(frozen=True)
class ProceduralScene:
    """
    A union of parts.

    Args:
        parts: the solids; where they overlap, the inner surfaces are not seen.
        caption: what it shows, in English.
    """

    parts: tuple[Part, ...]
    caption: str

    @classmethod
    def from_seed(cls, seed: int | Sequence[int]) -> ProceduralScene:
        """The scene of a seed: its kind, proportions and colours are all drawn from it."""
        rng = np.random.default_rng(seed)
        kind = list(_BUILDERS)[rng.integers(len(_BUILDERS))]
        return cls.build(kind, rng)

    @classmethod
    def build(cls, kind: str, rng: np.random.Generator) -> ProceduralScene:
        """A scene of one of [`SCENE_KINDS`].

        Raises:
            ValueError: for another kind.
        """
        if kind not in _BUILDERS:
            raise ValueError(f"Unknown kind of scene {kind!r}: expected one of {', '.join(_BUILDERS)}.")
        caption, parts = _BUILDERS[kind](rng)
        return cls(_normalized(parts), caption)

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """The first surface that rays `(rays, 3)` with unit directions meet."""
        color = np.zeros_like(directions)
        nearest = np.full(len(directions), np.inf, dtype=directions.dtype)
        for part in self.parts:
            # Only rays that come near the part are worth the exact test.
            to_center = part.center - origins
            along = (to_center * directions).sum(1)
            near = (to_center * to_center).sum(1) - along * along < (part.half_size**2).sum()
            rays = np.flatnonzero(near & (along > 0))
            o, d = part.to_part(origins[rays]), directions[rays] @ part.rotation
            enter, leave = part.crossing(o, d)
            first = (enter < leave) & (enter > 0) & (enter < nearest[rays])
            rays, enter = rays[first], enter[first]
            nearest[rays] = enter
            color[rays] = part.shaded(o[first] + enter[:, None] * d[first])
        return Hits(color, nearest)

    def draw(self, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
        """
        Pictures over white, uint8 `(V, H, W, 3)`, and opacity, uint8 `(V, H, W)` from 0 to 255.

        A pixel is what its centre sees; where neighbours differ, it is the mean of 3 x 3 points of it.
        """
        size = (len(cameras), cameras.height, cameras.width)
        origins, directions = (rays.double().reshape(-1, 3).numpy() for rays in cameras.rays())
        picture = self._picture(origins, directions).reshape(*size, 4)
        edges = np.zeros(size, dtype=bool)
        rows, columns = ((np.abs(np.diff(picture, axis=axis)) > 0.02).any(-1) for axis in (1, 2))
        edges[:, 1:] |= rows
        edges[:, :-1] |= rows
        edges[:, :, 1:] |= columns
        edges[:, :, :-1] |= columns
        pixels = np.argwhere(edges)  # view, row, column
        steps = (np.arange(3) - 1) / 3 + cameras.pixel_offset
        inner = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        points = pixels[:, None, :0:-1] + inner  # column and row, (pixels, 9, 2)
        origins, directions = cameras.rays_through(
            torch.from_numpy(pixels[:, 0].repeat(9)), torch.from_numpy(points.reshape(-1, 2))
        )
        fine = self._picture(origins.double().numpy(), directions.double().numpy())
        picture[edges] = fine.reshape(-1, 9, 4).mean(axis=1)
        picture = np.rint(255 * picture.clip(0, 1)).astype(np.uint8)
        return picture[..., :3], picture[..., 3]

    def _picture(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Colour over white and opacity of rays, `(rays, 4)`."""
        hits = self.intersect(origins, directions)
        opacity = np.isfinite(hits.distance)[:, None]
        return np.concatenate([np.where(opacity, hits.color, 1.0), opacity], axis=1)

    def radiance(self, points: np.ndarray, density: float = 200.0) -> np.ndarray:
        """
        The scene as a radiance field: `(points, 4)`, colour and `density` (per world unit) inside the parts, zeros outside.

        It is opaque within about `5 / density` of the surface, so that its volume rendering shows what [`intersect`] sees.
        """
        values = np.zeros((len(points), 4), dtype=points.dtype)
        deepest = np.zeros(len(points), dtype=points.dtype)
        for part in self.parts:
            near = np.flatnonzero(((points - part.center) ** 2).sum(1) < (part.half_size**2).sum())
            local = part.to_part(points[near])
            depth = part.margins(local).max(axis=1)
            inside = depth < deepest[near]
            deepest[near[inside]] = depth[inside]
            values[near[inside], :3] = part.shaded(local[inside])
        values[:, 3] = density * (deepest < 0)
        return values

    def sample_points(self, num_points: int, rng: np.random.Generator) -> np.ndarray:
        """
        `(num_points, 6)`: points spread evenly over the visible surface, and their colours.

        Random straight lines cross a surface evenly over its area (the Cauchy-Crofton formula).
        """
        found: list[np.ndarray] = []
        while sum(map(len, found)) < num_points:
            origins, directions = _random_lines(4 * num_points, 0.5 * math.sqrt(3.0), rng)
            for index, part in enumerate(self.parts):
                o, d = part.to_part(origins), directions @ part.rotation
                enter, leave = part.crossing(o, d)
                hit = enter < leave
                for distance in (enter[hit, None], leave[hit, None]):
                    points, color = origins[hit] + distance * directions[hit], part.shaded(o[hit] + distance * d[hit])
                    hidden = np.zeros(len(points), dtype=bool)
                    for other in self.parts[:index] + self.parts[index + 1 :]:
                        hidden |= other.margins(other.to_part(points)).max(axis=1) < -1e-6
                    found.append(np.concatenate([points, color], axis=1)[~hidden])
        points = np.concatenate(found)
        return points[rng.permutation(len(points))[:num_points]].astype(np.float32)


def radiance_field(
    scenes: Sequence[ProceduralScene], density: float = 200.0
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """
    A batch of scenes as one radiance field (see `rendering.volume.RadianceField`), for tests and measurements: its values
    are those of [`ProceduralScene.radiance`], on the CPU and without gradients.
    """

    def field(points: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        points = points.double().expand(len(scenes), -1, -1).numpy()
        values = np.stack([scene.radiance(own, density) for scene, own in zip(scenes, points)])
        return torch.from_numpy(values).float()

    return field


def random_cameras(num_views: int, size: int, rng: np.random.Generator) -> Cameras:
    """
    Cameras of `size`² pixels at random places on a sphere of radius 2 about the origin, from 20° below the horizon to 70°
    above it; vertical field of view 41°, near 1.2, far 2.8. They see a whole scene of this module.
    """
    azimuth = torch.from_numpy(rng.uniform(0.0, 2 * math.pi, num_views))
    low, high = math.sin(math.radians(-20.0)), math.sin(math.radians(70.0))
    elevation = torch.from_numpy(np.arcsin(rng.uniform(low, high, num_views)))
    poses = look_at_poses(azimuth, elevation, radius=2.0).float()
    return Cameras.from_fov(poses, math.radians(41.0), size, size, near=1.2, far=2.8)


def _random_lines(count: int, radius: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lines evenly distributed over all that meet a sphere about the origin; origins lie outside it."""
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    helper = np.eye(3)[np.abs(directions).argmin(axis=1)]
    u = np.cross(directions, helper)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    distance, angle = radius * np.sqrt(rng.random((count, 1))), 2 * math.pi * rng.random((count, 1))
    offsets = distance * (np.cos(angle) * u + np.sin(angle) * np.cross(directions, u))
    return offsets - 2 * radius * directions, directions


def _part(
    kind: str,
    center: Sequence[float],
    size: Sequence[float],
    color: Sequence[float],
    tilt: tuple[str, float] | None = None,
) -> Part:
    """A part of full side lengths `size`, turned by `tilt` = (axis, degrees)."""
    rotation = np.eye(3)
    if tilt is not None:
        axis, angle = "xyz".index(tilt[0]), math.radians(tilt[1])
        i, j = (axis + 1) % 3, (axis + 2) % 3
        rotation[i, i] = rotation[j, j] = math.cos(angle)
        rotation[j, i], rotation[i, j] = math.sin(angle), -math.sin(angle)
    return Part(kind, np.array(center, float), np.array(size, float) / 2, np.array(color, float), rotation)


def _normalized(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts moved and scaled: the middle of their bounding box at the origin, its longest side 0.9."""
    reach = np.stack([np.abs(part.rotation) @ part.half_size for part in parts])
    centers = np.stack([part.center for part in parts])
    low, high = (centers - reach).min(axis=0), (centers + reach).max(axis=0)
    scale = _LONGEST_SIDE / (high - low).max()
    middle = 0.5 * (low + high)
    return tuple(
        replace(part, center=(part.center - middle) * scale, half_size=part.half_size * scale) for part in parts
    )


def _colors(rng: np.random.Generator, count: int) -> tuple[list[str], list[tuple[float, float, float]]]:
    """Names and values of different colours."""
    names = [str(name) for name in rng.choice(list(PALETTE), count, replace=False)]
    return names, [PALETTE[name] for name in names]


def _a(color: str) -> str:
    return f"an {color}" if color[0] == "o" else f"a {color}"


def _legs(rng: np.random.Generator, width: float, depth: float, height: float, color: Sequence[float]) -> list[Part]:
    thick = rng.uniform(0.06, 0.10)
    kind = "cylinder" if rng.random() < 0.5 else "box"
    x, z = 0.48 * width - 0.5 * thick, 0.48 * depth - 0.5 * thick  # set in, so that no face is shared with the top
    return [_part(kind, (i * x, 0.5 * height, j * z), (thick, height, thick), color) for i in (-1, 1) for j in (-1, 1)]


def _table(rng: np.random.Generator) -> tuple[str, list[Part]]:
    (top, leg), (top_color, leg_color) = _colors(rng, 2)
    width, depth, height, thick = rng.uniform((0.8, 0.6, 0.5, 0.05), (1.4, 0.9, 0.9, 0.10))
    if rng.random() < 0.4:
        parts = [
            _part("cylinder", (0, height, 0), (width, thick, width), top_color),
            _part("cylinder", (0, 0.5 * height, 0), (0.12, height, 0.12), leg_color),
            _part("cylinder", (0, 0.5 * thick, 0), (0.5 * width, thick, 0.5 * width), leg_color),
        ]
        return f"a round {top} table on {_a(leg)} foot", parts
    parts = [
        _part("box", (0, height, 0), (width, thick, depth), top_color),
        *_legs(rng, width, depth, height, leg_color),
    ]
    return f"{_a(top)} table with four {leg} legs", parts


def _chair(rng: np.random.Generator) -> tuple[str, list[Part]]:
    (seat, leg), (seat_color, leg_color) = _colors(rng, 2)
    width, seat_height, back = rng.uniform((0.5, 0.4, 0.45), (0.7, 0.55, 0.75))
    parts = [
        _part("box", (0, seat_height, 0), (width, 0.09, width), seat_color),
        _part("box", (0, seat_height + 0.5 * back, -0.5 * width + 0.04), (width, back, 0.08), seat_color),
        *_legs(rng, width, width, seat_height, leg_color),
    ]
    if rng.random() < 0.4:
        arms = [
            _part("box", (s * 0.5 * width, seat_height + 0.24, 0), (0.08, 0.06, width), leg_color) for s in (-1, 1)
        ]
        posts = [
            _part("box", (s * 0.5 * width, seat_height + 0.12, 0.4 * width), (0.07, 0.24, 0.07), leg_color)
            for s in (-1, 1)
        ]
        return f"{_a(seat)} armchair with {leg} legs", parts + arms + posts
    return f"{_a(seat)} chair with {leg} legs", parts


def _shelf(rng: np.random.Generator) -> tuple[str, list[Part]]:
    (frame, board), (frame_color, board_color) = _colors(rng, 2)
    width, depth, height = rng.uniform((0.6, 0.25, 1.0), (1.0, 0.4, 1.4))
    boards = int(rng.integers(3, 6))
    sides = [_part("box", (s * 0.5 * width, 0.5 * height, 0), (0.06, height, depth), frame_color) for s in (-1, 1)]
    levels = np.linspace(0.06, height - 0.03, boards)
    words = {3: "three", 4: "four", 5: "five"}
    return f"{_a(frame)} shelf with {words[boards]} {board} boards", [
        *sides,
        *(_part("box", (0, y, 0), (width, 0.05, 0.95 * depth), board_color) for y in levels),
    ]


def _wheels(rng: np.random.Generator, positions: Sequence[float], width: float) -> list[Part]:
    radius = rng.uniform(0.13, 0.17)
    return [
        _part("cylinder", (x, radius, s * 0.5 * width), (2 * radius, 0.12, 2 * radius), _TYRE, tilt=("x", 90.0))
        for x in positions
        for s in (-1, 1)
    ]


def _car(rng: np.random.Generator) -> tuple[str, list[Part]]:
    (body, roof), (body_color, roof_color) = _colors(rng, 2)
    length, width, cabin = rng.uniform((1.3, 0.55, 0.55), (1.7, 0.7, 0.8))
    return f"{_a(body)} car with {_a(roof)} roof", [
        _part("box", (0, 0.30, 0), (length, 0.28, width), body_color),
        _part("box", (-0.1, 0.54, 0), (cabin, 0.22, 0.88 * width), _GLASS),
        _part("wedge", (-0.1 + 0.5 * cabin + 0.12, 0.54, 0), (0.24, 0.22, 0.88 * width), _GLASS),
        _part("box", (-0.1, 0.67, 0), (cabin, 0.06, 0.9 * width), roof_color),
        *_wheels(rng, (-0.3 * length, 0.3 * length), width),
    ]


def _truck(rng: np.random.Generator) -> tuple[str, list[Part]]:
    (cab, load), (cab_color, load_color) = _colors(rng, 2)
    length, width, height = rng.uniform((0.8, 0.55, 0.5), (1.3, 0.65, 0.8))
    front = 0.5 * length + 0.25
    return f"{_a(cab)} truck with {_a(load)} box", [
        _part("box", (0.2, 0.2, 0), (length + 0.5, 0.10, 0.8 * width), PALETTE["grey"]),
        _part("box", (-0.05, 0.26 + 0.5 * height, 0), (length, height, width), load_color),
        _part("box", (front, 0.42, 0), (0.4, 0.40, 0.95 * width), cab_color),
        _part("box", (front + 0.17, 0.52, 0), (0.10, 0.14, 0.8 * width), _GLASS),
        *_wheels(rng, (-0.3 * length, -0.3 * length + 0.32, front), width),
    ]


def _bus(rng: np.random.Generator) -> tuple[str, list[Part]]:
    (body, stripe), (body_color, stripe_color) = _colors(rng, 2)
    length, width, height = rng.uniform((1.6, 0.5, 0.5), (2.2, 0.6, 0.7))
    return f"{_a(body)} bus with {_a(stripe)} stripe", [
        _part("box", (0, 0.18 + 0.5 * height, 0), (length, height, width), body_color),
        _part("box", (0, 0.18 + 0.65 * height, 0), (0.94 * length, 0.28 * height, 1.02 * width), _GLASS),
        _part("box", (0, 0.18 + 0.28 * height, 0), (1.01 * length, 0.12 * height, 1.03 * width), stripe_color),
        *_wheels(rng, (-0.32 * length, 0.32 * length), width),
    ]


_BUILDERS: dict[str, Callable[[np.random.Generator], tuple[str, list[Part]]]] = {
    "table": _table,
    "chair": _chair,
    "shelf": _shelf,
    "car": _car,
    "truck": _truck,
    "bus": _bus,
}
SCENE_KINDS = tuple(_BUILDERS)
