"""Attached sessions that alter tables: what they did before is a record of its own."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from oplog import Operation, Oplog, OpType, TypeCatalog
from oplog.entry import Entry
from oplog.errors import ConfigurationError, NotCapturableError
from tests.logged import LoggedDatabase, open_logged
from tests.postgres.revisions import compare

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Acct(Base):
    __tablename__ = "acct"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class Later(DeclarativeBase):
    pass


class Kind(Later):
    """The same table, with a column that is still to come."""

    __tablename__ = "acct"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    kind: Mapped[str | None]


ADD = sa.text("ALTER TABLE acct ADD COLUMN kind text")
INDEX = sa.text("CREATE INDEX by_name ON acct (name)")


@pytest.fixture(params=[True, False], ids=["guarded", "not guarded"])
def db(request: pytest.FixtureRequest, engine: Engine) -> LoggedDatabase:
    return fill(open_logged(engine, Base, guarded=request.param))


@pytest.fixture
def guarded(engine: Engine) -> LoggedDatabase:
    return fill(open_logged(engine, Base, guarded=True))


def fill(db: LoggedDatabase) -> LoggedDatabase:
    with db.sessions.begin() as session:
        session.add_all([Acct(id=n, name=f"n {n}") for n in (1, 2)])
    return db


def count_records(db: LoggedDatabase) -> int:
    """Those of rows: another one says that the table has changed."""
    return len({entry.position for entry in db.read() if entry.operations})


def test_rows_before_and_after(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        db.log.annotate(session, actor="somebody")
        session.add(Acct(id=3, name="before"))
        session.get_one(Acct, 1).name = "before"
        session.flush()
        session.execute(INDEX)
        session.execute(ADD)
        session.get_one(Acct, 2).name = "after"
        session.add(Acct(id=4, name="after"))
    receipts = db.log.receipts(session)
    assert [receipt.aggregate for receipt in receipts] == ["acct/1", "acct/3", "acct/2", "acct/4"]
    assert len({receipt.record_id for receipt in receipts}) == 2
    compare(db.log, db.engine, "acct")
    told = [entry.metadata for entry in db.read()[2:] if entry.operations]
    assert told == [{"actor": ["somebody"]}] * 4
    with db.sessions.begin() as session:
        session.get_one(Acct, 1).name = "next"
    compare(db.log, db.engine, "acct")


def test_text_on_both_sides(guarded: LoggedDatabase) -> None:
    with guarded.sessions.begin() as session:
        session.execute(sa.text("UPDATE acct SET name = 'a'"))
        session.execute(ADD)
        session.execute(sa.text("UPDATE acct SET kind = name || ';b'"))
        session.execute(sa.text("ALTER TABLE acct ALTER kind SET NOT NULL"))
        session.execute(sa.text("DELETE FROM acct WHERE id = 1"))
    compare(guarded.log, guarded.engine, "acct")
    assert count_records(guarded) == 4


def test_models_that_know_the_new_column(db: LoggedDatabase) -> None:
    """Nobody else sees it yet, and there was no binding that the table would have fitted."""
    log = Oplog(TypeCatalog.from_models(Later), keyring=db.log.keyring)
    sessions = sessionmaker(db.engine)
    log.attach(sessions)
    with sessions.begin() as session:
        session.execute(ADD)
        session.add(Kind(id=3, name="new", kind="k"))
        session.get_one(Kind, 1).kind = "set"
        session.flush()
        session.execute(INDEX)
        session.get_one(Kind, 1).kind = "set again"
    compare(log, db.engine, "acct")
    with sessions.begin() as session:
        session.get_one(Kind, 2).kind = "later"
    compare(log, db.engine, "acct")


@pytest.mark.parametrize(
    "statement", ["CREATE TEMP TABLE t (a int)", "COMMENT ON TABLE acct IS ''"]
)
def test_what_alters_no_table_splits_no_record(db: LoggedDatabase, statement: str) -> None:
    with db.sessions.begin() as session:
        session.add(Acct(id=3, name="x"))
        session.flush()
        session.execute(sa.text(statement))
        session.add(Acct(id=4, name="x"))
    assert count_records(db) == 2
    compare(db.log, db.engine, "acct")


def test_a_transaction_that_only_reads_before(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.get_one(Acct, 1)
        session.execute(INDEX)
        session.add(Acct(id=4, name="x"))
    assert count_records(db) == 2
    compare(db.log, db.engine, "acct")


def test_what_is_settled_in_a_savepoint_goes_with_it(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Acct(id=3, name="outside"))
        session.flush()
        with session.begin_nested() as undone:
            session.get_one(Acct, 1).name = "lost"
            session.flush()
            session.execute(INDEX)
            session.add(Acct(id=5, name="lost"))
            session.flush()
            session.execute(sa.text("ALTER TABLE acct ADD COLUMN lost text"))
            undone.rollback()
        with session.begin_nested():
            session.get_one(Acct, 2).name = "kept"
            session.flush()
            session.execute(INDEX)
        session.get_one(Acct, 1).name = "last"
    compare(db.log, db.engine, "acct")
    told = [receipt.aggregate for receipt in db.log.receipts(session)]
    assert told == ["acct/2", "acct/3", "acct/1"]
    assert count_records(db) == 3


def test_nested_savepoints_are_released_and_rolled_back(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Acct(id=3, name="outside"))
        with session.begin_nested() as outer:
            session.add(Acct(id=4, name="lost"))
            with session.begin_nested():
                session.add(Acct(id=5, name="lost"))
                session.flush()
                session.execute(INDEX)
            session.add(Acct(id=6, name="lost"))
            session.flush()
            session.execute(sa.text("DROP INDEX by_name"))
            outer.rollback()
    compare(db.log, db.engine, "acct")
    assert [receipt.aggregate for receipt in db.log.receipts(session)] == ["acct/3"]


def test_all_of_it_is_rolled_back(db: LoggedDatabase) -> None:
    before = db.tell()
    with db.sessions() as session:
        session.get_one(Acct, 1).name = "lost"
        session.flush()
        session.execute(ADD)
        session.rollback()
    assert db.tell() == before
    compare(db.log, db.engine, "acct")


def test_tickets_hold_over_a_settled_record(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        ticket = db.log.take_ticket(session, "acct/1")
        session.get_one(Acct, 1).name = "once"
        session.flush()
        session.execute(INDEX)
        session.get_one(Acct, 1).name = "twice"
        session.flush()
        assert db.log.take_ticket(session, "acct/1") is ticket
    assert [r.version for r in db.log.receipts(session)] == [2, 3]
    compare(db.log, db.engine, "acct")


def test_entries_by_hand(guarded: LoggedDatabase) -> None:
    """A ticket that a settled record redeemed is still this transaction's."""
    operation = Operation(OpType.UPDATE, "acct", key={"id": 1}, fields={"name": "by hand"})
    with guarded.sessions.begin() as session:
        ticket = guarded.log.take_ticket(session, "acct/1")
        guarded.log.append(session, Entry("acct/1", [operation]), ticket)
        session.execute(INDEX)
        session.execute(sa.text("SELECT 1"))
        guarded.log.append(session, Entry("acct/1", [operation]), ticket)
    assert [r.version for r in guarded.log.receipts(session)] == [2, 3]


