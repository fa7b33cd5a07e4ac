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
"""The training objectives: the evidence lower bound of stage 1 (DDMI, Eq. 9) and noise prediction in stage 2 (Eq. 10).

Stage 1 minimises, per signal,

    reconstruction + λ_z · KL(q(z|x) ‖ N(0, I)),

where the reconstruction is a negative log-likelihood, up to constants, of the values ω at the coordinates c:
Gaussian (or Laplace: L1) for colours, Bernoulli for occupancy. The paper takes the *expectation* over coordinates,
so that the loss does not depend on how many were drawn, and balances it by λ_z. The functions here do both:
`reduction="mean"` is that expectation, `reduction="sum"` the plain likelihood of all values. The two objectives are
the same up to a factor when λ_z is divided by the number of values: a published weight of 0.5 beside a sum over
256 × 256 × 3 values is 0.5 / 196608 beside their mean.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor


REDUCTIONS = ("mean", "sum")
NORMS = ("l1", "l2")


# --------------------------------------------------------------------------------------------- likelihoods


def gaussian_nll(
    prediction: torch.Tensor, target: torch.Tensor, norm: str = "l2", reduction: str = "mean"
) -> torch.Tensor:
    """Negative log-likelihood of colours up to constants, averaged over the batch (first term of Eq. 9).

    Args:
        prediction, target: values of shape (batch, points, channels).
        norm: "l2", squared error (Gaussian), or "l1", absolute error (Laplace; what the published models used).
        reduction: over points and channels; see the module's docstring.
    """
    _check_same_shape(prediction, target)
    _check_choice("norm", norm, NORMS)
    error = (prediction.float() - target.float()).abs()
    return _reduce(error if norm == "l1" else error.square(), reduction)


def bernoulli_nll(logits: torch.Tensor, target: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Negative log-likelihood of occupancies in [0, 1] under `logits`, both (batch, points, 1), averaged over the batch."""
    _check_same_shape(logits, target)
    return _reduce(F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none"), reduction)


def radiance_loss(
    colours: torch.Tensor,
    target: torch.Tensor,
    norm: str = "l2",
    reduction: str = "mean",
    opacity: torch.Tensor | None = None,
    target_opacity: torch.Tensor | None = None,
    opacity_weight: float = 0.0,
) -> torch.Tensor:
    """Error of rendered ray colours (batch, rays, 3) and, where wanted, of opacities (batch, rays, 1).

    Rays whose `target_opacity` is NaN, unknown, count as right.
    """
    loss = gaussian_nll(colours, target, norm, reduction)
    if opacity_weight and target_opacity is not None:
        if opacity is None:
            raise ValueError("`opacity_weight` needs the rendered `opacity`, which is None.")
        known = torch.where(target_opacity.isnan(), opacity.detach(), target_opacity)
        loss = loss + opacity_weight * gaussian_nll(opacity, known, norm, reduction)
    return loss


def kl_divergence(posterior: Any) -> torch.Tensor:
    """KL(q(z|x) ‖ N(0, I)) in nats, summed over a latent and averaged over the batch (second term of Eq. 9).

    Args:
        posterior: has `mean` and `logvar` of one shape (batch, ...), as diffusers' `DiagonalGaussianDistribution`.
            Half precision is taken to float32 first, where such a sum does not overflow.
    """
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()


def _reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
    _check_choice("reduction", reduction, REDUCTIONS)
    per_signal = values.flatten(1)
    return (per_signal.mean(1) if reduction == "mean" else per_signal.sum(1)).mean()


def _check_same_shape(prediction: torch.Tensor, target: torch.Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"Prediction and target must have the same shape, but are {tuple(prediction.shape)} and {tuple(target.shape)}."
        )


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, but is {value!r}.")


# --------------------------------------------------------------------------------------------- weights over time


def linear_annealing(step: int, final: float, annealing_steps: int, initial: float = 1e-4) -> float:
    """Weight λ_z of the KL term at `step`: from `initial` (or `final`, if lower) linearly to `final`."""
    start = min(initial, final)
    if annealing_steps <= 0:
        return final
    return start + (final - start) * min(step / annealing_steps, 1.0)


def geometric_annealing(progress: float, initial: float, final: float) -> float:
    """Weight between `initial` and `final` (both > 0) at `progress` in [0, 1], linear in its logarithm."""
    if initial <= 0 or final <= 0:
        raise ValueError(f"Geometric annealing needs positive weights, got {initial} and {final}.")
    return math.exp((1 - progress) * math.log(initial) + progress * math.log(final))


# --------------------------------------------------------------------------------------------- spectral regularisation


class SpectralRegularization:
    """Sum of the spectral norms of all convolutions and of max |weight| of all normalisation layers.

    Keeps encoder and decoder smooth, so that latents off the posterior still decode (Vahdat and Kautz, "NVAE", 2020,
    section 3.2). The norms come from power iterations on out-channels × rest matrices; singular vectors are kept from
    step to step, so that a few iterations suffice after the first call. They are state of the run: `state_dict`.

    Args:
        model: its Conv1d/2d/3d, BatchNorm and GroupNorm layers are regularised.
        iterations: power iterations per call; the first call does ten times as many.
        seed: seed of the first vectors.
    """

    def __init__(self, model: nn.Module, iterations: int = 4, seed: int = 0):
        modules = list(model.modules())
        self.iterations, self.seed = iterations, seed
        self.vectors: dict[str, torch.Tensor] = {}
        # Layers and not their weights, which sharding replaces.
        self._norms = [m for m in modules if _is_norm(m) and m.weight is not None]
        self._groups: dict[str, list[nn.Module]] = {}
        for layer in (m for m in modules if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))):
            shape = f"{layer.weight.shape[0]}x{layer.weight[0].numel()}"
            self._groups.setdefault(shape, []).append(layer)

    def convolution_loss(self) -> torch.Tensor:
        """Σ σ_max(W) over the convolutions, differentiable in their weights."""
        return sum((self._group_norms(shape).sum() for shape in self._groups), torch.zeros(()))

    def norm_loss(self) -> torch.Tensor:
        """Σ max |weight| over the normalisation layers."""
        return sum((_whole_weight(layer).abs().max() for layer in self._norms), torch.zeros(()))

    def _group_norms(self, shape: str) -> torch.Tensor:
        matrices = torch.stack(
            [_whole_weight(layer).flatten(1) for layer in self._groups[shape]]
        ).float()  # (layers, out, rest)
        iterations = self.iterations
        with torch.no_grad():
            left = self.vectors.get(shape)
            if left is None:
                generator = torch.Generator().manual_seed(self.seed)
                left = torch.randn(matrices.shape[:2], generator=generator)
                iterations = 10 * iterations
            left = left.to(matrices.device).unsqueeze(-1)
            for _ in range(iterations):
                right = F.normalize(matrices.mT @ left, dim=1, eps=1e-12)
                left = F.normalize(matrices @ right, dim=1, eps=1e-12)
            self.vectors[shape] = left.squeeze(-1)
        return (left.mT @ matrices @ right).flatten()  # uᵀ W v

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.vectors)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.vectors = dict(state)


