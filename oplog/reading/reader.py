"""Opens stored entries: checks their hashes, unseals and decodes them.

The one place where sealed bytes become effects, whichever source they come from. An entry whose
bytes do not match its hash is refused before it is unsealed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from oplog.crypto.hashing import hash_body, hash_entry, hash_metadata
from oplog.crypto.seal import SealContext, Sealer
from oplog.entry import LoggedEntry
from oplog.errors import ChainBrokenError, OplogError
from oplog.payload.codec import Effect, FindKeys, PayloadCodec, effect_to_operation
from oplog.payload.upcast import Upcaster
from oplog.reading.shape_table import ShapeTable
from oplog.schema.guard import FORMAT_MARK
from oplog.store import EntryFilter, LogSource, StoredEntry
from oplog.store.whole_transactions import TransactionGroups


@dataclass(slots=True)
class OpenedEntry:
    """An entry whose bytes were checked and opened."""

    stored: StoredEntry
    effects: list[Effect]


class EntryReader:
    """Opens the entries of one log; made by `LogOpener`."""

    def __init__(
        self,
        source: LogSource,
        *,
        sealer: Sealer,
        codec: PayloadCodec,
        types: ShapeTable,
        log_id: UUID,
        key_checks: Mapping[str, bytes],
        upcaster: Upcaster | None = None,
    ) -> None:
        self.source = source
        self.types = types
        self._sealer = sealer
        self._codec = codec
        self._log_id = log_id
        self._key_checks = key_checks
        self._upcaster = upcaster

    def open(self, stored: StoredEntry, *, find_keys: FindKeys | None = None) -> OpenedEntry:
        """Check, unseal and decode one entry; any error names its position.

        With `find_keys`, adopted rows under other keys may be left out.
        """
        check_hashes(stored)
        if stored.format == FORMAT_MARK:
            # Written by the database, which holds no key: it can say that, but never rows.
            return OpenedEntry(stored, [])
        context = SealContext(self._log_id, stored.aggregate, stored.entry_id)
        try:
            payload = self._sealer.open(
                stored.data,
                context,
                format=stored.format,
                key_id=stored.key_id,
                check_value=self._key_checks.get(stored.key_id),
            )
            effects = self._codec.decode(payload, self.types, find_keys=find_keys)
            if self._upcaster is not None:
                effects = [self._upcaster.convert(effect) for effect in effects]
            return OpenedEntry(stored, effects)
        except OplogError as error:
            error.add_note(f"at position {stored.position}, {describe(stored)}")
            raise

    def iterate_transactions(
        self, snapshot: str, *, after: int = 0, through: int | None = None
    ) -> Iterator[list[OpenedEntry]]:
        """Whole transactions in causal order, from one snapshot of the log.

        `through` takes every transaction that began to write at or before that position,
        whole: half a transaction is a state that never was. `after` is a position.
        """
        groups = TransactionGroups[OpenedEntry]()
        for page in self.source.iterate(EntryFilter(after=after), snapshot=snapshot):
            past = through is not None and page[0].position > through
            if past and self.source.ordered and not groups:
                return
            for stored in page:
                if through is not None and stored.transaction_position > through:
                    continue
                whole = groups.add(stored, self.open(stored))
                if whole is not None:
                    yield whole
        groups.require_complete(
            hint="rows of oplog_entry are missing; compare with a backup or the archive"
        )

    def read(self, filter: EntryFilter, *, snapshot: str) -> Iterator[LoggedEntry]:
        """Entries for people, in causal order, from one snapshot."""
        for page in self.source.iterate(filter, snapshot=snapshot):
            yield from self.present(page)

    def present(self, page: Iterable[StoredEntry]) -> Iterator[LoggedEntry]:
        """Opened entries with Python values and their metadata, which is checked as well."""
        entries = list(page)
        for stored, pairs in zip(entries, self.read_metadata(entries), strict=True):
            opened = self.open(stored)
            yield LoggedEntry(
                position=stored.position,
                sequence=self.source.find_sequence(stored.position),
                aggregate=stored.aggregate,
                version=stored.version,
                operations=tuple(effect_to_operation(e) for e in opened.effects),
                metadata=pairs,
                transaction_id=stored.transaction_id,
                transaction_position=stored.transaction_position,
                entry_id=stored.entry_id,
                entry_hash=stored.entry_hash,
                recorded_at=stored.recorded_at,
            )

    def read_metadata(self, entries: Sequence[StoredEntry]) -> Iterator[dict[str, list[str]]]:
        """The metadata of each entry's transaction; `ChainBrokenError` if it was altered."""
        metadata = self.source.read_metadata(e.transaction_position for e in entries)
        for stored in entries:
            pairs = metadata.get(stored.transaction_position, [])
            if hash_metadata(pairs) != stored.metadata_hash:
                raise ChainBrokenError(
                    f"the metadata of position {stored.position} ({describe(stored)}) is not "
                    "what was written",
                    hint="rows of oplog_metadata were altered or are missing; compare with a "
                    "backup or the archive",
                )
            yield _group_pairs(pairs)


def check_hashes(stored: StoredEntry) -> None:
    """Raise `ChainBrokenError` unless the entry's bytes and header match its hash."""
    body_hash = hash_body(
        format=stored.format,
        entry_id=stored.entry_id,
        aggregate=stored.aggregate,
        key_id=stored.key_id,
        metadata_hash=stored.metadata_hash,
        transaction_size=stored.transaction_size,
        idempotency_key=stored.idempotency_key,
        data=stored.data,
    )
    found = hash_entry(
        prev_hash=stored.prev_hash,
        version=stored.version,
        recorded_at=stored.recorded_at,
        body_hash=body_hash,
    )
    if found != stored.entry_hash:
        raise ChainBrokenError(
            f"position {stored.position} ({describe(stored)}) does not match its hash",
            hint="the row in oplog_entry was altered; compare with a backup or the archive",
        )


def describe(stored: StoredEntry) -> str:
    """The entry as an operator would look it up."""
    return f"aggregate {stored.aggregate!r} version {stored.version}"


def _group_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for key, value in pairs:
        grouped.setdefault(key, []).append(value)
    return grouped
