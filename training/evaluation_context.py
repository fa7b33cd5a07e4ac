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
"""What the measures of an evaluation work on: samples, data, networks."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from evaluation_report import Figure
from evaluation_stages import Stage, Stages, Tensors
from torch import nn
from torch.utils.data import Dataset

from diffusers_ddmi import DDMIPipeline, NeuralField
from diffusers_ddmi.data import collate
from diffusers_ddmi.metrics.features import ClipScorer, FeatureExtractor
from diffusers_ddmi.metrics.images import fid, kid, precision_recall, psnr, ssim


# What a measure returns: called by the main process alone, once all stages are done.
Figures = Callable[[], list[Figure]]


@dataclass
class Evaluation:
    """What measures work on.

    Attributes:
        latents: of the generated samples, "latents" `(samples, …)`.
        prompts: of the samples, or None for a model without text.
        load: options of `load_signals` -> the evaluation's split of the data.
        order: the references' places in the data, in the order in which they are used.
        num_references, num_reconstructions: how many of them.
        extractor, clip, perceptual: networks that were given.
    """

    args: argparse.Namespace
    accelerator: Accelerator
    pipe: DDMIPipeline
    stages: Stages
    load: Callable[..., Dataset]
    order: Sequence[int]
    num_references: int
    num_reconstructions: int
    prompts: list[str] | None = None
    extractor: FeatureExtractor | None = None
    clip: ClipScorer | None = None
    perceptual: nn.Module | None = None
    latents: Stage = field(init=False)

    @property
    def num_samples(self) -> int:
        return self.args.num_samples

    @property
    def size(self) -> int:
        """Native pixels of a side."""
        return self.pipe.vae.config.sample_size

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def fields(self, numbers: range) -> NeuralField:
        """The generated samples of these numbers."""
        latents = self.latents.tensors["latents"][numbers.start : numbers.stop]
        return self.pipe.decode_latents(latents.to(self.device))

    def examples(self, dataset: Dataset, numbers: range) -> dict[str, Any]:
        """The references of these numbers, as a batch."""
        batch = collate([dataset[self.order[number]] for number in numbers])
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def reconstruct(self, inputs: torch.Tensor) -> NeuralField:
        """Fields of the posterior's mean."""
        vae = self.pipe.vae
        return vae.decode(vae.encode(inputs.to(self.device, vae.dtype)).latent_dist.mode()).field

    def render(self, fields: NeuralField, **options: Any) -> torch.Tensor:
        """Pixels in [0, 1] as the pipeline gives them with `output_type="pt"`; every option must be there."""
        return self.pipe.render(fields, "pt", **self.pipe.check_render_inputs("pt", **options))[0]

    def features(self, name: str, count: int, pictures: Callable[[range], torch.Tensor]) -> Stage:
        """A stage of "features" of pictures or clips in [-1, 1], or of several of each item."""

        def compute(numbers: range) -> Tensors:
            signals = pictures(numbers)
            per_item = len(signals) // len(numbers)
            return {"features": self.extractor(signals).unflatten(0, (len(numbers), per_item))}

        return self.stages.run(name, count, compute)


def items(stage: Stage, name: str = "features") -> torch.Tensor:
    """All of a stage's vectors `(items, channels)`."""
    return stage.tensors[name].flatten(0, -2)


def mean_figure(metric: str, values: torch.Tensor, better: str, **further: Any) -> Figure:
    """Mean and standard deviation over items."""
    deviation = float(values.std()) if len(values) > 1 else None
    note = further.pop("note", "mean ± standard deviation over items")
    return Figure(metric, float(values.mean()), len(values), deviation=deviation, better=better, note=note, **further)


def set_figures(
    e: Evaluation, generated: torch.Tensor, real: torch.Tensor, what: str = "", **further: Any
) -> list[Figure]:
    """FID, KID, precision and recall of two sets of features."""
    counts = {"samples": len(generated), "references": len(real), **further}
    kernel, deviation = kid(real, generated, seed=e.args.seed)
    spread = {"note": "all samples"} if deviation is None else {"deviation": deviation, "note": "± over 100 subsets"}
    figures = [
        Figure(f"FID{what}", fid(real, generated), better="lower", **counts),
        Figure(f"KID{what}", kernel, better="lower", **spread, **counts),
    ]
    if min(len(generated), len(real)) > 3:
        precision, recall = precision_recall(real, generated)
        figures += [
            Figure(f"precision{what}", precision, better="higher", note="3 neighbours", **counts),
            Figure(f"recall{what}", recall, better="higher", note="3 neighbours", **counts),
        ]
    return figures


def picture_scores(what: str, prediction: torch.Tensor, target: torch.Tensor, data_range: float) -> Tensors:
    """PSNR and, of pictures that are not too small, SSIM of pictures `(batch, 3, height, width)`: `(batch,)` each."""
    scores = {f"PSNR (dB), {what}": psnr(prediction, target, data_range)}
    if min(prediction.shape[-2:]) >= 11:  # SSIM's window
        scores[f"SSIM, {what}"] = ssim(prediction, target, data_range)
    return scores


def score_figures(stage: Stage, resolution: int | None = None) -> list[Figure]:
    """The means of all that [`picture_scores`] gave."""
    return [
        mean_figure(name, values, "higher", resolution=resolution) for name, values in sorted(stage.tensors.items())
    ]
