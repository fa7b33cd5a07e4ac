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
import logging

import diffusers
import numpy as np
import pytest
import torch
from tiny import FITTING_SCHEDULERS

from diffusers_ddmi import NeuralField


STEPS = 3
FOREIGN = ("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


class Checkerboard:
    """A field of black and white cells: -1 and 1."""

    bounds, device = (-1.0, 1.0), torch.device("cpu")

    def __init__(self, cells: int):
        self.cells = cells

    def __call__(self, coords, scale=None):
        x, y = ((coords + 1) / 2 * self.cells).floor().long().unbind(-1)
        return ((x + y) % 2 * 2.0 - 1)[None, :, None].expand(1, -1, 3)


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline("image")


def images(pipe, seeded, **options):
    options = {"num_inference_steps": STEPS, "generator": seeded(), "output_type": "np", **options}
    return pipe(**options).images


class TestOutputs:
    @pytest.mark.parametrize("output_type", ["pil", "np", "pt", "field", "latent"])
    def test_every_output_type_with_and_without_a_dict(self, pipe, seeded, output_type):
        options = {"batch_size": 2, "height": 12, "width": 20, "output_type": output_type, "num_inference_steps": 2}
        result = pipe(generator=seeded(), **options).images
        (again,) = pipe(generator=seeded(), return_dict=False, **options)
        shapes = {"np": (2, 12, 20, 3), "pt": (2, 3, 12, 20), "latent": (2, *pipe.vae.latent_shape)}
        if output_type in shapes:
            assert tuple(result.shape) == shapes[output_type]
            np.testing.assert_array_equal(np.asarray(result), np.asarray(again))
        elif output_type == "pil":
            assert [image.size for image in result] == [(20, 12)] * 2
            assert [image.tobytes() for image in result] == [image.tobytes() for image in again]
        else:
            assert isinstance(result, NeuralField)
            coords = torch.rand(50, 2, generator=seeded()) * 2 - 1
            torch.testing.assert_close(result(coords), again(coords), rtol=0, atol=0)

    def test_sizes_default_to_the_encoders(self, pipe, seeded):
        assert images(pipe, seeded).shape[1:3] == (16, 16)

    def test_sizes_may_be_numpys(self, pipe, seeded):
        assert images(pipe, seeded, height=np.int64(12), width=np.int32(20)).shape[1:3] == (12, 20)

    def test_the_shared_arguments_have_one_order(self, pipe, seeded):
        by_position = pipe(None, 2, STEPS, 3.0, 0.0, seeded(), None, "np", False)
        np.testing.assert_array_equal(by_position[0], images(pipe, seeded, batch_size=2))

    def test_repetition(self, pipe, seeded):
        assert len(images(pipe, seeded, batch_size=2, num_images_per_prompt=3)) == 6


class TestOneFunction:
    """Whatever the grid, a coordinate has one value."""

    def test_a_region_is_a_crop(self, pipe, seeded):
        whole = images(pipe, seeded, height=64, width=64)
        part = images(pipe, seeded, height=32, width=16, region=(-0.5, 0.0, 0.0, 1.0))
        np.testing.assert_allclose(part, whole[:, 32:, 16:32], atol=1e-4)
        assert part.std() > 1e-3

    def test_grids_agree_where_they_meet(self, pipe, seeded):
        """Pixel centres of a 32-pixel image are among those of a 96-pixel one; same scale input for both."""
        field = images(pipe, seeded, output_type="field")
        coarse, fine = ((2 * torch.arange(n) + 1) / n - 1 for n in (32, 96))
        grid = lambda c: torch.stack(torch.meshgrid(c, c, indexing="xy"), dim=-1)  # noqa: E731
        low = field(grid(coarse).flatten(0, 1), scale=0.5).unflatten(1, (32, 32))
        high = field(grid(fine).flatten(0, 1), scale=0.5).unflatten(1, (96, 96))
        torch.testing.assert_close(high[:, 1::3, 1::3], low, rtol=0, atol=1e-4)

    def test_a_sample_does_not_depend_on_its_batch(self, pipe, seeded):
        together = images(pipe, seeded, batch_size=3, generator=[seeded(i) for i in range(3)])
        alone = [images(pipe, seeded, generator=[seeded(i)])[0] for i in range(3)]
        np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)
        assert np.abs(together[0] - together[1]).max() > 1e-2

    def test_small_images_average_the_native_ones(self, pipe, seeded):
        small = images(pipe, seeded, height=4, width=4)
        field = images(pipe, seeded, output_type="field")
        centres = (2 * torch.arange(16) + 1) / 16 - 1
        values = field(torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1))
        expected = values.unflatten(1, (4, 4, 4, 4)).mean(dim=(2, 4)).add(1).div(2).clamp(0, 1)
        np.testing.assert_allclose(small, expected.numpy(), atol=1e-4)

    def test_what_is_too_fine_for_the_pixels_shows_as_its_mean(self, pipe):
        """A checkerboard of native pixels has no pattern left at a quarter of the size."""
        field = Checkerboard(cells=16)
        small = pipe.render(field, "np", **pipe.check_render_inputs("np", 4, 4, None)).images
        np.testing.assert_allclose(small, 0.5, atol=1e-6)
        native = pipe.render(field, "np", **pipe.check_render_inputs("np", 16, 16, None)).images
        assert set(np.unique(native)) == {0.0, 1.0}


