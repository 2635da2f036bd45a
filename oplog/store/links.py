"""Whether the aggregates' chains are whole, asked in SQL.

Compares stored hashes only; that each is the hash of its entry's bytes is checked when an entry
is read.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import (
    quote_for_driver,
)
from oplog.store.rows import FORMAT_PRUNED, BrokenLink

LINK_COLUMNS = "lag(version) OVER w AS before, lag(entry_hash) OVER w AS linked"
"""Version and hash of the aggregate's entry before this one; NULL for the first."""
LINK_WINDOW = "w AS (PARTITION BY aggregate_name ORDER BY version)"
"""The window that `LINK_COLUMNS` are computed over."""
IS_BROKEN = "(l.version <> l.before + 1 OR l.prev_hash <> l.linked)"
"""Whether `l` does not follow the entry before; `oplog.crypto.aggregate_chain` in SQL."""
SAY_BROKEN = (
    "WHEN l.version <> l.before + 1 THEN 'version ' || l.before + 1 || ' is missing before it' "
    "WHEN l.prev_hash <> l.linked THEN 'its prev_hash is not the hash of the version before'"
)
"""Cases of a `CASE` that say why `l` is broken."""


def list_broken_links(connection: Connection, schema: str, *, limit: int) -> list[BrokenLink]:
    """Gaps and false links, and tickets that disagree with the chains, at most `limit` of them.

    Of a pruned log an aggregate may begin at any version, and what is missing in all must be as
    many entries as were pruned.
    """
    # In a statement a percent sign would be taken for a parameter.
    s = quote_for_driver(schema)
    rows = connection.exec_driver_sql(
        f"""WITH pruned AS (
  SELECT coalesce(max(entries), 0) AS entries FROM {s}.oplog_pruned),
links AS (
  SELECT id, aggregate_name, version, prev_hash, entry_hash, {LINK_COLUMNS},
    lead(version) OVER w IS NULL AS newest
  FROM {s}.oplog_entry WHERE format <> {FORMAT_PRUNED}
  WINDOW {LINK_WINDOW}),
chained AS (
  SELECT l.id, l.aggregate_name, l.version, l.prev_hash, l.entry_hash, l.newest,
    coalesce(l.before, CASE p.entries WHEN 0 THEN 0 ELSE l.version - 1 END) AS before,
    coalesce(l.linked, CASE WHEN p.entries > 0 AND l.version > 1 THEN l.prev_hash
      ELSE decode(repeat('00', 32), 'hex') END) AS linked
  FROM links l CROSS JOIN pruned p),
missing AS (
  SELECT (SELECT coalesce(sum(version), 0) FROM {s}.oplog_ticket)
    - (SELECT count(*) FROM {s}.oplog_entry WHERE format <> {FORMAT_PRUNED})
    - p.entries AS count FROM pruned p)
SELECT coalesce(l.aggregate_name, t.aggregate_name), coalesce(l.version, t.version), l.id,
  CASE WHEN t.aggregate_name IS NULL THEN 'the aggregate has no ticket'
    WHEN l.aggregate_name IS NULL THEN 'the ticket has no entry'
    {SAY_BROKEN}
    WHEN l.newest AND t.version <> l.version
      THEN 'its ticket is at version ' || t.version
    ELSE 'its ticket holds another head hash' END
FROM chained l FULL JOIN {s}.oplog_ticket t ON t.aggregate_name = l.aggregate_name
WHERE t.aggregate_name IS NULL
  OR (l.aggregate_name IS NULL AND t.version > 0 AND (SELECT entries FROM pruned) = 0)
  OR {IS_BROKEN}
  OR (l.newest AND (t.version <> l.version OR t.head_hash <> l.entry_hash))
UNION ALL SELECT '', 0, NULL, m.count || ' more entries are missing than were pruned'
FROM missing m CROSS JOIN pruned p WHERE p.entries > 0 AND m.count <> 0
ORDER BY 1, 2 LIMIT {int(limit)}"""
    )
    return [BrokenLink(*row) for row in rows]
