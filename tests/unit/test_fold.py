"""Folding effects: what is left of many changes to a row, and which changes cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from oplog.entry import OpType
from oplog.errors import ReplayError, SchemaDriftError
from oplog.payload.codec import Effect
from oplog.payload.column_numbers import Numbers
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.replay.fold import Fold, TableFold
from oplog.replay.loader import print_column
from oplog.replay.type_target import TypeTarget
from oplog.replay.validity import FoldRules
from oplog.value import Kind, ValueCodec, Wire, codec_for, copy_field

pytestmark = pytest.mark.unit

WHOLE, PART = True, False
C, U, D = OpType.CREATE, OpType.UPDATE, OpType.DELETE


@dataclass
class Form:
    """A table as a fold sees it."""

    shape: Shape
    older: Sequence[Shape] = ()
    name: str = "public.item"
    names: tuple[str, ...] = field(init=False)
    key_names: tuple[str, ...] = field(init=False)
    codecs: Mapping[str, ValueCodec] = field(init=False)
    targets: Mapping[str, TypeTarget] = field(init=False)

    def __post_init__(self) -> None:
        self.names = self.shape.names
        self.key_names = self.shape.key_names
        self.codecs = self.shape.codecs
        shapes = sorted((*self.older, self.shape), key=lambda shape: shape.revision)
        self.targets = {"item": TypeTarget(self.shape, shapes)}


def make_shape(columns: Sequence[tuple[str, str]], *, stored: Sequence[Shape] = ()) -> Shape:
    """A revision of type `item`; the first column is the key."""
    declared = [
        DeclaredColumn(name, pg_type, codec_for(pg_type).kind, number == 0)
        for number, (name, pg_type) in enumerate(columns)
    ]
    return derive_shape(
        "item",
        declared,
        schema="public",
        table="item",
        aggregate="item/{id}",
        excluded={},
        stored=stored,
    )


ITEM = make_shape([("id", "integer"), ("name", "text"), ("size", "integer")])


def effect(
    kind: OpType, id: Wire, values: Mapping[str, Wire | None] | None = None, *, ordinal: int = 0
) -> Effect:
    """An effect on the row `id`; a create's values are completed with NULL."""
    written: dict[str, Wire | None] = dict(values or {})
    if kind is C:
        written = {"id": id, "name": None, "size": None, **written}
    return Effect(kind, ITEM, (id,), written, kind is C, ordinal)


def fold(*effects: Effect, shape: Shape = ITEM, older: Sequence[Shape] = ()) -> TableFold:
    """The net of effects at positions 1, 2, 3..., in a table of `shape`."""
    table = TableFold(Form(shape, older))
    whole = Fold({"item": table})
    for position, one in enumerate(effects, start=1):
        whole.add([one], position=position)
    return table


def test_create_is_a_whole_row() -> None:
    net = fold(effect(C, 1, {"name": "a"}))
    assert net.created == {(1,): ({"id": 1, "name": "a", "size": None}, ITEM.names, 1)}
    assert not net.gone
    assert not net.patched


def test_update_of_a_created_row_is_merged_and_null_is_a_value() -> None:
    net = fold(effect(C, 1, {"name": "a", "size": 3}), effect(U, 1, {"name": None}))
    assert net.created[1,] == ({"id": 1, "name": None, "size": 3}, ITEM.names, 2)
    assert not net.patched


def test_updates_of_an_unseen_row_are_one_patch() -> None:
    net = fold(effect(U, 1, {"name": "a"}), effect(U, 1, {"size": None, "name": "b"}))
    assert net.patched == {(1,): ({"name": "b", "size": None}, ("name", "size"), 2)}
    assert not net.created


def test_an_update_of_an_unseen_row_keeps_every_column_that_it_changed() -> None:
    net = fold(effect(U, 1, {"name": "a", "size": 2}))
    assert net.patched == {(1,): ({"name": "a", "size": 2}, ("name", "size"), 1)}


def test_a_patch_does_not_write_into_the_effect() -> None:
    first = effect(U, 1, {"name": "a"})
    fold(first, effect(U, 1, {"name": "b"}))
    assert first.values == {"name": "a"}


