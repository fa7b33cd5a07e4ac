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
import math

import pytest
import torch

from diffusers_ddmi.rendering.cameras import Cameras, check_rigid, focal_from_fov, look_at_poses


def front_camera(height: int = 4, width: int = 6, **options) -> Cameras:
    """At (0, 0, 2), looking along -z, x to the right, y up."""
    pose = torch.eye(4)
    pose[2, 3] = 2.0
    return Cameras(pose, focal=3.0, height=height, width=width, near=1.0, far=3.0, **options)


def project(cameras: Cameras, points: torch.Tensor) -> torch.Tensor:
    """Image points (V, N, 2) of world points (N, 3), written independently of the rays: OpenCV projection K [R|t]."""
    poses = cameras.convert("opencv").camera_to_world
    seen = (points - poses[:, None, :3, 3]) @ poses[:, :3, :3]
    return seen[..., :2] / seen[..., 2:] * cameras.focal[:, None] + cameras.principal_point[:, None]


def test_rays_of_a_camera_worked_out_by_hand():
    origins, directions = front_camera().rays()
    assert origins.shape == directions.shape == (1, 4, 6, 3)
    assert torch.equal(origins[0, 1, 2], torch.tensor([0.0, 0.0, 2.0]))
    # The upper left pixel's centre (0.5, 0.5) is 2.5 px left of and 1.5 px above the principal point (3, 2).
    expected = torch.tensor([-2.5 / 3, 1.5 / 3, -1.0])
    torch.testing.assert_close(directions[0, 0, 0], expected / expected.norm())
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, 4, 6))


def test_without_pixel_offset_the_ray_of_the_middle_pixel_is_the_optical_axis():
    _, directions = front_camera(pixel_offset=0.0).rays()
    torch.testing.assert_close(directions[0, 2, 3], torch.tensor([0.0, 0.0, -1.0]))
    assert not torch.allclose(front_camera().rays()[1][0, 2, 3], directions[0, 2, 3], atol=0.1)


def test_points_on_a_ray_project_back_to_its_pixel():
    cameras = Cameras.orbit(5, radius=3.0, elevation=33.0, height=7, width=9, target=(0.1, -0.2, 0.3))
    cameras = Cameras(
        cameras.camera_to_world,
        torch.tensor([8.0, 11.0]).expand(5, 2),
        7,
        9,
        1.0,
        5.0,
        principal_point=torch.tensor([4.0, 3.0]),
    )
    origins, directions = cameras.rays()
    for view, row, column in ((0, 0, 0), (2, 6, 3), (4, 2, 8)):
        point = origins[view, row, column] + 1.7 * directions[view, row, column]
        pixel = project(cameras, point[None])[view, 0]
        torch.testing.assert_close(pixel, torch.tensor([column + 0.5, row + 0.5]), atol=1e-4, rtol=0)


def test_single_rays_are_those_of_the_picture():
    cameras = Cameras.orbit(3, height=5, width=4)
    origins, directions = cameras.rays()
    views, rows, columns = torch.tensor([2, 0, 1]), torch.tensor([4, 1, 0]), torch.tensor([3, 0, 2])
    single = cameras.rays_through(views, torch.stack([columns, rows], dim=-1) + 0.5)
    torch.testing.assert_close(single[0], origins[views, rows, columns])
    torch.testing.assert_close(single[1], directions[views, rows, columns])


def test_conventions_describe_the_same_rays():
    opengl = Cameras.orbit(4, elevation=10.0, height=6, width=6)
    opencv = opengl.convert("opencv")
    assert opencv.convention == "opencv"
    torch.testing.assert_close(opencv.camera_to_world[:, :3, 1], -opengl.camera_to_world[:, :3, 1])
    for ours, theirs in zip(opengl.rays(), opencv.rays()):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(opencv.convert("opengl").camera_to_world, opengl.camera_to_world)


@pytest.mark.parametrize("up", ["y", "z"])
def test_orbit_looks_at_its_target_with_a_level_horizon(up):
    target = torch.tensor([0.3, -0.1, 0.2])
    cameras = Cameras.orbit(6, radius=2.5, elevation=30.0, target=tuple(target.tolist()), up=up)
    check_rigid(cameras.camera_to_world)
    positions = cameras.camera_to_world[:, :3, 3]
    axis = "xyz".index(up)
    torch.testing.assert_close((positions - target).norm(dim=-1), torch.full((6,), 2.5))
    torch.testing.assert_close(positions[:, axis] - target[axis], torch.full((6,), 2.5 * math.sin(math.radians(30.0))))
    assert cameras.camera_to_world[:, axis, 0].abs().max() < 1e-6  # to the right is horizontal
    assert (cameras.camera_to_world[:, axis, 1] > 0).all()  # and up is up
    center = project(cameras, target[None])[:, 0]
    torch.testing.assert_close(center, cameras.principal_point, atol=1e-3, rtol=0)


