"""Contenders of the benchmark do what they are compared for; how fast is not tested.

PostgreSQL-Audit is not here: only `make bench` installs it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from benchmarks.clients import Seat, read_peak_bytes
from benchmarks.contenders import CONTENDERS, Log
from benchmarks.workloads import MANY, MIXED, ONE, RAW, Transfer, Turn, change_mixed
from oplog.errors import TicketConflictError

pytestmark = pytest.mark.postgres

NAMES = sorted(set(CONTENDERS) - {"PostgreSQL-Audit"})
LOGS = [name for name in NAMES if name.startswith("log")]


@pytest.fixture
def seat(bare_database_url: URL, request: pytest.FixtureRequest) -> Iterator[Seat]:
    side = CONTENDERS[request.param](bare_database_url.render_as_string(hide_password=False))
    side.create()
    side.attach()
    yield Seat(side)
    side.engine.dispose()


def count_rows(seat: Seat) -> int:
    with seat.side.engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(Transfer)) or 0)


@pytest.mark.parametrize("seat", NAMES, indirect=True)
def test_everybody_writes_the_same_rows(seat: Seat) -> None:
    assert seat.transact(ONE) == 1
    seat.repeat((MIXED.name, 3))  # the first one has nothing to change or delete
    assert seat.work((MANY.name, 0)).transactions == 1
    assert count_rows(seat) == 1 + 3 * 10 - 2 + 1000
    with seat.side.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count(Transfer.status))) == 2 * 5


@pytest.mark.parametrize("seat", [name for name in NAMES if name != "plain"], indirect=True)
def test_a_history_has_a_size_and_is_read_by_key(seat: Seat) -> None:
    empty = seat.measure_size(None)
    seat.prepare_history(20)
    assert seat.measure_size(None) > empty
    # Each read checks that it found three changes.
    assert seat.read((20, 0)).transactions == 1


@pytest.mark.parametrize("seat", ["log", "log, one aggregate"], indirect=True)
def test_a_log_agrees_with_the_table_after_sql_text(seat: Seat) -> None:
    seat.repeat((RAW.name, 2))
    seat.measure_memory(1000)
    assert isinstance(seat.side, Log)
    with seat.side.engine.connect() as connection:
        report = seat.side.log.verify(connection)
    assert (report.ok, report.rows) == (True, 1002)


@pytest.mark.parametrize("seat", LOGS, indirect=True)
def test_a_lost_conflict_is_an_attempt_in_vain_and_no_transaction(seat: Seat) -> None:
    seat.repeat((MIXED.name, 1))
    attempts = []

    def lose_once(session: Session, turn: Turn) -> list[tuple[str, object]]:
        attempts.append(list(turn.known))
        changes = change_mixed(session, turn)
        if len(attempts) == 1:
            raise TicketConflictError("lost", hint="try again")
        return changes

    losing = type(MIXED)("losing", "loses once", lose_once, 1, 16)
    assert seat.transact(losing) == 2
    # The second attempt may change the rows that the first one did not get to change.
    assert attempts[0] == attempts[1]
    assert count_rows(seat) == 10 + 10 - 1


def test_the_peak_of_memory_is_that_of_this_process() -> None:
    assert 10**6 < read_peak_bytes() < 10**11
