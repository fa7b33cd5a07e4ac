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
"""What a run starts from: presets of models, data sets, and what identifies these when a run is resumed."""

import argparse
import hashlib
import inspect
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, is_npu_available, is_xpu_available
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset

import diffusers_ddmi
from diffusers_ddmi.checkpointing import folder_fingerprint
from diffusers_ddmi.data import load_signals


logger = logging.getLogger(__name__)

PRESETS = Path(__file__).resolve().parent / "configs"

# modality -> what its data are called, and the flags that describe no other data
OWN_FLAGS = {
    "shape": ("shapes (shape)", ("captions_file", "point_noise", "preprocessing_num_workers")),
    "nerf": ("scenes (nerf)", ("fov_y", "near", "far", "longest_side")),
}


def ranks_are_on_cpu() -> bool:
    """Whether several processes were started where there is no GPU: unless told, accelerate takes each for a run alone."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and not (torch.cuda.is_available() or is_xpu_available() or is_npu_available())


# --------------------------------------------------------------------------------------------- presets


def preset_folder(preset: str, modality: str) -> Path:
    """The folder of a preset's model configs: `vae/`, `unet/`, `unet_text/`, `text_encoder/` and `scheduler/`.

    Args:
        preset: a name in `training/configs` ("tiny", "small", "official"), or a folder of one's own that holds these
            configs, either directly or in a subfolder for each modality.

    Raises:
        FileNotFoundError: there is none; the message lists what there is.
    """
    for root in (Path(preset), PRESETS / preset):
        for folder in (root / modality, root):
            if (folder / "vae" / "config.json").is_file():
                return folder
    known = sorted(p.relative_to(PRESETS).parents[1].as_posix() for p in PRESETS.glob("*/*/vae/config.json"))
    raise FileNotFoundError(
        f"Unknown preset {preset!r} for {modality!r}: expected a folder with vae/config.json, or one of {known}."
    )


def read_config(folder: Path, part: str, overrides: str | None = None) -> dict[str, Any]:
    """The config of one part of a preset, with keys replaced by those of the JSON object `overrides`.

    Raises:
        FileNotFoundError: the preset has no such part. ValueError: `overrides` is not a JSON object.
    """
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    if not path.is_file():
        raise FileNotFoundError(f"The preset has no {path}; it has {sorted(p.name for p in folder.iterdir())}.")
    config = json.loads(path.read_text(encoding="utf-8"))
    try:
        changes = json.loads(overrides or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--config_overrides must be a JSON object, but is {overrides!r} ({error}).") from error
    known = inspect.signature(config_class(config).__init__).parameters if changes else {}
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"--config_overrides names {unknown}, which {config['_class_name']} does not have.")
    return {**config, **changes}


def config_class(config: dict[str, Any]) -> type:
    """The class that a config names, of this package or of diffusers."""
    name = config["_class_name"]
    found = getattr(diffusers_ddmi, name, None) or getattr(diffusers, name, None)
    if found is None:
        raise ValueError(f"Neither diffusers_ddmi nor diffusers has a class {name!r}.")
    return found


def build(config: dict[str, Any], **sizes: Any) -> Any:
    """A new model or scheduler from its config. `sizes` replace those arguments that its class has."""
    cls = config_class(config)
    known = inspect.signature(cls.__init__).parameters
    return cls.from_config({**config, **{k: v for k, v in sizes.items() if k in known}})


def resolve_sizes(args: argparse.Namespace, config: Mapping[str, Any]) -> None:
    """Sets --resolution and --num_frames to what an autoencoder of this config takes.

    Raises:
        ValueError: they were given, and are others.
    """
    if config["modality"] not in ("image", "video"):
        return
    for name, key in (("resolution", "sample_size"), ("num_frames", "num_frames")):
        given, trained = getattr(args, name), config[key]
        if given is not None and trained is not None and given != trained:
            raise ValueError(f"--{name} is {given}, but the autoencoder was trained with {trained}: leave it out.")
        setattr(args, name, trained)


def plain_config(model: nn.Module) -> dict[str, Any]:
    """A model's configuration as JSON values, without what depends on where or by what version it was saved."""
    return json.loads(json.dumps({k: v for k, v in model.config.items() if not k.startswith("_")}, default=str))


