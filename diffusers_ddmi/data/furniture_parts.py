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
"""How procedural furniture is built: one function per kind from its design and random proportions to parts.

Lengths are those of a piece about 0.9 high or wide that stands on the floor, y = 0, faces +z and has its back at -z; pieces
are normalised afterwards. No part is thinner than 0.055 and no gap narrower than 0.06, so that fields on coarse planes
can represent them. Parts that touch overlap, so that no face of one lies on a face of another within the piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .solids import Part, box, disc


Design = dict[str, Any]
_THIN = 0.06


def _chair(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    high = design["size"] == "high-backed"
    seat_top = draw(0.36, 0.42) if high else draw(0.50, 0.56)
    thickness = draw(0.065, 0.09)
    seat_y = (seat_top - thickness, seat_top)
    if design["top"] == "round":
        radius = draw(0.23, 0.27)
        seat = disc((0.0, 0.0), seat_y, radius, "fabric")
        inset, back_z, side = _inscribed(radius), -0.72 * radius, 0.72 * radius
        front, half_width = 0.45 * radius, 0.74 * radius
    else:
        half_width, half_depth = draw(0.21, 0.27), draw(0.21, 0.26)
        seat = box((-half_width, half_width), seat_y, (-half_depth, half_depth), "fabric")
        inset, back_z, side = None, -half_depth + 0.035, half_width - 0.035
        front = half_depth - draw(0.02, 0.08)
    corners = (inset, inset) if inset else (half_width - 0.055, half_depth - 0.055)
    parts = [seat, *_legs(design, corners, seat_top - 0.5 * thickness, draw)]
    parts += _back(design["back"], half_width, (seat_top - 0.5 * thickness, 0.9), back_z, draw)
    if design["arms"]:
        parts += _arms(side, (seat_top - 0.03, seat_top + draw(0.17, 0.22)), (back_z, front))
    return parts


def _stool(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    half = draw(0.19, 0.24) if design["size"] == "tall" else draw(0.29, 0.33)
    thickness = draw(0.07, 0.10)
    seat_y = (0.9 - thickness, 0.9)
    if design["top"] == "round":
        seat, inset = disc((0.0, 0.0), seat_y, half, "fabric"), _inscribed(half)
    else:
        seat, inset = box((-half, half), seat_y, (-half, half), "fabric"), half - 0.055
    parts = [seat, *_legs(design, (inset, inset), 0.9 - 0.5 * thickness, draw)]
    if design["footrest"]:
        low = draw(0.18, 0.28)
        for side in (-inset, inset):
            parts.append(box((-inset, inset), (low, low + _THIN), (side - 0.03, side + 0.03)))
            parts.append(box((side - 0.03, side + 0.03), (low, low + _THIN), (-inset, inset)))
    return parts


def _bench(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    half_depth, seat_top, thickness = draw(0.15, 0.18), draw(0.36, 0.44), draw(0.065, 0.09)
    parts = [box((-0.45, 0.45), (seat_top - thickness, seat_top), (-half_depth, half_depth))]
    under = seat_top - 0.5 * thickness
    if design["legs"] == 2:
        width = _leg_half(design, draw)
        for side in (-0.45 + 0.05 + width, 0.45 - 0.05 - width):
            parts.append(
                box((side - width, side + width), (0.0, under), (-0.85 * half_depth, 0.85 * half_depth), "dark")
            )
    else:
        parts += _legs(design, (0.45 - 0.07, half_depth - 0.05), under, draw)
    if design["back"]:
        back_z = -half_depth + 0.035
        parts += _back(design["back"], 0.45, (under, seat_top + draw(0.3, 0.38)), back_z, draw)
        if design["arms"]:
            parts += _arms(0.415, (seat_top - 0.03, seat_top + draw(0.15, 0.18)), (back_z, half_depth - 0.03))
    return parts


def _sofa(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    half_depth, seat_top = draw(0.2, 0.25), draw(0.27, 0.33)
    bottom = draw(0.09, 0.11) if design["legs"] else 0.0
    high = seat_top + (draw(0.36, 0.42) if design["size"] == "high-backed" else draw(0.2, 0.26))
    behind = draw(0.1, 0.14)
    parts = [
        box((-0.45, 0.45), (bottom, seat_top), (-half_depth, half_depth), "fabric"),
        box((-0.45, 0.45), (bottom, high), (-half_depth, -half_depth + behind), "fabric"),
    ]
    if design["arms"]:
        width = draw(0.08, 0.1) if design["weight"] == "thin" else draw(0.13, 0.16)
        top = seat_top + draw(0.12, 0.16)
        parts += [
            box((-0.45, -0.45 + width), (bottom, top), (-half_depth, half_depth), "fabric"),
            box((0.45 - width, 0.45), (bottom, top), (-half_depth, half_depth), "fabric"),
        ]
    if design["legs"]:
        parts += _legs({**design, "weight": "thick"}, (0.45 - 0.07, half_depth - 0.07), bottom + 0.04, draw)
    return parts


def _table(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    ratio = draw(1.08, 1.35) if design["size"] == "tall" else draw(1.8, 2.3)
    height, thickness = 0.9 / ratio, draw(0.065, 0.09)
    top_y, under = (height - thickness, height), height - 0.5 * thickness
    half_depth = 0.45 * (draw(0.5, 0.66) if design["top"] == "rectangular" else 1.0)
    if design["top"] == "round":
        parts = [disc((0.0, 0.0), top_y, 0.45)]
        corners = (_inscribed(0.45),) * 2
    else:
        parts = [box((-0.45, 0.45), top_y, (-half_depth, half_depth))]
        corners = (0.45 - 0.07, half_depth - 0.07)
    if design["legs"] == 2:
        half = _leg_half(design, draw)
        for side in (-0.36, 0.36):
            parts.append(box((side - half, side + half), (0.0, under), (-0.8 * half_depth, 0.8 * half_depth), "dark"))
        return parts
    parts += _legs(design, corners, under, draw, pole=(0.06, 0.08), foot=(0.24, 0.3))
    if design["shelves"]:
        low = draw(0.28, 0.38) * height
        if design["top"] == "round":
            parts.append(disc((0.0, 0.0), (low, low + _THIN), 1.1 * float(np.hypot(*corners))))
        else:
            x, z = corners
            parts.append(box((-x, x), (low, low + _THIN), (-z, z)))
    return parts


def _shelf(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    half_width = draw(0.31, 0.39) if design["size"] == "wide" else draw(0.19, 0.24)
    half_depth, side = draw(0.12, 0.16), 0.0575
    posts = design["sides"] == "posts"
    lowest = draw(0.08, 0.12) if posts else 0.0
    parts = [
        box((-half_width, half_width), (float(low), float(low) + _THIN), (-half_depth, half_depth))
        for low in np.linspace(lowest, 0.9 - _THIN, design["shelves"])
    ]
    for left in (-half_width, half_width - side):
        if posts:
            for near in (-half_depth, half_depth - side):
                parts.append(box((left, left + side), (0.0, 0.9), (near, near + side), "dark"))
        else:
            parts.append(box((left, left + side), (0.0, 0.9), (-half_depth, half_depth), "dark"))
    if design["back"]:
        parts.append(box((-half_width, half_width), (lowest, 0.9), (-half_depth, -half_depth + side), "light"))
    return parts


def _bed(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    half_width = draw(0.34, 0.39) if design["size"] == "double" else draw(0.21, 0.25)
    legs, top = draw(0.1, 0.14) if design["legs"] else 0.0, draw(0.27, 0.33)
    frame = (legs + top) / 2
    parts = [
        box((-half_width, half_width), (legs, frame + 0.01), (-0.45, 0.45)),
        box((-half_width + 0.01, half_width - 0.01), (frame, top), (-0.44, 0.44), "fabric"),
    ]
    pillows = (-0.5, 0.5) if design["size"] == "double" else (0.0,)
    for pillow in pillows:
        middle, half = pillow * half_width, half_width * (0.36 if len(pillows) == 2 else 0.66)
        parts.append(box((middle - half, middle + half), (top - 0.02, top + 0.06), (-0.36, -0.2), "light"))
    if design["legs"]:
        parts += _legs({**design, "weight": "thick"}, (half_width - 0.06, 0.45 - 0.06), legs + 0.04, draw)
    if design["back"]:
        parts.append(box((-half_width, half_width), (legs, top + draw(0.17, 0.27)), (-0.45, -0.45 + 0.07), "dark"))
    if design["footboard"]:
        parts.append(box((-half_width, half_width), (legs, top + draw(0.07, 0.1)), (0.45 - 0.07, 0.45), "dark"))
    return parts


def _lamp(design: Design, draw: Callable[[float, float], float]) -> list[Part]:
    tall = design["size"] == "floor"
    radius, high = (draw(0.18, 0.23), draw(0.22, 0.28)) if tall else (draw(0.3, 0.38), draw(0.33, 0.4))
    pole = draw(0.032, 0.038) if tall else draw(0.045, 0.06)
    round_shade = design["top"] == "round"
    narrow = draw(0.5, 0.65) if design["shade"] == "cone" else 1.0
    shade = ((radius, radius), (narrow * radius, narrow * radius))
    middle = ((0.0, 0.0), (0.0, 0.0))
    parts = [Part(0.9 - high, 0.9, middle, shade, round=round_shade, role="light")]
    if design["legs"] == 3:
        knee = draw(0.42, 0.5)
        parts += _tripod(draw(0.2, 0.25) if tall else draw(0.26, 0.32), 0.02, knee, pole, draw(0.0, 2.0))
        return [*parts, disc((0.0, 0.0), (knee - 0.08, 0.9 - 0.5 * high), pole, "dark")]
    foot = draw(0.16, 0.2) if tall else draw(0.2, 0.27)
    foot_y = (0.0, draw(0.06, 0.09))
    parts.append(
        disc((0.0, 0.0), foot_y, foot, "dark") if round_shade else box((-foot, foot), foot_y, (-foot, foot), "dark")
    )
    return [*parts, disc((0.0, 0.0), (0.03, 0.9 - 0.5 * high), pole, "dark")]


BUILDERS: dict[str, Callable[[Design, Callable[[float, float], float]], list[Part]]] = {
    "chair": _chair,
    "stool": _stool,
    "bench": _bench,
    "sofa": _sofa,
    "table": _table,
    "shelf": _shelf,
    "bed": _bed,
    "lamp": _lamp,
}


def _inscribed(radius: float) -> float:
    """Where legs stand under a disc, along x and z alike, so that none shows beyond its edge."""
    return (radius - 0.055) / 2**0.5


def _leg_half(design: Design, draw: Callable[[float, float], float]) -> float:
    return draw(0.03, 0.034) if design.get("weight") == "thin" else draw(0.046, 0.054)


def _legs(
    design: Design,
    corners: tuple[float, float],
    top: float,
    draw: Callable[[float, float], float],
    pole: tuple[float, float] = (0.045, 0.06),
    foot: tuple[float, float] = (0.19, 0.23),
) -> list[Part]:
    """One pole on a foot, three legs in a triangle or four at the `corners` (x, z), up to height `top`."""
    if design["legs"] == 1:
        half, radius = draw(*pole), draw(*foot)
        return [disc((0.0, 0.0), (0.0, _THIN), radius, "dark"), disc((0.0, 0.0), (0.03, top), half, "dark")]
    half = _leg_half(design, draw)
    splay = draw(0.05, 0.09) if design.get("splayed") else 0.0
    if design["legs"] == 3:
        inner = 1.1 * min(corners)
        return _tripod(inner + splay, inner, top, half, 0.5)
    outline = draw(0.0, 1.0) < 0.5
    legs = []
    for right in (-1, 1):
        for near in (-1, 1):
            high = (right * corners[0], near * corners[1])
            low = (high[0] + right * splay, high[1] + near * splay)
            legs.append(Part(0.0, top, (low, high), ((half, half), (half, half)), round=outline, role="dark"))
    return legs


def _tripod(foot: float, head: float, top: float, half: float, turn: float) -> list[Part]:
    """Three round legs from the radius `foot` on the floor to the radius `head` at height `top`; `turn` in units of π."""
    legs = []
    for angle in np.pi * (turn + np.arange(3) * 2 / 3):
        x, z = float(np.cos(angle)), float(np.sin(angle))
        ends = ((foot * x, foot * z), (head * x, head * z))
        legs.append(Part(0.0, top, ends, ((half, half), (half, half)), round=True, role="dark"))
    return legs


def _back(
    style: str, half_width: float, y: tuple[float, float], z: float, draw: Callable[[float, float], float]
) -> list[Part]:
    """A back about the plane at `z`, from `y[0]` within the seat to `y[1]`: a panel, upright slats or level rails."""
    depth = (z - 0.032, z + 0.032)
    if style == "solid":
        return [box((-half_width, half_width), y, depth)]
    edge = half_width - 0.03
    parts = [box((side - 0.03, side + 0.03), y, depth) for side in (-edge, edge)]
    rail = draw(0.065, 0.085)
    parts.append(box((-half_width, half_width), (y[1] - rail, y[1]), depth))
    if style == "slatted":
        number = int((2 * edge - 0.07) / 0.14)
        for middle in np.linspace(-edge, edge, number + 2)[1:-1]:
            parts.append(box((float(middle) - 0.03, float(middle) + 0.03), y, depth))
        return parts
    # Rails hang below the upper one, as many as leave gaps of 0.07 and more above the seat.
    number = 1 if y[1] - y[0] < 0.45 else 2
    step = (y[1] - y[0] - 0.04) / (number + 1)
    for rank in range(1, number + 1):
        top = y[1] - rank * step
        parts.append(box((-edge, edge), (top - _THIN, top), depth))
    return parts


def _arms(side: float, y: tuple[float, float], z: tuple[float, float]) -> list[Part]:
    """Level arm rests at x = ±`side` from the back to `z[1]`, each on a post at its front end."""
    parts = []
    for middle in (-side, side):
        x = (middle - 0.032, middle + 0.032)
        parts.append(box(x, (y[1] - _THIN, y[1]), z))
        parts.append(box(x, y, (z[1] - _THIN, z[1])))
    return parts
