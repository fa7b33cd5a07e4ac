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
"""Converted models compute what the official code computes from the same weights, to 1e-4 relative (float32)."""

import functools

import pytest
import torch
from diffusers import DiffusionPipeline

import diffusers_ddmi
from diffusers_ddmi.rendering.cameras import Cameras
from diffusers_ddmi.rendering.volume import render_views


DOMAINS = ("image", "occupancy", "video", "nerf")


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert found.isfinite().all()
    assert expected.abs().max() > 0
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, f"relative error {error:.2e}"


class Model:
    """A converted pipeline beside the golden tensors."""

    def __init__(self, pipeline: DiffusionPipeline, golden: dict[str, torch.Tensor]):
        self.pipeline = pipeline
        self.golden = golden

    @functools.cached_property
    def posterior(self):
        inputs = next(
            self.golden[f"in/{name}"] for name in ("image", "points", "video") if f"in/{name}" in self.golden
        )
        return self.pipeline.vae.encode(inputs).latent_dist

    @functools.cached_property
    def field(self):
        return self.pipeline.vae.decode(self.golden["in/z"]).field

    @functools.cached_property
    def sampled(self):
        """The field of the official sampler's result."""
        return self.pipeline.vae.decode(self.golden["out/diffusion/ddim_10"]).field


@pytest.fixture(scope="module")
def models(converted):
    @functools.cache
    def load(domain: str) -> Model:
        pipeline = DiffusionPipeline.from_pretrained(converted.path(domain))
        pipeline.set_progress_bar_config(disable=True)
        for component in (pipeline.vae, pipeline.unet):
            component.requires_grad_(False)
        return Model(pipeline, converted.golden(domain))

    return load


@pytest.fixture(params=DOMAINS)
def model(request, models) -> Model:
    return models(request.param)


def test_pipeline_class(model):
    assert type(model.pipeline).__name__ in dir(diffusers_ddmi)
    assert type(model.pipeline).__module__ == "diffusers_ddmi"


class TestDiffusion:
    def test_network(self, model):
        golden = model.golden
        found = model.pipeline.unet.unmixed(golden["in/diffusion/x"], golden["in/diffusion/t"])
        assert_equal(found, golden["out/diffusion/unet"])

    def test_mixed_prediction(self, model):
        golden = model.golden
        found = model.pipeline.unet(golden["in/diffusion/x"], golden["in/diffusion/t"]).sample
        assert_equal(found, golden["out/diffusion/mixed_prediction"])

    def test_training_loss(self, model):
        golden, scheduler = model.golden, model.pipeline.scheduler
        noise, timesteps = golden["in/diffusion/noise"], golden["in/diffusion/t_loss"]
        noisy = scheduler.add_noise(golden["in/diffusion/x0"], noise, timesteps)
        assert_equal(noisy, golden["out/diffusion/q_sample"])
        loss = (model.pipeline.unet(noisy, timesteps).sample - noise).square().mean()
        assert_equal(loss, golden["out/diffusion/p_losses"])

    def test_ten_steps_of_ddim(self, model):
        noise = model.golden["in/diffusion/ddim_noise"]
        result = model.pipeline(
            latents=noise, batch_size=2, num_inference_steps=10, output_type="latent", return_dict=False
        )
        assert_equal(result[0], model.golden["out/diffusion/ddim_10"])


