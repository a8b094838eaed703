"""Cuts a mesh open for a texture; runs as a child process, because xatlas can take an hour and hears no signal.

Reads an .npz (vertices, faces, normals) on standard input and writes one (origin, faces, uv) to standard output.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import xatlas


def unwrap(given: bytes) -> bytes:
    mesh = np.load(io.BytesIO(given))
    origin, faces, uv = xatlas.parametrize(mesh["vertices"], mesh["faces"], mesh["normals"])
    result = io.BytesIO()
    np.savez(result, origin=origin, faces=faces, uv=uv)
    return result.getvalue()


if __name__ == "__main__":
    sys.stdout.buffer.write(unwrap(sys.stdin.buffer.read()))
