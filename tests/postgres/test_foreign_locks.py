"""Locks of a role that may do nothing but connect, or read: nothing of the log waits for them.

Whoever may connect may take every advisory lock, and sees in `pg_locks` which are in use. Whoever
may read a table may lock it against being dropped. The attacker does both, and looks at
`pg_locks` after each statement of what it attacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from oplog import Outcome
from oplog.schema.tables import create_statements
from tests.databases import FreshDatabase
from tests.models.bank import Account
from tests.postgres.archived import open_memory, reopen
from tests.postgres.roles import (
    APPLICATION,
    AUDITOR,
    OWNER,
    STRANGER,
    WORKER,
    Roles,
    open_roles,
)

pytestmark = pytest.mark.postgres

MODES = (
    "ACCESS SHARE",
    "ROW SHARE",
    "ROW EXCLUSIVE",
    "SHARE UPDATE EXCLUSIVE",
    "SHARE",
    "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
)
# What anybody can know: names of keys and aggregates, the log's schema, the ids of its archives.
PUBLIC = (
    "oplog key oplog/{name}",
    "oplog aggregate oplog/{name}",
    "oplog archive oplog/{name}",
    "aggregate/{name}",
    "archive/{name}",
    "{name}",
    "oplog prune oplog",
    "oplog/restore/oplog",
    'oplog partitions "oplog"',
    "prune",
    "restore",
    "partitions",
)


class Attacker:
    """A role that holds all that it can."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.taken: set[int] = set()

    def take_names(self, *names: str) -> None:
        """Every advisory lock whose number is the hash of a name, and more of the kind."""
        for text in {pattern.format(name=name) for pattern in PUBLIC for name in names}:
            self._connection.exec_driver_sql(
                "SELECT pg_advisory_lock(hashtextextended(%s, 0)), pg_advisory_lock(hashtext(%s))",
                (text, text),
            )

    def take_seen(self) -> None:
        """Every advisory lock that is in use, as soon as it is free."""
        numbers = self._connection.exec_driver_sql(
            "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks "
            "WHERE locktype = 'advisory' AND pid <> pg_backend_pid() "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        self.taken |= set(numbers.scalars())
        for number in self.taken:
            self._connection.exec_driver_sql("SELECT pg_try_advisory_lock(%s)", (number,))

    def lock_tables(self) -> set[str]:
        """Every table in every mode; the modes that were granted."""
        tables = self._connection.exec_driver_sql(
            "SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'oplog' AND c.relkind IN ('r', 'p')"
        )
        granted = set()
        for table in tables.scalars().all():
            for mode in MODES:
                savepoint = self._connection.begin_nested()
                try:
                    lock = f"LOCK TABLE {table} IN {mode} MODE NOWAIT"
                    self._connection.exec_driver_sql(lock)
                except DBAPIError:
                    savepoint.rollback()
                else:
                    granted.add(mode)
        return granted


@pytest.fixture(params=[STRANGER, AUDITOR])
def attacking(request: pytest.FixtureRequest) -> str:
    """Who attacks."""
    return str(request.param)


@pytest.fixture
def roles(bare_database_url: URL) -> Iterator[Roles]:
    with open_roles(bare_database_url, create_statements()) as roles:
        yield roles


@pytest.fixture
def target(spare_database: FreshDatabase) -> Iterator[Roles]:
    """An empty database with the same tables and roles of its own."""
    spare_database.ensure(template="template1")
    with open_roles(spare_database.url, create_statements()) as roles:
        yield roles


@contextmanager
def attack(roles: Roles, role: str, *names: str) -> Iterator[Attacker]:
    """The role holds all that it can, and goes on looking."""
    if role == AUDITOR:
        roles.run(OWNER, f"GRANT SELECT ON ALL TABLES IN SCHEMA oplog TO {roles.names[role]}")
    with roles.engine(role).connect() as connection:
        attacker = Attacker(connection)
        attacker.take_names(*names)
        assert attacker.lock_tables() == ({"ACCESS SHARE"} if role == AUDITOR else set())
        yield attacker


def watch(engine: Engine, attacker: Attacker) -> Engine:
    """An engine whose sessions wait for nothing, with the attacker behind each statement."""

    @event.listens_for(engine, "connect")
    def hurry(connection: Any, _record: Any) -> None:
        connection.execute("SET lock_timeout = '1s'")
        connection.commit()

    @event.listens_for(engine, "after_cursor_execute")
    def look(*_: Any) -> None:
        attacker.take_seen()

    return engine


def test_writing_publishing_and_pruning_wait_for_no_stranger(roles: Roles, attacking: str) -> None:
    archive = open_memory()
    sessions = roles.open_sessions()
    with sessions.begin() as session:
        session.add_all([Account(id=number, owner="ada", balance=1) for number in (1, 2)])
    assert roles.open_log().sync(roles.engine(WORKER), reopen(archive)).entries == 2
    archive_id = str(reopen(archive).read_head().archive_id)
    with attack(roles, attacking, "pay", "account/1", archive_id) as attacker:
        log = roles.open_log()
        application = watch(roles.engine(APPLICATION), attacker)
        writers = sessionmaker(application)
        log.attach(writers)
        owner = watch(roles.engine(OWNER), attacker)
        # The first time the attacker sees what is used, the second time it has it.
        for number in (1, 2):
            for key in ("pay", f"pay {number}"):
                log.run(writers, write, idempotency_key=key)
                assert log.resolve(key, application, wait_seconds=0) is Outcome.COMMITTED
            with writers.begin() as session:
                log.lock(session, ["account/1", "account/2"])
                session.get_one(Account, 1).note = f"locked {number}"
            worker = watch(roles.engine(WORKER), attacker)
            assert roles.open_log().sync(worker, reopen(archive)).entries > 0
            pruned = roles.open_log().prune(owner, reopen(archive), keep=timedelta(0))
            assert pruned.entries > 0
            with owner.begin() as connection:
                made = f"SELECT oplog.oplog_make_partitions({number << 30})"
                assert connection.exec_driver_sql(made).scalar_one() == 6
            log.maintain(owner)
    assert roles.open_log().check(reopen(archive)).ok
    with roles.engine(OWNER).connect() as connection:
        assert log.verify(connection, archive=reopen(archive)).ok


def write(session: Session) -> None:
    session.get_one(Account, 1).balance += 1


def test_a_restore_waits_for_no_stranger(roles: Roles, target: Roles, attacking: str) -> None:
    archive = open_memory()
    with roles.open_sessions().begin() as session:
        session.add(Account(id=1, owner="ada", balance=1))
    roles.open_log().sync(roles.engine(WORKER), reopen(archive))
    log = roles.open_log()
    with (
        attack(target, attacking) as attacker,
        watch(target.engine(OWNER), attacker).connect() as connection,
    ):
        transaction = connection.begin()
        log.restore(reopen(archive), connection)
        transaction.rollback()
        assert log.restore(reopen(archive), connection).rows == 1


def test_who_holds_a_key_is_told_although_a_stranger_hides_it(roles: Roles, attacking: str) -> None:
    sessions = roles.open_sessions()
    log = roles.open_log()
    log.attach(sessions)
    inquire = sa.create_engine(roles.url)
    with sessions() as holder, sessions() as other, attack(roles, attacking, "k"):
        for session, key in ((holder, "k"), (other, "another")):
            session.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            log.annotate(session, idempotency_key=key)
        found = log.inquire("k", inquire, wait_seconds=0)
        assert found.outcome is Outcome.PENDING
        # The mark is the stranger's: then all that hold any key are named, and no stranger.
        processes = [one.scalar(sa.text("SELECT pg_backend_pid()")) for one in (holder, other)]
        assert sorted(blocker.process_id for blocker in found.blockers) == sorted(processes)
        found = log.inquire("another", inquire, wait_seconds=0)
        assert [blocker.process_id for blocker in found.blockers] == processes[1:]
    inquire.dispose()
