"""One reader, two inputs: a log kept elsewhere, in another order, gives what the tables give."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine

from oplog.errors import ChainBrokenError
from oplog.reading.row_history import list_changes, rebuild_row
from oplog.replay import replay_log, verify_tables
from tests.kept import KeptLog, open_log
from tests.postgres.replay_models import (
    Bench,
    Node,
    Owner,
    Task,
    add_owner,
    make_bench,
    write_history,
)
from tests.sampling import Sample

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def keep(bench: Bench) -> KeptLog:
    """The whole history; what concerns trees and tasks came to light last."""
    kept = KeptLog(bench.log.store)
    with bench.engine.connect() as connection:
        entries = bench.log.read(connection)
        late = {e.position for e in entries if e.aggregate.startswith(("node", "project"))}
        kept.take(connection, order=lambda position: position in late)
    positions = [record.position for record in kept.records]
    assert positions != sorted(positions)
    return kept


@pytest.mark.sampled
def test_replay_through_every_position_is_the_same_from_both(bench: Bench, sample: Sample) -> None:
    write_history(bench)
    kept = keep(bench)
    with bench.engine.connect() as connection:
        for position in sample(range(bench.last_position() + 1), 8):
            expected = bench.log.replay(connection, through=position)
            connection.rollback()
            found = replay_log(
                connection, open_log(bench.log, kept), through=position, batch_rows=2
            )
            connection.rollback()
            assert found == expected


def test_through_a_moment_of_the_kept_log(bench: Bench) -> None:
    write_history(bench)
    kept = keep(bench)
    with bench.engine.connect() as connection:
        moment = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        connection.rollback()
        expected = bench.log.replay(connection)
        connection.rollback()
        bench.write(lambda s: add_owner(s, "later"))
        kept.take(connection)
        found = replay_log(connection, open_log(bench.log, kept), through=moment)
        assert found == expected


def test_tables_are_verified_against_a_kept_log(bench: Bench) -> None:
    write_history(bench)
    kept = keep(bench)
    with bench.engine.connect() as connection:
        assert verify_tables(connection, open_log(bench.log, kept)).ok
        connection.rollback()
        bench.write(lambda s: add_owner(s, "later"))
        found = verify_tables(connection, open_log(bench.log, kept))
        assert [(d.table, d.kind) for d in found.differences] == [("public.owner", "extra")]


def test_histories_are_the_same_from_both(bench: Bench) -> None:
    write_history(bench)
    kept = keep(bench)
    with bench.engine.connect() as connection:
        reader = bench.log.open_reader(connection, source=kept)
        for model, key in [(Owner, 1), (Task, 1), (Task, 2), (Node, 1), (Node, 2)]:
            types = bench.log.catalog.find_types(model)
            expected = bench.log.history(connection, model, key)
            assert len(expected) > 1
            assert list_changes(reader, types, key=key) == expected
            for at in range(bench.last_position() + 1):
                row = bench.log.as_of(connection, model, key=key, at=at)
                assert rebuild_row(reader, types, key=key, at=at) == row


def test_a_record_of_a_kept_log_that_lacks_an_aggregate_is_an_alarm(bench: Bench) -> None:
    write_history(bench)
    kept = keep(bench)
    place = next(n for n, record in enumerate(kept.records) if len(record.aggregates) > 1)
    whole = kept.records[place]
    kept.records[place] = whole._replace(
        aggregates=whole.aggregates[:-1],
        versions=whole.versions[:-1],
        prev_hashes=whole.prev_hashes[:-1],
    )
    with (
        bench.engine.connect() as connection,
        pytest.raises(ChainBrokenError, match=f"position {whole.position} .* match its hash"),
    ):
        list(bench.log.open_reader(connection, source=kept).iterate_records("sequence 0"))
