"""Names of objects: made and read by one allow-list.

A path in a document is data. Whatever is not exactly of these forms is refused before it reaches
a store, so that no document can point anywhere else. The names of content carry the SHA-256 of
the stored bytes.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple

from oplog.errors import ManifestInvalidError

HEAD, LOG, INDEX, SNAPSHOT, BLOB = "HEAD", "LOG", "INDEX", "SNAPSHOT", "BLOB"
PIN, LATEST = "PIN", "LATEST"
COLLECTED = "COLLECTED"
"""There once head 1 is being deleted: from then on nothing can be the first head."""

MINT_BITS = 32
"""A minted number is an epoch, moved up by so many bits, and a counter."""
MAX_NUMBER = (1 << 63) - 1
MAX_HINT_BYTES = 64
"""A hint has fewer; whatever has more was not written by a publisher."""

_CONTENT = re.compile(r"(LOG|INDEX|SNAPSHOT|BLOB)/([0-9a-f]{16})-([0-9a-f]{64})")
_HEAD = re.compile(r"HEAD/([0-9a-f]{16})")
_HINT = re.compile(rb"[0-9a-f]{16}\n([0-9a-f]{16})\n")
_PIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ContentPath(NamedTuple):
    """What the name of content says: its kind, number (sequence or mint) and SHA-256."""

    kind: str
    number: int
    digest: bytes


def name_content(kind: str, number: int, *, data: bytes) -> str:
    """The name for `data`; `number` is its first sequence, or its mint for a blob."""
    return f"{kind}/{number:016x}-{sha256(data).hexdigest()}"


def parse_content(path: str, *kinds: str, what: str = "a document") -> ContentPath:
    """What `path`, which stands in `what`, says.

    Raises `ManifestInvalidError` unless it is content of one of `kinds`, or of any.
    """
    found = _CONTENT.fullmatch(path)
    if found is None or (kinds and found[1] not in kinds):
        raise ManifestInvalidError(
            f"{path[:120]!r} in {what} cannot name {' or '.join(kinds) or 'content'} of an archive",
            hint="the document that holds it was altered: run oplog check",
        )
    return ContentPath(found[1], int(found[2], 16), bytes.fromhex(found[3]))


def name_head(number: int) -> str:
    """The name of a head."""
    return f"{HEAD}/{number:016x}"


def parse_head(path: str) -> int | None:
    """The number of a head; None if `path` names something else."""
    found = _HEAD.fullmatch(path)
    number = 0 if found is None else int(found[1], 16)
    # What has no number after it is no head either: the next one's name would have another form.
    return number if 0 < number < MAX_NUMBER else None


def write_hint(snapshot: int, head: int) -> bytes:
    """What `LATEST` says: the newest snapshot's sequence, and the number of a head."""
    return f"{snapshot:016x}\n{head:016x}\n".encode()


def parse_hint(data: bytes | None) -> int | None:
    """The number of the head that a hint names; None for what no publisher wrote."""
    found = _HINT.fullmatch(data or b"")
    return None if found is None else parse_head(f"{HEAD}/{found[1].decode()}")


def name_pin(name: str) -> str:
    """The name of a pin; `ManifestInvalidError` for a name that is no plain word."""
    if not _PIN_NAME.fullmatch(name):
        raise ManifestInvalidError(
            f"{name[:120]!r} cannot name a pin",
            hint="use up to 100 letters, digits, dots, dashes and underscores",
        )
    return f"{PIN}/{name}"


def make_mint(epoch: int, counter: int) -> int:
    """A number that no other writer gives to its blobs; `ValueError` if there are no more."""
    if not 0 <= counter < 1 << MINT_BITS or not 0 <= epoch < 1 << (63 - MINT_BITS):
        # One more would be the first of the next epoch's, or have a name of another form.
        raise ValueError(f"epoch {epoch} cannot mint number {counter}")
    return epoch << MINT_BITS | counter
