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
"""Surface extraction against shapes in closed form, dense evaluation, and scikit-image's marching cubes."""

import importlib.util
import itertools
import math
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from diffusers_ddmi.metrics.shapes import chamfer_distance, sample_surface_points
from diffusers_ddmi.rendering import surface
from diffusers_ddmi.rendering.marching_cubes import case_table
from diffusers_ddmi.rendering.surface import extract_meshes, save_mesh


STEEPNESS = 60.0
BENCHMARK = Path(__file__).resolve().parents[2] / "examples" / "benchmarks" / "surface_extraction.py"


def ball(points, center=(0.0, 0.0, 0.0), radius=0.4):
    return radius - (points - points.new_tensor(center)).norm(dim=-1)


def box(points, center, half):
    q = (points - points.new_tensor(center)).abs() - points.new_tensor(half)
    return -(q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0))


def chair(points):
    parts = [box(points, (0, 0, 0), (0.25, 0.02, 0.25)), box(points, (0, 0.22, -0.23), (0.25, 0.22, 0.02))]
    parts += [box(points, (x, -0.22, z), (0.02, 0.22, 0.02)) for x in (-0.23, 0.23) for z in (-0.23, 0.23)]
    return torch.stack(parts).amax(0)


def as_field(distance):
    return lambda points: STEEPNESS * distance(points)[..., None]


def noise_field(seed, cells, mode="bilinear", batch=1):
    grid = torch.randn(batch, 1, cells, cells, cells, generator=torch.Generator().manual_seed(seed))

    def field(points):
        at = (2 * points)[:, :, None, None, [2, 1, 0]]
        return F.grid_sample(grid, at, mode=mode, align_corners=True).reshape(batch, -1, 1)

    return field


class Counted:
    """A field that remembers how it was called."""

    def __init__(self, field):
        self.field, self.points, self.largest = field, 0, 0

    def __call__(self, points):
        count = points.shape[0] * points.shape[1]
        self.points, self.largest = self.points + count, max(self.largest, count)
        return self.field(points)


def node_occupancy(mesh, resolution):
    """Which nodes of the unit cube's grid lie in a mesh whose vertices lie on that grid's edges."""
    index = (mesh.vertices + 0.5) * (resolution - 1)
    off_node = np.abs(index - index.round()) > 1e-6
    # Between two nodes of a line along z the surface is crossed; a vertex on a node is where the box cut a solid part.
    crossing = off_node[:, 2] & ~off_node[:, :2].any(1)
    start = ~off_node.any(1) & (index[:, 2] < 0.5)
    cell = np.concatenate([np.ceil(index[crossing]), np.round(index[start])]).astype(int)
    cell[: crossing.sum(), :2] = index[crossing, :2].round()
    changes = np.zeros((resolution,) * 3, dtype=np.int64)
    np.add.at(changes, tuple(cell.T), 1)
    return changes.cumsum(axis=2) % 2 == 1


def dense_values(field, resolution):
    line = torch.linspace(-0.5, 0.5, resolution, dtype=torch.float64).float()
    points = torch.cartesian_prod(line, line, line)[None]
    return field(points).reshape(resolution, resolution, resolution).numpy()


def rows(vertices):
    return vertices[np.lexsort(np.round(vertices, 7).T)]


def radial(mesh):
    return mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)


def assert_sound(mesh):
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    np.testing.assert_allclose(np.linalg.norm(mesh.vertex_normals, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("resolution", [33, 100, 128])
def test_sphere(resolution):
    (mesh,) = extract_meshes(as_field(ball), resolution=resolution)
    assert_sound(mesh)
    assert mesh.euler_number == 2
    tolerance = 6 / resolution**2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=3 * tolerance)
    assert mesh.area == pytest.approx(4 * math.pi * 0.4**2, rel=2 * tolerance)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.4, atol=0.4 * tolerance)
    assert (mesh.vertex_normals * radial(mesh)).sum(1).min() > math.cos(math.radians(2.1))


