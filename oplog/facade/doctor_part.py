"""The part of `Oplog` that examines a log: what is wrong, how it stands, what roles need."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.doctor.checks import judge
from oplog.doctor.evolution import ROWS_PENDING, judge_evolution, select_unfinished
from oplog.doctor.facts import read_facts
from oplog.doctor.key_status import KEY_DAYS, KeysReport, read_keys
from oplog.doctor.record_marks import RecordMarks, read_record_marks
from oplog.doctor.status import StatusReport, read_status
from oplog.doctor.type_facts import SchemaFacts, read_schema_facts
from oplog.errors import SchemaDriftError
from oplog.facade.given_target import Readable, open_connection
from oplog.facade.log_parts import LogParts
from oplog.finding import Finding
from oplog.schema.grants import GrantsReport, RoleKind, report_grants


class Examination:
    """What an operator asks about the state of a log."""

    def __init__(self, log: LogParts) -> None:
        self._log = log

    def diagnose(self, connection: Readable, *, key_days: int = KEY_DAYS) -> list[Finding]:
        """What is wrong with the log, its guards and its database; problems come first.

        Compares what stands there with what this library installs, and the tables with the
        catalog and the log's types. Reads only, so that it runs on a standby as well; rows
        are not compared, which is `verify`. An empty list, or one of notices, is a log whose
        promises hold. Nothing of this kind raises: missing tables are a finding too. A key that
        seals for more than `key_days` is a notice.
        """
        with open_connection(connection, self._log.catalog) as inside:
            return self._diagnose(inside, key_days)

    def _diagnose(self, connection: Connection, key_days: int) -> list[Finding]:
        tables = [declared.table for declared in self._log.catalog.types.values()]
        facts = read_facts(connection, self._log.store, tables=tables)
        readable, store = facts.log.readable, self._log.store
        return judge(
            facts,
            schema=self._log.schema,
            catalog=self._log.catalog,
            guard=self._log.guard,
            key_id=self._log.sealer.key_id,
            key_days=key_days,
            evolution=self._read(connection) if readable else None,
            missing=self._log.completeness.list_missing(),
            marks=read_record_marks(connection, store) if readable else RecordMarks(),
        )

    def find_restore_problems(self, connection: Readable) -> list[Finding]:
        """What a restore of this log would refuse or get wrong; `diagnose` has it too.

        Changes of tables that the log does not know yet, rows that are still to be logged again,
        tables that are gone or were replaced, and columns and references that restored rows
        cannot do without.
        """
        with open_connection(connection, self._log.catalog) as inside:
            found = judge_evolution(self._read(inside))
        return [finding for finding in found if finding.severity == "problem"]

    def list_unfinished(self, connection: Connection) -> tuple[Finding, ...]:
        """What of the tables the log cannot follow until somebody acts; no change of names."""
        return tuple(select_unfinished(judge_evolution(self._read(connection))))

    def require_finished(self, connection: Connection) -> tuple[Finding, ...]:
        """`list_unfinished`; `SchemaDriftError` while rows are to be logged again.

        The log has the shape of before then, and a snapshot of the tables would have another one
        at the same position.
        """
        found = self.list_unfinished(connection)
        for one in found:
            if one.what == ROWS_PENDING:
                raise SchemaDriftError(
                    f"{one.where}: {one.message}: a snapshot would not be what the log says at "
                    "its position",
                    hint=one.hint,
                )
        return found

    def _read(self, connection: Connection) -> SchemaFacts:
        return read_schema_facts(connection, self._log.store, self._log.catalog)

    def status(self, connection: Readable, *, archive: Archive | None = None) -> StatusReport:
        """How large the log is, what it was written with, and whether it is in order.

        With an `archive`, also what that holds and how far it is behind; an archive that does not
        answer is part of the report. Raises `SchemaVersionError` where there is no log.
        """
        store, keyring = self._log.store, self._log.keyring
        with open_connection(connection, self._log.catalog) as inside:
            return read_status(inside, store, keyring=keyring, archive=archive)

    def grants(self, kind: str, role: str, *, tables: bool = False) -> GrantsReport:
        """The statements that give `role` what it needs; needs no database.

        `kind` is a value of `RoleKind`: "application", "worker", "auditor" and so on. With
        `tables` also what the role needs on the logged tables: a worker's snapshots and `verify`
        select from them, and an owner owns them.
        """
        declared = self._log.catalog.types.values() if tables else ()
        return report_grants(
            role,
            RoleKind(kind),
            schema=self._log.schema,
            tables=[(one.table.schema, one.table.name) for one in declared],
        )

    def list_keys(self, connection: Readable) -> KeysReport:
        """The keys that the log knows, oldest first: ids, ages, and which were retired."""
        with open_connection(connection, self._log.catalog) as inside:
            self._log.store.require_current(inside)
            return KeysReport(read_keys(inside, self._log.schema, keyring=self._log.keyring))