def test_delete_of_an_unseen_row_is_a_claim_with_its_position() -> None:
    net = fold(effect(U, 1, {"name": "a"}), effect(D, 1))
    assert net.gone == {(1,): 2}
    assert not net.patched


def test_a_row_that_came_and_went_leaves_no_trace() -> None:
    assert len(fold(effect(C, 1), effect(U, 1, {"size": 1}), effect(D, 1))) == 0


def test_a_replaced_row_is_deleted_and_created() -> None:
    net = fold(effect(D, 1), effect(C, 1, {"name": "new"}))
    assert net.gone == {(1,): 1}
    assert net.created[1,][0]["name"] == "new"
    again = fold(effect(D, 1), effect(C, 1), effect(D, 1))
    assert again.gone == {(1,): 1}
    assert not again.created


@pytest.mark.parametrize(
    ("effects", "what"),
    [
        ([effect(C, 1), effect(C, 1)], "creates a row that is already there"),
        ([effect(U, 1, {"size": 1}), effect(C, 1)], "creates a row that is already there"),
        ([effect(D, 1), effect(U, 1, {"size": 1})], "updates a row that is not there"),
        ([effect(D, 1), effect(D, 1)], "deletes a row that is not there"),
        ([effect(C, 2), effect(U, 1, {"id": 9})], "changes key column id in an update"),
    ],
)
def test_an_impossible_effect_is_an_alarm(effects: list[Effect], what: str) -> None:
    with pytest.raises(ReplayError, match=rf"position 2 {what}: public.item \(id=1\)"):
        fold(*effects)


def test_effects_of_one_record_are_folded_in_the_order_given() -> None:
    table = TableFold(Form(ITEM))
    moved = [effect(D, 1, ordinal=0), effect(C, 1, {"name": "moved"}, ordinal=1)]
    Fold({"item": table}).add(moved, position=11)
    assert table.gone == {(1,): 11}
    assert table.created[1,][2] == 11
    with pytest.raises(ReplayError, match="position 12 creates a row that is already there"):
        Fold({"item": TableFold(Form(ITEM))}).add([moved[1], moved[1]], position=12)


def test_clear_begins_a_batch_that_knows_nothing() -> None:
    table = TableFold(Form(ITEM))
    whole = Fold({"item": table})
    whole.add([effect(C, 1)], position=1)
    assert len(whole) == 1
    whole.clear()
    assert len(whole) == 0
    whole.add([effect(U, 1, {"size": 2})], position=2)
    assert set(table.patched) == {(1,)}


HERE = "1/16384"


def follow(
    old: Shape,
    columns: Sequence[tuple[str, str]],
    places: Mapping[str, int],
    change: SchemaChange | None = None,
) -> Shape:
    """The next revision of the same table, whose columns are in these places."""
    declared = [
        DeclaredColumn(name, pg_type, codec_for(pg_type).kind, number == 0)
        for number, (name, pg_type) in enumerate(columns)
    ]
    new = derive_shape(
        "item",
        declared,
        schema="public",
        table="item",
        aggregate="item",
        excluded={},
        stored=[old],
        numbers=Numbers(HERE, 7, places),
    )
    return replace(new, change=change or SchemaChange(previous=old.revision))


OLD = replace(
    make_shape([("id", "integer"), ("gone", "text"), ("name", "text")]),
    numbers=(Numbers(HERE, 7, {"id": 1, "gone": 2, "name": 3}),),
)


