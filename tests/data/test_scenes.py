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
import json
import logging
import math

import datasets
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from diffusers_ddmi.data import scene_files
from diffusers_ddmi.data.base import SignalDataset, collate
from diffusers_ddmi.data.procedural_scenes import (
    SCENE_KINDS,
    Part,
    ProceduralScene,
    radiance_field,
    random_cameras,
)
from diffusers_ddmi.data.scenes import (
    SceneExamples,
    load_procedural_scenes,
    load_scene_dataset,
    open_row,
    read_points,
)
from diffusers_ddmi.rendering.cameras import Cameras, focal_from_fov
from diffusers_ddmi.rendering.volume import render_views


SIZE = 24
FOV_Y = math.radians(41.0)


def drawn(seed: int = 0, num_views: int = 4, size: int = SIZE):
    scene = ProceduralScene.from_seed(seed)
    cameras = random_cameras(num_views, size, np.random.default_rng(seed))
    images, opacity = scene.draw(cameras)
    return scene, cameras, images, opacity


def write_npz(path, seed: int = 0, size: int = SIZE, num_points: int = 500, **changes):
    scene, cameras, images, _ = drawn(seed, size=size)
    points = scene.sample_points(num_points, np.random.default_rng(0))
    arrays = {"images": images, "cam_poses": cameras.camera_to_world.numpy(), "data": points} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def write_transforms(
    folder, name: str = "transforms.json", points: bool = True, suffix: str = ".png", num_views: int = 4, **changes
):
    """A Blender scene: RGBA pictures, `camera_angle_x`, and points as ply."""
    scene, cameras, images, opacity = drawn(num_views=num_views)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    frames = []
    for view, pose in enumerate(cameras.camera_to_world.tolist()):
        alpha = opacity[view, ..., None] / 255.0
        bare = np.where(alpha > 0, (images[view] - 255 * (1 - alpha)) / np.maximum(alpha, 1e-6), 0)
        rgba = np.concatenate([bare.clip(0, 255), 255 * alpha], axis=-1).round().astype(np.uint8)
        Image.fromarray(rgba).save(folder / f"train/r_{view}.png")
        frames.append({"file_path": f"./train/r_{view}{suffix}", "transform_matrix": pose})
    if points:
        cloud = scene.sample_points(300, np.random.default_rng(0))
        colors = (cloud[:, 3:] * 255).round().astype(np.uint8)
        trimesh.PointCloud(cloud[:, :3], colors=colors).export(folder / "points.ply")
    meta = {"camera_angle_x": FOV_Y, "frames": frames} | changes
    (folder / name).write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))
    return images, opacity, cameras


# ------------------------------------------------------------------------------------------------ procedural scenes


def test_parts_are_met_where_they_are():
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # the part's y axis along world -x
    half = np.array([0.2, 0.5, 0.2])
    center = np.array([0.0, 0.0, 1.0])
    for kind, enter in (("box", [1.3, 1.8]), ("cylinder", [1.3, 1.8])):
        scene = ProceduralScene((Part(kind, center, half, np.array([1.0, 0.5, 0.0]), turn),), "")
        origins = np.array([[1.8, 0.0, 1.0], [0.3, -2.0, 1.0], [0.3, -2.0, 1.25]])
        directions = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        hits = scene.intersect(origins, directions)
        np.testing.assert_allclose(hits.distance, [*enter, np.inf])
        assert (hits.color[2] == 0).all() and hits.color[0, 0] > hits.color[0, 1] > hits.color[0, 2] == 0
    # Where a cylinder is narrower than its box.
    assert hits.distance[1] == pytest.approx(2.0 - math.sqrt(0.2**2))
    wedge = ProceduralScene((Part("wedge", np.zeros(3), np.ones(3), np.ones(3), np.eye(3)),), "")
    down = wedge.intersect(np.array([[-0.5, 3.0, 0.0], [0.5, 3.0, 0.0]]), np.array([[0.0, -1.0, 0.0]] * 2))
    np.testing.assert_allclose(down.distance, [2.5, 3.5])  # the slope falls from y = 1 at x = -1 to y = -1 at x = 1


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_scenes_fill_the_cube_and_differ(kind):
    scenes = [ProceduralScene.build(kind, np.random.default_rng(seed)) for seed in range(4)]
    assert len({scene.caption for scene in scenes}) >= 3
    for scene in scenes:
        assert kind in scene.caption
        points = scene.sample_points(3000, np.random.default_rng(0))
        low, high = points[:, :3].min(0), points[:, :3].max(0)
        assert np.ptp(points[:, :3], axis=0).max() == pytest.approx(0.9, abs=0.02)
        np.testing.assert_allclose(low + high, 0, atol=0.03)
        assert points[:, 3:].min() >= 0 and points[:, 3:].max() <= 1


