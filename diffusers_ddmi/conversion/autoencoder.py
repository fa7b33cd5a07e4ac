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
"""Official first-stage networks (autoencoder, point encoder, read-out MLP) to `AutoencoderD2C`.

Where the official code is peculiar, the configuration says so, and models trained here do not share it:

* Planes are joined as (xy, yz, xz) inside of the tri-plane networks (`mixing_order`), and embeddings are concatenated in
  that order; the columns of the read-out's weights are sorted by plane here.
* The latent planes' order depends on modality and stage (`encoder_planes`, see `ENCODER_PLANES`).
* In the video encoder the planes called xt and yt hold (t, y) and (t, x); its transformers return their first token and
  its embedding of time is no rotation. The read-out samples both planes with their axes crossed (`plane_coordinates`).
* The image read-out takes 256 / resolution as its scale, whatever size it was trained at (`native_scale`), and adds noise
  to its features (`noise_injection`; our pipelines leave it out, as fields are functions).
* The leaky ReLUs of the radiance MLP have slope 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_ddmi.conversion.mapper import ConversionError, StateMapper
from diffusers_ddmi.conversion.official_config import OfficialConfig


MODALITIES = {"image": "image", "occupancy": "shape", "video": "video", "nerf": "nerf"}
TRIPLANE = ("xy", "xz", "yz")
# Which encoder plane fills each latent plane: (domain, stage). Our names; decoders read xy, xz, yz (xy, xt, yt) always.
ENCODER_PLANES = {
    ("occupancy", 1): ("xy", "yz", "xz"),
    ("occupancy", 2): ("xy", "xz", "yz"),
    ("nerf", 1): ("xy", "yz", "xz"),
    ("nerf", 2): ("xy", "yz", "xz"),
    ("video", 1): ("xy", "yt", "xt"),
    ("video", 2): ("xy", "yt", "xt"),
}
# How coordinates fall onto the planes. Shapes: ConvONet's padding of 0.1 around the unit cube, fixed in the read-out.
GEOMETRY = {
    "image": {"extent": [-1.0, 1.0], "align_corners": False, "bounds": [-1.0, 1.0]},
    "occupancy": {
        "extent": [-0.550005, 0.550005],
        "align_corners": True,
        "upper_limit": 1 - 1e-5,
        "bounds": [-0.5, 0.5],
    },
    "video": {"extent": [-1.0, 1.0], "align_corners": True, "bounds": [-1.0, 1.0]},
    # World units over 3.5 drive the planes. The objects themselves lie within half a unit, and the official rays begin
    # at 2 and end at 6 around them: the default orbit of a box of this size has the radius 4.
    "nerf": {"extent": [-3.5, 3.5], "align_corners": True, "bounds": [-1.0, 1.0], "last_interval_infinite": True},
}
PLANE_MIXING = {"image": "none", "occupancy": "convolution", "video": "attention", "nerf": "convolution"}
ATTENTION_HEADS = {"vanilla": 1, "vanilla-multihead": 16}
# Fixed in the official video encoder, whatever its configuration.
VIDEO_PATCH_SIZE = 8
SPACE_TIME_DEPTH = 8
PLANE_DEPTH = 4

RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
FULLY_CONNECTED = {"fc_0": "linear_in", "fc_1": "linear_out", "shortcut": "shortcut"}
TRANSFORMER_ATTENTION = {"norm": "norm", "fn.to_qkv": "to_qkv", "fn.to_out.0": "to_out"}
TRANSFORMER_FEED_FORWARD = {"norm": "norm", "fn.net.0": "feed_forward.net.0.proj", "fn.net.3": "feed_forward.net.2"}


def autoencoder_config(official: OfficialConfig, encoder_planes: Sequence[str] | None) -> dict[str, Any]:
    """The configuration of the `AutoencoderD2C` that equals the official first-stage networks.

    Raises:
        ConversionError: the official configuration describes a network that it cannot express.
    """
    settings = official.autoencoder
    levels = _level_sizes(official)
    heads = _attention_heads(official)
    config = {
        "modality": MODALITIES[official.domain],
        "sample_size": settings["resolution"],
        "latent_channels": official.embed_dim,
        "bottleneck_channels": settings["z_channels"],
        "block_out_channels": [settings["ch"] * multiplier for multiplier in settings["ch_mult"]],
        "stem_channels": settings["ch"],
        "layers_per_block": settings["num_res_blocks"],
        "norm_num_groups": 32,
        "basis_channels": settings["out_ch"],
        "num_scales": _num_scales(official, levels),
        "attention_heads": heads,
        "plane_mixing": PLANE_MIXING[official.domain],
        "readout_config": _readout_config(official),
        **GEOMETRY[official.domain],
    }
    if official.domain == "image":
        # Every scale is relative to 256 pixels there, and goes into the read-out as it is.
        config.update(native_scale=256 / settings["resolution"], min_scale=0.0)
    else:
        config["mixing_levels"] = [size in settings["inter_attn_resolutions"] for size in levels]
        config["encoder_planes"] = list(encoder_planes)
    if official.domain == "video":
        return {**config, **_video_config(official)}
    if official.domain in ("occupancy", "nerf"):
        config["mixing_order"] = [0, 2, 1]
        config["encoder_config"] = _point_encoder_config(official)
    return config


def _level_sizes(official: OfficialConfig) -> list[int]:
    """Cells of a plane at each level, fine to coarse."""
    settings = official.autoencoder
    sizes = [settings["resolution"] // 2**level for level in range(len(settings["ch_mult"]))]
    attending = sorted(set(settings["attn_resolutions"]) & set(sizes))
    if attending:
        raise ConversionError(
            f"{official.name}: `ddconfig.attn_resolutions` asks for attention at {attending}; only attention at the "
            "coarsest level can be converted."
        )
    return sizes


def _attention_heads(official: OfficialConfig) -> int:
    kind = official.autoencoder["attn_type"]
    known = {"vanilla": 1} if official.domain in ("occupancy", "nerf") else ATTENTION_HEADS
    if kind not in known:
        raise ConversionError(
            f"{official.name}: `ddconfig.attn_type` is {kind!r}; expected one of {', '.join(known)}."
        )
    return known[kind]


def _num_scales(official: OfficialConfig, levels: list[int]) -> int:
    """Scales of basis fields: the finest level and those that `hdbf_resolutions` names, which must follow it."""
    named = sorted(set(official.autoencoder["hdbf_resolutions"]) & set(levels), reverse=True)
    if named != levels[1 : len(named) + 1]:
        raise ConversionError(
            f"{official.name}: `ddconfig.hdbf_resolutions` {official.autoencoder['hdbf_resolutions']} must name the levels "
            f"after the finest, out of {levels}."
        )
    expected = 1 if official.domain == "nerf" else 3
    if len(named) + 1 != expected:
        raise ConversionError(
            f"{official.name}: `ddconfig.hdbf_resolutions` gives {len(named) + 1} basis fields; the official read-out for "
            f"{official.domain!r} reads {expected}."
        )
    return expected


def _readout_config(official: OfficialConfig) -> dict[str, Any]:
    settings = official.readout
    basis_channels = official.autoencoder["out_ch"]
    if official.domain == "nerf":
        frequencies = official.radiance["multires"]
        expected = 3 * basis_channels + 3 + 6 * frequencies
        _insist(official, "mlpconfig.in_channels_xyz", settings["in_channels_xyz"], expected)
        return {
            "hidden_channels": settings["W"],
            "num_layers": settings["D"],
            "skips": list(settings["skips"]),
            "position_frequencies": frequencies,
            "direction_frequencies": official.radiance["multires_views"],
            "negative_slope": 1.0,
        }
    _insist(official, "mlpconfig.latent_dim", settings["latent_dim"], basis_channels)
    _insist(official, "mlpconfig.out_ch", settings["out_ch"], 1 if official.domain == "occupancy" else 3)
    config = {"hidden_channels": settings["ch"]}
    if official.domain == "image":
        _insist(official, "mlpconfig.in_ch", settings["in_ch"], 2)
        config["noise_injection"] = True
    elif official.domain == "occupancy":
        _insist(official, "mlpconfig.in_ch", settings["in_ch"], 3)
        config.update(coordinate_channels=3, final_slope=None)
    else:
        config["final_slope"] = 0.2
    return config


def _point_encoder_config(official: OfficialConfig) -> dict[str, Any]:
    points = official.points
    _insist(official, "the point encoder's `data.dim`", points["dim"], 3 if official.domain == "occupancy" else 6)
    _insist(official, "the point encoder's `c_dim`", points["c_dim"], official.autoencoder["in_channels"])
    _insist(official, "the point encoder's `plane_resolution`", points["plane_resolution"], _resolution(official))
    return {
        "hidden_channels": points["hidden_dim"],
        "out_channels": points["c_dim"],
        "num_blocks": points["n_blocks"],
        "padding": points["padding"],
    }


def _video_config(official: OfficialConfig) -> dict[str, Any]:
    settings = official.autoencoder
    _insist(official, "ddconfig.patch_size", settings["patch_size"], VIDEO_PATCH_SIZE)
    _insist(official, "the number of levels in `ddconfig.ch_mult`", len(settings["ch_mult"]), 4)
    if _resolution(official) == 128:
        raise ConversionError(f"{official.name}: the official video model does not run at `resolution` 128.")
    if official.frames % settings["splits"]:
        raise ConversionError(
            f"{official.name}: {official.frames} frames do not divide into {settings['splits']} splits."
        )
    return {
        "num_frames": official.frames // settings["splits"],
        "mixing_heads": 8,
        # Width and height of the second and third plane are driven by (t, x) and (t, y), although they hold (x, t), (y, t).
        "plane_coordinates": ["xy", "tx", "ty"],
        "encoder_config": {
            "patch_size": VIDEO_PATCH_SIZE,
            "hidden_channels": settings["timesformer_channels"],
            "depth": SPACE_TIME_DEPTH,
            "plane_depth": PLANE_DEPTH,
            "read_first": True,
            "paired_time_rotary": False,
        },
    }


def _resolution(official: OfficialConfig) -> int:
    return official.autoencoder["resolution"]


def _insist(official: OfficialConfig, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ConversionError(
            f"{official.name}: {what} is {found!r}; the rest of the configuration asks for {expected!r}."
        )


def map_autoencoder(mapper: StateMapper, official: OfficialConfig) -> None:
    """
    Fill an `AutoencoderD2C` from a source whose keys begin with "vaemodel.", "mlp." and, with points, "pointnet.".
    """
    if official.domain == "image":
        _map_trunks(mapper, official, ["quant_conv"], ["post_quant_conv"])
        _map_styled_readout(mapper)
    elif official.domain == "video":
        _map_video_encoder(mapper)
        _map_decoder(mapper, official, [f"post_{plane}" for plane in ("xy", "xt", "yt")])
        _map_residual_readout(mapper, official, ("xy", "yt", "xt"), ("xy", "xt", "yt"))
    else:
        _map_point_encoder(mapper, official)
        moments, latents = ([f"{name}_{plane}" for plane in TRIPLANE] for name in ("quant_conv", "post_quant_conv"))
        _map_trunks(mapper, official, moments, latents)
        if official.domain == "nerf":
            _map_radiance_readout(mapper, official)
        else:
            mapper.layer("mlp.net_p", "readout.input_map")
            _map_residual_readout(mapper, official, None, None)


def _map_trunks(mapper: StateMapper, official: OfficialConfig, moments: list[str], latents: list[str]) -> None:
    source, target = "vaemodel.encoder", "encoder.planes"
    mapper.layer(f"{source}.conv_in", f"{target}.conv_in")
    for level in range(len(official.autoencoder["ch_mult"])):
        _map_level(mapper, official, f"{source}.down.{level}", f"{target}.stages.{level}", 0)
        if level < len(official.autoencoder["ch_mult"]) - 1:
            mapper.layer(f"{source}.down.{level}.downsample.conv", f"{target}.stages.{level}.downsample.conv")
    _map_middle(mapper, source, f"{target}.middle")
    mapper.layer(f"{source}.norm_out", f"{target}.norm_out")
    mapper.layer(f"{source}.conv_out", f"{target}.conv_out")
    for plane, name in enumerate(moments):
        mapper.layer(f"vaemodel.{name}", f"{target}.moment_heads.{plane}")
    _map_decoder(mapper, official, latents)


def _map_decoder(mapper: StateMapper, official: OfficialConfig, latents: list[str]) -> None:
    source, target = "vaemodel.decoder", "decoder.trunk"
    levels = len(official.autoencoder["ch_mult"])
    scales = _num_scales(official, _level_sizes(official))
    for plane, name in enumerate(latents):
        mapper.layer(f"vaemodel.{name}", f"{target}.latent_heads.{plane}")
    mapper.layer(f"{source}.conv_in", f"{target}.conv_in")
    _map_middle(mapper, source, f"{target}.middle")
    for level in reversed(range(levels)):
        stage = f"{target}.stages.{levels - 1 - level}"
        _map_level(mapper, official, f"{source}.up.{level}", stage, 1)
        if level:
            mapper.layer(f"{source}.up.{level}.upsample.conv", f"{stage}.upsample.conv")
        if 0 < level < scales:
            mapper.layer(f"{source}.up.{level}.hdbf.0", f"{target}.basis_heads.{scales - 1 - level}")
    mapper.layer(f"{source}.norm_out", f"{target}.norm_out")
    mapper.layer(f"{source}.conv_out", f"{target}.conv_out")


def _map_level(mapper: StateMapper, official: OfficialConfig, source: str, target: str, more_blocks: int) -> None:
    for index in range(official.autoencoder["num_res_blocks"] + more_blocks):
        mapper.block(f"{source}.block.{index}", f"{target}.resnets.{index}", RESNET)
    if official.domain == "video":
        mapper.block(f"{source}.inter_attn.0", f"{target}.mixing.attention", ATTENTION)
    else:
        mapper.block(f"{source}.inter_attn.0", f"{target}.mixing.resnet_in", RESNET)
        mapper.block(f"{source}.inter_attn.1", f"{target}.mixing.attention", ATTENTION)
        mapper.block(f"{source}.inter_attn.2", f"{target}.mixing.resnet_out", RESNET)


def _map_middle(mapper: StateMapper, source: str, target: str) -> None:
    mapper.block(f"{source}.mid.block_1", f"{target}.resnets.0", RESNET)
    mapper.block(f"{source}.mid.attn_1", f"{target}.attention", ATTENTION)
    mapper.block(f"{source}.mid.block_2", f"{target}.resnets.1", RESNET)
    mapper.block(f"{source}.mid.block_3", f"{target}.mixing.resnet_in", RESNET)
    mapper.block(f"{source}.mid_attn", f"{target}.mixing.attention", ATTENTION)
    mapper.block(f"{source}.mid.block_4", f"{target}.mixing.resnet_out", RESNET)


def _map_point_encoder(mapper: StateMapper, official: OfficialConfig) -> None:
    mapper.layer("pointnet.fc_pos", "encoder.points.proj_in")
    for index in range(official.points["n_blocks"]):
        mapper.block(f"pointnet.blocks.{index}", f"encoder.points.blocks.{index}", FULLY_CONNECTED)
    mapper.layer("pointnet.fc_c", "encoder.points.proj_out")


def _map_video_encoder(mapper: StateMapper) -> None:
    source, target = "vaemodel.encoder", "encoder.frames"
    mapper.layer(f"{source}.to_patch_embedding", f"{target}.patch_embedding")
    for index in range(SPACE_TIME_DEPTH):
        for number, kind in enumerate(("time_attention", "space_attention")):
            mapper.block(f"{source}.layers.{index}.{number}", f"{target}.blocks.{index}.{kind}", TRANSFORMER_ATTENTION)
        mapper.block(f"{source}.layers.{index}.2", f"{target}.blocks.{index}.feed_forward", TRANSFORMER_FEED_FORWARD)
    for constant in ("frame_rot_emb.inv_freqs", "image_rot_emb.scales"):
        mapper.take(f"{source}.{constant}")  # computed from the configuration
    for number, plane in enumerate(("xy", "yt", "xt")):  # the official names of our xy, xt, yt
        transformer = f"{target}.plane_transformers.{number}"
        mapper.move(f"vaemodel.{plane}_token", f"{transformer}.summary_token", torch.flatten)
        mapper.move(f"vaemodel.{plane}_pos_embedding", f"{transformer}.position_embedding", lambda value: value[0])
        for index in range(PLANE_DEPTH):
            layer = f"vaemodel.{plane}_quant_attn.layers.{index}"
            mapper.block(f"{layer}.0", f"{transformer}.attentions.{index}", TRANSFORMER_ATTENTION)
            mapper.block(f"{layer}.1", f"{transformer}.feed_forwards.{index}", TRANSFORMER_FEED_FORWARD)
        mapper.layer(f"vaemodel.pre_{plane}", f"{target}.moment_heads.{number}")


def _sorted_columns(start: int, channels: int, found: Sequence[str], wanted: Sequence[str]):
    """A transform of weights whose input columns from `start` hold `channels` for each plane of `found`, in that order:
    to the order of `wanted`."""
    order = torch.cat([torch.arange(channels) + start + channels * found.index(plane) for plane in wanted])

    def transform(weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight[:, :start], weight[:, order], weight[:, start + len(order) :]], dim=1)

    return transform


def _map_residual_readout(
    mapper: StateMapper, official: OfficialConfig, found: Sequence[str] | None, wanted: Sequence[str] | None
) -> None:
    """`found` and `wanted`: the planes in the order in which embeddings are concatenated, if they are."""
    for index in range(4):
        source, target = f"mlp.net_res{index + 1}", f"readout.blocks.{index}"
        table = dict(FULLY_CONNECTED)
        if found is not None and index < 3:
            start = official.readout["ch"] if index else 0
            transform = _sorted_columns(start, official.autoencoder["out_ch"], found, wanted)
            for layer in ("fc_0", "shortcut"):
                mapper.move(f"{source}.{layer}.weight", f"{target}.{table.pop(layer)}.weight", transform)
            mapper.move(f"{source}.fc_0.bias", f"{target}.linear_in.bias")
        mapper.block(source, target, table)
    mapper.layer("mlp.net_out", "readout.out")


def _map_radiance_readout(mapper: StateMapper, official: OfficialConfig) -> None:
    transform = _sorted_columns(0, official.autoencoder["out_ch"], ("xy", "yz", "xz"), TRIPLANE)
    for index in range(official.readout["D"]):
        source, target = f"mlp.xyz_encoding_{index + 1}.0", f"readout.layers.{index}"
        if index == 0 or index in official.readout["skips"]:
            mapper.move(f"{source}.weight", f"{target}.weight", transform)
            mapper.move(f"{source}.bias", f"{target}.bias")
        else:
            mapper.layer(source, target)
    layers: Mapping[str, str] = {
        "sigma": "density",
        "xyz_encoding_final": "feature",
        "dir_encoding.0": "direction_layer",
        "rgb.0": "colour",
    }
    for source, target in layers.items():
        mapper.layer(f"mlp.{source}", f"readout.{target}")


def _map_styled_readout(mapper: StateMapper) -> None:
    mapper.layer("mlp.time_mlp.1", "readout.style.0")
    mapper.layer("mlp.time_mlp.3", "readout.style.2")
    noise = []
    for block in range(4):
        for index in range(3):
            source = f"mlp.net_res{block + 1}.conv{index + 1}"
            _map_styled_linear(mapper, source, f"{source}.activate.bias", f"readout.blocks.{block}.linears.{index}")
            noise.append(mapper.take(f"{source}.noise.weight"))
        if block < 3:
            mapper.move(
                f"mlp.net_res{block + 1}.skip.0.weight", f"readout.blocks.{block}.shortcut", lambda w: w[..., 0, 0]
            )
    _map_styled_linear(mapper, "mlp.torgb", "mlp.torgb.bias", "readout.out")
    mapper.put("readout.noise_weights", torch.cat(noise), "mlp.net_res*.conv*.noise.weight")


def _map_styled_linear(mapper: StateMapper, source: str, bias: str, target: str) -> None:
    mapper.move(f"{source}.conv.weight", f"{target}.weight", lambda weight: weight[0, :, :, 0, 0])
    mapper.move(f"{source}.conv.modulation.weight", f"{target}.style_weight")
    mapper.move(f"{source}.conv.modulation.bias", f"{target}.style_bias")
    mapper.move(bias, f"{target}.bias", torch.flatten)
