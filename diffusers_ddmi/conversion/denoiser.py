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
"""Official denoisers (guided-diffusion UNets) to `UNet2DModel`, `MixedUNet2DModel` and `PlanesUNet2DModel`."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, ModelMixin, UNet2DModel

from diffusers_ddmi.conversion.mapper import ConversionError, StateMapper
from diffusers_ddmi.conversion.official_config import OfficialConfig
from diffusers_ddmi.models.unet_planes import MixedUNet2DModel, PlanesUNet2DModel


RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
JOINT_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
TIME_EMBEDDING = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}


# The published schedule names in terms of diffusers' schedulers.
BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
# Buffers of the official diffusion module that follow from its betas.
SCHEDULE_BUFFERS = (
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def noise_schedule(official: OfficialConfig) -> dict[str, Any]:
    """The official noise schedule, as diffusers' schedulers and our denoisers name it."""
    diffusion = official.diffusion
    name = diffusion["beta_schedule"]
    if name not in BETA_SCHEDULES:
        raise ConversionError(
            f"{official.name}: `ddpmconfig.beta_schedule` is {name!r}; expected one of {', '.join(BETA_SCHEDULES)}."
        )
    return {
        "num_train_timesteps": diffusion["timesteps"],
        "beta_start": diffusion["linear_start"],
        "beta_end": diffusion["linear_end"],
        "beta_schedule": BETA_SCHEDULES[name],
        "prediction_type": "epsilon",
    }


def sampling_scheduler(official: OfficialConfig) -> DDIMScheduler:
    """The official sampler: DDIM at trailing timesteps, x0 not clipped.

    Official sampling truncates its timesteps where diffusers rounds them, so the two agree for numbers of steps that
    divide the number of training timesteps.
    """
    return DDIMScheduler(
        **noise_schedule(official), timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )


def resolved_unet(official: OfficialConfig) -> dict[str, Any]:
    """`unetconfig` with the width of attention heads worked out.

    Raises:
        ConversionError: the heads have no width in common.
    """
    unet = dict(official.unet)
    if unet["num_head_channels"] != -1:
        return unet
    if unet["num_heads"] < 1 or unet["num_heads_upsample"] not in (-1, unet["num_heads"]):
        raise ConversionError(
            f"{official.name}: `unetconfig` needs `num_head_channels`, or `num_heads` with an equal "
            f"`num_heads_upsample`; got {unet['num_heads']} and {unet['num_heads_upsample']}."
        )
    attending = {unet["channel_mult"][level] for level, attends in enumerate(_attending_levels(unet)) if attends}
    widths = {unet["model_channels"] * multiplier for multiplier in attending | {unet["channel_mult"][-1]}}
    if len(widths) > 1:
        raise ConversionError(
            f"{official.name}: `unetconfig.num_heads` gives heads of different widths at the attending levels "
            f"{sorted(widths)}; only `num_head_channels`, one width for all, can be converted."
        )
    unet["num_head_channels"] = widths.pop() // unet["num_heads"]
    return unet


def _attending_levels(unet: Mapping[str, Any]) -> list[bool]:
    return [2**level in unet["attention_resolutions"] for level in range(len(unet["channel_mult"]))]


