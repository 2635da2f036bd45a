"""Images of the guards, made into net rows: what was touched, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from oplog.binding import Binding
from oplog.capture.merge import list_group_names, measure, read_touched_rows, touch_rows
from oplog.capture.net_row import NetRow
from oplog.capture.row_change import Key, RowChange
from oplog.entry import OpType
from oplog.errors import CaptureMismatchError, NotCapturableError, UnloggedWriteError
from oplog.schema.touched_keys import weigh
from oplog.store.guard_state import Image
from oplog.type_binding import BoundType
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("team", "text"), ("points", "integer"), ("note", "text")]
MEMBER = make_bound(COLUMNS, key=["id"], aggregate="team/{team}", name="member", oid=1)
ITEM = make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item", oid=2)
AMOUNT = make_bound(
    [("id", "numeric"), ("note", "text")], key=["id"], aggregate="amount/{id}", name="amount", oid=3
)
BOUND = {1: MEMBER, 2: ITEM, 3: AMOUNT}
C, U, D = OpType.CREATE, OpType.UPDATE, OpType.DELETE

Rows = Sequence[Sequence[str | None]]
Table = Mapping[int, Mapping[str, Any]]


class Tracked:
    """A binding of these two tables."""

    def find_relation(self, oid: int) -> BoundType:
        return BOUND[oid]


def image(
    operation: str,
    old: Rows | None = None,
    new: Rows | None = None,
    *,
    bound: BoundType = MEMBER,
    changed: Sequence[str] = (),
) -> Image:
    kept = ("team", "id") if bound is MEMBER else ("id",)
    count = len(new if new is not None else old or ())
    return Image(bound.live.oid, operation, count, kept, old, new, changed)


def row(id: int, team: str | None = "a", points: int = 0) -> dict[str, Any]:
    return {"id": id, "team": team, "points": points, "note": None}


class Settling:
    """Merges images and changes over tables that are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, list[Key], set[str]]] = []
        self.table: Table = {}
        self.forms: Mapping[str, Mapping[str, Any]] = {}
        """What is found under each form of a key."""
        monkeypatch.setattr("oplog.capture.merge.read_rows", self.read_rows)
        self.hidden = False
        monkeypatch.setattr("oplog.capture.merge.hides_rows", lambda *_: self.hidden)

    def read_rows(
        self,
        _connection: object,
        bound: BoundType,
        keys: list[Key],
        *,
        columns: tuple[str, ...],
        settings_fixed: bool,
    ) -> list[Mapping[str, Any] | None]:
        assert settings_fixed
        self.asked.append((bound.shape.type_name, keys, set(columns)))
        found = [self.table.get(cast("int", k[0])) or self.forms.get(str(k[0])) for k in keys]
        return [None if r is None else {name: r[name] for name in columns} for r in found]

    def __call__(
        self, *images: Image, table: Sequence[dict[str, Any]] = (), changes: Any = ()
    ) -> list[NetRow]:
        self.table = {r["id"]: r for r in table}
        binding = cast("Binding", Tracked())
        touched = touch_rows(images, binding=binding, changes=changes)
        return read_touched_rows(cast("Any", None), touched)


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Settling:
    return Settling(monkeypatch)


def net(id: int, *, bound: BoundType = MEMBER, team: str | None = "a", **more: Any) -> NetRow:
    """A row that was there before, in `team`."""
    group = {"team": team, "id": id} if bound is MEMBER else {"id": id}
    return NetRow(bound, (id,), **{"existed": True, "group": group, **more})


def new(id: int, values: Mapping[str, Any], *, bound: BoundType = MEMBER) -> NetRow:
    return NetRow(bound, (id,), existed=False, values=dict(values))


# -- single statements --------------------------------------------------------------------


def test_no_images_touch_nothing(settle: Settling) -> None:
    change = RowChange(C, MEMBER, (1,), row(1), ())
    assert settle(changes=[change]) == []
    assert settle.asked == []


def test_an_inserted_row_is_read_whole(settle: Settling) -> None:
    assert settle(image("I", new=[["a", "1"]]), table=[row(1)]) == [new(1, row(1))]
    assert settle.asked == [("member", [(1,)], {"id", "team", "points", "note"})]


def test_a_deleted_row_is_told_with_its_group(settle: Settling) -> None:
    assert settle(image("D", old=[["b", "1"]])) == [net(1, team="b", exists=False)]
    assert settle(image("D", old=[[None, "1"]])) == [net(1, team=None, exists=False)]


