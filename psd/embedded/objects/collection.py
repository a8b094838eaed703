"""The folder of 611 low-poly objects, checked against the committed table of names and digests.

The meshes are no part of the repository: a folder is named by ``--objects DIR`` or ``PSD_OBJECTS``.  Both have
``meshes/NAME.npz`` as ``docs/embedded.md`` describes.  Only training, measuring and ground truth need it.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd.config.errors import MissingError
from psd.embedded.captions.kinds import WORLD

VARIABLE = "PSD_OBJECTS"


@dataclass(frozen=True, eq=False)
class Model:
    """One object: a triangle mesh whose faces have the colours of a small palette; world frame, front towards +x."""

    vertices: Float[Tensor, "n 3"]  # centred on the bounding box, largest radius 1
    faces: Int[Tensor, "m 3"]  # the winding means nothing: some objects are open
    face_palette: Int[Tensor, " m"]  # row of ``palette``
    palette: Float[Tensor, "p 3"]  # sRGB in [0, 1]
    paint: Bool[Tensor, " p"]  # the rows that a colour word paints


@functools.cache
def read_table() -> dict[str, list[tuple[str, str]]]:
    """For each noun its files with their SHA-256, as committed."""
    table: dict[str, list[tuple[str, str]]] = {}
    with (WORLD / "objects.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            table.setdefault(row["noun"], []).append((row["file"], row["sha256"]))
    return table


def find_collection(folder: str | Path | None = None) -> Path:
    """The folder of objects: ``folder``, else ``PSD_OBJECTS``.  MissingError, with the cure, where there is none."""
    named = folder or os.environ.get(VARIABLE)
    if not named:
        raise MissingError(
            f"the collection of objects is needed and no folder is named: give --objects DIR or set {VARIABLE}; "
            "docs/embedded.md says what the folder holds and how it is made"
        )
    if not (Path(named) / "meshes").is_dir():
        raise MissingError(
            f"{named} has no folder `meshes`: --objects or {VARIABLE} must name the collection of objects "
            "(docs/embedded.md)"
        )
    return Path(named)


def choose_collection(folder: str | Path) -> None:
    """Make ``folder`` the collection of this process and of those that it starts, as ``PSD_OBJECTS`` would."""
    os.environ[VARIABLE] = str(find_collection(folder).resolve())


def open_collection(folder: str | Path | None = None) -> Collection:
    """The collection in `find_collection`'s folder: one for each process, so that every mesh is read once."""
    return _open_folder(find_collection(folder).resolve())


@functools.cache
def _open_folder(folder: Path) -> Collection:
    return Collection(folder)


class Collection:
    """The objects of a folder, each read when first asked for; a file that is not the committed one is refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models: dict[str, Model] = {}

    def read_models(self, noun: str) -> list[Model]:
        """All objects of a kind.  MissingError where a file lacks or has another digest."""
        return [self._read_model(name, digest) for name, digest in read_table()[noun]]

    def _read_model(self, name: str, digest: str) -> Model:
        if name not in self._models:
            path = self.folder / "meshes" / name
            if not path.is_file():
                raise MissingError(f"the collection of objects lacks {path} (docs/embedded.md)")
            content = path.read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if found != digest:
                raise MissingError(
                    f"{path} has the SHA-256 {found[:12]}..., not {digest[:12]}...: it is not the object that the "
                    "embedded models were trained on; take the collection that docs/embedded.md describes"
                )
            self._models[name] = decode_model(content)
        return self._models[name]


def decode_model(content: bytes) -> Model:
    """A mesh file's bytes as tensors."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return Model(
            vertices=torch.from_numpy(file["vertices"]),
            faces=torch.from_numpy(file["faces"].astype(np.int64)),
            face_palette=torch.from_numpy(file["face_palette"].astype(np.int64)),
            palette=torch.from_numpy(file["palette"]).float() / 255,
            paint=torch.from_numpy(file["paint"]),
        )
