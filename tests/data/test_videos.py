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
"""Clips: frames in order from every kind of source, coordinates that say where targets lie, bad clips named and skipped."""

import io
import logging
import re

import av
import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ddmi.data.coloured_shapes import COLOURS, KINDS, MOTIONS, ColouredShapesScene, MovingShape
from diffusers_ddmi.data.videos import (
    VideoExamples,
    clip_coordinates,
    load_procedural_videos,
    load_video_dataset,
    read_frames,
)


def flat_frames(number: int, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Frame i is grey of level 8·i, so that a frame tells its own index."""
    return [Image.new("RGB", size, (8 * i,) * 3) for i in range(number)]


def levels(frames: list[Image.Image]) -> list[int]:
    return [round(np.asarray(frame).mean() / 8) for frame in frames]


def write_folder(path, number, size=(32, 32)):
    path.mkdir(parents=True)
    for i, frame in enumerate(flat_frames(number, size)):
        frame.save(path / f"frame{i}.png")  # without leading zeros: frame10 must come after frame9
    return path


def write_gif(path, number):
    first, *rest = flat_frames(number)
    first.save(path, save_all=True, append_images=rest, duration=100)
    return path


def write_mp4(path, number, size=(32, 32), group=5, b_frames=0):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.bit_rate = group, 4_000_000
        stream.codec_context.max_b_frames = b_frames
        for frame in flat_frames(number, size):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "clips"
    write_folder(root / "people" / "walk", 12)
    write_gif(root / "jump.gif", 8)
    write_mp4(root / "run.mp4", 20)
    return root


class TestReadFrames:
    @pytest.mark.parametrize("wanted", [range(20), [0], [19], [3, 4, 11, 19], range(2, 18, 5)])
    @pytest.mark.parametrize("kind", ["folder", "gif", "mp4"])
    def test_exactly_the_frames_asked_for(self, tmp_path, kind, wanted):
        path = {"folder": write_folder, "gif": write_gif, "mp4": write_mp4}[kind](tmp_path / f"clip.{kind}", 20)
        counts = []
        frames = read_frames(path, lambda available: (counts.append(available), wanted)[1])
        assert counts == [20]
        assert levels(frames) == list(wanted)
        assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (32, 32))}

    @pytest.mark.parametrize("kind", ["gif", "mp4"])
    def test_from_bytes(self, tmp_path, kind):
        path = {"gif": write_gif, "mp4": write_mp4}[kind](tmp_path / f"clip.{kind}", 6)
        frames = read_frames({"bytes": path.read_bytes(), "path": None}, range)
        assert levels(frames) == list(range(6))

    def test_gif_transparency_lies_over_white(self):
        data = io.BytesIO()
        frame = Image.new("P", (4, 4), 1)
        frame.putpalette([0, 0, 0, 200, 0, 0])
        frame.save(data, "GIF", transparency=1)
        assert np.asarray(read_frames({"bytes": data.getvalue(), "path": None}, range)[0]).min() == 255

    @pytest.mark.parametrize("suffix", ["mp4", "avi", "mov"])
    def test_every_window_of_a_clip_with_b_frames(self, suffix, tmp_path):
        """Whose key frames are decoded before frames that are shown earlier."""
        path = write_mp4(tmp_path / f"clip.{suffix}", 24, b_frames=2)
        for first in range(0, 17):
            found = levels(read_frames(path, lambda _, first=first: range(first, first + 8)))
            assert len(found) == 8
            np.testing.assert_allclose(found, range(first, first + 8), atol=0.6)

    def test_damaged(self, tmp_path):
        path = write_mp4(tmp_path / "cut.mp4", 20)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(ValueError, match=r"unusable clip .*cut\.mp4"):
            read_frames(path, range)
        clip = write_folder(tmp_path / "clip", 3)
        (clip / "frame1.png").write_bytes((clip / "frame1.png").read_bytes()[:40])
        with pytest.raises(ValueError, match=r"unusable clip .*clip: unreadable picture .*frame1\.png"):
            read_frames(clip, range)
        assert levels(read_frames(clip, lambda _: [0, 2])) == [0, 2]
        (tmp_path / "empty.mp4").touch()
        with pytest.raises(ValueError, match=r"unusable clip .*empty\.mp4"):
            read_frames(tmp_path / "empty.mp4", range)

    def test_sound_without_pictures(self, tmp_path):
        with av.open(str(tmp_path / "sound.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        with pytest.raises(ValueError, match="no video stream"):
            read_frames(tmp_path / "sound.mp4", range)

    def test_varying_sizes(self, tmp_path):
        clip = write_folder(tmp_path / "clip", 3)
        Image.new("RGB", (16, 32)).save(clip / "frame2.png")
        with pytest.raises(ValueError, match=r"frames of different sizes, \(16, 32\) and \(32, 32\)"):
            read_frames(clip, range)


class TestFolder:
    def test_all_kinds_with_captions(self, folder):
        (folder / "metadata.csv").write_text("file_name,caption\npeople/walk,a walk\njump.gif,a jump\n")
        rows = load_video_dataset(folder)
        assert [row["video"]["path"] for row in rows] == [
            str(folder / name) for name in ("jump.gif", "people/walk", "run.mp4")
        ]
        assert rows["caption"][:] == ["a jump", "a walk", ""]
        assert list(load_video_dataset(folder, streaming=True)) == list(rows)

    def test_bad_clips_are_named_skipped_and_counted(self, folder, caplog):
        (folder / "void").mkdir()
        (folder / "zero.mp4").touch()
        (folder / "zero.gif").touch()
        (folder / "text.avi").write_text("no video")
        (folder / "text.gif").write_text("no video")
        bad = write_folder(folder / "bad", 9)
        (bad / "frame0.png").write_text("no picture")
        with caplog.at_level(logging.WARNING):
            rows = load_video_dataset(folder, num_frames=3, stride=4)
        assert [row["video"]["path"].rsplit("/")[-1] for row in rows] == ["walk", "run.mp4"]
        text = caplog.text
        assert re.search(r"void: too short: 0 frames, 9 are needed", text)
        assert re.search(r"jump\.gif: too short: 8 frames, 9 are needed", text)
        assert all(name in text for name in ("zero.mp4", "zero.gif", "text.avi", "text.gif", "bad/frame0.png"))
        assert "skipped 7 of 9 clips" in text
        with pytest.raises(ValueError, match=r"frame0\.png.*strict: bad items are errors"):
            load_video_dataset(folder, strict=True)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"no clips in .*expected folders of frames or files with one of \.avi"):
            load_video_dataset(tmp_path)
        (tmp_path / "a").mkdir()
        with pytest.raises(ValueError, match="none of 1 clip"):
            load_video_dataset(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_video_dataset(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="either train_data_dir or dataset_name"):
            load_video_dataset()

    def test_a_folder_of_frames_is_one_clip(self, tmp_path):
        assert len(load_video_dataset(write_folder(tmp_path / "clip", 4))) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_named_data_set_with_a_video_column(tmp_path, streaming):
    clip = write_mp4(tmp_path / "run.mp4", 8)
    features = datasets.Features({"clip": datasets.Video(decode=False), "text": datasets.Value("string")})
    content = {"clip": [{"bytes": clip.read_bytes(), "path": "run.mp4"}], "text": ["a run"]}
    rows = datasets.Dataset.from_dict(content, features=features)
    rows.cast_column("clip", datasets.Video()).save_to_disk(str(tmp_path / "set"))
    row = next(iter(load_video_dataset(dataset_name=str(tmp_path / "set"), streaming=streaming)))
    example = VideoExamples(8, num_frames=8)(row, np.random.default_rng(0))
    assert example["caption"] == "a run"
    assert levels([Image.fromarray(((f + 1) * 127.5).round().byte().numpy()) for f in example["inputs"][0]]) == [
        *range(8)
    ]


class TestExamples:
    def test_shapes_order_and_coordinates(self):
        row = {"seed": [0, 0, 1], "caption": "a disc"}
        example = VideoExamples(6, num_frames=4)(row, np.random.default_rng(0))
        assert example["inputs"].shape == (3, 4, 6, 6)
        assert example["coords"].shape == example["targets"].shape == (4 * 36, 3)
        assert {example[key].dtype for key in ("inputs", "coords", "targets")} == {torch.float32}
        assert example["inputs"].min() >= -1 and example["inputs"].max() <= 1
        torch.testing.assert_close(example["targets"], example["inputs"].flatten(1).T)
        coords = example["coords"].reshape(4, 6, 6, 3)
        torch.testing.assert_close(coords[0, 0, :, 0], torch.linspace(-5 / 6, 5 / 6, 6))
        torch.testing.assert_close(coords[0, :, 0, 1], torch.linspace(-5 / 6, 5 / 6, 6))
        torch.testing.assert_close(coords[:, 0, 0, 2], torch.linspace(-3 / 4, 3 / 4, 4))

    def test_targets_are_the_scene_at_their_coordinates(self):
        """A one-pixel drawing whose centre is a target's position shows the same sky there."""
        scene = ColouredShapesScene.from_seed([0, 0, 1])
        example = VideoExamples(9, num_frames=3)({"seed": [0, 0, 1]}, np.random.default_rng(0))
        centre = torch.where((example["coords"][:, :2] == 0).all(1))[0]
        assert len(centre) == 3
        for index in centre.tolist():
            colour = scene.draw(9, 9, time=float(example["coords"][index, 2]))[4, 4]
            np.testing.assert_allclose(example["targets"][index], 2 * colour - 1, atol=1e-6)

    def test_windows_at_a_stride(self, tmp_path):
        row = {"video": str(write_folder(tmp_path / "run", 20))}
        examples, rng = VideoExamples(8, num_frames=4, stride=3), np.random.default_rng(0)
        starts = set()
        for _ in range(60):
            grey = ((examples(row, rng)["inputs"][0].mean((1, 2)) + 1) * 127.5 / 8).round().int().tolist()
            assert np.diff(grey).tolist() == [3, 3, 3]
            starts.add(grey[0])
        assert starts == set(range(11)), "20 frames hold 11 windows of 10"

    def test_too_short(self, folder):
        with pytest.raises(ValueError, match=r"jump\.gif: too short: 8 frames, but 5 at stride 2 need 9"):
            VideoExamples(8, num_frames=5, stride=2)({"video": str(folder / "jump.gif")}, np.random.default_rng(0))

    def test_non_square_clips_are_cropped(self, tmp_path):
        clip = tmp_path / "clip"
        clip.mkdir()
        array = np.zeros((16, 48, 3), np.uint8)
        array[:, 12:36] = 255
        Image.fromarray(array).save(clip / "0.png")
        example = VideoExamples(4, num_frames=1)({"video": str(clip)}, np.random.default_rng(0))
        assert example["inputs"].min() == 1

    def test_flip_mirrors_every_frame(self):
        row, rng = {"seed": [0, 0, 2]}, np.random.default_rng(0)
        plain = VideoExamples(8, num_frames=3)(row, rng)["inputs"]
        examples = VideoExamples(8, num_frames=3, random_flip=True)
        drawn = [examples(row, rng)["inputs"] for _ in range(12)]
        mirrored = [torch.equal(inputs, plain.flip(-1)) for inputs in drawn]
        assert any(mirrored) and not all(mirrored)
        assert all(torch.equal(inputs, plain) for inputs, flipped in zip(drawn, mirrored) if not flipped)

    def test_subset_of_coordinates(self):
        row = {"seed": [0, 0, 2]}
        whole = VideoExamples(8, num_frames=3)(row, np.random.default_rng(0))
        part = VideoExamples(8, num_frames=3, num_coords=40)(row, np.random.default_rng(0))
        table = {tuple(c): v for c, v in zip(whole["coords"].tolist(), whole["targets"].tolist())}
        assert len({tuple(c) for c in part["coords"].tolist()}) == 40
        assert [table[tuple(c)] for c in part["coords"].tolist()] == part["targets"].tolist()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"resolution": 0}, "resolution must be a whole number of at least 1, got 0"),
            ({"resolution": 8, "num_frames": 2.5}, "num_frames must be a whole number"),
            ({"resolution": 8, "stride": -1}, "stride must be .* got -1"),
            ({"resolution": 8, "num_frames": 2, "num_coords": 129}, r"\[1, 128\].*got 129"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            VideoExamples(**arguments)

    def test_coordinates_of_unequal_sizes(self):
        coords = clip_coordinates(2, 3, 5).reshape(2, 3, 5, 3)
        np.testing.assert_allclose(coords[1, 2, 4], [4 / 5, 2 / 3, 1 / 2], rtol=1e-6)


class TestProceduralClips:
    def test_rows(self):
        rows, more = load_procedural_videos(num_videos=3), load_procedural_videos(num_videos=4)
        assert list(rows) == list(more)[:3]
        test = load_procedural_videos("test", num_videos=3)
        assert not {tuple(seed) for seed in rows["seed"]} & {tuple(seed) for seed in test["seed"]}
        assert "caption" in load_video_dataset(dataset_name="procedural", split="test").column_names
        for arguments in ({"split": "dev"}, {"num_videos": 0}):
            with pytest.raises(ValueError, match=r"splits|at least 1"):
                load_procedural_videos(**arguments)

    def test_thousands_are_distinct_and_captions_tell_the_motion(self):
        captions = load_procedural_videos(num_videos=400)["caption"][:]
        assert len(set(captions)) > 150
        pattern = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(KINDS)}) ({'|'.join(MOTIONS)})"
        assert all(re.fullmatch(f"{pattern}( and {pattern})?", caption) for caption in captions)

    @pytest.mark.parametrize(
        ("motion", "sign_x", "sign_y"),
        [
            ("moving to the left", -1, 0),
            ("moving to the right", 1, 0),
            ("moving up", 0, -1),
            ("moving down", 0, 1),
            ("bouncing to the left", -1, None),
            ("bouncing to the right", 1, None),
        ],
    )
    def test_captions_are_true(self, motion, sign_x, sign_y):
        """The drawn shape's centroid goes where the caption says (y points down)."""
        shape = MovingShape("disc", "white", motion, size=0.25, centre=(0.1, -0.05), angle=0.1, speed=0.5)
        still = ColouredShapesScene((shape,), (0.0, 0.0, 0.0), np.zeros((1, 2)), np.full(1, np.pi / 2), np.zeros(1))
        clip = still.draw_clip(12, 48, 48)[..., 0].astype(np.float64)
        grid = (2 * np.arange(48) + 1) / 48 - 1
        weight = clip.sum((1, 2))
        x, y = (clip.sum(1) @ grid) / weight, (clip.sum(2) @ grid) / weight
        assert np.all(np.sign(np.diff(x).round(3)) == sign_x)
        if sign_y is None:
            turns = np.diff(np.sign(np.diff(y)))
            assert np.count_nonzero(turns) >= 3 and y.max() < 0.55
        else:
            assert np.all(np.sign(np.diff(y).round(3)) == sign_y)
        np.testing.assert_allclose(weight * (2 / 48) ** 2, 0.97 * np.pi * 0.25**2, rtol=0.02)  # anti-aliased area

    @pytest.mark.parametrize(("motion", "sign"), [("rotating clockwise", 1), ("rotating anticlockwise", -1)])
    def test_rotation(self, motion, sign):
        shape = MovingShape("cross", "white", motion, size=0.3, centre=(0.0, 0.0), angle=0.2, speed=0.5)
        assert np.sign(shape.pose(0.5)[2] - shape.pose(0.0)[2]) == sign
        # The upper end of the vertical bar, turned clockwise, lies to the right.
        angle = shape.pose(0.1)[2] - 0.2
        end = np.array([0.25 * np.sin(angle + 0.2), -0.25 * np.cos(angle + 0.2)])
        assert shape.distance(end[:1], end[1:], 0.1) < 0
        assert np.sign(end[0] - 0.25 * np.sin(0.2)) == sign

    def test_one_scene_at_any_size_and_frame_rate(self):
        scene = ColouredShapesScene.from_seed(3)
        coarse, fine = scene.draw_clip(3, 32, 32), scene.draw_clip(9, 96, 96)
        pooled = fine.reshape(9, 32, 3, 32, 3, 3).mean((2, 4))
        np.testing.assert_allclose(pooled[[1, 4, 7]], coarse, atol=0.25)
        assert np.abs(pooled[[1, 4, 7]] - coarse).mean() < 3e-3
