"""Cuts a mesh open for a texture; runs as a child process, because xatlas can take an hour and hears no signal.

Reads an .npz (vertices, faces, normals, size in texels) on standard input and writes one (origin, faces, uv) to
standard output.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import xatlas


def unwrap_npz(given: bytes) -> bytes:
    """Cuts the mesh of an .npz open and returns its charts as another.

    Given: ``vertices`` (n 3), ``faces`` (m 3), ``normals`` (n 3) and ``size`` (texels).  Returned: ``origin``, the
    vertex that each new one was cut from, ``faces`` over the new ones and ``uv`` in [0, 1].
    """
    mesh = np.load(io.BytesIO(given))
    options = xatlas.PackOptions()
    options.resolution = int(mesh["size"])
    options.padding = 2  # texels between charts, or viewers blend one into the next
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh["vertices"], mesh["faces"], mesh["normals"])
    atlas.generate(pack_options=options)
    origin, faces, uv = atlas[0]
    result = io.BytesIO()
    np.savez(result, origin=origin, faces=faces, uv=uv)
    return result.getvalue()


if __name__ == "__main__":
    sys.stdout.buffer.write(unwrap_npz(sys.stdin.buffer.read()))
