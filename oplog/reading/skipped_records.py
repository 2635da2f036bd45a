"""The records that a reader passes over because the owner has quarantined them.

Marks are read when the first record is opened, from all of the log that the source has: a mark
stands after the record that it speaks of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import TypeAlias
from uuid import UUID

from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED
from oplog.errors import (
    DecodeError,
    KeyUnavailableError,
    OplogError,
    QuarantineWarning,
    ReplayError,
    SchemaDriftError,
    SealError,
    UnknownTypeError,
    WrongKeyError,
)
from oplog.store import StoredRecord
from oplog.store.quarantined import QuarantinedRecord, list_marked

_Identity: TypeAlias = tuple[int, UUID, bytes]
"""Position, id and hash of a record: a mark holds for no other record."""
_SHOWN = 3


class SkippedRecords:
    """What is quarantined in one log, and which of it a reader has met."""

    def __init__(self, read_marks: Callable[[], Iterable[StoredRecord]]) -> None:
        """`read_marks` gives the marks, their hashes checked; it is called once."""
        self._read_marks = read_marks
        self._known: dict[_Identity, QuarantinedRecord] | None = None
        self._met: dict[int, QuarantinedRecord] = {}

    @property
    def met(self) -> tuple[QuarantinedRecord, ...]:
        """The records that were passed over, by position."""
        return tuple([self._met[position] for position in sorted(self._met)])

    def list_known(self) -> tuple[QuarantinedRecord, ...]:
        """All that is quarantined, met or not, by position."""
        return tuple(sorted(self._load().values(), key=attrgetter("position")))

    def find(self, stored: StoredRecord) -> QuarantinedRecord | None:
        """What the owner says of this very record; None if nothing."""
        return self._load().get((stored.position, stored.record_id, stored.record_hash))

    def meet(self, stored: StoredRecord) -> QuarantinedRecord | None:
        """`find`, with a warning the first time that a quarantined record is met."""
        found = self.find(stored)
        if found is not None and stored.position not in self._met:
            self._met[stored.position] = found
            warnings.warn(
                QuarantineWarning(f"passed over {found.describe()}; its changes are not seen"),
                stacklevel=2,
            )
        return found

    @contextmanager
    def name_in_misfits(self) -> Iterator[None]:
        """Errors of a log that does not replay name what was passed over: it may be the reason."""
        try:
            yield
        except SchemaDriftError:
            raise
        except ReplayError as error:
            # Those that are loaded: the error may have ended the transaction that reads them.
            known = [] if self._known is None else self.list_known()
            if known:
                shown = "; ".join(one.describe() for one in known[:_SHOWN])
                more = "" if len(known) <= _SHOWN else f"; and {len(known) - _SHOWN} more"
                error.add_note(
                    f"what it lacks may be in a record that is passed over: {shown}{more}"
                )
                error.hint += (
                    "; to go on without the quarantined record, log the rows as they are now: "
                    "oplog adopt --again"
                )
            raise

    def _load(self) -> dict[_Identity, QuarantinedRecord]:
        if self._known is None:
            self._known = {}
            for one in list_marked(self._read_marks()):
                # The first mark of a record stands.
                self._known.setdefault((one.position, one.record_id, one.record_hash), one)
        return self._known


def is_unreadable(error: OplogError, stored: StoredRecord, *, known_keys: Collection[str]) -> bool:
    """Whether an error in opening a record says that nobody can, not that this reader cannot.

    A key that the log knows, and this reader has not, would open it; a format that this version
    does not know is of a newer one.
    """
    if stored.format not in (FORMAT_SEALED, FORMAT_PLAIN):
        return False
    if isinstance(error, (KeyUnavailableError, WrongKeyError)):
        # No writer seals with a key before the log knows it.
        return stored.key_id not in known_keys
    return isinstance(error, (DecodeError, SealError, UnknownTypeError))


def advise_quarantine(error: OplogError, stored: StoredRecord) -> None:
    """Say in the error how to go on without the record, if nothing else helps."""
    if isinstance(error, KeyUnavailableError):
        error.hint += (
            "; if nobody has that key, go on without the record: "
            f"oplog quarantine {stored.position} --lost-key --reason ..."
        )
    else:
        error.hint += (
            "; if it cannot be brought back, go on without it: "
            f"oplog quarantine {stored.position} --reason ..."
        )