def test_points_lie_on_the_visible_surface_and_are_even_over_its_area():
    box = Part("box", np.zeros(3), np.array([0.45, 0.15, 0.05]), np.ones(3), np.eye(3))
    inner = Part("box", np.zeros(3), np.array([0.4, 0.1, 0.04]), np.zeros(3), np.eye(3))
    points = ProceduralScene((box, inner), "").sample_points(20000, np.random.default_rng(0))
    assert points.shape == (20000, 6) and points.dtype == np.float32
    margins = box.margins(points[:, :3])
    np.testing.assert_allclose(margins.max(axis=1), 0, atol=1e-6)  # nothing of the part inside
    faces = np.bincount(margins.argmax(axis=1) % 3, minlength=3) / len(points)
    areas = np.array([0.15 * 0.05, 0.45 * 0.05, 0.45 * 0.15])
    np.testing.assert_allclose(faces, areas / areas.sum(), atol=0.015)


def test_the_radiance_field_renders_to_the_drawn_pictures():
    scene, cameras, images, opacity = drawn(seed=3, num_views=2, size=32)
    views = render_views(radiance_field([scene], density=1000.0), cameras, 1024)
    error = (views.colors[0] * 255 - torch.from_numpy(images).float()).abs().amax(-1)
    inside = torch.from_numpy((opacity == 255) | (opacity == 0))
    # Drawing averages over pixels that hold an edge; rendering looks through their centres.
    assert error.median() < 1.0 and (error[inside] < 8).float().mean() > 0.95
    covered = views.opacity[0, ..., 0] > 0.5
    assert (covered == torch.from_numpy(opacity > 127)).float().mean() > 0.98


def test_pictures_are_antialiased_over_white():
    _, _, images, opacity = drawn()
    assert opacity.dtype == images.dtype == np.uint8 and images.shape == (4, SIZE, SIZE, 3)
    assert ((opacity > 0) & (opacity < 255)).any()
    assert (images[opacity == 0] == 255).all() and (images[opacity == 255] < 255).any(-1).all()


