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
"""Scenes in the training scripts: flags that describe them, and rays that are rendered as the pipeline renders them."""

import math

import numpy as np
import pytest
import torch
import train_d2c_vae
import training_setup
from accelerate import Accelerator
from PIL import Image
from training_loop import Step
from training_previews import save_views

from diffusers_ddmi.data import collate
from diffusers_ddmi.data.scenes import SceneExamples, load_procedural_scenes, open_row
from diffusers_ddmi.rendering.cameras import Cameras
from diffusers_ddmi.rendering.volume import render_views


def parse(*flags: str):
    return train_d2c_vae.parse_args(["--output_dir", "unused", "--preset", "tiny", *flags])


@pytest.fixture
def scenes(tmp_path):
    """A folder with one scene whose file tells nothing of its cameras but their poses."""
    scene = open_row(load_procedural_scenes(num_scenes=1, num_views=2, size=8)[0]).read()
    poses = scene.cameras.camera_to_world.numpy()
    np.savez(tmp_path / "scene.npz", images=scene.images, cam_poses=poses, data=scene.points)
    return tmp_path


def test_flags_describe_the_cameras(scenes):
    flags = ("--fov_y", "30", "--near", "1.5", "--far", "2.5", "--longest_side", "0.5")
    args = parse("--modality", "nerf", "--train_data_dir", str(scenes), "--num_queries", "4", *flags)
    example = training_setup.load_training_data(args, "nerf")[0]
    assert (example["near"], example["far"]) == (1.5, 2.5)
    extent = example["inputs"][:, :3].amax(0) - example["inputs"][:, :3].amin(0)
    assert extent.max() == pytest.approx(0.5, abs=1e-5)
    row = training_setup.load_training_data(args, "nerf").dataset.dataset[0]
    assert row["fov_y"] == pytest.approx(math.radians(30))


@pytest.mark.parametrize("flag", ["fov_y", "near", "far", "longest_side"])
def test_flags_of_scenes_are_refused_elsewhere(flag):
    args = parse("--modality", "video", "--dataset_name", "procedural", f"--{flag}", "1")
    with pytest.raises(ValueError, match=rf"--{flag}: for scenes \(nerf\) only; .* of modality 'video'"):
        training_setup.load_training_data(args, "video")


@pytest.mark.parametrize(("modality", "norm"), [("nerf", "l2"), ("video", "l1"), ("image", "l1")])
def test_likelihood_follows_the_modality(modality, norm):
    """Absolute errors of rays are least, for most of them, without any scene."""
    source = ("--modality", modality, "--dataset_name", "procedural")
    assert parse(*source).reconstruction_loss == norm
    assert parse(*source, "--reconstruction_loss", "l1").reconstruction_loss == "l1"


@pytest.mark.parametrize("infinite", [False, True])
def test_training_sees_what_is_rendered_afterwards(infinite, make_pipeline):
    vae = make_pipeline("nerf").vae
    vae.register_to_config(last_interval_infinite=infinite)
    args = parse("--modality", "nerf", "--dataset_name", "procedural", "--num_ray_samples", "16")
    cameras = Cameras.orbit(1, height=6, width=6)
    origins, directions = (rays.flatten(0, 2) for rays in cameras.rays())
    example = {"inputs": torch.rand(64, 6) - 0.5, "origins": origins, "directions": directions}
    batch = collate([{**example, "near": cameras.near, "far": cameras.far}])
    batch = {name: value.float() for name, value in batch.items()}
    with torch.no_grad():
        seen = train_d2c_vae.render_batch_rays(vae, batch, args, None)
        field = vae.decode(vae.encode(batch["inputs"]).latent_dist.mode()).field
        bounds = None if infinite else vae.bounds
        views = render_views(field, cameras, 16, bounds=bounds, last_interval_infinite=infinite)
    torch.testing.assert_close(seen.sample, views.colors.flatten(1, 3))
    torch.testing.assert_close(seen.opacity, views.opacity.flatten(1, 3))


def test_previews_show_pictures_above_their_reconstructions(tmp_path, make_pipeline, monkeypatch):
    """Of scenes whose pictures differ in size."""
    for index, (height, width) in enumerate([(16, 16), (8, 12)]):
        scene = open_row(load_procedural_scenes(num_scenes=1, num_views=2, size=16, seed=index)[0]).read()
        images, poses = scene.images[:, :height, :width], scene.cameras.camera_to_world.numpy()
        focal = scene.cameras.focal.numpy()
        np.savez(tmp_path / f"{index}.npz", images=images, cam_poses=poses, data=scene.points, focal=focal)
    flags = ("--modality", "nerf", "--validation_data_dir", str(tmp_path), "--num_ray_samples", "4")
    args = parse(*flags, "--dataset_name", "procedural", "--output_dir", str(tmp_path))
    saved = []
    monkeypatch.setattr(
        train_d2c_vae, "save_views", lambda views, *rest: (saved.extend(views), save_views(views, *rest))
    )
    validation = train_d2c_vae.Validation(args, Accelerator(cpu=True))
    with torch.no_grad():
        (value,) = validation(make_pipeline("nerf").vae, 7).values()
    assert [tuple(truth.shape) for truth, _ in saved] == [(16, 16, 3), (8, 12, 3)]
    errors = [(truth - reading).square().mean() for truth, reading in saved]
    assert value == pytest.approx(np.mean([-10 * math.log10(error) for error in errors]), rel=1e-4)
    sheet = np.asarray(Image.open(tmp_path / "validation/step-000007.png"))
    assert sheet.shape == (8 + 2 * 24, 8 + 2 * 24, 3)  # two rows and columns of cells of 16 pixels, 8 between
    truth = (saved[0][0] * 255).round().byte().numpy()
    np.testing.assert_array_equal(sheet[8:24, 8:24], truth)


@pytest.mark.parametrize("known", [False, True])
def test_an_opacity_weight_without_opacities_is_said_once(known, make_pipeline, caplog):
    Accelerator(cpu=True)  # its logger writes where a process has its place
    args = parse(
        "--modality", "nerf", "--dataset_name", "procedural", "--num_ray_samples", "4", "--opacity_weight", "1"
    )
    vae = make_pipeline("nerf").vae
    losses = train_d2c_vae.StageOneLosses(args, vae, torch.device("cpu"))
    example = SceneExamples(32, 8)(
        load_procedural_scenes(num_scenes=1, num_views=2, size=8)[0], np.random.default_rng(0)
    )
    if not known:
        example["opacity"] = torch.full((8, 1), torch.nan)
    batch = collate([example])
    for number in range(2):
        losses.autoencoder(vae, batch, Step(number, range(number, number + 1)))
    assert caplog.text.count("--opacity_weight has no effect") == (0 if known else 1)


def test_an_opacity_weight_is_refused_elsewhere(make_pipeline):
    args = parse("--modality", "video", "--dataset_name", "procedural", "--opacity_weight", "1")
    with pytest.raises(ValueError, match=r"--opacity_weight is for the rays of scenes \(nerf\), not 'video'"):
        train_d2c_vae.StageOneLosses(args, make_pipeline("video").vae, torch.device("cpu"))
