"""Bakes a mesh's colours into a texture: cut open by xatlas, then coloured texel by texel from the scene.

Axes: n vertices or texels, h w texture.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import normalize

from psd.geometry.mesh import Mesh
from psd.geometry.rasterise import rasterise_plane

LARGEST = 50_000  # faces: beyond, xatlas takes minutes to hours


class TextureError(RuntimeError):
    """No texture was made; the mesh is as good as before."""


def bake_texture(
    mesh: Mesh,
    colour: Callable[[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"]], UInt8[np.ndarray, "n 3"]] | None,
    *,
    size: int,
    timeout_s: float,
) -> Mesh:
    """``mesh`` with a ``size`` x ``size`` texture; ``colour`` gives the sRGB colours at points with normals, None
    those that the mesh's own colours make between its vertices.

    Vertices along the seams are repeated.  Raises `TextureError` for more than 50 000 faces, when the unwrapping takes
    longer than ``timeout_s`` (its process is then killed) or fails.
    """
    if len(mesh.faces) > LARGEST:
        raise TextureError(f"{len(mesh.faces)} faces are too many to unwrap (at most {LARGEST}): lower mesh_faces")
    origin, faces, uv = unwrap_mesh(mesh, size, timeout_s)
    vertices, normals = mesh.vertices[origin], mesh.normals[origin]
    corner = (torch.from_numpy(uv) * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0])) * size  # v runs upwards
    places, face, weights = rasterise_plane(corner[torch.from_numpy(faces).long()], size)
    texel, corners = places.numpy(), torch.from_numpy(faces).long()[face]

    def interpolate_corners(values: np.ndarray) -> Tensor:
        return (torch.from_numpy(values).float()[corners] * weights[:, :, None]).sum(1)

    texture = np.zeros((size * size, 3), np.uint8)
    if colour is None:
        texture[texel] = interpolate_corners(mesh.colours[origin]).round().byte().numpy()
    else:
        texture[texel] = colour(
            interpolate_corners(vertices).numpy(), normalize(interpolate_corners(normals), dim=1).numpy()
        )
    empty = np.ones(size * size, bool)
    empty[texel] = False
    # Viewers blend neighbouring texels: outside the charts each takes the nearest colour, or the seams turn dark.
    near = ndimage.distance_transform_edt(empty.reshape(size, size), return_distances=False, return_indices=True)
    filled = texture.reshape(size, size, 3)[tuple(np.asarray(near))]
    return replace(
        mesh, vertices=vertices, normals=normals, faces=faces, colours=mesh.colours[origin], uv=uv, texture=filled
    )


def unwrap_mesh(mesh: Mesh, size: int, timeout_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Original vertex of each new one, faces, uv; from a child process that dies at the timeout, not at a Ctrl-C."""
    given = io.BytesIO()
    np.savez(given, vertices=mesh.vertices, faces=mesh.faces.astype(np.uint32), normals=mesh.normals, size=size)
    command = [sys.executable, "-P", str(Path(__file__).with_name("unwrap.py"))]  # -P: no psd/ before the libraries
    try:
        child = subprocess.run(
            command, input=given.getvalue(), capture_output=True, timeout=timeout_s, check=True,
            start_new_session=True,  # the terminal's Ctrl-C asks the run to end and keep everything, texture included
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TextureError(
            f"unwrapping {len(mesh.faces)} faces took more than {timeout_s:g} s: lower mesh_faces"
        ) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise TextureError(
            f"unwrapping failed (exit {error.returncode}): {said[-1] if said else 'no message'}"
        ) from None
    result = np.load(io.BytesIO(child.stdout))
    return result["origin"].astype(np.int64), result["faces"].astype(np.int32), result["uv"].astype(np.float32)
