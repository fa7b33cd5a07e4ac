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
"""Offloading, layer by layer or as a dispatched model, changes where weights are and no value."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model, infer_auto_device_map

from diffusers_ddmi import AutoencoderD2C


CPU = torch.device("cpu")
SHARED = {
    "sample_size": 16,
    "bottleneck_channels": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "basis_channels": 4,
    "num_scales": 2,
    "readout_config": {"hidden_channels": 16},
}
POINTS = {"hidden_channels": 8, "out_channels": 8, "num_blocks": 2}
FRAMES = {"hidden_channels": 16, "depth": 1, "heads": 2, "head_dim": 8, "plane_depth": 1, "plane_inner_dim": 16}
MODALITIES = {
    "image": ({}, (2, 3, 16, 16)),
    "shape": ({"encoder_config": POINTS}, (2, 30, 3)),
    "nerf": ({"encoder_config": POINTS}, (2, 30, 6)),
    "video": ({"encoder_config": FRAMES, "num_frames": 4, "mixing_heads": 2}, (2, 3, 4, 16, 16)),
}


def autoencoder(modality):
    torch.manual_seed(0)
    return AutoencoderD2C(modality=modality, **SHARED, **MODALITIES[modality][0]).eval()


@torch.no_grad()
def values(vae, modality):
    """A field's values, by `encode` and `decode`."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(MODALITIES[modality][1], generator=generator) - 0.5
    coords = torch.rand(9, 2 if modality == "image" else 3, generator=generator) - 0.5
    directions = torch.tensor([[0.0, 0.6, 0.8]]).expand(9, 3) if modality == "nerf" else None
    field = vae.decode(vae.encode(x).latent_dist.mode()).field
    return field, field(coords, directions=directions)


def sequential(vae, folder):
    cpu_offload(vae, CPU, offload_buffers=True)


def group_by_leaf(vae, folder):  # from disk, so that a missed layer computes with weights that are not there
    vae.enable_group_offload(CPU, offload_type="leaf_level", offload_to_disk_path=str(folder))


def group_by_block(vae, folder):
    vae.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(folder))


def dispatched(vae, folder):
    size = 4 * vae.num_parameters()
    device_map = infer_auto_device_map(
        vae, {"cpu": size // 2, "disk": 2 * size}, no_split_module_classes=list(vae._no_split_modules)
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    dispatch_model(vae, device_map, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("offload", [sequential, group_by_leaf, group_by_block, dispatched])
@pytest.mark.parametrize("modality", MODALITIES)
def test_offloaded_weights_give_the_same_values(modality, offload, tmp_path):
    _, expected = values(autoencoder(modality), modality)
    vae = autoencoder(modality)
    offload(vae, tmp_path)
    field, got = values(vae, modality)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, expected)
    with pytest.raises(RuntimeError, match="offloading"):
        field.to("cpu")


def test_a_field_outlives_the_weights_of_its_model():
    """What offloading of whole models does: the weights go elsewhere once the model has been called."""
    vae = autoencoder("image")
    field, expected = values(vae, "image")
    vae.to("meta")
    coords = torch.rand(9, 2, generator=torch.Generator().manual_seed(2)) - 0.5
    assert field(coords).shape == expected.shape
    assert field.to(torch.bfloat16)(coords).dtype == torch.bfloat16
