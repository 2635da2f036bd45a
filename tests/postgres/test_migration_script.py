"""A migration that `psql` runs as a script: data and DDL on guarded tables, without the library."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import Oplog
from oplog.capture.script import split_script
from tests.logged import LoggedDatabase, open_logged
from tests.postgres.revisions import compare

pytestmark = pytest.mark.postgres

FIRED = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED;"


class Base(DeclarativeBase):
    pass


class Acct(Base):
    __tablename__ = "acct"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class Part(Base):
    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    acct_id: Mapped[int] = mapped_column(sa.ForeignKey(Acct.id, deferrable=True))


SCRIPT = f"""
BEGIN;
SET LOCAL oplog.bypass = 'script 42: kinds of accounts';
ALTER TABLE acct ADD COLUMN kind text;
UPDATE acct SET kind = 'personal';
INSERT INTO acct VALUES (7, 'seven', 'x');
INSERT INTO part VALUES (7, 7);
{FIRED}
ALTER TABLE acct ALTER COLUMN kind SET NOT NULL;
CREATE INDEX by_kind ON acct (kind);
DELETE FROM part WHERE id = 1;
UPDATE acct SET name = upper(name);
{FIRED}
ALTER TABLE acct ADD CHECK (name = upper(name));
ALTER TABLE part ADD COLUMN note text DEFAULT 'none';
UPDATE acct SET kind = 'business' WHERE id = 1;
COMMIT;
"""
"""The form that the manual gives."""


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, guarded=True)
    with db.sessions.begin() as session:
        session.add_all([Acct(id=n, name=f"n {n}") for n in (1, 2)])
        session.add(Part(id=1, acct_id=1))
    return db


@pytest.fixture
def psql(engine: Engine) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection as psql has it."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def bring_up_to_date(log: Oplog, engine: Engine, *tables: str) -> None:
    """`oplog types sync`, and `oplog adopt --again` for the tables that the script wrote."""
    with engine.begin() as connection:
        log.store_types(connection)
    with engine.connect() as connection:
        log.adopt(connection, tables, again=True)


@pytest.mark.parametrize("whole", [True, False], ids=["psql -c", "psql -f"])
@pytest.mark.parametrize("implicit", [True, False])
def test_the_form_that_the_manual_gives(
    db: LoggedDatabase,
    psql: psycopg.Connection[tuple[object, ...]],
    whole: bool,
    implicit: bool,
) -> None:
    script = SCRIPT
    if implicit and whole:
        # What psql sends at once is one transaction anyway.
        script = script.replace("BEGIN;", "").replace("COMMIT;", "")
    for statement in [script] if whole else split_script(script):
        psql.execute(statement.encode())
    marks = [entry for entry in db.read() if entry.aggregate == "oplog/bypass"]
    assert {mark.metadata["oplog.bypass"][0] for mark in marks} == {"script 42: kinds of accounts"}
    assert len(marks) == 3
    db.log.refresh()
    with db.engine.connect() as connection:
        names = {row.name: row.kind for row in connection.execute(sa.text("SELECT * FROM acct"))}
    assert names == {"N 1": "business", "N 2": "personal", "SEVEN": "x"}
    bring_up_to_date(db.log, db.engine, "acct")
    with db.engine.begin() as connection:
        # Rows of it were deleted, which adopting does not tell.
        db.log.replace_type(connection, "part", reason="script 42")
    with db.engine.connect() as connection:
        verdict = db.log.verify(connection)
    assert verdict.ok, verdict.differences
    with db.sessions.begin() as session:
        session.get_one(Acct, 1).name = "WRITTEN AGAIN"
    with db.engine.connect() as connection:
        assert db.log.verify(connection).ok


def test_without_the_two_lines_postgres_refuses(
    db: LoggedDatabase, psql: psycopg.Connection[tuple[object, ...]]
) -> None:
    script = SCRIPT.replace(FIRED, "")
    with pytest.raises(psycopg.errors.ObjectInUse, match="pending trigger events"):
        psql.execute(script.encode())
    psql.execute("ROLLBACK")
    db.assert_replays()


def test_without_the_second_line_the_hint_names_it(
    db: LoggedDatabase, psql: psycopg.Connection[tuple[object, ...]]
) -> None:
    script = SCRIPT.replace("SET CONSTRAINTS ALL DEFERRED;", "")
    with pytest.raises(psycopg.DatabaseError, match="came before the change") as refused:
        psql.execute(script.encode())
    assert "SET CONSTRAINTS ALL DEFERRED" in str(refused.value.diag.message_hint)
    psql.execute("ROLLBACK")
    db.assert_replays()


def test_without_a_bypass_the_hint_names_it(
    db: LoggedDatabase, psql: psycopg.Connection[tuple[object, ...]]
) -> None:
    script = "\n".join(line for line in SCRIPT.splitlines() if "bypass" not in line)
    with pytest.raises(psycopg.DatabaseError, match="does not log them") as refused:
        psql.execute(script.encode())
    assert "oplog.bypass" in str(refused.value.diag.message_hint)
    psql.execute("ROLLBACK")
    db.assert_replays()


def test_the_same_script_through_the_door_needs_none_of_it(db: LoggedDatabase) -> None:
    """It may come from a file: each statement is captured exactly."""
    with db.engine.begin() as connection, db.log.migrating(connection):
        connection.exec_driver_sql(SCRIPT.replace("BEGIN;", "").replace("COMMIT;", ""))
        db.log.note_changes(connection)
    compare(db.log, db.engine, "acct")
    assert "DELETE part 1" in db.tell()
