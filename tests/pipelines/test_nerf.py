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
import diffusers
import numpy as np
import pytest
import torch
from tiny import FITTING_SCHEDULERS

from diffusers_ddmi.rendering.cameras import Cameras
from diffusers_ddmi.rendering.volume import render_views


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline("nerf")


def views(pipe, **options):
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np", **options}
    return pipe(**options)


def test_an_orbit_of_views_with_depth_and_opacity(pipe):
    output = views(pipe, num_views=2, height=8, width=12, num_samples=16)
    assert output.frames.shape == (1, 2, 8, 12, 3)
    assert output.depth.shape == output.opacity.shape == (1, 2, 8, 12)
    assert 0 < output.opacity.max() <= 1


def test_views_are_those_of_the_plain_renderer(pipe):
    """Skipping empty space and stopping early change a view by less than a grey level."""
    cameras = Cameras.orbit(2, height=8, width=8)
    shown = views(pipe, cameras=cameras, num_samples=32).frames
    field = views(pipe, output_type="field").frames
    with torch.no_grad():
        plain = render_views(field, cameras, 32, bounds=field.bounds).colors
    np.testing.assert_allclose(shown, plain.clamp(0, 1).numpy(), atol=1 / 255)


def test_a_background_shows_through(pipe):
    white, black = (
        views(pipe, num_views=1, height=8, width=8, num_samples=16, background=b).frames for b in (1.0, 0.0)
    )
    assert (white >= black - 1e-6).all() and (white - black).max() > 0.1


def test_a_field_may_paint_its_own_background(pipe):
    """With the original quadrature, rays see the field from near to far, and nothing behind it."""
    pipe.vae.register_to_config(last_interval_infinite=True)
    cameras = Cameras.orbit(1, height=8, width=8)
    options = {"cameras": cameras, "num_samples": 16}
    white, black = (views(pipe, background=background, **options) for background in (1.0, 0.0))
    np.testing.assert_allclose(white.frames, black.frames, atol=1e-6)
    np.testing.assert_allclose(white.opacity.numpy(), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", FITTING_SCHEDULERS)
def test_schedulers_can_be_swapped(pipe, name):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    options = {"num_inference_steps": 6, "num_views": 2, "height": 8, "width": 8, "num_samples": 16}
    one, two = (views(pipe, generator=torch.Generator().manual_seed(seed), **options).frames for seed in (0, 1))
    assert np.isfinite(one).all()
    assert one.std() > 1e-3
    assert np.abs(one - two).max() > 1e-3


class Haze:
    """A grey ball without an edge: at distance r of its centre, in sides of its box, the density is 100 e^(−10 r) per side."""

    batch_size, device = 1, torch.device("cpu")

    def __init__(self, side: float):
        self.side, self.bounds = side, (-side / 2, side / 2)

    def __getitem__(self, item: int):
        return self

    def __call__(self, points, directions):
        distance = points.reshape(1, -1, 3).norm(dim=-1, keepdim=True) / self.side
        return torch.cat([torch.full((1, distance.shape[1], 3), 0.5), 100 * torch.exp(-10 * distance) / self.side], -1)


@pytest.mark.parametrize("side", [1.0, 4.0])
@pytest.mark.parametrize(("level", "density"), [(0.5, 10.0), (0.8, 40.0)])
def test_levels_of_meshes_are_densities(pipe, side, level, density):
    """Whatever the size of the scene's box."""
    (mesh,) = pipe.render(Haze(side), "mesh", resolution=33, level=level).frames
    radii = np.linalg.norm(mesh.vertices, axis=1) / side
    np.testing.assert_allclose(radii, np.log(100 / density) / 10, atol=0.004)
    assert (mesh.visual.vertex_colors[:, :3] == 128).all()


def test_coloured_meshes(pipe):
    with torch.no_grad():
        pipe.vae.readout.density.bias.add_(20.0)  # solid throughout but for what the planes carve
        pipe.vae.readout.density.weight.mul_(100.0)
    (mesh,) = views(pipe, output_type="mesh", resolution=16).frames
    assert len(mesh.vertices) > 8
    assert mesh.is_watertight
    assert mesh.visual.vertex_colors.shape == (len(mesh.vertices), 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_views": 0}, ValueError, "`num_views` must be a positive whole number, got 0"),
        ({"cameras": "left"}, TypeError, "`cameras` must be diffusers_ddmi.rendering.cameras.Cameras, got str"),
        ({"num_samples": 0}, ValueError, "`num_samples` must be a positive whole number"),
        ({"output_type": "mesh", "level": 0.0}, ValueError, "between 0 and 1"),
    ],
)
def test_bad_input_is_named(pipe, options, error, message):
    with pytest.raises(error, match=message):
        views(pipe, **options)
