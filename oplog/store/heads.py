"""The newest record of each aggregate, which the next one continues. Text of SQL only."""

from __future__ import annotations

HEAD_KEY = "aggregate_name"
HEAD_TABLES = ("oplog_entry", "oplog_record", "oplog_ticket")
"""The tables that `select_heads` reads."""
HEAD_COLUMNS = (
    (HEAD_KEY, "text"),
    ("version", "bigint"),
    ("head_hash", "bytea"),
)
"""Names and types of the columns of `select_heads`."""


def select_heads(s: str, *, among: str = "") -> str:
    """A subquery with `HEAD_COLUMNS`, in brackets; one row for each aggregate that was written.

    `s` is the quoted schema. `among` is a condition on column `aggregate_name` of table `h`; for
    few aggregates it is much cheaper than a condition on the subquery.
    """
    condition = f" AND {among}" if among else ""
    return f"""(SELECT h.aggregate_name, h.version, r.record_hash AS head_hash
FROM {s}.oplog_entry h JOIN {s}.oplog_record r ON r.position = h.position
WHERE NOT EXISTS (SELECT FROM {s}.oplog_entry n
  WHERE n.aggregate_name = h.aggregate_name AND n.version > h.version){condition}
UNION ALL SELECT h.aggregate_name, h.head_version, h.head_hash FROM {s}.oplog_ticket h
WHERE h.head_version IS NOT NULL AND NOT EXISTS (SELECT FROM {s}.oplog_entry n
  WHERE n.aggregate_name = h.aggregate_name){condition})"""
