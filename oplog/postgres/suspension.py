"""Disables triggers and rules and drops foreign keys within a transaction, and restores them.

Each trigger gets its own enabled state back, each foreign key its own definition. Foreign keys
are dropped and added, not disabled: adding one checks all rows at once, and disabling one needs
a superuser. Checks that are NOT VALID are dropped too, because older rows may break them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import psycopg
from sqlalchemy.engine import Connection

from oplog.errors import ReplayError
from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.postgres.table_form import is_created_trigger
from oplog.postgres.unproved_checks import UnprovedCheck, add_unproved, drop_unproved
from oplog.postgres.work import Driver, read_qualified

_ENABLE = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}


class _Switch(NamedTuple):
    """A trigger or rule of one table, and how it is enabled."""

    table: str
    what: str
    name: str
    enabled: str


class _ForeignKey(NamedTuple):
    """A foreign key, as its own definition."""

    table: str
    name: str
    definition: str
    comment: str | None
    parent: str
    parent_oid: int


_TREE = """
SELECT t.oid FROM pg_catalog.unnest($1::bigint[]::oid[]) t(oid)
UNION SELECT p.relid::oid FROM pg_catalog.unnest($1::bigint[]::oid[]) t(oid)
CROSS JOIN LATERAL pg_catalog.pg_partition_tree(t.oid) p"""

_NAME = "pg_catalog.quote_ident({n}.nspname) || '.' || pg_catalog.quote_ident({c}.relname)"

_SWITCHES = f"""
WITH tree AS ({_TREE})
SELECT {_NAME.format(n="n", c="c")}, 'TRIGGER', g.tgname::text, g.tgenabled::text
FROM tree JOIN pg_catalog.pg_trigger g ON g.tgrelid = tree.oid
JOIN pg_catalog.pg_class c ON c.oid = tree.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE {is_created_trigger("g")} AND g.tgenabled <> 'D'
UNION ALL
SELECT {_NAME.format(n="n", c="c")}, 'RULE', r.rulename::text, r.ev_enabled::text
FROM tree JOIN pg_catalog.pg_rewrite r ON r.ev_class = tree.oid
JOIN pg_catalog.pg_class c ON c.oid = tree.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE r.ev_enabled <> 'D' AND c.relkind IN ('r', 'p')
ORDER BY 1, 2, 3"""

_TABLES = f"""
SELECT {_NAME.format(n="n", c="c")} FROM ({_TREE}) t JOIN pg_catalog.pg_class c ON c.oid = t.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"""

_FOREIGN_KEYS = f"""
WITH tree AS ({_TREE})
SELECT {_NAME.format(n="n", c="c")}, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid),
  pg_catalog.obj_description(k.oid, 'pg_constraint'), {_NAME.format(n="m", c="r")},
  k.confrelid::bigint
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
JOIN pg_catalog.pg_namespace m ON m.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0::oid AND (k.conrelid IN (SELECT oid FROM tree)
  OR $2::boolean AND k.confrelid IN (SELECT oid FROM tree))
