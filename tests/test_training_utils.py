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
import json
import os
import signal

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset

from diffusers_ddmi.training_utils import (
    EpochDataset,
    ExponentialMovingAverage,
    GracefulStop,
    JsonlLog,
    ResumableBatchSampler,
    derived_seed,
    nonfinite_terms,
    sample_generators,
    step_generator,
)


def draw(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(5, generator=generator)


class TestGenerators:
    def test_same_progress_same_numbers(self):
        assert torch.equal(draw(step_generator(1, 2, 3, "noise")), draw(step_generator(1, 2, 3, "noise")))

    def test_every_part_matters(self):
        variants = [(1, 2, 3, "a"), (2, 2, 3, "a"), (1, 3, 3, "a"), (1, 2, 4, "a"), (1, 2, 3, "b"), (1, 23, 0, "a")]
        assert len({tuple(draw(step_generator(*parts)).tolist()) for parts in variants}) == len(variants)

    def test_seeds_are_the_same_on_every_machine(self):
        assert derived_seed(0, "a") == 4513031048185085819
        assert 0 <= derived_seed(1) < 2**63

    def test_a_samples_noise_does_not_depend_on_its_batch(self):
        together = [draw(g) for g in sample_generators(0, range(4), "noise")]
        apart = [draw(g) for n in range(4) for g in sample_generators(0, [n], "noise")]
        assert all(map(torch.equal, together, apart))


def take(sampler: ResumableBatchSampler, count: int) -> list:
    batches = iter(sampler)
    return [next(batches) for _ in range(count)]


class TestSampler:
    def test_each_epoch_holds_every_sample_once(self):
        items = [item for batch in take(ResumableBatchSampler(10, 4, seed=3), 5) for item in batch]
        for epoch in (0, 1):
            assert sorted(i for e, i in items if e == epoch) == list(range(10))
        assert [i for e, i in items if e == 0] != [i for e, i in items if e == 1]

    def test_resumes_where_it_was(self):
        whole = take(ResumableBatchSampler(10, 4), 9)
        assert take(ResumableBatchSampler(10, 4, first_sample=12), 6) == whole[3:]

    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_processes_share_the_batches_of_one(self, world_size):
        one = [item for batch in take(ResumableBatchSampler(10, 8), 3) for item in batch]
        size = 8 // world_size
        ranks = [take(ResumableBatchSampler(10, size, rank=r, world_size=world_size), 3) for r in range(world_size)]
        assert [item for batches in zip(*ranks) for batch in batches for item in batch] == one

    def test_unshuffled(self):
        assert take(ResumableBatchSampler(3, 2, shuffle=False), 2) == [[(0, 0), (0, 1)], [(0, 2), (1, 0)]]

    @pytest.mark.parametrize(("arguments", "name"), [((0, 4), "length"), ((4, 0), "batch_size")])
    def test_errors(self, arguments, name):
        with pytest.raises(ValueError, match=name):
            ResumableBatchSampler(*arguments)
        with pytest.raises(ValueError, match=r"rank.*\[0, 2\).*2"):
            ResumableBatchSampler(4, 2, rank=2, world_size=2)


class Epochs(Dataset):
    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return self.epoch * 100 + index


@pytest.mark.parametrize("workers", [0, 2])
def test_items_belong_to_the_epoch_of_their_batch(workers):
    sampler = ResumableBatchSampler(5, 3)
    loader = iter(DataLoader(EpochDataset(Epochs()), batch_sampler=sampler, num_workers=workers))
    for expected in take(sampler, 4):
        assert next(loader).tolist() == [epoch * 100 + index for epoch, index in expected]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def perturb(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
        model[1].running_mean += 1.0
        model[1].num_batches_tracked += 1


class TestAverage:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"decay": 0.5},
            {"min_decay": 0.3, "update_after_step": 2},
            {"use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.75},
        ],
    )
    def test_parameters_as_in_diffusers(self, options):
        model = small_model()
        ours, theirs = ExponentialMovingAverage(model, **options), EMAModel(model.parameters(), **options)
        for seed in range(6):
            perturb(model, seed)
            ours.step(model)
            theirs.step(model.parameters())
        expected = small_model()
        theirs.copy_to(expected.parameters())
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(ours.average[name], parameter.data)

    def test_buffers_are_carried(self):
        model = small_model()
        average = ExponentialMovingAverage(model)
        perturb(model, 1)
        average.step(model)
        fresh = small_model()
        average.copy_to(fresh)
        assert torch.equal(fresh[1].running_mean, model[1].running_mean)
        assert fresh[1].num_batches_tracked == 1

    def test_applied_gives_the_weights_back(self):
        model = small_model()
        average = ExponentialMovingAverage(model, decay=0.9)
        for seed in range(3):
            perturb(model, seed)
            average.step(model)
        own = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(RuntimeError), average.applied(model):
            assert not torch.equal(model[0].weight, own["0.weight"])
            raise RuntimeError
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())

    def test_state_continues_exactly(self):
        model = small_model()
        first, second = ExponentialMovingAverage(model), ExponentialMovingAverage(model)
        perturb(model, 0)
        first.step(model)
        second.load_state_dict(first.state_dict())
        perturb(model, 1)
        first.step(model)
        second.step(model)
        assert all(torch.equal(value, second.average[name]) for name, value in first.average.items())

    def test_small_updates_survive_half_precision(self):
        model = nn.Linear(1, 1, bias=False).half()
        with torch.no_grad():
            model.weight.fill_(1.0)
        average = ExponentialMovingAverage(model, decay=0.9999, min_decay=0.9999)
        with torch.no_grad():
            model.weight.fill_(2.0)
        for _ in range(3):
            average.step(model)
        assert average.average["weight"].item() > 1.0

    def test_shards(self, tmp_path):
        """Of a sharded model the shards are averaged, and the whole average is saved and loaded."""
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
        )
        try:
            whole, sharded = nn.Linear(3, 2), nn.Linear(3, 2)
            sharded.load_state_dict(whole.state_dict())
            fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
            ours, theirs = ExponentialMovingAverage(sharded), ExponentialMovingAverage(whole)
            for model in (whole, sharded):
                with torch.no_grad():
                    model.weight += 1.0
            for _ in range(3):
                ours.step(sharded)
                theirs.step(whole)
            saved = ours.state_dict()
            assert type(saved["average"]["weight"]) is torch.Tensor
            assert torch.equal(saved["average"]["weight"], theirs.average["weight"])
            fresh = ExponentialMovingAverage(sharded)
            fresh.load_state_dict(theirs.state_dict())
            assert torch.equal(fresh.state_dict()["average"]["weight"], theirs.average["weight"])
        finally:
            torch.distributed.destroy_process_group()

    def test_errors(self):
        with pytest.raises(ValueError, match=r"min_decay=0\.9 and decay=0\.5"):
            ExponentialMovingAverage(small_model(), decay=0.5, min_decay=0.9)
        with pytest.raises(ValueError, match="another model"):
            ExponentialMovingAverage(small_model()).load_state_dict(
                ExponentialMovingAverage(nn.Linear(2, 2)).state_dict()
            )

    def test_does_not_touch_the_global_generator(self):
        model = small_model()
        before = torch.get_rng_state()
        average = ExponentialMovingAverage(model)
        average.step(model)
        assert torch.equal(before, torch.get_rng_state())


def test_nonfinite_terms():
    assert nonfinite_terms({"a": 1.0, "b": float("nan"), "c": float("-inf")}) == ["b", "c"]


class TestGracefulStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_is_noted(self, number):
        before = signal.getsignal(number)  # shells start background jobs with SIGINT ignored
        with GracefulStop() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # a launcher passing it on
            assert stop.received == number
        assert signal.getsignal(number) is before

    def test_a_later_one_interrupts(self):
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"), GracefulStop(patience=0.0):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


class TestLog:
    def entries(self, path) -> list[dict]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_resuming_cuts_back(self, tmp_path):
        path = tmp_path / "log.jsonl"
        log = JsonlLog(path)
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float("nan") if step == 2 else 0.5})
        log.close()
        path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while writing
        JsonlLog(path, step=2).close()
        assert self.entries(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]

    def test_a_new_run_starts_an_empty_log(self, tmp_path):
        path = tmp_path / "log.jsonl"
        path.write_text('{"step": 1}\n')
        JsonlLog(path).close()
        assert self.entries(path) == []
