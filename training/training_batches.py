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
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from diffusers_ddmi.data import collate
from diffusers_ddmi.training_utils import EpochDataset, ResumableBatchSampler


Batch = dict[str, Any]


class DataWorkerError(RuntimeError):
    """A process that reads data is gone, or can no longer be talked to."""


# Seconds that a worker lives on after SIGTERM.
_GRACE = 60


def _leave_signals_to_main_process(closed: torch.Tensor, _: int) -> None:
    """A signal to the whole group must not cost the main process the batches of the step that it finishes. Once the
    batches are `closed`, SIGTERM comes from the main process, which waits for its workers when it leaves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closed else signal.alarm(_GRACE))


def batches(
    dataset: Dataset, args: argparse.Namespace, rank: int, world_size: int, first_sample: int
) -> Generator[tuple[Batch, Sequence[int]], None, None]:
    """Endless batches of this process, each with the running numbers of its samples, from `first_sample` on. Closing
    the generator ends the workers."""
    size = args.train_batch_size
    closed = torch.zeros((), dtype=torch.bool).share_memory_()
    loader_options: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": args.dataloader_num_workers,
        "worker_init_fn": partial(_leave_signals_to_main_process, closed),
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
    try:
        for batch in stream:
            yield batch, range(first, first + size)
            first += size * world_size
    finally:
        closed.fill_(True)


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
