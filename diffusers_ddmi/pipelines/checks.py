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
"""Checks of what a pipeline is called with, made before any work. All raise with the argument's name and value."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch


def check_positive(**sizes: int) -> None:
    """Raises a `ValueError` for a size that is not a positive whole number."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"`{name}` must be a positive whole number, got {value!r}.")


def check_number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
    """Raises a `TypeError` for what is no number, and a `ValueError` for one that is not in [low, high] or infinite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not (math.isfinite(value) and low <= value <= high):
        expected = "finite" if math.isinf(low) else f"a number in [{low:g}, {high:g}]"
        raise ValueError(f"`{name}` must be {expected}, got {value!r}.")


def check_generator(generator: Any, samples: int) -> None:
    """`generator` is none, one, or a list of one for each sample."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, list) or not all(isinstance(each, torch.Generator) for each in generator):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {generator!r}.")
    if len(generator) != samples:
        raise ValueError(f"Got a list of {len(generator)} generators for {samples} samples; give one each.")


def check_latents(latents: Any, expected: tuple[int, ...]) -> None:
    """`latents` is none, or a finite floating-point tensor of the expected shape."""
    if latents is None:
        return
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != expected:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"`latents` must be initial noise of shape {expected}, got {got}.")
    if not latents.is_floating_point():
        raise TypeError(f"`latents` must be a floating-point tensor, got {latents.dtype}.")
    if not bool(latents.isfinite().all()):
        raise ValueError("`latents` must be initial noise of finite values; some are NaN or infinite.")


def check_callback(callback: Any, names: Any, known: Sequence[str]) -> None:
    """`callback_on_step_end` can be called, and its `names` of tensors are among the `known` ones."""
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback_on_step_end` must be callable, got {callback!r}.")
    if not isinstance(names, (list, tuple)) or any(name not in known for name in names):
        raise ValueError(f"`callback_on_step_end_tensor_inputs` must be among {known}, got {names!r}.")


def check_texts(name: str, texts: Any) -> None:
    """Raises a `TypeError` for what is neither a text nor a non-empty list of texts."""
    several = texts if isinstance(texts, list) else [texts]
    if not several or not all(isinstance(text, str) for text in several):
        raise TypeError(f"`{name}` must be a string or a non-empty list of strings, got {texts!r}.")


def check_embeddings(name: str, embeddings: Any, channels: int) -> None:
    """Raises for what are not hidden states `(batch, tokens, channels)`."""
    if not isinstance(embeddings, torch.Tensor) or not embeddings.is_floating_point():
        kind = embeddings.dtype if isinstance(embeddings, torch.Tensor) else type(embeddings).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor, got {kind}.")
    shape = tuple(embeddings.shape)
    if len(shape) != 3 or 0 in shape or shape[2] != channels:
        raise ValueError(f"`{name}` must have the shape (prompts, tokens, {channels}), got {shape}.")


def check_tokens(prompt_embeds: Any, negative_prompt_embeds: Any, text_length: int) -> None:
    """What guidance compares has equally many tokens; texts that take the place of embeddings get `text_length`."""
    positive, negative = (
        text_length if embeddings is None else embeddings.shape[1]
        for embeddings in (prompt_embeds, negative_prompt_embeds)
    )
    if positive != negative:
        given = "prompt_embeds" if prompt_embeds is not None else "negative_prompt_embeds"
        raise ValueError(
            f"`{given}` must have as many tokens as what guidance compares them with, got {positive} tokens of the prompt "
            f"and {negative} of the negative one (texts have {text_length}); pass both as embeddings, or "
            "`guidance_scale=1`."
        )
