"""The hash that the append function computes is the one that readers compute."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from sqlalchemy.engine import Engine

from oplog.store.rows import Part
from tests.postgres.appending import append, assert_whole, make_record, name_many

pytestmark = pytest.mark.postgres

RECORD = UUID("01234567-89ab-cdef-0123-456789abcdef")
METADATA: dict[str, list[tuple[str, str]]] = {
    "no metadata": [],
    "one pair": [("key", "value")],
    "in stored order": [("b", "1"), ("a", "2"), ("b", "0"), ("a", "2")],
    "an empty value": [("a", "")],
    "beyond ASCII": [("schlüssel", "☃"), ("a", "d" * 300)],
    "more than ten": [(f"k{n}", str(n)) for n in range(12)],
}
NAMES = {"one": ["é/☃"], "a few": ["B", "a", "a/é", "c"], "many": name_many(40)}
KEYS = [None, "k", "schlüssel/☃"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("pairs", METADATA.values(), ids=METADATA.keys())
def test_both_forms_of_the_hash(
    engine: Engine, pairs: list[tuple[str, str]], names: list[str], key: str | None
) -> None:
    draw = random.Random(len(pairs) * 100 + len(names))
    parts = [Part(0, draw.randbytes(50)), *(Part(n, draw.randbytes(n)) for n in range(len(names)))]
    with engine.connect() as connection:
        for number, some in enumerate((parts[:1], parts)):
            record = make_record(
                names,
                parts=some,
                metadata=pairs,
                idempotency_key=key and f"{key}{number}",
                record_id=UUID(int=RECORD.int + number),
            )
            append(connection, record)
        connection.commit()
        # Compares each hash with the one that the library computes.
        assert len(assert_whole(connection)) == 2


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_hashes_do_not_depend_on_the_encoding_of_the_client(engine: Engine, encoding: str) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET client_encoding = '{encoding}'")
        append(connection, make_record(["é"], metadata=[("ü", "ö")], idempotency_key="ä"))
        connection.commit()
        connection.exec_driver_sql("SET client_encoding = 'UTF8'")
        (record,) = assert_whole(connection)
        assert record.aggregates == ("é",)
