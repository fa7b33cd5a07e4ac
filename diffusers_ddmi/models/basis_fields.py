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
"""D, the basis-field decoder, and γ, the interpolation that turns its fields into position embeddings (paper §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .blocks import EPS, CheckpointedModule, PlaneMiddle, PlaneStage, build_plane_mixing
from .planes import PlaneLayout


class BasisFields:
    """Ξ, the hierarchically decomposed basis fields (HDBFs) of a batch of signals: a pyramid of feature grids a plane.

    Fields are kept as one table of feature rows a scale, so that γ reads the four neighbours of every coordinate on
    every plane in a single gather.

    Args:
        fields: for each scale, coarse to fine, and each plane, features `(batch, channels, height, width)`.
        axes: coordinate names in the order of a coordinate's last axis, such as `"xyz"`.
        planes: for each plane, the two axes that drive its width and its height, such as `"xy"`.
        extent: `(low, high)` that the planes span, the same for every axis.
        align_corners: whether the extent's ends are the centres of the outermost cells (else their outer edges).
        reduction: `"sum"` adds the embeddings of the planes, `"concat"` joins them on the channel axis.
        upper_limit: largest position on the extent, relative to it; positions beyond are moved there.
    """

    def __init__(
        self,
        fields: Sequence[Sequence[torch.Tensor]],
        axes: str,
        planes: Sequence[str],
        extent: tuple[float, float],
        align_corners: bool,
        reduction: str,
        upper_limit: float = 1.0,
    ):
        if reduction not in ("sum", "concat"):
            raise ValueError(f"`reduction` must be 'sum' or 'concat', got {reduction!r}.")
        if any(len(scale) != len(planes) for scale in fields):
            raise ValueError(
                f"Every scale needs {len(planes)} planes {tuple(planes)}, got {[len(s) for s in fields]}."
            )
        self.axes = axes
        self.planes = tuple(planes)
        self.extent = tuple(extent)
        self.align_corners = align_corners
        self.reduction = reduction
        self.upper_limit = upper_limit
        self.batch_size = fields[0][0].shape[0]
        self.sizes = [[tuple(plane.shape[-2:]) for plane in scale] for scale in fields]
        # (rows, channels) a scale; plane after plane, in each the batch, in each item row by row.
        self.tables = [torch.cat([plane.permute(0, 2, 3, 1).flatten(0, 2) for plane in scale]) for scale in fields]

    @property
    def num_scales(self) -> int:
        return len(self.tables)

    @property
    def device(self) -> torch.device:
        return self.tables[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.tables[0].dtype

    def fields(self, scale: int) -> list[torch.Tensor]:
        """The grids of one scale (0 is the coarsest), each a view `(batch, channels, height, width)`."""
        sizes = self.sizes[scale]
        parts = self.tables[scale].split([self.batch_size * height * width for height, width in sizes])
        return [part.unflatten(0, (self.batch_size, *size)).permute(0, 3, 1, 2) for part, size in zip(parts, sizes)]

    def interpolate(self, coords: torch.Tensor) -> list[torch.Tensor]:
        """γ(c; Ξ): projects each coordinate onto every plane and interpolates bilinearly, at every scale.

        Args:
            coords: `(batch, points, axes)`, or `(points, axes)` shared by the batch, in the signal's coordinates and
                the order of `axes`. Positions are computed in float32 at least; beyond the extent the outermost
                cells are repeated. Differentiable.

        Returns:
            One embedding a scale, coarse to fine: `(batch, points, channels)`, times the number of planes in the
            channels for `reduction="concat"`, in the fields' dtype.
        """
        low, high = self.extent
        coords = coords.to(torch.promote_types(coords.dtype, torch.float32))
        unit = (coords - low) / (high - low)  # [0, 1] over the extent
        if self.upper_limit < 1:
            unit = unit.clamp(max=self.upper_limit)
        if unit.ndim == 2:
            unit = unit[None]
        return [self._interpolate_scale(scale, unit) for scale in range(self.num_scales)]

    def _interpolate_scale(self, scale: int, unit: torch.Tensor) -> torch.Tensor:
        table = self.tables[scale]
        item = torch.arange(self.batch_size, device=unit.device)[:, None]
        rows, weights, offset = [], [], 0
        for (height, width), (first, second) in zip(self.sizes[scale], self.planes):
            left, right, x = self._neighbours(unit[..., self.axes.index(first)], width)
            top, bottom, y = self._neighbours(unit[..., self.axes.index(second)], height)
            base = offset + item * (height * width)
            corners = (top * width + left, top * width + right, bottom * width + left, bottom * width + right)
            rows.append(torch.stack([base + corner for corner in corners], dim=-1))
            corner_weights = ((1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y)
            weights.append(torch.stack(corner_weights, dim=-1))
            offset += self.batch_size * height * width
        rows = torch.stack(rows, dim=2)  # (B, N, P, 4)
        weights = torch.stack(weights, dim=2).to(table.dtype).expand(rows.shape)
        # A bag of rows with weights is the interpolation; summing planes only makes the bag larger.
        bags = len(self.planes) if self.reduction == "concat" else 1  # of each point
        shape = (self.batch_size * unit.shape[1] * bags, 4 * len(self.planes) // bags)
        embeddings = nn.functional.embedding_bag(
            rows.reshape(shape), table, per_sample_weights=weights.reshape(shape), mode="sum"
        )
        return embeddings.view(self.batch_size, unit.shape[1], bags * table.shape[1])

    def _neighbours(self, unit: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices of the two cells around each position and the weight of the second, `(batch or 1, points)`."""
        position = unit * (size - 1) if self.align_corners else unit * size - 0.5
        position = position.clamp(0, size - 1)
        # Clamped as integers, so that a coordinate which is not a number gives such a value and reads no foreign row.
        lower = position.detach().floor().long().clamp(0, max(size - 2, 0))
        return lower, (lower + 1).clamp(max=size - 1), position - lower

    def map(self, function) -> BasisFields:
        """The same fields with `function` applied to every table of rows."""
        mapped = object.__new__(BasisFields)
        mapped.__dict__.update(self.__dict__, tables=[function(table) for table in self.tables])
        return mapped

    def select(self, item: int) -> BasisFields:
        """The basis fields of one signal of the batch, as a batch of one."""
        return self._with([[plane[item : item + 1] for plane in self.fields(s)] for s in range(self.num_scales)])

    @classmethod
    def cat(cls, parts: Sequence[BasisFields]) -> BasisFields:
        """Basis fields of several batches as those of one."""
        first = parts[0]
        if len(parts) == 1:
            return first
        scales = [zip(*(part.fields(scale) for part in parts)) for scale in range(first.num_scales)]
        return first._with([[torch.cat(planes) for planes in scale] for scale in scales])

    def _with(self, fields: Sequence[Sequence[torch.Tensor]]) -> BasisFields:
        return BasisFields(
            fields, self.axes, self.planes, self.extent, self.align_corners, self.reduction, self.upper_limit
        )


