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
"""E: data to the moments of latent planes."""

import pytest
import torch

from diffusers_ddmi import PlaneLayout
from diffusers_ddmi.models.encoders import DataEncoder, PlaneEncoder


SHAPE = PlaneLayout.create(("xy", "xz", "yz"), {"x": 4, "y": 4, "z": 4})
IMAGE = PlaneLayout.create(("xy",), {"x": 4, "y": 4})
CLIP = PlaneLayout.create(("xy", "xt", "yt"), {"x": 4, "y": 4, "t": 3}, fixed_axes="t")
SHARED = {
    "latent_channels": 3,
    "bottleneck_channels": 4,
    "block_out_channels": (8, 8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plane_encoder(layout: PlaneLayout = SHAPE, **changes) -> PlaneEncoder:
    torch.manual_seed(0)
    return PlaneEncoder(layout, 5, **{**SHARED, **changes}).eval()


def data_encoder(kind: str) -> DataEncoder:
    torch.manual_seed(0)
    layout = {"pixels": IMAGE, "points": SHAPE, "frames": CLIP}[kind]
    config = {
        "pixels": {},
        "points": {"hidden_channels": 8, "out_channels": 8, "num_blocks": 2},
        "frames": {"patch_size": 4, "hidden_channels": 16, "depth": 1, "heads": 2, "head_dim": 8, "plane_depth": 1},
    }[kind]
    return DataEncoder(kind, layout, 3, 16, 3, None, config, SHARED).eval()


DATA = {"pixels": (2, 3, 16, 16), "points": (2, 50, 3), "frames": (2, 3, 3, 16, 16)}


@pytest.mark.parametrize("plane_mixing", [None, "convolution", "attention"])
def test_every_level_but_one_halves_the_planes(plane_mixing):
    encoder = plane_encoder(plane_mixing=plane_mixing)
    moments = encoder([draw(2, 5, 16, 16, seed=plane) for plane in range(3)])
    assert [tuple(plane.shape) for plane in moments] == [(2, 6, 4, 4)] * 3
    assert all(plane.isfinite().all() for plane in moments)


def test_planes_share_weights_up_to_their_heads():
    encoder = plane_encoder(plane_mixing=None)
    heads = encoder.moment_heads
    for head in heads[1:]:
        head.load_state_dict(heads[0].state_dict())
    planes = [draw(2, 5, 16, 16, seed=plane) for plane in range(3)]
    moments = encoder(planes)
    turned = encoder([planes[1], planes[2], planes[0]])
    for plane in range(3):
        torch.testing.assert_close(turned[plane], moments[(plane + 1) % 3], rtol=1e-4, atol=1e-5)
    heads[1].weight.data.add_(1.0)
    changed = encoder(planes)
    assert (changed[1] - moments[1]).abs().max() > 1e-3
    assert torch.equal(changed[0], moments[0])


@pytest.mark.parametrize("plane_mixing", [None, "convolution", "attention"])
def test_planes_exchange_information_only_where_mixed(plane_mixing):
    encoder = plane_encoder(plane_mixing=plane_mixing)
    planes = [draw(1, 5, 16, 16, seed=plane) for plane in range(3)]
    before, after = encoder(planes), encoder([planes[0] + 1, *planes[1:]])
    for plane in (1, 2):
        assert bool((after[plane] - before[plane]).abs().max() > 1e-5) is (plane_mixing is not None)


def test_items_of_a_batch_do_not_mix():
    encoder = plane_encoder(plane_mixing="convolution")
    planes = [draw(3, 5, 16, 16, seed=plane) for plane in range(3)]
    together = encoder(planes)
    alone = encoder([plane[1:2] for plane in planes])
    for plane in range(3):
        torch.testing.assert_close(alone[plane], together[plane][1:2], rtol=1e-4, atol=1e-5)


def test_stem_channels():
    assert plane_encoder().conv_in.out_channels == 8
    assert plane_encoder(stem_channels=4).conv_in.out_channels == 4
    plane_encoder(stem_channels=4)([draw(1, 5, 16, 16)] * 3)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        encoder = plane_encoder(plane_mixing="convolution")
        encoder.gradient_checkpointing = checkpointing
        runs = []

        def checkpointed(module, *args, runs=runs):
            runs.append(module)
            return torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=False)

        encoder._gradient_checkpointing_func = checkpointed
        sum(plane.square().mean() for plane in encoder([draw(2, 5, 16, 16)] * 3)).backward()
        assert bool(runs) is checkpointing
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", DATA)
def test_data_becomes_moments_of_planes(kind):
    encoder = data_encoder(kind)
    x = draw(*DATA[kind]).clamp(-1, 1)
    layout = {"pixels": IMAGE, "points": SHAPE, "frames": CLIP}[kind]
    moments = encoder(x)
    assert [tuple(plane.shape) for plane in moments] == [(2, 6, *size) for size in layout.plane_sizes]
    for plane, alone in zip(moments, encoder(x[1:]), strict=True):
        torch.testing.assert_close(alone, plane[1:], rtol=1e-4, atol=1e-5)


def test_the_order_of_points_does_not_matter():
    encoder = data_encoder("points")
    points = draw(1, 60, 3).clamp(-0.5, 0.5)
    for plane, shuffled in zip(encoder(points), encoder(points.flip(1)), strict=True):
        torch.testing.assert_close(shuffled, plane, rtol=1e-4, atol=1e-5)


def test_images_of_other_sizes():
    (moments,) = data_encoder("pixels")(draw(1, 3, 24, 8))
    assert moments.shape == (1, 6, 6, 2)


@pytest.mark.parametrize(
    ("kind", "x", "message"),
    [
        ("pixels", torch.zeros(2, 3, 16, 18), r"multiples of 4, got shape \(2, 3, 16, 18\)"),
        ("pixels", torch.zeros(2, 1, 16, 16), r"images \(batch, 3, height, width\)"),
        ("pixels", torch.zeros(3, 16, 16), r"images \(batch, 3, height, width\)"),
        ("pixels", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"floating-point torch.Tensor, got torch.uint8"),
        ("points", torch.zeros(2, 50, 6), r"points \(batch, points, 3\), got shape \(2, 50, 6\)"),
        ("points", torch.zeros(2, 0, 3), r"empty: got shape \(2, 0, 3\)"),
        ("points", torch.zeros(50, 3), r"points \(batch, points, 3\)"),
        ("frames", torch.zeros(2, 3, 16, 16), r"clips \(batch, 3, frames, height, width\)"),
        ("frames", torch.zeros(2, 3, 4, 16, 16), r"expected \(batch, 3, 3, 16, 16\)"),
    ],
)
def test_wrong_data(kind, x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        data_encoder(kind)(x)


def test_images_take_no_encoder_config():
    with pytest.raises(ValueError, match=r"takes no `encoder_config`, got \['depth'\]"):
        DataEncoder("pixels", IMAGE, 3, 16, None, None, {"depth": 1}, SHARED)
