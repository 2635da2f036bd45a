"""The build step of COMMIT: from a transaction's effects to a record that is ready to be sent.

Pure: encodes and seals, without a connection and without SQL. The result depends only on the
arguments, the id that `draw_id` returns and the sealer's randomness. Values of many rows may be
read meanwhile, by a function among the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from uuid import UUID

from oplog.capture.bulk_pages import BulkPages
from oplog.capture.draft import Draft
from oplog.capture.grouping import order_aggregates
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.capture.request import Claim, refuse_repeat
from oplog.capture.search_tokens import make_tags
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Packing, Sealer, name_part
from oplog.entry import Ticket, check_metadata_count
from oplog.errors import UnloggedWriteError
from oplog.ordered_id import draw_ordered_id
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.paged_parts import cut_pages
from oplog.payload.parts import CutPart, check_names, cut_parts
from oplog.schema.guard import FORMAT_MARK
from oplog.schema.mark_names import REQUEST_PREFIX
from oplog.store.rows import CREATED, NOTHING_KNOWN, KnownTables, NewRecord, Part


class RecordBuilder:
    """Builds the records of one log; holds what is the same for every transaction."""

    def __init__(
        self,
        sealer: Sealer,
        codec: PayloadCodec,
        *,
        draw_id: Callable[[], UUID] = draw_ordered_id,
        keyring: Keyring | None = None,
    ) -> None:
        """`keyring` makes the tokens of searchable columns."""
        self._sealer = sealer
        self._codec = codec
        self._draw_id = draw_id
        self._keyring = keyring

    def build(self, gathered: GatheredWork) -> Draft | None:
        """The record of a transaction; its effects get their places in it.

        A draft without a record if the transaction changed nothing in the end and guards
        counted something, which they have to be told. None if not even that is to be sent.
        Raises `IdempotencyConflictError` for a transaction that writes under a key that was
        used before, `InvalidMetadataError` for too much metadata, and `EntryTooLargeError` for
        a row or a transaction over its limit.
        """
        claim, tally = gathered.work.claim, gathered.tally
        has_effects = bool(gathered.effects or gathered.bulk)
        if claim is not None and claim.receipts and (has_effects or tally is not None):
            raise refuse_repeat(claim)
        record: NewRecord | None
        if has_effects:
            record = self._build_record(gathered)
        elif claim is not None and not claim.receipts:
            # The idempotency key is used up by a transaction that changed nothing, too.
            record = self._build_mark(gathered.work, claim)
        elif tally is None:
            return None
        else:
            record = None
        return Draft(record, claim=claim, tally=tally, named=gathered.named)

    def _build_record(self, gathered: GatheredWork) -> NewRecord:
        log = gathered.work.log
        record_id = self._draw_id()
        if gathered.bulk:
            aggregates, expected, cuts = self._cut_bulk(gathered)
        else:
            aggregates = order_aggregates(gathered.effects)
            check_names(aggregates)
            effects = place_effects(gathered.effects, aggregates)
            cuts = cut_parts(self._codec, effects, secret=log.secret_types)
            created = [name in gathered.created for name in aggregates]
            expected = expect_versions(gathered.work.tickets, aggregates, created=created)
        seal = self._sealer.seal
        parts = [
            Part(
                cut.first,
                seal(
                    cut.payload,
                    name_part(log.log_id, record_id, n),
                    key_id=log.key_id,
                    packing=Packing.PADDED if cut.hides else Packing.SMALLEST,
                ),
            )
            for n, cut in enumerate(cuts)
        ]
        return _finish(
            gathered.work,
            record_id,
            aggregates=aggregates,
            expected=expected,
            parts=parts,
            format=self._sealer.format,
            key_id=log.key_id,
            known=gathered.known,
            tags=[] if self._keyring is None else make_tags(self._keyring, gathered),
        )

    def _cut_bulk(
        self, gathered: GatheredWork
    ) -> tuple[list[str], list[int | None], list[CutPart]]:
        """Aggregates, what is expected of each, and payloads; reads the rows meanwhile."""
        if gathered.read_bulk is None:
            raise UnloggedWriteError(
                "rows were touched and there is nothing to read them with",
                hint="report this with the statement that was executed",
            )
        pages = BulkPages(gathered.effects, gathered.bulk, read=gathered.read_bulk)
        # Before any row is read.
        check_names(pages.aggregates)
        created = pages.list_created(gathered.created)
        expected = expect_versions(gathered.work.tickets, pages.aggregates, created=created)
        secret = gathered.work.log.secret_types
        return pages.aggregates, expected, cut_pages(self._codec, pages, secret=secret)

    def _build_mark(self, work: RecordedWork, claim: Claim) -> NewRecord:
        """A record without a payload, for a key whose work changed no tracked row."""
        digest = sha256(claim.key.encode()).hexdigest()[:32]
        return _finish(
            work,
            self._draw_id(),
            aggregates=[f"{REQUEST_PREFIX}{digest}"],
            expected=[None],
            parts=[Part(0, b"")],
            format=FORMAT_MARK,
            key_id="",
        )


def place_effects(
    effects: Mapping[str, Sequence[Effect]], aggregates: Sequence[str]
) -> list[Effect]:
    """All effects, by aggregate in this order; each gets the number of its aggregate."""
    placed: list[Effect] = []
    for place, aggregate in enumerate(aggregates):
        for effect in effects[aggregate]:
            effect.place = place
            placed.append(effect)
    return placed


def expect_versions(
    tickets: Mapping[str, Ticket], aggregates: Sequence[str], *, created: Iterable[bool]
) -> list[int | None]:
    """What the transaction knows or believes of each aggregate, as `NewRecord.expected`."""
    expected: list[int | None] = [CREATED if is_created else None for is_created in created]
    if tickets:
        for number, name in enumerate(aggregates):
            ticket = tickets.get(name)
            if ticket is not None:
                expected[number] = ticket.version
    return expected


def _finish(
    work: RecordedWork,
    record_id: UUID,
    *,
    aggregates: Sequence[str],
    expected: Sequence[int | None],
    parts: Sequence[Part],
    format: int,
    key_id: str,
    known: KnownTables = NOTHING_KNOWN,
    tags: Sequence[tuple[str, str]] = (),
) -> NewRecord:
    """The record of these parts; `InvalidMetadataError` for too much metadata."""
    metadata = [*work.metadata, *tags] if tags else work.metadata
    check_metadata_count(len(metadata))
    return NewRecord(
        record_id=record_id,
        aggregates=aggregates,
        expected=expected,
        parts=parts,
        format=format,
        key_id=key_id,
        metadata=metadata,
        known=known,
        idempotency_key=None if work.claim is None else work.claim.key,
    )