def denoiser_config(
    official: OfficialConfig, latent_shape: tuple[int, ...]
) -> tuple[type[ModelMixin], dict[str, Any]]:
    """
    Class and configuration of the denoiser that equals the official one.

    Args:
        latent_shape: of one packed latent of the autoencoder.

    Raises:
        ConversionError: the official configuration describes a network that cannot be expressed, or that does not fit the
            autoencoder.
    """
    unet = resolved_unet(official)
    for key in ("in_channels", "out_channels"):
        if unet[key] != latent_shape[0]:
            raise ConversionError(
                f"{official.name}: `unetconfig.{key}` is {unet[key]}; the latents of this autoencoder have "
                f"{latent_shape[0]} channels."
            )
    attends = _attending_levels(unet)
    config = {
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "block_out_channels": [unet["model_channels"] * multiplier for multiplier in unet["channel_mult"]],
        "layers_per_block": unet["num_res_blocks"],
        "attention_head_dim": unet["num_head_channels"],
        "dropout": unet["dropout"],
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "resnet_time_scale_shift": "scale_shift" if unet["use_scale_shift_norm"] else "default",
    }
    mixed = official.diffusion["mixed_prediction"]
    if official.domain == "video":
        planes = _video_planes(official, unet, latent_shape)
        config.update(plane_sizes=planes, attention_levels=attends, mixed_prediction=mixed, **noise_schedule(official))
        return PlanesUNet2DModel, config
    resamples = "resnet" if unet["resblock_updown"] else "conv"
    down = {True: "AttnDownBlock2D", False: "ResnetDownsampleBlock2D" if unet["resblock_updown"] else "DownBlock2D"}
    up = {True: "AttnUpBlock2D", False: "ResnetUpsampleBlock2D" if unet["resblock_updown"] else "UpBlock2D"}
    config.update(
        sample_size=latent_shape[-1],
        down_block_types=[down[level] for level in attends],
        up_block_types=[up[level] for level in reversed(attends)],
        downsample_type=resamples,
        upsample_type=resamples,
        attn_norm_num_groups=32,
    )
    if not mixed:
        return UNet2DModel, config
    return MixedUNet2DModel, {**config, **noise_schedule(official)}


def _video_planes(official: OfficialConfig, unet: Mapping[str, Any], latent_shape: tuple[int, ...]) -> list[list[int]]:
    height, width, frames = (unet[key] for key in ("size1", "size2", "size3"))
    side = official.autoencoder["resolution"] // 8
    expected = (side, side, official.frames // official.autoencoder["splits"])
    if (height, width, frames) != expected:
        raise ConversionError(
            f"{official.name}: `unetconfig.size1`, `size2`, `size3` are {(height, width, frames)}; the planes of this "
            f"autoencoder have {expected}."
        )
    return [[height, width], [frames, height], [frames, width]]


def map_diffusion(mapper: StateMapper, official: OfficialConfig) -> None:
    """Fill a denoiser from the official diffusion module: network, mixing parameters, noise schedule.

    Raises:
        ConversionError: a tensor is missing or does not fit, or the saved noise schedule is not the configured one.
    """
    _check_schedule(mapper, official)
    if official.diffusion["mixed_prediction"]:
        mapper.move("mixing_logit", "mixing.logit", torch.flatten)
    unet = resolved_unet(official)
    if official.domain == "video":
        map_planes_unet(mapper, unet)
    else:
        map_unet_2d(mapper, unet)


def _check_schedule(mapper: StateMapper, official: OfficialConfig) -> None:
    saved, configured = mapper.take("betas"), sampling_scheduler(official).betas
    if saved.shape != configured.shape or not torch.allclose(saved.float(), configured, rtol=1e-4, atol=1e-8):
        raise ConversionError(
            f"{mapper.name}: the noise schedule in the checkpoint ({len(saved)} steps, betas {saved[0]:.3g} to "
            f"{saved[-1]:.3g}) is not that of {official.name} ({len(configured)} steps, {configured[0]:.3g} to "
            f"{configured[-1]:.3g})."
        )
    for name in SCHEDULE_BUFFERS:
        mapper.take(name)


def unet_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, int, int, bool, str | None]]:
    """The layers of a guided-diffusion UNet between its first convolution and its output, in order.

    Args:
        config: the official `unetconfig`.

    Yields:
        (part, level, index of the ResNet block within the level or -1 for none, whether the layer attends within the
        plane, "down" or "up" for a change of size); part is "down" or "up".
    """
    levels = len(config["channel_mult"])
    attends = [2**level in config["attention_resolutions"] for level in range(levels)]
    for level in range(levels):
        for index in range(config["num_res_blocks"]):
            yield "down", level, index, attends[level], None
        if level < levels - 1:
            yield "down", level, -1, False, "down"
    for level in reversed(range(levels)):
        for index in range(config["num_res_blocks"] + 1):
            resamples = level and index == config["num_res_blocks"]
            yield "up", level, index, attends[level], "up" if resamples else None


