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
Surface extraction against dense evaluation of the same field: evaluations, time, IoU and Chamfer distance, and the memory
of a fine mesh.

    python examples/benchmarks/surface_extraction.py                        # 256³, three pieces of furniture, minutes each
    python examples/benchmarks/surface_extraction.py --dense_every 16       # a quicker look: each 16th slab of the dense grid

The field is a network of the official occupancy read-out's width (three planes at three scales, 64 channels, six hundred
thousand weights, random) whose output is scaled down and added to the logits of a piece of procedural furniture: the cost
of a trained field with a surface that is known. Dense is the official setting, every node of the grid; its time is that of
the evaluation alone, without marching cubes. The Chamfer distance is that of the vertices from those of scikit-image's
marching cubes on the dense grid, at a resolution of its own, 128³, since slabs have no surface. Memory is measured in a
process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from skimage.measure import marching_cubes
from torch import nn
from tqdm import tqdm

from diffusers_ddmi.data.furniture import Furniture
from diffusers_ddmi.metrics.shapes import chamfer_distance
from diffusers_ddmi.rendering.surface import extract_meshes


# Points that stay in a processor's cache.
_POINTS_PER_CALL = 4096


class FurnitureField:
    """Occupancy logits of a piece of furniture, from its parts and a small random network; counts evaluations.

    Args:
        seed: of the piece and of the network.
    """

    def __init__(self, seed: int):
        self.furniture = Furniture.from_seed(seed)
        self.evaluations = 0
        self.network = ReadoutLikeNetwork(seed)
        parts = self.furniture.solid.parts
        self.bottom, self.top, self.centres, self.halves, self.round = (
            torch.tensor(np.array([getattr(part, name) for part in parts]))
            for name in ("bottom", "top", "centres", "halves", "round")
        )

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        self.evaluations += points.shape[0] * points.shape[1]
        return torch.cat([self._evaluate(part) for part in points.split(_POINTS_PER_CALL, dim=1)], dim=1)

    def _evaluate(self, points: torch.Tensor) -> torch.Tensor:
        return 100.0 * self.depth(points)[..., None] + 0.05 * torch.tanh(self.network(points))

    def depth(self, points: torch.Tensor) -> torch.Tensor:
        """How far inside the nearest side of a part, about; negative outside: `(batch, points)`."""
        x, y, z = points[..., None].double().unbind(-2)
        t = ((y - self.bottom) / (self.top - self.bottom)).clamp(0, 1)
        (cx, cz), (a, b) = (
            (ends[:, 0] + t[..., None] * (ends[:, 1] - ends[:, 0])).unbind(-1) for ends in (self.centres, self.halves)
        )
        across, along = (x - cx).abs(), (z - cz).abs()
        elliptic = (1 - torch.hypot(across / a, along / b)) * torch.minimum(a, b)
        sides = torch.where(self.round, elliptic, torch.minimum(a - across, b - along))
        ends = (self.top - self.bottom) / 2 - (y - (self.top + self.bottom) / 2).abs()
        return torch.minimum(sides, ends).amax(-1).float()


class ReadoutLikeNetwork(nn.Module):
    """Random planes and weights of the official occupancy read-out's sizes."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.planes = [torch.randn(3, 64, size, size, generator=generator) for size in (16, 32, 64)]
        self.inputs = nn.ModuleList(nn.Linear(64, 256) for _ in self.planes)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)) for _ in range(4)
        )
        self.output = nn.Linear(256, 1)
        for parameter in self.parameters():
            parameter.requires_grad_(False).normal_(0, 0.06, generator=generator)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        flat = points.reshape(-1, 3)
        pairs = torch.stack([flat[:, pair] for pair in ((0, 1), (0, 2), (1, 2))])[:, None] * 2  # (3, 1, points, 2)
        hidden = 0
        for scale, (planes, linear) in enumerate(zip(self.planes, self.inputs)):
            sampled = F.grid_sample(planes, pairs, align_corners=True, padding_mode="border").sum(0)[:, 0].T
            hidden = hidden + linear(sampled)
            for block in self.blocks[scale : scale + 1 if scale < 2 else None]:
                hidden = hidden + block(hidden)
        return self.output(F.relu(hidden)).reshape(*points.shape[:2], 1)


def dense_occupancy(field: FurnitureField, resolution: int, every: int) -> np.ndarray:
    """The sign at every node of each `every`-th slab of the grid, `(slabs, resolution, resolution)`."""
    line = torch.linspace(-0.5, 0.5, resolution, dtype=torch.float64).float()
    square = torch.cartesian_prod(line, line)
    slabs = []
    for x in tqdm(line[every // 2 :: every], desc="Dense", leave=False):
        points = torch.cat([x.expand(len(square), 1), square], dim=1)
        with torch.no_grad():
            slabs.append((field(points[None]) > 0).reshape(resolution, resolution).numpy())
    return np.stack(slabs)


def mesh_occupancy(mesh: trimesh.Trimesh, resolution: int) -> np.ndarray:
    """Which nodes lie in a mesh that marching cubes made, by counting its crossings along each line of nodes in z.

    The mesh must not reach the sides of the box.
    """
    index = (mesh.vertices + 0.5) * (resolution - 1)
    on_line = (np.abs(index[:, :2] - index[:, :2].round()) < 1e-6).all(1)
    crossings = np.zeros((resolution,) * 3, dtype=np.int8)
    x, y = index[on_line, :2].round().astype(int).T
    np.add.at(crossings, (x, y, np.ceil(index[on_line, 2]).astype(int)), 1)
    return crossings.cumsum(axis=2, dtype=np.int8) % 2 == 1


def chamfer_to_dense(field: FurnitureField, resolution: int) -> float:
    """Chamfer distance (mean squared, both ways) of the mesh's vertices from those of marching cubes on every node."""
    (mesh,) = extract_meshes(field, resolution=resolution, normals=False)
    line = torch.linspace(-0.5, 0.5, resolution, dtype=torch.float64).float()
    with torch.no_grad():
        grid = [field(torch.cartesian_prod(x[None], line, line)[None])[0, :, 0] for x in tqdm(line, leave=False)]
    vertices, *_ = marching_cubes(torch.stack(grid).reshape([resolution] * 3).numpy(), 0.0)
    dense = vertices.astype(np.float64) / (resolution - 1) - 0.5
    return chamfer_distance(mesh.vertices[None], dense[None]).item()


