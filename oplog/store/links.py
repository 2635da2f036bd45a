"""Whether the aggregates' chains are whole, asked in SQL.

Compares stored hashes only; that each is the hash of its record's bytes is checked when a record is
read.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.crypto.hashing import HASH_BYTES, ZERO_HASH
from oplog.postgres.quoting import (
    quote_for_driver,
)
from oplog.store.rows import BrokenLink

ZERO = f"'\\x{ZERO_HASH.hex()}'::bytea"
"""The hash before an aggregate's first record, in SQL."""
LINK_COLUMNS = (
    "pg_catalog.lag(version) OVER w AS before, pg_catalog.lag(record_hash) OVER w AS linked"
)
"""Version and hash of the aggregate's record before this one; NULL for the first."""
LINK_WINDOW = "w AS (PARTITION BY aggregate_name ORDER BY version, position)"
"""The window that `LINK_COLUMNS` are computed over."""
IS_BROKEN = "(l.version <> l.before + 1 OR l.prev_hash IS DISTINCT FROM l.linked)"
"""Whether `l` does not follow the record before; `oplog.crypto.aggregate_chain` in SQL."""
SAY_BROKEN = (
    "WHEN l.version <> l.before + 1 THEN 'version ' || l.before + 1 || ' is missing before it' "
    "WHEN l.prev_hash IS DISTINCT FROM l.linked "
    "THEN 'its prev_hash is not the hash of the version before'"
)
"""Cases of a `CASE` that say why `l` is broken."""


def select_links(s: str) -> str:
    """A query for all links of the quoted schema `s`.

    Columns: position, aggregate_name, version, prev_hash, record_hash. What a damaged row lacks is
    NULL.
    """
    return f"""SELECT r.position, i.aggregate_name, i.version, r.record_hash,
    CASE WHEN i.version = 1 THEN {ZERO} ELSE pg_catalog.substr(r.prev_hashes,
      (i.place * {HASH_BYTES} - {HASH_BYTES - 1})::integer, {HASH_BYTES}) END AS prev_hash
  FROM {s}.oplog_record r CROSS JOIN LATERAL (
    SELECT a.aggregate_name, coalesce(a.version, 1) AS version,
      count(*) FILTER (WHERE a.version <> 1) OVER (ORDER BY a.n) AS place
    FROM ROWS FROM (pg_catalog.unnest(r.aggregates), pg_catalog.unnest(r.versions))
      WITH ORDINALITY AS a(aggregate_name, version, n)) i"""


def list_broken_links(connection: Connection, schema: str, *, limit: int) -> list[BrokenLink]:
    """Gaps and false links, and tickets and entries that disagree with them, at most `limit`.

    Of a pruned log an aggregate may begin at any version, and what is missing in all must be as
    many entries as were pruned.
    """
    # In a statement a percent sign would be taken for a parameter.
    s = quote_for_driver(schema)
    rows = connection.exec_driver_sql(
        f"{_select_chains(s)} {_select_faults(s)} ORDER BY 1, 2 LIMIT {int(limit)}"
    )
    return [BrokenLink(*row) for row in rows]


def _select_chains(s: str) -> str:
    """What the faults are looked for in: links, each with what it should follow, and ends."""
    return f"""WITH pruned AS (
  SELECT coalesce(max(entries), 0) AS entries FROM {s}.oplog_pruned),
raw AS ({select_links(s)}),
links AS (
  SELECT position, aggregate_name, version, prev_hash, record_hash, {LINK_COLUMNS},
    pg_catalog.lead(version) OVER w IS NULL AS newest
  FROM raw WINDOW {LINK_WINDOW}),
chained AS (
  SELECT l.position, l.aggregate_name, l.version, l.prev_hash, l.record_hash, l.newest,
    coalesce(l.before, CASE p.entries WHEN 0 THEN 0 ELSE l.version - 1 END) AS before,
    coalesce(l.linked, CASE WHEN p.entries > 0 AND l.version > 1 THEN l.prev_hash
      ELSE {ZERO} END) AS linked
  FROM links l CROSS JOIN pruned p),
ends AS (
  SELECT l.aggregate_name, l.version FROM links l WHERE l.newest
  UNION ALL SELECT t.aggregate_name, t.head_version FROM {s}.oplog_ticket t
  WHERE t.head_version IS NOT NULL
    AND NOT EXISTS (SELECT FROM raw l WHERE l.aggregate_name = t.aggregate_name)),
missing AS (
  SELECT (SELECT coalesce(sum(version), 0) FROM ends) - (SELECT count(*) FROM raw) - p.entries
    AS count FROM pruned p)"""


def _select_faults(s: str) -> str:
    return f"""SELECT l.aggregate_name, l.version, l.position,
  CASE {SAY_BROKEN} ELSE 'its ticket is at version ' || t.version END
FROM chained l LEFT JOIN {s}.oplog_ticket t ON t.aggregate_name = l.aggregate_name
WHERE {IS_BROKEN} OR (l.newest AND t.version <> l.version)
UNION ALL SELECT t.aggregate_name, t.version, NULL, 'the ticket has no entry'
FROM {s}.oplog_ticket t
WHERE t.version > 0 AND t.version IS DISTINCT FROM t.head_version
  AND NOT EXISTS (SELECT FROM raw l WHERE l.aggregate_name = t.aggregate_name)
UNION ALL SELECT coalesce(l.aggregate_name, e.aggregate_name), coalesce(l.version, e.version),
  coalesce(l.position, e.position), CASE
    WHEN e.position IS NULL THEN 'its row in oplog_entry is missing'
    WHEN l.position IS NULL THEN 'oplog_entry names a record that is not there'
    ELSE 'oplog_entry names position ' || e.position || ' for it' END
FROM raw l FULL JOIN (SELECT * FROM {s}.oplog_entry x WHERE x.position > 0) e
  ON e.aggregate_name = l.aggregate_name AND e.version = l.version
WHERE e.position IS DISTINCT FROM l.position
UNION ALL SELECT '', 0, NULL, m.count || ' more entries are missing than were pruned'
FROM missing m CROSS JOIN pruned p WHERE p.entries > 0 AND m.count <> 0"""
