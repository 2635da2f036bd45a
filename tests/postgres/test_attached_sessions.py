"""Attached sessions that do what `tests/sessions` makes: what they commit is in the log.

And what a malicious role that may append can still do: `verify` finds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from psycopg.errors import Error
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import OplogError
from oplog.schema.guard import FORMAT_MARK
from tests.older import NEWEST_AND_OLDER, find_programs
from tests.postgres.appending import state_append
from tests.sampling import Sample
from tests.sessions.arena import (
    APPLICATION,
    AUDITOR,
    CHIEF,
    GUARDED,
    KEEPER,
    SEED,
    STRANGER,
    Arena,
    execute,
    open_arena,
)
from tests.sessions.generator import build, list_cases

pytestmark = pytest.mark.postgres


@dataclass
class LoggedArena:
    """An arena whose rows were written through the log."""

    arena: Arena
    log: Oplog
    sessions: sessionmaker[Session]
    judge: Engine

    def send(self, session: Session, statements: Sequence[str], role: str) -> None:
        connection: Any = session.connection()
        for statement in statements:
            filled = self.arena.fill(statement, role)
            if filled.startswith("COPY"):
                execute(connection.connection.driver_connection, filled)
            else:
                connection.exec_driver_sql(filled, execution_options={"no_parameters": True})

    def seed(self) -> None:
        with self.sessions.begin() as session:
            self.send(session, SEED, APPLICATION)

    def verifies(self) -> bool:
        with self.judge.connect() as connection:
            return self.log.verify(connection).ok


@pytest.fixture(scope="module", params=NEWEST_AND_OLDER)
def logged(request: pytest.FixtureRequest) -> Iterator[LoggedArena]:
    with open_arena(find_programs(request.param)) as arena:
        judge = sa.create_engine(arena.server.url, poolclass=NullPool)
        metadata = sa.MetaData()
        metadata.reflect(judge, only=(*GUARDED, "parent"))
        catalog = TypeCatalog.from_models(metadata, untracked={"parent": "it has no guard"})
        log = Oplog(catalog, keyring=Keyring.generate())
        url = sa.make_url(arena.server.url).set(username=APPLICATION)
        sessions = sessionmaker(sa.create_engine(url, poolclass=NullPool))
        log.attach(sessions)
        arena.empty()
        logged = LoggedArena(arena, log, sessions, judge)
        logged.seed()
        yield logged


BATCH = 20
"""Checked together: each check folds the whole log."""


@pytest.mark.sampled
def test_what_is_committed_is_in_the_log(logged: LoggedArena, sample: Sample) -> None:
    arena = logged.arena
    cases = sample(list_cases(APPLICATION, arena.settings, version=arena.version), 120)
    committed: list[str] = []
    # The log grows with what was tried, so that even a whole run leaves some out.
    for case in cases[:: max(1, len(cases) // 1000)]:
        before = arena.read()
        made = build(case, arena.settings)
        with suppress(OplogError, DBAPIError, Error), logged.sessions.begin() as session:
            logged.send(session, made.statements, APPLICATION)
        arena.clean(APPLICATION)
        if arena.read() != before:
            committed.append(str(made))
            if len(committed) % BATCH == 0:
                assert logged.verifies(), "\n".join(committed[-BATCH:])
            logged.seed()
    assert logged.verifies(), "\n".join(committed[-BATCH:])
    assert len(committed) > len(cases) / 5


OPEN = "current_setting('oplog.tally')::bigint"
NO_IMAGES = "SELECT count(*) FROM oplog.oplog_collect_images()"
CLOSE = "SELECT set_config('oplog.tally', '0', true)"
ARM = "SELECT set_config('oplog.armed', pg_current_xact_id()::text, true)"
WRITE = "UPDATE account SET balance = balance + 1"
ANNOUNCED = "/*oplog:{account}*/ " + WRITE
RECORD = state_append(
    p_record="'{record}'::uuid",
    p_aggregates="ARRAY['oplog/request/x']",
    p_data="''::bytea",
    p_format=f"{FORMAT_MARK}::smallint",
    p_key_id="''",
    p_tally=OPEN,
)
"""One that is whole, and tells nothing of the rows."""
MALICE = {
    "a record that tells something else": (ANNOUNCED, RECORD),
    "a record in place of images": (WRITE, NO_IMAGES, RECORD),
    "settled": (ANNOUNCED, f"SELECT oplog.oplog_settle({OPEN})"),
    "settled, no images": (WRITE, NO_IMAGES, f"SELECT oplog.oplog_settle({OPEN})"),
    "armed by hand": (ARM, ANNOUNCED),
    "closed by hand": (ANNOUNCED, CLOSE),
    "closed by hand, no images": (WRITE, NO_IMAGES, CLOSE),
}
"""What only a malicious role sends. It has to announce, or to take images away."""


@pytest.mark.parametrize("way", MALICE)
def test_a_malicious_application_is_found_by_verify(logged: LoggedArena, way: str) -> None:
    arena = logged.arena
    before = arena.read()
    execute_all(arena, APPLICATION, MALICE[way])
    assert arena.read() != before
    assert not logged.verifies()
    # As it was, and as the log has it: a bypass back.
    with arena.judge.transaction():
        arena.judge.execute("SET LOCAL oplog.bypass = 'undone'")
        arena.judge.execute("UPDATE account SET balance = balance - 1")
    assert logged.verifies()


@pytest.mark.parametrize("way", MALICE)
@pytest.mark.parametrize("role", [STRANGER, AUDITOR, KEEPER])
def test_a_role_that_may_not_append_cannot(logged: LoggedArena, way: str, role: str) -> None:
    arena = logged.arena
    before = arena.read()
    with pytest.raises(Error):
        execute_all(arena, role, MALICE[way])
    arena.clean(role)
    assert arena.read() == before


def test_a_malicious_application_that_may_bypass(logged: LoggedArena) -> None:
    """Its mark tells less than it did: only if it sets the tally, and `verify` finds it."""
    arena = logged.arena
    less = "SELECT set_config('oplog.tally', ({oid} * 4 + 2)::text, true)".replace(
        "{oid}", "('child'::regclass::bigint & 1048575)"
    )
    reason = "SET LOCAL oplog.bypass = 'repair'"
    delete = "DELETE FROM child WHERE id = 1"
    with pytest.raises(Error, match="statements were announced"):
        execute_all(arena, CHIEF, (reason, ANNOUNCED, delete))
    arena.clean(CHIEF)
    execute_all(arena, CHIEF, (reason, ANNOUNCED, delete, less))
    assert not logged.verifies()
    arena.empty()
    logged.seed()


def execute_all(arena: Arena, role: str, statements: Sequence[str]) -> None:
    """As a session that is not attached."""
    connection = arena.connect(role)
    for statement in ("BEGIN", *statements, "COMMIT"):
        execute(connection, arena.fill(statement, role).replace("{record}", str(uuid4())))
    arena.clean(role)
