"""Live tables against the log: every difference is found, and nothing else."""

from __future__ import annotations

import threading
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.errors import ChainBrokenError
from oplog.replay import Difference
from oplog.replay.verification import verify_tables
from tests.kept import open_log
from tests.postgres.replay_models import (
    Account,
    Bench,
    Line,
    Node,
    Owner,
    Task,
    check_law,
    make_bench,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    found = make_bench(engine)
    with found.sessions.begin() as session:
        session.add(Owner(name="ann", motto=""))
        session.flush()
        session.add_all(
            [Account(id=n, owner_id=1, balance=Decimal(f"{n}.50")) for n in range(1, 11)]
        )
        session.add(Line(order_id=1, number="a", weight=0.0, paid=None, blob=b"x"))
        session.add_all([Task(id=n, project=f"p{n}", title=None) for n in (1, 2)])
    return found


def find_differences(bench: Bench) -> list[Difference]:
    with bench.engine.connect() as connection:
        verdict = bench.log.verify(connection)
        assert verdict.ok == (not verdict.differences)
        assert verdict.count == len(verdict.differences)
    return verdict.differences


def test_untouched_tables_are_fine(bench: Bench) -> None:
    check_law(bench)


@pytest.mark.parametrize(
    ("statement", "column", "live", "logged"),
    [
        ("UPDATE {} SET motto = NULL", "motto", None, ""),
        ("UPDATE {} SET motto = ' '", "motto", " ", ""),
        ("UPDATE {} SET name = 'Ann'", "name", "Ann", "ann"),
    ],
)
def test_one_changed_value_is_found_exactly(
    bench: Bench, statement: str, column: str, live: str | None, logged: str
) -> None:
    bench.tamper(statement.format("owner"))
    assert find_differences(bench) == [
        Difference("public.owner", {"id": 1}, column, live, logged, "changed")
    ]


def test_a_computed_column_differs_with_what_it_is_computed_from(bench: Bench) -> None:
    bench.tamper("UPDATE account SET balance = 99 WHERE id = 7")
    assert find_differences(bench) == [
        Difference(
            "public.account", {"id": 7}, "balance", Decimal("99.00"), Decimal("7.50"), "changed"
        ),
        Difference(
            "public.account", {"id": 7}, "doubled", Decimal("198.00"), Decimal("15.00"), "changed"
        ),
    ]


def test_values_that_only_print_differently_differ(bench: Bench) -> None:
    bench.tamper("UPDATE line SET weight = '-0'")
    (found,) = find_differences(bench)
    assert (found.key, found.column, str(found.live)) == (
        {"order_id": 1, "number": "a"},
        "weight",
        "-0.0",
    )


def test_rows_missing_and_extra(bench: Bench) -> None:
    bench.tamper(
        "DELETE FROM task WHERE id = 2",
        "INSERT INTO node (id, label) VALUES (5, 'five')",
        "UPDATE account SET id = 100 WHERE id = 10",
    )
    found = {(d.table, d.kind, tuple(d.key.values())): d for d in find_differences(bench)}
    assert set(found) == {
        ("public.task", "missing", (2,)),
        ("public.node", "extra", (5,)),
        ("public.account", "missing", (10,)),
        ("public.account", "extra", (100,)),
    }
    missing = found["public.task", "missing", (2,)]
    assert missing.column == ""
    assert missing.live is None
    assert missing.logged == {"id": 2, "project": "p2", "title": None}
    extra = found["public.node", "extra", (5,)]
    assert extra.logged is None
    assert extra.live == {"id": 5, "parent_id": None, "label": "five"}


def test_excluded_columns_are_not_compared(bench: Bench) -> None:
    bench.tamper("UPDATE owner SET secret = 'changed'")
    assert find_differences(bench) == []


def test_all_are_counted_and_some_described(bench: Bench) -> None:
    bench.tamper("UPDATE account SET balance = 0", "UPDATE task SET title = 'x', project = 'y'")
    with bench.engine.connect() as connection:
        verdict = bench.log.verify(connection, limit=3)
        assert verdict.count == 2 * 10 + 2 * 2
        assert not verdict.ok
        assert [(d.key["id"], d.column) for d in verdict.differences] == [
            (1, "balance"),
            (1, "doubled"),
            (2, "balance"),
        ]
        none = bench.log.verify(connection, limit=0)
        assert (none.differences, none.count, none.ok) == ([], 24, False)


def test_verify_leaves_nothing_behind(bench: Bench) -> None:
    with bench.engine.connect() as connection:
        assert bench.log.verify(connection).ok
        assert not connection.in_transaction()
        left = connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE relpersistence = 't'"
        ).all()
        assert left == []
        assert connection.exec_driver_sql("SHOW row_security").scalar() == "on"
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == (
            "read committed"
        )


def test_verify_within_a_callers_snapshot(bench: Bench) -> None:
    isolated = bench.engine.execution_options(isolation_level="REPEATABLE READ")
    with isolated.connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM task")
        bench.tamper("UPDATE task SET title = 'later'")
        # The caller's snapshot is older than the tampering.
        assert bench.log.verify(connection).ok
        assert connection.in_transaction()
        connection.rollback()
        assert not bench.log.verify(connection).ok