def _whole_weight(layer: nn.Module) -> torch.Tensor:
    """A layer's weight, gathered if it is sharded: then all processes must call this. Differentiable."""
    return layer.weight.full_tensor() if isinstance(layer.weight, DTensor) else layer.weight


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))


# --------------------------------------------------------------------------------------------- perceptual term


def load_perceptual_network(name: str = "vgg") -> nn.Module:
    """LPIPS from the `lpips` package, frozen. Any module of two pictures in [-1, 1] can take its place.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        import lpips
    except ImportError as error:
        raise ImportError(
            "The perceptual loss needs the `lpips` package: `pip install lpips`, or leave --lpips_weight at 0."
        ) from error
    return lpips.LPIPS(net=name, verbose=False).eval().requires_grad_(False)


def perceptual_loss(network: nn.Module, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean perceptual distance of pictures (batch, 3, height, width) in [-1, 1]."""
    _check_same_shape(prediction, target)
    return network(prediction, target).mean()


# --------------------------------------------------------------------------------------------- adversarial term


class PatchDiscriminator(nn.Module):
    """Says for each patch of a picture how real it looks (Isola et al. 2017), given the scale the picture is seen at.

    The scale enters as a fourth input channel, since a crop of an enlarged picture has other statistics than a
    whole one. GroupNorm keeps items of a batch apart, so that the result does not depend on how a batch is split.

    Args:
        channels: channels of the pictures.
        base_channels: width of the first layer; doubled by each further one up to eight times that.
        layers: number of convolutions with stride 2.
    """

    def __init__(self, channels: int = 3, base_channels: int = 64, layers: int = 3):
        super().__init__()
        widths = [base_channels * min(2**i, 8) for i in range(layers + 1)]
        blocks = [nn.Conv2d(channels + 1, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            stride = 2 if i < layers - 1 else 1
            blocks += [
                nn.Conv2d(widths[i], widths[i + 1], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, widths[i + 1]), widths[i + 1]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, pictures: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Pictures (batch, channels, height, width) and scales (batch,), 1 if absent -> logits (batch, 1, h, w)."""
        if scale is None:
            scale = pictures.new_ones(len(pictures))
        plane = scale.to(pictures.dtype).view(-1, 1, 1, 1).expand(-1, 1, *pictures.shape[-2:])
        return self.layers(torch.cat([pictures, plane], dim=1))


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the generator."""
    return -fake_logits.mean()


def adaptive_weight(
    reconstruction: torch.Tensor, adversarial: torch.Tensor, last_weight: torch.Tensor, largest: float = 1e4
) -> torch.Tensor:
    """Weight that gives both losses gradients of one size at the last layer (Esser et al. 2021, Eq. 7)."""
    of_reconstruction = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)[0].norm()
    of_adversarial = torch.autograd.grad(adversarial, last_weight, retain_graph=True)[0].norm()
    return (of_reconstruction / (of_adversarial + 1e-4)).clamp(0, largest).detach()


# --------------------------------------------------------------------------------------------- diffusion


def diffusion_target(
    scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the denoiser is to predict under the scheduler's `prediction_type`: ε, x₀ ("sample") or v."""
    prediction_type = scheduler.config.prediction_type
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: latents,
        "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps),
    }
    _check_choice("prediction_type", prediction_type, targets)
    return targets[prediction_type]()


def min_snr_weights(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Min-SNR-γ weights of the per-sample losses (Hang et al. 2023), for ε, x₀ ("sample") and v targets.

    The paper's weight min(SNR, γ) stands before the squared error of x₀, which is 1/SNR times an error of ε and
    1/(SNR + 1) times one of v.
    """
    weights = {
        "epsilon": (gamma / snr).clamp(max=1.0),  # = min(SNR, γ) / SNR, and its limit 1 where SNR is 0
        "sample": snr.clamp(max=gamma),
        "v_prediction": snr.clamp(max=gamma) / (snr + 1),
    }
    _check_choice("prediction_type", prediction_type, weights)
    return weights[prediction_type]


def diffusion_loss(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error (Eq. 10), with one weight per sample if given."""
    _check_same_shape(prediction, target)
    per_sample = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return (per_sample if weights is None else per_sample * weights).mean()
