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
"""From an occupancy field to a watertight triangle mesh, evaluating the field only where its surface is."""

from __future__ import annotations

import importlib.util
import itertools
import math
import numbers
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh

from ..files import replacing
from .marching_cubes import EDGES, case_table
from .sparse_grid import SparseGrid, brick_size


Field = Callable[[torch.Tensor], torch.Tensor]
Bounds = Sequence[float] | Sequence[Sequence[float]]

MAX_RESOLUTION = 1024
MESH_SUFFIXES = (".glb", ".obj", ".ply", ".stl")
# Vertices keep this distance (in grid cells) from grid nodes, so that no triangle collapses where a node lies on the surface.
_NODE_CLEARANCE = 1e-3
# Where all triangles around a vertex lie within this angle of their mean, that is its normal: the gradient would say the same.
_FLAT_ANGLE = math.radians(2.0)
# Cells of one side of the grid, times shapes, that are extracted at once: eight shapes at 256³, about 1 GiB.
_MOST_AT_ONCE = 8 * 256**2
# A differentiated call keeps its activations.
_GRADIENT_SHARE = 8
# Values beyond are as good as infinite, and would spoil interpolation.
_LARGEST_LOGIT = 1e6


def extract_meshes(
    field: Field,
    batch_size: int | None = None,
    *,
    resolution: int = 256,
    level: float = 0.5,
    bounds: Bounds | None = None,
    coarse_resolution: int = 32,
    chunk_size: int = 131_072,
    normals: bool = True,
    simplify: float | int | None = None,
    device: torch.device | str | None = None,
) -> list[trimesh.Trimesh]:
    """Surfaces of occupancy fields: the meshes that marching cubes on a dense grid would give, for a fraction of the work.

    A coarse grid is evaluated whole; then nodes of half the spacing, again and again, but only beside sign changes
    (multiresolution isosurface extraction, Mescheder et al. 2019, supplement, with probes and surface following).

    What may be lost: a part that no node of the coarse grid meets is found only if the field announces it, by coming
    near zero beside it as a signed distance does. Anything thicker than a coarse cell, `1 / coarse_resolution` of the box
    (never less than 8 cells of the fine grid), is always found, and a thinner part is found wherever it is joined to one
    that was met, as far as it is thicker than a cell of the fine grid. Raise `coarse_resolution` to search more closely;
    `coarse_resolution=resolution` evaluates every node.

    Args:
        field: `field(coords (batch, points, 3)) -> (batch, points, 1)` occupancy logits, coordinates in (x, y, z) order. One that
            can be indexed by shape, as a `NeuralField` can, is extracted shape by shape where all at once would take
            more than about 1 GiB.
        batch_size: shapes in the field; `field.batch_size` where it has that attribute, else 1.
        resolution: grid nodes along each axis, both sides of the box included; 2 to 1024, any integer.
        level: occupancy probability in (0, 1) at which the surface lies.
        bounds: `(low, high)`, numbers or `(x, y, z)` triples; `field.bounds` where it has that attribute, else
            (-0.5, 0.5). Outside of the box counts as empty, so surfaces close there.
        coarse_resolution: cells along each axis of the grid that is searched first, about: the spacing is a power of two.
        chunk_size: points, times batch, passed to the field at once. It bounds memory and does not change results.
        normals: gives vertices normals along the field's own gradient, by one differentiated evaluation for each vertex
            whose triangles differ by more than 2 degrees from their mean; else trimesh computes them from the triangles.
        simplify: reduces each mesh to this number of faces, or to this part of them if it is a float in (0, 1), by edge
            collapses guided by quadric error. Needs the package `fast-simplification`. A mesh that cannot be reduced so
            far, or is not watertight any more, gives a `UserWarning`.
        device: where to evaluate; `field.device` where it has that attribute, else the CPU.

    Returns:
        One mesh per shape, faces counter-clockwise seen from outside, watertight unless `simplify` warns. A field that
        is empty or solid throughout gives an empty mesh and a `UserWarning`.

    Raises:
        TypeError, ValueError: for arguments out of range, and for a field whose values are NaN or have another shape.
        ImportError: `simplify` without its package.
    """
    batch_size = getattr(field, "batch_size", 1) if batch_size is None else batch_size
    box = _checked_bounds(getattr(field, "bounds", (-0.5, 0.5)) if bounds is None else bounds)
    check_extraction(resolution, level, simplify)
    _check_integer("coarse_resolution", coarse_resolution, 1, MAX_RESOLUTION)
    _check_integer("batch_size", batch_size, 1, math.inf)
    _check_integer("chunk_size", chunk_size, 1, math.inf)

    device = torch.device(getattr(field, "device", "cpu") if device is None else device)
    if batch_size > 1 and batch_size * resolution**2 > _MOST_AT_ONCE and hasattr(field, "__getitem__"):
        options = {"coarse_resolution": coarse_resolution, "chunk_size": chunk_size, "normals": normals}
        options |= {"resolution": resolution, "level": level, "bounds": bounds, "simplify": simplify, "device": device}
        return [mesh for item in range(batch_size) for mesh in extract_meshes(field[item], **options)]
    sampler = _Sampler(field, batch_size, resolution, box, math.log(level / (1.0 - level)), chunk_size, device)
    with torch.no_grad():
        grid = SparseGrid(
            sampler.values, batch_size, resolution, brick_size(resolution, coarse_resolution), sampler.device
        )
        surfaces = _march(grid, sampler)
    if simplify is not None:
        surfaces = [_simplified(*surface, simplify, index) for index, surface in enumerate(surfaces)]
    # Simplification leaves large triangles, few vertices, and mean normals that say little.
    flat_angle = _FLAT_ANGLE if simplify is None else 0.0
    vertex_normals = sampler.normals(surfaces, flat_angle) if normals else [None] * batch_size
    return [
        trimesh.Trimesh(vertices, faces, vertex_normals=directions if len(faces) else None, process=False)
        for (vertices, faces), directions in zip(surfaces, vertex_normals)
    ]


