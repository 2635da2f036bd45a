"""Small payloads that would take much memory, or long, if they were decoded as they claim."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import MAX_PART_BYTES, OpType
from oplog.errors import DecodeError
from oplog.payload import field_count
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.field_count import MAX_MESSAGES, MAX_RUN_FIELDS, check_fields
from tests.archived import make_shape

pytestmark = pytest.mark.unit

SHAPE = make_shape()
BOMBS = """
import resource, sys
from pathlib import Path
from oplog.errors import DecodeError
from oplog.payload.codec import PayloadCodec
from tests.archived import make_shape
class Types:
    def find_shape(self, name, revision):
        return shape
shape = make_shape()
names = sorted(Path(sys.argv[1]).iterdir())
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for name in names:
    try:
        PayloadCodec().decode(name.read_bytes(), Types())
    except DecodeError:
        print(name.name, "refused")
    except MemoryError:
        print(name.name, "took too much")
# Of this program alone: what a process was before it began one counts in getrusage.
peak = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(int(peak[0].split()[1]) // 1024)
"""
MOST_MEGABYTES = 600
"""The worst of these takes nearly a gigabyte without a count."""


class Types:
    """One type."""

    latest: Any = None

    def find_shape(self, type_name: str, revision: int) -> Any:
        return SHAPE


def start() -> record_pb2.Payload:
    payload = record_pb2.Payload()
    payload.types.add(name=SHAPE.type_name, revision=SHAPE.revision)
    return payload


def write_varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def fill(item: bytes, *, size: int = MAX_PART_BYTES) -> bytes:
    return item * (size // len(item))


def make_run(**given: Any) -> bytes:
    payload = start()
    payload.runs.add(**{"kind": 1, "row_count": 1, "complete": True, **given})
    return payload.SerializeToString()


def wrap(tag: int, content: bytes) -> bytes:
    """A field of these bytes."""
    return bytes([tag]) + write_varint(len(content)) + content


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory is set as on Linux")
def test_a_small_payload_cannot_take_much_memory(tmp_path: Path) -> None:
    head = start().SerializeToString()
    room = MAX_PART_BYTES - 64
    operation = b"\x08\x01\x38\x01"
    bombs = {
        "types": fill(head),
        "empty types": fill(b"\x0a\x00"),
        "operations": head + fill(b"\x12\x00", size=room),
        "blocks": head + fill(b"\x1a\x00", size=room),
        "runs": head + fill(b"\x22\x00", size=room),
        "runs with NULLs": head + wrap(0x22, fill(b"\x42\x00", size=room)),
        "operations just before counting": head + fill(b"\x12\x00", size=1 << 20)[: (1 << 20) - 32],
        "rows": make_run(row_count=2**32 - 1),
        "rows of nothing": make_run(row_count=131_072, values=b""),
        "values": make_run(values=b"\x12\x00" * (room // 2 - 8)),
        "fields": make_run(complete=False, fields=[1] * (room - 8)),
        "steps": make_run(ordinal_steps=[0] * (room - 8)),
        "fields of a block": head + wrap(0x1A, wrap(0x12, b"\x01" * (room - 64))),
        "fields of a patch": head + wrap(0x1A, wrap(0x12, b"\x01" * (room - 64)) + b"\x38\x01"),
        "a patch that claims more": head + wrap(0x1A, b"\x18\xff\xff\xff\x0f\x38\x01"),
        "a cut field": head + fill(b"\x12\x00", size=room // 64) + b"\x12\xff\xff\xff\x7f",
        "NULLs of an operation": head + wrap(0x12, operation + wrap(0x2A, b"\x01" * (room - 64))),
        "a block that claims more": head + wrap(0x1A, b"\x18\xff\xff\xff\x0f"),
        "a long number": head + b"\x12\x00" * 600_000 + b"\xff" * 11,
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)],
        check=True,
        text=True,
        capture_output=True,
        timeout=120,
    )
    *told, peak = done.stdout.splitlines()
    assert told == [f"{name} refused" for name in sorted(bombs)]
    assert int(peak) < MOST_MEGABYTES


def test_what_is_counted_is_what_the_parser_finds() -> None:
    payload = start()
    payload.operations.add(kind=1)
    big = payload.SerializeToString() + b"\x7a" + write_varint(1 << 20) + bytes(1 << 20)
    # Fields that this version does not know are of no account.
    check_fields(big)
    check_fields(b"\x39" + struct.pack("<q", 1) + b"\x3d" + struct.pack("<i", 1) + big)
    for wrong in (b"\x3b" + big, big + b"\x12\x05", big + b"\x39\x00", b"\xff" * (1 << 20) + b"\0"):
        with pytest.raises(DecodeError, match="none that this library writes"):
            check_fields(wrong)


@pytest.mark.parametrize("over", [0, 1])
def test_limits_are_what_they_say(over: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_count, "_UNCOUNTED", 0)
    whole = b"\x12\x00" * (MAX_MESSAGES + over)
    run = b"\x42\x00" * (MAX_RUN_FIELDS + over)
    for data in (whole, b"\x22" + write_varint(len(run)) + run):
        if over:
            with pytest.raises(DecodeError, match="more than"):
                check_fields(data)
        else:
            check_fields(data)


def test_a_large_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    effect = Effect(
        OpType.CREATE, SHAPE, (1,), {"id": 1, "owner": "x" * (2 << 20)}, complete=True, ordinal=0
    )
    data = PayloadCodec().encode([effect])
    assert len(data) > 1 << 20
    assert PayloadCodec().decode(data, Types()) == [effect]
