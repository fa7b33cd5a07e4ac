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
import math

import numpy as np
import pytest
import torch

from diffusers_ddmi.data.procedural_scenes import ProceduralScene, radiance_field
from diffusers_ddmi.rendering.cameras import Cameras
from diffusers_ddmi.rendering.rays import clip_to_bounds, composite, importance_sample, sample_along_rays
from diffusers_ddmi.rendering.volume import (
    OccupancyGrid,
    density_as_occupancy,
    render_rays,
    render_views,
    surface_colors,
)


COLOR = torch.tensor([0.2, 0.5, 0.8])


class Ball:
    """Radiance field of balls about the origin, one per scene, of constant density and colour; counts evaluations."""

    def __init__(self, radii=(0.4,), density: float = 3.0):
        self.radii = torch.tensor(radii)
        self.density = density
        self.evaluations = 0

    def __call__(self, points, directions):
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones(directions.shape[:-1]))
        assert points.shape == directions.shape
        points = points.expand(len(self.radii), -1, -1)
        self.evaluations += points.shape[0] * points.shape[1]
        density = self.density * (points.norm(dim=-1) < self.radii[:, None])
        return torch.cat([COLOR.expand_as(points), density[..., None]], dim=-1)

    def transmittance(self, origins, directions, radius=0.4):
        """Closed form: exp(-density · length of the chord)."""
        closest = -(origins * directions).sum(-1)
        distance = (origins + closest[..., None] * directions).square().sum(-1)
        return torch.exp(-2 * self.density * (radius**2 - distance).clamp(min=0).sqrt())[..., None]


@pytest.fixture
def cameras() -> Cameras:
    return Cameras.orbit(2, radius=2.0, elevation=15.0, height=12, width=16, near=1.2, far=2.8)


def test_a_ball_renders_to_its_closed_form(cameras):
    ball = Ball()
    views = render_views(ball, cameras, num_samples=4096)
    transmittance = ball.transmittance(*cameras.rays())
    assert transmittance.min() < 0.2
    expected = (1 - transmittance) * COLOR + transmittance
    assert (views.colors[0] - expected).abs().max() < 1e-3
    assert (views.opacity[0] - (1 - transmittance)).abs().max() < 1e-3


def test_depth_of_a_ray_through_the_middle_of_an_opaque_ball():
    origins, directions = (
        torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 2.0]]),
        torch.tensor([[0.0, 0.0, -1.0]]).expand(2, 3),
    )
    rendered = render_rays(Ball(density=1000.0), origins, directions, 1.0, 3.0, 2000)
    assert rendered.depth.shape == (1, 2, 1)
    assert rendered.depth[0, 0, 0] == pytest.approx(1.6, abs=2e-3)
    assert rendered.depth[0, 1, 0] == 0.0 and rendered.opacity[0, 1, 0] == 0.0
    assert torch.equal(rendered.color[0, 1], torch.ones(3))


