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
"""Pictures that show how a run is doing: reconstructions in stage 1, samples in stage 2."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from diffusers_ddmi import AutoencoderD2C, NeuralField
from diffusers_ddmi.rendering.grids import cell_centres, render_pixels
from diffusers_ddmi.rendering.pictures import contact_sheet, save_gif, save_image
from diffusers_ddmi.rendering.raster import render_mesh
from diffusers_ddmi.rendering.surface import extract_meshes


# Pixels of a side.
_LARGEST_VIEW = 128


def as_uint8(values: torch.Tensor) -> np.ndarray:
    """Colours in [-1, 1], last axis RGB, as 8-bit pixels."""
    return ((values.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()


# --------------------------------------------------------------------------------------------- samples


def save_samples(pipe: Any, path: Path, accelerator: Accelerator, step: int, **options: Any) -> None:
    """Samples of a pipeline as one picture (`path` + ".png"), or as an animation (".gif") for clips."""
    result = pipe(**options)
    captions = options.get("prompt")
    SAMPLE_WRITERS[pipe.modality](result, path, captions)
    _track(accelerator, path, step)


def _write_images(result: Any, path: Path, captions: list[str] | None) -> None:
    save_image(contact_sheet(result.images, captions=captions), path.with_suffix(".png"))


def _write_meshes(result: Any, path: Path, captions: list[str] | None) -> None:
    pictures = [render_mesh(mesh, size=192) for mesh in result.meshes]
    save_image(contact_sheet(pictures, captions=captions), path.with_suffix(".png"))


def _write_clips(result: Any, path: Path, captions: list[str] | None) -> None:
    frames = [contact_sheet(list(pictures), captions=captions) for pictures in zip(*result.frames)]
    save_gif(frames, path.with_suffix(".gif"))


def _write_views(result: Any, path: Path, captions: list[str] | None) -> None:
    pictures = [view for views in result.frames for view in views]
    save_image(contact_sheet(pictures, columns=len(result.frames[0])), path.with_suffix(".png"))


SAMPLE_WRITERS: dict[str, Callable[[Any, Path, list[str] | None], None]] = {
    "image": _write_images,
    "shape": _write_meshes,
    "video": _write_clips,
    "nerf": _write_views,
}


# --------------------------------------------------------------------------------------------- reconstructions


def save_reconstructions(
    vae: AutoencoderD2C, inputs: torch.Tensor, path: Path, accelerator: Accelerator, step: int
) -> None:
    """Reconstructions of what the encoder takes; pictures and clips below those they were made from.

    Radiance fields, whose encoder takes no pictures, are shown by [`save_views`].
    """
    field = vae.decode(vae.encode(inputs).latent_dist.mode()).field
    RECONSTRUCTION_WRITERS[vae.config.modality](vae, field, inputs, path)
    _track(accelerator, path, step)


def _write_pictures(vae: AutoencoderD2C, field: NeuralField, inputs: torch.Tensor, path: Path) -> None:
    height, width = inputs.shape[-2:]
    pixels = render_pixels(
        field, height, width, vae.config.sample_size, min_scale=vae.config.min_scale, device=inputs.device
    )
    pictures = [*as_uint8(inputs.permute(0, 2, 3, 1)), *as_uint8(pixels)]
    save_image(contact_sheet(pictures, columns=len(inputs)), path.with_suffix(".png"))


def _write_videos(vae: AutoencoderD2C, field: NeuralField, inputs: torch.Tensor, path: Path) -> None:
    frames, height, width = inputs.shape[-3:]
    times = cell_centres(frames, device=inputs.device)
    pixels = render_pixels(field, height, width, vae.config.sample_size, times=times, device=inputs.device)
    rows = torch.cat([inputs.permute(0, 2, 3, 4, 1), pixels])  # (2B, T, H, W, 3)
    sheets = [contact_sheet(list(pictures), columns=len(inputs)) for pictures in as_uint8(rows.transpose(0, 1))]
    save_gif(sheets, path.with_suffix(".gif"))


def _write_shapes(vae: AutoencoderD2C, field: NeuralField, inputs: torch.Tensor, path: Path) -> None:
    meshes = extract_meshes(field, resolution=64, device=inputs.device)
    save_image(contact_sheet([render_mesh(mesh, size=192) for mesh in meshes]), path.with_suffix(".png"))


RECONSTRUCTION_WRITERS: dict[str, Callable[[AutoencoderD2C, NeuralField, torch.Tensor, Path], None]] = {
    "image": _write_pictures,
    "video": _write_videos,
    "shape": _write_shapes,
}


def save_views(
    views: Sequence[tuple[torch.Tensor, torch.Tensor]], path: Path, accelerator: Accelerator, step: int
) -> None:
    """A row of pictures of scenes, and below it their reconstructions from the same cameras.

    Args:
        views: pairs of them, `(height, width, 3)` in [0, 1]; large ones are shown smaller.
    """
    pictures = [Image.fromarray(as_uint8(view * 2 - 1)) for row in zip(*views) for view in row]
    for picture in pictures:
        picture.thumbnail((_LARGEST_VIEW, _LARGEST_VIEW))
    save_image(contact_sheet(pictures, columns=len(views)), path.with_suffix(".png"))
    _track(accelerator, path, step)


def _track(accelerator: Accelerator, path: Path, step: int) -> None:
    """Shows a picture in those trackers that take pictures."""
    path = path.with_suffix(".png")
    if not accelerator.trackers or not path.exists():
        return
    picture = np.asarray(Image.open(path).convert("RGB"))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer.add_image("validation", picture, step, dataformats="HWC")
        elif tracker.name == "wandb":
            import wandb

            tracker.log({"validation": wandb.Image(picture)}, step=step)