def test_verify_beside_a_callers_transaction_sees_what_is_committed(bench: Bench) -> None:
    with bench.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE task SET title = 'mine' WHERE id = 1")
        assert bench.log.verify(connection).ok
        assert connection.in_transaction()
        connection.rollback()


def test_live_writes_during_verify_are_no_drift(bench: Bench) -> None:
    folded, written = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            assert folded.wait(30)
            with bench.sessions.begin() as session:
                session.get_one(Account, 3).balance = Decimal("0.01")
                session.add(Node(id=1, label="new"))
                session.delete(session.get_one(Task, 1))
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)
        finally:
            written.set()

    def pause(done: int, total: int) -> None:
        folded.set()
        assert written.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    with bench.engine.connect() as connection:
        verdict = bench.log.verify(connection, progress=pause)
    writer.join()
    assert failures == []
    assert verdict.differences == []
    assert verdict.position < bench.last_position()
    check_law(bench)


@pytest.mark.parametrize("batch_rows", [1, 4])
def test_small_batches_find_the_same(bench: Bench, batch_rows: int) -> None:
    with bench.sessions.begin() as session:
        session.get_one(Account, 4).balance = Decimal("1.00")
        session.delete(session.get_one(Account, 5))
    bench.tamper("UPDATE account SET balance = 9 WHERE id = 4")
    with bench.engine.connect() as connection:
        verdict = verify_tables(connection, open_log(bench.log), batch_rows=batch_rows)
    assert [(d.key["id"], d.column) for d in verdict.differences] == [
        (4, "balance"),
        (4, "doubled"),
    ]


def test_broken_chains_come_before_any_verdict(bench: Bench) -> None:
    bench.tamper(
        "ALTER TABLE oplog.oplog_ticket DISABLE TRIGGER ALL",
        "INSERT INTO oplog.oplog_ticket (aggregate_name, version) VALUES ('account/2', 7) "
        "ON CONFLICT (aggregate_name) DO UPDATE SET version = 7",
    )
    with (
        bench.engine.connect() as connection,
        pytest.raises(ChainBrokenError, match=r"'account/2' version 1 \(position \d+\)"),
    ):
        bench.log.verify(connection)


def test_types_the_client_cannot_hold(engine: Engine) -> None:
    bench = make_bench(engine)
    bench.tamper(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN code AS text NOT NULL CHECK (value <> '')",
        "CREATE TABLE odd (id code PRIMARY KEY, at timestamptz, span interval, n numeric, "
        "js json, jb jsonb, feel mood, words text[], spell tstzrange, tag code)",
    )
    metadata = sa.MetaData()
    names = ("at", "span", "n", "js", "jb", "feel", "words", "spell", "tag")
    columns = [sa.Column(name, sa.Text) for name in names]
    odd = sa.Table("odd", metadata, sa.Column("id", sa.Text, primary_key=True), *columns)
    log = type(bench.log)(type(bench.log.catalog).from_models(metadata), plaintext=True)
    bench.log.detach(bench.sessions)
    log.attach(bench.sessions)
    with bench.sessions.begin() as session:
        for key in ("a", "b"):
            session.execute(
                odd.insert().values(
                    id=key,
                    at=sa.text("'infinity'"),
                    span=sa.text("'1 mon -3 days'"),
                    n=sa.text("1.10"),
                    js=sa.text('\'{"a":  1, "a": 2}\''),
                    jb=sa.text("'[1.0]'"),
                    feel=sa.text("'ok'"),
                    words=sa.text("ARRAY['x', NULL, 'a\"b']"),
                    spell=sa.text("'[2024-01-01, infinity)'"),
                    tag=sa.text("'t'"),
                )
            )
    with bench.sessions.begin() as session:
        session.execute(odd.update().where(odd.c.id == "a").values(n=sa.text("1.100")))
        session.execute(odd.update().where(odd.c.id == "b").values(js=sa.text("'null'")))
    with engine.connect() as connection:
        assert log.verify(connection).differences == []
        log.replay(connection)
        rows = "SELECT o::text FROM {}.odd o ORDER BY id"
        live = connection.exec_driver_sql(rows.format("public")).all()
        assert connection.exec_driver_sql(rows.format("replayed")).all() == live
    bench.tamper(
        "UPDATE odd SET n = 1.1 WHERE id = 'a'",
        "UPDATE odd SET js = '{\"a\": 1, \"a\": 2}', span = '27 days' WHERE id = 'b'",
    )
    with engine.connect() as connection:
        found = log.verify(connection).differences
    assert [(d.key, d.column) for d in found] == [
        ({"id": "a"}, "n"),
        ({"id": "b"}, "span"),
        ({"id": "b"}, "js"),
    ]
    assert (found[0].live, found[0].logged) == (Decimal("1.1"), Decimal("1.100"))
