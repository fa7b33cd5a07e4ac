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
"""Stage 1: trains a D2C-VAE (DDMI, section 3.1 and Eq. 9) on pictures, shapes, clips or scenes.

    accelerate launch training/train_d2c_vae.py --modality image --preset small \\
        --train_data_dir pictures --resolution 64 --output_dir vae --max_train_steps 20000

writes an `AutoencoderD2C` folder, which `training/train_ldm.py --pretrained_vae vae` takes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn
from torch.utils.data import DataLoader
from training_arguments import add_modality_argument, add_shared_arguments, check_shared_arguments
from training_loop import Adversary, Batch, Step, TrainingRun, create_accelerator, find_progress, push_to_hub
from training_previews import save_reconstructions, save_views
from training_setup import (
    build,
    data_fingerprint,
    load_training_data,
    load_validation_data,
    plain_config,
    preset_folder,
    read_config,
    resolve_sizes,
)

from diffusers_ddmi import AutoencoderD2C
from diffusers_ddmi.data import collate
from diffusers_ddmi.losses import (
    NORMS,
    REDUCTIONS,
    PatchDiscriminator,
    SpectralRegularization,
    adaptive_weight,
    bernoulli_nll,
    discriminator_loss,
    gaussian_nll,
    generator_loss,
    geometric_annealing,
    kl_divergence,
    linear_annealing,
    load_perceptual_network,
    perceptual_loss,
    radiance_loss,
)
from diffusers_ddmi.rendering.rays import clip_to_bounds, composite, sample_along_rays
from diffusers_ddmi.training_utils import sample_generators, step_generator


logger = get_logger(__name__)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_modality_argument(parser)
    parser.add_argument("--preset", default="small", help="tiny, small, official, or a folder with vae/config.json.")
    parser.add_argument(
        "--config_overrides", help="JSON that replaces keys of the preset, e.g. '{\"num_scales\": 1}'."
    )
    add_shared_arguments(parser, use_ema=False)
    group = parser.add_argument_group("objective")
    group.add_argument(
        "--reconstruction_loss", choices=NORMS, help="Likelihood of colours; default: l1, for rays (nerf) l2."
    )
    group.add_argument(
        "--reduction",
        choices=REDUCTIONS,
        default="mean",
        help="The whole objective per value (a scale that does not depend on resolution), or summed over a signal.",
    )
    group.add_argument(
        "--kl_weight", type=float, default=0.1, help="Final λ_z of Eq. 9, beside the summed likelihood."
    )
    group.add_argument(
        "--kl_anneal_steps", type=int, default=5000, help="Steps in which λ_z rises to its final value."
    )
    group.add_argument(
        "--spectral_weight", type=float, default=0.0, help="Final weight of spectral norms; published: 0.1."
    )
    group.add_argument(
        "--spectral_initial_weight", type=float, default=5.0, help="Falls geometrically while λ_z rises."
    )
    group.add_argument("--lpips_weight", type=float, default=0.0, help="Perceptual term (images); needs `lpips`.")
    group.add_argument("--disc_weight", type=float, default=0.0, help="Patch adversarial term (images).")
    group.add_argument("--disc_start", type=int, default=0, help="Step from which it acts.")
    group.add_argument(
        "--disc_adaptive_weight", action="store_true", help="Balance it by gradients at the last layer."
    )
    group.add_argument("--opacity_weight", type=float, default=0.0, help="Error of opacities (nerf, where known).")
    group.add_argument("--num_ray_samples", type=int, default=64, help="Samples on a ray (nerf).")
    args = parser.parse_args(arguments)
    # Most rays miss the scene: where l1 is least, at their median, there is no scene at all.
    args.reconstruction_loss = args.reconstruction_loss or ("l2" if args.modality == "nerf" else "l1")
    check_shared_arguments(args)
    return args


# --------------------------------------------------------------------------------------------- forward, by modality


class Reading(NamedTuple):
    """What the autoencoder says of a batch: values (batch, points, channels), and for rays their opacity."""

    sample: torch.Tensor
    posterior: Any
    opacity: torch.Tensor | None = None


def read_values(vae: nn.Module, batch: Batch, args: argparse.Namespace, step: Step | None) -> Reading:
    """Values at the batch's coordinates; without a step, of the posterior's mean."""
    scale = {"scale": batch["scale"]} if "scale" in batch else {}
    output = vae(batch["inputs"], batch["coords"], **posterior_options(args, step), **scale)
    return Reading(output.sample, output.posterior)


def posterior_options(args: argparse.Namespace, step: Step | None) -> dict[str, Any]:
    if step is None:
        return {"sample_posterior": False}
    return {"generator": sample_generators(args.seed, step.samples, "posterior")}


def render_batch_rays(vae: nn.Module, batch: Batch, args: argparse.Namespace, step: Step | None) -> Reading:
    """Colours that the batch's rays see, by volume rendering before a white background."""
    origins, directions = batch["origins"], batch["directions"]  # (B, R, 3)
    device = origins.device
    draws = [None] * len(origins)
    if step is not None:
        draws = [step_generator(args.seed, n, purpose="rays", device=device) for n in step.samples]
    model = getattr(vae, "module", vae)
    infinite = model.config.last_interval_infinite
    samples = []
    for start, direction, near, far, generator in zip(origins, directions, batch["near"], batch["far"], draws):
        if not infinite:  # outside of its box a scene is empty, in training as in rendering: nothing is learned there
            near, far = clip_to_bounds(start, direction, near, far, model.bounds)
        rays = (start, direction, near, far, args.num_ray_samples)
        samples.append(sample_along_rays(*rays, generator, generator is not None, infinite))
    points, distances, deltas = (
        torch.stack([getattr(s, name) for s in samples]) for name in ("points", "distances", "deltas")
    )  # (B, R, S, 3), (B, R, S), (B, R, S)
    seen_along = directions[:, :, None].expand_as(points)
    output = vae(
        batch["inputs"],
        points.flatten(1, 2),
        directions=seen_along.flatten(1, 2),
        **posterior_options(args, step),
    )
    values = output.sample.float().unflatten(1, points.shape[1:3])  # (B, R, S, 4)
    rendered = composite(values[..., :3], values[..., 3], distances, deltas, background=1.0)
    return Reading(rendered.color, output.posterior, rendered.opacity)


