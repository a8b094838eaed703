"""Closed triangle surfaces in numpy: components, smoothing, decimation, normals.

Faces run counter-clockwise seen from outside; "closed" means that every edge joins exactly two faces.
Axes: n vertices, m faces.
"""

from __future__ import annotations

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
    import fast_simplification

    if len(faces) <= limit:
        return vertices, faces
    target, left = limit, 0
    while target >= 4:
        fewer, kept = fast_simplification.simplify(vertices, faces, target_count=target)[:2]
        fewer, kept = drop_floaters(*separate(fewer.astype(np.float32), kept.astype(np.int32)))
        left = len(kept)
        if 0 < left <= limit:
            return fewer, kept
        target -= max(target // 50, 2 * (left - limit))  # what came apart needed more faces
    raise MeshError(f"{limit} faces are too few for this surface ({left} are left): allow more faces")


def separate(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"]
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """A manifold from a closed surface that touches itself: quadric collapses pinch thin parts together.

    Around an edge of more than two faces, those that bound the same wedge of matter stay joined.  The copies of a split
    vertex move apart by 1 % of the way to their neighbours, so that welding by position does not undo the cut.
    """
    half = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).astype(np.int64)  # 3 f + i starts at corner i of face f
    following = np.arange(len(half)).reshape(-1, 3)[:, [1, 2, 0]].ravel()
    key = half.min(1) * len(vertices) + half.max(1)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    if (counts == 2).all():
        return vertices, faces
    plain = starts[counts == 2]
    pairs = list(zip(order[plain], order[plain + 1]))
    pinched = [order[start : start + count] for start, count in zip(starts, counts) if count != 2]
    torn = [pair for group in pinched for pair in wedges(vertices, half, following, group)]
    first, second = np.array(pairs + torn).T
    rows = np.concatenate([first, following[first]])  # two faces that share an edge share its two corners
    columns = np.concatenate([following[second], second])
    links = sparse.coo_array((np.ones(len(rows)), (rows, columns)), (len(half),) * 2)
    number, corner = sparse.csgraph.connected_components(links, directed=False)
    origin = np.zeros(number, dtype=np.int64)
    origin[corner] = half[:, 0]
    split = (np.bincount(origin, minlength=len(vertices)) > 1)[origin]
    faces, place = corner.reshape(-1, 3).astype(np.int32), vertices[origin]
    neighbours = np.zeros((number, 3))
    np.add.at(neighbours, corner, place[corner[following]])
    mean = neighbours / np.bincount(corner, minlength=number)[:, None]
    place[split] += (0.01 * (mean - place))[split].astype(np.float32)
    return part_double_edges(place, faces, torn)


def wedges(
    vertices: Float32[np.ndarray, "n 3"],
    half: Int[np.ndarray, "e 2"],
    following: Int[np.ndarray, " e"],
    group: np.ndarray,
) -> list[tuple[int, int]]:
    """Pairs of half-edges around one edge (forward, backward) with matter between their faces."""
    low, high = half[group[0]].min(), half[group[0]].max()
    forward = [index for index in group.tolist() if half[index, 0] == low]
    backward = [index for index in group.tolist() if half[index, 0] == high]
    if len(forward) != len(backward):
        raise MeshError("the decimated surface has a gap: allow more faces")
    axis = vertices[high] - vertices[low]
    across = np.linalg.svd(axis[None])[2][1:]  # two directions
    if np.linalg.det(np.vstack([across, axis])) < 0:
        across = across[::-1]
    out = {index: across @ (vertices[half[following[index], 1]] - vertices[low]) for index in group.tolist()}
    angle = {index: np.arctan2(y, x) for index, (x, y) in out.items()}
    pairs = []
    for index in forward:  # matter lies clockwise of a forward face
        partner = min(backward, key=lambda other: (angle[index] - angle[other]) % (2 * np.pi))
        backward.remove(partner)
        pairs.append((index, partner))
    return pairs


def part_double_edges(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"], pairs: list[tuple[int, int]]
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """Give all but one of several edges between the same two vertices a vertex in the middle; they are in ``pairs``."""
    seen: set[tuple[int, int]] = set()
    middle: dict[int, int] = {}  # half-edge -> its new vertex
    added: list[np.ndarray] = []
    for index, partner in pairs:
        (face, i), (other, j) = divmod(index, 3), divmod(partner, 3)
        edge = (int(faces[face, i]), int(faces[face, (i + 1) % 3]))
        if edge in seen:
            middle[index] = middle[partner] = len(vertices) + len(added)
            inwards = vertices[[faces[face, (i + 2) % 3], faces[other, (j + 2) % 3]]].mean(0)
            added.append(0.99 * vertices[list(edge)].mean(0) + 0.01 * inwards)
        seen.add(edge)
    if not added:
        return vertices, faces
    touched = sorted({index // 3 for index in middle})
    parts = []
    for face in touched:
        outline = [v for i in range(3) for v in (int(faces[face, i]), middle.get(3 * face + i)) if v is not None]
        start = next(k for k, vertex in enumerate(outline) if vertex >= len(vertices))
        outline = outline[start:] + outline[:start]  # a fan from a middle has no flat triangle
        parts += [(outline[0], outline[k], outline[k + 1]) for k in range(1, len(outline) - 1)]
    faces = np.vstack([np.delete(faces, touched, axis=0), np.array(parts, np.int32)])
    return np.vstack([vertices, np.array(added, np.float32)]), faces


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
