"""Constraints that are NOT VALID, which rows of a log may break: taken away for a moment, put back.

Nobody has held older rows to them, and what is logged of such a row is what the table has. They are
dropped and added again as what they are, as pg_dump does: nothing is checked at that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from oplog.postgres.quoting import quote, quote_literal
from oplog.postgres.work import Driver, read_qualified


class UnprovedCheck(NamedTuple):
    """A constraint of a table or a domain, as its own definition."""

    kind: str
    """TABLE or DOMAIN."""
    owner: str
    name: str
    definition: str
    comment: str | None


# Of a partition only those that it does not have from the table above it. Domains are those of
# columns, and those that these are made of.
_CHECKS = """
WITH RECURSIVE tree AS (
  SELECT t.oid FROM pg_catalog.unnest($1::bigint[]::oid[]) t(oid)
  UNION SELECT p.relid::oid FROM pg_catalog.unnest($1::bigint[]::oid[]) t(oid)
  CROSS JOIN LATERAL pg_catalog.pg_partition_tree(t.oid) p),
made_of(oid) AS (
  SELECT a.atttypid FROM tree JOIN pg_catalog.pg_attribute a ON a.attrelid = tree.oid
  WHERE a.attnum > 0 AND NOT a.attisdropped
  UNION SELECT CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END
  FROM made_of JOIN pg_catalog.pg_type t ON t.oid = made_of.oid
  WHERE t.typtype = 'd' OR t.typelem <> 0::oid)
SELECT 'TABLE', pg_catalog.format('%I.%I', n.nspname, c.relname), k.conname::text,
  pg_catalog.pg_get_constraintdef(k.oid), pg_catalog.obj_description(k.oid, 'pg_constraint')
FROM tree JOIN pg_catalog.pg_constraint k ON k.conrelid = tree.oid
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype IN ('c', 'n') AND NOT k.convalidated AND k.coninhcount = 0
UNION ALL
SELECT 'DOMAIN', pg_catalog.format('%I.%I', n.nspname, t.typname), k.conname::text,
  pg_catalog.pg_get_constraintdef(k.oid), pg_catalog.obj_description(k.oid, 'pg_constraint')
FROM made_of JOIN pg_catalog.pg_constraint k ON k.contypid = made_of.oid
JOIN pg_catalog.pg_type t ON t.oid = k.contypid
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE NOT k.convalidated
ORDER BY 1, 2, 3"""


def drop_unproved(driver: Driver, oids: Sequence[int]) -> list[UnprovedCheck]:
    """Drop those of tables and their partitions, and of their columns' domains; returns them."""
    found = [UnprovedCheck(*row) for row in read_qualified(driver, _CHECKS, (list(oids),))]
    for one in found:
        driver.execute(f"ALTER {one.kind} {one.owner} DROP CONSTRAINT {quote(one.name)}")
    return found


def add_unproved(driver: Driver, checks: Sequence[UnprovedCheck]) -> None:
    """Add them again, for rows to come."""
    for one in checks:
        name = quote(one.name)
        driver.execute(f"ALTER {one.kind} {one.owner} ADD CONSTRAINT {name} {one.definition}")
        if one.comment is not None:
            whose = f"{'DOMAIN ' if one.kind == 'DOMAIN' else ''}{one.owner}"
            driver.execute(
                f"COMMENT ON CONSTRAINT {name} ON {whose} IS {quote_literal(one.comment)}"
            )
