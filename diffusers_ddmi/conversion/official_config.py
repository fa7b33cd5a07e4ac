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
"""Reads the official YAML files: every key that shapes a network is known, and an unknown one stops the conversion."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffusers_ddmi.conversion.mapper import ConversionError
from diffusers_ddmi.conversion.presets import PRESETS


REQUIRED = object()

# For each section its keys, with the official code's defaults. A set holds the only values that can be converted, the
# default first in the comment where there are several; `...` marks keys that shape no network.
DOMAINS = ("image", "occupancy", "video", "nerf")
MODEL = {
    "embed_dim": REQUIRED,
    "params": REQUIRED,
    "DiT": {False},
    "pretrained": ...,
    "resume": ...,
    "use_fp16": ...,
    "amp": ...,
    "lr": ...,
}
PARAMS = {"ddconfig": REQUIRED, "mlpconfig": REQUIRED, "unetconfig": None, "ddpmconfig": None, "lossconfig": ...}
AUTOENCODER = {
    "z_channels": REQUIRED,
    "resolution": REQUIRED,
    "in_channels": REQUIRED,
    "out_ch": REQUIRED,
    "ch": REQUIRED,
    "ch_mult": (1, 2, 4, 8),
    "num_res_blocks": REQUIRED,
    "attn_resolutions": REQUIRED,
    "hdbf_resolutions": REQUIRED,
    "inter_attn_resolutions": (),
    "attn_type": "vanilla",
    "double_z": {True},
    "resamp_with_conv": {True},
    "use_linear_attn": {False},
    "give_pre_end": {False},
    "tanh_out": {False},
    "use_timestep": {False},
    "temb_ch": {0},
    "timesformer_channels": None,
    "splits": None,
    "patch_size": None,
    "dropout": ...,
}
READOUT = {
    "image": {"in_ch": 2, "out_ch": 3, "ch": 256, "latent_dim": 64},
    "occupancy": {"in_ch": REQUIRED, "out_ch": REQUIRED, "ch": 256, "latent_dim": REQUIRED},
    "video": {"in_ch": ..., "out_ch": REQUIRED, "ch": 256, "latent_dim": REQUIRED},
    "nerf": {"D": 8, "W": 256, "in_channels_xyz": 96, "skips": (2, 4, 6)},
}
UNET = {
    "in_channels": REQUIRED,
    "out_channels": REQUIRED,
    "model_channels": REQUIRED,
    "num_res_blocks": REQUIRED,
    "attention_resolutions": REQUIRED,
    "channel_mult": (1, 2, 4, 8),
    "num_heads": -1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "dropout": 0.0,
    "size1": None,
    "size2": None,
    "size3": None,
    "attn_type": {"vanilla-1d-multihead"},
    "conv_resample": {True},
    "dims": {2},
    "num_classes": {None},
    "use_spatial_transformer": {False},
    "context_dim": {None},
    "n_embed": {None},
    "transformer_depth": ...,
    "legacy": ...,
    "image_size": ...,
    "use_checkpoint": ...,
    "use_fp16": {False},
}
DIFFUSION = {
    "timesteps": 1000,
    "beta_schedule": "linear",
    "linear_start": 0.0015,
    "linear_end": 0.0195,
    "cosine_s": {8e-3},
    "given_betas": {None},
    "channels": 3,
    "domain": "image",
    "mixed_prediction": True,
    "sampling_timesteps": 1000,
    "ddim_sampling_eta": 1.0,
    "parameterization": {"eps"},
    "learn_logvar": {False},
    "v_posterior": {0},
    "clip_denoised": ...,
    "mixed_init": ...,
    "image_size": ...,
    "loss_type": ...,
    "w": ...,
    "log_every_t": ...,
    "logvar_init": ...,
    "l_simple_weight": ...,
    "original_elbo_weight": ...,
    "use_ema": ...,
    "first_stage_key": ...,
    "conditioning_key": ...,
    "use_positional_encodings": ...,
    "first_stage_model": ...,
    "ckpt_path": ...,
    "ignore_keys": ...,
    "load_only_unet": ...,
}
# convocc/configs/default.yaml fills in what the point encoder's own file leaves out.
POINTS_DATA = {"dim": 3, "padding": 0.1}
POINTS_ENCODER = {
    "hidden_dim": 128,
    "plane_resolution": REQUIRED,
    "plane_type": REQUIRED,
    "n_blocks": 5,
    "scatter_type": {"max"},
    "grid_resolution": ...,
}
RADIANCE = {"multires": REQUIRED, "multires_views": REQUIRED, "i_embed": {0}, "N_samples": 256}


@dataclass(frozen=True)
class OfficialConfig:
    """
    The parts of an official configuration that shape the networks, defaults filled in and everything checked.

    Args:
        name: file name or preset, for messages and the model card.
        domain: "image", "occupancy", "video" or "nerf".
        embed_dim: channels of a latent plane.
        autoencoder, readout: `ddconfig` and `mlpconfig`.
        unet, diffusion: `unetconfig` and `ddpmconfig`; None in a first-stage file.
        points: the point encoder's settings; None for images and videos.
        radiance: the `TN` section; for radiance fields.
        frames: frames of a clip; for videos.
    """

    name: str
    domain: str
    embed_dim: int
    autoencoder: dict[str, Any]
    readout: dict[str, Any]
    unet: dict[str, Any] | None
    diffusion: dict[str, Any] | None
    points: dict[str, Any] | None
    radiance: dict[str, Any] | None
    frames: int | None


class _Loader(yaml.SafeLoader):
    """YAML as OmegaConf reads it: numbers like 1e-4 are floats, dates are strings, and keys are unique."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    repeated = {str(key) for key in keys if keys.count(key) > 1}
    if repeated:
        raise ConversionError(f"{node.start_mark.name}: the keys {sorted(repeated)} are given twice.")
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dictionary.

    Raises:
        ConversionError: it is not YAML, or not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            contents = yaml.load(file, Loader=_Loader)  # a SafeLoader: builds plain values only
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(contents, dict):
        raise ConversionError(
            f"{path} holds a {type(contents).__name__}; expected sections such as `model` and `data`."
        )
    return contents


