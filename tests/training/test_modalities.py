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
"""Both stages of the other modalities by the training scripts, with text, and what users do with the result."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from running import run

import diffusers_ddmi


SHARED = {
    "preset": "tiny",
    "dataset_name": "procedural",
    "max_train_samples": 6,
    "train_batch_size": 2,
    "max_train_steps": 2,
    "num_validation_samples": 2,
    "learning_rate": 1e-3,
    "num_points": 64,
}
# What rendering takes, and the shape of what comes out as "np", or None where it is no array.
MODALITIES = {
    "shape": ({"num_queries": 64}, {"resolution": 12}, None),
    "video": ({"num_queries": 64}, {"num_frames": 5, "height": 12, "width": 8}, (1, 5, 12, 8, 3)),
    "nerf": ({"num_queries": 8, "num_ray_samples": 4}, {"num_views": 2, "height": 8, "width": 6}, (1, 2, 8, 6, 3)),
}


# An untrained shape may be empty.
pytestmark = pytest.mark.filterwarnings("ignore:.*its mesh is empty:UserWarning")


@pytest.fixture(params=MODALITIES)
def trained(request, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stage_1, *rendering = MODALITIES[request.param]
    common = {name: value for name, value in stage_1.items() if name != "num_ray_samples"}
    assert run("train_d2c_vae", modality=request.param, output_dir=tmp_path / "vae", **{**SHARED, **stage_1})
    options = {**SHARED, **common, "train_text_encoder": True, "ddpm_num_inference_steps": 2}
    options |= {"cache_latents": True, "pretrained_vae": tmp_path / "vae", "validation_prompts": ["a red disc"]}
    assert run("train_ldm", output_dir=tmp_path / "ddmi", **options)
    yield request.param, tmp_path, *rendering
    torch.set_num_threads(threads)


def test_trained_by_the_scripts(trained):
    modality, folder, options, shape = trained
    for stage, suffix in (("vae", "*"), ("ddmi", "*")):
        assert list((folder / stage / "validation").glob(f"step-000002.{suffix}")), f"{stage} shows what it learned"
    pipe = DiffusionPipeline.from_pretrained(folder / "ddmi")
    assert type(pipe).__name__ == {"shape": "DDMIShapePipeline", "video": "DDMIVideoPipeline"}.get(
        modality, "DDMINeRFPipeline"
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe.text_encoder is not None and pipe.takes_text
    for scheduler in (DDIMScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)

        def generate(prompt, output_type, **further):
            generator = torch.Generator().manual_seed(0)
            call = {"num_inference_steps": 2, "generator": generator, "output_type": output_type, "return_dict": False}
            return pipe(prompt, **call, **further)[0]

        latents = generate("a red disc", "latent")
        assert latents.shape == (1, *pipe.vae.latent_shape) and latents.isfinite().all()
        assert not torch.equal(latents, generate("a blue cross", "latent")), "the prompt matters"
        assert isinstance(generate("a red disc", "field"), diffusers_ddmi.NeuralField)
        if shape is None:
            (mesh,) = generate("a red disc", "trimesh", **options)
            assert np.isfinite(mesh.vertices).all()
            continue
        array = generate("a red disc", "np", **options)
        assert array.shape == shape and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1
        tensor = generate("a red disc", "pt", **options)
        np.testing.assert_allclose(tensor.movedim(-3, -1).numpy(), array, atol=1e-6)
        pictures = generate("a red disc", "pil", **options)
        assert len(pictures) == 1 and pictures[0][0].size == (shape[3], shape[2])
