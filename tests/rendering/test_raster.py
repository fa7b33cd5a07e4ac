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
"""The rasteriser against pictures whose pixels are known beforehand."""

import math

import numpy as np
import pytest
import trimesh

from diffusers_ddmi.rendering.raster import orbit_camera, rasterize, render_mesh, turntable


RIGHT_ANGLE = math.pi / 2
QUAD = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def camera_at(z: float) -> np.ndarray:
    camera = np.eye(4)
    camera[2, 3] = z
    return camera


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def test_square_covers_exactly_the_pixels_it_should():
    # At distance 2 with a 90° view the picture spans [-2, 2]: the square [-1, 1] takes the middle half.
    raster = rasterize(QUAD, QUAD_FACES, np.tile([1.0, 0, 0], (4, 1)), camera_at(2.0), RIGHT_ANGLE, 8, 8)
    expected = np.zeros((8, 8))
    expected[2:6, 2:6] = 1
    np.testing.assert_array_equal(raster.mask, expected)
    np.testing.assert_allclose(raster.depth[expected == 1], 2.0, rtol=1e-6)
    assert np.isinf(raster.depth[expected == 0]).all()
    np.testing.assert_array_equal(raster.color[expected == 1], np.tile([1.0, 0, 0], (16, 1)))
    np.testing.assert_array_equal(raster.color[expected == 0], 1.0)


def test_axes_follow_the_opengl_convention():
    # A small square up and to the right (+x, +y) must appear up and to the right, in a picture wider than high.
    corner = QUAD * 0.25 + [1.5, 0.5, 0]
    raster = rasterize(corner, QUAD_FACES, np.zeros((4, 3)), camera_at(1.0), RIGHT_ANGLE, 8, 16)
    rows, columns = np.nonzero(raster.mask)
    assert set(rows) == {1, 2} and set(columns) == {13, 14}


def test_colours_are_interpolated_with_perspective():
    # Colour = world position on a plane tilted in depth; each pixel must carry the point its own ray hits.
    angle = 0.9
    tilt = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    vertices = QUAD @ tilt.T
    raster = rasterize(vertices, QUAD_FACES, (vertices + 1) / 2, camera_at(3.0), 0.7, 32, 32)
    rows, columns = np.nonzero(raster.mask)
    assert len(rows) > 200
    points = raster.color[rows, columns] * 2 - 1
    focal = 16 / math.tan(0.35)
    rays = np.stack([(columns + 0.5 - 16) / focal, (16 - rows - 0.5) / focal, -np.ones(len(rows))], axis=1)
    np.testing.assert_allclose([0, 0, 3] + rays * raster.depth[rows, columns, None], points, atol=1e-5)


def test_nearer_triangle_wins_whatever_the_order():
    vertices = np.concatenate([QUAD, QUAD * 0.5 + [0, 0, 1], QUAD * 2 - [0, 0, 1]])
    faces = np.concatenate([QUAD_FACES, QUAD_FACES + 4, QUAD_FACES + 8])
    colors = np.eye(3)[np.arange(12) // 4]
    pictures = [
        rasterize(vertices, faces[order], colors, camera_at(3.0), 1.0, 24, 24).color
        for order in (np.arange(6), np.arange(6)[::-1], np.array([4, 0, 2, 5, 1, 3]))
    ]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])
    np.testing.assert_array_equal(pictures[0][12, 12], [0, 1, 0])
    assert {tuple(pixel) for pixel in pictures[0].reshape(-1, 3)} == {(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)}


