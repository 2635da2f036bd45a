"""The exact bytes of a payload with a block of rows.

Logs hold these for ever: when a test here fails, the code is wrong, not the data.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oplog.entry import OpType
from oplog.payload.codec import PayloadCodec
from oplog.payload.shape import Shape

pytestmark = pytest.mark.golden

PINNED = json.loads((Path(__file__).parent / "data/block_v1.json").read_text(encoding="utf-8"))
ROWS = PINNED["rows"].encode()
PATCH = PINNED["patch_rows"].encode()


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


def test_pinned_bytes_are_read() -> None:
    effects = PayloadCodec().decode(bytes.fromhex(PINNED["payload"]), Types())
    assert [dict(effect.values) for effect in effects] == PINNED["values"]
    assert [list(effect.key) for effect in effects] == PINNED["keys"]
    assert all(effect.adopted and effect.complete for effect in effects)


def test_writing_gives_the_pinned_bytes() -> None:
    payload = PayloadCodec().encode_block(Types().shape, ROWS, row_count=len(PINNED["values"]))
    assert payload.hex() == PINNED["payload"]


def test_pinned_patches_are_read() -> None:
    effects = PayloadCodec().decode(bytes.fromhex(PINNED["patch"]), Types())
    assert [dict(effect.values) for effect in effects] == PINNED["patched"]
    assert [list(effect.key) for effect in effects] == PINNED["keys"]
    assert all(effect.kind is OpType.UPDATE and effect.adopted for effect in effects)


def test_patching_gives_the_pinned_bytes() -> None:
    payload = PayloadCodec().encode_block(Types().shape, PATCH, row_count=2, columns=["ok"])
    assert payload.hex() == PINNED["patch"]


def test_the_layout_is_the_documented_one() -> None:
    """Written by hand, field by field: numbers and wire types of `RowBlock` and `Payload`."""
    use = b"\x0a\x04item\x10\x03"
    block = b"\x12\x03\x02\x01\x05\x18\x02" + b"\x22" + bytes([len(ROWS)]) + ROWS
    payload = b"\x0a" + bytes([len(use)]) + use + b"\x1a" + bytes([len(block)]) + block
    assert payload.hex() == PINNED["payload"]
    patch = b"\x12\x02\x02\x05\x18\x02" + b"\x22" + bytes([len(PATCH)]) + PATCH + b"\x38\x01"
    payload = b"\x0a" + bytes([len(use)]) + use + b"\x1a" + bytes([len(patch)]) + patch
    assert payload.hex() == PINNED["patch"]
