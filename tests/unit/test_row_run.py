"""Runs of rows: many effects of one kind, written column by column and read back the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import OpType
from oplog.errors import DecodeError, EntryError
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.row_run import LEAST_ROWS, MAX_RUN_ROWS, split_runs
from oplog.payload.shape import Shape
from tests.bound import make_shape
from tests.unit.test_block import Types

pytestmark = pytest.mark.unit

C, U, D = OpType.CREATE, OpType.UPDATE, OpType.DELETE
COLUMNS = [
    ("id", "bigint"),
    ("part", "text"),
    ("note", "text"),
    ("ok", "boolean"),
    ("data", "bytea"),
    ("x", "double precision"),
    ("y", "real"),
]
ITEM = make_shape(COLUMNS, key=["id", "part"])


def encode(effects: list[Effect], **more: Any) -> Any:
    return record_pb2.Payload.FromString(PayloadCodec().encode(effects, **more))


def decode(payload: Any, shape: Shape = ITEM, **more: Any) -> list[Effect]:
    return PayloadCodec().decode(payload.SerializeToString(), Types(shape), **more)


def create(number: int, *, ordinal: int | None = None, place: int = 0, **values: Any) -> Effect:
    row: dict[str, Any] = dict.fromkeys(ITEM.names) | {"id": number, "part": "p"} | values
    key = row["id"], row["part"]
    order = number if ordinal is None else ordinal
    return Effect(C, ITEM, key, row, complete=True, ordinal=order, place=place)


def update(number: int, **values: Any) -> Effect:
    return Effect(U, ITEM, (number, "p"), values, complete=False, ordinal=number)


def delete(number: int) -> Effect:
    return Effect(D, ITEM, (number, "p"), {}, complete=False, ordinal=number)


def test_rows_under_other_keys_are_left_out() -> None:
    payload = encode([create(number) for number in range(9)])
    assert decode(payload, find_keys=lambda _: [(7, "p")]) == [create(7)]


def test_from_so_many_rows_on_there_is_a_run() -> None:
    few = encode([create(number) for number in range(LEAST_ROWS - 1)])
    assert (len(few.operations), len(few.runs)) == (LEAST_ROWS - 1, 0)
    (run,) = encode([create(number) for number in range(LEAST_ROWS)]).runs
    assert (run.row_count, run.complete, run.keys, list(run.fields)) == (LEAST_ROWS, True, b"", [])
    assert not run.ordinal_steps


def test_a_run_is_of_one_kind_and_of_the_same_columns() -> None:
    effects = [
        *(create(number) for number in range(4)),
        *(update(number, note="n") for number in range(4, 9)),
        *(update(number, ok=True) for number in range(9, 14)),
        *(update(number, note=None, ok=True) for number in range(14, 18)),
        *(delete(number) for number in range(18, 23)),
        update(23, data=b"alone"),
    ]
    payload = encode(effects)
    assert [run.row_count for run in payload.runs] == [4, 5, 5, 4, 5]
    assert len(payload.operations) == 1
    assert decode(payload) == effects


def test_a_run_has_what_is_alike_wherever_it_stands() -> None:
    effects: list[Effect] = []
    for number in range(5):
        effects += [
            create(number, ordinal=3 * number),
            replace(update(number, note="n", ok=True), ordinal=3 * number + 1),
            replace(update(number, ok=None), ordinal=3 * number + 2),
        ]
    effects += [replace(delete(n), ordinal=n) for n in (15, 16, 17)]
    payload = encode(effects)
    assert [run.row_count for run in payload.runs] == [5, 5, 5]
    assert [run.first_ordinal for run in payload.runs] == [0, 1, 2]
    assert all(list(run.ordinal_steps) == [3, 3, 3, 3] for run in payload.runs)
    assert [operation.ordinal for operation in payload.operations] == [15, 16, 17]
    assert decode(payload) == effects


def test_another_kind_type_or_extent_is_another_group() -> None:
    whole = [replace(create(n), kind=U) for n in range(2)]
    twin = make_shape(COLUMNS, key=["id", "part"])
    parts = [
        [create(0), create(1)],
        whole,
        [replace(one, complete=False) for one in whole],
        [replace(one, complete=False, shape=twin) for one in whole],
        [replace(one, complete=False, shape=twin, values={"ok": True}) for one in whole],
    ]
    effects = [effect for part in parts for effect in part]
    assert [list(part) for part, _ in split_runs(effects)] == parts
    mixed = [part[0] for part in parts] + [part[1] for part in parts]
    assert [list(part) for part, _ in split_runs(mixed)] == parts
    for one, other in ((whole[0], parts[2][0]), (create(0), replace(create(1), shape=twin))):
        for effects in ([one, other] * 2, [other, one] * 2):
            assert [list(part) for part, _ in split_runs(effects)] == [
                effects[::2],
                effects[1::2],
            ]


def test_the_columns_of_complete_rows_may_be_in_any_order() -> None:
    turned = [
        replace(one, values=dict(reversed(list(one.values.items()))))
        for one in map(create, range(2, 4))
    ]
    (run,) = encode([create(0), create(1), *turned]).runs
    assert run.row_count == 4
    assert decode(encode([create(0), create(1), *turned])) == [create(n) for n in range(4)]


def test_nulls_are_where_they_were() -> None:
    for count in (LEAST_ROWS, 7, 8, 9, 16):
        effects = [create(n, note=None if n % 3 else "n", ok=n > 3 or None) for n in range(count)]
        payload = encode(effects)
        assert decode(payload) == effects
        assert {len(null.rows) for null in payload.runs[0].nulls} == {(count + 7) // 8}


def test_a_key_is_written_unless_complete_creates_hold_it() -> None:
    """An update that writes every column may change the key; some creates lack columns."""
    moved = [replace(create(n), kind=U, key=(n + 9, "p")) for n in range(4)]
    partly = [replace(create(n), values={"note": "n"}, complete=False) for n in range(4, 8)]
    payload = encode([*moved, *partly])
    assert all(run.keys for run in payload.runs)
    assert decode(payload) == [*moved, *partly]


def test_rows_without_a_key_are_no_run() -> None:
    keyless = make_shape([("a", "integer")], key=[])
    effects = [Effect(C, keyless, (), {"a": n}, complete=True, ordinal=n) for n in range(4)]
    assert [is_run for _, is_run in split_runs(effects)] == [False]
    nameless = [delete(n) for n in range(4)]
    for place in (0, 3):
        strange = [*nameless]
        strange[place] = replace(strange[place], key=(7, None))
        assert [is_run for _, is_run in split_runs(strange)] == [False]


def test_ordinals_that_do_not_follow_one_another_are_kept() -> None:
    for first in (0, 3):
        ordinals = [first + step for step in (0, 1, 6, 17, 18)]
        effects = [create(number, ordinal=ordinal) for number, ordinal in enumerate(ordinals)]
        (run,) = encode(effects).runs
        assert (run.first_ordinal, list(run.ordinal_steps)) == (first, [1, 5, 11, 1])
        assert decode(encode(effects)) == effects


def test_ordinals_that_go_back_are_kept() -> None:
    """Rows of a run are by aggregate, whose names may sort in another order."""
    effects = [create(n, ordinal=ordinal, place=n) for n, ordinal in enumerate([7, 2, 0, 9])]
    (run,) = encode(effects).runs
    assert (run.first_ordinal, list(run.ordinal_steps)) == (7, [-5, -2, 9])
    assert decode(encode(effects)) == [effects[n] for n in (2, 1, 0, 3)]


def test_rows_of_one_aggregate_name_it_once() -> None:
    effects = [create(n, place=6) for n in range(5)]
    (run,) = encode(effects, first=2).runs
    assert (run.first_aggregate, run.one_aggregate) == (4, True)
    assert not run.aggregate_steps
    assert decode(encode(effects, first=2), first=2) == effects


def test_rows_of_aggregates_that_follow_one_another_name_the_first() -> None:
    effects = [create(n, place=6 + n) for n in range(5)]
    (run,) = encode(effects, first=6).runs
    assert (run.first_aggregate, run.one_aggregate) == (0, False)
    assert not run.aggregate_steps
    assert decode(encode(effects, first=6), first=6) == effects
    assert [one.place for one in decode(encode(effects, first=6))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("places", [[0, 0, 0, 1], [0, 1, 2, 4], [3, 3, 4, 9], [5, 2, 2, 2]])
def test_places_that_do_not_follow_one_another_are_kept(places: list[int]) -> None:
    effects = [create(n, place=place) for n, place in enumerate(places)]
    (run,) = encode(effects).runs
    assert (run.first_aggregate, run.one_aggregate) == (places[0], False)
    assert list(run.aggregate_steps) == [b - a for a, b in pairwise(places)]
    assert decode(encode(effects)) == effects
    found = decode(encode(effects), find_keys=lambda _: [(2, "p")])
    assert found == [effects[2]]


def test_a_thousand_rows_take_less_than_as_operations() -> None:
    effects = [create(number, note=f"note {number}") for number in range(1000)]
    run = encode(effects)
    alone = sum(encode([effect]).operations[0].ByteSize() + 2 for effect in effects)
    assert run.ByteSize() * 2 < alone


def test_a_message_of_the_application_s_own_has_no_runs() -> None:
    own = replace(ITEM, message_name="shop.Item")
    effects = [replace(create(number), shape=own) for number in range(9)]
    assert [is_run for _, is_run in split_runs(effects)] == [False]
    assert [is_run for _, is_run in split_runs([create(n) for n in range(9)])] == [True]


def test_more_rows_than_runs_may_have_are_operations() -> None:
    effects = [delete(0)] * MAX_RUN_ROWS + [update(1, note="n")] * LEAST_ROWS
    parts = [(len(part), is_run) for part, is_run in split_runs(effects)]
    assert parts == [(MAX_RUN_ROWS, True), (LEAST_ROWS, False)]


def test_what_is_no_run_does_not_count_against_the_limit() -> None:
    parts = [[update(0, note="n")] * 3, [delete(0)] * MAX_RUN_ROWS]
    assert [is_run for _, is_run in split_runs([*parts[0], *parts[1]])] == [False, True]


def test_nothing_is_in_no_parts() -> None:
    assert list(split_runs([])) == []


def test_a_value_that_does_not_fit() -> None:
    effects = [create(number, note=7) for number in range(4)]
    with pytest.raises(EntryError, match="does not fit its field"):
        encode(effects)


def _claim(rows: int) -> Callable[[Any], None]:
    def change(run: Any) -> None:
        run.row_count = rows

    return change


def _clear(name: str) -> Callable[[Any], None]:
    return lambda run: run.ClearField(name)


def _begin(what: str, first: int, *steps: int) -> Callable[[Any], None]:
    def change(run: Any) -> None:
        run.one_aggregate = False
        setattr(run, f"first_{what}", first)
        getattr(run, f"{what}_steps").extend(steps)

    return change


DAMAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "one row more": (_claim(6), "NULL|claims 6"),
    "one row less": (_claim(4), "NULL|claims 4|others"),
    "no row": (_claim(0), "has no row"),
    "no kind": (_clear("kind"), "its kind is 0"),
    "another type": (
        lambda run: setattr(run, "type", 1),
        "^a run of rows has type index 1 of 1",
    ),
    "no keys": (_clear("keys"), "claims 5 rows but has 0"),
    "no values": (_clear("values"), "NULL|claims 5"),
    "no columns": (lambda run: setattr(run, "values", b"\x08"), "cannot be parsed"),
    "no fields": (_clear("fields"), "not each named once"),
    "a field twice": (lambda run: run.fields.append(run.fields[0]), "not each named once"),
    "an unknown field": (lambda run: run.fields.append(99), "has field 99"),
    "another field": (lambda run: run.fields.__setitem__(1, 5), "columns that it does not name"),
    "complete": (lambda run: setattr(run, "complete", True), "complete and names fields"),
    "no nulls": (_clear("nulls"), "claims 5 rows but has 3"),
    "nulls of others": (lambda run: setattr(run.nulls[0], "field", 5), "not each named once"),
    "more nulls": (lambda run: setattr(run.nulls[0], "rows", b"\x1f"), "values where it has NULL"),
    "longer nulls": (lambda run: setattr(run.nulls[0], "rows", b"\x05\x00"), "bits for others"),
    "nulls behind": (lambda run: setattr(run.nulls[0], "rows", b"\x25"), "bits for others"),
    "few steps": (lambda run: run.ordinal_steps.append(1), "one step to an ordinal for each row"),
    "steps back": (lambda run: run.ordinal_steps.extend([1, 1, -3, 5]), "ordinal is out of range"),
    "a far ordinal": (_begin("ordinal", 2**32 - 4), "ordinal is out of range"),
    "a far step": (_begin("ordinal", 2**31, 2**31 - 1, 1, 0, 0), "ordinal is out of range"),
    "few places": (
        _begin("aggregate", 0, 1, 1, 1),
        "one step to an aggregate for each row",
    ),
    "places back": (_begin("aggregate", 1, 1, -3, 1, 9), "aggregate is out of range"),
    "a far place": (_begin("aggregate", 2**32 - 4), "aggregate is out of range"),
    "a far place step": (
        _begin("aggregate", 2**31, 2**31 - 1, 1, 0, 0),
        "aggregate is out of range",
    ),
    "one place and steps": (
        lambda run: run.aggregate_steps.extend([1] * 4),
        "of one aggregate and has steps",
    ),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_run_that_says_nonsense_is_refused(damage: Callable[[Any], None], named: str) -> None:
    notes = [None, "a", None, "b", "c"]
    payload = encode([update(n, note=note, ok=True) for n, note in enumerate(notes)])
    (run,) = payload.runs
    damage(run)
    with pytest.raises(DecodeError, match=named):
        decode(payload)


def test_the_last_numbers_that_operations_can_hold_are_read() -> None:
    payload = encode([delete(number) for number in range(4)])
    (run,) = payload.runs
    run.one_aggregate, run.first_aggregate, run.first_ordinal = False, 2**32 - 4, 2**32 - 4
    found = decode(payload, first=9)
    assert [one.ordinal for one in found] == [2**32 - n for n in (4, 3, 2, 1)]
    assert [one.place for one in found] == [2**32 + 9 - n for n in (4, 3, 2, 1)]
    run.aggregate_steps.extend([-(2**31), -(2**31) + 4, 2**31 - 1])
    assert [one.place for one in decode(payload)] == [2**32 - 4, 2**31 - 4, 0, 2**31 - 1]


def test_runs_that_claim_too_many_rows_are_refused_before_any_is_decoded() -> None:
    payload = encode([delete(number) for number in range(4)])
    payload.runs.append(payload.runs[0])
    payload.runs[1].row_count = MAX_RUN_ROWS
    with pytest.raises(DecodeError, match=f"claim {MAX_RUN_ROWS + 4} rows"):
        decode(payload)
    payload.runs[1].row_count = MAX_RUN_ROWS - 4
    with pytest.raises(DecodeError, match="but has 4"):
        decode(payload)


@pytest.mark.parametrize("bits", [b"\x01", b"\x0f"])
def test_a_key_that_is_null_is_refused(bits: bytes) -> None:
    payload = encode([create(number) for number in range(4)])
    (run,) = payload.runs
    run.nulls.add(field=ITEM.by_name["part"].number, rows=bits)
    values: Any = PayloadCodec().find_run_codec(ITEM)._columns.FromString(run.values)
    del values.column_2[: bits[0].bit_count()]
    run.values = values.SerializeToString()
    with pytest.raises(DecodeError, match="a row has no key"):
        decode(payload)


def test_a_run_of_a_type_without_a_key_is_refused() -> None:
    keyless = replace(ITEM, columns=tuple(replace(c, primary_key=False) for c in ITEM.columns))
    payload = encode([create(number) for number in range(4)])
    with pytest.raises(DecodeError, match="a row has no key"):
        decode(payload, keyless)
