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

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import diffusers
import numpy as np
import pytest
import torch

import diffusers_ddmi


READ = """
import json, sys, torch
{imports}
from diffusers import DiffusionPipeline
{before}
pipe = DiffusionPipeline.from_pretrained(sys.argv[1]{options})
pipe.set_progress_bar_config(disable=True)
images = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
print(json.dumps([type(pipe).__name__, type(pipe.vae).__name__, float(images.mean()), float(images.std())]))
"""
PUSH = "DiffusionPipeline.from_pretrained(sys.argv[2]).push_to_hub(sys.argv[1])"
REFUSED = """
try:
    DiffusionPipeline.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded code without being told to trust it")
"""
COMMIT = "0" * 40


def in_new_process(*arguments, imports="import diffusers_ddmi", before="", options="", **environment) -> list:
    """Class of the pipeline and of its VAE, mean and deviation of an image, of a pipeline loaded elsewhere."""
    result = subprocess.run(
        [sys.executable, "-c", READ.format(imports=imports, before=before, options=options), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def expected_of(pipe) -> list:
    images = image_of(pipe)
    means = [float(images.mean()), float(images.std())]
    return ["DDMIImagePipeline", "AutoencoderD2C", *(pytest.approx(value, abs=1e-4) for value in means)]


class StandInHub(BaseHTTPRequestHandler):
    """As much of the hub's interface as pushing and loading a model takes; one branch, one commit."""

    repositories: dict[str, dict[str, bytes]]

    def do_POST(self):
        request = self.rfile.read(int(self.headers["Content-Length"]))
        kind, _, path = self.path.removeprefix("/api/").partition("/")
        if (kind, path) == ("repos", "create"):
            body = json.loads(request)
            name = "/".join(filter(None, (body.get("organization"), body["name"])))
            self.repositories.setdefault(name, {})
            return self.reply({"url": f"http://{self.headers['Host']}/{name}"})
        if kind == "validate-yaml":
            return self.reply({"warnings": [], "errors": []})
        owner, name, action = path.split("/")[:3]
        if action == "preupload":
            files = [file["path"] for file in json.loads(request)["files"]]
            modes = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.reply({"files": modes})
        entries = [json.loads(line) for line in request.splitlines()]
        for entry in (entry["value"] for entry in entries if entry["key"] == "file"):
            self.repositories[f"{owner}/{name}"][entry["path"]] = base64.b64decode(entry["content"])
        self.reply({"commitUrl": f"http://{self.headers['Host']}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self):
        if self.path.startswith("/api/models/"):
            owner, name, *rest = self.path.removeprefix("/api/models/").partition("?")[0].split("/")
            files = self.repositories.get(f"{owner}/{name}")
            if files is None:
                return self.reply({"error": "no such repository"}, status=404)
            if rest[:1] == ["tree"]:
                entry = {"type": "file", "oid": COMMIT}
                return self.reply([{**entry, "path": path, "size": len(files[path])} for path in files])
            siblings = [{"rfilename": path} for path in files]
            return self.reply({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "private": False})
        repository, _, file = self.path.lstrip("/").partition("/resolve/")
        content = self.repositories.get(repository, {}).get(file.partition("/")[2])
        if content is None:
            return self.reply({"error": "no such file"}, status=404, error="EntryNotFound")
        self.reply(content, etag=hashlib.sha256(content).hexdigest())

    do_HEAD = do_GET

    def reply(self, body, status: int = 200, etag: str | None = None, error: str | None = None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Length": len(body), "X-Repo-Commit": COMMIT, "X-Error-Code": error, "ETag": etag}
        self.send_response(status)
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    """A running hub on this machine: its repositories, and the environment in which it is the hub."""
    handler = type("Hub", (StandInHub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_nobody",
        "HF_HUB_DISABLE_XET": "1",
    }
    yield handler.repositories, environment
    server.shutdown()
    thread.join()
    server.server_close()


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
        assert in_new_process(folder) == expected_of(pipe)

    def test_loads_from_the_hub_it_was_pushed_to_and_then_without_it(self, folder, pipe, hub, tmp_path):
        repositories, environment = hub
        cache, name = {"HF_HUB_CACHE": str(tmp_path / "cache")}, "someone/ddmi-tiny"
        assert in_new_process(name, folder, before=PUSH, **cache, **environment) == expected_of(pipe)
        files = repositories[name]
        assert "diffusers_ddmi" in files["model_index.json"].decode()
        assert f'from_pretrained("{name}")' in files["README.md"].decode()
        assert not any(str(tmp_path).encode() in content for content in files.values())
        assert in_new_process(name, **cache) == expected_of(pipe)  # no hub to be reached

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

    def test_loads_where_the_package_is_never_imported_if_trusted(self, folder, pipe, tmp_path):
        modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
        result = in_new_process(folder, imports="", before=REFUSED, options=", trust_remote_code=True", **modules)
        assert result == expected_of(pipe)


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
