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
"""Latent planes: which axes each plane spans, how large it is, and how planes travel as one latent tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PlaneLayout:
    """The axis-aligned latent planes of one signal (paper §3.1: one plane for images, a tri-plane otherwise).

    A plane is named by two axis letters, `"ab"`: the first letter is its last (width) axis, the second its height, so
    the plane `"xy"` is a tensor `(batch, channels, size of y, size of x)`.

    All planes travel as one latent tensor. Planes of a layout without `fixed_axes` have equal size and are joined on
    the channel axis, `(batch, planes * channels, height, width)`: what diffusers' 2D UNets take. With `fixed_axes`
    (time, which is never resampled) they are flattened to tokens, `(batch, channels, tokens)`, row by row, plane after
    plane.

    Args:
        planes: the planes' names in packing order, such as `("xy", "xz", "yz")`.
        sizes: number of cells along each axis, `{"x": 16, "y": 16, "z": 16}`.
        fixed_axes: axes whose number of cells is the same at every level of the networks.
    """

    planes: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]
    fixed_axes: str = ""

    @classmethod
    def create(cls, planes: Sequence[str], sizes: dict[str, int], fixed_axes: str = "") -> PlaneLayout:
        planes = tuple(planes)
        for plane in planes:
            if len(plane) != 2 or plane[0] == plane[1] or any(axis not in sizes for axis in plane):
                raise ValueError(
                    f"A plane is named by two different axes out of {sorted(sizes)}, such as 'xy'; got {plane!r}."
                )
        if len(set(planes)) != len(planes) or not planes:
            raise ValueError(f"`planes` must be a non-empty list of distinct planes, got {planes}.")
        for axis, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"Axis {axis!r} needs a positive whole number of cells, got {size!r}.")
        layout = cls(planes, tuple(sizes.items()), fixed_axes)
        if layout.joined and len(set(layout.plane_sizes)) != 1:
            raise ValueError(
                f"Planes that are joined on the channel axis must have equal sizes, got "
                f"{dict(zip(planes, layout.plane_sizes))}."
            )
        return layout

    @property
    def joined(self) -> bool:
        """Whether planes are joined on the channel axis (else flattened to tokens)."""
        return not self.fixed_axes

    @property
    def plane_sizes(self) -> tuple[tuple[int, int], ...]:
        """`(height, width)` of each plane."""
        size = dict(self.sizes)
        return tuple((size[plane[1]], size[plane[0]]) for plane in self.planes)

    @property
    def num_tokens(self) -> int:
        return sum(height * width for height, width in self.plane_sizes)

    def resampling(self, plane: int, factor: int = 2) -> tuple[int, int]:
        """`(height, width)` factors by which a level resamples the given plane."""
        first, second = self.planes[plane]
        return (1 if second in self.fixed_axes else factor, 1 if first in self.fixed_axes else factor)

    def latent_shape(self, channels: int) -> tuple[int, ...]:
        """Shape of one packed latent with `channels` channels a plane, without the batch axis."""
        if self.joined:
            return (len(self.planes) * channels, *self.plane_sizes[0])
        return (channels, self.num_tokens)

    def pack(self, planes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Planes `(batch, channels, height, width)`, in layout order, to one latent tensor."""
        if len(planes) != len(self.planes):
            raise ValueError(f"Expected {len(self.planes)} planes {self.planes}, got {len(planes)}.")
        if self.joined:
            return torch.cat(list(planes), dim=1)
        return torch.cat([plane.flatten(2) for plane in planes], dim=2)

    def unpack(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of `pack`. Joined planes may have any size; token latents must have this layout's."""
        if self.joined:
            if latents.ndim != 4 or latents.shape[1] % len(self.planes):
                raise ValueError(
                    f"Expected latents (batch, {len(self.planes)} * channels, height, width) for the planes "
                    f"{self.planes}, got shape {tuple(latents.shape)}."
                )
            return list(latents.chunk(len(self.planes), dim=1))
        if latents.ndim != 3 or latents.shape[2] != self.num_tokens:
            raise ValueError(
                f"Expected latents (batch, channels, {self.num_tokens}) for planes {self.planes} of sizes "
                f"{self.plane_sizes}, got shape {tuple(latents.shape)}."
            )
        lengths = [height * width for height, width in self.plane_sizes]
        return [tokens.unflatten(2, size) for tokens, size in zip(latents.split(lengths, dim=2), self.plane_sizes)]

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Plane numbers that can be computed as one batch: equal in size and in how they are resampled."""
        groups: dict[tuple, list[int]] = {}
        for index, size in enumerate(self.plane_sizes):
            groups.setdefault((size, self.resampling(index)), []).append(index)
        return tuple(tuple(group) for group in groups.values())

    def group(self, planes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Planes `(batch, C, h, w)` to one tensor `(batch * planes in group, C, h, w)` for each of `groups`."""
        return [torch.stack([planes[index] for index in group], dim=1).flatten(0, 1) for group in self.groups]

    def ungroup(self, grouped: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The inverse of `group`, as views."""
        planes: list[torch.Tensor | None] = [None] * len(self.planes)
        for group, tensor in zip(self.groups, grouped):
            for index, plane in zip(group, tensor.unflatten(0, (-1, len(group))).unbind(1)):
                planes[index] = plane
        return planes
