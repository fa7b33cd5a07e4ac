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
"""Clips: folders of frames, GIF and video files, `datasets` by name and procedural scenes, and their training examples.

A row names its clip, `{"video": {"bytes": …, "path": file or folder of frames}}`, or holds the `seed` of a procedural
scene; "caption" is there only where the data have any. Decoding happens in [`VideoExamples`], and only of the frames
that an example needs, so that a damaged file costs one example and never a run.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import torch
from PIL import Image, ImageSequence

from .coloured_shapes import ColouredShapesScene, scene_seeds
from .pictures import IMAGE_SUFFIXES, check_header, decode_picture, largest_square, resize_square, to_rgb
from .sources import (
    as_stream,
    caption_feature,
    caption_of,
    keep_readable,
    list_files,
    load_named,
    read_captions,
    split_folder,
)


VIDEO_SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
FRAME_SUFFIXES = IMAGE_SUFFIXES - VIDEO_SUFFIXES

Pick = Callable[[int], Sequence[int]]


class VideoExamples:
    """Rows of clips -> training examples of `num_frames` frames.

    A window of `num_frames` frames, every `stride`-th, begins at a random place of the clip; of each frame the central
    square is resized (bicubic, the filter widened when reducing) to R pixels a side. The example is

        inputs  (3, T, R, R)  RGB in [-1, 1]
        coords  (N, 3)        (x, y, t) on [-1, 1]³: pixel centres (2i + 1)/R − 1 and frame centres (2i + 1)/T − 1;
                              N = T·R² in row-major order, x fastest and t slowest
        targets (N, 3)        RGB there
        caption str           where the row has one

    Procedural scenes are drawn at this resolution, their whole course in `num_frames` frames; `stride` is not used.

    Args:
        resolution: side R in pixels.
        num_frames: T.
        stride: distance between neighbouring frames of the window, in frames of the clip.
        num_coords: random subset of so many coordinates (N), without repetition; `None` keeps all, in order.
        random_flip: mirror half of the clips. Not for captions that tell left from right.

    Raises:
        ValueError: arguments outside these ranges; when called, a clip that is damaged, too short, or whose frames
            differ in size.
    """

    def __init__(
        self,
        resolution: int,
        num_frames: int = 16,
        stride: int = 1,
        num_coords: int | None = None,
        random_flip: bool = False,
    ):
        for name, value in {"resolution": resolution, "num_frames": num_frames, "stride": stride}.items():
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        total = num_frames * resolution**2
        if num_coords is not None and not 1 <= num_coords <= total:
            raise ValueError(
                f"num_coords must lie in [1, {total}], the pixels of {num_frames} frames at resolution {resolution}, "
                f"got {num_coords}"
            )
        self.resolution = resolution
        self.num_frames = num_frames
        self.stride = stride
        self.num_coords = num_coords
        self.random_flip = random_flip

    def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        clip = self._frames(row, rng)  # (T, R, R, 3)
        if self.random_flip and rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        example = {
            "inputs": torch.from_numpy(np.ascontiguousarray(clip.transpose(3, 0, 1, 2))),
            "coords": torch.from_numpy(clip_coordinates(*clip.shape[:3])),
            "targets": torch.from_numpy(np.ascontiguousarray(clip.reshape(-1, 3))),
        }
        if self.num_coords is not None:
            chosen = torch.from_numpy(rng.choice(len(example["coords"]), self.num_coords, replace=False))
            example["coords"], example["targets"] = example["coords"][chosen], example["targets"][chosen]
        if "caption" in row:
            example["caption"] = caption_of(row, rng)
        return example

    def _frames(self, row: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        size = self.resolution
        if row.get("seed") is not None:
            return 2.0 * ColouredShapesScene.from_seed(row["seed"]).draw_clip(self.num_frames, size, size) - 1.0

        def window(available: int) -> range:
            length = window_length(self.num_frames, self.stride)
            if available < length:
                raise ValueError(
                    f"too short: {available} frames, but {self.num_frames} at stride {self.stride} need {length}"
                )
            start = int(rng.integers(0, available - length + 1))
            return range(start, start + length, self.stride)

        frames = read_frames(row["video"], window)
        return np.stack([resize_square(frame, largest_square(frame.size), size) for frame in frames])


def window_length(num_frames: int, stride: int) -> int:
    """Frames of a clip that `num_frames` frames at `stride` span."""
    return (num_frames - 1) * stride + 1


def clip_coordinates(num_frames: int, height: int, width: int) -> np.ndarray:
    """Pixel and frame centres `(num_frames · height · width, 3)` as (x, y, t) on [-1, 1]³, x fastest, t slowest; float32."""
    t, y, x = np.meshgrid(*((2.0 * np.arange(n) + 1.0) / n - 1.0 for n in (num_frames, height, width)), indexing="ij")
    return np.stack([x, y, t], axis=-1).reshape(-1, 3).astype(np.float32)


def read_frames(video: Any, pick: Pick) -> list[Image.Image]:
    """Some frames of a clip, as 8-bit RGB pictures of equal size.

    Args:
        video: `{"bytes": encoded file or None, "path": file or folder of frames}` as `datasets` keeps it, or a path.
        pick: given the number of frames in the clip, returns the increasing indices of the frames wanted.

    Raises:
        ValueError: the clip cannot be read, `pick` refuses it, or its frames differ in size; the message names it.
    """
    if isinstance(video, str | os.PathLike):
        video = {"bytes": None, "path": os.fspath(video)}
    data, path = video.get("bytes"), video.get("path")
    name = path or "(no file name)"
    try:
        if data is None and Path(path).is_dir():
            files = frame_files(Path(path))
            frames = [decode_picture(files[i]) for i in pick(len(files))]
        else:
            source = io.BytesIO(data) if data is not None else str(path)
            animated = data[:3] == b"GIF" if data is not None else Path(path).suffix.lower() == ".gif"
            frames = _read_animation(source, pick) if animated else _read_video(source, pick)
    except (ValueError, OSError, EOFError, SyntaxError, IndexError, av.error.FFmpegError) as error:
        raise ValueError(f"unusable clip {name}: {error}") from error
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"unusable clip {name}: frames of different sizes, {' and '.join(map(str, sorted(sizes)))}")
    return frames


def frame_files(folder: Path) -> list[Path]:
    """The pictures directly in `folder` in natural order (frame2 before frame10), hidden ones left out."""
    files = [
        file for file in folder.iterdir() if file.suffix.lower() in FRAME_SUFFIXES and not file.name.startswith(".")
    ]
    return sorted(
        files, key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]
    )


def _read_animation(source: Any, pick: Pick) -> list[Image.Image]:
    with Image.open(source) as animation:
        wanted = pick(getattr(animation, "n_frames", 1))
        frames = {i: to_rgb(frame) for i, frame in enumerate(ImageSequence.Iterator(animation)) if i in wanted}
    return [frames[i] for i in wanted]


def _read_video(source: Any, pick: Pick) -> list[Image.Image]:
    """Decodes from the key frame before the first wanted frame to the last wanted one, keeping the wanted ones."""
    with av.open(source) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        times = sorted({p.pts for p in packets})
        wanted = [times[i] for i in pick(len(times))]
        # Containers seek by the time of decoding, in which a key frame may stand before frames that are shown earlier.
        keys = [(p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe and p.pts <= wanted[0]]
        container.seek(max(keys)[1] if keys else times[0], stream=stream)
        frames = {}
        for frame in container.decode(stream):
            if frame.pts in wanted:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                frames[frame.pts] = Image.fromarray(np.ascontiguousarray(upright))
            if frame.pts is not None and frame.pts >= wanted[-1]:
                break
    missing = len(wanted) - len(frames)
    if missing:
        raise ValueError(f"{missing} of {len(wanted)} frames cannot be decoded")
    return [frames[time] for time in wanted]


def load_video_dataset(
    train_data_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    video_column: str | None = None,
    caption_column: str | None = None,
    num_frames: int = 1,
    stride: int = 1,
    strict: bool = False,
    dataset_config_name: str | None = None,
    cache_dir: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Rows `{"video": {"bytes", "path"}, "caption": str}` of clips; "caption" only where the data have any.

    Args:
        train_data_dir: folder with, at any depth, folders of frames (each folder that holds pictures is one clip) and
            GIF or video files ([`VIDEO_SUFFIXES`]). Captions are read from `metadata.csv` or `metadata.jsonl` (columns
            `file_name`, the clip's file or folder, and `caption_column`). Subfolders that are all named as splits are
            taken as splits.
        dataset_name: instead of a folder: "procedural", a hub id, or a local path that `datasets` loads.
        split: of either source; a folder without split subfolders is all one split.
        streaming: an `IterableDataset`.
        video_column, caption_column: column names, found by type and by usual names when `None`.
        num_frames, stride: clips of a folder too short for such a window are left out here.
        strict: an unusable clip raises. Otherwise it is named in a warning, skipped and counted.
        dataset_config_name, cache_dir: passed on to `datasets.load_dataset`.

    Empty folders and files, unreadable headers and short clips are found here; other damage shows only when a clip is
    decoded (`VideoExamples` raises `ValueError`, which the data set classes of `data.base` treat as a bad item).

    Raises:
        ValueError: both or neither source, a folder without one usable clip, with `strict` an unusable clip.
        FileNotFoundError: the source does not exist.
    """
    if (train_data_dir is None) == (dataset_name is None):
        raise ValueError(
            f"give either train_data_dir or dataset_name, got train_data_dir={train_data_dir!r} and dataset_name={dataset_name!r}"
        )
    if train_data_dir is not None:
        folder = split_folder(train_data_dir, split)
        dataset = _load_folder(folder, caption_column, window_length(num_frames, stride), strict)
    elif dataset_name == "procedural":
        dataset = load_procedural_videos(split)
    else:
        return load_named(
            dataset_name,
            video_column,
            datasets.Video,
            caption_column,
            split=split,
            streaming=streaming,
            config=dataset_config_name,
            cache_dir=cache_dir,
        )
    return as_stream(dataset) if streaming else dataset