class BasisFieldDecoder(ModelMixin, ConfigMixin):
    """D (paper §3.1): latent planes to hierarchically decomposed basis fields.

    One convolutional decoder serves all planes. Its successive levels, each brought to `basis_channels` by a 1×1
    convolution (the finest by the output convolution), are the scales. Usable alone, without an encoder.

    Args:
        axes: coordinate names, in the order of a coordinate's last axis.
        planes: latent planes, see [`~models.planes.PlaneLayout`].
        fixed_axes: axes that no level resamples, such as time.
        sample_size: cells along each axis of the finest basis field.
        fixed_size: cells along the fixed axes.
        latent_channels: channels of a latent plane.
        bottleneck_channels: channels between the per-plane 1×1 convolutions and the decoder proper.
        block_out_channels: channels of each level, fine to coarse.
        layers_per_block: residual blocks a level of the encoder; the decoder has one more, as in diffusers' VAEs.
        norm_num_groups: groups of every GroupNorm.
        basis_channels: channels of every basis field.
        num_scales: number of scales, the finest levels of the decoder. 1 is a single basis field (paper Table 8, first
            row).
        attention_heads: heads of the attention within each plane at the coarsest level.
        plane_mixing: how planes exchange information: `None`; `"convolution"`, as one stack of channels; or
            `"attention"`, over the tokens of all planes.
        mixing_levels: at which levels, fine to coarse, they do; everywhere by default. The middle always does.
        mixing_heads: heads of `plane_mixing="attention"`, each as wide as the layer.
        mixing_order: plane numbers in the order in which `plane_mixing="convolution"` joins their channels.
        plane_coordinates: for each plane, the axes that drive its width and height. They differ from the planes'
            names only in weights converted from the official video model, which reads two planes crossed.
        extent: `(low, high)` of the coordinates that the planes span.
        align_corners: whether the extent's ends are the centres of the outermost cells (else their outer edges).
        reduction: `"sum"` or `"concat"` of the planes' embeddings.
        upper_limit: largest position on the extent, relative to it. Only converted weights of the official shape model
            have one below 1: it keeps positions outside of its box a little away from the last cell's centre.

    Raises:
        ValueError: an argument does not fit the others; the message says which.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("ResnetBlock2D", "Attention")

    @register_to_config
    def __init__(
        self,
        axes: str = "xy",
        planes: tuple[str, ...] = ("xy",),
        fixed_axes: str = "",
        sample_size: int = 32,
        fixed_size: int | None = None,
        latent_channels: int = 4,
        bottleneck_channels: int = 8,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 32,
        basis_channels: int = 32,
        num_scales: int = 3,
        attention_heads: int = 1,
        plane_mixing: str | None = None,
        mixing_levels: tuple[bool, ...] | None = None,
        mixing_heads: int = 8,
        mixing_order: tuple[int, ...] | None = None,
        plane_coordinates: tuple[str, ...] | None = None,
        extent: tuple[float, float] = (-1.0, 1.0),
        align_corners: bool = False,
        reduction: str = "concat",
        upper_limit: float = 1.0,
    ):
        super().__init__()
        num_levels = len(block_out_channels)
        if not 1 <= num_scales <= num_levels:
            raise ValueError(f"`num_scales` must be between 1 and the {num_levels} levels, got {num_scales}.")
        if mixing_levels is not None and len(mixing_levels) != num_levels:
            raise ValueError(f"`mixing_levels` needs one flag a level ({num_levels}), got {mixing_levels}.")
        self.layout = latent_layout(axes, planes, fixed_axes, sample_size, fixed_size, num_levels)
        self.trunk = _DecoderTrunk(
            self.layout,
            latent_channels,
            bottleneck_channels,
            block_out_channels,
            layers_per_block,
            norm_num_groups,
            basis_channels,
            num_scales,
            attention_heads,
            plane_mixing,
            mixing_levels or [plane_mixing is not None] * num_levels,
            mixing_heads,
            mixing_order,
        )

    def forward(self, latents: torch.Tensor) -> BasisFields:
        """
        Args:
            latents: packed latent planes, see [`~models.planes.PlaneLayout.pack`].

        Returns:
            `BasisFields` with `num_scales` scales, coarse to fine.

        Raises:
            ValueError: the latents have another shape.
        """
        config = self.config
        planes = self.layout.unpack(latents)  # each (batch, latent_channels, h, w)
        if planes[0].shape[1] != config.latent_channels or not latents.numel():
            raise ValueError(
                f"Expected latents like (batch, {', '.join(map(str, self.layout.latent_shape(config.latent_channels)))}"
                f"), {config.latent_channels} channels a plane, got shape {tuple(latents.shape)}."
            )
        return BasisFields(
            self.trunk(planes),
            axes=config.axes,
            planes=config.plane_coordinates or config.planes,
            extent=tuple(config.extent),
            align_corners=config.align_corners,
            reduction=config.reduction,
            upper_limit=config.upper_limit,
        )


class _DecoderTrunk(CheckpointedModule):
    """The convolutional part of [`BasisFieldDecoder`]."""

    def __init__(
        self,
        layout: PlaneLayout,
        latent_channels: int,
        bottleneck_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        basis_channels: int,
        num_scales: int,
        attention_heads: int,
        plane_mixing: str | None,
        mixing_levels: Sequence[bool],
        mixing_heads: int,
        mixing_order: Sequence[int] | None,
    ):
        super().__init__()
        self.layout = layout

        def mixing(channels: int) -> nn.Module | None:
            return build_plane_mixing(plane_mixing, channels, layout, norm_num_groups, mixing_heads, mixing_order)

        channels = block_out_channels[-1]
        self.latent_heads = nn.ModuleList(nn.Conv2d(latent_channels, bottleneck_channels, 1) for _ in layout.planes)
        self.conv_in = nn.Conv2d(bottleneck_channels, channels, 3, padding=1)
        self.middle = PlaneMiddle(channels, norm_num_groups, attention_heads, mixing(channels))
        self.stages = nn.ModuleList()
        self.basis_heads = nn.ModuleList()
        for level in reversed(range(len(block_out_channels))):
            out_channels = block_out_channels[level]
            self.stages.append(
                PlaneStage(
                    channels,
                    out_channels,
                    layers_per_block + 1,
                    norm_num_groups,
                    layout,
                    mixing(out_channels) if mixing_levels[level] else None,
                    "up" if level > 0 else None,
                )
            )
            if 0 < level < num_scales:
                self.basis_heads.append(nn.Conv2d(out_channels, basis_channels, 1))
            channels = out_channels
        self.norm_out = nn.GroupNorm(norm_num_groups, channels, eps=EPS)
        self.conv_out = nn.Conv2d(channels, basis_channels, 3, padding=1)

    def forward(self, planes: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        heads = iter(self.basis_heads)
        coarse_levels = len(self.stages) - 1 - len(self.basis_heads)  # levels that are no scale
        hidden = self.layout.group([head(plane) for head, plane in zip(self.latent_heads, planes)])
        hidden = self.middle([self.conv_in(group) for group in hidden], self.run)
        fields = []
        for level, stage in enumerate(self.stages[:-1]):
            hidden = stage(hidden, self.run)
            if level >= coarse_levels:
                head = next(heads)
                fields.append(self.layout.ungroup([head(group) for group in hidden]))
            hidden = stage.resample(hidden)
        hidden = self.stages[-1](hidden, self.run)
        hidden = [self.conv_out(nn.functional.silu(self.norm_out(group))) for group in hidden]
        fields.append(self.layout.ungroup(hidden))
        return fields


def latent_layout(
    axes: str, planes: Sequence[str], fixed_axes: str, sample_size: int, fixed_size: int | None, num_levels: int
) -> PlaneLayout:
    """The layout of latent planes under `num_levels` levels, each but one halving every axis that is not fixed.

    Raises:
        ValueError: the sample size is not divisible, or a fixed axis has no size.
    """
    factor = 2 ** (num_levels - 1)
    if not isinstance(sample_size, int) or sample_size < factor or sample_size % factor:
        raise ValueError(
            f"`sample_size` must be a multiple of {factor} ({num_levels} levels halve it {num_levels - 1} times), "
            f"got {sample_size!r}."
        )
    if fixed_axes and fixed_size is None:
        raise ValueError(f"The axes {fixed_axes!r} are never resampled; give their number of cells as `fixed_size`.")
    sizes = {axis: fixed_size if axis in fixed_axes else sample_size // factor for axis in axes}
    return PlaneLayout.create(planes, sizes, fixed_axes)
