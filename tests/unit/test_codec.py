"""Payloads: what is written comes back, and bytes that say nonsense are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import OpType
from oplog.errors import DecodeError, EntryError, UnknownTypeError
from oplog.payload.codec import Effect, PayloadCodec, RowCodec
from oplog.payload.shape import Shape
from tests.bound import make_shape

pytestmark = pytest.mark.unit

C, U, D = OpType.CREATE, OpType.UPDATE, OpType.DELETE
PLAIN = make_shape([("id", "integer"), ("a", "text"), ("b", "text")], key=["id"], name="plain")
LINE = make_shape([("a", "integer"), ("x", "text"), ("b", "integer")], key=["a", "b"], name="line")
SINGLE = make_shape([("id", "text")], key=["id"], name="single")
KEYLESS = make_shape([("a", "integer"), ("b", "integer")], key=[], name="keyless")


@dataclass
class Types:
    """A log that knows these types."""

    shapes: Sequence[Shape] = field(default=(PLAIN, LINE, SINGLE, KEYLESS))

    def find_shape(self, type_name: str, revision: int) -> Shape:
        for shape in self.shapes:
            if (shape.type_name, shape.revision) == (type_name, revision):
                return shape
        raise UnknownTypeError(type_name)

    @property
    def latest(self) -> dict[str, Shape]:
        return {shape.type_name: shape for shape in self.shapes}


def encode(*effects: Effect) -> bytes:
    return PayloadCodec().encode(effects)


def decode(payload: bytes, types: Types | None = None) -> list[Effect]:
    return PayloadCodec().decode(payload, types or Types())


def parse(payload: bytes) -> Any:
    return record_pb2.Payload.FromString(payload)


EFFECTS = [
    Effect(C, PLAIN, (1,), {"id": 1, "a": "x", "b": None}, complete=True, ordinal=3),
    Effect(C, PLAIN, (0,), {"id": 0, "a": "", "b": ""}, complete=True, ordinal=4),
    Effect(U, PLAIN, (1,), {"a": None, "b": ""}, complete=False, ordinal=5),
    Effect(U, PLAIN, (0,), {"id": 0, "b": "y"}, complete=False, ordinal=6),
    Effect(D, PLAIN, (1,), {}, complete=False, ordinal=7),
    Effect(C, LINE, (1, 0), {"a": 1, "x": None, "b": 0}, complete=True, ordinal=8),
    Effect(U, LINE, (0, 2), {"x": "x"}, complete=False, ordinal=9),
    Effect(U, LINE, (0, 0), {"a": 5, "x": None, "b": 6}, complete=True, ordinal=10),
    Effect(C, SINGLE, ("key",), {"id": "key"}, complete=True, ordinal=11),
    Effect(C, KEYLESS, (), {"a": 1, "b": None}, complete=True, ordinal=12),
    Effect(C, PLAIN, (4,), {"id": 4, "b": None}, complete=False, ordinal=13),
    Effect(D, SINGLE, ("",), {}, complete=False, ordinal=14),
]


@pytest.mark.parametrize(
    "effect", EFFECTS, ids=[f"{e.kind.name} {e.shape.type_name} {e.ordinal}" for e in EFFECTS]
)
def test_an_effect_comes_back(effect: Effect) -> None:
    assert decode(encode(effect)) == [effect]


@pytest.mark.parametrize("effect", EFFECTS[:6], ids=lambda e: f"{e.kind.name} {e.ordinal}")
def test_an_effect_comes_back_with_its_place(effect: Effect) -> None:
    there = replace(effect, place=7)
    payload = PayloadCodec().encode([there], first=5)
    assert [operation.aggregate for operation in parse(payload).operations] == [2]
    assert PayloadCodec().decode(payload, Types(), first=5) == [there]
    assert PayloadCodec().decode(payload, Types()) == [replace(effect, place=2)]


def test_all_of_them_come_back_in_order() -> None:
    payload = encode(*EFFECTS)
    assert decode(payload) == EFFECTS
    assert [use.name for use in parse(payload).types] == ["plain", "line", "single", "keyless"]
    assert [use.revision for use in parse(payload).types] == [1, 1, 1, 1]


def test_effects_come_back_by_ordinal() -> None:
    """However they were sorted: a part has them by aggregate."""
    by_place = [replace(effect, place=n) for n, effect in enumerate(reversed(EFFECTS))]
    found = decode(encode(*by_place))
    assert found == by_place[::-1]
    assert [effect.place for effect in found] == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_a_shape_that_is_equal_is_another_use() -> None:
    again = make_shape([("id", "text")], key=["id"], name="single")
    effects = [Effect(D, shape, ("k",), {}, complete=False, ordinal=0) for shape in (SINGLE, again)]
    assert [operation.type for operation in parse(encode(*effects)).operations] == [0, 1]


def test_only_what_is_written_is_on_the_wire() -> None:
    create, update, delete = parse(encode(EFFECTS[0], EFFECTS[2], EFFECTS[4])).operations
    assert (create.key, update.key != b"", delete.key != b"") == (b"", True, True)
    assert (list(create.null_fields), list(update.null_fields)) == ([3], [2])
    assert delete.row == b""
    assert not any(o.default_fields for o in (create, update, delete))


def test_defaults_of_fields_without_presence_are_named() -> None:
    shape = _without_presence()
    effects = [
        Effect(U, shape, (0,), {"a": "", "b": "y"}, complete=False, ordinal=0),
        Effect(U, shape, (7,), {"b": ""}, complete=False, ordinal=1),
        Effect(U, shape, (7,), {"a": None, "b": None}, complete=False, ordinal=2),
        Effect(C, shape, (0,), {"id": 0, "a": "", "b": None}, complete=True, ordinal=3),
        Effect(C, shape, (0,), {"id": 0, "b": ""}, complete=False, ordinal=4),
    ]
    payload = encode(*effects)
    assert decode(payload, Types([shape])) == effects
    operations = sorted(parse(payload).operations, key=lambda operation: int(operation.ordinal))
    first, second, third, fourth, fifth = operations
    assert list(first.default_fields) == [2]
    assert list(second.default_fields) == [3]
    assert list(third.default_fields) == []
    assert list(fourth.default_fields) == [1, 2]
    assert list(fifth.default_fields) == [1, 3]
    assert list(third.null_fields) == [2, 3]
    assert first.key == b""


def test_columns_may_have_other_names_than_their_fields() -> None:
    shape = make_shape(
        [("Clear", "integer"), ("big id", "bigint"), ("note", "text")], key=["big id"], name="odd"
    )
    assert [column.field for column in shape.columns] == ["column_1", "column_2", "note"]
    effects = [
        Effect(C, shape, (1,), {"Clear": 0, "big id": 1, "note": None}, complete=True, ordinal=0),
        Effect(U, shape, (1,), {"Clear": None, "note": "n"}, complete=False, ordinal=1),
        Effect(D, shape, (1,), {}, complete=False, ordinal=2),
    ]
    payload = encode(*effects)
    assert decode(payload, Types([shape])) == effects
    assert [list(o.null_fields) for o in parse(payload).operations] == [[3], [1], []]


def test_no_column_need_have_the_name_of_its_field() -> None:
    shape = make_shape([("Big", "integer"), ("a b", "text")], key=["Big"], name="odd")
    effect = Effect(C, shape, (1,), {"Big": 1, "a b": "x"}, complete=True, ordinal=0)
    assert decode(encode(effect), Types([shape])) == [effect]


def test_a_message_may_track_presence_of_some_fields_only() -> None:
    shape = _without_presence(but="b")
    effects = [
        Effect(U, shape, (7,), {"a": "", "b": ""}, complete=False, ordinal=0),
        Effect(C, shape, (0,), {"id": 0, "a": "", "b": ""}, complete=True, ordinal=0),
    ]
    payload = encode(*effects)
    assert decode(payload, Types([shape])) == effects
    first, second = parse(payload).operations
    assert list(first.default_fields) == [2]
    assert list(second.default_fields) == [1, 2]


def _without_presence(*, but: str = "") -> Shape:
    """A shape whose message tracks no presence, as a user's own proto3 file gives."""
    shape = make_shape([("id", "integer"), ("a", "text"), ("b", "text")], key=["id"], name="bare")
    files = descriptor_pb2.FileDescriptorSet.FromString(shape.descriptor)
    (message,) = files.file[-1].message_type
    del message.oneof_decl[:]
    for described in message.field:
        described.ClearField("oneof_index")
        described.ClearField("proto3_optional")
        if described.name == but:
            described.proto3_optional = True
            described.oneof_index = 0
            message.oneof_decl.add(name=f"_{but}")
    # A derived message says what its columns say, whatever its descriptor does.
    files.file[-1].package = "bank"
    return replace(shape, message_name=f"bank.{message.name}", descriptor=files.SerializeToString())


