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
"""Calls of the pipelines, right and wrong, and what a right one must return."""

import math
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import trimesh
from fuzzing_verdicts import Call, Fault, check_field, check_tensor, expected_error, generator, other_shapes, tensor
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_pipeline

from diffusers_ddmi import DDMIPipeline
from diffusers_ddmi.rendering.cameras import Cameras


MODALITIES = ("image", "shape", "video", "nerf")
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
UNFIT_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler")

TEXT_ARGUMENTS = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")
COUNTS = st.integers(1, 2)
NO_COUNT = st.sampled_from([0, -1, 2.5, 2.0, "2", math.nan, math.inf, True, (2,), None])
NO_SIZE = st.sampled_from([0, -8, 7.5, 8.0, "8", math.nan, math.inf, True, [8]])
NO_NUMBER = st.sampled_from([math.nan, math.inf, "half", [0.5], 1j])


@cache
def pipeline(modality: str, text: bool) -> DDMIPipeline:
    with tempfile.TemporaryDirectory() as folder:
        return tiny_pipeline(modality, Path(folder), text)


Strategies = dict[str, st.SearchStrategy]


def shared_arguments(pipe: DDMIPipeline, samples: int) -> tuple[Strategies, Strategies]:
    """Right and wrong values of the arguments that all pipelines have, but for those of text."""
    shape = (samples, *pipe.vae.latent_shape)
    right = {
        "num_inference_steps": COUNTS,
        "guidance_scale": st.floats(-1, 20),
        "eta": st.floats(0, 1),
        "generator": st.sampled_from([None, generator(), [generator() for _ in range(samples)]]),
        "latents": st.sampled_from([None, *(tensor(shape, d) for d in (torch.float32, torch.float64, torch.float16))]),
        "output_type": st.sampled_from(pipe.output_types),
        "callback_on_step_end": st.sampled_from([None, lambda pipe, step, timestep, tensors: tensors]),
        "callback_on_step_end_tensor_inputs": st.sampled_from([["latents"], ["latents", "prompt_embeds"]]),
        "scheduler": st.sampled_from(SCHEDULERS),
    }
    wrong = {
        "batch_size": NO_COUNT,
        "num_inference_steps": st.one_of(NO_COUNT, st.integers(1001, 10_000)),
        "guidance_scale": st.one_of(NO_NUMBER, st.none()),
        "eta": st.one_of(NO_NUMBER, st.none(), st.sampled_from([-0.5, 1.5])),
        "generator": st.sampled_from(
            [0, "cpu", [], [generator()] * (samples + 1), [0] * samples, (generator(),) * samples, [None] * samples]
        ),
        "latents": st.one_of(
            other_shapes(shape).map(tensor),
            st.sampled_from(
                [
                    tensor(shape).numpy(),
                    tensor(shape).tolist(),
                    tensor(shape, torch.int64),
                    tensor(shape, torch.complex64),
                    tensor(shape) * math.nan,
                ]
            ),
        ),
        "output_type": st.sampled_from(["PIL", "jpeg", "", None, 3, ["pt"]]),
        "callback_on_step_end": st.sampled_from([3, "print", [print]]),
        "callback_on_step_end_tensor_inputs": st.sampled_from([["noise"], "latents", [3], 3]),
        "scheduler": st.sampled_from(UNFIT_SCHEDULERS),
    }
    return right, wrong


def wrong_text(pipe: DDMIPipeline) -> Strategies:
    if not pipe.takes_text:
        embeddings = tensor((1, 4, 16))
        return {
            "prompt": st.sampled_from(["a", ["a"], "", 3]),
            "prompt_embeds": st.just(embeddings),
            "negative_prompt": st.sampled_from(["a", ["a"]]),
            "negative_prompt_embeds": st.just(embeddings),
        }
    shape = tuple(text_embeddings(pipe, 1).shape)
    no_embeddings = st.one_of(
        other_shapes(shape).filter(lambda other: len(other) != 3 or other[2] != shape[2]).map(tensor),
        st.sampled_from(["a", tensor(shape).numpy(), tensor(shape, torch.int64), 3]),
    )
    return {
        "prompt": st.sampled_from([[], [3], 3, ("a", "b"), ["a", None], b"a", [["a"]]]),
        "prompt_embeds": no_embeddings,
        "negative_prompt": st.sampled_from([[], 3, ["a"] * 7, [3], b"a"]),
        "negative_prompt_embeds": no_embeddings,
    }


