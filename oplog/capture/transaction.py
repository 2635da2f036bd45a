"""The transactions of one engine: their recorders, and what happens before COMMIT.

Neither opens nor ends a transaction. Entries are written when SQLAlchemy announces COMMIT, after
all that hooks of the application write in a flush or commit: where no listener comes after this
one, and the driver allows it, in one round trip with COMMIT. What a later listener writes makes a
further record. A session that joins somebody else's transaction writes them inside its commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Connection, Engine

from oplog.binding import Binding
from oplog.capture.apart import ApartStatements
from oplog.capture.draft import Draft
from oplog.capture.engine_binding import EngineBinding
from oplog.capture.naming import NameChecks
from oplog.capture.notices import Notices, NoticeState
from oplog.capture.planning import StatementPlanner
from oplog.capture.recorder import LiveTables, Recorder
from oplog.capture.sending import (
    can_commit_at_once,
    check_committable,
    describe_loss,
    find_process,
    list_undecided,
    roll_back_refused,
)
from oplog.capture.session_target import belongs_to_session
from oplog.capture.settling import Settler
from oplog.capture.writer import RecordWriter
from oplog.catalog import TypeCatalog
from oplog.errors import (
    CommitOutcomeUnknownError,
    SchemaChangedError,
    UnloggedWriteError,
)
from oplog.events import EntriesAppended, OutcomeLost
from oplog.payload.gc_pause import pause_collector
from oplog.postgres.quoting import double_percent
from oplog.postgres.text_settings import set_back_text_settings
from oplog.receipt import Receipt, list_records
from oplog.schema.guard import make_prefix
from oplog.store.guard_state import Collected

_APPENDED = "oplog.appended"
"""In `Connection.info`, which all logs of a connection share: one of them appended records in the
open transaction. If the answer to COMMIT is lost, the error has to have the receipts of all."""
_MANY_ROWS = 10_000
"""From so many rows in images on, garbage collection, which walks them all, is paused."""


class Transactions:
    """The transactions on one engine's connections, as far as they are logged."""

    def __init__(
        self,
        engine: Engine,
        writer: RecordWriter,
        catalog: TypeCatalog,
        *,
        bind: Callable[[Connection], Binding],
        bind_altered: Callable[[Connection], Binding],
        collect: Callable[[Connection], Collected | None],
        log: object,
    ) -> None:
        self.engine = engine
        self.log = log
        """The `Oplog`, which a migration finds by its connection."""
        self.writer = writer
        self.database = EngineBinding(
            StatementPlanner(catalog, prefix=make_prefix(writer.schema)),
            schema=writer.schema,
            bind=bind,
            bind_altered=bind_altered,
            find_key_id=lambda: writer.key_id,
        )
        self._gather = self.database.watch(writer.gather)
        self.names = NameChecks(self.database)
        self._collect = collect
        self.settler = Settler(
            writer.schema, find_notices=self._find_notices, draft=self._draft, send=self._send
        )
        self._migrating: WeakKeyDictionary[Connection, LiveTables] = WeakKeyDictionary()
        self._notices = Notices(writer.schema)
        self.apart = ApartStatements(
            keep_receipts=self._keep_receipts,
            open_recorder=self.open,
            finish=self._finish_apart,
            send=self._send,
            on_lost=self._report_loss,
        )
        self._recorders: WeakKeyDictionary[Connection, Recorder] = WeakKeyDictionary()
        self.explicit = False
        """Every transaction of the engine is logged, not only those of sessions."""
        self.users: set[int] = set()
        """Attached factories that use the engine: images of its own connections are logged."""
        self.receipts: WeakKeyDictionary[Connection, list[Receipt]] = WeakKeyDictionary()
        """Of the last transaction that a connection without a session committed."""

    # -- from BEGIN to the last write -----------------------------------------------------

    def begin(self, connection: Connection) -> None:
        """A transaction begins on a connection."""
        connection.info.pop(_APPENDED, None)
        self._notices.find(connection).begin()
        # Kept after the COMMIT before, in order to explain an error of it.
        self.close(connection)
        if self.explicit:
            self._recorders[connection] = Recorder()
        live = self._migrating.get(connection)
        if live is not None:
            self.open(connection).live = live

    def find(self, connection: Connection) -> Recorder | None:
        """The recorder of a connection's transaction, if it has one."""
        return self._recorders.get(connection)

    def open(self, connection: Connection, *, owned: bool = False) -> Recorder:
        """The recorder of a connection's transaction, made if it has none.

        `owned` says that a session ends the transaction.
        """
        found = self._recorders.get(connection)
        if found is None:
            found = self._recorders[connection] = Recorder()
        found.attached = found.attached or self.explicit or owned
        # A session inside a migration ends no transaction, or one that is announced anyway.
        found.owned = found.owned or (owned and found.live is None)
        self._find_notices(connection, found).in_session = found.owned
        return found

    def _find_notices(self, connection: Connection, recorder: Recorder) -> NoticeState:
        """Kept by the recorder: to find the driver's connection takes longer than all else here."""
        if recorder.notices is None:
            recorder.notices = self._notices.find(connection)
        return recorder.notices

    @contextmanager
    def migrating(self, connection: Connection, live: LiveTables) -> Iterator[None]:
        """Inside, the connection's transactions are those of a migration."""
        self._migrating[connection] = live
        if connection.in_transaction():
            recorder = self.open(connection)
            if recorder.dirty:
                self.settler.settle(connection, recorder)
            recorder.join_migration(live)
        try:
            yield
            found = self._recorders.get(connection)
            if found is not None and (self.explicit or found.owned_outside):
                self.settler.settle(connection, found)
                found.leave_migration()
        finally:
            # Where nothing else is logged, the transaction itself stays what it was.
            self._migrating.pop(connection, None)

    def is_dirty(self, connection: Connection) -> bool:
        """The connection's transaction has changes that are logged when it commits."""
        recorder = self._recorders.get(connection)
        dirty = recorder is not None and recorder.dirty
        return dirty or self._notices.find(connection).images_kept

    # -- before COMMIT --------------------------------------------------------------------

    def write_entries(self, connection: Connection, recorder: Recorder) -> None:
        """Gather, build and send the transaction's entries, unless a migration's commit does it."""
        if recorder.live is None:
            draft = self._close(connection, recorder)
            if draft is not None:
                recorder.sent += self._send(connection, draft, commit=False)
                connection.info[_APPENDED] = True

    def _close(self, connection: Connection, recorder: Recorder) -> Draft | None:
        """Gather and build; None if there is nothing to send."""
        if recorder.end.closed:
            return None
        writes = self._finish_writes(connection, recorder)
        draft = self._draft(connection, recorder) if writes else None
        if draft is None:
            self.names.check_now(connection, recorder)
        if writes:
            # Not before: what is closed does not know any more which names were written.
            recorder.close()
        return draft

    def _finish_writes(self, connection: Connection, recorder: Recorder) -> bool:
        """Whether there is anything to log, after deferred triggers have run.

        They run here, because at COMMIT it would be too late for what they write.
        """
        if recorder.live is not None:
            return self.settler.finish_migration(connection, recorder)
        notices = self._find_notices(connection, recorder)
        if notices.told and not notices.images_kept:
            self.settler.has_images(connection, recorder)
        # Without notices any transaction that wrote may have images.
        told = notices.images_kept or (notices.no_notices and recorder.wrote)
        must_log = recorder.dirty or (told and self.database.is_here(connection, recorder))
        known = self.database.find(recorder)
        if not must_log and (known is None or not known.deferred or not recorder.wrote):
            return False
        check_committable(connection)
        if must_log:
            known = self.database.bind(connection, recorder)
        if known is not None and known.deferred and recorder.wrote:
            names = double_percent(", ".join(known.deferred))
            connection.exec_driver_sql(f"SET CONSTRAINTS {names} IMMEDIATE")
        return must_log or notices.may_have_images

    def _finish_apart(self, connection: Connection, recorder: Recorder) -> Draft | None:
        """What a statement in AUTOCOMMIT did, as a record; None if there is nothing to log."""
        recorder.raise_failure()
        writes = self._finish_writes(connection, recorder)
        draft = self._draft(connection, recorder) if writes else None
        if draft is None:
            self.names.check_now(connection, recorder)
        return draft

    def _draft(self, connection: Connection, recorder: Recorder) -> Draft | None:
        """Gather and build."""
        if recorder.live is not None:
            recorder.forget_binding()
            self.database.bind(connection, recorder)
        collected = self._collect_images(connection, recorder)
        images = () if collected is None else collected.images
        named = self.names.list_named(connection, recorder)
        work = recorder.freeze()
        many = sum(image.rows for image in images) > _MANY_ROWS
        with pause_collector() if many else nullcontext():
            gathered = self._gather(
                connection, work, binding=recorder.binding, images=images, named=named
            )
            if collected is not None:
                # The transaction may go on, in deferred triggers. After an error the rollback
                # sets them back.
                set_back_text_settings(connection, collected.settings)
            # What is left of them is in what was gathered, in less memory.
            del images, collected
            return self.writer.build(gathered)

    def _collect_images(self, connection: Connection, recorder: Recorder) -> Collected | None:
        notices = self._find_notices(connection, recorder)
        if not notices.may_have_images:
            return None
        notices.images_kept = False
        binding = self.database.bind(connection, recorder)
        collected = self._collect(connection)
        for image in () if collected is None else collected.images:
            self.database.find_guarded(connection, binding, image)
        return collected

    def _send(self, connection: Connection, draft: Draft, *, commit: bool = False) -> list[Receipt]:
        try:
            receipts = self.writer.send(connection, draft, commit=commit)
        except (SchemaChangedError, UnloggedWriteError):
            # As `refreshing` does, without the cost of a context for each transaction.
            self.database.refresh()
            raise
        if receipts:
            self.writer.on_event(EntriesAppended(receipts[0].record_id, commit))
        return receipts

    # -- COMMIT and after -----------------------------------------------------------------

    def commit(self, connection: Connection, *, last: bool) -> None:
        """SQLAlchemy is about to send COMMIT; appends the entries, together with it if it may.

        `last` says that no listener comes after this one: only then may COMMIT be sent here.
        Refuses a COMMIT that Postgres would turn into a rollback, and one with changes that no
        entry describes.
        """
        recorder = self._find_committing(connection)
        if recorder is None:
            return
        try:
            with self._rolling_back(connection):
                self.settler.check(connection, recorder)
                alone = last and _APPENDED not in connection.info
                self._finish(connection, recorder, commit=alone and can_commit_at_once(connection))
            recorder.end.announced = True
            # Without entries there is nothing to ask about: the error stays the database's.
            recorder.end.ending = bool(recorder.receipts)
            recorder.end.process_id = find_process(connection) if recorder.end.ending else 0
            recorder.end.awaited = not last
            if recorder.end.ending:
                connection.info[_APPENDED] = True
        finally:
            if not recorder.owned and not recorder.end.ending and not recorder.end.awaited:
                self.close(connection)
            elif recorder.alters:
                self.database.refresh()

    def append_late(self, connection: Connection, recorder: Recorder) -> None:
        """A listener after this one executed a statement: what it wrote is a further record."""
        if recorder.is_late:
            with self._rolling_back(connection), recorder.at_work():
                self._finish(connection, recorder, commit=False)
            recorder.end.ending = bool(recorder.receipts)

    @contextmanager
    def _rolling_back(self, connection: Connection) -> Iterator[None]:
        """If the block fails, the transaction is rolled back.

        SQLAlchemy takes it for ended once it announced COMMIT. If it were left open, it would go
        back to the pool with the connection.
        """
        try:
            yield
        except CommitOutcomeUnknownError as lost:
            self._report_loss(lost)
            raise
        except Exception:
            roll_back_refused(connection)
            raise
        except BaseException:
            if not connection.closed and not connection.invalidated:
                connection.invalidate()
            raise

    def _find_committing(self, connection: Connection) -> Recorder | None:
        """The recorder of a transaction that may have something to log."""
        recorder = self._recorders.get(connection)
        if recorder is None and self.users:
            notices = self._notices.find(connection)
            if (notices.images_kept or notices.told) and not belongs_to_session(connection):
                recorder = self.open(connection)
                recorder.wrote = True
        return recorder

    def _finish(self, connection: Connection, recorder: Recorder, *, commit: bool) -> None:
        if recorder.owned and recorder.end.write_others is None:
            recorder.raise_failure()
            if recorder.dirty:
                raise UnloggedWriteError(
                    "COMMIT was sent by the connection of a session that has rows to log",
                    hint="end the transaction through the session: session.commit()",
                )
            return
        if recorder.end.write_others is not None:
            # All databases of the session accept their entries before the first COMMIT.
            recorder.end.write_others(connection)
        draft = self._close(connection, recorder)
        if draft is not None:
            recorder.sent += self._send(connection, draft, commit=commit)
        recorder.raise_failure()
        if not recorder.owned:
            self._keep_receipts(connection, recorder)

    def _keep_receipts(self, connection: Connection, recorder: Recorder) -> None:
        receipts = self.receipts[connection] = recorder.receipts
        self._find_notices(connection, recorder).receipts = receipts

    def _report_loss(self, lost: CommitOutcomeUnknownError) -> None:
        self.writer.on_event(OutcomeLost(list_records(lost.receipts)))

    def prepare(self, connection: Connection) -> None:
        """PREPARE TRANSACTION is about to be sent: entries must be in what it prepares."""
        self.commit(connection, last=False)

    def explain_loss(
        self, recorder: Recorder, cause: BaseException, *, lost: BaseException | None
    ) -> CommitOutcomeUnknownError:
        """The error for a COMMIT that SQLAlchemy sent and whose answer was lost.

        `lost` is the error that another log of the same transaction has given, if there is one.
        """
        receipts = list_undecided(recorder.receipts, recorder.end.process_id)
        if isinstance(lost, CommitOutcomeUnknownError):
            lost.receipts += receipts
        else:
            lost = describe_loss(cause, receipts, recorder.end.final_claim)
        self.writer.on_event(OutcomeLost(list_records(receipts)))
        return lost

    def is_unconfirmed(self, connection: Connection, recorder: Recorder) -> bool:
        """COMMIT returned without having waited for its standby."""
        return not connection.invalidated and self._find_notices(connection, recorder).unconfirmed

    def roll_back(self, connection: Connection) -> None:
        """ROLLBACK of a transaction; one of a session is closed when the session ends it."""
        if (recorder := self._recorders.get(connection)) is not None and not recorder.owned:
            self.close(connection)

    def leave(self, connection: Connection) -> None:
        """The session's transaction ended; others of its connection, or a migration, may go on."""
        found, goes_on = self._recorders.get(connection), connection.in_transaction()
        if found is None or not found.leave(explicit=self.explicit, goes_on=goes_on):
            self.close(connection)

    def close(self, connection: Connection) -> None:
        """Forget the transaction, however it ended."""
        recorder = self._recorders.pop(connection, None)
        if recorder is not None and recorder.alters:
            self.database.refresh()
