"""Many changes to a row, folded to what the transaction did to it."""

from __future__ import annotations

from typing import Any

import pytest

from oplog.capture.net_row import NetRow, fold_changes
from oplog.capture.row_change import Key, RowChange
from oplog.entry import OpType
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("a", "text"), ("b", "text")]
BOUND = make_bound(COLUMNS, key=["id"], aggregate="item/{a}")
OTHER = make_bound(COLUMNS, key=["id"], aggregate="other/{id}", name="other")
GROUP = {"a": "old"}


def create(id: int, unknown: tuple[str, ...] = (), **values: Any) -> RowChange:
    return RowChange(OpType.CREATE, BOUND, (id,), {"id": id, **values}, unknown)


def update(
    number: int, unknown: tuple[str, ...] = (), *, moved_to: Key | None = None, **values: Any
) -> RowChange:
    return RowChange(OpType.UPDATE, BOUND, (number,), values, unknown, GROUP, moved_to)


def delete(id: int) -> RowChange:
    return RowChange(OpType.DELETE, BOUND, (id,), {}, (), GROUP)


def row(id: int, *, existed: bool, **more: Any) -> NetRow:
    return NetRow(BOUND, (id,), existed, **{"group": GROUP if existed else None, **more})


def test_a_created_row() -> None:
    (net,) = fold_changes([create(1, ("b",), a="x")])
    assert net == row(1, existed=False, values={"id": 1, "a": "x"}, unknown={"b"})
    assert net.complete


def test_a_changed_row() -> None:
    (net,) = fold_changes([update(1, ("b",), a="x")])
    assert net == row(1, existed=True, values={"a": "x"}, unknown={"b"})
    assert not net.complete


def test_a_deleted_row() -> None:
    (net,) = fold_changes([delete(1)])
    assert net == row(1, existed=True, exists=False)
    assert not net.complete


def test_the_last_writer_of_a_column_wins_and_says_how_sure_it_is() -> None:
    (net,) = fold_changes([update(1, ("a",), b="x"), update(1, ("b",), a="y")])
    assert net == row(1, existed=True, values={"a": "y"}, unknown={"b"})
    (net,) = fold_changes([create(1, ("b",), a="x"), update(1, ("a",), b="y")])
    assert net == row(1, existed=False, values={"id": 1, "b": "y"}, unknown={"a"})
    assert net.complete


def test_a_row_changed_and_deleted_keeps_nothing() -> None:
    (net,) = fold_changes([update(1, ("b",), a="x"), delete(1)])
    assert net == row(1, existed=True, exists=False)


def test_a_row_created_and_deleted_never_was() -> None:
    assert fold_changes([create(1), update(1, a="x"), delete(1)]) == []


def test_a_row_deleted_and_created_again_is_replaced() -> None:
    (net,) = fold_changes([update(1, ("a",), b="x"), delete(1), create(1, ("b",), a="y")])
    assert net == row(1, existed=True, replaced=True, values={"id": 1, "a": "y"}, unknown={"b"})
    assert net.complete
    (net,) = fold_changes([delete(1), create(1, a="y"), delete(1)])
    assert (net.existed, net.exists, net.complete) == (True, False, False)


def test_a_row_created_again_forgets_what_it_did_not_know() -> None:
    (net,) = fold_changes([create(1, ("b",)), create(1, a="y", b="z")])
    assert net.unknown == set()
    assert net.replaced is False


def test_a_row_that_moves_is_gone_and_complete_elsewhere() -> None:
    gone, there = fold_changes([update(1, ("b",), a="x", id=2, moved_to=(2,))])
    assert gone == row(1, existed=True, exists=False)
    assert there == row(2, existed=False, values={"a": "x", "id": 2}, unknown={"b"})
    gone, there = fold_changes([update(1, id=2, moved_to=(2,))])
    assert there == row(2, existed=False, values={"id": 2}, unknown={"a", "b"})
    assert gone.exists is False


def test_a_new_row_that_moves_asks_for_nothing_it_knows() -> None:
    (there,) = fold_changes([create(1, a="x"), update(1, id=2, moved_to=(2,))])
    assert there == row(2, existed=False, values={"id": 2, "a": "x"})


def test_a_row_that_moves_to_its_own_key_stays() -> None:
    (net,) = fold_changes([update(1, a="x", moved_to=(1,))])
    assert net == row(1, existed=True, values={"a": "x"})


def test_rows_that_swap_their_keys_are_both_replaced() -> None:
    rows = fold_changes(
        [update(1, moved_to=(3,)), update(2, moved_to=(1,)), update(3, moved_to=(2,))]
    )
    assert [net.key for net in rows] == [(1,), (2,)]
    for net in rows:
        assert (net.existed, net.exists, net.replaced) == (True, True, True)
        assert net.unknown == {"id", "a", "b"}


def test_a_row_that_moves_to_a_key_that_is_new_twice_is_not_replaced() -> None:
    (_, there) = fold_changes(
        [update(1, moved_to=(2,)), update(2, moved_to=(1,)), update(1, moved_to=(2,))]
    )
    assert (there.existed, there.exists, there.replaced) == (False, True, False)


def test_what_moves_takes_copies() -> None:
    _, there = fold_changes([update(1, ("b",), a="x", moved_to=(2,))])
    assert there.values == {"a": "x"}
    assert there.unknown == {"b", "id"}


def test_types_with_the_same_keys_are_apart_and_in_order() -> None:
    other = RowChange(OpType.DELETE, OTHER, (1,), {}, ())
    rows = fold_changes([update(2, a="x"), other, update(1, a="x"), update(2, a="y")])
    assert [(net.bound, net.key) for net in rows] == [(BOUND, (2,)), (OTHER, (1,)), (BOUND, (1,))]


def test_a_type_that_was_bound_again_is_the_same() -> None:
    again = make_bound(COLUMNS, key=["id"], aggregate="item/{a}")
    later = RowChange(OpType.UPDATE, again, (1,), {"b": "y"}, ())
    (net,) = fold_changes([update(1, a="x"), later])
    assert net.values == {"a": "x", "b": "y"}


def test_a_changed_row_keeps_no_hold_of_the_statement() -> None:
    change = create(1, a="x")
    fold_changes([change, update(1, a="y")])
    assert change.values == {"id": 1, "a": "x"}
