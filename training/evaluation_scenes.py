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
"""Measures of radiance fields, by their views. Scenes may differ in the number and the size of their pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from evaluation_context import Evaluation, Figures, picture_scores, score_figures, set_figures
from evaluation_stages import Stage, Tensors
from torch.nn import functional as F
from torch.utils.data import Dataset

from diffusers_ddmi import NeuralField
from diffusers_ddmi.data import SignalDataset
from diffusers_ddmi.data.scenes import open_row
from diffusers_ddmi.rendering.cameras import Cameras


class HeldOutViews:
    """
    Rows of scenes -> the encoder's points, and some views, at most `num_views`: "cameras", and "views"
    (views, 3, height, width) in [0, 1].
    """

    def __init__(self, points: Callable[..., dict[str, Any]], num_views: int):
        self.points, self.num_views = points, num_views

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        example = self.points(row, rng)
        scene = open_row(row)
        scene = scene.read(rng.permutation(len(scene.cameras))[: self.num_views])
        pictures = torch.from_numpy(scene.images).float() / 255
        return {**example, "cameras": scene.cameras, "views": pictures.movedim(-1, 1)}


def _scene_data(e: Evaluation) -> Dataset:
    data = e.load(purpose="latents", num_points=e.args.num_points)
    return SignalDataset(data.dataset, HeldOutViews(data.transform, e.args.num_views), data.seed, data.strict)


def read_views(e: Evaluation, fields: NeuralField, cameras: Cameras) -> torch.Tensor:
    """Views `(batch, views, 3, height, width)` in [0, 1]."""
    options = {"num_views": None, "height": None, "width": None, "background": 1.0, "resolution": 128, "level": 0.5}
    return e.render(fields, cameras=cameras, num_samples=e.args.num_ray_samples, **options)


def scene_reconstructions(e: Evaluation) -> Figures:
    """Views of scenes that were encoded from their points, against the scenes' pictures."""
    data, what = _scene_data(e), f"{e.args.num_views} views of reconstructions"

    def compute(numbers: range) -> Tensors:
        scores = []
        for number in numbers:
            example = data[e.order[number]]
            views = read_views(e, e.reconstruct(example["inputs"][None]), example["cameras"])[0].cpu()
            of_views = picture_scores(what, views, example["views"], 1.0)
            scores.append({name: values.mean() for name, values in of_views.items()})
        return {name: torch.stack([score[name] for score in scores]) for name in scores[0]}

    stage = e.stages.run("reconstructions", e.num_reconstructions, compute)
    return lambda: score_figures(stage)


def scene_sets(e: Evaluation) -> Figures:
    """Views of samples from the cameras of the data, against the data's views."""
    data = _scene_data(e)

    def real(number: int) -> torch.Tensor:
        return data[e.order[number]]["views"]

    def generated(number: int) -> torch.Tensor:
        field = e.fields(range(number, number + 1))
        return read_views(e, field, data[e.order[number % e.num_references]]["cameras"])[0]

    theirs = _features(e, "reference-features", e.num_references, real)
    ours = _features(e, f"features-{e.num_references}", e.num_samples, generated)
    return lambda: set_figures(e, _vectors(ours), _vectors(theirs), ", views")


def _features(e: Evaluation, name: str, count: int, views: Callable[[int], torch.Tensor]) -> Stage:
    """
    A stage of the views' "features", filled up with zeros to `(scenes, num_views, channels)`, and of "count", how many
    views each scene has; `views` gives those of one scene, (views, 3, height, width) in [0, 1].
    """

    def compute(numbers: range) -> Tensors:
        found = [e.extractor(views(number).to(e.device) * 2 - 1) for number in numbers]
        filled = [F.pad(features, (0, 0, 0, e.args.num_views - len(features))) for features in found]
        return {"features": torch.stack(filled), "count": torch.tensor([len(features) for features in found])}

    return e.stages.run(name, count, compute)


def _vectors(stage: Stage) -> torch.Tensor:
    """The features `(views, channels)` of all views that there are."""
    features, count = stage.tensors["features"], stage.tensors["count"]
    return features[torch.arange(features.shape[1]) < count[:, None]]