def test_rows_of_an_old_revision_are_read_by_field_number() -> None:
    new = follow(
        OLD,
        [("uid", "integer"), ("label", "text"), ("gone", "text")],
        {"uid": 1, "label": 3, "gone": 4},
    )
    created = Effect(C, OLD, (1,), {"id": 1, "gone": "x", "name": "seven"}, WHOLE, 0)
    alone = fold(created, shape=new, older=[OLD])
    assert alone.created[1,] == ({"uid": 1, "label": "seven"}, ("uid", "label"), 1)
    patch = Effect(U, new, (1,), {"gone": "y"}, PART, 0)
    net = fold(created, patch, shape=new, older=[OLD])
    assert net.created[1,][0] == {"uid": 1, "label": "seven", "gone": "y"}
    deleted = Effect(D, OLD, (2,), {}, PART, 0)
    assert fold(deleted, shape=new, older=[OLD]).gone == {(2,): 1}
    # And rows of a later one, by a table of before: its own column of that name is another one.
    later = Effect(C, new, (3,), {"uid": 3, "label": "l", "gone": "z"}, WHOLE, 0)
    back = fold(later, shape=OLD, older=[new])
    assert back.created[3,] == ({"id": 3, "name": "l"}, ("id", "name"), 1)


def test_rewritten_columns_are_left_out_and_come_with_a_refill() -> None:
    new = follow(
        OLD,
        [("id", "integer"), ("gone", "text"), ("name", "character varying")],
        {"id": 1, "gone": 2, "name": 3},
        SchemaChange(previous=1, rewritten=frozenset({3})),
    )
    created = Effect(C, OLD, (1,), {"id": 1, "gone": "x", "name": "seven"}, WHOLE, 0)
    refill = Effect(U, new, (1,), {"name": "sev"}, PART, 0, adopted=True)
    missing = Effect(U, new, (2,), {"name": "two"}, PART, 0, adopted=True)
    assert fold(created, shape=new, older=[OLD]).created[1,][0] == {"id": 1, "gone": "x"}
    net = fold(created, refill, missing, shape=new, older=[OLD])
    assert net.created[1,][0] == {"id": 1, "gone": "x", "name": "sev"}
    # A refill is of rows as they were found: one that the log never had is nobody's fault.
    assert net.doubtful == {(2,)}
    assert len(fold(refill, shape=OLD, older=[new])) == 0


def test_labels_are_followed_in_values_and_keys() -> None:
    def make(stored: Sequence[Shape], change: SchemaChange) -> Shape:
        columns = [
            DeclaredColumn("id", "mood", Kind.TEXT, primary_key=True, category="E"),
            DeclaredColumn("m", "mood", Kind.TEXT, primary_key=False, category="E"),
        ]
        shape = derive_shape(
            "item",
            columns,
            schema="public",
            table="item",
            aggregate=f"item {len(stored)}",
            excluded={},
            stored=stored,
        )
        return replace(shape, change=change)

    old = make([], SchemaChange())
    swapped = {"good": "bad", "bad": "good"}
    new = make([old], SchemaChange(previous=1, labels={1: swapped, 2: swapped}))
    created = Effect(C, old, ("good",), {"id": "good", "m": "bad"}, WHOLE, 0)
    net = fold(created, shape=new, older=[old])
    assert net.created["bad",][0] == {"id": "bad", "m": "good"}
    assert fold(replace(created, shape=new), shape=old, older=[new]).created["bad",][0] == {
        "id": "bad",
        "m": "good",
    }


def test_rows_from_before_all_were_logged_anew_do_not_count() -> None:
    new = follow(
        OLD,
        [("id", "integer"), ("gone", "text"), ("name", "text")],
        {"id": 1, "gone": 2, "name": 4},
        SchemaChange(previous=1, readopted=True),
    )
    created = Effect(C, OLD, (1,), {"id": 1, "gone": "x", "name": "seven"}, WHOLE, 0)
    assert len(fold(created, created, shape=new, older=[OLD])) == 0
    again = Effect(C, new, (1,), {"id": 1, "gone": "", "name": ""}, WHOLE, 0, adopted=True)
    assert list(fold(created, again, shape=new, older=[OLD]).adopted) == [(1,)]
    # Before that moment, those rows are not there yet.
    assert list(fold(created, again, shape=OLD, older=[new]).created) == [(1,)]


