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
"""One official checkpoint to one diffusers folder."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from tqdm.auto import tqdm

import diffusers_ddmi
from diffusers_ddmi.conversion.autoencoder import ENCODER_PLANES, MODALITIES, autoencoder_config, map_autoencoder
from diffusers_ddmi.conversion.checkpoint import read_checkpoint, state_dict
from diffusers_ddmi.conversion.denoiser import denoiser_config, map_diffusion, sampling_scheduler
from diffusers_ddmi.conversion.mapper import ConversionError, StateMapper
from diffusers_ddmi.conversion.official_config import OfficialConfig, read_official_config
from diffusers_ddmi.files import write_text
from diffusers_ddmi.models.autoencoder_d2c import AutoencoderD2C


PIPELINES = {
    "image": "DDMIImagePipeline",
    "occupancy": "DDMIShapePipeline",
    "video": "DDMIVideoPipeline",
    "nerf": "DDMINeRFPipeline",
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What training needs and a converted model does not.
TRAINING_STATE = (
    "args",
    "step",
    "current_iters",
    "dae_opt",
    "opt",
    "opt_d",
    "opt_sched",
    "scaler",
    "sn",
    "criterion",
    "criterion_2d",
    "criterion_3d",
)
# A tensor that only the networks of one domain have.
SIGNATURES = {
    "image": "torgb.bias",
    "occupancy": "net_p.weight",
    "nerf": "xyz_encoding_1.0.weight",
    "video": "net_res1.fc_0.weight",
}

_CARD = """
## Where these weights come from

