"""Operations given by hand: the certain ones become effects, the others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from oplog.entry import Operation, OpType
from oplog.errors import EntryError, UnknownTypeError
from oplog.payload.effect import Effect, effect_to_operation, operation_to_effect
from oplog.value import Wire
from tests.bound import make_shape

pytestmark = pytest.mark.unit

LINE = make_shape(
    [("a", "integer"), ("x", "numeric(9,2)"), ("b", "integer"), ("note", "text")],
    key=["a", "b"],
    name="line",
)
Values = Mapping[str, Wire | None]
KEY = {"b": 2, "a": 1}
FIELDS = {"note": None, "x": Decimal("1.50")}


def convert(operation: Operation, *, ordinal: int = 4) -> Effect:
    return operation_to_effect(operation, LINE, ordinal=ordinal)


def test_a_create_says_every_column_in_the_shapes_order() -> None:
    effect = convert(Operation.create("line", key=KEY, fields=FIELDS))
    values: Values = {"a": 1, "x": "1.50", "b": 2, "note": None}
    assert effect == Effect(OpType.CREATE, LINE, (1, 2), values, complete=True, ordinal=4)
    assert effect.adopted is False
    assert list(effect.values) == ["a", "x", "b", "note"]


def test_an_update_says_what_it_writes() -> None:
    effect = convert(Operation.update("line", key=KEY, fields={"note": "n", "a": 1}))
    values: Values = {"note": "n", "a": 1}
    assert effect == Effect(OpType.UPDATE, LINE, (1, 2), values, complete=False, ordinal=4)


def test_a_delete_says_nothing_but_the_key() -> None:
    operation = Operation(OpType.DELETE, "line", KEY, {"note": "not written"})
    assert convert(operation) == Effect(OpType.DELETE, LINE, (1, 2), {}, complete=False, ordinal=4)


@pytest.mark.parametrize(
    ("key", "fields", "match"),
    [
        ({"a": 1}, {"note": "n"}, r"has key \['a'\], the primary key is \['a', 'b'\]"),
        ({**KEY, "x": 1}, {"note": "n"}, "has key"),
        ({"a": 1, "b": None}, {"note": "n"}, "NULL in its key"),
        (KEY, {}, "writes no column"),
        (KEY, {"a": 3, "note": "n"}, "writes another: a differs"),
        (KEY, {"a": None, "b": 5}, "writes another: a, b differs"),
        (KEY, {"x": object()}, "a object has no certain stored form"),
    ],
)
def test_an_uncertain_update_is_refused(
    key: dict[str, Any], fields: dict[str, Any], match: str
) -> None:
    with pytest.raises(EntryError, match=match):
        convert(Operation.update("line", key=key, fields=fields))


def test_a_create_that_leaves_a_column_out_is_refused() -> None:
    with pytest.raises(EntryError, match=r"leaves out \['x', 'note'\]"):
        convert(Operation.create("line", key=KEY, fields={}))


def test_a_column_the_type_does_not_have_is_refused() -> None:
    with pytest.raises(UnknownTypeError, match="no column 'colour'"):
        convert(Operation.update("line", key=KEY, fields={"colour": 1}))


def test_an_effect_is_told_in_natural_values() -> None:
    values = {"x": "1.50", "note": None, "b": 2}
    effect = Effect(OpType.UPDATE, LINE, (1, 2), values, complete=False, ordinal=0)
    told = effect_to_operation(effect)
    fields = {"x": Decimal("1.50"), "note": None, "b": 2}
    assert told == Operation(OpType.UPDATE, "line", {"a": 1, "b": 2}, fields)
    assert isinstance(told.fields["x"], Decimal)


def test_a_key_of_null_is_told_as_none() -> None:
    effect = Effect(OpType.DELETE, LINE, (1, None), {}, complete=False, ordinal=0)
    assert effect_to_operation(effect).key == {"a": 1, "b": None}


def test_a_key_in_its_wire_form_is_told_in_its_natural_one() -> None:
    shape = make_shape([("id", "numeric(9,2)")], key=["id"], name="amount")
    effect = Effect(OpType.DELETE, shape, ("1.50",), {}, complete=False, ordinal=0)
    (value,) = effect_to_operation(effect).key.values()
    assert isinstance(value, Decimal)


def test_null_stays_null_whatever_the_type() -> None:
    shape = make_shape([("id", "numeric(9,2)"), ("x", "numeric(9,2)")], key=["id"], name="amount")
    effect = Effect(OpType.UPDATE, shape, (None,), {"x": None}, complete=False, ordinal=0)
    told = effect_to_operation(effect)
    assert (told.key, told.fields) == ({"id": None}, {"x": None})
