"""What nobody logs is refused at COMMIT, by name and number, whoever writes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, UnloggedWriteError
from oplog.schema.tables import track_statements, untrack_statements
from tests.logged import LoggedDatabase, open_logged, track
from tests.models.bank import AGGREGATES, Account, Base, Line, Order
from tests.older import mark_cases

pytestmark = pytest.mark.postgres

ACCOUNT: sa.Table = Base.metadata.tables["account"]
RAW = "INSERT INTO account (owner, balance) VALUES ('raw', 1), ('raw', 2)"


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    with db.sessions.begin() as session:
        session.add_all([Account(id=n, owner="ada", balance=n) for n in (101, 102)])
    return db


@pytest.fixture
def raw(db: LoggedDatabase, database_url: URL) -> Iterator[psycopg.Connection[Any]]:
    """A session that knows nothing of the log, as psql's."""
    conninfo = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo) as connection:
        yield connection
        connection.rollback()


def run(db: LoggedDatabase, *statements: str) -> None:
    """DDL, which guards do not watch."""
    with db.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


# -- strangers ----------------------------------------------------------------------------------


def test_a_stranger_is_refused_with_table_and_count(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    told: list[tuple[str | None, str | None]] = []
    raw.add_notice_handler(lambda d: told.append((d.severity, d.sqlstate)))
    raw.execute(RAW)
    raw.execute("UPDATE account SET note = 'x' WHERE id = 101")
    raw.execute('INSERT INTO "order" (id, customer) VALUES (7, %s)', ("x",))
    with pytest.raises(psycopg.DatabaseError) as refused:
        raw.commit()
    assert refused.value.sqlstate == "OP003"
    message = str(refused.value.diag.message_primary)
    assert 'public."order" (1 row)' in message
    assert "public.account (3 rows)" in message
    assert "attached" in str(refused.value.diag.message_hint)
    # One word of warning for each transaction, at its first such statement.
    assert told == [("INFO", "OP004")]
    assert raw.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert db.count("account") == 2
    db.assert_replays()


def test_a_stranger_that_rolls_back_its_savepoint_may_commit(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    raw.execute("CREATE TABLE free (id integer)")
    raw.execute("SAVEPOINT a")
    raw.execute(RAW)
    raw.execute("ROLLBACK TO a")
    raw.execute("INSERT INTO free VALUES (1)")
    raw.commit()
    raw.execute("SAVEPOINT a")
    raw.execute(RAW)
    raw.execute("ROLLBACK TO a")
    raw.execute("UPDATE account SET note = 'y'")
    with pytest.raises(psycopg.DatabaseError, match=r"public.account \(2 rows\)"):
        raw.commit()
    db.assert_replays()


AUTOCOMMITTED: dict[str, str] = {
    "insert": RAW,
    "update": "UPDATE account SET note = 'x'",
    "delete": "DELETE FROM account",
    "as a replica": "SET session_replication_role = replica; DELETE FROM account",
    "with a leaked setting": "SET oplog.tally = ''; SET oplog.armed = '1'; DELETE FROM account",
    "with a copied announcement": "/*oplog:{oid}*/ DELETE FROM account",
    "in a function": "DO $$ BEGIN DELETE FROM account; END $$",
    "in a cte": "WITH gone AS (DELETE FROM account RETURNING 1) SELECT count(*) FROM gone",
    "merge": "MERGE INTO account USING (SELECT 1) v ON true WHEN MATCHED THEN DELETE",
}


@pytest.mark.parametrize("statement", mark_cases(AUTOCOMMITTED))
def test_a_single_statement_is_refused(
    db: LoggedDatabase, raw: psycopg.Connection[Any], statement: str
) -> None:
    raw.autocommit = True
    oid = raw.execute("SELECT 'account'::regclass::oid").fetchone()
    with pytest.raises(psycopg.DatabaseError) as refused:
        raw.execute(statement.replace("{oid}", str(oid and oid[0])))
    assert refused.value.sqlstate == "OP003"
    raw.execute("UPDATE account SET note = 'x' WHERE false")
    db.assert_replays()


def test_copy_by_a_stranger_is_refused(db: LoggedDatabase, raw: psycopg.Connection[Any]) -> None:
    with raw.cursor().copy("COPY account (owner, balance) FROM STDIN") as copy:
        copy.write("x\t1\n")
    with pytest.raises(psycopg.DatabaseError, match=r"public.account \(1 row\)"):
        raw.commit()


def test_two_phase_commit_by_a_stranger_is_refused(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    raw.execute(RAW)
    with pytest.raises(psycopg.DatabaseError, match="does not log them"):
        raw.execute("PREPARE TRANSACTION 'x'")


def test_a_session_that_is_not_attached_is_refused(db: LoggedDatabase) -> None:
    """It shares the engine of one that is."""
    other = sessionmaker(db.engine)
    with pytest.raises(UnloggedWriteError, match=r"public.account \(1 row\)"), other.begin() as s:
        s.add(Account(owner="x", balance=1))
    with pytest.raises(UnloggedWriteError), Session(db.engine) as session, session.begin():
        session.execute(sa.text(RAW))
    with db.sessions.begin() as session:
        session.execute(sa.text(RAW))
    db.assert_replays()
    db.assert_pool_is_clean()


def test_an_engine_that_was_never_attached_is_refused(
    db: LoggedDatabase, database_url: URL
) -> None:
    engine = sa.create_engine(database_url)
    with pytest.raises(DatabaseError, match="does not log them"), engine.begin() as connection:
        connection.execute(ACCOUNT.insert(), {"owner": "x", "balance": 1})
    engine.dispose()
    db.assert_replays()


def test_a_detached_factory_is_refused(db: LoggedDatabase) -> None:
    db.log.detach(db.sessions)
    with pytest.raises(UnloggedWriteError), db.sessions.begin() as session:
        session.add(Account(owner="x", balance=1))
    with pytest.raises(UnloggedWriteError), db.engine.begin() as connection:
        connection.execute(ACCOUNT.delete())
    db.assert_replays()


def test_without_guard_a_log_is_a_stranger(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    track(engine, ACCOUNT)
    catalog = TypeCatalog.from_models(Base, aggregates=AGGREGATES)
    log = Oplog(catalog, keyring=Keyring.generate(), guard=False)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with pytest.raises(UnloggedWriteError), sessions.begin() as session:
        session.add(Account(owner="x", balance=1))
    with sessions.begin() as session:
        session.add(Order(customer="x"))


# -- engines ------------------------------------------------------------------------------------


def test_core_on_the_engine_of_attached_sessions(db: LoggedDatabase) -> None:
    with db.engine.begin() as connection:
        connection.execute(ACCOUNT.insert(), [{"owner": "c", "balance": n} for n in (1, 2)])
        connection.execute(ACCOUNT.delete().where(ACCOUNT.c.id == 101))
    with db.engine.begin() as connection:
        db.log.annotate(connection, actor="job")
        connection.execute(sa.text("UPDATE account SET note = 'n' WHERE id = 102"))
    assert [r.aggregate for r in db.log.receipts(connection)] == ["account/102"]
    assert db.read()[-1].metadata == {"actor": ["job"]}
    assert sorted(db.tell()[2:]) == [
        "CREATE account 1",
        "CREATE account 2",
        "DELETE account 101",
        "UPDATE account 102",
    ]
    with db.engine.connect() as connection:
        connection.execute(ACCOUNT.delete())
        connection.rollback()
        with pytest.raises(ConfigurationError, match="no transaction"):
            db.log.annotate(connection, actor="x")
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.fixture
def attached(engine: Engine) -> LoggedDatabase:
    """No factory: the engine itself is attached."""
    Base.metadata.create_all(engine)
    catalog = TypeCatalog.from_models(Base, aggregates=AGGREGATES)
    log = Oplog(catalog, keyring=Keyring.generate())
    log.attach(engine)
    return LoggedDatabase(engine, log, sessionmaker(engine))


@pytest.mark.parametrize("guarded", [True, False])
def test_an_attached_engine_logs_every_transaction(
    attached: LoggedDatabase, *, guarded: bool
) -> None:
    db = attached
    if guarded:
        track(db.engine, *Base.metadata.tables.values())
    with db.engine.begin() as connection:
        db.log.annotate(connection, reason="data migration")
        ticket = db.log.take_ticket(connection, "account/1")
        assert ticket.version == 0
        connection.execute(
            ACCOUNT.insert(), [{"id": n, "owner": "c", "balance": n} for n in (1, 2)]
        )
        connection.execute(ACCOUNT.update().where(ACCOUNT.c.id == 1).values(owner="d"))
    with db.engine.connect() as connection:
        with connection.begin():
            connection.execute(ACCOUNT.delete().where(ACCOUNT.c.id == 2))
        with connection.begin() as transaction:
            connection.execute(ACCOUNT.delete().where(ACCOUNT.c.id == 1))
            transaction.rollback()
    with db.sessions.begin() as session:
        session.add(Order(id=1, customer="x", lines=[Line(number=1, sku="a")]))
    assert db.tell()[:3] == ["CREATE account 1", "CREATE account 2", "DELETE account 2"]
    assert db.read()[0].metadata == {"reason": ["data migration"]}
    db.assert_replays()
    db.assert_pool_is_clean()
    db.log.detach(db.engine)
    with db.engine.begin() as connection:
        connection.execute(sa.select(ACCOUNT))
    if guarded:
        with pytest.raises(UnloggedWriteError), db.engine.begin() as connection:
            connection.execute(ACCOUNT.delete())


async def test_an_attached_async_engine(engine: Engine, database_url: URL) -> None:
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    asynchronous: AsyncEngine = create_async_engine(database_url)
    db.log.attach(asynchronous)
    async with asynchronous.begin() as connection:
        db.log.annotate(connection, actor="a")
        await connection.execute(ACCOUNT.insert(), {"owner": "c", "balance": 1})
        await connection.execute(sa.text("UPDATE account SET note = 'x'"))
    async with asynchronous.connect() as connection:
        await connection.execute(ACCOUNT.delete())
        await connection.rollback()
    await asynchronous.dispose()
    assert db.tell() == ["CREATE account 1"]
    assert db.read()[0].metadata == {"actor": ["a"]}
    db.assert_replays()


# -- bypass -------------------------------------------------------------------------------------


def test_a_bypass_leaves_an_entry_that_says_so(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    raw.execute("SET LOCAL oplog.bypass = 'repair of ticket 42, é'")
    raw.execute(RAW)
    raw.commit()
    mark = db.read()[-1]
    assert (mark.aggregate, mark.version, mark.operations) == ("oplog/bypass", 1, ())
    assert mark.metadata == {
        "oplog.bypass": ["repair of ticket 42, é"],
        "oplog.role": [raw.info.user],
        "oplog.changes": ["public.account (2 rows)"],
    }
    with db.engine.connect() as connection:
        report = db.log.verify(connection)
        assert db.log.store.list_broken_links(connection) == []
    assert {d.kind for d in report.differences} == {"extra"}
    assert db.count("oplog.oplog_image") == 0
    raw.execute(RAW)
    with pytest.raises(psycopg.DatabaseError, match="does not log them"):
        raw.commit()
    raw.execute("SET LOCAL oplog.bypass = 'again'")
    raw.execute("TRUNCATE account")
    raw.commit()
    assert db.read()[-1].metadata["oplog.changes"] == ["public.account (TRUNCATE)"]
    assert db.read()[-1].version == 2


def test_an_attached_session_logs_in_spite_of_a_bypass(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.execute(sa.text("SET LOCAL oplog.bypass = 'no'"))
        session.execute(sa.text("UPDATE account SET note = 'x'"))
    assert db.tell()[2:] == ["UPDATE account 101", "UPDATE account 102"]
    db.assert_replays()


def test_a_bypass_may_be_for_members_of_a_role(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    suffix = db.engine.url.database
    keeper, other = f"keeper_{suffix}", f"other_{suffix}"
    (statement,) = track_statements(["account"], bypass_role=keeper)
    run(
        db,
        f"CREATE ROLE {keeper}",
        f"CREATE ROLE {other}",
        statement,
        f"GRANT SELECT, INSERT ON account TO {keeper}, {other}",
        f"GRANT USAGE ON SEQUENCE account_id_seq TO {keeper}, {other}",
    )
    try:
        for role, allowed in ((keeper, True), (other, False)):
            # No right on the log's schema is needed to be counted, or refused.
            raw.execute(f"SET SESSION AUTHORIZATION {role}")
            raw.execute("SET oplog.bypass = 'repair'")
            raw.commit()
            raw.execute(RAW)
            if allowed:
                raw.commit()
            else:
                with pytest.raises(psycopg.DatabaseError, match=r"account \(2 rows\)"):
                    raw.commit()
            raw.execute("RESET SESSION AUTHORIZATION")
            raw.commit()
    finally:
        raw.rollback()
        run(db, f"DROP OWNED BY {keeper}, {other}", f"DROP ROLE {keeper}, {other}")
    assert db.read()[-1].metadata["oplog.role"] == [keeper]


# -- DDL ----------------------------------------------------------------------------------------


def test_truncate_is_refused(db: LoggedDatabase, raw: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.DatabaseError, match=r"tracked table public\.account"):
        raw.execute("TRUNCATE account")
    with pytest.raises(UnloggedWriteError, match="TRUNCATE"), db.sessions.begin() as session:
        session.execute(sa.text('TRUNCATE "order" CASCADE'))
    db.assert_replays()


def test_untracked_tables_are_free_and_tracked_again(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    run(db, *untrack_statements(["account"], reason="moved to another service"))
    raw.execute(RAW)
    raw.execute("TRUNCATE account")
    raw.commit()
    run(db, *track_statements(["account"]), *track_statements(["account"]))
    raw.execute(RAW)
    with pytest.raises(psycopg.DatabaseError, match=r"account \(2 rows\)"):
        raw.commit()


def test_guards_that_came_after_the_first_write(engine: Engine) -> None:
    """The process does not know of them yet: refused once, and looked at again."""
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        session.add(Account(owner="a", balance=1))
    track(engine, ACCOUNT)
    with pytest.raises(UnloggedWriteError, match="guarded") as e, db.sessions.begin() as session:
        session.add(Account(owner="b", balance=1))
    assert e.value.retryable
    with db.sessions.begin() as session:
        session.add(Account(owner="c", balance=1))
        session.execute(sa.text("UPDATE account SET note = 'x'"))
    assert db.tell() == ["CREATE account 1", "UPDATE account 1", "CREATE account 3"]
    db.assert_replays()


UNTRACKABLE: dict[str, tuple[str, str]] = {
    "view": ("CREATE VIEW odd AS SELECT 1 AS id", "is not a table"),
    "no key": ("CREATE TABLE odd (id integer)", "no primary key"),
    "temporary": ("CREATE TEMP TABLE odd (id integer PRIMARY KEY)", "temporary"),
    "partition": (
        """CREATE TABLE whole (id integer PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE odd PARTITION OF whole DEFAULT""",
        "track public.whole",
    ),
    "parent": (
        "CREATE TABLE odd (id integer PRIMARY KEY); CREATE TABLE child () INHERITS (odd)",
        "inheritance",
    ),
    "child": (
        "CREATE TABLE up (id integer); CREATE TABLE odd (PRIMARY KEY (id)) INHERITS (up)",
        "inheritance",
    ),
}


@pytest.mark.parametrize(("statement", "why"), UNTRACKABLE.values(), ids=UNTRACKABLE.keys())
def test_what_cannot_be_tracked(raw: psycopg.Connection[Any], statement: str, why: str) -> None:
    raw.execute(statement)
    with pytest.raises(psycopg.DatabaseError, match=f"odd cannot be tracked: .*{why}"):
        raw.execute(track_statements(["odd"])[0])


def test_set_constraints_all_immediate_says_what_to_do(db: LoggedDatabase) -> None:
    session = db.sessions()
    session.execute(sa.text(RAW))
    with pytest.raises(UnloggedWriteError, match="name your constraints"):
        session.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
    session.rollback()
    with db.sessions.begin() as session:
        session.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
        session.execute(sa.select(Account))
    db.assert_replays()


def test_partitions_made_later_are_guarded(engine: Engine, raw: psycopg.Connection[Any]) -> None:
    run(
        LoggedDatabase(engine, Any, Any),  # type: ignore[arg-type]
        "CREATE TABLE whole (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        *track_statements(["whole"]),
        "CREATE TABLE part PARTITION OF whole DEFAULT",
    )
    raw.execute("INSERT INTO part VALUES (1)")
    with pytest.raises(psycopg.DatabaseError, match=r"public.whole \(1 row\)"):
        raw.commit()


def test_tracking_again_puts_a_replaced_trigger_right(
    db: LoggedDatabase, raw: psycopg.Connection[Any]
) -> None:
    run(
        db,
        "CREATE FUNCTION shrug() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "DROP TRIGGER oplog_guard_insert ON account",
        "CREATE TRIGGER oplog_guard_insert AFTER INSERT ON account EXECUTE FUNCTION shrug()",
        *track_statements(["account"]),
    )
    raw.execute(RAW)
    with pytest.raises(psycopg.DatabaseError, match=r"account \(2 rows\)"):
        raw.commit()


# -- many rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 10_000, 10_001])
def test_images_of_one_statement_are_of_so_many_rows_at_most(db: LoggedDatabase, rows: int) -> None:
    insert = (
        "INSERT INTO account (id, owner, balance) "
        "SELECT n + 1000, 'x', n FROM generate_series(1, %s) n"
    )
    with db.sessions.begin() as session:
        connection = session.connection()
        connection.exec_driver_sql(insert, (rows,))
        connection.exec_driver_sql("DELETE FROM account WHERE owner = 'x' AND balance > 1")
        kept = connection.exec_driver_sql(
            "SELECT operation::text, rows, cardinality(coalesce(new_rows, old_rows)) "
            "FROM oplog.oplog_image ORDER BY id"
        ).fetchall()
    parts = [10_000, rows - 10_000] if rows > 10_000 else [rows]
    # One column is kept: the key.
    assert [tuple(image) for image in kept if image[0] == "I"] == [("I", n, n) for n in parts]
    gone = [("D", rows - 1, rows - 1)] if rows > 1 else []
    assert [tuple(image) for image in kept if image[0] == "D"] == gone
    assert db.count("account") == 3
    db.assert_replays()