def test_normals_follow_the_gradient(monkeypatch):
    field = Counted(as_field(ball))
    extract_meshes(field, resolution=40, normals=False)
    without, field.points = field.points, 0
    extract_meshes(field, resolution=40)
    assert field.points > without  # a coarse sphere is nowhere flat: the gradient was asked for

    monkeypatch.setattr(surface, "_FLAT_ANGLE", 0.0)
    (mesh,) = extract_meshes(as_field(ball), resolution=40)
    np.testing.assert_allclose(mesh.vertex_normals, radial(mesh), atol=1e-5)


def torus(points):
    return 0.1 - torch.hypot(points[..., [0, 2]].norm(dim=-1) - 0.3, points[..., 1])


def plate(points):
    return box(points, (0.011, -0.0177, 0.003), (0.3, 0.012, 0.2))


def components(points):
    centers = torch.cartesian_prod(*[torch.tensor([-0.31, 0.012, 0.34])] * 3)
    return 0.11 - (points[..., None, :] - centers).norm(dim=-1).amin(-1)


@cache
def benchmark_field():
    specification = importlib.util.spec_from_file_location("surface_extraction", BENCHMARK)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    return benchmark.FurnitureField(seed=3)


def furniture(points):
    return benchmark_field().depth(points)


def test_torus():
    (mesh,) = extract_meshes(as_field(torus), resolution=96)
    assert_sound(mesh)
    assert mesh.euler_number == 0 and mesh.body_count == 1
    assert mesh.volume == pytest.approx(2 * math.pi**2 * 0.3 * 0.1**2, rel=0.01)
    assert mesh.area == pytest.approx(4 * math.pi**2 * 0.3 * 0.1, rel=0.01)
    np.testing.assert_allclose(mesh.extents, [0.8, 0.2, 0.8], atol=1e-3)


def test_thin_plates_are_found_between_coarse_nodes():
    # 0.008 thick: 2 fine cells, a quarter of a coarse one, and off its nodes; the distance field announces them.
    heights = [-0.3311, -0.0177, 0.2943]

    def plates(points):
        return torch.stack([box(points, (0.01, height, 0), (0.3, 0.004, 0.2)) for height in heights]).amax(0)

    (mesh,) = extract_meshes(as_field(plates), resolution=256)
    assert_sound(mesh)
    parts = mesh.split()
    assert len(parts) == 3 and all(part.euler_number == 2 for part in parts)
    assert mesh.volume == pytest.approx(3 * 0.6 * 0.008 * 0.4, rel=0.02)
    assert mesh.area == pytest.approx(3 * 2 * (0.6 * 0.4 + 0.008 * 1.0), rel=0.02)
    np.testing.assert_allclose(sorted(part.centroid[1] for part in parts), heights, atol=1e-3)


def test_many_components_and_a_hollow():
    centers = torch.cartesian_prod(*[torch.tensor([-0.31, 0.012, 0.34])] * 3)

    def shells(points):
        distance = (points[..., None, :] - centers).norm(dim=-1).amin(-1)
        return torch.minimum(0.12 - distance, distance - 0.06)

    (mesh,) = extract_meshes(as_field(shells), resolution=100)
    assert_sound(mesh)
    assert mesh.body_count == 54 and mesh.euler_number == 108  # each ball has an inner and an outer surface
    assert mesh.volume == pytest.approx(27 * 4 / 3 * math.pi * (0.12**3 - 0.06**3), rel=0.01)


def test_a_thin_part_is_followed_from_where_it_was_met():
    # A rod thinner than a third of a coarse cell leaves a ball and bends; the field is saturated, so nothing announces it.
    rod = torch.tensor([[0.0, 0.0, 0.0], [0.011, 0.017, 0.42], [0.4, 0.02, 0.425]])

    def shape(points):
        distance = []
        for start, end in itertools.pairwise(rod):
            along = ((points - start) @ (end - start) / (end - start).square().sum()).clamp(0, 1)
            distance.append(0.005 - (points - start - along[..., None] * (end - start)).norm(dim=-1))
        return torch.stack([ball(points, radius=0.1), *distance]).amax(0)

    (mesh,) = extract_meshes(lambda points: 9.0 * torch.sign(shape(points))[..., None], resolution=256)
    assert mesh.is_watertight and mesh.body_count == 1
    np.testing.assert_allclose(mesh.bounds[1], [0.405, 0.1, 0.43], atol=0.004)


