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
"""The loop that both training scripts run: batches, updates, averages, checkpoints, log, validation."""

import argparse
import contextlib
import copy
import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedType,
    ProjectConfiguration,
    send_to_device,
    set_seed,
)
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from tqdm.auto import tqdm
from training_arguments import run_fingerprint
from training_batches import Batch, batches, explained_worker_failures
from training_setup import ranks_are_on_cpu

from diffusers_ddmi.checkpointing import (
    Stateful,
    agree_on_checkpoint,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
    set_aside_later_checkpoints,
)
from diffusers_ddmi.training_utils import (
    ExponentialMovingAverage,
    GracefulStop,
    JsonlLog,
    NonFiniteLossError,
    derived_seed,
    nonfinite_terms,
    whole_tensor,
)


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a batch stands in the run: its update (1 is the first), and the running number of each of its samples."""

    number: int
    samples: Sequence[int]


# (module as accelerate wraps it, batch, step) -> loss and the terms to be logged, all scalars
Losses = Callable[[nn.Module, Batch, Step], tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclasses.dataclass
class Adversary:
    """A second module with losses of its own, updated after the first on the same batch."""

    module: nn.Module
    losses: Losses


# --------------------------------------------------------------------------------------------- setting up


def create_accelerator(args: argparse.Namespace) -> Accelerator:
    """Logging, accelerate and the output folder.

    Raises:
        FileExistsError: an earlier run has been there, and it is neither to be resumed nor overwritten.
        PermissionError: the folder cannot be made or written to.
        ValueError: the package that --report_to names is not installed.
    """
    if args.report_to and args.report_to not in ("all", *get_available_trackers()):
        raise ValueError(f"--report_to {args.report_to} needs that package: install it, or leave the flag out.")
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO
    )
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file that it saves
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        cpu=ranks_are_on_cpu(),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / args.logging_dir)),
        # Others wait at the next update while the main process validates or saves.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    if not accelerator.is_local_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            _prepare_output_dir(output_dir, args)
    # Weights are initialised from the global generator, which torch's layers leave no choice about.
    set_seed(args.seed)
    return accelerator


def _prepare_output_dir(output_dir: Path, args: argparse.Namespace) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"--output_dir {output_dir} cannot be made: {error}.") from error
    if not os.access(output_dir, os.W_OK):
        raise PermissionError(f"--output_dir {output_dir} cannot be written to.")
    checkpoints = list_checkpoints(output_dir)
    if checkpoints and args.overwrite_output_dir and not args.resume_from_checkpoint:
        for path in checkpoints:
            shutil.rmtree(path)
    elif checkpoints and not args.resume_from_checkpoint:
        raise FileExistsError(
            f"{output_dir} holds {len(checkpoints)} checkpoints of an earlier run, up to {checkpoints[-1].name}. Continue "
            "it with --resume_from_checkpoint latest, or start anew with --overwrite_output_dir."
        )


def find_progress(accelerator: Accelerator, args: argparse.Namespace) -> tuple[Path | None, dict[str, Any]]:
    """The verified checkpoint to resume from and what it says about its run; (None, {}) for a new run."""
    path = agree_on_checkpoint(accelerator, args.output_dir, args.resume_from_checkpoint)
    if path is None and args.resume_from_checkpoint:
        logger.info("There is no checkpoint in %s yet: starting at step 0.", args.output_dir)
    return (path, read_progress(path)) if path else (None, {})


# --------------------------------------------------------------------------------------------- the run


class TrainingRun:
    """One training run, from a checkpoint or from the start.

    Args:
        args: parsed flags. accelerator: from `create_accelerator`.
        module: what is trained, unwrapped. losses: its losses on a batch.
        dataset: yields training examples.
        configs: configurations of the models, compared when resuming.
        data: fingerprint of the data, compared when resuming.
        state: further parts to be saved with each checkpoint.
        adversary: a second module to be trained on the same batches.
        validate: called as validate(module, step) with averaged weights if there are any; returns values to be logged.
        facts: JSON values for the checkpoints' progress, such as measured statistics.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        module: nn.Module,
        losses: Losses,
        dataset: Dataset,
        configs: Mapping[str, Any],
        data: Mapping[str, Any],
        state: Mapping[str, Stateful] | None = None,
        adversary: Adversary | None = None,
        validate: Callable[[nn.Module, int], dict[str, float]] | None = None,
        facts: Mapping[str, Any] | None = None,
    ):
        self.args, self.accelerator, self.losses, self.dataset = args, accelerator, losses, dataset
        self.validate, self.adversary = validate, adversary
        self.samples_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        self.max_steps = args.max_train_steps or self._steps_of_epochs()
        run = run_fingerprint(
            args, accelerator.num_processes, accelerator.mixed_precision, self.max_steps, dict(configs)
        )
        self.progress = {"run": run, "data": dict(data), **(facts or {})}

        self.sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.sharded and adversary is not None:
            raise ValueError(
                "An adversarial loss weighs itself by gradients at the last layer, which a sharded module does not give: "
                "set --disc_weight 0, or launch with DDP instead of FSDP or DeepSpeed."
            )
        if accelerator.mixed_precision == "fp16" and adversary is not None:
            raise ValueError(
                "An adversarial loss has a second optimizer, but fp16 has one gradient scaler, which unscales all of them at "
                "once: set --mixed_precision bf16 (or no), or --disc_weight 0."
            )
        # Gets the whole weights where they are wanted: a sharded module can neither be saved nor used by one process.
        self.whole = copy.deepcopy(module) if self.sharded else None
        self.players: list[tuple[nn.Module, torch.optim.Optimizer, Losses]] = [self._prepare(module, losses)]
        if adversary is not None:
            self.players.append(self._prepare(adversary.module, adversary.losses))
        self.module = self.players[0][0]
        optimizer = self.players[0][1]
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=self.max_steps,
        )
        self.state: dict[str, Stateful] = {"lr_scheduler": self.lr_scheduler, **(state or {})}
        self.ema: ExponentialMovingAverage | None = None
        if args.use_ema:
            self.ema = ExponentialMovingAverage(
                self.unwrapped,
                decay=args.ema_max_decay,
                use_ema_warmup=True,
                inv_gamma=args.ema_inv_gamma,
                power=args.ema_power,
            )
            self.state["ema"] = self.ema

    def _steps_of_epochs(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            raise ValueError("The length of a stream is unknown: give --max_train_steps.")
        return math.ceil(self.args.num_train_epochs * len(self.dataset) / self.samples_per_step)

    def _prepare(self, module: nn.Module, losses: Losses) -> tuple[nn.Module, torch.optim.Optimizer, Losses]:
        args = self.args
        optimizer = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad],
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
            fused=True,  # one pass over all weights: a step of small models is 11% shorter on a CPU
        )
        return *self.accelerator.prepare(module, optimizer), losses

    @property
    def unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.module)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The trained module, with averaged weights where there are any. To be entered by all processes if sharded."""
        if self.whole is not None:
            weights = {name: whole_tensor(value) for name, value in self.unwrapped.state_dict().items()}
            weights |= self.ema.state_dict()["average"] if self.ema else {}
            self.whole.load_state_dict({name: weights[name] for name in self.whole.state_dict()})
            yield self.whole.to(self.accelerator.device)
            self.whole.to("cpu")
        else:
            with self.ema.applied(self.unwrapped) if self.ema else contextlib.nullcontext():
                yield self.unwrapped

    def resume(self, checkpoint: Path | None, progress: Mapping[str, Any]) -> int:
        """Restores a checkpoint, if one is given, and returns its step.

        Raises:
            CheckpointError: it belongs to a run with other settings or other data; the differences are named.
        """
        if checkpoint is None:
            return 0
        check_same_run(progress["data"], self.progress["data"], "The training data", checkpoint)
        check_same_run(progress["run"], self.progress["run"], "The settings of the run", checkpoint)
        load_checkpoint(self.accelerator, checkpoint, self.state)
        logger.info("Resumed from %s.", checkpoint)
        step = int(progress["step"])
        if self.accelerator.is_main_process and (later := set_aside_later_checkpoints(self.args.output_dir, step)):
            names = ", ".join(path.name for path in later)
            logger.warning(
                "Going on from step %d: %s are now *.superseded, and are removed after the next save.", step, names
            )
        return step

    def fit(self, checkpoint: Path | None = None, progress: Mapping[str, Any] | None = None) -> bool:
        """Trains to the last step. Returns False if a signal ended the run before; then a checkpoint was saved.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite; the last checkpoint is intact.
            DataWorkerError: a process that reads data died.
            CheckpointError: see `resume` and `save_checkpoint`.
        """
        args, accelerator = self.args, self.accelerator
        first = self.resume(checkpoint, progress or {})
        log = JsonlLog(Path(args.output_dir, "log.jsonl"), first) if accelerator.is_main_process else None
        self._init_trackers()
        stream = batches(
            self.dataset, args, accelerator.process_index, accelerator.num_processes, first * self.samples_per_step
        )
        bar = tqdm(
            total=self.max_steps,
            initial=first,
            desc="step",
            disable=not accelerator.is_local_main_process,
            mininterval=1,
        )
        saved, stopped = first, False
        # Closed here, since the traceback of an error would keep the stream, and with it the workers, alive.
        with GracefulStop() as stop, explained_worker_failures(), contextlib.closing(stream), bar:
            for step in range(first + 1, self.max_steps + 1):
                values, stopped = self._update(step, stream, stop)
                if stopped:
                    stream.close()  # workers may have had the signal too, and end before a long save does
                values |= self._validation(step)
                self._report(log, bar, step, values)
                if stopped or step % args.checkpointing_steps == 0 or step == self.max_steps:
                    self._save(step, log)
                    saved = step
                if stopped:
                    break
        if log:
            log.close()
        if stopped:
            logger.warning(
                "Stopped by a signal after step %d of %d; saved checkpoint-%d. Continue with the same command and "
                "--resume_from_checkpoint latest.",
                saved,
                self.max_steps,
                saved,
            )
        return not stopped

    # ------------------------------------------------------------------------------------- one step

    def _update(
        self, step: int, stream: Iterator[tuple[Batch, Sequence[int]]], stop: GracefulStop
    ) -> tuple[dict[str, float], bool]:
        """One update of every module. Returns the values to be logged and whether the run is to stop."""
        # What still draws from the global generator, such as dropout, becomes a function of progress too.
        torch.manual_seed(derived_seed(self.args.seed, step, self.accelerator.process_index, "global"))
        values, stopped = self._gather(self._accumulate_gradients(step, stream), stop)
        wrong = nonfinite_terms(values)
        if not wrong:
            norms = {
                f"{name}grad_norm": self._clip(module)
                for name, (module, _, _) in zip(("", "adversary_"), self.players)
            }
            if self.accelerator.scaler is None:  # which otherwise meets overflowing gradients on purpose
                wrong = nonfinite_terms(norms)
            values |= norms
        values["lr"] = self.lr_scheduler.get_last_lr()[0]
        if wrong:
            self._refuse(step, wrong)
        else:
            for _, optimizer, _ in self.players:
                optimizer.step()
            self.lr_scheduler.step()
            if self.ema:
                self.ema.step(self.unwrapped)
        for _, optimizer, _ in self.players:
            optimizer.zero_grad()
        return values, stopped

    def _accumulate_gradients(
        self, step: int, stream: Iterator[tuple[Batch, Sequence[int]]]
    ) -> dict[str, torch.Tensor]:
        accumulation = self.args.gradient_accumulation_steps
        means: dict[str, torch.Tensor] = {}
        for module, _, _ in self.players:
            module.train()
        for remaining in reversed(range(accumulation)):
            batch, numbers = next(stream)
            batch = send_to_device(batch, self.accelerator.device)
            for module, _, losses in self.players:
                with self.accelerator.no_sync(module) if remaining else contextlib.nullcontext():
                    with self.accelerator.autocast():
                        loss, terms = losses(module, batch, Step(step, numbers))
                    self.accelerator.backward(loss)  # divides by the accumulation steps
                for name, value in terms.items():
                    means[name] = means.get(name, 0.0) + value.detach().float() / accumulation
        return means

    def _gather(self, means: Mapping[str, torch.Tensor], stop: GracefulStop) -> tuple[dict[str, float], bool]:
        """Means over the processes, and whether any of them was told to stop: all must act alike."""
        stop_flag = torch.tensor(float(stop.requested), device=self.accelerator.device)
        reduced = self.accelerator.reduce(torch.stack([stop_flag, *means.values()]), "mean").tolist()
        return dict(zip(means, reduced[1:])), reduced[0] > 0

    def _clip(self, module: nn.Module) -> float:
        limit = self.args.max_grad_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(module.parameters(), limit))

    def _refuse(self, step: int, wrong: Sequence[str]) -> None:
        """A step that would spoil the weights is not taken."""
        message = f"Step {step}: {', '.join(wrong)} is NaN or infinite."
        if not self.args.skip_nonfinite:
            raise NonFiniteLossError(
                f"{message} Weights and averages are still those of step {step - 1}, and the last checkpoint is intact. "
                "Look at the data of this step; resume with --skip_nonfinite to leave it out, or begin again with a lower "
                "--learning_rate or --max_grad_norm."
            )
        logger.warning("%s Left out (--skip_nonfinite).", message)

    # ------------------------------------------------------------------------------------- around a step

    def _validation(self, step: int) -> dict[str, float]:
        if self.validate is None or (step % self.args.validation_steps and step != self.max_steps):
            return {}
        if not (self.accelerator.is_main_process or self.sharded):
            return {}
        with self.averaged() as module, torch.no_grad():
            module.eval()
            return self.validate(module, step) if self.accelerator.is_main_process else {}

    def _report(self, log: JsonlLog | None, bar: tqdm, step: int, values: dict[str, float]) -> None:
        if log:
            log.write({"step": step, **values})
        shown = {name: f"{value:.4g}" for name, value in values.items() if name in ("loss", "psnr", "iou")}
        bar.set_postfix(shown, refresh=False)
        bar.update()
        self.accelerator.log(values, step=step)

    def _save(self, step: int, log: JsonlLog | None) -> None:
        if log:
            log.sync()
        save_checkpoint(
            self.accelerator,
            self.args.output_dir,
            step,
            self.progress,
            self.state,
            self.args.checkpoints_total_limit,
        )

    def export(self, save: Callable[[Path], None]) -> None:
        """The main process lets `save` write a model into a folder that then becomes --output_dir, part by part."""
        if self.accelerator.is_main_process:
            publish(save, self.args.output_dir)
        self.accelerator.wait_for_everyone()

    def _init_trackers(self) -> None:
        if self.args.report_to:
            config = {
                k: v for k, v in vars(self.args).items() if isinstance(v, (int, float, str, bool)) and k != "hub_token"
            }
            self.accelerator.init_trackers(self.args.tracker_project_name, config=config)


# --------------------------------------------------------------------------------------------- results


def publish(save: Callable[[Path], None], output_dir: str | os.PathLike) -> None:
    """Lets `save` write a model or pipeline into a temporary folder, and moves it into `output_dir` part by part."""
    output_dir = Path(output_dir)
    temporary = output_dir / ".incomplete-export"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save(temporary)
        # model_index.json comes last: a folder without it is not mistaken for a pipeline.
        for path in sorted(temporary.iterdir(), key=lambda p: (p.name == "model_index.json", p.name)):
            target = output_dir / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hub_repository(args: argparse.Namespace, accelerator: Accelerator) -> str:
    """What a model card calls the model: with the owner's name, if it is to be published."""
    if args.push_to_hub and accelerator.is_main_process:
        return _created_repository(args)
    return args.hub_model_id or Path(args.output_dir).resolve().name


def _created_repository(args: argparse.Namespace) -> str:
    from huggingface_hub import HfApi

    name = args.hub_model_id or Path(args.output_dir).resolve().name
    return HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id


def push_to_hub(args: argparse.Namespace) -> None:
    """Uploads the trained model in --output_dir, without checkpoints and logs."""
    from huggingface_hub import HfApi

    api = HfApi(token=args.hub_token)
    api.upload_folder(
        repo_id=_created_repository(args),
        folder_path=args.output_dir,
        ignore_patterns=["checkpoint-*", ".incomplete-*", "log.jsonl*", f"{args.logging_dir}/*", "validation/*"],
        commit_message="End of training",
    )