# -- what a shape's codec is kept for -----------------------------------------------------


def test_a_codec_is_built_once_for_each_shape() -> None:
    codec = PayloadCodec()
    first = codec.find_row_codec(PLAIN)
    assert codec.find_row_codec(PLAIN) is first
    assert first.shape is PLAIN
    again = make_shape([("id", "integer"), ("a", "text")], key=["id"], name="plain")
    assert codec.find_row_codec(again) is not first
    assert codec.find_row_codec(again).shape is again
    assert codec.find_row_codec(LINE).shape is LINE
    run = codec.find_run_codec(PLAIN)
    assert codec.find_run_codec(PLAIN) is run
    assert run.shape is PLAIN
    assert codec.find_run_codec(again) is not run
    assert codec.find_run_codec(again).shape is again
    assert codec.find_run_codec(LINE).shape is LINE


# -- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2**70, "text"])
def test_a_value_that_does_not_fit_its_field_is_refused(value: Any) -> None:
    effect = Effect(U, PLAIN, (1,), {"id": value}, complete=False, ordinal=0)
    with pytest.raises(EntryError, match="'plain' does not fit"):
        encode(effect)


def rewrite(effect: Effect, **fields: Any) -> bytes:
    """The payload of one effect, with other contents."""
    payload = parse(encode(effect))
    for name, value in fields.items():
        if isinstance(value, list):
            del getattr(payload.operations[0], name)[:]
            getattr(payload.operations[0], name).extend(value)
        else:
            setattr(payload.operations[0], name, value)
    return bytes(payload.SerializeToString())


