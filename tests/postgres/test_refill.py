"""Rows that DDL rewrote: logged again, those columns only, all of them, and each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import OpType
from oplog.adoption import RefillReport
from oplog.errors import ConfigurationError, EntryTooLargeError, SchemaDriftError
from oplog.payload.schema_change import SchemaChange
from oplog.replay import verify_tables
from oplog.schema.grants import RoleKind, list_grants
from oplog.type_binding import BoundType
from tests.kept import open_log
from tests.logged import LoggedDatabase, open_logged
from tests.refilling import bind, list_refills, migrate, refill, tell_columns

pytestmark = pytest.mark.postgres

ROWS = 10


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    owner: Mapped[str]
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    balance: Mapped[int]


@pytest.fixture
def database(engine: Engine) -> Iterator[LoggedDatabase]:
    database = open_logged(engine, Base, guarded=True, seed="")
    with database.sessions.begin() as session:
        for n in range(1, ROWS + 1):
            note = None if n % 2 else f"note {n}"
            session.add(Account(id=n, owner=f"owner {n}", note=note, balance=n))
    yield database
    database.assert_pool_is_clean()


WIDER = "ALTER TABLE account ALTER balance TYPE bigint USING balance * 1000"


def widen(database: LoggedDatabase) -> BoundType:
    return migrate(database.engine, database.log, "account", WIDER)


def reopen(database: LoggedDatabase) -> LoggedDatabase:
    """The application as it is started after the migration."""
    database.log.detach(database.sessions)
    log = type(database.log)(database.log.catalog, keyring=database.log.keyring)
    log.attach(database.sessions)
    return replace(database, log=log)


def run(database: LoggedDatabase, bound: BoundType, **more: Any) -> RefillReport:
    with database.engine.connect() as connection:
        report = refill(connection, database.log, bound, **more)
        assert not connection.in_transaction()
    return report


# -- what is logged ---------------------------------------------------------------------------


def test_rewritten_columns_of_every_row_are_logged_again(database: LoggedDatabase) -> None:
    bound = widen(database)
    assert bound.shape.change.rewritten == {bound.shape.by_name["balance"].number}
    report = run(database, bound)
    expected = RefillReport("account", "public.account", 2, ("balance",), rows=10, entries=1)
    assert report == expected
    assert report.to_json() == {
        "type": "account",
        "table": "public.account",
        "revision": 2,
        "columns": ["balance"],
        "whole": False,
        "rows": 10,
        "entries": 1,
        "earlier_rows": 0,
    }
    (entry,) = list_refills(database.read())
    assert entry.aggregate == "adopted/account"
    assert entry.metadata == {"refilled": ["account"], "refilled_revision": ["2"]}
    assert {operation.kind for operation in entry.operations} == {OpType.UPDATE}
    assert tell_columns([entry]) == {n: {"balance": n * 1000} for n in range(1, ROWS + 1)}
    database.assert_replays()


def test_several_columns_of_other_kinds(database: LoggedDatabase) -> None:
    bound = migrate(
        database.engine,
        database.log,
        "account",
        "ALTER TABLE account ALTER balance TYPE text USING 'b' || balance, "
        "ALTER note TYPE numeric(9, 2) USING length(note) / 3.0, "
        "ADD made timestamptz NOT NULL DEFAULT clock_timestamp() + random() * interval '1 day'",
    )
    with database.engine.connect() as connection:
        # Values are printed alike under any settings of the session.
        connection.exec_driver_sql("SET DateStyle = 'German'")
        connection.exec_driver_sql("SET TimeZone = 'Asia/Kathmandu'")
        connection.commit()
        report = refill(connection, database.log, bound)
        connection.exec_driver_sql("RESET DateStyle")
        rows = connection.exec_driver_sql("SELECT id, made FROM account").all()
        live = {row.id: row.made for row in rows}
        connection.exec_driver_sql("RESET TimeZone")
        connection.commit()
    assert report.columns == ("note", "balance", "made")
    told = tell_columns(list_refills(database.read()))
    assert told[2]["balance"] == "b2"
    assert (told[1]["note"], told[2]["note"]) == (None, Decimal("2.00"))
    assert {n: fields["made"] for n, fields in told.items()} == live
    database.assert_replays()


@pytest.mark.parametrize(
    ("chunk_rows", "sizes"),
    [(3, [3, 3, 3, 1]), (5, [5, 5]), (10, [10]), (11, [10])],
)
@pytest.mark.parametrize("own", [True, False])
def test_chunks(database: LoggedDatabase, chunk_rows: int, sizes: list[int], own: bool) -> None:
    bound = widen(database)
    seen: list[tuple[int, int]] = []
    with database.engine.connect() as connection:
        if not own:
            connection.begin()
        report = refill(
            connection,
            database.log,
            bound,
            own=own,
            chunk_rows=chunk_rows,
            progress=lambda *both: seen.append(both),
        )
        connection.commit()
    assert (report.rows, report.entries) == (10, len(sizes))
    entries = list_refills(database.read())
    assert [len(entry.operations) for entry in entries] == sizes
    assert len(tell_columns(entries)) == ROWS
    assert [rows for rows, _ in seen][-1] == 10
    assert all(rows <= expected for rows, expected in seen)
    database.assert_replays()


def test_wide_rows_make_smaller_chunks(database: LoggedDatabase) -> None:
    bound = migrate(
        database.engine,
        database.log,
        "account",
        "ALTER TABLE account ALTER note TYPE text USING repeat(id::text, 3000000)",
    )
    report = run(database, bound)
    sizes = [len(entry.operations) for entry in list_refills(database.read())]
    assert sizes == [3, 1, 1, 1, 1, 1, 1, 1]
    assert report.rows == ROWS


def test_a_row_that_is_too_wide_is_named(database: LoggedDatabase) -> None:
    bound = migrate(
        database.engine,
        database.log,
        "account",
        "ALTER TABLE account ALTER note TYPE text USING repeat('x', (id = 7)::int * 17000000)",
    )
    with pytest.raises(EntryTooLargeError, match=r"public\.account \(id=7\)"):
        run(database, bound)


def test_an_empty_table_has_nothing_to_log(engine: Engine) -> None:
    database = open_logged(engine, Base, seed="")
    bound = migrate(
        engine, database.log, "account", "ALTER TABLE account ALTER note TYPE int USING 1"
    )
    # Nothing in it was rewritten, and the database cannot know that.
    report = run(database, bound, change=replace(bound.shape.change, rewritten=frozenset({3, 4})))
    assert (report.rows, report.entries, database.read()) == (0, 0, [])


def test_a_change_that_rewrote_nothing_logs_nothing(database: LoggedDatabase) -> None:
    bound = migrate(
        database.engine, database.log, "account", "ALTER TABLE account ADD extra int DEFAULT 7"
    )
    before = len(database.read())
    report = run(database, bound)
    assert (report.rows, report.columns, len(database.read())) == (0, (), before)
    with database.engine.connect() as connection:
        assert refill(connection, database.log, bound, own=False).rows == 0


def test_columns_that_the_table_has_no_more_are_left_out(database: LoggedDatabase) -> None:
    bound = widen(database)
    change = SchemaChange(1, rewritten=bound.shape.change.rewritten | {77})
    assert run(database, bound, change=change).columns == ("balance",)


def test_a_type_goes_by_its_name_in_the_log(database: LoggedDatabase) -> None:
    bound = widen(database)
    declared = replace(bound.declared, type_name="renamed")
    assert run(database, replace(bound, declared=declared)).type_name == "account"
    (entry,) = list_refills(database.read())
    assert (entry.aggregate, entry.metadata["refilled"]) == ("adopted/account", ["account"])


def test_keys_of_several_columns_in_partitions(engine: Engine) -> None:
    metadata = sa.MetaData()
    event = sa.Table(
        "event",
        metadata,
        sa.Column("size", sa.Integer),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        postgresql_partition_by="RANGE (day)",
    )
    parts = (
        "CREATE TABLE old PARTITION OF event FOR VALUES FROM (MINVALUE) TO ('2024-01-01')",
        "CREATE TABLE new PARTITION OF event FOR VALUES FROM ('2024-01-01') TO (MAXVALUE)",
    )
    database = open_logged(engine, metadata, seed="", objects=parts)
    with database.sessions.begin() as session:
        for n in range(1, 51):
            day = date(2023, 12, 25) + timedelta(days=n % 14)
            session.execute(sa.insert(event).values(size=n, id=n, day=day))
    bound = migrate(
        engine, database.log, "event", "ALTER TABLE event ALTER size TYPE bigint USING size * 7"
    )
    report = run(database, bound, chunk_rows=7)
    assert (report.rows, report.columns) == (50, ("size",))
    assert len(tell_columns(list_refills(database.read()))) == 50
    database.assert_replays()


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_batches_of_any_size_give_the_same(database: LoggedDatabase, batch_rows: int) -> None:
    bound = widen(database)
    database = reopen(database)
    with database.sessions.begin() as session:
        session.get_one(Account, 3).balance = 33
        session.delete(session.get_one(Account, 4))
        session.add(Account(id=11, owner="new", balance=11))
        session.flush()
        refill(session.connection(), database.log, bound, own=False, chunk_rows=3)
    with database.sessions.begin() as session:
        session.get_one(Account, 5).note = "later"
        session.delete(session.get_one(Account, 6))
    with database.engine.connect() as connection:
        verdict = verify_tables(connection, open_log(database.log), batch_rows=batch_rows)
    assert verdict.ok, verdict.differences


def test_a_replay_and_a_history_have_the_values_of_after(database: LoggedDatabase) -> None:
    run(database, widen(database), chunk_rows=4)
    with database.engine.begin() as connection:
        database.log.replay(connection, into="rebuilt")
        rebuilt, live = (
            set(connection.exec_driver_sql(f"SELECT id, owner, note, balance FROM {table}"))
            for table in ("rebuilt.account", "public.account")
        )
        created, refilled = database.log.history(connection, Account, 6, shape="then")
    assert rebuilt == live
    assert (created.kind, created.fields["balance"]) == (OpType.CREATE, 6)
    assert (refilled.kind, refilled.fields) == (OpType.UPDATE, {"balance": 6000})


# -- interrupted ------------------------------------------------------------------------------


class InterruptedByTestError(Exception):
    pass


def interrupt(database: LoggedDatabase, bound: BoundType, *, after: int) -> None:
    """Log chunks of two rows until `after` of them are committed."""
    chunks = iter(range(1, after))

    def stop(rows: int, expected: int) -> None:
        if next(chunks, None) is None:
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        run(database, bound, chunk_rows=2, progress=stop)


def test_an_interrupted_run_goes_on_where_it_stopped(database: LoggedDatabase) -> None:
    bound = widen(database)
    interrupt(database, bound, after=2)
    report = run(database, bound, chunk_rows=4)
    assert (report.rows, report.entries, report.earlier_rows) == (6, 2, 4)
    assert len(tell_columns(list_refills(database.read()))) == ROWS
    database.assert_replays()


def test_what_is_finished_is_not_done_again(database: LoggedDatabase) -> None:
    bound = widen(database)
    run(database, bound)
    before = len(database.read())
    report = run(database, bound)
    assert (report.rows, report.entries, report.earlier_rows) == (0, 0, ROWS)
    with database.engine.begin() as connection:
        assert refill(connection, database.log, bound, own=False).rows == 0
    assert len(database.read()) == before


def test_lost_progress_only_costs_a_repetition(database: LoggedDatabase) -> None:
    bound = widen(database)
    run(database, bound)
    database.execute("DELETE FROM oplog.oplog_adoption")
    assert run(database, bound).rows == ROWS
    database.assert_replays()


def test_the_next_change_begins_at_the_beginning(database: LoggedDatabase) -> None:
    interrupt(database, widen(database), after=2)
    bound = migrate(
        database.engine,
        database.log,
        "account",
        "ALTER TABLE account ALTER balance TYPE numeric USING balance / 7.0",
    )
    assert run(database, bound, chunk_rows=4).rows == ROWS
    database.assert_replays()


def test_an_adoption_and_a_refill_have_each_their_progress(database: LoggedDatabase) -> None:
    with database.engine.connect() as connection:
        assert database.log.adopt(connection, chunk_rows=3).rows == ROWS
    bound = widen(database)
    interrupt(database, bound, after=2)
    with database.engine.connect() as connection:
        assert database.log.adopt(connection).rows == 0
    assert run(database, bound).rows == 6
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT type_name, work, rows, done, revision FROM oplog.oplog_adoption ORDER BY work"
        ).all()
    assert rows == [("account", "adoption", 10, True, 1), ("account", "refill", 10, True, 2)]
    database.assert_replays()


# -- in the migration's transaction -----------------------------------------------------------


def test_all_in_the_transaction_of_the_migration(database: LoggedDatabase) -> None:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL row_security = on")
        connection.exec_driver_sql(WIDER)
        bound = bind(connection, database.log, "account")
        assert refill(connection, database.log, bound, own=False, chunk_rows=3).entries == 4
        settings = "SELECT current_setting('row_security'), current_setting('enable_sort')"
        assert connection.exec_driver_sql(settings).one() == ("on", "on")

    with database.engine.connect() as connection:
        transaction = connection.begin()
        work(connection)
        transaction.rollback()
    database.assert_replays()
    assert list_refills(database.read()) == []
    with database.engine.begin() as connection:
        work(connection)
    assert len(tell_columns(list_refills(database.read()))) == ROWS
    database.assert_replays()


@pytest.mark.parametrize("chunk_rows", [2, 100])
def test_rows_of_the_same_transaction_are_logged_after_it(
    database: LoggedDatabase, chunk_rows: int
) -> None:
    """The refill reads rows that the log gets at COMMIT only."""
    bound = widen(database)
    database = reopen(database)
    with database.sessions.begin() as session:
        session.get_one(Account, 1).balance = 11
        session.delete(session.get_one(Account, 2))
        session.get_one(Account, 3).id = 30
        session.add(Account(id=31, owner="new", balance=31))
        session.get_one(Account, 4).note = "not rewritten"
        session.flush()
        connection = session.connection()
        report = refill(connection, database.log, bound, own=False, chunk_rows=chunk_rows)
        assert report.rows == ROWS
        session.get_one(Account, 5).balance = 55
        session.delete(session.get_one(Account, 6))
    database.assert_replays()


def test_a_snapshot_of_before_is_refused(database: LoggedDatabase) -> None:
    bound = widen(database)
    with database.engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin(), pytest.raises(ConfigurationError, match="REPEATABLE READ"):
            refill(connection, database.log, bound, own=False)
        # A transaction of its own is READ COMMITTED on every engine.
        assert refill(connection, database.log, bound).rows == ROWS


def test_a_role_that_is_not_the_owner_does_it_without_progress(database: LoggedDatabase) -> None:
    bound = widen(database)
    role = f"writer_{uuid4().hex[:8]}"
    database.execute(
        f"CREATE ROLE {role} LOGIN",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON account TO {role}",
        *list_grants(role, RoleKind.APPLICATION, schema="oplog"),
    )
    with database.engine.connect() as connection:
        connection.exec_driver_sql(f"SET SESSION AUTHORIZATION {role}")
        connection.commit()
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            refill(connection, database.log, bound)
        report = refill(connection, database.log, bound, chunk_rows=3, keep_progress=False)
        assert (report.rows, report.entries) == (ROWS, 4)
        with connection.begin():
            done = refill(connection, database.log, bound, own=False, keep_progress=False)
        # It cannot know that it was done, and nothing is the worse for it.
        assert done.rows == ROWS
        connection.exec_driver_sql("RESET SESSION AUTHORIZATION")
        connection.commit()
    database.assert_replays()
    assert database.count("oplog.oplog_adoption") == 0
    database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


# -- all rows ---------------------------------------------------------------------------------


def rekey(database: LoggedDatabase) -> BoundType:
    """Every row has another key afterwards."""
    return migrate(
        database.engine,
        database.log,
        "account",
        "ALTER TABLE account ALTER id DROP IDENTITY IF EXISTS, ALTER id DROP DEFAULT",
        "ALTER TABLE account ALTER id TYPE text USING 'k' || id",
    )


def read_adopted(database: LoggedDatabase) -> list[tuple[dict[str, Any], list[str]]]:
    return [
        (dict(entry.metadata), [operation.key["id"] for operation in entry.operations])
        for entry in database.read()
        if "adopted" in entry.metadata
    ]


KEYS = sorted(f"k{n}" for n in range(1, ROWS + 1))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("keep_progress", [True, False])
def test_with_other_keys_all_rows_are_adopted_again(
    database: LoggedDatabase, own: bool, keep_progress: bool
) -> None:
    with database.engine.connect() as connection:
        database.log.adopt(connection, chunk_rows=3)
    before = len(read_adopted(database))
    bound = rekey(database)
    assert bound.shape.change.readopted
    with database.engine.connect() as connection:
        if not own:
            connection.begin()
        report = refill(
            connection,
            database.log,
            bound,
            own=own,
            chunk_rows=5,
            keep_progress=keep_progress,
        )
        connection.commit()
    assert (report.whole, report.rows, report.entries) == (True, ROWS, 3)
    assert report.columns == ("owner", "note", "balance")
    chunks = read_adopted(database)[before:]
    assert [keys for _, keys in chunks] == [KEYS[:5], KEYS[5:], []]
    assert [metadata for metadata, _ in chunks] == [
        {"adopted": ["account"]},
        {"adopted": ["account"]},
        {"adopted": ["account"], "adopted_rows": ["10"], "adopted_revision": ["2"]},
    ]
    # Known by its progress, or else by its last record.
    assert run(database, bound, keep_progress=keep_progress).rows == 0
    database.execute("DELETE FROM oplog.oplog_adoption")
    assert run(database, bound).rows == 0
    with database.engine.connect() as connection:
        assert database.log.adopt(connection).rows == 0


def test_an_interrupted_adoption_of_before_is_not_continued(database: LoggedDatabase) -> None:
    with database.engine.connect() as connection:

        def stop(rows: int, expected: int) -> None:
            raise InterruptedByTestError

        with pytest.raises(InterruptedByTestError):
            database.log.adopt(connection, chunk_rows=6, progress=stop)
    bound = rekey(database)
    interrupt(database, bound, after=2)
    report = run(database, bound)
    assert (report.rows, report.earlier_rows) == (6, 4)
    keys = [key for _, found in read_adopted(database)[1:] for key in found]
    assert keys == KEYS


# -- what must not change meanwhile -----------------------------------------------------------


def test_a_table_that_changes_between_two_chunks_is_noticed(database: LoggedDatabase) -> None:
    bound = widen(database)

    def change(rows: int, expected: int) -> None:
        database.execute("ALTER TABLE account ADD extra integer")

    with pytest.raises(SchemaDriftError, match=r"public\.account was changed while"):
        run(database, bound, chunk_rows=2, progress=change)
    assert len(list_refills(database.read())) == 1


def test_values_of_a_newer_revision_are_not_logged_in_an_older_one(
    database: LoggedDatabase,
) -> None:
    bound = widen(database)

    def change(rows: int, expected: int) -> None:
        migrate(
            database.engine,
            database.log,
            "account",
            "ALTER TABLE account ADD extra integer",
        )
        migrate(
            database.engine,
            database.log,
            "account",
            "ALTER TABLE account DROP extra",
        )

    with pytest.raises(SchemaDriftError, match="revision 2: the newest is"):
        run(database, bound, chunk_rows=2, progress=change)


@pytest.mark.parametrize("chunk_rows", [0, 131_073])
def test_sizes_of_chunks_that_cannot_be(database: LoggedDatabase, chunk_rows: int) -> None:
    with pytest.raises(ConfigurationError, match="a chunk cannot have"):
        run(database, widen(database), chunk_rows=chunk_rows)
