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
"""Regular grids: where their points are, and what a field's values on them become."""

import math

import pytest
import torch

from diffusers_ddmi.rendering import grids
from diffusers_ddmi.rendering.grids import cell_centres, check_region, evaluate_grid, grid_coordinates, render_pixels


def position(coords: torch.Tensor) -> torch.Tensor:
    """A field whose value is where it is read: (points, axes) to (1, points, axes)."""
    return coords[None].clone()


def checked(coords: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Two signals (batch) of two values."""
    x, y = coords.unbind(-1)
    return torch.stack([torch.stack([x, x * y], dim=-1), torch.stack([y, y - x], dim=-1)])


class Recorder:
    """A field that keeps what it was called with."""

    def __init__(self, field):
        self.field = field
        self.points, self.scales = [], []

    def __call__(self, coords: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        self.points.append(len(coords))
        self.scales.append(scale)
        return self.field(coords)


# Coordinates


@pytest.mark.parametrize("count", [1, 2, 7, 256, 4096])
def test_pixel_centres(count):
    """(2i + 1) / n - 1."""
    expected = torch.tensor([(2 * i + 1) / count - 1 for i in range(count)])
    torch.testing.assert_close(cell_centres(count), expected, rtol=0, atol=1e-7)


def test_the_same_position_is_the_same_coordinate_in_every_grid():
    """Thirds of a grid: the middle third has the centre of the coarse cell, to the last bit."""
    for count in (5, 64, 100, 255):
        assert torch.equal(cell_centres(3 * count)[1::3], cell_centres(count))
    half = cell_centres(64, 0.0, 1.0)
    assert torch.equal(half, cell_centres(128)[64:])


def test_cells_of_an_interval():
    assert cell_centres(4, 2.0, 6.0).tolist() == [2.5, 3.5, 4.5, 5.5]


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
def test_wrong_count(count):
    with pytest.raises(ValueError, match=f"positive whole number of cells.*got {count!r}"):
        cell_centres(count)


@pytest.mark.parametrize("interval", [(1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_wrong_interval(interval):
    with pytest.raises(ValueError, match="low < high"):
        cell_centres(3, *interval)


def test_x_varies_fastest():
    x, y, z = torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 20]), torch.tensor([100.0, 200, 300, 400])
    points = grid_coordinates(x, y, z)
    assert points.shape == (24, 3)
    assert points[:4].tolist() == [[1, 10, 100], [2, 10, 100], [3, 10, 100], [1, 20, 100]]
    shaped = points.reshape(4, 2, 3, 3)
    assert shaped[2, 1, 0].tolist() == [1, 20, 300]


# Evaluation


@pytest.mark.parametrize("at_once", [1, 5, 2**18])
def test_slabs_do_not_change_values(monkeypatch, at_once):
    monkeypatch.setattr(grids, "_POINTS_AT_ONCE", at_once)
    axes = (cell_centres(6), cell_centres(4))
    values = evaluate_grid(checked, axes)
    assert values.shape == (2, 4, 6, 2)
    torch.testing.assert_close(values, checked(grid_coordinates(*axes)).view(2, 4, 6, 2))


def test_slabs_bound_the_points(monkeypatch):
    monkeypatch.setattr(grids, "_POINTS_AT_ONCE", 13)
    field = Recorder(position)
    evaluate_grid(field, (cell_centres(6), cell_centres(5)))
    assert field.points == [12, 12, 6]


def test_three_axes():
    axes = (cell_centres(2), cell_centres(3), torch.tensor([0.5]))
    values = evaluate_grid(position, axes)
    assert values.shape == (1, 1, 3, 2, 3)
    x, y, t = values[0].unbind(-1)
    assert torch.equal(x, cell_centres(2).expand(1, 3, 2))
    assert torch.equal(y, cell_centres(3)[:, None].expand(1, 3, 2))
    assert (t == 0.5).all()


@pytest.mark.parametrize("at_once", [1, 40, 2**18])
def test_samples_are_averaged_in_groups(monkeypatch, at_once):
    monkeypatch.setattr(grids, "_POINTS_AT_ONCE", at_once)
    axes = (cell_centres(6), cell_centres(8))
    fine = evaluate_grid(checked, axes)
    pooled = evaluate_grid(checked, axes, pool=(3, 2))
    expected = torch.nn.functional.avg_pool2d(fine.permute(0, 3, 1, 2), (2, 3)).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled, expected, rtol=1e-6, atol=1e-6)


def test_values_are_float32():
    assert evaluate_grid(lambda coords: position(coords).bfloat16(), (cell_centres(3),)).dtype == torch.float32


def test_gradients_pass_through_slabs_and_averages(monkeypatch):
    monkeypatch.setattr(grids, "_POINTS_AT_ONCE", 10)
    weight = torch.tensor(2.0, requires_grad=True)
    evaluate_grid(
        lambda coords: weight * position(coords) ** 2, (cell_centres(4), cell_centres(4)), (2, 2)
    ).sum().backward()
    squares = sum(((2 * i + 1) / 4 - 1) ** 2 for i in range(4))
    assert weight.grad.item() == pytest.approx(2 * 4 * squares / 4)


@pytest.mark.parametrize("pool", [(4, 1), (1, 0), (1, -2)])
def test_wrong_pool(pool):
    with pytest.raises(ValueError, match="6 samples cannot be averaged in groups of"):
        evaluate_grid(checked, (cell_centres(6), cell_centres(6)), pool)


# Pixels


def test_pixels_are_read_at_their_centres():
    pixels = render_pixels(position, 3, 5, native_size=2)
    assert pixels.shape == (1, 3, 5, 2)
    assert torch.equal(pixels[0, :, :, 0], cell_centres(5).expand(3, 5))
    assert torch.equal(pixels[0, :, :, 1], cell_centres(3)[:, None].expand(3, 5))


def test_a_region_is_a_crop():
    """The same values, at the same places, as a crop of the whole picture."""
    whole = render_pixels(checked, 16, 24, native_size=8, min_scale=0.1)
    crop = render_pixels(checked, 4, 6, native_size=8, region=(-0.5, 0.5, 0.0, 1.0), min_scale=0.1)
    torch.testing.assert_close(crop, whole[:, 12:16, 6:12], rtol=0, atol=1e-6)


def test_fewer_pixels_than_native_are_averages():
    """A wave that is finer than the pixels vanishes instead of aliasing into a coarse one."""

    def wave(coords: torch.Tensor) -> torch.Tensor:
        return torch.cos(24 * math.pi * coords[:, :1])[None]  # 24 periods across

    field = Recorder(wave)
    coarse = render_pixels(field, 8, 24, native_size=240)
    assert coarse.abs().max() < 1e-4
    assert sum(field.points) == 240 * 240
    aliased = wave(grid_coordinates(cell_centres(24), cell_centres(8)))
    assert aliased.abs().min() > 0.99


@pytest.mark.parametrize(
    ("size", "native_size", "samples"),
    [(8, 8, 8), (16, 8, 16), (4, 8, 8), (3, 8, 9), (7, 8, 14), (1, 8, 8), (6, 18, 18)],
)
def test_samples_are_at_least_as_fine_as_native(size, native_size, samples):
    field = Recorder(position)
    pixels = render_pixels(field, size, size, native_size, min_scale=0.01)
    assert sum(field.points) == samples**2
    assert field.scales == [pytest.approx(min(1, native_size / samples))]
    # Averages of positions over a pixel are its centre.
    torch.testing.assert_close(pixels[0, 0, :, 0], cell_centres(size), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "region", "scale"),
    [
        (8, None, 1.0),
        (12, None, 1 / 1.5),
        (16, None, 0.5),
        (64, None, 0.5),
        (4, None, 1.0),
        (8, (0.0, 0.0, 1.0, 1.0), 0.5),
        (4, (0.0, 0.0, 1.0, 1.0), 1.0),
        (2, (0.0, 0.0, 1.0, 1.0), 1.0),
    ],
)
def test_scale_is_the_spacing_of_samples(size, region, scale):
    """Relative to 8 native pixels, not below what was trained."""
    field = Recorder(position)
    render_pixels(field, size, size, 8, region, min_scale=0.5)
    assert field.scales == [pytest.approx(scale)]


def test_fields_without_a_scale_are_not_given_one():
    field = Recorder(position)
    render_pixels(field, 4, 4, 8)
    assert field.scales == [None]


def test_frames():
    times = torch.tensor([-1.0, 0.0, 0.25])
    frames = render_pixels(position, 2, 4, 8, times=times)
    assert frames.shape == (1, 3, 2, 4, 3)
    assert torch.equal(frames[0, :, 0, 0, 2], times)
    torch.testing.assert_close(frames[0, 1, :, :, 0], cell_centres(4).expand(2, 4), rtol=0, atol=1e-6)


def test_other_bounds():
    pixels = render_pixels(position, 2, 2, 2, bounds=(0.0, 4.0))
    assert pixels[0, :, :, 0].tolist() == [[1, 3], [1, 3]]


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "8"])
def test_wrong_size(size):
    with pytest.raises(ValueError, match=f"`height` must be a positive whole number of pixels, got {size!r}"):
        render_pixels(position, size, 4, 8)
    with pytest.raises(ValueError, match=f"`width` must be a positive whole number of pixels, got {size!r}"):
        render_pixels(position, 4, size, 8)


def test_region_by_default():
    assert check_region(None, (-1, 1)) == (-1, -1, 1, 1)
    assert check_region([-1, 0, 0.5, 1], (-1, 1)) == (-1.0, 0.0, 0.5, 1.0)
    assert check_region(None, (0, 2), "xyz") == (0, 0, 0, 2, 2, 2)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0, 0, 1), r"must be numbers \(x0, y0, x1, y1\), got \(0, 0, 1\)"),
        ("zoom", r"must be numbers \(x0, y0, x1, y1\), got 'zoom'"),
        (0.5, r"must be numbers \(x0, y0, x1, y1\), got 0.5"),
        ((0, 0, 1, "a"), r"must be numbers \(x0, y0, x1, y1\), got"),
        ((0, 0, 1.5, 1), r"inside \[-1, 1\].*got x from 0 to 1.5"),
        ((0, -2, 1, 1), r"got y from -2 to 1"),
        ((0.5, 0, 0.5, 1), r"x0 < x1, got x from 0.5 to 0.5"),
        ((0, 1, 1, -1), r"y0 < y1, got y from 1 to -1"),
        ((0, 0, float("nan"), 1), r"x from 0 to nan"),
    ],
)
def test_wrong_region(region, message):
    with pytest.raises(ValueError, match=message):
        check_region(region, (-1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        render_pixels(position, 4, 4, 8, region=region)
