"""Encodes Gaussians for public viewers: PLY as the first implementation of 3D Gaussian splatting wrote it, and .splat.

Viewers take such files to stand in the frame of the cameras that photographs are solved with: +y down.  Here that is
glTF's frame turned by 180 degrees about z, so that a viewer that turns it back shows the object as GLB does, of the
same size and at the same place.  Axes: n Gaussians.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh
    from psd.geometry.splat import Gaussians

CONSTANT = 0.28209479177387814  # the spherical harmonic of degree 0: colour = 0.5 + CONSTANT * f_dc
PROPERTIES = (
    "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2",
    "rot_0", "rot_1", "rot_2", "rot_3",
)  # fmt: skip
TURN = np.array([0.5, 0.5, -0.5, 0.5])  # the quaternion (w x y z) of `turn_y_down`
LEAST = 1e-6  # an opacity is this far from 0 and 1, where its logit is finite


def turn_y_down(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """World to the frame of splat files: (x, y, z) -> (-y, -z, x), so up becomes -y and the front +z."""
    return vectors[:, [1, 2, 0]] * [-1, -1, 1]


def place_splats(mesh: Mesh) -> tuple[Gaussians, Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"], np.ndarray]:
    """The Gaussians of ``mesh`` and their places, standard deviations and quaternions (n 4) in the file.

    Centred and scaled as the mesh is in its own formats: its longest side is 1.  Raises ValueError where it has none.
    """
    if mesh.splats is None:
        raise ValueError("this mesh is of no Gaussians: choose a format of meshes")
    low, high = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
    longest = (high - low).max()
    position = (mesh.splats.position.double().numpy() - (low + high) / 2) / longest
    w, x, y, z = TURN
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])  # q -> TURN q
    turned = mesh.splats.rotation.double().numpy() @ left.T
    return mesh.splats, turn_y_down(position), mesh.splats.size.double().numpy() / longest, turned


def splat_ply(mesh: Mesh, comments: list[str]) -> bytes:
    """Binary PLY with the properties that viewers know: logit of opacity, logarithm of size, colour of degree 0.

    Normals are 0, as in the first implementation's files.
    """
    splats, position, size, rotation = place_splats(mesh)
    opacity = splats.opacity.double().numpy().clip(LEAST, 1 - LEAST)
    colour = (splats.colour.double().numpy() - 0.5) / CONSTANT
    logit = np.log(opacity / (1 - opacity))[:, None]
    table = np.concatenate([position, np.zeros_like(position), colour, logit, np.log(size), rotation], axis=1)
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments)]
    lines += [f"element vertex {len(table)}", *(f"property float {name}" for name in PROPERTIES), "end_header", ""]
    return "\n".join(lines).encode() + table.astype("<f4").tobytes()


def splat_bytes(mesh: Mesh) -> bytes:
    """The .splat format: 32 bytes each, without a header, the largest and most opaque first.

    Place and size as float32, then colour and opacity, then the quaternion as (q + 1) 128, in 8 bits.
    """
    splats, position, size, rotation = place_splats(mesh)
    opacity, colour = splats.opacity.double().numpy(), splats.colour.double().numpy()
    table = np.zeros(len(position), [("place", "<f4", 3), ("size", "<f4", 3), ("rgba", "u1", 4), ("turn", "u1", 4)])
    table["place"], table["size"] = position, size
    table["rgba"] = (np.concatenate([colour, opacity[:, None]], axis=1) * 255).round().clip(0, 255)
    table["turn"] = ((rotation + 1) * 128).round().clip(0, 255)
    return table[np.argsort(-opacity * size.prod(1), kind="stable")].tobytes()
