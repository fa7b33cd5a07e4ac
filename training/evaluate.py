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
"""Measures a pipeline: from its folder and a data set to a table, in one command.

    python training/evaluate.py --pipeline ddmi-mine --data_dir DIR --output_dir report \\
        --feature_extractor inception-2015-12-05.pt --num_samples 1000 --resolutions 64 128 256

writes report.json, report.md and timing.json into --output_dir. Metrics whose network is not given are left out, with a
line that says what to pass. Run again, it goes on where it was stopped; with `accelerate launch`, processes share the work.
Sample i follows from --seed and i alone, so that neither changes a number.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers import DiffusionPipeline
from evaluation_context import Evaluation
from evaluation_measures import MEASURES, Measure
from evaluation_report import Figure, markdown, update_model_card, write_reports
from evaluation_stages import Stages, Tensors, check_settings
from torch import nn
from torch.utils.data import Dataset
from training_setup import check_own_flags, data_fingerprint, ranks_are_on_cpu

import diffusers_ddmi
from diffusers_ddmi import DDMIPipeline
from diffusers_ddmi.checkpointing import folder_fingerprint
from diffusers_ddmi.data import load_signals
from diffusers_ddmi.losses import load_perceptual_network
from diffusers_ddmi.metrics.features import INPUT_RANGES, ClipScorer, FeatureExtractor, load_feature_extractor
from diffusers_ddmi.training_utils import derived_seed, sample_generators


logger = logging.getLogger(__name__)

METRICS = sorted({name for measures in MEASURES.values() for measure in measures for name in measure.names})

# Flags on which what is kept in --output_dir depends.
FIXED_ARGUMENTS = (
    "seed",
    "batch_size",
    "num_inference_steps",
    "scheduler",
    "guidance_scale",
    "eta",
    "samples_per_prompt",
    "image_column",
    "caption_column",
    "frame_stride",
    "num_points",
    "fov_y",
    "near",
    "far",
    "longest_side",
    "mesh_resolution",
    "num_views",
    "num_ray_samples",
)

# What a measure may need -> how to give it.
NEEDS = {
    "extractor": "pass --feature_extractor (a TorchScript file such as inception-2015-12-05.pt for pictures or "
    "i3d_torchscript.pt for clips, a hub id, or module:Class)",
    "clip": "pass --clip (hub id or folder of a CLIPModel with its tokenizer, e.g. openai/clip-vit-base-patch32)",
    "perceptual": "install the `lpips` package",
    "prompts": "it needs a pipeline with a text encoder, and captions in the data or --prompts",
    "several": "it needs a pipeline with a text encoder, and --samples_per_prompt of at least 2",
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="Folder of a pipeline, or hub id.")
    parser.add_argument("--output_dir", required=True, help="Gets the report, and what it was computed from.")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="Default: all that this modality has.")
    parser.add_argument(
        "--update_model_card", action="store_true", help="Put the table into the pipeline's README.md."
    )
    _add_sample_arguments(parser.add_argument_group("samples"))
    _add_network_arguments(parser.add_argument_group("networks"))
    _add_data_arguments(parser.add_argument_group("data"))
    _add_measure_arguments(parser.add_argument_group("measures"))
    args = parser.parse_args(arguments)
    args.command = "python training/evaluate.py " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    _check_arguments(args)
    return args


def _add_sample_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num_samples", type=int, default=1000, help="Samples to generate; may grow from run to run.")
    group.add_argument("--batch_size", type=int, default=16, help="Samples, or items of data, computed together.")
    group.add_argument("--seed", type=int, default=0, help="All randomness follows from it.")
    group.add_argument("--num_inference_steps", type=int, default=50, help="Denoising steps.")
    group.add_argument("--scheduler", help="Name of a scheduler of diffusers, in place of the pipeline's own.")
    group.add_argument("--guidance_scale", type=float, default=3.0, help="Of samples with prompts.")
    group.add_argument("--eta", type=float, default=0.0, help="DDIM's η.")
    group.add_argument("--prompts", help="Text file of prompts, one a line; default: captions of the data.")
    group.add_argument("--samples_per_prompt", type=int, default=1, help="At least 2 for TMD.")


def _add_network_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--feature_extractor",
        help="TorchScript file, CLIPModel, hub id of either, or module:Class of your own (a torch.nn.Module).",
    )
    group.add_argument(
        "--feature_range",
        choices=list(INPUT_RANGES),
        help="Range of what it takes; default: byte for TorchScript files, signed for modules.",
    )
    group.add_argument("--clip", help="Hub id or folder of a CLIPModel, for CLIP-S.")


def _add_data_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data_dir", dest="train_data_dir", help="Folder of held-out pictures, meshes, clips or scenes."
    )
    group.add_argument("--dataset_name", help="Hub id or local path of a data set, or 'procedural' or 'digits'.")
    group.add_argument("--dataset_config_name", help="Configuration of the data set.")
    group.add_argument("--split", default="test", help="Where the data are divided: train or test.")
    group.add_argument("--cache_dir", help="Where downloaded and prepared data are kept.")
    group.add_argument("--image_column", help="Column that holds the picture or clip.")
    group.add_argument("--caption_column", help="Column that holds the caption.")
    group.add_argument("--captions_file", help="Text2Shape's CSV, where it is not in --data_dir (shape).")
    group.add_argument("--num_references", type=int, help="Items that samples are compared with; default: as many.")
    group.add_argument("--num_reconstructions", type=int, default=256, help="Items that are encoded and decoded.")
    group.add_argument("--frame_stride", type=int, default=1, help="Distance of neighbouring frames (video).")
    group.add_argument("--num_points", type=int, default=2048, help="Points that the encoder gets (shape, nerf).")
    group.add_argument(
        "--fov_y", type=float, help="Vertical field of view in degrees, where files do not tell (nerf)."
    )
    group.add_argument("--near", type=float, help="Distance at which scenes begin (nerf).")
    group.add_argument("--far", type=float, help="Distance at which scenes end (nerf).")
    group.add_argument("--longest_side", type=float, help="Scale scenes to this size (nerf).")
    group.add_argument("--strict", action="store_true", help="An unreadable item is an error, and not passed over.")


def _add_measure_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--resolutions",
        type=int,
        nargs="+",
        help="Sides in pixels at which the same samples are compared (image); default: the native one.",
    )
    group.add_argument("--mesh_resolution", type=int, default=128, help="Grid that surfaces are extracted on (shape).")
    group.add_argument(
        "--num_metric_points", type=int, default=2048, help="Points of a surface (MMD, COV, 1-NNA, TMD)."
    )
    group.add_argument("--shape_distance", choices=["chamfer", "emd"], default="chamfer", help="Between such points.")
    group.add_argument("--num_views", type=int, default=4, help="Views of a scene (nerf), or of a shape (CLIP-S).")
    group.add_argument("--num_ray_samples", type=int, default=128, help="Samples on a ray (nerf).")


def _check_arguments(args: argparse.Namespace) -> None:
    least = {"num_samples": 2, "batch_size": 1, "num_inference_steps": 1, "samples_per_prompt": 1, "seed": 0}
    least |= {"num_reconstructions": 1, "num_views": 1, "num_ray_samples": 2, "num_points": 1, "num_metric_points": 1}
    least |= {"num_references": 2, "mesh_resolution": 2, "frame_stride": 1}
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise ValueError(f"--{name} must be at least {low}, but is {value}.")
    if args.resolutions and min(args.resolutions) < 1:
        raise ValueError(f"--resolutions must be positive, but are {args.resolutions}.")
    if (args.dataset_name is None) == (args.train_data_dir is None):
        raise ValueError("Give the data by exactly one of --dataset_name and --data_dir.")


# --------------------------------------------------------------------------------------------- what is given


def find_pipeline(name: str) -> Path:
    """The folder of a pipeline; one on the hub is brought here.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists():
        raise FileNotFoundError(
            f"{folder} is no pipeline: it has no model_index.json, which train_ldm.py writes last."
        )
    try:
        return Path(DiffusionPipeline.download(name))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"No pipeline {name!r}: neither a folder here nor on the hub ({error}).") from error


