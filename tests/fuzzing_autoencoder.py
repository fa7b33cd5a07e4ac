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
"""Calls of the autoencoder and its fields, right and wrong, and what a right one must return."""

import math
from typing import Any

import torch
from fuzzing_pipelines import pipeline
from fuzzing_verdicts import Call, check_field, check_tensor, expected_error, other_shapes, tensor
from hypothesis import strategies as st

from diffusers_ddmi import AutoencoderD2C


BATCHES = st.integers(1, 2)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16])
OPERATIONS = ("encode", "decode", "field", "forward")


def right_data(vae: AutoencoderD2C, batch: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of what the encoder takes."""
    config = vae.config
    sides = st.integers(1, 4).map(lambda cells: 4 * cells)
    return {
        "image": st.tuples(st.just(batch), st.just(3), sides, sides),
        "shape": st.tuples(st.just(batch), st.integers(1, 50), st.just(3)),
        "nerf": st.tuples(st.just(batch), st.integers(1, 50), st.just(6)),
        "video": st.just((batch, 3, config.num_frames, config.sample_size, config.sample_size)),
    }[config.modality]


def wrong_data(vae: AutoencoderD2C) -> st.SearchStrategy:
    native = {"image": (2, 3, 8, 8), "shape": (2, 9, 3), "nerf": (2, 9, 6), "video": (2, 3, 4, 32, 32)}
    shape = native[vae.config.modality]
    points = vae.config.modality in ("shape", "nerf")  # of which there may be any number
    other = other_shapes(shape).filter(
        lambda s: len(s) != len(shape) or s[2 if points else 1 :] != shape[2 if points else 1 :]
    )
    empty = [(0, *shape[1:]), (2, 0, shape[2]) if points else (*shape[:-1], 0)]
    return st.one_of(other.map(tensor), st.sampled_from([tensor(s) for s in empty]), not_floating(shape))


def right_latents(vae: AutoencoderD2C, batch: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Latent images may have any size."""
    if vae.config.modality == "image":
        return st.tuples(st.just(batch), st.just(vae.config.latent_channels), st.integers(1, 6), st.integers(1, 6))
    return st.just((batch, *vae.latent_shape))


def wrong_latents(vae: AutoencoderD2C) -> st.SearchStrategy:
    shape = (2, *vae.latent_shape)
    channels, tokens = shape[1], shape[2:]
    shapes = [shape[1:], (*shape, 1), (2, channels + 1, *tokens), (2, 2 * channels, *tokens), (0, *shape[1:]), ()]
    shapes.append((*shape[:-1], 0))
    return st.one_of(st.sampled_from(shapes).map(tensor), not_floating(shape))


def not_floating(shape: tuple[int, ...]) -> st.SearchStrategy:
    values = tensor(shape)
    return st.sampled_from([values.long(), values.bool(), values.to(torch.complex64), values.numpy(), None, 3.0, "x"])


def right_coordinates(vae: AutoencoderD2C, batch: int) -> st.SearchStrategy[tuple[int, ...]]:
    axes = len(vae.decoder.config.axes)
    points = st.integers(0, 6)
    return st.one_of(
        points.map(lambda n: (n, axes)), points.map(lambda n: (batch, n, axes)), points.map(lambda n: (1, n, axes))
    )


def wrong_coordinates(vae: AutoencoderD2C) -> st.SearchStrategy:
    axes = len(vae.decoder.config.axes)
    shapes = [(4, axes + 1), (4, axes - 1), (7, 4, axes), (axes,), (), (1, 1, 4, axes), (0,)]
    return st.one_of(st.sampled_from(shapes).map(tensor), not_floating((4, axes)))


def wrong_scales(vae: AutoencoderD2C) -> st.SearchStrategy:
    if not vae.readout.uses_scale:
        return st.sampled_from([1.0, 1, torch.ones(1)])
    values = [
        0,
        -1.0,
        math.nan,
        math.inf,
        "one",
        torch.zeros(1),
        torch.ones(7),
        [1.0, "one"],
        torch.ones(1, 7),
        1j,
    ]
    return st.sampled_from(values)


def wrong_directions(vae: AutoencoderD2C) -> st.SearchStrategy:
    values = (
        [tensor((4, 3))] if not vae.readout.uses_directions else [None, tensor((4, 2)), tensor((9, 3)), [[0.0, 0, 1]]]
    )
    return st.sampled_from(values)


@st.composite
def autoencoder_calls(draw, modality: str) -> Call:
    """A call of `encode`, `decode`, `forward` or of a decoded field, half of them with one wrong argument."""
    vae = pipeline(modality, False).vae
    operation, batch = draw(st.sampled_from(OPERATIONS)), draw(BATCHES)

    def given_shape(shapes: st.SearchStrategy) -> torch.Tensor:
        return tensor(draw(shapes), draw(DTYPES))

    arguments: dict[str, Any] = {"operation": operation, "slicing": draw(st.booleans())}
    wrong = {}
    if operation in ("encode", "forward"):
        # a module's `forward` is called in its own dtype
        arguments["x"] = tensor(
            draw(right_data(vae, batch)), torch.float32 if operation == "forward" else draw(DTYPES)
        )
        wrong["x"] = wrong_data(vae)
    if operation in ("decode", "field"):
        arguments["z"] = given_shape(right_latents(vae, batch))
        wrong["z"] = wrong_latents(vae)
    if operation in ("field", "forward"):
        arguments["coords"] = given_shape(right_coordinates(vae, batch))
        arguments["directions"] = None
        if vae.readout.uses_directions:
            arguments["directions"] = torch.nn.functional.normalize(
                tensor((*arguments["coords"].shape[:-1], 3)), dim=-1
            )
        scales = st.one_of(st.floats(0.1, 4), st.integers(1, 3), st.just(torch.ones(batch)), st.just([0.5] * batch))
        arguments["scale"] = draw(st.one_of(st.none(), scales)) if vae.readout.uses_scale else None
        wrong |= {"coords": wrong_coordinates(vae), "scale": wrong_scales(vae), "directions": wrong_directions(vae)}
    names = draw(st.lists(st.sampled_from(sorted(wrong)), max_size=1))
    arguments |= {name: draw(wrong[name]) for name in names}
    return Call(vae, arguments, names, batch)


def check_autoencoder_call(call: Call) -> None:
    arguments, vae = call.arguments, call.target
    vae.use_slicing = arguments["slicing"]
    reading = {name: arguments.get(name) for name in ("directions", "scale")}
    try:
        with expected_error(call), torch.no_grad():
            match arguments["operation"]:
                case "encode":
                    result = vae.encode(arguments["x"]).latent_dist.sample()
                case "decode":
                    result = vae.decode(arguments["z"]).field
                case "field":
                    result = vae.decode(arguments["z"]).field(arguments["coords"], **reading)
                case "forward":
                    result = vae(arguments["x"], arguments["coords"], **reading).sample
        if not call.wrong:
            check_result(call, result)
    finally:
        vae.use_slicing = False


def check_result(call: Call, result: Any) -> None:
    arguments, vae = call.arguments, call.target
    if arguments["operation"] == "decode":
        check_field(result, call.samples)
    elif arguments["operation"] == "encode":
        shape = vae.latent_shape
        if vae.config.modality == "image":
            shape = (vae.config.latent_channels, *(side // 4 for side in arguments["x"].shape[2:]))
        check_tensor(result, (call.samples, *shape))
    else:
        check_tensor(result, (call.samples, arguments["coords"].shape[-2], result.shape[-1]))
