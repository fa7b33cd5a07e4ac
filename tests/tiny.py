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
"""Pipelines of every modality at the size of the `tiny` presets, always with the same weights."""

import json
from pathlib import Path

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import diffusers_ddmi


CONFIGS = Path(__file__).resolve().parents[1] / "training" / "configs" / "tiny"
PIPELINES = {
    "image": diffusers_ddmi.DDMIImagePipeline,
    "shape": diffusers_ddmi.DDMIShapePipeline,
    "video": diffusers_ddmi.DDMIVideoPipeline,
    "nerf": diffusers_ddmi.DDMINeRFPipeline,
}

# On a variance-preserving discrete schedule, as the pipelines ask for.
FITTING_SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "LCMScheduler",
)


def build(modality: str, part: str):
    config = json.loads((CONFIGS / modality / part / "config.json").read_text())
    name = config.pop("_class_name")
    return (getattr(diffusers_ddmi, name, None) or getattr(diffusers, name))(**config).eval()


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def tiny_pipeline(modality: str, folder: Path, text: bool = False) -> diffusers_ddmi.DDMIPipeline:
    """A pipeline; `folder` gets the tokenizer's files."""
    torch.manual_seed(0)
    vae, unet = build(modality, "vae"), build(modality, "unet_text" if text else "unet")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    components = {}
    if text:
        tokenizer = tiny_tokenizer(folder)
        config = json.loads((CONFIGS / modality / "text_encoder" / "config.json").read_text())
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = CLIPTextConfig(**config, vocab_size=len(tokenizer), **ids)
        components = {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(config).eval()}
    pipe = PIPELINES[modality](vae, unet, scheduler, **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe
