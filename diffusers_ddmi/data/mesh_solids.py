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
"""From a mesh file, in whatever state, to a normalised solid: which points are inside, and points on its surface.

Inside is where the generalised winding number (Jacobson et al., SIGGRAPH 2013; evaluated as in Barill et al., SIGGRAPH 2018,
by libigl) is at least one half. It counts how often the surface goes around a point, so overlapping closed parts make a
union, and holes are closed as the rest of the surface suggests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import igl
import numpy as np
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .base import MACHINE_FAULTS
from .mesh_sampling import sample_triangles


MESH_SUFFIXES = frozenset({".obj", ".ply", ".stl", ".glb", ".off"})
# Larger files and meshes are refused: they would fill the memory of the machine long before they showed more detail.
MAX_FILE_BYTES = 1 << 30
MAX_FACES = 2_000_000
# Longest side of a normalised mesh; the cube that fields live in has side 1.
LONGEST_SIDE = 0.9
# Vertices closer than this, in units of the normalised mesh, are one.
_MERGE = 1e-6
# A point of the surface is on the boundary of the solid if this far in front of it is outside and behind it inside.
_STEP = 5e-4


def load_solid(path: Path) -> MeshSolid:
    """The solid of a mesh file.

    Raises:
        ValueError: a file that is empty, damaged, too large or without faces, or a mesh that encloses nothing; the
            message begins with the file.
        OSError, MemoryError, ImportError: the machine is at fault (`MACHINE_FAULTS`, or it lacks a reader), not the file.
    """
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise ValueError(f"{path}: {size} bytes; expected more than none and at most {MAX_FILE_BYTES}")
    try:
        with _quiet():
            scene = trimesh.load_scene(path, process=False, skip_materials=True)
            mesh = scene.to_mesh()
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # a reader of a damaged file may raise anything
        if getattr(error, "errno", None) in MACHINE_FAULTS:
            raise
        raise ValueError(f"{path}: cannot be read as a mesh ({type(error).__name__}: {error})") from error
    try:
        return MeshSolid.from_mesh(mesh.vertices, mesh.faces)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """trimesh logs what it then also raises, with tracebacks."""
    logger = logging.getLogger("trimesh")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@dataclass(frozen=True)
class MeshSolid:
    """A mesh, repaired, consistently oriented and normalised: centred on the origin, longest side 0.9.

    Attributes:
        vertices: `(V, 3)` float64.
        faces: `(F, 3)` int64, outward.
        repairs: what had to be done to it, in words.
    """

    vertices: np.ndarray
    faces: np.ndarray
    repairs: tuple[str, ...] = ()

    @classmethod
    def from_mesh(cls, vertices: np.ndarray, faces: np.ndarray) -> MeshSolid:
        """Drops what is no surface (vertices that are not finite, empty triangles), merges vertices that are in one place, and
        orients the parts outwards.

        Raises:
            ValueError: without faces, with more than `MAX_FACES`, or with coordinates that span nothing or too much.
        """
        vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
        if len(faces) == 0:
            raise ValueError(f"{len(vertices)} vertices but no faces")
        if len(faces) > MAX_FACES:
            raise ValueError(f"{len(faces)} faces are too many; simplify it to at most {MAX_FACES}")
        repairs = []
        usable = (faces >= 0).all(axis=1) & (faces < len(vertices)).all(axis=1)
        usable[usable] = np.isfinite(vertices[faces[usable]]).all(axis=(1, 2))
        if not usable.all():
            repairs.append(f"dropped {np.count_nonzero(~usable)} faces without finite vertices")
        if not usable.any():
            raise ValueError("no face has finite vertices")
        triangles = _normalized(vertices[faces[usable]])

        vertices, faces = _merge_vertices(triangles)
        faces = faces[_has_area(vertices[faces])]
        if len(faces) == 0:
            raise ValueError("all faces are empty: every one is a line or a point")
        faces, reoriented = _oriented(vertices, faces)
        return cls(vertices, faces, (*repairs, *reoriented))

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of the `(N, 3)` points lie inside: `(N,)` bool."""
        return winding_numbers(self.vertices, self.faces, points) >= 0.5

    def sample_surface(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`(count, 3)` float64 points on the boundary of the solid, uniform by area; faces within the solid, or that
        bound nothing, get none.

        Raises:
            ValueError: the mesh encloses no volume.
        """
        triangles = self.vertices[self.faces]
        edges = triangles[:, 1:] - triangles[:, :1]
        normals = np.cross(edges[:, 0], edges[:, 1])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        found, tried = np.empty((0, 3)), 0
        while len(found) < count:
            points, chosen = sample_triangles(triangles, count, rng)
            step = _STEP * normals[chosen]
            inside = self.contains(np.concatenate([points - step, points + step])).reshape(2, -1)
            found = np.concatenate([found, points[inside[0] != inside[1]]])
            tried += count
            if len(found) < 0.01 * tried:
                raise ValueError(f"encloses no volume: {len(found)} of {tried} surface points have an inside")
        return found[:count]


def winding_numbers(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Generalised winding number of the surface around each of the `(N, 3)` points: `(N,)` float64."""
    points = np.ascontiguousarray(points, dtype=np.float64)
    return igl.fast_winding_number(vertices, faces, points) if len(points) else np.zeros(0)


def _normalized(triangles: np.ndarray) -> np.ndarray:
    """Triangles `(F, 3, 3)` centred on the origin with `LONGEST_SIDE` as the longest side of their box."""
    low, high = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
    # Halves first: the difference of the largest numbers is no number any more.
    longest = 2.0 * (0.5 * high - 0.5 * low).max()
    if not 0.0 < longest < np.inf:
        raise ValueError(f"spans {longest} from {low} to {high}; expected a size above 0 that is a number")
    return (triangles - (0.5 * low + 0.5 * high)) / longest * LONGEST_SIDE


def _merge_vertices(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    corners = triangles.reshape(-1, 3)
    _, first, index = np.unique(
        np.rint(corners / _MERGE).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    return np.ascontiguousarray(corners[first]), index.reshape(-1, 3).astype(np.int64)


def _has_area(triangles: np.ndarray) -> np.ndarray:
    edges = triangles[:, 1:] - triangles[:, :1]
    return np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) > _MERGE**2


def _oriented(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Faces with every connected part turned outwards, and what was done.

    Cavities, closed parts that are turned inwards within others, stay as they are.
    """
    repairs = []
    part = _parts_of(faces, len(vertices))
    single, part, doubled = _single_sided(faces, part)
    if doubled.any():
        repairs.append(f"dropped {len(faces) - len(single)} back sides")
    faces = single
    torn = np.isin(part, np.unique(part[_conflicting(faces)]))
    if torn.any():
        consistent, _ = igl.bfs_orient(np.ascontiguousarray(faces[torn]))
        turned = np.count_nonzero((consistent != faces[torn]).any(axis=1))
        faces[torn] = consistent
        repairs.append(f"turned {turned} faces that disagreed with their neighbours")

    volumes, openness = _volumes_and_openness(vertices, faces, part)
    # Which side of a part with both was kept is chance.
    if volumes[~doubled].sum() < 0.0:
        faces, volumes = faces[:, ::-1].copy(), -volumes
        repairs.append("turned inside out")
    # What is wide open has no inside of its own to judge it by; there the file is believed.
    inward = np.flatnonzero((openness < 0.2) & (volumes < 0.0))
    inward = inward[~_are_cavities(vertices, faces, part, inward)]
    if len(inward):
        chosen = np.isin(part, inward)
        faces[chosen] = faces[chosen][:, ::-1]
        repairs.append(f"turned {len(inward)} parts outwards")
    return np.ascontiguousarray(faces), repairs


def _parts_of(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """The number of the connected part that each face belongs to; faces that share an edge are connected."""
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    _, edge = np.unique(edges[:, 0] * num_vertices + edges[:, 1], return_inverse=True)
    owner = np.repeat(np.arange(len(faces)), 3)
    # Faces and edges are the nodes of one graph.
    nodes = len(faces) + int(edge.max()) + 1
    graph = coo_array((np.ones(len(owner), dtype=np.int8), (owner, len(faces) + edge)), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    return np.unique(labels[: len(faces)], return_inverse=True)[1]


def _single_sided(faces: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces without the back sides of parts that are modelled with both sides, whose winding numbers would cancel; the
    part of each face; and which of the parts these are.

    In other parts, faces that are there twice are walls between solids that touch, and do cancel rightly.
    """
    _, first, same, count = np.unique(
        np.sort(faces, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    doubled = np.bincount(part, count[same] == 2) > 0.9 * np.bincount(part)
    keep = ~doubled[part]
    keep[first] = True
    return faces[keep], part[keep], doubled


def _conflicting(faces: np.ndarray) -> np.ndarray:
    """Which faces run along an edge in the same direction as the only other face there."""
    directed = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    forward = directed[:, 0] < directed[:, 1]
    _, edge, count = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True, return_counts=True)
    balance = np.bincount(edge, np.where(forward, 1, -1))
    return ((count == 2) & (balance != 0))[edge].reshape(-1, 3).any(axis=1)


def _volumes_and_openness(vertices: np.ndarray, faces: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each part: its signed volume, openings counted as cones over their rims from the part's centre; and how open it
    is, the length of its summed area vectors over its area: 0 where it is closed, 1 for a plane, 1/2 for a hemisphere."""
    triangles = vertices[faces]
    size = np.bincount(part)
    centres = _sums(part, triangles.mean(axis=1)) / size[:, None]
    local = triangles - centres[part][:, None]
    volumes = np.bincount(part, np.einsum("fk,fk->f", local[:, 0], np.cross(local[:, 1], local[:, 2])) / 6.0)
    areas = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    openness = np.linalg.norm(_sums(part, areas), axis=1) / np.bincount(part, np.linalg.norm(areas, axis=1))
    return volumes, openness


def _sums(part: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """`(parts, 3)`: the sum of each part's `(F, 3)` vectors."""
    return np.stack([np.bincount(part, column) for column in vectors.T], axis=1)


def _are_cavities(vertices: np.ndarray, faces: np.ndarray, part: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which of the parts `numbers` lie within the others: `(numbers,)` bool.

    The others' winding number is that of all faces less the part's own, so that all are looked up together: thousands
    of parts take seconds.
    """
    order = np.argsort(part, kind="stable")
    starts, ends = (np.searchsorted(part[order], numbers, side) for side in ("left", "right"))
    corners, own = [], []
    for start, end in zip(starts, ends):
        used, local = np.unique(faces[order[start:end]], return_inverse=True)
        some = vertices[used[:: max(1, len(used) // 256)]]
        corners.append(some)
        own.append(winding_numbers(vertices[used], local.reshape(-1, 3), some))
    if not corners:
        return np.zeros(0, dtype=bool)
    others = winding_numbers(vertices, np.ascontiguousarray(faces), np.concatenate(corners)) - np.concatenate(own)
    within = np.split(others > 0.9, np.cumsum([len(some) for some in corners])[:-1])
    return np.array([some.mean() > 0.9 for some in within])
