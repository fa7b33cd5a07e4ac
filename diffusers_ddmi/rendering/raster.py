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
"""Pictures of triangle meshes without a display: a small z-buffer rasteriser in numpy.

The pixels that a triangle covers are listed row by row for all triangles at once, and one integer minimum per pixel over
`depth << 32 | triangle` settles which of them is seen. Colours, normals and depth are then computed for visible pixels only.

Camera convention (OpenGL): a camera-to-world matrix whose columns are right, up, backward and position; the camera looks
along its own -z axis. Pixel (row i, column j) of an image of height H has its centre at (j + 1/2, i + 1/2), rows from the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import trimesh


Shading = Literal["smooth", "flat"]

# Covered pixels listed at once; 16 bytes or so each.
_FRAGMENTS_PER_CHUNK = 1 << 21
_DEFAULT_FOV_Y = math.radians(35.0)
_DEFAULT_COLOR = (0.62, 0.70, 0.80)


class Raster(NamedTuple):
    """What `rasterize` sees.

    Attributes:
        color: `(height, width, 3)` float32 in [0, 1], composited over the background.
        depth: `(height, width)` float32, world units along the viewing axis, mean of the covered samples; inf where nothing is.
        mask: `(height, width)` float32 in [0, 1], the covered fraction of each pixel (0 or 1 when `supersample` is 1).
    """

    color: np.ndarray
    depth: np.ndarray
    mask: np.ndarray


def rasterize(
    vertices: np.ndarray,
    faces: np.ndarray,
    colors: np.ndarray,
    camera_to_world: np.ndarray,
    fov_y: float,
    height: int,
    width: int,
    *,
    per_face: bool | None = None,
    shading: Shading | None = None,
    vertex_normals: np.ndarray | None = None,
    light_direction: Sequence[float] = (0.4, 1.0, 0.6),
    background: Sequence[float] = (1.0, 1.0, 1.0),
    supersample: int = 1,
    near: float = 1e-3,
) -> Raster:
    """Draws a coloured triangle mesh as a pinhole camera sees it.

    Args:
        vertices: `(vertices, 3)` in world units.
        faces: `(faces, 3)` integer indices into `vertices`; both sides of a triangle are visible.
        colors: `(vertices, 3)` or `(faces, 3)`, floats in [0, 1] or uint8. A fourth column (alpha) is ignored.
        camera_to_world: `(4, 4)`, OpenGL axes (right, up, backward, position).
        fov_y: vertical field of view in radians, in (0, π).
        height, width: size of the picture in pixels.
        per_face: says whether `colors` belong to faces; needed only for a mesh that has as many vertices as faces.
        shading: `None` gives the colours as they are. "flat" and "smooth" light them softly (Lambertian, the same from
            every side) with the faces' normals or with normals interpolated between the vertices.
        vertex_normals: `(vertices, 3)` for "smooth"; computed from the faces, weighted by area, where not given.
        light_direction: where the light comes from, world axes, any length.
        background: RGB in [0, 1].
        supersample: samples per pixel along each axis; 2 or more smooths the edges.
        near: triangles are cut at this distance in front of the camera, world units.

    Raises:
        ValueError: for arrays of the wrong shape, indices out of range, values that are not finite, a `fov_y` that looks
            like degrees, or a picture without pixels.
    """
    vertices, faces = _checked_mesh(vertices, faces)
    colors, per_face = _checked_colors(colors, len(vertices), len(faces), per_face)
    camera_to_world = _checked_camera(camera_to_world, fov_y)
    for name, value in (("height", height), ("width", width), ("supersample", supersample)):
        if int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    if shading not in (None, "flat", "smooth"):
        raise ValueError(f'`shading` must be None, "flat" or "smooth", got {shading!r}.')

    rows, columns = int(height) * int(supersample), int(width) * int(supersample)
    rotation, position = camera_to_world[:3, :3], camera_to_world[:3, 3]
    in_camera = (vertices - position) @ rotation
    triangles, parents = _clip_near(in_camera[faces], near)
    focal = 0.5 * rows / math.tan(0.5 * fov_y)
    visible = _visible_triangles(triangles, focal, rows, columns)

    pixels = np.flatnonzero(visible >= 0)
    seen = parents[visible[pixels]]
    weights, depths = _barycentric(in_camera[faces[seen]], pixels, focal, rows, columns)
    shown = colors[seen] if per_face else np.einsum("pk,pkc->pc", weights, colors[faces[seen]])
    if shading is not None:
        normals = _pixel_normals(vertices, faces, seen, weights, shading, vertex_normals)
        to_camera = position - np.einsum("pk,pkc->pc", weights, vertices[faces[seen]])
        normals *= np.where((normals * to_camera).sum(1, keepdims=True) < 0, -1.0, 1.0)
        shown = np.clip(shown * soft_light(normals, light_direction)[:, None], 0.0, 1.0)
    return _resolve(pixels, shown, depths, np.asarray(background, np.float32), (height, width), supersample)


def soft_light(normals: np.ndarray, light_direction: Sequence[float]) -> np.ndarray:
    """Brightness `(points,)` of matt surfaces with unit `normals` `(points, 3)`: sky from +y, and one wide lamp.

    The lamp's cosine is half wrapped around the surface, so that no side is black and shape stays readable everywhere.
    """
    light = np.asarray(light_direction, dtype=np.float64)
    light = light / np.linalg.norm(light)
    sky = 0.5 + 0.5 * normals[:, 1]
    lamp = np.clip((normals @ light + 0.3) / 1.3, 0.0, 1.0)
    return 0.34 + 0.18 * sky + 0.55 * lamp


def orbit_camera(
    azimuth: float, elevation: float, distance: float, target: Sequence[float] = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """A `(4, 4)` camera-to-world matrix (OpenGL axes, y up) that looks at `target` from `distance` world units away.

    `azimuth` and `elevation` are in degrees: azimuth 0 looks from +z, 90 from +x; elevation 90 looks straight down.
    """
    azimuth, elevation = math.radians(azimuth), math.radians(elevation)
    backward = np.array(
        [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    )
    right = np.array([math.cos(azimuth), 0.0, -math.sin(azimuth)])
    camera = np.eye(4)
    camera[:3, 0], camera[:3, 1], camera[:3, 2] = right, np.cross(backward, right), backward
    camera[:3, 3] = np.asarray(target, dtype=np.float64) + distance * backward
    return camera


def render_mesh(
    mesh: trimesh.Trimesh | trimesh.Scene,
    azimuth: float = 35.0,
    elevation: float = 25.0,
    size: int | tuple[int, int] = 512,
    *,
    camera_to_world: np.ndarray | None = None,
    fov_y: float = _DEFAULT_FOV_Y,
    shading: Shading | None = "smooth",
    color: Sequence[float] = _DEFAULT_COLOR,
    background: Sequence[float] = (1.0, 1.0, 1.0),
    supersample: int = 2,
    bounds: np.ndarray | None = None,
    return_maps: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture of a mesh from which a person can judge its shape.

    Args:
        mesh: vertex, face or texture colours are shown where the mesh has them. An empty mesh gives an empty picture.
        azimuth, elevation: degrees, see [`orbit_camera`]; the whole mesh is in view.
        size: pixels, a side or (height, width).
        camera_to_world: `(4, 4)`, used instead of `azimuth` and `elevation`.
        fov_y: vertical field of view in radians.
        shading: "smooth" (vertex normals), "flat" (face normals, for boxy shapes) or `None` (plain colours).
        color: RGB in [0, 1] for meshes without colours of their own.
        bounds: `(2, 3)` box to be framed instead of the mesh's own, so that several shapes are shown at one scale.
        return_maps: also return depth and mask as in [`Raster`].

    Returns:
        `(height, width, 3)` uint8, or that with depth and mask.
    """
    if isinstance(mesh, trimesh.Scene):
        mesh = mesh.to_geometry() if len(mesh.geometry) else trimesh.Trimesh()
    height, width = (size, size) if isinstance(size, int) else size
    if camera_to_world is None:
        camera_to_world = _framing_camera(mesh, azimuth, elevation, fov_y, width / height, bounds)
    colors, per_face = _mesh_colors(mesh, color)
    # The lamp stands above the camera's left shoulder and turns with it: every view of a turntable is lit alike.
    light = np.asarray(camera_to_world, dtype=np.float64)[:3, :3] @ (-0.45, 0.75, 0.9)
    raster = rasterize(
        *(mesh.vertices, mesh.faces, colors, camera_to_world, fov_y, height, width),
        per_face=per_face,
        shading=shading,
        vertex_normals=mesh.vertex_normals if shading == "smooth" and len(mesh.faces) else None,
        light_direction=light,
        background=background,
        supersample=supersample,
    )
    picture = np.round(raster.color * 255).astype(np.uint8)
    return (picture, raster.depth, raster.mask) if return_maps else picture