def test_another_primary_key_is_drift() -> None:
    old = make_shape([("uid", "integer"), ("name", "text")])
    new = make_shape([("id", "integer"), ("name", "text")], stored=[old])
    with pytest.raises(SchemaDriftError, match=r"primary key \(id\).*\(uid\)") as caught:
        fold(Effect(D, old, (1,), {}, PART, 0), shape=new, older=[old])
    assert "op.replace_type('item', reason=...)" in str(caught.value.hint)


def test_nan_is_one_key() -> None:
    shape = make_shape([("id", "double precision"), ("name", "text")])
    created = Effect(C, shape, (float("nan"),), {"id": math.nan, "name": "a"}, WHOLE, 0)
    deleted = Effect(D, shape, (float("nan"),), {}, PART, 0)
    assert len(fold(created, deleted, shape=shape)) == 0


@pytest.mark.parametrize(
    ("pg_type", "values"),
    [
        ("text", ["plain", "", None, "tab\there", "back\\slash", r"\N", r"\.", "é\u00a0"]),
        ("text", ["plain", "", "all printable"]),
        ("text", ["plain", "new\nline"]),
        ("integer", [1, None, -5]),
        ("integer", [1, 2, 3]),
        ("boolean", [True, None, False]),
        ("double precision", [0.1, -0.0, math.inf, None]),
        ("bytea", [b"", b"\x00\xff", None]),
    ],
)
def test_columns_print_as_single_fields_do(pg_type: str, values: list[Wire | None]) -> None:
    codec = codec_for(pg_type)
    expected = [copy_field(None if v is None else codec.to_text(v)) for v in values]
    assert list(print_column(codec, values)) == expected
    assert codec.kind in Kind


# -- rows that are being adopted --------------------------------------------------------------


def adopted(id: Wire, values: Mapping[str, Wire | None] | None = None) -> Effect:
    """A row that was there when the log met it."""
    return replace(effect(C, id, values), adopted=True)


def fold_adoption(*effects: Effect, end: float = math.inf) -> TableFold:
    """The net of effects at positions 1, 2, 3..., with an adoption that ends at `end`."""
    table = TableFold(Form(ITEM))
    whole = Fold({"item": table}, rules=FoldRules({"item": end}))
    for position, one in enumerate(effects, start=1):
        whole.add([one], position=position)
    return table


def test_an_adopted_row_takes_the_place_of_whatever_was_known() -> None:
    for before in ([], [effect(C, 1)], [effect(U, 1, {"size": 1})], [effect(C, 1), adopted(1)]):
        net = fold_adoption(*before, adopted(1, {"name": "a"}))
        position = len(before) + 1
        assert net.adopted == {(1,): ({"id": 1, "name": "a", "size": None}, ITEM.names, position)}
        assert (net.created, net.patched, net.doubtful) == ({}, {}, set())
        assert len(net) == 1


def test_an_adopted_row_is_changed_like_any_other() -> None:
    net = fold_adoption(adopted(1, {"name": "a"}), effect(U, 1, {"size": 4}), end=2)
    assert net.adopted[1,][0] == {"id": 1, "name": "a", "size": 4}
    assert not net.patched
    with pytest.raises(ReplayError, match="position 2 creates a row that is already there"):
        fold_adoption(adopted(1), effect(C, 1), end=2)


def test_an_adopted_row_that_goes_may_leave_another_behind() -> None:
    # The table may have had a row under the key, which the adopted one would have replaced.
    net = fold_adoption(adopted(1), effect(D, 1), end=2)
    assert (net.gone, net.doubtful, net.adopted) == ({(1,): 2}, {(1,)}, {})
    with pytest.raises(ReplayError, match="deletes a row that is not there"):
        fold_adoption(adopted(1), effect(D, 1), effect(D, 1), end=2)
    replaced = fold_adoption(effect(D, 1), adopted(1), effect(D, 1), end=0)
    assert (replaced.gone, replaced.doubtful) == ({(1,): 1}, set())


def test_an_update_of_a_new_row_says_nothing_about_an_adopted_one_under_its_key() -> None:
    # Adopted, deleted, created and updated: the table has no row to delete in the first batch.
    net = fold_adoption(adopted(1), effect(D, 1), effect(C, 1), effect(U, 1, {"size": 4}), end=0)
    assert (net.gone, net.doubtful) == ({(1,): 2}, {(1,)})
    assert net.created[1,][0]["size"] == 4