def colour_loss(output: Reading, batch: Batch, args: argparse.Namespace) -> torch.Tensor:
    return gaussian_nll(output.sample, batch["targets"], args.reconstruction_loss)


def occupancy_loss(output: Reading, batch: Batch, args: argparse.Namespace) -> torch.Tensor:
    return bernoulli_nll(output.sample, batch["targets"])


def ray_loss(output: Reading, batch: Batch, args: argparse.Namespace) -> torch.Tensor:
    return radiance_loss(
        output.sample,
        batch["targets"],
        args.reconstruction_loss,
        opacity=output.opacity,
        target_opacity=batch.get("opacity"),
        opacity_weight=args.opacity_weight,
    )


def psnr(output: Reading, batch: Batch, value_range: float) -> float:
    """Peak signal-to-noise ratio in dB, averaged over the batch."""
    error = (output.sample.float().clamp(*_LIMITS[value_range]) - batch["targets"]).square().flatten(1).mean(1)
    return float((10 * torch.log10(value_range**2 / error.clamp(min=1e-10))).mean())


_LIMITS = {1.0: (0.0, 1.0), 2.0: (-1.0, 1.0)}


def intersection_over_union(output: Reading, batch: Batch) -> float:
    """IoU of the occupied queries, averaged over the batch; two empty shapes agree."""
    inside, truth = (values.flatten(1) for values in (output.sample > 0, batch["targets"] > 0.5))
    union = (inside | truth).sum(1)
    return float(torch.where(union > 0, (inside & truth).sum(1) / union.clamp(min=1), 1.0).mean())


# modality -> forward, likelihood, name and function of the held-out measure
Row = tuple[Callable[..., Reading], Callable[..., torch.Tensor], str, Callable[[Reading, Batch], float]]
MODALITY_TABLE: dict[str, Row] = {
    "image": (read_values, colour_loss, "psnr", lambda output, batch: psnr(output, batch, 2.0)),
    "video": (read_values, colour_loss, "psnr", lambda output, batch: psnr(output, batch, 2.0)),
    "shape": (read_values, occupancy_loss, "iou", intersection_over_union),
    "nerf": (render_batch_rays, ray_loss, "psnr", lambda output, batch: psnr(output, batch, 1.0)),
}


# --------------------------------------------------------------------------------------------- objective


SMALLEST_JUDGED = 24


