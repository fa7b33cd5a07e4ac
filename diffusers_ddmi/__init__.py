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
"""DDMI (arXiv 2401.12517) in Hugging Face diffusers: latent diffusion of images, shapes, videos and radiance fields as
continuous functions.

Importing this package makes its models and pipelines loadable by `diffusers.DiffusionPipeline.from_pretrained`.
"""

from . import registration
from .models import AutoencoderD2C, BasisFieldDecoder, BasisFields, NeuralField, PlaneLayout
from .models.unet_planes import MixedUNet2DModel, PlanesUNet2DModel
from .outputs import (
    D2CDecoderOutput,
    D2COutput,
    DDMIImagePipelineOutput,
    DDMINeRFPipelineOutput,
    DDMIShapePipelineOutput,
    DDMIVideoPipelineOutput,
)
from .pipelines import DDMIImagePipeline, DDMINeRFPipeline, DDMIPipeline, DDMIShapePipeline, DDMIVideoPipeline
from .registration import ConfigMixin, ModelMixin, SchedulerMixin  # noqa: F401 (diffusers looks base classes up here)


__version__ = "0.1.0"

__all__ = [
    "AutoencoderD2C",
    "BasisFieldDecoder",
    "BasisFields",
    "D2CDecoderOutput",
    "D2COutput",
    "DDMIImagePipeline",
    "DDMIImagePipelineOutput",
    "DDMINeRFPipeline",
    "DDMINeRFPipelineOutput",
    "DDMIPipeline",
    "DDMIShapePipeline",
    "DDMIShapePipelineOutput",
    "DDMIVideoPipeline",
    "DDMIVideoPipelineOutput",
    "MixedUNet2DModel",
    "NeuralField",
    "PlaneLayout",
    "PlanesUNet2DModel",
]

registration.register(
    [
        AutoencoderD2C,
        BasisFieldDecoder,
        MixedUNet2DModel,
        PlanesUNet2DModel,
        DDMIPipeline,
        DDMIImagePipeline,
        DDMIShapePipeline,
        DDMIVideoPipeline,
        DDMINeRFPipeline,
    ]
)
