"""Whether the log of a program has what its tables hold: verified, and replayed and compared.

The log is the one that the engine plugin would make; tables are read with SQL of the histories.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from oplog import Oplog
from oplog.errors import OplogError
from oplog.migration import TrackTablesOp
from oplog.outside.learned_log import learn_log
from oplog.outside.program_settings import read_settings
from tests.histories.tables import Content, compare_content, read_content, read_tables
from tests.real.tried import EQUAL, Tried

REPLAYED = "replayed"
SCHEMAS = """
SELECT nspname FROM pg_catalog.pg_namespace
WHERE nspname NOT LIKE 'pg\\_%%' AND nspname NOT IN ('information_schema', 'oplog')
ORDER BY nspname
"""
GUARDED = "SELECT count(DISTINCT tgrelid) FROM pg_catalog.pg_trigger WHERE tgname LIKE 'oplog%%'"


@dataclass
class Judge:
    """Looks at the database at `url` from outside."""

    url: sa.URL

    def __post_init__(self) -> None:
        self.engine = sa.create_engine(self.url, poolclass=NullPool)

    def track(self, tried: Tried) -> None:
        """Guard all tables that can have a guard, and adopt the rows that are there."""
        with self.engine.begin() as connection:
            for schema, name in self._list_places(connection):
                operations = Operations(MigrationContext.configure(connection))
                try:
                    with connection.begin_nested():
                        TrackTablesOp.track_tables(operations, name, schema=schema)
                except (OplogError, sa.exc.DBAPIError) as error:
                    text = str(getattr(error, "orig", error)).splitlines()[0]
                    tried.notes.append(f"without a guard: {text}")
                else:
                    tried.tables += 1
        log = self._learn()
        with self.engine.connect() as connection:
            log.adopt(connection)

    def judge(self, tried: Tried) -> None:
        """Verify, then replay and compare with SELECT."""
        log = self._learn()
        with self.engine.connect() as connection:
            tried.records = connection.exec_driver_sql(
                "SELECT count(*) FROM oplog.oplog_record"
            ).scalar_one()
            connection.rollback()
            report = log.verify(connection)
        told = "; ".join(str(one)[:300] for one in report.differences[:4])
        tried.verify = EQUAL if report.ok else f"{report.count} differences: {told}"
        tried.replay = "; ".join(self._compare_replay(log))[:1500] or EQUAL

    def _learn(self) -> Oplog:
        with self.engine.connect() as connection:
            return learn_log(read_settings(os.environ, Path.cwd()), connection)

    def _list_places(self, connection: Connection) -> list[tuple[str, str]]:
        schemas: Sequence[str] = connection.exec_driver_sql(SCHEMAS).scalars().all()
        return [(one, name) for one in schemas for name in read_tables(connection, schema=one)]

    def _compare_replay(self, log: Oplog) -> list[str]:
        with self.engine.begin() as connection:
            schemas = connection.exec_driver_sql(SCHEMAS).scalars().all()
            log.replay(connection, into=REPLAYED)
            found = self._read(connection, REPLAYED)
            expected: dict[str, Content] = {}
            for schema in schemas:
                expected |= self._read(connection, schema)
            connection.exec_driver_sql(f"DROP SCHEMA {REPLAYED} CASCADE")
        lines = compare_content(expected, found)
        # A table without a guard, or to which nothing was written, is not in the log.
        without = {name for name, one in expected.items() if not one.table.key or not one.rows}
        return [one for one in lines if one.removesuffix(" is missing") not in without]

    @staticmethod
    def _read(connection: Connection, schema: str) -> dict[str, Content]:
        return read_content(connection, read_tables(connection, schema=schema), schema=schema)
