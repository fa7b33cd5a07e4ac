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
"""Shape metrics against brute force in plain numpy, and against cases in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
import trimesh

from diffusers_ddmi.metrics import shapes
from diffusers_ddmi.metrics.shapes import (
    chamfer_distance,
    classification_accuracy,
    coverage,
    earth_movers_distance,
    f_score,
    generation_metrics,
    minimum_matching_distance,
    nearest_neighbor_accuracy,
    pairwise_distances,
    sample_surface_points,
    total_mutual_difference,
    volumetric_iou,
)


def clouds(seed, *shape):
    return np.random.default_rng(seed).normal(size=(*shape, 3))


def brute_chamfer(a, b):
    squared = [[sum((p - q) ** 2) for q in b] for p in a]
    return np.mean([min(row) for row in squared]) + np.mean([min(column) for column in zip(*squared)])


def brute_emd(a, b):
    costs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    orders = itertools.permutations(range(len(a)))
    return min(np.mean([costs[i, j] for i, j in enumerate(order)]) for order in orders)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_chamfer_distance_equals_brute_force(dtype, tolerance):
    a, b = clouds(0, 3, 20).astype(dtype), (clouds(1, 3, 31) + 5).astype(dtype)  # far from the origin, where digits go
    expected = [brute_chamfer(*pair) for pair in zip(a.astype(float), b.astype(float))]
    np.testing.assert_allclose(chamfer_distance(a, b), expected, rtol=tolerance)
    np.testing.assert_allclose(chamfer_distance(a, b, workers=2), expected, rtol=tolerance)
    # What other devices than the CPU do.
    matrices = shapes._chamfer_by_matrices(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(matrices, expected, rtol=tolerance)


def test_chamfer_distance_of_shifted_lattices():
    line = torch.arange(5.0)
    lattice = torch.cartesian_prod(line, line, line)[None]
    assert chamfer_distance(lattice, lattice).item() == 0
    shift = torch.tensor([0.2, 0.1, -0.3])
    assert chamfer_distance(lattice, lattice + shift).item() == pytest.approx(2 * 0.14, rel=1e-5)
    # One point against many: nearest one way, mean of all the other way.
    one, two = torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0, 0], [0, 3, 0]]])
    assert chamfer_distance(one, two).item() == pytest.approx(1 + (1 + 9) / 2)


def test_chunks_change_nothing(monkeypatch):
    a, b = clouds(2, 7, 30), clouds(3, 7, 25)
    whole = chamfer_distance(a, b), f_score(a, b, 0.5).f_score, earth_movers_distance(a[:, :25], b)
    monkeypatch.setattr(shapes, "_DISTANCES_PER_CHUNK", 2000)
    for before, after in zip(
        whole, (chamfer_distance(a, b), f_score(a, b, 0.5).f_score, earth_movers_distance(a[:, :25], b))
    ):
        assert torch.equal(before, after)


def test_earth_movers_distance_equals_brute_force():
    a, b = clouds(4, 3, 6), clouds(5, 3, 6)
    expected = [brute_emd(*pair) for pair in zip(a, b)]
    np.testing.assert_allclose(earth_movers_distance(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(earth_movers_distance(a, b, workers=3), expected, rtol=1e-12)


def test_earth_movers_distance_in_closed_form():
    a = clouds(6, 1, 200)
    order = np.random.default_rng(7).permutation(200)
    assert earth_movers_distance(a, a[:, order]).item() == 0
    # No matching moves the cloud's mean by less than its shift, and the shift itself attains that.
    assert earth_movers_distance(a, (a + np.array([0.3, 0.0, -0.4]))[:, order]).item() == pytest.approx(0.5, rel=1e-9)
    # On a line the sorted order is optimal.
    x, y = np.random.default_rng(8).normal(size=(2, 100))
    line = [np.stack([v, 0 * v, 0 * v], -1)[None] for v in (x, y)]
    assert earth_movers_distance(*line).item() == pytest.approx(np.abs(np.sort(x) - np.sort(y)).mean(), rel=1e-9)


def test_distances_at_the_size_of_published_tables():
    a, b = clouds(9, 1, 2048).astype(np.float32), clouds(10, 1, 2048).astype(np.float32)
    squared = np.linalg.norm(a.astype(float)[0, :, None] - b.astype(float)[0, None], axis=-1) ** 2
    expected = squared.min(0).mean() + squared.min(1).mean()
    assert chamfer_distance(a, b)[0].item() == pytest.approx(expected, rel=1e-6)


def test_pairwise_distances_cover_all_pairs():
    a, b = clouds(11, 3, 12), clouds(12, 4, 12)
    for metric, brute in (("chamfer", brute_chamfer), ("emd", None)):
        matrix = pairwise_distances(a, b, metric)
        assert matrix.shape == (3, 4) and matrix.dtype == torch.float64
        brute = brute or (lambda p, q: earth_movers_distance(p[None], q[None]).item())
        np.testing.assert_allclose(matrix, [[brute(p, q) for q in b] for p in a], rtol=1e-12)
        within = pairwise_distances(a, a, metric)  # half of it computed, half mirrored
        np.testing.assert_allclose(within, pairwise_distances(a, a.copy(), metric), rtol=1e-12, atol=1e-15)
    custom = pairwise_distances(a, b, lambda p, q: (p.mean(1) - q.mean(1)).norm(dim=-1))
    np.testing.assert_allclose(custom, np.linalg.norm(a.mean(1)[:, None] - b.mean(1)[None], axis=-1), rtol=1e-12)


def brute_generation_metrics(generated, reference, distance):
    across = [[distance(s, r) for r in reference] for s in generated]
    mmd = np.mean([min(row[j] for row in across) for j in range(len(reference))])
    cov = len({min(range(len(reference)), key=row.__getitem__) for row in across}) / len(reference)
    everything = [(cloud, True) for cloud in generated] + [(cloud, False) for cloud in reference]
    same = 0
    for i, (cloud, label) in enumerate(everything):
        others = [(distance(cloud, other), kind) for j, (other, kind) in enumerate(everything) if j != i]
        same += min(others)[1] == label
    return {"mmd": mmd, "cov": cov, "1-nna": same / len(everything)}


@pytest.mark.parametrize("metric", ["chamfer", "emd"])
def test_generation_metrics_equal_brute_force(metric):
    generated, reference = clouds(13, 7, 9), clouds(14, 5, 9) * 1.2
    exact = brute_chamfer if metric == "chamfer" else lambda p, q: earth_movers_distance(p[None], q[None]).item()
    expected = brute_generation_metrics(generated, reference, exact)
    assert 0 < expected["cov"] < 1 and 0 < expected["1-nna"] < 1
    assert generation_metrics(generated, reference, metric) == pytest.approx(expected, rel=1e-9)


def test_generation_metrics_in_closed_form():
    reference = clouds(15, 6, 40)
    copied = generation_metrics(reference, reference)
    assert copied["mmd"] == 0 and copied["cov"] == 1 and copied["1-nna"] == 0  # each shape's nearest is its copy
    far = generation_metrics(reference + 100, reference)
    assert far["1-nna"] == 1
    collapsed = generation_metrics(np.repeat(reference[:1], 6, axis=0), reference)
    assert collapsed["cov"] == pytest.approx(1 / 6)


def test_matrix_metrics_on_numbers_worked_out_by_hand():
    distances = torch.tensor([[1.0, 4, 9], [2, 3, 8], [7, 6, 5]])
    assert minimum_matching_distance(distances) == pytest.approx((1 + 3 + 5) / 3)
    assert coverage(distances) == pytest.approx(2 / 3)  # rows are nearest to 0, 0 and 2
    within = torch.tensor([[0.0, 1.5, 9], [1.5, 0, 9], [9, 9, 0]])
    other = torch.tensor([[0.0, 9, 9], [9, 0, 1], [9, 1, 0]])
    # Nearest: s0 r0, s1 s0, s2 r2; r0 s0, r1 r2, r2 r1.
    assert nearest_neighbor_accuracy(within, distances, other) == pytest.approx(3 / 6)


def test_volumetric_iou():
    line = np.linspace(-1, 1, 41)
    x = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    left, right = x[:, 0] < 0.2, x[:, 0] > -0.4
    both = volumetric_iou(np.stack([left, left, left & False]), np.stack([right, left, left & False]).astype(float))
    np.testing.assert_allclose(both, [(left & right).sum() / (left | right).sum(), 1, 1], rtol=1e-12)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        volumetric_iou(np.array([[0.3, 1.0]]), np.array([[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\)"):
        volumetric_iou(np.zeros((1, 2)), np.zeros((1, 3)))


def test_f_score():
    target = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]])
    prediction = torch.tensor([[[0.0, 0.05, 0], [1, 0, 0.2]]])
    result = f_score(prediction, target, 0.1)
    assert result.precision.item() == 0.5 and result.recall.item() == 0.25
    assert result.f_score.item() == pytest.approx(2 * 0.5 * 0.25 / 0.75)
    assert f_score(target, target, 0.01).f_score.item() == 1
    assert f_score(target + 9, target, 0.01).f_score.item() == 0
    with pytest.raises(ValueError, match="got 0"):
        f_score(target, target, 0)


def test_total_mutual_difference():
    sets = clouds(16, 2, 4, 10)
    expected = [sum(np.mean([brute_chamfer(s[i], s[j]) for j in range(4) if j != i]) for i in range(4)) for s in sets]
    np.testing.assert_allclose(total_mutual_difference(sets), expected, rtol=1e-12)
    assert total_mutual_difference(np.repeat(sets[:, :1], 4, axis=1)).tolist() == [0, 0]
    with pytest.raises(ValueError, match="at least two shapes for each condition, got 1"):
        total_mutual_difference(sets[:, :1])


def test_classification_accuracy():
    data = torch.tensor([[0.1], [0.9], [0.8], [0.2], [0.6]])
    seen = []

    def classifier(batch):
        seen.append(len(batch))
        return torch.cat([1 - batch, batch], dim=1)

    assert classification_accuracy(classifier, data, [0, 1, 0, 0, 1], batch_size=2) == pytest.approx(4 / 5)
    assert seen == [2, 2, 1]
    with pytest.raises(ValueError, match="Got 5 shapes and 4 labels"):
        classification_accuracy(classifier, data, [0, 1, 0, 0])
    with pytest.raises(ValueError, match=r"\(5, classes\) scores, got \(5,\)"):
        classification_accuracy(lambda batch: batch[:, 0], data, [0, 1, 0, 0, 1])


def test_surface_points_lie_on_the_surface_and_are_uniform():
    meshes = [trimesh.creation.icosphere(subdivisions=4), trimesh.creation.box((2, 1, 1))]
    points = sample_surface_points(meshes, 4000, rng=np.random.default_rng(0))
    assert points.shape == (2, 4000, 3) and points.dtype == torch.float32
    np.testing.assert_allclose(points[0].norm(dim=1), 1, atol=4e-3)
    assert (points[0].mean(0).abs() < 5 / math.sqrt(4000)).all()
    on_small_sides = (points[1, :, 0].abs() > 1 - 1e-6).double().mean()
    assert on_small_sides == pytest.approx(0.2, abs=0.03)
    again = sample_surface_points(meshes, 4000, rng=np.random.default_rng(0))
    assert torch.equal(points, again)
    with pytest.raises(ValueError, match="Mesh 1 has no surface"):
        sample_surface_points([meshes[0], trimesh.Trimesh()], 10, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: chamfer_distance(a, a[:1]), ValueError, "got 2 and 1"),
        (lambda a: chamfer_distance(a[0], a[0]), ValueError, r"\(batch, points, 3\), got \(4, 3\)"),
        (lambda a: chamfer_distance(a * np.nan, a), ValueError, "not finite"),
        (lambda a: chamfer_distance(a.astype(int), a), TypeError, "int64"),
        (lambda a: earth_movers_distance(a, a[:, :3]), ValueError, "got 4 and 3 points"),
        (lambda a: pairwise_distances(a, a, "cosine"), ValueError, "got 'cosine'"),
        (lambda a: coverage(torch.zeros(0, 3)), ValueError, r"got \(0, 3\)"),
        (lambda a: minimum_matching_distance(torch.full((2, 2), math.nan)), ValueError, "4 NaN"),
        (lambda a: nearest_neighbor_accuracy(*[torch.zeros(2, 3)] * 3), ValueError, r"\(2, 2\) and \(3, 3\)"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(clouds(0, 2, 4))
