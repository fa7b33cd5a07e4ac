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
"""Gradients of pictures of a radiance field reach the basis fields that it is made of."""

import torch

from diffusers_ddmi import BasisFields, NeuralField
from diffusers_ddmi.models.readout import RadianceReadout
from diffusers_ddmi.rendering.cameras import Cameras
from diffusers_ddmi.rendering.volume import OccupancyGrid, render_rays, render_views


CHANNELS, SIZES = 2, (2, 3)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_planes() -> list[torch.Tensor]:
    """Three planes at two scales, in float64, for finite differences."""
    return [draw(1, CHANNELS, size, size, seed=3 * size + i).requires_grad_() for size in SIZES for i in range(3)]


def make_field(*planes: torch.Tensor) -> NeuralField:
    """A field of so little density that its rays are neither clear nor opaque."""
    torch.manual_seed(0)
    readout = RadianceReadout(CHANNELS, hidden_channels=8, num_scales=2, position_frequencies=2).double()
    for seed, parameter in enumerate(readout.parameters()):
        parameter.data.add_(draw(*parameter.shape, seed=seed), alpha=0.2)
    readout.density.bias.data.fill_(1.0)
    basis_fields = BasisFields([planes[:3], planes[3:]], "xyz", ("xy", "xz", "yz"), (-0.5, 0.5), False, "sum")
    return NeuralField(basis_fields, readout.requires_grad_(False), (-0.5, 0.5))


def test_gradients_of_rays_are_those_of_finite_differences():
    origins = torch.tensor([[0.1, -0.07, 2.0], [-0.2, 0.3, 2.0]], dtype=torch.float64)
    directions = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64).expand(2, 3)

    def pixels(*planes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen = render_rays(make_field(*planes), origins, directions, 1.5, 2.5, 8)
        return seen.color, seen.depth, seen.opacity

    planes = make_planes()
    opacity = pixels(*planes)[2]
    assert ((opacity > 0.1) & (opacity < 0.9)).all()
    assert torch.autograd.gradcheck(pixels, planes)
    pixels(*planes)[0].sum().backward()
    assert all(plane.grad.abs().max() > 1e-4 for plane in planes)


def test_gradients_of_pictures_are_the_same_with_empty_space_skipped():
    cameras = Cameras.orbit(2, height=3, width=3, fov_y=0.3)
    planes = make_planes()
    gradients = []
    for skipping in (False, True):
        field = make_field(*planes)
        grid = OccupancyGrid.from_field(field, field.bounds, resolution=4) if skipping else None
        views = render_views(field, cameras, 16, grid=grid, bounds=field.bounds)
        gradients.append(torch.autograd.grad(views.colors.square().sum(), planes))
    for plain, skipped in zip(*gradients):
        assert plain.abs().max() > 1e-3
        torch.testing.assert_close(skipped, plain, rtol=1e-3, atol=1e-5)