@pytest.mark.parametrize("resolution", [2, 3, 7, 31, 64, 97])
def test_equals_dense_evaluation(resolution):
    field = noise_field(resolution, cells=5)
    (sparse,) = extract_meshes(field, resolution=resolution, normals=False)
    (dense,) = extract_meshes(field, resolution=resolution, coarse_resolution=resolution, normals=False)
    np.testing.assert_array_equal(node_occupancy(dense, resolution), dense_values(field, resolution) > 0)
    np.testing.assert_allclose(rows(sparse.vertices), rows(dense.vertices), atol=1e-12)
    assert len(sparse.faces) == len(dense.faces)
    assert sparse.volume == pytest.approx(dense.volume, rel=1e-9)


def test_dense_evaluation_equals_scikit_image():
    resolution = 50
    padded = np.pad(dense_values(as_field(chair), resolution), 1, constant_values=-1e3)
    vertices, _, _, _ = marching_cubes(padded, 0.0)
    (mesh,) = extract_meshes(as_field(chair), resolution=resolution)
    assert_sound(mesh)
    expected = (vertices - 1) / (resolution - 1) - 0.5
    assert len(mesh.vertices) == len(expected)
    np.testing.assert_allclose(rows(mesh.vertices), rows(expected.astype(np.float64)), atol=2e-3 / resolution)


@pytest.mark.parametrize("shape", [torus, plate, components, furniture])
def test_the_mesh_is_that_of_dense_marching_cubes(shape):
    """scikit-image's, of the whole grid: the same vertices, as many faces, no Chamfer distance."""
    resolution = 72
    (mesh,) = extract_meshes(as_field(shape), resolution=resolution, normals=False)
    padded = np.pad(dense_values(as_field(shape), resolution), 1, constant_values=-1e3)
    vertices, faces, _, _ = marching_cubes(padded, 0.0)
    dense = trimesh.Trimesh((vertices - 1) / (resolution - 1) - 0.5, faces, process=False)
    assert mesh.vertices.shape == dense.vertices.shape and len(mesh.faces) == len(dense.faces)
    clearance = 1.01e-3 / (resolution - 1)  # which the sparse mesh's vertices keep from nodes
    for some, others in itertools.permutations((mesh.vertices, dense.vertices)):
        assert cKDTree(others).query(some)[0].max() < clearance
    assert chamfer_distance(mesh.vertices[None], dense.vertices[None]).item() < clearance**2

    # Points on the surfaces are as near as those of two draws from one surface.
    rng = np.random.default_rng(0)
    ours, theirs, again = (sample_surface_points([m], 4096, rng=rng) for m in (mesh, dense, dense))
    assert chamfer_distance(ours, theirs).item() < 1.1 * chamfer_distance(again, theirs).item()


def test_furniture_at_256_for_a_sixtieth_of_the_evaluations():
    resolution = 256
    field = Counted(as_field(chair))
    (mesh,) = extract_meshes(field, resolution=resolution, normals=False)
    assert field.points <= resolution**3 / 60
    assert mesh.is_watertight and mesh.body_count == 1
    (mesh,) = extract_meshes(as_field(chair), resolution=128, normals=False)
    dense = dense_values(as_field(chair), 128) > 0
    sparse = node_occupancy(mesh, 128)
    assert (dense & sparse).sum() >= 0.9999 * (dense | sparse).sum()


