"""What became of columns between revisions, by their numbers and, without these, by their names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oplog.payload.column_numbers import Numbers, is_same_table
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.lineage import Break, find_breaks, list_unread
from oplog.payload.shape import Shape
from oplog.value import Kind

pytestmark = pytest.mark.unit

HERE, THERE = "1/16384", "1/16385"


def make_shape(
    revision: int, columns: str, *numbers: Numbers, excluded: dict[str, str] | None = None
) -> Shape:
    shape = derive_shape(
        "thing",
        [DeclaredColumn(name, "integer", Kind.INT, name == "id") for name in columns.split()],
        schema="public",
        table="thing",
        aggregate="thing",
        excluded=excluded or {},
        stored=[],
    )
    return replace(shape, revision=revision, numbers=numbers)


def number(database: str, columns: str, *, table: int = 7) -> Numbers:
    """Columns by name and number: 'id1 a2'."""
    return Numbers(database, table, {part[:-1]: int(part[-1]) for part in columns.split()})


def tell(*shapes: Shape) -> dict[int, tuple[str, str, str]]:
    found = find_breaks(shapes[:-1], shapes[-1])
    return {revision: (b.what, b.column, b.now) for revision, b in found.items()}


def test_names_that_mean_what_they_meant() -> None:
    old = make_shape(1, "id a b", number(HERE, "id1 a2 b3"))
    assert tell(old, make_shape(2, "id a c", number(HERE, "id1 a2 c4"))) == {}
    assert tell(old, make_shape(2, "id a", number(HERE, "id1 a2"))) == {}
    assert tell(old, old) == {}


def test_a_rename() -> None:
    old = make_shape(1, "id a", number(HERE, "id1 a2"))
    assert tell(old, make_shape(2, "id z", number(HERE, "id1 z2"))) == {1: ("renamed", "a", "z")}


def test_a_rename_and_back_is_none() -> None:
    first = make_shape(1, "id a", number(HERE, "id1 a2"))
    second = make_shape(2, "id z", number(HERE, "id1 z2"))
    last = make_shape(3, "id a", number(HERE, "id1 a2"))
    assert tell(first, second, last) == {2: ("renamed", "z", "a")}


def test_a_column_that_was_added_again() -> None:
    old = make_shape(1, "id a", number(HERE, "id1 a2"))
    new = make_shape(2, "id a", number(HERE, "id1 a3"))
    assert tell(old, new) == {1: ("added again", "a", "a")}


def test_a_table_that_was_replaced() -> None:
    old = make_shape(1, "id a", number(HERE, "id1 a2"))
    new = make_shape(2, "id a", number(HERE, "id1 a2", table=8))
    assert tell(old, new) == {1: ("replaced", "", "")}


def test_a_column_that_is_not_logged_any_more_is_no_loss_of_a_name() -> None:
    old = make_shape(1, "id a", number(HERE, "id1 a2"))
    hidden = make_shape(2, "id", number(HERE, "id1 z2"), excluded={"z": "secret"})
    assert tell(old, hidden) == {}
    # It is the same column all the while, and logged again under its new name.
    again = make_shape(3, "id z", number(HERE, "id1 z2"))
    assert tell(old, hidden, again) == {1: ("renamed", "a", "z")}


def test_numbers_of_two_databases_are_not_compared() -> None:
    old = make_shape(1, "id a", number(HERE, "id1 a2"))
    new = make_shape(2, "id a", number(THERE, "id4 a5", table=9))
    assert tell(old, new) == {}


def test_a_column_is_followed_from_one_database_to_the_next() -> None:
    first = make_shape(1, "id a", number(HERE, "id1 a2"))
    moved = make_shape(2, "id z", number(HERE, "id1 z2"), number(THERE, "id4 z5", table=9))
    last = make_shape(3, "id y", number(THERE, "id4 y5", table=9))
    assert tell(first, moved, last) == {
        1: ("renamed", "a", "y"),
        2: ("renamed", "z", "y"),
    }


def test_names_alone_tell_of_a_column_that_was_away() -> None:
    first, without, again = (make_shape(n, c) for n, c in ((1, "id a"), (2, "id"), (3, "id a")))
    assert tell(first, without, again) == {1: ("added again", "a", "a")}
    kept = make_shape(2, "id", excluded={"a": "for a while"})
    assert tell(first, kept, again) == {}


class Steps:
    def __init__(self, *revisions: int) -> None:
        self.revisions = revisions

    def find_step(self, type_name: str, from_revision: int, *, to_revision: int) -> object | None:
        assert (type_name, to_revision) == ("thing", from_revision + 1)
        return object() if from_revision in self.revisions else None


@pytest.mark.parametrize(
    ("steps", "left"), [((), [1, 2]), ((1,), [2, 2]), ((1, 2), []), ((2,), [1])]
)
def test_steps_that_lead_past_a_break(steps: tuple[int, ...], left: list[int]) -> None:
    breaks = {n: Break("thing", n, "public.thing", "renamed", "a", "z") for n in (1, 2)}
    assert [one.revision for one in list_unread(breaks, Steps(*steps))] == left


def test_columns_are_the_same_if_nothing_says_otherwise() -> None:
    here = number(HERE, "id1 a2")
    assert is_same_table([], [here], ["id", "a"])
    assert is_same_table([here], [number(THERE, "id5 a6")], ["id", "a"])
    assert is_same_table([here], [number(HERE, "id1 a2 b3")], ["id", "a"])
    assert not is_same_table([here], [number(HERE, "id1 a3")], ["id", "a"])
    assert not is_same_table([here], [number(HERE, "id1 a2", table=8)], ["id", "a"])