def save_mesh(mesh: trimesh.Trimesh, path: str | os.PathLike) -> None:
    """Writes a mesh as GLB, OBJ, PLY or STL, by the file's suffix, whole or not at all.

    Vertex colours and normals are kept where the mesh has them and the format can hold them (STL holds neither).

    Raises:
        ValueError: another suffix, or a mesh without faces.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise ValueError(f"Cannot write {path.name!r}: the suffix must be one of {', '.join(MESH_SUFFIXES)}.")
    if not len(mesh.faces):
        raise ValueError(f"The mesh for {path.name!r} has no faces: there is nothing to write.")
    content = mesh.export(file_type=path.suffix.lower()[1:])
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


class _Sampler:
    """Evaluates the fields at scattered points, in chunks, as values relative to the level."""

    def __init__(self, field, batch_size, resolution, box, level, chunk_size, device):
        self.field, self.batch_size, self.resolution, self.level = field, batch_size, resolution, level
        self.box, self.device = box, device
        self.points_per_call = max(1, chunk_size // batch_size)
        line = torch.arange(resolution + 2)[:, None].expand(-1, 3)
        self.node_lines = self.coordinates(line).float().T.contiguous().to(device)  # (3, resolution + 2)

    def coordinates(self, nodes: torch.Tensor) -> torch.Tensor:
        """Nodes 1..resolution, or numbers between, `(points, 3)` on the CPU -> coordinates in the box, float64."""
        low, high = torch.from_numpy(self.box)
        # Weighting the two ends gives them exactly, and the middle of a box about the origin too.
        fraction = (nodes.double() - 1) / (self.resolution - 1)
        return low * (1 - fraction) + high * fraction

    def values(self, owner: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Logits above the level `(points,)` of the fields in `owner` `(points,)` at `nodes` `(points, 3)`."""
        points = torch.stack([line[node] for line, node in zip(self.node_lines, nodes.T)], dim=-1)
        return self._evaluate(owner, points, self._call, self.points_per_call)

    def normals(self, surfaces: list[tuple[np.ndarray, np.ndarray]], flat_angle: float) -> list[np.ndarray]:
        """Outward unit normals of `(vertices, faces)`: down the field's gradient, or those of the triangles where these
        agree to within `flat_angle`, where the gradient vanishes and where the box cut the surface."""
        normals, agreement = zip(*(_triangle_normals(*surface) for surface in surfaces))
        counts = [len(vertices) for vertices, _ in surfaces]
        normals, points = np.concatenate(normals), np.concatenate([vertices for vertices, _ in surfaces])
        inside = ((points > self.box[0]) & (points < self.box[1])).all(axis=1)
        asked = np.flatnonzero((np.concatenate(agreement) < math.cos(flat_angle)) & inside)

        owner = torch.from_numpy(np.repeat(np.arange(self.batch_size), counts)[asked]).to(self.device)
        where = torch.from_numpy(points[asked]).float().to(self.device)
        calls = self.points_per_call // _GRADIENT_SHARE
        gradient = self._evaluate(owner, where, self._call_gradient, max(1, calls)).cpu().double().numpy()
        length = np.linalg.norm(gradient, axis=1)
        usable = (length > 0) & np.isfinite(length)
        normals[asked[usable]] = -gradient[usable] / length[usable, None]
        return np.split(normals, np.cumsum(counts)[:-1])

    def _evaluate(self, owner: torch.Tensor, points: torch.Tensor, call: Field, points_per_call: int) -> torch.Tensor:
        """Packs scattered points into `(batch, points, 3)` calls, and their results back into one row per point."""
        if not len(points):
            return points.new_zeros(0) if call == self._call else points
        counts = torch.bincount(owner, minlength=self.batch_size)
        order = torch.argsort(owner, stable=True)
        position = torch.arange(len(owner), device=self.device) - (counts.cumsum(0) - counts)[owner[order]]
        longest = int(counts.max())
        # Shapes with fewer points repeat one of theirs, or of another.
        packed = points[:1].expand(self.batch_size, longest, 3).clone()
        packed[owner[order], position] = points[order]
        values = torch.cat([call(part) for part in packed.split(points_per_call, dim=1)], dim=1)
        result = values.new_empty(len(points), *values.shape[2:])
        result[order] = values[owner[order], position]
        return result

    def _call(self, points: torch.Tensor) -> torch.Tensor:
        values = self.field(points)
        expected = (*points.shape[:2], 1)
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != expected:
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"The field must return logits of shape {expected} for these points, got {got}.")
        values = values[..., 0].to(self.device, torch.float32)
        if values.isnan().any():
            where = points.expand(*points.shape)[values.isnan()][0].tolist()
            raise ValueError(f"The field is NaN at {int(values.isnan().sum())} points, one of them {where}.")
        return (values - self.level).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)

    def _call_gradient(self, points: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            points = points.clone().requires_grad_()
            try:
                values = self.field(points)
            except RuntimeError as error:
                if "Inference tensors" not in str(error):
                    raise
                # A field made in inference mode can never be differentiated; the triangles' normals have to do.
                return torch.zeros_like(points)
            if not values.requires_grad:
                return torch.zeros_like(points)
            return torch.autograd.grad(values.sum(), points)[0]


def _march(grid: SparseGrid, sampler: _Sampler) -> list[tuple[np.ndarray, np.ndarray]]:
    """Vertices `(vertices, 3)` and faces `(faces, 3)` of each field's surface."""
    # A vertex is named by the edge it lies on: the edge's lower node, numbered through all fields, times 4, plus its axis.
    side = grid.resolution + 2
    triangles, counts = (torch.as_tensor(array, device=grid.device) for array in case_table())
    corner, axis = torch.tensor(EDGES, device=grid.device).T
    edge_key = (((corner & 1) * side + (corner >> 1 & 1)) * side + (corner >> 2 & 1)) * 4 + axis
    first, offsets = (
        counts.cumsum(0) - counts,
        edge_key[triangles[triangles[..., 0] >= 0]],
    )  # (820, 3), case after case
    parts = []
    for owner, lowest, case in grid.cells():
        cell_key = (((owner * side + lowest[:, 0]) * side + lowest[:, 1]) * side + lowest[:, 2]) * 4
        number = counts[case]
        cell = torch.arange(len(case), device=grid.device).repeat_interleave(number)
        rank = torch.arange(len(cell), device=grid.device) - (number.cumsum(0) - number)[cell]
        parts.append(offsets[first[case][cell] + rank].add_(cell_key[cell, None]))
    keys, faces = torch.unique(torch.cat(parts), return_inverse=True)
    keys, faces = _close_at_sides(keys, faces, grid)
    vertices = _vertices(keys, grid, sampler)

    owner = keys // (4 * side**3)
    boundaries = torch.searchsorted(owner, torch.arange(grid.batch + 1, device=grid.device)).tolist()
    face_owner = owner[faces[:, 0]]
    has_empty = grid.has_empty().tolist()
    surfaces = []
    for index, (start, end) in enumerate(itertools.pairwise(boundaries)):
        if start == end or not has_empty[index]:
            state = "empty" if start == end else "solid"
            message = f"Field {index} is {state} throughout at this level and resolution: its mesh is empty."
            warnings.warn(message, UserWarning, stacklevel=3)
            surfaces.append((np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)))
        else:
            surfaces.append((vertices[start:end].numpy(), (faces[face_owner == index] - start).cpu().numpy()))
    return surfaces