def test_agrees_with_ray_casting_on_a_triangle_soup():
    rng = np.random.default_rng(0)
    triangles = rng.uniform(-1, 1, (60, 1, 3)) + rng.uniform(-0.5, 0.5, (60, 3, 3))
    vertices, faces = triangles.reshape(-1, 3), np.arange(180).reshape(-1, 3)
    camera = np.eye(4)
    camera[:3, :3] = random_rotation(rng)
    camera[:3, 3] = camera[:3, 2] * 0.8  # some triangles are behind the camera, some cross its plane
    size = 40
    raster = rasterize(vertices, faces, rng.uniform(size=(60, 3)), camera, 1.2, size, size, near=1e-2)

    i, j = np.divmod(np.arange(size * size), size)
    focal = 0.5 * size / math.tan(0.6)
    rays = np.stack([(j + 0.5 - size / 2) / focal, (size / 2 - i - 0.5) / focal, -np.ones(size * size)], axis=1)
    a, b, c = np.moveaxis((triangles - camera[:3, 3]) @ camera[:3, :3], 1, 0)
    weights = np.stack([rays @ np.cross(*edge).T for edge in ((b, c), (c, a), (a, b))], axis=-1)
    weights = weights / weights.sum(-1, keepdims=True)
    depth = -(weights * np.stack([a, b, c], axis=1)[..., 2]).sum(-1)
    depth = np.where((weights >= 0).all(-1) & (depth > 1e-2), depth, np.inf).min(1).reshape(size, size)
    hit = np.isfinite(depth)
    assert 300 < hit.sum() < 1590
    # A ray through the very rim of a triangle may go either way.
    different = ~np.isclose(np.where(hit, depth, -1), np.where(raster.mask > 0, raster.depth, -1), rtol=1e-4)
    assert different.sum() <= 2


def test_closed_mesh_has_no_cracks():
    # The silhouette of a finely cut sphere from inside its own box: every pixel within the disc is covered.
    sphere = trimesh.creation.icosphere(subdivisions=5)
    size, distance = 200, 4.0
    colors = np.ones((len(sphere.vertices), 3))
    raster = rasterize(sphere.vertices, sphere.faces, colors, camera_at(distance), 0.6, size, size)
    i, j = np.mgrid[:size, :size] + 0.5 - size / 2
    radius = np.hypot(i, j) / (0.5 * size / math.tan(0.3))
    disc = math.tan(math.asin(1 / distance))
    assert (raster.mask[radius < 0.998 * disc] == 1).all()
    assert (raster.mask[radius > disc] == 0).all()


def test_near_plane_cuts_a_floor_under_the_camera():
    floor = np.array([[-50.0, -1, 50], [50, -1, 50], [50, -1, -50], [-50, -1, -50]])
    raster = rasterize(floor, QUAD_FACES, np.zeros((4, 3)), np.eye(4), RIGHT_ANGLE, 64, 64)
    assert (raster.mask[:30] == 0).all()
    assert (raster.mask[36:] == 1).all()
    rows = np.arange(36, 64)
    np.testing.assert_allclose(raster.depth[36:, 10], 32 / (rows + 0.5 - 32), rtol=1e-5)


def test_supersampling_gives_partial_coverage():
    # The square ends in the middle of a pixel: half of that pixel's samples are covered.
    half = QUAD * [0.625, 1, 1]
    raster = rasterize(half, QUAD_FACES, np.zeros((4, 3)), camera_at(2.0), RIGHT_ANGLE, 16, 16, supersample=4)
    np.testing.assert_allclose(raster.mask[8], [0] * 5 + [0.5] + [1] * 4 + [0.5] + [0] * 5)
    np.testing.assert_allclose(raster.color[..., 0], 1 - raster.mask)


def test_face_and_vertex_colours_agree_when_constant():
    box = trimesh.creation.box((0.5, 0.6, 0.7))
    camera = orbit_camera(30, 20, 2.0)
    color = np.array([51, 102, 204], np.uint8)
    by_face = rasterize(box.vertices, box.faces, np.tile(color, (12, 1)), camera, 0.8, 32, 32, shading="flat")
    by_vertex = rasterize(box.vertices, box.faces, np.tile(color / 255.0, (8, 1)), camera, 0.8, 32, 32, shading="flat")
    np.testing.assert_allclose(by_face.color, by_vertex.color, atol=1e-6)
    assert len(np.unique(by_face.color[by_face.mask > 0].round(4), axis=0)) == 3  # three visible sides, one tone each


