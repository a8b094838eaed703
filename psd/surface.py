"""Closed triangle surfaces in numpy: components, smoothing, decimation, normals.

Faces run counter-clockwise seen from outside; "closed" means that every edge joins exactly two faces.
Axes: n vertices, m faces.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from scipy import sparse

SMALLEST_SHARE = 0.04  # components below this share of the volume are floaters


class MeshError(ValueError):
    """No mesh can be made: the message holds the value, the bound and the cure."""


def face_volumes(vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"]) -> Float[np.ndarray, " m"]:
    """Signed volumes of the tetrahedra from the origin to each face; a closed outward surface sums to its volume."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return np.einsum("ni,ni->n", a, np.cross(b, c)) / 6


def components(faces: Int[np.ndarray, "m 3"], count: int) -> tuple[int, Int[np.ndarray, " n"]]:
    """How many connected components ``count`` vertices form, and the component of each."""
    rows, columns = faces[:, [0, 1]].T.ravel(), faces[:, [1, 2]].T.ravel()
    links = sparse.coo_array((np.ones(len(rows)), (rows, columns)), (count, count))
    return sparse.csgraph.connected_components(links, directed=False)


def drop_floaters(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"]
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """Keep the components of at least 4 % of the volume; unused vertices go too."""
    number, label = components(faces, len(vertices))
    volume = np.bincount(label[faces[:, 0]], face_volumes(vertices, faces), minlength=number)
    kept = faces[(volume >= SMALLEST_SHARE * volume.sum())[label[faces[:, 0]]]]
    used, compact = np.unique(kept, return_inverse=True)
    return vertices[used], compact.reshape(-1, 3).astype(np.int32)


def smooth(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"], *, rounds: int = 5
) -> Float32[np.ndarray, "n 3"]:
    """Taubin's low-pass filter (1995): a shrinking and a slightly larger inflating step a round keep the volume."""
    rows, columns = faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()
    links = sparse.coo_array((np.ones(len(rows)), (rows, columns)), (len(vertices),) * 2).tocsr()
    mean = sparse.diags_array(1 / links.sum(axis=1)) @ links
    moved = vertices.astype(np.float64)
    for _ in range(rounds):
        for share in (0.5, -0.53):
            moved = moved + share * (mean @ moved - moved)
    return moved.astype(np.float32)


def decimate(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"], limit: int
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """At most ``limit`` faces by quadric collapses; the surface stays closed.  Raises `MeshError` if it cannot."""
    if len(faces) <= limit:
        return vertices, faces
    import fast_simplification

    vertices, small = fast_simplification.simplify(vertices, faces, target_count=limit)[:2]
    vertices, faces = drop_floaters(*separate(vertices, small.astype(np.int32)))
    if not 0 < len(faces) <= limit:
        raise MeshError(f"{limit} faces are too few for this surface ({len(small)} are left): allow more faces")
    return vertices, faces


def separate(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"]
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """A manifold from a closed surface that touches itself: quadric collapses pinch thin parts together.

    Around an edge of more than two faces, those that bound the same wedge of matter stay joined.  The copies of a split
    vertex move apart by 1 % of the way to their neighbours, so that welding by position does not undo the cut.
    """
    half = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)  # half-edge 3 f + i starts at corner i of face f
    around: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (start, end) in enumerate(half.tolist()):
        around[(min(start, end), max(start, end))].append(index)
    if all(len(group) == 2 for group in around.values()):
        return vertices, faces
    pairs = []
    for (low, high), group in around.items():
        forward = [index for index in group if half[index, 0] == low]
        backward = [index for index in group if half[index, 0] == high]
        if len(forward) != len(backward):
            raise MeshError("the decimated surface has a gap: allow more faces")
        if len(group) == 2:
            pairs.append((forward[0], backward[0]))
            continue
        axis = vertices[high] - vertices[low]
        frame = np.linalg.svd(axis[None])[2][1:]  # two directions across the edge
        if np.linalg.det(np.vstack([frame, axis])) < 0:
            frame = frame[::-1]
        opposite = {index: vertices[faces[index // 3, (index % 3 + 2) % 3]] - vertices[low] for index in group}
        angle = {index: np.arctan2(frame[1] @ out, frame[0] @ out) for index, out in opposite.items()}
        for index in forward:  # matter lies clockwise of a forward face
            partner = min(backward, key=lambda other: (angle[index] - angle[other]) % (2 * np.pi))
            backward.remove(partner)
            pairs.append((index, partner))
    first, second = np.array(pairs).T
    following = np.arange(len(half)).reshape(-1, 3)[:, [1, 2, 0]].ravel()
    rows = np.concatenate([first, following[first]])  # two faces that share an edge share its two corners
    columns = np.concatenate([following[second], second])
    links = sparse.coo_array((np.ones(len(rows)), (rows, columns)), (len(half),) * 2)
    number, corner = sparse.csgraph.connected_components(links, directed=False)
    origin = np.zeros(number, dtype=np.int64)
    origin[corner] = half[:, 0]
    split = (np.bincount(origin, minlength=len(vertices)) > 1)[origin]
    cut, result = corner.reshape(-1, 3).astype(np.int32), vertices[origin]
    neighbours = np.zeros((number, 3))
    np.add.at(neighbours, cut.ravel(), result[cut[:, [1, 2, 0]].ravel()])
    mean = neighbours / np.bincount(cut.ravel(), minlength=number)[:, None]
    result[split] += (0.01 * (mean - result))[split].astype(np.float32)
    return result, cut


def vertex_normals(vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"]) -> Float32[np.ndarray, "n 3"]:
    """Unit normals, the area-weighted mean of the adjacent faces'; +z where those have no area."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    weighted = np.repeat(np.cross(b - a, c - a), 3, axis=0)
    total = np.stack([np.bincount(faces.ravel(), weighted[:, i], minlength=len(vertices)) for i in range(3)], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.maximum(length, 1e-300), [0.0, 0.0, 1.0]).astype(np.float32)


def closed(faces: Int[np.ndarray, "m 3"]) -> bool:
    """Whether every edge joins exactly two faces, once in each direction."""
    edges = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).astype(np.int64)
    size = int(faces.max()) + 1
    forward, backward = edges @ [size, 1], edges @ [1, size]
    unique = np.unique(forward)
    return bool(len(unique) == len(forward) and np.array_equal(unique, np.sort(backward)))
