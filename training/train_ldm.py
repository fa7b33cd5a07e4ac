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
"""Stage 2: trains a latent diffusion model (DDMI, Eq. 10) on the latents of a D2C-VAE.

    accelerate launch training/train_ldm.py --pretrained_vae vae --preset small \\
        --train_data_dir pictures --output_dir ddmi-mine --max_train_steps 50000

The folder of stage 1 says what kind of signal it is and how large its latents are. The result is a whole pipeline:
`import diffusers_ddmi; DiffusionPipeline.from_pretrained("ddmi-mine")`.

With --text_encoder_name_or_path, prompts condition the model through that CLIP text encoder. With
--train_text_encoder alone, a small CLIPTextModel of the preset and a tokenizer made from the captions are trained along.
"""

import argparse
import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.training_utils import compute_snr
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm
from training_arguments import add_shared_arguments, check_shared_arguments
from training_loop import Batch, Step, TrainingRun, create_accelerator, find_progress, hub_repository, push_to_hub
from training_previews import save_samples
from training_setup import (
    build,
    config_class,
    data_fingerprint,
    load_training_data,
    plain_config,
    preset_folder,
    read_config,
    resolve_sizes,
    weights_fingerprint,
)
from training_text import build_tokenizer, captions_of, create_text_encoder, load_text_encoder

import diffusers_ddmi
from diffusers_ddmi import AutoencoderD2C
from diffusers_ddmi.data import collate
from diffusers_ddmi.losses import diffusion_loss, diffusion_target, min_snr_weights
from diffusers_ddmi.training_utils import derived_seed, sample_generators, step_generator


logger = get_logger(__name__)

PIPELINES = {
    "image": "DDMIImagePipeline",
    "shape": "DDMIShapePipeline",
    "video": "DDMIVideoPipeline",
    "nerf": "DDMINeRFPipeline",
}
# How validation samples are shown, where the pipeline's own sizes would take long.
PREVIEW_OPTIONS: dict[str, dict[str, int]] = {
    "shape": {"resolution": 64},
    "nerf": {"num_views": 4, "height": 64, "width": 64},
}
STATISTICS_SAMPLES = 512


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_vae", required=True, help="Folder (or hub id) that stage 1 wrote.")
    parser.add_argument("--preset", default="small", help="tiny, small, official, or a folder with unet/config.json.")
    parser.add_argument("--config_overrides", help="JSON that replaces keys of the preset's denoiser.")
    add_shared_arguments(parser, use_ema=True)
    group = parser.add_argument_group("diffusion")
    group.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction", "sample"],
        help="Default: the preset's; v_prediction for diffusers' denoisers with text.",
    )
    group.add_argument("--snr_gamma", type=float, help="Min-SNR weighting of the loss; 5.0 is recommended.")
    group.add_argument(
        "--cache_latents",
        action="store_true",
        help="Encode the data once, unmirrored, with the central crop and one caption each, and keep it in memory.",
    )
    group.add_argument(
        "--ddpm_num_inference_steps", type=int, default=50, help="Denoising steps of validation samples."
    )
    group = parser.add_argument_group("text")
    group.add_argument("--text_encoder_name_or_path", help="CLIP text encoder and tokenizer: hub id or folder.")
    group.add_argument("--train_text_encoder", action="store_true", help="Train the text encoder along.")
    group.add_argument(
        "--conditioning_dropout_prob", type=float, default=0.1, help="Part of prompts that is left empty."
    )
    group.add_argument("--validation_prompts", nargs="+", help="Prompts to generate at validation.")
    group.add_argument("--guidance_scale", type=float, default=3.0, help="Of validation samples.")
    args = parser.parse_args(arguments)
    check_shared_arguments(args)
    if args.cache_latents and args.random_flip:
        raise ValueError("--cache_latents keeps one version of each item: leave out --random_flip, or do not cache.")
    args.center_crop = args.center_crop or args.cache_latents
    if args.ddpm_num_inference_steps < 1:
        raise ValueError(f"--ddpm_num_inference_steps must be at least 1, but is {args.ddpm_num_inference_steps}.")
    if not 0 <= args.conditioning_dropout_prob <= 1:
        raise ValueError(f"--conditioning_dropout_prob must be in [0, 1], but is {args.conditioning_dropout_prob}.")
    if args.validation_prompts and not (args.text_encoder_name_or_path or args.train_text_encoder):
        raise ValueError("--validation_prompts need --text_encoder_name_or_path or --train_text_encoder.")
    return args


