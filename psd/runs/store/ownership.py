"""Who owns a run: a secret that only its browser or command line holds.

The folder holds the SHA-256 of the secret in the file ``owner``.  A run without that file, made on the command line,
may be steered by everybody who can open the page; one whose file cannot be read, by nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from psd.runs.store.files import StoreError, read_plain_file, replace_file

FREE = ""  # the digest of a run without an owner
UNKNOWN = "unknown"  # the digest where the file is there and cannot be read
DIGEST = re.compile(rb"[0-9a-f]{64}")


class NotYoursError(StoreError):
    """The run belongs to somebody else."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the run {run_id} belongs to another browser", "watch it, or remix it: the copy is yours to steer"
        )


def new_owner() -> str:
    return secrets.token_urlsafe(24)


def claim_run(folder: Path, owner: str) -> None:
    """Write down whose run this is; an empty owner leaves it to everybody."""
    if owner:
        replace_file(folder / "owner", hash_owner(owner).encode(), durable=True)


def read_owner(folder: Path) -> str:
    """The digest of a run's owner, `FREE` for a run of everybody, `UNKNOWN` for a file that does not say."""
    path = folder / "owner"
    if not os.path.lexists(path):
        return FREE
    try:
        digest = read_plain_file(path)
    except StoreError:
        return UNKNOWN
    return digest.decode() if DIGEST.fullmatch(digest) else UNKNOWN


def is_owner(folder: Path, owner: str) -> bool:
    """Whether the holder of ``owner`` started this run."""
    return bool(owner) and hmac.compare_digest(read_owner(folder), hash_owner(owner))


def require_owner(folder: Path, owner: str) -> None:
    """Raises NotYoursError unless the run is the holder's, or has no owner."""
    if read_owner(folder) != FREE and not is_owner(folder, owner):
        raise NotYoursError(folder.name)


def hash_owner(owner: str) -> str:
    """What a folder keeps of a secret; any text will do, lone surrogates too."""
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest() if owner else FREE
