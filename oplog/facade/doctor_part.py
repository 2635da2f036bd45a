"""The part of `Oplog` that examines a log: what is wrong, how it stands, what roles need."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.doctor.checks import judge
from oplog.doctor.evolution import COLUMN_CHANGED, TABLE_GONE, judge_evolution, read_evolution
from oplog.doctor.facts import read_facts
from oplog.errors import SchemaDriftError
from oplog.facade.parts import LogParts
from oplog.finding import Finding


class Examination:
    """What an operator asks about the state of a log."""

    def __init__(self, log: LogParts) -> None:
        self._log = log

    def diagnose(self, connection: Connection) -> list[Finding]:
        """What is wrong with the log, its guards and its database; problems come first.

        Compares what stands there with what this library installs, and the tables with the
        catalog and the log's types. Reads only, so that it runs on a standby as well; rows
        are not compared, which is `verify`. An empty list, or one of notices, is a log whose
        promises hold. Nothing of this kind raises: missing tables are a finding too.
        """
        tables = [declared.table for declared in self._log.catalog.types.values()]
        facts = read_facts(connection, self._log.store, tables=tables)
        return judge(
            facts,
            schema=self._log.schema,
            catalog=self._log.catalog,
            guard=self._log.guard,
            evolution=read_evolution(connection, self._log.store) if facts.log.readable else None,
        )

    def find_restore_problems(self, connection: Connection) -> list[Finding]:
        """What a restore of this log would refuse or get wrong; `diagnose` has it too.

        Columns whose names mean other columns by now, tables that are gone, and columns and
        references that restored rows cannot do without.
        """
        return judge_evolution(read_evolution(connection, self._log.store), self._log.catalog)

    def require_readable(self, connection: Connection) -> tuple[Finding, ...]:
        """Tables that are gone; `SchemaDriftError` where names mean other columns by now."""
        found = self.find_restore_problems(connection)
        for finding in found:
            if finding.what == COLUMN_CHANGED:
                raise SchemaDriftError(finding.message, hint=finding.hint)
        return tuple(finding for finding in found if finding.what == TABLE_GONE)
