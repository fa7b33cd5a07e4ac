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
import errno
import logging

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from diffusers_ddmi.data.base import SignalDataset, SignalStream, collate


ROWS = datasets.Dataset.from_dict({"value": list(range(12)), "caption": [f"row {i}" for i in range(12)]})


def noisy(row, rng):
    return {"inputs": torch.tensor([row["value"], rng.random()]), "caption": row["caption"]}


def noisy_but_three(row, rng):
    if row["value"] == 3:
        raise ValueError("three is bad")
    return noisy(row, rng)


def values(source, **options):
    return torch.cat([batch["inputs"] for batch in DataLoader(source, 4, collate_fn=collate, **options)])


class TestSignalDataset:
    def test_item_depends_on_seed_epoch_and_index_alone(self):
        dataset = SignalDataset(ROWS, noisy, seed=1)
        first = dataset[5]["inputs"]
        dataset[7]
        assert torch.equal(dataset[5]["inputs"], first)
        assert not torch.equal(SignalDataset(ROWS, noisy, seed=2)[5]["inputs"], first)
        assert dataset[5]["inputs"][1] != dataset[6]["inputs"][1]
        dataset.set_epoch(1)
        assert not torch.equal(dataset[5]["inputs"], first)
        dataset.set_epoch(0)
        assert torch.equal(dataset[5]["inputs"], first)
        assert torch.equal(dataset[-7]["inputs"], first)

    def test_epoch_reaches_workers_that_outlive_it(self):
        alone, worked = SignalDataset(ROWS, noisy), SignalDataset(ROWS, noisy)
        loader = DataLoader(worked, 4, collate_fn=collate, num_workers=2, persistent_workers=True)
        seen = []
        for epoch in range(2):
            worked.set_epoch(epoch)
            alone.set_epoch(epoch)
            seen.append(torch.cat([batch["inputs"] for batch in loader]))
            assert torch.equal(seen[-1], values(alone))
        assert not torch.equal(*seen)

    def test_epoch_set_in_a_worker_holds_for_that_worker_alone(self):
        class ByEpoch(Dataset):
            def __init__(self, dataset):
                self.dataset = dataset

            def __getitem__(self, item):
                epoch, index = item
                self.dataset.set_epoch(epoch)
                return self.dataset[index]

        dataset = SignalDataset(ROWS, noisy)
        order = [(epoch, index) for epoch in range(2) for index in range(12)]
        got = values(ByEpoch(dataset), sampler=order, num_workers=2)
        assert dataset.epoch == 0
        assert torch.equal(got, values(ByEpoch(dataset), sampler=order))
        assert not torch.equal(got[:12], got[12:])

    def test_bad_row_is_named_counted_and_replaced_by_the_next(self, caplog):
        dataset = SignalDataset(ROWS, noisy_but_three)
        with caplog.at_level(logging.WARNING):
            got = dataset[3]["inputs"]
            assert torch.equal(dataset[3]["inputs"], got)
        assert got[0] == 4
        assert got[1] == SignalDataset(ROWS, noisy)[3]["inputs"][1]
        assert dataset.num_bad == 1
        assert len(caplog.records) == 1
        assert "three is bad" in caplog.text

    def test_bad_rows_of_workers_are_counted(self):
        dataset = SignalDataset(ROWS, noisy_but_three)
        values(dataset, num_workers=2)
        assert dataset.num_bad == 1

    def test_strict_raises_at_the_bad_row_only(self):
        dataset = SignalDataset(ROWS, noisy_but_three, strict=True)
        assert dataset[2]["inputs"][0] == 2
        with pytest.raises(ValueError, match="row 3: three is bad"):
            dataset[3]

    def test_all_rows_bad(self):
        def refuse(row, rng):
            raise OSError("unreadable")

        with pytest.raises(ValueError, match="none of the 12 rows"):
            SignalDataset(ROWS, refuse)[0]

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_faults_of_the_machine_are_not_blamed_on_the_row(self, wrapped):
        def run_out_of_handles(row, rng):
            error = OSError(errno.EMFILE, "Too many open files")
            if wrapped:
                raise ValueError("unreadable picture") from error
            raise error

        dataset = SignalDataset(ROWS, run_out_of_handles)
        with pytest.raises(OSError, match="row 3 could not be read") as caught:
            dataset[3]
        assert caught.value.errno == errno.EMFILE
        assert dataset.num_bad == 0
        dataset.transform = noisy
        assert dataset[3]["inputs"][0] == 3
        with pytest.raises(OSError, match="row 0 of the stream"):
            next(iter(SignalStream(ROWS.to_iterable_dataset(), run_out_of_handles)))

    def test_mistakes_in_the_transform_pass_through(self):
        with pytest.raises(KeyError):
            SignalDataset(ROWS, lambda row, rng: row["missing"])[0]

    def test_refuses_bad_arguments(self):
        with pytest.raises(ValueError, match="no rows"):
            SignalDataset([], noisy)
        with pytest.raises(ValueError, match=r"seed must be .* got -1"):
            SignalDataset(ROWS, noisy, seed=-1)
        with pytest.raises(IndexError, match="12 is outside a data set of 12 rows"):
            SignalDataset(ROWS, noisy)[12]


