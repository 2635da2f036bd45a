"""Any rows that a table can hold come out of a block as they went in, whole or by key."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import OpType
from oplog.errors import DecodeError
from oplog.payload.block import order_columns
from oplog.payload.codec import PayloadCodec
from oplog.payload.shape import Shape
from oplog.value import copy_field, read_copy_field
from tests.unit.test_block import Types, make_shape

pytestmark = pytest.mark.property

SHAPE = make_shape(
    ("note", "text"),
    ("id", "bigint"),
    ("code", "text"),
    ("ok", "boolean"),
    ("data", "bytea"),
    ("x", "double precision"),
    ("amount", "numeric(20,4)"),
    key=("id", "code"),
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
HOSTILE = st.sampled_from(
    ["", "\\", "\\N", "\\n", "\t", "\n", "\r", "\x0b", "\\\\N", "\u2028", "1"]
)
TEXT = HOSTILE | TEXTS
ROW = st.fixed_dictionaries(
    {
        "note": st.none() | TEXT,
        "id": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 12),
        "code": TEXT,
        "ok": st.none() | st.booleans(),
        "data": st.none() | st.binary(max_size=5),
        "x": st.none() | st.floats(allow_nan=False),
        "amount": st.none() | st.decimals("-1e9", "1e9", places=4, allow_nan=False).map(str),
    }
)
PATCHED = st.sets(st.sampled_from(["note", "ok", "data", "x", "amount"]), min_size=1)
ROWS = st.lists(ROW, max_size=8, unique_by=lambda row: (row["id"], row["code"]))


class Wanted:
    """A search for one key."""

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.key = key

    def __call__(self, shape: Shape) -> list[tuple[Any, ...]]:
        return [self.key]


def print_text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"  # as `::text` prints it
    return SHAPE.codecs[name].to_text(value)


def encode(rows: list[dict[str, Any]], columns: Collection[str] | None = None) -> bytes:
    names = [column.name for column in order_columns(SHAPE, columns)]
    lines = [
        "\t".join(copy_field(print_text(name, row[name])) for name in names) + "\n" for row in rows
    ]
    return PayloadCodec().encode_block(
        SHAPE, "".join(lines).encode(), row_count=len(rows), columns=columns
    )


@given(TEXT | st.none())
def test_a_field_comes_back(text: str | None) -> None:
    assert read_copy_field(copy_field(text)) == text


@given(ROWS)
def test_rows_come_back(rows: list[dict[str, Any]]) -> None:
    effects = PayloadCodec().decode(encode(rows), Types(SHAPE))
    # repr tells -0.0 from 0.0, and None from ''.
    expected = [{name: row[name] for name in SHAPE.names} for row in rows]
    assert [repr(dict(effect.values)) for effect in effects] == [repr(row) for row in expected]
    assert [effect.key for effect in effects] == [(row["id"], row["code"]) for row in rows]


@given(ROWS, PATCHED)
def test_patched_columns_come_back(rows: list[dict[str, Any]], columns: set[str]) -> None:
    effects = PayloadCodec().decode(encode(rows, columns), Types(SHAPE))
    names = [name for name in SHAPE.names if name in columns]
    expected = [{name: row[name] for name in names} for row in rows]
    assert [repr(dict(effect.values)) for effect in effects] == [repr(row) for row in expected]
    assert [effect.key for effect in effects] == [(row["id"], row["code"]) for row in rows]
    assert {effect.kind for effect in effects} <= {OpType.UPDATE}


@given(ROWS, st.tuples(st.integers(0, 12), TEXT), st.none() | PATCHED)
def test_looking_for_a_key_gives_what_reading_all_gives(
    rows: list[dict[str, Any]], stranger: tuple[int, str], columns: set[str] | None
) -> None:
    payload = encode(rows, columns)
    whole = PayloadCodec().decode(payload, Types(SHAPE))
    for key in [stranger, *((row["id"], row["code"]) for row in rows)]:
        found = PayloadCodec().decode(payload, Types(SHAPE), find_keys=Wanted(key))
        assert found == [effect for effect in whole if effect.key == key]


@given(
    st.binary(max_size=60),
    st.integers(0, 5),
    st.lists(st.integers(0, 9), max_size=9),
    st.booleans(),
)
@example(b"1\ta\t\\N\t\\N\t\\N\t\\N\t\\N\n", 1, [2, 3, 1, 4, 5, 6, 7], False)  # noqa: FBT003
@example(b"1\ta\t\\N\n", 1, [2, 3, 1], True)  # noqa: FBT003
def test_any_bytes_are_read_or_refused(
    rows: bytes, count: int, fields: list[int], patch: bool
) -> None:
    payload = record_pb2.Payload()
    payload.types.add(name="item", revision=1)
    payload.blocks.add(type=0, rows=rows, row_count=count, fields=fields, patch=patch)
    try:
        effects = PayloadCodec().decode(payload.SerializeToString(), Types(SHAPE))
    except DecodeError:
        return
    assert len(effects) == count