def test_compositing_small_numbers_by_hand():
    rgb = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    density, deltas = torch.tensor([math.log(2.0), math.log(4.0)]), torch.tensor([1.0, 1.0])
    seen = composite(rgb, density, torch.tensor([1.0, 3.0]), deltas, background=torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(seen.weights, torch.tensor([0.5, 0.375]))
    torch.testing.assert_close(seen.color, torch.tensor([0.5, 0.375, 0.125]))
    torch.testing.assert_close(seen.opacity, torch.tensor([0.875]))
    torch.testing.assert_close(seen.depth, torch.tensor([(0.5 + 3 * 0.375) / 0.875]))


def test_background_is_black_unless_given():
    nothing = (torch.ones(4, 3), torch.zeros(4), torch.arange(4.0), torch.ones(4))
    assert torch.equal(composite(*nothing).color, torch.zeros(3))
    assert torch.equal(composite(*nothing, background=0.25).color, torch.full((3,), 0.25))


def test_a_uniform_slab_does_not_depend_on_how_it_is_divided():
    origins, directions = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    for count in (2, 7, 100):
        samples = sample_along_rays(origins, directions, 0.5, 2.0, count, generator, stratified=True)
        opacity = composite(samples.points, torch.full((1, count), 0.8), samples.distances, samples.deltas).opacity
        assert opacity.item() == pytest.approx(1 - math.exp(-0.8 * 1.5), abs=1e-6)


def test_stratified_samples_stay_in_their_intervals_and_follow_the_generator():
    origins, directions = torch.zeros(50, 3), torch.tensor([[0.0, 1.0, 0.0]]).expand(50, 3)

    def draw(seed):
        return sample_along_rays(
            origins, directions, 1.0, 3.0, 16, torch.Generator().manual_seed(seed), stratified=True
        )

    samples = draw(0)
    assert (samples.distances >= samples.edges[:, :-1]).all() and (samples.distances <= samples.edges[:, 1:]).all()
    assert samples.distances.std(dim=0).min() > 0.02
    torch.testing.assert_close(samples.points[..., 1], samples.distances)
    assert torch.equal(samples.distances, draw(0).distances) and not torch.equal(samples.distances, draw(1).distances)
    with pytest.raises(ValueError, match="needs a `generator`"):
        sample_along_rays(origins, directions, 1.0, 3.0, 16, stratified=True)


def test_near_and_far_may_differ_between_scenes_and_rays():
    origins, directions = torch.zeros(2, 3, 3), torch.tensor([0.0, 0.0, 1.0]).expand(2, 3, 3)
    samples = sample_along_rays(origins, directions, torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]), 4)
    torch.testing.assert_close(samples.distances[0, 2], torch.tensor([1.125, 1.375, 1.625, 1.875]))
    torch.testing.assert_close(samples.distances[1, 0], torch.tensor([2.25, 2.75, 3.25, 3.75]))
    samples = sample_along_rays(origins, directions, 0.0, torch.arange(1.0, 7.0).reshape(2, 3), 2)
    torch.testing.assert_close(samples.deltas[1, 2], torch.tensor([3.0, 3.0]))


def test_infinite_last_interval_makes_every_ray_opaque():
    origins, directions = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]])
    samples = sample_along_rays(origins, directions, 2.0, 6.0, 5, last_interval_infinite=True)
    assert samples.distances.tolist() == [[2.0, 3.0, 4.0, 5.0, 6.0]]
    seen = composite(torch.full((1, 5, 3), 0.3), torch.full((1, 5), 1e-3), samples.distances, samples.deltas, 1.0)
    torch.testing.assert_close(seen.opacity, torch.ones(1, 1))
    torch.testing.assert_close(seen.color, torch.full((1, 3), 0.3))
    generator = torch.Generator().manual_seed(0)
    perturbed = sample_along_rays(origins, directions, 2.0, 6.0, 5, generator, True, last_interval_infinite=True)
    assert 2.0 <= perturbed.distances[0, 0] <= 2.5 and 5.5 <= perturbed.distances[0, 4] <= 6.0
    torch.testing.assert_close(perturbed.deltas[:, :-1], perturbed.distances.diff())


def test_importance_samples_gather_where_the_weights_are():
    origins, directions = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3)
    coarse = sample_along_rays(origins, directions, 0.0, 10.0, 10)
    weights = torch.zeros(2, 10)
    weights[0, 3] = 0.9  # the second ray meets nothing
    fine = importance_sample(origins, directions, coarse, weights, 100)
    inside = ((fine.distances > 3.0) & (fine.distances < 4.0)).sum(-1)
    beside = ((fine.distances > 2.0) & (fine.distances < 5.0)).sum(-1)  # the weights are widened by one interval
    assert 46 <= inside[0] <= 50 and 95 <= beside[0] <= 98
    assert inside[1] == 10 and beside[1] == 30
    torch.testing.assert_close(fine.edges[:, [0, -1]], torch.tensor([[0.0, 10.0]] * 2))
    assert (fine.deltas > 0).all()
    generator = torch.Generator().manual_seed(0)
    drawn = importance_sample(origins, directions, coarse, weights, 100, generator, stratified=True)
    assert torch.equal(drawn.edges, fine.edges) and not torch.equal(drawn.distances, fine.distances)
    with pytest.raises(ValueError, match="finite intervals"):
        infinite = sample_along_rays(origins, directions, 0.0, 10.0, 10, last_interval_infinite=True)
        importance_sample(origins, directions, infinite, weights, 8)