def test_unknown_kind_of_scene():
    with pytest.raises(ValueError, match="'boat': expected one of table, chair"):
        ProceduralScene.build("boat", np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------ examples


def test_examples_hold_the_contract():
    dataset = load_scene_dataset(dataset_name="procedural")
    example = SceneExamples(num_points=128, num_rays=40)(dataset[1], np.random.default_rng(0))
    shapes = {key: tuple(value.shape) for key, value in example.items() if key != "caption"}
    assert shapes == {
        "inputs": (128, 6),
        "origins": (40, 3),
        "directions": (40, 3),
        "targets": (40, 3),
        "near": (),
        "far": (),
        "opacity": (40, 1),
    }
    assert all(value.dtype == torch.float32 for key, value in example.items() if key != "caption")
    torch.testing.assert_close(example["directions"].norm(dim=-1), torch.ones(40))
    assert example["targets"].min() >= 0 and example["targets"].max() <= 1
    assert example["caption"] == dataset[1]["caption"]


def test_a_ray_sees_the_colour_of_its_target():
    """Rays are cast into the exact scene; their colours must be those of the pictures."""
    row = load_procedural_scenes(num_scenes=1, num_views=6, size=64, seed=5)[0]
    example = SceneExamples(num_rays=3000)(row, np.random.default_rng(1))
    scene = ProceduralScene.from_seed(row["seed"])
    hits = scene.intersect(example["origins"].double().numpy(), example["directions"].double().numpy())
    hit = np.isfinite(hits.distance)
    expected = np.where(hit[:, None], hits.color, 1.0)
    error = np.abs(expected - example["targets"].numpy()).max(axis=1)
    assert hit.mean() > 0.05 and (error < 0.01).mean() > 0.9  # others are averages at edges
    opaque = example["opacity"][:, 0].numpy()
    assert ((opaque > 0.5) == hit).mean() > 0.97
    distances = hits.distance[hit]
    assert distances.min() > example["near"] and distances.max() < example["far"]


def test_examples_follow_their_generator_alone():
    row = load_procedural_scenes(num_scenes=1)[0]
    transform = SceneExamples(64, 32)
    first, again, other = (transform(row, np.random.default_rng(seed)) for seed in (0, 0, 1))
    for key in ("inputs", "origins", "directions", "targets"):
        assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key])


def test_a_whole_view_is_row_major(tmp_path):
    write_npz(tmp_path / "a.npz")
    row = load_scene_dataset(tmp_path, fov_y=FOV_Y)[0]
    scene = open_row(row).read()
    example = SceneExamples(num_rays=None, views=slice(2, 3))(row, np.random.default_rng(0))
    expected = torch.from_numpy(scene.images[2].astype(np.float32) / 255).reshape(-1, 3)
    assert torch.equal(example["targets"], expected)
    torch.testing.assert_close(example["directions"], scene.cameras.rays()[1][2].reshape(-1, 3))
    assert example["opacity"].isnan().all() and "caption" not in example


def test_views_can_be_held_out():
    row = load_procedural_scenes(num_scenes=1, num_views=4, size=8)[0]
    scene = open_row(row).read()
    example = SceneExamples(num_rays=200, views=slice(0, 2))(row, np.random.default_rng(0))
    positions = {tuple(origin) for origin in example["origins"].tolist()}
    assert positions == {tuple(pose[:3, 3].tolist()) for pose in scene.cameras.camera_to_world[:2]}
    with pytest.raises(ValueError, match="4 views has none in slice"):
        SceneExamples(views=slice(7, 9))(row, np.random.default_rng(0))


def test_points_are_repeated_only_when_there_are_too_few(tmp_path):
    write_npz(tmp_path / "a.npz")
    row = load_scene_dataset(tmp_path, fov_y=FOV_Y)[0]
    inputs = SceneExamples(500, 0)(row, np.random.default_rng(0))["inputs"]
    assert len(np.unique(inputs.numpy(), axis=0)) == 500
    more = SceneExamples(800, 0)(row, np.random.default_rng(0))["inputs"]
    assert more.shape == (800, 6) and len(np.unique(more.numpy(), axis=0)) == 500


def test_without_rays_no_picture_is_decoded(tmp_path):
    write_npz(tmp_path / "a.npz", images=np.full((4, SIZE, SIZE, 3), 2.0, np.float32))
    row = load_scene_dataset(tmp_path, fov_y=FOV_Y)[0]
    assert set(SceneExamples(10, 0)(row, np.random.default_rng(0))) == {"inputs"}
    with pytest.raises(ValueError, match=r"uint8 or floats in \[0, 1\]"):
        SceneExamples(10, 5)(row, np.random.default_rng(0))


