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
"""A generated scene from all around: a turntable of colours and depth, and its surface as a coloured mesh.

    python examples/nerf_orbit.py ddmi-scenes --output orbit.gif --mesh scene.glb

Depth is dark where the scene is near.
"""

import argparse

import numpy as np
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

import diffusers_ddmi  # noqa: F401 (makes the pipelines loadable)
from diffusers_ddmi.rendering.pictures import contact_sheet, save_gif
from diffusers_ddmi.rendering.surface import save_mesh


def depth_pictures(depth: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Depth and opacity `(views, height, width)` as grey pictures, uint8 `(views, height, width, 3)`: near is dark, and
    where there is nothing it is white."""
    seen = depth[opacity > 0.5]
    near, far = (seen.min(), seen.max()) if seen.size else (0.0, 1.0)
    grey = 0.8 * np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    grey = opacity * grey + (1 - opacity)
    return np.repeat(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None], 3, axis=-1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="Folder of a radiance-field pipeline, or hub id.")
    parser.add_argument("--output", default="orbit.gif")
    parser.add_argument("--mesh", help="Also write the surface: GLB, OBJ or PLY.")
    parser.add_argument("--prompt", help="For models that take text.")
    parser.add_argument("--num_views", type=int, default=24)
    parser.add_argument("--size", type=int, default=128, help="Pixels of a view's side.")
    parser.add_argument("--mesh_resolution", type=int, default=96, help="Grid nodes along each axis.")
    parser.add_argument("--steps", type=int, default=25, help="Denoising steps.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def scene(**options):
        generator = torch.Generator().manual_seed(args.seed)  # the same noise, hence the same scene
        return pipe(args.prompt, num_inference_steps=args.steps, generator=generator, **options)

    views = scene(num_views=args.num_views, height=args.size, width=args.size)
    depths = depth_pictures(views.depth[0].float().cpu().numpy(), views.opacity[0].float().cpu().numpy())
    pairs = [contact_sheet(pair, columns=2, captions=["colour", "depth"]) for pair in zip(views.frames[0], depths)]
    save_gif(pairs, args.output)
    if args.mesh:
        (mesh,) = scene(output_type="mesh", resolution=args.mesh_resolution).frames
        if len(mesh.faces):
            save_mesh(mesh, args.mesh)
        else:
            print("The scene is nowhere dense enough for a surface; no mesh is written.")


if __name__ == "__main__":
    main()
