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
"""γ, held against functions whose values are known, and D, the decoder that makes basis fields."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from diffusers_ddmi import BasisFieldDecoder, BasisFields
from diffusers_ddmi.rendering.grids import cell_centres, grid_coordinates


TRIPLANE = ("xy", "xz", "yz")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def draw_coords(*shape: int, low: float, high: float, seed: int = 0) -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator(seed))


def node_positions(size: int, extent: tuple[float, float], align_corners: bool) -> torch.Tensor:
    """Where the values of a plane's cells stand, along one axis."""
    low, high = extent
    if align_corners:
        return torch.linspace(low, high, size, dtype=torch.float64)
    return low + (high - low) * (torch.arange(size, dtype=torch.float64) + 0.5) / size


def affine_planes(
    coefficients: torch.Tensor, sizes: list[tuple[int, int]], extent: tuple[float, float], align_corners: bool
) -> list[torch.Tensor]:
    """Planes filled with `a * first + b * second + c`; coefficients (batch, planes, channels, 3), sizes (height, width)."""
    planes = []
    for plane, (height, width) in enumerate(sizes):
        first = node_positions(width, extent, align_corners)
        second = node_positions(height, extent, align_corners)[:, None]
        a, b, c = coefficients[:, plane].double().unbind(-1)
        a, b, c = (part[..., None, None] for part in (a, b, c))
        planes.append(a * first + b * second + c)
    return planes


def affine_values(
    coefficients: torch.Tensor, coords: torch.Tensor, axes: str, planes: tuple[str, ...]
) -> torch.Tensor:
    """The same functions at coordinates (batch or 1, points, axes): (batch, points, planes, channels)."""
    values = []
    for index, plane in enumerate(planes):
        first, second = (coords[..., axes.index(axis)].double()[..., None] for axis in plane)
        a, b, c = coefficients[:, index, None].double().unbind(-1)
        values.append(a * first + b * second + c)
    return torch.stack(values, dim=2)


