"""Tables as they were where live rows do not tell: folded from the log, and what stops that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import create_async_engine

from oplog.errors import ChainBrokenError, ConfigurationError, QuarantineWarning
from oplog.past import past_rows
from tests.postgres.poison import UNREADABLE, Forger
from tests.postgres.replay_models import (
    Account,
    Bench,
    Line,
    Task,
    add_account,
    make_bench,
    unlock,
    write_history,
)

pytestmark = pytest.mark.postgres

JOINED = sa.select(Task.id, Line.number).join(Line, Line.order_id == Task.id).order_by(Line.number)


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def connection(bench: Bench) -> Iterator[Connection]:
    engine = sa.create_engine(bench.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


def ask(bench: Bench, connection: Connection, at: int) -> list[dict[str, Any]]:
    found = [
        dict(row)
        for asked in (Task, Account, JOINED)
        for row in bench.log.as_of(connection, asked, at=at)
    ]
    connection.rollback()
    return found


def test_rows_that_were_adopted_since(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    before = bench.last_position()
    known = ask(bench, connection, before)
    bench.tamper("INSERT INTO task VALUES (70, 'older', 'than the log')")
    bench.log.adopt(connection, [Task])
    connection.rollback()
    bench.write(lambda s: setattr(s.get_one(Task, 70), "title", "changed"))
    # The log did not know it then, as it does not in a replay.
    assert ask(bench, connection, before) == known
    adopted = bench.log.as_of(connection, Task, at=bench.last_position() - 1)
    assert list(adopted)[-1] == {"id": 70, "project": "older", "title": "than the log"}
    connection.rollback()
    (one,) = bench.log.diff(connection, Task, before=before)
    assert (one.kind, one.key) == ("created", {"id": 70})


def test_a_record_since_that_nobody_can_read(bench: Bench, connection: Connection) -> None:
    bench.write(lambda s: add_account(s, 1))
    before = bench.last_position()
    known = ask(bench, connection, before)
    position = UNREADABLE["garbage"](Forger(bench))
    bench.tamper("UPDATE account SET balance = 77")
    bench.log.quarantine(connection, position, reason="nobody knows what it did")
    connection.rollback()
    # It may have touched any row, so no live row is taken for one of then.
    with pytest.warns(QuarantineWarning):
        assert ask(bench, connection, before) == known


def test_more_rows_than_are_taken_back(
    bench: Bench, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_history(bench)
    at = bench.last_position() - 6
    known = ask(bench, connection, at)
    monkeypatch.setattr(past_rows, "MOST_TOUCHED", -1)
    with bench.log.moment(connection, at=at) as then:
        folded = [dict(row) for asked in (Task, Account, JOINED) for row in then.rows(asked)]
        temporary = (
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'oplog_rebuilt%%' AND relkind = 'r'"
        )
        assert connection.exec_driver_sql(temporary).scalar() == 3
        connection.exec_driver_sql("CREATE TABLE beside (id int)")
    assert folded == known
    assert connection.exec_driver_sql(temporary).scalar() == 0
    assert connection.exec_driver_sql("SELECT count(*) FROM beside").scalar() == 0


async def test_more_rows_than_can_be_held(
    bench: Bench, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_history(bench)
    at = bench.last_position() - 6
    known = ask(bench, connection, at)
    monkeypatch.setattr(past_rows, "MOST_TOUCHED", -1)
    made = create_async_engine(bench.engine.url, poolclass=sa.NullPool)
    held = await bench.log.as_of_async(made, Task, at=at)
    assert held == known[: len(held)]
    monkeypatch.setattr(past_rows, "MOST_HELD", 1)
    with pytest.raises(ConfigurationError, match="task had more than 1 rows"):
        await bench.log.as_of_async(made, Task, at=at)
    # Where there are temporary tables, rows are not held.
    assert ask(bench, connection, at) == known


def test_an_altered_history_is_noticed(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    at = bench.last_position()
    bench.write(lambda s: setattr(s.get_one(Account, 1), "balance", 5))
    unlock(
        bench,
        "oplog_record",
        "DELETE FROM oplog.oplog_record WHERE position = (SELECT position FROM oplog.oplog_entry "
        "WHERE aggregate_name = 'account/1' AND version = 2)",
    )
    with pytest.raises(ChainBrokenError, match="account/1"):
        bench.log.as_of(connection, Account, at=at)
    connection.rollback()
    with pytest.raises(ChainBrokenError, match="account/1"):
        list(bench.log.diff(connection, Account, before=at))
    connection.rollback()
    # What it has nothing to do with can be asked for.
    assert list(bench.log.as_of(connection, Task, at=at))