def turntable(
    mesh: trimesh.Trimesh | trimesh.Scene,
    num_views: int = 24,
    elevation: float = 25.0,
    size: int | tuple[int, int] = 256,
    **kwargs,
) -> list[np.ndarray]:
    """`num_views` pictures `(height, width, 3)` uint8 at equal steps of azimuth; `kwargs` as in [`render_mesh`]."""
    if num_views < 1:
        raise ValueError(f"`num_views` must be at least 1, got {num_views}.")
    return [render_mesh(mesh, 360.0 * view / num_views, elevation, size, **kwargs) for view in range(num_views)]


def _checked_mesh(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"`vertices` must have shape (vertices, 3), got {vertices.shape}.")
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"`faces` must have shape (faces, 3), got {faces.shape}.")
    if not np.isfinite(vertices).all():
        raise ValueError(f"{(~np.isfinite(vertices)).any(1).sum()} of {len(vertices)} `vertices` are not finite.")
    if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise ValueError(
            f"`faces` names vertices {faces.min()} to {faces.max()}, but there are {len(vertices)} vertices."
        )
    return vertices, faces.astype(np.int64)


def _checked_colors(
    colors: np.ndarray, num_vertices: int, num_faces: int, per_face: bool | None
) -> tuple[np.ndarray, bool]:
    colors = np.asarray(colors)
    if colors.ndim != 2 or colors.shape[1] not in (3, 4):
        raise ValueError(f"`colors` must have shape (vertices, 3) or (faces, 3), got {colors.shape}.")
    if per_face is None:
        if num_vertices == num_faces != 0:
            raise ValueError(
                f"The mesh has {num_faces} faces and as many vertices: say with `per_face` whose colours these are."
            )
        per_face = len(colors) == num_faces
    expected = num_faces if per_face else num_vertices
    if len(colors) != expected:
        raise ValueError(f"Got {len(colors)} colours for a mesh of {num_vertices} vertices and {num_faces} faces.")
    scale = 255.0 if colors.dtype == np.uint8 else 1.0
    return colors[:, :3].astype(np.float64) / scale, per_face


