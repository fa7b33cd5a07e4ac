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
"""π: each read-out against its formula, unfolded and written out here."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusers_ddmi.models.readout import (
    CONDITIONINGS,
    RadianceReadout,
    ResidualReadout,
    StyledReadout,
    sinusoidal_encoding,
)


BATCH, POINTS, CHANNELS, HIDDEN = 3, 7, 6, 16


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturbed(module: nn.Module, amount: float = 0.3) -> nn.Module:
    """With every parameter moved, so that none is 0 or left out unnoticed."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.data.add_(draw(*parameter.shape, seed=seed), alpha=amount)
    return module


def embeddings(num_scales: int, seed: int = 0) -> list[torch.Tensor]:
    return [draw(BATCH, POINTS, CHANNELS, seed=seed + scale) for scale in range(num_scales)]


def unit_directions(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(draw(*shape, seed=seed), dim=-1)


# All read-outs


def readouts(num_scales: int, conditioning: str) -> dict:
    options = {"hidden_channels": HIDDEN, "num_scales": num_scales, "conditioning": conditioning}
    torch.manual_seed(0)
    return {
        "residual": perturbed(ResidualReadout(CHANNELS, 2, coordinate_channels=3, final_slope=0.2, **options)),
        "styled": perturbed(StyledReadout(CHANNELS, 3, **options)),
        "radiance": perturbed(RadianceReadout(CHANNELS, 4, **options)),
    }


def read(readout: nn.Module, inputs: list[torch.Tensor], coords: torch.Tensor, **extra) -> torch.Tensor:
    directions = unit_directions(BATCH, POINTS, 3) if readout.uses_directions else None
    return readout(inputs, coords, readout.prepare(), directions, **extra)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("num_scales", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["residual", "styled", "radiance"])
def test_every_scale_influences_the_values(name, num_scales, conditioning):
    readout = readouts(num_scales, conditioning)[name]
    inputs, coords = embeddings(num_scales), draw(BATCH, POINTS, 3)
    values = read(readout, inputs, coords)
    assert values.shape == (BATCH, POINTS, {"residual": 2, "styled": 3, "radiance": 4}[name])
    assert values.isfinite().all()
    for scale in range(num_scales):
        changed = list(inputs)
        changed[scale] = inputs[scale] + 0.5
        assert (read(readout, changed, coords) - values).abs().amax(dim=(0, 1)).min() > 1e-4


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("name", ["residual", "styled", "radiance"])
def test_every_parameter_is_used(name, conditioning):
    readout = readouts(3, conditioning)[name]
    read(readout, embeddings(3), draw(BATCH, POINTS, 3)).square().sum().backward()
    unused = [name for name, p in readout.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert unused == []


@pytest.mark.parametrize("name", ["residual", "styled", "radiance"])
def test_points_do_not_mix(name):
    readout = readouts(3, "concat")[name]
    inputs, coords = embeddings(3), draw(BATCH, POINTS, 3)
    changed = [embedding.clone() for embedding in inputs]
    for embedding in changed:
        embedding[1, 4] += 1
    difference = (read(readout, changed, coords) - read(readout, inputs, coords)).abs().sum(-1)
    assert (difference > 1e-4).nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize("name", ["residual", "styled", "radiance"])
def test_wrong_number_of_scales(name):
    with pytest.raises(ValueError, match="reads 3 scales, got 2"):
        read(readouts(3, "concat")[name], embeddings(2), draw(BATCH, POINTS, 3))


@pytest.mark.parametrize("readout_class", [ResidualReadout, StyledReadout, RadianceReadout])
def test_unknown_conditioning(readout_class):
    with pytest.raises(ValueError, match=r"'concat', 'sum', 'input'.*got 'mean'"):
        readout_class(CHANNELS, 4, HIDDEN, 2, "mean")


# Residual


def fully_connected(block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """OccupancyNetworks' block."""
    update = block.linear_out(block.linear_in(hidden.relu()).relu())
    return update + (hidden if block.shortcut is None else block.shortcut(hidden))


@pytest.mark.parametrize("slope", [None, 0.2])
@pytest.mark.parametrize("coordinate_channels", [0, 3])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_residual_formula(conditioning, coordinate_channels, slope):
    torch.manual_seed(0)
    readout = perturbed(
        ResidualReadout(
            CHANNELS,
            2,
            HIDDEN,
            num_scales=3,
            conditioning=conditioning,
            coordinate_channels=coordinate_channels,
            final_slope=slope,
        )
    )
    (coarse, middle, fine), coords = embeddings(3), draw(BATCH, POINTS, 3)
    blocks = readout.blocks
    assert len(blocks) == 4
    first = torch.cat([coarse, middle, fine], dim=-1) if conditioning == "input" else coarse
    hidden = fully_connected(blocks[0], first)
    if coordinate_channels:
        hidden = hidden + readout.input_map(coords)
    for index, embedding in enumerate((middle, fine)):
        if conditioning == "concat":
            hidden = torch.cat([hidden, embedding], dim=-1)
        elif conditioning == "sum":
            hidden = hidden + readout.embedding_maps[index](embedding)
        hidden = fully_connected(blocks[index + 1], hidden)
    hidden = fully_connected(blocks[3], hidden)
    expected = readout.out(hidden if slope is None else F.leaky_relu(hidden, slope))
    torch.testing.assert_close(readout([coarse, middle, fine], coords), expected, rtol=1e-5, atol=1e-5)


# Styled


def styled_layer(
    inputs: torch.Tensor, linear: nn.Module, style: torch.Tensor, noise: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """StyleGAN2's modulated convolution on one item's points, (points, channels): scaled inputs, then unit variance."""
    in_channels = linear.weight.shape[1]
    modulation = linear.style_weight / math.sqrt(style.numel()) @ style + linear.style_bias
    weight = linear.weight / math.sqrt(in_channels)
    outputs = (inputs * modulation) @ weight.T
    if linear.demodulate:
        outputs = outputs / ((weight * modulation).square().sum(dim=1) + 1e-8).sqrt()
    return outputs + noise + linear.bias


def styled_values(readout: StyledReadout, inputs: list[torch.Tensor], scale: float, noise=None) -> torch.Tensor:
    """One item's values (points, out), without any folding. Inputs (points, channels) a scale."""
    half = HIDDEN // 8
    frequencies = torch.tensor([10000 ** (-index / (half - 1)) for index in range(half)])
    angles = scale * frequencies
    style = readout.style(torch.cat([angles.sin(), angles.cos()]))
    if readout.conditioning == "input":
        inputs = [torch.cat(inputs, dim=-1)]
    hidden = None
    for number, block in enumerate(readout.blocks):
        constants = torch.full((len(inputs[0]), 2), scale)
        if number == 0:
            hidden = torch.cat([inputs[0], constants], dim=-1)
        elif number < len(inputs) and readout.conditioning == "sum":
            hidden = hidden + readout.embedding_maps[number - 1](inputs[number])
        elif number < len(inputs):
            hidden = torch.cat([hidden, inputs[number], constants], dim=-1)
        update = hidden
        for layer, linear in enumerate(block.linears):
            addend = (
                0.0
                if noise is None
                else readout.noise_weights[3 * number + layer] * noise[:, 3 * number + layer, None]
            )
            update = F.leaky_relu(styled_layer(update, linear, style, addend), 0.2)
            if layer < 2:
                update = update * math.sqrt(2)
        update = update * math.sqrt(2)  # the third layer's gain, which the block's 1/√2 takes back
        shortcut = hidden
        if block.shortcut is not None:
            shortcut = hidden @ (block.shortcut / math.sqrt(block.shortcut.shape[1])).T
        hidden = (update + shortcut) / math.sqrt(2)
    return styled_layer(hidden, readout.out, style)


@pytest.mark.parametrize("scale", [1.0, 0.5, 1 / 1.5])
@pytest.mark.parametrize("num_scales", [1, 2, 3])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_styled_formula(conditioning, num_scales, scale):
    torch.manual_seed(0)
    options = {"hidden_channels": HIDDEN, "num_scales": num_scales, "conditioning": conditioning}
    readout = perturbed(StyledReadout(CHANNELS, 3, **options))
    inputs = embeddings(num_scales)
    values = readout(inputs, draw(BATCH, POINTS, 2), readout.prepare(torch.tensor([scale])))
    expected = torch.stack([styled_values(readout, [part[item] for part in inputs], scale) for item in range(BATCH)])
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_styled_noise():
    torch.manual_seed(0)
    readout = perturbed(StyledReadout(CHANNELS, 3, HIDDEN, noise_injection=True))
    inputs, noise = embeddings(3), draw(BATCH, POINTS, 12, seed=9)
    coords = draw(BATCH, POINTS, 2)
    for scales in ([0.5], [0.5, 1.0, 0.75]):
        values = readout(inputs, coords, readout.prepare(torch.tensor(scales)), noise=noise)
        expected = torch.stack(
            [
                styled_values(readout, [part[item] for part in inputs], scales[item % len(scales)], noise[item])
                for item in range(BATCH)
            ]
        )
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    silent = readout(inputs, coords, readout.prepare())
    assert torch.equal(silent, readout(inputs, coords, readout.prepare()))
    assert (silent - values).abs().max() > 1e-3


def test_a_scale_for_each_item():
    torch.manual_seed(0)
    readout = perturbed(StyledReadout(CHANNELS, 3, HIDDEN))
    inputs, coords = embeddings(3), draw(BATCH, POINTS, 2)
    scales = torch.tensor([1.0, 0.5, 0.75])
    together = readout(inputs, coords, readout.prepare(scales))
    for item in range(BATCH):
        part = [embedding[item : item + 1] for embedding in inputs]
        alone = readout(part, coords[item : item + 1], readout.prepare(scales[item : item + 1]))
        torch.testing.assert_close(alone, together[item : item + 1], rtol=1e-5, atol=1e-5)
    same = readout(inputs, coords, readout.prepare(scales[:1]))
    torch.testing.assert_close(same[0], together[0], rtol=1e-5, atol=1e-5)
    assert (same[1] - together[1]).abs().max() > 1e-3


def test_scale_defaults_to_native():
    readout = perturbed(StyledReadout(CHANNELS, 3, HIDDEN))
    inputs, coords = embeddings(3), draw(BATCH, POINTS, 2)
    assert torch.equal(readout(inputs, coords), readout(inputs, coords, readout.prepare(torch.ones(1))))


def test_demodulated_layers_keep_unit_variance():
    """However strong the modulation: the point of demodulation."""
    torch.manual_seed(0)
    readout = StyledReadout(64, 3, 64)
    weight, _ = readout.blocks[0].linears[1](100 * draw(5, 64))
    torch.testing.assert_close(weight.square().sum(dim=2), torch.ones(5, 64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden_channels", [8, 20])
def test_styled_width(hidden_channels):
    with pytest.raises(ValueError, match=f"multiple of 8, at least 16, got {hidden_channels}"):
        StyledReadout(CHANNELS, 3, hidden_channels)


# Radiance


def test_sinusoidal_encoding():
    inputs = torch.tensor([[0.3, -1.2, 2.0]])
    expected = [0.3, -1.2, 2.0]
    for frequency in (1, 2, 4, 8):
        expected += [math.sin(frequency * x) for x in (0.3, -1.2, 2.0)]
        expected += [math.cos(frequency * x) for x in (0.3, -1.2, 2.0)]
    torch.testing.assert_close(sinusoidal_encoding(inputs, 4), torch.tensor([expected]))
    assert torch.equal(sinusoidal_encoding(inputs, 0), inputs)


@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("num_scales", [1, 3])
def test_radiance_formula(num_scales, slope):
    torch.manual_seed(0)
    readout = perturbed(RadianceReadout(CHANNELS, 4, HIDDEN, num_scales, negative_slope=slope), 0.1)
    inputs, coords = embeddings(num_scales), draw(BATCH, POINTS, 3)
    directions = unit_directions(BATCH, POINTS, 3)
    position, direction = sinusoidal_encoding(coords, 10), sinusoidal_encoding(directions, 4)
    if num_scales == 1:
        entry = torch.cat([inputs[0], position], dim=-1)
        hidden = entry
        for index, layer in enumerate(readout.layers):
            if index in (2, 4):
                hidden = torch.cat([entry, hidden], dim=-1)
            hidden = F.leaky_relu(layer(hidden), slope)
    else:
        trunk = readout.trunk
        hidden = fully_connected(trunk.blocks[0], inputs[0]) + trunk.input_map(position)
        for block, embedding in zip(trunk.blocks[1:], inputs[1:]):
            hidden = fully_connected(block, torch.cat([hidden, embedding], dim=-1))
        hidden = F.leaky_relu(fully_connected(trunk.blocks[-1], hidden), slope)
    density = F.softplus(readout.density(hidden))
    seen = torch.cat([readout.feature(hidden), direction], dim=-1)
    colour = readout.colour(F.leaky_relu(readout.direction_layer(seen), slope)).sigmoid()
    values = readout(inputs, coords, None, directions)
    torch.testing.assert_close(values, torch.cat([colour, density], dim=-1), rtol=1e-4, atol=1e-5)
    assert values[..., :3].min() >= 0
    assert values[..., :3].max() <= 1
    assert values[..., 3].min() >= 0


def test_density_does_not_depend_on_the_direction():
    readout = perturbed(RadianceReadout(CHANNELS, 4, HIDDEN), 0.1)
    inputs, coords = embeddings(3), draw(BATCH, POINTS, 3)
    one, other = (readout(inputs, coords, None, unit_directions(BATCH, POINTS, 3, seed=s)) for s in (1, 2))
    assert torch.equal(one[..., 3], other[..., 3])
    assert (one[..., :3] - other[..., :3]).abs().max() > 1e-4


def test_radiance_has_four_values():
    with pytest.raises(ValueError, match=r"4 values.*got 3"):
        RadianceReadout(CHANNELS, 3)
