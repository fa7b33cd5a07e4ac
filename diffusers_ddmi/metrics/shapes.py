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
"""Shapes compared as point clouds and as occupancies: Chamfer and earth mover's distance, MMD, COV, 1-NNA, IoU, F-score,
TMD, classification accuracy.

Point clouds are `(batch, points, 3)` tensors or arrays in any unit; distances are in that unit (Chamfer: its square).
Published tables use 2048 points a shape, sampled from surfaces uniformly by area ([`sample_surface_points`]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import trimesh
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from tqdm.auto import tqdm


PointClouds = torch.Tensor | np.ndarray
Metric = Literal["chamfer", "emd"]

# Entries of the matrices of point-to-point distances held at once.
_DISTANCES_PER_CHUNK = 1 << 25


class FScore(NamedTuple):
    """F-score, precision and recall of each pair of clouds, `(batch,)` each, in [0, 1]."""

    f_score: torch.Tensor
    precision: torch.Tensor
    recall: torch.Tensor


def sample_surface_points(
    meshes: Iterable[trimesh.Trimesh], num_points: int = 2048, *, rng: np.random.Generator
) -> torch.Tensor:
    """Points `(meshes, num_points, 3)` float32, uniform by area on each mesh.

    Raises:
        ValueError: a mesh without area.
    """
    clouds = []
    for index, mesh in enumerate(meshes):
        if not len(mesh.faces) or not mesh.area > 0:
            raise ValueError(f"Mesh {index} has no surface to sample points from.")
        points, _ = trimesh.sample.sample_surface(mesh, num_points, seed=rng)
        clouds.append(np.asarray(points, dtype=np.float32))
    return torch.from_numpy(np.stack(clouds)) if clouds else torch.zeros(0, num_points, 3)


def chamfer_distance(first: PointClouds, second: PointClouds, workers: int = 1) -> torch.Tensor:
    """Chamfer distance `(batch,)` between clouds `(batch, points, 3)` and `(batch, other points, 3)`.

    As PointFlow defines it (Yang et al. 2019, Eq. 9, with means for sums): the mean squared distance from each point to
    the nearest of the other cloud, one way plus the other way. On a CPU `workers` threads search for them in k-d trees
    (nine times as fast as all distances, for 2048 points); other devices compute all distances in batches.
    """
    first, second = _as_pair(first, second)
    if first.device.type == "cpu":
        return _chamfer_by_trees(first, second, workers)
    return torch.cat([_chamfer_by_matrices(*part) for part in _chunks(first, second)])


def earth_movers_distance(first: PointClouds, second: PointClouds, workers: int = 1) -> torch.Tensor:
    """Earth mover's distance `(batch,)` float64 between clouds `(batch, points, 3)` of equally many points.

    PointFlow's Eq. 10 over the number of points: the mean distance under the best one-to-one matching, which is exact
    here (linear assignment, about 1 s for 2048 points). `workers` threads share the pairs.
    """
    first, second = _as_pair(first, second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"The earth mover's distance matches point with point: got {first.shape[1]} and {second.shape[1]} points."
        )

    def matched(costs: np.ndarray) -> float:
        return costs[linear_sum_assignment(costs)].mean()

    results = []
    with ThreadPoolExecutor(workers) as pool:  # the solver lets go of the interpreter lock
        for a, b in _chunks(first, second):
            results += pool.map(matched, _distances(a, b).double().cpu().numpy())
    return torch.tensor(results, dtype=torch.float64)


def pairwise_distances(
    first: PointClouds,
    second: PointClouds,
    metric: Metric | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "chamfer",
    *,
    device: torch.device | str | None = None,
    workers: int = 1,
    progress_bar: bool = False,
) -> torch.Tensor:
    """Distances `(clouds, other clouds)` float64 on the CPU, of every cloud of `first` from every one of `second`.

    Args:
        first: `(clouds, points, 3)`.
        second: `(other clouds, other points, 3)`.
        metric: "chamfer", "emd", or a function of two batches of clouds that returns one number per pair.
        device: where to compute; where the clouds are if not given.
        workers: threads for "emd", and for "chamfer" on a CPU.
        progress_bar: show one, a row of the matrix a step.
    """
    # Within one set, half of the pairs and none of the clouds with itself.
    symmetric = first is second and isinstance(metric, str)
    first, second = _as_clouds("first", first), _as_clouds("second", second)
    device = first.device if device is None else torch.device(device)
    first, second = first.to(device), second.to(device)
    if metric in ("chamfer", "emd"):
        distance = partial(chamfer_distance if metric == "chamfer" else earth_movers_distance, workers=workers)
    elif callable(metric):
        distance = metric
    else:
        raise ValueError(f'`metric` must be "chamfer", "emd" or a function, got {metric!r}.')
    matrix = torch.zeros(len(first), len(second), dtype=torch.float64)
    for index, cloud in enumerate(tqdm(first, desc="Distances", disable=not progress_bar)):
        others = second[index + 1 :] if symmetric else second
        if len(others):
            matrix[index, len(second) - len(others) :] = distance(cloud.expand(len(others), *cloud.shape), others)
    return matrix + matrix.T if symmetric else matrix


def minimum_matching_distance(distances: torch.Tensor) -> float:
    """MMD (lower is better) from distances `(generated, reference)`: the mean over references of the nearest sample's."""
    return float(_checked_matrix("distances", distances).amin(0).mean())