@pytest.mark.parametrize("seed", range(24))
def test_watertight_whatever_the_field(seed):
    rng = np.random.default_rng(seed)
    resolution, cells, batch = int(rng.integers(2, 24)), int(rng.integers(2, 12)), int(rng.integers(1, 3))
    field = noise_field(seed, cells, ("bilinear", "nearest")[seed % 2], batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some of these fields are empty at so few nodes
        meshes = extract_meshes(field, batch, resolution=resolution, coarse_resolution=(3, 8, resolution)[seed % 3])
    for mesh in meshes:
        if len(mesh.faces):
            assert_sound(mesh)
            assert np.abs(mesh.bounds).max() <= 0.5
            assert len(np.unique(mesh.faces)) == len(mesh.vertices)
            assert mesh.area_faces.min() > 0


def test_closes_at_the_bounding_box():
    (mesh,) = extract_meshes(lambda points: STEEPNESS * (0.1 - points[..., 1:2]), resolution=64)
    assert_sound(mesh)
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -0.5, -0.5], [0.5, 0.1, 0.5]], atol=1e-6)
    assert mesh.volume == pytest.approx(0.6, rel=1e-6)
    assert mesh.area == pytest.approx(2 + 4 * 0.6, rel=1e-6)
    top = mesh.vertices[:, 1] > 0.05
    np.testing.assert_allclose(mesh.vertex_normals[top & (np.abs(mesh.vertices[:, [0, 2]]) < 0.5).all(1)][:, 1], 1)
    below = (mesh.vertices[:, 1] < -0.499) & (np.abs(mesh.vertices[:, [0, 2]]) < 0.5).all(1)
    np.testing.assert_allclose(mesh.vertex_normals[below], np.tile([0, -1, 0], (below.sum(), 1)), atol=1e-9)


def test_bounds_and_axes():
    bounds = ((0.0, -1.0, 2.0), (1.0, 3.0, 2.5))
    field = as_field(lambda points: box(points, (0.4, 1.5, 2.2), (0.1, 1.2, 0.05)))
    (mesh,) = extract_meshes(field, resolution=64, bounds=bounds)
    np.testing.assert_allclose(mesh.bounds, [[0.3, 0.3, 2.15], [0.5, 2.7, 2.25]], atol=0.02)
    assert_sound(mesh)


def test_level_is_a_probability():
    for level in (0.2, 0.5, 0.9):
        (mesh,) = extract_meshes(as_field(ball), resolution=64, level=level)
        radius = 0.4 - math.log(level / (1 - level)) / STEEPNESS
        np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), radius, atol=1e-3)


def test_several_shapes_at_once_are_those_extracted_one_by_one():
    radii = torch.tensor([0.1, -1.0, 0.45, 0.3])

    def field(points):
        return STEEPNESS * (radii[:, None, None] - points.norm(dim=-1, keepdim=True))

    with pytest.warns(UserWarning, match="Field 1 is empty throughout"):
        together = extract_meshes(field, 4, resolution=48, chunk_size=5000)
    assert len(together[1].faces) == 0
    for index in (0, 2, 3):
        single = as_field(lambda points, index=index: ball(points, radius=radii[index]))
        (alone,) = extract_meshes(single, resolution=48)
        np.testing.assert_array_equal(together[index].faces, alone.faces)
        np.testing.assert_allclose(together[index].vertices, alone.vertices, atol=1e-6)
        np.testing.assert_allclose(together[index].vertex_normals, alone.vertex_normals, atol=1e-4)


def test_chunks_bound_calls_and_change_nothing():
    small, large = Counted(noise_field(3, 6, batch=2)), Counted(noise_field(3, 6, batch=2))
    meshes = extract_meshes(small, 2, resolution=40, chunk_size=999)
    expected = extract_meshes(large, 2, resolution=40)
    assert small.largest <= 999 < large.largest
    for mesh, other in zip(meshes, expected):
        np.testing.assert_array_equal(mesh.faces, other.faces)
        np.testing.assert_allclose(mesh.vertices, other.vertices, atol=1e-9)


