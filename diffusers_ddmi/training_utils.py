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

"""What a training run is made of besides its models: randomness and data order as functions of progress, an average
of the weights, a log and a way to stop.

Nothing here remembers how it came to a step: the same (seed, step) always gives the same numbers, whatever happened
before. This is what makes a resumed run equal an uninterrupted one (`diffusers_ddmi.checkpointing` saves the rest).
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import Dataset, Sampler

from .files import write_text


# --------------------------------------------------------------------------------------------- randomness


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on every part, and on nothing else: stable across processes and machines."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_generator(
    seed: int, step: int, rank: int = 0, purpose: str = "", device: str | torch.device = "cpu"
) -> torch.Generator:
    """The generator of one step of one process: drawing again from a new one gives the same numbers again.

    `purpose` keeps uses apart, so that adding a draw for one leaves the others as they were.
    """
    return torch.Generator(device).manual_seed(derived_seed(seed, step, rank, purpose))


def sample_generators(seed: int, numbers: Sequence[int], purpose: str = "") -> list[torch.Generator]:
    """One CPU generator per training sample, from its running `number` in the run (0 is the first sample ever seen).

    A sample's noise then depends on neither batch size, nor number of processes, nor gradient accumulation: two
    processes with batches of 4 draw what one process with a batch of 8 draws. The list goes where diffusers takes
    `generator=`, e.g. `diffusers.utils.torch_utils.randn_tensor`.
    """
    return [step_generator(seed, number, purpose=purpose) for number in numbers]


# --------------------------------------------------------------------------------------------- order of the data


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index), where sample number n of the run is a function of n alone.

    Sample n belongs to epoch n // length and is the (n % length)-th of that epoch's permutation, which is seeded by
    (seed, epoch). Process `rank` of `world_size` takes every `world_size`-th batch. So a run is resumed by starting
    at the number of samples it has consumed, with nothing skipped or read twice; every process always has a
    next batch; and batches may straddle epochs, so none is short.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch and process.
        seed: seed of the permutations.
        rank, world_size: which process of how many.
        first_sample: samples that all processes together have consumed so far.
        shuffle: False keeps the data set's own order in every epoch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        first_sample: int = 0,
        shuffle: bool = True,
    ):
        for name, value, least in (
            ("length", length, 1),
            ("batch_size", batch_size, 1),
            ("world_size", world_size, 1),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, but is {value}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be in [0, {world_size}), but is {rank}.")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.first_sample, self.shuffle = first_sample, shuffle

    def _permutation(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.length))
        return torch.randperm(self.length, generator=step_generator(self.seed, epoch, purpose="order")).tolist()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        number = self.first_sample + self.rank * self.batch_size
        while True:
            batch = []
            for n in range(number, number + self.batch_size):
                if n // self.length != epoch:
                    epoch = n // self.length
                    order = self._permutation(epoch)
                batch.append((epoch, order[n % self.length]))
            yield batch
            number += self.batch_size * self.world_size


class EpochDataset(Dataset):
    """Lets a `ResumableBatchSampler` index a data set with `set_epoch`: item (epoch, index) is item `index` as that
    epoch has it, in the main process and in workers alike, however far these read ahead."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        epoch, index = item
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        return self.dataset[index]


# --------------------------------------------------------------------------------------------- average of the weights


