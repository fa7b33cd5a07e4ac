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
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from diffusers_ddmi.losses import (
    PatchDiscriminator,
    SpectralRegularization,
    adaptive_weight,
    bernoulli_nll,
    diffusion_loss,
    diffusion_target,
    discriminator_loss,
    gaussian_nll,
    generator_loss,
    geometric_annealing,
    kl_divergence,
    linear_annealing,
    load_perceptual_network,
    min_snr_weights,
    perceptual_loss,
    radiance_loss,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestLikelihoods:
    def test_gaussian_by_hand(self):
        prediction, target = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.zeros(2, 1, 2)
        assert gaussian_nll(prediction, target, "l2", "sum").item() == pytest.approx((1 + 4 + 0) / 2)
        assert gaussian_nll(prediction, target, "l2", "mean").item() == pytest.approx((1 + 4) / 4)
        assert gaussian_nll(prediction, target, "l1", "sum").item() == pytest.approx(3 / 2)

    @pytest.mark.parametrize("norm", ["l1", "l2"])
    def test_sum_is_mean_times_number_of_values(self, norm):
        prediction, target = noise(2, 7, 3), noise(2, 7, 3, seed=1)
        mean, total = (gaussian_nll(prediction, target, norm, reduction) for reduction in ("mean", "sum"))
        torch.testing.assert_close(total, mean * 21)

    def test_bernoulli_is_the_log_probability(self):
        logits = noise(2, 5, 1)
        target = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]).view(1, 5, 1).expand(2, 5, 1)
        probability = torch.sigmoid(logits)
        expected = -torch.where(target > 0.5, probability, 1 - probability).log().flatten(1).sum(1).mean()
        torch.testing.assert_close(bernoulli_nll(logits, target, "sum"), expected)

    def test_opacity_counts_where_it_is_known(self):
        colours, opacity = noise(2, 4, 3), noise(2, 4, 1)
        plain = radiance_loss(colours, colours * 0)
        assert torch.equal(radiance_loss(colours, colours * 0, opacity=opacity, opacity_weight=1.0), plain)
        unknown = torch.full_like(opacity, torch.nan)
        assert torch.equal(
            radiance_loss(colours, colours * 0, opacity=opacity, target_opacity=unknown, opacity_weight=1.0), plain
        )
        with_opacity = radiance_loss(
            colours, colours * 0, opacity=opacity, target_opacity=opacity - 1, opacity_weight=0.5
        )
        torch.testing.assert_close(with_opacity, plain + 0.5)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"\(2, 3, 1\) and \(2, 4, 1\)"):
            bernoulli_nll(torch.zeros(2, 3, 1), torch.zeros(2, 4, 1))
        with pytest.raises(ValueError, match="'huber'"):
            gaussian_nll(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), "huber")
        with pytest.raises(ValueError, match="'median'"):
            gaussian_nll(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), "l1", "median")


class TestKL:
    def test_closed_form_and_zero_at_the_prior(self):
        moments = noise(3, 8, 4, 4)
        posterior = DiagonalGaussianDistribution(moments)
        torch.testing.assert_close(kl_divergence(posterior), posterior.kl().mean())
        assert kl_divergence(DiagonalGaussianDistribution(torch.zeros(1, 2, 4, 4))).item() == 0.0

    def test_half_precision_does_not_overflow(self):
        posterior = DiagonalGaussianDistribution(torch.full((1, 2, 512, 512), 2.0, dtype=torch.float16))
        expected = 0.5 * (4 + math.exp(2.0) - 1 - 2) * 512**2
        assert kl_divergence(posterior).item() == pytest.approx(expected, rel=1e-3)

    def test_annealing(self):
        assert linear_annealing(0, 0.5, 100) == pytest.approx(1e-4)
        assert linear_annealing(50, 0.5, 100) == pytest.approx((0.5 + 1e-4) / 2)
        assert linear_annealing(1000, 0.5, 100) == 0.5
        assert linear_annealing(0, 0.5, 0) == 0.5
        assert linear_annealing(3, 0.0, 100) == 0.0
        assert geometric_annealing(0.5, 5.0, 0.1) == pytest.approx(math.sqrt(0.5))
        with pytest.raises(ValueError, match="positive"):
            geometric_annealing(0.5, 0.0, 0.1)


