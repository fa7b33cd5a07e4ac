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
"""Features of pictures and clips, and distances between Gaussians fitted to them.

Metrics compare sets of features `(N, D)`, whoever computed them; a set is summarised batch by batch in
[`FeatureStatistics`], so that it need not be held at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import nn
from torch.nn import functional as F


# What published TorchScript extractors (StyleGAN's Inception, StyleGAN-V's I3D) take beside the pictures.
_SCRIPT_OPTIONS = ("rescale", "resize", "return_features")
INPUT_RANGES = {"signed": "[-1, 1]", "unit": "[0, 1]", "byte": "0 … 255, whole numbers"}


def as_features(features: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Features as a finite float64 tensor `(N, D)` on their own device.

    Raises:
        ValueError: not two axes, no rows, or NaN or infinity among them.
    """
    features = torch.as_tensor(features).detach().to(torch.float64)
    if features.ndim != 2 or features.shape[0] == 0 or features.shape[1] == 0:
        raise ValueError(f"features must have shape (samples, channels), got {tuple(features.shape)}")
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(features)} feature vectors hold NaN or infinity")
    return features


class FeatureStatistics:
    """Number, mean and covariance of features, in float64, batch by batch.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which is as exact as two passes: the
    result does not depend on how samples are split into batches or processes, up to float64 rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: torch.Tensor | None = None
        self._scatter: torch.Tensor | None = None

    @classmethod
    def of(cls, features: np.ndarray | torch.Tensor) -> FeatureStatistics:
        """The statistics of one set `(N, D)`."""
        statistics = cls()
        statistics.update(features)
        return statistics

    def update(self, features: np.ndarray | torch.Tensor) -> None:
        """Adds a batch `(B, D)`.

        Raises:
            ValueError: another number of channels than before, or not finite features.
        """
        features = as_features(features)
        mean = features.mean(0)
        centred = features - mean
        self._add(len(features), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> None:
        """Adds what `other` has seen, e.g. in another process."""
        if other.count:
            self._add(other.count, other.mean, other._scatter)

    @property
    def mean(self) -> torch.Tensor:
        """`(D,)`"""
        self._require(1)
        return self._mean

    @property
    def covariance(self) -> torch.Tensor:
        """`(D, D)`, divided by count − 1."""
        self._require(2)
        return self._scatter / (self.count - 1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors "count", "mean" and "scatter", to be saved and given to `load_state_dict`; empty before any sample."""
        if not self.count:
            return {}
        return {"count": torch.tensor(self.count), "mean": self._mean, "scatter": self._scatter}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        self.count = int(state["count"]) if state else 0
        self._mean, self._scatter = state.get("mean"), state.get("scatter")

    def _add(self, count: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"features of {self._mean.shape[0]} channels were expected, got {mean.shape[0]}")
        mean, scatter = mean.to(self._mean.device), scatter.to(self._mean.device)
        total = self.count + count
        shift = mean - self._mean
        self._scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    def _require(self, number: int) -> None:
        if self.count < number:
            raise ValueError(f"at least {number} feature vectors are needed, got {self.count}")


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussians fitted to two sets of features.

        ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½     (Dowson and Landau 1982; FID: Heusel et al. 2017)

    With factors Σᵢ = AᵢAᵢᵀ, the last trace is the sum of the singular values of A₁ᵀA₂. Other
    than a general matrix square root this needs no regularisation for singular covariances (fewer samples than
    channels) and cannot come out complex.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"both sets must have the same number of channels, got {first.mean.shape[0]} and {second.mean.shape[0]}"
        )
    device = first.mean.device
    shift = first.mean - second.mean.to(device)
    one, two = first.covariance, second.covariance.to(device)
    root = torch.linalg.svdvals(_factor(one).T @ _factor(two)).sum()
    distance = shift @ shift + one.trace() + two.trace() - 2.0 * root
    return max(float(distance), 0.0)


