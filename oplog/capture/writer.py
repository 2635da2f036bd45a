"""From a transaction's net rows to its entries, sealed and appended.

Decides which rows form which entry. Must not know SQLAlchemy's events. The hard thing is
that this runs with row locks held, last before COMMIT: one statement, aggregates in one
order for everybody, and nothing that could still wait for anything but those tickets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from hashlib import sha256
from uuid import UUID, uuid4

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.draft import Draft
from oplog.capture.merge import measure, settle_rows, touch_rows
from oplog.capture.net_row import NetRow, fold_changes
from oplog.capture.readback import complete_rows
from oplog.capture.recorder import Frame, Recorder
from oplog.capture.request import Claim, refuse_repeat
from oplog.crypto.hashing import hash_body, hash_metadata
from oplog.crypto.seal import SealContext, Sealer
from oplog.entry import Entry, OpType, check_aggregate_name, check_metadata_count
from oplog.errors import TicketConflictError
from oplog.events import EntriesDrafted, EventSink, ignore_event
from oplog.payload.codec import Effect, PayloadCodec, operation_to_effect
from oplog.payload.gc_pause import pause_collector
from oplog.postgres.namesake import Named
from oplog.schema.guard import FORMAT_MARK
from oplog.store import NewEntry, Store
from oplog.store.commit_lookup import REQUEST
from oplog.store.guard_state import Image
from oplog.value import Wire

_NO_METADATA = hash_metadata([])
REQUEST_AGGREGATE = "oplog/request"
"""Names the aggregate of a keyed transaction that changed no tracked row, with a digest."""
_MANY_ROWS = 10_000
"""From here on the collector, walking all that was made of the rows, costs more than they do."""


class EntryWriter:
    """Builds entries for one log; holds what is the same for every transaction."""

    def __init__(
        self,
        store: Store,
        sealer: Sealer,
        codec: PayloadCodec,
        *,
        strict: bool = False,
        draw_id: Callable[[], UUID] = uuid4,
        on_event: EventSink = ignore_event,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._codec = codec
        self._strict = strict
        self._draw_id = draw_id
        self.on_event = on_event

    @property
    def schema(self) -> str:
        """The schema of the log's tables."""
        return self._store.schema

    @property
    def key_id(self) -> str:
        """The key that the next transaction should seal with."""
        return self._sealer.key_id

    def draft(
        self,
        connection: Connection,
        recorder: Recorder,
        *,
        images: Sequence[Image] = (),
        named: Named = (),
    ) -> Draft | None:
        """The entries for everything recorded and for the guards' images.

        None when the net effect is nothing and no guard waits to be told so.
        """
        recorder.raise_failure()
        many = sum(image.rows for image in images) > _MANY_ROWS
        with pause_collector() if many else nullcontext():
            return self._draft(connection, recorder, images, named)

    def _draft(
        self, connection: Connection, recorder: Recorder, images: Sequence[Image], named: Named
    ) -> Draft | None:
        rows = self._list_rows(connection, recorder, images)
        grouped = self._group(recorder, rows)
        self._check_idle(connection, recorder, rows, written=grouped)
        tally = (recorder.tally + measure(images)) or None
        claim = recorder.claim
        if claim is not None and claim.receipts and (grouped or tally is not None):
            raise refuse_repeat(claim)
        if not grouped and (claim is None or claim.receipts):
            if tally is None:
                return None
            return Draft((), *self._store.bind_settle(tally, named=named), named=named)
        metadata = recorder.list_metadata()
        if claim is not None and claim.fingerprint is not None:
            metadata.append((REQUEST, claim.fingerprint))
        check_metadata_count(len(metadata))
        metadata_hash = hash_metadata(metadata) if metadata else _NO_METADATA
        if grouped:
            form, key_id = self._sealer.format, recorder.binding.key_id
            entries = self._list_entries(recorder, grouped, metadata_hash=metadata_hash)
        else:
            # The key is used up by a transaction that changed nothing, too.
            form, key_id = FORMAT_MARK, ""
            entries = [self._mark(claim, metadata_hash)]
        statement, parameters = self._store.bind_append(
            entries,
            format=form,
            key_id=key_id,
            metadata=metadata,
            metadata_hash=metadata_hash,
            idempotency_key=None if claim is None else claim.key,
            tally=tally,
            named=named,
        )
        if self.on_event is not ignore_event:
            self.on_event(
                EntriesDrafted(
                    entries=len(entries),
                    operations=sum(len(effects) for effects in grouped.values()),
                    sealed_bytes=sum(len(entry.data) for entry in entries),
                )
            )
        return Draft(entries, statement, parameters, claim, named)

    def _check_idle(
        self,
        connection: Connection,
        recorder: Recorder,
        rows: Sequence[NetRow],
        *,
        written: Collection[str],
    ) -> None:
        """Hold the tickets of aggregates that were written as they were, which no entry redeems.

        Of two that read 0 and wrote 1, the second changes nothing, and is a lost update.
        """
        if not recorder.has_tickets:
            return
        names = {name_aggregate(row, row.group) for row in rows if is_idle(row)}
        held = {name: recorder.find_ticket(name) for name in names.difference(written)}
        taken = {name: ticket.version for name, ticket in held.items() if ticket is not None}
        if not taken:
            return
        versions = self._store.read_tickets(connection, sorted(taken))
        stale = sorted(name for name in taken if versions.get(name, 0) != taken[name])
        if stale:
            raise TicketConflictError(
                f"aggregate {stale[0]!r} was changed after its ticket was taken",
                hint="run the whole transaction again",
                aggregates=stale,
            )

    def _list_entries(
        self, recorder: Recorder, grouped: Mapping[str, list[Effect]], *, metadata_hash: bytes
    ) -> list[NewEntry]:
        entries: list[NewEntry] = []
        claim = recorder.claim
        for aggregate in sorted(grouped, key=_collate_c):
            ticket = recorder.find_ticket(aggregate)
            entries.append(
                self._seal(
                    recorder.binding,
                    aggregate,
                    grouped[aggregate],
                    expected=None if ticket is None else ticket.version,
                    key_id=recorder.binding.key_id,
                    metadata_hash=metadata_hash,
                    size=len(grouped),
                    # On the first entry it stands for all of the transaction.
                    idempotency_key=None if claim is None or entries else claim.key,
                )
            )
        return entries

    def _mark(self, claim: Claim | None, metadata_hash: bytes) -> NewEntry:
        """An entry without a payload, for a key whose work changed no tracked row."""
        key = "" if claim is None else claim.key
        aggregate = f"{REQUEST_AGGREGATE}/{sha256(key.encode()).hexdigest()[:32]}"
        entry_id = self._draw_id()
        body_hash = hash_body(
            format=FORMAT_MARK,
            entry_id=entry_id,
            aggregate=aggregate,
            key_id="",
            metadata_hash=metadata_hash,
            transaction_size=1,
            idempotency_key=key,
            data=b"",
        )
        return NewEntry(aggregate, None, entry_id, body_hash, b"")

    def _list_rows(
        self, connection: Connection, recorder: Recorder, images: Sequence[Image]
    ) -> list[NetRow]:
        rows = fold_changes(recorder.iterate_changes())
        if not images:
            complete_rows(connection, rows, strict=self._strict)
            return rows
        changes = recorder.iterate_changes()
        touched = touch_rows(images, binding=recorder.binding, changes=changes)
        rows = [row for row in rows if (row.bound.shape.type_name, row.key) not in touched]
        complete_rows(connection, rows, strict=self._strict)
        return rows + settle_rows(connection, touched)

    def check_entry(self, recorder: Recorder, entry: Entry) -> None:
        """Raise now what writing the entry would raise at commit."""
        for operation in entry.operations:
            shape = recorder.binding.find_type(operation.type_name).shape
            operation_to_effect(operation, shape, ordinal=0)

    def _group(self, recorder: Recorder, rows: Iterable[NetRow]) -> dict[str, list[Effect]]:
        """Effects by aggregate; ordinals count over the whole transaction."""
        grouped: dict[str, list[Effect]] = {}
        ordinal = 0
        for entry in recorder.iterate_entries():
            for operation in entry.operations:
                shape = recorder.binding.find_type(operation.type_name).shape
                effect = operation_to_effect(operation, shape, ordinal=ordinal)
                grouped.setdefault(entry.aggregate, []).append(effect)
                ordinal += 1
        for row in rows:
            for aggregate, effect in list_effects(row, ordinal=ordinal):
                grouped.setdefault(aggregate, []).append(effect)
                ordinal = effect.ordinal + 1
        return grouped

    def _seal(
        self,
        binding: Binding,
        aggregate: str,
        effects: Sequence[Effect],
        *,
        expected: int | None,
        key_id: str,
        metadata_hash: bytes,
        size: int,
        idempotency_key: str | None,
    ) -> NewEntry:
        payload = self._codec.encode(effects, aggregate=aggregate)
        entry_id = self._draw_id()
        context = SealContext(binding.log_id, aggregate, entry_id)
        data = self._sealer.seal(payload, context, key_id=key_id)
        body_hash = hash_body(
            format=self._sealer.format,
            entry_id=entry_id,
            aggregate=aggregate,
            key_id=key_id,
            metadata_hash=metadata_hash,
            transaction_size=size,
            idempotency_key=idempotency_key,
            data=data,
        )
        return NewEntry(aggregate, expected, entry_id, body_hash, data)


