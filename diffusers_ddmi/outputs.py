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
"""What models and pipelines return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


if TYPE_CHECKING:
    import trimesh

    from .models.field import NeuralField


@dataclass
class D2CDecoderOutput(BaseOutput):
    """
    Args:
        field: the decoded signals, one batched function of coordinates.
    """

    field: NeuralField


@dataclass
class D2COutput(BaseOutput):
    """
    Args:
        sample: the signals' values at the queried coordinates, `(batch, points, channels)`.
        posterior: the distribution of the packed latents.
    """

    sample: torch.Tensor
    posterior: Any = None  # accelerate rebuilds outputs from one dict, which needs defaults


@dataclass
class DDMIImagePipelineOutput(BaseOutput):
    """
    Args:
        images: PIL images, an array `(batch, height, width, 3)` in [0, 1], a tensor `(batch, 3, height, width)` in
            [0, 1], a `NeuralField`, or packed latents, as `output_type` asks.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | NeuralField


@dataclass
class DDMIShapePipelineOutput(BaseOutput):
    """
    Args:
        meshes: `trimesh.Trimesh` objects, a `NeuralField`, or packed latents, as `output_type` asks.
    """

    meshes: list[trimesh.Trimesh] | NeuralField | torch.Tensor


@dataclass
class DDMIVideoPipelineOutput(BaseOutput):
    """
    Args:
        frames: a list of PIL images a video, an array `(batch, frames, height, width, 3)` in [0, 1], a tensor
            `(batch, frames, 3, height, width)` in [0, 1], a `NeuralField`, or packed latents, as `output_type` asks.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor | NeuralField


@dataclass
class DDMINeRFPipelineOutput(BaseOutput):
    """
    Args:
        frames: the views of each scene: a list of PIL images, an array `(batch, views, height, width, 3)` in [0, 1],
            a tensor `(batch, views, 3, height, width)` in [0, 1], a mesh a scene, a `NeuralField`, or packed latents,
            as `output_type` asks.
        depth: with views, the distance from the camera along each ray, in world units, 0 where there is nothing:
            `(batch, views, height, width)`.
        opacity: with views, in [0, 1], `(batch, views, height, width)`.
    """

    frames: list[list[PIL.Image.Image]] | list[trimesh.Trimesh] | np.ndarray | torch.Tensor | NeuralField
    depth: torch.Tensor | None = None
    opacity: torch.Tensor | None = None
