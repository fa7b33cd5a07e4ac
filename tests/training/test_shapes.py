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
"""Flags that describe shapes, as they reach the data."""

import numpy as np
import pytest
import torch
import train_d2c_vae
import training_setup
import trimesh

from diffusers_ddmi.data import meshes


def parse(*flags: str):
    args = ["--modality", "shape", "--output_dir", "unused", "--preset", "tiny", *flags]
    return train_d2c_vae.parse_args(args)


@pytest.fixture
def onet(tmp_path):
    """One ball in Occupancy Networks' layout."""
    model = tmp_path / "ShapeNet" / "balls" / "a"
    model.mkdir(parents=True)
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (80, 3))
    np.savez(model / "points.npz", points=points, occupancies=np.packbits(np.linalg.norm(points, axis=1) < 0.3))
    cloud = rng.standard_normal((200, 3))
    np.savez(model / "pointcloud.npz", points=0.3 * cloud / np.linalg.norm(cloud, axis=1, keepdims=True))
    return tmp_path / "ShapeNet"


def test_captions_from_a_file_elsewhere(onet, tmp_path):
    file = tmp_path / "text2shape.csv"
    file.write_text("id,modelId,description\n1,a,a small ball\n")
    source = ("--train_data_dir", str(onet), "--num_queries", "8")
    assert "caption" not in training_setup.load_training_data(parse(*source), "shape")[0]
    args = parse(*source, "--captions_file", str(file))
    data = training_setup.load_training_data(args, "shape")
    assert data[0]["caption"] == "a small ball"

    accelerator = train_d2c_vae.create_accelerator(args)
    before = training_setup.data_fingerprint(accelerator, args, data)
    file.write_text("id,modelId,description\n1,a,a small ball\n2,other,a box\n")
    after = training_setup.data_fingerprint(accelerator, args, data)
    assert {name for name in before if before[name] != after[name]} == {"captions"}


def test_captions_file_of_meshes_is_refused(tmp_path):
    trimesh.creation.box().export(tmp_path / "box.ply")
    source = ("--train_data_dir", str(tmp_path), "--captions_file", "captions.csv")
    with pytest.raises(ValueError, match=r"'captions.csv' belongs to Occupancy Networks' layout, .* a metadata.csv"):
        training_setup.load_training_data(parse(*source), "shape")
    source = ("--dataset_name", "procedural", "--captions_file", "captions.csv")
    with pytest.raises(ValueError, match="and procedural has another"):
        training_setup.load_training_data(parse(*source), "shape")


def test_captions_file_that_is_not_there(onet):
    args = parse("--train_data_dir", str(onet), "--captions_file", "nowhere.csv")
    with pytest.raises(FileNotFoundError, match=r"no such file: nowhere.csv; expected Text2Shape's captions"):
        training_setup.load_training_data(args, "shape")


def test_noise_on_points_is_for_training(onet):
    source = ("--train_data_dir", str(onet), "--num_queries", "8", "--num_points", "200")
    args = parse(*source, "--point_noise", "0.02", "--validation_data_dir", str(onet))
    radii = {
        name: data[0]["inputs"].norm(dim=1)
        for name, data in (
            ("training", training_setup.load_training_data(args, "shape")),
            ("latents", training_setup.load_training_data(args, "shape", "latents")),
            ("validation", training_setup.load_validation_data(args, "shape")),
        )
    }
    for name in ("training", "latents"):
        assert radii[name].std().item() == pytest.approx(0.02, rel=0.25), name
    torch.testing.assert_close(radii["validation"], torch.full((200,), 0.3))


def test_number_of_processes_that_prepare_meshes(tmp_path, monkeypatch):
    trimesh.creation.box().export(tmp_path / "box.ply")
    asked = []
    prepare = meshes._prepare
    monkeypatch.setattr(meshes, "_prepare", lambda *args: asked.append(args[-1]) or prepare(*args[:-1], 1))
    source = ("--train_data_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache"))
    training_setup.load_training_data(parse(*source, "--preprocessing_num_workers", "3"), "shape")
    assert asked == [3]


@pytest.mark.parametrize(
    ("flag", "value"), [("captions_file", "captions.csv"), ("point_noise", "0.01"), ("preprocessing_num_workers", "2")]
)
def test_flags_of_shapes_are_refused_elsewhere(flag, value):
    args = parse("--dataset_name", "procedural", f"--{flag}", value)
    with pytest.raises(ValueError, match=rf"--{flag}: for shapes \(shape\) only; .* of modality 'nerf'"):
        training_setup.load_training_data(args, "nerf")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("point_noise", "-0.1", r"--point_noise must be in \[0, 1\), but is -0.1"),
        ("point_noise", "nan", r"--point_noise must be in \[0, 1\), but is nan"),
        ("preprocessing_num_workers", "0", "--preprocessing_num_workers must be at least 1, but is 0"),
    ],
)
def test_values_out_of_range_are_refused(flag, value, message):
    with pytest.raises(ValueError, match=message):
        parse("--dataset_name", "procedural", f"--{flag}", value)
