"""The order of an undo's writes, tried on tables in memory that check constraints at each step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oplog.errors import UndoError
from oplog.postgres.row_constraints import ForeignKey, RowConstraints, UniqueIndex
from oplog.undo.write_order import OrderedWrites, RowWrite, order_writes

pytestmark = [pytest.mark.unit, pytest.mark.property]

TABLE = 1
Rows = dict[int, dict[str, Any]]


def make_constraints(*, nullable: bool, deferrable: bool) -> RowConstraints:
    free = frozenset(["parent"]) if nullable else frozenset[str]()
    reference = ForeignKey(
        name="parent_fkey",
        child=TABLE,
        child_table="t",
        child_columns=("parent",),
        child_keys=("id",),
        parent=TABLE,
        parent_table="t",
        parent_columns=("id",),
        nullable=free,
        deferrable=deferrable,
        acts=False,
        follows=False,
        qualified="s.parent_fkey",
    )
    unique = UniqueIndex(
        name="rank_key",
        table=TABLE,
        columns=("rank",),
        nullable=frozenset(),
        plain=True,
        deferrable=False,
        qualified="s.rank_key",
    )
    return RowConstraints((reference,), (unique,))


def plan(before: Rows, after: Rows) -> list[RowWrite]:
    return [
        RowWrite(TABLE, (key,), before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def carry_out(rows: Rows, ordered: OrderedWrites) -> Rows:
    """The rows in the end; fails where a step breaks a constraint that is not put off."""
    rows = {key: dict(row) for key, row in rows.items()}
    spare = 1000
    for step in (step for batch in ordered.batches for step in batch):
        (key,) = step.key
        assert isinstance(key, int)
        if step.kind == "delete":
            del rows[key]
        elif step.kind == "insert":
            assert key not in rows
            rows[key] = dict(step.values)
        else:
            spare += 1
            rows[key] |= step.values | dict.fromkeys(step.spare, spare)
        ranks = [row["rank"] for row in rows.values()]
        assert len(set(ranks)) == len(ranks)
        if not ordered.deferred:
            assert {row["parent"] for row in rows.values()} <= {None, *rows}
    return rows


KEYS = st.sets(st.integers(1, 7), min_size=1)


@st.composite
def tables(draw: st.DrawFn, *, nullable: bool) -> Rows:
    keys = sorted(draw(KEYS))
    ranks = draw(st.permutations(range(1, 8)))
    parents = st.sampled_from([None, *keys] if nullable else keys)
    return {
        key: {"id": key, "rank": rank, "parent": draw(parents)}
        for key, rank in zip(keys, ranks, strict=False)
    }


@pytest.mark.parametrize(("nullable", "deferrable"), [(True, False), (False, True), (True, True)])
def test_any_state_is_reached_from_any_other(nullable: bool, deferrable: bool) -> None:
    constraints = make_constraints(nullable=nullable, deferrable=deferrable)

    @settings(max_examples=300, deadline=None, database=None)
    @given(before=tables(nullable=nullable), after=tables(nullable=nullable))
    def run(before: Rows, after: Rows) -> None:
        ordered = order_writes(
            plan(before, after), constraints, may_spare=lambda *_: True, index_keys={}
        )
        assert carry_out(before, ordered) == after

    run()


def test_circle_that_nothing_opens_is_refused() -> None:
    before = {1: {"id": 1, "rank": 1, "parent": 1}, 2: {"id": 2, "rank": 2, "parent": 2}}
    swapped = {1: {**before[1], "rank": 2}, 2: {**before[2], "rank": 1}}
    constraints = make_constraints(nullable=False, deferrable=False)
    with pytest.raises(UndoError, match="rank_key"):
        order_writes(plan(before, swapped), constraints, may_spare=lambda *_: False, index_keys={})


def test_pairs_that_swap_are_written_together() -> None:
    count = 2000
    before = {n: {"id": n, "rank": n, "parent": None} for n in range(count)}
    after = {n: {"id": n, "rank": n ^ 1, "parent": None} for n in range(count)}
    constraints = make_constraints(nullable=True, deferrable=False)
    ordered = order_writes(
        plan(before, after), constraints, may_spare=lambda *_: True, index_keys={}
    )
    assert [len(batch) for batch in ordered.batches] == [count // 2] * 3
