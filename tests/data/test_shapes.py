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
import errno
import logging
import os

import datasets
import numpy as np
import pytest
import torch
import trimesh

from diffusers_ddmi.data import mesh_solids, meshes
from diffusers_ddmi.data.base import SignalDataset, SignalStream
from diffusers_ddmi.data.mesh_sampling import sample_triangles
from diffusers_ddmi.data.mesh_solids import MeshSolid, load_solid
from diffusers_ddmi.data.meshes import load_mesh_folder
from diffusers_ddmi.data.shapes import ShapeExamples, load_onet_folder, load_shape_dataset
from diffusers_ddmi.data.sources import caption_of, read_captions, split_folder


BALL = trimesh.creation.icosphere(4, 1.0)
RADIUS = 0.45  # of the normalised ball


def cube_points(count=20000, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 3))


def wrong(solid, expected, points):
    return (solid.contains(points) != expected(points)).mean()


def in_ball(points):
    return np.linalg.norm(points, axis=1) < RADIUS


def boxes(*sizes_and_places):
    parts = [trimesh.creation.box(size).apply_translation(place) for size, place in sizes_and_places]
    return trimesh.util.concatenate(parts)


def in_boxes(*sizes_and_places):
    def inside(points):
        return np.any(
            [(np.abs(points - place) < np.array(size) / 2).all(axis=1) for size, place in sizes_and_places], axis=0
        )

    return inside


CROSS = (((0.9, 0.2, 0.2), (0.0, 0.0, 0.0)), ((0.2, 0.9, 0.2), (0.0, 0.0, 0.0)))


