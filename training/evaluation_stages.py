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
"""Work that is done once: computed shard by shard, by any number of processes, and kept in files.

A stage has `count` items. They are computed in shards of consecutive items, each written at once as a whole to
`FOLDER/STAGE/FIRST-END.safetensors`; a run that was killed goes on with the shards that are missing. Since the shards do
not depend on the number of processes, neither do the numbers.
"""

import json
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from diffusers_ddmi.checkpointing import CheckpointError, check_same_run
from diffusers_ddmi.files import replacing, write_text


Tensors = dict[str, torch.Tensor]


class Stage:
    """A finished stage.

    Attributes:
        count: its items. files: its shards, in order.
    """

    def __init__(self, count: int, files: list[Path]):
        self.count, self.files = count, files

    @cached_property
    def tensors(self) -> Tensors:
        """Everything that was computed, `(count, …)` each."""
        parts = [load_file(path) for path in self.files]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @property
    def seconds(self) -> float:
        """Time that computing took, added over the shards, whichever process and run they come from."""
        total = 0.0
        for path in self.files:
            with safe_open(path, "pt") as file:
                total += float(file.metadata()["seconds"])
        return total


class Stages:
    """The stages of one evaluation.

    Args:
        folder: where shards are kept; all processes must see it.
        shard_size: items computed together.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, shard_size: int):
        self.folder, self.accelerator, self.shard_size = folder, accelerator, shard_size
        self.finished: dict[str, Stage] = {}

    def run(self, name: str, count: int, compute: Callable[[range], Tensors]) -> Stage:
        """Computes what is missing of a stage; every process its share. To be called by all of them.

        Args:
            compute: given the numbers of consecutive items, returns tensors `(items, …)`, a function of these numbers
                alone.
        """
        if name in self.finished:
            return self.finished[name]
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        size, accelerator = self.shard_size, self.accelerator
        shards = [range(first, min(first + size, count)) for first in range(0, count, size)]
        files = [folder / f"{shard.start:07d}-{shard.stop:07d}.safetensors" for shard in shards]
        mine = list(zip(shards, files))[accelerator.process_index :: accelerator.num_processes]
        with tqdm(
            total=sum(len(shard) for shard, _ in mine), desc=name, disable=not accelerator.is_local_main_process
        ) as bar:
            for shard, file in mine:
                if not file.exists():
                    _compute(shard, file, compute)
                bar.update(len(shard))
        accelerator.wait_for_everyone()
        self.finished[name] = Stage(count, files)
        return self.finished[name]


def _compute(shard: range, file: Path, compute: Callable[[range], Tensors]) -> None:
    begun = time.perf_counter()
    tensors = {name: value.detach().cpu().contiguous() for name, value in compute(shard).items()}
    seconds = time.perf_counter() - begun
    wrong = {name: tuple(value.shape) for name, value in tensors.items() if len(value) != len(shard)}
    if wrong:
        raise ValueError(f"Expected results for {len(shard)} items, got {wrong}.")
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"seconds": repr(seconds)})


def check_settings(accelerator: Accelerator, path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a run, or compares them with those that are there; parts of them may be new.

    Raises:
        CheckpointError: on every process, if one has changed; each difference is named.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            _compare_and_write(path, settings)
        except (OSError, ValueError, CheckpointError) as error:
            answer[0] = error
    broadcast_object_list(answer)
    if answer[0] is not None:
        raise answer[0]


def _compare_and_write(path: Path, settings: Mapping[str, Any]) -> None:
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = {name: value for name, value in settings.items() if name in saved}
    check_same_run({name: saved[name] for name in known}, known, "The settings of the evaluation", path)
    write_text(path, json.dumps({**saved, **settings}, indent=1, sort_keys=True) + "\n")
