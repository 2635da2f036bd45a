"""Rows that cannot be: what a test does first that puts one into the log as its owner."""

from __future__ import annotations

from oplog.schema.row_checks import ROW_CHECKS


def allow_statement(name: str, *, schema: str = "oplog") -> str:
    """The statement that drops a constraint of the log's rows, by its name."""
    (check,) = [one for one in ROW_CHECKS if one.name == name]
    return f'ALTER TABLE "{schema}".{check.table} DROP CONSTRAINT IF EXISTS {check.name}'