def test_before_the_end_of_an_adoption_rows_need_not_be_known() -> None:
    net = fold_adoption(effect(U, 1, {"size": 1}), effect(D, 2))
    assert (list(net.patched), net.gone) == ([(1,)], {(2,): 2})
    assert net.doubtful == {(1,), (2,)}
    # A row that is gone is not known any more.
    again = fold_adoption(effect(D, 2), effect(D, 2), effect(U, 2, {"size": 1}))
    assert (again.gone, again.patched) == ({(2,): 1}, {})


def test_after_the_end_of_an_adoption_rows_must_be_known() -> None:
    net = fold_adoption(effect(U, 1, {"size": 1}), effect(D, 2), end=1)
    assert net.doubtful == set()
    # Once updated after the end, a row must have been there all the time.
    late = fold_adoption(effect(U, 1, {"size": 1}), effect(U, 1, {"size": 2}), end=2)
    assert (late.patched[1,][2], late.doubtful) == (2, set())
    gone = fold_adoption(effect(U, 1, {"size": 1}), effect(D, 1), end=2)
    assert (gone.gone, gone.doubtful) == ({(1,): 2}, set())
    doubtful = fold_adoption(effect(U, 1, {"size": 1}), effect(D, 1), end=3)
    assert (doubtful.gone, doubtful.doubtful) == ({(1,): 2}, {(1,)})


def test_leniency_is_for_its_type_alone_and_not_for_creates() -> None:
    with pytest.raises(ReplayError, match="position 2 creates a row that is already there"):
        fold_adoption(effect(C, 1), effect(C, 1))
    table = TableFold(Form(ITEM))
    Fold({"item": table}, rules=FoldRules({"other": math.inf})).add([effect(D, 1)], position=1)
    assert not table.doubtful


def test_the_next_batch_knows_no_adopted_rows() -> None:
    net = fold_adoption(adopted(1), effect(D, 2))
    net.clear()
    assert len(net) == 0
    assert not net.doubtful


# -- columns that DDL rewrote -----------------------------------------------------------------


def refilled(id: Wire, values: Mapping[str, Wire | None]) -> Effect:
    """Columns that were logged again."""
    return replace(effect(U, id, values), adopted=True)


def test_columns_that_were_logged_again_are_those_of_the_row() -> None:
    known = fold(effect(C, 1, {"name": "a"}), refilled(1, {"size": 4}))
    assert known.created[1,] == ({"id": 1, "name": "a", "size": 4}, ITEM.names, 2)
    earlier = fold(effect(U, 1, {"name": "a"}), refilled(1, {"size": 4}))
    assert earlier.patched[1,][0] == {"name": "a", "size": 4}
    # It was known before, and has to be there.
    assert earlier.doubtful == set()


def test_columns_of_a_row_that_the_log_does_not_know_are_ignored() -> None:
    net = fold(refilled(1, {"size": 4}))
    assert (net.patched[1,][0], net.doubtful) == ({"size": 4}, {(1,)})
    gone = fold(effect(C, 1), effect(D, 1), refilled(1, {"size": 4}))
    assert gone.doubtful == {(1,)}
    replaced = fold(effect(D, 1), refilled(1, {"size": 4}))
    assert (replaced.gone, replaced.patched) == ({(1,): 1}, {})


def test_a_row_may_be_created_after_its_columns_were_logged_again() -> None:
    """One transaction changes the table, logs its columns again, and its own rows at the end."""
    net = fold(refilled(1, {"size": 4}), effect(C, 1, {"size": 5}))
    assert net.created[1,][0] == {"id": 1, "name": None, "size": 5}
    assert (net.patched, net.doubtful) == ({}, set())
    with pytest.raises(ReplayError, match="position 3 creates a row that is already there"):
        fold(effect(U, 1, {"name": "a"}), refilled(1, {"size": 4}), effect(C, 1))