@cache
def text_embeddings(pipe: DDMIPipeline, prompts: int) -> torch.Tensor:
    with torch.no_grad():
        return pipe.encode_prompt(["a"] * prompts, do_classifier_free_guidance=False)[0]


def text_clashes(pipe: DDMIPipeline) -> list[dict[str, Any]]:
    """Embeddings with another number of tokens than what guidance compares them with."""
    if not pipe.takes_text:
        return []
    _, tokens, channels = text_embeddings(pipe, 1).shape
    longer = tensor((1, tokens + 1, channels))
    return [
        {"prompt_embeds": longer, "guidance_scale": 2.0},
        {"prompt": "a", "negative_prompt_embeds": longer, "guidance_scale": 2.0},
        {"prompt_embeds": longer, "negative_prompt_embeds": longer[:, 1:], "guidance_scale": 2.0},
    ]


@st.composite
def right_text(draw, pipe: DDMIPipeline) -> tuple[dict[str, Any], int]:
    """Arguments of text that fit each other, and the number of prompts."""
    form = draw(st.sampled_from(["none", "text", "list", "embeddings"])) if pipe.takes_text else "none"
    if form == "none":
        return {}, 1
    count = 1 if form == "text" else draw(COUNTS)
    words = st.text(max_size=40)
    arguments = {
        "text": lambda: {"prompt": draw(words)},
        "list": lambda: {"prompt": draw(st.lists(words, min_size=count, max_size=count))},
        "embeddings": lambda: {"prompt_embeds": text_embeddings(pipe, count)},
    }[form]()
    negative = draw(st.sampled_from(["none", "text", "list", "embeddings"]))
    if negative == "text":
        arguments["negative_prompt"] = draw(words)
    elif negative == "list":
        arguments["negative_prompt"] = draw(st.lists(words, min_size=count, max_size=count))
    elif negative == "embeddings":
        arguments["negative_prompt_embeds"] = text_embeddings(pipe, count)
    return arguments, count


REGIONS = st.tuples(st.floats(-1, -0.1), st.floats(-1, -0.1), st.floats(0, 1), st.floats(0, 1))
NO_REGION = st.sampled_from(
    [
        (0, 0, 1),
        (0.5, 0, 0.4, 1),
        (0, 0, 0, 1),
        (-2, -1, 1, 1),
        (math.nan, 0, 1, 1),
        (0, 0, 1, math.inf),
        "left",
        3,
        (None,) * 4,
    ]
)


def image_arguments(pipe: DDMIPipeline, samples: int) -> tuple[Strategies, Strategies]:
    region = st.one_of(st.none(), REGIONS, REGIONS.map(list), REGIONS.map(torch.tensor), REGIONS.map(np.array))
    right = {"height": st.integers(1, 40), "width": st.integers(1, 40), "region": region}
    wrong = {"height": NO_SIZE, "width": NO_SIZE, "region": NO_REGION}
    return right, wrong | ({"num_images_per_prompt": NO_COUNT} if pipe.modality == "image" else {})


def video_arguments(pipe: DDMIPipeline, samples: int) -> tuple[Strategies, Strategies]:
    right, wrong = image_arguments(pipe, samples)
    right |= {
        "num_frames": st.one_of(st.none(), st.integers(1, 5)),
        "time_range": st.one_of(st.none(), st.tuples(st.floats(-1, -0.1), st.floats(0, 1))),
    }
    wrong |= {
        "num_frames": NO_SIZE,
        "time_range": st.sampled_from([(0,), (0.5, 0.4), (-2, 0), (0, math.nan), "all", 3]),
        "times": st.sampled_from([[], [2.0], [math.nan], "now", [[0.0]], ["now"], [None], {}]),
    }
    return right, wrong


