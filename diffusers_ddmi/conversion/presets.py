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
"""The published configurations, section by section as the official YAML files name them, without what only training uses."""

from typing import Any


def _image(model_channels: int, channel_mult: list[int], num_res_blocks: int) -> dict[str, Any]:
    return {
        "data": {"domain": "image"},
        "model": {
            "embed_dim": 64,
            "params": {
                "ddconfig": {
                    "double_z": True,
                    "z_channels": 128,
                    "resolution": 256,
                    "in_channels": 3,
                    "out_ch": 64,
                    "ch": 128,
                    "ch_mult": [1, 2, 4],
                    "num_res_blocks": num_res_blocks,
                    "attn_resolutions": [],
                    "hdbf_resolutions": [128, 64],
                },
                "mlpconfig": {"in_ch": 2, "out_ch": 3, "ch": 256, "latent_dim": 64},
                "unetconfig": _unet(64, model_channels, channel_mult, 32),
                "ddpmconfig": {"channels": 64, "sampling_timesteps": 50, "ddim_sampling_eta": 0.0, "domain": "image"},
            },
        },
    }


def _unet(channels: int, model_channels: int, channel_mult: list[int], head_channels: int) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "out_channels": channels,
        "model_channels": model_channels,
        "channel_mult": channel_mult,
        "num_res_blocks": 2,
        "attention_resolutions": [8, 4, 2],
        "num_head_channels": head_channels,
    }


def _triplane(domain: str, out_ch: int, hdbf_resolutions: list[int], mlpconfig: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"domain": domain},
        "model": {
            "embed_dim": 64,
            "params": {
                "ddconfig": {
                    "double_z": True,
                    "z_channels": 128,
                    "resolution": 64,
                    "in_channels": 32,
                    "out_ch": out_ch,
                    "ch": 64,
                    "ch_mult": [1, 2, 4],
                    "num_res_blocks": 2,
                    "attn_resolutions": [],
                    "hdbf_resolutions": hdbf_resolutions,
                    "inter_attn_resolutions": [64, 32, 16],
                },
                "mlpconfig": mlpconfig,
                "unetconfig": {**_unet(192, 256, [1, 2, 4, 6], 32), "size1": 16, "size2": 16, "size3": 16},
                "ddpmconfig": {"channels": 192, "sampling_timesteps": 200, "ddim_sampling_eta": 0.0, "domain": domain},
            },
        },
        "points": {
            "data": {"dim": 3 if domain == "occupancy" else 6, "padding": 0.1},
            "model": {
                "encoder": "pointnet_local_pool",
                "encoder_kwargs": {
                    "hidden_dim": 256,
                    "plane_type": ["xz", "xy", "yz"],
                    "plane_resolution": 64,
                    "n_blocks": 7,
                },
                "c_dim": 32,
                "TN": {"multires": 10, "multires_views": 4, "i_embed": 0, "N_samples": 256},
            },
        },
    }


_VIDEO = {
    "data": {"domain": "video", "frames": 16},
    "model": {
        "embed_dim": 64,
        "params": {
            "ddconfig": {
                "double_z": True,
                "timesformer_channels": 384,
                "splits": 1,
                "patch_size": 8,
                "resolution": 256,
                "z_channels": 64,
                "in_channels": 3,
                "out_ch": 64,
                "ch": 64,
                "ch_mult": [1, 2, 4, 8],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "hdbf_resolutions": [128, 64],
                "inter_attn_resolutions": [32, 64, 128, 256],
                "attn_type": "vanilla-multihead",
            },
            "mlpconfig": {"in_ch": 2, "out_ch": 3, "ch": 256, "latent_dim": 64},
            "unetconfig": {**_unet(64, 256, [1, 2, 4, 6], 64), "size1": 32, "size2": 32, "size3": 16},
            "ddpmconfig": {"channels": 64, "sampling_timesteps": 200, "ddim_sampling_eta": 0.0, "domain": "video"},
        },
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "afhq": _image(224, [1, 2, 4, 6], num_res_blocks=2),
    "celebahq": _image(256, [1, 2, 4, 8], num_res_blocks=3),
    "shapenet": _triplane("occupancy", 64, [32, 16], {"in_ch": 3, "out_ch": 1, "ch": 256, "latent_dim": 64}),
    "skytimelapse": _VIDEO,
    "srn_cars": _triplane("nerf", 32, [], {"D": 6, "W": 256, "in_channels_xyz": 159, "skips": [2, 4]}),
}