def test_a_changed_row_says_what_may_have_changed(settle: Settling) -> None:
    images = image("U", new=[["a", "1"], ["a", "2"]], changed=["points", "computed"])
    assert settle(images, table=[row(1, points=3), row(2, points=4)]) == [
        net(1, values={"points": 3}),
        net(2, values={"points": 4}),
    ]
    assert settle.asked == [("member", [(1,), (2,)], {"team", "points"})]


def test_changes_of_two_statements_add_up(settle: Settling) -> None:
    one = image("U", new=[["a", "1"]], changed=["points"])
    two = image("U", new=[["a", "1"], ["a", "2"]], changed=["note"])
    first, second = settle(one, two, table=[row(1, points=3), row(2)])
    assert first == net(1, values={"points": 3, "note": None})
    assert second == net(2, values={"note": None})
    assert settle.asked == [("member", [(1,), (2,)], {"team", "points", "note"})]


def test_a_row_that_is_what_it_was_has_no_values(settle: Settling) -> None:
    touched = image("U", new=[["a", "1"]], changed=["computed"])
    assert settle(touched, table=[row(1)]) == [net(1)]
    touched = image("U", new=[["1"]], changed=["computed"], bound=ITEM)
    assert settle(touched, table=[row(1)]) == [NetRow(ITEM, (1,), existed=True)]


def test_a_table_grouped_by_its_key_takes_the_short_way(settle: Settling) -> None:
    images = image("U", new=[["1"], ["2"]], changed=["points", "id"], bound=ITEM)
    assert settle(images, table=[row(1, points=3), row(2)]) == [
        NetRow(ITEM, (1,), existed=True, values={"points": 3}),
        NetRow(ITEM, (2,), existed=True, values={"points": 0}),
    ]


def test_a_row_in_another_group_was_in_the_old_one(settle: Settling) -> None:
    images = image("U", old=[["a", "1"]], new=[["b", "1"]], changed=["team"])
    (moved,) = settle(images, table=[row(1, "b")])
    assert moved == net(1, values=row(1, "b"))


def test_of_many_rows_only_those_that_moved_count_as_moved(settle: Settling) -> None:
    images = image(
        "U", old=[["a", "1"], ["b", "2"]], new=[["b", "1"], ["b", "2"]], changed=["team"]
    )
    moved, kept = settle(images, table=[row(1, "b"), row(2, "b")])
    assert moved == net(1, values=row(1, "b"))
    assert kept == net(2, team="b", values={"team": "b"})


def test_a_row_under_another_key_is_gone_from_the_old_one(settle: Settling) -> None:
    images = image("U", old=[["a", "1"]], new=[["a", "2"]], changed=["id"])
    there, gone = settle(images, table=[row(2)])
    assert gone == net(1, exists=False)
    assert there == new(2, row(2))


def test_tables_are_settled_apart(settle: Settling) -> None:
    images = [
        image("D", old=[["1"]], bound=ITEM),
        image("I", new=[["a", "2"]]),
        image("U", new=[["3"]], changed=["note"], bound=ITEM),
    ]
    assert settle(*images, table=[row(2), row(3)]) == [
        net(1, bound=ITEM, exists=False),
        NetRow(ITEM, (3,), existed=True, values={"note": None}),
        new(2, row(2)),
    ]
    assert [(name, keys) for name, keys, _ in settle.asked] == [
        ("item", [(1,), (3,)]),
        ("member", [(2,)]),
    ]


# -- several statements on one row --------------------------------------------------------


def test_a_row_inserted_and_deleted_never_was(settle: Settling) -> None:
    assert settle(image("I", new=[["a", "1"]]), image("D", old=[["a", "1"]])) == []


def test_a_row_deleted_and_inserted_again_is_read_whole(settle: Settling) -> None:
    images = [image("D", old=[["b", "1"]]), image("I", new=[["a", "1"]])]
    assert settle(*images, table=[row(1)]) == [net(1, team="b", values=row(1))]


def test_a_row_inserted_again_as_it_was(settle: Settling) -> None:
    images = [image("D", old=[["a", "1"]]), image("I", new=[["a", "1"]])]
    assert settle(*images, table=[row(1)]) == [net(1, values=row(1))]


