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
"""Solids put together from straight and slanted prisms, boxes, cylinders and cones: exact occupancy, surface points, meshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import trimesh

from .mesh_sampling import sample_triangles


# Outlines (x, z), anticlockwise seen from above. A polygon of 32 sides stands for a circle in meshes and surface samples: it
# keeps within 0.5 % of the radius.
_ANGLES = 2.0 * np.pi * np.arange(32) / 32
_CIRCLE = np.stack([np.cos(_ANGLES), -np.sin(_ANGLES)], axis=1)
_SQUARE = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])


@dataclass(frozen=True)
class Part:
    """All points between two horizontal cross-sections (y up), rectangles or ellipses, that are joined by straight lines.

    Equal sections give a box or a cylinder, shifted ones a slanted leg or back, unequal ones a taper or a cone.

    Attributes:
        bottom, top: height y of the two sections.
        centres: `((x, z), (x, z))` of the bottom and of the top section.
        halves: `((x, z), (x, z))` half widths of the bottom and of the top section, positive.
        round: ellipses instead of rectangles.
        role: what it is made of, a key of the palette.
    """

    bottom: float
    top: float
    centres: tuple[tuple[float, float], tuple[float, float]]
    halves: tuple[tuple[float, float], tuple[float, float]]
    round: bool = False
    role: str = "wood"

    def moved(self, scale: float, offset: Sequence[float]) -> Part:
        """The part under p ↦ scale · p + offset, offset in (x, y, z)."""
        x, y, z = offset
        return replace(
            self,
            bottom=scale * self.bottom + y,
            top=scale * self.top + y,
            centres=tuple((scale * u + x, scale * v + z) for u, v in self.centres),
            halves=tuple((scale * u, scale * v) for u, v in self.halves),
        )

    def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Which of the `(N, 3)` points lie inside, deeper than `margin` (as a part of the half widths): `(N,)` bool."""
        height, level = self.top - self.bottom, 1.0 - margin
        deep = np.abs(2.0 * points[:, 1] - self.bottom - self.top) <= level * height
        chosen = np.flatnonzero(deep)
        x, y, z = points[chosen].T
        t = (y - self.bottom) / height  # 0 at the bottom, 1 at the top
        (low_x, low_z), (high_x, high_z) = self.centres
        (low_a, low_b), (high_a, high_b) = self.halves
        across = np.abs(x - low_x - t * (high_x - low_x)) / (low_a + t * (high_a - low_a))
        along = np.abs(z - low_z - t * (high_z - low_z)) / (low_b + t * (high_b - low_b))
        deep[chosen] = (np.hypot(across, along) if self.round else np.maximum(across, along)) <= level
        return deep

    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """Closed surface: vertices `(V, 3)` and outward triangles `(F, 3)`."""
        outline = _CIRCLE if self.round else _SQUARE
        sides = len(outline)
        vertices = np.empty((2 * sides, 3))
        for ring, centre, half, y in zip((0, sides), self.centres, self.halves, (self.bottom, self.top)):
            vertices[ring : ring + sides, ::2] = outline * half + centre
            vertices[ring : ring + sides, 1] = y
        low = np.arange(sides)
        following = (low + 1) % sides
        walls = np.concatenate(
            [
                np.stack([low, following, following + sides], axis=1),
                np.stack([low, following + sides, low + sides], axis=1),
            ]
        )
        fan = np.stack([np.zeros(sides - 2, dtype=int), low[1:-1], low[2:]], axis=1)
        return vertices, np.concatenate([walls, fan[:, ::-1], fan + sides])


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], role: str = "wood") -> Part:
    """The box [x0, x1] × [y0, y1] × [z0, z1]."""
    centre, half = ((x[0] + x[1]) / 2, (z[0] + z[1]) / 2), ((x[1] - x[0]) / 2, (z[1] - z[0]) / 2)
    return Part(y[0], y[1], (centre, centre), (half, half), role=role)


def disc(centre: tuple[float, float], y: tuple[float, float], radius: float, role: str = "wood") -> Part:
    """An upright cylinder of `radius` about `centre` = (x, z)."""
    return Part(y[0], y[1], (centre, centre), ((radius, radius), (radius, radius)), round=True, role=role)


class Solid:
    """The union of parts.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Part]):
        if not parts:
            raise ValueError("a solid needs at least one part")
        self.parts = tuple(parts)
        sizes = [size for part in parts for size in (part.top - part.bottom, *part.halves[0], *part.halves[1])]
        if not min(sizes) > 0 or not np.isfinite(sizes).all():
            raise ValueError(f"parts must have positive, finite sizes, got {min(sizes)} as the smallest")

    @property
    def bounds(self) -> np.ndarray:
        """`(2, 3)`: lower and upper corner of the smallest box around it."""
        centres, halves = (np.array([getattr(part, name) for part in self.parts]) for name in ("centres", "halves"))
        low, high = (centres - halves).min((0, 1)), (centres + halves).max((0, 1))  # (x, z)
        bottom, top = min(part.bottom for part in self.parts), max(part.top for part in self.parts)
        return np.array([[low[0], bottom, low[1]], [high[0], top, high[1]]])

    def normalized(self, longest: float = 0.9) -> Solid:
        """Scaled and moved so that its box is centred on the origin with `longest` as its longest side."""
        low, high = self.bounds
        scale = longest / (high - low).max()
        return Solid([part.moved(scale, -scale * (low + high) / 2) for part in self.parts])

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of the `(N, 3)` points lie inside or on the solid: `(N,)` bool, exact up to rounding."""
        points = np.asarray(points, dtype=np.float64)
        inside = np.zeros(len(points), dtype=bool)
        for part in self.parts:
            inside |= part.contains(points)
        return inside

    def sample_surface(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`count` points on the outer surface, uniform by area: `(count, 3)` float64, and each one's part `(count,)`."""
        meshes = [part.mesh() for part in self.parts]
        triangles = np.concatenate([vertices[faces] for vertices, faces in meshes])
        owners = np.repeat(np.arange(len(meshes)), [len(faces) for _, faces in meshes])
        points, parts = np.empty((0, 3)), np.empty(0, dtype=int)
        while len(points) < count:
            candidates, chosen = sample_triangles(triangles, 2 * count, rng)
            of_part = owners[chosen]
            hidden = np.zeros(len(candidates), dtype=bool)
            for number, part in enumerate(self.parts):
                hidden |= part.contains(candidates, margin=1e-6) & (of_part != number)
            points = np.concatenate([points, candidates[~hidden]])
            parts = np.concatenate([parts, of_part[~hidden]])
        return points[:count], parts[:count]

    def mesh(self, palette: Mapping[str, Sequence[float]] | None = None) -> trimesh.Trimesh:
        """Closed, overlapping parts as one mesh with flat faces, coloured by role with the RGB in [0, 1] of `palette`."""
        meshes = [part.mesh() for part in self.parts]
        starts = np.cumsum([0] + [len(vertices) for vertices, _ in meshes[:-1]])
        mesh = trimesh.Trimesh(
            np.concatenate([vertices for vertices, _ in meshes]),
            np.concatenate([faces + start for (_, faces), start in zip(meshes, starts)]),
            process=False,
        )
        if palette is not None:
            colours = [np.tile(palette[part.role], (len(faces), 1)) for part, (_, faces) in zip(self.parts, meshes)]
            mesh.visual.face_colors = np.rint(255.0 * np.concatenate(colours)).astype(np.uint8)
        return mesh