@pytest.mark.parametrize(("value", "state"), [(-3.0, "empty"), (3.0, "solid"), (-math.inf, "empty")])
def test_uniform_field_gives_an_empty_mesh_and_a_warning(value, state):
    with pytest.warns(UserWarning, match=f"Field 0 is {state} throughout"):
        (mesh,) = extract_meshes(lambda points: points[..., :1] * 0 + value, resolution=20)
    assert mesh.faces.shape == (0, 3) and mesh.vertices.shape == (0, 3)


def test_fields_without_gradients_and_infinite_logits():
    def hard(points):
        return torch.where(ball(points) > 0, math.inf, -math.inf)[..., None]

    with torch.inference_mode():
        (mesh,) = extract_meshes(hard, resolution=64)
    assert_sound(mesh)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.02)


def test_gradients_are_found_where_the_caller_needs_none():
    weight = torch.nn.Parameter(torch.tensor(STEEPNESS))
    with torch.no_grad():
        (mesh,) = extract_meshes(lambda points: weight * ball(points)[..., None], resolution=32)
    np.testing.assert_allclose(mesh.vertex_normals, radial(mesh), atol=0.04)
    assert weight.grad is None


def test_a_field_made_in_inference_mode_has_normals_too():
    with torch.inference_mode():
        weight = torch.full((1,), STEEPNESS)
        (mesh,) = extract_meshes(lambda points: weight * ball(points)[..., None], resolution=32)
    assert_sound(mesh)
    np.testing.assert_allclose(mesh.vertex_normals, radial(mesh), atol=0.1)


