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
"""The field of view of scenes whose files do not tell it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from .scene_files import SceneFile


logger = logging.getLogger(__name__)

# The part of a picture that an object must span to count.
_LEAST_SPAN = 0.25


def estimate_fov_y(scenes: Sequence[SceneFile]) -> float:
    """
    Vertical field of view in radians, from how far the points and the pictures of the same objects reach.

    In every picture on white or transparent ground whose object does not touch the border, the object's height and width
    in pixels are divided by those of its projected points at unit focal length; the median is the focal length.

    Raises:
        ValueError: no picture can be used.
    """
    ratios = []
    for scene in scenes:
        try:
            images, opacity = scene.read_pictures(None)
        except ValueError as error:
            logger.warning("not used for the field of view: %s", error)
            continue
        seen = (images < 250).any(-1) if opacity is None else opacity > 5
        points = scene.points[:, :3] - scene.poses[:, None, :3, 3]
        x, y, z = np.moveaxis(points @ scene.poses[:, :3, :3], -1, 0)  # (V, points) each, camera axes
        for mask, view_x, view_y, depth in zip(seen, x, y, -z):
            if mask.any() and (depth > 0).all():
                ratios += _extent_ratios(mask, view_x / depth, view_y / depth)
    if not ratios:
        raise ValueError(
            "the field of view is unknown and cannot be estimated from these pictures; give fov_y (radians)"
        )
    return 2 * math.atan(0.5 / float(np.median(ratios)))


def _extent_ratios(mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[float]:
    """Focal lengths, in picture heights, by which the extents of the points become those of the mask."""
    ratios = []
    for axis, positions in ((1, x), (0, y)):
        where = np.flatnonzero(mask.any(axis=1 - axis))
        # An antialiased outline also marks, half a pixel on average, the pixels that it only touches.
        extent = where[-1] - where[0]
        if where[0] > 0 and where[-1] < mask.shape[axis] - 1 and extent >= _LEAST_SPAN * mask.shape[axis]:
            ratios.append(extent / np.ptp(positions) / mask.shape[0])
    return ratios
