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
"""A field sampled on a fine grid, but only next to its zero set: what `surface` takes its meshes from.

Nodes are numbered 1..resolution along each axis; 0 and resolution + 1 are outside the box and count as empty, so every
surface closes there. Nodes lie in bricks of `brick`³, which exist only where the surface comes near. A node of a brick is
*known* (the field was evaluated there) or *predicted* (interpolated from coarser nodes). `settle` restores the invariant
that everything rests on: wherever two neighbouring nodes differ in sign, both are known. A mesh made from signs and known
values is then the one that a dense grid gives, as long as the surface was met at all; and a part that was met anywhere is
followed to its end, since every evaluation that contradicts its prediction leads to its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F


# Slots of the brick map that stand for whole regions: empty, solid, and outside the box.
EMPTY, SOLID, VOID = 0, 1, 2
_FIRST_BRICK = 3
# Bricks handled at once where temporary arrays are several times as large as the bricks.
_BRICKS_PER_CHUNK = 16384
# A coarse cell of one sign is probed at its centre if the field there is smaller than this part of its change from corner
# to corner: its zero set could pass through without touching a corner.
_PROBE_MARGIN = 0.75


class SparseGrid:
    """Samples of `batch` fields where they change sign.

    Args:
        sample: `sample(batch_index (points,), node (points, 3)) -> values (points,)`: positive inside, node numbers from 1.
        batch: number of fields.
        resolution: nodes along each axis.
        brick: nodes along each side of a brick, and the spacing of the nodes evaluated first: a power of two.
    """

    def __init__(self, sample: Callable, batch: int, resolution: int, brick: int, device: torch.device):
        self.sample, self.batch, self.resolution, self.brick, self.device = sample, batch, resolution, brick, device
        self.bricks_per_axis = resolution // brick + 1
        self.corners = self._evaluate_corners()
        shape = (_FIRST_BRICK, brick, brick, brick)
        self.values = torch.zeros(shape, device=device)
        self.solid = torch.zeros(shape, dtype=torch.bool, device=device)
        self.solid[SOLID] = True
        self.known = torch.ones(shape, dtype=torch.bool, device=device)
        self.place = torch.zeros(_FIRST_BRICK, 4, dtype=torch.long, device=device)  # batch, brick in x, y, z
        self.count = _FIRST_BRICK
        n = self.bricks_per_axis
        self.map = torch.full((batch, n + 2, n + 2, n + 2), VOID, dtype=torch.int32, device=device)
        self.map[:, 1:-1, 1:-1, 1:-1] = torch.where(self.corners[:, :n, :n, :n] > 0, SOLID, EMPTY).int()
        self._refine()

    def _evaluate_corners(self) -> torch.Tensor:
        """Values `(batch, n + 1, n + 1, n + 1)` at the bricks' corners; those beyond the box are moved onto its sides."""
        line = self._corner_nodes(torch.arange(self.bricks_per_axis + 1, device=self.device))
        line, index = torch.unique(line, return_inverse=True)
        nodes = torch.cartesian_prod(line, line, line).repeat(self.batch, 1)
        owner = torch.arange(self.batch, device=self.device).repeat_interleave(len(line) ** 3)
        values = self.sample(owner, nodes).view(self.batch, len(line), len(line), len(line))
        return values[:, index][:, :, index][:, :, :, index]

    def _corner_nodes(self, brick: torch.Tensor) -> torch.Tensor:
        return (brick * self.brick).clamp(1, self.resolution)

    def _refine(self) -> None:
        n, half = self.bricks_per_axis, self.brick // 2
        positive = (self.corners > 0).float()
        any_solid = F.max_pool3d(positive, 2, 1) > 0
        at_side = torch.zeros(n, n, n, dtype=torch.bool, device=self.device)
        for axis in range(3):
            at_side.select(axis, 0)[...] = True
            at_side.select(axis, n - 1)[...] = True
        mixed = any_solid & ((-F.max_pool3d(-positive, 2, 1) < 1) | at_side)

        self.steepness = F.max_pool3d(_steepness(self.corners), 2, 1)  # change from corner to corner around each brick
        smallest = -F.max_pool3d(-self.corners.abs(), 2, 1)
        near = ~mixed & (smallest < _PROBE_MARGIN * self.steepness) & (half > 0)
        self._allocate((mixed | near).nonzero())
        probes = self._slots(near.nonzero())
        if half:
            self._evaluate(probes, torch.full_like(probes, half * (self.brick**2 + self.brick + 1)))
        stride = half
        while stride >= 1:
            if stride < half:
                self._predict(stride)
            self.settle(stride)
            stride //= 2
        if not half:
            self.settle(1)
        self._complete_cells()

    def _complete_cells(self) -> None:
        """Makes the bricks that own a cell which the surface crosses on other bricks' edges only.

        A brick owns the cells whose lowest node it holds. Bricks across a face share an edge with a sign change, so
        `settle` has made them; those across an edge or a corner may be absent.
        """
        slots = torch.arange(_FIRST_BRICK, self.count, device=self.device)
        missing = []
        for step in ((1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)):
            back = tuple(-s for s in step)
            owners = self._neighbours(slots, back)
            touching = self.solid[slots]
            for axis in (axis for axis in range(3) if step[axis]):
                touching = touching.narrow(axis + 1, 0, 1)
            crossed = (owners < VOID) & (touching != (owners == SOLID)[:, None, None, None]).flatten(1).any(1)
            missing.append(self.place[slots[crossed]] + torch.tensor((0, *back), device=self.device))
        self._allocate(torch.unique(torch.cat(missing), dim=0))

    # Bricks

    def _slots(self, place: torch.Tensor) -> torch.Tensor:
        """Map entries at `(bricks, 4)` places (batch, x, y, z); bricks are numbered from 0, neighbours from -1 to n."""
        b, x, y, z = place.unbind(-1)
        return self.map[b, x + 1, y + 1, z + 1].long()

    def _neighbours(self, slots: torch.Tensor, step: tuple[int, int, int]) -> torch.Tensor:
        return self._slots(self.place[slots] + torch.tensor((0, *step), device=self.device))

    def _allocate(self, place: torch.Tensor) -> torch.Tensor:
        """Makes bricks at `(bricks, 4)` places that have none yet, all nodes predicted; returns their slots."""
        place = place[self._slots(place) < _FIRST_BRICK]
        start, self.count = self.count, self.count + len(place)
        if self.count > len(self.values):
            # Somewhat more than asked for, so that bricks added one by one cost little copying.
            extra = self.count + self.count // 8 - len(self.values)
            for name in ("values", "solid", "known", "place"):
                old = getattr(self, name)
                setattr(self, name, torch.cat([old, old.new_zeros(extra, *old.shape[1:])]))
        slots = torch.arange(start, self.count, device=self.device)
        b, x, y, z = place.unbind(-1)
        self.map[b, x + 1, y + 1, z + 1] = slots.int()
        self.place[slots] = place
        for part in slots.split(_BRICKS_PER_CHUNK):
            nodes = self._node_lines(part)
            outside = _outer_or((nodes < 1) | (nodes > self.resolution))
            self.values[part] = self._predict_from_corners(part, nodes)
            self.solid[part] = (self.values[part] > 0) & ~outside
            self.known[part] = outside
        at_corner = (place[:, 1:] * self.brick).amin(1) >= 1
        self.known[slots[at_corner], 0, 0, 0] = True
        return slots

    def _node_lines(self, slots: torch.Tensor) -> torch.Tensor:
        """Node numbers `(bricks, 3, brick)` along the three axes of each brick."""
        return self.place[slots, 1:, None] * self.brick + torch.arange(self.brick, device=self.device)

    def _predict_from_corners(self, slots: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Trilinear interpolation `(bricks, brick, brick, brick)` between a brick's eight corners."""
        b, x, y, z = self.place[slots].unbind(-1)
        low, high = self._corner_nodes(self.place[slots, 1:]), self._corner_nodes(self.place[slots, 1:] + 1)
        weight = ((nodes - low[..., None]) / (high - low).clamp(min=1)[..., None]).clamp(0, 1)
        step = torch.arange(2, device=self.device)
        corners = self.corners[
            b[:, None, None, None],
            (x[:, None] + step)[:, :, None, None],
            (y[:, None] + step)[:, None, :, None],
            (z[:, None] + step)[:, None, None, :],
        ]
        weight = torch.stack([1 - weight, weight], dim=2)  # (bricks, 3, 2, brick)
        return torch.einsum("nabc,nai,nbj,nck->nijk", corners, *weight.unbind(1))

    # Refinement

    def _predict(self, stride: int) -> None:
        """Interpolates the unknown nodes of spacing `stride` from those of twice that, and probes where parts may hide."""
        coarse = 2 * stride
        slots = torch.arange(_FIRST_BRICK, self.count, device=self.device)
        padded = self._with_far_sides(self.values[_FIRST_BRICK : self.count, ::coarse, ::coarse, ::coarse])
        probes = []
        for part, lattice in zip(slots.split(_BRICKS_PER_CHUNK), padded.split(_BRICKS_PER_CHUNK)):
            size = 2 * lattice.shape[-1] - 1
            finer = F.interpolate(lattice[:, None], (size,) * 3, mode="trilinear", align_corners=True)
            finer = finer[:, 0, :-1, :-1, :-1]
            known = self.known[part, ::stride, ::stride, ::stride]
            finer = torch.where(known, self.values[part, ::stride, ::stride, ::stride], finer)
            self.values[part, ::stride, ::stride, ::stride] = finer
            self.solid[part, ::stride, ::stride, ::stride] = torch.where(
                known, self.solid[part, ::stride, ::stride, ::stride], finer > 0
            )
            if stride > 1:
                probes.append(self._hiding_places(part, lattice, stride))
        if probes:
            self._evaluate(*(torch.cat(parts) for parts in zip(*probes)))

    def _hiding_places(
        self, slots: torch.Tensor, lattice: torch.Tensor, half: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centres (slot, offset) of the cells of one sign in which the field comes near zero."""
        low, high = -F.max_pool3d(-lattice, 2, 1), F.max_pool3d(lattice, 2, 1)
        smallest = torch.where(low > 0, low, -high)  # negative where the signs differ
        steepness = self.steepness[tuple(self.place[slots].T)] * (2 * half / self.brick)
        change = torch.maximum(high - low, steepness[:, None, None, None])
        brick, x, y, z = ((smallest >= 0) & (smallest < _PROBE_MARGIN / 2 * change)).nonzero().unbind(-1)
        offset = ((x * self.brick + y) * self.brick + z) * 2 * half + half * (self.brick**2 + self.brick + 1)
        hidden = ~self.known.view(len(self.known), -1)[slots[brick], offset]
        return slots[brick][hidden], offset[hidden]

    def _with_far_sides(self, lattice: torch.Tensor) -> torch.Tensor:
        """`(bricks, p, p, p)` of all bricks to `(bricks, p + 1, ...)`: the first nodes of the next bricks are joined on.

        Where there is no next brick the field is far from zero, and the last nodes are repeated.
        """
        slots = torch.arange(_FIRST_BRICK, self.count, device=self.device)
        for axis in range(3):
            step = tuple(int(axis == other) for other in range(3))
            following = self._neighbours(slots, step)
            exists = following >= _FIRST_BRICK
            side = lattice.select(axis + 1, -1).clone()
            side[exists] = lattice.select(axis + 1, 0)[following[exists] - _FIRST_BRICK]
            lattice = torch.cat([lattice, side.unsqueeze(axis + 1)], dim=axis + 1)
        return lattice

    def settle(self, stride: int) -> None:
        """Evaluates nodes of spacing `stride` until every sign change lies between two known ones.

        At a spacing above 1, where only signs matter, nodes halfway between two coarser ones suffice: along an axis where
        these agree the prediction is trusted until the spacing is 1.
        """
        pending = torch.arange(_FIRST_BRICK, self.count, device=self.device)
        while len(pending):
            needed, missing = [], []
            for part in pending.split(_BRICKS_PER_CHUNK):
                unknown, places = self._unsettled(part, stride)
                needed.append(unknown)
                missing.append(places)
            changed = self._evaluate(*torch.cat(needed).unbind(-1))
            added = self._allocate(torch.unique(torch.cat(missing), dim=0))
            around = [self._neighbours(changed, tuple(step)) for step in _STEPS]
            pending = torch.unique(torch.cat([changed, added, *around]))
            pending = pending[pending >= _FIRST_BRICK]

    def _unsettled(self, slots: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The unknown nodes `(nodes, 2)` (slot, offset) beside a sign change, and the places `(bricks, 4)` of absent
        bricks on its other side."""
        solid = self.solid[:, ::stride, ::stride, ::stride]
        own = solid[slots]
        beside_change = torch.zeros_like(own)
        missing = []
        for axis in range(3):
            changes = torch.zeros_like(own)
            for forward in (False, True):
                step = tuple((2 * forward - 1) * (axis == other) for other in range(3))
                neighbours = self._neighbours(slots, step)
                theirs = solid.select(axis + 1, 0 if forward else -1)[neighbours]
                end = -1 if forward else 0
                differ = own.select(axis + 1, end) != theirs
                changes.select(axis + 1, end).logical_or_(differ)
                absent = (neighbours < VOID) & differ.flatten(1).any(1)
                missing.append(self.place[slots[absent]] + torch.tensor((0, *step), device=self.device))
            size = own.shape[-1] - 1
            differ = own.narrow(axis + 1, 0, size) != own.narrow(axis + 1, 1, size)
            changes.narrow(axis + 1, 0, size).logical_or_(differ)
            changes.narrow(axis + 1, 1, size).logical_or_(differ)
            if stride > 1:
                changes.transpose(1, axis + 1)[:, ::2] = False  # not halfway along this axis
            beside_change |= changes
        beside_change &= ~self.known[slots, ::stride, ::stride, ::stride]
        brick, x, y, z = beside_change.nonzero().unbind(-1)
        offset = ((x * self.brick + y) * self.brick + z) * stride
        return torch.stack([slots[brick], offset], dim=-1), torch.cat(missing)

    def _evaluate(self, slots: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Evaluates the nodes at `offsets` (within a flattened brick) of `slots`; returns slots where a sign turned out
        otherwise than predicted."""
        inside = ~self.known.view(len(self.known), -1)[slots, offsets]
        slots, offsets = slots[inside], offsets[inside]
        place = self.place[slots]
        within = torch.stack([offsets // self.brick**2, offsets // self.brick % self.brick, offsets % self.brick], -1)
        values = self.sample(place[:, 0], place[:, 1:] * self.brick + within)
        flat = [tensor.view(len(tensor), -1) for tensor in (self.values, self.solid, self.known)]
        changed = flat[1][slots, offsets] != (values > 0)
        flat[0][slots, offsets], flat[1][slots, offsets], flat[2][slots, offsets] = values, values > 0, True
        return torch.unique(slots[changed])

    # What a mesh is made of

    def has_empty(self) -> torch.Tensor:
        """Whether any evaluated node of each field is empty `(batch,)`."""
        empty = (self.corners <= 0).flatten(1).any(1)
        for part in torch.arange(_FIRST_BRICK, self.count, device=self.device).split(_BRICKS_PER_CHUNK):
            nodes = self._node_lines(part)
            outside = _outer_or((nodes < 1) | (nodes > self.resolution))
            found = (~self.solid[part] & ~outside & self.known[part]).flatten(1).any(1)
            empty[self.place[part[found], 0]] = True
        return empty

    def cells(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The cells that the surface crosses, in parts: field `(cells,)`, lowest node `(cells, 3)`, which of the eight
        corners are solid as bits of a number `(cells,)`."""
        b = self.brick
        for part in torch.arange(_FIRST_BRICK, self.count, device=self.device).split(_BRICKS_PER_CHUNK):
            solid = torch.empty(len(part), b + 1, b + 1, b + 1, dtype=torch.uint8, device=self.device)
            for corner in range(8):
                step = tuple(corner >> axis & 1 for axis in range(3))
                source = self.solid[self._neighbours(part, step)]
                theirs, mine = (
                    (slice(None), *(slice(0, 1) if s else slice(None) for s in step)),
                    (slice(None), *(slice(b, None) if s else slice(0, b) for s in step)),
                )
                solid[mine] = source[theirs].byte()
            case = torch.zeros(len(part), b, b, b, dtype=torch.uint8, device=self.device)
            for corner in range(8):
                x, y, z = (corner >> axis & 1 for axis in range(3))
                case |= solid[:, x : x + b, y : y + b, z : z + b] << corner
            found = ((case > 0) & (case < 255)).nonzero()
            brick, within = found[:, 0], found[:, 1:]
            place = self.place[part[brick]]
            yield place[:, 0], place[:, 1:] * b + within, case[tuple(found.T)].long()

    def values_at(self, owner: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Values `(nodes,)` at nodes `(nodes, 3)` of bricks that exist."""
        slots = self._slots(torch.cat([owner[:, None], nodes // self.brick], dim=1))
        x, y, z = (nodes % self.brick).unbind(-1)
        return self.values[slots, x, y, z]


_STEPS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


def _steepness(values: torch.Tensor) -> torch.Tensor:
    """Largest difference of each value `(batch, n, n, n)` from its six neighbours."""
    steepest = torch.zeros_like(values)
    for axis in (1, 2, 3):
        change = values.diff(dim=axis).abs()
        for start in (0, 1):
            side = steepest.narrow(axis, start, change.shape[axis])
            torch.maximum(side, change, out=side)
    return steepest


def _outer_or(lines: torch.Tensor) -> torch.Tensor:
    """`(bricks, 3, b)` flags along the axes -> `(bricks, b, b, b)`: whether any of a node's three is set."""
    x, y, z = lines.unbind(1)
    return x[:, :, None, None] | y[:, None, :, None] | z[:, None, None, :]


def brick_size(resolution: int, coarse_resolution: int) -> int:
    """The power of two up to 8 whose cells divide the box about as `coarse_resolution` asks, or finer."""
    return 2 ** max(0, min(3, round(math.log2(resolution / coarse_resolution))))
