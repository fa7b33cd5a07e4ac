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
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusers_ddmi.data.furniture import Furniture, load_furniture


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).resolve().parents[2] / "examples" / "furniture_agreement.py"
    spec = importlib.util.spec_from_file_location("furniture_agreement", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Oracle:
    """A pipeline that answers each held-out caption with the piece that it describes."""

    scheduler = SimpleNamespace(config={})

    def __init__(self):
        self.meshes = {
            row["caption"]: Furniture.from_seed(row["seed"]).mesh() for row in load_furniture(40, split="test")
        }

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompts, **_):
        return SimpleNamespace(meshes=[self.meshes[prompt] for prompt in prompts])


def test_what_is_described_agrees_and_other_pieces_do_not(example, monkeypatch):
    monkeypatch.setattr(example.DiffusionPipeline, "from_pretrained", lambda folder: Oracle())
    monkeypatch.setattr(example.DPMSolverMultistepScheduler, "from_config", lambda config: None)
    measured = example.measure(example.parse_args(["--pipeline", "any", "--num_captions", "24"]))
    assert measured["captions"]["all"] > 0.95
    assert measured["shuffled"]["all"] < 0.5


@pytest.mark.parametrize("count", ["1", "0", "-3"])
def test_one_caption_has_no_others(example, capsys, count):
    with pytest.raises(SystemExit):
        example.parse_args(["--pipeline", "any", "--num_captions", count])
    assert f"--num_captions must be at least 2, since meshes meet others' captions, but is {count}" in (
        capsys.readouterr().err
    )


def test_runs_on_a_pipeline_folder(example, make_pipeline, tmp_path, capsys):
    make_pipeline("shape", text=True).save_pretrained(tmp_path / "pipe")
    options = ["--num_captions", "3", "--num_inference_steps", "2", "--batch_size", "2"]
    example.main(["--pipeline", str(tmp_path / "pipe"), *options])
    assert '"watertight"' in capsys.readouterr().out
