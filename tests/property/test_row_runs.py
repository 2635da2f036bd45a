"""Any effects come out of runs as they went in, and no bytes do more than be refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.entry import OpType
from oplog.errors import DecodeError, UnknownTypeError
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from tests.unit.test_block import Types
from tests.unit.test_row_run import ITEM, decode, encode, update

pytestmark = pytest.mark.property

C, U, D = OpType
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5)
FLOAT = st.floats(allow_nan=False, width=32)
VALUES = {
    "id": st.integers(-(2**63), 2**63 - 1),
    "part": TEXT,
    "note": st.none() | TEXT,
    "ok": st.none() | st.booleans(),
    "data": st.none() | st.binary(max_size=4),
    "x": st.none() | FLOAT,
    "y": st.none() | FLOAT,
}


@st.composite
def draw_effects(draw: st.DrawFn) -> list[Effect]:
    """Effects among which some are alike."""
    effects: list[Effect] = []
    ordinal = 0
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(OpType))
        names = list(ITEM.names)
        if kind is U:
            names = draw(st.lists(st.sampled_from(names[2:]), min_size=1, unique=True))
        for _ in range(draw(st.integers(1, 9))):
            ordinal += draw(st.integers(1, 2))
            key: tuple[Any, ...] = (draw(VALUES["id"]), draw(VALUES["part"]))
            values: dict[str, Any] = {} if kind is D else {n: draw(VALUES[n]) for n in names}
            if kind is C:
                values |= dict(zip(ITEM.key_names, key, strict=True))
            place = draw(st.integers(0, 3) | st.integers(0, 2**31 - 1))
            effects.append(
                Effect(kind, ITEM, key, values, complete=kind is C, ordinal=ordinal, place=place)
            )
    return effects


def sort(effects: list[Effect]) -> list[Effect]:
    """As a part has them."""
    return sorted(effects, key=lambda effect: (effect.place, effect.ordinal))


@given(draw_effects(), st.booleans())
def test_any_effects_come_back(effects: list[Effect], sorted_: bool) -> None:
    lowest = min(effect.place for effect in effects)
    payload = encode(sort(effects) if sorted_ else effects, first=lowest)
    found = decode(payload, first=lowest)
    assert found == effects
    # Equality takes 0.0 for -0.0.
    assert [repr(sorted(one.values.items())) for one in found] == [
        repr(sorted(one.values.items())) for one in effects
    ]


@given(draw_effects(), st.data())
def test_rows_by_key_are_those_among_all(effects: list[Effect], data: st.DataObject) -> None:
    wanted = data.draw(st.sampled_from(effects)).key
    found = decode(encode(sort(effects)), find_keys=lambda _: [wanted])
    assert [one for one in found if one.key == wanted] == [
        one for one in effects if one.key == wanted
    ]


@given(st.data())
def test_altered_bytes_are_refused_or_read(data: st.DataObject) -> None:
    """Nothing else than an error of the log's comes of any bytes."""
    rows = [update(n, note="n", x=0.5) for n in range(5)]
    whole = PayloadCodec().encode([replace(row, place=n * n) for n, row in enumerate(rows)])
    place = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[place] = data.draw(st.integers(0, 255))
    with suppress(DecodeError, UnknownTypeError):
        PayloadCodec().decode(bytes(altered), Types(ITEM))
