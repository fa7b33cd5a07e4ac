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
"""The cases of marching cubes (Lorensen and Cline 1987), derived instead of listed.

A cell's corner `c` in 0..7 lies at (c & 1, c >> 1 & 1, c >> 2 & 1); bit `c` of a case says that corner `c` is inside. On
every face of a cell the surface runs between the edges that change side, and solid corners that meet only across a face's
diagonal stay connected. Both cells at a face decide alike, so the surface closes. Within a cell these segments chain into
loops, which are cut into triangles without a diagonal that lies in a face, where a neighbour could repeat it: no edge is
ever shared by more than two triangles.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np


# A cell's edges: the end nearer the origin, and the axis along which the edge runs.
EDGES = tuple((corner, axis) for axis in range(3) for corner in range(8) if not corner >> axis & 1)
_EDGE_BETWEEN = {frozenset((corner, corner | 1 << axis)): edge for edge, (corner, axis) in enumerate(EDGES)}


class CaseTable(NamedTuple):
    """Triangles of each of the 256 cases.

    Attributes:
        triangles: `(256, 5, 3)` edges, in the order of `EDGES`, counter-clockwise seen from outside; unused rows are -1.
        counts: `(256,)` triangles in each case.
    """

    triangles: np.ndarray
    counts: np.ndarray


@cache
def case_table() -> CaseTable:
    cases = [[triangle for loop in _loops(case) for triangle in _triangulate(loop)] for case in range(256)]
    counts = np.array([len(triangles) for triangles in cases])
    table = np.full((256, counts.max(), 3), -1)
    for case, triangles in enumerate(cases):
        table[case, : len(triangles)] = np.array(triangles).reshape(-1, 3)
    return CaseTable(table, counts)


def _faces() -> list[list[int]]:
    """The corners around each face of a cell, counter-clockwise seen from outside."""
    faces = []
    for axis in range(3):
        first, second = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
        ring = [0, first, first | second, second]
        faces += [[corner | 1 << axis for corner in ring], ring[::-1]]
    return faces


_FACES = _faces()
_FACE_EDGES = [{_EDGE_BETWEEN[frozenset((ring[k - 1], ring[k]))] for k in range(4)} for ring in _FACES]


def _loops(case: int) -> list[list[int]]:
    """The closed chains of edges along which the surface leaves the cell."""
    follows = {}
    for ring in _FACES:
        inside = [bool(case >> corner & 1) for corner in ring]
        edges = [_EDGE_BETWEEN[frozenset((ring[k], ring[(k + 1) % 4]))] for k in range(4)]
        leaving = [k for k in range(4) if inside[k] and not inside[(k + 1) % 4]]
        entering = [k for k in range(4) if not inside[k] and inside[(k + 1) % 4]]
        for k in leaving:
            # The next way in, going around: the stretch between the two is outside, and is cut off by itself.
            enter = next((k + step) % 4 for step in range(1, 4) if (k + step) % 4 in entering)
            follows[edges[enter]] = edges[k]
    loops = []
    while follows:
        loop = [min(follows)]
        while (edge := follows.pop(loop[-1])) != loop[0]:
            loop.append(edge)
        loops.append(loop)
    return loops


def _triangulate(loop: list[int]) -> list[tuple[int, int, int]] | None:
    """Cuts a loop into triangles by diagonals that cross the cell's interior; `None` where that cannot be done.

    It can for every loop of every case.
    """
    if len(loop) < 3:
        return []
    last = len(loop) - 1
    for apex in range(1, last):
        cuts = ([(0, apex)] if apex > 1 else []) + ([(apex, last)] if apex < last - 1 else [])
        if any(loop[a] in face and loop[b] in face for a, b in cuts for face in _FACE_EDGES):
            continue
        before, after = _triangulate(loop[: apex + 1]), _triangulate(loop[apex:])
        if before is not None and after is not None:
            return [(loop[0], loop[apex], loop[last]), *before, *after]
    return None
