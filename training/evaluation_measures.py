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
"""What is measured of each modality: the table `MEASURES`.

A measure is called by all processes; it runs the stages that it needs, and returns a function that makes its figures out
of them, which the main process calls.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import trimesh
from evaluation_context import Evaluation, Figures, items, mean_figure, picture_scores, score_figures, set_figures
from evaluation_report import Figure
from evaluation_scenes import read_views, scene_reconstructions, scene_sets
from evaluation_stages import Stage, Tensors
from torch.nn import functional as F
from torch.utils.data import Dataset

from diffusers_ddmi import NeuralField
from diffusers_ddmi.metrics.shapes import (
    coverage,
    f_score,
    minimum_matching_distance,
    nearest_neighbor_accuracy,
    pairwise_distances,
    sample_surface_points,
    total_mutual_difference,
    volumetric_iou,
)
from diffusers_ddmi.metrics.videos import betweenness, frame_consistency, frame_psnr, fvd, temporal_consistency
from diffusers_ddmi.rendering.cameras import Cameras
from diffusers_ddmi.rendering.raster import render_mesh
from diffusers_ddmi.rendering.surface import extract_meshes


CLIP_SIZE = 224
# Of the F-score: enough points for the distance, so that a perfect reconstruction scores about 1.
F_SCORE_POINTS, F_SCORE_DISTANCE = 4096, 0.02


# --------------------------------------------------------------------------------------------- images


def image_sets(e: Evaluation) -> Figures:
    """The same samples, read at several resolutions, against the data at these resolutions."""
    pairs = []
    for size in e.args.resolutions or [e.size]:
        data = e.load(resolution=size)
        real = e.features(f"reference-features-{size}", e.num_references, partial(_inputs, e, data))
        generated = partial(lambda size, numbers: _pictures(e, e.fields(numbers), size), size)
        pairs.append((size, e.features(f"features-{size}", e.num_samples, generated), real))
    return lambda: [
        figure
        for size, generated, real in pairs
        for figure in set_figures(e, items(generated), items(real), resolution=size)
    ]


def _inputs(e: Evaluation, data: Dataset, numbers: range) -> torch.Tensor:
    return e.examples(data, numbers)["inputs"]


def _pictures(e: Evaluation, fields: NeuralField, size: int) -> torch.Tensor:
    """Pictures `(batch, 3, size, size)` in [-1, 1]."""
    return e.render(fields, height=size, width=size, region=None) * 2 - 1


def image_reconstructions(e: Evaluation) -> Figures:
    """Reconstructions at the encoder's resolution and, from the same latents, at --resolutions.

    Beyond the encoder's resolution a bicubic enlargement of its input stands beside them.
    """
    data = {size: e.load(resolution=size) for size in sorted({e.size, *(e.args.resolutions or ())})}

    def compute(numbers: range, size: int) -> Tensors:
        inputs, targets = (e.examples(data[side], numbers)["inputs"] for side in (e.size, size))
        pixels = _pictures(e, e.reconstruct(inputs), size)
        scores = picture_scores("reconstruction", pixels, targets, 2.0)
        if size > e.size:
            enlarged = F.interpolate(inputs, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
            scores |= picture_scores("bicubic enlargement of the input", enlarged, targets, 2.0)
        return scores

    stages = {
        size: e.stages.run(f"reconstructions-{size}", e.num_reconstructions, partial(compute, size=size))
        for size in data
    }
    return lambda: [figure for size, stage in stages.items() for figure in score_figures(stage, size)]


def image_perceptual(e: Evaluation) -> Figures:
    data = e.load(resolution=e.size)

    def compute(numbers: range) -> Tensors:
        inputs = e.examples(data, numbers)["inputs"]
        return {"lpips": e.perceptual(_pictures(e, e.reconstruct(inputs), e.size), inputs).flatten()}

    stage = e.stages.run("reconstructions-lpips", e.num_reconstructions, compute)
    return lambda: [mean_figure("LPIPS, reconstruction", stage.tensors["lpips"], "lower", resolution=e.size)]


# --------------------------------------------------------------------------------------------- shapes


def extract(e: Evaluation, fields: NeuralField) -> list[trimesh.Trimesh]:
    """Surfaces; an empty mesh for a field without one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*its mesh is empty", category=UserWarning)
        return extract_meshes(fields, resolution=e.args.mesh_resolution, device=e.device)


