"""Which aggregate a row belongs to, and what of it stands in which entry."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.capture.grouping import (
    Groups,
    find_aggregate,
    find_idle_aggregate,
    group_effects,
    list_effects,
    name_aggregate,
    order_aggregates,
)
from oplog.capture.net_row import NetRow
from oplog.capture.record import RecordedWork, WritableLog
from oplog.capture.row_change import TrackedType
from oplog.entry import Entry, Operation, OpType, Ticket
from oplog.errors import EntryError, UnknownTypeError
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer")]
BY_KEY = make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item")
BY_BOTH = make_bound(COLUMNS, key=["id", "team"], aggregate="seat/{team}/{id}", name="seat")
BY_TEAM = make_bound(COLUMNS, key=["id"], aggregate="team/{team}", name="member")
MIXED = make_bound(COLUMNS, key=["id"], aggregate="{id}/{team}", name="mixed")
AS_ONE = make_bound(COLUMNS, key=["id"], aggregate="all", name="thing")
C, U, D = OpType.CREATE, OpType.UPDATE, OpType.DELETE
WHOLE: dict[str, Any] = {"id": 1, "team": "a", "points": 5}


def tell(row: NetRow, *, ordinal: int = 0) -> list[tuple[str, OpType, Any, int]]:
    effects = list_effects(row, ordinal=ordinal)
    assert all(effect.complete == (effect.kind is C) for _, effect in effects)
    assert all(effect.key == row.key and effect.shape is row.bound.shape for _, effect in effects)
    return [(name, effect.kind, effect.values, effect.ordinal) for name, effect in effects]


# -- effects of a row ---------------------------------------------------------------------


def test_a_created_row_is_one_create() -> None:
    row = NetRow(BY_TEAM, (1,), existed=False, values=dict(WHOLE))
    assert tell(row, ordinal=4) == [("team/a", C, WHOLE, 4)]


def test_a_created_row_says_only_logged_columns() -> None:
    row = NetRow(BY_KEY, (1,), existed=False, values={**WHOLE, "computed": 6})
    assert tell(row) == [("item/1", C, WHOLE, 0)]


def test_a_replaced_row_is_deleted_where_it_was_and_created_where_it_is() -> None:
    row = NetRow(
        BY_TEAM, (1,), existed=True, replaced=True, values=dict(WHOLE), group={"team": "b"}
    )
    assert tell(row, ordinal=7) == [("team/b", D, {}, 7), ("team/a", C, WHOLE, 8)]


def test_a_deleted_row_is_named_by_what_it_was() -> None:
    row = NetRow(BY_TEAM, (1,), existed=True, exists=False, group={"team": "b"})
    assert tell(row, ordinal=2) == [("team/b", D, {}, 2)]
    assert tell(NetRow(BY_TEAM, (1,), existed=False, exists=False, group={"team": "b"})) == []


def test_an_update_of_nothing_is_nothing() -> None:
    assert tell(NetRow(BY_KEY, (1,), existed=True)) == []


def test_a_changed_row_is_one_update() -> None:
    row = NetRow(BY_KEY, (1,), existed=True, values={"points": 6})
    assert tell(row, ordinal=3) == [("item/1", U, {"points": 6}, 3)]


def test_a_changed_row_that_stays_in_its_aggregate_is_one_update() -> None:
    row = NetRow(BY_TEAM, (1,), existed=True, values={"points": 6}, group={"team": "a"})
    assert tell(row, ordinal=3) == [("team/a", U, {"points": 6}, 3)]
    row = NetRow(BY_TEAM, (1,), existed=True, values={"team": "a"}, group={"team": "a"})
    assert tell(row) == [("team/a", U, {"team": "a"}, 0)]


def test_a_row_that_leaves_its_aggregate_is_told_in_both() -> None:
    row = NetRow(BY_TEAM, (1,), existed=True, values=dict(WHOLE), group={"team": "b"})
    assert tell(row, ordinal=3) == [("team/b", D, {}, 3), ("team/a", C, WHOLE, 4)]
    assert list(list_effects(row, ordinal=0)[1][1].values) == ["id", "team", "points"]


# -- names --------------------------------------------------------------------------------


def test_names_are_made_of_the_stored_texts() -> None:
    assert name_aggregate(BY_KEY, (1,), None) == "item/1"
    assert name_aggregate(BY_KEY, (1,), {"id": 2}) == "item/1"
    assert name_aggregate(BY_TEAM, (1,), {"team": None}) == "team/null"
    assert name_aggregate(BY_BOTH, (1, "a"), {"team": "b"}) == "seat/a/1"
    assert name_aggregate(MIXED, (1,), {"id": 2, "team": "b"}) == "1/b"
    assert name_aggregate(AS_ONE, (1,), None) == "all"
    with pytest.raises(EntryError):
        name_aggregate(BY_TEAM, (1,), {"team": "x" * 5000})
    assert name_aggregate(BY_KEY, (None,), None) == "item/null"
    by_points = make_bound(COLUMNS, key=["id"], aggregate="at/{points}", name="at")
    assert name_aggregate(by_points, (1,), {"points": None}) == "at/null"
    assert name_aggregate(by_points, (1,), {"points": -7}) == "at/-7"
    for values in ({"points": 1}, None):
        with pytest.raises(KeyError):
            name_aggregate(BY_TEAM, (1,), values)


def test_keys_of_any_type_name_aggregates() -> None:
    def bind(pg_type: str) -> TrackedType:
        return make_bound([("id", pg_type)], key=["id"], aggregate="a/{id}/b", name="a")

    assert name_aggregate(bind("bigint"), (-(2**63),), None) == "a/-9223372036854775808/b"
    assert name_aggregate(bind("text"), ("7",), None) == "a/7/b"
    assert name_aggregate(bind("bytea"), (b"\x01",), None) == "a/\\x01/b"
    assert name_aggregate(bind("boolean"), (True,), None) == "a/t/b"
    for text in ("x" * 5000, "\0"):
        with pytest.raises(EntryError):
            name_aggregate(bind("text"), (text,), None)


def test_a_name_that_is_not_known_is_none() -> None:
    assert find_aggregate(BY_KEY, (1,), None) == "item/1"
    assert find_aggregate(AS_ONE, (1,), None) == "all"
    assert find_aggregate(BY_TEAM, (1,), {"team": "a", "points": 1}) == "team/a"
    assert find_aggregate(BY_TEAM, (1,), {"team": None}) == "team/null"
    assert find_aggregate(BY_TEAM, (1,), {"points": 1}) is None
    assert find_aggregate(BY_TEAM, (1,), None) is None


def test_the_lock_order_is_that_of_bytes() -> None:
    names = ["b", "\U0001f600", "\uffff", "B"]
    assert order_aggregates(names) == ["B", "b", "\uffff", "\U0001f600"]


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_the_lock_order_of_any_names_is_that_of_bytes(names: list[str]) -> None:
    assert order_aggregates(names) == sorted(names, key=str.encode)


@pytest.mark.parametrize(
    ("row", "idle"),
    [
        (NetRow(BY_KEY, (1,), existed=True), "item/1"),
        (NetRow(BY_KEY, (1,), existed=True, values={"points": 1}), None),
        (NetRow(BY_KEY, (1,), existed=True, exists=False), None),
        (NetRow(BY_KEY, (1,), existed=False), None),
        (NetRow(BY_KEY, (1,), existed=False, exists=False), None),
        (NetRow(BY_KEY, (1,), existed=True, replaced=True), None),
        (NetRow(BY_TEAM, (1,), existed=True), None),
        (NetRow(BY_TEAM, (1,), existed=True, group={"team": "a"}), "team/a"),
        (NetRow(AS_ONE, (1,), existed=True), "all"),
    ],
)
def test_a_row_is_idle_if_nothing_happened_to_it(row: NetRow, idle: str | None) -> None:
    assert find_idle_aggregate(row) == idle


# -- groups -------------------------------------------------------------------------------


class Log:
    """The types that entries built by hand may name."""

    def find_type(self, name: str) -> TrackedType:
        if name != "thing":
            raise UnknownTypeError(name)
        return AS_ONE


LOG = cast("WritableLog", Log())
TICKETS = {"item/1": Ticket("item/1", 1)}


def tell_groups(groups: Groups) -> dict[str, list[tuple[OpType, int]]]:
    return {
        name: [(effect.kind, effect.ordinal) for effect in effects]
        for name, effects in groups.effects.items()
    }


def test_ordinals_count_over_entries_and_rows() -> None:
    by_hand = Operation.update("thing", key={"id": 9}, fields={"points": 1})
    work = RecordedWork(LOG, entries=[Entry("team/b", [by_hand, by_hand]), Entry("x", [by_hand])])
    groups = group_effects(
        work,
        [
            NetRow(BY_TEAM, (1,), existed=True, values=dict(WHOLE), group={"team": "b"}),
            NetRow(BY_KEY, (1,), existed=True),
            NetRow(AS_ONE, (1,), existed=True, values={"points": 1}),
        ],
    )
    assert tell_groups(groups) == {
        "team/b": [(U, 0), (U, 1), (D, 3)],
        "x": [(U, 2)],
        "team/a": [(C, 4)],
        "all": [(U, 5)],
    }
    assert groups.idle == frozenset()
    assert groups.created == frozenset()


def new(bound: Any, id: int, **more: Any) -> NetRow:
    key = (id, "a") if bound is BY_BOTH else (id,)
    return NetRow(bound, key, existed=False, values=WHOLE | {"id": id} | more)


def test_rows_that_were_not_there_create_the_aggregates_that_are_theirs_alone() -> None:
    rows = [new(BY_KEY, 1), new(BY_KEY, 2), new(BY_BOTH, 1)]
    assert group_effects(RecordedWork(LOG), rows).created == {"item/1", "item/2", "seat/a/1"}


def test_aggregates_of_several_rows_are_not_believed_to_be_created() -> None:
    keyless = make_bound(COLUMNS, key=[], aggregate="none", name="keyless")
    part = make_bound(COLUMNS, key=["id", "team"], aggregate="order/{id}", name="part")
    rows = [
        new(BY_TEAM, 1),
        new(AS_ONE, 1),
        new(MIXED, 1),
        NetRow(keyless, (), existed=False, values=dict(WHOLE)),
        NetRow(part, (1, "a"), existed=False, values=dict(WHOLE)),
    ]
    groups = group_effects(RecordedWork(LOG), rows)
    assert set(groups.effects) == {"team/a", "all", "1/a", "none", "order/1"}
    assert groups.created == frozenset()


@pytest.mark.parametrize(
    "row",
    [
        NetRow(BY_KEY, (1,), existed=True, values={"points": 1}),
        NetRow(BY_KEY, (1,), existed=True, exists=False),
        NetRow(BY_KEY, (1,), existed=True, replaced=True, values=dict(WHOLE)),
    ],
)
def test_rows_that_were_there_create_nothing(row: NetRow) -> None:
    groups = group_effects(RecordedWork(LOG), [row])
    assert (list(groups.effects), groups.created) == (["item/1"], frozenset())


def test_what_moves_to_an_aggregate_does_not_create_it() -> None:
    row = NetRow(BY_TEAM, (1,), existed=True, values=dict(WHOLE), group={"team": "b"})
    groups = group_effects(RecordedWork(LOG), [row])
    assert (set(groups.effects), groups.created) == ({"team/a", "team/b"}, frozenset())


def test_only_the_first_effect_creates() -> None:
    """An entry by hand and a row of another table may be on the aggregate before."""
    by_hand = Operation.update("thing", key={"id": 9}, fields={"points": 1})
    work = RecordedWork(LOG, entries=[Entry("item/1", [by_hand])])
    assert group_effects(work, [new(BY_KEY, 1), new(BY_KEY, 2)]).created == {"item/2"}
    twin = make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="twin")
    before = NetRow(twin, (1,), existed=True, values={"points": 1})
    assert group_effects(RecordedWork(LOG), [before, new(BY_KEY, 1)]).created == frozenset()
    after = group_effects(RecordedWork(LOG), [new(BY_KEY, 1), before])
    assert after.created == {"item/1"}
    assert tell_groups(after) == {"item/1": [(C, 0), (U, 1)]}


def test_an_entry_of_an_unknown_type_is_refused() -> None:
    entry = Entry("x", [Operation.delete("nothing", key={"id": 1})])
    with pytest.raises(UnknownTypeError):
        group_effects(RecordedWork(LOG, entries=[entry]), [])


def test_idle_aggregates_are_those_without_an_effect() -> None:
    rows = [
        NetRow(BY_KEY, (1,), existed=True),
        NetRow(AS_ONE, (1,), existed=True),
        NetRow(AS_ONE, (2,), existed=False, values=dict(WHOLE)),
        NetRow(BY_TEAM, (1,), existed=True),
    ]
    groups = group_effects(RecordedWork(LOG, tickets=TICKETS), rows)
    assert groups.idle == {"item/1"}
    assert tell_groups(groups) == {"all": [(C, 0)]}
    assert group_effects(RecordedWork(LOG), rows).idle == frozenset()