class TestMeshSolid:
    @pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "glb", "off"])
    def test_every_format(self, tmp_path, suffix):
        ball = BALL.copy().apply_scale(30.0).apply_translation((5.0, -7.0, 100.0))
        ball.export(tmp_path / f"ball.{suffix}")
        solid = load_solid(tmp_path / f"ball.{suffix}")
        assert wrong(solid, in_ball, cube_points()) < 0.01
        assert solid.repairs == ()

    def test_overlapping_parts_are_one_union(self):
        mesh = boxes(*CROSS)
        solid = MeshSolid.from_mesh(mesh.vertices, mesh.faces)
        assert wrong(solid, in_boxes(*CROSS), cube_points()) < 1e-3
        surface = solid.sample_surface(2000, np.random.default_rng(0))
        assert not (np.abs(surface) < 0.09).all(axis=1).any()

    def test_parts_turned_inwards_are_turned_outwards(self):
        mesh = boxes(*CROSS)
        faces = mesh.faces.copy()
        faces[:12] = faces[:12, ::-1]
        solid = MeshSolid.from_mesh(mesh.vertices, faces)
        assert wrong(solid, in_boxes(*CROSS), cube_points()) < 1e-3
        assert solid.repairs == ("turned 1 parts outwards",)
        assert wrong(MeshSolid.from_mesh(mesh.vertices, mesh.faces[:, ::-1]), in_boxes(*CROSS), cube_points()) < 1e-3

    def test_cavities_stay(self):
        inner = BALL.copy().apply_scale(0.5)
        inner.invert()
        mesh = trimesh.util.concatenate([BALL, inner])
        for faces in (mesh.faces, mesh.faces[:, ::-1]):
            solid = MeshSolid.from_mesh(mesh.vertices, faces)
            assert wrong(solid, lambda p: in_ball(p) & ~in_ball(2 * p), cube_points()) < 0.01

    def test_many_parts_are_judged_together(self, monkeypatch):
        """Every face is looked at a few times, and not once for each part that is turned inwards."""
        looked_at = []
        find = mesh_solids.winding_numbers
        monkeypatch.setattr(
            mesh_solids, "winding_numbers", lambda v, f, points: looked_at.append(len(f)) or find(v, f, points)
        )
        places = [np.array([i, j, k]) for i in range(5) for j in range(5) for k in range(5)]
        parts = [trimesh.creation.icosphere(1, 0.4).apply_translation(place) for place in places]
        hollows = [trimesh.creation.icosphere(1, 0.2).apply_translation(place) for place in places[:30]]
        for inwards in (*parts[50:100], *hollows):
            inwards.invert()
        mesh = trimesh.util.concatenate([*parts, *hollows])
        solid = MeshSolid.from_mesh(mesh.vertices, mesh.faces)
        assert solid.repairs == ("turned 50 parts outwards",)
        assert sum(looked_at) < 3 * len(mesh.faces)
        volume = len(places) * parts[0].volume - 30 * abs(hollows[0].volume)
        scale = 0.9 / mesh.extents.max()
        assert trimesh.Trimesh(solid.vertices, solid.faces).volume == pytest.approx(volume * scale**3, rel=1e-6)

    def test_touching_parts_keep_the_wall_between_them_out_of_sight(self):
        parts = (((0.45, 0.3, 0.3), (-0.225, 0.0, 0.0)), ((0.45, 0.3, 0.3), (0.225, 0.0, 0.0)))
        mesh = boxes(*parts)
        solid = MeshSolid.from_mesh(mesh.vertices, mesh.faces)
        assert wrong(solid, in_boxes(((0.9, 0.3, 0.3), (0.0, 0.0, 0.0))), cube_points()) < 1e-3

    def test_faces_that_disagree_are_turned(self):
        faces = BALL.faces.copy()
        faces[::3] = faces[::3, ::-1]
        solid = MeshSolid.from_mesh(BALL.vertices, faces)
        assert wrong(solid, in_ball, cube_points()) < 0.01
        assert "disagreed with their neighbours" in solid.repairs[0]

    def test_both_sides_modelled(self):
        faces = np.concatenate([BALL.faces, BALL.faces[:, ::-1]])
        solid = MeshSolid.from_mesh(BALL.vertices, faces)
        assert wrong(solid, in_ball, cube_points()) < 0.01
        assert solid.repairs == (f"dropped {len(BALL.faces)} back sides",)

    def test_vertices_that_faces_do_not_share(self):
        soup = BALL.triangles.reshape(-1, 3)
        faces = np.arange(len(soup)).reshape(-1, 3)
        faces[::2] = faces[::2, ::-1]
        assert wrong(MeshSolid.from_mesh(soup, faces), in_ball, cube_points()) < 0.01

    def test_holes_are_closed(self):
        faces = BALL.faces[np.random.default_rng(0).random(len(BALL.faces)) > 0.1]
        assert wrong(MeshSolid.from_mesh(BALL.vertices, faces), in_ball, cube_points()) < 0.03
        open_box = trimesh.creation.box((0.9, 0.9, 0.9))
        lidless = open_box.faces[open_box.face_normals[:, 1] < 0.5]
        points = cube_points()
        solid = MeshSolid.from_mesh(open_box.vertices, lidless)
        low = points[:, 1] < 0.1
        assert wrong(solid, in_boxes(((0.9, 0.9, 0.9), (0.0, 0.0, 0.0))), points[low]) < 1e-3

    def test_surface_points_are_uniform_on_the_boundary(self):
        solid = MeshSolid.from_mesh(BALL.vertices, BALL.faces)
        points = solid.sample_surface(5000, np.random.default_rng(0))
        assert np.linalg.norm(points, axis=1) == pytest.approx(RADIUS, rel=0.01)
        assert np.abs(points.mean(axis=0)).max() < 0.02

    def test_vertices_that_are_not_finite_cost_their_faces_only(self):
        vertices = BALL.vertices.copy()
        vertices[:3] = np.nan
        vertices[5, 1] = np.inf
        solid = MeshSolid.from_mesh(vertices, BALL.faces)
        assert wrong(solid, in_ball, cube_points()) < 0.02
        assert "without finite vertices" in solid.repairs[0]

    @pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e9, 1e200])
    def test_any_size(self, scale):
        assert wrong(MeshSolid.from_mesh(BALL.vertices * scale, BALL.faces), in_ball, cube_points()) < 0.01

    @pytest.mark.parametrize(
        ("vertices", "faces", "message"),
        [
            (np.zeros((3, 3)), np.zeros((0, 3)), "3 vertices but no faces"),
            (np.zeros((3, 3)), [[0, 1, 2]], "spans 0"),
            (np.full((3, 3), np.nan), [[0, 1, 2]], "no face has finite vertices"),
            (np.eye(3), [[0, 1, 7]], "no face has finite vertices"),
            (np.eye(3), [[0, 1, 1]], "every one is a line or a point"),
            (1.7e308 * (2 * np.eye(3) - 1), [[0, 1, 2]], "spans inf"),
            (np.eye(3), np.zeros((2_000_001, 3)), "2000001 faces are too many"),
        ],
    )
    def test_what_is_no_mesh(self, vertices, faces, message):
        with np.errstate(over="ignore"):
            with pytest.raises(ValueError, match=message):
                MeshSolid.from_mesh(vertices, faces)

    def test_single_triangle_encloses_nothing(self):
        solid = MeshSolid.from_mesh(np.eye(3), [[0, 1, 2]])
        with pytest.raises(ValueError, match="encloses no volume"):
            solid.sample_surface(100, np.random.default_rng(0))