def test_importance_sampling_finds_a_surface_better_than_as_many_even_samples(cameras):
    ball = Ball(density=300.0)
    origins, directions = (rays.flatten(0, 2) for rays in cameras.rays())
    closest = -(origins * directions).sum(-1)
    half_chord = (0.4**2 - (origins + closest[:, None] * directions).square().sum(-1)).clamp(min=0).sqrt()
    hit = half_chord > 0.1
    depth = (closest - half_chord)[hit] + 1 / 300
    errors = [
        (render_rays(ball, origins[hit], directions[hit], 1.2, 2.8, **samples).depth[0, :, 0] - depth).abs().mean()
        for samples in ({"num_samples": 96}, {"num_samples": 32, "num_importance_samples": 64})
    ]
    assert errors[1] < 0.3 * errors[0]


def test_gradients_reach_the_field():
    color, density = torch.tensor([0.3, 0.3, 0.3], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    target = 0.9

    def field(points, directions):
        return torch.cat([color.expand(1, len(points), 3), density.expand(1, len(points), 1)], dim=-1)

    origins, directions = torch.zeros(4, 3), torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3)
    seen = render_rays(field, origins, directions, 0.0, 2.0, 32, background=0.0)
    (seen.color - target).square().mean().backward()
    absorbed = 1 - math.exp(-1.0)  # density 0.5 along 2 units
    residual = 2 * (0.3 * absorbed - target)
    torch.testing.assert_close(color.grad, torch.full((3,), residual * absorbed / 3))
    assert density.grad.item() == pytest.approx(residual * 0.3 * 2.0 * math.exp(-1.0), rel=1e-4)


def test_gradients_are_those_of_the_closed_form_with_skipping_too():
    density = torch.tensor(2.0, requires_grad=True)

    def field(points, directions):
        inside = points.expand(1, -1, -1).abs().amax(-1, keepdim=True) < 0.25
        return torch.cat([torch.zeros(*inside.shape[:2], 3), density * inside], dim=-1)

    cameras = Cameras.orbit(1, elevation=0.0, height=2, width=2, fov_y=0.05, near=1.0, far=3.0)
    grid = OccupancyGrid.from_field(field, resolution=16)
    opacity = render_views(field, cameras, 256, grid=grid).opacity
    opacity.mean().backward()
    assert density.grad.item() == pytest.approx(0.5 * math.exp(-2.0 * 0.5), rel=0.02)


@pytest.mark.parametrize("kind", ["chair", "shelf", "car"])
def test_skipping_changes_nothing_that_can_be_seen_and_saves_evaluations(kind):
    field = radiance_field([ProceduralScene.build(kind, np.random.default_rng(3))])
    evaluations = []

    def counted(points, directions):
        evaluations.append(points.shape[-2])
        return field(points, directions)

    cameras = Cameras.orbit(4, radius=2.0, height=40, width=40, near=1.2, far=2.8)
    dense = render_views(counted, cameras)
    num_dense = sum(evaluations)
    assert num_dense == 4 * 40 * 40 * 256
    grid = OccupancyGrid.from_field(field, resolution=40)
    evaluations.clear()
    sparse = render_views(counted, cameras, grid=grid)
    assert (dense.colors - 1).abs().max() > 0.3  # there is something to be seen
    assert (dense.colors - sparse.colors).abs().max() < 1 / 255
    assert (dense.opacity - sparse.opacity).abs().max() < 1 / 255
    assert (dense.depth - sparse.depth).abs().max() < 0.01
    assert 10 * (sum(evaluations) + 41**3) < num_dense


