"""Altered records: the worker names what it does not publish, and every reader notices metadata."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.engine import Engine

from oplog import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.body import MAX_PAIRS
from oplog.errors import ChainBrokenError, OplogError
from oplog.store import StoredRecord
from oplog.store.rows import compute_hash
from oplog.sync.record_check import check_publishable
from tests.archived import make_record, seal_record
from tests.postgres.archived import open_memory
from tests.postgres.replay_models import Bench, Task, make_bench

pytestmark = pytest.mark.postgres

CHANGES = {
    "data": "data = 'x'",
    "metadata": "metadata[2] = 'mallory'",
    "a key of metadata": "metadata[1] = 'actors'",
    "half a pair": "metadata = ARRAY['actor']",
    "a missing text": "metadata = ARRAY['actor', NULL]",
    "pairs in pairs": "metadata = ARRAY[ARRAY['actor', 'ada']]",
    "no metadata": "metadata = NULL",
    "an aggregate": "aggregates = ARRAY['project/q']",
    "no aggregate": "aggregates = '{}'",
    "a missing aggregate": "aggregates = ARRAY[NULL]::text[]",
    "a version": "versions = ARRAY[7]",
    "a missing version": "versions = ARRAY[NULL]::bigint[]",
    "time": "created_at = created_at + interval '1 year'",
    "a time that no clock shows": "created_at = '290000-01-01'",
    "a time before Christ": "created_at = '4700-01-01 BC'",
    "parts": "parts = 2",
    "the key's id": "key_id = 'k'",
    "the record's id": "record_id = gen_random_uuid()",
}


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def write(bench: Bench, id: int) -> int:
    with bench.sessions.begin() as session:
        bench.log.annotate(session, actor="ada")
        session.add(Task(id=id, project=f"p{id}", title=None))
    return bench.last_position()


def alter(bench: Bench, position: int, change: str) -> None:
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        "CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM oplog.oplog_record",
        f"UPDATE oplog.oplog_record SET {change} WHERE position = {position}",
    )


def put_back(bench: Bench, position: int) -> None:
    bench.tamper(
        f"DELETE FROM oplog.oplog_record WHERE position = {position}",
        f"INSERT INTO oplog.oplog_record SELECT * FROM kept WHERE position = {position}",
    )


@pytest.mark.sampled(8)
@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_record_is_not_published_and_named(bench: Bench, change: str) -> None:
    archive = open_memory()
    first = write(bench, 1)
    bench.log.sync(bench.engine, archive)
    position = write(bench, 2)
    write(bench, 3)
    alter(bench, position, CHANGES[change])
    with pytest.raises(ChainBrokenError, match=f"^position {position}[ ,].*record ") as refused:
        bench.log.sync(bench.engine, archive)
    assert "backup" in refused.value.hint
    kept = ArchivedLog(archive, archive.read_head()).iterate_sequence()
    assert [record.position for page in kept for record in page.records] == [first]
    put_back(bench, position)
    assert bench.log.sync(bench.engine, archive).sequence == 3


def make(**given: Any) -> StoredRecord:
    return make_record(1, {}, **given)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (make()._replace(position=0), "position is out of range"),
        (make()._replace(position=1 << 62), "position is out of range"),
        (make(aggregates=()), "has no aggregates"),
        (make(parts=()), "has no parts"),
        (make(aggregates=("a" * 5000,)), "name of an aggregate is empty or too long"),
        (make(aggregates=("",)), "name of an aggregate is empty or too long"),
        (make(metadata=(("", "x"),)), "metadata '' are empty or too long"),
        (make(metadata=(("k" * 600, "x"),)), "are empty or too long"),
        (make(metadata=(("k", "x" * 5000),)), "metadata 'k' are empty or too long"),
        (make(metadata=(("k", "v"),) * (MAX_PAIRS + 1)), "has too many pairs of metadata"),
        (make()._replace(record_hash=bytes(32)), "does not match its hash"),
        (make(recorded_at=make().recorded_at)._replace(key_id="x"), "does not match its hash"),
    ],
)
def test_what_no_record_is(record: StoredRecord, why: str) -> None:
    with pytest.raises(ChainBrokenError, match=why) as refused:
        check_publishable(record)
    assert f"position {record.position}, record {record.record_id}" in str(refused.value)


def test_what_a_record_may_be() -> None:
    pairs = (("k" * 128, "v" * 1024),) * 256
    for record in (
        make(metadata=pairs, aggregates=("a" * 1024, "b")),
        make(metadata=(("k", ""),), format=3, key_id=""),
        make(recorded_at=make().recorded_at - timedelta(days=3650)),
    ):
        assert compute_hash(seal_record(record)) == record.record_hash
        check_publishable(record)


# -- metadata ------------------------------------------------------------------------------

READERS: dict[str, Callable[[Bench, Any, Archive], Any]] = {
    "read": lambda bench, connection, _: list(bench.log.read(connection)),
    "tail": lambda bench, connection, _: list(bench.log.tail(connection)),
    "history": lambda bench, connection, _: bench.log.history(connection, Task, 2),
    "as_of": lambda bench, connection, _: bench.log.as_of(connection, Task, key=2, at=99),
    "subscribe": lambda bench, _, __: list(bench.log.subscribe(bench.engine, name="c")),
    "replay": lambda bench, connection, _: bench.log.replay(connection),
    "verify": lambda bench, connection, _: bench.log.verify(connection),
    "sync": lambda bench, _, archive: bench.log.sync(bench.engine, archive),
    "snapshot": lambda bench, _, archive: bench.log.snapshot(bench.engine, archive),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("reader", READERS)
def test_altered_metadata_are_noticed_by_all(bench: Bench, reader: str) -> None:
    archive = open_memory()
    position = write(bench, 2)
    alter(bench, position, CHANGES["metadata"])
    with bench.engine.connect() as connection, pytest.raises(OplogError) as noticed:
        READERS[reader](bench, connection, archive)
    assert f"osition {position}" in str(noticed.value)


def test_an_altered_mark_is_found_by_doctor(bench: Bench) -> None:
    write(bench, 1)
    bench.tamper("SELECT oplog.oplog_retire_type('node', 'gone')")
    position = bench.last_position()

    def find(what: str) -> list[str]:
        with bench.engine.connect() as connection:
            found = bench.log.diagnose(connection)
        return [one.where for one in found if one.what == what]

    assert find("mark-altered") == []
    alter(bench, position, "metadata[2] = 'task'")
    assert find("mark-altered") == [f"position {position}"]
    put_back(bench, position)
    assert find("mark-altered") == find("time-ahead") == []
    alter(bench, position, "created_at = now() + interval '1 hour'")
    assert find("time-ahead") == [f"position {position}"]
