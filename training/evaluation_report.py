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
"""What an evaluation leaves behind: report.json, report.md, timing.json, and a section of the pipeline's model card."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_ddmi.files import write_text


_START, _END = "<!-- evaluation: start -->", "<!-- evaluation: end -->"


@dataclass(frozen=True)
class Figure:
    """One number of the table.

    Attributes:
        metric: its name in --metrics, then what it was measured on. value: the number.
        samples: how many samples or reconstructions it is about.
        references: how many items of the data they were compared with, if others.
        resolution: pixels of a side, for pictures and clips.
        deviation: standard deviation, of what `note` says.
        better: "higher" or "lower".
    """

    metric: str
    value: float
    samples: int
    references: int | None = None
    resolution: int | None = None
    deviation: float | None = None
    better: str = ""
    note: str = ""


def write_reports(
    output_dir: Path,
    facts: Mapping[str, Any],
    figures: Sequence[Figure],
    left_out: Sequence[str],
    timing: Mapping[str, Any],
) -> None:
    """Writes report.json, the same whenever the same evaluation is made; timing.json; and report.md with both.

    Args:
        facts: JSON values: "pipeline", "modality", "data", "command", "settings", "versions".
        left_out: a sentence for each metric that could not be computed.
        timing: stage -> {"items", "seconds"}, and what else belongs to one machine.
    """
    seed = {"seed": facts["settings"]["seed"]}
    rows = [{k: v for k, v in _as_json(figure).items() if v not in (None, "")} | seed for figure in figures]
    report = {**facts, "figures": rows, "left_out": list(left_out)}
    write_text(output_dir / "report.json", json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n")
    write_text(output_dir / "timing.json", json.dumps(timing, indent=1, sort_keys=True) + "\n")
    title = f"# Evaluation of {facts['pipeline']}\n\n"
    write_text(output_dir / "report.md", title + markdown(facts, figures, left_out, timing))


def _as_json(figure: Figure) -> dict[str, Any]:
    """A figure's attributes. What differs from run to run, since sums of products are rounded as memory lies, is cut off."""
    numbers = {"value": float(figure.value), "deviation": figure.deviation}
    if not math.isfinite(figure.value):
        return {**vars(figure), "value": str(figure.value), "deviation": None}
    digits = 7 - math.floor(math.log10(abs(figure.value))) if figure.value else 7  # eight in all
    return {**vars(figure), **{k: v if v is None else round(v, digits) for k, v in numbers.items()}}


def markdown(
    facts: Mapping[str, Any], figures: Sequence[Figure], left_out: Sequence[str], timing: Mapping[str, Any]
) -> str:
    """The table and what belongs to it, in Markdown."""
    data, settings = facts["data"], facts["settings"]
    settings_line = ", ".join(f"{name} {value}" for name, value in sorted(settings.items()) if value is not None)
    lines = ["| metric | | value | samples | references | resolution | note |", "|---|---|---:|---:|---:|---:|---|"]
    lines += [_row(figure) for figure in figures]
    if left_out:
        lines += ["", "Left out:", "", *(f"- {sentence}" for sentence in left_out)]
    lines += ["", f"Data: {data['source']}, split {data['split']} ({data['length']} items)."]
    lines += [f"Settings: {settings_line}."]
    lines += ["", "| speed | items | items / s |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {entry['items']} | {entry['items'] / max(entry['seconds'], 1e-9):.3g} |"
        for name, entry in timing["stages"].items()
    ]
    lines += ["", f"Per process ({timing['processes']} of them), on {timing['device']}."]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines += ["", f"Made with {versions}, by", "", "```bash", facts["command"], "```", ""]
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    arrow = {"higher": "↑", "lower": "↓"}.get(figure.better, "")
    deviation = _as_json(figure)["deviation"]
    value = f"{figure.value:.5g}" + (f" ± {deviation:.2g}" if deviation is not None else "")
    cells = [figure.metric, arrow, value, figure.samples, figure.references, figure.resolution, figure.note]
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


def update_model_card(path: Path, section: str) -> None:
    """Puts `section` under "## Evaluation" into a model card, in place of the one that an earlier evaluation put there."""
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {path.resolve().parent.name}\n"
    block = f"{_START}\n## Evaluation\n\n{section.strip()}\n{_END}"
    pattern = re.compile(re.escape(_START) + ".*?" + re.escape(_END), re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: block, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    write_text(path, text)
