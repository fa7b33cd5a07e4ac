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
"""A short, always equal version of `fuzzing.py`, and checks that its verdicts would find a fault."""

import pytest
import torch
from fuzzing import MODALITIES, TARGETS
from fuzzing_verdicts import Call, Fault, check_field, expected_error
from hypothesis import HealthCheck, given, settings


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(("kind", "examples"), [("pipeline", 40), ("autoencoder", 60)])
def test_calls(modality, kind, examples):
    calls, check = TARGETS[f"{modality} {kind}"]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls)
    def judge(call: Call) -> None:
        check(call)

    judge()


class TestVerdicts:
    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (None, "Accepted in silence"),
            (RuntimeError("`height` got 0"), "raised RuntimeError"),
            (ValueError("`height` got 0"), "refused late"),  # it is raised here, and not in the package
        ],
    )
    def test_wrong_arguments(self, error, message):
        with pytest.raises(Fault, match=message), expected_error(Call(None, {"height": 0}, ["height"], 1)):
            if error:
                raise error

    def test_right_arguments(self):
        with pytest.raises(Fault, match="refused"), expected_error(Call(None, {"height": 8}, [], 1)):
            raise ValueError("`height` got 8")

    def test_a_field_of_another_batch(self, make_pipeline):
        vae = make_pipeline("image").vae
        with torch.no_grad():
            field = vae.decode(torch.zeros(2, *vae.latent_shape)).field
        check_field(field, 2)
        with pytest.raises(Fault, match="3 signals"):
            check_field(field, 3)