def surface_clouds(e: Evaluation, meshes: Sequence[trimesh.Trimesh], numbers: range, points: int) -> Tensors:
    """Points on surfaces, "points" (shapes, points, 3), and for which shapes there are any, "valid" (shapes,)."""
    clouds = torch.zeros(len(meshes), points, 3)
    valid = torch.zeros(len(meshes), dtype=torch.bool)
    for place, (number, mesh) in enumerate(zip(numbers, meshes)):
        if len(mesh.faces) and mesh.area > 0:
            rng = np.random.default_rng((e.args.seed, number))
            clouds[place], valid[place] = sample_surface_points([mesh], points, rng=rng)[0], True
    return {"points": clouds, "valid": valid}


def generated_clouds(e: Evaluation) -> Stage:
    def compute(numbers: range) -> Tensors:
        return surface_clouds(e, extract(e, e.fields(numbers)), numbers, e.args.num_metric_points)

    return e.stages.run(f"points-{e.args.num_metric_points}", e.num_samples, compute)


def shape_sets(e: Evaluation) -> Figures:
    """MMD, COV and 1-NNA on points of surfaces."""
    clouds = generated_clouds(e)
    points, metric = e.args.num_metric_points, e.args.shape_distance
    data = e.load(num_points=points)
    reference = e.stages.run(
        f"reference-points-{points}", e.num_references, lambda numbers: {"points": _inputs(e, data, numbers)}
    )
    generated = clouds.tensors["points"][clouds.tensors["valid"]]
    real = reference.tensors["points"]
    missing = e.num_samples - len(generated)

    def distances(name: str, first: torch.Tensor, second: torch.Tensor) -> Stage:
        def compute(numbers: range) -> Tensors:
            rows = first[numbers.start : numbers.stop]
            return {"distances": pairwise_distances(rows, second, metric, device=e.device)}

        return e.stages.run(f"{metric}-{points}-{name}-{len(first)}x{len(second)}", len(first), compute)

    if not len(generated):
        return lambda: [Figure("shapes without a surface", missing, e.num_samples, better="lower")]
    across = distances("across", generated, real)
    within = [distances("generated", generated, generated), distances("references", real, real)]

    def figures() -> list[Figure]:
        table, own, theirs = (stage.tensors["distances"] for stage in (across, *within))
        further = {"samples": len(generated), "references": len(real)}
        further["note"] = f"{metric}, {points} points"
        return [
            Figure("MMD", minimum_matching_distance(table), better="lower", **further),
            Figure("COV", coverage(table), better="higher", **further),
            Figure(
                "1-NNA",
                nearest_neighbor_accuracy(own, table, theirs),
                **{**further, "note": further["note"] + "; ½ is best"},
            ),
            Figure("shapes without a surface", missing, e.num_samples, better="lower", note="left out of the others"),
        ]

    return figures


def shape_reconstructions(e: Evaluation) -> Figures:
    data, surfaces = e.load(num_points=e.args.num_points), e.load(num_points=F_SCORE_POINTS)

    def compute(numbers: range) -> Tensors:
        batch = e.examples(data, numbers)
        fields = e.reconstruct(batch["inputs"])
        iou = volumetric_iou(fields(batch["coords"])[..., 0] > 0, batch["targets"][..., 0] > 0.5)
        clouds = surface_clouds(e, extract(e, fields), numbers, F_SCORE_POINTS)
        targets = e.examples(surfaces, numbers)["inputs"].cpu()
        score = f_score(clouds["points"], targets, F_SCORE_DISTANCE).f_score
        return {"iou": iou, "f_score": torch.where(clouds["valid"], score, 0.0)}

    stage = e.stages.run("reconstructions", e.num_reconstructions, compute)
    distance = f"at {F_SCORE_DISTANCE} of the cube's side, {F_SCORE_POINTS} points"
    return lambda: [
        mean_figure("IoU, reconstruction", stage.tensors["iou"], "higher"),
        mean_figure("F-score, reconstruction", stage.tensors["f_score"], "higher", note=distance),
    ]


def shape_diversity(e: Evaluation) -> Figures:
    """TMD of the shapes that were generated for each prompt."""
    stage, group = generated_clouds(e), e.args.samples_per_prompt
    metric = e.args.shape_distance

    def figures() -> list[Figure]:
        whole = e.num_samples // group * group
        clouds = stage.tensors["points"][:whole].unflatten(0, (-1, group))
        complete = stage.tensors["valid"][:whole].unflatten(0, (-1, group)).all(1)
        if not complete.any():
            return []
        values = total_mutual_difference(clouds[complete], metric, device=e.device)
        note = f"{metric}, {group} shapes for each of {len(values)} prompts"
        return [mean_figure("TMD", values, "higher", note=note)]

    return figures


