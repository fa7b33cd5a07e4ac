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
"""Moves tensors of an official state dict to the parameters of our modules, each exactly once."""

from collections.abc import Callable, Mapping

import torch


class ConversionError(ValueError):
    """An official file that cannot be converted; the message names what was found and what was expected."""


class StateMapper:
    """
    Collects a state dict for `expected` from `source`, and insists that every tensor of both is used once.

    Args:
        source: an official state dict.
        expected: the state dict of the module to fill (tensors on the meta device will do).
        name: what is being converted, for messages.
    """

    def __init__(self, source: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str):
        self.name = name
        self._source = dict(source)
        self._expected = dict(expected)
        self._result: dict[str, torch.Tensor] = {}

    def take(self, key: str) -> torch.Tensor:
        """Use up the official tensor `key`."""
        try:
            return self._source.pop(key)
        except KeyError:
            raise ConversionError(f"{self.name}: the checkpoint lacks the tensor {key!r}.") from None

    def put(self, key: str, value: torch.Tensor, source: str) -> None:
        """Set our parameter `key`; linear layers take the weights of 1x1 convolutions, and the other way round."""
        if key not in self._expected or key in self._result:
            raise ConversionError(f"{self.name}: the tensor {source!r} has no place in a model of this configuration.")
        shape = self._expected[key].shape
        if value.shape != shape:
            if _without_trailing_ones(value.shape) != _without_trailing_ones(shape):
                raise ConversionError(
                    f"{self.name}: the tensor {source!r} has shape {tuple(value.shape)}; the configuration asks for "
                    f"{tuple(shape)}."
                )
            value = value.reshape(shape)
        self._result[key] = value.contiguous()

    def move(self, source: str, target: str, transform: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        """Our parameter `target` is the official tensor `source`, after `transform`."""
        value = self.take(source)
        self.put(target, transform(value) if transform is not None else value, source)

    def layer(self, source: str, target: str) -> None:
        """Weight, and bias where our layer has one, of the official layer `source`."""
        found = [key for key in (f"{target}.weight", f"{target}.bias") if key in self._expected]
        if not found:
            raise ConversionError(f"{self.name}: the layer {source!r} has no place in a model of this configuration.")
        for key in found:
            self.move(source + key[len(target) :], key)

    def block(self, source: str, target: str, table: Mapping[str, str]) -> None:
        """The layers of a block; `table` gives our layer's name for each official one. Layers that our block does not
        have are skipped here, and found by `finish` if the checkpoint has them."""
        for official, ours in table.items():
            if f"{target}.{ours}.weight" in self._expected:
                self.layer(f"{source}.{official}", f"{target}.{ours}")

    def finish(self) -> dict[str, torch.Tensor]:
        """The complete state dict.

        Raises:
            ConversionError: a parameter of ours has not been set, or an official tensor has not been used.
        """
        missing = [key for key in self._expected if key not in self._result]
        if missing:
            raise ConversionError(f"{self.name}: the checkpoint gives no value for {_listing(missing)}.")
        if self._source:
            raise ConversionError(
                f"{self.name}: the configuration has no use for the tensors {_listing(self._source)}."
            )
        return self._result


def _without_trailing_ones(shape: torch.Size) -> tuple[int, ...]:
    shape = tuple(shape)
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _listing(names) -> str:
    names = list(names)
    listed = ", ".join(names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"