def test_samples_of_triangles_are_uniform_by_area():
    triangles = np.array(
        [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [2, 0, 1], [0, 3, 1]], [[5, 5, 5]] * 3], dtype=float
    )
    points, chosen = sample_triangles(triangles, 40000, np.random.default_rng(0))
    assert (chosen == 1).mean() == pytest.approx(6 / 7, abs=0.01)
    assert not (chosen == 2).any()
    assert points[chosen == 0].mean(axis=0) == pytest.approx([1 / 3, 1 / 3, 0], abs=0.01)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four good meshes, one below, and captions for two; two meshes in a piece."""
    monkeypatch.setattr(meshes, "_MIN_PIECES", 2)
    root = tmp_path / "meshes"
    (root / "more").mkdir(parents=True)
    BALL.export(root / "ball.ply")
    boxes(*CROSS).export(root / "cross.obj")
    trimesh.creation.cylinder(0.2, 1.0).export(root / "cylinder.stl")
    trimesh.creation.torus(0.5, 0.2).export(root / "more" / "torus.glb")
    (root / "metadata.csv").write_text("file_name,caption\nball.ply,a ball\nmore/torus.glb,a torus\n")
    return root


def load(folder, **options):
    options = {
        "num_surface_points": 200,
        "num_points": 400,
        "cache_dir": folder.parent / "cache",
        "num_proc": 1,
        **options,
    }
    return load_mesh_folder(folder, **options)


def spoil(folder):
    (folder / "zero.ply").write_bytes(b"")
    (folder / "noise.stl").write_bytes(np.random.default_rng(0).bytes(500))
    (folder / "noise.glb").write_bytes(b"glTF" + np.random.default_rng(0).bytes(500))
    (folder / "words.obj").write_text("v a b c\nf 1 2 3\n")
    (folder / "header.off").write_text("OFF\n")
    (folder / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "nan.obj").write_text("v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    return 7


class TestMeshFolder:
    def test_rows(self, folder, caplog):
        with caplog.at_level(logging.WARNING):
            dataset = load(folder)
        assert dataset["name"] == ["ball.ply", "cross.obj", "cylinder.stl", "more/torus.glb"]
        assert dataset["caption"] == ["a ball", "", "", "a torus"]
        assert "2 of 4 items" in caplog.text
        row = dataset[0]
        points, bits = row["points"].astype(np.float64), np.unpackbits(row["occupancies"].astype(np.uint8))
        assert points.shape == (400, 3)
        assert (in_ball(points) != bits).mean() < 0.02
        assert np.linalg.norm(row["surface"], axis=1) == pytest.approx(RADIUS, rel=0.01)
        uniform, near = points[: row["num_uniform"]], points[row["num_uniform"] :]
        assert np.abs(np.linalg.norm(near, axis=1) - RADIUS).mean() < 0.05
        assert uniform.std() == pytest.approx(1 / 12**0.5, abs=0.02)

    def test_prepared_once_and_again_where_a_mesh_changed(self, folder, monkeypatch):
        first = load(folder)
        prepared = []
        prepare = meshes._Preparation.row
        monkeypatch.setattr(
            meshes._Preparation, "row", lambda self, name: prepared.append(name) or prepare(self, name)
        )
        again = load(folder)
        assert prepared == []
        assert all(np.array_equal(first[i]["points"], again[i]["points"]) for i in range(4))
        os.utime(folder / "cylinder.stl", (1, 1))
        load(folder)
        assert prepared == ["cylinder.stl", "more/torus.glb"]
        load(folder, num_points=80)
        assert len(prepared) == 6

    def test_resumes_after_an_interruption(self, folder, monkeypatch):
        prepare = meshes._Preparation.row

        def interrupted(self, name):
            if name == "cylinder.stl":
                raise KeyboardInterrupt
            return prepare(self, name)

        monkeypatch.setattr(meshes._Preparation, "row", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
        prepared = []
        monkeypatch.setattr(
            meshes._Preparation, "row", lambda self, name: prepared.append(name) or prepare(self, name)
        )
        assert len(load(folder)) == 4
        assert prepared == ["cylinder.stl", "more/torus.glb"]

    def test_bad_meshes_are_named_and_counted(self, folder, caplog):
        bad = spoil(folder)
        for _ in range(2):  # prepared, and from the cache
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                assert len(load(folder)) == 4
            for name in ("zero.ply", "noise.stl", "noise.glb", "words.obj", "header.off", "flat.obj", "nan.obj"):
                assert name in caplog.text
            assert f"skipped {bad} of {bad + 4} meshes" in caplog.text
            with pytest.raises(ValueError, match="strict"):
                load(folder, strict=True)

    def test_several_processes_give_the_same_rows(self, folder):
        alone = load(folder)
        together = load(folder, num_proc=2, cache_dir=folder.parent / "other")
        assert alone["name"] == together["name"]
        for i in range(4):
            assert np.array_equal(alone[i]["points"], together[i]["points"])
            assert np.array_equal(alone[i]["occupancies"], together[i]["occupancies"])

    def test_a_mesh_that_kills_its_process_is_skipped_for_this_time(self, folder, monkeypatch, caplog):
        prepare = meshes._Preparation.row

        def row(self, name):
            if name == "cross.obj":
                os._exit(9)
            return prepare(self, name)

        # Forked processes inherit the change.
        monkeypatch.setattr(meshes._Preparation, "row", row)
        for _ in range(2):  # the second time, only its piece is left
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                dataset = load(folder, num_proc=2)
            assert dataset["name"] == ["ball.ply", "cylinder.stl", "more/torus.glb"]
            assert "cross.obj: the process that prepared it died" in caplog.text
        monkeypatch.setattr(meshes._Preparation, "row", prepare)
        assert len(load(folder)) == 4

    @pytest.mark.parametrize(
        "fault", [OSError(errno.EMFILE, "too many files"), MemoryError(), ImportError("no reader")]
    )
    def test_faults_of_the_machine_are_raised(self, folder, monkeypatch, fault):
        def fail(*args, **options):
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(trimesh, "load_scene", fail)
            with pytest.raises(type(fault)):
                load(folder)
        assert len(load(folder)) == 4

    def test_pieces_follow_from_the_number_of_meshes(self, folder, monkeypatch):
        monkeypatch.undo()
        preparation = meshes._Preparation(folder, 200, 400, 0)
        monkeypatch.setattr(meshes._Preparation, "digest", lambda self, names: names[0])
        for count, size in ((4, 1), (100, 6), (1000, 16)):
            names = [f"{i:04}" for i in range(count)]
            pieces = meshes._divide(preparation, names, folder.parent)
            assert [name for piece in pieces for name in piece.names] == names
            assert max(len(piece.names) for piece in pieces) == size

    def test_half_a_piece_is_done_again(self, folder):
        load(folder)
        reports, rows = (sorted((folder.parent / "cache").rglob(f"*.{suffix}")) for suffix in ("json", "arrow"))
        reports[0].write_text("")
        rows[1].unlink()
        assert len(load(folder)) == 4
        assert all(file.stat().st_size for file in reports + rows)

    def test_temporary_files_of_two_machines_differ(self, folder, monkeypatch):
        paths = []
        writer = meshes.ArrowWriter
        monkeypatch.setattr(
            meshes, "ArrowWriter", lambda **options: paths.append(options["path"]) or writer(**options)
        )
        preparation = meshes._Preparation(folder, 200, 400, 0)
        (piece,) = meshes._divide(preparation, ["ball.ply"], folder.parent)
        for _ in range(2):
            meshes._prepare_piece(preparation, piece)
        assert len(set(paths)) == 2

    def test_processors_that_may_be_used(self, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
        assert meshes._processors() == 3
        monkeypatch.delattr(os, "sched_getaffinity")
        assert meshes._processors() == os.cpu_count()

    def test_several_captions(self, folder):
        (folder / "metadata.csv").write_text(
            "file_name,caption\nball.ply,a ball\nball.ply,a globe\ncross.obj,a cross\n"
        )
        dataset = load(folder)
        assert dataset[:2]["caption"][0].tolist() == ["a ball", "a globe"]
        assert [caption_of(row, np.random.default_rng(0)) for row in dataset][1:] == ["a cross", "", ""]
        assert {caption_of(dataset[0], np.random.default_rng(i)) for i in range(20)} == {"a ball", "a globe"}

    def test_nothing_readable(self, tmp_path):
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(ValueError, match=r"no meshes in .*empty; expected files with one of .*\.glb"):
            load(empty)
        bad = spoil(empty)
        with pytest.raises(ValueError, match=f"none of the {bad} meshes in"):
            load(empty)
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_shape_dataset(tmp_path / "missing")

    def test_stream_has_the_same_rows(self, folder):
        cache = folder.parent / "cache"
        rows, stream = (load_shape_dataset(folder, cache_dir=cache, num_proc=1, streaming=s) for s in (False, True))
        for row, streamed in zip(rows, stream):
            assert all(np.array_equal(row[name], streamed[name]) for name in row)
            example = ShapeExamples(10, 10)(streamed, np.random.default_rng(0))
            assert torch.equal(example["targets"], ShapeExamples(10, 10)(row, np.random.default_rng(0))["targets"])

    def test_refuses_bad_numbers(self, folder):
        with pytest.raises(ValueError, match="multiple of 8, got 200 and 12"):
            load(folder, num_points=12)
        with pytest.raises(ValueError, match="num_proc must be at least 1, got 0"):
            load(folder, num_proc=0)

    def test_saved_data_set_is_loaded_by_name(self, folder, tmp_path):
        rows = load(folder)
        rows.save_to_disk(str(tmp_path / "saved"))
        again = load_shape_dataset(dataset_name=str(tmp_path / "saved"))
        example = ShapeExamples(50, 60)(again[3], np.random.default_rng(0))
        assert torch.equal(example["coords"], ShapeExamples(50, 60)(rows[3], np.random.default_rng(0))["coords"])
        datasets.Dataset.from_dict({"a": [1]}).save_to_disk(str(tmp_path / "other"))
        with pytest.raises(ValueError, match="has no column surface, points, occupancies; it has a"):
            load_shape_dataset(dataset_name=str(tmp_path / "other"))


class TestSources:
    def test_split_beside_other_folders(self, tmp_path, caplog):
        for name in ("Train", "test", "textures", "__MACOSX", ".git"):
            (tmp_path / name).mkdir()
        with caplog.at_level(logging.WARNING):
            assert split_folder(tmp_path, "train") == tmp_path / "Train"
        (record,) = caplog.records
        assert record.getMessage().endswith("is its subfolder Train; left out: textures")
        with pytest.raises(FileNotFoundError, match="no split 'validation'; it is divided into test, train"):
            split_folder(tmp_path, "validation")
        assert split_folder(tmp_path / "textures", "train") == tmp_path / "textures"

    def test_captions_of_any_type(self, tmp_path):
        items = [tmp_path / name for name in "abcd"]
        file = tmp_path / "metadata.jsonl"
        file.write_text('{"file_name": "a", "text": 7}\n{"file_name": "b", "text": ["one"]}\n{"file_name": "c"}\n')
        assert read_captions(tmp_path, items) == ["7", "one", "", ""]
        with file.open("a") as lines:
            lines.write('{"file_name": "b", "text": ["one", "two"]}\n{"file_name": "d", "text": null}\n')
        assert read_captions(tmp_path, items) == [["7"], ["one", "two"], [], []]

    def test_metadata_of_the_folder_that_splits_divide(self, tmp_path):
        (tmp_path / "train").mkdir()
        items = [tmp_path / "train" / name for name in ("0.ply", "1.ply")]
        (tmp_path / "metadata.csv").write_text("name\nof something else\n")
        assert read_captions(tmp_path / "train", items) is None
        (tmp_path / "metadata.csv").write_text("file_name,caption\ntrain/0.ply,a ball\ntest/1.ply,a box\n")
        assert read_captions(tmp_path / "train", items) == ["a ball", ""]

    def test_caption_of_rows_in_numpy_format(self):
        rng = np.random.default_rng(0)
        for caption, expected in ((np.array(["one"]), "one"), (np.array([], dtype=object), ""), (np.array("x"), "x")):
            assert caption_of({"caption": caption}, rng) == expected


@pytest.fixture
def onet(tmp_path):
    """Two classes of balls of different sizes in Occupancy Networks' layout."""
    rng = np.random.default_rng(0)
    root = tmp_path / "ShapeNet"
    for number, name in enumerate(("chairs/a", "chairs/b", "tables/c")):
        model = root / name
        model.mkdir(parents=True)
        points = rng.uniform(-0.55, 0.55, (1000, 3)).astype(np.float16)
        inside = np.linalg.norm(points.astype(float), axis=1) < 0.2 + 0.1 * number
        np.savez(model / "points.npz", points=points, occupancies=np.packbits(inside))
        cloud = rng.standard_normal((500, 3))
        cloud *= (0.2 + 0.1 * number) / np.linalg.norm(cloud, axis=1, keepdims=True)
        np.savez(model / "pointcloud.npz", points=cloud.astype(np.float16), normals=cloud.astype(np.float16))
    (root / "chairs" / "train.lst").write_text("a\nb\n")
    (root / "chairs" / "test.lst").write_text("b\n")
    (root / "tables" / "train.lst").write_text("c\n")
    (root / "tables" / "test.lst").write_text("")
    (root / "metadata.yaml").write_text(
        "chairs: {id: chairs, name: 'chair,seat'}\ntables: {id: tables, name: table}\n"
    )
    return root


