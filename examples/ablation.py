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
"""The paper's ablation (DDMI, Table 8) on pictures of your own, or on handwritten digits without any download.

    python examples/ablation.py --output_dir outputs/ablation
    python examples/ablation.py --output_dir outputs/ablation --train_data_dir DIR --resolution 64 --preset small \\
        --stage_1_steps 20000 --stage_2_steps 50000 --feature_extractor inception-2015-12-05.pt --seeds 0 1 2

trains a single basis field, then hierarchically decomposed basis fields (HDBFs) whose embeddings all enter at the input
of the MLP, then HDBFs met from coarse to fine (CFC): the same steps, data and seeds, by the training scripts. The table
of PSNR (of held-out reconstructions) and, with --stage_2_steps, of FID, is written to table.md and table.json. Run again,
it goes on where it was stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers_ddmi.files import write_text


HERE = Path(__file__).resolve().parent
TRAINING = HERE.parent / "training"

# Row of the table -> whether it has HDBFs and CFC, and the changes to the preset that make it.
ROWS: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "single-field": (False, False, {"num_scales": 1}),
    "hdbf": (True, False, {"readout_config": {"conditioning": "input"}}),
    "hdbf-cfc": (True, True, {"readout_config": {"conditioning": "concat"}}),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/ablation"))
    parser.add_argument("--dataset_name", help="Name of a data set; 'digits' if no folder is given either.")
    parser.add_argument("--train_data_dir", help="Folder of pictures; its subfolder test, or a tenth, is held out.")
    parser.add_argument("--preset", default=str(HERE / "presets" / "digits"), help="As for the training scripts.")
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--stage_1_steps", type=int, default=300)
    parser.add_argument("--stage_2_steps", type=int, default=0, help="0: no generation, and no FID.")
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--kl_weight", type=float, default=0.01)
    parser.add_argument("--num_validation_samples", type=int, default=256, help="Held-out pictures for the PSNR.")
    parser.add_argument("--feature_extractor", help="For FID, as for evaluate.py.")
    parser.add_argument("--num_samples", type=int, default=1000, help="For FID.")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="For FID.")
    args = parser.parse_args(arguments)
    if args.dataset_name and args.train_data_dir:
        raise ValueError("Give the data by one of --dataset_name and --train_data_dir, not both.")
    if bool(args.stage_2_steps) != bool(args.feature_extractor):
        raise ValueError("FID needs both --stage_2_steps and --feature_extractor; leave out both for PSNR alone.")
    if args.stage_1_steps < 1 or args.stage_2_steps < 0:
        raise ValueError("--stage_1_steps must be at least 1 and --stage_2_steps at least 0.")
    return args


def overrides_of(changes: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """`changes` of a row as --config_overrides, which replace whole keys: those of the read-out are joined with the preset's."""
    merged = {k: {**config.get(k, {}), **v} if isinstance(v, dict) else v for k, v in changes.items()}
    return json.dumps(merged)


def read_preset(preset: str) -> dict[str, Any]:
    """The autoencoder's config of a preset, by name or folder.

    Raises:
        FileNotFoundError: there is none.
    """
    sys.path.append(str(TRAINING))
    from training_setup import preset_folder, read_config

    return read_config(preset_folder(preset, "image"), "vae")


def run(script: str, **flags: Any) -> None:
    """Runs a script of `training/` with these flags; True stands for a bare flag, None for none."""
    command = [sys.executable, str(TRAINING / script)]
    for name, value in flags.items():
        if value is not None:
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    subprocess.run(command, check=True)


