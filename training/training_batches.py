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
"""Batches of training data, from any place in the run on, read by processes that may die."""

import argparse
import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from diffusers_ddmi.data import collate
from diffusers_ddmi.training_utils import EpochDataset, ResumableBatchSampler


Batch = dict[str, Any]


class DataWorkerError(RuntimeError):
    """A process that reads data is gone, or can no longer be talked to."""


def _leave_signals_to_main_process(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(
    dataset: Dataset, args: argparse.Namespace, rank: int, world_size: int, first_sample: int
) -> Iterator[tuple[Batch, Sequence[int]]]:
    """Endless batches of this process, each with the running numbers of its samples, from `first_sample` on."""
    size = args.train_batch_size
    loader_options: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": args.dataloader_num_workers,
        "worker_init_fn": _leave_signals_to_main_process,
        "pin_memory": torch.cuda.is_available(),
        # Otherwise every new iterator draws from the global generator.
        "generator": torch.Generator().manual_seed(args.seed),
    }
    if isinstance(dataset, IterableDataset):
        stream = _stream(dataset, size, rank, world_size, first_sample, loader_options)
    else:
        sampler = ResumableBatchSampler(len(dataset), size, args.seed, rank, world_size, first_sample)
        stream = iter(DataLoader(EpochDataset(dataset), batch_sampler=sampler, **loader_options))
    first = first_sample + rank * size
    for batch in stream:
        yield batch, range(first, first + size)
        first += size * world_size


def _stream(
    dataset: IterableDataset, size: int, rank: int, world_size: int, first_sample: int, options: dict[str, Any]
) -> Iterator[Batch]:
    """Epoch after epoch of a stream. Its length being unknown, resuming reads again, and drops, what was consumed."""
    behind = first_sample // (size * world_size)
    epoch = 0
    while True:
        dataset.set_epoch(epoch)
        if hasattr(dataset, "set_shard"):
            dataset.set_shard(rank, world_size)
        empty = True
        for batch in DataLoader(dataset, batch_size=size, drop_last=True, **options):
            empty = False
            if behind:
                behind -= 1
            else:
                yield batch
        if empty:
            raise ValueError(f"The streamed data set yields less than one batch of {size} samples a process.")
        epoch += 1


@contextlib.contextmanager
def explained_worker_failures() -> Iterator[None]:
    """The loader reports the death of its processes wherever the main one happens to be; here it is said what to do."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not any(sign in str(error) for sign in ("DataLoader worker", "Too many open files")):
            raise
        raise DataWorkerError(
            f"Reading data failed ({error}). The last checkpoint is intact: continue with --resume_from_checkpoint "
            "latest. If memory or file handles (`ulimit -n`) ran out, lower --dataloader_num_workers."
        ) from error
