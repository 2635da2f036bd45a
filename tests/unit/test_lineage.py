"""Rows of one revision read as rows of another: column by column, by field number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from oplog.payload.column_numbers import Numbers, is_same_table
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.lineage import find_fills, find_shape_at, is_apart, map_columns
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.replay.type_target import TypeTarget, find_then, leave_later
from oplog.store.adopted import Turns
from oplog.value import Kind

pytestmark = pytest.mark.unit

HERE, THERE = "1/16384", "1/16385"


def make_shape(
    revision: int, columns: Mapping[str, int], *, table: str = "thing", **change: object
) -> Shape:
    """A revision with columns of these field numbers; the first is the key."""
    shape = derive_shape(
        "thing",
        [
            DeclaredColumn(name, "text", Kind.TEXT, number == 0)
            for number, name in enumerate(columns)
        ],
        schema="public",
        table=table,
        aggregate="thing",
        excluded={},
        stored=[],
    )
    numbered = tuple(replace(c, number=columns[c.name]) for c in shape.columns)
    made = SchemaChange(**{"previous": revision - 1, **change})  # type: ignore[arg-type]
    return replace(shape, revision=revision, columns=numbered, change=made)


def tell(shapes: list[Shape], old: int, target: int) -> list[tuple[str, str]]:
    found = map_columns(shapes, shapes[old - 1], shapes[target - 1])
    return [(route.target, route.source) for route in found]


def test_a_column_is_its_number_through_every_name() -> None:
    shapes = [
        make_shape(1, {"id": 1, "a": 2, "b": 3}),
        make_shape(2, {"id": 1, "z": 2, "b": 3}),
        make_shape(3, {"id": 1, "z": 2, "a": 4}),
    ]
    assert tell(shapes, 1, 3) == [("id", "id"), ("z", "a")]
    assert tell(shapes, 3, 1) == [("id", "id"), ("a", "z")]
    assert tell(shapes, 2, 2) == [("id", "id"), ("z", "z"), ("b", "b")]


def test_rewritten_values_are_left_out_both_ways() -> None:
    shapes = [
        make_shape(1, {"id": 1, "a": 2}),
        make_shape(2, {"id": 1, "a": 2}, rewritten=frozenset({2})),
        make_shape(3, {"id": 1, "z": 2}),
    ]
    assert tell(shapes, 1, 3) == tell(shapes, 1, 2) == [("id", "id")]
    assert tell(shapes, 3, 1) == [("id", "id")]
    assert tell(shapes, 2, 3) == [("id", "id"), ("z", "a")]
    assert TypeTarget(shapes[2], shapes).list_lost(shapes[0]) == ["a"]
    assert TypeTarget(shapes[2], shapes).list_lost(shapes[1]) == []
    assert TypeTarget(shapes[2], shapes).list_late() == {"z"}
    assert TypeTarget(shapes[0], shapes).list_late() == frozenset()


def test_labels_are_followed_through_revisions_and_back() -> None:
    shapes = [
        make_shape(1, {"id": 1, "m": 2}),
        make_shape(2, {"id": 1, "m": 2}, labels={2: {"a": "b"}}),
        make_shape(3, {"id": 1, "m": 2}, labels={2: {"b": "c", "x": "y", "y": "x"}}),
    ]
    forth = map_columns(shapes, shapes[0], shapes[2])[1].labels
    assert forth == {"a": "c", "b": "c", "x": "y", "y": "x"}
    back = map_columns(shapes, shapes[2], shapes[0])[1].labels
    assert {name: back[name] for name in ("c", "x", "y")} == {"c": "a", "x": "y", "y": "x"}


def test_fills_are_those_of_the_change_and_read_as_labels_of_now() -> None:
    shapes = [
        make_shape(1, {"id": 1}),
        make_shape(2, {"id": 1, "a": 2, "n": 3}, fills={2: "x", 3: None}),
        make_shape(3, {"id": 1, "z": 2, "n": 3}, labels={2: {"x": "y"}}),
    ]
    assert find_fills(shapes, shapes[2]) == {"z": "y", "n": None}
    assert find_fills(shapes, shapes[1]) == {"a": "x", "n": None}
    assert find_fills(shapes, shapes[0]) == {}


def test_rows_that_were_all_logged_anew_stand_apart() -> None:
    shapes = [make_shape(1, {"id": 1}), make_shape(2, {"id": 1}, readopted=True)]
    assert is_apart(shapes, shapes[0], shapes[1])
    assert is_apart(shapes, shapes[1], shapes[0])
    assert not is_apart(shapes, shapes[1], shapes[1])
    assert TypeTarget(shapes[1], shapes).list_lost(shapes[0]) == ["id"]


# -- which revision there was at a position ----------------------------------------------------


def test_a_position_has_the_revision_of_the_last_change_before_it() -> None:
    shapes = [make_shape(n, {"id": 1}) for n in (1, 2, 3)]
    changes = [(10, 2), (20, 3)]
    found = [find_shape_at(shapes, changes, n) for n in (1, 9, 10, 19, 20, None)]
    assert [shape.revision for shape in found if shape] == [1, 1, 2, 2, 3, 3]
    assert find_shape_at([], changes, 5) is None


def test_a_retired_type_has_no_table_until_it_begins_anew() -> None:
    shapes = [make_shape(1, {"id": 1}), make_shape(2, {"id": 1}, previous=0)]
    gone = Turns(retired=10, retired_revision=1)
    assert find_then(shapes[:1], gone, None) is None
    assert find_then(shapes, gone, None) is shapes[1]
    whole = gone.join(Turns(changes=((20, 2),)))
    assert find_then(shapes, Turns(), 5, whole=whole) is shapes[0]
    assert find_then(shapes, gone, 15, whole=whole) is None
    assert find_then(shapes, whole, 20, whole=whole) is shapes[1]
    # Without a mark it is taken to have been there.
    assert find_then(shapes, gone, 15, whole=gone) is shapes[1]


def test_a_table_that_took_a_name_was_not_there_before() -> None:
    moved = [make_shape(1, {"id": 1}), make_shape(2, {"id": 1}, table="item")]
    later = [make_shape(1, {"id": 1})]
    revisions = {"thing": moved, "thing~": later}
    assert leave_later({"thing": moved[0], "thing~": later[0]}, revisions) == {"thing": moved[0]}
    both = {"thing": moved[1], "thing~": later[0]}
    assert leave_later(both, revisions) == both


# -- numbers of the catalog --------------------------------------------------------------------


def number(database: str, columns: str, *, table: int = 7) -> Numbers:
    """Columns by name and number: 'id1 a2'."""
    return Numbers(database, table, {part[:-1]: int(part[-1]) for part in columns.split()})


def test_columns_are_the_same_if_nothing_says_otherwise() -> None:
    here = number(HERE, "id1 a2")
    assert is_same_table([], [here], ["id", "a"])
    assert is_same_table([here], [number(THERE, "id5 a6")], ["id", "a"])
    assert is_same_table([here], [number(HERE, "id1 a2 b3")], ["id", "a"])
    assert not is_same_table([here], [number(HERE, "id1 a3")], ["id", "a"])
    assert not is_same_table([here], [number(HERE, "id1 a2", table=8)], ["id", "a"])
