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
"""The D2C-VAE of all four modalities."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torch.nn import functional as F

from diffusers_ddmi import AutoencoderD2C
from diffusers_ddmi.modalities import MODALITIES
from diffusers_ddmi.models.autoencoder_d2c import LatentDistribution


CONFIGS = Path(__file__).parents[2] / "training" / "configs"
COMMON = {
    "sample_size": 16,
    "latent_channels": 3,
    "bottleneck_channels": 4,
    "block_out_channels": (8, 8, 16),
    "norm_num_groups": 4,
    "basis_channels": 4,
    "readout_config": {"hidden_channels": 16},
}
POINTS = {"encoder_config": {"hidden_channels": 8, "out_channels": 8, "num_blocks": 2}}
TINY = {
    "image": COMMON,
    "shape": {**COMMON, **POINTS},
    "nerf": {**COMMON, **POINTS},
    "video": {
        **COMMON,
        "num_frames": 3,
        "mixing_heads": 2,
        "encoder_config": {
            "patch_size": 4,
            "hidden_channels": 16,
            "depth": 1,
            "heads": 2,
            "head_dim": 8,
            "plane_depth": 1,
            "plane_heads": 2,
            "plane_inner_dim": 16,
        },
    },
}
DATA = {"image": (3, 16, 16), "shape": (60, 3), "nerf": (60, 6), "video": (3, 3, 16, 16)}
LATENTS = {"image": (3, 4, 4), "shape": (9, 4, 4), "nerf": (9, 4, 4), "video": (3, 16 + 2 * 12)}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturb(model: nn.Module) -> nn.Module:
    """Moves every parameter, so that what is 0 at the start does something, and reloading is observable."""
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.add_(draw(*parameter.shape, seed=seed), alpha=0.03)
    return model


def tiny(modality: str, **changes) -> AutoencoderD2C:
    torch.manual_seed(0)
    return perturb(AutoencoderD2C(modality=modality, **{**TINY[modality], **changes})).eval()


def data(modality: str, batch: int = 2) -> torch.Tensor:
    return draw(batch, *DATA[modality]).mul(0.3).clamp(-0.5, 0.5)


def queries(modality: str, *leading: int) -> dict[str, torch.Tensor]:
    """Coordinates, and directions where the modality has them."""
    axes, (low, high) = MODALITIES[modality].axes, MODALITIES[modality].bounds
    given = {
        "coords": low + (high - low) * torch.rand(*leading, len(axes), generator=torch.Generator().manual_seed(5))
    }
    if modality == "nerf":
        given["directions"] = F.normalize(draw(*leading, 3), dim=-1)
    return given


@pytest.fixture(params=list(TINY))
def modality(request) -> str:
    return request.param


# What it computes


@torch.no_grad()
def test_shapes(modality):
    vae, x = tiny(modality), data(modality)
    assert vae.latent_shape == LATENTS[modality]
    posterior = vae.encode(x).latent_dist
    assert posterior.mean.shape == posterior.logvar.shape == (2, *LATENTS[modality])
    field = vae.decode(posterior.mode()).field
    assert (len(field), field.axes, field.bounds) == (2, MODALITIES[modality].axes, MODALITIES[modality].bounds)
    assert field.basis_fields.num_scales == 3
    channels = len(MODALITIES[modality].values)
    values = field(**queries(modality, 11))
    assert values.shape == (2, 11, channels)
    assert values.isfinite().all()
    output = vae(x, **queries(modality, 2, 11))
    assert output.sample.shape == (2, 11, channels)
    assert output.posterior.mean.shape == (2, *LATENTS[modality])


@torch.no_grad()
def test_forward_is_encode_decode_and_read(modality):
    vae, x = tiny(modality), data(modality)
    given = queries(modality, 2, 11)
    expected = vae.decode(vae.encode(x).latent_dist.mode()).field(**given)
    torch.testing.assert_close(vae(x, **given, sample_posterior=False).sample, expected)
    (sample, posterior) = vae(x, **given, sample_posterior=False, return_dict=False)
    torch.testing.assert_close(sample, expected)
    (field,) = vae.decode(posterior.mode(), return_dict=False)
    torch.testing.assert_close(field(**given), expected)
    assert torch.equal(vae.encode(x, return_dict=False)[0].mean, posterior.mean)


@torch.no_grad()
def test_items_of_a_batch_do_not_mix(modality):
    vae, x = tiny(modality), data(modality, 3)
    together, alone = vae.encode(x).latent_dist, vae.encode(x[1:2]).latent_dist
    torch.testing.assert_close(alone.mean, together.mean[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.logvar, together.logvar[1:2], rtol=1e-4, atol=1e-5)
    given = queries(modality, 7)
    values = vae.decode(together.mean).field(**given)
    torch.testing.assert_close(vae.decode(together.mean[1:2]).field(**given), values[1:2], rtol=1e-4, atol=1e-5)
    assert (values[1] - values[0]).abs().max() > 1e-4


@torch.no_grad()
def test_slicing_changes_nothing(modality):
    vae, x, given = tiny(modality), data(modality, 3), queries(modality, 3, 7)
    z = vae.encode(x).latent_dist.mode()
    values = vae.decode(z).field(**given)
    vae.enable_slicing()
    torch.testing.assert_close(vae.encode(x).latent_dist.mode(), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(z).field(**given), values, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_randomness_comes_from_the_generator(modality):
    vae, x, given = tiny(modality), data(modality), queries(modality, 7)
    samples = [vae(x, **given, generator=torch.Generator().manual_seed(seed)).sample for seed in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1])
    assert (samples[0] - samples[2]).abs().max() > 1e-4


@torch.no_grad()
def test_images_of_other_sizes_have_other_latents():
    vae = tiny("image")
    z = vae.encode(draw(1, 3, 24, 8)).latent_dist.mode()
    assert z.shape == (1, 3, 6, 2)
    assert vae.decode(z).field.basis_fields.sizes == [[(6, 2)], [(12, 4)], [(24, 8)]]


def test_decoded_fields_outlive_the_model(modality):
    vae, given = tiny(modality), queries(modality, 7)
    z = draw(2, *vae.latent_shape)
    with torch.no_grad():
        field = vae.decode(z).field
        values = field(**given)
        for parameter in vae.parameters():
            parameter.zero_()
    vae.to("meta")
    assert torch.equal(field(**given), values)


def test_fields_decoded_with_gradients_train_the_model(modality):
    vae = tiny(modality)
    z = draw(1, *vae.latent_shape).requires_grad_()
    vae.decode(z).field(**queries(modality, 7)).square().sum().backward()
    assert z.grad.abs().max() > 0
    assert all(p.grad is not None for p in vae.readout.parameters())


def test_encoder_planes_fill_the_planes_they_name():
    """Converted weights of which encoder and decoder name planes differently."""
    usual = tiny("shape")
    crossed = tiny("shape", encoder_planes=("xy", "yz", "xz"))
    crossed.load_state_dict(usual.state_dict())
    x = data("shape")
    with torch.no_grad():
        xy, xz, yz = usual.layout.unpack(usual.encode(x).latent_dist.mean)
        result = crossed.encode(x).latent_dist.mean
    assert torch.equal(result, torch.cat([xy, yz, xz], dim=1))


# The posterior


@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (2, 6, 40)])
def test_divergences_are_those_of_gaussians(shape):
    posterior, other = LatentDistribution(draw(*shape)), LatentDistribution(draw(*shape, seed=1))

    def normal(distribution: LatentDistribution) -> torch.distributions.Normal:
        return torch.distributions.Normal(distribution.mean, distribution.std)

    def summed(terms: torch.Tensor) -> torch.Tensor:
        return terms.flatten(1).sum(dim=1)

    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    divergence = torch.distributions.kl_divergence
    torch.testing.assert_close(posterior.kl(), summed(divergence(normal(posterior), standard)))
    torch.testing.assert_close(posterior.kl(other), summed(divergence(normal(posterior), normal(other))))
    assert posterior.kl(posterior).abs().max() < 1e-4
    sample = draw(*posterior.mean.shape, seed=2)
    torch.testing.assert_close(posterior.nll(sample), -summed(normal(posterior).log_prob(sample)))


def test_samples_have_the_moments_of_the_posterior():
    moments = torch.stack([torch.full((2000,), 3.0), torch.full((2000,), 2 * torch.tensor(0.5).log().item())])
    posterior = LatentDistribution(moments[None])
    sample = posterior.sample(generator=torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(3.0, abs=0.05)
    assert sample.std().item() == pytest.approx(0.5, abs=0.03)


# Training


def test_every_parameter_receives_a_gradient(modality):
    vae = tiny(modality).train()
    vae(data(modality), **queries(modality, 2, 50)).sample.square().sum().backward()
    # Attention does not change when a constant joins every key, so the keys' biases have no influence.
    unused = [
        name
        for name, p in vae.named_parameters()
        if p.grad is None or (p.grad.abs().max() == 0 and not name.endswith("to_k.bias"))
    ]
    assert unused == []


def test_noise_weights_of_converted_models_are_not_trained():
    """They are in no graph, and DDP expects a gradient of every parameter that requires one."""
    vae = tiny("image", readout_config={"hidden_channels": 16, "noise_injection": True}).train()
    vae(data("image"), **queries("image", 20)).sample.square().sum().backward()
    assert [name for name, p in vae.named_parameters() if p.requires_grad and p.grad is None] == []


def test_gradient_checkpointing_gives_the_same_gradients(modality):
    gradients = []
    for checkpointing in (False, True):
        vae = tiny(modality).train()
        if checkpointing:
            vae.enable_gradient_checkpointing()
        output = vae(data(modality), **queries(modality, 20), generator=torch.Generator().manual_seed(0))
        (output.sample.square().sum() + output.posterior.kl().sum()).backward()
        gradients.append([parameter.grad for parameter in vae.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_keeps_less(modality):
    def held(checkpointing: bool) -> int:
        vae = tiny(modality).train()
        if checkpointing:
            vae.enable_gradient_checkpointing()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            vae(data(modality), **queries(modality, 4000))
        return sum(sizes)

    assert held(True) < held(False) / 4


@pytest.mark.parametrize(("num_scales", "conditioning"), [(1, "concat"), (3, "input"), (3, "sum"), (3, "concat")])
def test_training_lowers_the_loss(num_scales, conditioning):
    """In each setting of the paper's ablation."""
    readout_config = {"hidden_channels": 16, "conditioning": conditioning}
    vae = tiny("image", num_scales=num_scales, readout_config=readout_config).train()
    x, coords = data("image"), queries("image", 2, 60)["coords"]
    targets = F.grid_sample(x, coords[:, None], align_corners=False)[:, :, 0].transpose(1, 2)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = (vae(x, coords, sample_posterior=False).sample - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_mixed_precision_training(modality):
    vae, given = tiny(modality).train(), queries(modality, 50)
    expected = vae(data(modality), **given, sample_posterior=False).sample
    with torch.autocast("cpu", torch.bfloat16):
        sample = vae(data(modality), **given, sample_posterior=False).sample
    assert (sample.float() - expected).square().mean().sqrt() < 0.1 * expected.std()
    sample.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())