def list_unticketed(recorder: Recorder) -> dict[str, Frame]:
    """Aggregates written since the last call that hold no ticket yet, in lock order.

    Each with the outermost frame that wrote it: rolling back a later savepoint must not take
    the ticket away.
    """
    names: dict[str, Frame] = {}
    for frame, change in recorder.iterate_new():
        values = {**(change.group or {}), **change.values}
        keys = dict(zip(change.bound.shape.key_names, change.key, strict=True))
        if all(name in values or name in keys for name in change.bound.template.columns):
            group = change.group or values
            name = name_aggregate(NetRow(change.bound, change.key, existed=True), group)
            names.setdefault(name, frame)
    wanted = [name for name in names if recorder.find_ticket(name) is None]
    return {name: names[name] for name in sorted(wanted, key=_collate_c)}


def list_effects(row: NetRow, *, ordinal: int) -> list[tuple[str, Effect]]:
    """What happened to one key, with the aggregate each effect belongs to."""
    bound = row.bound
    shape = bound.shape
    if row.complete:
        values: Mapping[str, Wire | None] = row.values
        if len(values) != len(shape.names):
            values = {name: row.values[name] for name in shape.names}
        effects = []
        if row.existed:
            effects.append((name_aggregate(row, row.group), _delete(row, ordinal)))
            ordinal += 1
        effects.append(
            (
                name_aggregate(row, values),
                _create(row, values, ordinal),
            )
        )
        return effects
    if not row.exists:
        return [(name_aggregate(row, row.group), _delete(row, ordinal))] if row.existed else []
    if not row.values:
        return []
    before = name_aggregate(row, row.group)
    if not bound.regroups:
        return [(before, _update(row, ordinal))]
    group = {**(row.group or {}), **row.values}
    after = name_aggregate(row, group)
    if after == before:
        return [(before, _update(row, ordinal))]
    # The row leaves one aggregate for another: each entry must stand on its own.
    return [
        (before, _delete(row, ordinal)),
        (
            after,
            _create(row, {name: row.values[name] for name in shape.names}, ordinal + 1),
        ),
    ]


