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
"""Fixtures of all tests."""

import pytest
import torch
from tiny import tiny_pipeline


@pytest.fixture
def make_pipeline(tmp_path):
    """`make_pipeline(modality, text=False)`: the same weights at every call."""
    return lambda modality, text=False: tiny_pipeline(modality, tmp_path, text)


@pytest.fixture
def seeded():
    """`seeded(seed)`: a generator on the CPU."""
    return lambda seed=0: torch.Generator().manual_seed(seed)
