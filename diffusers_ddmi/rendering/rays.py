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
Samples along rays and what they add up to: the quadrature of volume rendering.

The emission-absorption integral of NeRF (Mildenhall et al. 2020, https://arxiv.org/abs/2003.08934, Eq. 1 to 3), piecewise
constant on intervals: an interval of length δ and density σ absorbs α = 1 - exp(-σδ) of the light that reaches it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


# Length of the original code's last interval, which makes every ray opaque.
_INFINITE = 1e10

Bounds = tuple[float, float] | tuple[tuple[float, float, float], tuple[float, float, float]] | torch.Tensor


class RaySamples(NamedTuple):
    """
    Points along rays.

    Attributes:
        points: `(..., samples, 3)`, world units.
        distances: `(..., samples)`, of each point from its ray's origin.
        edges: `(..., samples + 1)`, the distances that separate the intervals which the points stand for.
    """

    points: torch.Tensor
    distances: torch.Tensor
    edges: torch.Tensor

    @property
    def deltas(self) -> torch.Tensor:
        """Lengths of the intervals, `(..., samples)`."""
        return self.edges.diff(dim=-1)


class Composite(NamedTuple):
    """
    What rays see.

    Attributes:
        color: `(..., 3)`, in [0, 1].
        depth: `(..., 1)`, mean distance at which the ray's light was absorbed; 0 where the ray meets nothing.
        opacity: `(..., 1)`, the part of the background that is hidden, in [0, 1].
        weights: `(..., samples)`, the part of the ray's colour that comes from each sample; their sum is the opacity.
    """

    color: torch.Tensor
    depth: torch.Tensor
    opacity: torch.Tensor
    weights: torch.Tensor


def sample_along_rays(
    origins: torch.Tensor,
    directions: torch.Tensor,
    near: float | torch.Tensor,
    far: float | torch.Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
    stratified: bool = False,
    last_interval_infinite: bool = False,
) -> RaySamples:
    """
    Divides each ray between `near` and `far` into intervals with one sample in each.

    Args:
        origins, directions: `(..., 3)`; directions of unit length. Differentiable in both.
        near, far: distances along the ray: a number, or a tensor whose axes are the leading ones of the rays, e.g.
            `(batch,)` or `(batch, rays)` for rays `(batch, rays, 3)`.
        num_samples: at least 2.
        generator: source of randomness, needed for `stratified`.
        stratified: a uniformly random point of each interval (training) instead of its middle.
        last_interval_infinite: the quadrature of the original NeRF code: samples from `near` to `far` inclusive, each of
            which stands for the interval up to the next one, and the last one for all beyond. Every ray ends up opaque,
            so that a background has no effect.

    Raises:
        ValueError: for shapes that do not match, fewer than two samples, or `stratified` without a generator.
    """
    _check_rays(origins, directions)
    near, far = (_along_rays(value, name, origins) for value, name in ((near, "near"), (far, "far")))
    distances, edges = divide_rays(near, far, num_samples, generator, stratified, last_interval_infinite)
    return _ray_samples(origins, directions, distances, edges)


def divide_rays(
    near: torch.Tensor,
    far: torch.Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
    stratified: bool = False,
    last_interval_infinite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances `(..., samples)` and edges `(..., samples + 1)` of [`RaySamples`] from `near` and `far`, `(..., 1)` each."""
    if num_samples < 2:
        raise ValueError(f"`num_samples` must be at least 2, got {num_samples}.")
    count = num_samples if last_interval_infinite else num_samples + 1
    fractions = torch.linspace(0.0, 1.0, count, device=near.device, dtype=near.dtype)
    edges = near * (1 - fractions) + far * fractions
    if not last_interval_infinite:
        return _points_between(edges, generator, stratified), edges
    distances = edges
    if stratified:
        middles = 0.5 * (edges[..., 1:] + edges[..., :-1])
        strata = torch.cat([edges[..., :1], middles, edges[..., -1:]], dim=-1)
        distances = _points_between(strata, generator, stratified)
    return distances, torch.cat([distances, torch.full_like(distances[..., :1], _INFINITE)], dim=-1)


def importance_sample(
    origins: torch.Tensor,
    directions: torch.Tensor,
    samples: RaySamples,
    weights: torch.Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
    stratified: bool = False,
    uniform_part: float = 0.05,
) -> RaySamples:
    """
    Divides each ray anew, into intervals that are short where a first pass found the ray's colour.

    The interval edges are quantiles of the first pass's weights, found by inverting their piecewise linear distribution
    (NeRF section 5.2) after the weights were widened to neighbouring intervals as in mip-NeRF. As the edges still span the
    whole ray, the new samples are composited without the old ones.

    Args:
        origins, directions: `(..., 3)`, the rays of the first pass.
        samples, weights: samples of the first pass and their weights from [`composite`]. No gradient flows through them.
        num_samples, generator, stratified: as in [`sample_along_rays`].
        uniform_part: share of the samples that is spread evenly, so that no part of a ray is lost; in (0, 1].

    Raises:
        ValueError: as in [`sample_along_rays`], and for samples whose last interval is infinite.
    """
    if num_samples < 2:
        raise ValueError(f"`num_samples` must be at least 2, got {num_samples}.")
    if not 0 < uniform_part <= 1:
        raise ValueError(f"`uniform_part` must lie in (0, 1], got {uniform_part}.")
    weights = weights.detach()
    edges = samples.edges.detach().expand(*weights.shape[:-1], -1)
    lengths = edges.diff(dim=-1)
    if (lengths >= _INFINITE).any():
        raise ValueError("Importance sampling divides finite intervals; sample with `last_interval_infinite=False`.")
    tiny = torch.finfo(edges.dtype).tiny
    uniform = lengths / lengths.sum(-1, keepdim=True).clamp(min=tiny)
    # A surface may lie in the interval before the first whose sample saw it.
    padded = F.pad(weights, (1, 1))
    weights = torch.maximum(padded[..., :-1], padded[..., 1:])
    weights = 0.5 * (weights[..., :-1] + weights[..., 1:])
    found = weights / weights.sum(-1, keepdim=True).clamp(min=tiny)
    found = torch.where(found.sum(-1, keepdim=True) > 0.5, found, uniform)  # an empty ray has no weights to follow
    cumulative = (uniform_part * uniform + (1 - uniform_part) * found).cumsum(-1)
    cumulative = F.pad(cumulative / cumulative[..., -1:].clamp(min=tiny), (1, 0))

    quantiles = torch.linspace(0.0, 1.0, num_samples + 1, device=edges.device, dtype=edges.dtype)
    quantiles = quantiles.expand(*edges.shape[:-1], -1).contiguous()
    upper = torch.searchsorted(cumulative, quantiles, right=True).clamp(1, lengths.shape[-1])
    below, above = cumulative.gather(-1, upper - 1), cumulative.gather(-1, upper)
    fraction = ((quantiles - below) / (above - below).clamp(min=tiny)).clamp(0, 1)
    edges = edges.gather(-1, upper - 1).lerp(edges.gather(-1, upper), fraction)
    return _ray_samples(origins, directions, _points_between(edges, generator, stratified), edges)


def composite(
    rgb: torch.Tensor,
    density: torch.Tensor,
    distances: torch.Tensor,
    deltas: torch.Tensor,
    background: float | torch.Tensor | None = None,
) -> Composite:
    """
    The colour that arrives at the eye: Σ T (1 - exp(-σδ)) c, with T the transmittance up to the interval (NeRF Eq. 3).

    Args:
        rgb: `(..., samples, 3)`, and `density`: `(..., samples)`, of the samples from near to far. Differentiable.
        distances, deltas: `(..., samples)`, see [`RaySamples`]; the leading axes may broadcast.
        background: colour seen where the ray is not opaque: a number, `(3,)` or `(..., 3)`; black if not given.
    """
    thickness = density * deltas
    transmittance = torch.exp(-F.pad(thickness[..., :-1].cumsum(-1), (1, 0)))
    weights = transmittance * -torch.expm1(-thickness)
    opacity = weights.sum(-1, keepdim=True)
    color = (weights[..., None] * rgb).sum(-2)
    if background is not None:
        color = color + (1 - opacity) * torch.as_tensor(background, device=color.device, dtype=color.dtype)
    depth = (weights * distances).sum(-1, keepdim=True) / opacity.clamp(min=torch.finfo(opacity.dtype).eps)
    return Composite(color, depth, opacity, weights)


def clip_to_bounds(
    origins: torch.Tensor,
    directions: torch.Tensor,
    near: float | torch.Tensor,
    far: float | torch.Tensor,
    bounds: Bounds,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The part of each ray between `near` and `far` that lies in a box, as distances `(...)` for rays `(..., 3)`.

    Where a ray misses the box both distances are equal, so that it has nothing to composite.
    """
    _check_rays(origins, directions)
    corners = as_corners(bounds).to(origins)
    near, far = (_along_rays(value, name, origins)[..., 0] for value, name in ((near, "near"), (far, "far")))
    # A component of exactly 0 would give 0/0 on a face of the box.
    safe = torch.where(directions.abs() < 1e-12, torch.full_like(directions, 1e-12), directions)
    crossings = (corners.reshape(2, *[1] * (origins.ndim - 1), 3) - origins) / safe  # (2, ..., 3)
    entry = torch.maximum(near, crossings.amin(0).amax(-1))
    leave = torch.minimum(far, crossings.amax(0).amin(-1))
    missed = leave <= entry
    return torch.where(missed, near, entry), torch.where(missed, near, leave)


def _points_between(edges: torch.Tensor, generator: torch.Generator | None, stratified: bool) -> torch.Tensor:
    """A point of each interval: its middle, or a random one."""
    if not stratified:
        return 0.5 * (edges[..., 1:] + edges[..., :-1])
    if generator is None:
        raise ValueError("`stratified` sampling needs a `generator` (torch.Generator), so that it can be repeated.")
    shape = (*edges.shape[:-1], edges.shape[-1] - 1)
    fractions = torch.rand(shape, generator=generator, device=generator.device, dtype=edges.dtype).to(edges.device)
    return edges[..., :-1] + edges.diff(dim=-1) * fractions


def _ray_samples(
    origins: torch.Tensor, directions: torch.Tensor, distances: torch.Tensor, edges: torch.Tensor
) -> RaySamples:
    points = origins[..., None, :] + distances[..., None] * directions[..., None, :]
    return RaySamples(points, distances, edges)


def _along_rays(value: float | torch.Tensor, name: str, origins: torch.Tensor) -> torch.Tensor:
    """`value` as `(..., 1)`, one for each ray `(..., 3)`."""
    value, rays = torch.as_tensor(value, device=origins.device, dtype=origins.dtype), origins.shape[:-1]
    if value.ndim > len(rays) or any(a not in (1, b) for a, b in zip(value.shape, rays)):
        raise ValueError(f"`{name}` of shape {tuple(value.shape)} does not fit rays of shape {tuple(rays)}.")
    return value.reshape(*value.shape, *[1] * (len(rays) - value.ndim)).expand(rays)[..., None]


def _check_rays(origins: torch.Tensor, directions: torch.Tensor) -> None:
    if origins.shape != directions.shape or origins.ndim < 2 or origins.shape[-1] != 3:
        raise ValueError(
            f"`origins` and `directions` must have one shape (..., rays, 3), got {tuple(origins.shape)} and {tuple(directions.shape)}."
        )


def as_corners(bounds: Bounds) -> torch.Tensor:
    """Two corners `(2, 3)`, float32."""
    corners = torch.as_tensor(bounds, dtype=torch.float32)
    if corners.shape == (2,):
        corners = corners[:, None].expand(2, 3)
    if corners.shape != (2, 3) or not (corners[0] < corners[1]).all():
        raise ValueError(f"`bounds` must be (low, high) or two corners (x, y, z), low < high; got {bounds}.")
    return corners