class TestSampling:
    def test_initial_noise_is_the_generators(self, pipe, seeded):
        noise = torch.randn(1, *pipe.vae.latent_shape, generator=seeded(5))
        given = images(pipe, seeded, latents=noise)
        drawn = images(pipe, seeded, generator=seeded(5))
        np.testing.assert_array_equal(given, drawn)

    def test_latents_are_standardised_by_the_vae(self, pipe, seeded):
        latents = images(pipe, seeded, output_type="latent")
        pipe.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
        coords = torch.rand(20, 2, generator=seeded()) * 2 - 1
        with torch.no_grad():
            expected = pipe.vae.decode(latents / 0.5 + 0.25).field(coords)
        torch.testing.assert_close(images(pipe, seeded, output_type="field")(coords), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", FITTING_SCHEDULERS)
    def test_schedulers_can_be_swapped(self, pipe, seeded, name):
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        result = images(pipe, seeded, num_inference_steps=6)
        assert np.isfinite(result).all() and result.std() > 1e-3

    @pytest.mark.parametrize("name", FOREIGN)
    def test_schedulers_of_other_processes_are_refused(self, pipe, seeded, name):
        pipe.scheduler = getattr(diffusers, name)()
        with pytest.raises(ValueError, match=f"{name} does not fit"):
            images(pipe, seeded)

    def test_another_prediction_type_is_refused(self, pipe, seeded):
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
        with pytest.raises(ValueError, match="'v_prediction'; this denoiser predicts 'epsilon'"):
            images(pipe, seeded)

    def test_a_callback_sees_and_changes_latents_and_can_interrupt(self, pipe, seeded):
        seen = []

        def callback(pipe, step, timestep, tensors):
            seen.append((step, tuple(tensors["latents"].shape)))
            pipe._interrupt = step == 1
            return {"latents": torch.zeros_like(tensors["latents"])}

        result = images(pipe, seeded, output_type="latent", num_inference_steps=5, callback_on_step_end=callback)
        assert seen == [(0, (1, *pipe.vae.latent_shape)), (1, (1, *pipe.vae.latent_shape))]
        assert (result == 0).all()

    def test_the_progress_bar_can_be_set(self, pipe, capfd):
        pipe(num_inference_steps=2, output_type="latent")
        assert capfd.readouterr().err == ""
        pipe.set_progress_bar_config(disable=False, desc="denoising")
        pipe(num_inference_steps=2, output_type="latent")
        assert "denoising: 100%" in capfd.readouterr().err

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, pipe, seeded, dtype):
        full = images(pipe, seeded)
        half = images(pipe.to(dtype), seeded)
        assert np.isfinite(half).all()
        assert np.abs(full - half).mean() < 0.1

    def test_compiled_components_change_nothing(self, pipe, seeded, tmp_path):
        expected = images(pipe, seeded)
        pipe.unet, pipe.vae = (torch.compile(module, backend="eager") for module in (pipe.unet, pipe.vae))
        np.testing.assert_allclose(images(pipe, seeded), expected, atol=1e-5)
        pipe.save_pretrained(tmp_path)
        loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
        np.testing.assert_allclose(images(loaded, seeded), expected, atol=1e-5)


