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
"""Where media files come from: a folder with its split subfolders, or a data set of `datasets` by name or path."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np


logger = logging.getLogger(__name__)

CAPTION_COLUMNS = ("caption", "text", "captions", "prompt", "description")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_ALIASES = frozenset(alias for aliases in _SPLIT_NAMES.values() for alias in aliases)


def split_folder(folder: str | os.PathLike, split: str) -> Path:
    """The part of `folder` that holds `split`: its subfolder of that name, or all of it where no subfolder is a split.

    Subfolders beside it that are no splits are named in a warning, since they are left out.

    Raises:
        FileNotFoundError: no such folder, or it is divided into splits without this one.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; expected a folder of training data")
    subfolders = {path.name.lower(): path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name)}
    splits = subfolders.keys() & _SPLIT_ALIASES
    chosen = next((subfolders[alias] for alias in _SPLIT_NAMES.get(split, (split,)) if alias in subfolders), None)
    if chosen is None and not splits:
        return folder
    if chosen is None:
        raise FileNotFoundError(f"{folder} has no split {split!r}; it is divided into {', '.join(sorted(splits))}")
    others = sorted(path.name for name, path in subfolders.items() if name not in splits and path != chosen)
    if others:
        logger.warning(
            "split %r of %s is its subfolder %s; left out: %s", split, folder, chosen.name, ", ".join(others)
        )
    return chosen


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files below `folder` with one of the lower-case `suffixes`, sorted by path; hidden files and folders are left out."""
    found = []
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".") and _suffix(name) in suffixes]
    return sorted(found)


def load_named(
    name: str,
    column: str | None,
    feature: type,
    caption_column: str | None,
    **arguments: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """A data set of `datasets` with its media column undecoded, and its columns named as the examples expect them.

    Args:
        name: hub id, a folder that `datasets.load_dataset` understands, or one written by `save_to_disk`.
        column: the media column; `None` takes the first whose type is `feature`.
        feature: `datasets.Image` or `datasets.Video`; the column comes back as its lower-case name, undecoded.
        caption_column: `None` takes the first of [`CAPTION_COLUMNS`] that there is, if any; comes back as "caption".
        arguments: `split`, `streaming`, `config`, `cache_dir`.

    Raises:
        FileNotFoundError: no such data set, here or (where it can be reached) on the hub.
        ValueError: no such split or column.
    """
    dataset = open_named(name, **arguments)
    features = dataset.features
    if features is None:
        # Streams of some formats know their columns only from their first row.
        features = next(iter(dataset.take(1)), {})
    if column is None:
        column = next((key for key, value in features.items() if isinstance(value, feature)), feature.__name__.lower())
    if column not in features:
        raise ValueError(f"data set {name!r} has no column {column!r}; it has {', '.join(sorted(features)) or 'none'}")
    if caption_column is None:
        caption_column = next((key for key in CAPTION_COLUMNS if key in features), None)
    elif caption_column not in features:
        raise ValueError(
            f"data set {name!r} has no caption column {caption_column!r}; it has {', '.join(sorted(features))}"
        )
    # Before anything else, since each step over a stream would decode its rows.
    dataset = dataset.cast_column(column, feature(decode=False))
    wanted = {column: feature.__name__.lower()} | ({caption_column: "caption"} if caption_column else {})
    dataset = dataset.select_columns(list(wanted))
    for old, new in wanted.items():
        if old != new:
            dataset = dataset.rename_column(old, new)
    return dataset


def open_named(
    name: str, split: str, streaming: bool = False, config: str | None = None, cache_dir: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of a data set by hub id or path, all columns as they are.

    Raises:
        FileNotFoundError: no such data set, here or (where it can be reached) on the hub.
        ValueError: no such split.
    """
    folder = Path(name).expanduser()
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        if saved:
            dataset = datasets.load_from_disk(str(folder))
            if isinstance(dataset, datasets.DatasetDict):
                if split not in dataset:
                    raise ValueError(f"data set {name!r} has no split {split!r}; it has {', '.join(dataset)}")
                dataset = dataset[split]
            return as_stream(dataset) if streaming else dataset
        return datasets.load_dataset(name, config, split=split, streaming=streaming, cache_dir=cache_dir)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"no data set {name!r}: neither a folder here nor reachable on the hub ({error}); "
            "for a folder of files use train_data_dir"
        ) from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def as_stream(dataset: datasets.Dataset) -> datasets.IterableDataset:
    """The same rows in the same order as a stream of up to 64 shards, so that processes and workers can divide it."""
    return dataset.to_iterable_dataset(num_shards=min(64, len(dataset)))


