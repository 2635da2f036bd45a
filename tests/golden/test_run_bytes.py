"""The exact bytes of a payload with runs of rows.

Logs hold these for ever: when a test here fails, the code is wrong, not the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oplog.entry import OpType
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.row_run import LEAST_ROWS, MAX_RUN_ROWS
from oplog.payload.shape import Shape

pytestmark = pytest.mark.golden

PINNED = json.loads((Path(__file__).parent / "data/run_v1.json").read_text(encoding="utf-8"))


class Types:
    """A log that knows the pinned type."""

    def __init__(self) -> None:
        self.shape = Shape.from_json(
            "item", 3, shape=PINNED["shape"], descriptor=bytes.fromhex(PINNED["descriptor"])
        )
        self.latest = {"item": self.shape}

    def find_shape(self, type_name: str, revision: int) -> Shape:
        assert (type_name, revision) == ("item", 3)
        return self.shape


def read_effect(pinned: dict[str, Any], shape: Shape) -> Effect:
    kind = OpType[pinned["kind"]]
    return Effect(
        kind,
        shape,
        tuple(pinned["key"]),
        pinned["values"],
        complete=kind is OpType.CREATE,
        ordinal=pinned["ordinal"],
        place=pinned["place"],
    )


def test_the_limits_are_the_documented_ones() -> None:
    assert (LEAST_ROWS, MAX_RUN_ROWS) == (4, 131_072)


def test_pinned_bytes_are_read() -> None:
    types = Types()
    payload = bytes.fromhex(PINNED["payload"])
    effects = PayloadCodec().decode(payload, types, first=PINNED["first"])
    assert effects == [read_effect(pinned, types.shape) for pinned in PINNED["effects"]]


def test_writing_gives_the_pinned_bytes() -> None:
    shape = Types().shape
    effects = [read_effect(pinned, shape) for pinned in PINNED["effects"]]
    effects.sort(key=lambda effect: (effect.place, effect.ordinal))
    payload = PayloadCodec().encode(effects, first=PINNED["first"])
    assert payload.hex() == PINNED["payload"]


def test_the_layout_is_the_documented_one() -> None:
    """Written by hand, field by field: creates with a NULL, deletes out of step, an update."""
    use = b"\x0a\x04item\x10\x03"
    # Fields 1 (note), 2 (id, zigzag, packed) and 5 (ok, packed).
    values = b"\x0a\x01a\x0a\x01c" + b"\x12\x03\x02\x04\x06" + b"\x2a\x03\x01\x00\x01"
    create = (
        *(b"\x08\x01", b"\x18\x03", b"\x20\x01"),
        *(b"\x3a" + bytes([len(values)]) + values, b"\x42\x05\x08\x01\x12\x01\x02"),
        # All of one aggregate, the second of the part.
        b"\x58\x01\x60\x01",
    )
    keys = b"\x12\x03\x02\x04\x06"
    delete = (
        *(b"\x08\x03", b"\x18\x03", b"\x32" + bytes([len(keys)]) + keys),
        *(b"\x48\x03", b"\x52\x02\x04\x02"),
        # Aggregates 1, 3 and 2: steps of 2 and -1 (zigzag, packed).
        *(b"\x58\x01", b"\x6a\x02\x04\x01"),
    )
    # An update of the row with key 9 that sets field 1, the eighth operation, of aggregate 4.
    update = b"\x08\x02" + b"\x1a\x02\x10\x12" + b"\x22\x03\x0a\x01z" + b"\x40\x07" + b"\x48\x04"
    payload = b"\x0a" + bytes([len(use)]) + use
    payload += b"\x12" + bytes([len(update)]) + update
    payload += b"".join(
        b"\x22" + bytes([len(run)]) + run for run in map(b"".join, (create, delete))
    )
    assert payload.hex() == PINNED["short"]
    effects = PayloadCodec().decode(payload, Types(), first=10)
    told = [(e.kind.name, e.key, e.values.get("note"), e.ordinal, e.place) for e in effects]
    assert told == [
        ("CREATE", (1,), "a", 0, 11),
        ("CREATE", (2,), None, 1, 11),
        ("CREATE", (3,), "c", 2, 11),
        ("DELETE", (1,), None, 3, 11),
        ("DELETE", (2,), None, 5, 13),
        ("DELETE", (3,), None, 6, 12),
        ("UPDATE", (9,), "z", 7, 14),
    ]
