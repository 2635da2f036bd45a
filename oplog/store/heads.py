"""The newest record of each aggregate, which the next one continues. Text of SQL only.

An aggregate may have millions of records: none of these queries compares them with one another.
"""

from __future__ import annotations

HEAD_KEY = "aggregate_name"
HEAD_TABLES = ("oplog_entry", "oplog_record", "oplog_ticket")
"""The tables that heads are read from."""
HEAD_COLUMNS = (
    (HEAD_KEY, "text"),
    ("version", "bigint"),
    ("head_hash", "bytea"),
)
"""Names and types of the columns of `select_heads`."""


def select_heads(s: str) -> str:
    """A subquery with `HEAD_COLUMNS`, in brackets; one row for each aggregate that was written.

    `s` is the quoted schema. It reads all entries; for some aggregates, `select_heads_of`.
    """
    return f"""(SELECT h.aggregate_name, h.version, r.record_hash AS head_hash
FROM (SELECT e.aggregate_name, max(e.version) AS version FROM {s}.oplog_entry e
  GROUP BY e.aggregate_name) n
JOIN {s}.oplog_entry h ON h.aggregate_name = n.aggregate_name AND h.version = n.version
JOIN {s}.oplog_record r ON r.position = h.position
UNION ALL SELECT t.aggregate_name, t.head_version, t.head_hash FROM {s}.oplog_ticket t
WHERE t.head_version IS NOT NULL AND NOT EXISTS (SELECT FROM {s}.oplog_entry e
  WHERE e.aggregate_name = t.aggregate_name AND e.position > 0))"""


def select_heads_of(s: str, names: str) -> str:
    """The rows of `select_heads` for some aggregates.

    `names` is a relation with one column, and no name in it twice.
    """
    return f"""(SELECT a.aggregate_name, coalesce(h.version, t.head_version) AS version,
  coalesce(r.record_hash, t.head_hash) AS head_hash
FROM {names} AS a(aggregate_name)
LEFT JOIN LATERAL (SELECT e.version, e.position FROM {s}.oplog_entry e
  WHERE e.aggregate_name = a.aggregate_name AND e.position > 0
  ORDER BY e.version DESC LIMIT 1) h ON true
LEFT JOIN {s}.oplog_record r ON r.position = h.position
LEFT JOIN {s}.oplog_ticket t ON t.aggregate_name = a.aggregate_name AND h.version IS NULL
WHERE r.position IS NOT NULL OR t.head_version IS NOT NULL)"""