def read_official_config(config: str | os.PathLike, point_config: str | os.PathLike | None = None) -> OfficialConfig:
    """
    An official configuration from its YAML file, or by the name of a published one.

    Args:
        config: path of a YAML file, or one of "afhq", "celebahq", "shapenet", "skytimelapse", "srn_cars".
        point_config: the point encoder's YAML file. By default the one that `data.conv_config` names, looked for beside
            the YAML file, in the folders above it, and in the working directory.

    Raises:
        FileNotFoundError: a file is not there.
        ConversionError: a key is missing, unknown, or has a value that cannot be converted.
    """
    path = Path(config)
    if not path.is_file():
        if str(config) not in PRESETS:
            raise FileNotFoundError(
                f"{str(config)!r} is neither a YAML file nor one of the presets {', '.join(PRESETS)}."
            )
        preset = PRESETS[str(config)]
        points = read_yaml(Path(point_config)) if point_config is not None else preset.get("points")
        return parse_official_config(preset, points, str(config))
    contents = read_yaml(path)
    points = None
    if _section(contents, "data", path.name).get("domain") in ("occupancy", "nerf"):
        points = read_yaml(_find_point_config(path, contents["data"], point_config))
    return parse_official_config(contents, points, path.name)


def _find_point_config(path: Path, data: Mapping[str, Any], point_config: str | os.PathLike | None) -> Path:
    if point_config is None:
        if "conv_config" not in data:
            raise ConversionError(f"{path.name}: `data.conv_config`, the point encoder's file, is missing.")
        named = Path(str(data["conv_config"]))
        candidates = [folder / named for folder in [*path.absolute().parents, Path.cwd()]]
    else:
        candidates = [Path(point_config)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"The point encoder's configuration {str(point_config or named)!r} was not found beside {str(path)!r} or above it. "
        "Give its path."
    )


