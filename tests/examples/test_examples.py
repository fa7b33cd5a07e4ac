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
"""The examples, each run on a tiny pipeline with random weights."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(make_pipeline, tmp_path):
    """`folder(modality)`: the folder of a pipeline, as `from_pretrained` takes it."""

    def save(modality: str, text: bool = False, solid: bool = False) -> str:
        pipe = make_pipeline(modality, text)
        if solid:  # a surface wherever the planes say so
            layer = pipe.vae.readout.out if modality == "shape" else pipe.vae.readout.density
            layer.weight.data.mul_(100.0)
        pipe.save_pretrained(tmp_path / modality)
        return str(tmp_path / modality)

    return save


def frames_of(path: Path) -> tuple[int, tuple[int, int]]:
    with Image.open(path) as picture:
        return getattr(picture, "n_frames", 1), picture.size


@pytest.mark.parametrize(
    ("modality", "suffix", "text"),
    [("image", ".png", False), ("shape", ".glb", True), ("video", ".gif", True), ("nerf", ".gif", False)],
)
def test_quickstart_writes_what_the_modality_is(folder, tmp_path, capsys, modality, suffix, text):
    options = ["--num_samples", "2", "--steps", "2", "--output_dir", str(tmp_path / "samples")]
    options += ["--prompt", "a red thing"] if text else []
    load("quickstart").main([folder(modality, text=text, solid=modality == "shape"), *options])
    written = sorted((tmp_path / "samples").iterdir())
    assert [path.suffix for path in written] == [suffix] * 2
    assert capsys.readouterr().out.split() == [str(path) for path in written]


class TestImageZoom:
    def test_writes_a_row_of_pictures(self, folder, tmp_path):
        path = tmp_path / "zoom.png"
        load("image_zoom").main(
            [folder("image"), "--output", str(path), "--size", "24", "--levels", "3", "--steps", "2"]
        )
        _, (width, height) = frames_of(path)
        assert width == 4 * 8 + 3 * 24 and height > 24

    def test_regions_halve_and_stay_inside(self):
        whole, half, quarter = load("image_zoom").regions(3, centre=(0.9, -0.3))
        assert whole == (-1.0, -1.0, 1.0, 1.0)
        assert half == pytest.approx((0.0, -0.8, 1.0, 0.2))
        assert quarter == pytest.approx((0.5, -0.55, 1.0, -0.05))


def test_slow_motion_lasts_as_long_as_the_native_clip(folder, tmp_path, make_pipeline):
    path = tmp_path / "slow.gif"
    options = ["--slowdown", "3", "--size", "16", "--steps", "2", "--prompt", "a red disc"]
    load("video_slow_motion").main([folder("video", text=True), "--output", str(path), *options])
    native = make_pipeline("video").vae.config.num_frames
    with Image.open(path) as clip:
        lengths = []
        for frame in range(clip.n_frames):
            clip.seek(frame)
            lengths.append(clip.info["duration"])
    assert sum(lengths) == pytest.approx(3 * native * 1000 / 16, rel=0.05)  # GIFs count in hundredths


class TestOrbit:
    def test_writes_views_depth_and_a_mesh(self, folder, tmp_path):
        path, mesh = tmp_path / "orbit.gif", tmp_path / "scene.ply"
        options = ["--num_views", "3", "--size", "12", "--steps", "2", "--mesh", str(mesh), "--mesh_resolution", "24"]
        load("nerf_orbit").main([folder("nerf", solid=True), "--output", str(path), *options])
        frames, (width, _) = frames_of(path)
        assert frames == 3 and width >= 3 * 8 + 2 * 12
        assert mesh.read_bytes().startswith(b"ply")

    def test_no_mesh_of_mist(self, folder, tmp_path, capsys):
        options = ["--num_views", "1", "--size", "4", "--steps", "1", "--mesh", str(tmp_path / "scene.glb")]
        with pytest.warns(UserWarning, match="its mesh is empty"):
            load("nerf_orbit").main([folder("nerf"), "--output", str(tmp_path / "orbit.gif"), *options])
        assert "no mesh is written" in capsys.readouterr().out
        assert not (tmp_path / "scene.glb").exists()

    def test_depth_is_dark_in_front_and_white_where_nothing_is(self):
        depth, opacity = np.array([[[1.0, 2.0, 0.0]]]), np.array([[[1.0, 1.0, 0.0]]])
        assert load("nerf_orbit").depth_pictures(depth, opacity)[0, 0, :, 0].tolist() == [0, 204, 255]


class TestInterpolation:
    def test_writes_the_way_there_and_back(self, folder, tmp_path):
        sheet, animation = tmp_path / "sheet.png", tmp_path / "there_and_back.gif"
        options = ["--shapes", "3", "--resolution", "16", "--size", "24", "--steps", "2"]
        options += ["--prompts", "a chair", "a table", "--animation", str(animation)]
        pipeline = folder("shape", text=True, solid=True)
        load("shape_interpolation").main([pipeline, "--output", str(sheet), *options])
        assert frames_of(sheet)[1][0] == 4 * 8 + 3 * 24
        assert frames_of(animation)[0] in (3, 4)  # equal neighbours are one frame

    def test_arc(self):
        first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
        arc = load("shape_interpolation").slerp(first, second, torch.tensor([0.0, 0.5, 1.0]))
        torch.testing.assert_close(arc, torch.tensor([[1.0, 0.0], [0.5**0.5, 2 * 0.5**0.5], [0.0, 2.0]]))

    def test_arc_of_equal_ends(self):
        latent = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        arc = load("shape_interpolation").slerp(latent, latent, torch.tensor([0.0, 0.3, 1.0]))
        torch.testing.assert_close(arc, latent.expand(3, 2, 3))


class TestCompletion:
    @pytest.mark.parametrize("text", [False, True])
    def test_writes_points_and_completions(self, folder, tmp_path, text):
        path = tmp_path / "completion.png"
        options = ["--samples", "2", "--resolution", "16", "--size", "32", "--steps", "4", "--num_points", "128"]
        load("shape_completion").main([folder("shape", text, solid=True), "--output", str(path), *options])
        assert frames_of(path)[1][0] == 5 * 8 + 4 * 32

    def test_without_strength_the_latent_is_what_was_encoded(self, make_pipeline):
        pipe = make_pipeline("shape")
        pipe.vae.register_to_config(scaling_factor=2.0, shift_factor=0.5)
        points = torch.rand(1, 64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
        latents = load("shape_completion").complete(pipe, points, 0.0, 4, 2, None, 0)
        with torch.no_grad():
            expected = (pipe.vae.encode(points).latent_dist.mode() - 0.5) * 2
        torch.testing.assert_close(latents, expected.expand(2, *expected.shape[1:]))

    @pytest.mark.parametrize(
        ("option", "value", "expected"),
        [
            ("--strength", "1.5", "[0, 1]"),
            ("--strength", "-0.1", "[0, 1]"),
            ("--strength", "nan", "[0, 1]"),
            ("--part", "0", "(0, 1]"),
            ("--part", "2", "(0, 1]"),
        ],
    )
    def test_shares_out_of_range_are_refused_before_anything_is_loaded(self, capsys, option, value, expected):
        with pytest.raises(SystemExit):
            load("shape_completion").main(["no/such/pipeline", f"{option}={value}"])
        assert f"{option} must be in {expected}, but is {float(value)}" in capsys.readouterr().err

    def test_the_part_that_is_seen(self):
        points = torch.tensor([[[0.3, 0, 0], [-0.4, 0, 0], [0.1, 0, 0], [-0.1, 0, 0]]])
        seen = load("shape_completion").visible_part(points, 0.5)
        assert seen[0, :, 0].tolist() == pytest.approx([-0.4, -0.1])
