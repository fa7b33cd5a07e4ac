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
"""Who may import whom: the rooms of the package know only what they must."""

import ast
from pathlib import Path

import pytest

import diffusers_ddmi
from diffusers_ddmi.modalities import MODALITIES


ROOT = Path(diffusers_ddmi.__file__).parent
PROJECT = ROOT.parent

# room -> what no file of it imports
SHOWS_AND_MEASURES = ("models", "pipelines", "conversion", "losses", "training_utils", "checkpointing")
FORBIDDEN = {
    "data": SHOWS_AND_MEASURES,
    "metrics": (*SHOWS_AND_MEASURES, "data"),
    "rendering": (*SHOWS_AND_MEASURES, "data", "metrics"),
    "models": ("pipelines", "conversion", "losses", "training_utils", "checkpointing", "data", "metrics", "rendering"),
    "pipelines": ("conversion", "losses", "training_utils", "checkpointing", "data", "metrics"),
}
FORBIDDEN_LIBRARIES = {"models": ("datasets", "transformers"), "rendering": ("datasets", "transformers", "diffusers")}
CORE = ("planes", "basis_fields", "readout", "field")
# modality -> the modules that belong to it alone
OWN = {
    "image": ("pipelines.image", "data.images", "metrics.images"),
    "shape": (
        "pipelines.shape",
        "data.shapes",
        "data.meshes",
        "data.furniture",
        "metrics.shapes",
        "metrics.furniture",
    ),
    "video": ("pipelines.video", "data.videos", "metrics.videos", "models.video_encoder"),
    "nerf": ("pipelines.nerf", "data.scenes", "data.scene_files", "data.procedural_scenes"),
}
PUBLIC_NAMES = {f"diffusers_ddmi.{name}" for name in diffusers_ddmi.__all__}
PUBLIC_MODULES = ("data", "metrics", "rendering", "losses", "training_utils", "checkpointing", "modalities", "files")


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, relative imports resolved."""
    package = path.relative_to(PROJECT).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def reaches(name: str, target: str) -> bool:
    return name == target or name.startswith(target + ".")


def test_imports_are_resolved():
    """The checks below would pass for ever if this reader saw nothing."""
    found = imports(ROOT / "pipelines" / "shape.py")
    assert "diffusers_ddmi.models.field" in found
    assert "diffusers_ddmi.rendering.surface" in found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_know_only_what_they_must(room):
    """Nor do they reach over the public names, which would import everything."""
    targets = {f"diffusers_ddmi.{other}" for other in FORBIDDEN[room]}
    targets |= PUBLIC_NAMES | set(FORBIDDEN_LIBRARIES.get(room, ()))
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    broken = [
        (path.name, name)
        for path in files
        for name in imports(path)
        if any(reaches(name, target) for target in targets)
    ]
    assert broken == []


def test_nothing_imports_the_conversion():
    files = [p for p in ROOT.rglob("*.py") if "conversion" not in p.relative_to(ROOT).parts]
    assert [(p.name, n) for p in files for n in imports(p) if reaches(n, "diffusers_ddmi.conversion")] == []


@pytest.mark.parametrize("name", CORE)
def test_the_core_names_no_modality(name):
    """Docstrings may speak of images; what the code does may not depend on what a signal is."""
    path = ROOT / "models" / f"{name}.py"
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in nodes if isinstance(node, (ast.arg, ast.keyword))}
    assert strings & set(MODALITIES) == set()
    assert names & ({*MODALITIES, "modality", "modalities"} - {"shape"}) == set()  # a tensor has a shape
    assert not any(reaches(module, "diffusers_ddmi.modalities") for module in imports(path))


@pytest.mark.parametrize("modality", OWN)
def test_one_modality_never_imports_another(modality):
    others = {f"diffusers_ddmi.{module}" for other in OWN if other != modality for module in OWN[other]}
    for module in OWN[modality]:
        found = imports(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
        assert {name for name in found if any(reaches(name, other) for other in others)} == set(), module


@pytest.mark.parametrize("folder", ["training", "examples"])
def test_scripts_use_public_names_alone(folder):
    allowed = {"diffusers_ddmi"} | PUBLIC_NAMES
    open_modules = {f"diffusers_ddmi.{module}" for module in PUBLIC_MODULES}
    files = sorted((PROJECT / folder).rglob("*.py"))
    assert files
    for path in files:
        ours = {name for name in imports(path) if reaches(name, "diffusers_ddmi")}
        private = {
            name
            for name in ours - allowed
            if "._" in name or not any(reaches(name, module) for module in open_modules)
        }
        assert private == set(), path.name


def test_every_file_carries_the_licence():
    files = [*ROOT.rglob("*.py"), *(PROJECT / "training").glob("*.py"), *(PROJECT / "examples").rglob("*.py")]
    assert [p.name for p in files if "Apache License, Version 2.0" not in p.read_text(encoding="utf-8")[:400]] == []
