"""`Oplog`: the one object an application holds.

Wires the floors together and checks what it is given. Must not hold logic of its own. The
hard thing is to stay small: every method is one call into the module that does the work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from oplog.adoption import CHUNK_ROWS, AdoptionReport, Target, adopt_tables
from oplog.binding import (
    ShapeTable,
    bind_for_writing,
    check_keyring,
    list_unstored_shapes,
)
from oplog.capture.attachment import Attachments
from oplog.capture.listener import EngineListener
from oplog.capture.retry import run_async_work, run_work
from oplog.capture.target import find_blocking, find_session
from oplog.capture.writer import EntryWriter
from oplog.catalog import TypeCatalog
from oplog.codec import PayloadCodec
from oplog.diagnosis import judge
from oplog.entry import (
    Change,
    Entry,
    LoggedEntry,
    Receipt,
    Ticket,
    check_aggregate_name,
    check_metadata,
    check_metadata_count,
)
from oplog.errors import ConfigurationError, TicketConflictError
from oplog.events import EventSink, ignore_event
from oplog.finding import Finding
from oplog.keyring import Keyring
from oplog.reader import EntryReader
from oplog.replay import (
    MOST_DIFFERENCES,
    Progress,
    ReplayReport,
    VerifyReport,
    list_changes,
    rebuild_row,
    replay_log,
    verify_tables,
)
from oplog.seal import Sealer
from oplog.store import EntryFilter, Store
from oplog.store.diagnosis import read_facts
from oplog.store.feed import Feed
from oplog.store.guards import Image, collect_images
from oplog.subscription import BATCH_ENTRIES, Subscription
from oplog.upcast import Upcaster

T = TypeVar("T")


class Oplog:
    """An operation log in one schema of a database, for one catalog of types."""

    def __init__(
        self,
        catalog: TypeCatalog,
        *,
        keyring: Keyring | None = None,
        schema: str = "oplog",
        strict: bool = False,
        plaintext: bool = False,
        guard: bool = True,
        on_event: EventSink = ignore_event,
    ) -> None:
        """`keyring` seals what is written; `plaintext=True` says that none is wanted.

        With both, new entries are sealed and older plaintext ones can still be read.
        `strict` reads every captured row back before COMMIT and compares. `guard` captures
        what the application cannot see through the guards that `op.track_tables` installed;
        without it a guarded table refuses every COMMIT. `on_event` is
        called with each event of `oplog.events`, inside the transaction.
        """
        if keyring is None and not plaintext:
            raise ConfigurationError(
                "no keyring: the log would hold readable copies of every tracked row",
                hint="give keyring=Keyring.from_env(), or say plaintext=True",
            )
        self.catalog = catalog
        self.schema = schema
        self.keyring = keyring
        self.store = Store(schema)
        self._sealer = Sealer(keyring, accept_plain=plaintext)
        self._guard = guard
        self._on_event = on_event
        self._codec = PayloadCodec()
        self._writer = EntryWriter(
            self.store, self._sealer, self._codec, strict=strict, on_event=on_event
        )
        self._attachments = Attachments(self._make_listener)

    def _make_listener(self, engine: Engine) -> EngineListener:
        return EngineListener(
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
            read_tickets=self.store.read_tickets,
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
        Raises `NotCapturableError` if a table of the catalog has no primary key.
        """
        self.catalog.check_keys()
        self._attachments.attach(target)

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
        return judge(facts, schema=self.schema, catalog=self.catalog, guard=self._guard)

    # -- writing --------------------------------------------------------------------------

    def annotate(self, session: Any, **metadata: str | Iterable[str]) -> None:
        """Describe the session's transaction: who, why, which request.

        Values are str or lists of str. A key given again replaces its values. Raises
        `InvalidMetadataError` before anything is written.
        """
        checked = {key: check_metadata(key, value) for key, value in metadata.items()}
        check_metadata_count(sum(len(values) for values in checked.values()))
        self._attachments.annotate(find_session(session), checked)

    def receipts(self, session: Any) -> list[Receipt]:
        """Receipts of the session's last commit, sorted by aggregate."""
        return self._attachments.list_receipts(find_session(session))

    def take_ticket(self, session: Any, aggregate: str) -> Ticket:
        """The aggregate's version now; take it before reading what the change depends on.

        If anybody else commits an entry for the aggregate after this, this transaction's
        commit raises `TicketConflictError`. Version 0 means never written.
        """
        check_aggregate_name(aggregate)
        connection, recorder = self._attachments.find_recorder(find_blocking(session))
        held = recorder.find_ticket(aggregate)
        if held is not None:
            return held
        version = self.store.read_tickets(connection, [aggregate]).get(aggregate, 0)
        ticket = Ticket(aggregate, version)
        recorder.add_ticket(ticket)
        return ticket

    def append(self, session: Any, entry: Entry, ticket: Ticket | None = None) -> None:
        """Record an entry built by hand; it is written when the session commits.

        The ticket must have been taken for the entry's aggregate in this transaction, else
        `TicketConflictError`. Unknown types or columns raise before anything is written.
        """
        if ticket is None:
            error = TicketConflictError(
                f"no ticket for aggregate {entry.aggregate!r}",
                hint="ticket = log.take_ticket(session, aggregate) before reading, then append",
            )
            error.retryable = False
            raise error
        _, recorder = self._attachments.find_recorder(find_blocking(session))
        self._writer.check_entry(recorder, entry)
        recorder.add_entry(entry, ticket)

    def run(
        self, sessions: Callable[[], Session], work: Callable[[Session], T], *, retries: int = 20
    ) -> T:
        """Run `work(session)` in a transaction, again after conflicts, and commit.

        Conflicts, serialization failures and deadlocks are retried up to `retries` times
        after short random pauses; `work` must be re-runnable. Other errors pass through.
        """
        return run_work(sessions, work, retries=retries, on_event=self._on_event)

    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = 20,
    ) -> T:
        """`run` for an async_sessionmaker; cancelling it cancels the pause as well."""
        return await run_async_work(sessions, work, retries=retries, on_event=self._on_event)

    def adopt(
        self,
        connection: Connection,
        tables: Iterable[Any] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        chunk_rows: int = CHUNK_ROWS,
        dry_run: bool = False,
        again: bool = False,
    ) -> AdoptionReport:
        """Log the rows that exist, of `tables` (names, `Table`s, mapped classes) or of all.

        On a connection that is in no transaction each chunk of at most `chunk_rows` commits by
        itself; in an open one everything is in that, and **writers wait until it ends**. What
        was adopted before is passed over, unless `again` asks for every row as it is now, which
        puts right what slipped past; interrupted, it goes on where it stopped. `progress`
        gets rows done and estimated. Raises `UnknownTypeError`, `ConflictError` where a lock is
        not to be had, `EntryTooLargeError` for a row wider than an entry.
        """
        self._attachments.check_settled(connection)
        target = Target(self.store, self.keyring, self._sealer, self._codec, self._on_event)
        return adopt_tables(
            connection,
            self.catalog,
            tables=tables,
            target=target,
            chunk_rows=chunk_rows,
            dry_run=dry_run,
            again=again,
            progress=progress,
        )

    # -- reading --------------------------------------------------------------------------

    def open_reader(
        self, connection: Connection, *, revisions: Mapping[str, int] | None = None
    ) -> EntryReader:
        """A reader of this log on `connection`, after checking schema and keyring."""
        self.store.require_current(connection)
        types = ShapeTable(self.store, connection)
        lifts = self.catalog.has_steps or revisions
        return EntryReader(
            connection,
            store=self.store,
            sealer=self._sealer,
            codec=self._codec,
            types=types,
            log_id=self.store.read_log_id(connection),
            key_checks=check_keyring(connection, self.keyring, store=self.store),
            upcaster=Upcaster(self.catalog, types, revisions=revisions) if lifts else None,
        )

    def read(
        self,
        connection: Connection,
        *,
        aggregate: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        after: int | None = None,
        through: int | datetime | None = None,
        revisions: Mapping[str, int] | None = None,
    ) -> Iterator[LoggedEntry]:
        """Entries in causal order, as of one snapshot taken at the first.

        `metadata` keeps entries of transactions that have every given value. `after` and
        `through` are positions (`through` also a time); a lower position may become visible
        later, so a consumer that goes on from where it stopped uses `subscribe`.
        `revisions` asks for types, by name, as of a revision (through the catalog's steps).
        """
        reader = self.open_reader(connection, revisions=revisions)
        snapshot = self.store.read_snapshot(connection)
        pairs = tuple(
            (key, value)
            for key, given in (metadata or {}).items()
            for value in check_metadata(key, given)
        )
        if isinstance(through, datetime):
            through = self.store.find_position(connection, through, snapshot=snapshot)
        chosen = EntryFilter(aggregate, pairs, after, through)
        return reader.read(chosen, snapshot=snapshot)

    def subscribe(
        self, engine: Engine, *, name: str, max_entries: int = BATCH_ENTRIES
    ) -> Subscription:
        """A durable consumer: `for batch in log.subscribe(...): ...; batch.commit()`.

        A batch is a sequence of `LoggedEntry` in causal order, whole transactions of about
        `max_entries` entries together. Its cursor is saved under `name` by `batch.commit()`,
        after which it is not delivered again. The iteration ends when nothing is new.
        """
        return Subscription(
            engine,
            name=name,
            feed=Feed(self.schema),
            open_reader=self.open_reader,
            max_entries=max_entries,
        )

    # -- replaying ------------------------------------------------------------------------

    def replay(
        self,
        connection: Connection,
        *,
        into: str = "replayed",
        through: int | datetime | None = None,
        progress: Progress | None = None,
    ) -> ReplayReport:
        """Rebuild every logged table in schema `into` from the log alone.

        Runs in the connection's transaction if it is in one, which the caller commits; else
        in one of its own. `through` is a position or an aware datetime. Tables of an earlier
        replay are replaced, any others refused. `progress` is called with the position
        reached and the last. Raises `SchemaDriftError`, `ChainBrokenError`, and `ReplayError`
        for a log that does not replay.
        """
        return replay_log(
            connection,
            open_reader=self.open_reader,
            into=into,
            through=through,
            progress=progress,
        )

    def verify(
        self,
        connection: Connection,
        *,
        full: bool = True,
        limit: int = MOST_DIFFERENCES,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Compare the live tables with the log, row by row, in one snapshot; never repairs.

        A connection that is in a transaction already may see a state of its own: then a
        second one of the same engine is used. Every row is compared: only `full=True` is
        offered. At most `limit` differences are described, all are counted. Raises
        `SchemaDriftError`, `ChainBrokenError`, and `ReplayError` for a log that does not
        replay.
        """
        if not full:
            raise ConfigurationError(
                "this version verifies every row; there is no incremental verification",
                hint="call verify(connection), or replay a smaller log",
            )
        return verify_tables(
            connection,
            open_reader=self.open_reader,
            list_unstored=lambda inside, stored: list_unstored_shapes(
                inside, self.catalog, stored=stored
            ),
            limit=limit,
            progress=progress,
        )

    def history(self, connection: Connection, model: Any, key: Any) -> list[Change]:
        """What happened to a row, oldest first: when, by whom, what was written.

        `key` is the primary key's value, a tuple of them or a mapping. Reads the row's
        aggregate if its name follows from the key, else the whole log.
        """
        types = self.catalog.find_types(model)
        return list_changes(self.open_reader(connection), types, key=key)

    def as_of(
        self, connection: Connection, model: Any, *, key: Any, at: int | datetime
    ) -> dict[str, Any] | None:
        """The row's logged columns at a position or an aware datetime; None if there was none."""
        types = self.catalog.find_types(model)
        return rebuild_row(self.open_reader(connection), types, key=key, at=at)
