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
"""Completes a shape that was seen from one side: part of a point cloud in, whole meshes out.

    python examples/shape_completion.py ddmi-furniture --output completion.png

The encoder turns the points that there are into a latent. Noise is added up to the part `--strength` of the diffusion
and taken away again (SDEdit, Meng et al. 2022): the more noise, the more the diffusion model adds of its own. With a
strength of 0 the latent is decoded as it is.
"""

import argparse

import numpy as np
import torch
import trimesh
from diffusers import DDIMScheduler, DiffusionPipeline

from diffusers_ddmi import DDMIPipeline
from diffusers_ddmi.data import load_signals
from diffusers_ddmi.rendering.pictures import contact_sheet, save_image
from diffusers_ddmi.rendering.raster import render_mesh
from diffusers_ddmi.rendering.surface import extract_meshes


def load_points(args: argparse.Namespace) -> torch.Tensor:
    """Surface points `(1, points, 3)` of one held-out shape, in the cube [-0.5, 0.5]³."""
    source = {"train_data_dir": args.data_dir} if args.data_dir else {"dataset_name": args.dataset_name}
    data = load_signals("shape", split="test", purpose="latents", num_points=args.num_points, **source)
    return data[args.index]["inputs"][None]


def visible_part(points: torch.Tensor, part: float) -> torch.Tensor:
    """The `part` of the points `(1, points, 3)` with the smallest x: what is left when one side is not seen."""
    order = points[0, :, 0].argsort()
    return points[:, order[: max(1, round(part * len(order)))]]


@torch.no_grad()
def complete(
    pipe: DDMIPipeline, points: torch.Tensor, strength: float, steps: int, samples: int, prompt: str | None, seed: int
) -> torch.Tensor:
    """Standardised latents `(samples, …)` of whole shapes, from points `(1, points, 3)` of a part."""
    config, scheduler, device = pipe.vae.config, pipe.scheduler, pipe.device
    latents = pipe.vae.encode(points.to(device, pipe.vae.dtype)).latent_dist.mode()
    latents = ((latents - config.shift_factor) * config.scaling_factor).repeat_interleave(samples, dim=0)
    scheduler.set_timesteps(steps, device=device)
    timesteps = scheduler.timesteps[steps - round(strength * steps) :]
    if not len(timesteps):
        return latents
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    latents = scheduler.add_noise(latents, noise, timesteps[:1])
    embeds = None
    if pipe.takes_text:
        embeds, _ = pipe.encode_prompt(prompt or "", device, samples, do_classifier_free_guidance=False)
    for timestep in timesteps:
        latents = scheduler.step(pipe.predict(latents, timestep, embeds), timestep, latents).prev_sample
    return latents


def picture_of_points(points: torch.Tensor, size: int) -> np.ndarray:
    """Points `(1, points, 3)` as small balls, from where `render_mesh` looks at a shape of the whole cube."""
    ball = trimesh.creation.icosphere(subdivisions=0, radius=0.008)
    balls = trimesh.util.concatenate([ball.copy().apply_translation(point) for point in points[0].tolist()])
    return render_mesh(balls, size=size, bounds=np.array([[-0.5] * 3, [0.5] * 3]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="Folder of a shape pipeline, or hub id.")
    parser.add_argument("--output", default="completion.png")
    parser.add_argument("--data_dir", help="Folder of meshes; its test split is used where there is one.")
    parser.add_argument("--dataset_name", default="procedural", help="Without --data_dir: a data set by name.")
    parser.add_argument("--index", type=int, default=0, help="Which shape of the data.")
    parser.add_argument("--num_points", type=int, default=2048, help="Points of the whole shape.")
    parser.add_argument("--part", type=float, default=0.5, help="Part of the points that is seen, in (0, 1].")
    parser.add_argument("--strength", type=float, default=0.6, help="Part of the diffusion that is redone, in [0, 1].")
    parser.add_argument("--samples", type=int, default=3, help="Completions.")
    parser.add_argument("--prompt", help="For models that take text.")
    parser.add_argument("--resolution", type=int, default=96, help="Grid nodes along each axis.")
    parser.add_argument("--size", type=int, default=192, help="Pixels of each picture's side.")
    parser.add_argument("--steps", type=int, default=50, help="Denoising steps of the whole diffusion.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if not 0 < args.part <= 1:
        parser.error(f"--part must be in (0, 1], but is {args.part}.")
    if not 0 <= args.strength <= 1:
        parser.error(f"--strength must be in [0, 1], but is {args.strength}.")

    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    whole = load_points(args)
    seen = visible_part(whole, args.part)
    latents = complete(pipe, seen, args.strength, args.steps, args.samples, args.prompt, args.seed)
    meshes = extract_meshes(pipe.decode_latents(latents), resolution=args.resolution)
    bounds = np.array([[-0.5] * 3, [0.5] * 3])
    pictures = [picture_of_points(points, args.size) for points in (whole, seen)]
    pictures += [render_mesh(mesh, size=args.size, bounds=bounds) for mesh in meshes]
    captions = ["shape", "points seen", *(f"completion {number + 1}" for number in range(len(meshes)))]
    save_image(contact_sheet(pictures, columns=len(pictures), captions=captions), args.output)


if __name__ == "__main__":
    main()