@pytest.mark.parametrize(
    ("images", "table", "before"),
    [
        ([image("I", new=[["a", "1"]])], [], -1),
        ([image("D", old=[["a", "1"]]), image("D", old=[["a", "1"]])], [], 2),
        ([image("D", old=[["a", "1"]])], [row(1)], 2),
        (
            [
                image("D", old=[["a", "1"]]),
                image("D", old=[["b", "1"]]),
                image("I", new=[["c", "1"]]),
            ],
            [],
            1,
        ),
    ],
)
def test_images_that_contradict_the_table_are_refused(
    settle: Settling, images: list[Image], table: list[dict[str, Any]], before: int
) -> None:
    with pytest.raises(CaptureMismatchError, match=f"say that {before} such rows"):
        settle(*images, table=table)


def test_a_row_that_is_gone_though_only_changed_is_refused(settle: Settling) -> None:
    # No image took it away: its old state is not known, and it is not there.
    with pytest.raises(CaptureMismatchError, match="was updated, and it is not there"):
        settle(image("U", new=[["a", "1"]], changed=["note"]), table=[])
    with pytest.raises(CaptureMismatchError, match="was updated, and it is not there"):
        settle(image("U", new=[["1"]], changed=["note"], bound=ITEM))


HIDDEN = {
    "updated": [image("U", new=[["1"]], changed=["note"], bound=ITEM)],
    "inserted": [image("I", new=[["1"]], bound=ITEM)],
    "inserted and deleted, or the other way round": [
        image("I", new=[["1"]], bound=ITEM),
        image("D", old=[["1"]], bound=ITEM),
    ],
}


@pytest.mark.parametrize("what", HIDDEN)
def test_a_row_that_may_be_hidden_is_refused(settle: Settling, what: str) -> None:
    settle.hidden = True
    with pytest.raises(NotCapturableError, match="row security") as caught:
        settle(*HIDDEN[what])
    assert "SELECT policy" in caught.value.hint


def test_a_deleted_row_is_not_taken_for_hidden(settle: Settling) -> None:
    """It went once more than it came: it cannot be there."""
    settle.hidden = True
    (found,) = settle(image("D", old=[["1"]], bound=ITEM))
    assert (found.existed, found.exists) == (True, False)
    came_back = [image("D", old=[["1"]], bound=ITEM), image("I", new=[["1"]], bound=ITEM)]
    (found,) = settle(*came_back, image("D", old=[["1"]], bound=ITEM))
    assert (found.existed, found.exists) == (True, False)
    assert settle(*came_back, table=[row(1)]) == [net(1, bound=ITEM, values=row(1))]


def test_a_row_that_came_and_went_between_groups(settle: Settling) -> None:
    images = [
        image("D", old=[["a", "1"]]),
        image("I", new=[["b", "1"]]),
        image("D", old=[["b", "1"]]),
        image("I", new=[["a", "1"]]),
    ]
    assert settle(*images, table=[row(1)]) == [net(1, values=row(1))]


def test_a_group_of_null_is_told_apart_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = make_bound(COLUMNS, key=["id"], aggregate="x/{points}", name="member", oid=1)
    monkeypatch.setitem(BOUND, 1, bound)
    settle = Settling(monkeypatch)
    deleted = Image(1, "D", 2, ("points", "id"), [[None, "1"], ["5", "2"]], None, ())
    assert [found.group for found in settle(deleted)] == [
        {"points": None, "id": 1},
        {"points": 5, "id": 2},
    ]


# -- with announced changes ---------------------------------------------------------------


def test_announced_changes_of_the_same_rows_count(settle: Settling) -> None:
    images = image("U", new=[["a", "1"], ["a", "2"]], changed=["points"])
    changes = [
        RowChange(C, MEMBER, (1,), row(1), ()),
        RowChange(U, MEMBER, (2,), {"note": "n"}, ("team",), {"team": "a"}),
        RowChange(U, MEMBER, (9,), {"note": "n"}, (), {"team": "a"}),
    ]
    found = settle(images, table=[row(1), row(2)], changes=changes)
    assert found == [
        new(1, row(1)),
        net(2, values={"points": 0, "note": None, "team": "a"}),
    ]


def test_an_announced_delete_after_an_image(settle: Settling) -> None:
    images = image("U", new=[["a", "1"]], changed=["points"])
    change = RowChange(D, MEMBER, (1,), {}, (), {"team": "a"})
    assert settle(images, changes=[change]) == [net(1, exists=False)]


def test_an_announced_move_after_an_image(settle: Settling) -> None:
    images = [
        image("U", new=[["a", "1"]], changed=["points"]),
        image("U", new=[["a", "2"]], changed=["points"]),
    ]
    change = RowChange(U, MEMBER, (1,), {"id": 2}, (), {"team": "a"}, (2,))
    gone, there = settle(*images, changes=[change], table=[row(2)])
    assert gone == net(1, exists=False)
    assert there == new(2, row(2))


