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
"""Radiance fields, seen from any camera or as coloured meshes."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import trimesh

from ..models.field import NeuralField
from ..outputs import DDMINeRFPipelineOutput
from ..rendering.cameras import Cameras
from ..rendering.surface import check_extraction, extract_meshes
from ..rendering.volume import OccupancyGrid, density_as_occupancy, render_views, surface_colors
from .base import DDMIPipeline, documented, present_pixels
from .checks import check_number, check_positive


# Of a surface at level ½, per side of the scene's box.
_SURFACE_DENSITY = 10.0


class DDMINeRFPipeline(DDMIPipeline):
    r"""
    Generates scenes as radiance fields and renders them from any camera.

    Args:
        vae ([`AutoencoderD2C`]): of modality `"nerf"`.
        unet ([`~diffusers.UNet2DModel`], [`MixedUNet2DModel`] or [`~diffusers.UNet2DConditionModel`]):
            denoises the tri-plane, its planes joined on the channel axis.
        scheduler: any diffusers scheduler on a variance-preserving discrete schedule.
        tokenizer, text_encoder: CLIP's, for models that take a prompt.

    Example:

    ```python
    >>> import diffusers_ddmi
    >>> from diffusers import DiffusionPipeline
    >>> from diffusers.utils import export_to_gif

    >>> pipe = DiffusionPipeline.from_pretrained("ddmi-srncars")
    >>> views = pipe(num_views=24).frames[0]
    >>> export_to_gif(views, "turntable.gif")
    ```
    """

    modality = "nerf"
    output_types: ClassVar[tuple[str, ...]] = ("pil", "np", "pt", "mesh", "field", "latent")
    output_class = DDMINeRFPipelineOutput

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
        cameras: Cameras | None = None,
        num_views: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_samples: int = 128,
        background: float | None = 1.0,
        resolution: int = 128,
        level: float = 0.5,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> DDMINeRFPipelineOutput | tuple:
        r"""
        Args:
            prompt: text or texts, for models conditioned on text.
            batch_size: number of scenes (of each prompt).
            cameras: [`~rendering.cameras.Cameras`] that see every scene.
            num_views: without `cameras`, the number of cameras on an orbit around the scene; 8 by default.
            height, width: pixels of a view, those of `cameras` or 128 by default.
            num_samples: positions along a ray's way through the scene's box, or from near to far if the VAE has
                `last_interval_infinite`. Except for these VAEs, the field is only evaluated where there is something, so
                that more of them cost little: raise them for finer surfaces.
            background: grey value in [0, 1] behind the scene, 1 is white; `None` for none (black). Fields of a VAE with
                `last_interval_infinite` paint their own.
            resolution: for `"mesh"`, grid nodes along each axis, 2 to 1024.
            level: for `"mesh"`, in (0, 1); lower is thicker. The surface lies where the density, times the side of the
                scene's box, is 10 · level / (1 − level): 10 by default, which hides half of what lies 7 % of the side
                behind it.
            output_type: `"pil"`, a list of views a scene; `"np"` (batch, views, height, width, 3) or `"pt"`
                (batch, views, 3, height, width), both in [0, 1]; `"mesh"`, coloured meshes; `"field"`, a batched
                [`NeuralField`] of points and directions; or `"latent"`, the packed latents.
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
            cameras=cameras,
            num_views=num_views,
            height=height,
            width=width,
            num_samples=num_samples,
            background=background,
            resolution=resolution,
            level=level,
        )

    def check_render_inputs(
        self, output_type: str, cameras, num_views, height, width, num_samples, background, resolution, level
    ) -> dict[str, Any]:
        check_extraction(resolution=resolution, level=level)
        check_positive(num_samples=num_samples)
        if num_samples < 2:
            raise ValueError(f"`num_samples` must be at least 2, got {num_samples}.")
        if background is not None:
            check_number("background", background, 0, 1)
        given = {"num_views": num_views, "height": height, "width": width}
        check_positive(**{name: value for name, value in given.items() if value is not None})
        if cameras is not None:
            if not isinstance(cameras, Cameras):
                raise TypeError(
                    f"`cameras` must be diffusers_ddmi.rendering.cameras.Cameras, got {type(cameras).__name__}."
                )
            if num_views is not None:
                raise ValueError("Pass either `cameras` or `num_views`, not both.")
            height = cameras.height if height is None else height
            width = cameras.width if width is None else width
            cameras = cameras.resize(height, width)
        else:
            low, high = self.vae.bounds
            cameras = Cameras.orbit(
                8 if num_views is None else num_views,
                radius=2 * (high - low),
                height=128 if height is None else height,
                width=128 if width is None else width,
            )
        if output_type == "mesh":
            return {"resolution": resolution, "level": level}
        return {"cameras": cameras, "num_samples": num_samples, "background": background}

    def render(self, field: NeuralField, output_type: str, **options) -> DDMINeRFPipelineOutput:
        """Renders the scenes' views, or extracts their coloured surfaces for `"mesh"`."""
        if output_type == "mesh":
            return DDMINeRFPipelineOutput(frames=self._meshes(field, **options))
        return self._views(field, output_type, **options)

    def _views(self, field, output_type, cameras: Cameras, num_samples: int, background) -> DDMINeRFPipelineOutput:
        config, cameras = self.vae.config, cameras.to(field.device)
        if config.last_interval_infinite:  # the field is not empty anywhere
            views = render_views(field, cameras, num_samples, background=background, last_interval_infinite=True)
        else:
            # Nothing finer than a cell of the finest planes can be in the scene.
            grid = OccupancyGrid.from_field(field, field.bounds, config.sample_size, device=field.device)
            views = render_views(field, cameras, num_samples, grid=grid, background=background, bounds=field.bounds)
        return DDMINeRFPipelineOutput(
            frames=present_pixels(views.colors, output_type), depth=views.depth[..., 0], opacity=views.opacity[..., 0]
        )

    def _meshes(self, field: NeuralField, resolution: int, level: float) -> list[trimesh.Trimesh]:
        low, high = field.bounds
        meshes = extract_meshes(
            density_as_occupancy(field, _SURFACE_DENSITY / (high - low)),
            field.batch_size,
            resolution=resolution,
            level=level,
            bounds=field.bounds,
            device=field.device,
        )
        for item, mesh in enumerate(meshes):
            if len(mesh.vertices):
                points, normals = (
                    torch.as_tensor(np.array(values), dtype=torch.float32, device=field.device)
                    for values in (mesh.vertices, mesh.vertex_normals)
                )
                colours = surface_colors(field[item], points, normals)[0].clamp(0, 1)
                mesh.visual.vertex_colors = (colours * 255).round().byte().cpu().numpy()
        return meshes