def test_orbit_starts_in_front_and_turns_to_the_right():
    poses = look_at_poses(torch.tensor([0.0, math.pi / 2]), torch.zeros(2), radius=2.0)
    torch.testing.assert_close(poses[0, :3, 3], torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(poses[1, :3, 3], torch.tensor([2.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_field_of_view_and_resizing():
    cameras = Cameras.orbit(2, fov_y=0.7, height=64, width=48)
    torch.testing.assert_close(cameras.fov_y, torch.full((2,), 0.7))
    larger = cameras.resize(128, 96)
    torch.testing.assert_close(larger.fov_y, torch.full((2,), 0.7))
    # The corner between four large pixels is the centre of a small one.
    point = torch.tensor([[10.0, 20.0]])
    zero = torch.tensor([0])
    torch.testing.assert_close(cameras.rays_through(zero, point)[1], larger.rays_through(zero, 2 * point)[1])


def test_bounds_along_the_axis_are_planes():
    cameras = front_camera(bounds_along="axis")
    origins, directions = cameras.rays()
    near, far = cameras.ray_bounds()
    ends = origins + far[..., None] * directions
    torch.testing.assert_close(ends[..., 2], torch.full((1, 4, 6), 2.0 - 3.0))
    assert near.max() > 1.05  # corners are farther than the middle
    near, far = front_camera().ray_bounds()
    assert torch.equal(near, torch.ones(1, 4, 6)) and torch.equal(far, torch.full((1, 4, 6), 3.0))


def test_selecting_and_moving_views():
    cameras = Cameras.orbit(4)
    assert len(cameras[1:3]) == 2 and len(cameras[-1]) == 1 and len(cameras[torch.tensor([0, 2, 3])]) == 3
    assert torch.equal(cameras[-1].camera_to_world[0], cameras.camera_to_world[3])
    with pytest.raises(IndexError):
        cameras[4]
    assert cameras.to(dtype=torch.float64).rays()[1].dtype == torch.float64


def pose(**changes) -> torch.Tensor:
    matrix = torch.eye(4)
    for place, value in changes.items():
        matrix[int(place[1]), int(place[2])] = value
    return matrix


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (pose(m00=2.0), "view 0 is not rigid"),
        (pose(m01=0.3), "view 0 is not rigid"),
        (pose(m00=-1.0), "left-handed"),
        (pose(m03=float("nan")), "not finite"),
        (pose(m31=0.5), "last row"),
        (torch.stack([pose(), pose(m22=1.2)]), "view 1 is not rigid"),
        (torch.eye(3), r"shape \(views, 4, 4\), got \(1, 3, 3\)"),
        (torch.zeros(0, 4, 4), r"got \(0, 4, 4\)"),
    ],
)
def test_poses_that_are_none_are_refused(poses, message):
    with pytest.raises(ValueError, match=message):
        Cameras(poses, 3.0, 4, 4, 1.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"focal": 0.0}, "`focal` must be positive"),
        ({"focal": float("nan")}, "`focal` must be positive"),
        ({"focal": torch.ones(3)}, "each of the 2 views.*got shape"),
        ({"height": 0}, "`height` must be a positive integer"),
        ({"width": 4.0}, "`width` must be a positive integer"),
        ({"near": 2.0, "far": 2.0}, "near < far"),
        ({"near": -1.0}, "near < far"),
        ({"far": float("inf")}, "finite"),
        ({"convention": "blender"}, "'opengl', 'opencv', got 'blender'"),
        ({"bounds_along": "z"}, "'ray', 'axis', got 'z'"),
        ({"principal_point": torch.ones(3, 2)}, "`principal_point` must be given once or for each of the 2 views"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {"focal": 3.0, "height": 4, "width": 4, "near": 1.0, "far": 2.0} | changes
    with pytest.raises(ValueError, match=message):
        Cameras(torch.eye(4).repeat(2, 1, 1), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_views": 0}, "at least 1"),
        ({"num_views": 1, "radius": 0.0}, "`radius` must be positive"),
        ({"num_views": 1, "elevation": 90.0}, "between -90 and 90"),
        ({"num_views": 1, "up": "x"}, "'y', 'z', got 'x'"),
        ({"num_views": 1, "fov_y": 41.0}, "radians"),
    ],
)
def test_bad_orbits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Cameras.orbit(**options)


def test_focal_length_of_a_right_angle():
    assert focal_from_fov(math.pi / 2, 64) == pytest.approx(32.0)
    with pytest.raises(TypeError, match="`focal` must be a tensor or numbers"):
        Cameras(torch.eye(4), "wide", 4, 4, 1.0, 2.0)
