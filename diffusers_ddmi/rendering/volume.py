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
Volume rendering of a radiance field: any callable from points and directions to colour and density.

[`render_rays`] evaluates the field at every sample and is differentiable, for training. [`render_views`] makes pictures; with
an [`OccupancyGrid`] it evaluates the field only where there is something, and only until a ray is opaque.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from .cameras import Cameras
from .rays import (
    Bounds,
    Composite,
    RaySamples,
    as_corners,
    clip_to_bounds,
    composite,
    divide_rays,
    importance_sample,
    sample_along_rays,
)


# Part of a ray's light that a picture may lose in skipped space, and behind a point where the ray stops: together less
# than 1/255.
_LOST_IN_SPACE = 2e-3
_LOST_BEHIND = 1e-3


class _Options(NamedTuple):
    num_samples: int
    background: float | torch.Tensor | None
    stop_transmittance: float
    last_interval_infinite: bool
    chunk_size: int


class RadianceField(Protocol):
    """
    Called with points `(batch, points, 3)` in world units, or `(points, 3)` for the same points in every scene, and
    `directions` of that shape (unit vectors, from the camera into the scene). Returns `(batch, points, 4)`: red, green,
    blue in [0, 1] and a density >= 0, per world unit, that does not depend on direction.
    """

    def __call__(self, points: torch.Tensor, directions: torch.Tensor) -> torch.Tensor: ...


class RenderedViews(NamedTuple):
    """
    Pictures of a batch of scenes from the same V cameras.

    Attributes:
        colors: `(batch, V, height, width, 3)`, in [0, 1].
        depth: `(batch, V, height, width, 1)`, distance from the camera along the ray; 0 where there is nothing.
        opacity: `(batch, V, height, width, 1)`, in [0, 1].
    """

    colors: torch.Tensor
    depth: torch.Tensor
    opacity: torch.Tensor


def render_rays(
    field: RadianceField,
    origins: torch.Tensor,
    directions: torch.Tensor,
    near: float | torch.Tensor,
    far: float | torch.Tensor,
    num_samples: int = 256,
    *,
    num_importance_samples: int = 0,
    background: float | torch.Tensor | None = 1.0,
    generator: torch.Generator | None = None,
    stratified: bool = False,
    last_interval_infinite: bool = False,
) -> Composite:
    """
    Renders rays with the field evaluated at every sample; differentiable, for training and as the reference.

    Args:
        field: see [`RadianceField`].
        origins, directions: `(rays, 3)` for the same rays in every scene, or `(batch, rays, 3)`.
        near, far, num_samples, generator, stratified, last_interval_infinite: as in [`sample_along_rays`].
        num_importance_samples: if positive, these samples, placed by a first pass with `num_samples` which leaves no
            gradient, make the picture.
        background: as in [`composite`].

    Returns:
        [`Composite`] with shapes `(batch, rays, ...)`.
    """
    samples = sample_along_rays(
        origins, directions, near, far, num_samples, generator, stratified, last_interval_infinite
    )
    if num_importance_samples:
        with torch.no_grad():
            weights = _composite_samples(field, samples, directions, background).weights
        expanded = (*weights.shape[:-1], 3)
        origins, directions = origins.expand(expanded), directions.expand(expanded)
        samples = importance_sample(
            origins, directions, samples, weights, num_importance_samples, generator, stratified
        )
    return _composite_samples(field, samples, directions, background)


