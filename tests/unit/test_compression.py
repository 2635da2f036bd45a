"""zstd frames: the same bytes each time, and no belief in the size that a frame declares."""

from __future__ import annotations

import struct
import threading

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from oplog.crypto.compression import Zstd

pytestmark = pytest.mark.unit

MOST = 1 << 20
ZSTD = Zstd(most=MOST)


@given(st.binary(max_size=2000) | st.binary(max_size=20).map(lambda one: one * 1000))
def test_what_was_compressed_comes_back(body: bytes) -> None:
    packed = ZSTD.compress(body)
    assert ZSTD.decompress(packed, size=len(body)) == body
    assert Zstd(most=MOST).compress(body) == packed


@pytest.mark.parametrize("size", [0, 99, 101, 1 << 32])
def test_another_size_than_the_frame_declares_is_refused(size: int) -> None:
    packed = ZSTD.compress(b"x" * 100)
    with pytest.raises(ValueError, match=rf"claims {size} bytes, its zstd frame 100"):
        ZSTD.decompress(packed, size=size)


def test_a_frame_without_a_size_is_refused() -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(ValueError, match="claims 100 bytes"):
        ZSTD.decompress(packed, size=100)


def test_a_frame_that_holds_less_than_it_declares_is_refused() -> None:
    # Magic, descriptor with an 8-byte size, an empty last block.
    packed = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 100) + b"\x01\x00\x00"
    with pytest.raises(ValueError, match=r"zstd|claims"):
        ZSTD.decompress(packed, size=100)


@pytest.mark.parametrize("packed", [b"", b"x", b"x" * 100, ZSTD.compress(b"y" * 9) + b"z"])
def test_what_is_no_frame_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="frame"):
        ZSTD.decompress(packed, size=9)


def test_threads_may_share_it() -> None:
    body = bytes(range(256)) * 100
    packed = ZSTD.compress(body)
    wrong: list[int] = []

    def work() -> None:
        for number in range(50):
            if ZSTD.decompress(ZSTD.compress(body), size=len(body)) != body:
                wrong.append(number)
            if ZSTD.compress(body) != packed:
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
