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
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from killing import Killer
from running import (
    SHARED,
    STAGE_1,
    STAGE_2,
    TRAINING,
    assert_same_run,
    draw_pictures,
    flags,
    run,
    start,
    start_ranks,
    wait_for,
    weights,
)

from diffusers_ddmi import AutoencoderD2C, DDMIImagePipeline
from diffusers_ddmi.checkpointing import CheckpointError, checkpoint_step, find_checkpoint, verify_checkpoint
from diffusers_ddmi.training_utils import NonFiniteLossError


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes, whose numbers are compared bit for bit
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def pictures(tmp_path_factory) -> Path:
    folder = draw_pictures(tmp_path_factory.mktemp("data") / "pictures")
    SHARED["train_data_dir"] = STAGE_1["train_data_dir"] = STAGE_2["train_data_dir"] = folder
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stage-1") / "vae"
    torch.set_num_threads(1)
    assert run("train_d2c_vae", output_dir=folder, max_train_steps=6, **STAGE_1)
    return folder


@pytest.fixture(scope="module")
def ldm(vae, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stage-2") / "ddmi-test"
    torch.set_num_threads(1)
    assert run("train_ldm", pretrained_vae=vae, output_dir=folder, max_train_steps=6, **STAGE_2)
    return folder


def options_of(stage: int, vae: Path) -> tuple[str, dict]:
    return ("train_d2c_vae", STAGE_1) if stage == 1 else ("train_ldm", {**STAGE_2, "pretrained_vae": vae})


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class TestResults:
    def test_stage_1_saves_an_autoencoder(self, vae):
        model = AutoencoderD2C.from_pretrained(vae)
        assert model.config.modality == "image"
        log = log_of(vae)
        assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
        assert all(entry["loss"] > 0 for entry in log)
        assert "psnr" in log[-1]
        assert (vae / "validation" / "step-000006.png").stat().st_size > 0

    def test_stage_2_saves_a_pipeline(self, ldm):
        pipe = DiffusionPipeline.from_pretrained(ldm)
        assert type(pipe) is DDMIImagePipeline
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images = pipe(
            "a red cloud", num_inference_steps=2, generator=generator, height=24, width=20, output_type="pt"
        ).images
        assert images.shape == (1, 3, 24, 20)
        assert images.isfinite().all() and images.std() > 0

    def test_latents_are_standardised(self, vae, ldm):
        config = AutoencoderD2C.from_pretrained(ldm / "vae").config
        assert AutoencoderD2C.from_pretrained(vae).config.scaling_factor == 1.0
        assert config.scaling_factor not in (0.0, 1.0) and config.shift_factor != 0.0

    def test_checkpoints_total_limit(self, vae, tmp_path):
        run("train_d2c_vae", output_dir=tmp_path, max_train_steps=5, checkpoints_total_limit=2, **STAGE_1)
        assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("stage", [1, 2])
class TestExactResume:
    def test_three_and_three_are_six(self, stage, vae, ldm, tmp_path):
        script, options = options_of(stage, vae)
        run(script, output_dir=tmp_path, max_train_steps=3, **options)
        partial = weights(tmp_path)
        run(script, output_dir=tmp_path, max_train_steps=6, resume_from_checkpoint="latest", **options)
        assert any(not torch.equal(tensor, partial[name]) for name, tensor in weights(tmp_path).items())
        assert_validation_aside(tmp_path, vae if stage == 1 else ldm)

    def test_sigkill_while_training(self, stage, vae, ldm, tmp_path):
        assert killer(stage, vae, ldm, tmp_path).kill(2).kills == 2

    @pytest.mark.slow
    def test_ten_kills(self, stage, vae, ldm, tmp_path):
        assert killer(stage, vae, ldm, tmp_path).kill(10).kills == 10


def test_exact_resume_with_workers_accumulation_and_a_schedule(tmp_path):
    options = {
        **STAGE_1,
        "max_train_steps": 4,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 1,
    }
    run("train_d2c_vae", output_dir=tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    shutil.copy(tmp_path / "whole" / "log.jsonl", tmp_path / "run")
    run("train_d2c_vae", output_dir=tmp_path / "run", resume_from_checkpoint="latest", **options)
    assert len({entry["lr"] for entry in log_of(tmp_path / "run")}) == 4
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_going_on_from_an_earlier_checkpoint(vae, tmp_path, caplog):
    """What came after it is not mixed with what comes now."""
    folder = shutil.copytree(vae, tmp_path / "run")
    run("train_d2c_vae", output_dir=folder, max_train_steps=3, resume_from_checkpoint="checkpoint-2", **STAGE_1)
    assert "checkpoint-4, checkpoint-6 are now *.superseded" in caplog.text
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert [entry["step"] for entry in log_of(folder)] == [1, 2, 3]


def killer(stage: int, vae: Path, ldm: Path, folder: Path) -> Killer:
    script, options = options_of(stage, vae)
    options = {**options, "max_train_steps": 6}
    return Killer(script, options, reference=vae if stage == 1 else ldm, folder=folder, seed=10)


def assert_validation_aside(folder: Path, reference: Path) -> None:
    """Equal runs, but for the measurement that ends a run stopped at step 3."""
    lines = [{k: v for k, v in e.items() if e["step"] != 3 or k != "psnr"} for e in log_of(folder)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_same_run(folder, reference)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    return train_on_two_ranks("train_d2c_vae", tmp_path_factory.mktemp("ranks"), **STAGE_1, max_train_steps=6)


def train_on_two_ranks(script: str, folder: Path, **options) -> Path:
    """A run to its end, each process with half of the batch."""
    options = {**options, "train_batch_size": options["train_batch_size"] // 2}
    ranks = start_ranks(script, 2, folder / "output", output_dir=folder / "run", **options)
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0], (folder / "output.0").read_text()
    return folder / "run"


class TestProcesses:
    def test_same_as_one_process_with_the_global_batch(self, vae, two_ranks):
        assert (two_ranks / "checkpoint-6" / "random_states_1.pkl").exists()  # there really were two
        for one, two in zip(log_of(vae), log_of(two_ranks)):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        ours, theirs = weights(two_ranks), weights(vae)
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-3)

    def test_launched_with_the_config_for_two_processes(self, two_ranks, tmp_path):
        """From the command line, as the README says."""
        options = {**STAGE_1, "train_batch_size": STAGE_1["train_batch_size"] // 2, "max_train_steps": 2}
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
        command += [TRAINING / "configs" / "accelerate" / "cpu_2_processes.yaml", TRAINING / "train_d2c_vae.py"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [*command, *flags(output_dir=tmp_path, **options)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        for launched, forked in zip(log_of(tmp_path), log_of(two_ranks)[:2], strict=True):
            assert launched["loss"] == pytest.approx(forked["loss"], rel=1e-5)

    def test_stage_2_is_the_same_too(self, vae, ldm, tmp_path):
        options = {**STAGE_2, "pretrained_vae": vae, "max_train_steps": 6}
        ranks = train_on_two_ranks("train_ldm", tmp_path, **options)
        assert (ranks / "checkpoint-6" / "random_states_1.pkl").exists()
        for one, two in zip(log_of(ldm), log_of(ranks), strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)

    @pytest.mark.slow  # torch's FSDP2 is not at home on CPUs, and died inside torch once
    def test_sharded_and_resumed(self, two_ranks, tmp_path):
        """FSDP2: losses, clipping, averages, checkpoints and export of a module of which no process has the whole."""
        for steps in (3, 6):
            options = {"sharded": True, "max_train_steps": steps, "resume_from_checkpoint": "latest"}
            train_on_two_ranks("train_d2c_vae", tmp_path, **STAGE_1, **options)
        assert (tmp_path / "run" / "checkpoint-6" / "pytorch_model_fsdp.bin").exists()  # it really was sharded
        for sharded, replicated in zip(log_of(tmp_path / "run"), log_of(two_ranks), strict=True):
            for name in ("loss", "spectral", "grad_norm"):
                assert sharded[name] == pytest.approx(replicated[name], rel=1e-5)
        ours, theirs = weights(tmp_path / "run"), weights(two_ranks)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)

    def test_same_as_one_process_that_accumulates(self, vae, tmp_path):
        run(
            "train_d2c_vae",
            output_dir=tmp_path,
            max_train_steps=6,
            **{**STAGE_1, "train_batch_size": 2, "gradient_accumulation_steps": 2, "dataloader_num_workers": 1},
        )
        for one, two in zip(log_of(vae), log_of(tmp_path)):
            # each batch moves the power iteration of the spectral norms on, hence the tolerance
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)

    def test_killed_together_and_resumed(self, two_ranks, tmp_path):
        options = {**STAGE_1, "train_batch_size": 2, "max_train_steps": 6}
        tally = Killer("train_d2c_vae", options, two_ranks, tmp_path, seed=10, ranks=2).kill(2)
        assert tally.kills == 2 and tally.finished > 0

    def test_a_rank_killed_alone_ends_the_run(self, tmp_path):
        ranks = start_ranks(
            "train_d2c_vae",
            2,
            tmp_path / "output",
            output_dir=tmp_path / "run",
            max_train_steps=2000,
            **{**STAGE_1, "train_batch_size": 2},
        )
        wait_for(lambda: (tmp_path / "run" / "checkpoint-2").exists() or not ranks[0].is_alive())
        os.kill(ranks[1].pid, signal.SIGKILL)
        ranks[0].join(30)
        assert ranks[0].exitcode not in (None, 0)
        latest = find_checkpoint(tmp_path / "run", "latest")  # verified
        steps = checkpoint_step(latest) + 1
        train_on_two_ranks(
            "train_d2c_vae", tmp_path, **STAGE_1, max_train_steps=steps, resume_from_checkpoint="latest"
        )
        assert [entry["step"] for entry in log_of(tmp_path / "run")] == list(range(1, steps + 1))


class TestLeaving:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signals_save_and_leave(self, number, tmp_path):
        """Also when the whole group has the signal, data workers first."""
        process = start(
            "train_d2c_vae",
            tmp_path / "output",
            output_dir=tmp_path / "run",
            max_train_steps=2000,
            dataloader_num_workers=2,
            **STAGE_1,
        )
        wait_for(lambda: (tmp_path / "run" / "checkpoint-2").exists() or not process.is_alive())
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        for pid in (*(worker.pid for worker in workers), process.pid):
            os.kill(pid, number)
        process.join(30)
        assert process.exitcode == 1
        message = (tmp_path / "output").read_text()
        assert "--resume_from_checkpoint latest" in message
        step = log_of(tmp_path / "run")[-1]["step"]
        assert (tmp_path / "run" / f"checkpoint-{step}" / "manifest.json").exists()

    def test_death_of_a_data_worker(self, tmp_path):
        process = start(
            "train_d2c_vae",
            tmp_path / "output",
            output_dir=tmp_path / "run",
            max_train_steps=2000,
            dataloader_num_workers=2,
            **STAGE_1,
        )
        wait_for(lambda: (tmp_path / "run" / "checkpoint-2").exists() or not process.is_alive())
        psutil.Process(process.pid).children()[0].kill()
        process.join(30)
        assert process.exitcode == 1
        message = (tmp_path / "output").read_text()
        assert "DataWorkerError" in message and "continue with --resume_from_checkpoint latest" in message
        verify_checkpoint(find_checkpoint(tmp_path / "run", "latest"))

    def test_an_error_in_a_data_worker_ends_the_others_soon(self, tmp_path):
        """When the interpreter leaves with the error, whose traceback keeps the loader."""
        pictures = draw_pictures(tmp_path / "pictures")
        (pictures / "10.png").write_bytes((pictures / "10.png").read_bytes()[:200])  # not one that is read beforehand
        options = {**STAGE_1, "train_data_dir": pictures, "dataloader_num_workers": 2, "strict": True}
        command = [sys.executable, TRAINING / "train_d2c_vae.py", *flags(output_dir=tmp_path / "run", **options)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert process.returncode == 1
        assert "10.png: image file is truncated (strict" in process.stderr

    def test_existing_run_is_not_overwritten_unasked(self, vae):
        with pytest.raises(FileExistsError, match="--resume_from_checkpoint latest"):
            run("train_d2c_vae", output_dir=vae, max_train_steps=6, **STAGE_1)


class TestRefusals:
    @pytest.fixture
    def checkpoint(self, vae, tmp_path):
        """What is left of a run when only its last checkpoint is."""
        shutil.copytree(vae / "checkpoint-6", tmp_path / "checkpoint-6")
        return tmp_path

    def test_changed_data(self, checkpoint, tmp_path):
        pictures = draw_pictures(tmp_path / "pictures")
        os.replace(pictures / "3.png", pictures / "new.png")
        with pytest.raises(CheckpointError, match=r"training data changed.*files/3.png is gone.*files/new.png is new"):
            run(
                "train_d2c_vae",
                output_dir=checkpoint,
                max_train_steps=7,
                resume_from_checkpoint="latest",
                **{**STAGE_1, "train_data_dir": pictures},
            )

    def test_changed_data_set_by_name(self, pictures, tmp_path):
        data = shutil.copytree(pictures, tmp_path / "data")
        options = {**STAGE_1, "train_data_dir": None, "dataset_name": data, "cache_dir": tmp_path / "cache"}
        run("train_d2c_vae", output_dir=tmp_path / "run", max_train_steps=1, **options)
        os.replace(data / "4.png", data / "5.png")
        with pytest.raises(CheckpointError, match=r"training data changed.*files/4.png is gone"):
            run(
                "train_d2c_vae",
                output_dir=tmp_path / "run",
                max_train_steps=2,
                resume_from_checkpoint="latest",
                **options,
            )

    def test_changed_settings(self, checkpoint):
        with pytest.raises(CheckpointError, match=r"--learning_rate was 0.001 and is 0.1"):
            run(
                "train_d2c_vae",
                output_dir=checkpoint,
                max_train_steps=7,
                resume_from_checkpoint="latest",
                **{**STAGE_1, "learning_rate": 0.1},
            )

    def test_a_schedule_of_another_length(self, tmp_path):
        """By epochs, which constant rates do not depend on: ten pictures in batches of four."""
        options = {**STAGE_1, "output_dir": tmp_path, "lr_scheduler": "cosine"}
        run("train_d2c_vae", num_train_epochs=1, **options)
        with pytest.raises(CheckpointError, match=r"--max_train_steps was 3 and is 5"):
            run("train_d2c_vae", num_train_epochs=2, resume_from_checkpoint="latest", **options)

    def test_precision_set_by_the_launcher(self, checkpoint, monkeypatch):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        with pytest.raises(CheckpointError, match=r"--mixed_precision was 'no' and is 'bf16'"):
            run(
                "train_d2c_vae",
                output_dir=checkpoint,
                max_train_steps=7,
                resume_from_checkpoint="latest",
                **STAGE_1,
            )

    def test_an_autoencoder_trained_further(self, vae, ldm, tmp_path):
        shutil.copytree(ldm / "checkpoint-6", tmp_path / "run" / "checkpoint-6")
        other = AutoencoderD2C.from_pretrained(vae)
        with torch.no_grad():
            next(other.parameters()).add_(1e-3)
        other.save_pretrained(tmp_path / "vae")
        options = {**STAGE_2, "output_dir": tmp_path / "run", "resume_from_checkpoint": "latest"}
        with pytest.raises(CheckpointError, match="models/vae weights was"):
            run("train_ldm", pretrained_vae=tmp_path / "vae", max_train_steps=7, **options)

    def test_half_precision_with_an_adversary(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")  # which asks for a GPU
        options = {**STAGE_1, "resolution": 32, "disc_weight": 0.5}
        with pytest.raises(ValueError, match="--mixed_precision bf16"):
            run("train_d2c_vae", output_dir=tmp_path, **options)

    def test_a_stream_divided_otherwise(self, tmp_path):
        """Its rows, and their shuffled order, depend on the number of workers."""
        options = {**STAGE_1, "validation_split": 0, "streaming": True}
        run("train_d2c_vae", output_dir=tmp_path / "whole", max_train_steps=4, **options)
        run("train_d2c_vae", output_dir=tmp_path / "run", max_train_steps=2, **options)
        options |= {"output_dir": tmp_path / "run", "max_train_steps": 4, "resume_from_checkpoint": "latest"}
        with pytest.raises(CheckpointError, match="stream/--dataloader_num_workers was 0 and is 2"):
            run("train_d2c_vae", dataloader_num_workers=2, **options)
        run("train_d2c_vae", **options)
        assert_same_run(tmp_path / "run", tmp_path / "whole")

    def test_a_folder_that_cannot_be_written_to(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        with pytest.raises(PermissionError, match=r"--output_dir .*file/run cannot be made: .*Not a directory"):
            run("train_d2c_vae", output_dir=tmp_path / "file" / "run", **STAGE_1)
        monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
        with pytest.raises(PermissionError, match=r"--output_dir .* cannot be written to"):
            run("train_d2c_vae", output_dir=tmp_path, **STAGE_1)

    def test_nonfinite_loss_names_step_and_term(self, tmp_path):
        with pytest.raises(NonFiniteLossError, match=r"Step \d+: .*loss"):
            run("train_d2c_vae", output_dir=tmp_path, max_train_steps=4, **{**STAGE_1, "kl_weight": float("inf")})
        assert not list(tmp_path.glob("checkpoint-*"))

    def test_nonfinite_losses_are_skipped_by_flag(self, tmp_path):
        run(
            "train_d2c_vae",
            output_dir=tmp_path,
            max_train_steps=2,
            skip_nonfinite=True,
            **{**STAGE_1, "kl_weight": float("inf")},
        )
        assert [entry["loss"] for entry in log_of(tmp_path)] == [None, None]
        assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())

    def test_text_without_captions(self, vae, tmp_path):
        pictures = draw_pictures(tmp_path / "pictures")
        (pictures / "metadata.csv").unlink()
        options = {**STAGE_2, "pretrained_vae": vae, "train_data_dir": pictures}
        with pytest.raises(ValueError, match="captions"):
            run("train_ldm", output_dir=tmp_path / "run", max_train_steps=1, **options)

    def test_unknown_preset_lists_the_known(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="tiny"):
            run("train_d2c_vae", output_dir=tmp_path, **{**STAGE_1, "preset": "huge"})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dataset_name": "procedural"}, "exactly one"),
            ({"train_batch_size": 0}, "--train_batch_size"),
            ({"validation_split": 1.5}, "--validation_split"),
        ],
    )
    def test_flags(self, change, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            run("train_d2c_vae", output_dir=tmp_path, **{**STAGE_1, **change})


class TestFlags:
    """Flags that no other test takes, together: each changes what is trained or how, and the runs end well."""

    def test_stage_1_with_every_term(self, tmp_path, monkeypatch):
        package = (
            "import torch\n"
            "class LPIPS(torch.nn.Module):\n"
            "    def __init__(self, net, verbose):\n"
            "        super().__init__()\n"
            "    def forward(self, one, two):\n"
            "        return (one - two).square().mean((1, 2, 3))\n"
        )
        (tmp_path / "lpips.py").write_text(package)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "lpips", raising=False)
        options = {
            **STAGE_1,
            "train_data_dir": draw_pictures(tmp_path / "pictures"),
            "resolution": 24,
            "lpips_weight": 0.5,
            "disc_weight": 0.1,
            "disc_start": 2,
            "disc_adaptive_weight": True,
            "gradient_checkpointing": True,
            "mixed_precision": "bf16",
            "reduction": "sum",
        }
        try:
            assert run("train_d2c_vae", output_dir=tmp_path / "vae", max_train_steps=3, **options)
        finally:
            sys.modules.pop("lpips", None)
        terms = {
            "reconstruction",
            "kl",
            "spectral",
            "perceptual",
            "adversarial",
            "discriminator",
            "adversary_grad_norm",
        }
        log = log_of(tmp_path / "vae")
        assert all(terms <= set(entry) for entry in log)
        assert log[0]["discriminator"] == 0 < log[1]["discriminator"]

    def test_stage_2_with_a_pretrained_text_encoder(self, vae, ldm, tmp_path):
        """Its weights stored in half precision; the denoiser predicts velocities, weighed by min-SNR."""
        folder = tmp_path / "ddmi-test"
        pipe = DiffusionPipeline.from_pretrained(ldm)
        pipe.text_encoder.half().save_pretrained(tmp_path / "clip" / "text_encoder")
        pipe.tokenizer.save_pretrained(tmp_path / "clip" / "tokenizer")
        options = {
            **STAGE_2,
            "train_text_encoder": False,
            "text_encoder_name_or_path": tmp_path / "clip",
            "cache_latents": False,
            "snr_gamma": 5.0,
            "prediction_type": None,
            "gradient_checkpointing": True,
            "mixed_precision": "bf16",
            "resolution": None,
        }
        assert run("train_ldm", pretrained_vae=vae, output_dir=folder, max_train_steps=2, **options)
        trained = DiffusionPipeline.from_pretrained(folder)
        assert trained.scheduler.config.prediction_type == "v_prediction"
        for name, value in pipe.text_encoder.float().state_dict().items():
            assert torch.equal(trained.text_encoder.state_dict()[name], value), "it is frozen"
        image = trained("a red cloud", num_inference_steps=2, height=16, width=16, output_type="pt").images
        assert image.isfinite().all()

    @pytest.mark.parametrize(
        ("stage", "change", "message"),
        [
            (1, {"resolution": 16, "disc_weight": 0.1}, "at least 24 pixels"),
            (1, {"num_validation_samples": 0}, "--num_validation_samples must be at least 1"),
            (1, {"streaming": True}, "--validation_split divides data of a known length"),
            (1, {"report_to": "comet_ml"}, "--report_to comet_ml needs that package"),
            (2, {"resolution": 32}, "--resolution is 32, but the autoencoder was trained with 16"),
            (2, {"random_flip": True}, "--cache_latents keeps one version of each item"),
            (2, {"ddpm_num_inference_steps": 0}, "--ddpm_num_inference_steps must be at least 1"),
        ],
    )
    def test_refused(self, stage, change, message, vae, tmp_path):
        script, options = options_of(stage, vae)
        options = {**options, "train_data_dir": draw_pictures(tmp_path / "pictures"), "output_dir": tmp_path / "run"}
        with pytest.raises(ValueError, match=message):
            run(script, **{**options, **change}, max_train_steps=1)

    def test_free_flags_are_flags(self):
        import train_d2c_vae
        import train_ldm
        from training_arguments import FREE_ARGUMENTS

        known = vars(train_d2c_vae.parse_args(["--modality", "image", "--dataset_name", "d", "--output_dir", "o"]))
        known |= vars(train_ldm.parse_args(["--pretrained_vae", "v", "--dataset_name", "d", "--output_dir", "o"]))
        assert set(known) >= FREE_ARGUMENTS