def coverage(distances: torch.Tensor) -> float:
    """COV in [0, 1] (higher is better) from distances `(generated, reference)`: the part of the references that are the
    nearest one of some generated shape."""
    nearest = _checked_matrix("distances", distances).argmin(1)
    return len(torch.unique(nearest)) / distances.shape[1]


def nearest_neighbor_accuracy(
    generated: torch.Tensor, generated_to_reference: torch.Tensor, reference: torch.Tensor
) -> float:
    """1-NNA in [0, 1] (1/2 is best): how often the nearest other shape is of the same set (Lopez-Paz and Oquab 2017).

    Args:
        generated: distances `(generated, generated)` within the set; the diagonal is not used.
        generated_to_reference: distances `(generated, reference)`.
        reference: distances `(reference, reference)`.
    """
    s, r = _checked_matrix("generated_to_reference", generated_to_reference).shape
    if tuple(generated.shape) != (s, s) or tuple(reference.shape) != (r, r):
        raise ValueError(
            f"Distances between sets of {s} and {r} shapes need matrices ({s}, {s}) and ({r}, {r}) within the sets, got "
            f"{tuple(generated.shape)} and {tuple(reference.shape)}."
        )
    top = torch.cat([generated, generated_to_reference], dim=1)
    bottom = torch.cat([generated_to_reference.T, reference], dim=1)
    distances = torch.cat([top, bottom]).clone()
    distances.fill_diagonal_(torch.inf)
    is_generated = torch.arange(s + r) < s
    return float((is_generated[distances.argmin(1)] == is_generated).double().mean())


def generation_metrics(
    generated: PointClouds,
    reference: PointClouds,
    metric: Metric | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "chamfer",
    **kwargs: Any,
) -> dict[str, float]:
    """`{"mmd", "cov", "1-nna"}` of generated shapes against reference shapes (PointFlow §5.1), as point clouds.

    Args:
        generated, reference: `(shapes, points, 3)`, usually equally many shapes of 2048 points.
        metric: and further arguments, as in [`pairwise_distances`].
    """
    across = pairwise_distances(generated, reference, metric, **kwargs)
    within = [pairwise_distances(clouds, clouds, metric, **kwargs) for clouds in (generated, reference)]
    return {
        "mmd": minimum_matching_distance(across),
        "cov": coverage(across),
        "1-nna": nearest_neighbor_accuracy(within[0], across, within[1]),
    }


