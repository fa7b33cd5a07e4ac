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
"""Zooms into one generated image: every picture reads the same latent, so that details appear instead of pixels.

    python examples/image_zoom.py ddmi-pictures --output zoom.png

writes one row of pictures; each shows half of the width of the one before, at the same number of pixels.
"""

import argparse

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

import diffusers_ddmi  # noqa: F401 (makes the pipelines loadable)
from diffusers_ddmi.rendering.pictures import contact_sheet, save_image


def regions(levels: int, factor: float = 2.0, centre: tuple[float, float] = (0.0, 0.0)) -> list[tuple[float, ...]]:
    """The whole image `(-1, -1, 1, 1)`, then ever smaller regions `(x0, y0, x1, y1)` about `centre`, inside of it."""
    result = []
    for level in range(levels):
        half = factor**-level
        x, y = (min(max(c, half - 1), 1 - half) for c in centre)
        result.append((x - half, y - half, x + half, y + half))
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="Folder of an image pipeline, or hub id.")
    parser.add_argument("--output", default="zoom.png")
    parser.add_argument("--size", type=int, default=256, help="Pixels of each picture's side.")
    parser.add_argument("--levels", type=int, default=4, help="Pictures, each showing half of the one before.")
    parser.add_argument("--centre", type=float, nargs=2, default=(0.0, 0.0), metavar=("X", "Y"), help="In [-1, 1].")
    parser.add_argument("--steps", type=int, default=25, help="Denoising steps.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pictures, captions = [], []
    for region in regions(args.levels, centre=tuple(args.centre)):
        options = {"height": args.size, "width": args.size, "region": region}
        generator = torch.Generator().manual_seed(args.seed)  # the same noise, hence the same latent
        pictures += pipe(num_inference_steps=args.steps, generator=generator, **options).images
        captions.append(f"x {region[0]:.2f} to {region[2]:.2f}")
    save_image(contact_sheet(pictures, columns=len(pictures), captions=captions), args.output)


if __name__ == "__main__":
    main()
