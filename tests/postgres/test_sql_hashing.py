"""The body hash of a mark is the same in SQL as in Python."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy.engine import Engine

from oplog.crypto.hashing import hash_body
from oplog.crypto.sql_hashing import state_mark_hash
from oplog.schema.guard import FORMAT_MARK

pytestmark = pytest.mark.postgres

RECORD = UUID("01234567-89ab-cdef-0123-456789abcdef")
METADATA: dict[str, list[tuple[str, str]] | None] = {
    "no metadata": [],
    "NULL": None,
    "one pair": [("key", "value")],
    "in stored order": [("b", "1"), ("a", "2"), ("b", "0"), ("a", "2")],
    "empty texts": [("", ""), ("a", "")],
    "beyond ASCII": [("schlüssel", "☃"), ("a", "d" * 300)],
    "more than ten": [(f"k{n}", str(n)) for n in range(12)],
}


@pytest.mark.parametrize("aggregate", ["oplog/bypass", "adopted/kontö/☃", ""])
@pytest.mark.parametrize("pairs", METADATA.values(), ids=METADATA.keys())
def test_both_forms_of_the_hash(
    engine: Engine, pairs: list[tuple[str, str]] | None, aggregate: str
) -> None:
    expression = state_mark_hash(
        format=FORMAT_MARK, record_id="b.record_id", metadata="b.metadata", aggregate="b.aggregate"
    )
    flat = None if pairs is None else [text for pair in pairs for text in pair]
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT {expression} FROM (SELECT %s::uuid, %s::text[], %s::text) "
            "AS b(record_id, metadata, aggregate)",
            (RECORD, flat, aggregate),
        ).scalar_one()
    assert bytes(found) == hash_body(
        format=FORMAT_MARK,
        record_id=RECORD,
        key_id="",
        metadata=pairs or [],
        idempotency_key=None,
        aggregates=[aggregate],
        parts=[(0, b"")],
    )
