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
"""Folders of meshes as data sets: prepared once, by several processes, in pieces that survive an interruption.

Preparing decides inside and outside, which takes about a second a mesh, so its results are kept as Arrow files, each of a
few meshes. A file's name is a digest of what it was made of (names, sizes and times of the meshes, numbers of points), so
a later run takes up every piece that is done, and redoes those whose meshes have changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import secrets
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from .base import MACHINE_FAULTS
from .mesh_sampling import shape_row
from .mesh_solids import MESH_SUFFIXES, load_solid
from .sources import caption_feature, list_files, read_captions


logger = logging.getLogger(__name__)

_MESHES_PER_FILE = 16
# Smaller folders are divided into about so many pieces of fewer meshes, to have work for several processes.
_MIN_PIECES = 16
# To be raised when the same mesh would get other points or occupancies than before.
_VERSION = 1


@dataclass(frozen=True)
class _Preparation:
    """What is done to every mesh of a folder."""

    folder: Path
    num_surface_points: int
    num_points: int
    seed: int

    def features(self) -> datasets.Features:
        return datasets.Features(
            {
                "name": datasets.Value("string"),
                "surface": datasets.Array2D((self.num_surface_points, 3), "float32"),
                "points": datasets.Array2D((self.num_points, 3), "float16"),
                "occupancies": datasets.List(datasets.Value("uint8"), length=self.num_points // 8),
                "num_uniform": datasets.Value("int32"),
            }
        )

    def digest(self, names: list[str]) -> str:
        stats = [(self.folder / name).stat() for name in names]
        source = [_VERSION, self.num_surface_points, self.num_points, self.seed]
        source += [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats)]
        return hashlib.blake2b(repr(source).encode(), digest_size=12).hexdigest()

    def row(self, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The row of one mesh, and how it was repaired; ValueError or OSError if it cannot be used."""
        path = self.folder / name
        solid = load_solid(path)
        rng = np.random.default_rng((self.seed, zlib.crc32(name.encode())))
        try:
            surface = solid.sample_surface(self.num_surface_points, rng)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return shape_row(name, surface, solid.contains, self.num_points, rng), solid.repairs


@dataclass(frozen=True)
class _Piece:
    """Some meshes of the folder, and the files that their rows and the report on them are kept in."""

    names: tuple[str, ...]
    rows: Path
    report: Path

    def done(self) -> dict[str, Any] | None:
        """The report, where the piece is done: it is written after the rows, but a crash or a clean-up may leave only one."""
        try:
            return json.loads(self.report.read_text()) if self.rows.exists() else None
        except (FileNotFoundError, ValueError):
            return None


