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
"""How much memory a clip takes from latents to frames, with the published video model's sizes.

    python examples/benchmarks/video_readout.py --num_frames 16 --size 256

Weights and latents are random. Decoding, whose attention joins all planes at every level, takes minutes on a CPU. Memory is the resident set's peak during a step, less the resident set before the first
step, when only the weights are there (Linux only). `decode` makes the basis fields, `frames` reads them out through
`DDMIVideoPipeline.render`, up to 8-bit pictures.
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler

from diffusers_ddmi import AutoencoderD2C, DDMIVideoPipeline, PlanesUNet2DModel


PRESET = Path(__file__).parents[2] / "training" / "configs" / "official" / "video" / "vae"


def resident_memory(name: str) -> float:
    """`VmRSS` (now) or `VmHWM` (peak) of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{name} is not in /proc/self/status.")


def build_pipeline() -> DDMIVideoPipeline:
    """The published autoencoder with random weights, beside a denoiser that is too small to matter."""
    torch.manual_seed(0)
    vae = AutoencoderD2C.from_config(AutoencoderD2C.load_config(PRESET)).eval()
    channels = vae.latent_shape[0]
    unet = PlanesUNet2DModel(
        vae.layout.plane_sizes, channels, channels, (64,), layers_per_block=1, attention_levels=(False,)
    )
    return DDMIVideoPipeline(vae, unet, DDIMScheduler())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=256, help="Side of the frames in pixels.")
    args = parser.parse_args()
    pipe = build_pipeline()
    latents = torch.randn(1, *pipe.vae.latent_shape)
    options = {"num_frames": args.num_frames, "height": args.size, "width": args.size}
    options = pipe.check_render_inputs("pil", **options, time_range=None, times=None, region=None)
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # the libraries' own buffers
    before, field = resident_memory("VmRSS"), None

    def decode() -> None:
        nonlocal field
        field = pipe.decode_latents(latents)

    print(f"{torch.get_num_threads()} threads, float32; {before:.0f} MiB held before")
    for name, step in (("decode", decode), ("frames", lambda: pipe.render(field, "pil", **options))):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        start = time.perf_counter()
        step()
        duration, peak = time.perf_counter() - start, resident_memory("VmHWM") - before
        print(f"{name}: peak {peak:.0f} MiB, {resident_memory('VmRSS') - before:.0f} MiB kept; {duration:.1f} s")


if __name__ == "__main__":
    main()