class TestSpectralRegularization:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))

    def test_equals_the_largest_singular_values(self, model):
        with torch.no_grad():
            model[1].weight.copy_(torch.linspace(-3, 2, 8))
        regularization = SpectralRegularization(model)
        for _ in range(40):
            loss = regularization.convolution_loss()
        convolutions = [module.weight.flatten(1) for module in model if isinstance(module, nn.Conv2d)]
        expected = sum(torch.linalg.matrix_norm(weight, 2) for weight in convolutions)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
        assert regularization.norm_loss().item() == 3.0

    def test_gradient_is_that_of_the_singular_value(self, model):
        regularization = SpectralRegularization(model[:1], iterations=100)
        regularization.convolution_loss().backward()
        u, _, v = torch.linalg.svd(model[0].weight.detach().flatten(1), full_matrices=False)
        torch.testing.assert_close(model[0].weight.grad.flatten(1), torch.outer(u[:, 0], v[0]), atol=1e-3, rtol=0)

    def test_state_continues_the_iteration(self, model):
        first, second = SpectralRegularization(model), SpectralRegularization(model, seed=5)
        first.convolution_loss()
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.convolution_loss(), second.convolution_loss())

    def test_does_not_touch_the_global_generator(self, model):
        before = torch.get_rng_state()
        SpectralRegularization(model).convolution_loss()
        assert torch.equal(before, torch.get_rng_state())


class TestPictureTerms:
    def test_any_module_measures_perceptual_distance(self):
        class Distance(nn.Module):
            def forward(self, first, second):
                return (first - second).abs().mean(dim=(1, 2, 3))

        assert perceptual_loss(Distance(), torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).item() == 1.0

    def test_lpips_is_an_option(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "lpips", None)
        with pytest.raises(ImportError, match="pip install lpips"):
            load_perceptual_network()

    def test_discriminator_sees_the_scale(self):
        torch.manual_seed(0)
        discriminator = PatchDiscriminator(base_channels=8)
        pictures = noise(2, 3, 32, 32)
        whole, crop = discriminator(pictures), discriminator(pictures, torch.tensor([1.0, 0.5]))
        assert whole.shape[:2] == (2, 1)
        torch.testing.assert_close(whole[0], crop[0])
        assert not torch.allclose(whole[1], crop[1])
        torch.testing.assert_close(discriminator(pictures[1:]), whole[1:])  # items of a batch are apart

    def test_hinge(self):
        real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0])
        assert discriminator_loss(real, fake).item() == 0.5 * (0.5 + 0.5)
        assert generator_loss(torch.tensor([1.0, 3.0])).item() == -2.0

    def test_adaptive_weight_balances_gradients(self):
        weight = torch.ones(3, requires_grad=True)
        ratio = adaptive_weight((8 * weight).sum(), (2 * weight).sum(), weight)
        assert ratio.item() == pytest.approx(4.0, rel=1e-3)
        assert not ratio.requires_grad


class TestDiffusion:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_target_leads_back_to_the_latents(self, prediction_type):
        scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
        latents, epsilon = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
        timesteps = torch.tensor([300, 300])
        noisy = scheduler.add_noise(latents, epsilon, timesteps)
        target = diffusion_target(scheduler, latents, epsilon, timesteps)
        step = scheduler.step(target, 300, noisy, generator=torch.Generator())
        torch.testing.assert_close(step.pred_original_sample, latents, atol=1e-4, rtol=1e-4)

    def test_unknown_target(self):
        scheduler = DDPMScheduler(prediction_type="flow")
        with pytest.raises(ValueError, match="'flow'"):
            diffusion_target(scheduler, *[torch.zeros(1)] * 3)

    def test_min_snr_weighs_the_same_error_alike(self):
        """Whatever is predicted, an error of the latents costs min(SNR, γ)."""
        snr = torch.tensor([0.0, 0.01, 1.0, 5.0, 400.0])
        expected = snr.clamp(max=5.0)
        torch.testing.assert_close(min_snr_weights(snr, 5.0, "sample"), expected)
        torch.testing.assert_close(min_snr_weights(snr, 5.0, "epsilon") * snr, expected)
        torch.testing.assert_close(min_snr_weights(snr, 5.0, "v_prediction") * (snr + 1), expected)
        assert min_snr_weights(snr, 5.0, "epsilon").isfinite().all()
        with pytest.raises(ValueError, match="'flow'"):
            min_snr_weights(snr, 5.0, "flow")

    def test_weights_are_one_per_sample(self):
        prediction, target = noise(3, 2, 4), noise(3, 2, 4, seed=1)
        torch.testing.assert_close(diffusion_loss(prediction, target), F.mse_loss(prediction, target))
        only_second = diffusion_loss(prediction, target, torch.tensor([0.0, 3.0, 0.0]))
        torch.testing.assert_close(only_second, F.mse_loss(prediction[1], target[1]))