def load_mesh_folder(
    folder: str | os.PathLike,
    caption_column: str | None = None,
    strict: bool = False,
    num_surface_points: int = 4096,
    num_points: int = 16384,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Rows (columns: see `data.shapes`) of all meshes in and below `folder`, prepared where they are not yet.

    Meshes ([`MESH_SUFFIXES`]) are merged from the parts of a scene, repaired, centred and scaled to the longest side 0.9 (y
    is up); half of the points are uniform in the cube, the others normally distributed about the surface
    ([`mesh_solids`], [`mesh_sampling`]). They are named by their path in `folder`. Captions come from the
    `metadata.csv` or `metadata.jsonl` files beside the meshes (columns `file_name` and `caption_column`); meshes without
    one get "", or an empty list where some have several.

    Args:
        strict: a mesh that cannot be used raises; otherwise it is named in a warning, skipped and counted.
        num_surface_points: K of `surface` (K, 3).
        num_points: M of `points` (M, 3), a multiple of 8.
        seed: of the points.
        cache_dir: where the prepared rows are kept; `None`: in the cache of `datasets`.
        num_proc: processes; `None`: one per processor. With several, a mesh that crashes its process is skipped too.

    Raises:
        ValueError: no meshes, not one that can be used, with `strict` one that cannot, or numbers outside these ranges.
        OSError, MemoryError, ImportError: the machine failed, or lacks a reader; what is done by then is kept.
    """
    if num_surface_points < 1 or num_points < 8 or num_points % 8:
        raise ValueError(
            "num_surface_points must be at least 1 and num_points a positive multiple of 8, "
            f"got {num_surface_points} and {num_points}"
        )
    if num_proc is not None and num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    folder = Path(folder).expanduser()
    files = list_files(folder, MESH_SUFFIXES)
    if not files:
        raise ValueError(f"no meshes in {folder}; expected files with one of {', '.join(sorted(MESH_SUFFIXES))}")
    names = [file.relative_to(folder).as_posix() for file in files]
    captions = read_captions(folder, files, caption_column)
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "diffusers_ddmi_meshes"

    preparation = _Preparation(folder, num_surface_points, num_points, seed)
    pieces = _divide(preparation, names, cache)
    reports = _prepare(preparation, pieces, strict, num_proc or _processors())
    _tell(reports, len(files), folder)
    parts = [datasets.Dataset.from_file(str(p.rows)) for p in pieces if reports[p]["count"]]
    dataset = datasets.concatenate_datasets(parts)
    if captions is not None:
        by_name = dict(zip(names, captions))
        column = [by_name[name] for name in dataset["name"]]
        dataset = dataset.add_column("caption", column, feature=caption_feature(captions))
    return dataset.with_format("numpy")


def _processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _divide(preparation: _Preparation, names: list[str], cache: Path) -> list[_Piece]:
    cache.mkdir(parents=True, exist_ok=True)
    # Not by the number of processes: another one is to find the same pieces.
    size = max(1, min(_MESHES_PER_FILE, len(names) // _MIN_PIECES))
    pieces = []
    for start in range(0, len(names), size):
        some = names[start : start + size]
        stem = cache / preparation.digest(some)
        pieces.append(_Piece(tuple(some), stem.with_suffix(".arrow"), stem.with_suffix(".json")))
    return pieces


def _prepare(
    preparation: _Preparation, pieces: list[_Piece], strict: bool, num_proc: int
) -> dict[_Piece, dict[str, Any]]:
    """The report of every piece, those that are not done being done now."""
    reports = {piece: report for piece in pieces if (report := piece.done()) is not None}
    _refuse_skipped(reports.values(), strict)
    todo = [piece for piece in pieces if piece not in reports]
    if todo:
        bar = tqdm(total=sum(len(piece.names) for piece in pieces), desc="Preparing meshes", unit="mesh")
        with bar:
            bar.update(sum(len(piece.names) for piece in reports))
            for piece, report in _work(preparation, todo, num_proc):
                reports[piece] = report
                bar.update(len(piece.names))
                _refuse_skipped([report], strict)
    return reports


def _work(preparation: _Preparation, todo: list[_Piece], num_proc: int) -> Iterator[tuple[_Piece, dict[str, Any]]]:
    if num_proc == 1:
        for piece in todo:
            yield piece, _prepare_piece(preparation, piece)
        return
    left = set(todo)
    pool = _pool(min(num_proc, len(todo)))
    try:
        futures = {pool.submit(_prepare_piece, preparation, piece): piece for piece in todo}
        for future in as_completed(futures):
            report = future.result()
            left.discard(futures[future])
            yield futures[future], report
    except BrokenProcessPool:
        logger.warning("a process died while preparing meshes; going on with one mesh at a time to find which")
    finally:
        pool.shutdown(cancel_futures=True)
    for piece in todo:
        if piece in left:
            yield piece, piece.done() or _prepare_piece(preparation, piece, alone=True)


def _pool(num_proc: int) -> ProcessPoolExecutor:
    # Forked, as a DataLoader's workers are: a spawned process would import the caller's script, and torch, again.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    return ProcessPoolExecutor(num_proc, multiprocessing.get_context(method), initializer=_use_one_thread)


def _use_one_thread() -> None:
    os.environ["IGL_NUM_THREADS"] = "1"


def _prepare_piece(preparation: _Preparation, piece: _Piece, alone: bool = False) -> dict[str, Any]:
    """Writes the rows of a piece, then its report, each whole or not at all; `alone` gives each mesh a process.

    The report is not kept if a mesh was skipped for what may be no fault of its own: another run tries it again.
    """
    report: dict[str, Any] = {"count": 0, "skipped": {}, "repaired": {}}
    final = True
    # Random, since processes of other machines may share the folder.
    temporary = piece.rows.with_suffix(f".{secrets.token_hex(8)}")
    try:
        with ArrowWriter(features=preparation.features(), path=str(temporary)) as writer:
            for name in piece.names:
                try:
                    row, repairs = _row_alone(preparation, name) if alone else preparation.row(name)
                except (ValueError, OSError) as error:
                    if getattr(error, "errno", None) in MACHINE_FAULTS:
                        raise
                    final = final and not isinstance(error, OSError)
                    report["skipped"][name] = str(error)
                    continue
                writer.write(row)
                report["count"] += 1
                if repairs:
                    report["repaired"][name] = list(repairs)
            writer.finalize()
        os.replace(temporary, piece.rows)
        if final:
            temporary.write_text(json.dumps(report))
            os.replace(temporary, piece.report)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def _row_alone(preparation: _Preparation, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    with _pool(1) as pool:
        try:
            return pool.submit(preparation.row, name).result()
        except BrokenProcessPool as error:
            raise ChildProcessError(f"{preparation.folder / name}: the process that prepared it died") from error


def _refuse_skipped(reports: Any, strict: bool) -> None:
    for report in reports if strict else ():
        for reason in report["skipped"].values():
            raise ValueError(f"{reason} (strict: bad items are errors)")


def _tell(reports: dict[_Piece, dict[str, Any]], total: int, folder: Path) -> None:
    skipped = [reason for report in reports.values() for reason in report["skipped"].values()]
    repaired = {name: repairs for report in reports.values() for name, repairs in report["repaired"].items()}
    for reason in sorted(skipped):
        logger.warning("skipping %s", reason)
    for name, repairs in sorted(repaired.items()):
        logger.info("repaired %s: %s", name, ", ".join(repairs))
    if repaired:
        logger.info("repaired %d of %d meshes", len(repaired), total)
    if skipped:
        logger.warning("skipped %d of %d meshes that cannot be used", len(skipped), total)
    if len(skipped) == total:
        raise ValueError(f"none of the {total} meshes in {folder} can be used; see the warnings above")
