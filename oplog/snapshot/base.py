"""Interface of a snapshot for a restore: the tables' rows as of one sequence of the log.

Rows come as chunks of COPY text, so that no table is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from oplog.payload.shape import Shape


class HeadRow(NamedTuple):
    """An aggregate's newest record at the snapshot's sequence: its version of it, and its hash."""

    aggregate: str
    version: int
    head_hash: bytes


class SnapshotLayer(Protocol):
    """Changes of one table since the layer below: keys to delete, then whole rows to insert."""

    def gone(self) -> Iterator[bytes]:
        """COPY text of the keys of all rows to delete, also of those that `rows` replaces."""
        ...

    def rows(self) -> Iterator[bytes]:
        """COPY text of the rows to insert."""
        ...


class SnapshotTable(Protocol):
    """One table: base rows, and layers from the oldest to the newest."""

    @property
    def name(self) -> tuple[str, str]:
        """Schema and table."""
        ...

    @property
    def shapes(self) -> Sequence[Shape]:
        """The type revisions of its rows; empty if they are not known."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The columns of rows, in the order of the COPY text."""
        ...

    @property
    def key_names(self) -> Sequence[str]:
        """The columns of deleted keys, in the order of the COPY text."""
        ...

    def rows(self) -> Iterator[bytes]:
        """COPY text of the base rows: whole lines, UTF-8, under the text settings."""
        ...

    def layers(self) -> Iterable[SnapshotLayer]:
        """The layers, from the oldest to the newest."""
        ...


class SnapshotReader(Protocol):
    """All logged tables as the records up to `sequence` made them."""

    @property
    def sequence(self) -> int:
        """The sequence of the last record whose effects are in the rows."""
        ...

    @property
    def position(self) -> int:
        """The highest position of the records up to there."""
        ...

    @property
    def sequences(self) -> Mapping[str, int]:
        """Last values of sequences, by qualified and quoted name."""
        ...

    def tables(self) -> Iterable[SnapshotTable]:
        """One item for each table that has rows; others may be left out."""
        ...

    def heads(self) -> Iterable[HeadRow]:
        """The newest record of each aggregate that was written, also if it is kept no more."""
        ...
