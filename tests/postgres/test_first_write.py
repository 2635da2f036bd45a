"""What happens before anything was logged: binding, and rows that slipped past it."""

from __future__ import annotations

from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, InvalidMetadataError, SchemaVersionError
from oplog.schema.grants import RoleKind, list_grants
from tests.models.bank import Account
from tests.models.bank import Base as Bank
from tests.support import administer

pytestmark = pytest.mark.postgres


def attach_bank(engine: Engine, *, create: bool = True) -> tuple[Oplog, sessionmaker[Session]]:
    """A log of the bank on this engine, as a process that just started has it."""
    if create:
        Bank.metadata.create_all(engine)
    log = Oplog(TypeCatalog.from_models(Bank), keyring=Keyring.generate())
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return log, sessions


def make(number: int, owner: str = "ada") -> Account:
    return Account(id=number, owner=owner, balance=Decimal(5))


def test_rows_of_a_table_that_was_never_logged_are_extra(engine: Engine) -> None:
    log, sessions = attach_bank(engine)
    with sessionmaker(engine).begin() as unattached:
        unattached.add(make(1))
    with engine.connect() as connection:
        report = log.verify(connection)
    assert [(d.kind, d.key) for d in report.differences] == [("extra", {"id": 1})]
    with engine.connect() as connection:
        stored = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_type").scalar()
    assert stored == 0, "verify wrote something"
    with sessions() as session:
        assert session.get_one(Account, 1).owner == "ada"


def test_a_session_that_only_reads_needs_no_log(bare_database_url: sa.URL) -> None:
    engine = sa.create_engine(bare_database_url)
    Bank.metadata.create_all(engine)
    _, sessions = attach_bank(engine, create=False)
    with sessions.begin() as session:
        assert session.scalars(sa.select(Account)).all() == []
    with pytest.raises(SchemaVersionError) as caught, sessions.begin() as session:
        session.add(make(1))
    assert "op.create_oplog(version=1)" in caught.value.hint
    with sessions() as session:
        assert session.scalars(sa.select(Account)).all() == []
    engine.dispose()


def test_types_outlive_the_rollback_of_the_transaction_that_needed_them(engine: Engine) -> None:
    log, sessions = attach_bank(engine)
    with sessions() as session:
        session.add(make(1))
        session.flush()
        session.rollback()
    with engine.connect() as connection:
        assert len(log.store.list_types(connection)) == len(log.catalog.types)
        assert list(log.read(connection)) == []


def test_tables_made_by_the_same_transaction_are_bound_in_it(engine: Engine) -> None:
    log, sessions = attach_bank(engine, create=False)
    with sessions() as session:
        Bank.metadata.create_all(session.connection())
        session.add(make(1))
        session.flush()
        session.rollback()
    with sessions.begin() as session:
        Bank.metadata.create_all(session.connection())
        session.add(make(2))
    with engine.connect() as connection:
        assert log.verify(connection).ok
        assert [entry.aggregate for entry in log.read(connection)] == ["account/2"]


def test_a_server_without_a_free_connection_still_gets_its_types(
    engine: Engine, database_url: sa.URL
) -> None:
    Bank.metadata.create_all(engine)
    name = database_url.database
    administer(
        database_url,
        "DROP ROLE IF EXISTS only_one",
        "CREATE ROLE only_one LOGIN CONNECTION LIMIT 1",
        f"GRANT ALL ON DATABASE {name} TO only_one",
        "GRANT ALL ON SCHEMA public TO only_one",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO only_one",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO only_one",
        *list_grants("only_one", RoleKind.APPLICATION, schema="oplog"),
    )
    alone = sa.create_engine(database_url.set(username="only_one"), pool_size=1, max_overflow=0)
    log, sessions = attach_bank(alone, create=False)
    with sessions.begin() as session:
        session.add(make(1))
    alone.dispose()
    with engine.connect() as connection:
        assert log.verify(connection).ok
    administer(database_url, "DROP OWNED BY only_one", "DROP ROLE only_one")


def test_metadata_has_a_limit_over_all_its_keys(engine: Engine) -> None:
    log, sessions = attach_bank(engine)
    with sessions() as session, pytest.raises(InvalidMetadataError, match="257"):
        log.annotate(session, a=["x"] * 200, b=["y"] * 57)
    with sessions() as session:
        log.annotate(session, a=["x"] * 200)
        session.add(make(1))
        log.annotate(session, b=["y"] * 100)
        with pytest.raises(InvalidMetadataError, match="300"):
            session.commit()
    with engine.connect() as connection:
        assert list(log.read(connection)) == []


def test_only_full_verification_is_offered(engine: Engine) -> None:
    log, _ = attach_bank(engine)
    with engine.connect() as connection:
        assert log.verify(connection, full=True).ok
        with pytest.raises(ConfigurationError):
            log.verify(connection, full=False)
