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
"""Regular grids: coordinates of pixels, voxels and frames, crops, and anti-aliased evaluation of a field on them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

import torch


#: Points whose coordinates exist at once while a grid is evaluated.
_POINTS_AT_ONCE = 2**18


def cell_centres(count: int, low: float = -1.0, high: float = 1.0, device: torch.device | None = None) -> torch.Tensor:
    """Centres of `count` equal cells of the interval from `low` to `high`: on [-1, 1], `(2i + 1) / n - 1`.

    Computed in float64, dividing last, and then rounded: the same position has the same coordinate in every grid.

    Raises:
        ValueError: there is no cell, or no interval.
    """
    if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
        raise ValueError(f"A grid needs a positive whole number of cells along an axis, got {count!r}.")
    if not low < high:
        raise ValueError(f"An interval needs low < high, got ({low}, {high}).")
    index = torch.arange(count, dtype=torch.float64)  # on the CPU: not every device has float64
    return (low + (2 * index + 1) * (high - low) / (2 * count)).float().to(device)


def grid_coordinates(*axes: torch.Tensor) -> torch.Tensor:
    """All points of a grid.

    Args:
        axes: the coordinates along each axis, `(n_i,)`, in the order of a coordinate's last axis: x, y, then z or t.

    Returns:
        `(n_last * … * n_first, number of axes)`; x varies fastest, so `(h * w, 2)` reshapes to `(h, w, 2)`.
    """
    mesh = torch.meshgrid(*reversed(axes), indexing="ij")
    return torch.stack(list(reversed(mesh)), dim=-1).flatten(0, -2)


def evaluate_grid(
    function: Callable[[torch.Tensor], torch.Tensor],
    axes: Sequence[torch.Tensor],
    pool: Sequence[int] | None = None,
) -> torch.Tensor:
    """Evaluates a field on a grid, slab by slab along the last axis, so that memory is that of the result.

    Args:
        function: maps `(points, axes)` to values `(batch, points, channels)`.
        axes: the coordinates along each axis, `(n_i,)`, in the order x, y, then z or t.
        pool: for each axis, how many successive samples are averaged into one (a box filter); 1 by default.

    Returns:
        `(batch, n_last / pool_last, …, n_first / pool_first, channels)`, float32: `(batch, height, width, channels)`
        for an image, `(batch, frames, height, width, channels)` for a video.

    Raises:
        ValueError: an axis is not divisible by its `pool`.
    """
    pool = list(pool or [1] * len(axes))
    for axis, factor in zip(axes, pool):
        if factor < 1 or len(axis) % factor:
            raise ValueError(f"{len(axis)} samples cannot be averaged in groups of {factor}.")
    *inner, last = axes
    slab_points = math.prod(len(axis) for axis in inner) * pool[-1]
    slabs = max(1, _POINTS_AT_ONCE // slab_points) * pool[-1]
    sizes = [len(axis) for axis in reversed(inner)]
    result = None
    for start in range(0, len(last), slabs):
        part = last[start : start + slabs]
        values = function(grid_coordinates(*inner, part)).float()  # (B, points, C)
        values = _average(values.unflatten(1, (len(part), *sizes)), pool)
        if result is None:
            shape = (values.shape[0], len(last) // pool[-1], *values.shape[2:])
            result = values.new_empty(shape)
        result[:, start // pool[-1] : start // pool[-1] + values.shape[1]] = values
    return result


def _average(values: torch.Tensor, pool: Sequence[int]) -> torch.Tensor:
    """Averages `(batch, n_last, …, n_first, channels)` over groups of `pool` samples along each axis."""
    for axis, factor in enumerate(reversed(pool), start=1):
        if factor > 1:
            values = values.unflatten(axis, (-1, factor)).mean(dim=axis + 1)
    return values


def check_region(
    region: Sequence[float] | None, bounds: tuple[float, float], axes: str = "xy", name: str = "region"
) -> tuple[float, ...]:
    """`region` as `(x0, y0, x1, y1)` for the axes x and y, the whole domain by default; `name` is for messages.

    Raises:
        ValueError: it does not have two corners, is empty, or reaches outside `bounds`.
    """
    low, high = bounds
    dimensions = len(axes)
    if region is None:
        return (low,) * dimensions + (high,) * dimensions
    try:
        values = tuple(float(value) for value in region)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 2 * dimensions:
        names = [f"{axis}{corner}" for corner in (0, 1) for axis in axes]
        raise ValueError(f"`{name}` must be numbers ({', '.join(names)}), got {region!r}.")
    region = values
    for axis, start, stop in zip(axes, region[:dimensions], region[dimensions:]):
        if not low <= start < stop <= high:
            raise ValueError(
                f"`{name}` must lie inside [{low:g}, {high:g}] with {axis}0 < {axis}1, got {axis} from {start:g} to "
                f"{stop:g}."
            )
    return region


def render_pixels(
    field: Callable[..., torch.Tensor],
    height: int,
    width: int,
    native_size: int,
    region: Sequence[float] | None = None,
    bounds: tuple[float, float] = (-1.0, 1.0),
    times: torch.Tensor | None = None,
    min_scale: float | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Reads a field as pixels, of any size and of any part of it, without aliasing.

    Where pixels are coarser than the native ones, each averages enough samples that the samples are at least as fine.

    Args:
        field: maps `(points, 2)` coordinates (x, y), or (x, y, t) with `times`, to `(batch, points, channels)`.
        height, width: pixels of the result.
        native_size: pixels across the whole domain at which the field was learnt.
        region: `(x0, y0, x1, y1)` inside `bounds`, the part of the domain that is shown; all of it by default.
        times: `(frames,)`, the last coordinate of each frame.
        min_scale: if given, `field` is called with `scale`, the samples' spacing relative to native pixels, not below
            this value.
        device: where coordinates are made.

    Returns:
        `(batch, height, width, channels)`, with a `frames` axis after the batch for `times`.

    Raises:
        ValueError: a size is not a positive whole number, or the region is not inside the bounds.
    """
    x0, y0, x1, y1 = check_region(region, bounds)
    for name, size in (("height", height), ("width", width)):
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
            raise ValueError(f"`{name}` must be a positive whole number of pixels, got {size!r}.")
    span = bounds[1] - bounds[0]
    axes, pool, finest = [], [], 0.0
    for count, low, high in ((width, x0, x1), (height, y0, y1)):
        resolution = count * span / (high - low)  # pixels that the whole domain would have
        # The tolerance keeps an exact multiple exact in floating point.
        factor = max(1, math.ceil(native_size / resolution - 1e-6))
        axes.append(cell_centres(count * factor, low, high, device))
        pool.append(factor)
        finest = max(finest, resolution * factor)
    if times is not None:
        axes.append(times.to(device=device, dtype=torch.float32))
        pool.append(1)
    if min_scale is None:
        return evaluate_grid(field, axes, pool)
    scale = min(1.0, max(min_scale, native_size / finest))
    return evaluate_grid(lambda coords: field(coords, scale=scale), axes, pool)