COMPLETE_UPDATE = Effect(U, PLAIN, (1,), {"id": 1, "a": "x", "b": "y"}, complete=True, ordinal=0)


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b"\xff", "payload cannot be parsed"),
        (rewrite(EFFECTS[0], row=b"\xff"), "row of type 'plain' cannot be parsed"),
        (rewrite(EFFECTS[2], row=b"\xff"), "row of type 'plain' cannot be parsed"),
        (rewrite(EFFECTS[2], key=b"\xff"), "row of type 'plain' cannot be parsed"),
        (rewrite(EFFECTS[0], type=1), "type index 1 of 1"),
        (rewrite(EFFECTS[2], type=1), "an operation has type index 1 of 1"),
        (rewrite(EFFECTS[0], kind=0), "kind 0"),
        (rewrite(EFFECTS[0], kind=9), "kind 9"),
        (rewrite(EFFECTS[0], null_fields=[4]), "field 4 is not in type 'plain' revision 1"),
        (rewrite(COMPLETE_UPDATE, null_fields=[4]), "field 4 is not in type"),
        (rewrite(EFFECTS[2], null_fields=[4]), "field 4 is not in type"),
        (rewrite(EFFECTS[2], default_fields=[4]), "field 4 is not in type"),
        (rewrite(EFFECTS[10], row=b""), "no value for key column 'id'"),
    ],
)
def test_a_payload_that_says_nonsense_is_refused(payload: bytes, match: str) -> None:
    with pytest.raises(DecodeError, match=match):
        decode(payload)


def test_a_complete_row_has_every_column() -> None:
    assert decode(encode(COMPLETE_UPDATE)) == [COMPLETE_UPDATE]
    (found,) = decode(rewrite(COMPLETE_UPDATE, null_fields=[3]))
    assert found.values == {"id": 1, "a": "x", "b": None}
    (found,) = decode(rewrite(COMPLETE_UPDATE, row=b""))
    assert found.values == {"id": 0, "a": "", "b": ""}


def test_a_row_codec_reads_one_column_as_a_row() -> None:
    codec = RowCodec(SINGLE)
    row, nulls, defaults = codec.encode_row({"id": "key"})
    assert (nulls, defaults) == ([], [])
    assert codec.decode_row(row, (), defaults=(), complete=True) == {"id": "key"}
    found = codec.decode_create(row, (), ordinal=2, place=4)
    assert found == Effect(C, SINGLE, ("key",), {"id": "key"}, complete=True, ordinal=2, place=4)
