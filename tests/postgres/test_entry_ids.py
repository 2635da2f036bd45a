"""An entry is accepted once: an old one that is sealed, and opens, is refused the second time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from oplog.capture import transaction
from oplog.capture.writer import EntryWriter
from oplog.errors import ConflictError, EntryError
from oplog.postgres.exchange import execute
from oplog.schema.upgrade import ENTRY_ID_INDEX
from oplog.store import NewEntry, Store
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base

pytestmark = pytest.mark.postgres


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def append(connection: Connection, *named: tuple[str, UUID]) -> None:
    message = Store("oplog").bind_append(
        [NewEntry(name, None, entry_id, b"b" * 32, b"sealed") for name, entry_id in named],
        format=1,
        key_id="k",
        metadata=[],
        metadata_hash=b"m" * 32,
    )
    execute(connection, message)


OLD, OTHER = uuid4(), uuid4()
SENT_AGAIN: dict[str, list[tuple[str, UUID]]] = {
    "to its own aggregate": [("a", OLD)],
    "to another one": [("b", OLD)],
    "among others": [("a", uuid4()), ("b", OLD)],
    "twice in one transaction": [("c", OTHER), ("d", OTHER)],
}


@pytest.mark.parametrize("named", SENT_AGAIN.values(), ids=SENT_AGAIN.keys())
def test_an_entry_is_accepted_once(connection: Connection, named: list[tuple[str, UUID]]) -> None:
    append(connection, ("a", OLD))
    connection.commit()
    with pytest.raises(IntegrityError) as refused:
        append(connection, *named)
    original: Any = refused.value.orig
    assert (original.sqlstate, original.diag.constraint_name) == ("23505", ENTRY_ID_INDEX)
    connection.rollback()
    assert connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_entry").scalar() == 1
    version = "SELECT version FROM oplog.oplog_ticket"
    assert connection.exec_driver_sql(version).scalars().all() == [1]


@dataclass
class Ids:
    """What entries are called next; drawn at random, as always, while it is None."""

    fixed: UUID | None = None

    def draw(self) -> UUID:
        return self.fixed or uuid4()


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> Ids:
    ids = Ids()
    defaults = EntryWriter.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "draw_id", ids.draw)
    return ids


@pytest.fixture
def db(engine: Engine, ids: Ids) -> LoggedDatabase:
    """With one entry, and the next one would be called as it is."""
    db = open_logged(engine, Base, aggregates=AGGREGATES, guarded=True)
    with db.sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=1))
    (receipt,) = db.log.receipts(session)
    ids.fixed = receipt.entry_id
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
