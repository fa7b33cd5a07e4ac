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
"""E, the encoder (paper §3.1): what turns discrete data into the moments of latent planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .blocks import EPS, CheckpointedModule, PlaneMiddle, PlaneStage, build_plane_mixing
from .checks import check_floating
from .planes import PlaneLayout
from .point_encoder import PointEncoder
from .video_encoder import VideoEncoder


class PlaneEncoder(CheckpointedModule):
    """Convolutional encoder shared by all planes: feature planes to the moments of latent planes.

    An image is its own single feature plane; a point cloud is brought onto three planes first.

    Args:
        layout: the latent planes.
        in_channels: channels of the input planes.
        latent_channels: channels of a latent plane.
        bottleneck_channels: half the channels before the last, per-plane 1×1 convolutions.
        block_out_channels: channels of each level, fine to coarse; each level but the last halves the planes.
        layers_per_block: residual blocks a level.
        stem_channels: channels after the first convolution; those of the finest level by default.
        norm_num_groups: groups of every GroupNorm.
        attention_heads: heads of the attention within each plane at the coarsest level.
        plane_mixing: see [`BasisFieldDecoder`].
        mixing_levels: at which levels, fine to coarse, the planes exchange information; the middle always does.
        mixing_heads: heads of `plane_mixing="attention"`.
        mixing_order: order of the planes' channels in `plane_mixing="convolution"`.
    """

    def __init__(
        self,
        layout: PlaneLayout,
        in_channels: int,
        latent_channels: int,
        bottleneck_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        attention_heads: int = 1,
        plane_mixing: str | None = None,
        mixing_levels: Sequence[bool] | None = None,
        mixing_heads: int = 8,
        mixing_order: Sequence[int] | None = None,
        stem_channels: int | None = None,
    ):
        super().__init__()
        self.layout = layout
        channels = stem_channels or block_out_channels[0]
        mixing_levels = mixing_levels or [plane_mixing is not None] * len(block_out_channels)

        def mixing(channels: int) -> nn.Module | None:
            return build_plane_mixing(plane_mixing, channels, layout, norm_num_groups, mixing_heads, mixing_order)

        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.stages = nn.ModuleList()
        for level, out_channels in enumerate(block_out_channels):
            self.stages.append(
                PlaneStage(
                    channels,
                    out_channels,
                    layers_per_block,
                    norm_num_groups,
                    layout,
                    mixing(out_channels) if mixing_levels[level] else None,
                    "down" if level < len(block_out_channels) - 1 else None,
                )
            )
            channels = out_channels
        self.middle = PlaneMiddle(channels, norm_num_groups, attention_heads, mixing(channels))
        self.norm_out = nn.GroupNorm(norm_num_groups, channels, eps=EPS)
        self.conv_out = nn.Conv2d(channels, 2 * bottleneck_channels, 3, padding=1)
        self.moment_heads = nn.ModuleList(
            nn.Conv2d(2 * bottleneck_channels, 2 * latent_channels, 1) for _ in layout.planes
        )

    def forward(self, planes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """
        Args:
            planes: for each plane, features `(batch, in_channels, height, width)`.

        Returns:
            For each plane, `(batch, 2 * latent_channels, h, w)`: mean, then log-variance.
        """
        hidden = [self.conv_in(group) for group in self.layout.group(planes)]
        for stage in self.stages:
            hidden = stage.resample(stage(hidden, self.run))
        hidden = self.middle(hidden, self.run)
        hidden = [self.conv_out(nn.functional.silu(self.norm_out(group))) for group in hidden]
        return [head(plane) for head, plane in zip(self.moment_heads, self.layout.ungroup(hidden))]


class DataEncoder(nn.Module):
    """Data of one kind to the moments of latent planes.

    Args:
        kind: `"pixels"`: an image is its own plane. `"points"`: a [`PointEncoder`] brings points onto feature planes.
            `"frames"`: a [`VideoEncoder`] attends over space and time and ends in planes.
        in_channels: channels of a pixel, numbers of a point.
        config: further arguments of the point or video encoder.
        stem_channels, shared: arguments of [`PlaneEncoder`].
    """

    def __init__(
        self,
        kind: str,
        layout: PlaneLayout,
        in_channels: int,
        sample_size: int,
        num_frames: int | None,
        stem_channels: int | None,
        config: dict[str, Any],
        shared: dict[str, Any],
    ):
        super().__init__()
        self.kind = kind
        self.in_channels = in_channels
        self.divisor = 2 ** (len(shared["block_out_channels"]) - 1)
        self.points = self.frames = self.planes = None
        if kind == "points":
            self.points = PointEncoder(in_channels, plane_size=sample_size, **config)
            in_channels = self.points.out_channels
        elif kind == "frames":
            config = {"patch_size": self.divisor, **config}
            if config["patch_size"] != self.divisor:
                raise ValueError(
                    f"`encoder_config` has patches of {config['patch_size']} pixels, but the decoder's levels enlarge "
                    f"the latent planes {self.divisor} times; make them equal."
                )
            self.frames = VideoEncoder(
                sample_size,
                num_frames,
                latent_channels=shared["latent_channels"],
                in_channels=in_channels,
                planes=layout.planes,
                **config,
            )
            return
        elif config:
            raise ValueError(f"The encoder of pixels takes no `encoder_config`, got {sorted(config)}.")
        self.planes = PlaneEncoder(layout, in_channels, stem_channels=stem_channels, **shared)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            x: images `(batch, channels, height, width)`, points `(batch, points, numbers)`, or clips
                `(batch, channels, frames, height, width)`.

        Returns:
            For each plane, moments `(batch, 2 * latent_channels, h, w)`: mean, then log-variance.

        Raises:
            TypeError: `x` is no floating-point tensor. ValueError: it has another shape.
        """
        self._check(x)
        if self.frames is not None:
            return self.frames(x)
        planes = [x] if self.points is None else self.points(x).unbind(1)
        return self.planes(planes)

    def _check(self, x: torch.Tensor) -> None:
        check_floating("x", x)
        shape = tuple(x.shape)
        if 0 in shape:
            raise ValueError(f"Expected data, but `x` is empty: got shape {shape}.")
        if self.kind == "points":
            if x.ndim != 3 or shape[2] != self.in_channels:
                raise ValueError(f"Expected points (batch, points, {self.in_channels}), got shape {shape}.")
        elif self.kind == "frames":
            if x.ndim != 5 or shape[1] != self.in_channels:
                raise ValueError(f"Expected clips (batch, {self.in_channels}, frames, height, width), got {shape}.")
        elif x.ndim != 4 or shape[1] != self.in_channels or shape[2] % self.divisor or shape[3] % self.divisor:
            raise ValueError(
                f"Expected images (batch, {self.in_channels}, height, width) with sides that are multiples of "
                f"{self.divisor}, got shape {shape}."
            )