def test_attributes_of_the_field_are_its_defaults():
    class Field:
        batch_size, bounds, device = 2, (-1.0, 1.0), torch.device("cpu")

        def __call__(self, points):
            return STEEPNESS * (torch.tensor([0.8, 0.5])[:, None, None] - points.norm(dim=-1, keepdim=True))

    meshes = extract_meshes(Field(), resolution=33)
    assert [round(mesh.extents[0], 2) for mesh in meshes] == [1.6, 1.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"resolution": 1}, ValueError, "`resolution` must be between 2 and 1024, got 1"),
        ({"resolution": 2000}, ValueError, "`resolution` must be between 2 and 1024, got 2000"),
        ({"resolution": 64.5}, TypeError, r"`resolution` must be an integer, got 64\.5"),
        ({"level": 0.0}, ValueError, r"strictly between 0 and 1, got 0\.0"),
        ({"level": 1.2}, ValueError, r"strictly between 0 and 1, got 1\.2"),
        ({"level": math.nan}, ValueError, "got nan"),
        ({"bounds": (0.5, -0.5)}, ValueError, "low < high"),
        ({"bounds": 3.0}, ValueError, r"\(low, high\)"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1, got 0"),
        ({"simplify": 1.5}, ValueError, r"got 1\.5"),
        ({"simplify": 0}, ValueError, "got 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_evaluation(change, error, message):
    field = Counted(as_field(ball))
    with pytest.raises(error, match=message):
        extract_meshes(field, **change)
    assert field.points == 0


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 700, 1\) for these points, got \(1, 700\)"):
        extract_meshes(ball, resolution=9, chunk_size=700)
    with pytest.raises(ValueError, match="NaN at 700 points"):
        extract_meshes(lambda points: points[..., :1] * math.nan, resolution=9, chunk_size=700)


def test_simplification_keeps_the_shape():
    pytest.importorskip("fast_simplification")
    (full,) = extract_meshes(as_field(ball), resolution=64)
    for simplify, count in ((2000, 2000), (0.25, round(0.25 * len(full.faces)))):
        (mesh,) = extract_meshes(as_field(ball), resolution=64, simplify=simplify)
        assert 0.9 * count <= len(mesh.faces) <= count
        assert_sound(mesh)
        assert mesh.volume == pytest.approx(full.volume, rel=0.005)
        np.testing.assert_allclose(mesh.vertex_normals, radial(mesh), atol=0.04)


def test_simplification_says_what_it_could_not_keep():
    pytest.importorskip("fast_simplification")
    with pytest.warns(UserWarning, match=r"Field 0 is not watertight with \d+ faces: .* Simplify less"):
        (mesh,) = extract_meshes(noise_field(0, 7), resolution=40, simplify=0.02)
    assert not mesh.is_watertight and len(mesh.faces) < 800
    with pytest.warns(UserWarning, match="not watertight"), pytest.warns(UserWarning, match="keeps .* asked for 10: "):
        (mesh,) = extract_meshes(noise_field(2, 12), resolution=48, simplify=10)
    assert len(mesh.faces) > 10


def test_simplification_goes_as_far_as_was_asked():
    """Careful collapses alone stop at 3282 faces."""
    pytest.importorskip("fast_simplification")
    (mesh,) = extract_meshes(as_field(components), resolution=72, simplify=1000)
    assert 900 <= len(mesh.faces) <= 1000
    assert_sound(mesh)
    assert mesh.body_count == 27


def test_simplification_says_what_it_needs(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fast_simplification" else find(name)
    )
    with pytest.raises(ImportError, match="pip install fast-simplification"):
        extract_meshes(as_field(ball), resolution=16, simplify=100)


def test_case_table_covers_every_case():
    table = case_table()
    assert table.counts[0] == table.counts[255] == 0 and (table.counts[1:255] > 0).all()
    for case in range(256):
        used = table.triangles[case, : table.counts[case]]
        assert (used >= 0).all() and (table.triangles[case, table.counts[case] :] == -1).all()


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
def test_saved_meshes_come_back(tmp_path, suffix):
    (mesh,) = extract_meshes(as_field(chair), resolution=40)
    mesh.visual.vertex_colors = np.clip((mesh.vertices + 0.5) * 255, 0, 255).astype(np.uint8)
    path = tmp_path / "new folder" / f"chair{suffix}"
    save_mesh(mesh, path)
    loaded = trimesh.load_mesh(path)
    assert loaded.is_watertight and len(loaded.faces) == len(mesh.faces)
    assert loaded.volume == pytest.approx(mesh.volume, rel=1e-4)
    np.testing.assert_allclose(loaded.bounds, mesh.bounds, atol=1e-6)
    if suffix != ".stl":
        expected = np.clip((loaded.vertices + 0.5) * 255, 0, 255)
        np.testing.assert_allclose(loaded.visual.vertex_colors[:, :3], expected, atol=2)
    assert [path.name for path in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_saved(tmp_path):
    (mesh,) = extract_meshes(as_field(ball), resolution=8)
    with pytest.raises(ValueError, match=r"'ball\.fbx': the suffix must be one of \.glb, \.obj, \.ply, \.stl"):
        save_mesh(mesh, tmp_path / "ball.fbx")
    with pytest.raises(ValueError, match="no faces"):
        save_mesh(trimesh.Trimesh(), tmp_path / "ball.ply")
    assert not list(tmp_path.iterdir())


class Balls:
    """Balls of several sizes, which can be indexed as a field of signals can."""

    def __init__(self, radii):
        self.radii, self.batch_size, self.calls = torch.as_tensor(radii), len(radii), []

    def __getitem__(self, item):
        field = Balls(self.radii[item : item + 1])
        field.calls = self.calls
        return field

    def __call__(self, points):
        self.calls.append(self.batch_size)
        return (STEEPNESS * (self.radii[:, None] - points.norm(dim=-1)))[..., None].expand(self.batch_size, -1, -1)


def test_shapes_too_many_at_once_are_extracted_one_by_one(monkeypatch):
    """With the same result."""
    field = Balls([0.2, 0.3, 0.4])
    together = extract_meshes(field, resolution=40)
    assert set(field.calls) == {3}
    monkeypatch.setattr(surface, "_MOST_AT_ONCE", 2 * 40**2)
    field.calls.clear()
    apart = extract_meshes(field, resolution=40)
    assert set(field.calls) == {1}
    for one, other in zip(together, apart):
        np.testing.assert_allclose(one.vertices, other.vertices, atol=1e-6)
        assert np.array_equal(one.faces, other.faces) and one.is_watertight
