"""Two signed heads that exclude each other, kept where the bucket's writers cannot remove them.

The bucket shows one of the two by now. Who has both can prove that the key signed both, and see
which of them the database has published.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import click


def keep_evidence(heads: tuple[bytes, bytes]) -> str:
    """Write both heads into a directory of the user's, and say where; or why that failed."""
    names = [sha256(head).hexdigest() for head in heads]
    place = Path(click.get_app_dir("oplog"))
    place = place if place.is_absolute() else Path.home() / ".config/oplog"
    directory = place / "evidence"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, head in zip(names, heads, strict=True):
            (directory / f"{name}.head").write_bytes(head)
    except OSError as cause:
        return f"both heads could not be kept in {directory} ({cause.strerror}): copy them yourself"
    return f"both heads are kept: {', '.join(str(directory / f'{name}.head') for name in names)}"
