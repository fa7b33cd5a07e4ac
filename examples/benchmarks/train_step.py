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
"""Time and memory of one step of stage 1 with the published image model's sizes, with and without recomputation.

    python examples/benchmarks/train_step.py

One 256² picture, all of its 65,536 pixels as targets, L1 and KL terms, AdamW; weights are random. Each variant runs in
a process of its own: `plain` keeps every activation, `readout` recomputes the read-out chunk by chunk, `all` recomputes
the blocks of encoder and decoder too (what `--gradient_checkpointing` of the training scripts does). Memory is the
resident set's peak, with weights, gradients and AdamW's moments (Linux only).
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from diffusers_ddmi import AutoencoderD2C
from diffusers_ddmi.losses import gaussian_nll, kl_divergence
from diffusers_ddmi.rendering.grids import cell_centres, grid_coordinates


PRESET = Path(__file__).parents[2] / "training" / "configs" / "official" / "image" / "vae"
VARIANTS = ("plain", "readout", "all")


def measure(variant: str, steps: int) -> None:
    torch.manual_seed(0)
    vae = AutoencoderD2C.from_config(AutoencoderD2C.load_config(PRESET)).train()
    if variant != "plain":
        vae.enable_gradient_checkpointing()
    if variant == "readout":
        for module in vae.modules():
            if module is not vae and hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    size = vae.config.sample_size
    picture = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    coords, targets = grid_coordinates(cell_centres(size), cell_centres(size)), picture.flatten(2).transpose(1, 2)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        output = vae(picture, coords, generator=generator)
        loss = gaussian_nll(output.sample, targets, "l1") + 1e-6 * kl_divergence(output.posterior)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        if not loss.isfinite():
            raise RuntimeError(f"The loss is {loss.item()}.")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{variant:8} {min(times):8.2f} s a step {peak:8.0f} MiB   ({torch.get_num_threads()} threads)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--steps", type=int, default=3, help="The fastest counts.")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.steps)
        return
    for variant in args.variants:
        command = [sys.executable, __file__, "--measure", variant, "--steps", str(args.steps)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