def test_an_announced_move_brings_its_group_along(settle: Settling) -> None:
    images = [image("D", old=[["a", "2"]]), image("D", old=[["b", "2"]])]
    change = RowChange(U, MEMBER, (1,), {"id": 2}, (), {"team": "b"}, (2,))
    assert settle(*images, changes=[change]) == [net(2, exists=False)]
    nameless = RowChange(U, MEMBER, (1,), {"id": 2}, (), None, (2,))
    with pytest.raises(CaptureMismatchError):
        settle(*images, changes=[nameless])


def test_an_announced_move_to_its_own_key_is_none(settle: Settling) -> None:
    images = image("U", new=[["a", "1"]], changed=["points"])
    change = RowChange(U, MEMBER, (1,), {"note": "n"}, (), {"team": "a"}, (1,))
    assert settle(images, changes=[change], table=[row(1)]) == [
        net(1, values={"points": 0, "note": None})
    ]


def test_an_announced_move_of_a_row_that_no_image_touched(settle: Settling) -> None:
    images = image("D", old=[["a", "2"]])
    change = RowChange(U, MEMBER, (1,), {"id": 2}, (), {"team": "a"}, (2,))
    assert settle(images, changes=[change]) == []
    other = RowChange(U, MEMBER, (1,), {"id": 3}, (), {"team": "a"}, (3,))
    assert settle(images, changes=[other]) == [net(2, exists=False)]


def test_an_uncertain_group_is_refused_where_it_matters(settle: Settling) -> None:
    images = [image("I", new=[["a", "1"]]), image("D", old=[["b", "1"]])]
    change = RowChange(D, MEMBER, (1,), {}, ())
    with pytest.raises(CaptureMismatchError):
        settle(*images, changes=[change])


def test_a_table_grouped_by_its_key_has_no_group(settle: Settling) -> None:
    images = image("D", old=[["1"]], bound=ITEM)
    assert settle(images) == [net(1, bound=ITEM, exists=False)]
    images = image("I", new=[["1"]], bound=ITEM)
    assert settle(images, table=[row(1)]) == [new(1, row(1), bound=ITEM)]


# -- the rest -----------------------------------------------------------------------------


def test_what_images_weigh() -> None:
    images = [
        Image(70, "U", 3, (), None, None, ()),
        Image(71, "I", 2, (), None, None, ()),
    ]
    assert measure(images) == 3 * weigh("U", 70) + 2 * weigh("I", 71)
    assert measure([]) == 0


def test_group_names_are_not_in_the_key() -> None:
    both = make_bound(COLUMNS, key=["id"], aggregate="x/{team}/{id}", name="both")
    assert list_group_names(both) == ("team",)
    assert list_group_names(ITEM) == ()


def test_an_image_from_before_the_template_is_refused_and_may_run_again(settle: Settling) -> None:
    stale = Image(1, "I", 1, ("id",), None, [["1"]], ())
    with pytest.raises(UnloggedWriteError, match="before its aggregate template") as caught:
        settle(stale)
    assert caught.value.retryable is True


# -- keys that are equal and stored differently -------------------------------------------


def test_a_row_under_another_form_of_its_key_is_another(settle: Settling) -> None:
    """1.0 finds 1.00: the first is gone, and the second is new."""
    moved = Image(3, "U", 1, ("id",), [["1.0"]], [["1.00"]], ("id",))
    stored: dict[str, Any] = {"id": "1.00", "note": "x"}
    settle.forms = {"1.0": stored, "1.00": stored}
    there, gone = settle(moved)
    assert gone == NetRow(AMOUNT, ("1.0",), existed=True, exists=False, group={"id": "1.0"})
    assert there == NetRow(AMOUNT, ("1.00",), existed=False, values=stored)


def test_an_updated_row_is_read_under_its_own_form(settle: Settling) -> None:
    settle.forms = {"1.0": {"id": "1.0", "note": "x"}}
    changed = Image(3, "U", 1, ("id",), None, [["1.0"]], ("note",))
    assert settle(changed) == [NetRow(AMOUNT, ("1.0",), existed=True, values={"note": "x"})]
    assert settle.asked == [("amount", [("1.0",)], {"id", "note"})]
    settle.forms = {"1.0": {"id": "1.00", "note": "x"}}
    with pytest.raises(CaptureMismatchError):
        settle(changed)
