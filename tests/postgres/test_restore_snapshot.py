"""A restore from a snapshot and the records after it gives what the whole log gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog.errors import ChainBrokenError, ConfigurationError
from oplog.payload.shape import Shape
from oplog.postgres.work import Driver
from oplog.snapshot.base import HeadRow
from tests.postgres.replay_models import HISTORY, Bench, Owner, Task, check_law, make_bench
from tests.postgres.restored import dump_log, keep, make_target, restore
from tests.postgres.test_restore import dump
from tests.shelf import list_heads

pytestmark = pytest.mark.postgres

COLUMNS: Mapping[str, tuple[list[str], list[str]]] = {
    "owner": (["id", "name", "motto"], ["id"]),
    "account": (["id", "owner_id", "balance", "opened"], ["id"]),
    "node": (["id", "parent_id", "label"], ["id"]),
    "line": (["order_id", "number", "weight", "paid", "blob"], ["order_id", "number"]),
    "task": (["id", "project", "title"], ["id"]),
    "vehicle": (["id", "kind", "maker"], ["id"]),
    "car": (["id", "doors"], ["id"]),
}


@dataclass
class Layer:
    gone_text: bytes
    rows_text: bytes

    def gone(self) -> Iterator[bytes]:
        yield self.gone_text

    def rows(self) -> Iterator[bytes]:
        yield self.rows_text


@dataclass
class Table:
    name: tuple[str, str]
    columns: Sequence[str]
    key_names: Sequence[str]
    rows_text: bytes
    kept_layers: list[Layer] = field(default_factory=list)
    shapes: Sequence[Shape] = ()

    def rows(self) -> Iterator[bytes]:
        yield self.rows_text

    def layers(self) -> list[Layer]:
        return self.kept_layers


@dataclass
class Snapshot:
    sequence: int
    kept_tables: dict[str, Table]
    kept_heads: list[HeadRow]
    sequences: dict[str, int] = field(default_factory=dict)
    position: int = 0

    def tables(self) -> list[Table]:
        return list(self.kept_tables.values())

    def heads(self) -> list[HeadRow]:
        return self.kept_heads


def merge_task(session: Session, title: str) -> None:
    session.merge(Task(id=1, project="p", title=title))


def copy_out(bench: Bench, select: str) -> bytes:
    with bench.engine.begin() as connection:
        found = Driver(connection).copy_out(f"COPY ({select}) TO STDOUT", enough=10**9)
    return bytes(found)


def take(bench: Bench) -> Snapshot:
    tables = {
        name: Table(
            ("public", name),
            columns,
            keys,
            copy_out(bench, f"SELECT {', '.join(columns)} FROM {name}"),
        )
        for name, (columns, keys) in COLUMNS.items()
    }
    with bench.engine.connect() as connection:
        heads = list_heads(connection)
    return Snapshot(len(keep(bench).records), tables, heads)


def add_layer(snapshot: Snapshot, bench: Bench) -> None:
    """What all tables are now, over what the snapshot has; every key it has is gone first."""
    later = take(bench)
    for name, table in snapshot.kept_tables.items():
        columns, keys = COLUMNS[name]
        places = [columns.index(key) for key in keys]
        known = {
            tuple(line.split(b"\t")[place] for place in places)
            for text in [table.rows_text, *(layer.rows_text for layer in table.kept_layers)]
            for line in text.splitlines()
        }
        gone = b"".join(b"\t".join(key) + b"\n" for key in sorted(known))
        table.kept_layers.append(Layer(gone, later.kept_tables[name].rows_text))
    snapshot.sequence = later.sequence
    snapshot.kept_heads = later.kept_heads


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cut", [0, 3, 8, 12, len(HISTORY)])
def test_a_snapshot_and_later_records(bench: Bench, target: Bench, cut: int) -> None:
    for work in HISTORY[:cut]:
        bench.write(work)
    snapshot = take(bench)
    for work in HISTORY[cut:]:
        bench.write(work)
    kept = keep(bench)
    report = restore(target, kept, snapshot=snapshot, batch_rows=3)
    assert dump(target) == dump(bench)
    with bench.engine.connect() as connection:
        replayed = bench.log.replay(connection)
    assert (report.digest, report.rows) == (replayed.digest, replayed.rows)
    check_law(target)


def test_layers_over_the_base(bench: Bench, target: Bench) -> None:
    for work in HISTORY[:8]:
        bench.write(work)
    snapshot = take(bench)
    for work in HISTORY[8:12]:
        bench.write(work)
    add_layer(snapshot, bench)
    for work in HISTORY[12:16]:
        bench.write(work)
    add_layer(snapshot, bench)
    for work in HISTORY[16:]:
        bench.write(work)
    restore(target, keep(bench), snapshot=snapshot)
    assert dump(target) == dump(bench)
    check_law(target)


def test_a_log_whose_beginning_was_given_up(bench: Bench, target: Bench) -> None:
    for work in HISTORY[:12]:
        bench.write(work)
    snapshot = take(bench)
    for work in HISTORY[12:]:
        bench.write(work)
    kept = keep(bench)
    kept.first_sequence = 5
    report = restore(target, kept, snapshot=snapshot)
    with target.engine.connect() as there, bench.engine.connect() as here:
        logged, expected = dump_log(there), dump_log(here)
    assert logged["head"] == expected["head"]
    assert len(logged["record"]) == len(expected["record"]) - 4
    assert dump(target)[0] == dump(bench)[0]
    assert report.sequence == len(kept.records)
    target.write(lambda s: setattr(s.get_one(Owner, 1), "motto", "goes on"))
    with target.engine.connect() as connection:
        tickets = target.log.store.read_tickets(connection, ["owner/1"])
    assert tickets["owner/1"] > 1


def test_sequences_go_as_far_as_the_snapshot_says(bench: Bench, target: Bench) -> None:
    bench.write(HISTORY[0])
    snapshot = take(bench)
    snapshot.sequences = {"public.owner_id_seq": 77, "public.gone_seq": 5}
    restore(target, keep(bench), snapshot=snapshot)
    with target.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT nextval('owner_id_seq')").scalar() == 78


def test_a_snapshot_that_does_not_fit_is_refused(bench: Bench, target: Bench) -> None:
    bench.write(lambda s: s.add(Task(id=1, project="p", title="x")))
    bench.write(lambda s: setattr(s.get_one(Task, 1), "title", "y"))
    snapshot = take(bench)
    kept = keep(bench)
    with pytest.raises(ConfigurationError, match="newer than position 1"):
        restore(target, kept, snapshot=snapshot, through=1)
    snapshot.sequence = 3
    with pytest.raises(ConfigurationError, match="the snapshot is at 3"):
        restore(target, kept, snapshot=snapshot)


@pytest.mark.parametrize("first", [1, 3])
def test_a_snapshot_with_other_chains_is_refused(bench: Bench, target: Bench, first: int) -> None:
    for title in "xyz":
        bench.write(partial(merge_task, title=title))
    snapshot = take(bench)
    (head,) = snapshot.kept_heads
    if first == 3:
        bench.write(partial(merge_task, title="last"))
    kept = keep(bench)
    kept.first_sequence = first
    snapshot.kept_heads = [head._replace(head_hash=bytes(32))]
    with pytest.raises(ChainBrokenError, match="the snapshot has another hash"):
        restore(target, kept, snapshot=snapshot)
    snapshot.kept_heads = [head._replace(version=9)]
    with pytest.raises(ChainBrokenError, match="the snapshot knows later ones"):
        restore(target, kept, snapshot=snapshot)


def test_records_without_what_was_before_them_are_refused(bench: Bench, target: Bench) -> None:
    for title in "xyz":
        bench.write(partial(merge_task, title=title))
    snapshot = take(bench)
    kept = keep(bench)
    kept.first_sequence = 3
    snapshot.kept_heads = []
    with pytest.raises(ChainBrokenError, match="what was before it is not known"):
        restore(target, kept, snapshot=snapshot)