class TestONet:
    def test_rows(self, onet):
        dataset = load_shape_dataset(onet)
        assert dataset["name"] == ["chairs/a", "chairs/b", "tables/c"]
        assert dataset["caption"] == [["chair"], ["chair"], ["table"]]
        for i, radius in enumerate((0.2, 0.3, 0.4)):
            example = ShapeExamples(100, None)(dataset[i], np.random.default_rng(0))
            assert example["coords"].shape == (1000, 3)
            assert torch.equal(example["targets"][:, 0] > 0.5, example["coords"].double().norm(dim=1) < radius)
            assert example["inputs"].norm(dim=1).numpy() == pytest.approx(radius, rel=0.01)
        assert load_shape_dataset(onet, split="test")["name"] == ["chairs/b"]
        assert load_shape_dataset(onet / "chairs", split="test")["name"] == ["chairs/b"]

    def test_text2shape(self, onet):
        (onet / "captions.tablechair.csv").write_text(
            "id,modelId,description,category\n1,a,a small ball,Chair\n2,a,a tiny ball,Chair\n3,c,a big ball,Table\n"
        )
        dataset = load_onet_folder(onet)
        assert dataset["caption"] == [["a small ball", "a tiny ball"], ["chair"], ["a big ball"]]
        examples = SignalDataset(dataset, ShapeExamples(10, 10))
        seen = set()
        for epoch in range(20):
            examples.set_epoch(epoch)
            seen.add(examples[0]["caption"])
        assert seen == {"a small ball", "a tiny ball"}
        (onet / "captions.tablechair.csv").write_text("id,description\n1,x\n")
        with pytest.raises(ValueError, match="has no column modelId"):
            load_onet_folder(onet)

    def test_one_class_is_called_as_in_the_whole(self, onet, monkeypatch):
        assert load_onet_folder(onet / "chairs")["caption"] == [["chair"], ["chair"]]
        (onet / "captions.csv").write_text("modelId,description\nb,a big ball\n")
        assert load_onet_folder(onet / "chairs")["caption"] == [["chair"], ["a big ball"]]
        monkeypatch.chdir(onet / "chairs")
        dataset = load_onet_folder(".")
        assert dataset["name"] == ["chairs/a", "chairs/b"]
        assert dataset["caption"] == [["chair"], ["a big ball"]]
        (onet / "chairs" / "captions.csv").write_text("modelId,description\na,its own\n")
        assert load_onet_folder(onet / "chairs")["caption"] == [["its own"], ["chair"]]

    @pytest.mark.parametrize("text", ["tables: {name: table}", "- a list", "{not yaml", "chairs: 3"])
    def test_files_of_something_else_beside_a_class(self, onet, text):
        (onet / "metadata.yaml").write_text(text)
        (onet / "captions.csv").write_text("file_name,caption\nx.png,a picture\n")
        assert "caption" not in load_onet_folder(onet / "chairs").column_names

    def test_unpacked_occupancies(self, onet):
        before = ShapeExamples(10, None)(load_onet_folder(onet)[0], np.random.default_rng(0))
        file = onet / "chairs" / "a" / "points.npz"
        arrays = dict(np.load(file))
        np.savez(file, points=arrays["points"], occupancies=np.unpackbits(arrays["occupancies"]).astype(bool))
        after = ShapeExamples(10, None)(load_onet_folder(onet)[0], np.random.default_rng(0))
        assert torch.equal(before["targets"], after["targets"])

    def test_missing_and_damaged_files(self, onet, caplog):
        (onet / "chairs" / "b" / "pointcloud.npz").unlink()
        (onet / "chairs" / "a" / "points.npz").write_bytes(b"PK\x03\x04 not a zip")
        with caplog.at_level(logging.WARNING):
            dataset = SignalDataset(load_onet_folder(onet), ShapeExamples(10, 10))
            assert dataset[0]["caption"] == "table"
        assert "no pointcloud.npz" in caplog.text
        assert "points.npz: cannot be read" in caplog.text
        assert dataset.num_bad == 1
        with pytest.raises(ValueError, match=r"no pointcloud\.npz"):
            load_onet_folder(onet, strict=True)
        stream = SignalStream(load_shape_dataset(onet, streaming=True), ShapeExamples(10, 10))
        assert [example["caption"] for example in stream] == ["table"]

    def test_lists_and_splits(self, onet):
        with pytest.raises(FileNotFoundError, match=r"no val\.lst; it has test\.lst, train\.lst"):
            load_onet_folder(onet, "validation")
        with pytest.raises(ValueError, match="got 'dev'"):
            load_onet_folder(onet, "dev")
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_onet_folder(onet / "missing")


