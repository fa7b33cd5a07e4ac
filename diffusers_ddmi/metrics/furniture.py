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
"""Does a generated piece of furniture have what its caption tells? Properties read from the shape alone, and from the caption alone.

The measures look at cross-sections of an occupancy grid, not at how a piece was made, and use ratios of its own sizes, so
they work on imperfect meshes from a model. They presume the pose of the procedural furniture: y up, facing +z.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage


PROPERTIES = ("kind", "legs", "top", "back", "arms", "shelves")

Properties = dict[str, Any]


def agreement(told: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How often measured properties are what captions tell: for each property the share of those told that are met, and
    "all" over all told properties together. Properties that no caption tells are left out.

    Args:
        told: of each shape, what its caption tells, see [`caption_properties`].
        measured: of each shape, what it has, see [`measure_furniture`].

    Raises:
        ValueError: not as many of the one as of the other, or nothing told at all.
    """
    if len(told) != len(measured):
        raise ValueError(f"got {len(told)} captions' properties for {len(measured)} shapes")
    met: dict[str, list[bool]] = {}
    for expected, found in zip(told, measured):
        for name, value in expected.items():
            met.setdefault(name, []).append(found.get(name) == value)
    if not met:
        raise ValueError("no caption tells a property")
    everything = [one for values in met.values() for one in values]
    shares = {name: float(np.mean(met[name])) for name in PROPERTIES if name in met}
    return {**shares, "all": float(np.mean(everything))}


# --------------------------------------------------------------------------------------------- captions

