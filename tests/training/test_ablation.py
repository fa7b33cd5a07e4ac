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
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ablation():
    path = Path(__file__).resolve().parents[2] / "examples" / "ablation.py"
    spec = importlib.util.spec_from_file_location("ablation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_change_the_fields_and_their_conditioning_alone(ablation):
    from training_setup import build

    config = ablation.read_preset("tiny")
    models = {}
    for row, (_, _, changes) in ablation.ROWS.items():
        overrides = json.loads(ablation.overrides_of(changes, config))
        models[row] = build({**config, **overrides}, modality="image")
        kept = {k: v for k, v in models[row].config.items() if k not in ("num_scales", "readout_config")}
        assert kept == {k: v for k, v in models["single-field"].config.items() if k in kept}
        assert models[row].config.readout_config["hidden_channels"] == config["readout_config"]["hidden_channels"]
    assert [model.config.num_scales for model in models.values()] == [1, 3, 3]
    assert [model.readout.conditioning for model in models.values()][1:] == ["input", "concat"]


def test_table(ablation):
    runs = [{"row": "single-field", "seed": seed, "psnr": psnr} for seed, psnr in ((0, 30.0), (1, 32.0))]
    runs += [{"row": "hdbf", "seed": 0, "psnr": 33.0, "fid": 8.125}]
    lines = ablation.markdown(runs, {"data": "digits"}).splitlines()
    assert lines[2] == "| `single-field` |  |  | 31.00 ± 1.41 | – | 0, 1 |"
    assert lines[3] == "| `hdbf` | ✓ |  | 33.00 | 8.12 | 0 |"
    assert lines[4] == "| `hdbf-cfc` | ✓ | ✓ | – | – |  |"
    assert lines[-1] == "- data: digits"


def test_last_psnr(ablation, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "psnr": 10.0}\n{"step": 2, "psnr": 12.5}\n{"step": 3}\n')
    assert ablation.last_psnr(log) == 12.5
    log.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="no PSNR"):
        ablation.last_psnr(log)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", "digits", "--train_data_dir", "x"], "not both"),
        (["--stage_2_steps", "5"], "needs both"),
        (["--stage_1_steps", "0"], "--stage_1_steps"),
    ],
)
def test_flags(ablation, arguments, message):
    with pytest.raises(ValueError, match=message):
        ablation.parse_args(arguments)
