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
"""Slow motion: one latent read at its native frame rate (left) and at several times it (right), in step.

    python examples/video_slow_motion.py ddmi-clips --slowdown 4 --output slow_motion.gif

Both halves last equally long; the right one has frames where the left one stands still.
"""

import argparse

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

import diffusers_ddmi  # noqa: F401 (makes the pipelines loadable)
from diffusers_ddmi.rendering.pictures import contact_sheet, save_gif


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="Folder of a video pipeline, or hub id.")
    parser.add_argument("--output", default="slow_motion.gif")
    parser.add_argument("--prompt", help="For models that take text.")
    parser.add_argument("--slowdown", type=int, default=4, help="Frames on the right for each one on the left.")
    parser.add_argument("--size", type=int, help="Pixels of a frame's side; default: as trained.")
    parser.add_argument("--fps", type=float, default=16.0)
    parser.add_argument("--steps", type=int, default=25, help="Denoising steps.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    native = pipe.vae.config.num_frames

    def frames(count: int) -> list:
        generator = torch.Generator().manual_seed(args.seed)  # the same noise, hence the same latent
        size = {"height": args.size, "width": args.size}
        steps = {"num_inference_steps": args.steps, "generator": generator}
        return pipe(args.prompt, num_frames=count, **size, **steps).frames[0]

    held = [frame for frame in frames(native) for _ in range(args.slowdown)]
    smooth = frames(native * args.slowdown)
    captions = [f"{native} frames", f"{len(smooth)} frames"]
    pairs = [contact_sheet(pair, columns=2, captions=captions) for pair in zip(held, smooth)]
    save_gif(pairs, args.output, args.fps)


if __name__ == "__main__":
    main()
