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
"""Images of any size from one latent."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ..models.field import NeuralField
from ..outputs import DDMIImagePipelineOutput
from ..rendering.grids import check_region, render_pixels
from .base import DDMIPipeline, documented, present_pixels
from .checks import check_positive


class DDMIImagePipeline(DDMIPipeline):
    r"""
    Generates images as continuous functions: one latent is read out at any size, or zoomed into.

    Args:
        vae ([`AutoencoderD2C`]): of modality `"image"`.
        unet ([`~diffusers.UNet2DModel`], [`MixedUNet2DModel`] or [`~diffusers.UNet2DConditionModel`]):
            denoises the latent plane.
        scheduler: any diffusers scheduler on a variance-preserving discrete schedule.
        tokenizer, text_encoder: CLIP's, for models that take a prompt.

    Example:

    ```python
    >>> import diffusers_ddmi
    >>> from diffusers import DiffusionPipeline

    >>> pipe = DiffusionPipeline.from_pretrained("ddmi-digits")
    >>> field = pipe(batch_size=4, output_type="field").images  # functions of (x, y)
    >>> image = pipe(height=512, width=512).images[0]
    ```
    """

    modality = "image"
    output_types: ClassVar[tuple[str, ...]] = ("pil", "np", "pt", "field", "latent")
    output_class = DDMIImagePipelineOutput

    @torch.no_grad()
    @documented
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        height: int | None = None,
        width: int | None = None,
        region: tuple[float, float, float, float] | None = None,
        num_images_per_prompt: int = 1,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> DDMIImagePipelineOutput | tuple:
        r"""
        Args:
            prompt: text or texts, for models conditioned on text.
            batch_size: number of images (of each prompt).
            height, width: pixels; the VAE's `sample_size` by default. Below it, each pixel averages several readings.
            region: `(x0, y0, x1, y1)` inside [-1, 1]², the part of the image that fills `height` × `width`; x goes
                right and y down. All of it by default.
            num_images_per_prompt: multiplies `batch_size`.
            output_type: `"pil"`, `"np"` (batch, height, width, 3), `"pt"` (batch, 3, height, width), both in [0, 1];
                `"field"`, a batched [`NeuralField`] with values in [-1, 1]; or `"latent"`, the packed latents.
        """
        check_positive(batch_size=batch_size, num_images_per_prompt=num_images_per_prompt)
        return self.generate(
            prompt,
            batch_size * num_images_per_prompt,
            num_inference_steps,
            guidance_scale,
            eta,
            generator,
            latents,
            output_type,
            return_dict,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            height=height,
            width=width,
            region=region,
        )

    def check_render_inputs(self, output_type: str, height, width, region) -> dict[str, Any]:
        size = self.vae.config.sample_size
        height, width = size if height is None else height, size if width is None else width
        check_positive(height=height, width=width)
        return {"height": height, "width": width, "region": check_region(region, self.vae.bounds)}

    def render(self, field: NeuralField, output_type: str, height: int, width: int, region: tuple[float, ...]):
        """Reads a field as images `(batch, height, width, 3)`, in the form that `output_type` names."""
        config = self.vae.config
        values = render_pixels(
            lambda coords, scale: field(coords, scale=scale * config.native_scale),
            height,
            width,
            config.sample_size,
            region,
            field.bounds,
            min_scale=config.min_scale,
            device=field.device,
        )
        return DDMIImagePipelineOutput(images=present_pixels(values.add_(1).div_(2), output_type))
