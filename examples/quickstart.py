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
"""Samples of any pipeline, as files one can open: the shortest way from a folder or hub id to results.

    python examples/quickstart.py outputs/demo/ddmi-furniture --prompt "a round table with four legs"

writes pictures (PNG), shapes (GLB), clips or views of scenes (GIF) into a folder.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.utils import export_to_gif

import diffusers_ddmi  # noqa: F401 (makes the pipelines loadable)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="Folder of a pipeline, or hub id.")
    parser.add_argument("--prompt", help="For models that take text.")
    parser.add_argument("--num_samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25, help="Denoising steps.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="samples")
    args = parser.parse_args(arguments)

    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    samples = pipe(
        args.prompt,
        batch_size=args.num_samples,
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(args.seed),
    )[0]  # images, meshes or frames

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples):
        name = str(folder / f"{pipe.modality}-{args.seed}-{number}")
        if isinstance(sample, list):  # frames, or views
            print(export_to_gif(sample, f"{name}.gif"))
        elif hasattr(sample, "faces"):
            if not len(sample.faces):
                print(f"sample {number} is empty, no mesh is written")
                continue
            sample.export(f"{name}.glb")
            print(f"{name}.glb")
        else:
            sample.save(f"{name}.png")
            print(f"{name}.png")


if __name__ == "__main__":
    main()