def shape_arguments(pipe: DDMIPipeline, samples: int) -> tuple[Strategies, Strategies]:
    right = {
        "resolution": st.integers(2, 20),
        "level": st.floats(0.01, 0.99),
        "simplify": st.one_of(st.none(), st.integers(4, 400), st.floats(0.1, 0.9)),
    }
    return right, {
        "resolution": st.one_of(NO_SIZE, st.sampled_from([1, 1025])),
        "level": st.one_of(NO_NUMBER, st.sampled_from([0, 1, -0.5, 1.5]), st.none()),
        "simplify": st.sampled_from([0, 3, -5, 1.5, 1.0, math.nan, "half", True, [4]]),
    }


def nerf_arguments(pipe: DDMIPipeline, samples: int) -> tuple[Strategies, Strategies]:
    extraction = [arguments.copy() for arguments in shape_arguments(pipe, samples)]
    for arguments in extraction:
        del arguments["simplify"]
    right = extraction[0] | {
        "cameras": st.one_of(st.none(), st.builds(Cameras.orbit, COUNTS, height=st.integers(1, 8), width=st.just(8))),
        "height": st.integers(1, 12),
        "width": st.integers(1, 12),
        "num_samples": st.integers(2, 8),
        "background": st.one_of(st.none(), st.floats(0, 1)),
    }
    return right, extraction[1] | {
        "cameras": st.sampled_from([3, "orbit", torch.eye(4)]),
        "num_views": NO_SIZE,
        "height": NO_SIZE,
        "width": NO_SIZE,
        "num_samples": st.one_of(NO_SIZE, st.none(), st.just(1)),
        "background": st.one_of(NO_NUMBER, st.sampled_from([-0.1, 1.1, "white", (1, 1, 1)])),
    }


ARGUMENTS = {
    "image": image_arguments,
    "shape": shape_arguments,
    "video": video_arguments,
    "nerf": nerf_arguments,
}
# modality -> arguments, each right, that exclude each other
CLASHES = {
    "image": [],
    "shape": [],
    "video": [{"times": [0.0], "num_frames": 2}, {"times": [0.0], "time_range": (0.0, 1.0)}],
    "nerf": [{"cameras": Cameras.orbit(2), "num_views": 2}],
}


@st.composite
def pipeline_calls(draw, modality: str) -> Call:
    """A call of a pipeline, half of them with something wrong."""
    pipe = pipeline(modality, draw(st.booleans()))
    arguments, prompts = draw(right_text(pipe))
    arguments["batch_size"] = draw(COUNTS)
    samples = prompts * arguments["batch_size"]
    if modality == "image":
        arguments["num_images_per_prompt"] = draw(COUNTS)
        samples *= arguments["num_images_per_prompt"]
    if modality == "video" and draw(st.booleans()):
        times = draw(st.lists(st.floats(-1, 1), min_size=1, max_size=4))
        arguments["times"] = draw(st.sampled_from([times, tuple(times), torch.tensor(times), np.array(times)]))
    right, wrong = shared_arguments(pipe, samples)
    for strategies, own in zip((right, wrong), ARGUMENTS[modality](pipe, samples)):
        strategies |= own
    for name in draw(st.lists(st.sampled_from(sorted(right)), unique=True)):
        arguments[name] = draw(right[name])
    if "times" in arguments:
        arguments.pop("num_frames", None), arguments.pop("time_range", None)
    if modality == "nerf":  # small, unless it is said otherwise
        arguments = {"num_samples": 8, "height": 8, "width": 8, "num_views": 2, "resolution": 16, **arguments}
        if arguments.get("cameras") is not None:
            del arguments["num_views"]
    if modality == "shape":
        arguments = {"resolution": 16, **arguments}
    arguments = {"num_inference_steps": 2, **arguments}
    if arguments.get("scheduler") == "PNDMScheduler":
        arguments["num_inference_steps"] += 4  # its Runge-Kutta steps are made of four

    kind = draw(st.sampled_from(["right", "wrong", "two wrong", "clash"]))
    clashes = [*CLASHES[modality], *text_clashes(pipe)]
    if kind == "clash" and clashes:
        clash = draw(st.sampled_from(clashes))
        for name in TEXT_ARGUMENTS if "guidance_scale" in clash else ():
            arguments.pop(name, None)
        return Call(pipe, {**arguments, **clash}, sorted(clash), samples, clash=True)
    names = []
    if kind != "right":
        wrong |= wrong_text(pipe)
        count = 2 if kind == "two wrong" else 1
        names = draw(st.lists(st.sampled_from(sorted(wrong)), min_size=count, max_size=count, unique=True))
        arguments |= {name: draw(wrong[name]) for name in names}
        for name, other in (("prompt", "prompt_embeds"), ("prompt_embeds", "prompt")):
            if name in names and other not in names:
                arguments.pop(other, None)
    return Call(pipe, arguments, names, samples)