ORDER BY 1, 2"""


_REFERENCES = """
SELECT DISTINCT conrelid::bigint, confrelid::bigint FROM pg_catalog.pg_constraint
WHERE contype = 'f' AND conrelid <> confrelid AND conrelid = ANY(%s::bigint[]::oid[])"""


@dataclass(frozen=True)
class Suspension:
    """What was taken away from some tables."""

    oids: Sequence[int]
    tables: frozenset[str]
    """Names of the tables and of the partitions that they had."""
    switches: Sequence[_Switch]
    foreign_keys: Sequence[_ForeignKey]
    checks: Sequence[UnprovedCheck] = ()


def lock_tables(driver: Driver, names: Sequence[str]) -> None:
    """Keep everybody out of tables, given by quoted names, until the transaction ends."""
    if names:
        driver.execute(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")


def find_oids(connection: Connection, names: Sequence[str]) -> list[int]:
    """The tables, given by quoted names, that there are."""
    rows = connection.exec_driver_sql(
        "SELECT o::bigint FROM (SELECT pg_catalog.to_regclass(name)::oid AS o "
        "FROM pg_catalog.unnest(%s::text[]) n(name)) f WHERE o IS NOT NULL",
        (list(names),),
    )
    return list(rows.scalars())


def suspend_switches(driver: Driver, oids: Sequence[int]) -> Suspension:
    """Disable triggers and rules of tables and their partitions."""
    tables = frozenset(row[0] for row in driver.query(_TABLES, (list(oids),)))
    taken = Suspension(list(oids), tables, _list_switches(driver, oids), [])
    for switch in taken.switches:
        _alter(driver, switch, "DISABLE")
    return taken


def suspend_tables(driver: Driver, oids: Sequence[int], *, referring: bool = False) -> Suspension:
    """Disable triggers and rules of tables and their partitions, and drop some constraints.

    Those are checks that are NOT VALID, and foreign keys; with `referring` also foreign keys of
    any table to these, so that rows may go for a moment.
    """
    taken = suspend_switches(driver, oids)
    foreign_keys = _list_foreign_keys(driver, oids, referring=referring)
    for key in foreign_keys:
        driver.execute(f"ALTER TABLE {key.table} DROP CONSTRAINT {quote(key.name)}")
    return replace(taken, foreign_keys=foreign_keys, checks=drop_unproved(driver, oids))


def list_references(connection: Connection, oids: Sequence[int]) -> list[tuple[int, int]]:
    """Which of these tables, or their partitions, refer to which tables, by oid."""
    rows = connection.exec_driver_sql(_REFERENCES, (list(oids),))
    return [(row[0], row[1]) for row in rows]


def resume_tables(driver: Driver, taken: Suspension) -> None:
    """Put everything back; `ReplayError` for rows that break a foreign key."""
    # A deferred check that waits would keep tables from being altered.
    driver.execute("SET CONSTRAINTS ALL IMMEDIATE")
    add_unproved(driver, taken.checks)
    for key in taken.foreign_keys:
        _add_foreign_key(driver, key)
    for switch in taken.switches:
        _alter(driver, switch, _ENABLE[switch.enabled])
    # A partition that was made meanwhile has switches of its own, which nobody took away.
    found = [one for one in _list_switches(driver, taken.oids) if one.table in taken.tables]
    if found != list(taken.switches):
        lost = sorted({f"{s.what.lower()} {s.name} on {s.table}" for s in taken.switches})
        raise ReplayError(
            f"triggers and rules could not be put back as they were: {', '.join(lost)}",
            hint="nothing was changed; report this with the definitions of the tables",
        )


def _alter(driver: Driver, switch: _Switch, how: str) -> None:
    # ONLY: a partition's own copy of a trigger may be in another state, and is listed itself.
    only = "ONLY " if switch.what == "TRIGGER" else ""
    driver.execute(f"ALTER TABLE {only}{switch.table} {how} {switch.what} {quote(switch.name)}")


def _add_foreign_key(driver: Driver, key: _ForeignKey) -> None:
    name = quote(key.name)
    try:
        driver.execute(f"ALTER TABLE {key.table} ADD CONSTRAINT {name} {key.definition}")
    except psycopg.IntegrityError as cause:
        detail = cause.diag.message_detail
        raise ReplayError(
            f"the restored rows of {key.table} break its foreign key {key.name} to {key.parent}: "
            f"{cause.diag.message_primary}{f' ({detail})' if detail else ''}",
            hint=f"if {key.parent} is not logged, load its rows first; else the log lacks a change",
        ) from cause
    if key.comment is not None:
        driver.execute(
            f"COMMENT ON CONSTRAINT {name} ON {key.table} IS {quote_literal(key.comment)}"
        )


def _list_switches(driver: Driver, oids: Sequence[int]) -> list[_Switch]:
    return [_Switch(*row) for row in driver.query(_SWITCHES, (list(oids),))]


def _list_foreign_keys(
    driver: Driver, oids: Sequence[int], *, referring: bool
) -> list[_ForeignKey]:
    rows = read_qualified(driver, _FOREIGN_KEYS, (list(oids), referring))
    return [_ForeignKey(*row) for row in rows]