# --------------------------------------------------------------------------------------------- models


class ConditionedDenoiser(nn.Module):
    """A denoiser, and the text encoder if that is trained too: one module, so that one `forward` is wrapped."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None = None):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, tokens_or_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Noisy packed latents, timesteps (batch,), and token ids (or hidden states, if text is encoded elsewhere)."""
        if tokens_or_states is None:
            return self.unet(latents, timesteps, return_dict=False)[0]
        states = self.text_encoder(tokens_or_states)[0] if self.text_encoder is not None else tokens_or_states
        return self.unet(latents, timesteps, encoder_hidden_states=states, return_dict=False)[0]


def build_scheduler(args: argparse.Namespace, folder: Path, with_text: bool) -> Any:
    """The preset's scheduler. Denoisers of diffusers, which have no mixed prediction, predict velocities by default:
    where almost all is noise they would have to learn the identity to predict it."""
    prediction_type = args.prediction_type
    if prediction_type is None and with_text:
        denoiser = config_class(read_config(folder, "unet_text", args.config_overrides))
        if "prediction_type" not in inspect.signature(denoiser.__init__).parameters:
            prediction_type = "v_prediction"
    return build(read_config(folder, "scheduler"), **({"prediction_type": prediction_type} if prediction_type else {}))


def build_denoiser(
    args: argparse.Namespace, folder: Path, vae: AutoencoderD2C, scheduler: Any, text_width: int | None
):
    """The preset's denoiser, of the size of the latents, on the scheduler's noise and prediction type."""
    config = read_config(folder, "unet_text" if text_width else "unet", args.config_overrides)
    channels, *sizes = vae.latent_shape
    schedule = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    unet = build(
        config,
        in_channels=channels,
        out_channels=channels,
        sample_size=sizes[0] if len(set(sizes)) == 1 else sizes,
        plane_sizes=[list(size) for size in vae.layout.plane_sizes],
        **({"cross_attention_dim": text_width} if text_width else {}),
        **{name: scheduler.config[name] for name in schedule},
    )
    if text_width and "encoder_hidden_states" not in inspect.signature(unet.forward).parameters:
        raise ValueError(f"{type(unet).__name__} takes no text: name another denoiser in the preset's unet_text.")
    return unet


# --------------------------------------------------------------------------------------------- latents