def test_orbit_camera_sees_its_target_in_the_middle():
    target = np.array([0.3, -0.2, 0.5])
    for azimuth, elevation in ((0, 0), (90, 0), (200, 60), (-30, -45), (10, 90)):
        camera = orbit_camera(azimuth, elevation, 2.5, target)
        np.testing.assert_allclose(camera[:3, :3].T @ camera[:3, :3], np.eye(3), atol=1e-12)
        assert np.linalg.det(camera[:3, :3]) == pytest.approx(1)
        np.testing.assert_allclose((np.linalg.inv(camera) @ [*target, 1])[:3], [0, 0, -2.5], atol=1e-12)
    np.testing.assert_allclose(orbit_camera(90, 0, 2.0)[:3, 3], [2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(orbit_camera(0, 30, 2.0)[1, 3], 1.0)


def test_render_mesh_frames_the_whole_mesh():
    box = trimesh.creation.box((1, 0.2, 3)).apply_translation([5, 6, 7])
    for size in (96, (64, 128), (128, 64)):
        picture, depth, mask = render_mesh(box, 50, 30, size, return_maps=True)
        assert picture.dtype == np.uint8 and picture.shape[:2] == mask.shape == depth.shape
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert (border == 0).all() and mask.mean() > 0.03
        assert (picture[mask == 0] == 255).all()


def test_turntable_of_a_round_thing_is_still_and_of_a_box_is_not():
    sphere = trimesh.creation.icosphere(subdivisions=4)
    frames = turntable(sphere, 4, size=64)
    assert len(frames) == 4
    assert max(np.abs(frame.astype(int) - frames[0]).mean() for frame in frames) < 1
    box_frames = turntable(trimesh.creation.box((1, 0.2, 0.5)), 4, size=64, shading="flat")
    assert np.abs(box_frames[1].astype(int) - box_frames[0]).mean() > 5
    np.testing.assert_allclose(box_frames[2].astype(int), box_frames[0], atol=1)  # half a turn maps the box to itself


def test_mesh_colours_are_shown():
    box = trimesh.creation.box()
    box.visual.face_colors = [200, 30, 30, 255]
    picture, _, mask = render_mesh(box, size=48, shading=None, return_maps=True)
    np.testing.assert_array_equal(picture[mask == 1], np.tile([200, 30, 30], ((mask == 1).sum(), 1)))
    scene = trimesh.Scene([box])
    np.testing.assert_array_equal(render_mesh(scene, size=48, shading=None), picture)


def test_empty_mesh_gives_an_empty_picture():
    assert (render_mesh(trimesh.Trimesh(), size=16) == 255).all()
    assert (render_mesh(trimesh.Scene(), size=16) == 255).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fov_y": 41.0}, r"radians, got 41\.0"),
        ({"faces": np.array([[0, 1, 4]])}, "names vertices 0 to 4, but there are 4"),
        ({"vertices": QUAD * np.nan}, "4 of 4 `vertices` are not finite"),
        ({"vertices": QUAD[:, :2]}, r"\(vertices, 3\), got \(4, 2\)"),
        ({"colors": np.zeros((3, 3))}, "Got 3 colours for a mesh of 4 vertices and 2 faces"),
        ({"camera_to_world": np.eye(3)}, r"\(4, 4\)"),
        ({"camera_to_world": np.diag([2.0, 2, 2, 1])}, "not rigid"),
        ({"height": 0}, "`height` must be a positive integer, got 0"),
        ({"shading": "phong"}, "got 'phong'"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {
        **{"vertices": QUAD, "faces": QUAD_FACES, "colors": np.zeros((4, 3)), "camera_to_world": camera_at(2.0)},
        **{"fov_y": 1.0, "height": 8, "width": 8},
    }
    with pytest.raises(ValueError, match=message):
        rasterize(**(arguments | change))


def test_colours_of_a_tetrahedron_are_ambiguous():
    tetrahedron = trimesh.creation.icosphere(subdivisions=0)
    vertices, faces = tetrahedron.vertices[:4], np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])
    with pytest.raises(ValueError, match="per_face"):
        rasterize(vertices, faces, np.zeros((4, 3)), camera_at(3.0), 1.0, 8, 8)
    rasterize(vertices, faces, np.zeros((4, 3)), camera_at(3.0), 1.0, 8, 8, per_face=True)
