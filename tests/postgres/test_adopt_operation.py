"""`op.adopt_table` in a revision: which log it finds, what it does, where it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import URL, Connection, Engine

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, UnknownTypeError
from oplog.migration import AdoptTableOp
from tests.logged import open_logged
from tests.models import bank
from tests.postgres.log_schema import Application

pytestmark = pytest.mark.postgres

METADATA = sa.MetaData()
for _schema in (None, "Other schema"):
    sa.Table(
        "account",
        METADATA,
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("owner", sa.Text),
        schema=_schema,
    )
sa.Table("later", METADATA, sa.Column("id", sa.BigInteger, primary_key=True))
"""In the models, and made by a revision that is still to come."""


@pytest.fixture
def log() -> Oplog:
    return Oplog(TypeCatalog.from_models(METADATA), keyring=Keyring.generate())


@pytest.fixture
def tables(engine: Engine) -> None:
    with engine.begin() as connection:
        for statement in (
            'CREATE SCHEMA "Other schema"',
            "CREATE TABLE account (id bigint PRIMARY KEY, owner text)",
            'CREATE TABLE "Other schema".account (id bigint PRIMARY KEY, owner text)',
            "INSERT INTO account VALUES (1, 'Ada'), (2, 'Bo')",
            "INSERT INTO \"Other schema\".account VALUES (3, 'Cy')",
        ):
            connection.exec_driver_sql(statement)


def operations(connection: Connection, **opts: object) -> Any:
    """What a revision knows as `op`."""
    return Operations(MigrationContext.configure(connection, opts=dict(opts)))


def read(log: Oplog, engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {entry.aggregate: len(entry.operations) for entry in log.read(connection)}


def test_the_log_may_be_given(log: Oplog, engine: Engine, tables: None) -> None:
    with engine.begin() as connection:
        operations(connection).adopt_table("account", log=log)
        assert read(log, engine) == {}
    assert read(log, engine) == {"adopted/account": 2}


def test_the_log_may_be_configured(log: Oplog, engine: Engine, tables: None) -> None:
    with engine.begin() as connection:
        found = operations(connection, oplog=log)
        found.adopt_table("account", schema="Other schema")
        found.adopt_table("account")
        found.adopt_table("account")
    assert read(log, engine) == {"adopted/Other schema.account": 1, "adopted/account": 2}


def test_the_log_may_be_the_engine_s(log: Oplog, engine: Engine, tables: None) -> None:
    with engine.begin() as connection:
        connection.info["oplog.log"] = log
        operations(connection).adopt_table("account")
        del connection.info["oplog.log"]
    assert read(log, engine) == {"adopted/account": 2}


def test_the_nearest_log_is_taken(log: Oplog, engine: Engine, tables: None) -> None:
    other = Oplog(TypeCatalog(), plaintext=True)
    with engine.begin() as connection:
        connection.info["oplog.log"] = other
        with pytest.raises(UnknownTypeError):
            operations(connection).adopt_table("account")
        operations(connection, oplog=log).adopt_table("account")
        with pytest.raises(UnknownTypeError):
            operations(connection, oplog=log).adopt_table("account", log=other)
        del connection.info["oplog.log"]
    assert read(log, engine) == {"adopted/account": 2}


@pytest.mark.parametrize("configured", [None, "bank:log"])
def test_without_a_log_the_line_to_write_is_said(
    engine: Engine, tables: None, configured: object
) -> None:
    with engine.begin() as connection, pytest.raises(ConfigurationError) as caught:
        operations(connection, oplog=configured).adopt_table("account")
    assert "op.adopt_table('account') does not know the log" in str(caught.value)
    assert "context.configure(connection=connection, ..., oplog=log)" in caught.value.hint


def test_it_is_undone_with_its_transaction(log: Oplog, engine: Engine, tables: None) -> None:
    with engine.begin() as connection:
        operations(connection, oplog=log).adopt_table("account")
        connection.get_transaction().rollback()  # type: ignore[union-attr]
    assert read(log, engine) == {}
    with pytest.raises(ConfigurationError, match="append-only"):
        AdoptTableOp("account").reverse()


def test_in_a_revision_that_makes_and_fills_the_table(
    tmp_path: Path, bare_database_url: URL
) -> None:
    keyring = tmp_path / "keyring.json"
    Keyring.generate().save(keyring)
    application = Application(tmp_path, bare_database_url).write(
        upgrade="\n    ".join(
            [
                "from oplog import Keyring, Oplog, TypeCatalog",
                "metadata = sa.MetaData()",
                "sa.Table('account', metadata, sa.Column('id', sa.BigInteger, primary_key=True))",
                f"keyring = Keyring.from_file({str(keyring)!r})",
                "log = Oplog(TypeCatalog.from_models(metadata), keyring=keyring)",
                "op.execute('INSERT INTO account SELECT generate_series(1, 7)')",
                "op.create_oplog(version=1)",
                "op.adopt_table('account', log=log)",
            ]
        )
    )
    application.upgrade()
    metadata = sa.MetaData()
    sa.Table("account", metadata, sa.Column("id", sa.BigInteger, primary_key=True))
    log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.from_file(keyring))
    engine = sa.create_engine(bare_database_url)
    with engine.connect() as connection:
        verdict = log.verify(connection)
    assert (verdict.ok, verdict.rows) == (True, 7)
    engine.dispose()


def test_printed_as_sql_it_is_refused(tmp_path: Path, bare_database_url: URL) -> None:
    application = Application(tmp_path, bare_database_url).write(
        upgrade="op.adopt_table('account', schema='a b')"
    )
    with pytest.raises(ConfigurationError, match="cannot be adopted by SQL") as caught:
        application.print_upgrade()
    assert caught.value.hint.endswith("oplog adopt 'a b.account'")


def test_the_log_of_an_engine_whose_sessions_are_attached_is_found(engine: Engine) -> None:
    database = open_logged(engine, bank.Base, aggregates=bank.AGGREGATES, guarded=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL oplog.bypass = 'from before the log'")
        connection.exec_driver_sql("ALTER TABLE account DISABLE TRIGGER ALL")
        connection.exec_driver_sql("INSERT INTO account (owner, balance) VALUES ('x', 1)")
        for name in ("armed", "insert", "update", "delete", "truncate"):
            trigger = f"oplog_guard_{name}"
            connection.exec_driver_sql(f"ALTER TABLE account ENABLE ALWAYS TRIGGER {trigger}")
    with engine.begin() as connection:
        operations: Any = Operations(MigrationContext.configure(connection))
        operations.adopt_table("account")
    assert database.tell() == ["CREATE account 1"]
    database.assert_replays()
