"""Pictures of a mesh on the CPU: a vectorised z-buffer, for evaluation and texture baking.

Axes: b group, v view, h w image, n vertices, m faces, p covered pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from psd.geometry.cameras import Cameras
from psd.geometry.srgb import decode_srgb, encode_srgb

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

CHUNK = 1 << 21  # candidate pixels tested at a time
NEAREST = 0.05  # world units: no vertex may come closer to a camera's plane
AMBIENT, HEADLIGHT = 0.55, 0.45  # shares of the light, linear


@dataclass(frozen=True, eq=False)
class Raster:
    """What cameras see of a mesh; where nothing is hit depth and normal are 0."""

    rgb: Float32[np.ndarray, "b v h w 3"]  # sRGB in [0, 1], on the background
    mask: Bool[np.ndarray, "b v h w"]
    depth: Float32[np.ndarray, "b v h w"]  # distance along the ray, world units
    normal: Float32[np.ndarray, "b v h w 3"]  # world frame, unit length


def rasterise_mesh(
    mesh: Mesh,
    cameras: Cameras,
    size: int,
    *,
    lit: bool = True,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Raster:
    """The mesh's vertex colours from ``cameras``, ``size`` x ``size`` pixels, one sample at each pixel's centre.

    ``lit`` adds what a viewer would: ambient light and a light at the camera, in linear light; otherwise the colours
    are those of the mesh.  Raises `ValueError` where the mesh reaches behind a camera.
    """
    shape = (cameras.groups, cameras.views, size, size)
    rgb = np.broadcast_to(np.asarray(background, np.float32), (*shape, 3)).copy()
    mask, depth = np.zeros(shape, bool), np.zeros(shape, np.float32)
    normal = np.zeros((*shape, 3), np.float32)
    for b in range(cameras.groups):
        for v in range(cameras.views):
            c2w = cameras.c2w[b, v].cpu().double().numpy()
            local = (mesh.vertices - c2w[:3, 3]) @ c2w[:3, :3]
            ahead = -local[:, 2]
            if ahead.min() < NEAREST:
                raise ValueError(
                    f"the mesh comes within {ahead.min():.3g} of the plane of camera ({b}, {v}), nearer than {NEAREST}:"
                    " move the camera away"
                )
            scale = np.tan(np.deg2rad(float(cameras.fovy_deg[b, v])) / 2)
            ndc = local[:, :2] / (ahead[:, None] * scale)
            screen = (ndc * [1, -1] + 1) / 2 * size  # px, row 0 at the top
            pixel, face, weight = find_nearest_faces(screen, 1 / ahead, mesh.faces, size)
            y, x = np.divmod(pixel, size)
            corner = mesh.faces[face]
            # Perspective: what is linear on the triangle is linear in 1 / ahead on the screen.
            weight = weight / ahead[corner]
            weight /= weight.sum(1, keepdims=True)
            position = interpolate_corners(weight, mesh.vertices[corner])
            facing = interpolate_corners(weight, mesh.normals[corner])
            facing /= np.maximum(np.linalg.norm(facing, axis=1, keepdims=True), 1e-12)
            ray = position - c2w[:3, 3]
            distance = np.linalg.norm(ray, axis=1, keepdims=True)
            colour = interpolate_corners(weight, mesh.colours[corner] / 255)
            if lit:
                towards = np.clip(-(facing * ray / distance).sum(1, keepdims=True), 0, 1)
                colour = encode_srgb(decode_srgb(colour) * (AMBIENT + HEADLIGHT * towards))
            mask[b, v, y, x], depth[b, v, y, x] = True, distance[:, 0]
            rgb[b, v, y, x], normal[b, v, y, x] = colour, facing
    return Raster(rgb, mask, depth, normal)


def find_nearest_faces(
    screen: Float[np.ndarray, "n 2"], nearness: Float[np.ndarray, " n"], faces: Int[np.ndarray, "m 3"], size: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float[np.ndarray, "p 3"]]:
    """For each covered pixel (row * size + column): the face of largest ``nearness`` and its barycentric weights.

    ``screen`` in pixels, row 0 at the top; a pixel is covered where its centre lies in a triangle, edges included.
    """
    found = [np.concatenate(parts) for parts in zip(*find_covered_pixels(screen, nearness, faces, size))]
    if not found:
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3))
    pixel, face, weight, key = found
    order = np.lexsort((face, -key, pixel))
    first = order[np.unique(pixel[order], return_index=True)[1]]
    return pixel[first], face[first], weight[first]


def find_covered_pixels(
    screen: Float[np.ndarray, "n 2"], nearness: Float[np.ndarray, " n"], faces: Int[np.ndarray, "m 3"], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Every (pixel, face, weights, nearness) whose pixel centre lies in the face, some millions of tests at a time."""
    corners = screen[faces]  # m 3 2
    low = np.clip(np.ceil(corners.min(1) - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(1) - 0.5) + 1, 0, size).astype(np.int64)
    extent = np.maximum(high - low, 0)
    (ax, ay), (bx, by), (cx, cy) = corners.transpose(1, 2, 0)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    extent[area == 0] = 0
    tests = extent.prod(1)
    ends = np.cumsum(tests)
    start = 0
    while start < len(faces):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + CHUNK, side="right")))
        count = tests[start:stop]
        face = np.repeat(np.arange(start, stop), count)
        within = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
        row, column = np.divmod(within, np.maximum(extent[face, 0], 1))
        x, y = column + low[face, 0], row + low[face, 1]
        px, py = x + 0.5, y + 0.5
        b = ((px - ax[face]) * (cy - ay)[face] - (py - ay[face]) * (cx - ax)[face]) / area[face]
        c = ((bx - ax)[face] * (py - ay[face]) - (by - ay)[face] * (px - ax[face])) / area[face]
        weight = np.stack([1 - b - c, b, c], axis=1)
        inside = (weight >= -1e-9).all(1)
        weight, face = weight[inside], face[inside]
        yield (y * size + x)[inside], face, weight, (weight * nearness[faces[face]]).sum(1)
        start = stop


def interpolate_corners(
    weight: Float[np.ndarray, "p 3"], values: Float[np.ndarray, "p 3 3"]
) -> Float[np.ndarray, "p 3"]:
    return np.einsum("pk,pki->pi", weight, values.astype(np.float64))
