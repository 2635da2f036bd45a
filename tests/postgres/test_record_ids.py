"""A record is accepted once: an old one that is sealed, and opens, is refused the second time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.capture import transaction
from oplog.capture.writer import RecordWriter
from oplog.errors import ConflictError, EntryError
from oplog.ordered_id import draw_ordered_id
from oplog.store.rows import CREATED
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base
from tests.postgres.appending import append, assert_whole, make_record, sqlstate

pytestmark = pytest.mark.postgres


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


OLD = draw_ordered_id()
SENT_AGAIN: dict[str, tuple[list[str], int | None]] = {
    "to its own aggregate": (["a"], None),
    "to its own aggregate, as if created": (["a"], CREATED),
    "to another one": (["b"], None),
    "to another one, as if created": (["b"], CREATED),
    "among others": (["a", "b"], None),
}


@pytest.mark.parametrize(("names", "expected"), SENT_AGAIN.values(), ids=SENT_AGAIN.keys())
def test_a_record_is_accepted_once(
    connection: Connection, names: list[str], expected: int | None
) -> None:
    append(connection, make_record(["a"], record_id=OLD))
    connection.commit()
    with pytest.raises(DBAPIError, match="in the log already") as refused:
        append(connection, make_record(names, expected=expected, record_id=OLD))
    assert sqlstate(refused) == "OP008"
    connection.rollback()
    assert len(assert_whole(connection)) == 1
    version = "SELECT version FROM oplog.oplog_ticket"
    assert connection.exec_driver_sql(version).scalars().all() == [1]


def test_an_idempotency_key_does_not_hide_it(connection: Connection) -> None:
    """A record sent twice under its key is that record, and no repeated request."""
    append(connection, make_record(["a"], record_id=OLD, idempotency_key="key"))
    connection.commit()
    with pytest.raises(DBAPIError) as refused:
        append(connection, make_record(["a"], record_id=OLD, idempotency_key="key"))
    assert sqlstate(refused) == "OP008"


@dataclass
class Ids:
    """What records are called next; drawn as always while it is None."""

    fixed: UUID | None = None

    def draw(self) -> UUID:
        return self.fixed or draw_ordered_id()


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> Ids:
    ids = Ids()
    defaults = RecordWriter.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "draw_id", ids.draw)
    return ids


@pytest.fixture
def db(engine: Engine, ids: Ids) -> LoggedDatabase:
    """With one record, and the next one would be called as it is."""
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    with db.sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=1))
    (receipt,) = db.log.receipts(session)
    ids.fixed = receipt.record_id
    return db


@pytest.mark.parametrize("together", [True, False], ids=["with COMMIT", "before COMMIT"])
def test_an_application_is_told(
    db: LoggedDatabase, ids: Ids, monkeypatch: pytest.MonkeyPatch, *, together: bool
) -> None:
    """No conflict: somebody who tries again, as with a lost ticket, would try for ever."""
    if not together:
        monkeypatch.setattr(transaction, "can_commit_at_once", lambda _: False)
    raises = pytest.raises(EntryError, match="in the log already")
    with raises as refused, db.sessions.begin() as session:
        session.get_one(Account, 1).owner = "bob"
    assert not isinstance(refused.value, ConflictError)
    assert not refused.value.retryable
    assert refused.value.hint
    ids.fixed = None
    with db.sessions.begin() as session:
        session.get_one(Account, 1).owner = "bob"
    assert len(db.read()) == 2
    db.assert_replays()


def test_log_run_does_not_try_again(db: LoggedDatabase) -> None:
    tries = []

    def work(session: Any) -> None:
        tries.append(session)
        session.execute(sa.text("UPDATE account SET owner = 'bob'"))

    with pytest.raises(EntryError, match="in the log already"):
        db.log.run(db.sessions, work)
    assert len(tries) == 1
    assert len(db.read()) == 1
    db.assert_replays()
