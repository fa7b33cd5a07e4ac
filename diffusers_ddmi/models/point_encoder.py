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
"""Point clouds to feature planes: the local-pooling PointNet of Convolutional Occupancy Networks (Peng et al. 2020)."""

from dataclasses import dataclass

import torch
import torch.nn as nn

from .blocks import FullyConnectedBlock


# The planes' axes in layout order, (first letter, second letter) of "xy", "xz" and "yz".
PLANE_AXES = ((0, 1), (0, 2), (1, 2))
# Widens the box a little, so that its upper face falls into the last cell. Both constants are part of what published
# weights expect.
BOX_MARGIN = 1e-5
LARGEST_POSITION = 1 - 1e-5


class PointEncoder(nn.Module):
    """
    Point cloud to one feature plane for each pair of axes.

    Every point passes through residual blocks; between them it takes up the largest features among the points that share
    its cell, summed over the three planes. At the end each cell holds the mean of its points' features, and 0 if it is
    empty.

    Args:
        input_channels: numbers of each point, position first: 3 for xyz, 6 for xyz and rgb.
        hidden_channels: width of the blocks.
        out_channels: channels of the planes.
        num_blocks: residual blocks.
        plane_size: cells along each axis of a plane.
        padding: margin around the box, relative to its size.
        bound: the box is [-bound, bound]^3, in the units of the positions.
    """

    def __init__(
        self,
        input_channels: int = 3,
        hidden_channels: int = 256,
        out_channels: int = 32,
        num_blocks: int = 7,
        plane_size: int = 64,
        padding: float = 0.1,
        bound: float = 0.5,
    ):
        super().__init__()
        if input_channels < 3:
            raise ValueError(
                f"`input_channels` is {input_channels}; a point has at least the three coordinates x, y, z."
            )
        for name, value in (("num_blocks", num_blocks), ("plane_size", plane_size), ("bound", bound)):
            if value <= 0:
                raise ValueError(f"`{name}` is {value}; expected a positive number.")
        self.input_channels = input_channels
        self.out_channels = out_channels
        self.plane_size = plane_size
        self.padding = padding
        self.bound = bound
        self.proj_in = nn.Linear(input_channels, 2 * hidden_channels)
        self.blocks = nn.ModuleList(
            FullyConnectedBlock(2 * hidden_channels, hidden_channels) for _ in range(num_blocks)
        )
        self.proj_out = nn.Linear(hidden_channels, out_channels)

    def cells(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions (batch, points, 3) to flat cell numbers (batch, 3 planes, points), u + plane_size * v with u along
        the plane's first letter. Positions outside of the box fall into its outermost cells."""
        positions = positions.float() / (2 * self.bound * (1 + self.padding + BOX_MARGIN)) + 0.5
        positions = positions.clamp(0, LARGEST_POSITION)
        # Clamped as integers, so that a position which is not a number spoils no cell but one of its own item.
        cells = (positions * self.plane_size).long().clamp(0, self.plane_size - 1)  # (batch, points, 3)
        return torch.stack([cells[..., u] + self.plane_size * cells[..., v] for u, v in PLANE_AXES], dim=1)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """
        Args:
            points: (batch, points, input_channels), coordinates (x, y, z) first. Order and number are free.

        Returns:
            (batch, 3, out_channels, plane_size, plane_size): planes xy, xz, yz; the last axis runs along a plane's first
            letter.

        Raises:
            ValueError: `points` has another shape, or no points.
        """
        if points.ndim != 3 or points.shape[-1] != self.input_channels or points.shape[1] == 0:
            raise ValueError(
                f"`points` has shape {tuple(points.shape)}; expected (batch, points, {self.input_channels}) with at least "
                "one point."
            )
        cells = _Cells.of(self.cells(points[..., :3]), self.plane_size**2)
        features = self.blocks[0](self.proj_in(points))  # (batch, points, hidden)
        for block in self.blocks[1:]:
            features = block(torch.cat([features, cells.pool(features)], dim=-1))
        planes = cells.mean(self.proj_out(features))  # (batch, 3, cells, out)
        return planes.transpose(2, 3).unflatten(-1, (self.plane_size, self.plane_size))


@dataclass(frozen=True)
class _Cells:
    """Which points share a cell of a plane. Only cells that hold points are computed: points are sorted by cell once, and
    reduced segment by segment, which is several times faster than scattering and adds in a fixed order on every device.

    Args:
        shape: (batch, planes, points, cells of a plane).
        occupied: numbers of the occupied cells, over all items and planes.
        counts: points in each of them.
        points: for each entry of the segments, its row among the points of the batch.
        cell: for each (item, plane, point), which of the occupied cells it is in.
    """

    shape: tuple[int, int, int, int]
    occupied: torch.Tensor
    counts: torch.Tensor
    points: torch.Tensor
    cell: torch.Tensor

    @classmethod
    def of(cls, cells: torch.Tensor, cells_per_plane: int) -> "_Cells":
        """From cell numbers (batch, planes, points)."""
        batch, planes, points = cells.shape
        first = torch.arange(batch * planes, device=cells.device).view(batch, planes, 1) * cells_per_plane
        occupied, cell, counts = torch.unique(cells + first, return_inverse=True, return_counts=True)
        order = torch.argsort(cell.flatten(), stable=True)
        rows = torch.arange(batch * points, device=cells.device).view(batch, 1, points).expand(batch, planes, points)
        return cls((batch, planes, points, cells_per_plane), occupied, counts, rows.flatten()[order], cell.flatten())

    def _reduce(self, features: torch.Tensor, reduce: str) -> torch.Tensor:
        """Features (batch, points, channels) to (occupied cells, channels)."""
        entries = features.flatten(0, 1).index_select(0, self.points)
        return torch.segment_reduce(entries, reduce, lengths=self.counts)

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """For each point, the largest features of its cell, summed over the planes: (batch, points, channels)."""
        pooled = self._reduce(features, "max").index_select(0, self.cell)
        return pooled.unflatten(0, self.shape[:3]).sum(1)

    def mean(self, features: torch.Tensor) -> torch.Tensor:
        """The mean of each cell's points, 0 without any: (batch, planes, cells, channels)."""
        batch, planes, _, cells = self.shape
        grid = features.new_zeros(batch * planes * cells, features.shape[-1])
        return grid.index_copy(0, self.occupied, self._reduce(features, "mean")).unflatten(0, (batch, planes, cells))