def weights_fingerprint(model: nn.Module) -> str:
    """A checksum of a model's weights, which its config does not tell."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------- data


def load_training_data(args: argparse.Namespace, modality: str, purpose: str = "training") -> Dataset:
    """The training examples that the flags describe, without those held out by --validation_split."""
    dataset = _load(
        args, modality, "train", purpose, train_data_dir=args.train_data_dir, dataset_name=args.dataset_name
    )
    if isinstance(dataset, IterableDataset):
        return dataset
    count = len(dataset) - _held_out(args, len(dataset))
    return _Head(dataset, 0, min(count, args.max_train_samples or count))


def load_validation_data(args: argparse.Namespace, modality: str) -> Dataset | None:
    """Held-out examples, whole and unaugmented: of --validation_data_dir, of the end of the training data, or of the
    test split; None if there are none."""
    count = args.num_validation_samples
    if args.validation_data_dir:
        dataset = _load(args, modality, "test", "evaluation", train_data_dir=args.validation_data_dir)
        return _Head(dataset, 0, min(count, len(dataset)))
    source = {"train_data_dir": args.train_data_dir, "dataset_name": args.dataset_name}
    if args.validation_split and not args.streaming:
        dataset = _load(args, modality, "train", "evaluation", **source)
        first = len(dataset) - _held_out(args, len(dataset))
        return _Head(dataset, first, min(first + count, len(dataset)))
    if args.train_data_dir and not Path(args.train_data_dir, "test").is_dir():
        return None
    try:
        dataset = _load(args, modality, "test", "evaluation", **source)
    except (ValueError, FileNotFoundError) as error:
        logger.warning("No held-out data: %s", error)
        return None
    return _Head(dataset, 0, min(count, len(dataset)))


def _load(args: argparse.Namespace, modality: str, split: str, purpose: str, **source: Any) -> Dataset:
    check_own_flags(args, modality)
    return load_signals(
        modality,
        split=split,
        seed=args.seed,
        strict=args.strict,
        streaming=args.streaming and purpose != "evaluation",
        shuffle_buffer_size=args.shuffle_buffer_size,
        purpose=purpose,
        cache_dir=args.cache_dir,
        dataset_config_name=args.dataset_config_name,
        image_column=args.image_column,
        caption_column=args.caption_column,
        captions_file=args.captions_file,
        resolution=args.resolution,
        center_crop=args.center_crop,
        random_flip=args.random_flip,
        num_frames=args.num_frames,
        frame_stride=args.frame_stride,
        num_points=args.num_points,
        point_noise=args.point_noise,
        num_queries=args.num_queries,
        fov_y=None if args.fov_y is None else math.radians(args.fov_y),
        near=args.near,
        far=args.far,
        longest_side=args.longest_side,
        num_proc=args.preprocessing_num_workers,
        **source,
    )


def check_own_flags(args: argparse.Namespace, modality: str) -> None:
    """Raises ValueError for a flag that describes data of another modality alone."""
    for owner, (kind, names) in OWN_FLAGS.items():
        given = [f"--{name}" for name in names if getattr(args, name, None) is not None]
        if given and modality != owner:
            raise ValueError(f"{', '.join(given)}: for {kind} only; these data are of modality {modality!r}.")


def _held_out(args: argparse.Namespace, length: int) -> int:
    return min(max(1, round(args.validation_split * length)), length - 1) if args.validation_split else 0


class _Head(Subset):
    """Consecutive items of a data set, which passes the epoch on."""

    def __init__(self, dataset: Dataset, first: int, end: int):
        super().__init__(dataset, range(first, end))

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)


def data_fingerprint(accelerator: Accelerator, args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """What must not change between the parts of a run: the files of a folder, and some examples as they come out; of a
    stream, how it is divided.

    Data from the hub are known by their examples alone, hence more of these: what `datasets` takes for their identity
    depends on times of files and on the whole repository, so that copies and new descriptions would pass for new data.
    """
    result: list[Any] = [None]
    if accelerator.is_main_process:
        result[0] = {"source": args.dataset_name or "a folder"}
        source = args.train_data_dir or args.dataset_name
        is_folder = Path(source).expanduser().is_dir()
        if is_folder:
            result[0]["files"] = folder_fingerprint(Path(source).expanduser())
        if args.captions_file:
            captions = Path(args.captions_file).expanduser().read_bytes()
            result[0]["captions"] = hashlib.blake2b(captions, digest_size=8).hexdigest()
        if isinstance(dataset, IterableDataset):
            # Workers and processes share the rows of a stream, and its batches are theirs.
            result[0]["stream"] = {
                "--dataloader_num_workers": args.dataloader_num_workers,
                "--shuffle_buffer_size": args.shuffle_buffer_size,
                "--train_batch_size": args.train_batch_size,
                "processes": accelerator.num_processes,
            }
        else:
            dataset.set_epoch(0)
            length = len(dataset)
            places = {"first": [0], "middle": [length // 2], "last": [length - 1]}
            if not is_folder and args.dataset_name != "procedural":
                places["spread"] = sorted({i * (length - 1) // 31 for i in range(32)})
            result[0]["length"] = length
            result[0]["examples"] = {name: _digest(map(dataset.__getitem__, where)) for name, where in places.items()}
    broadcast_object_list(result)
    return result[0]


def _digest(examples: Iterable[dict[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, value in (item for example in examples for item in sorted(example.items())):
        digest.update(name.encode())
        digest.update(
            value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
        )
    return digest.hexdigest()
