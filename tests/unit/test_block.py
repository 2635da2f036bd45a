"""Blocks of rows: what adoption writes without looking, and reading refuses unless it is that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import MAX_PART_BYTES, OpType
from oplog.errors import DecodeError, EntryTooLargeError, UnknownTypeError
from oplog.payload.block import MAX_BLOCK_ROWS, order_columns
from oplog.payload.codec import Effect, PayloadCodec, effect_to_operation
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.shape import Shape
from oplog.value import Wire, codec_for, read_copy_field

pytestmark = pytest.mark.unit

U = OpType.UPDATE


def make_shape(*columns: tuple[str, str], key: Sequence[str] = ("id",)) -> Shape:
    declared = [
        DeclaredColumn(name, pg_type, codec_for(pg_type).kind, name in key)
        for name, pg_type in columns
    ]
    return derive_shape(
        "item",
        declared,
        schema="public",
        table="item",
        aggregate="item/{id}",
        excluded={},
        stored=[],
    )


ITEM = make_shape(("name", "text"), ("id", "bigint"), ("ok", "boolean"), ("data", "bytea"))
ROWS = b"7\tada\ttrue\t\\\\x00ff\n-8\t\\N\tfalse\t\\N\n9\t\\\\N\\t\\n\xc3\xa9\t\\N\t\\\\x\n"


@dataclass
class Types:
    """A log that knows one type."""

    shape: Shape = ITEM

    def find_shape(self, type_name: str, revision: int) -> Shape:
        if (type_name, revision) != (self.shape.type_name, self.shape.revision):
            raise UnknownTypeError(type_name)
        return self.shape

    @property
    def latest(self) -> dict[str, Shape]:
        return {self.shape.type_name: self.shape}


def encode(rows: bytes = ROWS, *, count: int = 3, shape: Shape = ITEM) -> bytes:
    return PayloadCodec().encode_block(shape, rows, row_count=count)


def decode(payload: bytes, **more: Any) -> list[Effect]:
    return PayloadCodec().decode(payload, Types(), **more)


def rewrite(**fields: Any) -> bytes:
    """A payload whose block says something else."""
    payload = record_pb2.Payload.FromString(encode())
    for name, value in fields.items():
        if name == "fields":
            del payload.blocks[0].fields[:]
            payload.blocks[0].fields.extend(value)
        else:
            setattr(payload.blocks[0], name, value)
    return payload.SerializeToString()


def test_the_key_comes_first() -> None:
    assert [column.name for column in order_columns(ITEM)] == ["id", "name", "ok", "data"]


def test_rows_are_whole_creates_marked_as_adopted() -> None:
    effects = decode(encode())
    assert [effect.values for effect in effects] == [
        {"name": "ada", "id": 7, "ok": True, "data": b"\x00\xff"},
        {"name": None, "id": -8, "ok": False, "data": None},
        {"name": "\\N\t\né", "id": 9, "ok": None, "data": b""},
    ]
    assert [effect.key for effect in effects] == [(7,), (-8,), (9,)]
    assert [effect.ordinal for effect in effects] == [0, 1, 2]
    assert all(e.kind is OpType.CREATE and e.complete and e.adopted for e in effects)
    assert all(e.shape is ITEM for e in effects)
    # The columns of a row are in the table's order, as a create's of any other origin.
    assert tuple(effects[0].values) == ITEM.names


def test_people_see_ordinary_creates() -> None:
    operation = effect_to_operation(decode(encode())[0])
    assert (operation.kind, operation.key) == (OpType.CREATE, {"id": 7})
    assert operation.fields == {"name": "ada", "id": 7, "ok": True, "data": b"\x00\xff"}


def test_no_rows_are_a_block_too() -> None:
    assert decode(encode(b"", count=0)) == []


def test_other_effects_are_not_marked() -> None:
    plain = Effect(OpType.CREATE, ITEM, (1,), dict.fromkeys(ITEM.names, None) | {"id": 1}, True, 0)  # noqa: FBT003
    (effect,) = decode(PayloadCodec().encode([plain]))
    assert not effect.adopted


def test_ordinals_count_on_from_the_first() -> None:
    assert [e.ordinal for e in decode(rewrite(first_ordinal=40))] == [40, 41, 42]
    last = decode(rewrite(first_ordinal=2**32 - 3))
    assert [e.ordinal for e in last] == [2**32 - 3, 2**32 - 2, 2**32 - 1]
    with pytest.raises(DecodeError, match="begins at ordinal 4294967294"):
        decode(rewrite(first_ordinal=2**32 - 2))


def test_all_rows_are_of_one_aggregate() -> None:
    assert [e.place for e in decode(encode())] == [0, 0, 0]
    assert [e.place for e in decode(rewrite(aggregate=2), first=5)] == [7, 7, 7]
    found = decode(rewrite(aggregate=2), first=5, find_keys=lambda _: [(9,)])
    assert [e.place for e in found] == [7]
    shape = make_shape(("x", "double precision"), ("n", "integer"), key=("x",))
    payload = encode(b"0.5\t1\n", count=1, shape=shape)
    (effect,) = PayloadCodec().decode(payload, Types(shape), first=3, find_keys=lambda _: [(0.5,)])
    assert effect.place == 3


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EntryTooLargeError, match=f"'item' .* the limit is {MAX_PART_BYTES}"):
        encode(b"1\t" + b"x" * MAX_PART_BYTES + b"\ttrue\t\\N\n", count=1)
    monkeypatch.setattr("oplog.payload.codec.MAX_PART_BYTES", len(encode()))
    assert decode(encode())
    monkeypatch.setattr("oplog.payload.codec.MAX_PART_BYTES", len(encode()) - 1)
    with pytest.raises(EntryTooLargeError):
        encode()


# -- by key -----------------------------------------------------------------------------------


def find(rows: bytes, *keys: tuple[Wire, ...], shape: Shape = ITEM) -> list[tuple[Any, int]]:
    payload = encode(rows, count=rows.count(b"\n"), shape=shape)
    effects = PayloadCodec().decode(payload, Types(shape), find_keys=lambda _: keys)
    return [(effect.key, effect.ordinal) for effect in effects]


def test_rows_are_found_by_key() -> None:
    assert find(ROWS, (7,)) == [((7,), 0)]
    assert find(ROWS, (-8,)) == [((-8,), 1)]
    assert find(ROWS, (9,), (7,)) == [((7,), 0), ((9,), 2)]
    assert find(ROWS, (8,)) == []
    assert find(ROWS) == []
    assert find(b"", (7,)) == []


def test_a_key_is_not_found_inside_another_or_in_other_columns() -> None:
    rows = b"11\t1\t\\N\t\\N\n2\t\\n1\\t\t\\N\t\\N\n111\t11\t\\N\t\\N\n"
    assert find(rows, (1,)) == []
    assert find(rows, (11,)) == [((11,), 0)]


def test_every_row_of_a_key_is_found() -> None:
    # No table gives such a block. Whoever made it must not be able to hide the second row.
    assert find(b"1\ta\t\\N\t\\N\n1\tb\t\\N\t\\N\n", (1,)) == [((1,), 0), ((1,), 1)]


def test_composite_and_escaped_keys_are_found() -> None:
    shape = make_shape(("code", "text"), ("n", "integer"), key=("code", "n"))
    rows = b"a\\tb\t1\na\\tb\t2\na\t1\n\\\\N\t1\n"
    assert find(rows, ("a\tb", 2), shape=shape) == [(("a\tb", 2), 1)]
    assert find(rows, ("\\N", 1), shape=shape) == [(("\\N", 1), 3)]
    assert find(rows, ("a", 2), shape=shape) == []


def test_keys_with_several_texts_are_found_by_value() -> None:
    shape = make_shape(("x", "double precision"), ("n", "integer"), key=("x",))
    assert find(b"1e+20\t1\n0.5\t2\n", (1e20,), shape=shape) == [((1e20,), 0)]
    padded = make_shape(("c", "character(3)"), key=("c",))
    assert find(b"ab\nb\n", ("b",), shape=padded) == [(("b",), 1)]


def test_a_shape_for_which_the_key_is_uncertain_is_read_whole() -> None:
    assert len(decode(encode(), find_keys=lambda _: None)) == 3


# -- patches ----------------------------------------------------------------------------------

PATCH = b"7\ttrue\t\\\\x00ff\n-8\t\\N\t\\N\n"


def encode_patch(rows: bytes = PATCH, *columns: str, shape: Shape = ITEM, **fields: Any) -> bytes:
    chosen = columns or ("data", "ok")
    count = rows.count(b"\n")
    payload = record_pb2.Payload.FromString(
        PayloadCodec().encode_block(shape, rows, row_count=count, columns=chosen)
    )
    for name, value in fields.items():
        if name == "fields":
            del payload.blocks[0].fields[:]
            payload.blocks[0].fields.extend(value)
        else:
            setattr(payload.blocks[0], name, value)
    return payload.SerializeToString()


def test_a_patch_has_the_key_and_some_columns_in_the_order_of_a_block() -> None:
    assert [column.name for column in order_columns(ITEM, ["data", "id", "name"])] == [
        "id",
        "name",
        "data",
    ]
    block = record_pb2.Payload.FromString(encode_patch()).blocks[0]
    numbers = [ITEM.by_name[name].number for name in ("id", "ok", "data")]
    assert (list(block.fields), block.patch) == (numbers, True)
    assert not record_pb2.Payload.FromString(encode()).blocks[0].patch


def test_rows_of_a_patch_are_updates_marked_as_adopted() -> None:
    expected = [
        Effect(U, ITEM, (7,), {"ok": True, "data": b"\x00\xff"}, False, 4, True, 7),  # noqa: FBT003
        Effect(U, ITEM, (-8,), {"ok": None, "data": None}, False, 5, True, 7),  # noqa: FBT003
    ]
    payload = encode_patch(aggregate=2, first_ordinal=4)
    assert decode(payload, first=5) == expected
    assert decode(payload, first=5, find_keys=lambda _: [(-8,)]) == expected[1:]
    assert decode(payload, find_keys=lambda _: [(8,)]) == []
    assert decode(encode_patch(b"")) == []
    operation = effect_to_operation(expected[0])
    assert (operation.kind, operation.key) == (U, {"id": 7})
    assert operation.fields == {"ok": True, "data": b"\x00\xff"}


def test_a_patch_is_found_by_keys_of_several_columns_and_several_texts() -> None:
    shape = make_shape(
        ("n", "integer"), ("x", "double precision"), ("code", "text"), key=("x", "code")
    )
    payload = encode_patch(b"0.5\ta\t1\n1e+20\ta\t\\N\n", "n", shape=shape)
    found = PayloadCodec().decode(payload, Types(shape), find_keys=lambda _: [(1e20, "a")])
    assert [(one.key, one.values, one.ordinal) for one in found] == [((1e20, "a"), {"n": None}, 1)]


@pytest.mark.parametrize(
    "fields",
    [
        {"fields": [2, 3]},
        {"fields": [2, 3, 3]},
        {"fields": [2, 2, 3]},
        {"fields": [2, 3, 5]},
        {"fields": [3, 2, 4]},
        {"fields": [1, 3, 4]},
        {"fields": [2]},
        {"fields": []},
        {"fields": [2, 3, 4, 1, 1]},
        {"row_count": 3},
        {"row_count": 1},
        {"rows": b"7\ttrue\n", "row_count": 1},
        {"rows": b"7\tyes\t\\N\n", "row_count": 1},
        {"patch": False},
    ],
)
def test_a_patch_that_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(encode_patch(**fields))
    with pytest.raises(DecodeError):
        decode(encode_patch(**fields), find_keys=lambda _: [(7,)])


def test_a_patch_of_the_key_alone_is_refused() -> None:
    with pytest.raises(DecodeError, match="not the key and then others"):
        decode(encode_patch(b"7\n", "id"))


def test_a_patch_of_no_row_is_refused() -> None:
    with pytest.raises(DecodeError, match="NULL in its key"):
        decode(encode_patch(b"\\N\ttrue\t\\N\n"))


def test_a_patch_may_have_all_columns() -> None:
    (effect,) = decode(encode_patch(b"7\ta\ttrue\t\\N\n", "name", "ok", "data"))
    assert (effect.kind, effect.complete) == (U, False)
    assert effect.values == {"name": "a", "ok": True, "data": None}


# -- hostile bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        b"1\ta\ttrue\n",
        b"1\ta\ttrue\t\\N\textra\n",
        b"1\ta\ttrue\t\\N\n2\tb\ttrue\n",
        b"\n",
        b"1\ta\\\ttrue\t\\N\n",
        b"1\ta\\x41\ttrue\t\\N\n",
        b"1\ta\\101\ttrue\t\\N\n",
        b"1\t\\Na\ttrue\t\\N\n",
        b"1\ta\rb\ttrue\t\\N\n",
        b"1\ta\x0bb\ttrue\t\\N\n",
        b"1\t\xff\ttrue\t\\N\n",
        b"1\ta\tt\t\\N\n",
        b"1\ta\tyes\t\\N\n",
        b"x\ta\ttrue\t\\N\n",
        b"\\N\ta\ttrue\t\\N\n",
        b"1\ta\ttrue\t\\\\xZZ\n",
        b"1\ta\ttrue\t00\n",
        b"1\ta\ttrue\t\\\\xAB\n",
        b"9" * 5000 + b"\ta\ttrue\t\\N\n",
    ],
)
def test_what_copy_does_not_write_is_refused(rows: bytes) -> None:
    with pytest.raises(DecodeError, match="'item' revision 1 cannot be read"):
        decode(rewrite(rows=rows, row_count=rows.count(b"\n")))


@pytest.mark.parametrize(
    "fields",
    [
        {"row_count": 2},
        {"row_count": 4},
        {"row_count": 0},
        {"row_count": 2**32 - 1},
        {"rows": ROWS[:-1], "row_count": 2},
        {"rows": ROWS + b"1", "row_count": 3},
        {"rows": b"", "row_count": 1},
        {"type": 1},
        {"type": 2**32 - 1},
        {"fields": []},
        {"fields": [1, 2, 3]},
        {"fields": [1, 2, 3, 5]},
        {"fields": [1, 2, 3, 3]},
        {"fields": [1, 2, 3, 4, 4]},
    ],
)
def test_a_block_that_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(rewrite(**fields))
    with pytest.raises(DecodeError):
        decode(rewrite(**fields), find_keys=lambda _: [(7,)])


def test_a_block_of_a_type_that_is_not_named_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"^a block of rows has type index 1 of 1"):
        decode(rewrite(type=1))


def test_columns_may_be_in_any_order() -> None:
    numbers = {column.name: column.number for column in ITEM.columns}
    order = [numbers[name] for name in ("data", "ok", "id", "name")]
    (effect,) = decode(rewrite(fields=order, rows=b"\\\\xaa\t\\N\t5\tx\n", row_count=1))
    assert (effect.key, effect.values["data"]) == ((5,), b"\xaa")
    found = decode(
        rewrite(fields=order, rows=b"\\\\xaa\t\\N\t5\tx\n", row_count=1),
        find_keys=lambda _: [(5,)],
    )
    assert [effect.key for effect in found] == [(5,)]


def test_more_rows_than_a_part_has_are_refused_before_they_are_read() -> None:
    shape = make_shape(("id", "text"))
    payload = record_pb2.Payload()
    payload.types.add(name="item", revision=1)
    for _ in range(2):
        rows = b"\n" * (MAX_BLOCK_ROWS // 2 + 1)
        payload.blocks.add(type=0, fields=[1], rows=rows, row_count=len(rows))
    with pytest.raises(DecodeError, match=str(MAX_BLOCK_ROWS)):
        PayloadCodec().decode(payload.SerializeToString(), Types(shape))


@pytest.mark.parametrize("field", ["\\", "\\x", "a\\", "\t", "\n", "\\Nx", "\\1", "\\."])
def test_a_field_that_copy_does_not_write_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="COPY"):
        read_copy_field(field)
