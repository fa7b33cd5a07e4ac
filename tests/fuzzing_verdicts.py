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
"""A call of the public API with the verdict that it deserves, and the comparison of both."""

import contextlib
import dataclasses
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import diffusers_ddmi
from diffusers_ddmi import NeuralField


PACKAGE = Path(diffusers_ddmi.__file__).parent
# What messages may call an argument.
SPOKEN = {
    "x": r"`x`|images|points|clips|video",
    "z": r"`z`|latents",
    "generator": r"`generator`|generators",
    "prompt": r"prompt",
    "negative_prompt": r"negative[_ ]prompt",
    "scheduler": r"Scheduler",
}
# A message that asks to give an argument or to leave it out needs no value.
ADVICE = ("leave", "Leave", "pass ", "Pass ", "give one")


@dataclasses.dataclass
class Call:
    """What is called, and what should come of it.

    Args:
        target: pipeline or model. arguments: by name. wrong: names of those that are not acceptable.
        samples: the batch size of the result, if nothing is wrong.
        clash: whether the wrong arguments are right alone, but exclude each other.
    """

    target: Any
    arguments: dict[str, Any]
    wrong: list[str]
    samples: int
    clash: bool = False

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={show(value)}" for name, value in self.arguments.items())
        return f"{type(self.target).__name__}: {shown}; wrong: {', '.join(self.wrong) or 'nothing'}"


def show(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{value.dtype}{tuple(value.shape)}" if len(value.shape) > 1 else repr(value)
    return f"a list of {len(value)}" if isinstance(value, list) and len(repr(value)) > 80 else repr(value)


class Fault(AssertionError):
    """The package did not behave as documented."""


def tensor(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Reproducible noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def other_shapes(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes that differ in one axis, or in the number of axes."""
    changes = [shape[1:], (*shape, 1), (1, *shape), ()]
    changes += [(*shape[:i], shape[i] + d, *shape[i + 1 :]) for i in range(len(shape)) for d in (-1, 1)]
    return st.sampled_from([change for change in changes if change != shape])


@contextlib.contextmanager
def expected_error(call: Call) -> Iterator[None]:
    """The block raises a clear error if something is wrong, and none if nothing is."""
    try:
        yield
    except Exception as error:
        if not call.wrong:
            raise Fault(f"Right arguments were refused: {type(error).__name__}: {error}") from error
        check_error(call, error)
    else:
        if call.wrong:
            raise Fault(f"Accepted in silence: {[f'{name}={show(call.arguments[name])}' for name in call.wrong]}")


def check_error(call: Call, error: Exception) -> None:
    message = str(error)
    if not isinstance(error, (ValueError, TypeError)):
        raise Fault(f"{call.wrong} raised {type(error).__name__}: {message}") from error
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if PACKAGE not in where.parents:
        raise Fault(f"{call.wrong} were refused late, in {where.name}: {message}") from error
    named = [name for name in call.wrong if re.search(SPOKEN.get(name, rf"\b{name}\b"), message)]
    if not named:
        raise Fault(f"The message does not name {call.wrong}: {message}") from error
    if call.clash or any(word in message for word in ADVICE):
        return
    if not any(shown in message for name in named for shown in descriptions(call.arguments[name])):
        values = [f"{name}={show(call.arguments[name])}" for name in named]
        raise Fault(f"The message does not show {values}: {message}") from error


def descriptions(value: Any) -> list[str]:
    """How a message may show a value."""
    found = [repr(value), str(value), type(value).__name__]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        found += [str(tuple(value.shape)), str(value.dtype), str(value.flatten().tolist()), "finite"]
        # what is computed one by one may be refused so
        found += [str(len(value)), str((1, *value.shape[1:]))] if value.ndim else []
    if isinstance(value, (int, float)):
        found.append(f"{value:g}")
    if isinstance(value, (list, tuple)):
        found += [
            str(list(value)),
            str(len(value)),
            *(f"{v:g}" for v in value if isinstance(v, float)),
            *map(repr, value),
        ]
    return found


def check_tensor(values: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    if not isinstance(values, torch.Tensor) or values.dtype != dtype or tuple(values.shape) != shape:
        got = (values.dtype, tuple(values.shape)) if isinstance(values, torch.Tensor) else type(values)
        raise Fault(f"Expected {dtype} of shape {shape}, got {got}")
    if not bool(values.isfinite().all()):
        raise Fault("A value is not finite")


def check_field(field: NeuralField, samples: int) -> None:
    if type(field) is not NeuralField or field.batch_size != samples:
        raise Fault(f"Expected a field of {samples} signals, got {field!r}")
    points = tensor((5, len(field.axes))).clamp(*field.bounds)
    directions = torch.nn.functional.normalize(tensor((5, 3)), dim=-1) if field.readout.uses_directions else None
    values = field(points, directions)
    check_tensor(values, (samples, 5, values.shape[-1]))