Converted by `python -m diffusers_ddmi.conversion` from `{checkpoint}` ({weights}; configuration `{config}`), weights of the
[official implementation of DDMI](https://github.com/mlvlab/DDMI) (Park et al., "DDMI: Domain-Agnostic Latent Diffusion Models
for Synthesizing High-Quality Implicit Neural Representations", ICLR 2024, arXiv 2401.12517). Ask its authors for the terms
under which the weights may be used. {sampling}
"""
_SAMPLING = (
    "The official sampler is DDIM with {steps} steps and `eta={eta}`; `scheduler/` holds it, and its timesteps agree with "
    "the official ones for numbers of steps that divide {timesteps}."
)
_SHOWING = {
    "image": (
        " The official read-out adds fresh noise to its features, also when sampling; its weights are kept "
        "(`vae.readout.noise_weights`), and left out of rendering, so that a field is a function."
    ),
    "occupancy": " The official meshes are extracted at `level=0.2`, `resolution=256`.",
    "video": "",
    "nerf": (
        ' The official views are rendered from `Cameras(..., near=2, far=6, pixel_offset=0, bounds_along="axis")` '
        "with `num_samples={num_samples}`."
    ),
}


@dataclass
class ConversionReport:
    """What a conversion did.

    Args:
        output_dir: the folder that was (or, in a dry run, would be) written.
        components: for each component its class, the number of tensors mapped and of parameters.
        ignored: entries of the checkpoint that were left out.
        weights: which of the checkpoint's denoisers was taken.
    """

    output_dir: Path
    components: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    weights: str = ""

    def __str__(self) -> str:
        lines = [
            f"{name}: {kind}, {tensors} tensors, {parameters / 1e6:.6f} M parameters"
            for name, (kind, tensors, parameters) in self.components.items()
        ]
        lines.append(f"weights: {self.weights}")
        lines.append(f"left out: {', '.join(self.ignored) or 'nothing'}")
        return "\n".join(lines)


def convert(
    checkpoint: str | os.PathLike,
    config: str | os.PathLike,
    output_dir: str | os.PathLike,
    dtype: str = "fp32",
    use_ema: bool = True,
    max_shard_size: str | int = "10GB",
    overwrite: bool = False,
    dry_run: bool = False,
    point_config: str | os.PathLike | None = None,
    encoder_planes: Sequence[str] | None = None,
    progress: bool = False,
) -> ConversionReport:
    """
    Convert a checkpoint of the official DDMI code to a diffusers folder.

    A second-stage file (`ldm-last.pt`) becomes a pipeline, a first-stage file (`model-last.pt`) an `AutoencoderD2C`. Every
    tensor of its networks is used exactly once. The folder appears as a whole or not at all.

    Args:
        checkpoint: the file; read without running anything in it.
        config: its official YAML file, or the name of a published configuration ("afhq", "celebahq", "shapenet",
            "skytimelapse", "srn_cars").
        output_dir: the folder to write.
        dtype: "fp32", "fp16" or "bf16", of the saved weights.
        use_ema: take the denoiser's moving average instead of the weights last trained.
        max_shard_size: of one weights file, like "5GB".
        overwrite: replace `output_dir` if it is a diffusers folder.
        dry_run: check and map everything, write nothing.
        point_config: the point encoder's YAML file, if not the one that `config` names.
        encoder_planes: the encoder's planes in the order in which they fill the latent planes, for shapes. By default
            (xy, xz, yz) for a second-stage file, whose training joins them so, and (xy, yz, xz) for a first-stage file of
            the published training code. The first-stage weights behind the released shape model presumably are
            (xy, xz, yz).
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a file is not there.
        FileExistsError: `output_dir` is there, and `overwrite` is not set or the folder is not a diffusers folder.
        ConversionError: checkpoint and configuration do not fit together, or cannot be converted; the message says what.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    output_dir = Path(output_dir)
    _check_output(output_dir, overwrite)
    with tqdm(total=4, disable=not progress, desc="Reading the configuration") as bar:

        def step(description: str) -> None:
            bar.update()
            bar.set_description(description)

        official = read_official_config(config, point_config)
        step("Reading the checkpoint")
        contents = read_checkpoint(checkpoint)
        _check_domain(contents, official)
        step("Converting")
        report = ConversionReport(output_dir, ignored=[str(key) for key in contents if key in TRAINING_STATE])
        if "diffusion" in contents:
            save = _convert_pipeline(contents, official, encoder_planes, use_ema, DTYPES[dtype], report)
        else:
            save = _convert_autoencoder(contents, official, encoder_planes, DTYPES[dtype], report)
        step("Nothing written: a dry run" if dry_run else "Writing")
        if not dry_run:
            with _replacing(output_dir) as folder:
                save(folder, max_shard_size)
                _write_card(folder, Path(checkpoint), official, report)
        bar.update()
    return report


def _convert_autoencoder(
    contents: Mapping[str, Any],
    official: OfficialConfig,
    encoder_planes: Sequence[str] | None,
    dtype: torch.dtype,
    report: ConversionReport,
) -> Callable[[Path, str | int], None]:
    report.weights = "first stage"
    vae = _autoencoder(contents, official, encoder_planes, 1, dtype, report)

    def save(folder: Path, max_shard_size: str | int) -> None:
        vae.save_pretrained(folder, max_shard_size=max_shard_size)

    return save


def _convert_pipeline(
    contents: Mapping[str, Any],
    official: OfficialConfig,
    encoder_planes: Sequence[str] | None,
    use_ema: bool,
    dtype: torch.dtype,
    report: ConversionReport,
) -> Callable[[Path, str | int], None]:
    if official.unet is None or official.diffusion is None:
        raise ConversionError(
            f"{official.name} is a first-stage configuration, without `unetconfig` and `ddpmconfig`; the checkpoint is of the "
            "second stage. Give the YAML file from configs/ldm."
        )
    vae = _autoencoder(contents, official, encoder_planes, 2, dtype, report)
    unet = _denoiser(contents, official, use_ema, vae, dtype, report)
    pipeline_class = getattr(diffusers_ddmi, PIPELINES[official.domain])
    pipeline = pipeline_class(vae=vae, unet=unet, scheduler=sampling_scheduler(official))

    def save(folder: Path, max_shard_size: str | int) -> None:
        pipeline.save_pretrained(folder, max_shard_size=max_shard_size, repo_id=report.output_dir.name)

    return save


def _autoencoder(
    contents: Mapping[str, Any],
    official: OfficialConfig,
    encoder_planes: Sequence[str] | None,
    stage: int,
    dtype: torch.dtype,
    report: ConversionReport,
) -> AutoencoderD2C:
    planes = ENCODER_PLANES.get((official.domain, stage))
    if encoder_planes is not None:
        if official.domain != "occupancy" or sorted(encoder_planes) != sorted(planes):
            raise ConversionError(
                f"`encoder_planes` is {tuple(encoder_planes)}; it orders the planes xy, xz, yz of a shape autoencoder, and "
                f"{official.name} is of domain {official.domain!r}."
            )
        planes = tuple(encoder_planes)
    # The image trainer of the first stage calls the autoencoder `model`.
    names = {"vaemodel": "vaemodel" if "vaemodel" in contents else "model", "mlp": "mlp"}
    if official.points is not None:
        names["pointnet"] = "pointnet"
    source = {
        f"{prefix}.{key}": value for prefix, name in names.items() for key, value in state_dict(contents, name).items()
    }
    return _filled(
        "vae", AutoencoderD2C, autoencoder_config(official, planes), source, map_autoencoder, official, dtype, report
    )


def _denoiser(
    contents: Mapping[str, Any],
    official: OfficialConfig,
    use_ema: bool,
    vae: AutoencoderD2C,
    dtype: torch.dtype,
    report: ConversionReport,
) -> ModelMixin:
    if use_ema:
        if "ema" not in contents:
            raise ConversionError("The checkpoint has no moving average (`ema`); convert without it (--no-ema).")
        source = _ema_state(state_dict(contents, "ema"))
        report.weights = "second stage, moving average of the denoiser"
        report.ignored += ["diffusion", "ema.online_model"]
    else:
        source = state_dict(contents, "diffusion")
        report.weights = "second stage, denoiser as last trained"
        report.ignored.append("ema")
    model_class, config = denoiser_config(official, vae.latent_shape)
    return _filled("unet", model_class, config, source, map_diffusion, official, dtype, report)


def _ema_state(ema: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The averaged diffusion module out of ema_pytorch's state."""
    if not bool(ema.get("initted", torch.tensor(True))):
        raise ConversionError(
            "The checkpoint's moving average has not been started yet; convert without it (--no-ema)."
        )
    prefix = "ema_model."
    return {key[len(prefix) :]: value for key, value in ema.items() if key.startswith(prefix)}


def _filled(
    name: str,
    model_class: type[ModelMixin],
    config: dict[str, Any],
    source: dict[str, torch.Tensor],
    map_tensors: Callable[[StateMapper, OfficialConfig], None],
    official: OfficialConfig,
    dtype: torch.dtype,
    report: ConversionReport,
) -> ModelMixin:
    """A model of `config` with the weights of `source`, without ever holding them twice in the same precision."""
    with torch.device("meta"):
        model = model_class(**config)
    mapper = StateMapper(source, model.state_dict(), name)
    map_tensors(mapper, official)
    kept = tuple(f"{module}." for module in model_class._keep_in_fp32_modules or ())
    state = {key: value.to(torch.float32 if key.startswith(kept) else dtype) for key, value in mapper.finish().items()}
    model.load_state_dict(state, assign=True)
    report.components[name] = (model_class.__name__, len(source), sum(p.numel() for p in model.parameters()))
    return model.eval()


def _check_domain(contents: Mapping[str, Any], official: OfficialConfig) -> None:
    found = [domain for domain, key in SIGNATURES.items() if key in state_dict(dict(contents), "mlp")]
    # Shapes have the video read-out's blocks too.
    domain = "occupancy" if "occupancy" in found else (found or [None])[0]
    if domain is None:
        raise ConversionError("The checkpoint's read-out (`mlp`) is of none of the official domains.")
    if domain != official.domain:
        raise ConversionError(
            f"The checkpoint is of the domain {domain!r} ({MODALITIES[domain]}), but {official.name} describes "
            f"{official.domain!r}. Give the YAML file that it was trained with."
        )


def _check_output(output_dir: Path, overwrite: bool) -> None:
    if not output_dir.exists() and not output_dir.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(f"{str(output_dir)!r} exists already; choose another folder or set `overwrite`.")
    ours = output_dir.is_dir() and any((output_dir / name).is_file() for name in ("model_index.json", "config.json"))
    if not ours:
        raise FileExistsError(
            f"{str(output_dir)!r} is not a diffusers folder; it is not overwritten. Remove it yourself."
        )


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place once the block is done; if anything fails, `target` is as before."""
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        new, old = Path(work) / "new", Path(work) / "old"
        new.mkdir()
        yield new
        if not target.exists():
            os.replace(new, target)
            return
        os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            os.replace(old, target)
            raise


def _write_card(folder: Path, checkpoint: Path, official: OfficialConfig, report: ConversionReport) -> None:
    sampling = ""
    if official.diffusion is not None and "unet" in report.components:
        sampling = _SAMPLING.format(
            steps=official.diffusion["sampling_timesteps"],
            eta=official.diffusion["ddim_sampling_eta"],
            timesteps=official.diffusion["timesteps"],
        )
        num_samples = official.radiance["N_samples"] if official.radiance is not None else None
        sampling += _SHOWING[official.domain].format(num_samples=num_samples)
    text = _CARD.format(checkpoint=checkpoint.name, weights=report.weights, config=official.name, sampling=sampling)
    card = folder / "README.md"
    existing = card.read_text(encoding="utf-8") if card.exists() else f"# {report.output_dir.name}\n"
    write_text(card, existing.rstrip() + "\n" + text.rstrip() + "\n")
