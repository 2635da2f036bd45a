"""The build step of COMMIT: from a transaction's effects to entries that are ready to be sent.

Pure: encodes, seals and hashes, without a connection and without SQL. The result depends only
on the arguments, the ids that `draw_id` returns and the sealer's randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from uuid import UUID

from oplog.capture.draft import Draft
from oplog.capture.grouping import order_aggregates
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.capture.request import Claim, refuse_repeat
from oplog.crypto.hashing import hash_body, hash_metadata
from oplog.crypto.seal import SealContext, Sealer
from oplog.entry import check_metadata_count
from oplog.ordered_id import draw_ordered_id
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.schema.guard import FORMAT_MARK
from oplog.store.rows import NewEntry

_NO_METADATA = hash_metadata([])
REQUEST_AGGREGATE = "oplog/request"
"""Names the aggregate of a keyed transaction that changed no tracked row, with a digest."""


class EntryBuilder:
    """Builds the entries of one log; holds what is the same for every transaction."""

    def __init__(
        self, sealer: Sealer, codec: PayloadCodec, *, draw_id: Callable[[], UUID] = draw_ordered_id
    ) -> None:
        self._sealer = sealer
        self._codec = codec
        self._draw_id = draw_id

    def build(self, gathered: GatheredWork) -> Draft | None:
        """The entries of a transaction, sorted by aggregate.

        A draft without entries if the transaction changed nothing in the end and guards
        counted something, which they have to be told. None if not even that is to be sent.
        Raises `IdempotencyConflictError` for a transaction that writes under a key that was
        used before.
        """
        claim, tally = gathered.work.claim, gathered.tally
        if claim is not None and claim.receipts and (gathered.effects or tally is not None):
            raise refuse_repeat(claim)
        if gathered.effects:
            return self._build_entries(gathered)
        if claim is not None and not claim.receipts:
            # The idempotency key is used up by a transaction that changed nothing, too.
            return self._build_mark(gathered, claim)
        return None if tally is None else Draft((), tally=tally, named=gathered.named)

    def _build_entries(self, gathered: GatheredWork) -> Draft:
        work, claim = gathered.work, gathered.work.claim
        metadata_hash = _hash_metadata(work)
        entries: list[NewEntry] = []
        for aggregate in order_aggregates(gathered.effects):
            entry = self._seal(
                work,
                aggregate,
                effects=gathered.effects[aggregate],
                metadata_hash=metadata_hash,
                size=len(gathered.effects),
                # The key on the first entry stands for the whole transaction.
                idempotency_key=None if claim is None or entries else claim.key,
            )
            entries.append(entry)
        return Draft(
            entries,
            format=self._sealer.format,
            key_id=work.log.key_id,
            metadata=work.metadata,
            metadata_hash=metadata_hash,
            claim=claim,
            tally=gathered.tally,
            named=gathered.named,
        )

    def _build_mark(self, gathered: GatheredWork, claim: Claim) -> Draft:
        """An entry without a payload, for a key whose work changed no tracked row."""
        metadata_hash = _hash_metadata(gathered.work)
        aggregate = f"{REQUEST_AGGREGATE}/{sha256(claim.key.encode()).hexdigest()[:32]}"
        entry_id = self._draw_id()
        body_hash = hash_body(
            format=FORMAT_MARK,
            entry_id=entry_id,
            aggregate=aggregate,
            key_id="",
            metadata_hash=metadata_hash,
            transaction_size=1,
            idempotency_key=claim.key,
            data=b"",
        )
        entry = NewEntry(
            aggregate=aggregate, expected=None, entry_id=entry_id, body_hash=body_hash, data=b""
        )
        return Draft(
            [entry],
            format=FORMAT_MARK,
            metadata=gathered.work.metadata,
            metadata_hash=metadata_hash,
            claim=claim,
            tally=gathered.tally,
            named=gathered.named,
        )

    def _seal(
        self,
        work: RecordedWork,
        aggregate: str,
        *,
        effects: Sequence[Effect],
        metadata_hash: bytes,
        size: int,
        idempotency_key: str | None,
    ) -> NewEntry:
        log, ticket = work.log, work.tickets.get(aggregate)
        payload = self._codec.encode(effects, aggregate=aggregate)
        entry_id = self._draw_id()
        context = SealContext(log.log_id, aggregate, entry_id)
        data = self._sealer.seal(payload, context, key_id=log.key_id)
        body_hash = hash_body(
            format=self._sealer.format,
            entry_id=entry_id,
            aggregate=aggregate,
            key_id=log.key_id,
            metadata_hash=metadata_hash,
            transaction_size=size,
            idempotency_key=idempotency_key,
            data=data,
        )
        return NewEntry(
            aggregate=aggregate,
            expected=None if ticket is None else ticket.version,
            entry_id=entry_id,
            body_hash=body_hash,
            data=data,
        )


def _hash_metadata(work: RecordedWork) -> bytes:
    """The hash of the transaction's metadata; `InvalidMetadataError` if they are too many."""
    check_metadata_count(len(work.metadata))
    return hash_metadata(work.metadata) if work.metadata else _NO_METADATA
