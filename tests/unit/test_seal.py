"""Sealing: what goes in comes out, and nothing that was not sealed for this part does."""

from __future__ import annotations

import dataclasses
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED, SealContext, Sealer, name_part
from oplog.entry import MAX_PART_BYTES
from oplog.errors import (
    DecodeError,
    EntryError,
    EntryTooLargeError,
    KeyUnavailableError,
    SealError,
    WrongKeyError,
)

pytestmark = pytest.mark.unit

CONTEXT = name_part(UUID(int=1), UUID(int=2), 3)
KEYRING = Keyring.generate()
KEY_ID = KEYRING.current_key_id
CHECK = KEYRING.check_value(KEY_ID)
SEALER = Sealer(KEYRING)
PLAIN = Sealer(None)
CLEAR_BYTES = 24 + 32
SHORTEST = CLEAR_BYTES + 5 + 16


def open_sealed(
    data: bytes, *, context: SealContext = CONTEXT, check_value: bytes | None = CHECK
) -> bytes:
    return SEALER.open(data, context, format=FORMAT_SEALED, key_id=KEY_ID, check_value=check_value)


def open_plain(data: bytes) -> bytes:
    return PLAIN.open(data, CONTEXT, format=FORMAT_PLAIN, key_id="")


# -- round trip ---------------------------------------------------------------------------


@given(
    payload=st.one_of(
        st.binary(max_size=600), st.binary(min_size=1, max_size=9).map(lambda part: part * 200)
    ),
    name=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60),
    log_id=st.uuids(),
    object_id=st.uuids(),
)
def test_what_was_sealed_is_what_opens(
    payload: bytes, name: str, log_id: UUID, object_id: UUID
) -> None:
    context = SealContext(log_id, name, object_id)
    for sealer in (SEALER, PLAIN):
        stored = sealer.seal(payload, context)
        opened = sealer.open(stored, context, format=sealer.format, key_id=sealer.key_id)
        assert opened == payload


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 100_000, MAX_PART_BYTES])
@pytest.mark.parametrize("compressible", [True, False])
def test_every_size_up_to_the_limit_round_trips(size: int, compressible: bool) -> None:
    payload = bytes(size) if compressible else os.urandom(size)
    assert open_sealed(SEALER.seal(payload, CONTEXT)) == payload


def test_payload_over_the_limit_is_refused_before_sealing() -> None:
    with pytest.raises(EntryTooLargeError, match=str(MAX_PART_BYTES + 1)):
        SEALER.seal(bytes(MAX_PART_BYTES + 1), CONTEXT)


def test_sealed_bytes_show_nothing_of_the_payload() -> None:
    assert b"secret" not in SEALER.seal(b"secret " * 8, CONTEXT)


def test_the_same_payload_is_never_sealed_to_the_same_bytes() -> None:
    sealed = {SEALER.seal(b"payload", CONTEXT) for _ in range(50)}
    assert len(sealed) == 50
    assert len({data[:24] for data in sealed}) == 50


def test_repeated_salt_still_gives_every_record_its_own_key_stream() -> None:
    stuck = Sealer(KEYRING, draw_salt=lambda count: b"\7" * count)
    first = stuck.seal(bytes(64), CONTEXT)
    second = stuck.seal(bytes(64), dataclasses.replace(CONTEXT, object_id=UUID(int=3)))
    assert first[:24] == second[:24]
    assert first[24:56] != second[24:56]
    same = sum(a == b for a, b in zip(first[56:], second[56:], strict=True))
    assert same < 10  # equal plaintexts under one key and nonce would agree in all 69


def test_threads_share_one_sealer() -> None:
    def seal_and_open(number: int) -> bool:
        payload = f"row {number} ".encode() * 200
        return open_sealed(SEALER.seal(payload, CONTEXT)) == payload

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(seal_and_open, range(400)))


# -- altered bytes ------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"short payload", b"long and compressed " * 40])
def test_every_flipped_bit_is_refused(payload: bytes) -> None:
    sealed = SEALER.seal(payload, CONTEXT)
    for index, bit in itertools.product(range(len(sealed)), range(8)):
        altered = bytearray(sealed)
        altered[index] ^= 1 << bit
        with pytest.raises(SealError) as refusal:
            open_sealed(bytes(altered))
        # The key was checked and is right: this is never reported as a wrong key.
        assert type(refusal.value) is SealError, index