def test_thin_haze_is_either_rendered_or_below_the_tolerance(cameras):
    def haze(density):
        def field(points, directions):
            return torch.tensor([0.0, 0.0, 0.0, density]).expand(1, points.shape[-2], 4)

        return field

    for density, occupied in ((5e-4, False), (5e-2, True)):
        grid = OccupancyGrid.from_field(haze(density), resolution=8)
        assert grid.occupied.all().item() is occupied
        full = render_views(haze(density), cameras, 64, bounds=(-0.5, 0.5))
        sparse = render_views(haze(density), cameras, 64, grid=grid, bounds=(-0.5, 0.5))
        assert (full.colors - sparse.colors).abs().max() < 1 / 255


def test_scenes_of_a_batch_do_not_influence_each_other(cameras):
    radii = (0.4, 0.05, 0.25, 0.0)
    grid = OccupancyGrid.from_field(Ball(radii, density=50.0), resolution=32)
    assert len(grid) == 4 and not grid.occupied[3].any()
    together = render_views(Ball(radii, density=50.0), cameras, 128, grid=grid)
    assert together.colors.shape == (4, 2, 12, 16, 3) and together.depth.shape == (4, 2, 12, 16, 1)
    for index, radius in enumerate(radii):
        field = Ball((radius,), density=50.0)
        alone = render_views(field, cameras, 128, grid=OccupancyGrid.from_field(field, resolution=32))
        for ours, theirs in zip(together, alone):
            torch.testing.assert_close(ours[index], theirs[0], atol=1e-6, rtol=0)
    assert torch.equal(together.colors[3], torch.ones_like(together.colors[3]))


@pytest.mark.parametrize("with_grid", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 1000, 4096, 10**9])
def test_chunks_do_not_change_the_picture(cameras, with_grid, chunk_size):
    ball = Ball(density=15.0)
    grid = OccupancyGrid.from_field(ball, resolution=24) if with_grid else None
    whole = render_views(ball, cameras[:1], 24, grid=grid)
    chunked = render_views(ball, cameras[:1], 24, grid=grid, chunk_size=chunk_size)
    for ours, theirs in zip(chunked, whole):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_rays_stop_when_opaque(cameras):
    ball = Ball(density=400.0)
    grid = OccupancyGrid.from_field(ball, resolution=32, dilation=0)
    counts = []
    for stop in (1e-3, 1e-30):
        ball.evaluations = 0
        render_views(ball, cameras, 512, grid=grid, stop_transmittance=stop)
        counts.append(ball.evaluations)
    assert 2 * counts[0] < counts[1]


def test_an_infinite_last_interval_is_evaluated_with_a_grid_too(cameras):
    def field(points, directions):
        points = points.expand(1, -1, -1)
        inside = points.norm(dim=-1, keepdim=True) < 0.3
        return torch.where(inside, torch.tensor([0.9, 0.1, 0.1, 80.0]), torch.tensor([0.2, 0.3, 0.4, 1e-4]))

    grid = OccupancyGrid.from_field(field, resolution=32)
    dense = render_views(field, cameras, 256, last_interval_infinite=True)
    sparse = render_views(field, cameras, 256, grid=grid, last_interval_infinite=True)
    assert (dense.colors - sparse.colors).abs().max() < 1 / 255
    torch.testing.assert_close(sparse.colors[0, 0, 0, 0], torch.tensor([0.2, 0.3, 0.4]), atol=1e-3, rtol=0)


def test_bounds_cut_the_scene_off(cameras):
    def everywhere(points, directions):
        return torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(1, points.shape[-2], 4)

    views = render_views(everywhere, cameras, 64, bounds=((-0.3, -0.2, -0.1), (0.3, 0.2, 0.1)))
    origins, directions = cameras.rays()
    near, far = clip_to_bounds(origins, directions, 1.2, 2.8, ((-0.3, -0.2, -0.1), (0.3, 0.2, 0.1)))
    assert (far == near).any() and (far > near).any()
    torch.testing.assert_close(views.opacity[0, ..., 0], 1 - torch.exp(near - far), atol=1e-5, rtol=0)


