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
"""The official checkpoints of the fixtures, unpacked and converted once."""

import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_ddmi.conversion import convert


FIXTURES = Path(__file__).parents[1] / "fixtures"
DOMAINS = ("image", "occupancy", "video", "nerf")


@pytest.fixture(scope="session")
def official(tmp_path_factory) -> Path:
    """A folder with one folder for each domain: ldm-last.pt, config.yaml, golden.safetensors, ..."""
    folder = tmp_path_factory.mktemp("official")
    for name in ("official_checkpoints", "official_tensors"):
        with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


class Converted:
    """Pipeline folders and golden tensors of the four domains, each made when first asked for."""

    def __init__(self, official: Path, folder: Path):
        self.official = official
        self.folder = folder

    def path(self, domain: str) -> Path:
        path = self.folder / f"ddmi-{domain}"
        if not path.exists():
            convert(self.official / domain / "ldm-last.pt", self.official / domain / "config.yaml", path)
        return path

    def golden(self, domain: str) -> dict[str, torch.Tensor]:
        return load_file(self.official / domain / "golden.safetensors")


@pytest.fixture(scope="session")
def converted(official, tmp_path_factory) -> Converted:
    return Converted(official, tmp_path_factory.mktemp("converted"))
