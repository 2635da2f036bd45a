"""Small objects that would take much memory, or long, if they were decoded as they claim."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from oplog.archive.format.body import MAX_ITEMS, MAX_RECORDS
from oplog.archive.format.container import compress, decode_container, encode_container
from oplog.archive.format.segment import MAGIC, MAX_BODY_BYTES
from tests.archived import encode_records, make_records

pytestmark = pytest.mark.unit

BOMBS = """
import resource, sys
from pathlib import Path
from oplog.archive.format.segment import decode_segment
from oplog.errors import ManifestInvalidError, SegmentCorruptError
names = sorted(Path(sys.argv[1]).iterdir())
resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
for name in names:
    try:
        decode_segment(name.read_bytes())
    except (ManifestInvalidError, SegmentCorruptError):
        print(name.name, "refused")
    except MemoryError:
        print(name.name, "took too much")
"""


def test_a_small_object_cannot_take_much_memory(tmp_path: Path) -> None:
    good = encode_records(make_records(1))[0]
    most = MAX_BODY_BYTES
    found = decode_container(good, MAGIC, what="it")

    def wrap(body: bytes, **header: Any) -> bytes:
        return encode_container(MAGIC, json.loads(found.header) | header, body=body)

    zeros = bytes(1 << 20)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    endless = b"".join(unsized.compress(zeros) for _ in range(2048)) + unsized.flush()
    parameters = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=True)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=most)
    window = b"".join(wide.compress(zeros) for _ in range(most >> 20)) + wide.flush()
    # A frame that declares 4 GiB: magic, descriptor with an 8-byte size, an empty last block.
    declared = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 32) + b"\x01\x00\x00"

    def frame(*pieces: bytes) -> bytes:
        size = sum(map(len, pieces))
        return struct.pack(">I", size) + b"".join(pieces)

    def fill(item: bytes, *, start: bytes = b"", records: int = 1) -> bytes:
        """Records of nothing but `item`, as large as a body may be."""
        count = (most // records - 4 - len(start)) // len(item)
        return frame(start, item * count) * records

    def crowd(body: bytes, **header: Any) -> bytes:
        return wrap(compress(body), body_bytes=len(body), **header)

    identity = b"\x12\x10" + bytes(16)
    numbers = b"\x52\x80\x80\x80\x10" + b"\1" * (1 << 25)
    bombs = {
        "declared": wrap(declared, body_bytes=most),
        "declared_both": wrap(declared, body_bytes=1 << 32),
        "endless": wrap(endless, body_bytes=most),
        "window": wrap(window, body_bytes=most),
        "empty": crowd(bytes(most)),
        "empty_claimed": crowd(bytes(most), last=MAX_RECORDS),
        "aggregates": crowd(fill(b"\x4a\x00")),
        "aggregates_of_many": crowd(fill(b"\x4a\x00", start=identity, records=99), last=99),
        "pairs": crowd(fill(b"\x3a\x00")),
        "parts": crowd(fill(b"\x62\x00")),
        "numbers": crowd(frame(numbers)),
        "fields": crowd(fill(b"\x08\x00")),
        # As much of it as there may be.
        "aggregates_allowed": crowd(frame(identity, b"\x4a\x00" * MAX_ITEMS)),
        "prev_hashes_allowed": crowd(frame(identity, b"\x5a\x00" * MAX_ITEMS)),
        "numbers_allowed": crowd(frame(identity, b"\x52\x80\x92\xf4\x01" + b"\1" * MAX_ITEMS)),
    }
    for name, data in bombs.items():
        assert len(data) < 300_000
        (tmp_path / name).write_bytes(data)
    ran = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split("\n")[:-1] == [f"{name} refused" for name in sorted(bombs)]
