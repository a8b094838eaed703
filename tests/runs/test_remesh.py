"""A mesh that is made again from a run's checkpoint, in the run's folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psd.geometry.cameras import turntable_cameras
from psd.geometry.mesh_picture import rasterise_mesh
from psd.runs.remesh import rewrite_mesh
from tests.config.test_former import FORMER, change_preset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(FORMER, tmp_path / FORMER.name))
    (folder / "public/exports").mkdir(exist_ok=True)  # it came without its mesh
    return folder


def read_first_frame(folder: Path) -> np.ndarray:
    with Image.open(folder / "public/exports/turntable.webp") as film:
        return np.asarray(film.convert("RGB")).astype(int)


def test_a_mesh_made_again_has_its_own_film(folder: Path) -> None:
    """The film shows the mesh where the mesh is: not the scene, nor the mesh before."""
    change_preset(folder, lambda values: values.update(preview_size=64))
    sizes = []
    for threshold in (2.0, 20.0):
        mesh = rewrite_mesh(folder, threshold=threshold)
        seen = rasterise_mesh(mesh, turntable_cameras(1, elevation_deg=15.0), 64)
        mask, shown = seen.mask[0, 0], (255 - read_first_frame(folder)).max(-1) > 30
        coloured = (1 - seen.rgb[0, 0]).max(-1) > 0.3
        assert coloured.sum() > 20 and shown[coloured].mean() > 0.95 and shown[~mask].mean() < 0.05
        assert (folder / "public/exports/turntable.mp4").is_file()
        sizes.append(int(mask.sum()))
    assert sizes[0] > sizes[1], "a lower threshold is fuller"