def _checked_camera(camera_to_world: np.ndarray, fov_y: float) -> np.ndarray:
    camera_to_world = np.asarray(camera_to_world, dtype=np.float64)
    if camera_to_world.shape != (4, 4) or not np.isfinite(camera_to_world).all():
        raise ValueError(f"`camera_to_world` must be a finite (4, 4) matrix, got shape {camera_to_world.shape}.")
    if not 0.0 < fov_y < math.pi:
        raise ValueError(
            f"`fov_y` must be in (0, π) radians, got {fov_y}. Use `math.radians` to convert an angle in degrees."
        )
    if not np.allclose(camera_to_world[:3, :3].T @ camera_to_world[:3, :3], np.eye(3), atol=1e-3):
        raise ValueError("`camera_to_world` is not rigid: its first three columns must be orthonormal.")
    return camera_to_world


def _clip_near(triangles: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `(faces, 3, 3)` camera-space triangles at z = -near; returns the parts in front and the face each comes from."""
    in_front = triangles[:, :, 2] < -near
    count = in_front.sum(1)
    parts, parents = [triangles[count == 3]], [np.flatnonzero(count == 3)]
    for kept in (1, 2):
        cut = np.flatnonzero(count == kept)
        # Turn each triangle so that the vertex that is alone on its side comes first.
        alone = np.argmax(in_front[cut] == (kept == 1), axis=1)
        a, b, c = (triangles[cut, (alone + step) % 3] for step in range(3))
        ab, ac = (a + (end - a) * ((-near - a[:, 2:]) / (end - a)[:, 2:]) for end in (b, c))
        pieces = [(a, ab, ac)] if kept == 1 else [(ab, b, c), (ab, c, ac)]
        parts += [np.stack(piece, axis=1) for piece in pieces]
        parents += [cut] * len(pieces)
    return np.concatenate(parts), np.concatenate(parents)


def _visible_triangles(triangles: np.ndarray, focal: float, rows: int, columns: int) -> np.ndarray:
    """Index of the nearest triangle in every pixel `(rows * columns,)`, -1 where there is none."""
    depth = -triangles[:, :, 2]
    screen_x = triangles[:, :, 0] / depth * focal + columns / 2
    screen_y = rows / 2 - triangles[:, :, 1] / depth * focal
    order = np.argsort(screen_y, axis=1)
    x, y = np.take_along_axis(screen_x, order, 1), np.take_along_axis(screen_y, order, 1)
    inverse_depth = _inverse_depth_planes(triangles, focal, rows, columns)
    nearest, farthest = (1.0 / depth).max(1), (1.0 / depth).min(1)

    first = np.clip(np.ceil(y[:, 0] - 0.5), 0, rows).astype(np.int64)
    heights = np.clip(np.ceil(y[:, 2] - 0.5), 0, rows).astype(np.int64) - first
    widths = np.clip(np.ceil(x.max(1)), 0, columns) - np.clip(np.floor(x.min(1)), 0, columns)
    heights = np.where(widths > 0, np.maximum(heights, 0), 0)
    drawn = np.flatnonzero(heights)
    work = np.cumsum(heights[drawn] * (widths[drawn].astype(np.int64) + 1))
    empty = np.iinfo(np.uint64).max
    buffer = np.full(rows * columns, empty, dtype=np.uint64)
    starts = np.flatnonzero(np.diff(work // _FRAGMENTS_PER_CHUNK, prepend=-1))
    for chunk in np.split(drawn, starts[1:]):
        triangle, row = _expand(chunk, first[chunk], heights[chunk])
        left, right = _row_spans(x[triangle], y[triangle], row + 0.5)
        start = np.clip(np.ceil(left - 0.5), 0, columns).astype(np.int64)
        length = np.maximum(np.clip(np.ceil(right - 0.5), 0, columns).astype(np.int64) - start, 0)
        span, column = _expand(np.arange(len(triangle)), start, length)
        triangle, row = triangle[span], row[span]
        plane = inverse_depth[triangle]
        inverse = plane[:, 0] * (column + 0.5) + plane[:, 1] * (row + 0.5) + plane[:, 2]
        inverse = np.clip(inverse, farthest[triangle], nearest[triangle])
        # Positive floats order like their bit patterns, so depth and triangle fit one integer whose minimum is what is seen.
        key = (1.0 / inverse).astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(32)
        np.minimum.at(buffer, row * columns + column, key | triangle.astype(np.uint64))
    return np.where(buffer == empty, -1, (buffer & np.uint64(0xFFFFFFFF)).astype(np.int64))


def _expand(owners: np.ndarray, first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists `first[k], first[k] + 1, ...` (`counts[k]` values) for every k, beside the owner each belongs to."""
    index = np.repeat(np.arange(len(owners)), counts)
    offset = np.cumsum(counts) - counts
    return owners[index], first[index] + np.arange(len(index)) - offset[index]


def _row_spans(x: np.ndarray, y: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the horizontal line at `row` enters and leaves triangles whose vertices `(rows, 3)` are sorted by y.

    Edges are always followed from their upper to their lower end, so two triangles that share an edge get the same
    number and no pixel between them is missed or drawn twice.
    """

    def crossing(upper: np.ndarray | int, lower: np.ndarray | int) -> np.ndarray:
        x0, y0, x1, y1 = x[each, upper], y[each, upper], x[each, lower], y[each, lower]
        return x0 + (row - y0) * ((x1 - x0) / np.where(y1 > y0, y1 - y0, 1.0))

    each = np.arange(len(x))
    below_middle = (row >= y[:, 1]).astype(np.int64)
    short, long = crossing(below_middle, below_middle + 1), crossing(0, 2)
    return np.minimum(short, long), np.maximum(short, long)


def _inverse_depth_planes(triangles: np.ndarray, focal: float, rows: int, columns: int) -> np.ndarray:
    """Coefficients `(triangles, 3)` of 1 / depth = a x + b y + c over the pixel plane: it is affine there."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    offset = (normals * triangles[:, 0]).sum(1)
    # A triangle seen edge-on covers no pixel; what rounding leaves of it is clamped to its vertices' depths.
    n = normals / np.where(offset == 0, 1.0, offset)[:, None]
    a, b = n[:, 0] / focal, -n[:, 1] / focal
    return np.stack([a, b, -n[:, 2] - a * columns / 2 - b * rows / 2], axis=1)


def _barycentric(
    triangles: np.ndarray, pixels: np.ndarray, focal: float, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Perspective-correct weights `(pixels, 3)` and depth `(pixels,)` where the ray of each pixel meets its triangle."""
    x = (pixels % columns + 0.5 - columns / 2) / focal
    y = (rows / 2 - pixels // columns - 0.5) / focal
    rays = np.stack([x, y, -np.ones_like(x)], axis=1)
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    volumes = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
    weights = np.einsum("pkc,pc->pk", volumes, rays)
    total = weights.sum(1, keepdims=True)
    weights = np.where(total == 0, 1 / 3, weights / np.where(total == 0, 1.0, total)).clip(0.0, 1.0)
    weights /= weights.sum(1, keepdims=True)
    return weights, -(weights * triangles[:, :, 2]).sum(1)


def _pixel_normals(
    vertices: np.ndarray,
    faces: np.ndarray,
    seen: np.ndarray,
    weights: np.ndarray,
    shading: Shading,
    vertex_normals: np.ndarray | None,
) -> np.ndarray:
    """Unit normals `(pixels, 3)` of the faces in `seen`, or interpolated between their vertices."""
    corners = vertices[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if shading == "flat":
        normals = face_normals[seen]
    else:
        if vertex_normals is None:
            vertex_normals = np.stack(
                [np.bincount(faces.ravel(), np.repeat(n, 3), len(vertices)) for n in face_normals.T], axis=1
            )
            vertex_normals = vertex_normals / np.linalg.norm(vertex_normals, axis=1, keepdims=True).clip(1e-30)
        normals = np.einsum("pk,pkc->pc", weights, np.asarray(vertex_normals, dtype=np.float64)[faces[seen]])
    return normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)


def _resolve(
    pixels: np.ndarray,
    colors: np.ndarray,
    depths: np.ndarray,
    background: np.ndarray,
    size: tuple[int, int],
    supersample: int,
) -> Raster:
    """Averages samples to pixels: colours over the background, depth over the covered samples."""
    height, width = size
    columns = width * supersample
    target = pixels // columns // supersample * width + pixels % columns // supersample
    covered = np.bincount(target, minlength=height * width)
    sums = [np.bincount(target, values, height * width) for values in (*colors.T, depths)]
    mask = covered / supersample**2
    color = np.stack(sums[:3], axis=1) / supersample**2 + (1.0 - mask)[:, None] * background
    depth = np.where(covered > 0, sums[3] / np.maximum(covered, 1), np.inf)
    shaped = (color.reshape(height, width, 3), depth.reshape(height, width), mask.reshape(height, width))
    return Raster(*(values.astype(np.float32) for values in shaped))


def _framing_camera(
    mesh: trimesh.Trimesh, azimuth: float, elevation: float, fov_y: float, aspect: float, bounds: np.ndarray | None
) -> np.ndarray:
    """A camera on an orbit around the box's centre, far enough away for its circumscribed sphere to be in view."""
    if bounds is None:
        bounds = mesh.bounds if len(mesh.faces) else ((-0.5,) * 3, (0.5,) * 3)
    lower, upper = np.asarray(bounds, dtype=np.float64)
    half_angle = min(0.5 * fov_y, math.atan(math.tan(0.5 * fov_y) * aspect))
    radius = max(0.52 * float(np.linalg.norm(upper - lower)), 1e-6)  # half the diagonal, and a margin
    return orbit_camera(azimuth, elevation, radius / math.sin(half_angle), (lower + upper) / 2)


def _mesh_colors(mesh: trimesh.Trimesh, color: Sequence[float]) -> tuple[np.ndarray, bool]:
    """RGB in [0, 1] of the vertices or faces, and whether they belong to faces."""
    kind = mesh.visual.kind
    if kind is None or not len(mesh.faces):
        return np.broadcast_to(np.asarray(color, dtype=np.float64), (len(mesh.vertices), 3)), False
    if kind == "face":
        return mesh.visual.face_colors[:, :3] / 255.0, True
    visual = mesh.visual.to_color() if kind == "texture" else mesh.visual
    return visual.vertex_colors[:, :3] / 255.0, False