SIGNALS = {  # axes, planes, extent, sizes of the finest planes (height, width)
    "image": ("xy", ("xy",), (-1.0, 1.0), [(8, 12)]),
    "shape": ("xyz", TRIPLANE, (-0.55, 0.55), [(8, 8)] * 3),
    "video": ("xyt", ("xy", "xt", "yt"), (-1.0, 1.0), [(8, 12), (5, 12), (5, 8)]),
    "world": ("xyz", ("xz", "zy"), (2.0, 6.0), [(8, 12), (4, 8)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("reduction", ["sum", "concat"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("signal", SIGNALS)
def test_affine_planes_interpolate_to_their_function(signal, align_corners, reduction, dtype):
    axes, planes, extent, sizes = SIGNALS[signal]
    batch, channels = 3, 4
    coefficients = draw(batch, len(planes), channels, 3)
    scales = [[(height * 2**s, width * 2**s) for height, width in sizes] for s in range(3)]
    fields = [
        [plane.to(dtype) for plane in affine_planes(coefficients, scale, extent, align_corners)] for scale in scales
    ]
    basis_fields = BasisFields(fields, axes, planes, extent, align_corners, reduction)
    # Where the outermost cells are not repeated: everywhere, or half a cell of the coarsest planes inside.
    margin = 0 if align_corners else (extent[1] - extent[0]) / 2 / min(min(size) for size in sizes)
    coords = draw_coords(batch, 200, len(axes), low=extent[0] + margin, high=extent[1] - margin)
    coords[:, 0], coords[:, 1] = extent[0] + margin, extent[1] - margin

    values = affine_values(coefficients, coords, axes, planes)
    expected = values.sum(2) if reduction == "sum" else values.flatten(2)
    embeddings = basis_fields.interpolate(coords)
    assert len(embeddings) == 3
    # Coordinates are float32; values, weights and the result are rounded to the fields' dtype.
    largest = max(plane.abs().max().item() for plane in fields[-1]) * len(planes)
    tolerance = 3 * largest * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for embedding in embeddings:
        assert embedding.dtype == dtype
        torch.testing.assert_close(embedding.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("align_corners", [False, True])
def test_shared_coordinates_are_those_of_every_item(align_corners):
    fields = [[draw(3, 4, 5, 6, seed=plane) for plane in range(3)]]
    basis_fields = BasisFields(fields, "xyz", TRIPLANE, (-1, 1), align_corners, "concat")
    coords = draw_coords(50, 3, low=-1.2, high=1.2)
    (shared,) = basis_fields.interpolate(coords)
    (leading,) = basis_fields.interpolate(coords[None])
    (repeated,) = basis_fields.interpolate(coords.expand(3, -1, -1))
    assert torch.equal(shared, repeated)
    assert torch.equal(shared, leading)
    assert (shared[0] - shared[1]).abs().max() > 0.1


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 4)])
def test_agrees_with_grid_sample(size, align_corners):
    """Also outside of the extent, and for planes of a single row."""
    field = draw(2, 3, *size)
    coords = draw_coords(2, 300, 2, low=-1.7, high=1.7)
    (embedding,) = BasisFields([[field]], "xy", ("xy",), (-1, 1), align_corners, "concat").interpolate(coords)
    sampled = F.grid_sample(field, coords[:, None], padding_mode="border", align_corners=align_corners)
    torch.testing.assert_close(embedding, sampled[:, :, 0].transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_outermost_cells_are_repeated_outside(align_corners):
    field = draw(1, 2, 4, 5)
    basis_fields = BasisFields([[field]], "xy", ("xy",), (0.0, 2.0), align_corners, "concat")
    (values,) = basis_fields.interpolate(torch.tensor([[-9.0, -9], [9, -9], [-9, 9], [9, 9], [float("inf"), -9]]))
    corners = field[0, :, [0, 0, -1, -1, 0], [0, -1, 0, -1, -1]].T
    assert torch.equal(values[0], corners)


def test_native_grid_is_the_identity():
    """Images are read at their own pixels without interpolation."""
    field = draw(1, 3, 6, 6)
    pixels = grid_coordinates(cell_centres(6), cell_centres(6))
    (values,) = BasisFields([[field]], "xy", ("xy",), (-1, 1), False, "concat").interpolate(pixels)
    torch.testing.assert_close(values[0], field[0].flatten(1).T, rtol=0, atol=1e-6)


def test_coordinates_that_are_not_numbers():
    basis_fields = BasisFields([[draw(2, 3, 4, 4)]], "xy", ("xy",), (-1, 1), False, "concat")
    (values,) = basis_fields.interpolate(torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]))
    assert values[:, 0].isnan().all()
    assert values[:, 1].isfinite().all()


def test_crossed_plane_coordinates():
    """What weights of the official video model need: the axes that drive a plane are not those of its name."""
    xt = draw(1, 2, 3, 6)
    coords = draw_coords(40, 3, low=-1, high=1)
    straight = BasisFields([[xt]], "xyt", ("xt",), (-1, 1), True, "concat").interpolate(coords[:, [2, 1, 0]])[0]
    crossed = BasisFields([[xt]], "xyt", ("tx",), (-1, 1), True, "concat").interpolate(coords)[0]
    assert torch.equal(straight, crossed)
    uncrossed = BasisFields([[xt]], "xyt", ("xt",), (-1, 1), True, "concat").interpolate(coords)[0]
    assert (uncrossed - crossed).abs().max() > 0.1


@pytest.mark.parametrize("reduction", ["sum", "concat"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_gradients(align_corners, reduction):
    """To the planes and to the coordinates, against finite differences in float64."""
    planes = [draw(2, 1, 2, 2, seed=plane, dtype=torch.float64).requires_grad_() for plane in range(3)]
    coords = draw_coords(2, 3, 3, low=-0.9, high=0.9).double().requires_grad_()

    def interpolate(coords, *planes):
        return BasisFields([planes], "xyz", TRIPLANE, (-1, 1), align_corners, reduction).interpolate(coords)[0]

    assert torch.autograd.gradcheck(interpolate, (coords, *planes))
    shared = coords.detach()[0].requires_grad_()
    assert torch.autograd.gradcheck(interpolate, (shared, *planes), fast_mode=True)


def test_gradients_of_the_coordinates_are_the_slopes():
    coefficients = draw(1, 1, 1, 3)
    planes = [plane.float() for plane in affine_planes(coefficients, [(9, 7)], (-1, 1), False)]
    coords = draw_coords(30, 2, low=-0.8, high=0.8).requires_grad_()
    BasisFields([planes], "xy", ("xy",), (-1, 1), False, "concat").interpolate(coords)[0].sum().backward()
    torch.testing.assert_close(coords.grad, coefficients[0, 0, :, :2].expand(30, 2), rtol=1e-4, atol=1e-4)


def test_fields_come_back_as_they_went_in():
    fields = [
        [draw(3, 4, 2, 3), draw(3, 4, 5, 2)],
        [draw(3, 4, 4, 6, seed=1), draw(3, 4, 5, 4, seed=1)],
    ]
    basis_fields = BasisFields(fields, "xyt", ("xy", "yt"), (-1, 1), False, "sum")
    for scale, planes in enumerate(fields):
        for plane, returned in zip(planes, basis_fields.fields(scale), strict=True):
            assert torch.equal(plane, returned)


def test_select_and_cat_and_map():
    fields = [[draw(3, 4, 2 * s, 3 * s, seed=s), draw(3, 4, 5, 2 * s, seed=s + 9)] for s in (1, 2)]
    basis_fields = BasisFields(fields, "xyt", ("xy", "yt"), (-1, 1), False, "concat")
    coords = draw_coords(3, 20, 3, low=-1, high=1)
    whole = basis_fields.interpolate(coords)
    parts = [basis_fields.select(item) for item in range(3)]
    for item, part in enumerate(parts):
        for all_values, values in zip(whole, part.interpolate(coords[item : item + 1]), strict=True):
            assert torch.equal(values, all_values[item : item + 1])
    for joined, values in zip(BasisFields.cat(parts).interpolate(coords), whole, strict=True):
        assert torch.equal(joined, values)
    for doubled, values in zip(basis_fields.map(lambda rows: 2 * rows).interpolate(coords), whole, strict=True):
        torch.testing.assert_close(doubled, 2 * values)


def test_wrong_fields():
    with pytest.raises(ValueError, match="'sum' or 'concat', got 'mean'"):
        BasisFields([[draw(1, 2, 3, 3)]], "xy", ("xy",), (-1, 1), False, "mean")
    with pytest.raises(ValueError, match=r"needs 3 planes.*got \[1\]"):
        BasisFields([[draw(1, 2, 3, 3)]], "xyz", TRIPLANE, (-1, 1), False, "sum")


# The decoder


def decoder(**changes) -> BasisFieldDecoder:
    options = {
        "sample_size": 16,
        "latent_channels": 3,
        "bottleneck_channels": 4,
        "block_out_channels": (8, 8, 16, 16),
        "norm_num_groups": 4,
        "basis_channels": 6,
    }
    torch.manual_seed(0)
    return BasisFieldDecoder(**{**options, **changes}).eval()


SHAPE = {"axes": "xyz", "planes": TRIPLANE, "reduction": "sum", "plane_mixing": "convolution"}
VIDEO = {
    "axes": "xyt",
    "planes": ("xy", "xt", "yt"),
    "fixed_axes": "t",
    "fixed_size": 3,
    "plane_mixing": "attention",
    "mixing_heads": 2,
}


@pytest.mark.parametrize("num_scales", [1, 2, 3, 4])
def test_scales_are_the_finest_levels(num_scales):
    model = decoder(num_scales=num_scales)
    basis_fields = model(draw(2, *model.layout.latent_shape(3)))
    assert basis_fields.num_scales == num_scales
    sizes = [[tuple(plane.shape) for plane in basis_fields.fields(scale)] for scale in range(num_scales)]
    assert sizes == [[(2, 6, side, side)] for side in (2, 4, 8, 16)[4 - num_scales :]]


def test_time_is_never_resampled():
    model = decoder(num_scales=2, **VIDEO)
    assert model.layout.plane_sizes == ((2, 2), (3, 2), (3, 2))
    basis_fields = model(draw(1, *model.layout.latent_shape(3)))
    assert basis_fields.sizes == [[(8, 8), (3, 8), (3, 8)], [(16, 16), (3, 16), (3, 16)]]


@pytest.mark.parametrize("options", [{}, SHAPE, VIDEO], ids=["image", "shape", "video"])
def test_items_of_a_batch_do_not_mix(options):
    model = decoder(**options)
    latents = draw(3, *model.layout.latent_shape(3))
    together = model(latents)
    for item in range(3):
        alone = model(latents[item : item + 1])
        for scale in range(3):
            for plane, expected in zip(alone.fields(scale), together.fields(scale), strict=True):
                torch.testing.assert_close(plane, expected[item : item + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "mixing"), [(SHAPE, "convolution"), (VIDEO, "attention")])
def test_planes_exchange_information_only_where_mixed(options, mixing):
    for plane_mixing in (mixing, None):
        model = decoder(**{**options, "plane_mixing": plane_mixing})
        planes = model.layout.unpack(draw(1, *model.layout.latent_shape(3)))
        changed = [planes[0] + 1, *planes[1:]]
        before, after = (model(model.layout.pack(latents)).fields(2) for latents in (planes, changed))
        assert (after[0] - before[0]).abs().max() > 1e-3
        for plane in (1, 2):
            assert bool((after[plane] - before[plane]).abs().max() > 1e-5) is (plane_mixing is not None)


def test_mixing_levels_leave_blocks_out():
    everywhere = decoder(**SHAPE)
    nowhere = decoder(**SHAPE, mixing_levels=(False,) * 4)
    finest = decoder(**SHAPE, mixing_levels=(True, False, False, False))
    assert [stage.mixing is None for stage in everywhere.trunk.stages] == [False] * 4
    assert [stage.mixing is None for stage in nowhere.trunk.stages] == [True] * 4
    assert [stage.mixing is None for stage in finest.trunk.stages] == [True, True, True, False]
    assert nowhere.trunk.middle.mixing is not None


def test_mixing_order_is_a_permutation_of_planes():
    """Permuting the order and the planes' own weights alike permutes the result."""
    order = (1, 2, 0)
    usual, ordered = decoder(**SHAPE), decoder(**SHAPE, mixing_order=order)
    ordered.load_state_dict(usual.state_dict())
    heads = usual.trunk.latent_heads
    for position, plane in enumerate(order):
        ordered.trunk.latent_heads[plane].load_state_dict(heads[position].state_dict())
    planes = usual.layout.unpack(draw(1, *usual.layout.latent_shape(3)))
    moved = [planes[order.index(plane)] for plane in range(3)]
    expected = usual(usual.layout.pack(planes)).fields(2)
    result = ordered(ordered.layout.pack(moved)).fields(2)
    for position, plane in enumerate(order):
        torch.testing.assert_close(result[plane], expected[position], rtol=1e-4, atol=1e-5)


def test_settings_reach_the_fields():
    model = decoder(**{**VIDEO, "plane_coordinates": ("xy", "tx", "ty")}, align_corners=True, extent=(-2, 2))
    basis_fields = model(draw(1, *model.layout.latent_shape(3)))
    assert basis_fields.planes == ("xy", "tx", "ty")
    assert (basis_fields.extent, basis_fields.align_corners, basis_fields.reduction) == ((-2, 2), True, "concat")


def test_decoder_save_and_load(tmp_path):
    model = decoder(**VIDEO)
    with torch.no_grad():
        for parameter, seed in zip(model.parameters(), itertools.count()):
            parameter.add_(draw(*parameter.shape, seed=seed), alpha=0.01)
    model.save_pretrained(tmp_path)
    loaded = BasisFieldDecoder.from_pretrained(tmp_path)
    latents = draw(1, *model.layout.latent_shape(3))
    for scale in range(3):
        for plane, expected in zip(loaded(latents).fields(scale), model(latents).fields(scale), strict=True):
            assert torch.equal(plane, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_scales": 0}, "between 1 and the 4 levels, got 0"),
        ({"num_scales": 5}, "between 1 and the 4 levels, got 5"),
        ({"sample_size": 20}, "multiple of 8.*got 20"),
        ({"sample_size": 16.0}, "multiple of 8.*got 16.0"),
        ({**SHAPE, "mixing_levels": (True,)}, r"one flag a level \(4\)"),
        ({**SHAPE, "plane_mixing": "mean"}, "'convolution' or 'attention', got 'mean'"),
        ({**VIDEO, "plane_mixing": "convolution"}, "Use 'attention'"),
        ({**VIDEO, "fixed_size": None}, "`fixed_size`"),
    ],
)
def test_wrong_config(options, message):
    with pytest.raises(ValueError, match=message):
        decoder(**options)
