"""Rows that were there before the log: adopted, known from then on, and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from oplog import AdoptionReport, Keyring, Oplog, OpType, TypeCatalog
from oplog.errors import (
    ConfigurationError,
    EntryTooLargeError,
    ReplayError,
    SchemaDriftError,
    SchemaVersionError,
    UnknownTypeError,
)
from oplog.payload.block import read_block
from oplog.replay import verify_tables
from tests.kept import open_log
from tests.logged import LoggedDatabase, open_logged
from tests.models import bank
from tests.support import assert_replays

pytestmark = pytest.mark.postgres


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    note: Mapped[str | None]


class Transfer(Base):
    __tablename__ = "transfer"
    id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[int] = mapped_column(ForeignKey("account.id"))
    undoes: Mapped[int | None] = mapped_column(ForeignKey("transfer.id"))


ROWS = """INSERT INTO account SELECT n, 'owner ' || n, CASE WHEN n % 2 = 0 THEN 'note' END
FROM generate_series(1, 10) n"""


@pytest.fixture
def database(engine: Engine) -> Iterator[LoggedDatabase]:
    database = open_logged(engine, Base)
    database.execute(ROWS)
    yield database
    database.assert_pool_is_clean()


def adopt(database: LoggedDatabase, *tables: Any, **more: Any) -> AdoptionReport:
    with database.engine.connect() as connection:
        report = database.log.adopt(connection, tables or None, **more)
        assert not connection.in_transaction()
    return report


def positions(database: LoggedDatabase, type_name: str) -> list[int]:
    return [e.position for e in database.read() if e.aggregate == f"adopted/{type_name}"]


# -- what is logged ---------------------------------------------------------------------------


def test_rows_that_existed_are_logged_and_verify(database: LoggedDatabase) -> None:
    with database.engine.connect() as connection:
        assert {d.kind for d in database.log.verify(connection).differences} == {"extra"}
    report = adopt(database)
    assert {(t.type_name, t.table, t.rows, t.entries, t.finished) for t in report.types} == {
        ("account", "public.account", 10, 1, True),
        ("transfer", "public.transfer", 0, 1, True),
    }
    assert (report.rows, report.entries) == (10, 2)
    entry = database.read()[0]
    assert (entry.aggregate, entry.version) == ("adopted/account", 1)
    assert entry.metadata == {
        "adopted": ["account"],
        "adopted_rows": ["10"],
        "adopted_revision": ["1"],
    }
    assert [o.kind for o in entry.operations] == [OpType.CREATE] * 10
    assert entry.operations[1].fields == {"id": 2, "owner": "owner 2", "note": "note"}
    database.assert_replays()


def test_a_table_is_adopted_in_chunks_that_say_which_is_the_last(
    database: LoggedDatabase,
) -> None:
    seen: list[tuple[int, int]] = []
    report = adopt(database, "account", chunk_rows=3, progress=lambda *both: seen.append(both))
    assert [t.entries for t in report.types] == [4]
    entries = database.read()
    assert [len(e.operations) for e in entries] == [3, 3, 3, 1]
    assert [e.version for e in entries] == [1, 2, 3, 4]
    assert [e.metadata.get("adopted_rows") for e in entries] == [None, None, None, ["10"]]
    assert [done for done, _ in seen] == [3, 6, 9, 10]
    assert all(done <= expected for done, expected in seen)
    database.assert_replays()


@pytest.mark.parametrize("chunk_rows", [2, 5, 10])
def test_chunks_that_fit_exactly_end_with_an_empty_one(
    database: LoggedDatabase, chunk_rows: int
) -> None:
    adopt(database, "account", chunk_rows=chunk_rows)
    last = database.read()[-1]
    assert (last.operations, last.metadata["adopted_rows"]) == ((), ["10"])
    database.assert_replays()


def test_an_empty_table_is_adopted_too(database: LoggedDatabase) -> None:
    assert adopt(database, Transfer).types[0].finished
    database.execute("INSERT INTO transfer VALUES (1, 1, NULL)")
    # It was adopted: what comes later behind the log's back is not forgiven.
    with database.sessions.begin() as session:
        session.get_one(Transfer, 1).undoes = 1
    with (
        pytest.raises(ReplayError, match="updates a row that is not there"),
        database.engine.connect() as connection,
    ):
        database.log.verify(connection)


def test_a_second_adoption_does_nothing(database: LoggedDatabase) -> None:
    adopt(database)
    before = len(database.read())
    report = adopt(database)
    assert (report.rows, report.entries, len(database.read())) == (0, 0, before)
    assert [(t.earlier_rows, t.finished) for t in report.types] == [(10, True), (0, True)]


def test_a_finished_adoption_is_known_without_its_checkpoint(database: LoggedDatabase) -> None:
    adopt(database)
    database.execute("DELETE FROM oplog.oplog_adoption")
    report = adopt(database)
    assert (report.rows, [t.finished for t in report.types]) == (0, [True, True])


def test_an_unfinished_adoption_without_its_checkpoint_begins_again(
    database: LoggedDatabase,
) -> None:
    interrupt(database, after=2)
    database.execute("DELETE FROM oplog.oplog_adoption")
    assert adopt(database, "account", chunk_rows=4).rows == 10
    database.assert_replays()


class InterruptedByTestError(Exception):
    pass


def interrupt(database: LoggedDatabase, *, after: int) -> None:
    """Adopt chunks of two accounts until `after` of them are committed."""
    chunks = iter(range(1, after))

    def stop(done: int, expected: int) -> None:
        if next(chunks, None) is None:
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        adopt(database, "account", chunk_rows=2, progress=stop)


def test_an_interrupted_adoption_goes_on_where_it_stopped(database: LoggedDatabase) -> None:
    interrupt(database, after=2)
    with database.engine.connect() as connection:
        verdict = database.log.verify(connection)
    assert (verdict.count, {d.kind for d in verdict.differences}) == (6, {"extra"})
    report = adopt(database, "account", chunk_rows=3)
    (one,) = report.types
    assert (one.rows, one.earlier_rows, one.finished) == (6, 4, True)
    keys = [o.key["id"] for e in database.read() for o in e.operations]
    assert keys == list(range(1, 11))
    assert database.read()[-1].metadata["adopted_rows"] == ["10"]
    adopt(database)
    database.assert_replays()


# -- rows that the log knew -------------------------------------------------------------------


def test_rows_that_were_logged_before_are_superseded(database: LoggedDatabase) -> None:
    with database.sessions.begin() as session:
        session.add(Account(id=11, owner="new", note=None))
    with database.sessions.begin() as session:
        session.get_one(Account, 11).note = "changed"
    assert adopt(database).rows == 11
    database.assert_replays()


def test_rows_changed_before_they_are_adopted_need_not_be_known(database: LoggedDatabase) -> None:
    with database.sessions.begin() as session:
        session.get_one(Account, 3).note = "before"
        session.delete(session.get_one(Account, 4))
    interrupt(database, after=1)
    with database.sessions.begin() as session:
        session.get_one(Account, 1).note = "after its chunk"
        session.get_one(Account, 9).note = "before its chunk"
        session.delete(session.get_one(Account, 2))
        session.delete(session.get_one(Account, 10))
        session.add(Account(id=4, owner="again"))
        session.add(Account(id=12, owner="last"))
    with database.engine.connect() as connection:
        verdict = database.log.verify(connection)
    assert {d.kind for d in verdict.differences} == {"extra"}
    assert sorted(d.key["id"] for d in verdict.differences) == [3, 5, 6, 7, 8, 9]
    adopt(database)
    database.assert_replays()


def test_after_an_adoption_rows_must_be_known(database: LoggedDatabase) -> None:
    adopt(database)
    database.execute("INSERT INTO account VALUES (77, 'unlogged', NULL)")
    with database.sessions.begin() as session:
        session.get_one(Account, 77).note = "known to nobody"
    with (
        pytest.raises(ReplayError, match=r"updates a row that is not there.*id=77"),
        database.engine.connect() as connection,
    ):
        database.log.verify(connection)


def test_a_type_that_is_not_adopted_is_as_strict_as_ever(database: LoggedDatabase) -> None:
    adopt(database, "transfer")
    with database.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
    with (
        pytest.raises(ReplayError, match="deletes a row that is not there"),
        database.engine.connect() as connection,
    ):
        database.log.verify(connection)


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_batches_of_any_size_give_the_same(database: LoggedDatabase, batch_rows: int) -> None:
    with database.sessions.begin() as session:
        session.get_one(Account, 3).note = "before"
        session.add(Account(id=11, owner="known"))
    interrupt(database, after=2)
    with database.sessions.begin() as session:
        session.get_one(Account, 1).note = "after"
        session.get_one(Account, 9).note = "before"
        session.delete(session.get_one(Account, 2))
        session.delete(session.get_one(Account, 8))
        session.get_one(Account, 11).note = "known"
    adopt(database)
    with database.sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
        session.get_one(Account, 11).note = "end"
    with database.engine.connect() as connection:
        verdict = verify_tables(connection, open_log(database.log), batch_rows=batch_rows)
    assert verdict.ok, verdict.differences


@pytest.mark.parametrize("batch_rows", [1, 100])
def test_a_certain_row_that_is_missing_is_named_among_doubtful_ones(
    database: LoggedDatabase, batch_rows: int
) -> None:
    with database.sessions.begin() as session:
        session.get_one(Account, 3).note = "doubtful"
        session.delete(session.get_one(Account, 4))
    adopt(database)
    database.execute("INSERT INTO account VALUES (77, 'unlogged', NULL)")
    with database.sessions.begin() as session:
        session.delete(session.get_one(Account, 5))
        session.delete(session.get_one(Account, 77))
    with (
        pytest.raises(ReplayError, match=r"deletes a row that is not there.*id=77"),
        database.engine.connect() as connection,
    ):
        verify_tables(connection, open_log(database.log), batch_rows=batch_rows)


# -- history ----------------------------------------------------------------------------------


def test_history_begins_with_the_mark(database: LoggedDatabase) -> None:
    adopt(database, chunk_rows=4)
    with database.sessions.begin() as session:
        session.get_one(Account, 6).note = "later"
    with database.engine.connect() as connection:
        begun, changed = database.log.history(connection, Account, 6)
        assert database.log.history(connection, Account, 60) == []
    assert (begun.kind, begun.metadata) == (OpType.CREATE, {"adopted": ["account"]})
    assert begun.fields == {"id": 6, "owner": "owner 6", "note": "note"}
    assert begun.position == positions(database, "account")[1]
    assert (changed.kind, changed.fields) == (OpType.UPDATE, {"note": "later"})


def test_a_row_is_as_it_was_from_its_adoption_on(database: LoggedDatabase) -> None:
    with database.sessions.begin() as session:
        session.get_one(Account, 6).note = "before"
    adopt(database, chunk_rows=4)
    with database.sessions.begin() as session:
        session.get_one(Account, 6).note = None
    before, *_, after = [e.position for e in database.read()]
    known = positions(database, "account")[1]
    with database.engine.connect() as connection:
        ask = database.log.as_of
        assert ask(connection, Account, key=6, at=before) is None
        assert ask(connection, Account, key=6, at=known - 1) is None
        row = {"id": 6, "owner": "owner 6", "note": "before"}
        assert ask(connection, Account, key=6, at=known) == row
        assert ask(connection, Account, key=6, at=after) == {**row, "note": None}


def test_history_reads_only_the_rows_it_looks_for(
    database: LoggedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(database)
    read: list[int] = []

    def spy(*args: Any, **more: Any) -> Any:
        found = read_block(*args, **more)
        read.append(len(found))
        return found

    monkeypatch.setattr("oplog.payload.codec.read_block", spy)
    with database.engine.connect() as connection:
        assert len(database.log.history(connection, Account, 6)) == 1
    assert read == [1]


# -- what is refused, before anything is done ---------------------------------------------------


def untouched(database: LoggedDatabase) -> bool:
    with database.engine.connect() as connection:
        saved = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_adoption").scalar()
    return database.read() == [] and saved == 0


def test_tables_that_are_not_logged_are_refused(engine: Engine) -> None:
    database = open_logged(engine, Base, untracked={"transfer": "derived"})
    for given, said in {
        "nowhere": "'nowhere' is not a type of this log",
        "transfer": "'transfer' is not logged: derived",
        Transfer: "'Transfer' is not a type of this log",
        7: "7 is not a mapped class",
    }.items():
        with pytest.raises(ConfigurationError, match=said):
            adopt(database, "account", given)
    with pytest.raises(UnknownTypeError, match="not a type of this log"):
        adopt(database, Transfer.__table__)
    assert untouched(database)


def test_a_database_without_the_log_is_refused(bare_database_url: sa.URL) -> None:
    engine = sa.create_engine(bare_database_url)
    Base.metadata.create_all(engine)
    log = Oplog(TypeCatalog.from_models(Base), keyring=Keyring.generate())
    with engine.connect() as connection, pytest.raises(SchemaVersionError, match="create_oplog"):
        log.adopt(connection)
    engine.dispose()


def test_tables_that_are_not_asked_for_need_not_exist(database: LoggedDatabase) -> None:
    database.execute("DROP TABLE transfer")
    assert adopt(database, "account").rows == 10
    with pytest.raises(SchemaDriftError, match="transfer is in the catalog and not"):
        adopt(database)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_open_transaction_that_sees_the_past_is_refused(
    database: LoggedDatabase, isolation: Any
) -> None:
    with database.engine.connect().execution_options(isolation_level=isolation) as connection:
        with connection.begin(), pytest.raises(ConfigurationError, match=isolation):
            database.log.adopt(connection)
        # A transaction of its own is what it needs, whatever the engine's default.
        assert database.log.adopt(connection).rows == 10
    database.assert_replays()


def test_autocommit_is_refused(database: LoggedDatabase) -> None:
    with (
        database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(ConfigurationError, match="an adoption needs a transaction"),
    ):
        database.log.adopt(connection)
    assert untouched(database)


@pytest.mark.parametrize("chunk_rows", [0, -1, 10**9])
def test_impossible_chunks_are_refused(database: LoggedDatabase, chunk_rows: int) -> None:
    with pytest.raises(ConfigurationError, match="chunk"):
        adopt(database, chunk_rows=chunk_rows)


def test_a_dry_run_only_says_what_there_is(database: LoggedDatabase) -> None:
    database.execute("ANALYZE account")
    report = adopt(database, dry_run=True)
    found = [(t.type_name, t.rows, t.finished) for t in report.types]
    assert found == [("account", 0, False), ("transfer", 0, False)]
    assert report.types[0].estimated_rows == 10
    assert untouched(database)
    with database.engine.connect() as connection:
        stored = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_type").scalar()
    assert stored == 0
    interrupt(database, after=1)
    assert adopt(database, "account", dry_run=True).types[0].earlier_rows == 2


# -- the caller's transaction -----------------------------------------------------------------


def read_settings(connection: Connection) -> Any:
    names = "datestyle timezone client_encoding row_security enable_sort jit lock_timeout"
    return [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names.split()]


def test_in_an_open_transaction_everything_commits_with_it(database: LoggedDatabase) -> None:
    with database.engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL timezone = 'Asia/Kabul'")
        connection.exec_driver_sql("SET LOCAL lock_timeout = '3s'")
        before = read_settings(connection)
        connection.exec_driver_sql("INSERT INTO account VALUES (11, 'of the caller', NULL)")
        assert database.log.adopt(connection, chunk_rows=4).rows == 11
        assert read_settings(connection) == before
        assert connection.in_transaction()
        with database.engine.connect() as other:
            assert list(database.log.read(other)) == []
            modes = other.exec_driver_sql(
                "SELECT mode FROM pg_locks WHERE relation = 'account'::regclass AND granted"
            ).scalars()
            assert "ShareLock" in set(modes)
        connection.rollback()
        assert untouched(database)
        connection.exec_driver_sql("INSERT INTO account VALUES (12, 'of the caller', NULL)")
        database.log.adopt(connection, chunk_rows=4)
        connection.commit()
    database.assert_replays()


def test_a_savepoint_of_the_caller_takes_it_back(database: LoggedDatabase) -> None:
    with database.engine.begin() as connection:
        savepoint = connection.begin_nested()
        database.log.adopt(connection)
        savepoint.rollback()
        assert database.log.adopt(connection, "account").rows == 10
    database.assert_replays()


def test_changes_that_wait_to_be_logged_come_first(database: LoggedDatabase) -> None:
    with database.sessions.begin() as session:
        session.add(Account(id=11, owner="pending"))
        session.flush()
        with pytest.raises(ConfigurationError, match="logged when it commits"):
            database.log.adopt(session.connection())
    with database.sessions.begin() as session:
        # A session that changed nothing yet may adopt, and change what it adopted.
        assert database.log.adopt(session.connection()).rows == 11
        session.get_one(Account, 11).note = "after"
        session.add(Account(id=12, owner="after"))
    database.assert_replays()


# -- width ------------------------------------------------------------------------------------


def test_wide_rows_make_smaller_chunks(database: LoggedDatabase) -> None:
    database.execute(
        "INSERT INTO account SELECT n, repeat(md5(n::text), 30000), NULL "
        "FROM generate_series(11, 40) n"
    )
    report = adopt(database, "account")
    sizes = [len(e.operations) for e in database.read()]
    assert sum(sizes) == report.rows == 40
    assert len(sizes) > 2
    assert max(sizes[1:]) < 12
    database.assert_replays()


def test_a_row_wider_than_an_entry_is_refused_and_leaves_nothing_half(
    database: LoggedDatabase,
) -> None:
    database.execute(
        "UPDATE account SET owner = repeat('x', 17000000) WHERE id = 7",
        "UPDATE account SET owner = repeat('x', 15000000) WHERE id = 5",
    )
    with pytest.raises(EntryTooLargeError, match=r"public\.account \(id=7\).*17\d{6} bytes"):
        adopt(database, "account")
    keys = [o.key["id"] for e in database.read() for o in e.operations]
    assert keys == [1, 2, 3, 4, 5, 6]
    database.execute("UPDATE account SET owner = 'narrow' WHERE id = 7")
    assert adopt(database).rows == 4
    database.assert_replays()


def test_a_row_too_wide_for_its_chunk_does_not_take_the_others_along(
    database: LoggedDatabase,
) -> None:
    database.execute(
        "UPDATE account SET owner = repeat('x', 9000000) WHERE id = 3",
        "UPDATE account SET owner = repeat('x', 16500000) WHERE id = 4",
        "UPDATE account SET owner = repeat('x', 16800000) WHERE id = 7",
    )
    with pytest.raises(EntryTooLargeError, match=r"\(id=7\).*16800006 bytes"):
        adopt(database, "account", chunk_rows=6)
    sizes = [[o.key["id"] for o in e.operations] for e in database.read()]
    assert sizes == [[1, 2, 3], [4], [5], [6]]
    database.execute("UPDATE account SET owner = 'narrow' WHERE id = 7")
    adopt(database)
    database.assert_replays()


def test_the_chunk_before_a_row_too_wide_is_adopted(database: LoggedDatabase) -> None:
    database.execute("UPDATE account SET owner = repeat('x', 16800000) WHERE id = 7")
    with pytest.raises(EntryTooLargeError, match=r"\(id=7\)"):
        adopt(database, "account")
    assert [len(e.operations) for e in database.read()] == [6]


# -- changes of the table ---------------------------------------------------------------------


def test_a_table_changed_in_between_stops_it_and_is_taken_up_anew(
    database: LoggedDatabase,
) -> None:
    def migrate(done: int, expected: int) -> None:
        if done == 2:
            database.execute("ALTER TABLE account ADD COLUMN added integer DEFAULT 5")

    with pytest.raises(SchemaDriftError, match=r"public\.account was changed while"):
        adopt(database, "account", chunk_rows=2, progress=migrate)
    database.log.refresh()
    assert adopt(database, chunk_rows=3).rows == 8
    with database.engine.connect() as connection:
        assert database.log.verify(connection).ok
    added = [o.fields.get("added") for e in database.read() for o in e.operations]
    assert added == [None, None, *[5] * 8]


def test_adopted_rows_stay_adopted_when_they_are_read_as_a_newer_revision(
    database: LoggedDatabase,
) -> None:
    with database.sessions.begin() as session:
        session.add(Account(id=11, owner="known"))
    adopt(database)
    database.execute("ALTER TABLE account ADD COLUMN added integer DEFAULT 5")
    database.log.refresh()
    with database.sessions.begin() as session:
        session.get_one(Account, 1).note = "under revision 2"
    database.log.catalog.upcast(
        "account", from_revision=1, step=lambda row: {**row, "added": 5} if "id" in row else row
    )
    with database.engine.connect() as connection:
        assert database.log.verify(connection).ok
        assert database.log.history(connection, Account, 7)[0].fields["added"] == 5
    database.assert_replays()


def test_another_primary_key_in_between_is_refused(database: LoggedDatabase) -> None:
    interrupt(database, after=1)
    database.execute('UPDATE oplog.oplog_adoption SET after = \'{"no": "1"}\'')
    with pytest.raises(SchemaDriftError, match=r"had primary key \(no\)"):
        adopt(database, "account")


def test_progress_that_could_not_be_read_is_not_stored(database: LoggedDatabase) -> None:
    interrupt(database, after=1)
    for changed in ("after = '[1]'", "rows = -1", "entries = NULL", "done = NULL"):
        with pytest.raises(IntegrityError):
            database.execute(f"UPDATE oplog.oplog_adoption SET {changed}")


def test_the_saved_progress_is_what_is_documented(database: LoggedDatabase) -> None:
    interrupt(database, after=2)
    with database.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT * FROM oplog.oplog_adoption").mappings().one()
    assert {name: value for name, value in row.items() if name != "updated_at"} == {
        "type_name": "account",
        "work": "adoption",
        "after": {"id": "4"},
        "rows": 4,
        "entries": 2,
        "done": False,
        "revision": 1,
    }


def test_chains_and_foreign_keys_hold_in_a_replay(database: LoggedDatabase) -> None:
    database.execute(
        "INSERT INTO transfer VALUES (1, 1, 3), (2, 2, NULL), (3, 10, 1)",
    )
    adopt(database, "transfer", "account", chunk_rows=2)
    kinds = list(dict.fromkeys(e.aggregate for e in database.read()))
    assert kinds == ["adopted/account", "adopted/transfer"]
    with database.engine.begin() as connection:
        report = database.log.replay(connection, into="rebuilt")
        found = connection.exec_driver_sql("SELECT count(*) FROM rebuilt.transfer").scalar()
    assert (report.rows, found) == (13, 3)
    assert_replays(database.log, database.engine)


def test_adopted_again_it_puts_right_what_slipped_past(engine: Engine) -> None:
    db = open_logged(engine, bank.Base, aggregates=bank.AGGREGATES)
    db.execute("INSERT INTO account (owner, balance) SELECT 'x', n FROM generate_series(1, 9) n")
    with engine.connect() as connection:
        db.log.adopt(connection, ["account"], chunk_rows=4)
    db.assert_replays()
    db.execute(
        "UPDATE account SET owner = 'unseen' WHERE id = 3",
        "INSERT INTO account (id, owner, balance) VALUES (100, 'unseen', 1)",
    )
    with engine.connect() as connection:
        assert db.log.adopt(connection, ["account"]).rows == 0
        assert len(db.log.verify(connection).differences) == 2
    with engine.connect() as connection:
        assert db.log.adopt(connection, ["account"], chunk_rows=4, again=True).rows == 10
    db.assert_replays()
    with db.sessions.begin() as session:
        session.get_one(bank.Account, 100).owner = "seen"
    db.assert_replays()
    with engine.connect() as connection:
        assert [c.fields["owner"] for c in db.log.history(connection, bank.Account, 3)] == [
            "x",
            "unseen",
        ]