# --------------------------------------------------------------------------------------------- clips


def _clip_options(e: Evaluation) -> dict[str, Any]:
    frames = e.pipe.vae.config.num_frames
    return {"num_frames": frames, "time_range": None, "times": None, "region": None}


def _clips(e: Evaluation, fields: NeuralField) -> torch.Tensor:
    """Clips `(batch, 3, frames, height, width)` in [-1, 1], of native size."""
    return e.render(fields, height=e.size, width=e.size, **_clip_options(e)).transpose(1, 2) * 2 - 1


def _clip_data(e: Evaluation) -> Dataset:
    return e.load(resolution=e.size, num_frames=e.pipe.vae.config.num_frames)


def clip_sets(e: Evaluation) -> Figures:
    data = _clip_data(e)
    real = e.features("reference-features", e.num_references, partial(_inputs, e, data))
    generated = e.features("features", e.num_samples, lambda numbers: _clips(e, e.fields(numbers)))
    frames = e.pipe.vae.config.num_frames
    return lambda: [
        Figure(
            "FVD",
            fvd(items(real), items(generated)),
            e.num_samples,
            e.num_references,
            e.size,
            better="lower",
            note=f"clips of {frames} frames",
        )
    ]


def clip_reconstructions(e: Evaluation) -> Figures:
    data = _clip_data(e)

    def compute(numbers: range) -> Tensors:
        inputs = e.examples(data, numbers)["inputs"]
        scores = frame_psnr(_clips(e, e.reconstruct(inputs)), inputs)
        return {"PSNR (dB), frames of reconstructions": scores.mean(1)}

    stage = e.stages.run("reconstructions", e.num_reconstructions, compute)
    return lambda: score_figures(stage, e.size)


def clip_smoothness(e: Evaluation) -> Figures:
    """Temporal consistency of samples, and of the data beside it."""
    return _of_samples_and_data(e, "temporal consistency", "consistency", temporal_consistency, least_frames=3)


def clip_agreement(e: Evaluation) -> Figures:
    """How much alike CLIP finds neighbouring frames, of samples and of the data."""

    def consistency(clips: torch.Tensor) -> torch.Tensor:
        features = e.clip.embed(clips.transpose(1, 2).flatten(0, 1))  # (batch * frames, channels)
        return frame_consistency(features.unflatten(0, (len(clips), -1)))

    return _of_samples_and_data(e, "frame consistency", "frame-consistency", consistency, least_frames=2)


def _of_samples_and_data(
    e: Evaluation, name: str, stage_name: str, measure: Callable[[torch.Tensor], torch.Tensor], least_frames: int
) -> Figures:
    """A value of each clip (clips -> `(batch,)`) that has so many frames."""
    if e.pipe.vae.config.num_frames < least_frames:
        return lambda: []
    data = _clip_data(e)
    kinds = {
        "samples": (e.num_samples, lambda numbers: _clips(e, e.fields(numbers))),
        "data": (e.num_references, partial(_inputs, e, data)),
    }
    stages = {
        kind: e.stages.run(
            f"{stage_name}-{kind}", count, lambda numbers, clips=clips: {"value": measure(clips(numbers))}
        )
        for kind, (count, clips) in kinds.items()
    }
    return lambda: [
        mean_figure(f"{name}, {kind}", stage.tensors["value"], "", resolution=e.size) for kind, stage in stages.items()
    ]


def clip_doubling(e: Evaluation) -> Figures:
    """Twice the frame rate: whether each frame read halfway between two native ones lies between these."""
    frames, data = e.pipe.vae.config.num_frames, _clip_data(e)
    if frames < 2:
        return lambda: []
    # The centres of the native frames, and halfway between them.
    options = {**_clip_options(e), "num_frames": None, "times": torch.linspace(-1, 1, 4 * frames + 1)[2:-2:2]}

    def measure(kind: str, count: int, fields: Callable[[range], NeuralField]) -> Stage:
        def compute(numbers: range) -> Tensors:
            clips = e.render(fields(numbers), height=e.size, width=e.size, **options).transpose(1, 2)
            return {"ratio": betweenness(clips)[:, ::2]}  # (batch, frames - 1)

        return e.stages.run(f"frame-doubling-{kind}", count, compute)

    stages = {
        "samples": measure("samples", e.num_samples, e.fields),
        "reconstructions": measure(
            "reconstructions", e.num_reconstructions, lambda n: e.reconstruct(_inputs(e, data, n))
        ),
    }
    return lambda: [figure for kind, stage in stages.items() for figure in _doubling_figures(kind, stage, e.size)]