def _factor(covariance: torch.Tensor) -> torch.Tensor:
    """`A` (D, rank) with A Aᵀ = covariance, without the directions that are only rounding.

    Cholesky's factor with pivots: as exact as one from eigenvectors, for an eighth of the time.
    """
    lower, pivots, rank, _ = dpstrf(covariance.cpu().numpy(), lower=1)
    factor = np.zeros((len(lower), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return torch.from_numpy(factor).to(covariance.device)


class FeatureExtractor(nn.Module):
    """Any module as a function from pictures or clips in [-1, 1] to features `(batch, channels)`.

    Args:
        module: takes pictures `(batch, 3, height, width)` or clips `(batch, 3, frames, height, width)` in float32, and
            returns features `(batch, channels, 1, …)`, or a list or tuple that holds only these.
        input_range: what the module expects: "signed" [-1, 1], "unit" [0, 1], or "byte" (whole numbers 0 … 255, still float32,
            as published TorchScript files take them).
        options: further keyword arguments of the module's forward.
    """

    def __init__(self, module: nn.Module, input_range: str = "signed", options: Mapping[str, Any] | None = None):
        super().__init__()
        if input_range not in INPUT_RANGES:
            raise ValueError(f"input_range must be one of {', '.join(INPUT_RANGES)}, got {input_range!r}")
        self.module = module.eval()
        self.input_range = input_range
        self.options = dict(options or {})

    @torch.no_grad()
    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        """Features `(batch, channels)`, float32, of `signals` in [-1, 1] (values outside are clipped)."""
        if signals.ndim not in (4, 5) or signals.shape[1] != 3:
            raise ValueError(
                "expected pictures (batch, 3, height, width) or clips (batch, 3, frames, height, width), "
                f"got {tuple(signals.shape)}"
            )
        signals = signals.float().clamp(-1.0, 1.0)
        if self.input_range == "unit":
            signals = (signals + 1.0) / 2.0
        elif self.input_range == "byte":
            signals = ((signals + 1.0) * 127.5).round()
        features = self.module(signals, **self.options)
        if isinstance(features, list | tuple) and len(features) == 1:
            features = features[0]
        if not isinstance(features, torch.Tensor) or features.ndim < 2 or features[0].numel() != features.shape[1]:
            what = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(
                f"the feature extractor must return one vector for each of {len(signals)} signals, got {what}"
            )
        return features.flatten(1).float()


def load_feature_extractor(
    source: str | os.PathLike | nn.Module,
    input_range: str | None = None,
    device: str | torch.device = "cpu",
) -> FeatureExtractor:
    """A feature extractor from a TorchScript file, a CLIP model, a hub id of either, or a module.

    For FID figures that compare with published ones, take the Inception of the original FID weights as TorchScript
    (`inception-2015-12-05.pt` of StyleGAN), for FVD the I3D of StyleGAN-V (`i3d_torchscript.pt`).

    Args:
        source: path of a TorchScript file, or folder of a `transformers.CLIPModel`; a hub id "owner/name" of a
            repository with one TorchScript file or a CLIP model, or "owner/name/file.pt"; or any `torch.nn.Module` (see
            [`FeatureExtractor`]).
        input_range: "signed", "unit" or "byte"; `None` means "byte" for TorchScript files, "signed" for modules. A script's
            arguments `rescale`, `resize` and `return_features`, where it has them, are set.
        device: where it runs.

    Raises:
        FileNotFoundError: neither a file here nor a repository that can be reached.
        ValueError: not a TorchScript file, or a repository in which the file is not plain.
    """
    if isinstance(source, nn.Module):
        return FeatureExtractor(source, input_range or "signed").to(device)
    path = Path(source).expanduser()
    if not path.exists():
        path = _download(str(source))
    if path is None or path.is_dir():
        return FeatureExtractor(ClipFeatures(source if path is None else path)).to(device)
    try:
        script = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a TorchScript file (as torch.jit.save writes it): {error}") from error
    known = {argument.name for argument in script.forward.schema.arguments}
    options = {name: True for name in _SCRIPT_OPTIONS if name in known}
    return FeatureExtractor(script, input_range or "byte", options)


def _download(source: str) -> Path | None:
    """The TorchScript file of a repository, or None for one that holds a transformers model."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    owner, name, *file = source.split("/", 2) if source.count("/") else (source, "")
    unreachable = (
        f"no feature extractor {source!r}: neither a file or folder here nor a repository that can be reached on the "
        "hub. Give the path of a TorchScript file or of a CLIPModel's folder, or a hub id"
    )
    if not owner or not name or owner in (".", ".."):
        raise FileNotFoundError(unreachable)
    try:
        if not file:
            names = HfApi().list_repo_files(f"{owner}/{name}")
            file = [name for name in names if name.endswith((".pt", ".pth", ".ts", ".torchscript"))]
            if not file and "config.json" in names:
                return None
            if len(file) != 1:
                raise ValueError(f"{source} has {len(file)} TorchScript files; name one as {source}/FILE: {file}")
        return Path(hf_hub_download(f"{owner}/{name}", file[0]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise FileNotFoundError(f"{unreachable} ({error})") from error


class ClipFeatures(nn.Module):
    """The image embeddings of a CLIP model, as features.

    Args:
        source: hub id or folder of a `transformers.CLIPModel`.

    Raises:
        OSError: no such model here or on the hub (from transformers).
    """

    def __init__(self, source: str | os.PathLike):
        from transformers import CLIPModel
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        super().__init__()
        self.model = CLIPModel.from_pretrained(source).eval()
        self.register_buffer("mean", torch.tensor(OPENAI_CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_CLIP_STD)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.embed(images)

    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings `(batch, channels)` of `images` (batch, 3, height, width) in [-1, 1]."""
        pooled = self.model.vision_model(pixel_values=self._pixels(images)).pooler_output
        return self.model.visual_projection(pooled)

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        """CLIP's preprocessing: shorter side to the model's size (bicubic, anti-aliased), central square, standardised."""
        size = self.model.config.vision_config.image_size
        height, width = images.shape[-2:]
        shape = [side * size // min(height, width) for side in (height, width)]
        images = images.to(self.mean.device, torch.float32).clamp(-1.0, 1.0)
        images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        images = images[..., top : top + size, left : left + size].clamp(-1.0, 1.0)
        return ((images + 1.0) / 2.0 - self.mean) / self.std


class ClipScorer(ClipFeatures):
    """CLIP-S, how well pictures agree with captions (Hessel et al. 2021): w · max(cos(image, text), 0).

    Args:
        source: hub id or folder of a `transformers.CLIPModel` with its tokenizer.
        weight: w, 2.5 in the source; 100 gives the "CLIP score" of torchmetrics.

    Raises:
        OSError: no such model here or on the hub (from transformers).
    """

    def __init__(self, source: str | os.PathLike, weight: float = 2.5):
        from transformers import AutoTokenizer

        super().__init__(source)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.weight = weight

    @torch.no_grad()
    def forward(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Scores `(batch,)` of `images` (batch, 3, height, width) in [-1, 1]; captions are cut to the model's length."""
        if len(images) != len(captions):
            raise ValueError(
                f"expected one caption for each image, got {len(images)} images and {len(captions)} captions"
            )
        size = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=size, return_tensors="pt")
        output = self.model(
            input_ids=tokens.input_ids.to(self.mean.device),
            attention_mask=tokens.attention_mask.to(self.mean.device),
            pixel_values=self._pixels(images),
        )
        cosine = F.cosine_similarity(output.image_embeds.double(), output.text_embeds.double())
        return self.weight * cosine.clamp_min(0.0)
