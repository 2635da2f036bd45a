"""Reads rows of guarded tables that the transaction wrote, as the owner of the log sees them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import quote_for_driver

Texts = Sequence[str | None]


def read_written(
    connection: Connection,
    schema: str,
    oid: int,
    *,
    key_names: Sequence[str],
    keys: Sequence[Texts],
    columns: Sequence[str],
    most_bytes: int | None = None,
) -> list[tuple[int, Texts]]:
    """The columns of each row, as text, with its place among the keys, from 1; in this order.

    Rows that are not there are left out, as are those that the transaction did not write. With
    `most_bytes` no rows come after so many bytes.
    """
    flat = [part for key in keys for part in key]
    rows = (
        f"SELECT f.n, f.texts, sum(pg_catalog.pg_column_size(f.texts)) OVER (ORDER BY f.n) AS size "
        f"FROM {quote_for_driver(schema)}.oplog_read_written(%s::bigint::oid, %s, %s, %s) f"
    )
    width = "pg_catalog.pg_column_size(r.texts)"
    limit = "" if most_bytes is None else f" WHERE r.size - {width} < {most_bytes}"
    found = connection.exec_driver_sql(
        f"SELECT r.n, r.texts FROM ({rows}) r{limit} ORDER BY r.n",
        (oid, list(key_names), flat, list(columns)),
    )
    return [(n, texts) for n, texts in found]