def _doubling_figures(kind: str, stage: Stage, size: int) -> list[Figure]:
    ratios = stage.tensors["ratio"]
    ratios = ratios[~ratios.isnan()]  # equal neighbours have nothing between them
    if not len(ratios):
        return []
    further = {"resolution": size, "note": "larger distance to a neighbour / distance of the neighbours"}
    share = Figure(
        f"frame doubling, inserted frames between their neighbours, {kind}",
        float((ratios < 1).double().mean()),
        len(ratios),
    )
    return [share, mean_figure(f"frame doubling, betweenness of inserted frames, {kind}", ratios, "", **further)]


# --------------------------------------------------------------------------------------------- text


def text_agreement(e: Evaluation) -> Figures:
    """CLIP-S of each sample with its prompt; of solid things, its mean over views from all around."""
    show = SHOWN_TO_CLIP[e.pipe.modality]

    def compute(numbers: range) -> Tensors:
        pictures = show(e, e.fields(numbers)).to(e.device)  # (batch, views, 3, height, width)
        views = pictures.shape[1]
        prompts = [e.prompts[number] for number in numbers for _ in range(views)]
        return {"score": e.clip(pictures.flatten(0, 1), prompts).unflatten(0, (-1, views))}

    stage = e.stages.run("clip-s-views", e.num_samples, compute)

    def figures() -> list[Figure]:
        scores = stage.tensors["score"]  # (samples, views)
        views = {"note": f"{scores.shape[1]} views of each; mean ± standard deviation over items"}
        return [mean_figure("CLIP-S", scores.mean(1), "higher", **(views if scores.shape[1] > 1 else {}))]

    return figures


def _show_meshes(e: Evaluation, fields: NeuralField) -> torch.Tensor:
    azimuths = [35 + 360 * view / e.args.num_views for view in range(e.args.num_views)]
    meshes = extract(e, fields)
    pictures = np.stack([[render_mesh(mesh, azimuth, size=CLIP_SIZE) for azimuth in azimuths] for mesh in meshes])
    return torch.from_numpy(pictures).movedim(-1, 2).float() / 127.5 - 1


def _show_frames(e: Evaluation, fields: NeuralField) -> torch.Tensor:
    clips = _clips(e, fields)
    return clips[:, None, :, clips.shape[2] // 2]


def _show_views(e: Evaluation, fields: NeuralField) -> torch.Tensor:
    low, high = fields.bounds
    cameras = Cameras.orbit(e.args.num_views, radius=2 * (high - low), height=CLIP_SIZE, width=CLIP_SIZE)
    return read_views(e, fields, cameras) * 2 - 1


SHOWN_TO_CLIP: dict[str, Callable[[Evaluation, NeuralField], torch.Tensor]] = {
    "image": lambda e, fields: _pictures(e, fields, e.size)[:, None],
    "shape": _show_meshes,
    "video": _show_frames,
    "nerf": _show_views,
}


# --------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Measure:
    """One row: the names by which --metrics asks for it, what it needs, and how it is made."""

    names: tuple[str, ...]
    run: Callable[[Evaluation], Figures]
    needs: tuple[str, ...] = ()


_SETS = ("fid", "kid", "precision", "recall")
_TEXT = Measure(("clip-s",), text_agreement, ("prompts", "clip"))

MEASURES: dict[str, list[Measure]] = {
    "image": [
        Measure(_SETS, image_sets, ("extractor",)),
        Measure(("psnr", "ssim"), image_reconstructions),
        Measure(("lpips",), image_perceptual, ("perceptual",)),
        _TEXT,
    ],
    "shape": [
        Measure(("mmd", "cov", "1-nna"), shape_sets),
        Measure(("iou", "f-score"), shape_reconstructions),
        Measure(("tmd",), shape_diversity, ("several",)),
        _TEXT,
    ],
    "video": [
        Measure(("fvd",), clip_sets, ("extractor",)),
        Measure(("psnr",), clip_reconstructions),
        Measure(("temporal-consistency",), clip_smoothness),
        Measure(("frame-consistency",), clip_agreement, ("clip",)),
        Measure(("frame-doubling",), clip_doubling),
        _TEXT,
    ],
    "nerf": [
        Measure(_SETS, scene_sets, ("extractor",)),
        Measure(("psnr", "ssim"), scene_reconstructions),
        _TEXT,
    ],
}