class Latents:
    """Standardised latents of a batch, sampled from the frozen autoencoder's posterior."""

    def __init__(self, vae: AutoencoderD2C, seed: int):
        self.vae, self.seed = vae, seed

    @torch.no_grad()
    def moments(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the posterior, from the cache or the encoder."""
        if "mean" in batch:
            return batch["mean"], batch["std"]
        posterior = self.vae.encode(batch["inputs"].to(self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def __call__(self, batch: Batch, samples: Sequence[int]) -> torch.Tensor:
        mean, std = self.moments(batch)
        noise = randn_tensor(mean.shape, sample_generators(self.seed, samples, "posterior"), mean.device)
        return (mean + std * noise - self.vae.config.shift_factor) * self.vae.config.scaling_factor


class CachedLatents(Dataset):
    """Posterior moments and captions of a whole data set, in memory."""

    def __init__(self, dataset: Dataset, latents: Latents, batch_size: int, device: torch.device, quiet: bool):
        dataset.set_epoch(0)
        self.examples: list[dict[str, Any]] = []
        loader = DataLoader(dataset, batch_size, collate_fn=collate, generator=torch.Generator())
        for batch in tqdm(loader, desc="encoding", disable=quiet):
            mean, std = latents.moments({"inputs": batch["inputs"].to(device)})
            captions = batch.get("caption", [None] * len(mean))
            for *moments, caption in zip(mean.cpu(), std.cpu(), captions):
                example = {"mean": moments[0], "std": moments[1]}
                self.examples.append(example if caption is None else {**example, "caption": caption})

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]


@torch.no_grad()
def measure_latents(latents: Latents, dataset: Dataset, batch_size: int, device: torch.device) -> dict[str, float]:
    """Mean and inverse standard deviation of latents, over posterior samples of examples from all over the data."""
    if not isinstance(dataset, IterableDataset):
        count = min(STATISTICS_SAMPLES, len(dataset))
        dataset = torch.utils.data.Subset(dataset, [i * len(dataset) // count for i in range(count)])
    count, total, squares, seen = 0, 0.0, 0.0, 0
    for batch in DataLoader(dataset, batch_size, collate_fn=collate, generator=torch.Generator()):
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        mean, std = latents.moments(batch)
        numbers = range(seen, seen + len(mean))
        values = mean + std * randn_tensor(mean.shape, sample_generators(latents.seed, numbers, "statistics"), device)
        values = values.cpu().double()
        count, total = count + values.numel(), total + float(values.sum())
        squares, seen = squares + float(values.square().sum()), seen + len(mean)
        if seen >= STATISTICS_SAMPLES:
            break
    shift = total / count
    deviation = max(squares / count - shift**2, 0.0) ** 0.5
    if not deviation > 1e-8:
        raise ValueError(
            f"The latents of --pretrained_vae do not vary (standard deviation {deviation}): train it longer."
        )
    return {"scaling_factor": 1 / deviation, "shift_factor": shift}


# --------------------------------------------------------------------------------------------- objective


class StageTwoLosses:
    """The denoising loss on one batch. All randomness of a sample follows from its number in the run."""

    def __init__(self, args: argparse.Namespace, latents: Latents, scheduler: Any, text: "Text | None"):
        self.args, self.latents, self.scheduler, self.text = args, latents, scheduler, text

    def __call__(self, denoiser: nn.Module, batch: Batch, step: Step) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        clean = self.latents(batch, step.samples)
        noise = randn_tensor(clean.shape, sample_generators(self.args.seed, step.samples, "noise"), clean.device)
        timesteps = self._timesteps(step).to(clean.device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        condition = (self.text(batch, step.samples),) if self.text else ()
        prediction = denoiser(noisy, timesteps, *condition)
        target = diffusion_target(self.scheduler, clean, noise, timesteps)
        weights = None
        if self.args.snr_gamma is not None:
            snr = compute_snr(self.scheduler, timesteps)
            weights = min_snr_weights(snr, self.args.snr_gamma, self.scheduler.config.prediction_type)
        loss = diffusion_loss(prediction, target, weights)
        return loss, {"loss": loss}

    def _timesteps(self, step: Step) -> torch.Tensor:
        generators = sample_generators(self.args.seed, step.samples, "timestep")
        count = self.scheduler.config.num_train_timesteps
        return torch.stack([torch.randint(count, (), generator=generator) for generator in generators])


class Text:
    """Captions of a batch as token ids, or as hidden states of a frozen encoder; some dropped at random."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any, frozen_encoder: nn.Module | None):
        self.args, self.tokenizer, self.frozen_encoder = args, tokenizer, frozen_encoder

    def __call__(self, batch: Batch, samples: Sequence[int]) -> torch.Tensor:
        if "caption" not in batch:
            raise ValueError("Training with text needs captions, and these data have none (see --caption_column).")
        draws = sample_generators(self.args.seed, samples, "prompt")
        keep = [float(torch.rand((), generator=g)) >= self.args.conditioning_dropout_prob for g in draws]
        captions = [caption if kept else "" for caption, kept in zip(batch["caption"], keep)]
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        reference = batch["mean"] if "mean" in batch else batch["inputs"]
        ids = ids.to(reference.device)
        if self.frozen_encoder is None:
            return ids
        with torch.no_grad():
            return self.frozen_encoder(ids)[0]


# --------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> bool:
    """Trains and saves a pipeline. Returns False if a signal ended the run before its last step."""
    vae = AutoencoderD2C.from_pretrained(args.pretrained_vae).requires_grad_(False).eval()
    modality = vae.config.modality
    folder = preset_folder(args.preset, modality)
    resolve_sizes(args, vae.config)
    accelerator = create_accelerator(args)
    checkpoint, progress = find_progress(accelerator, args)
    vae.to(accelerator.device)
    with accelerator.local_main_process_first():  # the others find prepared what takes long
        dataset = load_training_data(args, modality, "latents")
    data = data_fingerprint(accelerator, args, dataset)
    tokenizer, text_encoder = prepare_text(args, folder, dataset)
    latents = Latents(vae, args.seed)
    if args.cache_latents:
        dataset = CachedLatents(
            dataset, latents, args.train_batch_size, accelerator.device, not accelerator.is_local_main_process
        )
    statistics = progress.get("latents") or measure_latents(
        latents, dataset, args.train_batch_size, accelerator.device
    )
    vae.register_to_config(**statistics)

    scheduler = build_scheduler(args, folder, with_text=tokenizer is not None)
    unet = build_denoiser(args, folder, vae, scheduler, text_encoder.config.hidden_size if text_encoder else None)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    frozen = text_encoder if text_encoder is not None and not args.train_text_encoder else None
    if frozen is not None:
        frozen.requires_grad_(False).eval().to(accelerator.device)
    denoiser = ConditionedDenoiser(unet, None if frozen is not None else text_encoder)
    text = Text(args, tokenizer, frozen) if tokenizer is not None else None

    def pipeline(module: ConditionedDenoiser) -> Any:
        components = {"tokenizer": tokenizer, "text_encoder": frozen or module.text_encoder}
        return getattr(diffusers_ddmi, PIPELINES[modality])(vae, module.unet, scheduler, **components)

    run = TrainingRun(
        args,
        accelerator,
        denoiser,
        StageTwoLosses(args, latents, scheduler, text),
        dataset,
        configs={
            "unet": plain_config(unet),
            "vae": plain_config(vae),
            "vae weights": weights_fingerprint(vae),
            "scheduler": plain_config(scheduler),
            "tokenizer": derived_seed(*sorted(tokenizer.get_vocab().items())) if tokenizer else None,
            "text encoder weights": None if frozen is None else weights_fingerprint(frozen),
        },
        data=data,
        validate=lambda module, step: validate(args, accelerator, pipeline(module), step),
        facts={"latents": statistics},
    )
    finished = run.fit(checkpoint, progress)
    if finished:
        with run.averaged() as module:
            run.export(partial(pipeline(module).save_pretrained, repo_id=hub_repository(args, accelerator)))
        if args.push_to_hub and accelerator.is_main_process:
            push_to_hub(args)
    accelerator.end_training()
    return finished


def prepare_text(args: argparse.Namespace, folder: Path, dataset: Dataset) -> tuple[Any, Any]:
    """Tokenizer and text encoder: pretrained, or small and new, or (None, None) for a model without text."""
    if args.text_encoder_name_or_path:
        return load_text_encoder(args.text_encoder_name_or_path)
    if not args.train_text_encoder:
        return None, None
    config = read_config(folder, "text_encoder")
    tokenizer = build_tokenizer(captions_of(dataset), max_length=config["max_position_embeddings"])
    return tokenizer, create_text_encoder(config, tokenizer)


def validate(args: argparse.Namespace, accelerator: Accelerator, pipe: Any, step: int) -> dict[str, float]:
    """Samples with the averaged weights, from the same noise at every validation."""
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = dict(PREVIEW_OPTIONS.get(pipe.modality, {}))
    if args.validation_prompts:
        options |= {"prompt": args.validation_prompts, "guidance_scale": args.guidance_scale}
    else:
        options["batch_size"] = args.num_validation_samples
    folder = Path(args.output_dir, "validation")
    save_samples(
        pipe,
        folder / f"step-{step:06d}",
        accelerator,
        step,
        num_inference_steps=args.ddpm_num_inference_steps,
        generator=step_generator(args.seed, 0, purpose="validation"),
        **options,
    )
    return {}


if __name__ == "__main__":
    raise SystemExit(0 if main(parse_args()) else 1)
