"""`EntryFilter` as conditions in SQL."""

from __future__ import annotations

from typing import Any

from oplog.store.rows import FORMAT_PRUNED, EntryFilter
from oplog.store.seen import bind_unseen


def bind_filter(s: str, filter: EntryFilter) -> tuple[str, list[Any]]:
    """Conditions on entry `e` of the quoted schema `s`, and their parameters; not on `after`.

    What is left of a pruned entry answers questions about outcomes, and is never read.
    """
    conditions = [f"e.format <> {FORMAT_PRUNED}"]
    values: list[Any] = []
    if filter.unseen is not None:
        condition, parameters = bind_unseen(filter.unseen)
        conditions.append(condition)
        values += parameters
    if filter.through is not None:
        conditions.append("e.id <= %s")
        values.append(filter.through)
    if filter.aggregate is not None:
        conditions.append("e.aggregate_name = %s")
        values.append(filter.aggregate)
    if filter.aggregates:
        conditions.append("e.aggregate_name = ANY(%s::text[])")
        values.append(list(filter.aggregates))
    for key, value in filter.metadata:
        conditions.append(
            f"EXISTS (SELECT FROM {s}.oplog_metadata m WHERE "
            "m.transaction_position = e.transaction_position AND m.key = %s AND "
            # The index has the value's hash: a value may be longer than an index entry.
            "pg_catalog.hashtextextended(m.value, 0) = pg_catalog.hashtextextended("
            '%s::text COLLATE "C", 0) AND m.value = %s)'
        )
        values += [key, value, value]
    return " AND ".join(conditions), values