class TestText:
    @pytest.fixture
    def pipe(self, make_pipeline):
        return make_pipeline("image", text=True)

    @pytest.fixture
    def run(self, pipe, seeded):
        """Latents after two steps from the same noise."""
        noise = torch.randn(1, *pipe.vae.latent_shape, generator=seeded(1))

        def run(prompt=None, count=1, guidance_scale=3.0, **options):
            options = {"num_inference_steps": 2, "latents": noise.expand(count, -1, -1, -1), **options}
            return pipe(prompt, guidance_scale=guidance_scale, output_type="latent", **options).images

        return run

    def test_guidance_follows_its_formula(self, run):
        """One DDIM step is linear in the guided prediction ε(∅) + w (ε(prompt) − ε(∅))."""
        conditional = run("a b c", guidance_scale=1.0, num_inference_steps=1)
        unconditional = run("", guidance_scale=1.0, num_inference_steps=1)
        guided = run("a b c", guidance_scale=4.0, num_inference_steps=1)
        torch.testing.assert_close(guided, unconditional + 4.0 * (conditional - unconditional), rtol=1e-3, atol=1e-3)
        assert (conditional - unconditional).abs().max() > 1e-4
        torch.testing.assert_close(run("a", negative_prompt="a"), run("a", guidance_scale=1.0), rtol=1e-3, atol=1e-3)

    def test_without_a_prompt_the_empty_one_is_meant(self, run):
        torch.testing.assert_close(run(), run("", guidance_scale=1.0))

    def test_prompts_negative_prompts_and_repetitions_pair(self, run):
        """Samples come prompt by prompt, each with its own negative prompt."""
        together = run(["a", "b"], batch_size=2, negative_prompt=["c", "d"], count=4)
        first, second = run("a", negative_prompt="c"), run("b", negative_prompt="d")
        torch.testing.assert_close(together, torch.cat([first, first, second, second]), rtol=1e-4, atol=1e-4)
        assert (first - second).abs().max() > 1e-2

    def test_texts_can_be_encoded_ahead(self, pipe, run):
        expected = run("a", negative_prompt="b")
        prompt_embeds, negative_prompt_embeds = pipe.encode_prompt("a", negative_prompt="b")
        pipe.text_encoder = pipe.tokenizer = None
        got = run(prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds)
        torch.testing.assert_close(got, expected)
        with pytest.raises(ValueError, match="pass `negative_prompt_embeds`"):
            run(prompt_embeds=prompt_embeds)
        with pytest.raises(ValueError, match="this pipeline has no text encoder"):
            run("a")

    def test_a_callback_changes_guidance(self, run):
        names = ["prompt_embeds", "negative_prompt_embeds"]

        def switch_off(pipe, step, timestep, tensors):
            assert list(tensors) == names
            pipe._guidance_scale = 1.0
            return tensors

        changed = run("a", callback_on_step_end=switch_off, callback_on_step_end_tensor_inputs=names)
        assert (changed - run("a")).abs().max() > 1e-4

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"prompt": 3}, TypeError, "`prompt` must be a string or a non-empty list of strings, got 3"),
            ({"prompt": []}, TypeError, "non-empty list"),
            ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, ValueError, "3 negative prompts for 2 prompts"),
            ({"negative_prompt": "c"}, ValueError, "no effect without a `prompt`"),
            ({"prompt": "a", "prompt_embeds": torch.zeros(1, 4, 16)}, ValueError, "not both"),
        ],
    )
    def test_bad_prompts_are_named(self, pipe, options, error, message):
        with pytest.raises(error, match=message):
            pipe(**options)

    def test_a_long_prompt_is_cut_with_a_warning(self, pipe, seeded, caplog):
        logger = logging.getLogger("diffusers_ddmi.pipelines.base")
        logger.addHandler(caplog.handler)
        try:
            images(pipe, seeded, prompt="a " * 40, num_inference_steps=1)
        finally:
            logger.removeHandler(caplog.handler)
        assert "cut off" in caplog.text

    def test_the_pipeline_reloads_with_its_text_encoder(self, pipe, seeded, tmp_path):
        expected = images(pipe, seeded, prompt="a chair")
        pipe.save_pretrained(tmp_path / "saved")
        loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
        loaded.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(loaded, seeded, prompt="a chair"), expected, atol=1e-4)

    def test_a_part_that_only_encodes_text_is_saved_and_loaded(self, pipe, tmp_path):
        expected, _ = pipe.encode_prompt("a chair", do_classifier_free_guidance=False)
        pipe.save_pretrained(tmp_path / "whole")
        for name in ("whole", "part"):
            part = diffusers.DiffusionPipeline.from_pretrained(tmp_path / name, vae=None, unet=None)
            part.save_pretrained(tmp_path / "part")
        torch.testing.assert_close(part.encode_prompt("a chair", do_classifier_free_guidance=False)[0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "jpeg"}, "`output_type` must be one of pil, np, pt, field, latent, got 'jpeg'"),
        ({"height": 0}, "`height` must be a positive whole number, got 0"),
        ({"width": -4}, "`width` must be a positive whole number, got -4"),
        ({"height": 16.0}, "`height` must be a positive whole number, got 16.0"),
        ({"region": (0, 0, 2, 1)}, "`region` must lie inside"),
        ({"region": (0.5, 0, 0, 1)}, "`region` must lie inside"),
        ({"batch_size": 0}, "`batch_size` must be a positive whole number"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive whole number"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, r"`latents` must be initial noise of shape \(1, 4, 4, 4\)"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 samples"),
        ({"prompt": "a cat"}, "not trained on text"),
        ({"callback_on_step_end_tensor_inputs": ["secrets"]}, "must be among"),
    ],
)
def test_bad_input_is_named_before_any_work(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**options)


def test_a_vae_of_another_modality_is_refused(make_pipeline):
    shape, image = make_pipeline("shape"), make_pipeline("image")
    with pytest.raises(ValueError, match="of modality 'image', got AutoencoderD2C of modality 'shape'"):
        type(image)(shape.vae, image.unet, image.scheduler)
