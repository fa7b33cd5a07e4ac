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
"""Reads the official checkpoints, which are pickles of more than tensors, without running anything that is in them."""

import argparse
import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from diffusers_ddmi.conversion.mapper import ConversionError


class _State:
    """Stands for an object of OmegaConf: takes its state and does nothing with it."""

    def __new__(cls, *_):
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stand_in(path: str) -> type:
    """A class by which torch's restricted unpickler knows the class at `path`, without importing it."""
    module, _, name = path.rpartition(".")
    return type(name, (_State,), {"__module__": module})


# The classes beside torch's own that `tools/*/*.py` of the official code put into their files: the command line with the
# YAML file as OmegaConf nodes in it. `typing.Any` is the declared type of those nodes.
ALLOWED_CLASSES = [
    argparse.Namespace,
    collections.defaultdict,
    dict,
    list,
    int,
    *map(
        _stand_in,
        [
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.nodes.AnyNode",
            "typing.Any",
        ],
    ),
]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """
    The top-level dictionary of a checkpoint, tensors on the CPU.

    Only tensors, plain containers and numbers, and stand-ins for the classes that the official training scripts save
    are created; a file that asks for anything else is refused, and nothing in it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: the file is damaged, asks for other classes, or holds no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {str(path)!r}.")
    try:
        with torch.serialization.safe_globals(ALLOWED_CLASSES):
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_stored_plainly(path))
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} was refused, and nothing in it was run: it is not a pickle of tensors and the official scripts' "
            f"arguments alone ({_first_reason(error)})."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConversionError(
            f"{path} cannot be read as a PyTorch checkpoint; it may be truncated or not a checkpoint at all "
            f"({_first_reason(error)})."
        ) from error
    if not isinstance(contents, dict):
        raise ConversionError(f"{path} holds a {type(contents).__name__}; expected a dictionary of state dicts.")
    return contents


def _is_stored_plainly(path: Path) -> bool:
    """Whether tensors can be mapped from the file instead of read into memory: a zip archive without compression."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _first_reason(error: Exception) -> str:
    """The line of torch's long advice that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if "GLOBAL" in line or "Unsupported" in line or line.startswith("WeightsUnpickler")
    ]
    return (telling or lines or [type(error).__name__])[0][:300]


def state_dict(checkpoint: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """The state dict `name` of a checkpoint.

    Raises:
        ConversionError: it is not there, or not a dictionary of tensors.
    """
    state = checkpoint.get(name)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(
            f"The checkpoint has no state dict {name!r}; it has {sorted(map(str, checkpoint))}. Is it a file of "
            "the official training scripts?"
        )
    return dict(state)
