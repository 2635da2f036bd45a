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
    )


def test_the_limits_are_the_documented_ones() -> None:
    assert (LEAST_ROWS, MAX_RUN_ROWS) == (4, 131_072)


def test_pinned_bytes_are_read() -> None:
    types = Types()
    effects = PayloadCodec().decode(bytes.fromhex(PINNED["payload"]), types)
    assert effects == [read_effect(pinned, types.shape) for pinned in PINNED["effects"]]


def test_writing_gives_the_pinned_bytes() -> None:
    shape = Types().shape
    effects = [read_effect(pinned, shape) for pinned in PINNED["effects"]]
    assert PayloadCodec().encode(effects, aggregate="item").hex() == PINNED["payload"]


def test_the_layout_is_the_documented_one() -> None:
    """Written by hand, field by field: creates with a NULL, then deletes out of step."""
    use = b"\x0a\x04item\x10\x03"
    # Fields 1 (note), 2 (id, zigzag, packed) and 5 (ok, packed).
    values = b"\x0a\x01a\x0a\x01c" + b"\x12\x03\x02\x04\x06" + b"\x2a\x03\x01\x00\x01"
    create = (
        *(b"\x08\x01", b"\x18\x03", b"\x20\x01"),
        *(b"\x3a" + bytes([len(values)]) + values, b"\x42\x05\x08\x01\x12\x01\x02"),
    )
    keys = b"\x12\x03\x02\x04\x06"
    delete = (
        *(b"\x08\x03", b"\x18\x03", b"\x32" + bytes([len(keys)]) + keys),
        *(b"\x48\x03", b"\x52\x02\x04\x02"),
    )
    runs = [b"".join(create), b"".join(delete)]
    payload = b"\x0a" + bytes([len(use)]) + use
    payload += b"".join(b"\x22" + bytes([len(run)]) + run for run in runs)
    assert payload.hex() == PINNED["short"]
    effects = PayloadCodec().decode(payload, Types())
    told = [(e.kind.name, e.key, e.values.get("note"), e.ordinal) for e in effects]
    assert told == [
        ("CREATE", (1,), "a", 0),
        ("CREATE", (2,), None, 1),
        ("CREATE", (3,), "c", 2),
        ("DELETE", (1,), None, 3),
        ("DELETE", (2,), None, 5),
        ("DELETE", (3,), None, 6),
    ]