class StageOneLosses:
    """The losses of the autoencoder and, if wanted, of the discriminator, on one batch."""

    def __init__(self, args: argparse.Namespace, vae: AutoencoderD2C, device: torch.device):
        self.args = args
        self.forward, self.likelihood = MODALITY_TABLE[args.modality][:2]
        self.regularization = SpectralRegularization(vae, seed=args.seed) if args.spectral_weight else None
        if (args.lpips_weight or args.disc_weight) and args.modality != "image":
            raise ValueError(
                f"--lpips_weight and --disc_weight compare whole pictures and are for images, not {args.modality!r}."
            )
        if args.opacity_weight and args.modality != "nerf":
            raise ValueError(
                f"--opacity_weight is for the rays of scenes (nerf), not {args.modality!r}: leave it out."
            )
        self.opacity_checked = not args.opacity_weight
        self.perceptual = load_perceptual_network().to(device) if args.lpips_weight else None
        self.discriminator = PatchDiscriminator().to(device) if args.disc_weight else None
        if args.disc_weight and args.resolution < SMALLEST_JUDGED:
            raise ValueError(
                f"--disc_weight needs pictures of at least {SMALLEST_JUDGED} pixels a side for its patches, not "
                f"{args.resolution}: raise --resolution, or leave it at 0."
            )
        self.last_weight = vae.readout.out.weight if args.disc_weight else None
        self._pictures: tuple[torch.Tensor, ...] = ()

    def autoencoder(self, vae: nn.Module, batch: Batch, step: Step) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Reconstruction + λ_z KL / values + further terms, all per value of a signal (or times their number)."""
        args = self.args
        if not self.opacity_checked:
            warn_of_unknown_opacity(batch["opacity"])
            self.opacity_checked = True
        output = self.forward(vae, batch, args, step)
        values = batch["targets"][0].numel()
        progress = min(step.number / max(args.kl_anneal_steps, 1), 1.0)
        terms = {
            "reconstruction": self.likelihood(output, batch, args),
            "kl": kl_divergence(output.posterior) / values,
        }
        loss = terms["reconstruction"] + terms["kl"] * linear_annealing(
            step.number, args.kl_weight, args.kl_anneal_steps
        )
        if self.regularization:
            terms["spectral"] = self.regularization.convolution_loss() + self.regularization.norm_loss()
            weight = geometric_annealing(progress, args.spectral_initial_weight, args.spectral_weight)
            loss = loss + terms["spectral"] * weight / values
        if self.perceptual or self.discriminator:
            loss = loss + self._picture_terms(output.sample, batch, step, terms)
        if args.reduction == "sum":
            loss = loss * values
        return loss, {"loss": loss, **terms}

    def _picture_terms(
        self, values: torch.Tensor, batch: Batch, step: Step, terms: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        real, fake = as_pictures(batch["targets"]), as_pictures(values)
        total = torch.zeros((), device=fake.device)
        if self.perceptual:
            terms["perceptual"] = perceptual_loss(self.perceptual, fake, real)
            total = total + self.args.lpips_weight * terms["perceptual"]
        if self.discriminator:
            self._pictures = (real, fake.detach())
            # The module itself, not its wrapper, and frozen: this pass must leave it without gradients.
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = generator_loss(self.discriminator(fake, batch.get("scale")))
            self.discriminator.requires_grad_(True)
            weight = self.args.disc_weight * (step.number >= self.args.disc_start)
            if weight and self.args.disc_adaptive_weight:
                weight = weight * adaptive_weight(terms["reconstruction"], terms["adversarial"], self.last_weight)
            total = total + weight * terms["adversarial"]
        return total

    def adversary(self, discriminator: nn.Module, batch: Batch, step: Step) -> tuple[torch.Tensor, dict]:
        """The discriminator's hinge loss on the pictures of the autoencoder's last pass."""
        real, fake = self._pictures
        scale = batch["scale"].repeat(2) if "scale" in batch else None
        logits = discriminator(torch.cat([real, fake]), scale)
        loss = discriminator_loss(*logits.chunk(2)) * (step.number >= self.args.disc_start)
        return loss, {"discriminator": loss}


def as_pictures(values: torch.Tensor) -> torch.Tensor:
    """Values (batch, pixels, 3) of square pictures, row by row, as (batch, 3, side, side)."""
    side = round(values.shape[1] ** 0.5)
    if side * side != values.shape[1]:
        raise ValueError(
            f"Perceptual and adversarial terms need whole square pictures, not {values.shape[1]} values: leave out "
            "--num_queries."
        )
    return values.float().transpose(1, 2).unflatten(2, (side, side))


# --------------------------------------------------------------------------------------------- validation


PREVIEWS = 8


class Validation:
    """Measures held-out reconstructions (PSNR in dB, or IoU) and saves pictures of them."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.dataset = load_validation_data(args, args.modality)

    def __call__(self, vae: AutoencoderD2C, step: int) -> dict[str, float]:
        if self.dataset is None:
            return {}
        forward, _, name, measure = MODALITY_TABLE[self.args.modality]
        results: list[float] = []
        shown: list[torch.Tensor] = []
        views: list[tuple[torch.Tensor, torch.Tensor]] = []
        # A scene's rays are all pixels of a view, and scenes may differ in size.
        size = 1 if self.args.modality == "nerf" else self.args.train_batch_size
        for batch in DataLoader(self.dataset, size, collate_fn=collate):
            batch = {k: v.to(self.accelerator.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            output = forward(vae, batch, self.args, None)
            results += [measure(output, batch)] * len(batch["inputs"])
            if "view_size" in batch and len(views) < PREVIEWS:
                size = batch["view_size"][0].tolist()
                views.append(
                    tuple(values[0].float().unflatten(0, size) for values in (batch["targets"], output.sample))
                )
            shown += batch["inputs"][: PREVIEWS - len(shown)]
        path = Path(self.args.output_dir, "validation", f"step-{step:06d}")
        if views:
            save_views(views, path, self.accelerator, step)
        else:
            save_reconstructions(vae, torch.stack(shown), path, self.accelerator, step)
        return {name: sum(results) / len(results)}


# --------------------------------------------------------------------------------------------- main


def warn_of_points_outside(inputs: torch.Tensor, bounds: tuple[float, float]) -> None:
    """Says so if many points (points, 6) of a scene lie where nothing is learned."""
    xyz = inputs[:, :3]
    share = float(((xyz < bounds[0]) | (xyz > bounds[1])).any(1).float().mean())
    if share > 0.01:
        logger.warning(
            "%.0f%% of the first scene's points lie outside of the model's bounds %s, where a scene is empty: scale the "
            "scenes by --longest_side, or set `bounds` and `extent` by --config_overrides.",
            100 * share,
            bounds,
        )


def warn_of_unknown_opacity(opacity: torch.Tensor) -> None:
    """Says so if a batch's opacities (batch, rays, 1) are all unknown, so that they have no loss."""
    if opacity.isnan().all():
        logger.warning(
            "--opacity_weight has no effect on scenes whose pictures do not tell their opacity, and none of the first "
            "batch does: save them with an alpha channel (RGBA), or leave the flag out."
        )


def main(args: argparse.Namespace) -> bool:
    """Trains and saves. Returns False if a signal ended the run before its last step."""
    config = read_config(preset_folder(args.preset, args.modality), "vae", args.config_overrides)
    if args.modality in ("image", "video"):
        config["sample_size"] = args.resolution or config["sample_size"]
        config["num_frames"] = args.num_frames or config.get("num_frames")
    resolve_sizes(args, config)
    accelerator = create_accelerator(args)
    checkpoint, progress = find_progress(accelerator, args)
    with accelerator.local_main_process_first():  # the others find prepared what takes long
        dataset = load_training_data(args, args.modality)
    vae = build(config, modality=args.modality)
    if args.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    if args.modality == "nerf" and not args.streaming:
        warn_of_points_outside(dataset[0]["inputs"], vae.bounds)
    losses = StageOneLosses(args, vae, accelerator.device)
    run = TrainingRun(
        args,
        accelerator,
        vae,
        losses.autoencoder,
        dataset,
        configs={"vae": plain_config(vae)},
        data=data_fingerprint(accelerator, args, dataset),
        state={"spectral": losses.regularization} if losses.regularization else {},
        adversary=Adversary(losses.discriminator, losses.adversary) if losses.discriminator else None,
        validate=Validation(args, accelerator),
    )
    finished = run.fit(checkpoint, progress)
    if finished:
        with run.averaged() as module:
            run.export(module.save_pretrained)
        if args.push_to_hub and accelerator.is_main_process:
            push_to_hub(args)
    accelerator.end_training()
    return finished


if __name__ == "__main__":
    raise SystemExit(0 if main(parse_args()) else 1)