def is_idle(row: NetRow) -> bool:
    """A row that was written as it was, and whose aggregate is known."""
    known = {*(row.group or {}), *row.bound.shape.key_names}
    return (
        row.existed
        and row.exists
        and not row.complete
        and not row.values
        and known.issuperset(row.bound.template.columns)
    )


def name_aggregate(row: NetRow, values: Mapping[str, Wire | None] | None) -> str:
    """The aggregate of a row that has these values (the key's are taken from the key)."""
    shape, template = row.bound.shape, row.bound.template
    if not template.columns:
        # One name for the whole table, checked when it was declared.
        return template.constant
    known: dict[str, Wire | None] = dict(values or {})
    known.update(zip(shape.key_names, row.key, strict=True))
    texts = {
        name: None if (wire := known[name]) is None else shape.codecs[name].to_text(wire)
        for name in template.columns
    }
    return check_aggregate_name(template.render(texts))


def _create(row: NetRow, values: Mapping[str, Wire | None], ordinal: int) -> Effect:
    return Effect(OpType.CREATE, row.bound.shape, row.key, values, complete=True, ordinal=ordinal)


def _update(row: NetRow, ordinal: int) -> Effect:
    return Effect(
        OpType.UPDATE, row.bound.shape, row.key, row.values, complete=False, ordinal=ordinal
    )


def _delete(row: NetRow, ordinal: int) -> Effect:
    return Effect(OpType.DELETE, row.bound.shape, row.key, {}, complete=False, ordinal=ordinal)


def _collate_c(name: str) -> bytes:
    return name.encode("utf-8")
