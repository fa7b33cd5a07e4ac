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
"""Procedural scenes of coloured shapes before drifting clouds: pictures and clips without a file, at any size and frame rate.

A scene is a closed-form function of position and time that follows from its seed alone, so that the same scene can be
drawn at any resolution and at any moment; this makes it a constructed truth for tests of continuous fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.13, 0.62, 0.27),
    "blue": (0.16, 0.32, 0.86),
    "yellow": (0.96, 0.83, 0.18),
    "orange": (0.95, 0.52, 0.12),
    "purple": (0.53, 0.24, 0.70),
    "white": (0.97, 0.97, 0.97),
    "black": (0.07, 0.07, 0.07),
}
KINDS = ("disc", "square", "triangle", "ring", "cross")
MOTIONS = (
    "moving to the left",
    "moving to the right",
    "moving up",
    "moving down",
    "bouncing to the left",
    "bouncing to the right",
    "rotating clockwise",
    "rotating anticlockwise",
)
_SKIES = np.array([[0.45, 0.62, 0.82], [0.62, 0.55, 0.72], [0.55, 0.68, 0.58], [0.78, 0.64, 0.52]])


@dataclass(frozen=True)
class MovingShape:
    """One shape and its path; lengths in units where the picture spans [-1, 1], angles in radians, y down."""

    kind: str
    colour: str
    motion: str
    size: float
    centre: tuple[float, float]
    angle: float
    speed: float

    def pose(self, time: float) -> tuple[float, float, float]:
        """Centre `(x, y)` and angle at `time` in [-1, 1]; at time 0 the shape is at its `centre`."""
        x, y, angle = *self.centre, self.angle
        way = self.speed * time
        if self.motion.startswith("moving"):
            step = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[self.motion.split()[-1]]
            x, y = x + step[0] * way, y + step[1] * way
        elif self.motion.startswith("bouncing"):
            x += way if self.motion.endswith("right") else -way
            # |sin| is the path of a ball that leaves the floor (y = 0.75 − size) two or three times in a clip.
            y = 0.75 - self.size - 0.9 * abs(np.sin(np.pi * (1.25 * time + self.angle)))
        else:
            # y points down, so growing angles turn clockwise to the eye.
            angle += 2.5 * way if self.motion == "rotating clockwise" else -2.5 * way
        return x, y, angle

    def distance(self, x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
        """Signed distance (exact near the outline, negative inside) of positions `x`, `y` at `time`."""
        centre_x, centre_y, angle = self.pose(time)
        cos, sin = np.cos(angle), np.sin(angle)
        u = cos * (x - centre_x) + sin * (y - centre_y)
        v = cos * (y - centre_y) - sin * (x - centre_x)
        radius = np.hypot(u, v)
        if self.kind == "disc":
            return radius - self.size
        if self.kind == "ring":
            return np.abs(radius - 0.75 * self.size) - 0.25 * self.size
        if self.kind == "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.85 * self.size
        if self.kind == "triangle":
            half = np.sqrt(3.0) / 2.0
            return np.maximum.reduce([v, half * u - 0.5 * v, -half * u - 0.5 * v]) - 0.55 * self.size
        long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        return np.maximum(long - self.size, short - 0.33 * self.size)


@dataclass(frozen=True)
class ColouredShapesScene:
    """Shapes (later ones in front) before clouds: a function of `(x, y)` on [-1, 1]² (y down) and time on [-1, 1]."""

    shapes: tuple[MovingShape, ...]
    sky: tuple[float, float, float]
    wave_vectors: np.ndarray
    wave_phases: np.ndarray
    wave_speeds: np.ndarray

    @classmethod
    def from_seed(cls, seed: int | Sequence[int]) -> ColouredShapesScene:
        """The scene of `seed`: one shape in two cases of three, otherwise two of different colours."""
        rng = np.random.default_rng(seed)
        number = 1 + int(rng.random() < 1 / 3)
        colours = rng.permutation(list(COLOURS))[:number]
        shapes = []
        for colour in colours:
            kind = str(rng.choice(KINDS))
            # A disc or a ring that turns looks still.
            motions = MOTIONS[:-2] if kind in ("disc", "ring") else MOTIONS
            shapes.append(
                MovingShape(
                    kind=kind,
                    colour=str(colour),
                    motion=str(rng.choice(motions)),
                    size=rng.uniform(0.22, 0.4),
                    centre=tuple(rng.uniform(-0.45, 0.45, 2)),
                    angle=rng.uniform(-0.5, 0.5),
                    speed=rng.uniform(0.35, 0.6),
                )
            )
        waves = 6
        directions = rng.uniform(0, 2 * np.pi, waves)
        frequencies = rng.uniform(1.0, 4.5, waves)
        return cls(
            shapes=tuple(shapes),
            sky=tuple(_SKIES[rng.integers(len(_SKIES))] + rng.uniform(-0.08, 0.08, 3)),
            wave_vectors=np.stack([np.cos(directions), np.sin(directions)], 1) * frequencies[:, None],
            wave_phases=rng.uniform(0, 2 * np.pi, waves),
            wave_speeds=rng.uniform(0.4, 1.2, waves),
        )

    @property
    def picture_caption(self) -> str:
        """What a still shows, e.g. "a red disc and a blue cross"."""
        return " and ".join(f"{_article(shape.colour)} {shape.colour} {shape.kind}" for shape in self.shapes)

    @property
    def clip_caption(self) -> str:
        """What a clip shows, e.g. "a red disc bouncing to the left"."""
        return " and ".join(
            f"{_article(shape.colour)} {shape.colour} {shape.kind} {shape.motion}" for shape in self.shapes
        )

    def draw(self, height: int, width: int, time: float = 0.0) -> np.ndarray:
        """RGB in [0, 1], float32 `(height, width, 3)`, at pixel centres (2i + 1)/n − 1; outlines one pixel soft."""
        x = ((2 * np.arange(width) + 1) / width - 1)[None, :]
        y = ((2 * np.arange(height) + 1) / height - 1)[:, None]
        phases = self.wave_phases + self.wave_speeds * time
        clouds = sum(np.cos(kx * x + ky * y + phase) for (kx, ky), phase in zip(self.wave_vectors, phases))
        picture = np.array(self.sky) + 0.07 * clouds[..., None]
        pixel = 2.0 / min(height, width)
        for shape in self.shapes:
            cover = np.clip(0.5 - shape.distance(x, y, time) / pixel, 0.0, 1.0)[..., None]
            picture = picture + cover * (np.array(COLOURS[shape.colour]) - picture)
        return np.clip(picture, 0.0, 1.0).astype(np.float32)

    def draw_clip(self, num_frames: int, height: int, width: int) -> np.ndarray:
        """RGB in [0, 1], float32 `(num_frames, height, width, 3)`, at the frame centres (2i + 1)/num_frames − 1."""
        times = (2 * np.arange(num_frames) + 1) / num_frames - 1
        return np.stack([self.draw(height, width, time) for time in times])


def scene_seeds(split: str, number: int, seed: int = 0) -> list[list[int]]:
    """Seeds of `number` scenes; scene i is the same whatever the number, and no two splits or seeds share a scene.

    Raises:
        ValueError: a split other than "train" or "test", or a number below 1.
    """
    if split not in ("train", "test"):
        raise ValueError(f"procedural data have splits 'train' and 'test', got {split!r}")
    if number < 1:
        raise ValueError(f"the number of scenes must be at least 1, got {number}")
    return [[seed, int(split == "test"), i] for i in range(number)]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