class TestSignalStream:
    def stream(self, transform=noisy, **options):
        return SignalStream(ROWS.to_iterable_dataset(num_shards=4), transform, **options)

    def test_repeats_itself_within_an_epoch(self):
        stream = self.stream()
        first = values(stream)
        assert torch.equal(values(stream), first)
        stream.set_epoch(1)
        second = values(stream)
        assert torch.equal(second[:, 0], first[:, 0])
        assert not torch.equal(second[:, 1], first[:, 1])

    def test_parts_cover_all_rows_with_different_numbers(self):
        stream = self.stream()
        parts = []
        for rank in range(2):
            stream.set_shard(rank, 2)
            parts.append(values(stream, num_workers=2))
            assert torch.equal(values(stream, num_workers=2), parts[-1])
        together = torch.cat(parts)
        assert sorted(together[:, 0].tolist()) == list(range(12))
        assert len(together[:, 1].unique()) == 12

    def test_resumes_where_its_state_was_taken(self):
        stream = self.stream(seed=3)
        iterator = iter(stream)
        for _ in range(5):
            next(iterator)
        state = stream.state_dict()
        rest = [example["inputs"] for example in iterator]
        resumed = self.stream(seed=3)
        resumed.load_state_dict(state)
        again = [example["inputs"] for example in resumed]
        assert torch.equal(torch.stack(again), torch.stack(rest))
        assert len(rest) == 7
        resumed.set_epoch(1)
        assert len(list(resumed)) == 12

    def test_bad_rows_are_left_out(self, caplog):
        stream = self.stream(noisy_but_three)
        with caplog.at_level(logging.WARNING):
            got = values(stream)
        assert got[:, 0].tolist() == [0, 1, 2, *range(4, 12)]
        assert torch.equal(got, values(self.stream())[[0, 1, 2, *range(4, 12)]])
        assert stream.num_bad == 1
        assert "three is bad" in caplog.text
        with pytest.raises(ValueError, match="three is bad"):
            list(self.stream(noisy_but_three, strict=True))

    def test_refuses_bad_arguments(self):
        with pytest.raises(TypeError, match=r"got Dataset; .* use SignalDataset"):
            SignalStream(ROWS, noisy)
        with pytest.raises(ValueError, match="got rank 2 of 2"):
            self.stream().set_shard(2, 2)


class TestCollate:
    def test_stacks_tensors_and_lists_captions(self):
        batch = collate(
            [
                {"scale": torch.tensor(0.5), "near": 1.0, "caption": "a"},
                {"scale": torch.tensor(1.0), "near": 2.0, "caption": "b"},
            ]
        )
        assert torch.equal(batch["scale"], torch.tensor([0.5, 1.0]))
        assert torch.equal(batch["near"], torch.tensor([1.0, 2.0]))
        assert batch["caption"] == ["a", "b"]

    def test_names_what_does_not_fit(self):
        with pytest.raises(ValueError, match="no examples"):
            collate([])
        with pytest.raises(ValueError, match=r"same keys, got \['a'\] and \['b'\]"):
            collate([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}])
        with pytest.raises(ValueError, match=r"'a' must have one shape in a batch, got \(1,\), \(2,\)"):
            collate([{"a": torch.zeros(1)}, {"a": torch.zeros(2)}])


def test_generators_of_neighbouring_examples_are_independent():
    draws = [
        SignalDataset(ROWS, lambda row, rng: {"x": torch.from_numpy(rng.random(1000))}, seed)[i]["x"]
        for seed in (0, 1)
        for i in (0, 1)
    ]
    correlations = np.corrcoef(torch.stack(draws).numpy()) - np.eye(4)
    assert np.abs(correlations).max() < 0.15