def write_and_alter(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        db.log.annotate(session, idempotency_key="k")
        session.add(Acct(id=3, name="x"))
        session.flush()
        session.execute(INDEX)


def test_an_idempotency_key_stands_for_one_record(guarded: LoggedDatabase) -> None:
    with pytest.raises(ConfigurationError, match="stands for one record"):
        write_and_alter(guarded)
    compare(guarded.log, guarded.engine, "acct")
    with guarded.sessions.begin() as session:
        guarded.log.annotate(session, idempotency_key="k")
        session.execute(INDEX)
        session.add(Acct(id=3, name="x"))
    assert len(guarded.log.receipts(session)) == 1
    compare(guarded.log, guarded.engine, "acct")


def test_an_engine_that_is_attached(guarded: LoggedDatabase) -> None:
    """As programs use it that run operations without an environment."""
    guarded.log.attach(guarded.engine)
    with guarded.engine.begin() as connection:
        connection.execute(sa.insert(Acct), [{"id": n, "name": "x"} for n in (7, 8)])
        connection.execute(sa.text("UPDATE acct SET name = 'y' WHERE id = 1"))
        connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
        connection.execute(sa.text("UPDATE acct SET name = 'z' WHERE id = 2"))
        sa.Index("by_name", Acct.__table__.c.name).create(connection)
        connection.execute(sa.delete(Acct).where(Acct.id == 8))
    Acct.__table__.indexes.clear()  # type: ignore[attr-defined]
    assert len(guarded.log.receipts(connection)) == 5
    compare(guarded.log, guarded.engine, "acct")


def test_plans_for_tables_that_nobody_else_sees_are_not_kept(engine: Engine) -> None:
    """A guard that was rolled back with its transaction captures nothing of the next one."""
    db = fill(open_logged(engine, Base))
    table: sa.Table = Acct.__table__  # type: ignore[assignment]
    copied = sa.insert(table).from_select(["id", "name"], sa.select(table.c.id + 10, table.c.name))
    with db.sessions() as session:
        session.execute(sa.text("SELECT oplog.oplog_track_table('acct', NULL)"))
        session.execute(copied)
        with db.sessions() as other:
            other.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            with pytest.raises(NotCapturableError):
                other.execute(copied)
        session.rollback()
    with db.sessions() as session, pytest.raises(NotCapturableError):
        session.execute(copied)
    with db.sessions.begin() as session:
        session.execute(sa.text("SELECT oplog.oplog_track_table('acct', NULL)"))
        session.execute(copied)
    compare(db.log, db.engine, "acct")
    with db.sessions.begin() as session:
        session.execute(
            sa.insert(Acct).from_select(["id", "name"], sa.select(Acct.id + 20, Acct.name))
        )
    compare(db.log, db.engine, "acct")