class ExponentialMovingAverage:
    """Exponential moving average of a model's parameters, with its buffers carried along, by name.

    The decay follows `diffusers.training_utils.EMAModel`, argument by argument. Different from it, buffers are
    carried (copied, since averaging counters makes no sense), the state is a plain dict of tensors, and nothing draws
    from the global random generator. Half-precision weights are averaged in float32, where small updates survive.
    Of a model that is sharded (FSDP2) each process averages its shards.

    Args:
        model: the model whose weights are averaged (not wrapped by DDP or the like).
        decay: largest decay. min_decay: smallest. update_after_step: steps during which the average is a copy.
        use_ema_warmup: decay 1 - (1 + step / inv_gamma) ** -power instead of (1 + step) / (10 + step).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_ema_warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
    ):
        if not 0.0 <= min_decay <= decay <= 1.0:
            raise ValueError(f"Expected 0 <= min_decay <= decay <= 1, got min_decay={min_decay} and decay={decay}.")
        self.decay, self.min_decay = decay, min_decay
        self.update_after_step = update_after_step
        self.use_ema_warmup, self.inv_gamma, self.power = use_ema_warmup, inv_gamma, power
        self.optimization_step = 0
        self.average = {name: _averageable(value) for name, value in _named_state(model)}

    def get_decay(self, optimization_step: int) -> float:
        """Decay used by the update number `optimization_step` (1 is the first)."""
        step = optimization_step - self.update_after_step - 1
        if step <= 0:
            return 0.0
        if self.use_ema_warmup:
            decay = 1 - (1 + step / self.inv_gamma) ** -self.power
        else:
            decay = (1 + step) / (10 + step)
        return max(min(decay, self.decay), self.min_decay)

    @torch.no_grad()
    def step(self, model: torch.nn.Module) -> None:
        """Moves the average towards the weights of `model`; buffers and frozen parameters are copied."""
        self.optimization_step += 1
        weight = 1 - self.get_decay(self.optimization_step)
        for name, value in _named_state(model):
            average = self.average[name]
            if isinstance(value, torch.nn.Parameter) and value.requires_grad and average.is_floating_point():
                average.lerp_(value.to(average.device, average.dtype), weight)
            else:
                average.copy_(value)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        """Writes the average into `model`."""
        for name, value in _named_state(model):
            value.copy_(self.average[name])

    @contextlib.contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """`model` has the averaged weights inside the block, and its own again afterwards, bit for bit."""
        own = {name: value.detach().clone() for name, value in _named_state(model)}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in _named_state(model):
                    value.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """{"optimization_step": int, "average": {name: tensor}}; the tensors are the state itself, not copies.

        Shards are gathered to whole tensors on the CPU, for which all processes must call this.
        """
        return {
            "optimization_step": self.optimization_step,
            "average": {name: whole_tensor(value) for name, value in self.average.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a `state_dict`. Raises ValueError if its names or shapes are not those of this model."""
        saved = state["average"]
        wrong = sorted(set(saved) ^ set(self.average))
        wrong += [n for n in self.average if n in saved and saved[n].shape != self.average[n].shape]
        if wrong:
            raise ValueError(
                f"The saved average belongs to another model: {len(wrong)} tensors differ, e.g. {wrong[:3]}."
            )
        for name, value in self.average.items():
            if isinstance(value, DTensor):
                value.copy_(distribute_tensor(saved[name].to(value.device), value.device_mesh, value.placements))
            else:
                value.copy_(saved[name])
        self.optimization_step = int(state["optimization_step"])


def _named_state(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """A tensor as it is, or, of a sharded one, the whole on the CPU (to be called by all processes)."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _averageable(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().clone()
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


# --------------------------------------------------------------------------------------------- losses that are no numbers


class NonFiniteLossError(FloatingPointError):
    """A loss term or gradient became NaN or infinite; the weights are still those of the step before."""


def nonfinite_terms(terms: Mapping[str, float]) -> list[str]:
    """Names of the terms that are NaN or infinite, in the given order."""
    return [name for name, value in terms.items() if not math.isfinite(value)]


# --------------------------------------------------------------------------------------------- leaving in good order


class GracefulStop:
    """While entered, SIGTERM and SIGINT set `requested` instead of ending the process, so that a step can be finished
    and saved. The same signal again, more than `patience` seconds later, interrupts at once.

    Launchers pass a signal on that their children have already had from the terminal, hence the patience.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, patience: float = 5.0):
        self.patience = patience
        self.received: signal.Signals | None = None
        self._time = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "GracefulStop":
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._time > self.patience:
            raise KeyboardInterrupt(f"Stopped at once by a second {signal.Signals(number).name}.")
        if not self.requested:
            self.received, self._time = signal.Signals(number), time.monotonic()


# --------------------------------------------------------------------------------------------- log


class JsonlLog:
    """Appends one JSON object per step to a file: {"step": 1, "loss": 0.5, ...}.

    Opening it for a resumed run cuts it back to the resumed step, so that the log of a run does not tell whether it
    was interrupted. It holds nothing that depends on time. NaN and infinity, which JSON lacks, become null.

    Args:
        path: the file; its folder must exist.
        step: entries up to this step are kept; 0 starts an empty log.
    """

    def __init__(self, path: str | os.PathLike, step: int = 0):
        self.path = Path(path)
        kept = self._entries_until(step) if step and self.path.exists() else []
        write_text(self.path, "".join(kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (closed by `close`)

    def _entries_until(self, step: int) -> list[str]:
        kept = []
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the line that was being written when the process died
                    break
                if not isinstance(entry, dict) or entry.get("step", step + 1) > step:
                    break
                kept.append(line)
        return kept

    def write(self, entry: Mapping[str, Any]) -> None:
        """Appends one entry, which must hold "step"."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Forces what was written to the disk: called before a checkpoint, which must not be ahead of its log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
