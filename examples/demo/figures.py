"""Figures of the whole demonstration, counted from the log itself."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from examples.demo.database import LOG_SCHEMA, Database, count_rows, drop_schema
from examples.demo.models import Base


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts, bytes and seconds; `changes` are row changes, `rows` what is left of them."""

    transactions: int
    entries: int
    changes: int
    rows: int
    log_bytes: int
    replay_seconds: float

    def list_lines(self) -> list[tuple[str, str]]:
        """What each figure means, and the figure."""
        return [
            ("transactions logged", f"{self.transactions:,}"),
            ("entries in the log", f"{self.entries:,}"),
            ("row changes in them", f"{self.changes:,}"),
            ("live rows", f"{self.rows:,}"),
            ("log bytes per row change, indexes included", f"{self.log_bytes / self.changes:,.0f}"),
            ("replay, row changes per second", f"{self.changes / self.replay_seconds:,.0f}"),
        ]


def measure(database: Database) -> Figures:
    """Read the log once, replay it once, and ask the server for sizes."""
    with database.engine.begin() as connection:
        entries = changes = 0
        positions = set()
        for entry in database.log.read(connection):
            entries += 1
            changes += len(entry.operations)
            # All entries of a transaction are in one record.
            positions.add(entry.position)
        began = time.monotonic()
        database.log.replay(connection, into="measured")
        seconds = time.monotonic() - began
        drop_schema(connection, "measured")
        rows = sum(count_rows(connection, table) for table in Base.metadata.sorted_tables)
        size = connection.scalar(
            sa.text(
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
                "WHERE relkind = 'r' AND relnamespace = CAST(:schema AS regnamespace)"
            ),
            {"schema": LOG_SCHEMA},
        )
    return Figures(len(positions), entries, changes, rows, int(size or 0), seconds)
