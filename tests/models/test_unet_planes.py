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
"""Denoisers with mixed prediction and for planes of unequal size."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from diffusers_ddmi.models.mixed_prediction import MixedPrediction
from diffusers_ddmi.models.unet_planes import MixedUNet2DModel, PlanesUNet2DModel


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights from a seed, including those that start at 0 or 1; the global random state is not touched."""
    draw = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / fan_in**0.5)
    return model.eval()


def mixed_unet(**options) -> MixedUNet2DModel:
    return MixedUNet2DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            **options,
        }
    )


def planes_unet(**options) -> PlanesUNet2DModel:
    return PlanesUNet2DModel(
        **{
            "plane_sizes": ((8, 8), (4, 8), (4, 8)),
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "attention_levels": (False, True),
            "attention_head_dim": 8,
            "joint_attention_heads": 4,
            "norm_num_groups": 8,
            **options,
        }
    )


@pytest.fixture(scope="module")
def planes_model() -> PlanesUNet2DModel:
    return randomised(planes_unet())


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(2, 4, 64 + 32 + 32, generator=generator(1))


class TestMixedPrediction:
    @pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
    def test_rates_are_those_of_the_scheduler(self, schedule):
        mixing = MixedPrediction(1, 0.0, 100, 0.001, 0.02, schedule, "epsilon")
        scheduler = DDIMScheduler(num_train_timesteps=100, beta_start=0.001, beta_end=0.02, beta_schedule=schedule)
        signal, noise = mixing.signal_and_noise_rates(torch.arange(100))
        torch.testing.assert_close(signal**2, scheduler.alphas_cumprod, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(noise**2, 1 - scheduler.alphas_cumprod, rtol=1e-5, atol=1e-7)

    def test_fractional_timesteps_interpolate_the_log_snr(self):
        mixing = MixedPrediction(1, 0.0, 1000, 0.0015, 0.0195, "scaled_linear", "epsilon")
        signal, noise = mixing.signal_and_noise_rates(torch.tensor([10.0, 10.25, 11.0]))
        log_snr = 2 * torch.log(signal / noise)
        assert log_snr[0] > log_snr[1] > log_snr[2]
        torch.testing.assert_close(log_snr[1], 0.75 * log_snr[0] + 0.25 * log_snr[2])
        torch.testing.assert_close(signal**2 + noise**2, torch.ones(3))

    def test_beyond_the_schedule_its_ends_hold(self):
        mixing = MixedPrediction(1, 0.0, 1000, 0.0015, 0.0195, "scaled_linear", "epsilon")
        inside = mixing.signal_and_noise_rates(torch.tensor([0, 999]))
        outside = mixing.signal_and_noise_rates(torch.tensor([-3.0, 2000.0]))
        torch.testing.assert_close(outside, inside, rtol=0, atol=0)

    def test_closed_form(self):
        mixing = MixedPrediction(2, 0.0, 1000, 0.0015, 0.0195, "scaled_linear", "epsilon")
        with torch.no_grad():
            mixing.logit.copy_(torch.tensor([0.0, torch.inf]))
        sample = torch.full((1, 2, 3), 2.0)
        prediction = torch.full((1, 2, 3), 10.0)
        _, noise = mixing.signal_and_noise_rates(torch.tensor([500]))
        mixed = mixing(prediction, sample, torch.tensor([500]))
        torch.testing.assert_close(mixed[:, 0], (0.5 * noise * 2 + 0.5 * 10).expand(1, 3))
        torch.testing.assert_close(mixed[:, 1], prediction[:, 1])

    def test_prediction_types_agree_where_the_normal_prediction_holds(self):
        sample, timestep = torch.randn(3, 2, 5, generator=generator()), torch.tensor([0, 300, 999])
        ignored = torch.zeros_like(sample)
        by_type = {}
        for kind in ("epsilon", "sample", "v_prediction"):
            mixing = MixedPrediction(2, -torch.inf, 1000, 0.0015, 0.0195, "scaled_linear", kind)
            by_type[kind] = mixing(ignored, sample, timestep)
        signal, noise = (rate.view(-1, 1, 1) for rate in mixing.signal_and_noise_rates(timestep))
        # x_t = signal x_0 + noise eps,  v = signal eps - noise x_0
        torch.testing.assert_close(signal * by_type["sample"] + noise * by_type["epsilon"], sample)
        velocity = signal * by_type["epsilon"] - noise * by_type["sample"]
        torch.testing.assert_close(velocity, by_type["v_prediction"], rtol=0, atol=1e-5)

    def test_unknown_prediction_type(self):
        with pytest.raises(ValueError, match=r"'flow'.*v_prediction"):
            MixedPrediction(1, 0.0, 1000, 0.0015, 0.0195, "scaled_linear", "flow")

    def test_network_must_keep_the_shape(self):
        mixing = MixedPrediction(4, 0.0, 1000, 0.0015, 0.0195, "scaled_linear", "epsilon")
        with pytest.raises(ValueError, match=r"\(1, 8, 2\).*\(1, 4, 2\).*out_channels"):
            mixing(torch.zeros(1, 8, 2), torch.zeros(1, 4, 2), torch.tensor([1]))


class TestMixedUNet2DModel:
    def test_is_unet_2d_model_plus_the_mixture(self):
        model = randomised(mixed_unet())
        plain = UNet2DModel.from_config(model.config).eval()
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mixing")})
        sample = torch.randn(2, 4, 8, 8, generator=generator())
        timestep = torch.tensor([3, 700])
        network = plain(sample, timestep).sample
        torch.testing.assert_close(model.unmixed(sample, timestep), network, rtol=0, atol=0)
        _, noise = model.mixing.signal_and_noise_rates(timestep)
        weight = model.mixing.logit.sigmoid().view(1, -1, 1, 1)
        expected = (1 - weight) * noise.view(-1, 1, 1, 1) * sample + weight * network
        torch.testing.assert_close(model(sample, timestep).sample, expected)

    def test_numbers_and_tensors_as_timestep(self):
        model = randomised(mixed_unet())
        sample = torch.randn(2, 4, 8, 8, generator=generator())
        whole = model(sample, 7, return_dict=False)[0]
        for same in (torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7]), 7.0):
            torch.testing.assert_close(model(sample, same).sample, whole)
        between = model(sample, 7.5).sample
        assert (between - whole).abs().max() > 1e-4
        with pytest.raises(ValueError, match="3 timesteps for a batch of 2"):
            model(sample, torch.tensor([1, 2, 3]))

    def test_saves_and_loads(self, tmp_path):
        model = randomised(mixed_unet(prediction_type="v_prediction", beta_end=0.01))
        model.save_pretrained(tmp_path)
        loaded = MixedUNet2DModel.from_pretrained(tmp_path)
        assert dict(loaded.config)["prediction_type"] == "v_prediction"
        sample = torch.randn(1, 4, 8, 8, generator=generator())
        torch.testing.assert_close(loaded(sample, 10).sample, model(sample, 10).sample)
        half = MixedUNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
        assert half.conv_in.weight.dtype == torch.float16
        assert half.mixing.logit.dtype == torch.float32

    def test_rates_keep_their_precision_in_half(self):
        model = mixed_unet()
        timestep = torch.arange(0, 1000, 100)
        before = model.mixing.signal_and_noise_rates(timestep)
        torch.testing.assert_close(model.half().mixing.signal_and_noise_rates(timestep), before, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("model_channels", "multipliers", "latent_channels", "parameters"),
        [
            (224, (1, 2, 4, 6), 64, 519_220_416),
            (256, (1, 2, 4, 8), 64, 1_014_986_816),
            (256, (1, 2, 4, 6), 192, 678_673_600),
        ],
        ids=["afhq", "celebahq", "shapenet"],
    )
    def test_published_sizes(self, model_channels, multipliers, latent_channels, parameters):
        with torch.device("meta"):
            model = MixedUNet2DModel(
                in_channels=latent_channels,
                out_channels=latent_channels,
                block_out_channels=[model_channels * multiplier for multiplier in multipliers],
                attention_head_dim=32,
            )
        counted = sum(p.numel() for p in model.parameters())
        assert counted - model.mixing.logit.numel() == parameters
        assert model.mixing.logit.numel() == latent_channels


