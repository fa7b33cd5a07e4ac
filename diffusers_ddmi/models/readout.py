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
"""π, the read-out MLPs (paper §3.1): position embeddings of several scales, met coarse to fine, become a signal's value.

Coarse-to-fine conditioning (CFC) feeds the coarsest embedding to the first block and joins each finer one to the
hidden features before the next block, by `"concat"` (as the official models do) or by `"sum"` after a linear map.
`"input"` is the paper's ablation without CFC: all embeddings are concatenated at the input.

Every read-out is called as `readout(embeddings, coords, shared, directions)`, where `shared = readout.prepare(...)` is
what all points of one evaluation have in common, computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import FullyConnectedBlock


CONDITIONINGS = ("concat", "sum", "input")


def _block_inputs(embedding_channels: int, hidden_channels: int, num_scales: int, conditioning: str) -> list[int]:
    """Channels that enter each of the `num_scales + 1` blocks."""
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"`conditioning` must be one of {CONDITIONINGS}, got {conditioning!r}.")
    if conditioning == "input":
        return [num_scales * embedding_channels] + [hidden_channels] * num_scales
    if conditioning == "sum":
        return [embedding_channels] + [hidden_channels] * num_scales
    return [embedding_channels] + [hidden_channels + embedding_channels] * (num_scales - 1) + [hidden_channels]


class Readout(nn.Module):
    """What every read-out has: the number of scales it expects, and nothing to prepare."""

    #: Whether the values depend on a scale input, or on viewing directions.
    uses_scale = False
    uses_directions = False

    def prepare(self, scale: torch.Tensor | None = None) -> Any:
        """What all points of one evaluation share."""
        return None

    def merge(self, embeddings: Sequence[torch.Tensor], conditioning: str) -> list[torch.Tensor]:
        """The embeddings in the order in which blocks meet them: one for each block, or all of them at the first."""
        if len(embeddings) != self.num_scales:
            raise ValueError(f"This read-out reads {self.num_scales} scales, got {len(embeddings)} embeddings.")
        return [torch.cat(list(embeddings), dim=-1)] if conditioning == "input" else list(embeddings)


class CoarseToFine(Readout):
    """Residual blocks that meet the embeddings coarse to fine, then one more: the trunk of the plain read-outs.

    Args:
        embedding_channels: channels of one scale's embedding.
        input_channels: channels of a further input, mapped linearly and added after the first block; 0 for none.
        hidden_channels: width.
        num_scales: number of embeddings.
        conditioning: `"concat"`, `"sum"` or `"input"`.
    """

    def __init__(
        self,
        embedding_channels: int,
        hidden_channels: int = 256,
        num_scales: int = 3,
        conditioning: str = "concat",
        input_channels: int = 0,
    ):
        super().__init__()
        self.num_scales = num_scales
        self.conditioning = conditioning
        inputs = _block_inputs(embedding_channels, hidden_channels, num_scales, conditioning)
        self.input_map = nn.Linear(input_channels, hidden_channels) if input_channels else None
        self.blocks = nn.ModuleList(FullyConnectedBlock(channels, hidden_channels) for channels in inputs)
        self.embedding_maps = nn.ModuleList(
            nn.Linear(embedding_channels, hidden_channels)
            for _ in range(num_scales - 1 if conditioning == "sum" else 0)
        )

    def forward(self, embeddings: Sequence[torch.Tensor], inputs: torch.Tensor | None = None) -> torch.Tensor:
        coarsest, *finer = self.merge(embeddings, self.conditioning)
        hidden = self.blocks[0](coarsest)  # (B, N, hidden)
        if self.input_map is not None:
            hidden = hidden + self.input_map(inputs)
        for index, embedding in enumerate(finer):
            if self.conditioning == "sum":
                hidden = self.blocks[index + 1](hidden + self.embedding_maps[index](embedding))
            else:
                hidden = self.blocks[index + 1](torch.cat([hidden, embedding], dim=-1))
        for block in self.blocks[len(finer) + 1 :]:
            hidden = block(hidden)
        return hidden


class ResidualReadout(CoarseToFine):
    """π with plain residual blocks.

    Args:
        embedding_channels: channels of one scale's embedding.
        out_channels: number of values at a point.
        coordinate_channels: number of raw coordinates that enter after the first block; 0 for none.
        final_slope: negative slope of a leaky ReLU before the output map; `None` for no activation there.
    """

    def __init__(
        self,
        embedding_channels: int,
        out_channels: int = 1,
        hidden_channels: int = 256,
        num_scales: int = 3,
        conditioning: str = "concat",
        coordinate_channels: int = 0,
        final_slope: float | None = None,
    ):
        super().__init__(embedding_channels, hidden_channels, num_scales, conditioning, coordinate_channels)
        self.final_slope = final_slope
        self.out = nn.Linear(hidden_channels, out_channels)

    def forward(
        self,
        embeddings: Sequence[torch.Tensor],
        coords: torch.Tensor,
        shared: None = None,
        directions: None = None,
    ) -> torch.Tensor:
        """
        Args:
            embeddings: one `(batch, points, embedding_channels)` a scale, coarse to fine.
            coords: `(batch or 1, points, axes)`.

        Returns:
            Values `(batch, points, out_channels)`.
        """
        hidden = super().forward(embeddings, coords.to(embeddings[0].dtype) if self.input_map is not None else None)
        if self.final_slope is not None:
            hidden = F.leaky_relu(hidden, self.final_slope)
        return self.out(hidden)


def sinusoidal_encoding(inputs: torch.Tensor, num_frequencies: int) -> torch.Tensor:
    """NeRF's positional encoding: `(x, sin 2⁰x, cos 2⁰x, …, sin 2ᶠ⁻¹x, cos 2ᶠ⁻¹x)` on the last axis (Mildenhall 2020)."""
    frequencies = 2.0 ** torch.arange(num_frequencies, device=inputs.device, dtype=inputs.dtype)
    angles = inputs[..., None, :] * frequencies[:, None]  # (..., F, D)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-2)  # (..., F, 2, D)
    return torch.cat([inputs, waves.flatten(-3)], dim=-1)


