"""What a transaction appends, and the receipts that come of it."""

from __future__ import annotations

import pickle
from typing import Any, cast
from uuid import UUID

import pytest

from oplog.capture.draft import Draft
from oplog.receipt import Receipt
from oplog.store.rows import CREATED, NewRecord, Part

pytestmark = pytest.mark.unit

ID = UUID(int=100)
RECORD = NewRecord(
    record_id=ID,
    aggregates=("a", "b", "c"),
    expected=[4, CREATED, None],
    parts=[Part(0, b"data")],
    format=1,
    key_id="key",
)


def test_receipts_have_what_the_append_answered() -> None:
    receipts = Draft(RECORD).make_receipts([5, 1, 9], cast("Any", memoryview(b"hash")))
    assert receipts == [
        Receipt(ID, "a", 5, b"hash"),
        Receipt(ID, "b", 1, b"hash"),
        Receipt(ID, "c", 9, b"hash"),
    ]
    for receipt in receipts:
        assert receipt.versions == {"a": 5, "b": 1, "c": 9}
        assert receipt.versions is receipts[0].versions
        assert (receipt.record_id, receipt.process_id) == (ID, 0)
        assert type(receipt.entry_hash) is bytes


def test_each_aggregate_has_its_version() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Draft(RECORD).make_receipts([5, 1], b"hash")


def test_what_is_known_of_receipts_when_the_answer_is_lost() -> None:
    """A belief tells no version: the aggregate may have been there."""
    receipts = Draft(RECORD).guess_receipts(77)
    assert receipts == [
        Receipt(ID, "a", 5, b""),
        Receipt(ID, "b", 0, b""),
        Receipt(ID, "c", 0, b""),
    ]
    assert [receipt.process_id for receipt in receipts] == [77, 77, 77]
    assert receipts[0].versions == {"a": 5, "b": 0, "c": 0}


def test_a_ticket_of_an_aggregate_without_a_record_tells_version_1() -> None:
    (receipt,) = Draft(RECORD._replace(aggregates=("a",), expected=[0])).guess_receipts(7)
    assert receipt.version == 1


def test_without_a_record_there_is_nothing_to_tell() -> None:
    draft = Draft(None, tally=3)
    assert (draft.aggregates, draft.guess_receipts(7)) == ([], [])
    assert draft.make_receipts([], b"") == []
    assert Draft(RECORD).aggregates == ["a", "b", "c"]


# -- receipts -----------------------------------------------------------------------------


def test_a_receipt_is_pickled_whole() -> None:
    (receipt, *_) = Draft(RECORD).make_receipts([5, 1, 9], b"hash")
    again = pickle.loads(pickle.dumps(receipt))
    assert again == receipt
    assert again.versions == receipt.versions
    assert again.record_id == ID


def test_receipts_are_equal_by_what_they_prove() -> None:
    one = Receipt(ID, "a", 5, b"hash")
    same = Receipt(
        ID, "a", 5, b"hash", durability_confirmed=False, process_id=7, versions={"a": 5, "b": 1}
    )
    assert (one, hash(one)) == (same, hash(same))
    assert one != Receipt(ID, "b", 5, b"hash")
    assert one.versions == {}
    assert "versions" not in repr(same)
    assert "process_id" not in repr(same)


def test_a_receipt_as_json() -> None:
    assert Receipt(ID, "a", 5, b"\xff", versions={"a": 5}).to_json() == {
        "entry_id": str(ID),
        "record_id": str(ID),
        "aggregate": "a",
        "version": 5,
        "entry_hash": "ff",
    }
