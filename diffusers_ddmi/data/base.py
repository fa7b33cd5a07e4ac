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
"""Data sets of training examples: rows of `datasets`, a transform, and randomness that follows from progress alone.

A transform turns a row and a numpy generator into an example, a dict of tensors (and "caption", a str, where there is
one). The generator is made anew for every example, from the seed, the epoch and the example's place, so that the same
example has the same numbers whatever the number of workers, and whether or not the run was interrupted before it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset, get_worker_info


logger = logging.getLogger(__name__)

Row = dict[str, Any]
Example = dict[str, Any]
Transform = Callable[[Row, np.random.Generator], Example]

# What a transform raises for a row that cannot be used; anything else is a mistake in a program, and passes through.
BAD_ROW_ERRORS = (ValueError, OSError)
# Of these the machine is at fault, and not the row, which another reading would find good.
MACHINE_FAULTS = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])


class SignalDataset(Dataset):
    """Map-style data set: item i is `transform(row i, generator from (seed, epoch, i))`.

    A row for which the transform raises `ValueError` or `OSError` is bad: it is named in a warning once, counted in
    `num_bad`, and the next good row stands in for it (drawn with item i's generator), so that the length, and with it
    every sampler's order, stays as it was. An `OSError` that says nothing about the row (`MACHINE_FAULTS`) is raised.

    Args:
        dataset: rows: a `datasets.Dataset`, or any sequence of dicts.
        transform: `(row, numpy.random.Generator) -> example`.
        seed: of all randomness in the examples.
        strict: a bad row raises instead.

    Raises:
        ValueError: a data set without rows; when indexed, with `strict` a bad row, else only if all rows are bad.
        OSError: when indexed, if the machine failed: no file handles or memory left, a disk or network that is gone.
        IndexError: when indexed, outside [-length, length).
    """

    def __init__(
        self, dataset: datasets.Dataset | Sequence[Row], transform: Transform, seed: int = 0, strict: bool = False
    ):
        if len(dataset) == 0:
            raise ValueError("The data set has no rows; expected at least one.")
        self.dataset = dataset
        self.transform = transform
        self.seed = _checked_seed(seed)
        self.strict = strict
        # In shared memory, so that a main process reaches workers that outlive an epoch, and hears of their bad rows.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._bad = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()
        self._worker_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def epoch(self) -> int:
        return int(self._epoch) if self._worker_epoch is None else self._worker_epoch

    @property
    def num_bad(self) -> int:
        """How many rows turned out to be bad so far, in this process and in its workers."""
        return int(self._bad.sum())

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the following items belong to.

        Called in the main process, it holds for all workers, persistent ones too: call it between epochs, before the
        loader is iterated, since workers read ahead. Called in a worker, it holds for that worker alone.
        """
        if get_worker_info() is None:
            self._epoch.fill_(epoch)
        else:
            self._worker_epoch = epoch

    def __getitem__(self, index: int) -> Example:
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"index {index} is outside a data set of {length} rows")
        index = int(index) % length
        for place in chain(range(index, length), range(index)):
            if self._bad[place] and not self.strict:
                continue
            try:
                rng = np.random.default_rng((self.seed, self.epoch, index))
                return self.transform(self.dataset[place], rng)
            except BAD_ROW_ERRORS as error:
                _raise_machine_fault(error, f"row {place}")
                if self.strict:
                    raise ValueError(f"row {place}: {error} (strict: bad rows are errors)") from error
                self._bad[place] = True
                logger.warning("row %d cannot be used, the next one stands in for it: %s", place, error)
        raise ValueError(f"none of the {length} rows can be used; see the warnings above")