class TestShapeExamples:
    def row(self, **changes):
        rng = np.random.default_rng(0)
        points = rng.uniform(-0.5, 0.5, (80, 3))
        row = {"name": "x", "surface": rng.uniform(-0.5, 0.5, (50, 3)), "points": points, "num_uniform": 40}
        return {**row, "occupancies": np.packbits(points[:, 1] > 0), **changes}

    def test_bits_belong_to_their_points(self):
        example = ShapeExamples(20, 70)(self.row(), np.random.default_rng(1))
        assert torch.equal(example["targets"][:, 0] > 0, example["coords"][:, 1] > 0)
        assert len(torch.unique(example["coords"], dim=0)) == 70
        assert "caption" not in example

    def test_points_are_repeated_only_where_there_are_too_few(self):
        assert len(torch.unique(ShapeExamples(50, 10)(self.row(), np.random.default_rng(1))["inputs"], dim=0)) == 50
        assert ShapeExamples(51, 10)(self.row(), np.random.default_rng(1))["inputs"].shape == (51, 3)

    def test_uniform_queries(self):
        row = self.row()
        example = ShapeExamples(20, None, uniform_queries=True)(row, np.random.default_rng(1))
        assert np.allclose(example["coords"], row["points"][:40])

    def test_noise_has_its_standard_deviation(self):
        clean, noisy = (
            ShapeExamples(50, 8, noise)(self.row(), np.random.default_rng(1))["inputs"] for noise in (0.0, 0.02)
        )
        assert (noisy - clean).std().item() == pytest.approx(0.02, rel=0.2)

    def test_bad_rows(self):
        rng = np.random.default_rng(0)
        with pytest.raises(ValueError, match=r"'surface' must be \(points, 3\), got \(5, 2\)"):
            ShapeExamples()(self.row(surface=np.zeros((5, 2))), rng)
        with pytest.raises(ValueError, match="'points' holds values that are not finite"):
            ShapeExamples()(self.row(points=np.full((80, 3), np.nan)), rng)
        with pytest.raises(ValueError, match="has 80 points but 8 occupancies"):
            ShapeExamples()(self.row(occupancies=np.zeros(1, dtype=np.uint8)), rng)
        with pytest.raises(ValueError, match="no points of the kind"):
            ShapeExamples(uniform_queries=True)(self.row(num_uniform=0), rng)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="got 0 and 10"):
            ShapeExamples(0, 10)
        with pytest.raises(ValueError, match=r"point_noise must lie in \[0, 1\), got -1"):
            ShapeExamples(point_noise=-1)
        with pytest.raises(ValueError, match="either train_data_dir or dataset_name"):
            load_shape_dataset()
