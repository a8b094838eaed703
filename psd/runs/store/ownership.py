"""Who owns a run: a secret that only its browser or command line holds."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from psd.runs.store.files import StoreError, explain_os_errors, replace_file


class NotYoursError(StoreError):
    """The run belongs to somebody else."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the run {run_id} belongs to another browser", "watch it, or duplicate it: the copy is yours to steer"
        )


def new_owner() -> str:
    return secrets.token_urlsafe(24)


def claim_run(folder: Path, owner: str) -> None:
    """Write down whose run this is; an empty owner leaves it to everybody."""
    if owner:
        replace_file(folder / "owner", _hash_owner(owner).encode())


def is_owner(folder: Path, owner: str) -> bool:
    """Whether the holder of ``owner`` started this run."""
    path = folder / "owner"
    if not owner or not path.is_file():
        return False
    with explain_os_errors(path):
        return hmac.compare_digest(path.read_bytes(), _hash_owner(owner).encode())


def require_owner(folder: Path, owner: str) -> None:
    """Raises NotYoursError unless the run is the holder's, or nobody's."""
    if (folder / "owner").is_file() and not is_owner(folder, owner):
        raise NotYoursError(folder.name)


def _hash_owner(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()
