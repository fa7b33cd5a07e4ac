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
"""Videos at any frame rate and size from one latent."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from ..models.field import NeuralField
from ..outputs import DDMIVideoPipelineOutput
from ..rendering.grids import cell_centres, check_region, render_pixels
from .base import DDMIPipeline, documented, present_pixels
from .checks import check_positive


class DDMIVideoPipeline(DDMIPipeline):
    r"""
    Generates videos as functions of (x, y, t): one latent is read out at any size, frame rate and moment.

    Args:
        vae ([`AutoencoderD2C`]): of modality `"video"`.
        unet ([`PlanesUNet2DModel`]): denoises the tokens of the planes xy, xt and yt.
        scheduler: any diffusers scheduler on a variance-preserving discrete schedule.
        tokenizer, text_encoder: CLIP's, for models that take a prompt.

    Example:

    ```python
    >>> import diffusers_ddmi
    >>> from diffusers import DiffusionPipeline
    >>> from diffusers.utils import export_to_gif

    >>> pipe = DiffusionPipeline.from_pretrained("ddmi-sky")
    >>> frames = pipe(num_frames=61).frames[0]
    >>> export_to_gif(frames, "slow_motion.gif", fps=15)
    ```
    """

    modality = "video"
    output_types: ClassVar[tuple[str, ...]] = ("pil", "np", "pt", "field", "latent")
    output_class = DDMIVideoPipelineOutput

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
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        time_range: tuple[float, float] | None = None,
        times: Sequence[float] | None = None,
        region: tuple[float, float, float, float] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> DDMIVideoPipelineOutput | tuple:
        r"""
        Args:
            prompt: text or texts, for models conditioned on text.
            batch_size: number of videos (of each prompt).
            num_frames: frames, evenly over `time_range`; as many as the VAE's clips have by default.
            height, width: pixels; the VAE's `sample_size` by default. Below it, each pixel averages several readings.
            time_range: `(t0, t1)` inside [-1, 1], the part of the clip that is shown; all of it by default.
            times: the moment of each frame, in [-1, 1], in place of `num_frames` and `time_range`.
            region: `(x0, y0, x1, y1)` inside [-1, 1]², the part of the frame that is shown; all of it by default.
            output_type: `"pil"`, a list of images a video; `"np"` (batch, frames, height, width, 3) or `"pt"`
                (batch, frames, 3, height, width), both in [0, 1]; `"field"`, a batched [`NeuralField`] of (x, y, t)
                with values in [-1, 1]; or `"latent"`, the packed latents.
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
            num_frames=num_frames,
            height=height,
            width=width,
            time_range=time_range,
            times=times,
            region=region,
        )

    def check_render_inputs(
        self, output_type: str, num_frames, height, width, time_range, times, region
    ) -> dict[str, Any]:
        size, bounds = self.vae.config.sample_size, self.vae.bounds
        height, width = size if height is None else height, size if width is None else width
        check_positive(height=height, width=width)
        if times is not None:
            if num_frames is not None or time_range is not None:
                raise ValueError("Pass either `times`, or `num_frames` and `time_range`, not both.")
            times = _check_times(times, bounds)
        else:
            num_frames = self.vae.config.num_frames if num_frames is None else num_frames
            check_positive(num_frames=num_frames)
            times = cell_centres(num_frames, *check_region(time_range, bounds, axes="t", name="time_range"))
        return {"height": height, "width": width, "times": times, "region": check_region(region, bounds)}

    def render(
        self, field: NeuralField, output_type: str, height: int, width: int, times: torch.Tensor, region
    ) -> DDMIVideoPipelineOutput:
        """Reads a field as frames `(batch, frames, height, width, 3)`, in the form that `output_type` names."""
        size = self.vae.config.sample_size
        values = render_pixels(field, height, width, size, region, field.bounds, times, device=field.device)
        return DDMIVideoPipelineOutput(frames=present_pixels(values.add_(1).div_(2), output_type))


def _check_times(times: Sequence[float], bounds: tuple[float, float]) -> torch.Tensor:
    """`times` as a tensor `(frames,)`; raises a `ValueError` for what is no list of moments inside the bounds."""
    try:
        moments = torch.as_tensor(times, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        moments = torch.empty(0)
    if moments.ndim != 1 or not len(moments) or not bool(((moments >= bounds[0]) & (moments <= bounds[1])).all()):
        raise ValueError(
            f"`times` must be a non-empty list of moments in [{bounds[0]:g}, {bounds[1]:g}], got {times!r}."
        )
    return moments
