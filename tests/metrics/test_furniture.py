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
import numpy as np
import pytest
import trimesh

from diffusers_ddmi.data.furniture import KINDS, Furniture
from diffusers_ddmi.metrics.furniture import (
    PROPERTIES,
    agreement,
    caption_properties,
    measure_furniture,
    voxelize_mesh,
)


def centres(resolution):
    middle = (np.arange(resolution) + 0.5) / resolution - 0.5
    return np.stack(np.meshgrid(middle, middle, middle, indexing="ij"), axis=-1).reshape(-1, 3)


def voxels(furniture, resolution=64):
    return furniture.solid.contains(centres(resolution)).reshape((resolution,) * 3)


def properties(furniture, names):
    """What the design says, in the words of the measures."""
    found = {name: furniture.design[name] for name in names if name in PROPERTIES}
    return {name: bool(value) if name == "back" else value for name, value in found.items()}


@pytest.fixture(scope="module")
def pieces():
    return [Furniture.from_seed((11, i)) for i in range(80)]


@pytest.fixture(scope="module")
def grids(pieces):
    return [voxels(piece) for piece in pieces]


@pytest.fixture(scope="module")
def measured(grids):
    return [measure_furniture(grid) for grid in grids]


def test_measures_are_right_for_procedural_shapes(pieces, measured):
    shares = agreement([properties(p, p.design) for p in pieces], measured)
    assert set(shares) == {*PROPERTIES, "all"}
    assert min(shares.values()) > 0.97


def test_measures_survive_noise_and_crumbs(pieces, grids):
    rng = np.random.default_rng(0)
    found = []
    for grid in grids[:30]:
        noisy = grid & (rng.random(grid.shape) > 0.03)
        noisy[1:3, 1:3, 1:3] = True
        found.append(measure_furniture(noisy))
    assert agreement([properties(p, p.design) for p in pieces[:30]], found)["all"] > 0.9


def test_measures_do_not_depend_on_size_or_place(grids, measured):
    for grid, expected in zip(grids[:8], measured):
        larger = np.zeros((96,) * 3, dtype=bool)
        larger[5:69, 30:94, 12:76] = grid
        assert measure_furniture(larger) == expected


def test_shuffled_captions_disagree(pieces, measured):
    told = [caption_properties(piece.caption) for piece in pieces]
    assert agreement(told, measured)["all"] > 0.97
    assert agreement(told[1:] + told[:1], measured)["all"] < 0.5


def test_captions_are_read_as_they_were_meant(pieces):
    for piece in [*pieces, *(Furniture.from_seed((12, i)) for i in range(400))]:
        assert caption_properties(piece.caption) == properties(piece, ["kind", *piece.told]), piece.caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a table lamp with three legs and a round shade", {"kind": "lamp", "legs": 3, "top": "round"}),
        ("a bench with no back and thick legs", {"kind": "bench", "back": False}),
        ("a low-backed chair with 4 thin splayed legs", {"kind": "chair", "legs": 4}),
        ("a square table with a shelf underneath", {"kind": "table", "top": "square", "shelves": 1}),
        ("this bookshelf has five shelves and no back panel", {"kind": "shelf", "shelves": 5, "back": False}),
    ],
)
def test_caption_examples(caption, expected):
    assert caption_properties(caption) == expected


def test_caption_without_furniture():
    with pytest.raises(ValueError, match="no kind of furniture in 'a red car'"):
        caption_properties("a red car")


def test_voxels_of_a_sphere_and_of_overlapping_boxes():
    ball = trimesh.creation.icosphere(5, 0.4)
    grid = voxelize_mesh(ball.vertices, ball.faces, 64)
    assert grid.mean() == pytest.approx(ball.volume, rel=0.01)
    assert (grid.ravel() != (np.linalg.norm(centres(64), axis=1) < 0.4)).mean() < 2e-3
    boxes = trimesh.util.concatenate(
        [
            trimesh.creation.box((0.4, 0.2, 0.3)),
            trimesh.creation.box((0.2, 0.6, 0.1)).apply_translation((0.1, 0.05, 0.05)),
        ]
    )
    points = centres(50)
    first = (np.abs(points) <= (0.2, 0.1, 0.15)).all(axis=1)
    second = (np.abs(points - (0.1, 0.05, 0.05)) <= (0.1, 0.3, 0.05)).all(axis=1)
    grid = voxelize_mesh(boxes.vertices, boxes.faces, 50)
    assert (grid.ravel() != (first | second)).mean() < 0.02
    inner = (np.abs(points) <= (0.18, 0.08, 0.13)).all(axis=1)
    assert grid.ravel()[inner].all()


def test_voxels_agree_with_the_exact_solid(pieces, grids):
    for piece, grid in zip(pieces[:10], grids):
        mesh = piece.mesh()
        assert (voxelize_mesh(mesh.vertices, mesh.faces) != grid).mean() < 2e-3


def test_empty_shapes():
    assert not voxelize_mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int), 16).any()
    assert measure_furniture(np.zeros((16,) * 3, dtype=bool)) == {"kind": None}


@pytest.mark.parametrize("seed", range(8))
def test_any_grid_gets_a_kind(seed):
    rng = np.random.default_rng(seed)
    grid = rng.random(tuple(rng.integers(1, 20, 3))) < rng.random()
    grid[0, 0, 0] = True
    assert measure_furniture(grid)["kind"] in KINDS


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="got float64"):
        measure_furniture(np.zeros((4, 4, 4)))
    with pytest.raises(ValueError, match="1 captions' properties for 2 shapes"):
        agreement([{"kind": "bed"}], [{}, {}])
    with pytest.raises(ValueError, match="no caption tells"):
        agreement([], [])


def test_agreement_counts_told_properties_only():
    told = [{"kind": "chair", "legs": 4}, {"kind": "table"}]
    measured = [{"kind": "chair", "legs": 3, "arms": True}, {"kind": "table", "legs": 4}]
    assert agreement(told, measured) == {"kind": 1.0, "legs": 0.0, "all": pytest.approx(2 / 3)}
