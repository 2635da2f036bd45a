"""`Oplog`: the one object an application holds. Its methods are those of its parts."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar, cast, overload

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from oplog.capture.attachment import Attachments
from oplog.capture.retry import RETRIES
from oplog.capture.transaction import Transactions
from oplog.catalog import TypeCatalog
from oplog.crypto.keyring import Keyring
from oplog.declared_models import Models
from oplog.doctor.restore_risk import find_restore_risks
from oplog.errors import ConfigurationError, RestoreWarning
from oplog.events import EventSink, ignore_event
from oplog.facade.async_part import AsyncReading
from oplog.facade.completeness import Completeness
from oplog.facade.delegation import PartMethod
from oplog.facade.doctor_part import Examination
from oplog.facade.entries_part import EntryReading
from oplog.facade.first_write import FirstWrite
from oplog.facade.fork_part import Forks
from oplog.facade.log_parts import LogParts
from oplog.facade.migration_part import Migrating
from oplog.facade.moment_part import AsOf, Moments
from oplog.facade.outcome_part import Outcomes
from oplog.facade.publishing_part import Publishing
from oplog.facade.reading_part import Reading
from oplog.facade.restoring_part import Restoring
from oplog.facade.search_part import Searching
from oplog.facade.types_part import Types
from oplog.facade.undo_part import Undoing
from oplog.facade.upkeep_part import Upkeep
from oplog.facade.writing_part import Writing
from oplog.metadata_context import Describe, make_describer
from oplog.receipt import Receipt
from oplog.store.guard_state import Collected, collect_images

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
        asynchronous_commit: bool = False,
        expect: Models | None = None,
        context: Describe | None = None,
        require: Iterable[str] = (),
        on_event: EventSink = ignore_event,
    ) -> None:
        """`keyring` seals what is written; `plaintext=True` says that none is wanted.

        With both, new entries are sealed and older plaintext ones can still be read.
        `strict` reads every captured row back before COMMIT and compares. `guard` captures
        what only the guards of `op.track_tables` see; without it a guarded table refuses every
        COMMIT. A transaction under `synchronous_commit = off`, which a crash may lose after it
        was acknowledged, is refused unless `asynchronous_commit` says that this is understood.
        `attach` refuses a catalog that lacks a table of the models `expect` (one or several).
        `context` gives metadata at each COMMIT, for keys that neither `oplog.context` nor
        `annotate` has. A transaction that lacks one of the keys `require` is refused
        (`MissingMetadataError`).
        `on_event` gets the events of `oplog.events`, inside the transaction.
        """
        if keyring is None and not plaintext:
            raise ConfigurationError(
                "no keyring: the log would hold readable copies of every tracked row",
                hint="give keyring=Keyring.from_env(), or say plaintext=True",
            )
        self._log = log = LogParts.make(
            catalog,
            schema=schema,
            keyring=keyring,
            guard=guard,
            strict=strict,
            plaintext=plaintext,
            asynchronous_commit=asynchronous_commit,
            attachments=Attachments(self._make_transactions),
            completeness=Completeness(catalog, expect),
            describer=make_describer(context, require),
            on_event=on_event,
        )
        self._make_parts(log)

    def _make_parts(self, log: LogParts) -> None:
        self.store = log.store
        self._reading = reading = Reading(log)
        self._moments = Moments(log, reading=reading)
        self._entries = entries = EntryReading(log, reading=reading)
        self._searching = Searching(log, reading=reading)
        self._async_reading = AsyncReading(log)
        self._writing = writing = Writing(log)
        self._types = types = Types(log)
        self._migrating = Migrating(log, types=types)
        self._outcomes = Outcomes(log)
        self._examination = examination = Examination(log)
        self._publishing = publishing = Publishing(log, reading=reading, examination=examination)
        self._restoring = restoring = Restoring(log, reading=reading)
        self._undoing = Undoing(log, reading=reading, writing=writing)
        self._forks = Forks(
            log, reading=reading, entries=entries, writing=writing, publishing=publishing
        )
        self._upkeep = Upkeep(
            log, publishing=publishing, restoring=restoring, examination=examination
        )

    def _make_transactions(self, engine: Engine) -> Transactions:
        log = self._log
        bind = FirstWrite(log)
        return Transactions(
            engine,
            log.writer,
            log.catalog,
            bind=bind,
            bind_altered=partial(bind, apart=False),
            collect=self._collect_images,
            log=self,
        )

    def _collect_images(self, connection: Connection) -> Collected | None:
        # Left where they are, the guards refuse the COMMIT.
        return collect_images(connection, self._log.schema) if self._log.guard else None

    # -- what it was made of ---------------------------------------------------------------

    @property
    def catalog(self) -> TypeCatalog:
        """The types that are logged."""
        return self._log.catalog

    @property
    def schema(self) -> str:
        """The schema of the log's tables."""
        return self._log.schema

    @property
    def keyring(self) -> Keyring | None:
        """The keys that seal entries; None for a log in plaintext."""
        return self._log.keyring

    # -- set-up ---------------------------------------------------------------------------

    def attach(self, target: Any) -> None:
        """Log every session of `target`.

        `target` is a sessionmaker, async_sessionmaker, scoped_session or Session subclass; an
        engine, to log every transaction on its connections, as data migrations need it.
        Raises `NotCapturableError` if a table of the catalog has no primary key, and
        `ConfigurationError` if one of the models of `expect` is not in the catalog. Warns
        (`CatalogWarning`) if models were mapped after the catalog was made from them, or if that
        is empty, and (`RestoreWarning`) of rows that a restore from the log will refuse.
        """
        self._log.catalog.check_keys()
        self._log.completeness.check()
        self._log.attachments.attach(target)
        for risk in find_restore_risks(self._log.catalog):
            warnings.warn(
                f"{risk.text}: a restore will refuse its rows; oplog doctor says what to do",
                RestoreWarning,
                stacklevel=2,
            )

    def detach(self, target: Any) -> None:
        """Undo `attach`."""
        self._log.attachments.detach(target)

    def refresh(self) -> None:
        """Look at every database anew: after a migration made while the process runs."""
        self._log.attachments.refresh()

    # -- transactions ---------------------------------------------------------------------

    @overload
    def run(
        self,
        sessions: Callable[[], Session],
        work: Callable[[Session], T],
        *,
        retries: int = ...,
        idempotency_key: None = ...,
        idempotency_request: None = ...,
    ) -> T: ...
    @overload
    def run(
        self,
        sessions: Callable[[], Session],
        work: Callable[[Session], T],
        *,
        retries: int = ...,
        idempotency_key: str | None,
        idempotency_request: Any = ...,
    ) -> T | list[Receipt]: ...
    def run(
        self,
        sessions: Callable[[], Session],
        work: Callable[[Session], T],
        *,
        retries: int = RETRIES,
        idempotency_key: str | None = None,
        idempotency_request: Any = None,
    ) -> T | list[Receipt]:
        """Run `work(session)` in a transaction, again after conflicts, and commit.

        Conflicts, serialization failures and deadlocks are retried up to `retries` times
        after short random pauses; after several conflicts in a row the run waits in line for
        the aggregates, as with `lock`. `work` must be re-runnable. Other errors pass through.

        With `idempotency_key` the work has its effect at most once, for ever, however often it
        runs; a COMMIT whose answer was lost is asked about and, if need be, retried, too.
        Returns what `work` returned. If that was None, or an earlier run had the effect, the
        receipts of the one effect. Another request under the key is an
        `IdempotencyConflictError`: two requests are the same if their `idempotency_request`
        is, or, without one, if the works have one name and the same plain values in their
        arguments and closures.
        """
        return self._writing.run(
            sessions,
            work,
            retries=retries,
            idempotency_key=idempotency_key,
            idempotency_request=idempotency_request,
        )

    @overload
    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = ...,
        idempotency_key: None = ...,
        idempotency_request: None = ...,
    ) -> T: ...
    @overload
    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = ...,
        idempotency_key: str | None,
        idempotency_request: Any = ...,
    ) -> T | list[Receipt]: ...
    async def run_async(
        self,
        sessions: Callable[[], Any],
        work: Callable[[Any], Awaitable[T]],
        *,
        retries: int = RETRIES,
        idempotency_key: str | None = None,
        idempotency_request: Any = None,
    ) -> T | list[Receipt]:
        """`run` for an async_sessionmaker; cancelling it cancels the pause as well."""
        return await self._writing.run_async(
            sessions,
            work,
            retries=retries,
            idempotency_key=idempotency_key,
            idempotency_request=idempotency_request,
        )

    # -- writing
    annotate = PartMethod("_writing", Writing.annotate)
    lock = PartMethod("_writing", Writing.lock)
    receipts = PartMethod("_writing", Writing.receipts)
    take_ticket = PartMethod("_writing", Writing.take_ticket)
    append = PartMethod("_writing", Writing.append)
    adopt = PartMethod("_writing", Writing.adopt)

    # -- migrations
    migrating = PartMethod("_migrating", Migrating.migrating)
    note_migration = PartMethod("_migrating", Migrating.note_migration)

    # -- outcomes
    resolve = PartMethod("_outcomes", Outcomes.resolve)
    inquire = PartMethod("_outcomes", Outcomes.inquire)
    resolve_async = PartMethod("_outcomes", Outcomes.resolve_async)
    inquire_async = PartMethod("_outcomes", Outcomes.inquire_async)

    # -- reading
    read = PartMethod("_entries", EntryReading.read)
    tail = PartMethod("_entries", EntryReading.tail)
    read_key = PartMethod("_reading", Reading.read_key)
    open_reader = PartMethod("_reading", Reading.open_reader)
    subscribe = PartMethod("_reading", Reading.subscribe)
    replay = PartMethod("_reading", Reading.replay)
    verify = PartMethod("_reading", Reading.verify)
    history = PartMethod("_reading", Reading.history)
    check_steps = PartMethod("_reading", Reading.check_steps)

    # -- undoing
    plan_undo = PartMethod("_undoing", Undoing.plan_undo)
    undo = PartMethod("_undoing", Undoing.undo)
    undo_async = PartMethod("_undoing", Undoing.undo_async)

    # -- looking back
    moment = PartMethod("_moments", Moments.moment)
    as_of: AsOf = cast("AsOf", PartMethod("_moments", Moments.as_of))
    versions = PartMethod("_moments", Moments.versions)
    diff = PartMethod("_moments", Moments.diff)
    moment_async = PartMethod("_moments", Moments.moment_async)
    as_of_async = PartMethod("_moments", Moments.as_of_async)
    versions_async = PartMethod("_moments", Moments.versions_async)
    diff_async = PartMethod("_moments", Moments.diff_async)

    # -- searching
    search = PartMethod("_searching", Searching.search)
    read_value = PartMethod("_searching", Searching.read_value)

    # -- reading for asyncio
    read_async = PartMethod("_async_reading", AsyncReading.read_async)
    history_async = PartMethod("_async_reading", AsyncReading.history_async)
    search_async = PartMethod("_async_reading", AsyncReading.search_async)
    verify_async = PartMethod("_async_reading", AsyncReading.verify_async)

    # -- publishing
    make_exporter = PartMethod("_publishing", Publishing.make_exporter)
    require_log = PartMethod("_publishing", Publishing.require_log)
    sync = PartMethod("_publishing", Publishing.sync)
    wait_until_archived = PartMethod("_publishing", Publishing.wait_until_archived)
    measure_lag = PartMethod("_publishing", Publishing.measure_lag)
    snapshot = PartMethod("_publishing", Publishing.snapshot)

    # -- restoring
    open_source = PartMethod("_restoring", Restoring.open_source)
    restore = PartMethod("_restoring", Restoring.restore)
    recover = PartMethod("_restoring", Restoring.recover)
    follow = PartMethod("_restoring", Restoring.follow)
    incarnate = PartMethod("_restoring", Restoring.incarnate)

    # -- forks
    inspect_fork = PartMethod("_forks", Forks.inspect_fork)
    open_branch = PartMethod("_forks", Forks.open_branch)
    replay_lost = PartMethod("_forks", Forks.replay_lost)
    retire_branches = PartMethod("_forks", Forks.retire_branches)

    # -- upkeep
    check = PartMethod("_upkeep", Upkeep.check)
    resync = PartMethod("_upkeep", Upkeep.resync)
    collect = PartMethod("_upkeep", Upkeep.collect)
    pin = PartMethod("_upkeep", Upkeep.pin)
    unpin = PartMethod("_upkeep", Upkeep.unpin)
    list_pins = PartMethod("_upkeep", Upkeep.list_pins)
    prune = PartMethod("_upkeep", Upkeep.prune)
    maintain = PartMethod("_upkeep", Upkeep.maintain)
    retire_key = PartMethod("_upkeep", Upkeep.retire_key)
    quarantine = PartMethod("_upkeep", Upkeep.quarantine)
    list_quarantined = PartMethod("_upkeep", Upkeep.list_quarantined)

    # -- examination
    diagnose = PartMethod("_examination", Examination.diagnose)
    find_restore_problems = PartMethod("_examination", Examination.find_restore_problems)
    status = PartMethod("_examination", Examination.status)
    grants = PartMethod("_examination", Examination.grants)
    list_keys = PartMethod("_examination", Examination.list_keys)

    # -- types
    list_types = PartMethod("_types", Types.list_types)
    print_proto = PartMethod("_types", Types.print_proto)
    check_types = PartMethod("_types", Types.check_types)
    store_types = PartMethod("_types", Types.store_types)
    note_changes = PartMethod("_types", Types.note_changes)
    replace_type = PartMethod("_types", Types.replace_type)
