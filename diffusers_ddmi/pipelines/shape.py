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
"""Shapes as watertight meshes, from text or unconditionally."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ..models.field import NeuralField
from ..outputs import DDMIShapePipelineOutput
from ..rendering.surface import check_extraction, extract_meshes
from .base import DDMIPipeline, documented


class DDMIShapePipeline(DDMIPipeline):
    r"""
    Generates 3D shapes as occupancy functions and extracts their surfaces at any resolution.

    Args:
        vae ([`AutoencoderD2C`]): of modality `"shape"`.
        unet ([`~diffusers.UNet2DModel`], [`MixedUNet2DModel`] or [`~diffusers.UNet2DConditionModel`]):
            denoises the tri-plane, its planes joined on the channel axis.
        scheduler: any diffusers scheduler on a variance-preserving discrete schedule.
        tokenizer, text_encoder: CLIP's, for models that take a prompt.

    Example:

    ```python
    >>> import diffusers_ddmi
    >>> from diffusers import DiffusionPipeline

    >>> pipe = DiffusionPipeline.from_pretrained("ddmi-furniture")
    >>> mesh = pipe("a round table with four legs").meshes[0]
    >>> mesh.export("table.glb")
    ```
    """

    modality = "shape"
    output_types: ClassVar[tuple[str, ...]] = ("trimesh", "field", "latent")
    output_class = DDMIShapePipelineOutput

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
        output_type: str = "trimesh",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature)
        resolution: int = 128,
        level: float = 0.5,
        simplify: float | int | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> DDMIShapePipelineOutput | tuple:
        r"""
        Args:
            prompt: text or texts, for models conditioned on text.
            batch_size: number of shapes (of each prompt).
            resolution: grid nodes along each axis of the box [-0.5, 0.5]³ that the surface is extracted on, 2 to 1024.
            level: occupancy probability in (0, 1) at which the surface lies; lower is thicker.
            simplify: number of faces, or part of them in (0, 1), that each mesh is reduced to; what that costs is
                told by a `UserWarning`, see [`extract_meshes`].
            output_type: `"trimesh"`, meshes with vertex normals; `"field"`, a batched [`NeuralField`] of occupancy
                logits; or `"latent"`, the packed latents.
        """
        return self.generate(
            prompt,
            batch_size,
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
            resolution=resolution,
            level=level,
            simplify=simplify,
        )

    def check_render_inputs(self, output_type: str, **options) -> dict[str, Any]:
        check_extraction(**options)
        return options

    def render(self, field: NeuralField, output_type: str, **options) -> DDMIShapePipelineOutput:
        """Extracts one mesh a shape."""
        return DDMIShapePipelineOutput(meshes=extract_meshes(field, **options))
