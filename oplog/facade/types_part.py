"""The part of `Oplog` that knows types: what the log has, and what migrations made of tables."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from sqlalchemy.engine import Connection

from oplog.adoption import CHUNK_ROWS
from oplog.adoption.schema_changes import ChangesReport, NotedBy, note_changes, replace_type
from oplog.binding import bind_catalog
from oplog.doctor.contract import judge_contract
from oplog.doctor.logged_types import (
    ProtoReport,
    TypesReport,
    list_logged_types,
    print_proto,
)
from oplog.doctor.type_change import TypesCheckReport
from oplog.doctor.type_facts import read_schema_facts
from oplog.facade.first_write import make_target
from oplog.facade.given_target import Inside, Readable, open_connection, take_connection
from oplog.facade.log_parts import LogParts
from oplog.store.partition_guards import guard_partitions


class Types:
    """The types of a log."""

    def __init__(self, log: LogParts) -> None:
        self._log = log

    def list_types(self, connection: Readable) -> TypesReport:
        """The types that the log knows, with all revisions, and those not stored yet."""
        with open_connection(connection, self._log.catalog) as inside:
            return list_logged_types(inside, self._log.store, self._log.catalog)

    def print_proto(
        self, connection: Readable, type_name: str, *, revision: int | None = None
    ) -> ProtoReport:
        """The .proto text of a stored type; the newest revision unless one is given.

        Raises `UnknownTypeError`.
        """
        with open_connection(connection, self._log.catalog) as inside:
            return print_proto(inside, self._log.store, type_name=type_name, revision=revision)

    def check_types(self, connection: Readable) -> TypesCheckReport:
        """What these models change for the log, and what of that breaks; for before a deploy.

        Compares the catalog with the types that the log knows, and with the tables if they are
        there: what the log would note, what readers of earlier revisions lose, what a restore
        would refuse. Reads only, and stores nothing. Raises `SchemaVersionError` without a log.
        """
        store, catalog = self._log.store, self._log.catalog
        with open_connection(connection, catalog) as inside:
            store.require_current(inside)
            return judge_contract(read_schema_facts(inside, store, catalog), catalog)

    def note_changes(
        self,
        connection: Inside,
        *,
        chunk_rows: int = CHUNK_ROWS,
        progress: Callable[[int, int], None] | None = None,
    ) -> ChangesReport:
        """Note in the log what migrations made of its tables, as the database shows it.

        Renamed columns and tables go on as what they were; types of dropped tables are retired;
        columns that the database wrote anew are logged again for all rows, in chunks. In the
        connection's transaction if it is in one, which the caller commits; else in transactions of
        its own, and an interrupted run goes on where it stopped. Does nothing where nothing
        changed. Raises `SchemaDriftError` where the database does not show what became of rows: a
        table, or the columns of its key, were replaced. `replace_type` says it then.
        """
        inside = take_connection(connection, self._log.catalog)
        return self._run(inside, self._note(chunk_rows, progress))

    def note_guarded(self, connection: Connection) -> ChangesReport:
        """`note_changes` amid a migration: tables that are guarded are logged, declared or not."""
        return self._run(connection, replace(self._note(CHUNK_ROWS, None), guarded=True))

    def replace_type(
        self,
        connection: Inside,
        type_name: str,
        *,
        reason: str,
        chunk_rows: int = CHUNK_ROWS,
        progress: Callable[[int, int], None] | None = None,
    ) -> ChangesReport:
        """Log all rows of a type anew, whose table or key was replaced; earlier rows end here.

        `type_name` is the log's name of the type, or the name of its table. Raises
        `ConfigurationError` without a reason, `UnknownTypeError` and `SchemaDriftError`.
        """
        by = self._note(chunk_rows, progress)
        inside = take_connection(connection, self._log.catalog)
        with self._log.attachments.at_work(inside):
            report = replace_type(inside, type_name, reason=reason, by=by)
        self._log.attachments.refresh()
        return report

    def store_types(self, connection: Inside) -> ChangesReport:
        """Store the types and the key that an application will write with, and note changes.

        An application does so itself with its first transaction; doing it ahead finds models and
        tables that disagree before the first request does (`SchemaDriftError`). In the
        connection's transaction if it is in one, as with `note_changes`. Partitions of tracked
        tables that were made later are guarded against TRUNCATE, if the role may.
        """
        return self._store_types(take_connection(connection, self._log.catalog))

    def _store_types(self, connection: Connection) -> ChangesReport:
        report = self.note_changes(connection)
        before = {(shape.type_name, shape.revision) for shape in report.stored}
        with nullcontext() if connection.in_transaction() else connection.begin():
            known = {(s.type_name, s.revision) for s in self._log.store.list_types(connection)}
            bind_catalog(
                connection, self._log.catalog, store=self._log.store, keyring=self._log.keyring
            )
            stored = [
                shape
                for shape in self._log.store.list_types(connection)
                if (shape.type_name, shape.revision) in before
                or (shape.type_name, shape.revision) not in known
            ]
            guards = guard_partitions(connection, self._log.schema)
        return replace(report, stored=stored, guards=guards)

    def _run(self, connection: Connection, by: NotedBy) -> ChangesReport:
        with self._log.attachments.at_work(connection):
            report = note_changes(connection, by)
        if report.stored or report.retired or report.rows:
            # This process need not be refused in order to look anew.
            self._log.attachments.refresh()
        return report

    def _note(self, chunk_rows: int, progress: Callable[[int, int], None] | None) -> NotedBy:
        return NotedBy(
            self._log.catalog, make_target(self._log), chunk_rows=chunk_rows, progress=progress
        )
