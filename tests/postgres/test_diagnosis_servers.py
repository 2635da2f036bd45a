"""Diagnoses of whole servers: one that is as it should be, a weak one, a standby."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Finding, Keyring, Oplog, TypeCatalog
from oplog.doctor.environment import judge_settings
from oplog.doctor.facts import read_facts
from oplog.schema.grants import RoleKind, list_grants
from oplog.store import Store
from oplog.testing import EmbeddedServer
from tests.logged import open_logged, track
from tests.models.bank import AGGREGATES, Account, Base
from tests.postgres.shop import open_shop
from tests.support import administer, install_log

pytestmark = pytest.mark.postgres

RIGHTS = (
    *list_grants("app", RoleKind.APPLICATION, schema="oplog"),
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app",
)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Everything as the guide says: durable, with time limits, an owner and an application."""
    settings = {"idle_in_transaction_session_timeout": "1min"}
    with EmbeddedServer(fsync=True, settings=settings) as server:
        administer(
            make_url(server.url),
            "CREATE ROLE owner LOGIN",
            "CREATE ROLE app LOGIN",
            "CREATE DATABASE shop OWNER owner",
        )
        administer(make_url(server.url).set(database="shop"), "ALTER SCHEMA public OWNER TO owner")
        url = make_url(server.url).set(database="shop")
        engine = sa.create_engine(url.set(username="owner"), poolclass=NullPool)
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            install_log(connection)
        track(engine, *Base.metadata.tables.values())
        with engine.begin() as connection:
            for statement in RIGHTS:
                connection.exec_driver_sql(statement)
        engine.dispose()
        yield server


@pytest.fixture
def url(server: EmbeddedServer) -> URL:
    return make_url(server.url).set(database="shop", username="app")


@pytest.fixture(scope="module")
def keyring() -> Keyring:
    return Keyring.generate()


def diagnose(url: URL, keyring: Keyring) -> list[Finding]:
    engine = sa.create_engine(url, poolclass=NullPool)
    log = Oplog(TypeCatalog.from_models(Base, aggregates=AGGREGATES), keyring=keyring)
    with engine.connect() as connection:
        return log.diagnose(connection)


def test_a_healthy_server(url: URL, keyring: Keyring) -> None:
    assert diagnose(url, keyring) == []
    engine = sa.create_engine(url, poolclass=NullPool)
    log = Oplog(TypeCatalog.from_models(Base, aggregates=AGGREGATES), keyring=keyring)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.add(Account(owner="Ada", balance=1))
        session.flush()
        session.execute(sa.update(Account).where(Account.balance > 0).values(note="n"))
    assert diagnose(url, keyring) == []
    with engine.connect() as connection:
        assert log.verify(connection).ok


def test_doctor_ends_well_with_notices_alone(server: EmbeddedServer, tmp_path: Path) -> None:
    administer(make_url(server.url), "DROP DATABASE IF EXISTS other", "CREATE DATABASE other")
    url = make_url(server.url).set(database="other")
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        install_log(connection)
    shop = open_shop(tmp_path, url)
    shop.fill()
    shop.execute(*(f"SELECT oplog.oplog_track_table('{t}', NULL)" for t in ("account", "line")))
    document = shop.ask("doctor")
    assert (document["ok"], document["problems"]) == (True, 0)
    assert {f["what"] for f in document["findings"]} == {"owner-connected", "owner-superuser"}
    assert shop.call("doctor")[0].splitlines()[-1] == "0 problems, 2 notices"
    assert "append-only: yes" in shop.call("status")[0]


def test_a_weak_server(keyring: Keyring) -> None:
    with EmbeddedServer(settings={"full_page_writes": "off"}) as server:
        found = {(f.severity, f.what, f.where) for f in diagnose(make_url(server.url), keyring)}
    assert {f for f in found if f[1] == "setting"} == {
        ("problem", "setting", "fsync"),
        ("problem", "setting", "full_page_writes"),
        ("notice", "setting", "idle_in_transaction_session_timeout"),
    }


@pytest.mark.parametrize(
    ("over_tcp", "seconds", "told"),
    [(True, "7200", True), (True, "0", True), (True, "60", False), (False, "0", False)],
)
def test_clients_that_vanish(url: URL, over_tcp: bool, seconds: str, told: bool) -> None:
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        facts = read_facts(connection, Store("oplog"), tables=[])
    assert facts.over_tcp is False
    settings = {**facts.settings, "tcp_keepalives_idle": seconds}
    found = list(judge_settings(replace(facts, over_tcp=over_tcp, settings=settings)))
    assert [f.where for f in found] == (["tcp_keepalives_idle"] if told else [])


def test_a_standby(keyring: Keyring) -> None:
    with EmbeddedServer(fsync=True) as server:
        engine = sa.create_engine(server.url, poolclass=NullPool)
        with engine.begin() as connection:
            install_log(connection)
        db = open_logged(engine, Base, guarded=True, aggregates=AGGREGATES)
        with db.sessions.begin() as session:
            session.add(Account(owner="Ada", balance=1))
        bypassed = "BEGIN; SET LOCAL oplog.bypass = 'night'; UPDATE account SET balance = 2; COMMIT"
        administer(make_url(server.url), bypassed)
        db.execute("ALTER TABLE account DISABLE TRIGGER oplog_guard_truncate")
        before = diagnose(make_url(server.url), keyring)
        signal = server.directory / "data" / "standby.signal"
        signal.touch()
        if os.geteuid() == 0:
            account = pwd.getpwuid((server.directory / "data").stat().st_uid)
            os.chown(signal, account.pw_uid, account.pw_gid)
        server.restart()
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar() is True
        after = diagnose(make_url(server.url), keyring)
        assert [f for f in after if f.what != "standby"] == before
        assert {f.what for f in before} >= {"bypassed", "guard-disabled"}
        assert len(after) == len(before) + 1
        signal.unlink()
