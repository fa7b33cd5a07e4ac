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
"""Command-line flags that both training scripts share, named as in diffusers' own training examples."""

import argparse

from diffusers.optimization import SchedulerType

from diffusers_ddmi.modalities import MODALITIES


# The piecewise one needs rules that no flag of diffusers' scripts gives.
_LR_SCHEDULERS = [s.value for s in SchedulerType if s != SchedulerType.PIECEWISE_CONSTANT]


def add_shared_arguments(parser: argparse.ArgumentParser, use_ema: bool) -> None:
    """Adds the flags of data, optimisation, checkpoints, logging and publishing; `use_ema` is that flag's default."""
    _add_data_arguments(parser.add_argument_group("data"))
    _add_optimisation_arguments(parser.add_argument_group("optimisation"), use_ema)
    _add_checkpoint_arguments(parser.add_argument_group("output, checkpoints and resuming"))
    _add_report_arguments(parser.add_argument_group("validation, logging and publishing"))


def _add_data_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset_name", help="Hub id or local path of a data set, or 'procedural' for generated data."
    )
    group.add_argument("--dataset_config_name", help="Configuration of the data set.")
    group.add_argument("--train_data_dir", help="Folder of pictures, meshes, clips or scenes.")
    group.add_argument("--validation_data_dir", help="Folder of held-out data; else --validation_split is held out.")
    group.add_argument(
        "--validation_split", type=float, default=0.0, help="Part of the training data that is held out, in [0, 1)."
    )
    group.add_argument("--cache_dir", help="Where downloaded and prepared data are kept.")
    group.add_argument("--max_train_samples", type=int, help="Use only the first so many samples.")
    group.add_argument("--streaming", action="store_true", help="Read the data set while training.")
    group.add_argument(
        "--shuffle_buffer_size",
        type=int,
        default=256,
        help="Rows of a stream, held in memory, among which the next one is drawn; 0: in its own order.",
    )
    group.add_argument("--strict", action="store_true", help="An unreadable sample is an error, and not passed over.")
    group.add_argument(
        "--resolution", type=int, help="Side of the pictures or frames that the encoder gets; default: the model's."
    )
    group.add_argument("--center_crop", action="store_true", help="Crop the centre instead of a random square.")
    group.add_argument("--random_flip", action="store_true", help="Mirror pictures at random.")
    group.add_argument("--image_column", help="Column that holds the picture or clip; found by its type if not given.")
    group.add_argument("--caption_column", help="Column that holds the caption; found by its name if not given.")
    group.add_argument(
        "--captions_file",
        help="Text2Shape's CSV, where it is not in --train_data_dir (shape, Occupancy Networks' layout).",
    )
    group.add_argument("--num_frames", type=int, help="Frames of a clip (video); default: the model's.")
    group.add_argument(
        "--frame_stride", type=int, default=1, help="Distance of neighbouring frames in a clip (video)."
    )
    group.add_argument("--num_points", type=int, default=2048, help="Points of a point cloud (shape, nerf).")
    group.add_argument(
        "--point_noise",
        type=float,
        help="Standard deviation of noise on the points that are encoded, in sides of the cube (shape); default: none.",
    )
    group.add_argument(
        "--num_queries",
        type=int,
        help="Coordinates, or rays (nerf), at which a sample is compared; default: by modality.",
    )
    group.add_argument(
        "--fov_y", type=float, help="Vertical field of view where files do not tell, in degrees (nerf)."
    )
    group.add_argument("--near", type=float, help="Distance at which scenes begin (nerf); default: measured.")
    group.add_argument("--far", type=float, help="Distance at which scenes end (nerf); default: measured.")
    group.add_argument("--longest_side", type=float, help="Scale scenes to this size (nerf); default: as they are.")
    group.add_argument(
        "--preprocessing_num_workers",
        type=int,
        help="Processes that prepare meshes (shape); default: one a processor.",
    )
    group.add_argument("--dataloader_num_workers", type=int, default=0, help="Processes that read data; 0: this one.")


def _add_optimisation_arguments(group: argparse._ArgumentGroup, use_ema: bool) -> None:
    group.add_argument("--seed", type=int, default=0, help="All randomness of the run follows from it.")
    group.add_argument("--train_batch_size", type=int, default=16, help="Samples per step and process.")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches per update.")
    group.add_argument("--max_train_steps", type=int, help="Number of updates; overrides --num_train_epochs.")
    group.add_argument("--num_train_epochs", type=int, default=100)
    group.add_argument("--learning_rate", type=float, default=1e-4)
    group.add_argument("--lr_scheduler", default="constant", choices=_LR_SCHEDULERS)
    group.add_argument("--lr_warmup_steps", type=int, default=500)
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.999)
    group.add_argument("--adam_weight_decay", type=float, default=0.0)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument(
        "--max_grad_norm", type=float, default=1.0, help="Gradients are clipped to this norm; 0: never."
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="Less memory for more computation.")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: as `accelerate` is set up.")
    group.add_argument("--allow_tf32", action="store_true", help="Faster matrix products on Ampere GPUs and later.")
    group.add_argument(
        "--use_ema", action=argparse.BooleanOptionalAction, default=use_ema, help="Average the weights."
    )
    group.add_argument("--ema_max_decay", type=float, default=0.9999)
    group.add_argument("--ema_inv_gamma", type=float, default=1.0)
    group.add_argument("--ema_power", type=float, default=3 / 4)
    group.add_argument(
        "--skip_nonfinite", action="store_true", help="Leave out a step whose loss is NaN or infinite, and go on."
    )


