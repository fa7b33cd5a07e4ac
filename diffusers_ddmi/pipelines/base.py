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
"""What every modality's pipeline shares: prompt → latents → denoise → field → `render`."""

import inspect
import os
import tempfile
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..models.autoencoder_d2c import AutoencoderD2C
from ..models.field import NeuralField
from ..models.unet_planes import MixedUNet2DModel, PlanesUNet2DModel
from .checks import (
    check_callback,
    check_embeddings,
    check_generator,
    check_latents,
    check_number,
    check_positive,
    check_texts,
    check_tokens,
)
from .hub import full_repo_id, strip_local_paths, upload, write_model_card, write_remote_code


logger = logging.get_logger(__name__)

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

_CALL_ARGS = """
            num_inference_steps: denoising steps.
            guidance_scale: weight w of classifier-free guidance, ε(∅) + w (ε(prompt) − ε(∅)); off at 1 or below and
                without a prompt.
            negative_prompt: what guidance moves away from, in place of the empty prompt.
            eta: DDIM's η, for schedulers that have it.
            generator: the only source of randomness; or a list, one for each sample.
            latents: initial noise `(batch, *vae.latent_shape)`.
            prompt_embeds, negative_prompt_embeds: hidden states `(batch, tokens, channels)` in place of the texts.
            return_dict: whether to return an output object instead of a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step; may return
                changed tensors.
            callback_on_step_end_tensor_inputs: the tensors it gets, among `"latents"`, `"prompt_embeds"` and
                `"negative_prompt_embeds"`.

        Raises:
            ValueError, TypeError: an argument does not fit; the message names its value and what was expected.
"""


def documented(call: Callable) -> Callable:
    """Completes the docstring of a pipeline's `__call__` with the arguments that all modalities share."""
    call.__doc__ = call.__doc__.rstrip() + _CALL_ARGS
    return call


def present_pixels(pixels: torch.Tensor, output_type: str) -> Any:
    """Pixels in the form that `output_type` names.

    Args:
        pixels: `(batch, …, height, width, 3)`; clamped to [0, 1].
        output_type: `"pt"` moves the channels before height and width; `"np"`; or `"pil"`, lists of images nested like
            the leading axes.
    """
    pixels = pixels.clamp(0, 1)
    if output_type == "pt":
        return pixels.movedim(-1, -3)
    pixels = pixels.float().cpu().numpy()
    if output_type == "np":
        return pixels
    if pixels.ndim == 4:
        return VaeImageProcessor.numpy_to_pil(pixels)
    return [present_pixels(torch.from_numpy(part), "pil") for part in pixels]


