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
"""Runs the training scripts' `main` in this process or in others, and compares what they leave behind."""

import importlib
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file


TRAINING = Path(__file__).resolve().parents[2] / "training"
# A server that has imported everything forks a process in an instant.
os.environ["PYTHONPATH"] = os.pathsep.join([str(TRAINING), os.environ.get("PYTHONPATH", "")])
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["train_d2c_vae", "train_ldm", "diffusers_ddmi.data.images"])

# Ten pictures (and two held out) in batches of four: batches straddle epochs, and step 3 is in the middle of one.
SHARED = {
    "preset": "tiny",
    "validation_split": 2 / 12,
    "resolution": 16,
    "train_batch_size": 4,
    "checkpointing_steps": 2,
    "validation_steps": 100,
    "num_validation_samples": 2,
    "learning_rate": 1e-3,
}
STAGE_1 = {**SHARED, "modality": "image", "random_flip": True, "spectral_weight": 0.1, "use_ema": True}
STAGE_2 = {
    **SHARED,
    "train_text_encoder": True,
    "cache_latents": True,
    "validation_prompts": ["a red cloud"],
    "ddpm_num_inference_steps": 2,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 4,
}


def flags(**options) -> list[str]:
    """Command-line flags; True stands for a bare flag, and False or None for none."""
    result = []
    for name, value in options.items():
        if value is True:
            result.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            result += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            result += [f"--{name}", str(value)]
    return result


def run(script: str, **options) -> bool:
    """One training run in this process."""
    sys.path[:] = [str(TRAINING), *[p for p in sys.path if p != str(TRAINING)]]
    module = importlib.import_module(script)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return module.main(module.parse_args(flags(**options)))


def _target(script: str, options: dict, environment: dict, output: str) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method(
        None, force=True
    )  # workers start as in a script, and not from a server as this did
    torch.set_num_threads(1)
    if "SHARDED" in environment:
        _shard_on_cpu()
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    raise SystemExit(0 if run(script, **options) else 1)


def _shard_on_cpu() -> None:
    """Makes accelerate shard modules (FSDP2) on CPU processes too, where it would replicate them."""
    import accelerate
    import training_loop

    def create(**options) -> accelerate.Accelerator:
        accelerator = accelerate.Accelerator(**options)
        accelerator.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="no_wrap",
            cpu_ram_efficient_loading=False,
            state_dict_type="FULL_STATE_DICT",
        )
        for state in (PartialState(), accelerator.state):
            state.distributed_type = accelerate.DistributedType.FSDP
        return accelerator

    training_loop.Accelerator = create


def start(script: str, output: Path, environment: dict | None = None, **options) -> multiprocessing.Process:
    """One training run in another process; its messages go to the file `output`."""
    process = processes.Process(target=_target, args=(script, options, environment or {}, str(output)))
    process.start()
    return process


def start_ranks(
    script: str, count: int, output: Path, sharded: bool = False, **options
) -> list[multiprocessing.Process]:
    """One training run on `count` CPU processes that talk over gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "ACCELERATE_USE_CPU": "1",
    }
    shared |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(count)}
    if sharded:
        shared["SHARDED"] = "1"
    return [
        start(
            script, output.with_suffix(f".{rank}"), {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options
        )
        for rank in range(count)
    ]


def draw_pictures(folder: Path, count: int = 12) -> Path:
    """Small pictures with captions, as a user has them in a folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        pixels = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20 + i % 3, 22), Image.Resampling.BICUBIC).save(folder / name)
    captions = "".join(f"{name},a {'red' if i % 2 else 'blue'} cloud\n" for i, name in enumerate(names))
    (folder / "metadata.csv").write_text("file_name,caption\n" + captions)
    return folder


def wait_for(condition, seconds: float = 60.0, pause: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited for {seconds} s in vain")
        time.sleep(pause)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model or pipeline."""
    return {
        f"{path.relative_to(folder)}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        if "checkpoint-" not in str(path.relative_to(folder))
        for name, tensor in load_file(path).items()
    }


def assert_same_run(folder: Path, reference: Path) -> None:
    """Weights and log are equal, bit for bit."""
    left, right = weights(folder), weights(reference)
    assert left.keys() == right.keys() and len(left) > 0
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []
    assert (folder / "log.jsonl").read_text() == (reference / "log.jsonl").read_text()
