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

"""Checkpoints that are whole or absent, that are checked before use, and that know which run they belong to.

A checkpoint is a folder `checkpoint-STEP`. It is written under another name, flushed to the disk, listed with sizes
and SHA-256 sums in its `manifest.json`, and only then given its name; older ones are removed after that. A process
that dies at any moment therefore leaves the last good checkpoint as it was, and at most a temporary folder, which
the next save clears away.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file


logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
PROGRESS_NAME = "progress.json"
STATE_NAME = "training_state.pt"
_NAME = re.compile(r"checkpoint-(\d+)")
_TEMPORARY_PREFIX = ".incomplete-"
_SUPERSEDED_SUFFIX = ".superseded"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not fit to be loaded; the message says which and why."""


class Stateful(Protocol):
    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


# --------------------------------------------------------------------------------------------- folders


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The folders `checkpoint-STEP` in `output_dir`, lowest step first. They may be damaged: see `verify_checkpoint`."""
    output_dir = Path(output_dir)
    found = [p for p in output_dir.glob("checkpoint-*") if p.is_dir() and _NAME.fullmatch(p.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The step in the name of a checkpoint folder."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"A checkpoint folder is named checkpoint-STEP, but this one is {path.name!r}.")
    return int(match[1])


def _temporary_folder(target: Path) -> Path:
    return target.with_name(_TEMPORARY_PREFIX + target.name)


def _publish(temporary: Path, target: Path) -> None:
    """Everything in `temporary` reaches the disk before its name changes, and the new name before this returns."""
    write_manifest(temporary)
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    replaced = target.with_name(_TEMPORARY_PREFIX + "replaced-" + target.name)
    if target.exists():  # a folder that is not empty cannot be replaced in one step
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(target, replaced)
    os.replace(temporary, target)
    _fsync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune_checkpoints(output_dir: str | os.PathLike, total_limit: int | None, keep: Path) -> None:
    """Removes the oldest checkpoints until at most `total_limit` are left; never `keep`, the one just written."""
    if total_limit is None:
        return
    if total_limit < 1:
        raise ValueError(f"`checkpoints_total_limit` must be at least 1, or None to keep all, but is {total_limit}.")
    others = [path for path in list_checkpoints(output_dir) if path != keep]
    for path in others[: max(0, len(others) + 1 - total_limit)]:
        shutil.rmtree(path, ignore_errors=True)


def set_aside_later_checkpoints(output_dir: str | os.PathLike, step: int) -> list[Path]:
    """Renames the checkpoints above `step`, from which a run goes on anew, so that "latest" takes none of them even if
    that run dies early. `save_checkpoint` removes them once the first new one is whole. Returns what they were called."""
    later = [path for path in list_checkpoints(output_dir) if checkpoint_step(path) > step]
    for path in later:
        os.replace(path, path.with_name(path.name + _SUPERSEDED_SUFFIX))
    return later


# --------------------------------------------------------------------------------------------- manifest


def write_manifest(folder: Path) -> None:
    """Lists every file below `folder` with its size in bytes and SHA-256 in `manifest.json`."""
    files = {p.relative_to(folder).as_posix(): _file_record(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST_NAME).write_text(json.dumps({"format": 1, "files": files}, indent=1), encoding="utf-8")


def _file_record(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def verify_checkpoint(folder: str | os.PathLike) -> None:
    """Raises `CheckpointError` unless every file that the manifest lists is there with its size and SHA-256."""
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is incomplete: it has no {MANIFEST_NAME}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged: its {MANIFEST_NAME} cannot be read ({error}).") from error
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing.")
        if path.stat().st_size != expected["size"]:
            raise CheckpointError(
                f"{folder} is damaged: {name} has {path.stat().st_size} bytes instead of {expected['size']}."
            )
        if _file_record(path) != expected:
            raise CheckpointError(f"{folder} is damaged: the contents of {name} do not match their SHA-256 sum.")


def find_checkpoint(output_dir: str | os.PathLike, requested: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` asks for, verified.

    Args:
        output_dir: folder of the run.
        requested: None for none; "latest" for the highest step that is whole, where damaged ones are passed over with
            a warning, and None is returned if there is none at all; else a folder, or its name in `output_dir`.

    Raises:
        FileNotFoundError: a folder was named that does not exist.
        CheckpointError: a folder was named that is incomplete or damaged; or all that "latest" could take are.
    """
    if requested is None:
        return None
    if requested != "latest":
        path = next((p for p in (Path(output_dir, requested), Path(requested)) if p.is_dir()), None)
        if path is None:
            names = [p.name for p in list_checkpoints(output_dir)]
            raise FileNotFoundError(f"No checkpoint {requested!r}; {output_dir} holds {names or 'none'}.")
        verify_checkpoint(path)
        return path
    checkpoints = list_checkpoints(output_dir)
    for path in reversed(checkpoints):
        try:
            verify_checkpoint(path)
            return path
        except CheckpointError as error:
            logger.warning("Passing over a checkpoint: %s", error)
    if checkpoints:
        raise CheckpointError(
            f"None of the {len(checkpoints)} checkpoints in {output_dir} is whole. Start anew with "
            "--overwrite_output_dir or in another --output_dir."
        )
    return None