def test_every_truncation_is_refused() -> None:
    sealed = SEALER.seal(b"payload", CONTEXT)
    for length in range(len(sealed)):
        expected = DecodeError if length < SHORTEST else SealError
        with pytest.raises(expected):
            open_sealed(sealed[:length])


@pytest.mark.parametrize("extra", [b"\0", b"x" * 16, b"x" * 500])
def test_bytes_before_or_after_are_refused(extra: bytes) -> None:
    sealed = SEALER.seal(b"payload", CONTEXT)
    for data in (sealed + extra, extra + sealed):
        with pytest.raises(SealError):
            open_sealed(data)


def test_pieces_of_two_sealed_parts_do_not_combine() -> None:
    one, two = SEALER.seal(b"payload 1", CONTEXT), SEALER.seal(b"payload 2", CONTEXT)
    for cut in (24, 56):
        with pytest.raises(SealError):
            open_sealed(one[:cut] + two[cut:])


def test_oversized_bytes_are_refused_without_decrypting_them() -> None:
    with pytest.raises(DecodeError, match="cannot have"):
        open_sealed(bytes(SHORTEST + MAX_PART_BYTES + 1))


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(CONTEXT, log_id=UUID(int=9)),
        name_part(CONTEXT.log_id, CONTEXT.object_id, 4),
        name_part(CONTEXT.log_id, CONTEXT.object_id, 33),
        dataclasses.replace(CONTEXT, name="part"),
        dataclasses.replace(CONTEXT, name=""),
        dataclasses.replace(CONTEXT, object_id=UUID(int=9)),
        SealContext(CONTEXT.object_id, CONTEXT.name, CONTEXT.log_id),
    ],
)
def test_a_part_moved_elsewhere_does_not_open(other: SealContext) -> None:
    sealed = SEALER.seal(b"payload", CONTEXT)
    with pytest.raises(SealError, match="another record, place or log") as refusal:
        open_sealed(sealed, context=other)
    assert type(refusal.value) is SealError


def test_boundary_between_name_and_key_id_is_bound() -> None:
    # Without lengths in front, ("a" + object id + "b...", "") could pass for another split.
    sealed = SEALER.seal(b"payload", CONTEXT)
    shifted = dataclasses.replace(CONTEXT, name=CONTEXT.name + KEY_ID)
    with pytest.raises(SealError):
        open_sealed(sealed, context=shifted)


def test_same_key_under_another_id_does_not_open_it() -> None:
    other_id = KEY_ID[::-1]  # as long as the first: its text has to count, not its length
    renamed = Sealer(_keyring_from(KEYRING.to_text().replace(KEY_ID, other_id)))
    sealed = SEALER.seal(b"payload", CONTEXT)
    with pytest.raises(SealError):
        renamed.open(sealed, CONTEXT, format=FORMAT_SEALED, key_id=other_id)


# -- keys ---------------------------------------------------------------------------------


def _keyring_from(text: str) -> Keyring:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYRING_OF_TEST", text)
        return Keyring.from_env("KEYRING_OF_TEST")


def _same_id_other_key() -> Sealer:
    other = Keyring.generate()
    return Sealer(_keyring_from(other.to_text().replace(other.current_key_id, KEY_ID)))


def test_wrong_key_is_told_from_damage_by_the_check_value() -> None:
    sealed = SEALER.seal(b"payload", CONTEXT)
    with pytest.raises(WrongKeyError, match="not the one this log was written with"):
        _same_id_other_key().open(
            sealed, CONTEXT, format=FORMAT_SEALED, key_id=KEY_ID, check_value=CHECK
        )


def test_without_a_check_value_both_possibilities_are_named() -> None:
    sealed = SEALER.seal(b"payload", CONTEXT)
    with pytest.raises(WrongKeyError, match=r"either the key is wrong, or the part was altered"):
        _same_id_other_key().open(sealed, CONTEXT, format=FORMAT_SEALED, key_id=KEY_ID)
    with pytest.raises(WrongKeyError, match="or moved"):
        open_sealed(bytes([sealed[0] ^ 1]) + sealed[1:], check_value=None)


def test_altered_ciphertext_is_not_a_wrong_key_even_without_a_check_value() -> None:
    sealed = SEALER.seal(b"payload", CONTEXT)
    with pytest.raises(SealError, match="altered or cut short") as refusal:
        open_sealed(sealed[:-1] + bytes([sealed[-1] ^ 1]), check_value=None)
    assert type(refusal.value) is SealError


