"""What an `Oplog` is made of, and what it is attached to.

Wires the floors together. Must not hold logic of its own. The hard thing is that nothing here
is shared: two logs live side by side in one process.
"""

from __future__ import annotations

import warnings
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.binding import (
    bind_for_writing,
)
from oplog.capture.attachment import Attachments
from oplog.capture.transaction import Transactions
from oplog.capture.writer import EntryWriter
from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Sealer
from oplog.doctor.checks import judge
from oplog.doctor.evolution import read_evolution
from oplog.doctor.facts import read_facts
from oplog.doctor.restore_risk import list_restore_risks
from oplog.errors import ConfigurationError, RestoreWarning
from oplog.events import EventSink, ignore_event
from oplog.finding import Finding
from oplog.payload.codec import PayloadCodec
from oplog.store import Store
from oplog.store.commit_lookup import OutcomeStore
from oplog.store.guard_state import Image, collect_images


class Foundation:
    """The parts of one log, and its set-up."""

    def __init__(
        self,
        catalog: TypeCatalog,
        *,
        keyring: Keyring | None = None,
        schema: str = "oplog",
        strict: bool = False,
        plaintext: bool = False,
        guard: bool = True,
        asynchronous_commit: bool = False,
        on_event: EventSink = ignore_event,
    ) -> None:
        """`keyring` seals what is written; `plaintext=True` says that none is wanted.

        With both, new entries are sealed and older plaintext ones can still be read.
        `strict` reads every captured row back before COMMIT and compares. `guard` captures
        what the application cannot see through the guards that `op.track_tables` installed;
        without it a guarded table refuses every COMMIT. A transaction under
        `synchronous_commit = off`, which a crash may lose after it was acknowledged, is refused
        unless `asynchronous_commit` says that this is understood. `on_event` is called with
        each event of `oplog.events`, inside the transaction.
        """
        if keyring is None and not plaintext:
            raise ConfigurationError(
                "no keyring: the log would hold readable copies of every tracked row",
                hint="give keyring=Keyring.from_env(), or say plaintext=True",
            )
        self.catalog = catalog
        self.schema = schema
        self.keyring = keyring
        self.store = Store(schema, asynchronous_commit=asynchronous_commit)
        self._outcomes = OutcomeStore(schema)
        self._sealer = Sealer(keyring, accept_plain=plaintext)
        self._guard = guard
        self._on_event = on_event
        self._codec = PayloadCodec()
        self._writer = EntryWriter(
            self.store, self._sealer, self._codec, strict=strict, on_event=on_event
        )
        self._attachments = Attachments(self._make_transactions)

    def _make_transactions(self, engine: Engine) -> Transactions:
        return Transactions(
            engine,
            self._writer,
            self.catalog,
            bind=lambda connection: bind_for_writing(
                connection,
                self.catalog,
                store=self.store,
                keyring=self.keyring,
                guard=self._guard,
            ),
            collect=self._collect_images,
            log=self,
        )

    def _collect_images(self, connection: Connection) -> list[Image]:
        # Left where they are, the guards refuse the COMMIT.
        return collect_images(connection, self.schema) if self._guard else []

    # -- set-up ---------------------------------------------------------------------------

    def attach(self, target: Any) -> None:
        """Log every session of `target`.

        `target` is a sessionmaker, async_sessionmaker, scoped_session or Session subclass; an
        engine, to log every transaction on its connections, as data migrations need it.
        Raises `NotCapturableError` if a table of the catalog has no primary key. Warns
        (`RestoreWarning`) of rows that are logged and that a restore from the log will refuse.
        """
        self.catalog.check_keys()
        self._attachments.attach(target)
        for risk in list_restore_risks(self.catalog):
            warnings.warn(
                f"{risk}: a restore will refuse its rows; oplog doctor says what to do",
                RestoreWarning,
                stacklevel=2,
            )

    def detach(self, target: Any) -> None:
        """Undo `attach`."""
        self._attachments.detach(target)

    def refresh(self) -> None:
        """Look at every database anew: after a migration made while the process runs."""
        self._attachments.refresh()

    def diagnose(self, connection: Connection) -> list[Finding]:
        """What is wrong with the log, its guards and its database; problems come first.

        Compares what stands there with what this library installs, and the tables with the
        catalog and the log's types. Reads only, so that it runs on a standby as well; rows
        are not compared, which is `verify`. An empty list, or one of notices, is a log whose
        promises hold. Nothing of this kind raises: missing tables are a finding too.
        """
        tables = [declared.table for declared in self.catalog.types.values()]
        facts = read_facts(connection, self.store, tables=tables)
        return judge(
            facts,
            schema=self.schema,
            catalog=self.catalog,
            guard=self._guard,
            evolution=read_evolution(connection, self.store) if facts.log.readable else None,
        )
