"""The hash of `hash_body` as an SQL expression, without percent signs.

The database computes it where no Python is: for the mark that a guard writes. Tests compare both
forms.
"""

from __future__ import annotations

from hashlib import sha256

_EMPTY = sha256(b"").hexdigest()


def state_mark_hash(*, format: int, record_id: str, metadata: str, aggregate: str) -> str:
    """An expression of type bytea for a record of one aggregate and one part without data.

    The others are SQL expressions: a uuid, a text array of keys and values in turns, a text. It
    names its row source `m`, so arguments must not refer to another `m`.
    """
    no_key_id, texts, name = _frame_text("''"), _frame_text("m.text"), _frame_text(aggregate)
    return (
        "pg_catalog.sha256('oplog/v1/record-body'::bytea || '\\x00'::bytea "
        f"|| pg_catalog.int4send({format}) || pg_catalog.uuid_send({record_id}) || {no_key_id} "
        f"|| pg_catalog.int4send(coalesce(pg_catalog.cardinality({metadata}), 0) / 2) "
        f"|| coalesce((SELECT pg_catalog.string_agg({texts}, ''::bytea ORDER BY m.n) "
        f"FROM pg_catalog.unnest({metadata}) WITH ORDINALITY AS m(text, n)), ''::bytea) "
        # No idempotency key, one aggregate, one part, which begins at it.
        f"|| '\\x00'::bytea || pg_catalog.int4send(1) || {name} "
        f"|| pg_catalog.int4send(1) || pg_catalog.int4send(0) || '\\x{_EMPTY}'::bytea)"
    )


def _frame_text(value: str) -> str:
    data = f"pg_catalog.convert_to({value}, 'UTF8')"
    return f"pg_catalog.int4send(pg_catalog.octet_length({data})) || {data}"
