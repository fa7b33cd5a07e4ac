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


def split_folder(folder: str | os.PathLike, split: str) -> Path:
    """The part of `folder` that holds `split`: its subfolder of that name where all subfolders are splits, else all of it.

    Raises:
        FileNotFoundError: no such folder, or it is divided into splits without this one.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; expected a folder of training data")
    subfolders = {path.name.lower(): path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    known = {alias for aliases in _SPLIT_NAMES.values() for alias in aliases}
    if not subfolders or not set(subfolders) <= known:
        return folder
    for alias in _SPLIT_NAMES.get(split, (split,)):
        if alias in subfolders:
            return subfolders[alias]
    raise FileNotFoundError(f"{folder} has no split {split!r}; it is divided into {', '.join(sorted(subfolders))}")


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


def read_captions(folder: Path, items: Sequence[Path], caption_column: str | None = None) -> list[str] | None:
    """One caption for each of `items`, from the `metadata.csv` and `metadata.jsonl` files in `folder` and below it.

    Each line names an item relative to its metadata file in `file_name`, and its caption in `caption_column` (`None`: the
    first of [`CAPTION_COLUMNS`] that there is). Items without one get "" and are counted in a warning; where no file has
    captions, the answer is `None`.

    Raises:
        ValueError: a metadata file that cannot be parsed or lacks `file_name` or the `caption_column` asked for.
    """
    captions: dict[Path, str] = {}
    found = False
    for file in list_files(folder, {".csv", ".jsonl"}):
        if file.stem != "metadata":
            continue
        rows = _read_metadata(file)
        columns = set().union(*rows)
        column = caption_column or next((name for name in CAPTION_COLUMNS if name in columns), None)
        missing = {"file_name", caption_column} - columns - {None}
        if rows and missing:
            names = ", ".join(sorted(map(str, columns)))
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; it has {names}")
        if column is not None:
            found = True
            captions |= {file.parent / str(row.get("file_name")): row[column] for row in rows if row.get(column)}
    if not found:
        return None
    without = sum(item not in captions for item in items)
    if without:
        logger.warning("%d of %d items in %s have no caption", without, len(items), folder)
    return [captions.get(item, "") for item in items]


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
    if isinstance(caption, list | tuple):
        caption = caption[rng.integers(len(caption))] if len(caption) else ""
    return str(caption or "")
