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
"""The one table of what differs between modalities: planes, encoder, read-out, bounds and the names of values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Modality:
    """One row.

    Args:
        axes: coordinate names in the order of a coordinate's last axis.
        planes: latent planes (see [`~models.planes.PlaneLayout`]).
        fixed_axes: axes that the networks never resample.
        encoder: `"pixels"`, `"points"` or `"frames"`: what turns data into planes.
        readout: `"styled"`, `"residual"` or `"radiance"`: the class of the MLP π.
        reduction: how the embeddings of several planes become one, `"sum"` or `"concat"`.
        plane_mixing: how planes exchange information in the networks, `None`, `"convolution"` or `"attention"`.
        bounds: `(low, high)` of every axis, where the signal lives.
        extent: `(low, high)` that the planes span; wider than the bounds where the signal needs a margin.
        align_corners: whether an extent's ends are the centres of the outermost cells (else their outer edges).
        values: names of the read-out's output channels.
        in_channels: channels of a pixel, or numbers of a point, that the encoder takes.
        readout_config: the read-out's arguments where they differ from its own defaults.
    """

    name: str
    axes: str
    planes: tuple[str, ...]
    encoder: str
    readout: str
    reduction: str
    plane_mixing: str | None
    bounds: tuple[float, float]
    extent: tuple[float, float]
    align_corners: bool
    values: tuple[str, ...]
    in_channels: int
    fixed_axes: str = ""
    readout_config: dict[str, Any] = field(default_factory=dict)


# ConvONet's padding of 0.1 around the unit cube, and its guard against the last cell's edge (OccupancyNetworks
# `normalize_coordinate`): p / (1 + 0.1 + 1e-5).
_PADDED_UNIT_CUBE = (-0.550005, 0.550005)
_TRIPLANE = ("xy", "xz", "yz")
_RGB = ("red", "green", "blue")

MODALITIES: dict[str, Modality] = {
    row.name: row
    for row in (
        Modality(
            name="image",
            axes="xy",
            planes=("xy",),
            encoder="pixels",
            readout="styled",
            reduction="concat",
            plane_mixing=None,
            bounds=(-1.0, 1.0),
            extent=(-1.0, 1.0),
            align_corners=False,
            values=_RGB,
            in_channels=3,
        ),
        Modality(
            name="shape",
            axes="xyz",
            planes=_TRIPLANE,
            encoder="points",
            readout="residual",
            reduction="sum",
            plane_mixing="convolution",
            bounds=(-0.5, 0.5),
            extent=_PADDED_UNIT_CUBE,
            align_corners=True,
            values=("occupancy_logit",),
            in_channels=3,
            readout_config={"coordinate_channels": 3},
        ),
        Modality(
            name="video",
            axes="xyt",
            planes=("xy", "xt", "yt"),
            encoder="frames",
            readout="residual",
            reduction="concat",
            plane_mixing="attention",
            bounds=(-1.0, 1.0),
            extent=(-1.0, 1.0),
            align_corners=False,
            values=_RGB,
            in_channels=3,
            fixed_axes="t",
            readout_config={"final_slope": 0.2},
        ),
        Modality(
            name="nerf",
            axes="xyz",
            planes=_TRIPLANE,
            encoder="points",
            readout="radiance",
            reduction="concat",
            plane_mixing="convolution",
            bounds=(-0.5, 0.5),
            extent=_PADDED_UNIT_CUBE,
            align_corners=True,
            values=(*_RGB, "density"),
            in_channels=6,
        ),
    )
}


def get_modality(name: str) -> Modality:
    """The row called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in MODALITIES:
        raise ValueError(f"Unknown modality {name!r}: expected one of {', '.join(MODALITIES)}.")
    return MODALITIES[name]
