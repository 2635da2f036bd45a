"""What the parts of an `Oplog` share: catalog, stores, keys and codecs of one log.

Nothing here is shared between two logs: they live side by side in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from oplog.capture.attachment import Attachments
from oplog.capture.writer import RecordWriter
from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Sealer
from oplog.events import EventSink
from oplog.facade.completeness import Completeness
from oplog.metadata_context import Describer
from oplog.payload.codec import PayloadCodec
from oplog.store import Store
from oplog.store.commit_lookup import OutcomeStore


@dataclass(frozen=True, slots=True)
class LogParts:
    """One log: what it was configured with, and the objects made from that, each once."""

    catalog: TypeCatalog
    schema: str
    keyring: Keyring | None
    guard: bool
    store: Store
    outcomes: OutcomeStore
    sealer: Sealer
    codec: PayloadCodec
    writer: RecordWriter
    attachments: Attachments
    completeness: Completeness
    describer: Describer
    on_event: EventSink

    @classmethod
    def make(
        cls,
        catalog: TypeCatalog,
        *,
        schema: str,
        keyring: Keyring | None,
        guard: bool,
        strict: bool,
        plaintext: bool,
        asynchronous_commit: bool,
        attachments: Attachments,
        completeness: Completeness,
        describer: Describer,
        on_event: EventSink,
    ) -> Self:
        """The parts of a log with these settings, which are those of `Oplog`."""
        store = Store(schema, asynchronous_commit=asynchronous_commit)
        sealer = Sealer(keyring, accept_plain=plaintext)
        codec = PayloadCodec()
        return cls(
            catalog=catalog,
            schema=schema,
            keyring=keyring,
            guard=guard,
            store=store,
            outcomes=OutcomeStore(schema),
            sealer=sealer,
            codec=codec,
            writer=RecordWriter(
                store,
                sealer,
                codec,
                strict=strict,
                describer=describer,
                keyring=keyring,
                on_event=on_event,
            ),
            attachments=attachments,
            completeness=completeness,
            describer=describer,
            on_event=on_event,
        )