class TestAutoencoder:
    def test_posterior(self, models):
        for domain, mean in (
            ("image", "out/encode/mean"),
            ("occupancy", "out/reconstruct/stage2_order_xy_xz_yz/z"),
            ("video", "out/encode/z_tokens_xy_xt_yt"),
            ("nerf", "out/encode/z_xy_yz_xz"),
        ):
            assert_equal(models(domain).posterior.mean, models(domain).golden[mean])

    @pytest.mark.parametrize(
        ("domain", "planes"),
        [
            ("image", [""]),
            ("occupancy", ["xy/", "xz/", "yz/"]),
            ("video", ["xy/", "xt/", "yt/"]),
            ("nerf", ["xy/", "yz/", "xz/"]),
        ],
    )
    def test_log_variance(self, models, domain, planes):
        golden = models(domain).golden
        expected = [golden[f"out/encode/{plane}logvar"] for plane in planes]
        if domain == "video":
            expected = torch.cat([plane.flatten(2) for plane in expected], dim=2)
        else:
            expected = torch.cat(expected, dim=1)
        assert_equal(models(domain).posterior.logvar, expected)

    @pytest.mark.parametrize(
        ("domain", "planes"),
        [
            ("image", [""]),
            ("occupancy", ["xy/", "xz/", "yz/"]),
            ("video", ["xy/", "xt/", "yt/"]),
            ("nerf", ["xy/", "xz/", "yz/"]),
        ],
    )
    def test_basis_fields(self, models, domain, planes):
        model = models(domain)
        basis_fields = model.field.basis_fields
        assert basis_fields.num_scales == sum(key.startswith(f"out/decode/{planes[0]}hdbf") for key in model.golden)
        for scale in range(basis_fields.num_scales):
            for plane, name in zip(basis_fields.fields(scale), planes):
                plane, expected = plane[:1], model.golden[f"out/decode/{name}hdbf{scale}"]
                if plane.shape != expected.shape:  # thinned in the fixture
                    plane = plane[..., ::3, ::3]
                assert_equal(plane, expected)

    @pytest.mark.parametrize("domain", ["occupancy", "nerf"])
    def test_point_encoder(self, models, domain):
        model = models(domain)
        planes = model.pipeline.vae.encoder.points(model.golden["in/points"])
        for plane, name in zip(planes.unbind(1), ("xy", "xz", "yz")):
            assert_equal(plane[:1, :, ::2, ::2], model.golden[f"out/pointnet/{name}"])


class TestImage:
    @staticmethod
    def read(field, coords, scale) -> torch.Tensor:
        """At official coordinates (1, 2, height, width)."""
        values = field(coords[0].flatten(1).T, scale=float(scale))
        return values.transpose(1, 2).unflatten(-1, coords.shape[2:])

    @pytest.mark.parametrize("size", ["native", "other", "scattered"])
    def test_readout(self, models, size):
        model = models("image")
        scale = model.golden.get(f"in/mlp_{size}/si", 1.0)
        found = self.read(model.field, model.golden[f"in/mlp_{size}/coords"], scale)
        assert_equal(found, model.golden[f"out/mlp_{size}/rgb_zero_noise"])

    def test_readout_with_noise(self, models):
        model = models("image")
        golden, readout = model.golden, model.pipeline.vae.readout
        layers = [f"net_res{block}.conv{index}" for block in range(1, 5) for index in range(1, 4)]
        noise = torch.cat([golden[f"in/mlp_native/noise/{layer}.noise"].flatten(2) for layer in layers], dim=1)
        coords = golden["in/mlp_native/coords"][0].flatten(1).T
        embeddings = model.field.basis_fields.interpolate(coords)
        shared = readout.prepare(golden["in/mlp_native/si"].reshape(1))
        found = readout(embeddings, coords, shared, None, noise.transpose(1, 2))
        expected = golden["out/mlp_native/rgb_with_noise"]
        assert_equal(found.transpose(1, 2).unflatten(-1, expected.shape[-2:]), expected)

    def test_pictures(self, models):
        """The pipeline at another resolution than the native one, from noise to pixels."""
        model = models("image")
        expected = model.golden["out/pipeline/image_raw"]
        pictures = model.pipeline(
            latents=model.golden["in/diffusion/ddim_noise"],
            batch_size=2,
            num_inference_steps=10,
            height=expected.shape[-2],
            width=expected.shape[-1],
            output_type="pt",
        ).images
        assert_equal(pictures, (expected.clamp(-1, 1) + 1) / 2)


