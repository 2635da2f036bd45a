"""Bad input is refused with an error that says what to do, before anything is written."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from oplog import Entry, Keyring, Operation, Oplog, OpType, Ticket, TypeCatalog
from oplog.entry import MAX_AGGREGATE_BYTES, MAX_METADATA_VALUE_BYTES
from oplog.errors import (
    ConfigurationError,
    DecodeError,
    EntryError,
    EntryTooLargeError,
    InvalidMetadataError,
    KeyUnavailableError,
    OplogError,
    SealError,
    TicketConflictError,
    UnknownTypeError,
    WrongKeyError,
)
from oplog.payload.codec import Effect
from tests.logged import LoggedDatabase, open_logged
from tests.models.bank import AGGREGATES, Account, Base

pytestmark = pytest.mark.postgres

CREATE = Operation.create(
    "account",
    key={"id": 9},
    fields={
        "owner": "x",
        "balance": Decimal(1),
        "note": None,
        "opened": datetime(2024, 1, 1, tzinfo=UTC),
    },
)


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    db = open_logged(engine, Base, aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        session.add(Account(id=1, owner="ada", balance=Decimal(1)))
    return db


def assert_untouched(db: LoggedDatabase) -> None:
    assert db.tell() == ["CREATE account 1"]
    assert db.count("account") == 1
    db.assert_replays()
    db.assert_pool_is_clean()


def append(db: LoggedDatabase, session: Session, aggregate: str, *operations: Operation) -> None:
    ticket = db.log.take_ticket(session, aggregate)
    db.log.append(session, Entry(aggregate, operations), ticket)


def update(key: dict[str, Any], **fields: Any) -> Operation:
    return Operation.update("account", key=key, fields=fields)


BAD_OPERATIONS: dict[str, tuple[type[OplogError], Operation]] = {
    "unknown type": (UnknownTypeError, Operation.delete("acount", key={"id": 1})),
    "unknown column": (UnknownTypeError, update({"id": 1}, onwer="x")),
    "unknown key column": (EntryError, update({"ident": 1}, owner="x")),
    "no key": (EntryError, update({}, owner="x")),
    "NULL key": (EntryError, update({"id": None}, owner="x")),
    "key of another type": (EntryError, update({"id": "1"}, owner="x")),
    "float for numeric": (EntryError, update({"id": 1}, balance=0.1)),
    "NUL in a value": (EntryError, update({"id": 1}, owner="a\0b")),
    "lone surrogate in a value": (EntryError, update({"id": 1}, owner="\ud800")),
    "a key that moves": (EntryError, update({"id": 1}, id=2)),
    "an update of nothing": (EntryError, update({"id": 1})),
    "a create with columns missing": (
        EntryError,
        Operation.create("account", key={"id": 9}, fields={"owner": "x"}),
    ),
    "a create with two keys": (
        EntryError,
        Operation(OpType.CREATE, "account", {"id": 9}, {**CREATE.fields, "id": 8}),
    ),
    "a create with too much": (
        UnknownTypeError,
        Operation.create("account", key={"id": 9}, fields={**CREATE.fields, "x": 8}),
    ),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("error", "operation"), BAD_OPERATIONS.values(), ids=BAD_OPERATIONS.keys())
def test_bad_operations(db: LoggedDatabase, error: type[OplogError], operation: Operation) -> None:
    with pytest.raises(error) as caught, db.sessions.begin() as session:
        append(db, session, "account/9", operation)
    assert caught.value.hint
    assert_untouched(db)


def test_a_good_operation_is_stored(db: LoggedDatabase) -> None:
    """What the cases above are a step away from."""
    with db.sessions.begin() as session:
        append(db, session, "account/9", CREATE)
        assert db.log.receipts(session) == []
    assert [r.aggregate for r in db.log.receipts(session)] == ["account/9"]
    assert db.read_last().fields == dict(CREATE.fields)


@pytest.mark.parametrize(
    "name", ["", "a\0b", "\ud800", "x" * (MAX_AGGREGATE_BYTES + 1), None, 7, b"x"]
)
def test_bad_aggregate_names(db: LoggedDatabase, name: Any) -> None:
    session = db.sessions()
    with pytest.raises(EntryError) as caught:
        db.log.take_ticket(session, name)
    assert caught.value.hint
    with pytest.raises(EntryError):
        Entry(name, [CREATE])
    session.close()
    assert_untouched(db)


def test_an_entry_without_operations(db: LoggedDatabase) -> None:
    with pytest.raises(EntryError) as caught:
        Entry("account/1", [])
    assert caught.value.hint


def test_a_missing_ticket(db: LoggedDatabase) -> None:
    with (
        pytest.raises(TicketConflictError, match="no ticket") as caught,
        db.sessions.begin() as session,
    ):
        db.log.append(session, Entry("account/9", [CREATE]))
    assert "take_ticket" in caught.value.hint
    assert_untouched(db)


def test_a_stale_ticket(db: LoggedDatabase) -> None:
    session = db.sessions()
    append(db, session, "account/1", update({"id": 1}, owner="x"))
    with db.sessions.begin() as other:
        other.get_one(Account, 1).owner = "first"
    with pytest.raises(TicketConflictError, match="account/1") as caught:
        session.commit()
    assert "again" in caught.value.hint
    session.close()
    assert db.tell() == ["CREATE account 1", "UPDATE account 1"]
    db.assert_replays()
    db.assert_pool_is_clean()


def test_a_ticket_from_another_transaction(db: LoggedDatabase) -> None:
    entry = Entry("account/9", [CREATE])
    with db.sessions() as other:
        foreign = db.log.take_ticket(other, "account/9")
        for ticket in (foreign, Ticket("account/9", 0)):
            with pytest.raises(TicketConflictError) as caught, db.sessions.begin() as session:
                db.log.append(session, entry, ticket)
            assert "take_ticket" in caught.value.hint
    session = db.sessions()
    kept = db.log.take_ticket(session, "account/9")
    session.commit()
    with pytest.raises(TicketConflictError):
        db.log.append(session, entry, kept)
    session.rollback()
    session.close()
    assert_untouched(db)


def test_a_ticket_for_another_aggregate(db: LoggedDatabase) -> None:
    with db.sessions() as session:
        ticket = db.log.take_ticket(session, "account/1")
        with pytest.raises(TicketConflictError):
            db.log.append(session, Entry("account/9", [CREATE]), ticket)
    assert_untouched(db)


def test_an_oversize_entry(db: LoggedDatabase) -> None:
    session = db.sessions()
    session.add(Account(id=2, owner="x" * (17 * 1024 * 1024), balance=Decimal(0)))
    session.add(Account(id=3, owner="small", balance=Decimal(0)))
    with pytest.raises(EntryTooLargeError, match=r"'account' \(id=2\) has") as caught:
        session.commit()
    assert caught.value.hint
    session.rollback()
    session.close()
    assert_untouched(db)


def test_an_aggregate_name_from_a_column_that_is_too_long(engine: Engine) -> None:
    db = open_logged(engine, Base, aggregates={**AGGREGATES, "account": "owner/{owner}"})
    session = db.sessions()
    session.add(Account(id=1, owner="x" * 2000, balance=Decimal(0)))
    with pytest.raises(EntryError, match="1024") as caught:
        session.commit()
    assert "aggregates" in caught.value.hint
    session.rollback()
    session.close()
    assert db.read() == []
    db.assert_replays()
    db.assert_pool_is_clean()


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "metadata",
    [
        {"actor": "a\0b"},
        {"actor": "\ud800"},
        {"actor": ["fine", "\udfff"]},
        {"actor": []},
        {"actor": None},
        {"actor": 42},
        {"actor": [42]},
        {"actor": b"x"},
        {"actor": {"a": "b"}},
        {"actor": "x" * (MAX_METADATA_VALUE_BYTES + 1)},
        {"actor": "é" * (MAX_METADATA_VALUE_BYTES // 2 + 1)},
        {"": "x"},
        {"k\0": "x"},
        {"k" * 129: "x"},
        {"actor": "good", "\ud800": "x"},
        {"actor": ["x"] * 257},
    ],
    ids=lambda m: repr(m)[:30],
)
def test_bad_metadata(db: LoggedDatabase, metadata: dict[str, Any]) -> None:
    with db.sessions() as session:
        session.add(Account(id=2, owner="x", balance=Decimal(0)))
        with pytest.raises(InvalidMetadataError) as caught:
            db.log.annotate(session, **metadata)
    assert caught.value.hint
    assert_untouched(db)


def test_bad_metadata_that_was_caught_leaves_no_trace(db: LoggedDatabase) -> None:
    with db.sessions.begin() as session:
        with pytest.raises(InvalidMetadataError):
            db.log.annotate(session, actor="fine", reason="\0")
        session.add(Account(id=2, owner="x", balance=Decimal(0)))
    assert db.read()[-1].metadata == {}
    db.assert_replays()


@pytest.mark.parametrize("value", ["NUL \0 inside", "surrogate \ud800"])
def test_values_that_postgres_refuses(db: LoggedDatabase, value: str) -> None:
    session = db.sessions()
    session.add(Account(id=2, owner=value, balance=Decimal(0)))
    with pytest.raises((sa.exc.DBAPIError, UnicodeEncodeError)):
        session.commit()
    session.close()
    assert_untouched(db)


# -- keys -------------------------------------------------------------------------------


def reopen(db: LoggedDatabase, **options: Any) -> Oplog:
    return Oplog(TypeCatalog.from_models(Base, aggregates=AGGREGATES), **options)


def read_with(db: LoggedDatabase, log: Oplog) -> list[Any]:
    with db.engine.connect() as connection:
        return list(log.read(connection))


def test_no_keyring_is_refused_before_anything_is_read_or_written(db: LoggedDatabase) -> None:
    with pytest.raises(ConfigurationError, match="no keyring") as caught:
        reopen(db)
    assert "plaintext=True" in caught.value.hint
    with pytest.raises(KeyUnavailableError) as missing:
        read_with(db, reopen(db, plaintext=True))
    assert missing.value.hint
    assert missing.value.exit_code == 12


def test_another_keyring_cannot_read(db: LoggedDatabase) -> None:
    with pytest.raises(SealError) as caught:
        read_with(db, reopen(db, keyring=Keyring.generate()))
    assert isinstance(caught.value, (KeyUnavailableError, WrongKeyError))
    assert caught.value.hint


# -- stored bytes -----------------------------------------------------------------------


def tamper(db: LoggedDatabase, assignment: str) -> None:
    db.execute(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"UPDATE oplog.oplog_record SET {assignment}",
    )


@pytest.mark.parametrize(
    "assignment",
    [
        "format = 77",
        "data = substr(data, 1, octet_length(data) - 1)",
        "data = ''",
        "data = set_byte(data, 0, get_byte(data, 0) # 1)",
        "parts = 2",
        "aggregates = '{account/7}'",
        "aggregates = '{account/1,account/7}'",
        "aggregates = '{}'",
        "versions = '{2}'",
        "versions = '{2}', prev_hashes = sha256('x')",
        "versions = '{1,1}'",
        "prev_hashes = sha256('x')",
        "metadata = '{who,me}'",
        "record_id = gen_random_uuid()",
        "idempotency_key = 'k'",
        "created_at = created_at + interval '1 microsecond'",
        "record_hash = sha256('x')",
        "key_id = 'other'",
    ],
)
def test_altered_entries_are_named(db: LoggedDatabase, assignment: str) -> None:
    tamper(db, assignment)
    with pytest.raises(EntryError) as caught:
        db.read()
    assert caught.value.hint
    assert caught.value.exit_code == 3
    assert "position 1" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_a_truncated_payload_is_refused(db: LoggedDatabase) -> None:
    """Every proper prefix of a payload, as if sealed that way."""
    codec = db.log._log.codec
    with db.engine.connect() as connection:
        reader = db.log.open_reader(connection)
        (record,) = reader.iterate_records(db.log.store.read_snapshot(connection))
    effects = record.effects

    def decode(payload: bytes) -> list[Effect] | OplogError:
        try:
            return codec.decode(payload, reader.types)
        except (DecodeError, UnknownTypeError) as error:
            return error

    payload = codec.encode(effects)
    assert decode(payload) == effects
    for cut in range(len(payload)):
        told = decode(payload[:cut])
        assert told != effects
        assert not isinstance(told, OplogError) or told.hint
