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
"""Metrics of clips against closed forms and direct formulas in numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusers_ddmi.metrics.features import load_feature_extractor
from diffusers_ddmi.metrics.videos import betweenness, frame_consistency, frame_psnr, fvd, temporal_consistency


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def over_time(values, size=4) -> torch.Tensor:
    """A clip whose every pixel runs through `values`."""
    return torch.as_tensor(values, dtype=torch.float64).view(1, 1, -1, 1, 1).expand(1, 3, -1, size, size)


def test_fvd_of_the_formula(rng):
    one, two = rng.normal(size=(60, 8)), 1.3 * rng.normal(size=(50, 8)) + 0.2
    c1, c2 = np.cov(one.T), np.cov(two.T)
    expected = np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert fvd(one, two) == pytest.approx(expected, rel=1e-9)


def test_fvd_from_clips(rng):
    extractor = load_feature_extractor(torch.nn.AdaptiveAvgPool3d(1))
    clips = torch.from_numpy(rng.uniform(-0.5, 0.5, (20, 3, 4, 6, 6)))
    assert fvd(extractor(clips), extractor(clips + 0.1)) == pytest.approx(3 * 0.01, rel=1e-4)


def test_frame_psnr(rng):
    target = torch.from_numpy(rng.uniform(-1, 1, (2, 3, 4, 5, 6)))
    prediction = target.clone()
    prediction[1, :, 2] += 0.02
    values = frame_psnr(prediction, target)
    assert values.shape == (2, 4)
    assert values[1, 2] == pytest.approx(40.0, rel=1e-9)
    assert torch.isinf(values).sum() == 7
    with pytest.raises(ValueError, match="one shape"):
        frame_psnr(prediction, target[:, :, :2])


class TestTemporalConsistency:
    def test_closed_forms(self):
        assert temporal_consistency(over_time(np.linspace(-1, 1, 9))) == pytest.approx(1.0)
        assert temporal_consistency(over_time([0.3] * 5)) == 1.0
        # Flicker ±a of T frames: ‖2a‖² against 3/2 · a² T/(T − 1).
        assert temporal_consistency(over_time([1, -1] * 4)) == pytest.approx(1 - 4 / (1.5 * 8 / 7))

    def test_of_the_formula(self, rng):
        x = rng.normal(size=(2, 3, 6, 4, 5)) * rng.uniform(0.1, 2, (2, 3, 1, 4, 5))
        bend = x[:, :, 1:-1] - (x[:, :, :-2] + x[:, :, 2:]) / 2
        expected = 1 - (bend**2).sum((1, 2, 3, 4)) / 4 / (1.5 * x.var(2, ddof=1).sum((1, 2, 3)))
        np.testing.assert_allclose(temporal_consistency(torch.from_numpy(x)), expected, rtol=1e-12)

    def test_independent_frames_score_zero(self, rng):
        noise = torch.from_numpy(rng.normal(size=(4, 3, 16, 32, 32)))
        assert temporal_consistency(noise).abs().max() < 0.02

    def test_shuffling_a_smooth_clip_lowers_it(self, rng):
        t = torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 1, -1, 1, 1)
        x = torch.linspace(-1, 1, 32, dtype=torch.float64).view(1, 1, 1, 1, -1)
        clip = torch.exp(-(((x - 0.6 * t) / 0.3) ** 2)).expand(1, 3, 16, 32, 32)
        shuffled = clip[:, :, torch.from_numpy(rng.permutation(16))]
        assert temporal_consistency(clip) > 0.98
        assert temporal_consistency(shuffled) < 0.4


def test_frame_consistency():
    angles = torch.linspace(0, torch.pi / 2, 4)
    features = torch.stack([angles.cos(), angles.sin()], -1)[None] * torch.rand(1, 4, 1).add(0.1)
    assert frame_consistency(features) == pytest.approx(np.cos(np.pi / 6), rel=1e-6)
    with pytest.raises(ValueError, match=r"at least 2 frames, channels\), got \(1, 1, 8\)"):
        frame_consistency(torch.zeros(1, 1, 8))


def test_betweenness(rng):
    np.testing.assert_allclose(betweenness(over_time(np.linspace(-1, 1, 5))), 0.5)
    edge = torch.stack([torch.arange(32) < 4 * t + 4 for t in range(5)]).double().view(1, 1, 5, 1, 32)
    np.testing.assert_allclose(betweenness(edge), np.sqrt(0.5))
    noise = torch.from_numpy(rng.normal(size=(1, 3, 6, 64, 64)))
    np.testing.assert_allclose(betweenness(noise), 1.0, atol=0.05)
    jump = betweenness(over_time([0, 0, 1, 1]))
    np.testing.assert_allclose(jump, 1.0)
    assert torch.isnan(betweenness(over_time([0, 1, 0]))).all()


@pytest.mark.parametrize("metric", [temporal_consistency, betweenness])
def test_too_few_frames(metric):
    with pytest.raises(ValueError, match=r"at least 3 frames, height, width\), got \(1, 3, 2, 4, 4\)"):
        metric(torch.zeros(1, 3, 2, 4, 4))
