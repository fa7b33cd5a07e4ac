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
"""Calls the public API with arguments of all sorts, right and wrong, and judges what comes back.

Every call is drawn together with the verdict that it deserves. With right arguments alone it must succeed, and its
result have the shape, type and range that the documentation promises. With a wrong one it must raise `ValueError` or
`TypeError` from this package's own code, not from the depths of a library, and the message must name the argument and
show its value or its shape.

    python tests/fuzzing.py --examples 2000
"""

import argparse
import collections
import sys
import time
import warnings
from collections.abc import Callable

import torch
from fuzzing_autoencoder import autoencoder_calls, check_autoencoder_call
from fuzzing_pipelines import check_pipeline_call, pipeline_calls
from fuzzing_verdicts import Call
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st


MODALITIES = ("image", "shape", "video", "nerf")
TARGETS: dict[str, tuple[st.SearchStrategy[Call], Callable[[Call], None]]] = {
    **{f"{modality} pipeline": (pipeline_calls(modality), check_pipeline_call) for modality in MODALITIES},
    **{f"{modality} autoencoder": (autoencoder_calls(modality), check_autoencoder_call) for modality in MODALITIES},
}


def fuzz(target: str, examples: int, start: int) -> tuple[int, dict[str, Call]]:
    """Judges `examples` calls of a target. Returns how many were right, and one call for each kind of fault."""
    calls, check = TARGETS[target]
    right, faults = 0, {}

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(calls)
    def judge(call: Call) -> None:
        nonlocal right
        right += not call.wrong
        try:
            check(call)
        except Exception as error:  # anything: what is looked for is what nobody has thought of
            faults.setdefault(f"{type(error).__name__}: {error}", call)

    judge()
    return right, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, help="Calls in all, shared among the targets.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=list(TARGETS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="__array", category=DeprecationWarning)  # diffusers with numpy 2
    each = -(-args.examples // len(args.targets))
    found = collections.Counter()
    for target in args.targets:
        begun = time.monotonic()
        right, faults = fuzz(target, each, args.seed)
        found[target] = len(faults)
        print(
            f"{target}: {each} calls, {right} right, {len(faults)} faults, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        for message, call in faults.items():
            print(f"    {message}\n        {call}", flush=True)
    sys.exit(found.total() > 0)


if __name__ == "__main__":
    main()
