"""The hashes of `hash_body` and `hash_metadata` as SQL expressions, without percent signs.

The database computes them where no Python is: for the mark that a guard writes, and for the newest
entry of each aggregate that a restore brought back. Tests compare both forms.
"""

from __future__ import annotations


def state_body_hash(
    *,
    format: str,
    entry_id: str,
    aggregate: str,
    key_id: str,
    metadata_hash: str,
    transaction_size: str,
    idempotency_key: str,
    data: str,
) -> str:
    """An expression of type bytea; arguments are SQL expressions with the types of the columns."""
    return (
        "pg_catalog.sha256('oplog/v1/body'::bytea || '\\x00'::bytea "
        f"|| pg_catalog.int4send({format}) || pg_catalog.uuid_send({entry_id}) "
        f"|| {_frame_text(aggregate)} || {_frame_text(key_id)} || {metadata_hash} "
        f"|| pg_catalog.int4send({transaction_size}) "
        f"|| CASE WHEN {idempotency_key} IS NULL THEN '\\x00'::bytea "
        f"ELSE '\\x01'::bytea || {_frame_text(idempotency_key)} END || {_frame(data)})"
    )


def state_metadata_hash(*, keys: str, values: str) -> str:
    """A scalar subquery of type bytea; arguments are text arrays of equal length, in stored order.

    It names its row source `m`, so arguments must not refer to another `m`.
    """
    key, value = _frame_text("m.key"), _frame_text("m.value")
    return (
        "(SELECT pg_catalog.sha256('oplog/v1/metadata'::bytea || '\\x00'::bytea "
        "|| pg_catalog.int4send(pg_catalog.count(*)::integer) || coalesce("
        f"pg_catalog.string_agg({key} || {value}, ''::bytea ORDER BY m.n), ''::bytea)) "
        f"FROM ROWS FROM (pg_catalog.unnest({keys}), pg_catalog.unnest({values})) "
        "WITH ORDINALITY AS m(key, value, n))"
    )


def _frame(value: str) -> str:
    return f"pg_catalog.int4send(pg_catalog.octet_length({value})) || {value}"


def _frame_text(value: str) -> str:
    return _frame(f"pg_catalog.convert_to({value}, 'UTF8')")