def load_procedural_videos(split: str = "train", num_videos: int = 2048, seed: int = 0) -> datasets.Dataset:
    """Rows `{"seed", "caption"}` of coloured shapes that move, bounce or turn before drifting clouds.

    The caption tells what happens, e.g. "a red disc bouncing to the left". Scenes are drawn by [`VideoExamples`], or at
    any size and frame rate by `ColouredShapesScene.from_seed(row["seed"])`.

    Args:
        split: "train" or "test"; their scenes differ.
        num_videos: how many; scene i is the same whatever the number.
        seed: another seed gives other scenes.

    Raises:
        ValueError: an unknown split or a number below 1.
    """
    seeds = scene_seeds(split, num_videos, seed)
    captions = [ColouredShapesScene.from_seed(item).clip_caption for item in seeds]
    return datasets.Dataset.from_dict({"seed": seeds, "caption": captions})


def _load_folder(folder: Path, caption_column: str | None, length: int, strict: bool) -> datasets.Dataset:
    clips = _find_clips(folder)
    if not clips:
        raise ValueError(
            f"no clips in {folder}; expected folders of frames or files with one of {', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    clips = keep_readable(clips, lambda clip: _check_clip(clip, length), strict, "clip")
    columns: dict[str, Any] = {"video": [{"bytes": None, "path": str(clip)} for clip in clips]}
    features: dict[str, Any] = {"video": datasets.Video(decode=False)}
    captions = read_captions(folder, clips, caption_column)
    if captions is not None:
        columns["caption"], features["caption"] = captions, caption_feature(captions)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _find_clips(folder: Path) -> list[Path]:
    """Video files, folders that hold pictures, and empty folders (which are then refused by name)."""
    clips = list_files(folder, VIDEO_SUFFIXES)
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        visible = [name for name in names if not name.startswith(".")]
        frames = any(os.path.splitext(name)[1].lower() in FRAME_SUFFIXES for name in visible)
        if frames or (not visible and not subfolders and Path(parent) != folder):
            clips.append(Path(parent))
    return sorted(clips)


def _check_clip(clip: Path, length: int) -> None:
    if clip.is_dir():
        frames = frame_files(clip)
        if frames:
            check_header(frames[0])
        available = len(frames)
    elif clip.stat().st_size == 0:
        raise ValueError(f"unusable clip {clip}: the file is empty")
    elif clip.suffix.lower() == ".gif":
        check_header(clip)
        with Image.open(clip) as animation:
            available = animation.n_frames
    else:
        available = _count_frames(clip)
    if available < length:
        raise ValueError(f"unusable clip {clip}: too short: {available} frames, {length} are needed")


def _count_frames(file: Path) -> int:
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError("no video stream")
            stream = container.streams.video[0]
            return stream.frames or sum(packet.pts is not None for packet in container.demux(stream))
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise ValueError(f"unusable clip {file}: {error}") from error
