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
import resource
import shutil

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from diffusers_ddmi.checkpointing import (
    CheckpointError,
    check_same_run,
    find_checkpoint,
    folder_fingerprint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    set_aside_later_checkpoints,
    verify_checkpoint,
)
from diffusers_ddmi.training_utils import ExponentialMovingAverage


class Run:
    """A model whose optimizer, schedule and average all have a state."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.folder = folder
        self.accelerator = Accelerator(cpu=True)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5)
        self.state = {"ema": ExponentialMovingAverage(model), "lr_scheduler": schedule}

    def step(self):
        self.model(torch.ones(1, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state["lr_scheduler"].step()
        self.state["ema"].step(self.model)

    def save(self, step, limit=None):
        return save_checkpoint(self.accelerator, self.folder, step, {"note": "hello"}, self.state, limit)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    run.step()
    return run


class TestSaving:
    def test_continues_exactly(self, run, tmp_path):
        path = run.save(1)
        numbers = torch.rand(3)
        run.step()
        other = Run(tmp_path)
        progress = load_checkpoint(other.accelerator, path, other.state)
        assert progress == {"step": 1, "note": "hello"}
        assert torch.equal(torch.rand(3), numbers)
        other.step()
        assert torch.equal(other.model.weight, run.model.weight)
        assert torch.equal(other.state["ema"].average["weight"], run.state["ema"].average["weight"])
        assert other.state["lr_scheduler"].get_last_lr() == run.state["lr_scheduler"].get_last_lr()

    def test_only_tensors_and_plain_values_are_read(self, run):
        """Nothing in a checkpoint is unpickled beyond what weights_only allows."""
        path = run.save(1)

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(path / "written-by-pickle"),)

        torch.save(Evil(), path / "training_state.pt")
        with pytest.raises(Exception, match=r"[Ww]eights.only"):
            load_checkpoint(run.accelerator, path, run.state)
        torch.save(Evil(), path / "optimizer.bin")
        with pytest.raises(Exception, match=r"[Ww]eights.only"):
            load_checkpoint(run.accelerator, path, run.state)
        assert not (path / "written-by-pickle").exists()

    def test_limit_keeps_the_newest(self, run, tmp_path):
        for step in (1, 2, 10):
            run.save(step, limit=2)
        assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
        with pytest.raises(CheckpointError, match="at least 1, or None"):
            run.save(11, limit=0)

    def test_the_one_just_written_is_never_removed(self, run, tmp_path):
        run.save(10)
        run.save(3, limit=1)  # resumed from an earlier step
        assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-3"]

    def test_later_ones_are_set_aside_and_removed_once_there_is_a_new_one(self, run, tmp_path):
        for step in (1, 2, 3):
            run.save(step)
        assert [path.name for path in set_aside_later_checkpoints(tmp_path, 1)] == ["checkpoint-2", "checkpoint-3"]
        assert find_checkpoint(tmp_path, "latest").name == "checkpoint-1"
        assert (tmp_path / "checkpoint-3.superseded" / "model.safetensors").is_file()
        run.save(2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]

    def test_remains_of_a_killed_save_are_cleared(self, run, tmp_path):
        (tmp_path / ".incomplete-checkpoint-1").mkdir()
        (tmp_path / ".incomplete-checkpoint-1" / "model.safetensors").write_text("half")
        run.save(2)
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]

    def test_full_disk_leaves_the_last_one_intact(self, run, tmp_path):
        path = run.save(1)
        run.model.extra = nn.Linear(300, 300)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # stands for a disk that is full
        try:
            with pytest.raises(CheckpointError, match=r"checkpoint-2.*Earlier checkpoints are intact"):
                run.save(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        verify_checkpoint(path)
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]

    def test_exhausted_file_handles_leave_the_last_one_intact(self, run, tmp_path):
        path = run.save(1)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with open(os.devnull) as file:
            used = file.fileno()  # the lowest that is free
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
        try:
            with pytest.raises(CheckpointError, match=r"checkpoint-2.*Too many open files.*are intact"):
                run.save(2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        verify_checkpoint(path)
        run.save(2)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]

    def test_state_of_another_run(self, run):
        path = run.save(1)
        with pytest.raises(CheckpointError, match=r"\['spectral'\] differ"):
            load_checkpoint(run.accelerator, path, {**run.state, "spectral": run.state["ema"]})


class TestFinding:
    @pytest.fixture
    def two(self, run, tmp_path):
        run.save(1)
        run.save(2)
        return tmp_path

    def test_latest(self, two):
        assert find_checkpoint(two, "latest").name == "checkpoint-2"
        assert find_checkpoint(two, "checkpoint-1").name == "checkpoint-1"
        assert find_checkpoint(two, str(two / "checkpoint-1")).name == "checkpoint-1"
        assert find_checkpoint(two, None) is None

    @pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "manifest.json", "training_state.pt"])
    def test_latest_passes_over_an_incomplete_one(self, two, file, caplog):
        (two / "checkpoint-2" / file).unlink()
        assert find_checkpoint(two, "latest").name == "checkpoint-1"
        assert "checkpoint-2" in caplog.text and file in caplog.text

    @pytest.mark.parametrize("damage", ["truncate", "flip"])
    def test_latest_passes_over_a_damaged_one(self, two, damage, caplog):
        path = two / "checkpoint-2" / "model.safetensors"
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[-1] ^= 1
        else:
            content = content[:-1]
        path.write_bytes(content)
        assert find_checkpoint(two, "latest").name == "checkpoint-1"
        assert "model.safetensors" in caplog.text
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            find_checkpoint(two, "checkpoint-2")

    def test_none(self, two, tmp_path):
        assert find_checkpoint(tmp_path / "elsewhere", "latest") is None
        with pytest.raises(FileNotFoundError, match=r"checkpoint-7.*checkpoint-1"):
            find_checkpoint(two, "checkpoint-7")
        for name in ("checkpoint-1", "checkpoint-2"):
            (two / name / "manifest.json").write_text("{")
        with pytest.raises(CheckpointError, match="None of the 2"):
            find_checkpoint(two, "latest")


class TestFingerprints:
    def test_differences_are_named(self, tmp_path):
        data = tmp_path / "data"
        data.mkdir()
        for name in ("kept", "changed", "removed"):
            (data / name).write_bytes(os.urandom(10_000))
        before = {"files": folder_fingerprint(data), "length": 3}
        check_same_run(before, {"files": folder_fingerprint(data), "length": 3}, "The data", tmp_path)
        (data / "removed").unlink()
        (data / "added").write_text("x")
        content = bytearray((data / "changed").read_bytes())
        content[-10] ^= 1
        (data / "changed").write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            check_same_run(before, {"files": folder_fingerprint(data), "length": 4}, "The data", tmp_path)
        message = str(error.value)
        for part in (
            "The data changed",
            "files/added is new",
            "files/removed is gone",
            "files/changed was",
            "length was 3",
        ):
            assert part in message
        assert "kept" not in message

    def test_survives_json(self, tmp_path):
        fingerprint = {"flags": {"lr": 1e-4, "sizes": (1, 2), "none": None}}
        check_same_run(json.loads(json.dumps(fingerprint)), fingerprint, "The run", tmp_path)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing-here"):
            folder_fingerprint(tmp_path / "nothing-here")

    def test_copies_are_equal(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "c").write_text("c")
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        assert folder_fingerprint(tmp_path / "a") == folder_fingerprint(tmp_path / "copy")
