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
"""Clips to the moments of the planes xy, xt and yt: a TimeSformer, then one small transformer for each plane.

Divided space-time attention is from Bertasius et al. 2021, the reduction to planes from PVDM (Yu et al. 2023), on which
DDMI's video autoencoder builds.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.attention import FeedForward

from diffusers_ddmi.models.blocks import CheckpointedModule


# For each plane the axis of the tokens (batch, channels, t, y, x) that it does not have.
REDUCED_AXIS = {"xy": 2, "xt": 3, "yt": 4}

Rotary = tuple[torch.Tensor, torch.Tensor]


def time_rotary(num_frames: int, head_dim: int, paired: bool, device: torch.device) -> Rotary:
    """Cosine and sine (num_frames, head_dim) of the frames' rotary embedding (Su et al. 2021).

    Neighbouring channels 2j, 2j + 1 are rotated together. With `paired` both turn by frequency j. Without, channel i turns
    by frequency i modulo head_dim / 2, which is no rotation, but what published weights were trained with.
    """
    frequencies = 10000 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    frequencies = frequencies.repeat_interleave(2) if paired else frequencies.repeat(2)
    angles = torch.arange(num_frames, dtype=torch.float32, device=device).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def space_rotary(height: int, width: int, head_dim: int, device: torch.device, max_frequency: float = 10.0) -> Rotary:
    """Cosine and sine (height * width, head_dim) of the axial rotary embedding: half of the channels turn with y, half
    with x, both on [-1, 1], by frequencies from pi to pi * max_frequency / 2."""
    scales = torch.logspace(0.0, math.log2(max_frequency / 2), head_dim // 4, base=2, device=device) * math.pi
    y = torch.linspace(-1.0, 1.0, height, device=device).view(-1, 1, 1) * scales
    x = torch.linspace(-1.0, 1.0, width, device=device).view(1, -1, 1) * scales
    angles = torch.cat([y.expand(-1, width, -1), x.expand(height, -1, -1)], dim=-1)
    angles = angles.flatten(0, 1).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate the channel pairs of `states` (..., tokens, head_dim)."""
    cos, sin = (part.to(states.dtype) for part in rotary)
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    return states * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


class SelfAttention(nn.Module):
    """Normalised multi-head self-attention over (batch, tokens, channels), with rotary embedding where one is given."""

    def __init__(self, channels: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, channels)

    def forward(self, tokens: torch.Tensor, rotary: Rotary | None = None) -> torch.Tensor:
        qkv = self.to_qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, head_dim)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class NormalisedFeedForward(nn.Module):
    """Layer norm, then a feed-forward network with `inner_dim` hidden channels."""

    def __init__(self, channels: int, inner_dim: int, activation: str):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, inner_dim=inner_dim, activation_fn=activation)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.feed_forward(self.norm(tokens))


class SpaceTimeBlock(nn.Module):
    """Attention of each place over time, attention of each frame over space, feed-forward network."""

    def __init__(self, channels: int, heads: int, head_dim: int):
        super().__init__()
        self.time_attention = SelfAttention(channels, heads, head_dim)
        self.space_attention = SelfAttention(channels, heads, head_dim)
        self.feed_forward = NormalisedFeedForward(channels, 4 * channels, "geglu")

    def forward(self, tokens: torch.Tensor, time: Rotary, space: Rotary) -> torch.Tensor:
        """Tokens (batch, frames, places, channels)."""
        batch = tokens.shape[0]
        by_place = self.time_attention(tokens.transpose(1, 2).flatten(0, 1), time)
        tokens = tokens + by_place.unflatten(0, (batch, -1)).transpose(1, 2)
        tokens = tokens + self.space_attention(tokens.flatten(0, 1), space).unflatten(0, (batch, -1))
        return tokens + self.feed_forward(tokens)


