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
"""Point clouds to feature planes."""

import pytest
import torch

from diffusers_ddmi.models.point_encoder import PLANE_AXES, PointEncoder


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.fixture
def encoder() -> PointEncoder:
    model = PointEncoder(input_channels=3, hidden_channels=8, out_channels=4, num_blocks=3, plane_size=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


@torch.no_grad()
def by_hand(encoder: PointEncoder, points: torch.Tensor) -> torch.Tensor:
    """The definition, point by point and cell by cell, for one cloud (points, channels)."""
    size = encoder.plane_size
    unit = points[:, :3] / (2 * encoder.bound * (1 + encoder.padding + 1e-5)) + 0.5
    cells = (unit.clamp(0, 1 - 1e-5) * size).long().tolist()
    groups = [{} for _ in PLANE_AXES]
    for index, cell in enumerate(cells):
        for group, (u, v) in zip(groups, PLANE_AXES):
            group.setdefault((cell[v], cell[u]), []).append(index)
    features = encoder.blocks[0](encoder.proj_in(points))
    for block in encoder.blocks[1:]:
        pooled = torch.zeros_like(features)
        for group in groups:
            for members in group.values():
                pooled[members] += features[members].amax(0)
        features = block(torch.cat([features, pooled], dim=-1))
    features = encoder.proj_out(features)
    planes = torch.zeros(3, encoder.out_channels, size, size)
    for plane, group in zip(planes, groups):
        for (row, column), members in group.items():
            plane[:, row, column] = features[members].mean(0)
    return planes


def test_definition(encoder):
    points = draw(2, 60, 3)
    planes = encoder(points)
    assert planes.shape == (2, 3, 4, 8, 8)
    for index in range(2):
        torch.testing.assert_close(planes[index], by_hand(encoder, points[index]), rtol=1e-4, atol=1e-5)


def test_cells_follow_the_planes_axes(encoder):
    """One point near the corner (+x, centre y, -z): its cell in xy, xz and yz."""
    points = torch.tensor([[[0.5, 0.0, -0.5]]])
    occupied = encoder(points)[0].abs().sum(1) > 0  # (plane, second letter, first letter)
    assert occupied.nonzero().tolist() == [[0, 4, 7], [1, 0, 7], [2, 0, 4]]


def test_order_of_points_does_not_matter(encoder):
    points = draw(1, 50, 3)
    shuffled = points[:, torch.randperm(50, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(encoder(shuffled), encoder(points), rtol=1e-4, atol=1e-5)


def test_clouds_of_a_batch_do_not_mix(encoder):
    points = draw(3, 40, 3)
    together = encoder(points)
    for index in range(3):
        torch.testing.assert_close(together[index : index + 1], encoder(points[index : index + 1]))


def test_points_outside_fall_into_the_outermost_cells(encoder):
    cells = encoder.cells(torch.tensor([[[9.0, -9.0, 0.0], [0.55, -0.55, 0.0]]]))
    assert cells[0, 0].tolist() == [7, 7]
    assert cells[0, 1].tolist() == [7 + 8 * 4, 7 + 8 * 4]


def test_bound_scales_the_cells():
    small, large = (PointEncoder(3, 4, 2, 1, 16, bound=bound) for bound in (0.5, 2.0))
    points = draw(1, 100, 3)
    torch.testing.assert_close(large.cells(4 * points), small.cells(points), rtol=0, atol=0)
    assert (large.cells(points) != small.cells(points)).any()


def test_colours_enter():
    encoder = PointEncoder(6, 8, 4, 2, 8)
    points = draw(1, 30, 6)
    recoloured = torch.cat([points[..., :3], points[..., 3:] + 1], dim=-1)
    assert (encoder(recoloured) - encoder(points)).abs().max() > 1e-3
    torch.testing.assert_close(encoder(recoloured) != 0, encoder(points) != 0)


def test_gradients_reach_every_parameter_and_the_points(encoder):
    points = draw(1, 30, 3).requires_grad_()
    encoder(points).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())
    assert points.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(encoder, dtype):
    points = draw(1, 30, 3).to(dtype).float()  # so that rounding moves no point to another cell
    expected = encoder(points)
    planes = encoder.to(dtype)(points.to(dtype))
    assert planes.dtype == dtype
    assert (planes.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(("input_channels", "parameters"), [(3, 2_307_616), (6, 2_309_152)])
def test_published_sizes(input_channels, parameters):
    with torch.device("meta"):
        encoder = PointEncoder(input_channels)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


@pytest.mark.parametrize("shape", [(2, 10, 6), (10, 3), (2, 0, 3)])
def test_wrong_points(encoder, shape):
    with pytest.raises(ValueError, match=r"\(batch, points, 3\)"):
        encoder(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_channels": 2}, "`input_channels` is 2"),
        ({"num_blocks": 0}, "`num_blocks` is 0"),
        ({"plane_size": -1}, "`plane_size` is -1"),
        ({"bound": 0.0}, "`bound` is 0.0"),
    ],
)
def test_wrong_config(options, message):
    with pytest.raises(ValueError, match=message):
        PointEncoder(**options)


def test_a_position_that_is_no_number_spoils_its_own_item_alone():
    encoder = PointEncoder(hidden_channels=16, out_channels=4, plane_size=8)
    points = torch.rand(2, 30, 3) - 0.5
    expected = encoder(points)[1]
    points[0, 3] = float("nan")
    planes = encoder(points)
    assert planes[0].isnan().any()
    torch.testing.assert_close(planes[1], expected)