def _add_checkpoint_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output_dir", required=True, help="Gets the trained model, log.jsonl and checkpoints.")
    group.add_argument("--overwrite_output_dir", action="store_true", help="Start anew where an earlier run has been.")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Steps from checkpoint to checkpoint.")
    group.add_argument("--checkpoints_total_limit", type=int, help="Keep only so many; the oldest are removed.")
    group.add_argument("--resume_from_checkpoint", help="A checkpoint's folder, or 'latest'. Continues exactly.")


def _add_report_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--validation_steps", type=int, default=500, help="Steps from validation to validation.")
    group.add_argument("--num_validation_samples", type=int, default=8)
    group.add_argument(
        "--report_to", help="Trackers of `accelerate`, e.g. tensorboard or wandb; log.jsonl is always kept."
    )
    group.add_argument("--tracker_project_name", default="diffusers_ddmi")
    group.add_argument("--logging_dir", default="logs", help="Folder of the trackers, inside --output_dir.")
    group.add_argument("--push_to_hub", action="store_true", help="Publish the trained model.")
    group.add_argument("--hub_model_id", help="Repository to publish to; default: the name of --output_dir.")
    group.add_argument("--hub_token")
    group.add_argument("--hub_private_repo", action="store_true")


def add_modality_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--modality", required=True, choices=sorted(MODALITIES), help="What kind of signal is learned."
    )


def check_shared_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for values that no run can have, before anything is loaded."""
    positive = (
        "train_batch_size",
        "gradient_accumulation_steps",
        "checkpointing_steps",
        "validation_steps",
        "num_validation_samples",
    )
    optional = ("max_train_steps", "checkpoints_total_limit", "max_train_samples", "resolution", "num_frames")
    optional += ("preprocessing_num_workers",)
    for name in (*positive, *optional):
        value = getattr(args, name)
        if (value is None and name not in optional) or (value is not None and value < 1):
            raise ValueError(f"--{name} must be at least 1, but is {value}.")
    if args.shuffle_buffer_size < 0:
        raise ValueError(f"--shuffle_buffer_size must not be negative, but is {args.shuffle_buffer_size}.")
    if (args.dataset_name is None) == (args.train_data_dir is None):
        raise ValueError("Give the training data by exactly one of --dataset_name and --train_data_dir.")
    if not 0 <= args.validation_split < 1:
        raise ValueError(f"--validation_split must be in [0, 1), but is {args.validation_split}.")
    if args.point_noise is not None and not 0 <= args.point_noise < 1:
        raise ValueError(f"--point_noise must be in [0, 1), but is {args.point_noise}.")
    for name in ("max_train_samples", "validation_split"):
        if args.streaming and getattr(args, name):
            raise ValueError(f"--{name} divides data of a known length, and a stream has none: leave it out.")
    if not args.learning_rate >= 0:
        raise ValueError(f"--learning_rate must not be negative, but is {args.learning_rate}.")


# Flags that may differ between a run and its continuation, because the numbers do not depend on them. The data are
# compared by content, batch size and accumulation by their product with the number of processes.
FREE_ARGUMENTS = frozenset(
    [
        "output_dir",
        "overwrite_output_dir",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "resume_from_checkpoint",
        "train_data_dir",
        "captions_file",
        "cache_dir",
        "preprocessing_num_workers",
        "dataloader_num_workers",
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "strict",
        "validation_steps",
        "num_validation_samples",
        "validation_data_dir",
        "validation_prompts",
        "ddpm_num_inference_steps",
        "guidance_scale",
        "skip_nonfinite",
        "report_to",
        "tracker_project_name",
        "logging_dir",
        "push_to_hub",
        "hub_model_id",
        "hub_token",
        "hub_private_repo",
        "preset",
        "pretrained_vae",
        "num_train_epochs",
        "max_train_steps",
    ]
)


def run_fingerprint(
    args: argparse.Namespace, processes: int, mixed_precision: str, max_steps: int, models: dict
) -> dict:
    """What must be equal for a run to be the continuation of another: flags, samples per update, model configs.

    `mixed_precision` and `max_steps` are what the flags come to with accelerate's settings and the length of the data.
    """
    samples = args.train_batch_size * args.gradient_accumulation_steps * processes
    flags = {f"--{name}": value for name, value in vars(args).items() if name not in FREE_ARGUMENTS}
    flags["--mixed_precision"] = mixed_precision
    if args.lr_scheduler not in ("constant", "constant_with_warmup"):
        flags["--max_train_steps"] = max_steps  # these schedules are a function of how far there is to go
    return {"samples per step": samples, "flags": flags, "models": models}