def measure(args: argparse.Namespace, row: str, seed: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one row with one seed and returns {"row", "seed", "psnr"} and, after stage 2, "fid"."""
    folder = args.output_dir / f"{row}-seed-{seed}"
    data = {"dataset_name": args.dataset_name, "train_data_dir": args.train_data_dir}
    if not any(data.values()):
        data["dataset_name"] = "digits"
    held_out = args.train_data_dir is not None and not Path(args.train_data_dir, "test").is_dir()
    shared = {
        "preset": args.preset,
        "resolution": args.resolution,
        "seed": seed,
        "train_batch_size": args.train_batch_size,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 20,
        "checkpoints_total_limit": 1,
        "resume_from_checkpoint": "latest",
        "validation_split": 0.1 if held_out else None,
        "validation_steps": 10**9,  # only at the end
        **data,
    }
    run(
        "train_d2c_vae.py",
        modality="image",
        output_dir=folder / "vae",
        max_train_steps=args.stage_1_steps,
        config_overrides=overrides_of(ROWS[row][2], config),
        learning_rate=args.learning_rate,
        kl_weight=args.kl_weight,
        num_validation_samples=args.num_validation_samples,
        **shared,
    )
    result = {"row": row, "seed": seed, "psnr": last_psnr(folder / "vae" / "log.jsonl")}
    if args.stage_2_steps:
        run(
            "train_ldm.py",
            pretrained_vae=folder / "vae",
            output_dir=folder / "pipeline",
            max_train_steps=args.stage_2_steps,
            learning_rate=args.learning_rate / 2,
            cache_latents=True,
            **shared,
        )
        result["fid"] = evaluate(args, folder, seed, data)
    return result


def evaluate(args: argparse.Namespace, folder: Path, seed: int, data: Mapping[str, Any]) -> float:
    """FID of the row's pipeline against the pictures of the split train (all, where a folder is not divided)."""
    run(
        "evaluate.py",
        pipeline=folder / "pipeline",
        output_dir=folder / "report",
        metrics="fid",
        split="train",
        seed=seed,
        num_samples=args.num_samples,
        num_references=max(args.num_samples, 2),
        num_inference_steps=args.num_inference_steps,
        feature_extractor=args.feature_extractor,
        dataset_name=data["dataset_name"],
        data_dir=data["train_data_dir"],
    )
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    return next(figure["value"] for figure in report["figures"] if figure["metric"] == "FID")


def last_psnr(log: Path) -> float:
    """The held-out PSNR in dB that a run of stage 1 ended with.

    Raises:
        ValueError: it has none, because there were no held-out data.
    """
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = [entry["psnr"] for entry in entries if entry.get("psnr") is not None]
    if not found:
        raise ValueError(f"{log} has no PSNR: the data have no held-out part.")
    return found[-1]


def markdown(runs: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Table 8: a row for each setting, mean ± standard deviation over seeds."""
    lines = [
        "| | HDBFs | CFC | first stage, PSNR (dB) ↑ | second stage, FID ↓ | seeds |",
        "|---|---|---|---:|---:|---|",
    ]
    for row, (hdbf, cfc, _) in ROWS.items():
        of_row = [run for run in runs if run["row"] == row]
        cells = [_summary([run[name] for run in of_row if name in run]) for name in ("psnr", "fid")]
        marks = ["✓" if mark else "" for mark in (hdbf, cfc)]
        seeds = ", ".join(str(run["seed"]) for run in of_row)
        lines.append("| " + " | ".join([f"`{row}`", *marks, *cells, seeds]) + " |")
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in facts.items()), ""])


def _summary(values: Sequence[float]) -> str:
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def main(args: argparse.Namespace) -> None:
    config = read_preset(args.preset)
    runs: list[dict[str, Any]] = []
    facts = {
        "data": args.train_data_dir or args.dataset_name or "digits",
        "resolution": args.resolution,
        "held-out pictures": f"at most {args.num_validation_samples}",
        "steps": f"{args.stage_1_steps} and {args.stage_2_steps}, batches of {args.train_batch_size}",
    }
    if args.stage_2_steps:
        facts["FID"] = f"{args.num_samples} samples, features of {args.feature_extractor}"
    for seed in args.seeds:
        for row in ROWS:
            runs.append(measure(args, row, seed, config))
            table = markdown(runs, facts)
            write_text(args.output_dir / "table.json", json.dumps({**facts, "runs": runs}, indent=1) + "\n")
            write_text(args.output_dir / "table.md", table)
    print(table)


if __name__ == "__main__":
    main(parse_args())