def read_captions(
    folder: Path, items: Sequence[Path], caption_column: str | None = None
) -> list[str] | list[list[str]] | None:
    """The captions of each of `items`, from the `metadata.csv` and `metadata.jsonl` files in `folder` and below it.

    Each line names an item relative to its metadata file in `file_name`, and its caption, or a list of them, in
    `caption_column` (`None`: the first of [`CAPTION_COLUMNS`] that there is); several lines for an item add up. Where
    `folder` is a split, the metadata files of the folder that it divides count too. Items without a caption are counted
    in a warning.

    Returns:
        A str for each item, "" for none; where any has several, a list for each item; `None` where no file has captions.

    Raises:
        ValueError: a metadata file that cannot be parsed or lacks `file_name` or the `caption_column` asked for.
    """
    captions: dict[Path, list[str]] = defaultdict(list)
    found = False
    for file in _metadata_files(folder):
        rows = _read_metadata(file)
        if file.parent == folder.parent:
            rows = [row for row in rows if folder in (file.parent / str(row.get("file_name"))).parents]
        columns = set().union(*rows)
        column = caption_column or next((name for name in CAPTION_COLUMNS if name in columns), None)
        missing = {"file_name", caption_column} - columns - {None}
        if rows and missing:
            names = ", ".join(sorted(map(str, columns)))
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; it has {names}")
        if column is None or not rows:
            continue
        found = True
        for row in rows:
            value = row.get(column)
            several = value if isinstance(value, list) else [value]
            captions[file.parent / str(row.get("file_name"))] += [str(one) for one in several if one not in (None, "")]
    if not found:
        return None
    # A caption that stands in two files is one.
    chosen = [list(dict.fromkeys(captions[item])) for item in items]
    without = chosen.count([])
    if without:
        logger.warning("%d of %d items in %s have no caption", without, len(items), folder)
    if any(len(several) > 1 for several in chosen):
        return chosen
    return ["".join(several) for several in chosen]


def caption_feature(captions: list[str] | list[list[str]]) -> Any:
    """The type of a column of what [`read_captions`] answers."""
    text = datasets.Value("string")
    return datasets.List(text) if isinstance(captions[0], list) else text


def _metadata_files(folder: Path) -> list[Path]:
    files = list_files(folder, {".csv", ".jsonl"})
    if folder.name.lower() in _SPLIT_ALIASES:
        files += sorted(path for path in folder.parent.glob("*.*") if _suffix(path.name) in {".csv", ".jsonl"})
    return [file for file in files if file.stem == "metadata"]


def _read_metadata(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            if file.suffix.lower() == ".csv":
                rows = list(csv.DictReader(text))
            else:
                rows = [json.loads(line) for line in text if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as {file.suffix[1:]}: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold one JSON object a line")
    return rows


def keep_readable(items: Sequence[Path], check: Callable[[Path], None], strict: bool, kind: str) -> list[Path]:
    """The `items` for which `check` raises nothing; the others are named in a warning each and counted.

    Raises:
        ValueError: with `strict`, at the first bad item; in any case if none is good.
    """
    good, bad = [], 0
    for item in items:
        try:
            check(item)
        except (ValueError, OSError) as error:
            if strict:
                raise ValueError(f"{error} (strict: bad items are errors)") from error
            bad += 1
            logger.warning("skipping %s", error)
        else:
            good.append(item)
    if bad:
        logger.warning("skipped %d of %d %ss that cannot be used", bad, len(items), kind)
    if not good:
        raise ValueError(f"none of {bad} {kind}s can be used; see the warnings above")
    return good


def caption_of(row: dict[str, Any], rng: np.random.Generator) -> str:
    """The row's caption; of several, one at random; "" (as for prompt dropout) where it is missing."""
    caption = row["caption"]
    if isinstance(caption, np.ndarray):  # of rows in numpy's format
        caption = caption.tolist()
    if isinstance(caption, list | tuple):
        caption = caption[rng.integers(len(caption))] if len(caption) else ""
    return str(caption or "")