def load_pipeline(folder: Path, scheduler: str | None, device: torch.device) -> DDMIPipeline:
    """A pipeline with the scheduler of that name.

    Raises:
        TypeError: another kind of pipeline. ValueError: diffusers has no such scheduler.
    """
    pipe = DiffusionPipeline.from_pretrained(folder)
    if not isinstance(pipe, DDMIPipeline):
        raise TypeError(f"{folder} holds a {type(pipe).__name__}; expected a pipeline of diffusers_ddmi.")
    if scheduler is not None:
        cls = getattr(diffusers, scheduler, None)
        if not hasattr(cls, "set_timesteps"):
            raise ValueError(f"diffusers has no scheduler {scheduler!r}; give a name such as DDIMScheduler.")
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def pipeline_fingerprint(folder: Path) -> dict[str, str]:
    """The files that a pipeline is loaded from: those of its components, and no card, log or checkpoint."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [folder / name for name in sorted(index) if (folder / name).is_dir()]
    files = {f"{part.name}/{name}": record for part in parts for name, record in folder_fingerprint(part).items()}
    return {**files, "model_index.json": json.dumps(index, sort_keys=True)}


def load_extractor(source: str, input_range: str | None, device: torch.device) -> FeatureExtractor:
    """The network that --feature_extractor names.

    Raises:
        ValueError: there is no such class, or it is no module. FileNotFoundError: no such file.
    """
    module, colon, name = source.partition(":")
    if not colon or Path(source).exists():
        return load_feature_extractor(source, input_range, device)
    sys.path.append(os.getcwd())
    try:
        network = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"--feature_extractor {source}: cannot make {name!r} of {module!r} ({error}).") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"--feature_extractor {source} gave a {type(network).__name__}; expected a torch.nn.Module.")
    return load_feature_extractor(network.requires_grad_(False), input_range, device)


def network_fingerprint(name: str | None) -> Any:
    """A file by its content, wherever it lies; anything else by its name."""
    if name is None or not Path(name).exists():
        return name
    path = Path(name)
    if path.is_dir():
        return folder_fingerprint(path)
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return f"{path.stat().st_size} bytes, {digest.hexdigest()}"


def load_data(args: argparse.Namespace, modality: str, purpose: str = "evaluation", **options: Any) -> Dataset:
    """The evaluation's split, in the form that `options` ask for."""
    check_own_flags(args, modality)
    return load_signals(
        modality,
        split=args.split,
        seed=args.seed,
        strict=args.strict,
        purpose=purpose,
        train_data_dir=args.train_data_dir,
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        cache_dir=args.cache_dir,
        image_column=args.image_column,
        caption_column=args.caption_column,
        captions_file=args.captions_file,
        frame_stride=args.frame_stride,
        fov_y=None if args.fov_y is None else math.radians(args.fov_y),
        near=args.near,
        far=args.far,
        longest_side=args.longest_side,
        **options,
    )


