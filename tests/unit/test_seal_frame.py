"""What is inside a sealed part: compression, lengths, and hostile input to both."""

from __future__ import annotations

import os
import struct
import threading
import tracemalloc
from uuid import UUID

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from oplog.crypto.keyring import Keyring
from oplog.crypto.padding import find_size_class
from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED, Packing, Sealer, name_part
from oplog.entry import MAX_PART_BYTES
from oplog.errors import DecodeError

pytestmark = pytest.mark.unit

CONTEXT = name_part(UUID(int=1), UUID(int=2), 0)
PLAIN = Sealer(None)
MEBIBYTE = 1 << 20


def open_plain(data: bytes) -> bytes:
    return PLAIN.open(data, CONTEXT, format=FORMAT_PLAIN, key_id="")


def frame(compression: int, length: int, body: bytes) -> bytes:
    return struct.pack(">BI", compression, length) + body


def test_small_payloads_are_stored_as_they_are() -> None:
    assert PLAIN.seal(b"a" * 255, CONTEXT) == frame(0, 255, b"a" * 255)


def test_larger_payloads_are_compressed() -> None:
    stored = PLAIN.seal(b"a" * 256, CONTEXT)
    assert stored[:5] == frame(1, 256, b"")
    assert len(stored) < 40


def test_payloads_that_do_not_shrink_are_stored_as_they_are() -> None:
    payload = os.urandom(4096)
    assert PLAIN.seal(payload, CONTEXT) == frame(0, 4096, payload)


def test_no_compressor_is_used_by_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfOneThread:
        def __init__(self, **_: object) -> None:
            self.owner = threading.get_ident()

        def compress(self, _: bytes) -> bytes:
            assert threading.get_ident() == self.owner
            return b"compressed"

    monkeypatch.setattr(zstandard, "ZstdCompressor", OfOneThread)
    sealer = Sealer(None)
    sealed = [sealer.seal(bytes(256), CONTEXT)]
    thread = threading.Thread(target=lambda: sealed.append(sealer.seal(bytes(256), CONTEXT)))
    thread.start()
    thread.join()
    assert sealed == [frame(1, 256, b"compressed")] * 2


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes"),
        (b"\0\0\0\0", "4 bytes"),
        (frame(0, 3, b"ab"), "claims 3 bytes and has 2"),
        (frame(0, 3, b"abcd"), "claims 3 bytes and has 4"),
        (frame(0, 0, b"a"), "claims 0 bytes and has 1"),
        (frame(0, MAX_PART_BYTES + 1, b"a"), "over 16777216"),
        (frame(3, 1, b"a"), "unknown compression number 3"),
        (frame(255, 1, b"a"), "unknown compression number 255"),
        (frame(1, 0, b""), "it claims 0 bytes, and is compressed"),
        (frame(1, 0, zstandard.compress(b"")), "claims 0 bytes"),
        (frame(1, 5, b"hello"), "not one zstd frame"),
    ],
)
def test_malformed_frames_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        open_plain(data)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_decode_to_what_they_say(data: bytes) -> None:
    for candidate in (data, b"\1\0\0\1\0" + data):
        try:
            payload = open_plain(candidate)
        except DecodeError:
            continue
        assert len(payload) == int.from_bytes(candidate[1:5], "big")


def test_zstd_frame_must_be_alone_whole_and_of_the_claimed_size() -> None:
    payload = b"abc" * 200
    body = zstandard.compress(payload)
    assert open_plain(frame(1, 600, body)) == payload
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"abcd"
    without_size = zstandard.ZstdCompressor(write_content_size=False).compress(payload)
    for altered in (body + b"x", body + body, body + skippable, skippable + body, body[:-1]):
        with pytest.raises(DecodeError):
            open_plain(frame(1, 600, altered))
    for length in (0, 1, 599, 601):
        with pytest.raises(DecodeError):
            open_plain(frame(1, length, body))
    with pytest.raises(DecodeError, match="zstd frame -1"):
        open_plain(frame(1, 600, without_size))


