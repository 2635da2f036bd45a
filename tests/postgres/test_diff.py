"""What changed in a table between two moments, row by row, and which records did it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from oplog import OpType
from oplog.errors import ConfigurationError
from tests.postgres.pruned import list_positions, write_random
from tests.postgres.replay_models import (
    Account,
    Bench,
    Car,
    Line,
    Task,
    Vehicle,
    make_bench,
    write_history,
)
from tests.sampling import Sample

pytestmark = pytest.mark.postgres

Rows = dict[str, dict[str, Any]]


@pytest.fixture
def bench(engine: Engine) -> Bench:
    bench = make_bench(engine)
    write_history(bench)
    return bench


@pytest.fixture
def connection(bench: Bench) -> Iterator[Connection]:
    engine = sa.create_engine(bench.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


def take_rows(bench: Bench, connection: Connection, model: Any, at: int) -> Rows:
    """Rows by the text of their key."""
    names = [column.name for column in sa.inspect(model).primary_key]
    return {
        repr(tuple(row[name] for name in names)): dict(row)
        for row in bench.log.as_of(connection, model, at=at)
    }


def apply(bench: Bench, connection: Connection, model: Any, **moments: Any) -> Rows:
    """The rows of before, with the differences made in them."""
    rows = take_rows(bench, connection, model, moments["before"])
    keys = []
    for one in bench.log.diff(connection, model, **moments):
        key = repr(tuple(one.key.values()))
        keys.append(tuple(one.key.values()))
        assert repr(rows.get(key)) == repr(None if one.before is None else dict(one.before))
        assert one.kind == ("created" if key not in rows else "changed" if one.after else "deleted")
        if one.after is None:
            del rows[key]
        else:
            rows.setdefault(key, {}).update({n: new for n, (_, new) in one.changes.items()})
            for name in one.after.keys() - rows[key].keys():
                rows[key][name] = None
        assert one.changes
        assert one.records
        assert all(
            moments["before"] < record.position <= moments.get("after", 2**62)
            for record in one.records
        )
        json.dumps(one.to_json(), allow_nan=False)
    assert keys == sorted(keys)
    return rows


def show(rows: Rows) -> dict[str, str]:
    return {key: repr(sorted(row.items())) for key, row in rows.items()}


@pytest.mark.sampled
def test_differences_lead_from_one_moment_to_the_other(
    bench: Bench, connection: Connection, sample: Sample
) -> None:
    write_random(bench, random.Random(3), 8)
    positions = list_positions(bench)
    pairs = [(one, other) for one in positions for other in positions if one <= other]
    models: tuple[Any, ...] = (Task, Line, Account, Car, Vehicle)
    for before, after in sample(pairs, 8):
        for model in models:
            found = apply(bench, connection, model, before=before, after=after)
            assert show(found) == show(take_rows(bench, connection, model, after))


def test_until_now_by_time_and_by_whom(bench: Bench, connection: Connection) -> None:
    before = bench.last_position()
    with bench.sessions.begin() as session:
        bench.log.annotate(session, actor="ann")
        session.add(Task(id=7, project="p", title="new"))
        session.get_one(Task, 1).title = "other"
        session.delete(session.get_one(Task, 2))
    with bench.sessions.begin() as session:
        bench.log.annotate(session, actor="bob")
        session.get_one(Task, 7).title = "newer"
    with bench.sessions.begin() as session:
        session.get_one(Task, 1).title = "there"
    with bench.sessions.begin() as session:
        session.get_one(Task, 1).title = "other"
    changed, deleted, created = bench.log.diff(connection, Task, before=before)
    assert (changed.kind, deleted.kind, created.kind) == ("changed", "deleted", "created")
    assert changed.key == {"id": 1}
    assert changed.changes == {"title": (None, "other")}
    assert len(changed.records) == 3
    assert deleted.after is None
    assert deleted.records[0].kind is OpType.DELETE
    assert created.before is None
    assert created.after == {"id": 7, "project": "p", "title": "newer"}
    assert [(r.kind, r.metadata["actor"]) for r in created.records] == [
        (OpType.CREATE, ["ann"]),
        (OpType.UPDATE, ["bob"]),
    ]
    by_time = bench.log.diff(connection, Task, before=before, after=created.records[0].recorded_at)
    assert [one.changes.get("title") for one in by_time][-1] == (None, "new")
    hidden = created.to_json(redact=True)
    assert "newer" not in json.dumps(hidden)
    assert hidden["key"] == {"id": 7}


def test_one_row_alone(bench: Bench, connection: Connection) -> None:
    positions = list_positions(bench)
    whole = {one.key["id"]: one for one in bench.log.diff(connection, Task, before=positions[3])}
    for key in (1, 2):
        (one,) = bench.log.diff(connection, Task, before=positions[3], key=key)
        assert (one.changes, one.kind) == (whole[key].changes, whole[key].kind)
        assert [r.position for r in one.records] == [r.position for r in whole[key].records]
    assert list(bench.log.diff(connection, Task, before=positions[3], key=404)) == []
    with pytest.raises(ConfigurationError, match="key"):
        list(bench.log.diff(connection, Task, before=positions[3], key=None))


def test_a_row_that_moves_is_changed(bench: Bench, connection: Connection) -> None:
    before = bench.last_position()
    bench.write(lambda s: setattr(s.get_one(Task, 2), "project", "moved"))
    (one,) = bench.log.diff(connection, Task, before=before)
    assert one.changes == {"project": ("z last", "moved")}
    assert [record.kind for record in one.records] == [OpType.UPDATE]


def test_a_row_that_came_and_went_is_left_out(bench: Bench, connection: Connection) -> None:
    before = bench.last_position()
    bench.write(lambda s: s.add(Task(id=9, project="p", title=None)))
    bench.write(lambda s: s.delete(s.get_one(Task, 9)))
    assert list(bench.log.diff(connection, Task, before=before)) == []


def test_left_early_it_harms_nothing(bench: Bench) -> None:
    before = list_positions(bench)[0]
    with bench.engine.connect() as connection:
        differences = bench.log.diff(connection, Task, before=before)
        next(differences)
        connection.exec_driver_sql("CREATE TABLE beside (id int)")
        del differences
        connection.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM beside").scalar() == 0
    assert bench.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_what_is_no_stretch_is_refused_at_once(bench: Bench, connection: Connection) -> None:
    first, last = list_positions(bench)[0], bench.last_position()
    with pytest.raises(ConfigurationError, match="lies before"):
        bench.log.diff(connection, Task, before=last, after=first)
    with pytest.raises(ConfigurationError, match="in the future"):
        bench.log.diff(connection, Task, before=first, after=last + 1)
    with pytest.raises(ConfigurationError, match="first record has position"):
        bench.log.diff(connection, Task, before=datetime(1999, 1, 1, tzinfo=UTC))