def find_prompts(args: argparse.Namespace, pipe: DDMIPipeline, data: Dataset, order: list[int]) -> list[str] | None:
    """The prompt of each sample: lines of --prompts, or captions of the data, in their order and then from the start."""
    if args.prompts and not pipe.takes_text:
        raise ValueError("--prompts need a pipeline that was trained on text, and this one was not.")
    if not pipe.takes_text:
        return None
    if args.prompts:
        lines = Path(args.prompts).read_text(encoding="utf-8").splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise ValueError(f"--prompts {args.prompts} has no line with a prompt.")
    else:
        needed = -(-args.num_samples // args.samples_per_prompt)
        if data[order[0]].get("caption") is None:
            return None
        prompts = [data[place]["caption"] for place in order[:needed]]
    return [prompts[number // args.samples_per_prompt % len(prompts)] for number in range(args.num_samples)]


# --------------------------------------------------------------------------------------------- the work


def generate(e: Evaluation, numbers: range) -> Tensors:
    """Latents of these samples, each from its own generator."""
    options: dict[str, Any] = {"batch_size": len(numbers)}
    if e.prompts is not None:
        prompts = [e.prompts[number] for number in numbers]
        options = {"prompt": prompts, "guidance_scale": e.args.guidance_scale}
    (latents,) = e.pipe(
        num_inference_steps=e.args.num_inference_steps,
        eta=e.args.eta,
        generator=sample_generators(e.args.seed, numbers, "evaluation"),
        output_type="latent",
        return_dict=False,
        **options,
    )
    return {"latents": latents}


def choose_measures(e: Evaluation) -> tuple[list[Measure], list[str]]:
    """The measures that were asked for and can be made, and a sentence for each that cannot.

    Raises:
        ValueError: one was asked for by name that this modality does not have, or that lacks what it needs.
    """
    wanted, chosen, left_out = e.args.metrics, [], []
    measures = MEASURES[e.pipe.modality]
    known = {name for measure in measures for name in measure.names}
    unknown = sorted(set(wanted or ()) - known)
    if unknown:
        raise ValueError(f"--metrics {' '.join(unknown)}: for {e.pipe.modality} there are {', '.join(sorted(known))}.")
    there = {name: getattr(e, name) is not None for name in ("extractor", "clip", "prompts")}
    there["perceptual"] = importlib.util.find_spec("lpips") is not None
    there["several"] = there["prompts"] and e.args.samples_per_prompt > 1
    for measure in measures:
        names = [name for name in measure.names if name in (wanted or measure.names)]
        missing = [NEEDS[need] for need in measure.needs if not there[need]]
        if names and missing:
            left_out.append(f"{', '.join(name.upper() for name in names)}: {'; '.join(missing)}.")
        elif names:
            chosen.append(measure)
    if wanted and left_out:
        raise ValueError(f"--metrics asks for what cannot be computed. {' '.join(left_out)}")
    return chosen, left_out


def load_perceptual(e: Evaluation, measures: list[Measure], left_out: list[str]) -> tuple[list[Measure], list[str]]:
    """Loads LPIPS if a measure needs it. Those are left out if its weights cannot be had and nobody asked for them."""
    if not any("perceptual" in measure.needs for measure in measures):
        return measures, left_out
    try:
        e.perceptual = load_perceptual_network().to(e.device)
    except OSError as error:
        if e.args.metrics:
            raise
        measures = [measure for measure in measures if "perceptual" not in measure.needs]
        left_out = [*left_out, f"LPIPS: the weights of its network could not be loaded ({error})."]
    return measures, left_out


def wanted_figures(measure: Measure, made: list[Figure], metrics: list[str] | None) -> tuple[list[Figure], list[str]]:
    """Those of a measure's figures that --metrics asks for, and a sentence for each that could not be made."""
    names = {figure: figure.metric.split(",")[0].split(" (")[0].lower().replace(" ", "-") for figure in made}
    asked = [name for name in measure.names if name in (metrics or measure.names)]
    kept = [figure for figure, name in names.items() if name in asked or name not in measure.names]
    absent = [name.upper() for name in asked if name not in names.values()]
    return kept, [f"{', '.join(absent)}: not defined for so few or so small samples."] if absent else []


def create_accelerator() -> Accelerator:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level="INFO")
    # Some wait while others finish their last shard of a stage.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    accelerator = Accelerator(cpu=ranks_are_on_cpu(), kwargs_handlers=[patience])
    if not accelerator.is_local_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    return accelerator


def prepare(args: argparse.Namespace, accelerator: Accelerator, folder: Path) -> tuple[Evaluation, dict[str, Any]]:
    """Loads what is given, and compares it with what an earlier run in this --output_dir was given."""
    pipe = load_pipeline(folder, args.scheduler, accelerator.device)
    load: Callable[..., Dataset] = cache(partial(load_data, args, pipe.modality))
    sizes = {"resolution": pipe.vae.config.sample_size, "num_frames": pipe.vae.config.num_frames}
    data = load(purpose="latents", num_points=args.num_points, **sizes)
    settings = {
        "pipeline": pipeline_fingerprint(folder),
        "data": {**data_fingerprint(accelerator, args, data), "split": args.split},
        "flags": {f"--{name}": getattr(args, name) for name in FIXED_ARGUMENTS},
        "prompts": network_fingerprint(args.prompts),
    }
    networks = {"feature_extractor": args.feature_extractor, "clip": args.clip}
    settings |= {f"--{name}": network_fingerprint(value) for name, value in networks.items() if value is not None}
    if args.feature_extractor:
        settings["--feature_range"] = args.feature_range
    check_settings(accelerator, Path(args.output_dir, "settings.json"), settings)
    order = np.random.default_rng(args.seed).permutation(len(data)).tolist()
    evaluation = Evaluation(
        args,
        accelerator,
        pipe,
        Stages(Path(args.output_dir, "stages"), accelerator, args.batch_size),
        load,
        order,
        num_references=min(args.num_references or args.num_samples, len(data)),
        num_reconstructions=min(args.num_reconstructions, len(data)),
        prompts=find_prompts(args, pipe, data, order),
    )
    device = accelerator.device
    if args.feature_extractor:
        evaluation.extractor = load_extractor(args.feature_extractor, args.feature_range, device)
    if args.clip:
        evaluation.clip = ClipScorer(args.clip).to(device)
    return evaluation, settings


def facts_of(e: Evaluation, settings: dict[str, Any]) -> dict[str, Any]:
    """What belongs to the table: of what, from what, and how."""
    args = e.args
    counts = ("num_samples", "num_references", "num_reconstructions")
    return {
        "pipeline": Path(args.pipeline).resolve().name if Path(args.pipeline).exists() else args.pipeline,
        "modality": e.pipe.modality,
        "command": args.command,
        "data": {
            "source": args.dataset_name or Path(args.train_data_dir).resolve().name,
            "split": args.split,
            "length": len(e.order),
        },
        "settings": {
            **{name: getattr(args, name) for name in FIXED_ARGUMENTS},
            **{name: getattr(e, name) for name in counts},
            "scheduler": type(e.pipe.scheduler).__name__,
            "feature_extractor": args.feature_extractor,
            "clip": args.clip,
        },
        "fingerprints": {name: f"{derived_seed(json.dumps(settings[name])):016x}" for name in ("pipeline", "data")},
        "versions": {
            "diffusers_ddmi": diffusers_ddmi.__version__,
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        },
    }


def report(
    e: Evaluation, settings: dict[str, Any], made: list[tuple[Measure, list[Figure]]], left_out: list[str]
) -> str:
    """Writes the reports, and returns the table and what belongs to it in Markdown."""
    figures: list[Figure] = []
    for measure, of_measure in made:
        kept, absent = wanted_figures(measure, of_measure, e.args.metrics)
        figures += kept
        left_out = [*left_out, *absent]
    facts = facts_of(e, settings)
    timing = {
        "stages": {name: {"items": s.count, "seconds": s.seconds} for name, s in e.stages.finished.items()},
        "processes": e.accelerator.num_processes,
        "device": str(e.accelerator.device),
    }
    write_reports(Path(e.args.output_dir), facts, figures, left_out, timing)
    return markdown(facts, figures, left_out, timing)


@torch.no_grad()
def main(args: argparse.Namespace) -> Path:
    """Generates, measures and reports. Returns the folder of the report."""
    folder = find_pipeline(args.pipeline)
    if args.update_model_card and not Path(args.pipeline).exists():
        raise ValueError("--update_model_card writes into a pipeline's folder; download the pipeline first.")
    accelerator = create_accelerator()
    e, settings = prepare(args, accelerator, folder)
    measures, left_out = choose_measures(e)
    measures, left_out = load_perceptual(e, measures, left_out)
    e.latents = e.stages.run("samples", args.num_samples, partial(generate, e))
    measured = [(measure, measure.run(e)) for measure in measures]
    if accelerator.is_main_process:
        section = report(e, settings, [(measure, figures()) for measure, figures in measured], left_out)
        if args.update_model_card:
            update_model_card(folder / "README.md", section)
        print(section)
    accelerator.end_training()
    return Path(args.output_dir)


if __name__ == "__main__":
    main(parse_args())
