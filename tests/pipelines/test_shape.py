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
import warnings

import pytest
import torch
import trimesh

from diffusers_ddmi import NeuralField


@pytest.fixture
def pipe(make_pipeline):
    """An untrained model, shifted so that its shapes have a surface: a ball's worth of the box is inside."""
    pipe = make_pipeline("shape")
    field = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="field").meshes
    coords = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        pipe.vae.readout.out.bias.sub_(field(coords).quantile(0.7))
    return pipe


def shapes(pipe, **options):
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "resolution": 24, **options}
    return pipe(**options)


def test_meshes_are_watertight_and_the_same_again(pipe):
    (mesh,) = shapes(pipe).meshes
    (again,) = shapes(pipe, return_dict=False)[0]
    assert isinstance(mesh, trimesh.Trimesh) and len(mesh.faces) > 100
    assert mesh.is_watertight and mesh.volume > 0
    assert (abs(mesh.vertices) <= 0.5 + 1e-6).all()
    assert (mesh.vertices == again.vertices).all()


def test_lower_levels_are_thicker(pipe):
    volumes = [shapes(pipe, level=level).meshes[0].volume for level in (0.4, 0.5, 0.6)]
    assert volumes[0] > volumes[1] > volumes[2]


def test_fields_and_latents(pipe):
    field = shapes(pipe, output_type="field", batch_size=2).meshes
    assert isinstance(field, NeuralField) and len(field) == 2
    assert shapes(pipe, output_type="latent").meshes.shape == (1, *pipe.vae.latent_shape)


def test_an_empty_shape_is_an_empty_mesh_and_a_warning(pipe):
    with torch.no_grad():
        pipe.vae.readout.out.bias.sub_(1e4)
    with pytest.warns(UserWarning, match="empty"):
        (mesh,) = shapes(pipe).meshes
    assert len(mesh.faces) == 0


def test_text_conditions_shapes(make_pipeline):
    pipe = make_pipeline("shape", text=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (shapes(pipe, prompt=text, output_type="latent").meshes for text in ("a table", "a lamp"))
    assert (one - two).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resolution": 1}, ValueError, "`resolution` must be between 2 and 1024, got 1"),
        ({"resolution": 2000}, ValueError, "`resolution` must be between 2 and 1024, got 2000"),
        ({"resolution": 64.0}, TypeError, "`resolution` must be an integer"),
        ({"level": 1.5}, ValueError, "between 0 and 1, got 1.5"),
        ({"output_type": "obj"}, ValueError, "must be one of trimesh, field, latent"),
        ({"prompt": "a chair"}, ValueError, "not trained on text"),
    ],
)
def test_bad_input_is_named(pipe, options, error, message):
    with pytest.raises(error, match=message):
        shapes(pipe, **options)