def test_of_separate_pictures_few_are_decoded_for_an_example(tmp_path, monkeypatch):
    write_transforms(tmp_path, num_views=20)
    row = load_scene_dataset(tmp_path)[0]
    whole = open_row(row).read()
    origins, directions = (rays.flatten(0, 2) for rays in whole.cameras.rays())
    opened = []

    def counted(picture):
        opened.append(picture)
        return decode(picture)

    decode = scene_files._decode
    monkeypatch.setattr(scene_files, "_decode", counted)
    seen = set()
    for seed in range(8):
        opened.clear()
        example = SceneExamples(10, 100)(row, np.random.default_rng(seed))
        assert len(opened) == len(set(opened)) <= 8
        seen |= set(opened)
        distance = (example["origins"][:, None] - origins).norm(dim=-1)
        distance += (example["directions"][:, None] - directions).norm(dim=-1)
        ray = distance.argmin(1)
        assert distance.amin(1).max() < 1e-4
        np.testing.assert_array_equal(example["targets"] * 255, whole.images.reshape(-1, 3)[ray])
        np.testing.assert_array_equal(example["opacity"] * 255, whole.opacity.reshape(-1, 1)[ray])
    assert len(seen) == 20
    opened.clear()
    assert SceneExamples(10, None)(row, np.random.default_rng(0))["targets"].shape == (SIZE**2, 3)
    assert len(opened) == 1


@pytest.mark.parametrize("arguments", [{"num_points": 0}, {"num_rays": -1}])
def test_bad_counts_are_refused(arguments):
    with pytest.raises(ValueError, match="num_points must be positive and num_rays not negative"):
        SceneExamples(**arguments)


# ------------------------------------------------------------------------------------------------ folders


def test_npz_scenes_come_back_as_written(tmp_path):
    for index in (3, 1):
        write_npz(tmp_path / f"train/cars/sampled/{index}.npz", seed=index)
    (tmp_path / "train/cars/metadata.csv").write_text("file_name,caption\n1.npz,one car\n3.npz,three cars\n")
    dataset = load_scene_dataset(tmp_path, fov_y=FOV_Y)
    assert dataset["caption"] == ["one car", "three cars"]
    scene = open_row(dataset[0]).read()
    _, cameras, images, _ = drawn(1)
    np.testing.assert_array_equal(scene.images, images)
    assert scene.opacity is None
    torch.testing.assert_close(scene.cameras.camera_to_world, cameras.camera_to_world)
    torch.testing.assert_close(scene.cameras.focal, cameras.focal)
    batch = collate([SignalDataset(dataset, SceneExamples(64, 32))[i] for i in range(2)])
    assert batch["origins"].shape == (2, 32, 3) and batch["near"].shape == (2,)
    stream = load_scene_dataset(tmp_path, fov_y=FOV_Y, streaming=True)
    assert [row["caption"] for row in stream] == ["one car", "three cars"]


def test_near_and_far_hold_all_points_of_all_scenes(tmp_path):
    for index in range(3):
        write_npz(tmp_path / f"{index}.npz", seed=index)
    dataset = load_scene_dataset(tmp_path, fov_y=FOV_Y)
    assert len(set(dataset["near"])) == len(set(dataset["far"])) == 1
    for row in dataset:
        scene = open_row(row).read()
        offsets = scene.points[:, None, :3] - scene.cameras.camera_to_world[:, :3, 3].numpy()
        distances = np.linalg.norm(offsets, axis=-1)
        assert row["near"] < distances.min() and distances.max() < row["far"]
    assert dataset[0]["near"] > 1.0 and dataset[0]["far"] < 3.0
    assert load_scene_dataset(tmp_path, fov_y=FOV_Y, near=0.5, far=4.0)[0]["far"] == 4.0