@pytest.mark.parametrize("claimed", [100, MAX_PART_BYTES, 64 * MEBIBYTE])
@pytest.mark.parametrize("declares_size", [True, False])
def test_decompression_bomb_is_refused_in_bounded_memory(claimed: int, declares_size: bool) -> None:
    size = 64 * MEBIBYTE
    writer = zstandard.ZstdCompressor().compressobj(size=size if declares_size else -1)
    zeros = bytes(MEBIBYTE)
    bomb = b"".join(writer.compress(zeros) for _ in range(size // MEBIBYTE)) + writer.flush()
    assert len(bomb) < 10_000
    data = frame(1, claimed, bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            open_plain(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEBIBYTE


def test_frame_that_lies_about_its_size_is_refused() -> None:
    body = bytearray(zstandard.compress(b"abc" * 200))
    assert body[4] >> 6 == 1  # the size is two bytes, and 256 less than it means
    for size in (300, 599, 601, 60_000):
        body[5:7] = struct.pack("<H", size - 256)
        with pytest.raises(DecodeError):
            open_plain(frame(1, size, bytes(body)))


# -- padding ------------------------------------------------------------------------------


def pad_frame(payload: bytes, padding: bytes) -> bytes:
    return frame(2, len(payload), payload + padding)


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        (0, 256),
        (1, 256),
        (256, 256),
        (257, 512),
        (2049, 4096),
        (4096, 4096),
        (4097, 4608),
        (4608, 4608),
        (4609, 5120),
        (8192, 8192),
        (8193, 9216),
        (100_000, 106_496),
        (MAX_PART_BYTES - 1, MAX_PART_BYTES),
        (MAX_PART_BYTES, MAX_PART_BYTES),
    ],
)
def test_size_classes(size: int, padded: int) -> None:
    assert find_size_class(size) == padded


@given(st.integers(0, MAX_PART_BYTES))
def test_a_class_is_its_own_and_wastes_little(size: int) -> None:
    padded = find_size_class(size)
    assert size <= padded == find_size_class(padded)
    assert padded <= max(256, 2 * size)
    assert size <= 4096 or padded - size <= size / 8


@pytest.mark.parametrize("payload", [b"", b"a", b"a" * 300, b"\0" * 300, os.urandom(5000)])
def test_padded_payloads_are_stored_as_they_are_with_zeros_behind(payload: bytes) -> None:
    stored = PLAIN.seal(payload, CONTEXT, packing=Packing.PADDED)
    assert stored == pad_frame(payload, bytes(find_size_class(len(payload)) - len(payload)))
    assert open_plain(stored) == payload


@pytest.mark.parametrize("size", [255, 256, 5000])
def test_payloads_that_are_only_stored_have_their_size(size: int) -> None:
    stored = PLAIN.seal(b"a" * size, CONTEXT, packing=Packing.STORED)
    assert stored == frame(0, size, b"a" * size)


def test_the_largest_padded_part_is_sealed_and_opened() -> None:
    sealer = Sealer(Keyring.generate())
    payload = bytes(MAX_PART_BYTES - 1) + b"x"
    for part in (payload, payload[1:]):
        sealed = sealer.seal(part, CONTEXT, packing=Packing.PADDED)
        opened = sealer.open(sealed, CONTEXT, format=FORMAT_SEALED, key_id=sealer.key_id)
        assert opened == part


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frame(2, 1, b"a"), "1 bytes are padded to 256, and it has 1"),
        (pad_frame(b"a", bytes(254)), "padded to 256, and it has 255"),
        (pad_frame(b"a", bytes(256)), "padded to 256, and it has 257"),
        (pad_frame(b"a", bytes(511)), "padded to 256, and it has 512"),
        (pad_frame(b"a" * 257, b""), "padded to 512, and it has 257"),
        (pad_frame(b"a", bytes(254) + b"b"), "something other than zeros"),
        (pad_frame(b"a", b"b" + bytes(254)), "something other than zeros"),
        (frame(2, MAX_PART_BYTES + 1, bytes(300)), "claims 16777217 bytes, over"),
        (frame(2, MAX_PART_BYTES, bytes(300)), "padded to 16777216, and it has 300"),
    ],
)
def test_malformed_padding_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        open_plain(data)


def test_padding_is_under_the_seal() -> None:
    """Sizes before sealing are nowhere outside."""
    sealer = Sealer(Keyring.generate(), draw_salt=bytes)
    one, other = (
        sealer.seal(payload, CONTEXT, packing=Packing.PADDED) for payload in (b"a" * 10, b"a" * 200)
    )
    assert len(one) == len(other)
    assert one[:56] == other[:56]
    assert one[56:61] != other[56:61]
