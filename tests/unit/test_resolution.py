"""How an outcome is decided, with a store that answers as it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from oplog.errors import CommitOutcomeUnknownError, ConfigurationError
from oplog.outcome import Blocker, Outcome, Resolution
from oplog.reading import resolution
from oplog.reading.resolution import read_question, resolve_on
from oplog.receipt import Receipt
from oplog.store.commit_lookup import LoggedRequest

pytestmark = pytest.mark.unit

RECORD = UUID(int=1)
ONE, TWO = (Receipt(RECORD, name, 0, b"", process_id=9) for name in ("a", "b"))
WHOLE = (Receipt(RECORD, "a", 4, b"h"), Receipt(RECORD, "b", 1, b"h"))
BLOCKERS = [Blocker(5, "active", "app", "", 1.0)]


class RefusedError(Exception):
    """A driver's error."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


def failed(sqlstate: str) -> DBAPIError:
    return OperationalError("SELECT", None, RefusedError(sqlstate))


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Server:
    """A connection and a store in one, which write down what is asked of them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.told: list[tuple[Any, ...]] = []
        self.standby = False
        self.under_way = 0
        self.look_seconds = 1.0
        self.committed = False
        self.receipts: tuple[Receipt, ...] = WHOLE
        self.request: LoggedRequest | None = None
        self.refusal: DBAPIError | None = None
        self.open = False
        self.dialect = SimpleNamespace(driver="psycopg")
        raw = SimpleNamespace(adapters=psycopg.adapters, connection=None)
        self.connection = SimpleNamespace(driver_connection=raw)

    # The connection.

    def execution_options(self, **options: Any) -> Server:
        assert options == {"isolation_level": "READ COMMITTED"}
        return self

    @contextmanager
    def begin(self) -> Iterator[Server]:
        assert not self.open
        self.open = True
        try:
            yield self
        finally:
            self.open = False

    def exec_driver_sql(self, statement: str) -> None:
        self.tell(statement)

    def tell(self, *what: Any) -> None:
        assert self.open, "outside of a transaction"
        self.told.append(what)

    # The store.

    def is_standby(self, _connection: Any) -> bool:
        assert self.open
        return self.standby

    def is_under_way(self, _connection: Any, process_id: int, *, pause_seconds: float) -> bool:
        self.tell("look", process_id, pause_seconds)
        self.clock.now += self.look_seconds
        self.under_way -= 1
        return self.under_way >= 0

    def limit_wait(self, _connection: Any, seconds: float) -> None:
        self.tell("limit", seconds)

    def declare_aborted(self, _connection: Any, record_id: UUID) -> bool:
        self.tell("declare", record_id)
        if self.refusal is not None:
            raise self.refusal
        return not self.committed

    def lock_key(self, _connection: Any, key: str) -> None:
        self.tell("lock", key)
        if self.refusal is not None:
            raise self.refusal

    def find_request(self, _connection: Any, key: str) -> LoggedRequest | None:
        self.tell("find", key)
        return self.request

    def list_receipts(self, _connection: Any, record_id: UUID) -> tuple[Receipt, ...]:
        self.tell("list", record_id)
        return self.receipts

    def list_append_blockers(self, _connection: Any) -> list[Blocker]:
        self.tell("blockers")
        return BLOCKERS

    def list_key_blockers(self, _connection: Any, key: str) -> list[Blocker]:
        self.tell("blockers", key)
        return BLOCKERS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(resolution, "time", clock)
    return clock


@pytest.fixture
def server(clock: Clock) -> Server:
    return Server(clock)


def resolve(server: Server, question: Any, **more: Any) -> Resolution:
    found = resolve_on(cast("Any", server), question, store=cast("Any", server), **more)
    assert not server.open
    return found


DURABLE = ("SET LOCAL synchronous_commit = on",)


def test_a_record_that_is_there_was_committed(server: Server) -> None:
    server.committed = True
    assert resolve(server, [ONE, TWO]) == Resolution(Outcome.COMMITTED, WHOLE)
    assert server.told == [
        ("look", 9, 0.0),
        ("limit", 9.0),
        DURABLE,
        ("declare", RECORD),
        ("list", RECORD),
    ]


def test_by_one_receipt_all_of_the_transaction_s_are_found(server: Server) -> None:
    server.committed = True
    assert resolve(server, [TWO]) == Resolution(Outcome.COMMITTED, WHOLE)


def test_a_record_that_is_not_there_is_declared_aborted_durably(server: Server) -> None:
    assert resolve(server, [ONE, TWO], wait_seconds=5.0) == Resolution(Outcome.ABORTED)
    assert server.told == [("look", 9, 0.0), ("limit", 4.0), DURABLE, ("declare", RECORD)]


def test_a_record_that_was_pruned_was_committed_as_its_receipts_say(server: Server) -> None:
    server.committed, server.receipts = True, ()
    assert resolve(server, [ONE, TWO]) == Resolution(Outcome.COMMITTED, (ONE, TWO))


@pytest.mark.parametrize("committed", [True, False])
def test_receipts_of_two_transactions_are_refused(server: Server, committed: bool) -> None:
    server.committed = committed
    other = Receipt(UUID(int=3), "c", 1, b"")
    with pytest.raises(ConfigurationError, match="of 2 receipts, 1 are not of the record"):
        resolve(server, [ONE, other])
    assert not [told for told in server.told if told[0] == "declare"]
    assert resolve(server, [ONE]).outcome is not Outcome.PENDING


def test_a_session_under_way_is_waited_for(server: Server) -> None:
    server.under_way = 3
    resolve(server, [ONE])
    looks = [told[2] for told in server.told if told[0] == "look"]
    assert looks[0] == 0.0
    assert len(looks) == 4
    assert all(0 < pause < 1 for pause in looks[1:])


def test_not_for_longer_than_was_said(server: Server) -> None:
    server.under_way = 99
    resolve(server, [ONE], wait_seconds=3.0)
    assert [told[0] for told in server.told].count("look") == 3
    # However late it is, the lock is tried for.
    assert server.told[3][0] == "limit"
    assert 0 < server.told[3][1] <= 0.1


def test_without_a_process_nobody_is_looked_at(server: Server) -> None:
    resolve(server, [Receipt(RECORD, "a", 0, b"")], wait_seconds=2.0)
    assert server.told[0] == ("limit", 2.0)


def test_a_record_that_is_being_appended_is_pending(server: Server) -> None:
    server.refusal = failed("55P03")
    assert resolve(server, [ONE]) == Resolution(Outcome.PENDING, blockers=tuple(BLOCKERS))
    assert server.told[-2:] == [("declare", RECORD), ("blockers",)]


@pytest.mark.parametrize("question", [[ONE], "key"])
def test_other_errors_pass_through(server: Server, question: Any) -> None:
    server.refusal = failed("40001")
    with pytest.raises(OperationalError):
        resolve(server, question)


@pytest.mark.parametrize("question", [[ONE], "key"])
def test_a_standby_is_not_asked(server: Server, question: Any) -> None:
    server.standby = True
    with pytest.raises(ConfigurationError, match="standby"):
        resolve(server, question)
    assert server.told == []


@pytest.mark.parametrize("question", [[ONE], "key"])
def test_another_driver_is_not_asked_with(server: Server, question: Any) -> None:
    server.dialect.driver = "psycopg2"
    with pytest.raises(ConfigurationError, match="driver is psycopg2"):
        resolve(server, question)
    assert server.told == []


def test_a_key_that_was_used_was_committed(server: Server) -> None:
    server.request = LoggedRequest(WHOLE, None)
    assert resolve(server, "key", wait_seconds=3.0) == Resolution(Outcome.COMMITTED, WHOLE)
    assert server.told == [("limit", 3.0), ("lock", "key"), ("find", "key")]


def test_a_key_that_was_not_used_was_aborted(server: Server) -> None:
    assert resolve(server, "key") == Resolution(Outcome.ABORTED)
    assert server.told[0] == ("limit", 10.0)


def test_a_key_that_is_held_leaves_it_pending(server: Server) -> None:
    server.refusal = failed("55P03")
    assert resolve(server, "key") == Resolution(Outcome.PENDING, blockers=tuple(BLOCKERS))
    assert server.told[-1] == ("blockers", "key")


# -- questions ----------------------------------------------------------------------------


def test_what_may_be_asked_about() -> None:
    assert read_question(ONE) == [ONE]
    assert read_question([ONE, TWO]) == [ONE, TWO]
    assert read_question(iter((ONE, TWO))) == [ONE, TWO]
    assert read_question("key") == "key"
    error = CommitOutcomeUnknownError("lost", receipts=[ONE, TWO], idempotency_key="key")
    assert read_question(error) == [ONE, TWO]
    assert read_question(CommitOutcomeUnknownError("lost", idempotency_key="key")) == "key"


@pytest.mark.parametrize(
    "given", ["", b"key", b"", [], [ONE, "key"], ["key"], None, 7, CommitOutcomeUnknownError("x")]
)
def test_what_names_no_transaction_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="does not name a transaction"):
        read_question(given)
