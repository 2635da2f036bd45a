"""Names and metadata that mean harm or are merely odd: data, to the last byte, and nothing else."""

from __future__ import annotations

import random
import unicodedata

import pytest
from sqlalchemy.engine import Engine

from oplog.entry import MAX_AGGREGATE_BYTES, MAX_METADATA_VALUE_BYTES, MAX_METADATA_VALUES
from oplog.errors import UnknownTypeError
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base, Order

pytestmark = pytest.mark.postgres

HOSTILE = [
    "'; DROP TABLE account; --",
    '"quoted" and \\ backslashed \\x27',
    "%s %(name)s %% %b",
    ":x {owner} ${HOME} $1 $$",
    "line\nfeed\r\tand \x1b[31mcolour\x07",
    "\u202eright to left\u2066",
    "../../etc/passwd",
    "/absolute",
    "C:\\windows",
    " blanks around ",
    "oplog/bypass",
    "\U0001f600 \ufffd\uffff",
    "x" * MAX_AGGREGATE_BYTES,
]


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    aggregates = {**AGGREGATES, "account": "{owner}"}
    return open_logged(engine, Base, aggregates=aggregates, guarded=True)


def test_hostile_names(db: LoggedDatabase) -> None:
    for number, name in enumerate(HOSTILE):
        with db.sessions.begin() as session:
            db.log.annotate(session, actor=name)
            session.add(Account(id=number, owner=name, balance=1, note=name))
        with db.sessions.begin() as session:
            assert db.log.take_ticket(session, name).version == 1
            session.get_one(Account, number).note = "seen"
        assert [receipt.aggregate for receipt in db.log.receipts(session)] == [name]
    assert [e.aggregate for e in db.read()] == [name for name in HOSTILE for _ in range(2)]
    with db.engine.connect() as connection:
        for number, name in enumerate(HOSTILE):
            found = list(db.log.read(connection, aggregate=name))
            assert [(e.aggregate, e.version) for e in found] == [(name, 1), (name, 2)]
            (annotated,) = db.log.read(connection, metadata={"actor": name})
            assert annotated.metadata == {"actor": [name]}
            assert len(db.log.history(connection, Account, number)) == 2
    db.assert_replays()


def test_composed_and_decomposed_letters_are_two_texts(db: LoggedDatabase) -> None:
    """Stored as given and found byte by byte: the database compares no other way either."""
    names = [unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD")]
    for number, name in enumerate(names):
        with db.sessions.begin() as session:
            db.log.annotate(session, actor=name)
            session.add(Account(id=number, owner=name, balance=1))
    assert [(e.aggregate, e.version) for e in db.read()] == [(name, 1) for name in names]
    with db.engine.connect() as connection:
        for number, name in enumerate(names):
            for found in (
                list(db.log.read(connection, aggregate=name)),
                list(db.log.read(connection, metadata={"actor": name})),
            ):
                assert [entry.operations[0].key for entry in found] == [{"id": number}]
    db.assert_replays()


def test_metadata_of_the_greatest_length_is_found(db: LoggedDatabase) -> None:
    """No index is in its way: one on the values themselves would fail the whole transaction."""
    values = [
        random.Random(n).randbytes(MAX_METADATA_VALUE_BYTES // 2).hex()
        for n in range(MAX_METADATA_VALUES)
    ]
    with db.sessions.begin() as session:
        db.log.annotate(session, actor=values)
        session.add(Account(id=1, owner="a", balance=1))
    with db.engine.connect() as connection:
        (entry,) = db.log.read(connection, metadata={"actor": [values[0], values[-1]]})
        assert entry.metadata == {"actor": values}
        assert list(db.log.read(connection, metadata={"actor": values[0][:-1]})) == []
    db.assert_replays()


def test_metadata_keeps_repetitions_and_order(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        db.log.annotate(session, actor=["b", "a", "b"], reason="later")
        db.log.annotate(session, reason=["again", "again"])
        session.add(Account(id=1, owner="a", balance=1))
        session.add(Account(id=2, owner="b", balance=1))
    for entry in db.read():
        assert entry.metadata == {"actor": ["b", "a", "b"], "reason": ["again", "again"]}
    with db.engine.connect() as connection:
        assert len(list(db.log.read(connection, metadata={"actor": ["a", "b"]}))) == 2
        assert list(db.log.read(connection, metadata={"reason": "later"})) == []


def test_a_type_that_the_log_lost_is_named_and_the_rest_is_read(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        session.add(Account(id=1, owner="a", balance=1))
    with db.sessions.begin() as session:
        session.add(Order(id=1, customer="ada"))
    db.execute(
        "ALTER TABLE oplog.oplog_type DISABLE TRIGGER ALL",
        "DELETE FROM oplog.oplog_type WHERE type_name = 'account'",
    )
    with db.engine.connect() as connection:
        with pytest.raises(UnknownTypeError, match="'account' revision 1") as lost:
            list(db.log.read(connection))
        assert lost.value.hint
        assert [e.aggregate for e in db.log.read(connection, aggregate="order/1")] == ["order/1"]
        # Every hash is checked without any type: no entry was altered.
        assert db.log.store.list_broken_links(connection) == []
        with pytest.raises(UnknownTypeError, match="'account'"):
            db.log.verify(connection)