class DDMIPipeline(DiffusionPipeline):
    """Generates continuous signals: a diffusion model makes latent planes, the D2C-VAE turns them into fields.

    Subclasses name their modality, outputs and output types, and render a field; everything else is here.

    Args:
        vae: decodes latent planes to a [`NeuralField`].
        unet: denoises packed latents; one with cross-attention for generation from text.
        scheduler: any diffusers scheduler on a variance-preserving discrete schedule.
        tokenizer, text_encoder: CLIP's, for models that take a prompt.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["tokenizer", "text_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    modality: ClassVar[str]
    output_types: ClassVar[tuple[str, ...]]
    output_class: ClassVar[type[BaseOutput]]

    def __init__(
        self,
        vae: AutoencoderD2C,
        unet: UNet2DModel | MixedUNet2DModel | PlanesUNet2DModel | UNet2DConditionModel,
        scheduler: SchedulerMixin,
        tokenizer: CLIPTokenizer | None = None,
        text_encoder: CLIPTextModel | None = None,
    ):
        super().__init__()
        if vae is not None and vae.config.get("modality") != self.modality:
            raise ValueError(
                f"{type(self).__name__} needs an AutoencoderD2C of modality {self.modality!r}, got "
                f"{type(vae).__name__} of modality {vae.config.get('modality')!r}."
            )
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, tokenizer=tokenizer, text_encoder=text_encoder)

    @property
    def guidance_scale(self) -> float:
        """The weight of guidance; a callback may change it by setting `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set to `True` by a callback to skip the remaining steps."""
        return self._interrupt

    @property
    def takes_text(self) -> bool:
        """Whether the denoiser is conditioned on text."""
        return self.unet is not None and bool(self.unet.config.get("cross_attention_dim"))

    def render(self, field: NeuralField, output_type: str, **options) -> BaseOutput:
        """Shows a batched field as `output_type`; `options` are those that `check_render_inputs` returned."""
        raise NotImplementedError(f"{type(self).__name__} does not render.")

    @torch.no_grad()
    def generate(
        self,
        prompt: str | list[str] | None,
        batch_size: int,
        num_inference_steps: int,
        guidance_scale: float,
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        output_type: str,
        return_dict: bool,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        **render_options,
    ) -> BaseOutput | tuple:
        """The whole of a call; subclasses' `__call__` document the arguments."""
        # 1. Check everything before any work
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if callback_on_step_end_tensor_inputs is None:
            callback_on_step_end_tensor_inputs = ["latents"]
        prompt, batch_size = self.check_inputs(
            prompt,
            batch_size,
            num_inference_steps,
            guidance_scale,
            eta,
            generator,
            latents,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
        )
        render_options = self.check_render_inputs(output_type, **render_options)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        device = self._execution_device

        # 2. Text
        if self.takes_text:
            guided = guidance_scale > 1 and (prompt is not None or prompt_embeds is not None)
            if prompt is None and prompt_embeds is None:
                prompt = [""]  # as in training with prompt dropout
            repeats = batch_size // len(prompt if prompt_embeds is None else prompt_embeds)
            prompt_embeds, negative_prompt_embeds = self.encode_prompt(
                prompt, device, repeats, guided, negative_prompt, prompt_embeds, negative_prompt_embeds
            )

        # 3. Timesteps and initial noise
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        latents = self.prepare_latents(batch_size, device, generator, latents)
        step_options = self.prepare_step_options(generator, eta)

        # 4. Denoise
        warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                guided = self.guidance_scale > 1 and negative_prompt_embeds is not None
                model_input = torch.cat([latents] * 2) if guided else latents
                model_input = self.scheduler.scale_model_input(model_input, t)
                embeds = torch.cat([negative_prompt_embeds, prompt_embeds]) if guided else prompt_embeds
                prediction = self.predict(model_input, t, embeds)
                if guided:  # classifier-free guidance (paper §4.2)
                    unconditional, conditional = prediction.chunk(2)
                    prediction = unconditional + self.guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(prediction, t, latents, **step_options, return_dict=False)[0]

                if callback_on_step_end is not None:
                    available = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        kwargs[name] = available[name]
                    changed = callback_on_step_end(self, i, t, kwargs) or {}
                    latents = changed.pop("latents", latents)
                    prompt_embeds = changed.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = changed.pop("negative_prompt_embeds", negative_prompt_embeds)

                if i == len(timesteps) - 1 or (i + 1 > warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()

        # 5. Decode and show
        if output_type == "latent":
            output = self.output_class(latents)
        else:
            field = self.decode_latents(latents)
            output = (
                self.output_class(field)
                if output_type == "field"
                else self.render(field, output_type, **render_options)
            )
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def decode_latents(self, latents: torch.Tensor) -> NeuralField:
        """Standardised packed latents `(batch, …)` to fields."""
        config = self.vae.config
        latents = latents.to(self.vae.dtype) / config.scaling_factor + config.shift_factor
        return self.vae.decode(latents).field

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """The denoiser's prediction, in the dtype of `latents`."""
        conditions = {"encoder_hidden_states": prompt_embeds} if self.takes_text else {}
        prediction = self.unet(latents.to(self.unet.dtype), timestep, **conditions, return_dict=False)[0]
        return prediction.to(latents.dtype)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Prompts to the hidden states that the denoiser attends to. Needs the text encoder alone.

        Args:
            prompt: text or texts; none are needed with `prompt_embeds`.
            device: where the results are; that of the pipeline by default.
            num_images_per_prompt: how often each prompt is repeated.
            do_classifier_free_guidance: whether negative ones are needed.
            negative_prompt: text, or one for each prompt; empty by default.
            prompt_embeds, negative_prompt_embeds: results of an earlier call, only to be repeated.

        Returns:
            `prompt_embeds` and `negative_prompt_embeds`, each `(prompts * num_images_per_prompt, tokens, channels)`,
            or `None` where there is nothing to encode.
        """
        if prompt is None and prompt_embeds is None:
            return prompt_embeds, negative_prompt_embeds
        device = device or self._execution_device
        if prompt_embeds is None:
            prompt_embeds = self._encode_text([prompt] if isinstance(prompt, str) else prompt, device)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""]
            negative_prompt_embeds = self._encode_text(negative, device)
            if len(negative) == 1:
                negative_prompt_embeds = negative_prompt_embeds.expand(len(prompt_embeds), -1, -1)
        dtype = self.text_encoder.dtype if self.unet is None else self.unet.dtype
        prompt_embeds = prompt_embeds.to(device, dtype).repeat_interleave(num_images_per_prompt, dim=0)
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.to(device, dtype)
            negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
        return prompt_embeds, negative_prompt_embeds

    def _encode_text(self, texts: list[str], device: torch.device) -> torch.Tensor:
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError(
                "This pipeline has no text encoder for the negative prompt; pass `negative_prompt_embeds` beside "
                "`prompt_embeds`, or `guidance_scale=1`."
            )
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        full = self.tokenizer(texts, padding="longest", return_tensors="pt").input_ids
        if full.shape[1] > length:
            dropped = self.tokenizer.batch_decode(full[:, length - 1 : -1], skip_special_tokens=True)
            dropped = [text for text in dropped if text.strip()]
            if dropped:
                logger.warning(
                    f"The text encoder reads {length} tokens; this part of the prompt was cut off: {dropped}"
                )
        return self.text_encoder(tokens.input_ids.to(device))[0]

    def prepare_latents(
        self,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Initial noise `(batch_size, *vae.latent_shape)`, scaled for the scheduler."""
        if latents is None:
            shape = (batch_size, *self.vae.latent_shape)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        else:
            latents = latents.to(device=device, dtype=self.unet.dtype)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def prepare_step_options(self, generator, eta: float) -> dict[str, Any]:
        """What this scheduler's `step` accepts of `eta` and `generator`."""
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {"eta": eta, "generator": generator}
        return {name: value for name, value in options.items() if name in accepted}

    def check_inputs(
        self,
        prompt,
        batch_size,
        num_inference_steps,
        guidance_scale,
        eta,
        generator,
        latents,
        output_type,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
        negative_prompt,
        prompt_embeds,
        negative_prompt_embeds,
    ) -> tuple[list[str] | None, int]:
        """Raises for what cannot work; returns the list of prompts (or `None`) and the number of samples."""
        if output_type not in self.output_types:
            raise ValueError(f"`output_type` must be one of {', '.join(self.output_types)}, got {output_type!r}.")
        check_positive(batch_size=batch_size, num_inference_steps=num_inference_steps)
        check_number("guidance_scale", guidance_scale)
        check_number("eta", eta, 0, 1)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        self.check_scheduler()
        trained = self.scheduler.config.num_train_timesteps
        if num_inference_steps > trained:
            raise ValueError(
                f"`num_inference_steps` must not exceed the {trained} timesteps of the scheduler's noise schedule, got "
                f"{num_inference_steps}."
            )
        prompt, batch_size = self._check_prompt(
            prompt, batch_size, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        if guidance_scale > 1 and self.tokenizer is not None:
            check_tokens(prompt_embeds, negative_prompt_embeds, self.tokenizer.model_max_length)
        check_generator(generator, batch_size)
        check_latents(latents, (batch_size, *self.vae.latent_shape))
        return prompt, batch_size

    def _check_prompt(
        self, prompt, batch_size, negative_prompt, prompt_embeds, negative_prompt_embeds
    ) -> tuple[list[str] | None, int]:
        if prompt is None and prompt_embeds is None:
            for name, negative in (
                ("negative_prompt", negative_prompt),
                ("negative_prompt_embeds", negative_prompt_embeds),
            ):
                if negative is not None:
                    got = tuple(negative.shape) if isinstance(negative, torch.Tensor) else repr(negative)
                    raise ValueError(f"`{name}` has no effect without a `prompt`, got {got}.")
            if self.takes_text and self.text_encoder is None:
                raise ValueError(
                    "This denoiser attends to text, but the pipeline has no text encoder; pass `prompt_embeds`, or "
                    "load the pipeline with its `tokenizer` and `text_encoder`."
                )
            return None, batch_size
        if not self.takes_text:
            got = f"`prompt_embeds` {type(prompt_embeds).__name__}" if prompt is None else f"the prompt {prompt!r}"
            raise ValueError(
                f"Got {got}, but this model was not trained on text: its {type(self.unet).__name__} has no "
                "cross-attention. Leave the prompt out, or load a text-conditioned pipeline."
            )
        if prompt is not None and prompt_embeds is not None:
            raise ValueError("Pass either `prompt` or `prompt_embeds`, not both.")
        if prompt is not None and (self.text_encoder is None or self.tokenizer is None):
            raise ValueError(
                "A prompt needs the pipeline's `tokenizer` and `text_encoder`, and this pipeline has no text encoder."
            )
        if prompt_embeds is not None:
            check_embeddings("prompt_embeds", prompt_embeds, self.unet.config.cross_attention_dim)
        else:
            check_texts("prompt", prompt)
            prompt = [prompt] if isinstance(prompt, str) else prompt
        count = len(prompt if prompt_embeds is None else prompt_embeds)
        self._check_negative(count, prompt_embeds, negative_prompt, negative_prompt_embeds)
        return prompt, count * batch_size

    def _check_negative(self, count: int, prompt_embeds, negative_prompt, negative_prompt_embeds) -> None:
        if negative_prompt is not None:
            check_texts("negative_prompt", negative_prompt)
        if isinstance(negative_prompt, list) and len(negative_prompt) not in (1, count):
            raise ValueError(
                f"Got {len(negative_prompt)} negative prompts for {count} prompts; give one, or one for each."
            )
        if negative_prompt_embeds is None:
            return
        check_embeddings("negative_prompt_embeds", negative_prompt_embeds, self.unet.config.cross_attention_dim)
        if len(negative_prompt_embeds) != count:
            raise ValueError(
                f"Got {len(negative_prompt_embeds)} `negative_prompt_embeds` for {count} prompts; give one for each."
            )
        if prompt_embeds is not None and negative_prompt_embeds.shape != prompt_embeds.shape:
            raise ValueError(
                "`prompt_embeds` and `negative_prompt_embeds` must have the same shape, got "
                f"{tuple(prompt_embeds.shape)} and {tuple(negative_prompt_embeds.shape)}."
            )

    def check_scheduler(self) -> None:
        """Raises for a scheduler that steps along a different process than the denoiser was trained on."""
        config, name = self.scheduler.config, type(self.scheduler).__name__
        prediction = config.get("prediction_type", "epsilon")
        trained = self.unet.config.get("prediction_type", prediction)
        if not hasattr(self.scheduler, "alphas_cumprod") or config.get("use_flow_sigmas", False):
            raise ValueError(
                f"{name} does not fit: the denoiser was trained on a variance-preserving discrete noise schedule, which "
                "schedulers for flow matching, EDM preconditioning or continuous SDEs do not follow. Use one that has "
                "`alphas_cumprod`, such as DDIMScheduler, by `from_config(pipe.scheduler.config)`."
            )
        if prediction not in PREDICTION_TYPES or trained != prediction:
            raise ValueError(
                f"{name} is set to prediction_type={prediction!r}; this denoiser predicts {trained!r} and schedulers "
                f"may use one of {PREDICTION_TYPES}. Create it by `from_config(pipe.scheduler.config)`."
            )

    def check_render_inputs(self, output_type: str, **options) -> dict[str, Any]:
        """Raises for options that cannot be rendered; returns those that `render` is to get."""
        return options

    def save_pretrained(self, save_directory: str | os.PathLike, *args, remote_code: bool = False, **kwargs) -> None:
        """Saves the pipeline as an ordinary diffusers folder with a model card.

        Args:
            save_directory: folder, created if needed.
            remote_code: makes a separate kind of folder, for processes that have diffusers_ddmi installed but never
                import it: they load it with `trust_remote_code=True`, and nobody can load it without.
            args, kwargs: as for [`~diffusers.DiffusionPipeline.save_pretrained`], `push_to_hub` and `repo_id` included.
        """
        push = kwargs.pop("push_to_hub", False)
        repo_id = kwargs.pop("repo_id", None) or os.path.basename(os.path.normpath(save_directory))
        hub = {k: kwargs.pop(k) for k in ("commit_message", "create_pr", "token") if k in kwargs}
        private = kwargs.pop("private", None)
        if push:
            repo_id = full_repo_id(repo_id, private, hub.get("token"))
        super().save_pretrained(save_directory, *args, **kwargs)
        strip_local_paths(save_directory)
        write_model_card(self, save_directory, repo_id)
        if remote_code:
            write_remote_code(self, save_directory)
        if push:
            upload(save_directory, repo_id, **hub)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Saves to a temporary folder and uploads it; arguments as for `save_pretrained`. Returns the commit's URL."""
        hub = {k: kwargs.pop(k) for k in ("commit_message", "create_pr", "token") if k in kwargs}
        repo_id = full_repo_id(repo_id, kwargs.pop("private", None), hub.get("token"))
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repo_id, **kwargs)
            return upload(folder, repo_id, **hub)
