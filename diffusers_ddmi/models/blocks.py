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
"""Blocks that several networks share: residual blocks, plane mixing, and the levels of encoder and decoder.

A level processes planes in groups, one tensor `(batch * planes, channels, height, width)` for all planes of equal
size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from .planes import PlaneLayout


EPS = 1e-6


def resnet_block(in_channels: int, out_channels: int, groups: int) -> ResnetBlock2D:
    """diffusers' residual block without a timestep: GroupNorm-SiLU-conv, twice."""
    return ResnetBlock2D(
        in_channels=in_channels, out_channels=out_channels, temb_channels=None, groups=groups, eps=EPS
    )


def plane_attention(channels: int, heads: int, head_channels: int, groups: int) -> Attention:
    """diffusers' residual self-attention over all cells of a plane (or over tokens `(batch, tokens, channels)`)."""
    return Attention(
        channels,
        heads=heads,
        dim_head=head_channels,
        norm_num_groups=groups,
        eps=EPS,
        bias=True,
        residual_connection=True,
        upcast_softmax=False,
        _from_deprecated_attn_block=False,
    )


class FullyConnectedBlock(nn.Module):
    """ReLU, linear, ReLU, linear on `(..., in_channels)`, beside a shortcut to `(..., out_channels)` that is linear where
    the widths differ: the residual block of Occupancy Networks (Mescheder et al. 2019)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        inner_channels = min(in_channels, out_channels)
        self.linear_in = nn.Linear(in_channels, inner_channels)
        self.linear_out = nn.Linear(inner_channels, out_channels)
        self.shortcut = nn.Linear(in_channels, out_channels, bias=False) if in_channels != out_channels else None
        nn.init.zeros_(self.linear_out.weight)  # starts as its shortcut

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.linear_out(nn.functional.relu(self.linear_in(nn.functional.relu(hidden)), inplace=True))
        return update + (hidden if self.shortcut is None else self.shortcut(hidden))


class ConvolutionPlaneMixing(nn.Module):
    """Planes of equal size exchange information as one stack of channels: residual block, attention, residual block.

    Args:
        order: the plane numbers in the order in which their channels are joined. GroupNorm's groups may straddle two
            planes, so the order is part of the weights' meaning.
    """

    def __init__(self, channels: int, layout: PlaneLayout, groups: int, order: Sequence[int] | None = None):
        super().__init__()
        num_planes = len(layout.planes)
        joint = channels * num_planes
        self.num_planes = num_planes
        self.order = list(order) if order is not None and list(order) != list(range(num_planes)) else None
        self.resnet_in = resnet_block(joint, joint, groups)
        self.attention = plane_attention(joint, heads=1, head_channels=joint, groups=groups)
        self.resnet_out = resnet_block(joint, joint, groups)

    def forward(self, hidden_groups: list[torch.Tensor]) -> list[torch.Tensor]:
        (hidden,) = hidden_groups
        planes = hidden.unflatten(0, (-1, self.num_planes))  # (B, P, C, h, w)
        if self.order is not None:
            planes = planes[:, self.order]
        joint = planes.flatten(1, 2)  # (B, P*C, h, w)
        joint = self.resnet_out(self.attention(self.resnet_in(joint, None)), None)
        planes = joint.unflatten(1, (self.num_planes, -1))
        if self.order is not None:
            inverse = [self.order.index(plane) for plane in range(self.num_planes)]
            planes = planes[:, inverse]
        return [planes.flatten(0, 1)]


class AttentionPlaneMixing(nn.Module):
    """Planes of any sizes exchange information by residual self-attention over the tokens of all of them.

    Args:
        heads: number of attention heads, each as wide as the layer.
    """

    def __init__(self, channels: int, layout: PlaneLayout, groups: int, heads: int):
        super().__init__()
        self.group_lengths = [len(group) for group in layout.groups]
        self.attention = plane_attention(channels, heads=heads, head_channels=channels, groups=groups)

    def forward(self, hidden_groups: list[torch.Tensor]) -> list[torch.Tensor]:
        tokens = [
            hidden.unflatten(0, (-1, length)).transpose(1, 2).flatten(2)  # (B, C, planes*h*w)
            for hidden, length in zip(hidden_groups, self.group_lengths)
        ]
        mixed = self.attention(torch.cat(tokens, dim=2).transpose(1, 2)).transpose(1, 2)  # (B, C, L)
        parts = mixed.split([part.shape[2] for part in tokens], dim=2)
        return [
            part.unflatten(2, (length, *hidden.shape[-2:])).transpose(1, 2).flatten(0, 1)
            for part, length, hidden in zip(parts, self.group_lengths, hidden_groups)
        ]


def build_plane_mixing(
    kind: str | None,
    channels: int,
    layout: PlaneLayout,
    groups: int,
    heads: int,
    order: Sequence[int] | None,
) -> nn.Module | None:
    """The module that lets planes exchange information, or `None` where they do not.

    Raises:
        ValueError: the kind is unknown, or convolutions are asked of planes of unequal size.
    """
    if kind is None or len(layout.planes) == 1:
        return None
    if kind == "attention":
        return AttentionPlaneMixing(channels, layout, groups, heads)
    if kind == "convolution":
        if not layout.joined:
            raise ValueError(
                f"`plane_mixing='convolution'` joins planes of equal size; the planes {layout.planes} have fixed axes "
                f"{layout.fixed_axes!r}. Use 'attention'."
            )
        return ConvolutionPlaneMixing(channels, layout, groups, order)
    raise ValueError(f"`plane_mixing` must be None, 'convolution' or 'attention', got {kind!r}.")


class PlaneStage(nn.Module):
    """One level of the encoder or decoder: residual blocks shared by the planes, mixing, then resampling.

    Args:
        mixing: module from `build_plane_mixing`, or `None`.
        resample: `"down"`, which halves every axis; `"up"`, which doubles all but the layout's fixed axes; or `None`
            (the last level).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        groups: int,
        layout: PlaneLayout,
        mixing: nn.Module | None,
        resample: str | None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            resnet_block(in_channels if layer == 0 else out_channels, out_channels, groups)
            for layer in range(num_layers)
        )
        self.mixing = mixing
        self.downsample = (
            Downsample2D(out_channels, use_conv=True, padding=0, name="op") if resample == "down" else None
        )
        self.upsample = Upsample2D(out_channels, use_conv=True) if resample == "up" else None
        self.factors = [layout.resampling(group[0]) for group in layout.groups]

    def forward(self, hidden_groups: list[torch.Tensor], run: Callable) -> list[torch.Tensor]:
        """Features of this level; `run(module, *inputs)` calls a block (with checkpointing in training)."""
        for resnet in self.resnets:
            hidden_groups = [run(resnet, hidden, None) for hidden in hidden_groups]
        if self.mixing is not None:
            hidden_groups = run(self.mixing, hidden_groups)
        return hidden_groups

    def resample(self, hidden_groups: list[torch.Tensor]) -> list[torch.Tensor]:
        """This level's features at the next level's resolution."""
        if self.downsample is not None:
            return [self.downsample(hidden) for hidden in hidden_groups]
        if self.upsample is not None:
            return [
                self.upsample(hidden, output_size=(hidden.shape[-2] * height, hidden.shape[-1] * width))
                for hidden, (height, width) in zip(hidden_groups, self.factors)
            ]
        return hidden_groups


class PlaneMiddle(nn.Module):
    """The coarsest level: residual block, attention within each plane, residual block, mixing."""

    def __init__(self, channels: int, groups: int, heads: int, mixing: nn.Module | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnet_block(channels, channels, groups) for _ in range(2))
        self.attention = plane_attention(channels, heads=heads, head_channels=channels // heads, groups=groups)
        self.mixing = mixing

    def forward(self, hidden_groups: list[torch.Tensor], run: Callable) -> list[torch.Tensor]:
        hidden_groups = [
            run(self.resnets[1], self.attention(run(self.resnets[0], hidden, None)), None) for hidden in hidden_groups
        ]
        if self.mixing is not None:
            hidden_groups = run(self.mixing, hidden_groups)
        return hidden_groups


class CheckpointedModule(nn.Module):
    """Runs blocks under diffusers' gradient checkpointing where it is enabled."""

    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = False

    def run(self, module: Callable, *inputs):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *inputs)
        return module(*inputs)
