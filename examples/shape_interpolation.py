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
"""From one generated shape to another: spherical interpolation between two latents, each step a whole shape.

    python examples/shape_interpolation.py ddmi-furniture --output interpolation.png --animation interpolation.gif

The path lies on the sphere between two denoised latents, before they are decoded.
"""

import argparse

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

import diffusers_ddmi  # noqa: F401 (makes the pipelines loadable)
from diffusers_ddmi.rendering.pictures import contact_sheet, save_gif, save_image
from diffusers_ddmi.rendering.raster import render_mesh
from diffusers_ddmi.rendering.surface import extract_meshes


def slerp(first: torch.Tensor, second: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Points on the arc between two latents of one shape `(…)`: `(fractions, …)`, with norms in between theirs.

    Standardised latents are nearly normal, so that all have about the same norm; a straight line would pass inside.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1)).clamp(min=1e-4)
    fractions = fractions.reshape(-1, *[1] * first.ndim)
    return (((1 - fractions) * angle).sin() * first + (fractions * angle).sin() * second) / angle.sin()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="Folder of a shape pipeline, or hub id.")
    parser.add_argument("--output", default="interpolation.png")
    parser.add_argument("--animation", help="Also write a GIF of the way there and back.")
    parser.add_argument("--prompts", nargs=2, help="Of the two shapes, for models that take text.")
    parser.add_argument("--shapes", type=int, default=7, help="Shapes on the way, both ends included.")
    parser.add_argument("--resolution", type=int, default=96, help="Grid nodes along each axis.")
    parser.add_argument("--size", type=int, default=192, help="Pixels of each picture's side.")
    parser.add_argument("--steps", type=int, default=25, help="Denoising steps.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    ends = pipe(
        args.prompts,
        batch_size=1 if args.prompts else 2,
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(args.seed),
        output_type="latent",
    ).meshes
    fractions = torch.linspace(0, 1, args.shapes, device=ends.device, dtype=ends.dtype)
    field = pipe.decode_latents(slerp(*ends, fractions))
    pictures = [render_mesh(mesh, size=args.size) for mesh in extract_meshes(field, resolution=args.resolution)]
    save_image(contact_sheet(pictures, columns=len(pictures)), args.output)
    if args.animation:
        save_gif([*pictures, *pictures[-2:0:-1]], args.animation, fps=6)


if __name__ == "__main__":
    main()