def render_views(
    field: RadianceField,
    cameras: Cameras,
    num_samples: int = 256,
    *,
    grid: OccupancyGrid | None = None,
    background: float | torch.Tensor | None = 1.0,
    bounds: Bounds | None = None,
    stop_transmittance: float = _LOST_BEHIND,
    last_interval_infinite: bool = False,
    chunk_size: int = 2**18,
) -> RenderedViews:
    """
    Renders every scene of a field from every camera.

    Samples lie evenly. For finer surfaces raise `num_samples` and give a `grid`: samples in empty space, and behind
    surfaces, then cost no more than a look at the grid, which leaves little to gain for a first pass that places them as in
    [`render_rays`].

    Args:
        field: see [`RadianceField`]; on the cameras' device.
        cameras: shared by the scenes.
        num_samples: sample positions on each ray. They are the same with and without a grid.
        grid: where the field has to be looked at. With it the field is evaluated only in occupied cells, and along a ray
            only until less than `stop_transmittance` of the light from behind would arrive. Colours change by less than
            1/255 as long as the grid has missed nothing (see [`OccupancyGrid.from_field`]).
        background: as in [`composite`]; white by default.
        bounds: a box, `(low, high)` of all axes or two corners `(x, y, z)`, outside which the scene is empty; sample
            positions then only divide each ray's way through it.
        last_interval_infinite: as in [`sample_along_rays`].
        chunk_size: largest number of points per scene that the field is called with; bounds the memory.

    Raises:
        ValueError: for fewer than two samples, a chunk size below one, or a grid on another device than the cameras.
    """
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be positive, got {chunk_size}.")
    if grid is not None and grid.occupied.device != cameras.camera_to_world.device:
        raise ValueError(
            f"The grid is on {grid.occupied.device} and the cameras are on {cameras.camera_to_world.device}; move one of them."
        )
    rays_per_chunk = max(1, chunk_size // num_samples)
    if grid is not None:  # looking up cells is cheap; larger chunks make fewer, fuller calls of the field
        rays_per_chunk = max(1, 4 * chunk_size // (num_samples * len(grid)))
    options = _Options(num_samples, background, stop_transmittance, last_interval_infinite, chunk_size)
    chunks = []
    for origins, directions, near, far in _ray_chunks(cameras, rays_per_chunk):
        if bounds is not None:
            near, far = clip_to_bounds(origins, directions, near, far, bounds)
        if grid is None:
            samples = sample_along_rays(
                origins, directions, near, far, num_samples, None, False, last_interval_infinite
            )
            rendered = _composite_samples(field, samples, directions, background)[:3]
        else:
            rendered = _render_occupied(field, grid, (origins, directions, near, far), options)
        chunks.append(rendered)
    size = (-1, len(cameras), cameras.height, cameras.width)
    color, depth, opacity = (torch.cat(parts, dim=1) for parts in zip(*chunks))
    return RenderedViews(color.reshape(*size, 3), depth.reshape(*size, 1), opacity.reshape(*size, 1))


class OccupancyGrid:
    """
    Which cells of a box hold anything, for each scene of a batch.

    Args:
        occupied (`torch.Tensor` of shape `(batch, cells_x, cells_y, cells_z)`, bool): True where the field must be
            evaluated.
        bounds: the box, `(low, high)` of all axes or two corners `(x, y, z)`, in world units. Outside it the scenes count
            as empty.
    """

    def __init__(self, occupied: torch.Tensor, bounds: Bounds):
        if occupied.ndim != 4 or occupied.dtype != torch.bool:
            raise ValueError(
                f"`occupied` must be boolean with shape (batch, x, y, z), got {occupied.dtype} {tuple(occupied.shape)}."
            )
        self.occupied = occupied
        self.bounds = as_corners(bounds).to(occupied.device)
        self._extent = self._occupied_extent()

    @classmethod
    @torch.no_grad()
    def from_field(
        cls,
        field: RadianceField,
        bounds: Bounds = (-0.5, 0.5),
        resolution: int = 64,
        *,
        density_threshold: float | None = None,
        dilation: int = 1,
        device: torch.device | str | None = None,
        chunk_size: int = 2**18,
    ) -> OccupancyGrid:
        """
        Probes the density at the `(resolution + 1)³` corners of the cells.

        A cell is occupied if a corner of it, or of a cell up to `dilation` cells away, is denser than `density_threshold`.
        A part of the scene that passes between the corners of all cells it touches is missed: `resolution` cells across
        the box must be finer than what is to be seen.

        Args:
            bounds: as in [`OccupancyGrid`].
            density_threshold: density, per world unit, up to which space counts as empty. By default a ray through the
                whole box loses less than 0.002 of its light to it.
            device: where to call the field.
            chunk_size: largest number of points per scene that the field is called with.
        """
        corners = as_corners(bounds).to(device)
        if resolution < 1 or dilation < 0:
            raise ValueError(
                f"`resolution` must be positive and `dilation` not negative, got {resolution} and {dilation}."
            )
        if density_threshold is None:
            density_threshold = _LOST_IN_SPACE / float((corners[1] - corners[0]).norm())
        axes = [torch.linspace(float(low), float(high), resolution + 1, device=device) for low, high in corners.T]
        points = torch.cartesian_prod(*axes)
        directions = torch.tensor([0.0, 0.0, -1.0], device=device).expand_as(points)
        density = torch.cat(
            [
                _checked_values(field(point, directions=direction), point)[..., 3]
                for point, direction in zip(points.split(chunk_size), directions.split(chunk_size))
            ],
            dim=1,
        )
        filled = ~(density <= density_threshold)  # not a number counts as occupied, so that it is seen
        filled = filled.reshape(-1, 1, *[resolution + 1] * 3).to(torch.float32)
        occupied = F.max_pool3d(filled, 2, stride=1)
        if dilation:
            occupied = F.max_pool3d(occupied, 2 * dilation + 1, stride=1, padding=dilation)
        return cls(occupied[:, 0] > 0, corners)

    def __len__(self) -> int:
        return self.occupied.shape[0]

    def to(self, device: torch.device | str) -> OccupancyGrid:
        """The same grid on another device."""
        return OccupancyGrid(self.occupied.to(device), self.bounds)

    def _occupied_extent(self) -> torch.Tensor | None:
        """Corners `(2, 3)` of the box around the occupied cells of all scenes; None where there are none."""
        anywhere = self.occupied.any(0)
        if not anywhere.any():
            return None
        cells = anywhere.nonzero()
        limits = torch.stack([cells.amin(0), cells.amax(0) + 1])
        size = torch.tensor(anywhere.shape, device=anywhere.device)
        return self.bounds[0] + (self.bounds[1] - self.bounds[0]) * limits / size

    def crossed(
        self, origins: torch.Tensor, directions: torch.Tensor, near: torch.Tensor, far: torch.Tensor
    ) -> torch.Tensor:
        """Whether rays `(rays, 3)` pass the box around all occupied cells between `near` and `far`, `(rays,)`."""
        if self._extent is None:
            return torch.zeros_like(near, dtype=torch.bool)
        entry, leave = clip_to_bounds(origins, directions, near, far, self._extent)
        return entry < leave

    def mask(self, origins: torch.Tensor, directions: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """
        Whether the points `origins + distance · directions` lie in occupied cells: `(batch, rays, samples)` for rays
        `(rays, 3)` and distances `(rays, samples)`.
        """
        cells = torch.zeros_like(distances, dtype=torch.long)
        inside = torch.ones_like(distances, dtype=torch.bool)
        for axis in range(3):
            count, low, high = self.occupied.shape[axis + 1], self.bounds[0, axis], self.bounds[1, axis]
            scale = count / (high - low)
            first, step = (origins[:, axis] - low) * scale, directions[:, axis] * scale
            position = torch.addcmul(first[:, None], distances, step[:, None])
            inside &= (position >= 0) & (position < count)
            cells = cells * count + position.clamp(0, count - 1).long()
        return self.occupied.flatten(1)[:, cells] & inside


def density_as_occupancy(
    field: RadianceField, density_threshold: float = 10.0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    A shape's field from a radiance field: `coords -> (batch, points, 1)`, the logit log(σ / threshold), which is positive
    where the density exceeds the threshold. It can be given to the surface extraction, and is differentiable in `coords`.

    Args:
        density_threshold: density of the surface at level ½, per world unit; at level l it is threshold · l / (1 − l).
            A density of 10 hides half of what lies 0.07 units behind it: 7 % of a unit cube. For scenes of another size,
            divide by it.
    """
    if not density_threshold > 0:
        raise ValueError(f"`density_threshold` must be positive, got {density_threshold}.")

    def occupancy(coords: torch.Tensor) -> torch.Tensor:
        directions = torch.zeros_like(coords)
        directions[..., 2] = -1.0
        density = field(coords, directions=directions)[..., 3:]
        return torch.log((density / density_threshold).clamp(min=1e-6))

    return occupancy


def surface_colors(
    field: RadianceField, points: torch.Tensor, normals: torch.Tensor, chunk_size: int = 2**18
) -> torch.Tensor:
    """
    Colours `(batch, points, 3)` of surface points, each seen from straight above it.

    Args:
        points, normals: `(points, 3)` or `(batch, points, 3)`; normals of unit length, pointing outwards.
    """
    return _evaluate(field, points, -normals, chunk_size)[..., :3]


def _ray_chunks(
    cameras: Cameras, rays_per_chunk: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Origins, directions `(rays, 3)`, near and far `(rays,)` of all views, in order."""
    views = max(1, rays_per_chunk // (cameras.height * cameras.width))
    for first in range(0, len(cameras), views):
        group = cameras[first : first + views]
        rays = (*group.rays(), *group.ray_bounds())
        yield from zip(*(part.flatten(0, 2).split(rays_per_chunk) for part in rays))


def _composite_samples(
    field: RadianceField, samples: RaySamples, directions: torch.Tensor, background: float | torch.Tensor | None
) -> Composite:
    rays, count = samples.distances.shape[-2:]
    directions = directions[..., None, :].expand_as(samples.points)
    values = field(samples.points.flatten(-3, -2), directions=directions.flatten(-3, -2))
    values = _checked_values(values, samples.points.flatten(-3, -2))
    values = values.to(samples.points.dtype).unflatten(1, (rays, count))
    return composite(values[..., :3], values[..., 3], samples.distances, samples.deltas, background)


def _render_occupied(
    field: RadianceField, grid: OccupancyGrid, rays: tuple[torch.Tensor, ...], options: _Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Colour, depth and opacity of rays (origins and directions `(rays, 3)`, near and far `(rays,)`) in every scene, with the
    density of all samples that are passed over taken as 0.
    """
    num_rays = len(rays[0])
    if not options.last_interval_infinite:
        crossing = grid.crossed(*rays).nonzero()[:, 0]
        rays = tuple(part[crossing] for part in rays)
    origins, directions, near, far = rays
    distances, edges = divide_rays(
        near[:, None], far[:, None], options.num_samples, last_interval_infinite=options.last_interval_infinite
    )
    mask = grid.mask(origins, directions, distances)
    if options.last_interval_infinite:
        crossing = torch.arange(num_rays, device=origins.device)
        mask[..., -1] = True  # this sample alone hides whatever the others let through
    scene, ray = mask.any(-1).nonzero(as_tuple=True)  # in order of scenes
    distances, deltas = distances[ray], edges.diff(dim=-1)[ray]
    values = _march(
        field, len(grid), scene, origins[ray], directions[ray], distances, deltas, mask[scene, ray], options
    )
    seen = composite(values[..., :3], values[..., 3], distances, deltas, options.background)
    nothing = composite(values.new_zeros(1, 3), *values.new_zeros(3, 1), options.background)
    size, place = (len(grid), num_rays, -1), (scene, crossing[ray])
    return tuple(empty.expand(size).index_put(place, part) for empty, part in zip(nothing[:3], seen[:3]))


def _march(
    field: RadianceField,
    num_scenes: int,
    scene: torch.Tensor,
    origins: torch.Tensor,
    directions: torch.Tensor,
    distances: torch.Tensor,
    deltas: torch.Tensor,
    mask: torch.Tensor,
    options: _Options,
) -> torch.Tensor:
    """
    The field's values `(rays, samples, 4)` where `mask` is set, from the front up to where each ray is opaque; zeros elsewhere.

    In rounds over all rays at once: the next 8, then 16, 32 … marked samples of the rays that still let light through.
    """
    values = distances.new_zeros(*mask.shape, 4)
    thickness = distances.new_zeros(len(mask))
    ray, sample = mask.nonzero(as_tuple=True)
    rank = (mask.cumsum(-1, dtype=torch.int32) - 1)[ray, sample]  # place among the ray's marked samples
    done, length = 0, 8
    while len(ray):
        now = rank < done + length
        r, s = ray[now], sample[now]
        points = torch.addcmul(origins[r], distances[r, s, None], directions[r])
        found = _evaluate_ragged(field, points, directions[r], scene[r], num_scenes, options.chunk_size)
        values[r, s] = found
        slab = distances.new_zeros(len(mask), length)  # sums in a fixed order, so that no stop depends on chance
        slab[r, (rank[now] - done).long()] = found[:, 3].detach() * deltas[r, s]
        thickness += slab.sum(-1)
        alive = ~now & (thickness < -math.log(options.stop_transmittance))[ray]
        ray, sample, rank = ray[alive], sample[alive], rank[alive]
        done, length = done + length, 2 * length
    return values


def _evaluate(field: RadianceField, points: torch.Tensor, directions: torch.Tensor, chunk_size: int) -> torch.Tensor:
    chunks = zip(points.split(chunk_size, dim=-2), directions.split(chunk_size, dim=-2))
    return torch.cat([_checked_values(field(p, directions=d), p) for p, d in chunks], dim=1).to(points.dtype)


def _evaluate_ragged(
    field: RadianceField,
    points: torch.Tensor,
    directions: torch.Tensor,
    scene: torch.Tensor,
    num_scenes: int,
    chunk_size: int,
) -> torch.Tensor:
    """Values `(points, 4)` at points `(points, 3)` that belong to different scenes; `scene` is sorted."""
    counts = torch.bincount(scene, minlength=num_scenes)
    place = torch.arange(len(points), device=points.device) - (counts.cumsum(0) - counts)[scene]
    # Scenes with fewer points are filled up with points of another one.
    padded = [part[:1].repeat(num_scenes, int(counts.max()), 1) for part in (points, directions)]
    padded[0][scene, place], padded[1][scene, place] = points, directions
    return _evaluate(field, *padded, chunk_size)[scene, place]


def _checked_values(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    if values.ndim != 3 or values.shape[1:] != (points.shape[-2], 4):
        raise ValueError(
            f"A radiance field must return (batch, {points.shape[-2]}, 4): rgb and density; got {tuple(values.shape)}."
        )
    return values
