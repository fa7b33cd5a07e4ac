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
"""Training data of every modality, reached through one table: `load_signals`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .base import SignalDataset, SignalStream, collate


__all__ = ["SignalDataset", "SignalStream", "collate", "load_signals"]


@dataclass(frozen=True)
class _Source:
    """One modality's loader and transform, what they call the options of `load_signals`, and the transform's arguments
    for evaluation (whole signals) and for latents (only the encoder's input is wanted)."""

    module: str
    load: str
    examples: str
    load_options: Mapping[str, str]
    example_options: Mapping[str, str]
    evaluation: Mapping[str, Any]
    latents: Mapping[str, Any]


_NAMED = {name: name for name in ("caption_column", "dataset_config_name", "cache_dir")}

_SOURCES = {
    "image": _Source(
        module="images",
        load="load_image_dataset",
        examples="ImageExamples",
        load_options={**_NAMED, "image_column": "image_column"},
        example_options={
            "resolution": "resolution",
            "center_crop": "center_crop",
            "random_flip": "random_flip",
            "num_queries": "num_coords",
        },
        evaluation={"scales": (1.0,), "center_crop": True, "random_flip": False, "num_coords": None},
        latents={"scales": (1.0,), "num_coords": 1},
    ),
    "video": _Source(
        module="videos",
        load="load_video_dataset",
        examples="VideoExamples",
        load_options={**_NAMED, "image_column": "video_column", "num_frames": "num_frames", "frame_stride": "stride"},
        example_options={
            "resolution": "resolution",
            "num_frames": "num_frames",
            "frame_stride": "stride",
            "random_flip": "random_flip",
            "num_queries": "num_coords",
        },
        evaluation={"random_flip": False, "num_coords": None},
        latents={"num_coords": 1},
    ),
    "shape": _Source(
        module="shapes",
        load="load_shape_dataset",
        examples="ShapeExamples",
        load_options={**_NAMED, "captions_file": "captions_file", "num_proc": "num_proc"},
        example_options={
            "num_points": "num_input_points",
            "num_queries": "num_queries",
            "point_noise": "point_noise",
        },
        evaluation={"num_queries": None, "uniform_queries": True, "point_noise": 0.0},
        latents={"num_queries": 1},
    ),
    "nerf": _Source(
        module="scenes",
        load="load_scene_dataset",
        examples="SceneExamples",
        load_options={**_NAMED, **{name: name for name in ("fov_y", "near", "far", "longest_side")}},
        example_options={"num_points": "num_points", "num_queries": "num_rays"},
        evaluation={"num_rays": None},
        latents={"num_rays": 0},
    ),
}
_OPTIONS = {name for source in _SOURCES.values() for name in (*source.load_options, *source.example_options)}


def load_signals(
    modality: str,
    dataset_name: str | None = None,
    train_data_dir: str | None = None,
    split: str = "train",
    *,
    seed: int = 0,
    strict: bool = False,
    streaming: bool = False,
    shuffle_buffer_size: int = 0,
    purpose: str = "training",
    **options: Any,
) -> SignalDataset | SignalStream:
    """The training examples of a data set, whatever its modality; `collate` makes batches of them.

    Args:
        modality: "image", "shape", "video" or "nerf".
        dataset_name, train_data_dir: a data set by name ("procedural": generated), or a folder; exactly one of them.
        split: "train" or "test".
        seed: of all randomness in the examples.
        strict: an unreadable item is an error; else it is named in a warning and passed over.
        streaming: read while iterating, without a length.
        shuffle_buffer_size: of a stream, rows among which the next one is drawn, files (shards) being shuffled too; 0
            for the order in which rows are stored. It depends on the seed, the epoch and the number of workers.
        purpose: "training"; "evaluation", whole signals without augmentation; or "latents", where only the encoder's
            input is wanted.
        options: resolution, center_crop, random_flip, num_queries (coordinates or rays of an example), num_frames,
            frame_stride, num_points, image_column, caption_column, dataset_config_name, cache_dir; captions_file,
            num_proc (processes that prepare meshes) and point_noise of shapes; fov_y, near, far and longest_side of
            scenes. Those that a modality has no use for are not looked at, and None stands for its default.

    Raises:
        ValueError: an unknown modality or purpose, or what the modality's loader finds wrong with the data.
        TypeError: an unknown option.
    """
    if modality not in _SOURCES:
        raise ValueError(f"Unknown modality {modality!r}: expected one of {', '.join(_SOURCES)}.")
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise TypeError(f"load_signals has no options {unknown}; it has {sorted(_OPTIONS)}.")
    source = _SOURCES[modality]
    changes: dict[str, Mapping[str, Any]] = {
        "training": {},
        "evaluation": source.evaluation,
        "latents": source.latents,
    }
    if purpose not in changes:
        raise ValueError(f"`purpose` must be one of {', '.join(changes)}, but is {purpose!r}.")
    module = import_module(f".{source.module}", __name__)
    rows = getattr(module, source.load)(
        train_data_dir=train_data_dir,
        dataset_name=dataset_name,
        split=split,
        streaming=streaming,
        strict=strict,
        **_renamed(options, source.load_options),
    )
    if streaming and shuffle_buffer_size:
        rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer_size)
    example_options = _renamed(options, source.example_options)
    examples = getattr(module, source.examples)(**{**example_options, **changes[purpose]})
    return (SignalStream if streaming else SignalDataset)(rows, examples, seed, strict)


def _renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[name]: value for name, value in options.items() if name in names and value is not None}
