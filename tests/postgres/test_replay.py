"""The law of the log: whatever was done to the tables, replay gives the same tables."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog.errors import ConfigurationError
from oplog.replay import ReplayReport, replay_log
from tests.kept import open_log
from tests.postgres.replay_models import (
    HISTORY,
    Base,
    Bench,
    Node,
    Owner,
    Task,
    add_owner,
    check_law,
    dump_tables,
    make_bench,
    write_history,
)
from tests.sampling import Sample

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.mark.sampled
def test_the_law_holds_after_every_kind_of_change(bench: Bench, sample: Sample) -> None:
    checked = {*sample(range(len(HISTORY)), 5), len(HISTORY) - 1}
    for number, work in enumerate(HISTORY):
        bench.write(work)
        if number in checked:
            check_law(bench)


@pytest.mark.sampled
def test_through_every_position_is_the_table_as_it_was(bench: Bench, sample: Sample) -> None:
    copies = {}
    ends = [0]
    for work in HISTORY:
        bench.write(work)
        with bench.engine.connect() as connection:
            ends.append(bench.last_position())
            copies[ends[-1]] = dump_tables(connection)
    with bench.engine.connect() as connection:
        for begin, end in sample(list(itertools.pairwise(ends)), 6):
            for position in range(begin + 1, end + 1):
                report = bench.log.replay(connection, through=position)
                # A transaction counts whole from its first entry on.
                assert report.position == end
                assert dump_tables(connection, "replayed") == copies[end]
                connection.rollback()


def test_through_a_moment(bench: Bench) -> None:
    bench.write(add_owner)
    with bench.engine.connect() as connection:
        before = dump_tables(connection)
        moment = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        connection.rollback()
        bench.write(lambda s: add_owner(s, "bob"))
        assert bench.log.replay(connection, through=moment).entries == 1
        assert dump_tables(connection, "replayed") == before
        connection.rollback()
        assert bench.log.replay(connection, through=moment - dt.timedelta(days=1)).rows == 0
        with pytest.raises(ConfigurationError, match="no time zone"):
            bench.log.replay(connection, through=dt.datetime(2024, 1, 1))


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 7])
def test_batches_of_any_size_give_the_same_tables(bench: Bench, batch_rows: int) -> None:
    write_history(bench)
    with bench.engine.connect() as connection:
        whole = bench.log.replay(connection)
        assert whole == replay_log(connection, open_log(bench.log), batch_rows=batch_rows)
        assert dump_tables(connection, "replayed") == dump_tables(connection)


def test_updates_of_different_columns_in_one_batch(bench: Bench) -> None:
    bench.write(lambda s: s.add_all([Node(id=1, label="a"), Node(id=2, label="b")]))

    def change(session: Session) -> None:
        session.get_one(Node, 1).label = None
        session.get_one(Node, 2).parent_id = 1

    bench.write(change)
    with bench.engine.connect() as connection:
        replay_log(connection, open_log(bench.log), batch_rows=2)
        assert dump_tables(connection, "replayed") == dump_tables(connection)


def test_transactions_are_taken_whole(bench: Bench) -> None:
    """Rows of several aggregates are there together, or not at all."""
    before = bench.last_position()
    bench.write(lambda s: s.add_all([Node(id=1), Task(id=1, project="p")]))
    one = bench.last_position()
    bench.write(lambda s: s.add_all([Node(id=2), Task(id=2, project="p2")]))
    two = bench.last_position()
    with bench.engine.connect() as connection:
        none = bench.log.replay(connection, through=one - 1)
        assert (none.rows, none.entries, none.position) == (0, 0, before)
        first = bench.log.replay(connection, through=one)
        assert (first.rows, first.entries, first.position) == (2, 2, one)
        between = bench.log.replay(connection, through=two - 1)
        assert (between.rows, between.entries, between.position) == (2, 2, one)
        both = bench.log.replay(connection, through=two)
        assert (both.rows, both.entries, both.position) == (4, 4, two)
    check_law(bench)


def test_constraints_are_rebuilt_and_point_to_the_rebuilt_tables(bench: Bench) -> None:
    bench.tamper("CREATE UNIQUE INDEX node_label ON node (lower(label)) WHERE label <> ''")
    write_history(bench)
    with bench.engine.connect() as connection:
        bench.log.replay(connection)
        found = connection.exec_driver_sql(
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'replayed'::regnamespace AND contype <> 'n' ORDER BY 1, 2"
        ).all()
        index = connection.exec_driver_sql(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'replayed' "
            "AND indexname = 'node_label'"
        ).scalar_one()
    account = [text for table, text in found if table == "replayed.account"]
    assert account == [
        "CHECK ((balance > ('-1000'::integer)::numeric))",
        "FOREIGN KEY (owner_id) REFERENCES replayed.owner(id)",
        "PRIMARY KEY (id)",
    ]
    assert ("replayed.node", "FOREIGN KEY (parent_id) REFERENCES replayed.node(id)") in found
    assert ("replayed.owner", "UNIQUE (name)") in found
    assert "ON replayed.node" in index
    assert "WHERE ((label)::text <> ''::text)" in index


def test_replay_shares_no_sequence_and_calls_none(bench: Bench) -> None:
    write_history(bench)
    with bench.engine.connect() as connection:
        before = connection.exec_driver_sql("SELECT last_value FROM owner_id_seq").scalar()
        bench.log.replay(connection)
        assert connection.exec_driver_sql("SELECT last_value FROM owner_id_seq").scalar() == before
        defaults = connection.exec_driver_sql(
            "SELECT column_default FROM information_schema.columns "
            "WHERE table_schema = 'replayed' AND column_default IS NOT NULL"
        ).all()
    assert defaults == []
    bench.tamper("DROP TABLE owner CASCADE")


def test_excluded_columns_are_null(bench: Bench) -> None:
    bench.write(lambda s: add_owner(s, secret="hunter2"))
    with bench.engine.connect() as connection:
        bench.log.replay(connection)
        assert connection.exec_driver_sql("SELECT secret FROM replayed.owner").all() == [(None,)]


def test_columns_added_and_dropped_since(bench: Bench) -> None:
    bench.write(lambda s: s.add_all([Node(id=1, label="old"), Node(id=2, label="older")]))
    bench.write(lambda s: setattr(s.get_one(Node, 2), "label", "oldest"))
    bench.tamper(
        "ALTER TABLE node ADD COLUMN color text NOT NULL DEFAULT 'it''s \\ red'",
        "ALTER TABLE node ALTER COLUMN color SET DEFAULT 'blue'",
        "ALTER TABLE node DROP COLUMN label",
    )
    node = sa.Table(
        "node",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.Integer),
        sa.Column("color", sa.Text),
    )
    later = type(bench.log.catalog).from_models(node.metadata)
    log = type(bench.log)(later, keyring=bench.log.keyring)
    bench.log.detach(bench.sessions)
    log.attach(bench.sessions)
    with bench.sessions.begin() as session:
        session.execute(node.insert(), [{"id": 3, "parent_id": None, "color": "green"}])
        session.execute(node.update().where(node.c.id == 2).values(color="grey"))
    with bench.engine.connect() as connection:
        rows = "SELECT id, color FROM {}.node ORDER BY id"
        live = connection.exec_driver_sql(rows.format("public")).all()
        connection.rollback()
        for batch_rows in (1, 1000):
            replay_log(connection, open_log(log), batch_rows=batch_rows)
            assert connection.exec_driver_sql(rows.format("replayed")).all() == live
            connection.rollback()
        assert live == [(1, "it's \\ red"), (2, "grey"), (3, "green")]
        assert log.verify(connection).ok


def test_digest_tells_contents_and_nothing_else(bench: Bench) -> None:
    reports: list[ReplayReport] = []
    with bench.engine.connect() as connection:
        for label in ("a", "b", "a"):

            def rename(session: Session, label: str = label) -> None:
                session.merge(Node(id=1, label=label))

            bench.write(rename)
            reports.append(bench.log.replay(connection))
    first, second, third = reports
    assert first.digest == third.digest != second.digest
    assert len(first.digest) == 64


def test_digest_feels_every_row(bench: Bench) -> None:
    bench.write(lambda s: s.add_all([Node(id=n, label="a") for n in range(8)]))
    digests = set()
    with bench.engine.connect() as connection:
        for number in range(8):

            def rename(session: Session, number: int = number) -> None:
                session.get_one(Node, number).label = "b"

            bench.write(rename)
            digests.add(bench.log.replay(connection).digest)
    assert len(digests) == 8


def test_an_empty_log_replays_to_nothing(bench: Bench) -> None:
    with bench.engine.connect() as connection:
        report = bench.log.replay(connection)
        assert (report.rows, report.entries, report.position) == (0, 0, 0)
        assert bench.log.history(connection, Owner, 1) == []
    assert len(Base.metadata.tables) == 7
