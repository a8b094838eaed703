"""The films of a run: its mesh on one turn, and the object as it grew; and the strip of views of one that ships."""

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
STRIP = "public/exports/strip.webp"  # of a run that ships: views side by side, which turn under a pointer
STRIP_VIEWS, STRIP_SIZE = 16, 192  # px
STRIP_START_DEG = 35.0  # three quarters from the front


def render_turntable(mesh: Mesh) -> UInt8[np.ndarray, "v h w 3"]:
    """`FRAMES` pictures on one turn around ``mesh``, lit as a viewer would, the first from the front."""
    return _render_turn(mesh, FRAMES, SIZE, 0.0)


def render_strip(mesh: Mesh) -> UInt8[np.ndarray, "v h w 3"]:
    """`STRIP_VIEWS` pictures on one turn around ``mesh``, small and smooth, the first at three quarters."""
    return shrink_views(_render_turn(mesh, STRIP_VIEWS, 2 * STRIP_SIZE, STRIP_START_DEG), STRIP_SIZE)


def _render_turn(mesh: Mesh, views: int, size: int, start_deg: float) -> UInt8[np.ndarray, "v h w 3"]:
    """One picture at a time, in bytes at once: as numbers all of them would be the most that a run ever holds."""
    from psd.geometry.cameras import turntable_cameras
    from psd.geometry.mesh_picture import rasterise_mesh

    cameras = turntable_cameras(views, elevation_deg=ELEVATION_DEG, start_deg=start_deg)
    turn = np.empty((views, size, size, 3), np.uint8)
    for view, picture in enumerate(turn):
        picture[:] = (rasterise_mesh(mesh, cameras[:, [view]], size).rgb[0, 0] * 255).round()
    return turn


def shrink_views(views: UInt8[np.ndarray, "v h w 3"], size: int) -> UInt8[np.ndarray, "v s s 3"]:
    """The same pictures, smooth, at ``size`` px."""
    from PIL import Image

    small = [Image.fromarray(view).resize((size, size), Image.Resampling.LANCZOS) for view in views]
    return np.stack([np.asarray(view) for view in small])


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
