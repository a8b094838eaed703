"""Closed triangle surfaces: components, smoothing and normals by trimesh, decimation, repair of pinched edges.

Faces run counter-clockwise seen from outside; "closed" means that every edge joins exactly two faces.
Axes: n vertices, m faces.
"""

from __future__ import annotations

import numpy as np
import trimesh
from jaxtyping import Float, Float32, Int, Int32
from scipy import sparse
from trimesh.geometry import mean_vertex_normals
from trimesh.smoothing import filter_taubin

SMALLEST_SHARE = 0.04  # components below this share of the volume are floaters


class MeshError(ValueError):
    """No mesh can be made: the message holds the value, the bound and the cure."""


def face_volumes(vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"]) -> Float[np.ndarray, " m"]:
    """Signed volumes of the tetrahedra from the origin to each face; a closed outward surface sums to its volume."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return np.einsum("ni,ni->n", a, np.cross(b, c)) / 6


def label_components(faces: Int[np.ndarray, "m 3"], count: int) -> Int[np.ndarray, " n"]:
    """The connected component, from 0 on, of each of ``count`` vertices."""
    return trimesh.graph.connected_component_labels(trimesh.geometry.faces_to_edges(faces), node_count=count)


def drop_floaters(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"]
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """Keep the components of at least 4 % of the volume; unused vertices go too."""
    used, kept = find_solid_parts(vertices, faces)
    return vertices[used], kept


def find_solid_parts(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"]
) -> tuple[Int[np.ndarray, " k"], Int32[np.ndarray, "l 3"]]:
    """The vertices of the components of at least 4 % of the volume, and their faces, which count those vertices."""
    label = label_components(faces, len(vertices))[faces[:, 0]]
    volume = np.bincount(label, face_volumes(vertices, faces))
    kept = faces[(volume >= SMALLEST_SHARE * volume.sum())[label]]
    used, compact = np.unique(kept, return_inverse=True)
    return used, compact.reshape(-1, 3).astype(np.int32)


def smooth_surface(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"], *, rounds: int = 5
) -> Float32[np.ndarray, "n 3"]:
    """Taubin's low-pass filter (1995): a shrinking and a slightly larger inflating step a round keep the volume."""
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    filter_taubin(mesh, lamb=0.5, nu=0.53, iterations=2 * rounds)
    return mesh.vertices.astype(np.float32)


def decimate_surface(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "m 3"], limit: int
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "m 3"]]:
    """At most ``limit`` faces by quadric collapses; the surface stays closed.  Raises `MeshError` if it cannot."""
    import fast_simplification

    if len(faces) <= limit:
        return vertices, faces
    target, left = limit, 0
    while target >= 4:
        fewer, kept = fast_simplification.simplify(vertices, faces, target_count=target)[:2]
        fewer, kept = drop_floaters(*make_manifold(fewer.astype(np.float32), kept.astype(np.int32)))
        left = len(kept)
        if 0 < left <= limit:
            return fewer, kept
        target -= max(target // 50, 2 * (left - limit))  # what came apart needed more faces
    raise MeshError(f"{limit} faces are too few for this surface ({left} are left): allow more faces")


def make_manifold(
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
    torn = [pair for group in pinched for pair in pair_wedges(vertices, half, following, group)]
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
    return split_double_edges(place, faces, torn)


def pair_wedges(
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


def split_double_edges(
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
    weighted = trimesh.triangles.cross(vertices[faces].astype(np.float64))
    mean = np.asarray(mean_vertex_normals(len(vertices), faces, weighted))
    return np.where(mean.any(1, keepdims=True), mean, [0.0, 0.0, 1.0]).astype(np.float32)


def is_watertight(faces: Int[np.ndarray, "m 3"]) -> bool:
    """Whether every edge joins exactly two faces, once in each direction."""
    pairs = trimesh.graph.face_adjacency(faces)  # over the edges of exactly two faces; `is_watertight` allows four
    _, is_wound = trimesh.graph.is_watertight(trimesh.geometry.faces_to_edges(faces))
    return 2 * len(pairs) == 3 * len(faces) and bool(is_wound)
