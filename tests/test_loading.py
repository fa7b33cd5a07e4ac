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
"""Saved folders load again by diffusers' own loaders, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import diffusers_ddmi


READ = """
import json, sys, numpy, torch
{imports}
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1]{options})
pipe.set_progress_bar_config(disable=True)
images = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
print(json.dumps([type(pipe).__name__, type(pipe.vae).__name__, float(images.mean()), float(images.std())]))
"""


def in_new_process(folder: Path, imports: str = "import diffusers_ddmi", options: str = "", **environment):
    return subprocess.run(
        [sys.executable, "-c", READ.format(imports=imports, options=options), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )


def image_of(pipe) -> np.ndarray:
    return pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline("image")


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "ddmi-tiny")
    return tmp_path / "ddmi-tiny"


class TestFolder:
    def test_index_names_the_package(self, folder):
        index = json.loads((folder / "model_index.json").read_text())
        assert index["_class_name"] == "DDMIImagePipeline"
        assert index["vae"] == ["diffusers_ddmi", "AutoencoderD2C"]
        assert index["unet"] == ["diffusers_ddmi", "MixedUNet2DModel"]

    def test_loads_in_a_new_process(self, folder, pipe):
        result = in_new_process(folder)
        assert result.returncode == 0, result.stderr
        name, vae, mean, std = json.loads(result.stdout)
        expected = image_of(pipe)
        assert (name, vae) == ("DDMIImagePipeline", "AutoencoderD2C")
        np.testing.assert_allclose([mean, std], [expected.mean(), expected.std()], atol=1e-4)

    def test_loads_from_the_hub_cache_by_its_id(self, folder, tmp_path):
        """The layout that huggingface_hub keeps downloads in: what a hub id resolves to offline."""
        repository = tmp_path / "hub" / "models--someone--ddmi-tiny"
        commit = "0" * 40
        (repository / "snapshots").mkdir(parents=True)
        folder.rename(repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        result = in_new_process(Path("someone/ddmi-tiny"), HF_HUB_CACHE=str(tmp_path / "hub"))
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)[0] == "DDMIImagePipeline"

    @pytest.mark.parametrize("modality", ["shape", "video", "nerf"])
    def test_other_modalities_reload_with_the_same_weights(self, make_pipeline, modality, tmp_path):
        pipe = make_pipeline(modality)
        with torch.no_grad():
            for parameter in pipe.vae.parameters():
                parameter.add_(0.01)
        pipe.save_pretrained(tmp_path)
        loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
        assert type(loaded) is type(pipe)
        for name, tensor in pipe.vae.state_dict().items():
            assert torch.equal(loaded.vae.state_dict()[name], tensor), name

    def test_auto_model_and_variants(self, pipe, tmp_path):
        pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
        assert (tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors").exists()
        loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
        assert loaded.vae.dtype == torch.float16
        vae = diffusers.AutoModel.from_pretrained(str(tmp_path / "vae"), variant="fp16")
        assert type(vae) is diffusers_ddmi.AutoencoderD2C

    def test_from_pipe_shares_the_components(self, pipe):
        other = diffusers_ddmi.DDMIImagePipeline.from_pipe(pipe)
        assert other.vae is pipe.vae and other.unet is pipe.unet


class TestRemoteCode:
    @pytest.fixture
    def folder(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "export", remote_code=True)
        return tmp_path / "export"

    def test_loads_where_the_package_is_never_imported(self, folder, tmp_path):
        modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
        result = in_new_process(folder, imports="", options=", trust_remote_code=True", **modules)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)[:2] == ["DDMIImagePipeline", "AutoencoderD2C"]

    def test_is_refused_without_trust(self, folder, tmp_path):
        result = in_new_process(folder, imports="", HF_MODULES_CACHE=str(tmp_path / "modules"))
        assert result.returncode != 0
        assert "trust_remote_code" in result.stderr


class TestModelCard:
    def test_shows_how_to_use_the_model(self, folder):
        card = (folder / "README.md").read_text()
        assert "library_name: diffusers" in card
        assert 'DiffusionPipeline.from_pretrained("ddmi-tiny")' in card

    def test_an_existing_card_is_kept(self, pipe, folder):
        (folder / "README.md").write_text("mine")
        pipe.save_pretrained(folder)
        assert (folder / "README.md").read_text() == "mine"

    def test_local_paths_do_not_travel(self, folder, tmp_path):
        loaded = diffusers.DiffusionPipeline.from_pretrained(folder)
        loaded.save_pretrained(tmp_path / "again")
        assert str(tmp_path) not in (tmp_path / "again" / "vae" / "config.json").read_text()


class TestDamage:
    def test_corrupt_weights(self, folder):
        (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
        with pytest.raises(Exception, match=r"(?i)safetensors|header"):
            diffusers.DiffusionPipeline.from_pretrained(folder)

    def test_missing_index(self, folder):
        (folder / "model_index.json").unlink()
        with pytest.raises(OSError, match=r"model_index\.json"):
            diffusers.DiffusionPipeline.from_pretrained(folder)