class TestShape:
    def test_readout(self, models):
        model = models("occupancy")
        query = model.golden["in/query"]
        assert_equal(model.field(query)[..., 0], model.golden["out/mlp/logits"])
        assert_equal(model.sampled(query)[..., 0], model.golden["out/pipeline/logits"])

    def test_grid(self, models):
        model = models("occupancy")
        axis = torch.linspace(-0.55, 0.55, 16)
        grid = model.sampled[0](torch.cartesian_prod(axis, axis, axis))
        assert_equal(grid.reshape(16, 16, 16), model.golden["out/grid/logits"])

    def test_reconstruction(self, models):
        model = models("occupancy")
        logits = model.pipeline.vae.decode(model.posterior.mean).field(model.golden["in/query"])
        assert_equal(logits[..., 0], model.golden["out/reconstruct/stage2_order_xy_xz_yz/logits"])


def pixel_centres(count: int) -> torch.Tensor:
    return (2 * torch.arange(count) + 1) / count - 1


class TestVideo:
    @pytest.mark.parametrize(
        ("frames", "size", "name"), [(4, 32, "mlp_native/rgb"), (6, 24, "mlp_other/rgb_extension")]
    )
    def test_readout(self, models, frames, size, name):
        model = models("video")
        t, y, x = torch.meshgrid(*map(pixel_centres, (frames, size, size)), indexing="ij")
        values = model.field(torch.stack([x, y, t], dim=-1).flatten(0, 2))
        values = values.transpose(1, 2).unflatten(-1, (frames, size, size))
        assert_equal(values[..., ::2, ::2], model.golden[f"out/{name}"])

    def test_frames(self, models):
        model = models("video")
        frames = model.pipeline(
            latents=model.golden["in/diffusion/ddim_noise"],
            batch_size=2,
            num_inference_steps=10,
            num_frames=4,
            height=32,
            width=32,
            output_type="pt",
        ).frames
        found = frames.transpose(1, 2)[..., ::2, ::2]
        assert_equal(found, (model.golden["out/pipeline/video_raw"].clamp(-1, 1) + 1) / 2)


class TestRadiance:
    def test_readout(self, models):
        model = models("nerf")
        raw = model.golden["out/render_rays/raw"]
        origins, directions, _, _, view = model.golden["in/render_rays/rays"].split((3, 3, 1, 1, 3), dim=-1)
        distances = torch.linspace(2, 6, raw.shape[1])[:, None]
        points = origins[:, None] + directions[:, None] * distances
        values = model.field[0](points.flatten(0, 1), directions=view[:, None].expand_as(points).flatten(0, 1))
        values = values.reshape(raw.shape)
        assert_equal(values[..., :3], raw[..., :3])
        assert_equal(values[..., 3], torch.nn.functional.softplus(raw[..., 3]))

    def test_views(self, models):
        """The official renderer: rays through pixel corners, bounds along the axis, an endless last interval."""
        model = models("nerf")
        golden = model.golden
        cameras = Cameras(
            golden["in/render/c2w"],
            golden["in/render/focal"].item(),
            8,
            8,
            2.0,
            6.0,
            pixel_offset=0.0,
            bounds_along="axis",
        )
        for field, name in ((model.field, "out/render/rgb_item0"), (model.sampled, "out/pipeline/rgb_item0")):
            views = render_views(field, cameras, 24, last_interval_infinite=True).colors
            assert_equal(views[0, 0], golden[name])
            assert torch.equal(
                self.through_the_pipeline(model.pipeline, field, cameras)[0, 0], views[0, 0].clamp(0, 1)
            )

    @staticmethod
    def through_the_pipeline(pipeline, field, cameras) -> torch.Tensor:
        """Views (batch, views, height, width, 3) of an existing field, as a call with `output_type="pt"` shows them."""
        options = {"cameras": cameras, "num_views": None, "height": None, "width": None, "num_samples": 24}
        options |= {"background": 1.0, "resolution": 128, "level": 0.5}
        options = pipeline.check_render_inputs("pt", **options)
        return pipeline.render(field, "pt", **options).frames.movedim(2, -1)