class _Unet:
    """Fills one denoiser; the two public functions below differ only in the names of our layers."""

    def __init__(self, mapper: StateMapper, config: Mapping[str, Any]):
        self.mapper = mapper
        self.config = config

    def attention(self, source: str, target: str) -> None:
        """Attention whose query, key and value rows are interleaved: (heads, 3, channels per head)."""
        self.mapper.layer(f"{source}.norm", f"{target}.group_norm")
        for kind in ("weight", "bias"):
            key = f"{source}.qkv.{kind}"
            value = self.mapper.take(key)
            channels = value.shape[0] // 3
            if self.config["use_new_attention_order"]:
                parts = value.unflatten(0, (3, channels))
            else:
                heads = channels // self.config["num_head_channels"]
                parts = value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(1, 2)
            for name, part in zip(("to_q", "to_k", "to_v"), parts):
                self.mapper.put(f"{target}.{name}.{kind}", part, key)
        self.mapper.layer(f"{source}.proj_out", f"{target}.to_out.0")

    def ends(self) -> None:
        for source, target in TIME_EMBEDDING.items():
            self.mapper.layer(f"model.{source}", target)
        self.mapper.layer("model.input_blocks.0.0", "conv_in")
        self.mapper.layer("model.out.0", "conv_norm_out")
        self.mapper.layer("model.out.2", "conv_out")


def map_unet_2d(mapper: StateMapper, config: Mapping[str, Any]) -> None:
    """Fill a `UNet2DModel` or `MixedUNet2DModel` (without its mixture) from the official `unetconfig` network."""
    unet = _Unet(mapper, config)
    unet.ends()
    levels = len(config["channel_mult"])
    numbers = {"down": 0, "up": -1}
    for part, level, index, attends, resampling in unet_layers(config):
        numbers[part] += 1
        source = f"model.{'input' if part == 'down' else 'output'}_blocks.{numbers[part]}"
        target = f"down_blocks.{level}" if part == "down" else f"up_blocks.{levels - 1 - level}"
        if index >= 0:
            mapper.block(f"{source}.0", f"{target}.resnets.{index}", RESNET)
        if attends:
            unet.attention(f"{source}.1", f"{target}.attentions.{index}")
        if resampling:
            _map_resampler(mapper, source, target, resampling, 1 + attends if index >= 0 else 0, config)
    mapper.block("model.middle_block.0", "mid_block.resnets.0", RESNET)
    unet.attention("model.middle_block.1", "mid_block.attentions.0")
    mapper.block("model.middle_block.2", "mid_block.resnets.1", RESNET)


def _map_resampler(
    mapper: StateMapper, source: str, target: str, resampling: str, position: int, config: Mapping[str, Any]
) -> None:
    if config["resblock_updown"]:
        mapper.block(f"{source}.{position}", f"{target}.{resampling}samplers.0", RESNET)
    else:
        official = "op" if resampling == "down" else "conv"
        mapper.layer(f"{source}.{position}.{official}", f"{target}.{resampling}samplers.0.conv")


def map_planes_unet(mapper: StateMapper, config: Mapping[str, Any]) -> None:
    """Fill a `PlanesUNet2DModel` (without its mixture) from the official tri-plane `unetconfig` network."""
    if config["resblock_updown"]:
        raise ConversionError("`unetconfig.resblock_updown` is not supported for video.")
    unet = _Unet(mapper, config)
    unet.ends()
    numbers = {"down": 0, "up": -1}
    for part, _, index, attends, resampling in unet_layers(config):
        numbers[part] += 1
        official = "model.input" if part == "down" else "model.output"
        source = f"{official}_blocks.{numbers[part]}"
        # The first convolution has no layer of ours, so the way down counts from 0.
        target = f"{part}_layers.{numbers[part] - (part == 'down')}"
        if index >= 0:
            mapper.block(f"{source}.0", f"{target}.resnets.0", RESNET)
        if attends:
            unet.attention(f"{source}.1", f"{target}.attention")
        if resampling:
            convolution = f"{source}.{1 + attends}.conv" if resampling == "up" else f"{source}.0.op"
            mapper.layer(convolution, f"{target}.resampler.conv")
        mapper.block(f"{official}_attns.{numbers[part]}", f"{target}.joint_attention", JOINT_ATTENTION)
    mapper.block("model.middle_block.0", "mid_layer.resnets.0", RESNET)
    unet.attention("model.middle_block.1", "mid_layer.attention")
    mapper.block("model.middle_block.2", "mid_layer.resnets.1", RESNET)
    mapper.block("model.mid_attn", "mid_layer.joint_attention", JOINT_ATTENTION)
