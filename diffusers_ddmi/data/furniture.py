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
"""Procedural furniture: thousands of distinct chairs, stools, benches, sofas, tables, shelves, beds and lamps with captions.

A piece follows from its seed alone: a design (what a caption can tell: how many legs, round or square, with or without
arms, …), continuous proportions, and the solid built of them, whose occupancy is exact. Captions tell a random part of the
design. What a caption tells decides whether it belongs to training or to testing, so test captions are
combinations never told in training, although every single property is.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import trimesh

from .furniture_parts import BUILDERS, Design
from .solids import Solid


KINDS = tuple(BUILDERS)
_SPLITS = ("train", "test")
# One in so many combinations of told properties is kept for testing.
_TEST_SHARE = 6
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_PALETTES = (
    {
        "wood": (0.72, 0.53, 0.34),
        "dark": (0.45, 0.30, 0.19),
        "fabric": (0.30, 0.45, 0.62),
        "light": (0.93, 0.90, 0.83),
    },
    {
        "wood": (0.55, 0.36, 0.22),
        "dark": (0.35, 0.23, 0.15),
        "fabric": (0.66, 0.27, 0.24),
        "light": (0.95, 0.91, 0.80),
    },
    {
        "wood": (0.86, 0.74, 0.55),
        "dark": (0.68, 0.53, 0.36),
        "fabric": (0.35, 0.52, 0.36),
        "light": (0.97, 0.96, 0.92),
    },
    {
        "wood": (0.62, 0.62, 0.64),
        "dark": (0.28, 0.29, 0.31),
        "fabric": (0.84, 0.62, 0.22),
        "light": (0.90, 0.92, 0.94),
    },
)


@dataclass(frozen=True)
class Furniture:
    """One piece: its design, its caption, and its solid, centred in the cube [-0.5, 0.5]³ (y up, facing +z, longest side 0.9).

    Attributes:
        design: "kind" and what else can be told of it.
        told: names of the properties that the caption tells, beside the kind.
        caption: in English.
        solid: union of its parts.
        palette: RGB in [0, 1] of its materials.
    """

    design: Design
    told: frozenset[str]
    caption: str
    solid: Solid
    palette: Mapping[str, Sequence[float]]

    @classmethod
    def from_seed(cls, seed: int | Sequence[int]) -> Furniture:
        """The piece of `seed`: whole numbers of at least 0."""
        rng = np.random.default_rng(seed)
        design, told = _draw_told_design(rng)
        caption = describe(design, told, rng)
        solid = Solid(BUILDERS[design["kind"]](design, lambda low, high: float(rng.uniform(low, high)))).normalized()
        return cls(design, told, caption, solid, _PALETTES[rng.integers(len(_PALETTES))])

    def mesh(self) -> trimesh.Trimesh:
        """Coloured mesh of closed, overlapping parts."""
        return self.solid.mesh(self.palette)


def furniture_mesh(seed: int | Sequence[int] = 0) -> trimesh.Trimesh:
    """The coloured mesh of the piece of `seed`, for pictures and rendered scenes."""
    return Furniture.from_seed(seed).mesh()


def load_furniture(num_shapes: int = 2000, seed: int = 0, split: str = "train") -> datasets.Dataset:
    """Rows of procedural furniture: `name`, `caption` and `seed`, which `Furniture.from_seed(row["seed"])` follows from.

    Row i is the same whatever `num_shapes`. The pieces are made when rows are turned into examples.

    Args:
        num_shapes: how many pieces.
        seed: another seed gives other pieces.
        split: "train" or "test"; no caption of one is a caption of the other, whatever the seed.

    Raises:
        ValueError: an unknown split, or a number below 1.
    """
    if split not in _SPLITS:
        raise ValueError(f"furniture has splits {' and '.join(map(repr, _SPLITS))}, got {split!r}")
    if num_shapes < 1:
        raise ValueError(f"num_shapes must be at least 1, got {num_shapes}")
    rows: dict[str, list] = {"name": [], "caption": [], "seed": []}
    for index in itertools.count():
        rng = np.random.default_rng((seed, index))
        design, told = _draw_told_design(rng)
        if split_of(design, told) == split:
            rows["name"].append(f"furniture-{seed}-{index}")
            rows["caption"].append(describe(design, told, rng))
            rows["seed"].append((seed, index))
        if len(rows["seed"]) == num_shapes:
            return datasets.Dataset.from_dict(rows)


# --------------------------------------------------------------------------------------------- designs


def draw_design(kind: str, rng: np.random.Generator) -> Design:
    """A random design of `kind`: whole numbers `legs` and `shelves`, bool `arms`, shapes and styles by name.

    `back` is the style of a back, a bool where there is one style, and None or False without one.
    """

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    if kind == "chair":
        design = {"top": pick("round", "square"), "legs": pick(4, 4, 1), "arms": pick(False, True)}
        design |= {"back": pick("solid", "slatted", "ladder"), "size": pick("high-backed", "low-backed")}
    elif kind == "stool":
        design = {"top": pick("round", "square"), "legs": pick(1, 3, 4), "size": pick("tall", "low")}
        design["footrest"] = design["legs"] == 4 and pick(False, True)
    elif kind == "bench":
        design = {"legs": pick(2, 4), "back": pick(None, None, "solid", "slatted", "ladder")}
        design["arms"] = design["back"] is not None and pick(False, True)
    elif kind == "sofa":
        design = {"legs": pick(0, 4), "arms": pick(False, True, True), "size": pick("high-backed", "low-backed")}
        if design["arms"]:
            design["weight"] = pick("thin", "thick")
    elif kind == "table":
        design = {"top": pick("round", "square", "rectangular"), "size": pick("tall", "low")}
        design["legs"] = pick(*{"round": (1, 3, 4), "square": (1, 4, 4), "rectangular": (2, 4, 4)}[design["top"]])
        design["shelves"] = int(design["legs"] == 4 and pick(False, True))
    elif kind == "shelf":
        design = {"shelves": pick(2, 3, 4, 5), "size": pick("wide", "narrow"), "back": pick(False, True)}
        design["sides"] = pick("panels", "posts")
    elif kind == "bed":
        design = {"legs": pick(0, 4), "size": pick("single", "double"), "back": pick(False, True)}
        design["footboard"] = pick(False, True)
    elif kind == "lamp":
        design = {"legs": pick(1, 3), "top": pick("round", "square"), "size": pick("floor", "table")}
        design["shade"] = pick("cone", "drum")
    else:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind in ("chair", "stool", "table", "bench") and design["legs"] != 1:
        design["weight"] = pick("thin", "thick")
    if kind in ("chair", "stool") and design["legs"] > 1 and not design.get("footrest"):
        design["splayed"] = pick(False, True)
    return {"kind": kind, **design}


def _draw_told_design(rng: np.random.Generator) -> tuple[Design, frozenset[str]]:
    """A design, and the names of the properties that are told of it."""
    design = draw_design(KINDS[rng.integers(len(KINDS))], rng)
    told = {name for name, chance in zip(design, rng.random(len(design))) if name != "kind" and chance < 0.8}
    if design["kind"] == "sofa" and "arms" not in told:
        told.discard("weight")  # which is the arms'
    return design, frozenset(told)


def split_of(design: Design, told: Set[str]) -> str:
    """The split that a caption belongs to, by what it tells; those that tell less than two properties are for training."""
    if len(told) < 2:
        return "train"
    combination = repr((design["kind"], [(name, design[name]) for name in sorted(told)]))
    return "test" if zlib.crc32(combination.encode()) % _TEST_SHARE == 0 else "train"


# --------------------------------------------------------------------------------------------- captions


def describe(design: Design, told: Set[str], rng: np.random.Generator) -> str:
    """An English caption that tells exactly the `told` properties of `design`, in one of many wordings."""
    words = _Words(design, told, rng)
    adjectives, features = list(words.adjectives()), [text for text in words.features() if text]
    noun = words.noun()
    rng.shuffle(features)
    phrase = " ".join([*adjectives, noun])  # none of these words begins with a vowel
    if not features:
        return words.one_of(f"a {phrase}", f"this is a {phrase}")
    listed = " and ".join(filter(None, [", ".join(features[:-1]), features[-1]]))
    return words.one_of(
        f"a {phrase} with {listed}",
        f"a {phrase} with {listed}",
        f"a {phrase} that has {listed}",
        f"this {phrase} has {listed}",
    )


class _Words:
    """Wordings of single properties; a property that is not told is an empty string or no word at all."""

    def __init__(self, design: Design, told: Set[str], rng: np.random.Generator):
        self.kind = design["kind"]
        self.told = {name: value for name, value in design.items() if name in told}
        self.rng = rng
        # Some properties are told either before the noun or after it.
        self.top_first = self.kind in ("table", "stool") and rng.random() < 0.5

    def one_of(self, *options: str) -> str:
        return options[self.rng.integers(len(options))]

    def noun(self) -> str:
        if self.kind == "lamp":
            return {"floor": "floor lamp", "table": "table lamp", None: "lamp"}[self.told.get("size")]
        synonyms = {"sofa": ("sofa", "couch"), "shelf": ("bookshelf", "shelf unit")}
        return self.one_of(*synonyms.get(self.kind, (self.kind,)))

    def adjectives(self) -> list[str]:
        words = [self.told["size"]] if "size" in self.told and self.kind != "lamp" else []
        if self.kind == "bench" and self.told.get("back", "") is None and self.rng.random() < 0.3:
            del self.told["back"]
            words.append("backless")
        if self.top_first and "top" in self.told:
            words.append(self.told["top"])
        return words

    def features(self) -> list[str]:
        return [self._legs(), self._top(), self._back(), self._arms(), self._shelves(), self._details()]

    def _legs(self) -> str:
        number = self.told.get("legs")
        manner = [self.told["weight"]] if "weight" in self.told and self.kind != "sofa" else []
        if "splayed" in self.told:
            manner.append("splayed" if self.told["splayed"] else "straight")
        if number is None:
            return " ".join([*manner, "legs"]) if manner else ""
        if number == 0:
            return "no legs"
        if number == 1:
            return self.one_of("one central leg", "a single leg", "1 leg")
        if number == 2:
            manner.append("panel")
        count = self.one_of(_NUMBERS[number], _NUMBERS[number], str(number))
        return " ".join([count, *manner, "legs"])

    def _top(self) -> str:
        shape = self.told.get("top")
        if self.kind == "lamp":
            taper = {"cone": "tapered", "drum": "straight", None: ""}[self.told.get("shade")]
            words = [word for word in (shape, taper, "shade") if word]
            return "a " + " ".join(words) if len(words) > 1 else ""
        if shape is None or self.top_first:
            return ""
        return f"a {shape} top" if self.kind == "table" else f"a {shape} seat"

    def _back(self) -> str:
        if "back" not in self.told:
            return ""
        noun = {"shelf": "back panel", "bed": "headboard"}.get(self.kind, "back")
        style = self.told["back"]
        if not style:
            return f"no {noun}"
        return f"a {noun}" if style is True else f"a {style} {noun}"

    def _arms(self) -> str:
        noun = self.one_of("arms", "armrests")
        arms = self.told.get("arms")
        if self.kind == "sofa" and arms and "weight" in self.told:
            return f"{self.told['weight']} {noun}"
        return {None: "", True: noun, False: f"no {noun}"}[arms]

    def _shelves(self) -> str:
        number = self.told.get("shelves")
        if number is None:
            return ""
        if self.kind == "table":
            return "a shelf underneath" if number else "no shelf underneath"
        return f"{self.one_of(_NUMBERS[number], str(number))} shelves"

    def _details(self) -> str:
        details = []
        for name in ("footrest", "footboard"):
            if name in self.told:
                details.append(f"a {name}" if self.told[name] else f"no {name}")
        if "sides" in self.told:
            details.append("corner posts" if self.told["sides"] == "posts" else "side panels")
        return " and ".join(details)