def compare(seed: int, resolution: int, every: int, chamfer_resolution: int) -> None:
    """Prints one row of the table; dense time and evaluations are scaled up from the slabs that were evaluated."""
    field = FurnitureField(seed)
    columns = [field.furniture.design["kind"]]
    for normals in (False, True):
        field.evaluations, start = 0, time.perf_counter()
        (mesh,) = extract_meshes(field, resolution=resolution, normals=normals)
        columns += [field.evaluations, time.perf_counter() - start]
    field.evaluations, start = 0, time.perf_counter()
    dense = dense_occupancy(field, resolution, every)
    dense_time = (time.perf_counter() - start) * resolution / len(dense)
    dense_evaluations = field.evaluations * resolution // len(dense)
    sparse = mesh_occupancy(mesh, resolution)[every // 2 :: every]
    iou = (sparse & dense).sum() / (sparse | dense).sum()
    chamfer = chamfer_to_dense(field, chamfer_resolution) if chamfer_resolution else float("nan")
    kind, evaluations, seconds, _, seconds_with_normals = columns
    print(
        f"{kind:8s} {mesh.area:5.2f} {len(mesh.faces):8d} {dense_evaluations:12,d} {dense_time:8.1f} s {evaluations:10,d} {seconds:7.1f} s "
        f"{seconds_with_normals:7.1f} s {dense_evaluations / evaluations:7.1f} {dense_time / seconds:7.1f} "
        f"{dense_time / seconds_with_normals:7.1f} {iou:9.6f} {chamfer:8.1e} {mesh.is_watertight!s:>10}",
        flush=True,
    )


def peak_memory(seed: int, resolution: int, threads: int, results: multiprocessing.Queue) -> None:
    """Puts (resident memory before, peak) in GiB and the number of faces into `results`."""
    torch.set_num_threads(threads)
    field = FurnitureField(seed)
    before = peak_resident()
    (mesh,) = extract_meshes(field, resolution=resolution)
    results.put((before, peak_resident(), len(mesh.faces)))


def peak_resident() -> float:
    """The largest resident memory of this process so far, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` would count what the parent process held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument(
        "--memory_resolution", type=int, default=512, help="resolution of the memory test; 0 leaves it out"
    )
    parser.add_argument(
        "--chamfer_resolution", type=int, default=128, help="resolution of the Chamfer distance; 0 leaves it out"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 12], help="pieces of procedural furniture")
    parser.add_argument(
        "--dense_every", type=int, default=1, help="evaluate each n-th slab of the dense grid, scale the time"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(
        f"resolution {args.resolution}, {args.threads} threads, times with and without normals; dense: evaluation alone"
    )
    print(
        f"{'':8s} {'area':>5s} {'faces':>8s} {'dense':>12s} {'':10s} {'sparse':>10s} {'':9s} {'+normals':>9s} "
        f"{'fewer':>7s} {'faster':>7s} {'+norm.':>7s} {'IoU':>9s} {'Chamfer':>8s} {'watertight':>10s}"
    )
    for seed in args.seeds:
        compare(seed, args.resolution, args.dense_every, args.chamfer_resolution)
    if args.memory_resolution:
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(
            target=peak_memory, args=(args.seeds[0], args.memory_resolution, args.threads, results)
        )
        process.start()
        before, peak, faces = results.get()
        process.join()
        print(
            f"memory at {args.memory_resolution}³ ({faces} faces): peak {peak:.2f} GiB, of which {before:.2f} GiB before the extraction"
        )


if __name__ == "__main__":
    main()
