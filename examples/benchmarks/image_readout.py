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
"""How fast images are read out, and how much memory that takes, with the published image model's sizes.

    python examples/benchmarks/image_readout.py

Weights are random. The read-out (coordinates, interpolation of the basis fields, MLP) is compared with a plain float32
matrix product of its width at whichever number of rows is fastest, in one run, in turns. Memory is measured in a
process of its own for each picture: the resident set's peak during the read-out, less the resident set before it
(Linux only).
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel

from diffusers_ddmi import AutoencoderD2C, BasisFields, DDMIImagePipeline, NeuralField
from diffusers_ddmi.rendering.grids import render_pixels


PRESET = Path(__file__).parents[2] / "training" / "configs" / "official" / "image" / "vae"
ROWS = (1024, 2048, 4096, 8192, 16384, 65536)


def build_autoencoder() -> AutoencoderD2C:
    torch.manual_seed(0)
    return AutoencoderD2C.from_config(AutoencoderD2C.load_config(PRESET)).eval()


def build_field(vae: AutoencoderD2C) -> NeuralField:
    """The autoencoder's read-out on random basis fields, without the memory that decoding takes."""
    config = vae.config
    sizes = [config.sample_size // 2**level for level in reversed(range(config.num_scales))]
    fields = [[torch.randn(1, config.basis_channels, size, size)] for size in sizes]
    basis_fields = BasisFields(fields, "xy", ("xy",), (-1.0, 1.0), align_corners=False, reduction="concat")
    return NeuralField(basis_fields, vae.readout, vae.bounds).detach()


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def read(field: NeuralField, vae: AutoencoderD2C, size: int) -> torch.Tensor:
    return render_pixels(field, size, size, vae.config.sample_size, min_scale=vae.config.min_scale)


def operations_per_point(field: NeuralField) -> int:
    """Multiplications and additions of the read-out's matrix products, two for each weight that a point meets."""
    folded, _ = field.readout.prepare()
    weights = [weight for block in folded for maps in block for weight in maps[:2] if weight is not None]
    return 2 * (sum(weight[0].numel() for weight in weights) + field.readout.out.weight.numel())


def measure_speed(sizes: list[int], repeats: int) -> None:
    vae = build_autoencoder()
    field = build_field(vae)
    width = vae.readout.hidden_channels
    weight = torch.randn(width, width) / width**0.5
    inputs, outputs = torch.randn(max(ROWS), width), torch.empty(max(ROWS), width)
    products = {rows: [] for rows in ROWS}
    readings = {size: [] for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            for rows in ROWS:
                count = max(1, 2**18 // rows)

                def multiply(rows=rows, count=count):
                    for _ in range(count):
                        torch.mm(inputs[:rows], weight, out=outputs[:rows])

                products[rows].append(2 * rows * count * width**2 / seconds(multiply))
            readings[size].append(seconds(lambda size=size: read(field, vae, size)))
    rows, rate = max(((rows, max(rates)) for rows, rates in products.items()), key=lambda item: item[1])
    operations = operations_per_point(field)
    print(f"{torch.get_num_threads()} threads, float32; best of {repeats} runs each")
    print(f"matrix product {rows} × {width} × {width}: {rate / 1e9:7.1f} GFLOP/s")
    for size, times in readings.items():
        reached = operations * size**2 / min(times)
        print(
            f"read-out at {size}²: {min(times):6.2f} s, {reached / 1e9:7.1f} GFLOP/s "
            f"({operations / 1e6:.2f} MFLOP a point), {reached / rate:.0%} of the product's rate"
        )
    z, x = torch.randn(1, *vae.latent_shape), torch.randn(1, 3, *2 * [vae.config.sample_size])
    print(f"decode (latents to basis fields): {min(seconds(lambda: vae.decode(z)) for _ in range(repeats)):6.2f} s")
    print(f"encode: {min(seconds(lambda: vae.encode(x)) for _ in range(repeats)):6.2f} s")


def resident_memory(name: str) -> float:
    """`VmRSS` (now) or `VmHWM` (peak) of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{name} is not in /proc/self/status.")


def measure_memory(target: str, size: int) -> None:
    """Peak of reading a field, or of a whole pipeline call that ends in a PIL image, above what was there before."""
    vae = build_autoencoder()
    if target == "field":
        field = build_field(vae)

        def run():
            read(field, vae, size)
    else:
        latent_channels = vae.latent_shape[0]
        unet = UNet2DModel(
            vae.latent_shape[1],
            latent_channels,
            latent_channels,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            block_out_channels=(32,),
            layers_per_block=1,
            add_attention=False,
        )
        pipeline = DDMIImagePipeline(vae, unet, DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)

        def run():
            generator = torch.Generator().manual_seed(0)
            pipeline(height=size, width=size, num_inference_steps=1, generator=generator)

    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # the libraries' own buffers
    before = resident_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    duration = seconds(run)
    peak = resident_memory("VmHWM")
    what = "read-out" if target == "field" else "latents to PIL image (decode, read-out, 8 bit)"
    print(f"{what} at {size}²: {peak - before:.0f} MiB above the {before:.0f} MiB held before; {duration:.1f} s")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 1024], help="Sides of the pictures timed, from 256 up."
    )
    parser.add_argument("--pipeline_size", type=int, default=4096, help="Side of the picture a pipeline makes.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", nargs=2, metavar=("TARGET", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        measure_memory(args.memory[0], int(args.memory[1]))
        return
    measure_speed(args.sizes, args.repeats)
    for target, size in (("field", max(args.sizes)), ("pipeline", args.pipeline_size)):
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, "--memory", target, str(size)], check=True)


if __name__ == "__main__":
    main()
