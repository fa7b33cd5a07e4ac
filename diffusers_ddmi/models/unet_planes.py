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
"""Denoisers that diffusers' own UNets do not cover: mixed prediction, and planes of unequal size.

`MixedUNet2DModel` is `UNet2DModel` with a learned mixture of the network's output and the prediction that is optimal
for a standard normal signal (Vahdat et al., "Score-based Generative Modeling in Latent Space", section 3.2).
`PlanesUNet2DModel` runs the same 2D blocks on every plane of a packed tri-plane latent and lets the tokens of all
planes attend to each other after every block.
"""

import math

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from diffusers.models.upsampling import Upsample2D

from diffusers_ddmi.models.mixed_prediction import MixedPrediction, batch_timesteps


class MixedUNet2DModel(UNet2DModel):
    """
    diffusers' `UNet2DModel` with the learned mixed prediction of DDMI's latent diffusion model (`MixedPrediction`).

    With the defaults of `UNet2DModel` for everything else it is the published image, shape and NeRF denoiser, given its
    widths. Equal tri-planes enter joined on the channel axis.

    Args (beside those of `UNet2DModel`):
        num_train_timesteps, beta_start, beta_end, beta_schedule: noise schedule; must be that of the scheduler.
        prediction_type: what the network predicts; must be that of the scheduler.
        mixing_init: initial logit of the mixture.
    """

    _keep_in_fp32_modules = ["mixing"]  # noqa: RUF012 (diffusers' own convention)

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0015,
        beta_end: float = 0.0195,
        beta_schedule: str = "scaled_linear",
        prediction_type: str = "epsilon",
        mixing_init: float = -6.0,
    ):
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_embedding_dim,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=down_block_types,
            mid_block_type=mid_block_type,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            class_embed_type=class_embed_type,
            num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps,
        )
        self.mixing = MixedPrediction(
            out_channels, mixing_init, num_train_timesteps, beta_start, beta_end, beta_schedule, prediction_type
        )

    def unmixed(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the network alone returns for `sample` (batch, channels, height, width), before the mixture."""
        timestep = batch_timesteps(timestep, sample)
        return super().forward(sample, timestep, class_labels=class_labels, return_dict=False)[0]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple:
        """`sample` (batch, channels, height, width) at `timestep` (a number, or one per item; fractions are allowed) to
        the mixed prediction of the same shape."""
        prediction = self.unmixed(sample, timestep, class_labels)
        prediction = self.mixing(prediction, sample, batch_timesteps(timestep, sample))
        if not return_dict:
            return (prediction,)
        return UNet2DOutput(sample=prediction)


class PlanesUNetLayer(nn.Module):
    """
    One layer of `PlanesUNet2DModel`: 2D blocks shared by the planes, then attention across the tokens of all planes.

    Planes travel as a list of groups, one tensor (planes * batch, channels, height, width) for all planes of one size,
    plane-major, so that planes of equal size are one batch.
    """

    def __init__(
        self,
        resnets: list[ResnetBlock2D],
        attention: Attention | None,
        resampler: Downsample2D | Upsample2D | None,
        joint_attention: Attention,
        cross_attention: Attention | None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attention = attention
        self.resampler = resampler
        self.joint_attention = joint_attention
        self.cross_attention = cross_attention

    def forward(
        self,
        planes: list[torch.Tensor],
        temb: torch.Tensor,
        output_sizes: list[torch.Size] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        output_sizes = output_sizes or [None] * len(planes)
        batch = temb.shape[0]
        planes = [self._planewise(group, temb, size) for group, size in zip(planes, output_sizes)]

        tokens = torch.cat([self._to_tokens(group, batch) for group in planes], dim=1)  # (batch, tokens, channels)
        tokens = self.joint_attention(tokens)
        if self.cross_attention is not None:
            tokens = self.cross_attention(
                tokens, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
            )

        counts = [group.shape[0] // batch * group.shape[2] * group.shape[3] for group in planes]
        return [self._from_tokens(part, group) for part, group in zip(tokens.split(counts, dim=1), planes)]

    def _planewise(self, group: torch.Tensor, temb: torch.Tensor, output_size: torch.Size | None) -> torch.Tensor:
        temb = temb.repeat(group.shape[0] // temb.shape[0], 1)
        for index, resnet in enumerate(self.resnets):
            group = resnet(group, temb)
            if index == 0 and self.attention is not None:
                group = self.attention(group)
        if isinstance(self.resampler, Upsample2D):
            return self.resampler(group, output_size)
        return self.resampler(group) if self.resampler is not None else group

    @staticmethod
    def _to_tokens(group: torch.Tensor, batch: int) -> torch.Tensor:
        group = group.unflatten(0, (-1, batch))  # (planes, batch, channels, height, width)
        return group.permute(1, 0, 3, 4, 2).flatten(1, 3)

    @staticmethod
    def _from_tokens(tokens: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        tokens = tokens.unflatten(1, (-1, *group.shape[-2:]))  # (batch, planes, height, width, channels)
        return tokens.permute(1, 0, 4, 2, 3).reshape(group.shape)


class PlanesUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin):
    """
    A UNet for packed latents of planes of unequal size: the tri-planes xy, xt and yt of a video.

    The blocks of `UNet2DModel` are shared by the planes; after every block the tokens of all planes attend to each
    other (as in PVDM, Yu et al. 2023, on which DDMI's video model builds). Planes of equal size run as one batch.

    Args:
        plane_sizes: (height, width) of each plane, in the order in which they are packed.
        in_channels, out_channels: channels of the packed latents and of the prediction.
        block_out_channels: width of each level; every further level halves both axes of all planes.
        layers_per_block: ResNet blocks per level (one more on the way up).
        attention_levels: for each level, whether its blocks attend within a plane.
        attention_head_dim: channels per head of the attention within planes and to the prompt.
        joint_attention_heads: heads of the attention across planes; every width must be a multiple of it.
        cross_attention_dim: width of `encoder_hidden_states` (text); None for an unconditional model. Levels that attend
            within planes, and the middle, attend to the prompt.
        dropout, norm_num_groups, norm_eps, joint_norm_eps, flip_sin_to_cos, freq_shift, resnet_time_scale_shift: as in
            `UNet2DModel`; `joint_norm_eps` is the group norm's before the attention across planes.
        mixed_prediction: whether the output is the learned mixture of `MixedPrediction`; the remaining arguments are its.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]  # noqa: RUF012
    _no_split_modules = ["PlanesUNetLayer"]  # noqa: RUF012
    _keep_in_fp32_modules = ["mixing"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        plane_sizes: tuple[tuple[int, int], ...] = ((32, 32), (16, 32), (16, 32)),
        in_channels: int = 64,
        out_channels: int = 64,
        block_out_channels: tuple[int, ...] = (256, 512, 1024, 1536),
        layers_per_block: int = 2,
        attention_levels: tuple[bool, ...] = (False, True, True, True),
        attention_head_dim: int = 64,
        joint_attention_heads: int = 16,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        joint_norm_eps: float = 1e-6,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        resnet_time_scale_shift: str = "default",
        mixed_prediction: bool = True,
        mixing_init: float = -6.0,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0015,
        beta_end: float = 0.0195,
        beta_schedule: str = "scaled_linear",
        prediction_type: str = "epsilon",
    ):
        super().__init__()
        self._check_config()
        self.gradient_checkpointing = False
        time_embed_dim = 4 * block_out_channels[0]
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embed_dim)
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], kernel_size=3, padding=1)
        self._build_layers(time_embed_dim)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, block_out_channels[0], eps=norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, kernel_size=3, padding=1)
        self.mixing = None
        if mixed_prediction:
            self.mixing = MixedPrediction(
                out_channels, mixing_init, num_train_timesteps, beta_start, beta_end, beta_schedule, prediction_type
            )

    def _check_config(self) -> None:
        config = self.config
        if not config.plane_sizes or any(len(size) != 2 or min(size) < 1 for size in config.plane_sizes):
            raise ValueError(
                f"`plane_sizes` is {config.plane_sizes}; expected one (height, width) pair for each plane."
            )
        if len(config.attention_levels) != len(config.block_out_channels):
            raise ValueError(
                f"`attention_levels` {config.attention_levels} and `block_out_channels` {config.block_out_channels} must "
                "have one entry for each level."
            )
        for channels in config.block_out_channels:
            if channels % config.joint_attention_heads:
                raise ValueError(
                    f"`block_out_channels` contains {channels}, which is not a multiple of `joint_attention_heads` "
                    f"{config.joint_attention_heads}."
                )
        attending = [c for c, attends in zip(config.block_out_channels, config.attention_levels) if attends]
        for channels in [*attending, config.block_out_channels[-1]]:
            if channels % config.attention_head_dim:
                raise ValueError(
                    f"`block_out_channels` contains {channels}, which is not a multiple of `attention_head_dim` "
                    f"{config.attention_head_dim}."
                )

    def _build_layers(self, time_embed_dim: int) -> None:
        config = self.config
        widths = config.block_out_channels
        channels = widths[0]
        skips = [channels]

        self.down_layers = nn.ModuleList()
        for level, width in enumerate(widths):
            attends = config.attention_levels[level]
            for _ in range(config.layers_per_block):
                resnet = self._resnet(channels, width, time_embed_dim)
                self.down_layers.append(self._layer(width, [resnet], attends))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                resampler = Downsample2D(channels, use_conv=True, name="op")
                self.down_layers.append(self._layer(channels, [], False, resampler))
                skips.append(channels)

        resnets = [self._resnet(channels, channels, time_embed_dim) for _ in range(2)]
        self.mid_layer = self._layer(channels, resnets, True)

        self.up_layers = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.layers_per_block + 1):
                resnet = self._resnet(channels + skips.pop(), width, time_embed_dim)
                resampler = Upsample2D(width, use_conv=True) if level and index == config.layers_per_block else None
                self.up_layers.append(self._layer(width, [resnet], config.attention_levels[level], resampler))
                channels = width

    def _resnet(self, in_channels: int, out_channels: int, time_embed_dim: int) -> ResnetBlock2D:
        return ResnetBlock2D(
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=time_embed_dim,
            groups=self.config.norm_num_groups,
            eps=self.config.norm_eps,
            dropout=self.config.dropout,
            time_embedding_norm=self.config.resnet_time_scale_shift,
        )

    def _layer(
        self,
        channels: int,
        resnets: list[ResnetBlock2D],
        attends: bool,
        resampler: Downsample2D | Upsample2D | None = None,
    ) -> PlanesUNetLayer:
        config = self.config
        shared = {"norm_num_groups": config.norm_num_groups, "residual_connection": True, "bias": True}
        heads, head_dim = channels // config.attention_head_dim, config.attention_head_dim
        attention = cross_attention = None
        if attends:
            attention = Attention(channels, heads=heads, dim_head=head_dim, eps=config.norm_eps, **shared)
            if config.cross_attention_dim is not None:
                cross_attention = Attention(
                    channels,
                    cross_attention_dim=config.cross_attention_dim,
                    heads=heads,
                    dim_head=head_dim,
                    eps=config.norm_eps,
                    **shared,
                )
        joint_heads = config.joint_attention_heads
        joint_attention = Attention(
            channels, heads=joint_heads, dim_head=channels // joint_heads, eps=config.joint_norm_eps, **shared
        )
        return PlanesUNetLayer(resnets, attention, resampler, joint_attention, cross_attention)

    def unmixed(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the network alone returns for `sample` (batch, channels, tokens), before the mixture."""
        self._check_inputs(sample, encoder_hidden_states)
        # 1. time and prompt
        temb = self.time_proj(batch_timesteps(timestep, sample)).to(sample.dtype)
        temb = self.time_embedding(temb)
        if encoder_attention_mask is not None:
            # from 1 = keep, 0 = drop to an additive bias for every query token
            encoder_attention_mask = (1 - encoder_attention_mask.to(sample.dtype)).unsqueeze(1) * -10000.0
        prompt = (encoder_hidden_states, encoder_attention_mask)

        # 2. packed latents to groups of planes (planes * batch, channels, height, width)
        groups = self._groups()
        planes = [self.conv_in(plane) for plane in self._unpack(sample, groups)]

        # 3. down, middle, up
        skips = [planes]
        for layer in self.down_layers:
            planes = self._run(layer, planes, temb, None, *prompt)
            skips.append(planes)
        planes = self._run(self.mid_layer, planes, temb, None, *prompt)
        for layer in self.up_layers:
            planes = [torch.cat(pair, dim=1) for pair in zip(planes, skips.pop())]
            sizes = [skip.shape[-2:] for skip in skips[-1]] if skips else None
            planes = self._run(layer, planes, temb, sizes, *prompt)

        # 4. prediction, packed again
        planes = [self.conv_out(self.conv_act(self.conv_norm_out(group))) for group in planes]
        return self._pack(planes, groups)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple:
        """
        Args:
            sample: packed latents (batch, channels, tokens); the tokens of each plane row-major, planes in the order of
                `plane_sizes`.
            timestep: a number, or one per item; fractions are allowed.
            encoder_hidden_states: (batch, prompt tokens, cross_attention_dim), for a conditional model.
            encoder_attention_mask: (batch, prompt tokens), 1 for tokens to attend to.

        Returns:
            `UNet2DOutput` (or a tuple) with the prediction, of the shape of `sample` with `out_channels`.

        Raises:
            ValueError: `sample` does not have the configured number of tokens, or the prompt is missing or not wanted.
        """
        prediction = self.unmixed(sample, timestep, encoder_hidden_states, encoder_attention_mask)
        if self.mixing is not None:
            prediction = self.mixing(prediction, sample, batch_timesteps(timestep, sample))
        if not return_dict:
            return (prediction,)
        return UNet2DOutput(sample=prediction)

    def _check_inputs(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor | None) -> None:
        tokens = sum(math.prod(size) for size in self.config.plane_sizes)
        if sample.ndim != 3 or sample.shape[1:] != (self.config.in_channels, tokens):
            raise ValueError(
                f"`sample` has shape {tuple(sample.shape)}; expected (batch, {self.config.in_channels}, {tokens}): packed "
                f"planes of the sizes {[tuple(size) for size in self.config.plane_sizes]}."
            )
        conditional = self.config.cross_attention_dim is not None
        if conditional and encoder_hidden_states is None:
            raise ValueError("This model was built with `cross_attention_dim`; pass `encoder_hidden_states`.")
        if not conditional and encoder_hidden_states is not None:
            raise ValueError(
                "`encoder_hidden_states` was given, but this model was built without `cross_attention_dim`."
            )

    def _run(self, layer: PlanesUNetLayer, *args) -> list[torch.Tensor]:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(layer, *args)
        return layer(*args)

    def _groups(self) -> list[list[int]]:
        """Indices of the planes of each size, in the order of first appearance."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self.config.plane_sizes):
            groups.setdefault(tuple(size), []).append(index)
        return list(groups.values())

    def _unpack(self, sample: torch.Tensor, groups: list[list[int]]) -> list[torch.Tensor]:
        sizes = [tuple(size) for size in self.config.plane_sizes]
        planes = sample.split([math.prod(size) for size in sizes], dim=-1)
        planes = [plane.unflatten(-1, size) for plane, size in zip(planes, sizes)]
        return [torch.cat([planes[index] for index in group]) for group in groups]

    @staticmethod
    def _pack(planes: list[torch.Tensor], groups: list[list[int]]) -> torch.Tensor:
        unordered = {
            index: plane.flatten(-2)
            for group, tensor in zip(groups, planes)
            for index, plane in zip(group, tensor.chunk(len(group)))
        }
        return torch.cat([unordered[index] for index in range(len(unordered))], dim=-1)