_KIND_WORDS = {
    "lamp": "lamp",
    "stool": "stool",
    "bench": "bench",
    "sofa": "sofa|couch",
    "shelf": "bookshelf|shelf unit",
    "bed": "bed",
    "table": "table",
    "chair": "chair",
}
_COUNTS = {"no": 0, "one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_COUNT = "|".join(_COUNTS) + r"|\d+"
_LEGS = re.compile(rf"\b({_COUNT}) (?:(?:thin|thick|straight|splayed|panel|central) )*legs?\b")
_SHELVES = re.compile(rf"\b({_COUNT}) shelves\b")


def caption_properties(caption: str) -> Properties:
    """The properties that a caption of procedural furniture tells: "kind", "legs" and "shelves" (numbers), "top" (round,
    square, rectangular), "back" and "arms" (bool; a headboard or a back panel is a back); only those that it tells.

    Raises:
        ValueError: no kind of furniture is named.
    """
    text = caption.lower()
    kind = next((kind for kind, words in _KIND_WORDS.items() if re.search(rf"\b(?:{words})\b", text)), None)
    if kind is None:
        raise ValueError(f"no kind of furniture in {caption!r}; expected one of {', '.join(_KIND_WORDS)}")
    told: Properties = {"kind": kind}
    if legs := _LEGS.search(text):
        told["legs"] = _count(legs[1])
    if top := re.search(r"\b(round|square|rectangular)\b", text):
        told["top"] = top[1]
    if re.search(r"\b(?:back|headboard|backless)\b", text):
        told["back"] = re.search(r"\b(?:no back|no headboard|backless)\b", text) is None
    if re.search(r"\barm(?:s|rests)\b", text):
        told["arms"] = re.search(r"\bno arm(?:s|rests)\b", text) is None
    if shelves := _SHELVES.search(text):
        told["shelves"] = _count(shelves[1])
    elif under := re.search(r"\b(no|a) shelf underneath\b", text):
        told["shelves"] = int(under[1] == "a")
    return told


def _count(word: str) -> int:
    return _COUNTS[word] if word in _COUNTS else int(word)


# --------------------------------------------------------------------------------------------- shapes


def voxelize_mesh(vertices: np.ndarray, faces: np.ndarray, resolution: int = 64) -> np.ndarray:
    """Which voxels of the cube [-0.5, 0.5]³ have their centre inside a closed mesh: `(resolution,) * 3` bool, axes (x, y, z).

    Counts how often the surface is crossed above a centre, upwards less downwards, so closed parts may overlap.

    Args:
        vertices: `(V, 3)`.
        faces: `(F, 3)`, outward.
    """
    inside = np.zeros((resolution, resolution, resolution + 1), dtype=np.int32)  # (x, z, y)
    if len(faces):
        # In units of voxels, and a little aside, so that no column of centres runs along an edge.
        corners = (np.asarray(vertices, dtype=np.float64)[faces] + 0.5) * resolution - 0.5 + (3.1e-5, 0.0, 1.7e-5)
        column_x, column_z, face = _columns_under(corners, resolution)
        a, b, c = (corners[face, corner] for corner in range(3))
        spot = np.stack([column_x, column_z], axis=1)
        areas = [
            _cross(q - spot, r - spot)
            for q, r in ((b[:, ::2], c[:, ::2]), (c[:, ::2], a[:, ::2]), (a[:, ::2], b[:, ::2]))
        ]
        total = areas[0] + areas[1] + areas[2]
        hit = (total != 0) & ((np.sign(np.stack(areas)) == np.sign(total)).all(axis=0))
        weights = np.stack(areas)[:, hit] / total[hit]
        height = weights[0] * a[hit, 1] + weights[1] * b[hit, 1] + weights[2] * c[hit, 1]
        below = np.clip(np.floor(height).astype(int), -1, resolution - 1) + 1  # so many centres lie below the crossing
        # z × x = y: a positive area in (x, z) is a face that looks down.
        np.add.at(inside, (column_x[hit], column_z[hit], below), -np.sign(total[hit]).astype(np.int32))
    crossings = inside[..., ::-1].cumsum(axis=2)[..., ::-1][..., 1:]
    return (crossings > 0).transpose(0, 2, 1)


def _columns_under(corners: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns of voxels (x, z) in the box of each triangle: indices x, z, and the triangle's, all `(N,)`."""
    low = np.ceil(corners[..., ::2].min(axis=1)).clip(0, resolution).astype(int)
    high = np.floor(corners[..., ::2].max(axis=1)).clip(-1, resolution - 1).astype(int)
    size = np.maximum(high - low + 1, 0)
    face = np.repeat(np.arange(len(corners)), size.prod(axis=1))
    first = np.cumsum(size.prod(axis=1)) - size.prod(axis=1)
    rank = np.arange(len(face)) - first[face]
    return low[face, 0] + rank // size[face, 1], low[face, 1] + rank % size[face, 1], face


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


def measure_furniture(occupancy: np.ndarray) -> Properties:
    """The properties of a piece of furniture: "kind" and, where that kind has them, "legs", "top", "back", "arms", "shelves".

    Args:
        occupancy: `(R, R, R)` bool, true inside, axes (x, y, z), of voxels that are cubes; R of 48 or more resolves the
            parts of procedural furniture.

    Returns:
        Values as in [`caption_properties`]. An empty grid has the kind `None`.

    Raises:
        ValueError: not a bool array of three axes.
    """
    occupancy = np.asarray(occupancy)
    if occupancy.ndim != 3 or occupancy.dtype != np.bool_:
        raise ValueError(f"occupancy must be bool with axes (x, y, z), got {occupancy.dtype} {occupancy.shape}")
    solid = _crop(_without_crumbs(occupancy))
    if not solid.any():
        return {"kind": None}
    return _Measures(solid).properties()


def _without_crumbs(occupancy: np.ndarray) -> np.ndarray:
    labels, number = ndimage.label(occupancy, np.ones((3, 3, 3)))
    if number < 2:
        return occupancy
    sizes = np.bincount(labels.ravel())[1:]
    return np.isin(labels, 1 + np.flatnonzero(sizes >= 0.02 * sizes.sum()))


def _crop(array: np.ndarray) -> np.ndarray:
    for axis in range(array.ndim):
        filled = np.flatnonzero(array.any(axis=tuple(other for other in range(array.ndim) if other != axis)))
        if len(filled):
            array = array.take(range(filled[0], filled[-1] + 1), axis)
    return array


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Beginning and end of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


class _Measures:
    """Measures of one piece, cropped to its box. Heights count in voxels from the floor."""

    def __init__(self, solid: np.ndarray):
        self.solid = solid
        self.width, self.height, self.depth = solid.shape
        self.longest = max(solid.shape)
        self.filled = solid.mean(axis=(0, 2))  # of the footprint, at every height
        # The seat, table top, mattress or base: the thickest level slab.
        slabs = _runs(self.filled > 0.5) or [(int(self.filled.argmax()), int(self.filled.argmax()) + 1)]
        self.slabs = slabs
        self.slab = max(slabs, key=lambda run: run[1] - run[0])

    def properties(self) -> Properties:
        kind = self._kind()
        found: Properties = {"kind": kind}
        if kind == "lamp":
            return {
                **found,
                "legs": self._legs(0.05 * self.height, 0.3 * self.height),
                "top": self._shape(self._shade()[0]),
            }
        if kind == "shelf":
            return {**found, "shelves": self._boards(), "back": self._has_back_panel()}
        if kind in ("sofa", "bed"):
            # Where thick arms and a back stand on it, half of the footprint is filled above the seat as well.
            bottom, top = max(_runs(self.filled > 0.75) or [self.slab], key=lambda run: run[1] - run[0])
            found["legs"] = 0 if bottom < 0.05 * self.longest else self._legs(0, bottom)
            if kind == "sofa":
                return {**found, "back": True, "arms": self._has_arms(top)}
            return {**found, "back": self._rises(top, 0.1, 0.08)}
        if kind in ("table", "stool"):
            bottom, top = self.slabs[-1]
        else:
            bottom, top = max(self.slabs, key=lambda run: self.filled[slice(*run)].mean())
        found["legs"] = self._legs(0.15 * bottom, 0.85 * bottom)
        if kind != "bench":
            found["top"] = self._shape(bottom + int(0.7 * (top - bottom)))
        if kind in ("chair", "bench"):
            found |= {"back": self._rises(top, 0.12, 0.34), "arms": self._has_arms(top)}
        if kind == "table":
            found["shelves"] = self._shelves_under(bottom)
        return found

    def _kind(self) -> str:
        width, height, depth = self.width, self.height, self.depth
        if depth > 1.07 * width and depth > 1.07 * height:
            return "bed"
        if width >= height:
            if self.slab[1] - self.slab[0] > 0.14 * width:
                return "sofa"
            return "bench" if depth < 0.45 * width else "table"
        if self._is_lamp():
            return "lamp"
        if depth < 0.385 * height and len(self.slabs) >= 2:
            return "shelf"
        # Of a stool, the seat is the upper end.
        return "stool" if self.slabs[-1][1] > 0.9 * height else "chair"

    def _shade(self) -> tuple[int, int]:
        """The run of heights at the upper end where there is more than a pole."""
        shade = _runs(self.filled > 0.06)[-1]
        return shade if shade[1] == self.height else (self.height - 1, self.height)

    def _is_lamp(self) -> bool:
        bottom, top = self._shade()
        if top - bottom < 0.17 * self.height or bottom < 0.4 * self.height:
            return False
        shade = _crop(self.solid[:, (bottom + top) // 2])
        return min(shade.shape) > 0.6 * max(shade.shape) and bool(shade.mean() > 0.6)

    def _legs(self, low: float, high: float) -> int:
        """The number of separate cross-sections that is most frequent from height `low` to `high`."""
        heights = range(int(np.ceil(low)), max(int(high), int(np.ceil(low)) + 1))
        return int(np.bincount([self._pieces(self.solid[:, y]) for y in heights]).argmax())

    def _pieces(self, section: np.ndarray) -> int:
        labels, number = ndimage.label(section, np.ones((3, 3)))
        return int((np.bincount(labels.ravel(), minlength=number + 1)[1:] >= max(3, 3e-4 * self.longest**2)).sum())

    def _shape(self, height: int) -> str:
        """Of the cross-section: a disc leaves the corners of its box empty (the front ones: a back may fill the others)."""
        section = _crop(self.solid[:, height])
        x, z = (max(1, round(0.13 * size)) for size in section.shape)
        corners = np.concatenate([section[:x, -z:].ravel(), section[-x:, -z:].ravel()])
        if corners.mean() < 0.5:
            return "round"
        return "square" if min(section.shape) > 0.82 * max(section.shape) or self._kind() != "table" else "rectangular"

    def _rises(self, top: int, least: float, behind: float) -> bool:
        """Whether the hind part, `behind` of the depth, rises above the height `top` by `least` of the longest side."""
        part = self.solid[:, :, : max(2, round(behind * self.depth))]
        level = top + round(least * self.longest)
        return level < self.height and bool(part[:, level].any())

    def _has_arms(self, top: int) -> bool:
        """Whether something stands on the front half of the seat, left and right, at most heights of an arm rest."""
        low, high = top + round(0.025 * self.longest), top + round(0.12 * self.longest)
        front = self.solid[:, low:high, self.depth // 2 :]
        third = max(1, self.width // 3)
        sides = [side.any(axis=(0, 2)) for side in (front[:third], front[-third:])]
        return all(len(side) > 0 and side.mean() > 0.5 for side in sides)

    def _boards(self) -> int:
        """Level boards, counted in the middle of the width, in front of a back panel."""
        middle = self.solid[
            int(0.3 * self.width) : int(np.ceil(0.7 * self.width)), :, int(0.4 * self.depth) : int(0.9 * self.depth)
        ]
        return len(_runs(middle.mean(axis=(0, 2)) > 0.5))

    def _has_back_panel(self) -> bool:
        hind = self.solid[int(0.3 * self.width) : int(np.ceil(0.7 * self.width)), :, : max(2, round(0.2 * self.depth))]
        return bool(hind.any(axis=2).mean() > 0.7)

    def _shelves_under(self, bottom: int) -> int:
        """Level boards under a table top, above the foot of a pedestal."""
        x, z = (slice(int(0.35 * size), int(np.ceil(0.65 * size))) for size in (self.width, self.depth))
        return int((self.solid[x, int(np.ceil(0.23 * bottom)) : int(0.85 * bottom), z].mean(axis=(0, 2)) > 0.5).any())
