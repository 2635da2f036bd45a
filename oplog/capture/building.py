"""The build step of COMMIT: from a transaction's effects to a record that is ready to be sent.

Pure: encodes and seals, without a connection and without SQL. The result depends only
on the arguments, the id that `draw_id` returns and the sealer's randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from uuid import UUID

from oplog.capture.draft import Draft
from oplog.capture.grouping import order_aggregates
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.capture.request import Claim, refuse_repeat
from oplog.crypto.seal import Packing, Sealer, name_part
from oplog.entry import check_metadata_count
from oplog.ordered_id import draw_ordered_id
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.parts import CutPart, check_names, cut_parts
from oplog.schema.guard import FORMAT_MARK, REQUEST_PREFIX
from oplog.store.rows import CREATED, NewRecord, Part


class RecordBuilder:
    """Builds the records of one log; holds what is the same for every transaction."""

    def __init__(
        self, sealer: Sealer, codec: PayloadCodec, *, draw_id: Callable[[], UUID] = draw_ordered_id
    ) -> None:
        self._sealer = sealer
        self._codec = codec
        self._draw_id = draw_id

    def build(self, gathered: GatheredWork) -> Draft | None:
        """The record of a transaction; its effects get their places in it.

        A draft without a record if the transaction changed nothing in the end and guards
        counted something, which they have to be told. None if not even that is to be sent.
        Raises `IdempotencyConflictError` for a transaction that writes under a key that was
        used before, `InvalidMetadataError` for too much metadata, and `EntryTooLargeError` for
        a row or a transaction over its limit.
        """
        claim, tally = gathered.work.claim, gathered.tally
        if claim is not None and claim.receipts and (gathered.effects or tally is not None):
            raise refuse_repeat(claim)
        record: NewRecord | None
        if gathered.effects:
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
        aggregates = order_aggregates(gathered.effects)
        check_names(aggregates)
        effects = place_effects(gathered.effects, aggregates)
        cuts = cut_parts(self._codec, effects)
        parts = [
            Part(
                cut.first,
                self._sealer.seal(
                    cut.payload,
                    name_part(log.log_id, record_id, n),
                    key_id=log.key_id,
                    packing=packing,
                ),
            )
            for n, (cut, packing) in enumerate(
                zip(cuts, choose_packings(cuts, effects, secret=log.secret_types), strict=True)
            )
        ]
        return _finish(
            gathered.work,
            record_id,
            aggregates=aggregates,
            expected=expect_versions(gathered, aggregates),
            parts=parts,
            format=self._sealer.format,
            key_id=log.key_id,
        )

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


def choose_packings(
    cuts: Sequence[CutPart], effects: Sequence[Effect], *, secret: Collection[str]
) -> list[Packing]:
    """How each part is packed: its size must not tell of a row of the `secret` types in it."""
    if not secret:
        return [Packing.SMALLEST] * len(cuts)
    packings, start = [], 0
    for cut in cuts:
        chunk = effects[start : start + cut.effects]
        start += cut.effects
        hides = any(effect.shape.type_name in secret for effect in chunk)
        packings.append(Packing.PADDED if hides else Packing.SMALLEST)
    return packings


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


def expect_versions(gathered: GatheredWork, aggregates: Sequence[str]) -> list[int | None]:
    """What the transaction knows or believes of each aggregate, as `NewRecord.expected`."""
    tickets, created = gathered.work.tickets, gathered.created
    expected: list[int | None] = [CREATED if name in created else None for name in aggregates]
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
) -> NewRecord:
    """The record of these parts; `InvalidMetadataError` for too much metadata."""
    check_metadata_count(len(work.metadata))
    return NewRecord(
        record_id=record_id,
        aggregates=aggregates,
        expected=expected,
        parts=parts,
        format=format,
        key_id=key_id,
        metadata=work.metadata,
        idempotency_key=None if work.claim is None else work.claim.key,
    )
