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
Volume rendering with and without skipping: field evaluations, time and the largest difference of a pixel.

    python examples/benchmarks/volume_rendering.py

Dense is the official setting, 256 samples on every ray. Skipping uses the same sample positions, but evaluates the field only
in the cells of an occupancy grid, and along a ray only until it is opaque; building the grid is counted in. The scenes are
procedural furniture and vehicles, whose radiance field is known exactly. A network costs more per evaluation than their
formulas, so that the time ratio of a trained field lies closer to the ratio of the evaluations.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch

from diffusers_ddmi.data.procedural_scenes import SCENE_KINDS, ProceduralScene, radiance_field
from diffusers_ddmi.rendering.cameras import Cameras
from diffusers_ddmi.rendering.volume import OccupancyGrid, RadianceField, RenderedViews, render_views


class CountedField:
    """A radiance field that counts the points it is asked for."""

    def __init__(self, field: RadianceField):
        self.field = field
        self.evaluations = 0

    def __call__(self, points: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        values = self.field(points, directions)
        self.evaluations += values.shape[0] * values.shape[1]
        return values


def measure(
    scene: ProceduralScene, cameras: Cameras, num_samples: int, grid_resolution: int | None
) -> tuple[RenderedViews, int, float]:
    """Views of a scene, field evaluations and seconds; without a grid resolution every sample is evaluated."""
    field = CountedField(radiance_field([scene]))
    start = time.perf_counter()
    grid = None if grid_resolution is None else OccupancyGrid.from_field(field, (-0.5, 0.5), grid_resolution)
    views = render_views(field, cameras, num_samples, grid=grid)
    return views, field.evaluations, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--num_views", type=int, default=4, help="views of each scene")
    parser.add_argument("--num_samples", type=int, default=256, help="samples on every ray")
    parser.add_argument("--grid_resolution", type=int, default=64, help="cells along each side of the grid")
    args = parser.parse_args()

    cameras = Cameras.orbit(
        args.num_views,
        radius=2.0,
        elevation=20.0,
        fov_y=math.radians(41.0),
        height=args.size,
        width=args.size,
        near=1.2,
        far=2.8,
    )
    print(f"{args.num_views} views of {args.size}x{args.size}, {args.num_samples} samples a ray, one line per scene")
    print(f"{'scene':<36}{'dense':>12}{'skipping':>12}{'ratio':>8}{'time ratio':>12}{'difference':>13}")
    with torch.no_grad():
        for seed, kind in enumerate(SCENE_KINDS):
            scene = ProceduralScene.build(kind, np.random.default_rng(seed))
            dense, dense_evaluations, dense_time = measure(scene, cameras, args.num_samples, None)
            sparse, evaluations, sparse_time = measure(scene, cameras, args.num_samples, args.grid_resolution)
            difference = (dense.colors - sparse.colors).abs().max().item() * 255
            print(
                f"{scene.caption[:35]:<36}{dense_evaluations:>12,}{evaluations:>12,}"
                f"{dense_evaluations / evaluations:>8.1f}{dense_time / sparse_time:>12.1f}{difference:>9.2f}/255"
            )


if __name__ == "__main__":
    main()