def volumetric_iou(first: torch.Tensor | np.ndarray, second: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Intersection over union `(batch,)` float64 of occupancies `(batch, ...)` at the same points, boolean or 0 and 1.

    Two empty shapes agree: their IoU is 1.
    """
    first, second = (torch.as_tensor(values) for values in (first, second))
    if first.shape != second.shape or first.ndim < 2:
        raise ValueError(
            f"Occupancies must have one shape (batch, points), got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    for name, values in (("first", first), ("second", second)):
        if values.dtype != torch.bool and not ((values == 0) | (values == 1)).all():
            raise ValueError(
                f"`{name}` holds values other than 0 and 1: compare probabilities or logits with a level."
            )
    first, second = (values.bool().flatten(1) for values in (first, second))
    intersection, union = (first & second).sum(1).double(), (first | second).sum(1).double()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def f_score(prediction: PointClouds, target: PointClouds, threshold: float = 0.01) -> FScore:
    """F-score of clouds `(batch, points, 3)` (Tatarchenko et al. 2019): harmonic mean of precision, the part of the
    predicted points within `threshold` of the target, and recall, the part of the target's within it of the prediction."""
    if not threshold > 0:
        raise ValueError(f"`threshold` is a distance and must be positive, got {threshold}.")
    prediction, target = _as_pair(prediction, target)
    within = []
    for part in _chunks(prediction, target):
        distances = _distances(*part)
        near = [(distances.amin(dim) <= threshold).double().mean(1) for dim in (2, 1)]
        within.append(torch.stack(near))
    precision, recall = torch.cat(within, dim=1)
    total = precision + recall
    return FScore(torch.where(total > 0, 2 * precision * recall / total.clamp(min=1e-300), 0.0), precision, recall)


def total_mutual_difference(
    shapes: PointClouds | Sequence[PointClouds],
    metric: Metric | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "chamfer",
    **kwargs: Any,
) -> torch.Tensor:
    """TMD (higher is more diverse) `(conditions,)` of several shapes generated for each condition (Wu et al. 2020).

    The sum over a condition's shapes of the mean distance to its other shapes.

    Args:
        shapes: `(conditions, shapes, points, 3)`, at least two shapes for each condition.
        metric: and further arguments, as in [`pairwise_distances`].
    """
    totals = []
    for clouds in shapes:
        if len(clouds) < 2:
            raise ValueError(
                f"The total mutual difference needs at least two shapes for each condition, got {len(clouds)}."
            )
        distances = pairwise_distances(clouds, clouds, metric, **kwargs).fill_diagonal_(0.0)
        totals.append(distances.sum() / (len(clouds) - 1))
    return torch.stack(totals) if totals else torch.zeros(0, dtype=torch.float64)


@torch.no_grad()
def classification_accuracy(
    classifier: Callable[[Any], torch.Tensor],
    shapes: Sequence,
    labels: Sequence[int] | torch.Tensor,
    batch_size: int = 32,
) -> float:
    """Part of the generated shapes that a classifier puts into the class they were asked for.

    For a script of one's own: which class a prompt asks for, and in what form the classifier takes shapes, only its user
    knows, so `training/evaluate.py` does not report it.

    Args:
        classifier: scores `(batch, classes)` for a slice of `shapes`; put it into evaluation mode before.
        shapes: anything that can be sliced and that the classifier takes: point clouds, occupancy grids, renderings.
        labels: the class asked for, one per shape.
    """
    labels = torch.as_tensor(labels)
    if len(shapes) != len(labels) or not len(labels):
        raise ValueError(
            f"Got {len(shapes)} shapes and {len(labels)} labels: give one label per shape, and at least one."
        )
    correct = 0
    for start in range(0, len(labels), batch_size):
        expected = labels[start : start + batch_size]
        scores = classifier(shapes[start : start + batch_size])
        if scores.ndim != 2 or len(scores) != len(expected):
            raise ValueError(
                f"The classifier must return ({len(expected)}, classes) scores, got {tuple(scores.shape)}."
            )
        correct += int((scores.argmax(1).cpu() == expected.cpu()).sum())
    return correct / len(labels)


def _as_clouds(name: str, clouds: PointClouds) -> torch.Tensor:
    clouds = torch.as_tensor(clouds)
    if clouds.ndim != 3 or clouds.shape[-1] != 3 or not clouds.shape[1]:
        raise ValueError(f"`{name}` must be point clouds (batch, points, 3), got {tuple(clouds.shape)}.")
    if not clouds.is_floating_point():
        raise TypeError(f"`{name}` must hold floating-point coordinates, got {clouds.dtype}.")
    if not clouds.isfinite().all():
        raise ValueError(f"`{name}` has coordinates that are not finite.")
    clouds = clouds.detach()
    return clouds if clouds.dtype == torch.float64 else clouds.float()


def _as_pair(first: PointClouds, second: PointClouds) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = _as_clouds("first", first), _as_clouds("second", second)
    if len(first) != len(second):
        raise ValueError(
            f"Clouds are compared one with one: got {len(first)} and {len(second)}. Use `pairwise_distances` for all pairs."
        )
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(first.device, dtype)


def _chunks(first: torch.Tensor, second: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    pairs = max(1, _DISTANCES_PER_CHUNK // (first.shape[1] * second.shape[1]))
    return zip(first.split(pairs), second.split(pairs))


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Euclidean distances `(batch, points, other points)`, from differences: products of coordinates lose digits."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def _chamfer_by_matrices(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    distances = _distances(first, second)
    return sum(distances.amin(dim).double().square().mean(1) for dim in (2, 1))


def _chamfer_by_trees(first: torch.Tensor, second: torch.Tensor, workers: int) -> torch.Tensor:
    result = torch.zeros(len(first), dtype=torch.float64)
    for index, (a, b) in enumerate(zip(first.double().numpy(), second.double().numpy())):
        for points, others in ((a, b), (b, a)):
            distances, _ = cKDTree(others).query(points, workers=workers)
            result[index] += np.square(distances).mean()
    return result


def _checked_matrix(name: str, distances: torch.Tensor) -> torch.Tensor:
    if distances.ndim != 2 or 0 in distances.shape:
        raise ValueError(f"`{name}` must be a matrix (generated, reference), not empty, got {tuple(distances.shape)}.")
    if distances.isnan().any():
        raise ValueError(f"`{name}` holds {int(distances.isnan().sum())} NaN values.")
    return distances
