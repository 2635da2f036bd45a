"""The body hash and the metadata hash are the same in SQL as in Python."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy.engine import Engine

from oplog.crypto.hashing import hash_body, hash_metadata
from oplog.crypto.sql_hashing import state_body_hash, state_metadata_hash

pytestmark = pytest.mark.postgres

METADATA_HASH = bytes(range(32))
ENTRY = UUID("01234567-89ab-cdef-0123-456789abcdef")
BODIES: dict[str, tuple[int, str, str, int, str | None, bytes]] = {
    # Format, aggregate, key, transaction size, idempotency key, data.
    "a mark": (3, "bypass/x", "", 1, None, b""),
    "sealed": (2, "account/1", "key-1", 2, None, b"\x00\xffdata"),
    "with a request": (1, "account/1", "key-1", 70_000, "request", b"d"),
    "with an empty request": (1, "account/1", "key-1", 1, "", b"d"),
    "beyond ASCII": (1, "kontö/☃", "schlüssel", 1, "anfräge", b"d" * 300),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_both_forms_of_the_body_hash(
    engine: Engine, body: tuple[int, str, str, int, str | None, bytes]
) -> None:
    form, aggregate, key_id, size, request, data = body
    expression = state_body_hash(
        format="b.format",
        entry_id="b.entry_id",
        aggregate="b.aggregate",
        key_id="b.key_id",
        metadata_hash="b.metadata_hash",
        transaction_size="b.size",
        idempotency_key="b.request",
        data="b.data",
    )
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT {expression} FROM (SELECT %s::smallint, %s::uuid, %s::text, %s::text, "
            "%b::bytea, %s::integer, %s::text, %b::bytea) AS b(format, entry_id, aggregate, "
            "key_id, metadata_hash, size, request, data)",
            (form, ENTRY, aggregate, key_id, METADATA_HASH, size, request, data),
        ).scalar_one()
    assert bytes(found) == hash_body(
        format=form,
        entry_id=ENTRY,
        aggregate=aggregate,
        key_id=key_id,
        metadata_hash=METADATA_HASH,
        transaction_size=size,
        idempotency_key=request,
        data=data,
    )


METADATA: dict[str, list[tuple[str, str]]] = {
    "no metadata": [],
    "one pair": [("key", "value")],
    "in stored order": [("b", "1"), ("a", "2"), ("b", "0")],
    "empty texts": [("", ""), ("a", "")],
    "beyond ASCII": [("schlüssel", "☃"), ("a", "d" * 300)],
}


@pytest.mark.parametrize("pairs", METADATA.values(), ids=METADATA.keys())
def test_both_forms_of_the_metadata_hash(engine: Engine, pairs: list[tuple[str, str]]) -> None:
    expression = state_metadata_hash(keys="p.keys", values="p.texts")
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT {expression} FROM (SELECT %s::text[], %s::text[]) AS p(keys, texts)",
            ([key for key, _ in pairs], [text for _, text in pairs]),
        ).scalar_one()
    assert bytes(found) == hash_metadata(pairs)
