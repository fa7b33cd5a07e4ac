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
import torch
from scipy import ndimage

from diffusers_ddmi.data.base import SignalDataset
from diffusers_ddmi.data.furniture import KINDS, Furniture, describe, draw_design, furniture_mesh, load_furniture
from diffusers_ddmi.data.shapes import ShapeExamples, load_shape_dataset
from diffusers_ddmi.data.solids import Part, Solid, box, disc


class TestSolids:
    def test_box_and_cylinder_are_exact(self):
        solid = Solid([box((-0.2, 0.1), (0.0, 0.3), (-0.1, 0.4)), disc((0.3, 0.0), (-0.2, 0.2), 0.15)])
        points = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 3))
        x, y, z = points.T
        expected = (np.abs(x + 0.05) <= 0.15) & (np.abs(y - 0.15) <= 0.15) & (np.abs(z - 0.15) <= 0.25)
        expected |= (np.hypot(x - 0.3, z) <= 0.15) & (np.abs(y) <= 0.2)
        assert np.array_equal(solid.contains(points), expected)
        assert solid.bounds == pytest.approx(np.array([[-0.2, -0.2, -0.15], [0.45, 0.3, 0.4]]))

    def test_slanted_cone(self):
        cone = Part(0.0, 1.0, ((0.0, 0.0), (1.0, 0.0)), ((0.4, 0.4), (0.2, 0.2)), round=True)
        points = np.array(
            [
                [0.5, 0.5, 0.29],
                [0.5, 0.5, 0.31],
                [0.21, 0.5, 0.0],
                [0.19, 0.5, 0.0],
                [0.0, -0.01, 0.0],
                [1.0, 1.01, 0.0],
            ]
        )
        assert cone.contains(points).tolist() == [True, False, True, False, False, False]

    @pytest.mark.parametrize("round_", [False, True])
    def test_meshes_are_closed_and_turned_outwards(self, round_):
        half, pi = 0.3, np.pi if round_ else 4.0
        mesh = Solid([Part(0.0, 0.5, ((0.0, 0.0), (0.3, 0.1)), ((half, half), (half, half)), round=round_)]).mesh()
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        assert mesh.volume == pytest.approx(pi * half**2 * 0.5, rel=0.01)

    def test_surface_points_lie_on_the_outer_surface_and_are_uniform(self):
        solid = Solid([box((-0.2, 0.2), (0.0, 0.4), (-0.2, 0.2)), box((0.0, 0.6), (0.1, 0.3), (-0.1, 0.1))])
        points, owner = solid.sample_surface(20000, np.random.default_rng(0))
        rng = np.random.default_rng(1)
        near = points + 1e-3 * rng.standard_normal(points.shape)
        assert 0.4 < solid.contains(near).mean() < 0.6
        # 0.92 of the cube's six faces (less the hole) and four long sides and the end of the bar.
        cube, bar = 6 * 0.16 - 0.04, 4 * 0.4 * 0.2 + 0.04
        assert (owner == 0).mean() == pytest.approx(cube / (cube + bar), abs=0.02)

    def test_refuses_parts_without_size(self):
        with pytest.raises(ValueError, match="positive, finite sizes, got 0"):
            Solid([box((0.0, 0.0), (0.0, 1.0), (0.0, 1.0))])
        with pytest.raises(ValueError, match="at least one part"):
            Solid([])