def check_pipeline_call(call: Call) -> None:
    arguments = dict(call.arguments)
    pipe = call.target
    original = pipe.scheduler
    torch.manual_seed(0)
    try:
        if "scheduler" in arguments:
            cls = getattr(diffusers, arguments.pop("scheduler"))
            # the others follow the pipeline's noise schedule, these have none
            pipe.scheduler = cls() if cls.__name__ in UNFIT_SCHEDULERS else cls.from_config(original.config)
        with warnings.catch_warnings(), expected_error(call):
            warnings.filterwarnings("ignore", message="Field .* (its mesh is empty|is not watertight|keeps .* faces)")
            output = pipe(**arguments)
        if not call.wrong:
            check_output(pipe, call, output)
    finally:
        pipe.scheduler = original


def check_output(pipe: DDMIPipeline, call: Call, output: Any) -> None:
    if type(output) is not pipe.output_class:
        raise Fault(f"{type(output).__name__} instead of {pipe.output_class.__name__}")
    values, arguments = output[0], call.arguments
    default = {"shape": "trimesh"}.get(pipe.modality, "pil")
    form = arguments.get("output_type", default)
    if form == "latent":
        check_tensor(values, (call.samples, *pipe.vae.latent_shape))
    elif form == "field":
        check_field(values, call.samples)
    elif form in ("trimesh", "mesh"):
        check_meshes(values, call.samples)
    else:
        height, width = sizes(pipe, arguments)
        frames = {"image": lambda *_: [], "video": moments, "nerf": views}[pipe.modality](pipe, arguments)
        check_pixels(values, form, [call.samples, *frames], height, width)
        if pipe.modality == "nerf":
            for extra in (output.depth, output.opacity):
                check_tensor(extra, (call.samples, *frames, height, width))


def sizes(pipe: DDMIPipeline, arguments: dict[str, Any]) -> tuple[int, int]:
    cameras = arguments.get("cameras")
    size = pipe.vae.config.sample_size
    default = (size, size) if cameras is None else (cameras.height, cameras.width)
    return arguments.get("height", default[0]), arguments.get("width", default[1])


def moments(pipe: DDMIPipeline, arguments: dict[str, Any]) -> list[int]:
    if "times" in arguments:
        return [len(arguments["times"])]
    return [arguments.get("num_frames") or pipe.vae.config.num_frames]


def views(pipe: DDMIPipeline, arguments: dict[str, Any]) -> list[int]:
    cameras = arguments.get("cameras")
    return [arguments["num_views"] if cameras is None else len(cameras)]


def check_meshes(meshes: Any, samples: int) -> None:
    if not isinstance(meshes, list) or [type(mesh) for mesh in meshes] != [trimesh.Trimesh] * samples:
        raise Fault(f"Expected a list of {samples} meshes, got {meshes}")
    if not all(np.isfinite(mesh.vertices).all() for mesh in meshes):
        raise Fault("A vertex is not finite")


def check_pixels(values: Any, form: str, leading: list[int], height: int, width: int) -> None:
    if form == "pil":
        for count in leading:
            if not isinstance(values, list) or len(values) != count:
                raise Fault(f"Expected a list of {count}, got {type(values)}")
            values = values[0]
        if not isinstance(values, Image.Image) or values.size != (width, height) or values.mode != "RGB":
            raise Fault(f"Expected an image of {width}x{height} pixels, got {values}")
        return
    if (form == "np") != isinstance(values, np.ndarray):
        raise Fault(f"Expected {form}, got {type(values)}")
    values = torch.as_tensor(values)
    check_tensor(values, (*leading, height, width, 3) if form == "np" else (*leading, 3, height, width))
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise Fault("A pixel is outside of [0, 1]")