# --------------------------------------------------------------------------------------------- state of a run


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    step: int,
    progress: Mapping[str, Any],
    state: Mapping[str, Stateful],
    total_limit: int | None = None,
) -> Path:
    """Writes `output_dir/checkpoint-STEP`; to be called by all processes at the same step.

    Models, optimizers, the gradient scaler and each process's random generators go through `accelerator.save_state`,
    so that sharded models work too. On several machines `output_dir` must be a folder that they share.

    Args:
        progress: JSON values that describe the run: counters and fingerprints.
        state: other parts of the run by name (averages, learning-rate schedule, ...); tensors and plain values only.
        total_limit: how many checkpoints are kept, this one included; None keeps all.

    Raises:
        CheckpointError: on every process, if any of them could not write; older checkpoints are intact.
    """
    output_dir = Path(output_dir)
    target = output_dir / f"checkpoint-{step}"
    temporary = _temporary_folder(target)
    try:
        with _together(accelerator, f"make room for {target.name} in {output_dir}"):
            if accelerator.is_main_process:
                for stale in output_dir.glob(_TEMPORARY_PREFIX + "*"):
                    shutil.rmtree(stale)
                temporary.mkdir(parents=True)
        with _together(accelerator, f"write {target}"):
            accelerator.save_state(str(temporary), safe_serialization=True)
            parts = {name: part.state_dict() for name, part in state.items()}  # by all: shards may be gathered
            if accelerator.is_main_process:
                _write_state(temporary, {"step": step, **progress}, parts)
        with _together(accelerator, f"publish {target}"):
            if accelerator.is_main_process:
                _publish(temporary, target)
                for superseded in output_dir.glob("checkpoint-*" + _SUPERSEDED_SUFFIX):
                    shutil.rmtree(superseded, ignore_errors=True)
                prune_checkpoints(output_dir, total_limit, keep=target)
    except CheckpointError:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def load_checkpoint(accelerator: Accelerator, path: Path, state: Mapping[str, Stateful]) -> dict[str, Any]:
    """Restores what `save_checkpoint` saved and returns its `progress`. The folder must have been verified."""
    # accelerate reads these with weights_only semantics; its own hook for further objects would unpickle anything,
    # which is why `state` is kept in files of ours.
    accelerator.load_state(str(path))
    saved = torch.load(path / STATE_NAME, map_location="cpu", weights_only=True)
    missing = sorted(set(state) ^ set(saved))
    if missing:
        raise CheckpointError(f"{path} holds {sorted(saved)}, but this run needs {sorted(state)}: {missing} differ.")
    for name, part in state.items():
        tensors_file = path / f"{name}.safetensors"
        tensors = load_file(tensors_file) if tensors_file.exists() else {}
        part.load_state_dict(_join_tensors(saved[name], tensors))
    return read_progress(path)


