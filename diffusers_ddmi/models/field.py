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
"""A neural field: basis fields and a read-out, as one function of coordinates."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable

import torch

from .basis_fields import BasisFields
from .checks import check_floating
from .readout import Readout


def default_chunk_size(device: torch.device) -> int:
    """Points evaluated at once: on a CPU few enough to stay in its cache, elsewhere many enough to fill the device."""
    return 4096 if device.type == "cpu" else 262_144


def _is_hooked(module: torch.nn.Module) -> bool:
    """Whether something brings the weights on demand: offloading replaces the `forward` of the modules it manages."""
    return any("forward" in vars(submodule) for submodule in module.modules())


class NeuralField:
    """ω̂ = π ∘ γ(·; Ξ): a batch of continuous signals, as functions one can call (paper §3.1).

    A field owns what it needs. One decoded without gradients keeps its own copy of the small read-out, so it stays
    valid when the model that made it is offloaded, moved or trained on.

    Args:
        basis_fields: Ξ of a batch of signals.
        readout: π.
        bounds: `(low, high)` where the signal lives, the same for every axis.
        chunk_size: points (times batch) evaluated at once; chosen for the device by default. It bounds memory and
            does not change values.
        checkpoint: in training, recomputes a chunk's activations in the backward pass instead of keeping them.
    """

    __module__ = "diffusers_ddmi"

    def __init__(
        self,
        basis_fields: BasisFields,
        readout: Readout,
        bounds: tuple[float, float],
        chunk_size: int | None = None,
        checkpoint: Callable | None = None,
    ):
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"`chunk_size` must be a positive number of points, got {chunk_size}.")
        self.basis_fields = basis_fields
        self.readout = readout
        self.bounds = tuple(bounds)
        self.chunk_size = chunk_size
        self.checkpoint = checkpoint

    @property
    def axes(self) -> str:
        """Coordinate names, in the order of a coordinate's last axis."""
        return self.basis_fields.axes

    @property
    def batch_size(self) -> int:
        return self.basis_fields.batch_size

    @property
    def device(self) -> torch.device:
        return self.basis_fields.device

    @property
    def dtype(self) -> torch.dtype:
        return self.basis_fields.dtype

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, item: int) -> NeuralField:
        """The field of one signal of the batch, as a batch of one."""
        item = operator.index(item)
        if not -self.batch_size <= item < self.batch_size:
            raise IndexError(f"Field {item} of a batch of {self.batch_size}.")
        return self._with(basis_fields=self.basis_fields.select(item % self.batch_size))

    def _with(self, **changes) -> NeuralField:
        field = copy.copy(self)
        field.__dict__.update(changes)
        return field

    def to(self, *args, **kwargs) -> NeuralField:
        """A field on another device or in another dtype (arguments as for `torch.Tensor.to`); this one stays.

        Raises:
            RuntimeError: the field's model is under sequential or group offloading.
        """
        if _is_hooked(self.readout):
            raise RuntimeError(
                "This field's read-out is brought to the device on demand, by the offloading of the model that decoded "
                f"it. Evaluate it on {self.device}, or decode without sequential or group offloading (offloading of "
                "whole models is fine)."
            )
        readout = copy.deepcopy(self.readout).to(*args, **kwargs)
        return self._with(basis_fields=self.basis_fields.map(lambda rows: rows.to(*args, **kwargs)), readout=readout)

    def detach(self) -> NeuralField:
        """A field that shares nothing with the model: without gradients, with its own copy of the read-out.

        Under sequential or group offloading the weights are not there to be copied, and the read-out is shared.
        """
        readout = self.readout
        if not _is_hooked(readout):
            readout = copy.deepcopy(readout).requires_grad_(False).eval()
        return self._with(basis_fields=self.basis_fields.map(torch.Tensor.detach), readout=readout, checkpoint=None)

    def __call__(
        self,
        coords: torch.Tensor,
        directions: torch.Tensor | None = None,
        scale: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The signals' values.

        Args:
            coords: `(points, axes)`, shared by the batch, or `(batch, points, axes)`, in the order of `axes` and the
                signal's own coordinates. Differentiable, once.
            directions: unit viewing directions, shaped like `coords`; for fields of radiance.
            scale: spacing of the points relative to the native resolution, a number or `(batch,)`; for read-outs that
                use it (1 if not given).

        Returns:
            `(batch, points, channels)`.

        Raises:
            ValueError: a shape does not fit, or an input is given that this read-out does not use.
        """
        coords = self._check("coords", coords, len(self.axes))
        if self.readout.uses_directions != (directions is not None):
            raise ValueError(
                "This field depends on viewing directions; pass `directions`, unit vectors shaped like `coords`."
                if self.readout.uses_directions
                else "This field does not depend on viewing directions; leave `directions` out."
            )
        if directions is not None:
            directions = self._check("directions", directions, 3)
            if directions.shape[-2] != coords.shape[-2]:
                raise ValueError(f"Got {directions.shape[-2]} `directions` for {coords.shape[-2]} `coords`.")
        if scale is not None and not self.readout.uses_scale:
            raise ValueError("This field does not depend on the scale at which it is read; leave `scale` out.")
        shared = self.readout.prepare(self._check_scale(scale)) if self.readout.uses_scale else None

        chunk = max(1, (self.chunk_size or default_chunk_size(self.device)) // self.batch_size)
        if coords.shape[1] <= chunk:
            return self._evaluate(coords, directions, shared)
        values = []
        for start in range(0, coords.shape[1], chunk):
            part = slice(start, start + chunk)
            values.append(
                self._evaluate(coords[:, part], directions if directions is None else directions[:, part], shared)
            )
        return torch.cat(values, dim=1)

    def _evaluate(self, coords, directions, shared) -> torch.Tensor:
        if self.checkpoint is not None and torch.is_grad_enabled():
            return self.checkpoint(self._evaluate_chunk, coords, directions, shared)
        return self._evaluate_chunk(coords, directions, shared)

    def _evaluate_chunk(self, coords, directions, shared) -> torch.Tensor:
        embeddings = self.basis_fields.interpolate(coords)  # scales of (B, N, C)
        return self.readout(embeddings, coords, shared, directions)

    def _check(self, name: str, points: torch.Tensor, channels: int) -> torch.Tensor:
        """`points` as `(batch or 1, points, channels)` on the field's device, in float32 at least."""
        check_floating(name, points)
        if points.ndim not in (2, 3) or points.shape[-1] != channels:
            raise ValueError(
                f"`{name}` must be (points, {channels}) or (batch, points, {channels}), got {tuple(points.shape)}."
            )
        if points.ndim == 2:
            points = points[None]
        if points.shape[0] not in (1, self.batch_size):
            raise ValueError(f"`{name}` is a batch of {points.shape[0]}, this field one of {self.batch_size}.")
        return points.to(self.device, torch.promote_types(points.dtype, torch.float32))

    def _check_scale(self, scale: float | torch.Tensor | None) -> torch.Tensor:
        """`scale` as `(batch or 1,)`, float32, on the field's device."""
        if scale is None:
            return torch.ones(1, device=self.device)
        if isinstance(scale, (int, float)):  # needs no wait for the device, and no break in compiled code
            valid = 0 < scale < math.inf
            values = torch.full((1,), float(scale), device=self.device)
        else:
            try:
                values = torch.as_tensor(scale, device=self.device, dtype=torch.float32).reshape(-1)
            except (TypeError, ValueError, RuntimeError):
                values = torch.empty(0)
            valid = values.shape[0] in (1, self.batch_size) and bool(((values > 0) & values.isfinite()).all())
        if not valid:
            got = values.tolist() or repr(scale)
            raise ValueError(
                f"`scale` must be a positive number, or one for each of the {self.batch_size} signals, got {got}."
            )
        return values
