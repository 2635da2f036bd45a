"""The three steps of COMMIT for one log: gather, build, send.

`gather` asks the database, `build` makes a record of what is known then, without a connection,
`send` appends it. `oplog.capture.transaction` calls them in this order, last before COMMIT,
with the application's row locks held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.building import RecordBuilder
from oplog.capture.draft import Draft
from oplog.capture.gathering import gather_work
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.capture.recorder import Recorder
from oplog.capture.sending import bind_draft, send
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Sealer
from oplog.entry import Entry, Ticket
from oplog.errors import CaptureMismatchError, KeyRetiredError, SchemaChangedError
from oplog.events import EntriesDrafted, EventSink, ignore_event
from oplog.metadata_context import Describer
from oplog.ordered_id import draw_ordered_id
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import operation_to_effect
from oplog.postgres.namesake import Named
from oplog.receipt import Receipt
from oplog.store import Store
from oplog.store.guard_state import Image


class RecordWriter:
    """Writes transactions to one log; holds what is the same for every transaction."""

    def __init__(
        self,
        store: Store,
        sealer: Sealer,
        codec: PayloadCodec,
        *,
        strict: bool = False,
        draw_id: Callable[[], UUID] = draw_ordered_id,
        describer: Describer | None = None,
        keyring: Keyring | None = None,
        on_event: EventSink = ignore_event,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._builder = RecordBuilder(sealer, codec, draw_id=draw_id, keyring=keyring)
        self._strict = strict
        self._describer = describer or Describer()
        self.on_event = on_event

    @property
    def schema(self) -> str:
        """The schema of the log's tables."""
        return self._store.schema

    @property
    def key_id(self) -> str:
        """The key that the next transaction should seal with."""
        return self._sealer.key_id

    def read_tickets(self, connection: Connection, aggregates: Sequence[str]) -> dict[str, int]:
        """Versions by aggregate; one never written is left out."""
        return self._store.read_tickets(connection, aggregates)

    def take_tickets(self, connection: Connection, recorder: Recorder) -> None:
        """Take the tickets of aggregates that a transaction wrote and holds none for."""
        # The rows are locked by now, so a version read here cannot miss another writer of them.
        wanted = recorder.list_unticketed()
        if wanted:
            versions = self.read_tickets(connection, list(wanted))
            for name, frame in wanted.items():
                frame.tickets[name] = Ticket(name, versions.get(name, 0))

    def gather(
        self,
        connection: Connection,
        work: RecordedWork,
        *,
        binding: Binding,
        images: Sequence[Image] = (),
        named: Named = (),
    ) -> GatheredWork:
        """The recorded work, with everything that only the database knows.

        `SchemaChangedError` where it does not fit because a migration changed tables meanwhile.
        """
        try:
            return gather_work(
                connection,
                work,
                binding=binding,
                images=images,
                named=named,
                read_tickets=self.read_tickets,
                strict=self._strict,
            )
        except CaptureMismatchError as cause:
            if self._store.changes.read_epoch(connection) == binding.epoch:
                raise
            raise SchemaChangedError(
                f"tables were changed since this process looked at them: {cause}",
                hint="run the whole transaction again: the next one knows the tables of now",
            ) from cause

    def build(self, gathered: GatheredWork) -> Draft | None:
        """The record of a transaction; None if there is nothing to send.

        `MissingMetadataError` for one that does not say what the log requires.
        """
        metadata = self._describer.complete(gathered.work.metadata)
        if metadata is not gathered.work.metadata:
            gathered = replace(gathered, work=replace(gathered.work, metadata=metadata))
        draft = self._builder.build(gathered)
        if draft is not None and draft.record is not None:
            self._describer.check(metadata)
        if draft is not None and draft.record is not None and self.on_event is not ignore_event:
            self.on_event(
                EntriesDrafted(
                    entries=len(draft.aggregates),
                    operations=gathered.operations,
                    sealed_bytes=sum(len(part.data) for part in draft.record.parts),
                )
            )
        return draft

    def send(self, connection: Connection, draft: Draft, *, commit: bool) -> list[Receipt]:
        """Append a draft, with `commit` together with COMMIT; the receipts of its entries.

        Where the draft's key was retired, the keyring is read again before the error is raised.
        """
        try:
            return send(connection, bind_draft(self._store, draft), commit=commit)
        except KeyRetiredError as refusal:
            if draft.record is not None:
                refusal.hint = self._sealer.renew_key(draft.record.key_id)
            raise

    def check_entry(self, recorder: Recorder, entry: Entry) -> None:
        """Raise now what writing the entry would raise at commit."""
        for operation in entry.operations:
            shape = recorder.binding.find_type(operation.type_name).shape
            operation_to_effect(operation, shape, ordinal=0)