class PlaneTransformer(nn.Module):
    """Reduces one axis of the tokens to a single token, by attention along it together with a learned summary token.

    Args:
        length: number of tokens along the axis.
        read_first: return the axis' first token instead of the summary token.
    """

    def __init__(
        self, channels: int, length: int, depth: int, heads: int, head_dim: int, inner_dim: int, read_first: bool
    ):
        super().__init__()
        self.read_position = 0 if read_first else -1
        self.summary_token = nn.Parameter(torch.zeros(channels))
        self.position_embedding = nn.Parameter(torch.randn(length + 1, channels) * 0.02)
        self.attentions = nn.ModuleList(SelfAttention(channels, heads, head_dim) for _ in range(depth))
        self.feed_forwards = nn.ModuleList(NormalisedFeedForward(channels, inner_dim, "gelu") for _ in range(depth))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, length, channels) to (batch, channels)."""
        tokens = torch.cat([tokens, self.summary_token.expand(tokens.shape[0], 1, -1)], dim=1)
        tokens = tokens + self.position_embedding
        for attention, feed_forward in zip(self.attentions, self.feed_forwards):
            tokens = tokens + attention(tokens)
            tokens = tokens + feed_forward(tokens)
        return tokens[:, self.read_position]


class VideoEncoder(CheckpointedModule):
    """
    A clip to the moments of its latent planes: patches of every frame become tokens, which attend over time and over space
    in turn; then each plane's transformer reduces the axis that the plane does not have.

    Args:
        image_size: height and width of the frames.
        num_frames: frames of a clip.
        latent_channels: channels of a latent plane.
        in_channels: channels of a pixel.
        patch_size: pixels along each side of a patch; planes have image_size / patch_size cells along x and y, and
            num_frames along t.
        hidden_channels: width of the tokens.
        depth, heads, head_dim: the space-time blocks.
        plane_depth, plane_heads, plane_head_dim, plane_inner_dim: the planes' transformers; `plane_head_dim` is
            hidden_channels / 8 if None.
        planes: the planes in the order in which they are returned.
        read_first: whether the planes' transformers return their first token (published weights) instead of their
            summary token.
        paired_time_rotary: whether time is embedded by proper rotations; published weights are not (`time_rotary`).
    """

    def __init__(
        self,
        image_size: int,
        num_frames: int,
        latent_channels: int,
        in_channels: int = 3,
        patch_size: int = 8,
        hidden_channels: int = 384,
        depth: int = 8,
        heads: int = 8,
        head_dim: int = 64,
        plane_depth: int = 4,
        plane_heads: int = 4,
        plane_head_dim: int | None = None,
        plane_inner_dim: int = 512,
        planes: Sequence[str] = ("xy", "xt", "yt"),
        read_first: bool = False,
        paired_time_rotary: bool = True,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"`image_size` {image_size} is not a multiple of `patch_size` {patch_size}.")
        if head_dim % 4:
            raise ValueError(f"`head_dim` is {head_dim}; expected a multiple of 4, half of it for each of y and x.")
        if not set(planes) <= set(REDUCED_AXIS) or len(set(planes)) != len(planes):
            raise ValueError(f"`planes` is {tuple(planes)}; expected different ones of {tuple(REDUCED_AXIS)}.")
        self.clip_shape = (in_channels, num_frames, image_size, image_size)
        self.patch_size = patch_size
        self.head_dim = head_dim
        self.planes = tuple(planes)
        self.paired_time_rotary = paired_time_rotary
        self.patch_embedding = nn.Linear(in_channels * patch_size**2, hidden_channels)
        self.blocks = nn.ModuleList(SpaceTimeBlock(hidden_channels, heads, head_dim) for _ in range(depth))
        side = image_size // patch_size
        self.plane_transformers = nn.ModuleList(
            PlaneTransformer(
                hidden_channels,
                num_frames if plane == "xy" else side,
                plane_depth,
                plane_heads,
                plane_head_dim or hidden_channels // 8,
                plane_inner_dim,
                read_first,
            )
            for plane in planes
        )
        self.moment_heads = nn.ModuleList(nn.Conv2d(hidden_channels, 2 * latent_channels, 1) for _ in planes)

    def forward(self, video: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            video: (batch, in_channels, num_frames, image_size, image_size), values in [-1, 1].

        Returns:
            for each of `planes`, moments (batch, 2 * latent_channels, h, w): mean, then log-variance. xy has the size
            (y, x), xt (t, x) and yt (t, y).

        Raises:
            ValueError: the clip has another shape.
        """
        if video.ndim != 5 or tuple(video.shape[1:]) != self.clip_shape:
            channels, frames, height, width = self.clip_shape
            raise ValueError(
                f"`video` has shape {tuple(video.shape)}; expected (batch, {channels}, {frames}, {height}, {width})."
            )
        tokens = self.patch_embedding(self._patches(video))  # (batch, t, y, x, channels)
        _, frames, height, width, _ = tokens.shape
        time = time_rotary(frames, self.head_dim, self.paired_time_rotary, video.device)
        space = space_rotary(height, width, self.head_dim, video.device)
        tokens = tokens.flatten(2, 3)
        for block in self.blocks:
            tokens = self.run(block, tokens, time, space)
        tokens = tokens.transpose(1, 3).unflatten(2, (height, width)).movedim(-1, 2)  # (batch, channels, t, y, x)
        return [
            head(self._reduce(transformer, tokens, REDUCED_AXIS[plane]))
            for plane, transformer, head in zip(self.planes, self.plane_transformers, self.moment_heads)
        ]

    def _patches(self, video: torch.Tensor) -> torch.Tensor:
        """(batch, channels, t, Y, X) to (batch, t, y, x, patch pixels row by row with their channels last)."""
        size = self.patch_size
        patches = video.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # (batch, channels, t, y, size, x, size)
        return patches.permute(0, 2, 3, 5, 4, 6, 1).flatten(4)

    def _reduce(self, transformer: PlaneTransformer, tokens: torch.Tensor, axis: int) -> torch.Tensor:
        """(batch, channels, t, y, x) to (batch, channels, ...) without `axis`."""
        lines = tokens.movedim((axis, 1), (-2, -1))  # (batch, remaining axes, length, channels)
        reduced = self.run(transformer, lines.flatten(0, 2))
        return reduced.unflatten(0, lines.shape[:3]).movedim(-1, 1)
