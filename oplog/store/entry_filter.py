"""`EntryFilter` as conditions in SQL."""

from __future__ import annotations

from typing import Any

from oplog.schema.append import state_token
from oplog.store.rows import EntryFilter, list_aggregates
from oplog.store.seen import bind_unseen

_HAS_PAIR = (
    "EXISTS (SELECT FROM pg_catalog.generate_series(1, "
    "pg_catalog.cardinality(r.metadata), 2) AS n "
    "WHERE r.metadata[n] = %s AND r.metadata[n + 1] = %s)"
)

_HAS_ONE = (
    "EXISTS (SELECT FROM pg_catalog.generate_series(1, "
    "pg_catalog.cardinality(r.metadata), 2) AS n "
    "WHERE r.metadata[n] = %s AND r.metadata[n + 1] = ANY (%s::text[]))"
)


def bind_filter(s: str, filter: EntryFilter) -> tuple[str, list[Any]]:
    """Conditions on record `r` of the quoted schema `s`, and their parameters; not on `after`."""
    conditions = ["true"]
    values: list[Any] = []
    if filter.unseen is not None:
        condition, parameters = bind_unseen(filter.unseen)
        conditions.append(condition)
        values += parameters
    if filter.through is not None:
        conditions.append("r.position <= %s")
        values.append(filter.through)
    if filter.aggregate is not None:
        conditions.append(_has_entry(s, "= %s"))
        values.append(filter.aggregate)
    if filter.aggregates:
        conditions.append(_has_entry(s, "= ANY(%s::text[])"))
        values.append(list(filter.aggregates))
    for key, value in filter.metadata:
        # By the digest first, which has an index; another pair may have the same.
        conditions.append(
            f"EXISTS (SELECT FROM {s}.oplog_token t WHERE t.position = r.position "
            f"AND t.token = {state_token('%s::text', '%s::text')}) AND {_HAS_PAIR}"
        )
        values += [key, value, key, value]
    if filter.tagged is not None:
        key, texts = filter.tagged
        conditions.append(
            f"EXISTS (SELECT FROM {s}.oplog_token t WHERE t.position = r.position "
            f"AND t.token = ANY (ARRAY(SELECT {state_token('%s::text', 'v.text')} "
            f"FROM pg_catalog.unnest(%s::text[]) AS v(text)))) AND {_HAS_ONE}"
        )
        values += [key, list(texts), key, list(texts)]
    return " AND ".join(conditions), values


def bind_contents(filter: EntryFilter) -> tuple[str, list[Any]]:
    """The same by what is in record `r` itself, without an index; not on positions."""
    conditions = ["true"]
    values: list[Any] = []
    if filter.unseen is not None:
        condition, parameters = bind_unseen(filter.unseen)
        conditions.append(condition)
        values += parameters
    names = list_aggregates(filter)
    if names is not None:
        conditions.append("r.aggregates && %s::text[]")
        values.append(sorted(names))
    for pair in filter.metadata:
        conditions.append(_HAS_PAIR)
        values += pair
    if filter.tagged is not None:
        conditions.append(_HAS_ONE)
        values += [filter.tagged[0], list(filter.tagged[1])]
    return " AND ".join(conditions), values


def _has_entry(s: str, named: str) -> str:
    # An array is made first. Joined, the planner may walk the whole log in the order of positions
    # for the entries of one aggregate.
    return (
        "r.position = ANY (ARRAY(SELECT x.position "
        f"FROM {s}.oplog_entry x WHERE x.aggregate_name {named}))"
    )