class TestPlanesUNet2DModel:
    def test_published_size(self):
        with torch.device("meta"):
            model = PlanesUNet2DModel()
        counted = sum(p.numel() for p in model.parameters())
        assert counted - model.mixing.logit.numel() == 767_856_704

    def test_planes_share_their_blocks(self, planes_model, latents):
        """Swapping the two planes of equal size swaps their predictions."""
        xy, xt, yt = latents.split((64, 32, 32), dim=-1)
        prediction = planes_model(latents, 100).sample
        swapped = planes_model(torch.cat([xy, yt, xt], dim=-1), 100).sample
        expected = torch.cat([prediction[..., :64], prediction[..., 96:], prediction[..., 64:96]], dim=-1)
        torch.testing.assert_close(swapped, expected, rtol=1e-4, atol=1e-5)
        assert (swapped - prediction).abs().max() > 1e-2

    def test_order_of_packing_does_not_matter_to_the_planes(self, planes_model, latents):
        """The same planes packed as (xt, xy, yt), by a model whose `plane_sizes` say so."""
        other = planes_unet(plane_sizes=((4, 8), (8, 8), (4, 8))).eval()
        other.load_state_dict(planes_model.state_dict())
        xy, xt, yt = latents.split((64, 32, 32), dim=-1)
        prediction = other(torch.cat([xt, xy, yt], dim=-1), 100).sample
        xt, xy, yt = prediction.split((32, 64, 32), dim=-1)
        expected = planes_model(latents, 100).sample
        torch.testing.assert_close(torch.cat([xy, xt, yt], dim=-1), expected, rtol=1e-4, atol=1e-5)

    def test_planes_see_each_other(self, planes_model, latents):
        changed = latents.clone()
        changed[..., :64] += 1
        difference = planes_model.unmixed(changed, 100) - planes_model.unmixed(latents, 100)
        assert difference[..., 64:].abs().max() > 1e-3

    def test_items_of_a_batch_do_not_see_each_other(self, planes_model, latents):
        timesteps = torch.tensor([5, 800])
        batch = planes_model(latents, timesteps).sample
        for index in range(2):
            alone = planes_model(latents[index : index + 1], timesteps[index]).sample
            torch.testing.assert_close(batch[index : index + 1], alone, rtol=1e-4, atol=1e-5)

    def test_sizes_that_do_not_halve_evenly(self):
        model = randomised(planes_unet(plane_sizes=((6, 5), (3, 5), (7, 6)), block_out_channels=(16, 32)))
        tokens = 30 + 15 + 42
        prediction = model(torch.randn(1, 4, tokens, generator=generator()), 3).sample
        assert prediction.shape == (1, 4, tokens)
        assert prediction.isfinite().all()

    def test_gradient_checkpointing_gives_the_same_gradients(self, latents):
        gradients = []
        for checkpointing in (False, True):
            model = randomised(planes_unet()).train()
            if checkpointing:
                model.enable_gradient_checkpointing()
                assert model.is_gradient_checkpointing
            model(latents, 50).sample.square().mean().backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert all(gradient.abs().max() > 0 for name, gradient in gradients[0].items() if "to_k.bias" not in name)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)

    def test_saves_and_loads(self, planes_model, latents, tmp_path):
        planes_model.save_pretrained(tmp_path)
        loaded = PlanesUNet2DModel.from_pretrained(tmp_path)
        assert loaded.config.plane_sizes == [[8, 8], [4, 8], [4, 8]]
        torch.testing.assert_close(loaded(latents, 1).sample, planes_model(latents, 1).sample)

    def test_without_the_mixture_the_network_is_the_prediction(self, planes_model, latents):
        model = planes_unet(mixed_prediction=False).eval()
        model.load_state_dict({k: v for k, v in planes_model.state_dict().items() if not k.startswith("mixing")})
        torch.testing.assert_close(model(latents, 1).sample, planes_model.unmixed(latents, 1), rtol=0, atol=0)
        assert (model(latents, 1).sample - planes_model(latents, 1).sample).abs().max() > 1e-2

    def test_prompt(self, latents):
        model = randomised(planes_unet(cross_attention_dim=12))
        prompt = torch.randn(2, 5, 12, generator=generator(2))
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        prediction = model(latents, 100, prompt, mask).sample
        hidden_changed = prompt.clone()
        hidden_changed[0, 3:] += 10
        torch.testing.assert_close(model(latents, 100, hidden_changed, mask).sample, prediction)
        seen_changed = prompt.clone()
        seen_changed[0, 0] += 10
        difference = (model(latents, 100, seen_changed, mask).sample - prediction).abs().amax((1, 2))
        assert difference[0] > 1e-3
        assert difference[1] < 1e-4

    def test_prompt_missing_or_unwanted(self, planes_model, latents):
        with pytest.raises(ValueError, match="without `cross_attention_dim`"):
            planes_model(latents, 1, torch.zeros(2, 5, 12))
        with pytest.raises(ValueError, match="pass `encoder_hidden_states`"):
            planes_unet(cross_attention_dim=12)(latents, 1)

    @pytest.mark.parametrize("shape", [(2, 4, 127), (2, 3, 128), (4, 128), (2, 4, 8, 16)])
    def test_wrong_latents(self, planes_model, shape):
        with pytest.raises(ValueError, match=r"\(batch, 4, 128\)"):
            planes_model(torch.zeros(shape), 1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"plane_sizes": ((8, 8), (4, 0))}, r"plane_sizes.*\(height, width\)"),
            ({"attention_levels": (True,)}, "attention_levels.*block_out_channels.*each level"),
            ({"joint_attention_heads": 5}, "16.*multiple of `joint_attention_heads` 5"),
            ({"attention_head_dim": 24}, "32.*multiple of `attention_head_dim` 24"),
        ],
    )
    def test_wrong_config(self, options, message):
        with pytest.raises(ValueError, match=message):
            planes_unet(**options)