def read_progress(path: Path) -> dict[str, Any]:
    """The `progress` that a checkpoint was saved with, and its "step"."""
    return json.loads((path / PROGRESS_NAME).read_text(encoding="utf-8"))


def _write_state(folder: Path, progress: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
    (folder / PROGRESS_NAME).write_text(json.dumps(progress, indent=1), encoding="utf-8")
    plain = {}
    for name, part in parts.items():
        plain[name], tensors = _split_tensors(part)
        if tensors:
            save_file(tensors, folder / f"{name}.safetensors")
    torch.save(plain, folder / STATE_NAME)


def _split_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The tensors of a nested state under their paths ("average/conv.weight"), and the rest with the tensors cut out."""
    plain: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            tensors[key] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, Mapping):
            plain[key], inner = _split_tensors(value)
            tensors.update({f"{key}/{name}": tensor for name, tensor in inner.items()})
        else:
            plain[key] = value
    return plain, tensors


def _join_tensors(plain: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    state = {k: _join_tensors(v, {}) if isinstance(v, Mapping) else v for k, v in plain.items()}
    for path, tensor in tensors.items():
        *parents, name = path.split("/")
        inner = state
        for parent in parents:
            inner = inner[parent]
        inner[name] = tensor
    return state


@contextlib.contextmanager
def _together(accelerator: Accelerator, action: str) -> Iterator[None]:
    """If the block fails in any process it fails in all, so that none waits for one that has given up."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    report = None if error is None else f"process {accelerator.process_index}: {type(error).__name__}: {error}"
    reports = [r for r in gather_object([report]) if r is not None]
    if reports:
        raise CheckpointError(f"Could not {action}: {'; '.join(reports)}. Earlier checkpoints are intact.") from error


def agree_on_checkpoint(accelerator: Accelerator, output_dir: str | os.PathLike, requested: str | None) -> Path | None:
    """`find_checkpoint`, looked up once by the main process, with the same answer or error in all."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = find_checkpoint(output_dir, requested)
        except (OSError, CheckpointError) as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


# --------------------------------------------------------------------------------------------- fingerprints


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], what: str, path: Path) -> None:
    """Raises `CheckpointError` naming each difference between two fingerprints (nested dicts of JSON values)."""
    differences = list(_differences(saved, json.loads(json.dumps(current))))
    if differences:
        shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
        raise CheckpointError(
            f"{what} changed since {path} was written, so the run cannot be continued exactly: {shown}. "
            "Restore it, or start a new run in another --output_dir."
        )


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(set(saved) | set(current)):
        name = prefix + key
        if key not in current:
            yield f"{name} is gone"
        elif key not in saved:
            yield f"{name} is new"
        elif isinstance(saved[key], Mapping) and isinstance(current[key], Mapping):
            yield from _differences(saved[key], current[key], name + "/")
        elif saved[key] != current[key]:
            yield f"{name} was {saved[key]!r} and is {current[key]!r}"


def folder_fingerprint(folder: str | os.PathLike) -> dict[str, str]:
    """Every file below `folder` with its size and a checksum of its first and last 4 KiB: cheap for large data sets,
    and a change inside a compressed picture, mesh or clip shows there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}.")
    paths = (Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names)
    return {path.relative_to(folder).as_posix(): _quick_record(path) for path in sorted(paths)}


def _quick_record(path: Path) -> str:
    size = path.stat().st_size
    with open(path, "rb") as file:
        digest = hashlib.blake2b(file.read(4096), digest_size=8)
        if size > 4096:
            file.seek(max(4096, size - 4096))
            digest.update(file.read())
    return f"{size} bytes, {digest.hexdigest()}"
