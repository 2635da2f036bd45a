"""The versions of a row, asked of the log, and of everything in its asynchronous form."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from oplog import OpType
from oplog.errors import ConfigurationError
from tests.postgres.pruned import list_positions
from tests.postgres.replay_models import (
    Account,
    Bench,
    Car,
    Line,
    Task,
    make_bench,
    unlock,
    write_history,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    bench = make_bench(engine)
    write_history(bench)
    return bench


def test_versions_are_what_as_of_gives(bench: Bench) -> None:
    with bench.engine.connect() as connection:
        for model, key in ((Account, 1), (Task, 2), (Car, 7), (Line, (1, "a/b"))):
            versions = bench.log.versions(connection, model, key)
            changes = bench.log.history(connection, model, key)
            assert [v.position for v in versions] == [c.position for c in changes]
            assert [v.number for v in versions] == list(range(1, len(changes) + 1))
            for version in versions:
                row = bench.log.as_of(connection, model, key=key, at=version.position)
                assert repr(None if version.row is None else dict(version.row)) == repr(row)
            assert [v.previous for v in versions] == [None, *versions[:-1]]
            assert [v.next for v in versions] == [*versions[1:], None]
            json.dumps([v.to_json() for v in versions])


def test_a_version_tells_what_changed(bench: Bench) -> None:
    with bench.engine.connect() as connection:
        created, changed, gone, again = bench.log.versions(connection, Account, 1)
    assert created.row is not None
    assert created.row.balance == Decimal("10.00")
    assert created.changes["balance"] == (None, Decimal("10.00"))
    assert changed.changes == {"balance": (Decimal("10.00"), Decimal("-0.05"))}
    assert changed.row is not None
    assert changed.row["balance"] == changed.row.balance == Decimal("-0.05")
    assert set(changed.row) == {"id", "owner_id", "balance", "opened"}
    assert (gone.kind, gone.row) == (OpType.DELETE, None)
    assert gone.changes["balance"] == (Decimal("-0.05"), None)
    assert again.kind is OpType.CREATE
    assert again.previous is gone
    assert "10.00" not in json.dumps(created.to_json(redact=True))
    with pytest.raises(AttributeError, match="no column 'other'"):
        _ = changed.row.other
    with pytest.raises(AttributeError, match="of the past"):
        changed.row.balance = 1
    assert pickle.loads(pickle.dumps(changed.row)) == changed.row


def test_versions_of_one_row_read_its_aggregate_alone(bench: Bench) -> None:
    unlock(
        bench,
        "oplog_record",
        "UPDATE oplog.oplog_record SET data = '' WHERE NOT aggregates @> ARRAY['account/1']",
    )
    with bench.engine.connect() as connection:
        assert len(bench.log.versions(connection, Account, 1)) == 4


# -- asynchronous forms -------------------------------------------------------------------------


@asynccontextmanager
async def on_connection(engine: Engine) -> AsyncIterator[Any]:
    made = create_async_engine(engine.url, poolclass=sa.NullPool)
    async with made.connect() as connection:
        yield connection


@asynccontextmanager
async def on_session(engine: Engine) -> AsyncIterator[Any]:
    made = create_async_engine(engine.url, poolclass=sa.NullPool)
    async with async_sessionmaker(made)() as session:
        yield session


@asynccontextmanager
async def on_scope(engine: Engine) -> AsyncIterator[Any]:
    made = create_async_engine(engine.url, poolclass=sa.NullPool)
    scope: async_scoped_session[AsyncSession] = async_scoped_session(
        async_sessionmaker(made), scopefunc=lambda: 1
    )
    yield scope
    await scope.remove()


@asynccontextmanager
async def on_engine(engine: Engine) -> AsyncIterator[Any]:
    made = create_async_engine(engine.url, poolclass=sa.NullPool)
    yield made
    await made.dispose()


@pytest.mark.parametrize("give", [on_connection, on_session, on_scope, on_engine])
async def test_asynchronous_forms_give_the_same(
    bench: Bench, give: Callable[[Engine], Any]
) -> None:
    log, at = bench.log, list_positions(bench)[4]
    select = sa.select(Task.id, Task.title).order_by(Task.id)
    with sa.create_engine(bench.engine.url, poolclass=sa.NullPool).connect() as connection:
        rows = list(log.as_of(connection, Task, at=at))
        chosen = list(log.as_of(connection, select, at=at))
        row = log.as_of(connection, Task, key=1, at=at)
        versions = log.versions(connection, Task, 1)
        differences = list(log.diff(connection, Task, before=at))
    async with give(bench.engine) as given:
        assert await log.as_of_async(given, Task, at=at) == rows
        assert await log.as_of_async(given, select, at=at) == chosen
        assert await log.as_of_async(given, Task, 1, at=at) == row
        assert await log.versions_async(given, Task, 1) == versions
        assert [one async for one in log.diff_async(given, Task, before=at)] == differences
        async with log.moment_async(given, at=at) as then:
            assert then.position == at
            assert await then.rows(Task) == rows
            assert await then.rows(Task, limit=1) == rows[:1]
            assert await then.rows(select) == chosen


async def test_an_asynchronous_moment_passes_errors_on(bench: Bench) -> None:
    made = create_async_engine(bench.engine.url, poolclass=sa.NullPool)
    async with made.connect() as connection:
        with pytest.raises(ZeroDivisionError):
            async with bench.log.moment_async(connection, at=bench.last_position()):
                raise ZeroDivisionError
        with pytest.raises(ConfigurationError, match="in the future"):
            await bench.log.as_of_async(connection, Task, at=10**9)
        assert len(await bench.log.as_of_async(connection, Task, at=bench.last_position())) == 2
    with pytest.raises(ConfigurationError, match="neither an AsyncConnection"):
        await bench.log.as_of_async(bench.engine, Task, at=1)
