"""The films of a run: its mesh on one turn, and the object as it grew."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from psd.runs.store.files import StoreError, explain_os_errors
from psd.runs.store.media import LAPSE_FPS, FilmError, join_previews, write_films
from psd.runtime import memory

if TYPE_CHECKING:
    from psd.geometry.mesh import Mesh

FILMS = ("turntable", "timelapse")  # among the exports, as .webp and .mp4
FRAMES, FPS, SIZE = 36, 15, 512  # SIZE in px
ELEVATION_DEG = 15.0


def render_turntable(mesh: Mesh) -> UInt8[np.ndarray, "v h w 3"]:
    """`FRAMES` pictures on one turn around ``mesh``, lit as a viewer would, the first from the front."""
    from psd.geometry.cameras import turntable_cameras
    from psd.geometry.mesh_picture import rasterise_mesh

    cameras = turntable_cameras(FRAMES, elevation_deg=ELEVATION_DEG)
    pictures = [rasterise_mesh(mesh, cameras[:, [frame]], SIZE).rgb[0] for frame in range(FRAMES)]  # memory
    return (np.concatenate(pictures) * 255).round().astype(np.uint8)


def film_run(mesh: Mesh, folder: Path) -> str:
    """Films of ``mesh`` and of the run's previews among its exports; what went wrong, in words, or nothing."""
    new = folder / "exports.new"
    try:
        with explain_os_errors(new):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                write_films(render_turntable(mesh), new, fps=FPS)
                lapse = join_previews(sorted((folder / "public" / "previews").glob("[0-9]*[0-9].jpg")))
                if lapse is not None:
                    write_films(lapse, new, "timelapse", LAPSE_FPS)
            finally:
                for path in sorted(new.iterdir()):
                    os.replace(path, folder / "public" / "exports" / path.name)
                shutil.rmtree(new, ignore_errors=True)
    except (FilmError, StoreError) as error:  # the mesh is what the run was for
        return f"The mesh has no film: {error}"
    except (MemoryError, RuntimeError) as error:  # torch's own says so in words only
        if not memory.is_out_of_memory(error):
            raise
        return "The mesh has no film: out of memory."
    return ""
