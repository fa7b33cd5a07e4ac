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
"""Latent planes: naming, sizes, and how they travel."""

import pytest
import torch

from diffusers_ddmi import PlaneLayout


CUBE = {"x": 4, "y": 4, "z": 4}
CLIP = {"x": 4, "y": 4, "t": 3}
SQUARE_CLIP = {"x": 4, "y": 4, "t": 4}  # as many frames as cells: sizes alone do not tell the planes apart

LAYOUTS = {
    "image": PlaneLayout.create(("xy",), {"x": 6, "y": 5}),
    "shape": PlaneLayout.create(("xy", "xz", "yz"), CUBE),
    "video": PlaneLayout.create(("xy", "xt", "yt"), CLIP, fixed_axes="t"),
    "wide video": PlaneLayout.create(("xy", "xt", "yt"), {"x": 6, "y": 4, "t": 3}, fixed_axes="t"),
    "square video": PlaneLayout.create(("xy", "xt", "yt"), SQUARE_CLIP, fixed_axes="t"),
}


def numbered_planes(layout: PlaneLayout, batch: int = 2, channels: int = 5) -> list[torch.Tensor]:
    """Planes whose every value is different, also from plane to plane."""
    planes, start = [], 0
    for height, width in layout.plane_sizes:
        count = batch * channels * height * width
        planes.append(torch.arange(start, start + count).view(batch, channels, height, width))
        start += count
    return planes


def test_first_letter_is_the_width():
    layout = LAYOUTS["wide video"]
    assert layout.plane_sizes == ((4, 6), (3, 6), (3, 4))  # (y, x), (t, x), (t, y)


@pytest.mark.parametrize("name", LAYOUTS)
def test_pack_round_trip(name):
    layout = LAYOUTS[name]
    planes = numbered_planes(layout)
    packed = layout.pack(planes)
    assert packed.shape == (2, *layout.latent_shape(5))
    for plane, unpacked in zip(planes, layout.unpack(packed), strict=True):
        assert torch.equal(plane, unpacked)


@pytest.mark.parametrize("name", LAYOUTS)
def test_group_round_trip(name):
    layout = LAYOUTS[name]
    planes = numbered_planes(layout)
    grouped = layout.group(planes)
    assert sorted(index for group in layout.groups for index in group) == list(range(len(planes)))
    for plane, ungrouped in zip(planes, layout.ungroup(grouped), strict=True):
        assert torch.equal(plane, ungrouped)


def test_equal_planes_are_joined_on_channels():
    layout = LAYOUTS["shape"]
    planes = numbered_planes(layout)
    packed = layout.pack(planes)
    assert torch.equal(packed[:, 5:10], planes[1])
    assert layout.groups == ((0, 1, 2),)


def test_token_order():
    """Plane after plane, each row by row."""
    layout = LAYOUTS["wide video"]
    planes = numbered_planes(layout)
    packed = layout.pack(planes)
    assert packed.shape == (2, 5, 24 + 18 + 12)
    assert torch.equal(packed[:, :, 6 * 2 + 5], planes[0][:, :, 2, 5])
    assert torch.equal(packed[:, :, 24 + 6 * 1 + 4], planes[1][:, :, 1, 4])
    assert torch.equal(packed[:, :, 24 + 18 + 4 * 2 + 3], planes[2][:, :, 2, 3])


def test_joined_planes_may_grow():
    layout = LAYOUTS["shape"]
    planes = [torch.randn(1, 2, 9, 7) for _ in range(3)]
    for plane, unpacked in zip(planes, layout.unpack(layout.pack(planes)), strict=True):
        assert torch.equal(plane, unpacked)


@pytest.mark.parametrize("name", ["video", "square video"])
def test_planes_with_time_are_grouped_apart(name):
    """They are resampled in another way, even where their sizes agree."""
    layout = LAYOUTS[name]
    assert layout.groups == ((0,), (1, 2))
    assert [layout.resampling(plane) for plane in range(3)] == [(2, 2), (1, 2), (1, 2)]


def test_fixed_first_axis_keeps_the_width():
    layout = PlaneLayout.create(("tx",), {"x": 4, "t": 3}, fixed_axes="t")
    assert layout.plane_sizes == ((4, 3),)
    assert layout.resampling(0) == (2, 1)


@pytest.mark.parametrize(
    ("planes", "sizes", "fixed_axes", "message"),
    [
        (("xx",), CUBE, "", "different axes.*'xx'"),
        (("xyz",), CUBE, "", "'xyz'"),
        (("xt",), CUBE, "", "'xt'"),
        ((), CUBE, "", "non-empty"),
        (("xy", "xy"), CUBE, "", "distinct"),
        (("xy",), {"x": 4, "y": 0}, "", "'y'.*got 0"),
        (("xy",), {"x": 4, "y": 4.0}, "", "'y'.*got 4.0"),
        (("xy", "xt"), CLIP, "", "equal sizes"),
    ],
)
def test_wrong_layout(planes, sizes, fixed_axes, message):
    with pytest.raises(ValueError, match=message):
        PlaneLayout.create(planes, sizes, fixed_axes)


def test_wrong_planes_and_latents():
    with pytest.raises(ValueError, match=r"Expected 3 planes.*got 2"):
        LAYOUTS["shape"].pack([torch.zeros(1, 2, 4, 4)] * 2)
    for shape in [(1, 4, 4, 4), (3, 4, 4)]:
        with pytest.raises(ValueError, match=r"3 \* channels.*got shape"):
            LAYOUTS["shape"].unpack(torch.zeros(shape))
    for shape in [(1, 5, 41), (1, 5, 40, 1)]:
        with pytest.raises(ValueError, match=r"\(batch, channels, 40\).*got shape"):
            LAYOUTS["video"].unpack(torch.zeros(shape))