def test_unknown_key_id_names_the_ids_there_are() -> None:
    sealed = SEALER.seal(b"payload", CONTEXT)
    with pytest.raises(KeyUnavailableError, match="no key 'elsewhere'") as refusal:
        SEALER.open(sealed, CONTEXT, format=FORMAT_SEALED, key_id="elsewhere")
    assert KEY_ID in refusal.value.hint
    with pytest.raises(KeyUnavailableError):
        SEALER.seal(b"payload", CONTEXT, key_id="elsewhere")


def test_a_sealed_part_without_a_keyring() -> None:
    with pytest.raises(KeyUnavailableError, match="no keyring"):
        PLAIN.open(SEALER.seal(b"x", CONTEXT), CONTEXT, format=FORMAT_SEALED, key_id=KEY_ID)


def test_parts_sealed_before_and_after_a_rotation_open() -> None:
    keyring = Keyring.generate()
    sealer = Sealer(keyring)
    old = sealer.key_id
    before = sealer.seal(b"before", CONTEXT)
    new = keyring.rotate()
    after = sealer.seal(b"after", CONTEXT)
    assert sealer.key_id == new != old
    assert sealer.open(before, CONTEXT, format=FORMAT_SEALED, key_id=old) == b"before"
    assert sealer.open(after, CONTEXT, format=FORMAT_SEALED, key_id=new) == b"after"


def test_key_id_read_before_a_rotation_is_the_one_used() -> None:
    keyring = Keyring.generate()
    sealer = Sealer(keyring)
    key_id = sealer.key_id
    keyring.rotate()
    sealed = sealer.seal(b"payload", CONTEXT, key_id=key_id)
    assert sealer.open(sealed, CONTEXT, format=FORMAT_SEALED, key_id=key_id) == b"payload"


# -- formats -----------------------------------------------------------------------------


def test_what_a_sealer_writes_is_declared() -> None:
    assert (SEALER.format, SEALER.key_id) == (FORMAT_SEALED, KEY_ID) == (1, KEY_ID)
    assert (PLAIN.format, PLAIN.key_id) == (FORMAT_PLAIN, "") == (2, "")


@pytest.mark.parametrize("number", [-1, 0, 3, 255, 2**31])
def test_unknown_format_is_never_guessed(number: int) -> None:
    with pytest.raises(DecodeError, match=f"unknown format number {number}") as refusal:
        SEALER.open(SEALER.seal(b"x", CONTEXT), CONTEXT, format=number, key_id=KEY_ID)
    assert "upgrade" in refusal.value.hint


def test_plaintext_is_refused_where_parts_are_sealed() -> None:
    forged = PLAIN.seal(b"forged", CONTEXT)
    with pytest.raises(SealError, match="plaintext"):
        SEALER.open(forged, CONTEXT, format=FORMAT_PLAIN, key_id="")
    mixed = Sealer(KEYRING, accept_plain=True)
    assert mixed.open(forged, CONTEXT, format=FORMAT_PLAIN, key_id="") == b"forged"
    assert mixed.format == FORMAT_SEALED


def test_plaintext_that_names_a_key_contradicts_itself() -> None:
    with pytest.raises(DecodeError, match="names the key"):
        PLAIN.open(PLAIN.seal(b"x", CONTEXT), CONTEXT, format=FORMAT_PLAIN, key_id=KEY_ID)


def test_sealed_bytes_do_not_open_as_plaintext() -> None:
    for _ in range(50):
        with pytest.raises(DecodeError):
            open_plain(SEALER.seal(b"payload", CONTEXT))


@pytest.mark.parametrize("name", ["nul\0", "surrogate \ud800"])
def test_a_name_that_could_not_be_stored_is_refused(name: str) -> None:
    with pytest.raises(EntryError, match="name of what is sealed"):
        SEALER.seal(b"x", SealContext(uuid4(), name, uuid4()))


def test_a_context_says_what_it_is_of() -> None:
    assert str(CONTEXT) == f"part 3 of record {UUID(int=2)}"
    long = SealContext(UUID(int=1), "x" * 500, UUID(int=2))
    assert str(long) == f"{'x' * 80} {UUID(int=2)}"