class TestFurniture:
    def test_follows_from_its_seed(self):
        first, again, other = (Furniture.from_seed(seed) for seed in ((1, 2), (1, 2), (1, 3)))
        assert first.caption == again.caption
        assert first.solid.parts == again.solid.parts
        assert first.solid.parts != other.solid.parts

    def test_pieces_are_distinct_normalised_and_thick_enough(self):
        pieces = [Furniture.from_seed((0, i)) for i in range(300)]
        assert {piece.design["kind"] for piece in pieces} == set(KINDS)
        assert len({piece.solid.parts for piece in pieces}) == len(pieces)
        for piece in pieces:
            low, high = piece.solid.bounds
            assert (high - low).max() == pytest.approx(0.9)
            assert low + high == pytest.approx(np.zeros(3), abs=1e-9)
            for part in piece.solid.parts:
                assert min(part.top - part.bottom, *(2 * half for half in part.halves[0])) > 0.05

    def test_parts_hang_together(self):
        resolution = 48
        middle = (np.arange(resolution) + 0.5) / resolution - 0.5
        grid = np.stack(np.meshgrid(middle, middle, middle, indexing="ij"), axis=-1).reshape(-1, 3)
        for i in range(24):
            solid = Furniture.from_seed((7, i)).solid
            occupied = solid.contains(grid).reshape((resolution,) * 3)
            assert ndimage.label(occupied, np.ones((3, 3, 3)))[1] == 1

    def test_a_caption_tells_all_that_its_split_is_chosen_by(self):
        meanings = {}
        for i in range(3000):
            rng = np.random.default_rng((2, i))
            design = draw_design(KINDS[i % len(KINDS)], rng)
            told = {name for name in design if name != "kind" and rng.random() < 0.5}
            if "arms" not in told and design["kind"] == "sofa":
                told.discard("weight")
            meaning = {name: design[name] for name in told}
            assert meanings.setdefault(describe(design, told, rng), meaning) == meaning

    def test_splits_share_no_caption_and_have_all_kinds(self):
        train, test = (load_furniture(600, seed, split)["caption"] for seed, split in ((0, "train"), (3, "test")))
        assert not set(train) & set(test)
        assert len(set(test)) > 200
        for word in (*(kind for kind in KINDS if kind not in ("shelf", "sofa")), "couch", "bookshelf"):
            assert any(word in caption for caption in test), word
        # Combinations are new in the test captions, but no word is.
        assert set(" ".join(test).replace(",", "").split()) <= set(" ".join(train).replace(",", "").split())

    def test_mesh_is_coloured(self):
        mesh = furniture_mesh((0, 1))
        assert mesh.visual.kind == "face"
        assert len(np.unique(mesh.visual.face_colors, axis=0)) > 1

    def test_refuses_bad_arguments(self):
        with pytest.raises(ValueError, match="got 'dev'"):
            load_furniture(10, split="dev")
        with pytest.raises(ValueError, match="at least 1, got 0"):
            load_furniture(0)


class TestRows:
    def test_rows_do_not_depend_on_their_number(self):
        few, many = load_furniture(3), load_furniture(9)
        assert few[:] == many[:3]
        assert load_furniture(3, seed=1)["caption"] != few["caption"]

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_examples_agree_with_the_solid(self, split):
        rows = load_furniture(5, seed=4, split=split)
        dataset = SignalDataset(rows, ShapeExamples(256, 1024))
        for i in range(5):
            example = dataset[i]
            piece = Furniture.from_seed(rows[i]["seed"])
            inside = piece.solid.contains(example["coords"].double().numpy())
            assert np.array_equal(example["targets"][:, 0].numpy() > 0.5, inside)
            assert 0.05 < inside.mean() < 0.7
            surface = example["inputs"].double().numpy()
            beside = 1e-3 * np.random.default_rng(0).standard_normal(surface.shape)
            assert 0.3 < piece.solid.contains(surface + beside).mean() < 0.7
            assert example["caption"] == piece.caption
            uniform = ShapeExamples(8, 1000, uniform_queries=True)(rows[i], np.random.default_rng(0))["coords"]
            assert uniform.std().item() == pytest.approx(1 / 12**0.5, abs=0.02)

    def test_points_are_new_in_every_epoch(self):
        dataset = SignalDataset(load_furniture(2), ShapeExamples(64, 64))
        first = dataset[1]
        dataset.set_epoch(1)
        assert not torch.equal(dataset[1]["inputs"], first["inputs"])
        dataset.set_epoch(0)
        assert torch.equal(dataset[1]["inputs"], first["inputs"])

    def test_stream_has_the_same_rows(self):
        stream = load_shape_dataset(dataset_name="procedural", split="test", streaming=True)
        assert list(stream.take(2)) == list(load_furniture(2, split="test"))
