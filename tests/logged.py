"""A test's database with models, a log and a sessionmaker attached to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from oplog import Keyring, LoggedEntry, Operation, Oplog, TypeCatalog
from oplog.postgres.quoting import (
    qualify,
)
from oplog.schema.tables import (
    track_statements,
)
from tests.databases import fill_database
from tests.support import assert_replays


@dataclass(frozen=True)
class LoggedDatabase:
    """What most capture tests work with."""

    engine: Engine
    log: Oplog
    sessions: sessionmaker[Session]

    def read(self) -> list[LoggedEntry]:
        """All entries."""
        with self.engine.connect() as connection:
            return list(self.log.read(connection))

    def tell(self) -> list[str]:
        """All operations of all entries, briefly: 'CREATE account 1'."""
        return [brief(o) for entry in self.read() for o in entry.operations]

    def read_last(self) -> Operation:
        """The only operation of the last entry."""
        (operation,) = self.read()[-1].operations
        return operation

    def count(self, table: str) -> int:
        """Live rows of a table."""
        with self.engine.connect() as connection:
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())

    def execute(self, *statements: str) -> None:
        """Run statements behind the log's back."""
        run(self.engine, *statements)

    def assert_replays(self) -> None:
        """The log tells the live rows."""
        assert_replays(self.log, self.engine)

    def assert_pool_is_clean(self) -> None:
        """No connection went back to the pool inside a transaction."""
        with self.engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            assert raw.info.transaction_status.name == "IDLE"
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        assert self.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def brief(operation: Operation) -> str:
    """'UPDATE account 1', with the parts of a composite key joined by '/'."""
    key = "/".join(str(part) for part in operation.key.values())
    return f"{operation.kind.name} {operation.type_name} {key}"


def track(engine: Engine, *tables: sa.Table) -> None:
    """Put guards on tables."""
    named = (qualify([table.name], table.schema) for table in tables)
    run(engine, *(statement for name in named for statement in track_statements(name)))


def open_logged(
    engine: Engine,
    models: type[DeclarativeBase] | sa.MetaData,
    *,
    strict: bool = False,
    guarded: bool = False,
    objects: Sequence[str] = (),
    seed: str | None = None,
    **catalog: Any,
) -> LoggedDatabase:
    """Create the models' tables, guarded or not, and attach a log to a new sessionmaker.

    `objects` are created between tables and guards. With `seed`, which may be "", the log knows
    types and key already, and these statements were its first transaction.
    """
    metadata = models if isinstance(models, sa.MetaData) else models.metadata
    untracked = catalog.get("untracked", {})
    tables = tuple(metadata.tables.values())
    guarded_tables = [t for t in tables if t.fullname not in untracked] if guarded else []
    declared = TypeCatalog.from_models(models, **catalog)

    def fill(engine: Engine) -> Keyring:
        keyring = Keyring.generate()
        metadata.create_all(engine)
        run(engine, *objects)
        track(engine, *guarded_tables)
        if seed is not None:
            write_first(Oplog(declared, keyring=keyring, strict=strict), engine, seed)
        return keyring

    content = (metadata, tables, tuple(guarded_tables), tuple(objects), seed, repr(catalog))
    keyring = fill_database(engine, content, fill)
    if seed is None:
        keyring = Keyring.generate()
    log = Oplog(declared, keyring=keyring, strict=strict)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return LoggedDatabase(engine, log, sessions)


def write_first(log: Oplog, engine: Engine, statements: str = "") -> None:
    """The transaction that stores types and key, with these statements in it."""
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        connection = session.connection()
        if statements:
            connection.exec_driver_sql(statements)
    log.detach(sessions)


def run(engine: Engine, *statements: str) -> None:
    """Run statements behind the log's back."""
    with engine.begin() as connection:
        for statement in statements:
            # Without this a percent sign in DDL would be taken for a placeholder.
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
