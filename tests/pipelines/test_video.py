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
import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import export_to_gif, export_to_video
from tiny import FITTING_SCHEDULERS

from diffusers_ddmi.data.videos import read_frames


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline("video")


def video(pipe, **options):
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np", **options}
    return pipe(height=12, width=16, **options).frames


def test_any_number_of_frames_from_one_latent(pipe):
    assert video(pipe).shape == (1, pipe.vae.config.num_frames, 12, 16, 3)
    assert video(pipe, num_frames=9, output_type="pt").shape == (1, 9, 3, 12, 16)


def test_times_are_moments_of_one_function(pipe):
    """Frames at given times are those of the even grid that holds these times."""
    even = video(pipe, num_frames=5)
    chosen = video(pipe, times=[-0.8, 0.0, 0.8])
    np.testing.assert_allclose(chosen, even[:, ::2], atol=1e-5)
    part = video(pipe, num_frames=2, time_range=(-0.2, 0.6))
    np.testing.assert_allclose(part, video(pipe, times=[0.0, 0.4]), atol=1e-5)
    assert np.abs(even[:, 0] - even[:, -1]).max() > 1e-3


def test_regions_are_crops(pipe):
    whole = pipe(
        num_inference_steps=2, generator=torch.Generator().manual_seed(0), height=64, width=64, output_type="np"
    )
    part = video(pipe, region=(0.0, -1.0, 0.5, -0.625))
    np.testing.assert_allclose(part, whole.frames[:, :, :12, 32:48], atol=1e-4)


def test_frames_can_be_exported_by_diffusers_as_an_animation(pipe, tmp_path):
    """`export_to_gif` takes Pillow images alone."""
    (frames,) = video(pipe, num_frames=5, output_type="pil")
    export_to_gif(frames, str(tmp_path / "video.gif"))
    written = read_frames(tmp_path / "video.gif", range)
    # A palette of 256 colours holds nearly all of so small a picture's.
    np.testing.assert_allclose(np.stack(written).astype(int), np.stack(frames), atol=4)


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_frames_can_be_exported_by_diffusers_as_a_video(pipe, tmp_path, output_type):
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("imageio")
    with torch.no_grad():
        pipe.vae.readout.out.weight.mul_(10.0)  # contrast beyond what the codec loses
    options = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2}
    frames = pipe(generator=torch.Generator().manual_seed(0), output_type=output_type, **options).frames[0]
    export_to_video(frames, str(tmp_path / "video.mp4"))
    written = np.stack(read_frames(tmp_path / "video.mp4", range)) / 255
    expected = np.stack(frames) / (255 if output_type == "pil" else 1)
    assert written.shape == expected.shape == (5, 32, 48, 3)
    assert np.abs(written - expected).mean() < 0.5 * np.abs(expected - expected.mean((0, 1, 2))).mean()


@pytest.mark.parametrize("name", FITTING_SCHEDULERS)
def test_schedulers_can_be_swapped(pipe, name):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    one, two = (video(pipe, num_inference_steps=6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert np.isfinite(one).all()
    assert one.std() > 1e-3
    assert np.abs(one - two).max() > 1e-3


def test_text_conditions_videos(make_pipeline):
    pipe = make_pipeline("video", text=True)
    one, two = (video(pipe, prompt=text, output_type="latent") for text in ("a disc", "a cloud"))
    assert (one - two).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be a positive whole number, got 0"),
        ({"times": []}, "`times` must be a non-empty list"),
        ({"times": [0.0, 1.5]}, r"moments in \[-1, 1\]"),
        ({"times": [0.0], "num_frames": 3}, "not both"),
        ({"time_range": (0.5, -0.5)}, "`time_range` must lie inside"),
    ],
)
def test_bad_input_is_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        video(pipe, **options)