def test_clipping_a_ray_worked_out_by_hand():
    origins = torch.tensor([[-3.0, 0.0, 0.0], [-3.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    near, far = clip_to_bounds(origins, directions, 0.5, 10.0, (-1.0, 1.0))
    assert near.tolist() == [2.0, 0.5, 0.5] and far.tolist() == [4.0, 0.5, 1.0]


def test_grid_marks_cells_around_what_is_there():
    grid = OccupancyGrid.from_field(Ball((0.2,), density=10.0), (-0.5, 0.5), 20, dilation=0)
    centers = (torch.arange(20) + 0.5) / 20 - 0.5
    distance = torch.cartesian_prod(centers, centers, centers).norm(dim=-1).reshape(20, 20, 20)
    half_diagonal = 0.5 * math.sqrt(3) / 20
    assert grid.occupied[0][distance < 0.2 - half_diagonal].all()
    assert not grid.occupied[0][distance > 0.2 + half_diagonal].any()
    wider = OccupancyGrid.from_field(Ball((0.2,), density=10.0), (-0.5, 0.5), 20, dilation=1)
    assert (wider.occupied | ~grid.occupied).all() and wider.occupied.sum() > grid.occupied.sum()


def test_grid_axes_are_x_y_z():
    occupied = torch.zeros(1, 2, 3, 4, dtype=torch.bool)
    occupied[0, 1, 0, 3] = True
    grid = OccupancyGrid(occupied, ((0.0, 0.0, 0.0), (2.0, 3.0, 4.0)))
    origins = torch.tensor([[1.5, 0.5, 3.5], [0.5, 1.5, 3.5], [1.5, 0.5, 4.5], [1.5, -0.5, 3.5]])
    found = grid.mask(origins, torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3), torch.zeros(4, 1))
    assert found[0, :, 0].tolist() == [True, False, False, False]


def test_fields_that_return_not_a_number_are_not_hidden():
    grid = OccupancyGrid.from_field(
        lambda points, directions: torch.full((1, len(points), 4), float("nan")), resolution=4
    )
    assert grid.occupied.all()


def test_density_as_a_shape_and_colours_of_its_surface():
    ball = Ball((0.3, 0.1), density=20.0)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.4, 0.0, 0.0]])
    occupancy = density_as_occupancy(ball, density_threshold=10.0)(points)
    assert occupancy.shape == (2, 3, 1)
    assert (occupancy[..., 0] > 0).tolist() == [[True, True, False], [True, False, False]]
    assert occupancy[0, 0, 0].item() == pytest.approx(math.log(2.0))
    seen_from = []

    def field(points, directions):
        seen_from.append(directions)
        return ball(points, directions)

    normals = torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3)
    colors = surface_colors(field, points, normals)
    torch.testing.assert_close(colors, COLOR.expand(2, 3, 3))
    assert torch.equal(seen_from[0], -normals)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: render_views(Ball(), c, 1), "`num_samples` must be at least 2, got 1"),
        (lambda c: render_views(Ball(), c, chunk_size=0), "`chunk_size` must be positive, got 0"),
        (lambda c: render_views(lambda p, directions: p, c), r"must return \(batch, \d+, 4\)"),
        (lambda c: OccupancyGrid.from_field(Ball(), (0.5, -0.5)), "low < high"),
        (lambda c: OccupancyGrid.from_field(Ball(), resolution=0), "`resolution` must be positive"),
        (lambda c: OccupancyGrid(torch.ones(1, 2, 2, 2), (-1.0, 1.0)), "boolean"),
        (lambda c: sample_along_rays(torch.zeros(3), torch.zeros(3), 0.0, 1.0, 4), "one shape"),
        (lambda c: sample_along_rays(torch.zeros(2, 3), torch.zeros(3, 3), 0.0, 1.0, 4), "one shape"),
        (lambda c: sample_along_rays(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3), 1.0, 4), "`near` of shape"),
        (lambda c: density_as_occupancy(Ball(), 0.0), "`density_threshold` must be positive"),
    ],
)
def test_bad_arguments_are_named(cameras, call, message):
    with pytest.raises(ValueError, match=message):
        call(cameras)
