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
"""A neural field is one function: however it is called, moved, or taken apart."""

import copy
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffusers_ddmi import BasisFields, NeuralField
from diffusers_ddmi.models.field import default_chunk_size
from diffusers_ddmi.models.readout import RadianceReadout, ResidualReadout, StyledReadout


BATCH, CHANNELS, HIDDEN = 3, 4, 16
KINDS = ("image", "shape", "nerf")
TRIPLANE = ("xy", "xz", "yz")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_coords(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def make_field(kind: str, batch: int = BATCH, **options) -> NeuralField:
    axes, planes = ("xy", ("xy",)) if kind == "image" else ("xyz", TRIPLANE)
    fields = [[draw(batch, CHANNELS, side, side, seed=10 * side + i) for i in range(len(planes))] for side in (4, 8)]
    basis_fields = BasisFields(fields, axes, planes, (-1.0, 1.0), False, "sum")
    torch.manual_seed(0)
    readout = {
        "image": partial(StyledReadout, CHANNELS, 3, HIDDEN),
        "shape": partial(ResidualReadout, CHANNELS, 1, HIDDEN, coordinate_channels=3),
        "nerf": partial(RadianceReadout, CHANNELS, 4, HIDDEN),
    }[kind](num_scales=2)
    for seed, parameter in enumerate(readout.parameters()):
        parameter.data.add_(draw(*parameter.shape, seed=seed), alpha=0.1)
    return NeuralField(basis_fields, readout, (-1.0, 1.0), **options)


def inputs(kind: str, *leading: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a field of this kind is called with."""
    given = {"coords": draw_coords(*leading, 2 if kind == "image" else 3, seed=seed)}
    if kind == "image":
        given["scale"] = 0.5
    elif kind == "nerf":
        given["directions"] = F.normalize(draw(*leading, 3, seed=seed + 1), dim=-1)
    return given


def rechunked(field: NeuralField, chunk_size: int | None) -> NeuralField:
    return NeuralField(field.basis_fields, field.readout, field.bounds, chunk_size)


@pytest.mark.parametrize("chunk_size", [1, 7, 4096, None])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_change_values(kind, chunk_size):
    field = make_field(kind)
    for leading in [(25,), (BATCH, 25)]:
        given = inputs(kind, *leading)
        whole = rechunked(field, 10**6)(**given)
        assert whole.isfinite().all()
        torch.testing.assert_close(rechunked(field, chunk_size)(**given), whole, rtol=1e-5, atol=1e-5)


def test_chunks_bound_what_is_evaluated_at_once(monkeypatch):
    field = make_field("image", chunk_size=12)
    lengths = []
    interpolate = BasisFields.interpolate
    monkeypatch.setattr(
        BasisFields, "interpolate", lambda self, coords: lengths.append(coords.shape[1]) or interpolate(self, coords)
    )
    field(draw_coords(10, 2))
    assert lengths == [4, 4, 2]  # of 3 items each


def test_default_chunks_suit_the_device():
    assert default_chunk_size(torch.device("cpu")) < default_chunk_size(torch.device("cuda"))


@pytest.mark.parametrize("kind", KINDS)
def test_position_in_the_batch_does_not_matter(kind):
    field = make_field(kind)
    given = inputs(kind, BATCH, 20)
    values = field(**given)
    for item in range(-BATCH, BATCH):
        place = item % BATCH
        part = {name: value[place : place + 1] if torch.is_tensor(value) else value for name, value in given.items()}
        alone = field[item]
        assert len(alone) == 1
        torch.testing.assert_close(alone(**part), values[place : place + 1], rtol=1e-5, atol=1e-5)
    with pytest.raises(IndexError, match="Field 3 of a batch of 3"):
        field[BATCH]


def test_a_batch_is_iterable():
    field = make_field("shape")
    coords = draw_coords(5, 3)
    values = torch.cat([item(coords) for item in field])
    torch.testing.assert_close(values, field(coords), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_coordinates(kind):
    field = make_field(kind)
    shared = inputs(kind, 20)
    repeated = {n: v.expand(BATCH, -1, -1) if torch.is_tensor(v) else v for n, v in shared.items()}
    values = field(**shared)
    assert values.shape[:2] == (BATCH, 20)
    torch.testing.assert_close(field(**repeated), values, rtol=1e-5, atol=1e-5)
    assert (values[0] - values[1]).abs().max() > 1e-3


def test_shared_coordinates_seen_along_each_items_directions():
    field = make_field("nerf")
    coords, directions = draw_coords(20, 3), F.normalize(draw(BATCH, 20, 3), dim=-1)
    torch.testing.assert_close(field(coords, directions), field(coords.expand(BATCH, -1, -1), directions))


def test_no_points():
    assert make_field("image")(torch.empty(0, 2)).shape == (BATCH, 0, 3)
    assert make_field("shape")(torch.empty(BATCH, 0, 3)).shape == (BATCH, 0, 1)


def test_scales():
    field = make_field("image")
    coords = draw_coords(20, 2)
    assert torch.equal(field(coords), field(coords, scale=1.0))
    together = field(coords, scale=torch.tensor([1.0, 0.5, 0.75]))
    for item, scale in enumerate([1.0, 0.5, 0.75]):
        alone = field(coords, scale=scale)
        torch.testing.assert_close(together[item], alone[item], rtol=1e-5, atol=1e-5)
    assert (field(coords, scale=0.5) - field(coords)).abs().max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("kind", KINDS)
def test_to_dtype(kind, dtype, tolerance):
    field = make_field(kind)
    given = inputs(kind, 40)
    values = field(**given)
    cast = field.to(dtype)
    assert (cast.dtype, field.dtype) == (dtype, torch.float32)
    assert torch.equal(field(**given), values)
    assert cast(**given).dtype == dtype
    scale = values.abs().max().item()
    torch.testing.assert_close(cast(**given).float(), values, rtol=0, atol=tolerance * scale)


def test_to_device():
    field = make_field("shape")
    there = field.to("meta")
    assert there.device.type == "meta"
    assert {parameter.device.type for parameter in there.readout.parameters()} == {"meta"}
    assert field.device.type == "cpu"
    assert field(draw_coords(4, 3)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_detached_fields_own_what_they_need(kind):
    field = make_field(kind)
    given = inputs(kind, 20)
    detached = field.detach()
    values = detached(**given)
    with torch.no_grad():
        for parameter in field.readout.parameters():
            parameter.add_(1.0)
    assert torch.equal(detached(**given), values)
    assert (field(**given) - values).abs().max() > 1e-3
    assert not values.requires_grad


def test_detached_fields_differentiate_in_coordinates():
    """Surface normals and optimisation over positions work on what a pipeline returns."""
    detached = make_field("shape").detach()
    coords = draw_coords(10, 3).requires_grad_()
    detached(coords).sum().backward()
    assert coords.grad.abs().amax(dim=1).min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything_through_chunks(kind):
    """Against finite differences in float64, coordinates in chunks of two."""
    field = make_field(kind, chunk_size=2 * BATCH).to(torch.float64)
    given = {n: v.double() if torch.is_tensor(v) else v for n, v in inputs(kind, 5).items()}
    coords = given.pop("coords").requires_grad_()
    tables = [table.requires_grad_() for table in field.basis_fields.tables]

    def evaluate(coords, *tables):
        rows = iter(tables)
        fields = field.basis_fields.map(lambda _: next(rows))
        return field._with(basis_fields=fields)(coords, **given)

    assert torch.autograd.gradcheck(evaluate, (coords, *tables), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients(kind):
    given = inputs(kind, 30)
    gradients, recomputed = [], []

    def counted(function, *args):
        recomputed.append(1)
        return checkpoint(function, *args, use_reentrant=False)

    for function in (None, counted):
        field = make_field(kind, chunk_size=10 * BATCH, checkpoint=function)
        tables = [table.requires_grad_() for table in field.basis_fields.tables]
        coords = given["coords"].clone().requires_grad_()
        field(**{**given, "coords": coords}).square().sum().backward()
        gradients.append([t.grad for t in (coords, *tables, *field.readout.parameters())])
    assert len(recomputed) == 3
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_checkpointing_keeps_less():
    """Between forward and backward only chunks' inputs are held."""

    def held(function) -> int:
        field = make_field("image", chunk_size=64 * BATCH, checkpoint=function)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            field(draw_coords(2000, 2))
        return sum(sizes)

    assert held(partial(checkpoint, use_reentrant=False)) < held(None) / 10


def test_copies_are_independent():
    field = make_field("shape")
    coords = draw_coords(10, 3)
    duplicate = copy.deepcopy(field)
    values = field(coords)
    with torch.no_grad():
        field.basis_fields.tables[0].zero_()
    assert torch.equal(duplicate(coords), values)


def test_compiles_to_one_graph():
    field = make_field("image").detach()
    coords = draw_coords(40, 2)
    compiled = torch.compile(lambda points: field(points), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(coords), field(coords))


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("image", {"coords": draw(5, 3)}, ValueError, r"`coords` must be \(points, 2\).*got \(5, 3\)"),
        ("image", {"coords": draw(2)}, ValueError, r"`coords` must be.*got \(2,\)"),
        ("image", {"coords": draw(1, 1, 5, 2)}, ValueError, r"`coords` must be.*got \(1, 1, 5, 2\)"),
        ("image", {"coords": draw(2, 5, 2)}, ValueError, "batch of 2, this field one of 3"),
        ("image", {"coords": torch.zeros(5, 2, dtype=torch.long)}, TypeError, r"floating-point.*int64"),
        ("image", {"coords": [[0.0, 0.0]]}, TypeError, r"floating-point.*list"),
        ("image", {"directions": draw(5, 3)}, ValueError, "leave `directions` out"),
        ("nerf", {"directions": None}, ValueError, "pass `directions`"),
        ("nerf", {"directions": draw(5, 2)}, ValueError, r"`directions` must be \(points, 3\)"),
        ("nerf", {"directions": draw(4, 3)}, ValueError, "4 `directions` for 5 `coords`"),
        ("image", {"scale": 0.0}, ValueError, r"positive.*got \[0.0\]"),
        ("image", {"scale": float("nan")}, ValueError, r"positive.*nan"),
        ("image", {"scale": float("inf")}, ValueError, r"positive.*inf"),
        ("image", {"scale": torch.ones(2)}, ValueError, r"each of the 3 signals.*got \[1.0, 1.0\]"),
        ("shape", {"scale": 1.0}, ValueError, "leave `scale` out"),
    ],
)
def test_wrong_calls(kind, changes, error, message):
    field = make_field(kind)
    with pytest.raises(error, match=message):
        field(**{**inputs(kind, 5), **changes})


@pytest.mark.parametrize("chunk_size", [0, -5])
def test_wrong_chunk_size(chunk_size):
    with pytest.raises(ValueError, match=f"positive number of points, got {chunk_size}"):
        make_field("shape", chunk_size=chunk_size)
