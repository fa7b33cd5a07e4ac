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
"""The whole of DDMI on data that needs no download: handwritten digits, read out at any size, and furniture from text.

    python examples/demo.py --output_dir outputs/demo

trains both stages with the training scripts, loads the result with `DiffusionPipeline.from_pretrained`, and writes
pictures and meshes. Run again, it goes on where it was stopped, and skips what is done.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image

import diffusers_ddmi  # noqa: F401 (makes the pipelines loadable)
from diffusers_ddmi.rendering.grids import render_pixels
from diffusers_ddmi.rendering.pictures import contact_sheet, save_gif, save_image
from diffusers_ddmi.rendering.raster import render_mesh, turntable
from diffusers_ddmi.rendering.surface import save_mesh


HERE = Path(__file__).resolve().parent
TRAINING = HERE.parent / "training"

PROMPTS = (
    "a round table with four legs",
    "a square table with four legs",
    "a round table with three legs",
    "a chair with a back and no arms",
    "a chair with a back and arms",
    "a stool with four legs",
    "a bookshelf with three shelves",
    "a bed",
    "a lamp",
)


def launch(script: str, **flags) -> None:
    """Runs a training script under accelerate, resuming a run that was interrupted."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    # accelerate takes one thread unless told; models this small gain nothing from more than a few.
    command += ["--num_cpu_threads_per_process", str(min(os.cpu_count() or 1, 4)), str(TRAINING / script)]
    command += ["--resume_from_checkpoint", "latest"]
    for name, value in flags.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    subprocess.run(command, check=True)


def train(name: str, modality: str, folder: Path, data: dict, stage_1: dict, stage_2: dict) -> Path:
    """Both stages, unless they are done; returns the pipeline's folder."""
    vae, pipeline = folder / f"{name}-vae", folder / f"ddmi-{name}"
    shared = {"preset": HERE / "presets" / name, "lr_scheduler": "cosine", "checkpointing_steps": 500, **data}
    if not (vae / "config.json").exists():
        launch("train_d2c_vae.py", modality=modality, output_dir=vae, **shared, **stage_1)
    if not (pipeline / "model_index.json").exists():
        launch("train_ldm.py", pretrained_vae=vae, output_dir=pipeline, **shared, **stage_2)
    return pipeline


def digits(folder: Path) -> None:
    """Images of any size: real handwritten digits, 8×8 scans that scikit-learn carries."""
    pipeline = train(
        "digits",
        "image",
        folder,
        data={"dataset_name": "digits", "resolution": 16, "validation_split": 0.05},
        stage_1={
            "max_train_steps": 250,
            "train_batch_size": 32,
            "learning_rate": 2e-3,
            "lr_warmup_steps": 20,
            "kl_weight": 0.2,
            "kl_anneal_steps": 200,
            "validation_steps": 250,
        },
        stage_2={
            "max_train_steps": 1800,
            "train_batch_size": 32,
            "learning_rate": 1.5e-3,
            "lr_warmup_steps": 50,
            "cache_latents": True,
            "validation_steps": 1800,
        },
    )
    pipe = DiffusionPipeline.from_pretrained(pipeline)
    cells, captions = [], []
    for scheduler, steps in ((DDPMScheduler, 250), (DDIMScheduler, 50), (DPMSolverMultistepScheduler, 20)):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        field = pipe(
            batch_size=10,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="field",
        ).images
        cells += as_cells(read(field, 128))
        captions += [f"{scheduler.__name__.removesuffix('Scheduler')}, {steps} steps"] + [""] * 9
    for size in (8, 32, 128, 512):  # the last scheduler's latents, read at four sizes
        images = read(field, size)
        cells += as_cells(images)
        captions += [f"{size} px"] + [""] * 9
    save_image(contact_sheet(cells, columns=10, captions=captions), folder / "digits.png")
    save_image(images[0], folder / "digit-512.png")


def read(field, size: int) -> list[np.ndarray]:
    """A batch of image fields as uint8 pictures `(size, size, 3)`."""
    values = render_pixels(field, size, size, native_size=16, min_scale=0.5)
    return list(((values + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def as_cells(images: list[np.ndarray], size: int = 128) -> list[Image.Image]:
    """Pictures shown at one size, their pixels visible."""
    resample = Image.Resampling.NEAREST if len(images[0]) < size else Image.Resampling.BOX
    return [Image.fromarray(image).resize((size, size), resample) for image in images]


def furniture(folder: Path) -> None:
    """Shapes from text: procedural furniture, with a text encoder of its own, trained along.

    diffusers' denoiser for text has no mixed prediction; the preset lets it predict velocities, which it learns far faster.
    """
    pipeline = train(
        "furniture",
        "shape",
        folder,
        data={"dataset_name": "procedural"},
        stage_1={
            "max_train_steps": 340,
            "train_batch_size": 16,
            "num_points": 1024,
            "num_queries": 1024,
            "learning_rate": 2e-3,
            "lr_warmup_steps": 20,
            "kl_weight": 0.2,
            "kl_anneal_steps": 200,
            "validation_steps": 340,
        },
        stage_2={
            "max_train_steps": 1500,
            "train_batch_size": 32,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 50,
            "cache_latents": True,
            "train_text_encoder": True,
            "validation_steps": 1500,
        },
    )
    pipe = DiffusionPipeline.from_pretrained(pipeline)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    meshes = pipe(
        list(PROMPTS),
        num_inference_steps=25,
        guidance_scale=3.0,
        resolution=96,
        generator=torch.Generator().manual_seed(0),
    ).meshes
    for prompt, mesh in zip(PROMPTS, meshes):
        if len(mesh.faces):
            save_mesh(mesh, folder / "meshes" / f"{prompt.replace(' ', '-')}.glb")
    views = [render_mesh(mesh, size=320) for mesh in meshes]
    save_image(contact_sheet(views, columns=3, captions=PROMPTS), folder / "furniture.png")
    save_gif(turntable(meshes[0], num_views=24, size=320), folder / "turntable.gif")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--parts", nargs="+", choices=["digits", "furniture"], default=["digits", "furniture"])
    args = parser.parse_args()
    for name in args.parts:
        start = time.perf_counter()
        {"digits": digits, "furniture": furniture}[name](args.output_dir)
        print(f"{name}: {(time.perf_counter() - start) / 60:.1f} minutes")
    results = [path for end in ("png", "gif", "glb") for path in sorted(args.output_dir.glob(f"**/*.{end}"))]
    shown = [str(path.relative_to(args.output_dir)) for path in results if "validation" not in path.parts]
    print(f"Open in {args.output_dir}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