def _close_at_sides(keys: torch.Tensor, faces: torch.Tensor, grid: SparseGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves vertices on edges that leave the box to the box's side: onto the edge's node in the box, kind 3.

    All such edges of a node share one vertex then, and triangles that this collapses are dropped.
    """
    node, kind, side = keys // 4, keys % 4, grid.resolution + 2
    step = torch.tensor([side**2, side, 1], device=keys.device)[kind]
    along = node // step % side
    leaves = torch.zeros_like(kind, dtype=torch.bool)
    for stride in (side**2, side, 1):
        position = node // stride % side
        leaves |= (position == 0) | (position > grid.resolution) | ((step == stride) & (position == grid.resolution))
    if not leaves.any():
        return keys, faces
    closed = (node + torch.where(along == 0, step, 0)) * 4 + 3
    keys, merged = torch.unique(torch.where(leaves, closed, keys), return_inverse=True)
    faces = merged[faces]
    a, b, c = faces.unbind(-1)
    return keys, faces[(a != b) & (b != c) & (c != a)]


def _vertices(keys: torch.Tensor, grid: SparseGrid, sampler: _Sampler) -> torch.Tensor:
    """Where the field is at the level, `(vertices, 3)`, by linear interpolation along the edges in `keys`."""
    node, kind, side = keys // 4, keys % 4, grid.resolution + 2
    owner = node // side**3
    start = torch.stack([node // side**2 % side, node // side % side, node % side], dim=-1)
    along = torch.eye(4, 3, dtype=torch.long, device=keys.device)[kind]  # none for kind 3, a node
    first, second = (grid.values_at(owner, node).cpu().double() for node in (start, start + along))
    start, along, kind = start.cpu(), along.cpu(), kind.cpu()
    fraction = first / torch.where(kind < 3, first - second, 1.0)
    fraction = fraction.clamp(_NODE_CLEARANCE, 1 - _NODE_CLEARANCE)
    return sampler.coordinates(start + along * fraction[:, None])


def _triangle_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each vertex's mean normal of the triangles around it, weighted by area, and the smallest cosine between the two."""
    corners = vertices[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = [np.bincount(faces.ravel(), np.repeat(component, 3), len(vertices)) for component in areas.T]
    normals = np.stack(sums, axis=1).astype(np.float64)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)
    areas /= np.linalg.norm(areas, axis=1, keepdims=True).clip(1e-30)
    agreement = np.ones(len(vertices))
    np.minimum.at(agreement, faces.ravel(), np.einsum("fc,fkc->fk", areas, normals[faces]).ravel())
    return normals, agreement


def _simplified(
    vertices: np.ndarray, faces: np.ndarray, simplify: float | int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and about `simplify` faces of the closed surface of field `index`."""
    import fast_simplification

    target = max(int(simplify if isinstance(simplify, numbers.Integral) else round(simplify * len(faces))), 4)
    if target >= len(faces):
        return vertices, faces
    # The package's own aggressiveness, 7, dents flat sides; 3 takes as long, but may stop early.
    for aggressiveness in (3, 7):
        fewer = fast_simplification.simplify(vertices, faces, target_count=target, agg=aggressiveness)
        if len(fewer[1]) <= target:
            break
    vertices, faces = np.asarray(fewer[0], dtype=np.float64), np.asarray(fewer[1], dtype=np.int64)
    if len(faces) > target:
        warnings.warn(
            f"Field {index} keeps {len(faces)} faces, where `simplify` asked for {target}: no further edge can be "
            "collapsed. Lower `resolution` instead.",
            UserWarning,
            stacklevel=3,
        )
    _, uses = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0, return_counts=True)
    if (uses != 2).any():
        warnings.warn(
            f"Field {index} is not watertight with {len(faces)} faces: thin parts grew together along "
            f"{np.count_nonzero(uses != 2)} of its edges. Simplify less, or lower `resolution` instead.",
            UserWarning,
            stacklevel=3,
        )
    return vertices, faces


def check_extraction(resolution: int, level: float, simplify: float | int | None = None) -> None:
    """Raises for options that [`extract_meshes`] cannot work with, so that callers can check them before long work."""
    _check_integer("resolution", resolution, 2, MAX_RESOLUTION)
    if isinstance(level, bool) or not isinstance(level, numbers.Real):
        raise TypeError(f"`level` must be a number, got {level!r}.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` is an occupancy probability strictly between 0 and 1, got {level}.")
    if simplify is None:
        return
    whole = isinstance(simplify, numbers.Integral) and not isinstance(simplify, bool)
    if not (whole and simplify >= 4) and not (isinstance(simplify, float) and 0.0 < simplify < 1.0):
        raise ValueError(f"`simplify` must be a number of faces (at least 4) or a float in (0, 1), got {simplify!r}.")
    if importlib.util.find_spec("fast_simplification") is None:
        raise ImportError("`simplify` needs a package that is not installed: `pip install fast-simplification`.")


def _check_integer(name: str, value: int, low: int, high: float) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if not low <= value <= high:
        expected = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
        raise ValueError(f"`{name}` must be {expected}, got {value}.")


def _checked_bounds(bounds: Bounds) -> np.ndarray:
    """`(2, 3)` float64 lower and upper corner."""
    try:
        low, high = (np.broadcast_to(np.asarray(corner, dtype=np.float64), (3,)) for corner in bounds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`bounds` must be (low, high), numbers or (x, y, z) triples, got {bounds!r}.") from error
    box = np.stack([low, high])
    if not np.isfinite(box).all() or (low >= high).any():
        raise ValueError(f"`bounds` must be finite with low < high on every axis, got {bounds!r}.")
    return box
