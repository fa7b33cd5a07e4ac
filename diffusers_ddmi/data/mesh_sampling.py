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
"""Points on and around surfaces: what a shape's row in a data set is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


# Half width of the cube in which queries lie.
HALF_CUBE = 0.5
# Distance of queries from the surface: standard deviation along each axis, in lengths of the cube's side.
NEAR_SURFACE = 0.03


def sample_triangles(triangles: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random points on triangles, uniform by area.

    Args:
        triangles: `(F, 3, 3)` corners; their areas must not all be zero.
        count: how many points.

    Returns:
        points `(count, 3)` and the index of each one's triangle `(count,)`.
    """
    corner, edges = triangles[:, 0], triangles[:, 1:] - triangles[:, :1]
    areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    total = np.cumsum(areas)
    # At most the last triangle with an area: u · total rounds up to total itself at times.
    last = int(np.searchsorted(total, total[-1]))
    chosen = np.minimum(np.searchsorted(total, rng.random(count) * total[-1], side="right"), last)
    uv = rng.random((count, 2))
    uv = np.where(uv.sum(axis=1, keepdims=True) > 1.0, 1.0 - uv, uv)
    return corner[chosen] + np.einsum("nk,nkd->nd", uv, edges[chosen]), chosen


def sample_queries(
    surface: np.ndarray, num_uniform: int, count: int, rng: np.random.Generator, std: float = NEAR_SURFACE
) -> np.ndarray:
    """`count` points at which occupancy is asked: first `num_uniform` in the cube [-0.5, 0.5]³, the others about the surface.

    Args:
        surface: `(K, 3)` points on the surface.
        std: of the normal distance from the surface along each axis; points are kept in the cube.

    Returns:
        `(count, 3)` float16. Occupancy is to be decided at these rounded positions (spacing up to
        2.4e-4), which makes the rounding exact.
    """
    uniform = rng.uniform(-HALF_CUBE, HALF_CUBE, (num_uniform, 3))
    num_near = count - num_uniform
    near = surface[rng.integers(len(surface), size=num_near)] + std * rng.standard_normal((num_near, 3))
    return np.clip(np.concatenate([uniform, near]), -HALF_CUBE, HALF_CUBE).astype(np.float16)


def shape_row(
    name: str,
    surface: np.ndarray,
    contains: Callable[[np.ndarray], np.ndarray],
    num_points: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """A data set row of a shape: `num_points` queries, half uniform in the cube and half near the surface.

    Args:
        surface: `(K, 3)` points on the surface.
        contains: `(N, 3)` float64 positions -> `(N,)` bool, true inside.

    Returns:
        `name`; `surface` float32; `points` `(num_points, 3)` float16; `occupancies`, the answers at `points`, eight to a
        byte as `numpy.packbits` packs them; `num_uniform`, how many of the points, the first, are uniform in the cube.
    """
    num_uniform = num_points // 2
    points = sample_queries(surface, num_uniform, num_points, rng)
    return {
        "name": name,
        "surface": surface.astype(np.float32),
        "points": points,
        "occupancies": np.packbits(contains(points.astype(np.float64))),
        "num_uniform": num_uniform,
    }
