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
"""Metrics of clips: FVD, PSNR of each frame, and how smoothly a clip runs."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from .features import FeatureStatistics, frechet_distance


def fvd(real: np.ndarray | torch.Tensor, generated: np.ndarray | torch.Tensor) -> float:
    """Fréchet video distance (Unterthiner et al. 2018) of two sets of clip features `(N, D)`, `(M, D)`.

    The name belongs to the features of an I3D network (see `load_feature_extractor`); say how many clips of how many
    frames were compared.
    """
    return frechet_distance(FeatureStatistics.of(real), FeatureStatistics.of(generated))


def frame_psnr(prediction: torch.Tensor, target: torch.Tensor, data_range: float = 2.0) -> torch.Tensor:
    """PSNR in dB of each frame, 10 log₁₀(range² / MSE); infinite where both are equal.

    Args:
        prediction, target: clips `(batch, channels, frames, height, width)` of equal shape.
        data_range: the largest value less the smallest possible; 2 for [-1, 1].

    Returns:
        `(batch, frames)` float64.
    """
    _check_clips(prediction, 1)
    if prediction.shape != target.shape:
        raise ValueError(f"expected clips of one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    error = (prediction.double() - target.double()).square().mean((1, 3, 4))
    return 10.0 * torch.log10(data_range**2 / error)


def temporal_consistency(clips: torch.Tensor) -> torch.Tensor:
    """How well each frame follows from its two neighbours, against frames in no order at all.

        1 − mean_t ‖x_t − (x_{t−1} + x_{t+1})/2‖² / (3/2 · V)

    V is the clip's variance over time (divided by T − 1), summed over pixels and channels. For frames that are
    independent of each other the numerator is expected to be 3/2 · V, so they score 0; pixels that change linearly in
    time, or not at all, score 1; flicker scores below 0. No network and no optical flow enter.

    Args:
        clips: `(batch, channels, frames, height, width)` with at least 3 frames.

    Returns:
        `(batch,)` float64, at most 1.
    """
    _check_clips(clips, 3)
    clips = clips.double()
    bend = clips[:, :, 1:-1] - (clips[:, :, :-2] + clips[:, :, 2:]) / 2.0
    roughness = bend.square().mean(2).sum((1, 2, 3))
    variance = clips.var(2, unbiased=True).sum((1, 2, 3))
    return 1.0 - torch.where(variance > 0.0, roughness / (1.5 * variance), 0.0)


def frame_consistency(features: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity of the features of neighbouring frames (Esser et al. 2023, with CLIP's image features).

    Args:
        features: of each frame, `(batch, frames, channels)`, at least 2 frames.

    Returns:
        `(batch,)` float64 in [-1, 1].
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(f"expected features (batch, at least 2 frames, channels), got {tuple(features.shape)}")
    features = features.double()
    return F.cosine_similarity(features[:, :-1], features[:, 1:], dim=-1).mean(1)


def betweenness(clips: torch.Tensor) -> torch.Tensor:
    """Whether each inner frame lies between its neighbours: max(d(t−1, t), d(t, t+1)) / d(t−1, t+1), d the RMS difference.

    Below 1 the frame is closer to both neighbours than these are to each other: ½ for pixels that change linearly in
    time, √½ for a hard edge that passes over the picture at constant speed, 1 expected of unrelated frames.

    Args:
        clips: `(batch, channels, frames, height, width)` with at least 3 frames.

    Returns:
        `(batch, frames − 2)` float64; NaN where both neighbours are equal.
    """
    _check_clips(clips, 3)
    clips = clips.double()
    step = (clips[:, :, 1:] - clips[:, :, :-1]).square().mean((1, 3, 4)).sqrt()
    across = (clips[:, :, 2:] - clips[:, :, :-2]).square().mean((1, 3, 4)).sqrt()
    return torch.where(across > 0.0, torch.maximum(step[:, :-1], step[:, 1:]) / across, torch.nan)


def _check_clips(clips: torch.Tensor, frames: int) -> None:
    if clips.ndim != 5 or clips.shape[2] < frames:
        raise ValueError(
            f"expected clips (batch, channels, at least {frames} frames, height, width), got {tuple(clips.shape)}"
        )