class SignalStream(IterableDataset):
    """Streaming data set: `transform(row, generator from (seed, epoch, place in the stream))`, row after row.

    Rows are divided among processes (`set_shard`) and among a loader's workers as `datasets` divides them: by files
    (shards) where there are enough of these. Each part counts its own rows, and the parts' numbers interleave, so no
    two rows share their random numbers; how rows are numbered therefore depends on the number of parts. With the same
    number of processes and workers, everything is repeatable.

    `state_dict` and `load_state_dict` carry the place in the stream, as far as the underlying data set can be
    positioned: without a loader's workers, or with a loader that saves the state of its workers (torchdata's
    `StatefulDataLoader`). Bad rows (see [`SignalDataset`]) are named in a warning, left out, and counted in `num_bad`.

    Args:
        dataset: a `datasets.IterableDataset`.
        transform: `(row, numpy.random.Generator) -> example`.
        seed: of all randomness in the examples.
        strict: a bad row raises `ValueError` instead.
    """

    def __init__(self, dataset: datasets.IterableDataset, transform: Transform, seed: int = 0, strict: bool = False):
        if not isinstance(dataset, datasets.IterableDataset):
            raise TypeError(
                f"expected a datasets.IterableDataset, got {type(dataset).__name__}; for rows with a length use SignalDataset"
            )
        self.dataset = self._whole = dataset
        self.transform = transform
        self.seed = _checked_seed(seed)
        self.strict = strict
        self._rank, self._world_size = 0, 1
        self._place = 0
        self._loaded: dict[str, int] = {}
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._num_bad = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @property
    def num_bad(self) -> int:
        """How many bad rows were left out so far, in this process and its workers (which add without waiting for each other)."""
        return int(self._num_bad)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration, in this process and in its workers; it also reshuffles a shuffled stream."""
        self._epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def set_shard(self, rank: int, world_size: int) -> None:
        """Restricts the stream to process `rank`'s part out of `world_size`."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got rank {rank} of {world_size}")
        self._rank, self._world_size = rank, world_size
        self.dataset = split_dataset_by_node(self._whole, rank, world_size) if world_size > 1 else self._whole
        self.dataset.set_epoch(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: to be loaded into a stream of the same data, seed and shard."""
        return {"dataset": self.dataset.state_dict(), "place": self._place, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Iterations of the epoch in which `state` was taken begin where it was taken; those of other epochs are whole."""
        self.set_epoch(state["epoch"])
        self.dataset.load_state_dict(state["dataset"])
        self._place = state["place"]
        self._loaded = {"epoch": state["epoch"], "place": state["place"]}

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        self._place = self._loaded["place"] if self._loaded.get("epoch") == self.epoch else 0
        for row in self.dataset:
            number = (self._place * workers + worker_id) * self._world_size + self._rank
            self._place += 1
            try:
                example = self.transform(row, np.random.default_rng((self.seed, self.epoch, number)))
            except BAD_ROW_ERRORS as error:
                _raise_machine_fault(error, f"row {number} of the stream")
                if self.strict:
                    raise ValueError(f"row {number} of the stream: {error} (strict: bad rows are errors)") from error
                self._num_bad += 1
                logger.warning("row %d of the stream cannot be used and is left out: %s", number, error)
                continue
            yield example


def _raise_machine_fault(error: BaseException, row: str) -> None:
    """Raises `OSError` if `error`, or what it was raised for, is one of `MACHINE_FAULTS`."""
    cause: BaseException | None = error
    while cause is not None:
        number = getattr(cause, "errno", None)
        if number in MACHINE_FAULTS:
            raise OSError(number, f"{row} could not be read: {error}") from error
        cause = cause.__cause__ or cause.__context__


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch: tensors and numbers stacked to `(batch, …)`, captions (and any other str) as a list.

    Raises:
        ValueError: no examples, examples with different keys, or tensors of different shapes under one key.
    """
    if not examples:
        raise ValueError("cannot make a batch of no examples")
    keys = examples[0].keys()
    for example in examples:
        if example.keys() != keys:
            raise ValueError(
                f"examples of one batch must have the same keys, got {sorted(keys)} and {sorted(example.keys())}"
            )
    return {key: _stack(key, [example[key] for example in examples]) for key in keys}


def _stack(key: str, values: list[Any]) -> Any:
    if isinstance(values[0], str):
        return values
    tensors = [torch.as_tensor(value) for value in values]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"{key!r} must have one shape in a batch, got {', '.join(map(str, sorted(shapes)))}; "
            "set the transform to a fixed number of points"
        )
    return torch.stack(tensors)


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    return int(seed)