def parse_official_config(contents: Mapping[str, Any], points: Mapping[str, Any] | None, name: str) -> OfficialConfig:
    """Check the sections of an official configuration; see `read_official_config`."""
    data = _section(contents, "data", name)
    domain = data.get("domain")
    if domain not in DOMAINS:
        raise ConversionError(f"{name}: `data.domain` is {domain!r}; expected one of {', '.join(DOMAINS)}.")
    model = _checked(_section(contents, "model", name), MODEL, f"{name}: model")
    params = _checked(model["params"], PARAMS, f"{name}: model.params")

    def part(key: str, known: Mapping[str, Any]) -> dict[str, Any] | None:
        return _checked(params[key], known, f"{name}: {key}") if params[key] is not None else None

    diffusion = part("ddpmconfig", DIFFUSION)
    if diffusion is not None and diffusion["domain"] != domain and "video" in (diffusion["domain"], domain):
        raise ConversionError(f"{name}: `ddpmconfig.domain` is {diffusion['domain']!r}, `data.domain` {domain!r}.")
    frames = None
    if domain == "video":
        frames = _whole(data.get("frames"), f"{name}: data.frames")
    return OfficialConfig(
        name=name,
        domain=domain,
        embed_dim=_whole(model["embed_dim"], f"{name}: model.embed_dim"),
        autoencoder=part("ddconfig", AUTOENCODER),
        readout=part("mlpconfig", READOUT[domain]),
        unet=part("unetconfig", UNET),
        diffusion=diffusion,
        points=_point_section(points) if domain in ("occupancy", "nerf") else None,
        radiance=_radiance_section(points) if domain == "nerf" else None,
        frames=frames,
    )


def _point_section(contents: Mapping[str, Any]) -> dict[str, Any]:
    name = "point encoder"
    data, model = _section(contents, "data", name), _section(contents, "model", name)
    if model.get("encoder", "pointnet_local_pool") != "pointnet_local_pool":
        raise ConversionError(f"{name}: `model.encoder` is {model['encoder']!r}; expected 'pointnet_local_pool'.")
    settings = _checked(_section(model, "encoder_kwargs", name), POINTS_ENCODER, f"{name}: encoder_kwargs")
    planes = settings.pop("plane_type")
    if not isinstance(planes, list) or sorted(planes) != ["xy", "xz", "yz"]:
        raise ConversionError(f"{name}: `plane_type` is {planes!r}; expected the three planes xz, xy and yz.")
    settings.update({key: data.get(key, default) for key, default in POINTS_DATA.items()})
    settings["c_dim"] = _whole(model.get("c_dim"), f"{name}: model.c_dim")
    return settings


def _radiance_section(contents: Mapping[str, Any]) -> dict[str, Any]:
    section = _section(_section(contents, "model", "point encoder"), "TN", "point encoder")
    return _checked({key: value for key, value in section.items() if key in RADIANCE}, RADIANCE, "point encoder: TN")


def _section(contents: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    section = contents.get(key) if isinstance(contents, Mapping) else None
    if not isinstance(section, Mapping):
        raise ConversionError(f"{name}: the section `{key}` is missing.")
    return dict(section)


def _checked(section: Any, known: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keys of a section that shape networks, with defaults."""
    if not isinstance(section, Mapping):
        raise ConversionError(f"{name} is {section!r}; expected a section of keys.")
    unknown = sorted(str(key) for key in section if key not in known)
    if unknown:
        raise ConversionError(f"{name} has the unknown keys {unknown}; known are {sorted(known)}.")
    values = {}
    for key, default in known.items():
        if default is ...:
            continue
        if isinstance(default, set):
            (only,) = default
            if section.get(key, only) != only:
                raise ConversionError(f"{name}.{key} is {section[key]!r}; only {only!r} can be converted.")
            continue
        value = section.get(key, default)
        if value is REQUIRED:
            raise ConversionError(f"{name}.{key} is missing.")
        if isinstance(value, str) and "${" in value:
            raise ConversionError(f"{name}.{key} is {value!r}; write the value itself instead of an interpolation.")
        values[key] = value
    return values


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConversionError(f"{name} is {value!r}; expected a positive whole number.")
    return value