def test_field_of_view_is_estimated_with_a_warning(tmp_path, caplog):
    for index in range(4):
        write_npz(tmp_path / f"{index}.npz", seed=index, size=64, num_points=2000)
    with caplog.at_level(logging.WARNING):
        estimate = load_scene_dataset(tmp_path)[0]["fov_y"]
    assert "do not tell their field of view; estimated 4" in caplog.text
    assert estimate == pytest.approx(FOV_Y, rel=0.02)
    caplog.clear()
    focal = focal_from_fov(FOV_Y, 64)
    for index in range(4):
        write_npz(tmp_path / f"{index}.npz", seed=index, size=64, focal=np.float32(focal))
    scene = open_row(load_scene_dataset(tmp_path)[0]).read()
    assert not caplog.text
    torch.testing.assert_close(scene.cameras.focal, torch.full((4, 2), focal))


def test_pictures_without_an_outline_need_a_field_of_view(tmp_path):
    write_npz(tmp_path / "a.npz", images=np.zeros((4, SIZE, SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"cannot be estimated from these pictures; give fov_y \(radians\)"):
        load_scene_dataset(tmp_path)
    with pytest.raises(ValueError, match="radians"):
        load_scene_dataset(tmp_path, fov_y=41.0)


def test_transparent_npz_pictures_are_laid_over_white(tmp_path):
    _, _, images, opacity = drawn()
    clear = np.where(opacity[..., None] > 0, images, 0)
    clear[(opacity > 0) & (opacity < 255)] = 0
    write_npz(tmp_path / "a.npz", images=np.concatenate([clear, opacity[..., None]], axis=-1))
    scene = open_row(load_scene_dataset(tmp_path, fov_y=FOV_Y)[0]).read()
    np.testing.assert_array_equal(scene.opacity, opacity)
    assert (scene.images[opacity == 0] == 255).all()
    edge = (opacity > 0) & (opacity < 255)
    np.testing.assert_array_equal(scene.images[edge][:, 0], 255 - opacity[edge])


def test_transforms_come_back_as_written(tmp_path):
    images, opacity, cameras = write_transforms(tmp_path / "lego", suffix="")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "lego", "text": "a toy"}\n')
    dataset = load_scene_dataset(tmp_path)
    assert dataset["caption"] == ["a toy"]
    scene = open_row(dataset[0]).read()
    np.testing.assert_array_equal(scene.opacity, opacity)
    assert np.abs(scene.images.astype(int) - images).max() <= 1
    torch.testing.assert_close(scene.cameras.camera_to_world, cameras.camera_to_world)
    torch.testing.assert_close(scene.cameras.focal, cameras.focal)
    truth = drawn()[0].sample_points(300, np.random.default_rng(0))
    np.testing.assert_allclose(scene.points, truth, atol=3e-3)
    np.testing.assert_array_equal(read_points(dataset[0]), scene.points)


def test_intrinsics_of_instant_ngp_are_scaled_to_the_pictures(tmp_path):
    values = {"fl_x": 100.0, "fl_y": 90.0, "cx": 50.0, "cy": 44.0, "w": 2 * SIZE, "h": 2 * SIZE}
    write_transforms(tmp_path, camera_angle_x=None, **values)
    cameras = open_row(load_scene_dataset(tmp_path)[0]).read().cameras
    torch.testing.assert_close(cameras.focal[0], torch.tensor([50.0, 45.0]))
    torch.testing.assert_close(cameras.principal_point[0], torch.tensor([25.0, 22.0]))


def test_blender_splits_lie_in_one_folder(tmp_path):
    write_transforms(tmp_path, name="transforms_train.json")
    write_transforms(tmp_path, name="transforms_test.json", camera_angle_x=0.5)
    for split, fov in (("train", FOV_Y), ("test", 0.5)):
        dataset = load_scene_dataset(tmp_path, split=split)
        assert len(dataset) == 1
        assert open_row(dataset[0]).read().cameras.fov_y[0].item() == pytest.approx(fov)


def test_points_beside_transforms_may_be_npz(tmp_path):
    write_transforms(tmp_path, points=False)
    points, colors = np.random.default_rng(0).random((2, 50, 3))
    np.savez(tmp_path / "pointcloud.npz", points=points, colors=colors)
    dataset = load_scene_dataset(tmp_path)
    assert len(dataset) == 1  # the cloud is no scene of its own
    np.testing.assert_allclose(read_points(dataset[0]), np.concatenate([points, colors], axis=1), rtol=1e-6)


def test_scenes_can_be_brought_to_one_size(tmp_path):
    scale, shift = 7.0, np.array([3.0, -2.0, 1.0])
    scene, cameras, _, _ = drawn()
    points = scene.sample_points(500, np.random.default_rng(0))
    poses = cameras.camera_to_world.numpy().copy()
    points[:, :3] = points[:, :3] * scale + shift
    poses[:, :3, 3] = poses[:, :3, 3] * scale + shift
    write_npz(tmp_path / "a.npz", data=points, cam_poses=poses)
    large = load_scene_dataset(tmp_path, fov_y=FOV_Y)[0]
    assert large["far"] > 10
    fitted = load_scene_dataset(tmp_path, fov_y=FOV_Y, longest_side=0.9)[0]
    assert 1.0 < fitted["near"] < fitted["far"] < 3.0
    assert np.ptp(read_points(fitted)[:, :3], axis=0).max() == pytest.approx(0.9)
    # The same pixels look into the same directions, at points as many times nearer.
    before, after = (open_row(row).read() for row in (large, fitted))
    torch.testing.assert_close(before.cameras.rays()[1], after.cameras.rays()[1])
    depth_before = np.linalg.norm(before.points[:, :3] - before.cameras.camera_to_world[0, :3, 3].numpy(), axis=1)
    depth_after = np.linalg.norm(after.points[:, :3] - after.cameras.camera_to_world[0, :3, 3].numpy(), axis=1)
    ratio = depth_before / depth_after
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


# ------------------------------------------------------------------------------------------------ bad input


def good_poses() -> np.ndarray:
    return random_cameras(4, SIZE, np.random.default_rng(0)).camera_to_world.numpy()


BAD_NPZ = {
    "without poses": ({"cam_poses": None}, "no 'cam_poses'"),
    "scaled": ({"cam_poses": good_poses() * np.float32([2, 2, 2, 1])}, "view 0 is not rigid"),
    "mirrored": ({"cam_poses": good_poses() * np.float32([-1, 1, 1, 1])}, "left-handed"),
    "too few poses": ({"cam_poses": good_poses()[:3]}, "4 images but 3 poses"),
    "no focal": ({"focal": np.float32(0)}, "focal length must be positive"),
    "flat points": ({"data": np.zeros((5, 3), np.float32)}, r"shape \(5, 3\), expected \(points, 6\)"),
    "nan points": ({"data": np.full((5, 6), np.nan, np.float32)}, "not finite"),
    "grey": ({"images": np.zeros((4, SIZE, SIZE), np.uint8)}, r"expected \(V, H, W, 3\)"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz_scenes_are_named_and_skipped(tmp_path, caplog, case):
    changes, message = BAD_NPZ[case]
    write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=rf"unusable scene .*bad\.npz: .*{message}.*\(strict"):
        load_scene_dataset(tmp_path, fov_y=FOV_Y, strict=True)
    with pytest.raises(ValueError, match="none of 1 scenes can be used"):
        load_scene_dataset(tmp_path, fov_y=FOV_Y)
    write_npz(tmp_path / "good.npz")
    caplog.clear()
    assert len(load_scene_dataset(tmp_path, fov_y=FOV_Y)) == 1
    assert "bad.npz" in caplog.text and "skipped 1 of 2 scenes" in caplog.text


def test_damaged_files_are_named(tmp_path):
    whole = write_npz(tmp_path / "a.npz").read_bytes()
    for content, message in ((b"", "the file is empty"), (whole[: len(whole) // 2], "a.npz"), (b"nonsense", "a.npz")):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_scene_dataset(tmp_path, fov_y=FOV_Y, strict=True)


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    write_npz(tmp_path / "a.npz", data=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_scene_dataset(tmp_path, fov_y=FOV_Y, strict=True)


def test_damage_inside_the_pictures_is_a_bad_row(tmp_path, caplog):
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    start = content.index(b"images.npy") + 300  # behind the header, inside the compressed pixels
    content[start : start + 40] = bytes(40)
    (tmp_path / "a.npz").write_bytes(content)
    examples = SignalDataset(load_scene_dataset(tmp_path, fov_y=FOV_Y), SceneExamples(16, 8))
    assert examples[0]["targets"].shape == (8, 3) and examples.num_bad == 1
    assert "a.npz: its images are damaged" in caplog.text


def test_scenes_with_and_without_opacity_make_one_batch(tmp_path):
    write_npz(tmp_path / "a.npz")
    rows = [load_scene_dataset(tmp_path, fov_y=FOV_Y)[0]]
    rows += load_procedural_scenes(num_scenes=1, num_views=2, size=8).remove_columns("caption")
    batch = collate([SceneExamples(16, 8)(row, np.random.default_rng(0)) for row in rows])
    assert batch["opacity"].isnan().all((1, 2)).tolist() == [True, False]


def test_damaged_pictures_do_not_stop_the_estimate_of_the_field_of_view(tmp_path, caplog):
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz")
    write_npz(tmp_path / "a.npz", images=np.full((4, SIZE, SIZE, 3), 200.0, np.float32))
    assert len(load_scene_dataset(tmp_path)) == 2
    assert "not used for the field of view" in caplog.text and "a.npz" in caplog.text


BAD_TRANSFORMS = {
    "no frames": ({"frames": []}, "lists no frames"),
    "no pose": ({"frames": [{"file_path": "train/r_0.png"}]}, "frame 0 has no transform_matrix"),
    "no picture": ({"frames": [{"file_path": "r_9", "transform_matrix": np.eye(4).tolist()}]}, "r_9 does not exist"),
    "no angle": ({"camera_angle_x": None}, "neither fl_x nor camera_angle_x"),
    "angle 0": ({"camera_angle_x": 0}, "between 0 and π"),
    "angle 7": ({"camera_angle_x": 7.0}, "between 0 and π"),
    "width 0": ({"w": 0, "fl_x": 30.0}, "zero"),
    "focal of no number": ({"fl_x": [1]}, "float"),
    "frames of numbers": ({"frames": [1, 2]}, "int"),
    "focal 0": ({"fl_x": 0.0}, "focal length must be positive"),
    "distorted": ({"k1": 0.1}, "undistort"),
    "scaled": (
        {"frames": [{"file_path": "train/r_0", "transform_matrix": (2 * np.eye(4)).tolist()}]},
        "view 0 has a last row|view 0 is not rigid",
    ),
    "2x2": ({"frames": [{"file_path": "train/r_0", "transform_matrix": [[1, 0], [0, 1]]}]}, r"shape \(1, 2, 2\)"),
}


@pytest.mark.parametrize("case", BAD_TRANSFORMS)
def test_bad_transforms_are_named(tmp_path, case):
    changes, message = BAD_TRANSFORMS[case]
    write_transforms(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"unusable scene .*transforms\.json: .*({message})"):
        load_scene_dataset(tmp_path, strict=True)


def test_transforms_without_points_or_with_odd_files(tmp_path):
    write_transforms(tmp_path, points=False)
    with pytest.raises(ValueError, match=r"no coloured point cloud; put one of points\.ply"):
        load_scene_dataset(tmp_path, strict=True)
    trimesh.PointCloud(np.random.default_rng(0).random((9, 3))).export(tmp_path / "points.ply")
    with pytest.raises(ValueError, match=r"points of points\.ply have no colours"):
        load_scene_dataset(tmp_path, strict=True)
    write_transforms(tmp_path)
    Image.new("RGB", (SIZE, SIZE + 1)).save(tmp_path / "train/r_1.png")
    with pytest.raises(ValueError, match="differ in size: 24x24, 24x25"):
        load_scene_dataset(tmp_path, strict=True)
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(ValueError, match=r"transforms\.json"):
        load_scene_dataset(tmp_path, strict=True)


def test_bad_sources(tmp_path):
    for arguments, message in (
        ({}, "either train_data_dir or dataset_name"),
        ({"train_data_dir": tmp_path}, "no scenes in"),
        ({"dataset_name": "procedural", "split": "dev"}, "splits 'train' and 'test', got 'dev'"),
        ({"dataset_name": "procedural", "near": 1.0}, "describe a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            load_scene_dataset(**arguments)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_scene_dataset(tmp_path / "nothing")
    write_npz(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"0 <= near < far, got near=3\.0 and far=2\.0"):
        load_scene_dataset(tmp_path, fov_y=FOV_Y, near=3.0, far=2.0)
    with pytest.raises(ValueError, match="longest_side must be positive"):
        load_scene_dataset(tmp_path, fov_y=FOV_Y, longest_side=0.0)


# ------------------------------------------------------------------------------------------------ other sources


def test_a_saved_data_set_of_pictures_and_poses(tmp_path):
    scene, cameras, images, _ = drawn()
    row = {
        "images": [Image.fromarray(image) for image in images],
        "poses": cameras.camera_to_world.tolist(),
        "points": scene.sample_points(50, np.random.default_rng(0)).tolist(),
        "fov_y": FOV_Y,
        "near": 1.2,
        "far": 2.8,
        "text": scene.caption,
    }
    features = {
        "images": datasets.List(datasets.Image()),
        "poses": datasets.List(datasets.Array2D((4, 4), "float32")),
        "points": datasets.Array2D((50, 6), "float32"),
        **{name: datasets.Value("float32") for name in ("fov_y", "near", "far")},
        "text": datasets.Value("string"),
    }
    datasets.Dataset.from_list([row], features=datasets.Features(features)).save_to_disk(tmp_path / "set")
    dataset = load_scene_dataset(dataset_name=str(tmp_path / "set"), caption_column="text")
    assert set(dataset[0]["images"][0]) == {"bytes", "path"}  # not decoded yet
    (streamed,) = load_scene_dataset(dataset_name=str(tmp_path / "set"), caption_column="text", streaming=True)
    assert set(streamed["images"][0]) == {"bytes", "path"}
    np.testing.assert_array_equal(open_row(streamed).read().images, images)
    read = open_row(dataset[0]).read()
    np.testing.assert_array_equal(read.images, images)
    torch.testing.assert_close(read.cameras.camera_to_world, cameras.camera_to_world)
    example = SceneExamples(20, 10)(dataset[0], np.random.default_rng(0))
    assert example["caption"] == scene.caption and example["inputs"].shape == (20, 6)
    with pytest.raises(ValueError, match=r"has no column prompt; it has far"):
        load_scene_dataset(dataset_name=str(tmp_path / "set"), caption_column="prompt")
    with pytest.raises(ValueError, match="4 images but 3 poses"):
        open_row(dataset[0] | {"poses": dataset[0]["poses"][:3]}).read()


def test_procedural_rows_are_stable_and_splits_differ():
    few, many = load_procedural_scenes(num_scenes=3), load_procedural_scenes(num_scenes=6)
    assert few["caption"] == many["caption"][:3]
    assert load_procedural_scenes("test", num_scenes=6)["caption"] != many["caption"]
    scene = open_row(load_procedural_scenes(num_scenes=1, num_views=3, size=16)[0]).read()
    assert isinstance(scene.cameras, Cameras) and scene.images.shape == (3, 16, 16, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        load_procedural_scenes(num_scenes=0)