class RadianceReadout(Readout):
    """π for radiance: colour seen along a direction, and density (paper §4.2, NeRF).

    With one scale the trunk is NeRF's: a plain MLP that meets its input again at `skips`. With several it is the
    residual coarse-to-fine trunk, whose first block also sees the encoded position.

    Args:
        embedding_channels: channels of one scale's embedding.
        num_layers: layers of the single-scale trunk.
        skips: its layers that meet the input again.
        position_frequencies: frequencies of the position's encoding.
        direction_frequencies: frequencies of the viewing direction's encoding.
        negative_slope: of the leaky ReLUs. 1.0 makes them the identity, as the official model has it.
    """

    uses_directions = True

    def __init__(
        self,
        embedding_channels: int,
        out_channels: int = 4,
        hidden_channels: int = 256,
        num_scales: int = 3,
        conditioning: str = "concat",
        num_layers: int = 6,
        skips: Sequence[int] = (2, 4),
        position_frequencies: int = 10,
        direction_frequencies: int = 4,
        negative_slope: float = 0.01,
    ):
        super().__init__()
        if out_channels != 4:
            raise ValueError(f"A radiance read-out has 4 values, red, green, blue and density; got {out_channels}.")
        self.num_scales = num_scales
        self.skips = tuple(skips)
        self.position_frequencies = position_frequencies
        self.direction_frequencies = direction_frequencies
        self.negative_slope = negative_slope
        position_channels = 3 * (1 + 2 * position_frequencies)
        direction_channels = 3 * (1 + 2 * direction_frequencies)
        if num_scales == 1:
            inputs = embedding_channels + position_channels
            self.layers = nn.ModuleList(
                nn.Linear(
                    inputs if layer == 0 else hidden_channels + (inputs if layer in self.skips else 0), hidden_channels
                )
                for layer in range(num_layers)
            )
            self.trunk = None
        else:
            self.layers = None
            self.trunk = CoarseToFine(
                embedding_channels, hidden_channels, num_scales, conditioning, input_channels=position_channels
            )
        self.density = nn.Linear(hidden_channels, 1)
        self.feature = nn.Linear(hidden_channels, hidden_channels)
        self.direction_layer = nn.Linear(hidden_channels + direction_channels, hidden_channels // 2)
        self.colour = nn.Linear(hidden_channels // 2, 3)

    def forward(
        self,
        embeddings: Sequence[torch.Tensor],
        coords: torch.Tensor,
        shared: None = None,
        directions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            embeddings: one `(batch, points, embedding_channels)` a scale, coarse to fine.
            coords: `(batch or 1, points, 3)`, in world units.
            directions: `(batch or 1, points, 3)`, unit vectors from the eye.

        Returns:
            `(batch, points, 4)`: red, green, blue in [0, 1]; density, not negative, per world unit.
        """
        dtype = embeddings[0].dtype
        batch_shape = embeddings[0].shape[:2]
        position = sinusoidal_encoding(coords, self.position_frequencies).to(dtype)
        direction = sinusoidal_encoding(directions, self.direction_frequencies).to(dtype)
        position, direction = (encoding.expand(*batch_shape, -1) for encoding in (position, direction))
        if self.trunk is not None:
            hidden = F.leaky_relu(self.trunk(embeddings, position), self.negative_slope)
        else:
            (embedding,) = self.merge(embeddings, "concat")
            inputs = torch.cat([embedding, position], dim=-1)
            hidden = inputs
            for index, layer in enumerate(self.layers):
                if index in self.skips:
                    hidden = torch.cat([inputs, hidden], dim=-1)
                hidden = F.leaky_relu(layer(hidden), self.negative_slope)
        density = F.softplus(self.density(hidden))
        hidden = torch.cat([self.feature(hidden), direction], dim=-1)
        hidden = F.leaky_relu(self.direction_layer(hidden), self.negative_slope)
        return torch.cat([self.colour(hidden).sigmoid(), density], dim=-1)


class StyledLinear(nn.Module):
    """A linear map whose input channels a style scales, and whose outputs are then brought back to unit variance.

    StyleGAN2's modulated and demodulated 1×1 convolution (Karras 2020, §2.2), with its equalised learning rate: stored
    weights have unit variance and are scaled when used.
    """

    def __init__(self, in_channels: int, out_channels: int, style_channels: int, demodulate: bool = True):
        super().__init__()
        self.demodulate = demodulate
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.style_weight = nn.Parameter(torch.randn(in_channels, style_channels))
        self.style_bias = nn.Parameter(torch.ones(in_channels))

    def forward(self, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Styles `(styles, style_channels)` to the weights `(styles, out_channels, in_channels)` and biases `(styles,
        out_channels)` of the linear maps under them."""
        modulation = F.linear(style, self.style_weight / math.sqrt(self.style_weight.shape[1]), self.style_bias)
        weight = self.weight / math.sqrt(self.weight.shape[1]) * modulation[:, None, :]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum(dim=2, keepdim=True) + 1e-8)
        return weight, self.bias.expand(len(style), -1)


class StyledBlock(nn.Module):
    """Three styled linear maps with leaky ReLUs beside a linear shortcut (identity where the widths agree).

    Calling the block folds everything that is constant over the points into plain weights: the style, the gains of √2
    and 1/√2 (a leaky ReLU commutes with a positive factor), and the constant scale channels, which become biases.
    `apply` then maps points. Folding is `forward`, so that hooks which bring offloaded weights see it.
    """

    def __init__(
        self, hidden_in: int, embedding_in: int, scale_channels: int, hidden_channels: int, style_channels: int
    ):
        super().__init__()
        self.widths = (hidden_in, embedding_in, scale_channels)
        in_channels = sum(self.widths)
        self.linears = nn.ModuleList(
            StyledLinear(in_channels if layer == 0 else hidden_channels, hidden_channels, style_channels)
            for layer in range(3)
        )
        self.shortcut = None
        if in_channels != hidden_channels:
            self.shortcut = nn.Parameter(torch.randn(hidden_channels, in_channels))

    def forward(self, style: torch.Tensor, scale: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """
        Args:
            style: `(styles, style_channels)`.
            scale: `(styles,)`, the value of the scale channels.

        Returns:
            For each of the three maps, and the shortcut where it is not the identity: weights on the hidden features
            `(styles, hidden_channels, hidden_in)`, weights on the embedding `(styles, hidden_channels, embedding_in)`
            or `None`, and biases `(styles, hidden_channels)`.
        """
        folded = []
        for index, linear in enumerate(self.linears):
            gain = math.sqrt(2) if index < 2 else 1.0
            weight, bias = (gain * part for part in linear(style))
            folded.append(self._split(weight, bias, scale) if index == 0 else (weight, None, bias))
        if self.shortcut is not None:
            weight = (self.shortcut / math.sqrt(2 * self.shortcut.shape[1])).expand(len(style), -1, -1)
            folded.append(self._split(weight, torch.zeros_like(folded[0][2]), scale))
        return folded

    def _split(self, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden, embedding, constant = weight.split(self.widths, dim=2)
        return hidden, embedding, bias + scale[:, None] * constant.sum(dim=2)

    @staticmethod
    def apply(folded, hidden, embedding, noise=None) -> torch.Tensor:
        """
        Args:
            folded: from `forward`, with tensors `(styles, …)`, one style for all points or one for each batch item.
            hidden: `(styles, points, hidden_in)`, or `None` for the first block.
            embedding: `(styles, points, embedding_in)`, or `None`.
            noise: three `(styles, points, 1)` addends before the activations.
        """
        update = _affine(folded[0], hidden, embedding)
        for index in range(3):
            if index > 0:
                update = _affine(folded[index], update)
            if noise is not None:
                update = update + noise[index] * (math.sqrt(2) if index < 2 else 1.0)
            update = F.leaky_relu(update, 0.2, inplace=True)
        if len(folded) == 3:
            return torch.add(update, hidden, alpha=1 / math.sqrt(2))
        return _affine(folded[3], hidden, embedding).add_(update)


def _affine(folded, hidden, embedding=None) -> torch.Tensor:
    """`hidden @ Wh + embedding @ We + bias` for a batch of styles, without concatenating the inputs."""
    hidden_weight, embedding_weight, bias = folded
    result = None
    for inputs, weight in ((hidden, hidden_weight), (embedding, embedding_weight)):
        if inputs is None:
            continue
        weight = weight.transpose(1, 2)
        if result is None:
            result = torch.baddbmm(bias[:, None, :], inputs, weight)
        else:  # in place, to save a pass over memory; autocast leaves operations in place alone
            result.baddbmm_(inputs.to(result.dtype), weight.to(result.dtype))
    return result


class StyledReadout(Readout):
    """π for images: styled residual blocks that know at which scale the signal is read.

    The scale `s` says how far apart the queried points lie: the encoder's resolution divided by that of the image the
    points belong to, 1 at the native resolution and 1/2 for an image twice as large. It drives the style of every
    layer and enters as constant channels beside each embedding.

    Args:
        embedding_channels: channels of one scale's embedding.
        out_channels: number of values at a point.
        hidden_channels: width.
        num_scales: number of embeddings.
        conditioning: `"concat"`, `"sum"` or `"input"`.
        scale_channels: constant channels with the scale's value that join each embedding.
        noise_injection: whether styled layers have a learned weight for noise. The official model adds fresh noise
            even when sampling, so that no two readings agree; here the noise is what the caller passes, none by
            default, and a field stays a function. The weights are those of converted models and are not trained.
    """

    uses_scale = True

    def __init__(
        self,
        embedding_channels: int,
        out_channels: int = 3,
        hidden_channels: int = 256,
        num_scales: int = 3,
        conditioning: str = "concat",
        scale_channels: int = 2,
        noise_injection: bool = False,
    ):
        super().__init__()
        if hidden_channels % 8 or hidden_channels < 16:
            raise ValueError(f"`hidden_channels` must be a multiple of 8, at least 16, got {hidden_channels}.")
        self.num_scales = num_scales
        self.conditioning = conditioning
        self.hidden_channels = hidden_channels
        self.style = nn.Sequential(
            nn.Linear(hidden_channels // 4, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, hidden_channels),
        )
        inputs = _block_inputs(embedding_channels, hidden_channels, num_scales, conditioning)
        num_met = 1 if conditioning == "input" else num_scales  # blocks that meet an embedding
        self.blocks = nn.ModuleList()
        for index, channels in enumerate(inputs):
            hidden_in = hidden_channels if index > 0 else 0
            meets = index < num_met and not (index > 0 and conditioning == "sum")
            self.blocks.append(
                StyledBlock(
                    hidden_in,
                    channels - hidden_in if meets else 0,
                    scale_channels if meets else 0,
                    hidden_channels,
                    hidden_channels,
                )
            )
        self.embedding_maps = nn.ModuleList(
            nn.Linear(embedding_channels, hidden_channels)
            for _ in range(num_scales - 1 if conditioning == "sum" else 0)
        )
        self.out = StyledLinear(hidden_channels, out_channels, hidden_channels, demodulate=False)
        self.noise_weights = None
        if noise_injection:  # frozen: training without noise would leave them out of the graph, which DDP forbids
            self.noise_weights = nn.Parameter(torch.zeros(3 * len(self.blocks)), requires_grad=False)

    def prepare(self, scale: torch.Tensor | None = None) -> tuple[list, torch.Tensor]:
        """Folds the scale into the weights.

        Args:
            scale: `(1,)` for all items of the batch, or `(batch,)`, float32; 1 if not given.

        Returns:
            The folded weights of every block (see [`StyledBlock`]), and the style.
        """
        parameter = self.out.weight
        scale = torch.ones(1, device=parameter.device) if scale is None else scale
        half = self.hidden_channels // 8
        frequencies = torch.exp(torch.arange(half, device=scale.device) * (-math.log(10000) / (half - 1)))
        angles = scale[:, None] * frequencies  # (styles, half)
        style = self.style(torch.cat([angles.sin(), angles.cos()], dim=1).to(parameter.dtype))
        folded = [block(style, scale.to(parameter.dtype)) for block in self.blocks]
        return folded, style

    def forward(
        self,
        embeddings: Sequence[torch.Tensor],
        coords: torch.Tensor,
        shared: tuple[list, torch.Tensor] | None = None,
        directions: None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            embeddings: one `(batch, points, embedding_channels)` a scale, coarse to fine.
            coords: unused; the coordinates only drive the interpolation.
            shared: from `prepare`.
            noise: `(batch, points, layers)`, one addend for each styled layer; for models with `noise_injection`.

        Returns:
            Values `(batch, points, out_channels)`.

        Raises:
            ValueError: noise is given to a read-out without `noise_injection`.
        """
        if noise is not None and self.noise_weights is None:
            raise ValueError("This read-out has no weights for `noise`; make it with `noise_injection=True`.")
        folded, style = self.prepare() if shared is None else shared
        batch_shape = embeddings[0].shape[:2]
        if len(style) == 1:  # one style for all: the batch is only more points
            embeddings = [embedding.flatten(0, 1)[None] for embedding in embeddings]
        met = self.merge(embeddings, self.conditioning)
        if noise is not None:
            noise = (noise * self.noise_weights).reshape(*met[0].shape[:2], -1, 1).unbind(2)
        hidden = None
        for index, block in enumerate(self.blocks):
            embedding = met[index] if index < len(met) else None
            if embedding is not None and index > 0 and self.conditioning == "sum":
                hidden, embedding = hidden + self.embedding_maps[index - 1](embedding), None
            layer_noise = None if noise is None else noise[3 * index : 3 * index + 3]
            hidden = block.apply(folded[index], hidden, embedding, layer_noise)
        weight, bias = self.out(style)  # here, where offloading hooks have brought it
        values = _affine((weight, None, bias), hidden)
        return values.reshape(*batch_shape, values.shape[2])


READOUTS: dict[str, type[Readout]] = {
    "residual": ResidualReadout,
    "styled": StyledReadout,
    "radiance": RadianceReadout,
}
