"""`SEQUENCE:HASH`: what an archive is expected to hold at least, kept somewhere else.

A signature does not say that there is nothing newer: who can write to the bucket can put a whole
older state of it there. Against that helps only what the reader knows already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.history import read_chain_at
from oplog.errors import ConfigurationError, OlderArchiveError

_FORM = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Expectation:
    """A sequence, and the chain over all records up to there."""

    sequence: int
    chain: bytes

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read `SEQUENCE:HASH`; `ConfigurationError` for anything else."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ConfigurationError(
                f"{text!r:.120} is not SEQUENCE:HASH",
                hint="oplog sync prints it, as its last line",
            )
        return cls(int(match[1]), bytes.fromhex(match[2]))

    @classmethod
    def of(cls, head: Head) -> Expectation:
        """What a head holds."""
        return cls(head.sequence, head.chain)

    def __str__(self) -> str:
        return f"{self.sequence}:{self.chain.hex()}"

    def require(self, archive: Archive, head: Head | None) -> None:
        """Raise `OlderArchiveError` unless the archive holds all of it."""
        if head is None or head.sequence < self.sequence:
            held = "nothing" if head is None else f"records up to sequence {head.sequence}"
            raise OlderArchiveError(
                f"{archive.url} is expected to hold sequence {self.sequence} at least, and holds "
                f"{held}",
                hint="an older state of the bucket was put in its place, or it is another one: "
                "bring the newer objects back (from the bucket's versions, or oplog resync from "
                "the database); nothing was changed",
            )
        if self.sequence < head.first_sequence - 1:
            raise OlderArchiveError(
                f"{archive.url} no longer holds sequence {self.sequence}: it begins at "
                f"{head.first_sequence}, so what it was expected to hold cannot be compared",
                hint="expect a later one, which oplog sync printed since",
            )
        if read_chain_at(archive, head, self.sequence) != self.chain:
            raise OlderArchiveError(
                f"{archive.url} has other records up to sequence {self.sequence} than expected"
                f"{self._describe_branch(head)}",
                hint="it is the archive of another log, or another history of this one: find out "
                "which of them the database has (oplog check with the database), or expect what "
                "oplog sync printed since; nothing was changed",
            )

    def _describe_branch(self, head: Head) -> str:
        for branch in head.branches:
            if branch.sequence < self.sequence <= branch.last:
                return f"; generation {branch.generation} reached it, and was left by a fork"
        return ""