# Saving, casting, offloading


@torch.no_grad()
def test_save_and_load(modality, tmp_path):
    vae, x, given = tiny(modality), data(modality), queries(modality, 7)
    vae.save_pretrained(tmp_path)
    loaded, info = AutoencoderD2C.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = vae.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())
    for output in ("sample", "posterior"):
        expected = getattr(vae(x, **given, sample_posterior=False), output)
        result = getattr(loaded(x, **given, sample_posterior=False), output)
        if output == "posterior":
            expected, result = expected.parameters, result.parameters
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_config_round_trip(modality, tmp_path):
    vae = tiny(modality, scaling_factor=1.7, shift_factor=0.2, min_scale=0.25)
    vae.save_config(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["modality"], stored["scaling_factor"]) == (modality, 1.7)
    again = AutoencoderD2C.from_config(AutoencoderD2C.load_config(tmp_path))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in vae.named_parameters()}
    again.save_config(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == stored


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_other_precisions(modality, dtype, tolerance):
    vae, x, given = tiny(modality), data(modality), queries(modality, 50)
    values = vae(x, **given, sample_posterior=False).sample
    cast = vae.to(dtype)(x.to(dtype), **given, sample_posterior=False).sample
    assert cast.dtype == dtype
    assert (cast.float() - values).square().mean().sqrt() < tolerance * values.std()


@torch.no_grad()
def test_weights_that_hooks_bring_on_demand(modality):
    """Sequential offloading: the weights are there only while a submodule runs, also in the field."""
    vae, z, given = tiny(modality), draw(2, *LATENTS[modality]), queries(modality, 7)
    values = vae.decode(z).field(**given)
    cpu_offload(vae, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}
    assert torch.equal(vae.decode(z).field(**given), values)


# Published sizes (OFFICIAL presets)


def count(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


@pytest.mark.parametrize(
    ("preset", "autoencoder", "readout", "point_encoder"),
    [
        ("official/image", 57_201_088, 1_880_021, 0),
        ("official-celebahq/image", 69_598_144, 1_880_021, 0),
        ("official/shape", 124_110_464, 629_825, 2_307_616),
        ("official/video", 88_634_240, 858_819, 0),
        ("official/nerf", 124_067_296, 554_116, 2_309_152),
    ],
)
def test_official_presets_have_the_published_sizes(preset, autoencoder, readout, point_encoder):
    config = AutoencoderD2C.load_config(CONFIGS / preset / "vae")
    with torch.device("meta"):
        vae = AutoencoderD2C.from_config(config)
    points = count(vae.encoder.points)
    assert (count(vae) - count(vae.readout) - points, count(vae.readout), points) == (
        autoencoder,
        readout,
        point_encoder,
    )


# Bad input


@pytest.mark.parametrize(
    ("modality", "changes", "message"),
    [
        ("image", {"sample_size": 18}, r"multiple of 4.*got 18"),
        ("image", {"sample_size": 0}, r"multiple of 4.*got 0"),
        ("image", {"sample_size": "16"}, r"multiple of 4.*got '16'"),
        ("image", {"num_scales": 4}, "between 1 and the 3 levels, got 4"),
        ("image", {"mixing_levels": (True,)}, r"one flag a level \(3\), got \(True,\)"),
        ("image", {"encoder_config": {"depth": 2}}, "no `encoder_config`"),
        ("image", {"readout_config": {"hidden_channels": 12}}, "multiple of 8.*got 12"),
        ("shape", {"encoder_planes": ("xy", "xz")}, r"`encoder_planes`.*got \('xy', 'xz'\)"),
        ("shape", {"planes": ("xy", "xt")}, "'xt'"),
        ("shape", {"plane_mixing": "maybe"}, "`plane_mixing`.*'maybe'"),
        ("video", {"num_frames": None}, "`num_frames`"),
        ("video", {"plane_mixing": "convolution"}, "Use 'attention'"),
        ("shape", {"readout_config": {"conditioning": "mean"}}, "`conditioning`.*'mean'"),
        ("shape", {"reach": 3}, "reach"),
    ],
)
def test_wrong_config(modality, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny(modality, **changes)


def test_unknown_modality():
    with pytest.raises(ValueError, match=r"Unknown modality 'music': expected one of image, shape, video, nerf"):
        AutoencoderD2C(modality="music")


def test_wrong_inputs(modality):
    vae = tiny(modality)
    with pytest.raises(ValueError, match=r"[Ee]xpected .*\(batch"):
        vae.encode(torch.zeros(2, 5, 5, 5))
    shape = vae.latent_shape
    for wrong in [(2, *shape[:-1]), (2, 2 * shape[0], *shape[1:]), (2, shape[0] + 1, *shape[1:])]:
        with pytest.raises(ValueError, match=r"Expected latents .*got shape"):
            vae.decode(torch.zeros(wrong))


def test_data_and_latents_of_another_precision(modality):
    """They are brought to that of the weights."""
    vae = tiny(modality)
    z = torch.zeros(1, *vae.latent_shape)
    with torch.no_grad():
        one, two = (vae.decode(z.to(dtype)).field for dtype in (torch.float32, torch.float64))
    assert two.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(one.basis_fields.tables, two.basis_fields.tables, strict=True))
    with pytest.raises(TypeError, match=r"`z` must be a floating-point.*int64"):
        vae.decode(z.long())
    with pytest.raises(TypeError, match=r"`x` must be a floating-point.*list"):
        vae.encode([[0.0]])
