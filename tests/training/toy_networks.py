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
"""A feature extractor that needs no weights, and that can end the process it runs in."""

import os
import signal

import torch
from torch import nn


class Means(nn.Module):
    """Mean and standard deviation of each colour. With the environment variable KILL_AT_CALL=n, call n is its last."""

    calls = 0

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        Means.calls += 1
        if Means.calls == int(os.environ.get("KILL_AT_CALL", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        signals = signals.flatten(2)
        return torch.cat([signals.mean(2), signals.std(2)], dim=1)


class NoModule:
    pass
