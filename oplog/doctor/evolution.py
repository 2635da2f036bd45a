"""Finds migrations of logged tables that a restore would refuse or get wrong.

Columns whose names mean other columns now, tables that are gone, columns and references that a
restored row cannot do without: they are reported when the migration has run, not on the day of the
restore.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.catalog import TypeCatalog
from oplog.finding import Finding, make_problem
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.live_table import (
    LiveTable,
    Reference,
    list_outward_references,
    read_live_tables,
)
from oplog.store import Store, TablesLog
from oplog.store.adopted import Turns

COLUMN_CHANGED = "column-identity"
"""Code of the finding that old revisions' rows would be read under a wrong column name."""
TABLE_GONE = "type-table-missing"
"""Code of the finding that the table of a type is missing."""


@dataclass(frozen=True)
class Evolution:
    """Stored types and their live tables."""

    shapes: Mapping[str, Sequence[Shape]]
    """Revisions by type, in ascending order."""
    live: Mapping[str, LiveTable]
    """By type, the table that its newest revision names, if it exists."""
    turns: Mapping[str, Turns]
    references: Sequence[Reference]
    """Foreign keys of logged tables to tables that are not logged."""


def read_evolution(connection: Connection, store: Store) -> Evolution:
    """What `judge_evolution` needs of a log and of the database behind `connection`."""
    log = TablesLog(store, connection)
    shapes = group_shapes(log.list_types())
    metadata = sa.MetaData()
    tables = {
        (revisions[-1].schema, revisions[-1].table): sa.Table(
            revisions[-1].table, metadata, schema=revisions[-1].schema, keep_existing=True
        )
        for revisions in shapes.values()
    }
    found = read_live_tables(connection, tables.values())
    live = {
        name: found[table]
        for name, revisions in shapes.items()
        for table in [tables[revisions[-1].schema, revisions[-1].table]]
        if table in found and found[table].kind in ("r", "p")
    }
    turns = log.find_adoptions(list(shapes), snapshot=log.read_snapshot())
    oids = [table.oid for table in live.values()]
    return Evolution(shapes, live, turns, list_outward_references(connection, oids))


def judge_evolution(evolution: Evolution, catalog: TypeCatalog) -> list[Finding]:
    """A finding for all that a restore of this log would refuse, or lose silently."""
    return [
        *_judge_tables(evolution),
        *_judge_excluded(evolution),
        *_judge_references(evolution),
    ]


def _judge_tables(evolution: Evolution) -> Iterator[Finding]:
    for name, revisions in evolution.shapes.items():
        newest = revisions[-1]
        if name in evolution.live or evolution.turns.get(name, Turns()).retired:
            continue
        yield make_problem(
            TABLE_GONE,
            f"{newest.schema}.{newest.table}",
            message=f"the log has the type {name!r}, and its table is gone: replay, verify and "
            "restore refuse the whole log",
            hint="if a migration dropped, renamed or moved it, say so in a migration: "
            f"op.retire_type({name!r}, reason=...); rows that go on under another name are "
            "logged with oplog adopt",
        )


def _judge_excluded(evolution: Evolution) -> Iterator[Finding]:
    for name, live in evolution.live.items():
        excluded = evolution.shapes[name][-1].excluded
        for column in live.columns:
            if column.name in excluded and column.not_null and not column.has_default:
                yield make_problem(
                    "restore-excluded",
                    f"{live.schema}.{live.name}.{column.name}",
                    message="the column is excluded from the log, may not be NULL and has no "
                    "default: a restore refuses the table's rows",
                    hint="give the column a server default, let it be NULL, or log it",
                )


def _judge_references(evolution: Evolution) -> Iterator[Finding]:
    for one in evolution.references:
        yield make_problem(
            "restore-reference",
            one.table,
            message=f"foreign key {one.constraint} refers to {one.parent}, which is not logged: a "
            "restore refuses rows whose parents are not in the new database",
            hint=f"log {one.parent} too; or see that migrations fill it, before a restore",
        )
