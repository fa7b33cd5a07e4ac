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
"""The learned mixed prediction of DDMI's latent diffusion model.

Vahdat et al., "Score-based Generative Modeling in Latent Space" (2021), section 3.2.
"""

import torch
import torch.nn as nn
from diffusers.schedulers import DDPMScheduler


PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class MixedPrediction(nn.Module):
    r"""
    Mixes a network's output with the prediction that would be right if the latents were standard normal.

    With \(s = \mathrm{sigmoid}(\text{logit})\), one value per channel,
    \(\hat\epsilon = (1 - s)\,\sqrt{1 - \bar\alpha_t}\,x_t + s\,\epsilon_\theta(x_t, t)\). For a standard normal signal
    the optimal sample is \(\sqrt{\bar\alpha_t}\,x_t\) and the optimal velocity is 0, so the other prediction types
    follow the same rule.

    Args:
        channels: channels of the network's output.
        init: initial value of the logit; -6 starts almost entirely at the normal prediction.
        num_train_timesteps, beta_start, beta_end, beta_schedule: the noise schedule, named as in diffusers' schedulers.
            It must be the schedule that the model is trained with.
        prediction_type: "epsilon", "sample" or "v_prediction".
    """

    def __init__(
        self,
        channels: int,
        init: float,
        num_train_timesteps: int,
        beta_start: float,
        beta_end: float,
        beta_schedule: str,
        prediction_type: str,
    ):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"`prediction_type` is {prediction_type!r}; expected one of {PREDICTION_TYPES}.")
        self.prediction_type = prediction_type
        self.logit = nn.Parameter(torch.full((channels,), float(init)))
        with torch.device("cpu"):
            schedule = DDPMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule)
            alphas_cumprod = schedule.alphas_cumprod.double()
            # log(sigma) with sigma^2 = (1 - abar) / abar, i.e. minus half the log-SNR. A plain tensor, because a buffer
            # would lose its precision when the model is cast to half.
            self._log_sigmas = (0.5 * torch.log((1 - alphas_cumprod) / alphas_cumprod)).float()

    def signal_and_noise_rates(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) at `timestep` (batch,), float32.

        Between two integer timesteps the log-SNR is interpolated linearly, as Karras-type schedulers of diffusers do
        when they place a noise level between two timesteps. Outside of the schedule its ends are used.
        """
        log_sigmas = self._log_sigmas.to(timestep.device)
        position = timestep.float().clamp(0, len(log_sigmas) - 1)
        below = position.floor().long()
        above = (below + 1).clamp(max=len(log_sigmas) - 1)
        log_sigma = torch.lerp(log_sigmas[below], log_sigmas[above], position - below)
        return torch.sigmoid(-2 * log_sigma).sqrt(), torch.sigmoid(2 * log_sigma).sqrt()

    def forward(self, prediction: torch.Tensor, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`prediction`, `sample` (batch, channels, ...) and `timestep` (batch,) to the mixed prediction, like `sample`."""
        if prediction.shape != sample.shape:
            raise ValueError(
                f"Mixed prediction needs a network that returns the shape of its input, got {tuple(prediction.shape)} for "
                f"an input of {tuple(sample.shape)}. Set `out_channels` equal to `in_channels`."
            )
        positions = [1] * (sample.ndim - 2)
        signal_rate, noise_rate = (rate.view(-1, 1, *positions) for rate in self.signal_and_noise_rates(timestep))
        if self.prediction_type == "epsilon":
            normal_prediction = noise_rate * sample.float()
        elif self.prediction_type == "sample":
            normal_prediction = signal_rate * sample.float()
        else:
            normal_prediction = torch.zeros_like(sample, dtype=torch.float32)
        weight = torch.sigmoid(self.logit.float()).view(-1, *positions)
        return torch.lerp(normal_prediction, prediction.float(), weight).to(sample.dtype)


def batch_timesteps(timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
    """One timestep for every item of `sample`: (batch,), on its device, fractional timesteps kept."""
    if not torch.is_tensor(timestep):
        timestep = torch.tensor(timestep, dtype=torch.float32 if isinstance(timestep, float) else torch.long)
    timestep = timestep.to(sample.device).reshape(-1)
    if timestep.numel() not in (1, sample.shape[0]):
        raise ValueError(
            f"Got {timestep.numel()} timesteps for a batch of {sample.shape[0]}; pass one, or one per item."
        )
    return timestep.expand(sample.shape[0])
