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
"""The D2C-VAE (paper §3.1): an autoencoder from discrete data to continuous functions, E + D + π."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..modalities import get_modality
from ..outputs import D2CDecoderOutput, D2COutput
from .basis_fields import BasisFieldDecoder, BasisFields
from .checks import check_floating
from .encoders import DataEncoder
from .field import NeuralField
from .readout import READOUTS


@dataclass
class LatentDistribution(BaseOutput, DiagonalGaussianDistribution):
    """The approximate posterior over packed latents, which may be planes on channels or a sequence of tokens.

    An output whose one entry is its tensor of parameters, so that everything that walks through a model's outputs
    (accelerate's mixed precision, FSDP, `torch.export`) reaches it.

    Args:
        parameters: mean, then log-variance, on the channel axis: `(batch, 2 * channels, …)`.
    """

    parameters: torch.Tensor

    def __post_init__(self):
        super().__post_init__()
        DiagonalGaussianDistribution.__init__(self, self.parameters)

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> torch.Tensor:
        """KL divergence to the standard normal, or to `other`, summed over each item: `(batch,)`, in nats."""
        mean, logvar = self.mean.float(), self.logvar.float()  # sums overflow half precision
        if other is None:
            terms = mean.square() + logvar.exp() - 1.0 - logvar
        else:
            other_mean, other_logvar = other.mean.float(), other.logvar.float()
            terms = ((mean - other_mean).square() + logvar.exp()) / other_logvar.exp() - 1.0 - logvar + other_logvar
        return 0.5 * terms.flatten(1).sum(dim=1)

    def nll(self, sample: torch.Tensor, dims: tuple[int, ...] | None = None) -> torch.Tensor:
        """Negative log-likelihood of `sample`, summed over each item (or over `dims`): `(batch,)`, in nats."""
        return super().nll(sample, dims=list(dims or range(1, sample.ndim)))


class AutoencoderD2C(ModelMixin, AutoencoderMixin, ConfigMixin):
    r"""
    The discrete-to-continuous VAE of DDMI. `encode` turns data into a distribution of latent planes, `decode` turns
    latent planes into a [`NeuralField`].

    Arguments whose default is `None` are taken from the modality's row in `diffusers_ddmi.modalities`, where given
    there.

    Args:
        modality: `"image"`, `"shape"`, `"video"` or `"nerf"`.
        sample_size: side of the finest planes: pixels of an image or frame, cells of a point cloud's feature plane.
            Images and point clouds of other sizes can be encoded too; the latents grow with images.
        num_frames: frames of a clip; for videos.
        latent_channels: channels of a latent plane.
        bottleneck_channels: channels between latents and the networks proper.
        block_out_channels: channels of each level, fine to coarse; all but the last halve the planes.
        layers_per_block: residual blocks a level (one more in the decoder).
        stem_channels: channels after the encoder's first convolution; those of the finest level by default.
        norm_num_groups: groups of every GroupNorm.
        basis_channels: channels of a basis field.
        num_scales: scales of basis fields; 1 is a single basis field, the first row of the paper's Table 8.
        attention_heads: heads of the attention within a plane, at the coarsest level.
        plane_mixing: `"none"`, `"convolution"` or `"attention"`, see [`BasisFieldDecoder`].
        mixing_levels: at which levels, fine to coarse, planes exchange information; everywhere by default.
        mixing_heads: heads of `plane_mixing="attention"`.
        mixing_order: plane numbers in the order in which `plane_mixing="convolution"` joins channels.
        planes: the latent planes in packing order.
        encoder_planes: the planes in the order in which the encoder's output fills the latent planes. It differs from
            `planes` only in converted weights, whose encoder and decoder name planes differently.
        plane_coordinates: see [`BasisFieldDecoder`].
        extent: `(low, high)` of the coordinates that the planes span.
        upper_limit: see [`BasisFieldDecoder`].
        align_corners: see [`BasisFieldDecoder`].
        bounds: `(low, high)` where the signal lives.
        encoder_config: further arguments of the modality's encoder: [`PointEncoder`] or [`VideoEncoder`].
        readout_config: further arguments of the modality's read-out: [`StyledReadout`], [`ResidualReadout`] or
            [`RadianceReadout`]; `conditioning` among them.
        min_scale: the smallest scale input that the read-out has been trained with; finer images are read out at it.
        native_scale: the scale input at the native resolution. It differs from 1 only in converted weights whose
            `sample_size` is not 256, the resolution to which the official model relates every scale.
        last_interval_infinite: how a radiance field is rendered, in training and after it. By default the scene is
            empty outside of `bounds`, before a background. With `True`, rays are sampled from the cameras' near to far
            by the original NeRF code's quadrature, whose last interval makes every ray opaque, so that the field paints
            its own background; official weights are trained so.
        scaling_factor: the latents' inverse standard deviation; a diffusion model sees
            `(latents - shift_factor) * scaling_factor`.
        shift_factor: the latents' mean.

    Raises:
        ValueError: the modality is unknown, or sizes do not fit; the message says which.
    """

    _supports_gradient_checkpointing = True
    # What has parameters of its own beside submodules stays on one device.
    _no_split_modules = (
        "ResnetBlock2D",
        "Attention",
        "SpaceTimeBlock",
        "PlaneTransformer",
        "StyledReadout",
        "ResidualReadout",
        "RadianceReadout",
    )
    # `encode` and `decode` call these, not the model's `forward`, which a group of the remaining modules waits for.
    _group_offload_block_modules = ("encoder", "decoder", "readout")
    # Embeddings are exact gathers and coordinates stay in float32; the norms follow diffusers' autoencoders.
    _skip_layerwise_casting_patterns = ("norm", "readout")

    @register_to_config
    def __init__(
        self,
        modality: str = "image",
        sample_size: int = 32,
        num_frames: int | None = None,
        latent_channels: int = 4,
        bottleneck_channels: int = 8,
        block_out_channels: tuple[int, ...] = (32, 64, 64),
        layers_per_block: int = 1,
        stem_channels: int | None = None,
        norm_num_groups: int = 32,
        basis_channels: int = 32,
        num_scales: int = 3,
        attention_heads: int = 1,
        plane_mixing: str | None = None,
        mixing_levels: tuple[bool, ...] | None = None,
        mixing_heads: int = 8,
        mixing_order: tuple[int, ...] | None = None,
        planes: tuple[str, ...] | None = None,
        encoder_planes: tuple[str, ...] | None = None,
        plane_coordinates: tuple[str, ...] | None = None,
        extent: tuple[float, float] | None = None,
        upper_limit: float = 1.0,
        align_corners: bool | None = None,
        bounds: tuple[float, float] | None = None,
        encoder_config: dict[str, Any] | None = None,
        readout_config: dict[str, Any] | None = None,
        min_scale: float = 0.5,
        native_scale: float = 1.0,
        last_interval_infinite: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        row = get_modality(modality)
        if row.fixed_axes and num_frames is None:
            raise ValueError(f"Modality {modality!r} needs `num_frames`, the frames of a clip.")
        planes = tuple(planes or row.planes)
        mixing = row.plane_mixing if plane_mixing is None else plane_mixing
        shared = {
            "latent_channels": latent_channels,
            "bottleneck_channels": bottleneck_channels,
            "block_out_channels": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups,
            "attention_heads": attention_heads,
            "plane_mixing": None if mixing == "none" else mixing,
            "mixing_levels": mixing_levels,
            "mixing_heads": mixing_heads,
            "mixing_order": mixing_order,
        }
        self.decoder = BasisFieldDecoder(
            axes=row.axes,
            planes=planes,
            fixed_axes=row.fixed_axes,
            sample_size=sample_size,
            fixed_size=num_frames,
            basis_channels=basis_channels,
            num_scales=num_scales,
            plane_coordinates=plane_coordinates,
            extent=tuple(extent or row.extent),
            upper_limit=upper_limit,
            align_corners=row.align_corners if align_corners is None else align_corners,
            reduction=row.reduction,
            **shared,
        )
        self.layout = self.decoder.layout
        if encoder_planes is not None and sorted(encoder_planes) != sorted(planes):
            raise ValueError(f"`encoder_planes` must name the planes {planes} in some order, got {encoder_planes}.")
        self.encoder_slots = [planes.index(plane) for plane in encoder_planes or planes]
        self.encoder = DataEncoder(
            row.encoder,
            self.layout,
            row.in_channels,
            sample_size,
            num_frames,
            stem_channels,
            encoder_config or {},
            shared,
        )
        per_plane = len(planes) if row.reduction == "concat" else 1
        self.readout = READOUTS[row.readout](
            embedding_channels=basis_channels * per_plane,
            out_channels=len(row.values),
            num_scales=num_scales,
            **{**row.readout_config, **(readout_config or {})},
        )
        self.bounds = tuple(bounds or row.bounds)
        self.use_slicing = False
        self.gradient_checkpointing = False

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one packed latent at the native size, without the batch axis."""
        return self.layout.latent_shape(self.config.latent_channels)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[LatentDistribution]:
        """E: the distribution of the latent planes of a batch of data.

        Args:
            x: images `(batch, 3, height, width)` or clips `(batch, 3, frames, height, width)` in [-1, 1]; point
                clouds `(batch, points, 3)` on a surface, or `(batch, points, 6)` with colours in [0, 1].

        Returns:
            [`~diffusers.models.modeling_outputs.AutoencoderKLOutput`] with `latent_dist` over packed latents, or a
            tuple of it.

        Raises:
            TypeError: `x` is no floating-point tensor. ValueError: it does not have the modality's shape.
        """
        x = self._own_dtype("x", x)
        parts = x.split(1) if self.use_slicing and x.ndim and x.shape[0] > 1 else [x]
        posterior = LatentDistribution(torch.cat([self._encode(part) for part in parts]))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _own_dtype(self, name: str, values: torch.Tensor) -> torch.Tensor:
        check_floating(name, values)
        return values.to(self.dtype)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        moments = self.encoder(x)  # planes of (B, 2C, h, w)
        moments = [moments[slot] for slot in self.encoder_slots]
        means, logvars = zip(*(plane.chunk(2, dim=1) for plane in moments))
        return torch.cat([self.layout.pack(means), self.layout.pack(logvars)], dim=1)

    @apply_forward_hook
    def decode(self, z: torch.Tensor, return_dict: bool = True) -> D2CDecoderOutput | tuple[NeuralField]:
        """D and π: the continuous signals of a batch of packed latents.

        Args:
            z: packed latents `(batch, …)`, not standardised, see `latent_shape`.

        Returns:
            [`D2CDecoderOutput`] with `field`, or a tuple of it. Without gradients the field owns its read-out.

        Raises:
            TypeError: `z` is no floating-point tensor. ValueError: it does not have the latents' shape.
        """
        z = self._own_dtype("z", z)
        field = self._field(z)
        if not torch.is_grad_enabled():
            field = field.detach()
        return D2CDecoderOutput(field=field) if return_dict else (field,)

    def _field(self, z: torch.Tensor) -> NeuralField:
        parts = z.split(1) if self.use_slicing and z.ndim and z.shape[0] > 1 else [z]
        basis_fields = BasisFields.cat([self.decoder(part) for part in parts])
        checkpoint = self._gradient_checkpointing_func if self.gradient_checkpointing else None
        return NeuralField(basis_fields, self.readout, self.bounds, checkpoint=checkpoint)

    def forward(
        self,
        x: torch.Tensor,
        coords: torch.Tensor,
        sample_posterior: bool = True,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        scale: float | torch.Tensor | None = None,
        directions: torch.Tensor | None = None,
    ) -> D2COutput | tuple[torch.Tensor, LatentDistribution]:
        """Autoencodes data and reads the result at coordinates: what stage 1 trains, and what DDP and FSDP wrap.

        Args:
            x: data, as `encode` takes it.
            coords: `(points, axes)` or `(batch, points, axes)`.
            sample_posterior: whether latents are drawn from the posterior (else its mean).
            generator: makes the draw reproducible.
            scale: the read-out's scale input, see [`NeuralField`].
            directions: viewing directions, see [`NeuralField`].

        Returns:
            [`D2COutput`]: `sample` `(batch, points, channels)` and `posterior`, or a tuple of both.
        """
        posterior = LatentDistribution(self._encode(x))
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        sample = self._field(z)(coords, directions=directions, scale=scale)
        return D2COutput(sample=sample, posterior=posterior) if return_dict else (sample, posterior)
