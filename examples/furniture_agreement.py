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
"""How often generated furniture has what its caption tells, on captions kept out of training.

    python examples/furniture_agreement.py --pipeline outputs/demo/ddmi-furniture --num_captions 200

generates one mesh for each held-out caption of the procedural furniture, measures from the mesh alone its kind, number of
legs, shape of the top, and whether it has a back, arms and shelves, and prints the share of told properties that are met.
Beside it stands the share for the same meshes with other captions, which is what a model that does not listen gets.
"""

import argparse
import json

import numpy as np
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from tqdm.auto import tqdm

import diffusers_ddmi  # noqa: F401 (makes the pipelines loadable)
from diffusers_ddmi.data.furniture import load_furniture
from diffusers_ddmi.metrics.furniture import agreement, caption_properties, measure_furniture, voxelize_mesh


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="Folder of a DDMIShapePipeline trained with text.")
    parser.add_argument("--num_captions", type=int, default=200, help="At least 2, to have others to compare with.")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.num_captions < 2:
        parser.error(
            f"--num_captions must be at least 2, since meshes meet others' captions, but is {args.num_captions}."
        )
    return args


def measure(args: argparse.Namespace) -> dict[str, dict[str, float] | float]:
    """Agreement with the captions, and with those of other meshes, by property; and the share of watertight meshes."""
    pipe = DiffusionPipeline.from_pretrained(args.pipeline)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    captions = load_furniture(args.num_captions, split="test")["caption"][:]
    found, watertight = [], []
    for start in tqdm(range(0, len(captions), args.batch_size), desc="generating"):
        meshes = pipe(
            captions[start : start + args.batch_size],
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            generator=torch.Generator().manual_seed(args.seed + start),
            resolution=64,
        ).meshes
        found += [measure_furniture(voxelize_mesh(mesh.vertices, mesh.faces, 64)) for mesh in meshes]
        watertight += [bool(len(mesh.faces)) and mesh.is_watertight for mesh in meshes]
    told = [caption_properties(caption) for caption in captions]
    # Each caption meets every other's mesh once, all told: the exact expectation over shuffles.
    others = [agreement(told, found[shift:] + found[:shift]) for shift in range(1, len(found))]
    shuffled = {name: float(np.mean([one[name] for one in others])) for name in others[0]}
    return {"captions": agreement(told, found), "shuffled": shuffled, "watertight": float(np.mean(watertight))}


def main(arguments: list[str] | None = None) -> None:
    print(json.dumps(measure(parse_args(arguments)), indent=2))


if __name__ == "__main__":
    main()
