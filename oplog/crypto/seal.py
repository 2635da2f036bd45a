"""Compresses and encrypts parts of records and chunks of snapshots, and opens them again.

    sealed = salt (24) | commitment (32) | AES-256-GCM ciphertext and tag of the frame
    plain  = the frame
    frame  = compression (1) | length of the payload (4, big endian) | body

Compression is 0 for none, 1 for zstd, 2 for none and padded to a size class.

Key, nonce and commitment are HKDF-Expand(SHA-512, data key,
label | salt | format | log id | name | object id | key id), each part after the salt with
its length in front. There is no associated data: the context is bound by derivation. Another
value of any part gives an unrelated key, nonce and commitment, and the commitment is compared
first, so bytes moved to another record, log, key id or format never reach the cipher. The
commitment is needed besides: one GCM ciphertext can be built that opens under two keys.

Opening uses bounded memory, and where the log remembers the key's check value it tells a wrong
key from altered bytes.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oplog.crypto.compression import Zstd
from oplog.crypto.keyring import Keyring
from oplog.crypto.padding import pad, strip_padding
from oplog.crypto.secret import Secret
from oplog.entry import MAX_PART_BYTES, check_text
from oplog.errors import (
    DecodeError,
    EntryError,
    EntryTooLargeError,
    KeyUnavailableError,
    SealError,
    WrongKeyError,
)

FORMAT_SEALED = 1
FORMAT_PLAIN = 2

_LABEL = b"oplog/v1/sealed+AEAD_AES_256_GCM\0"
_SALT, _KEY, _NONCE, _COMMITMENT, _TAG = 24, 32, 12, 32, 16
_CLEAR = _SALT + _COMMITMENT
_DERIVED = _KEY + _NONCE + _COMMITMENT
_FRAME = struct.Struct(">BI")
_UNTIL_LOG_ID = struct.Struct(">III16s")
_LENGTH = struct.Struct(">I")
_UNTIL_KEY_ID = struct.Struct(">I16sI")
_OVERHEAD = _CLEAR + _FRAME.size + _TAG

_STORED, _ZSTD, _PADDED = 0, 1, 2
_MIN_COMPRESSED = 256
"""For payloads below this size zstd typically saves less than a tenth, often nothing."""


class Packing(Enum):
    """How a payload is made ready to be sealed.

    Compressed, its size tells how alike its parts are: who writes one part and sees the size finds
    out another part, guess by guess.
    """

    SMALLEST = "smallest"
    """Compressed, if that makes it smaller."""
    STORED = "stored"
    """Never compressed: its size tells its length."""
    PADDED = "padded"
    """Never compressed, and padded to a size class: its size tells about its length."""


@dataclass(frozen=True, slots=True)
class SealContext:
    """What sealed bytes belong to: they open in no other log, object or place in it."""

    log_id: UUID
    name: str
    object_id: UUID

    def __str__(self) -> str:
        return f"{self.name:.80} {self.object_id}"


def name_part(log_id: UUID, record_id: UUID, number: int) -> SealContext:
    """The context of a record's part; parts are numbered from 0."""
    return SealContext(log_id, f"part {number} of record", record_id)


class Sealer:
    """Seals and opens with the keys of one keyring. Safe to share between threads."""

    def __init__(
        self,
        keyring: Keyring | None,
        *,
        accept_plain: bool = False,
        draw_salt: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`keyring=None` writes plaintext; the caller has to tell the user.

        With a keyring, plaintext is refused unless `accept_plain`, which is for a log
        that was begun without one. Otherwise a role that can write the table could add records
        without a key. `draw_salt(n)` returns `n` unpredictable bytes.
        """
        self._keyring = keyring
        self._accept_plain = accept_plain or keyring is None
        self._draw_salt = draw_salt
        self._zstd = Zstd(most=MAX_PART_BYTES)

    @property
    def format(self) -> int:
        """The format number of what `seal` returns."""
        return FORMAT_PLAIN if self._keyring is None else FORMAT_SEALED

    @property
    def key_id(self) -> str:
        """The id of the key that `seal` would use now; '' for plaintext."""
        return "" if self._keyring is None else self._keyring.current_key_id

    def renew_key(self, retired: str) -> str:
        """`Keyring.renew`; the next `key_id` is another one if the keyring has a newer one."""
        return "" if self._keyring is None else self._keyring.renew(retired)

    def seal(
        self,
        payload: bytes,
        context: SealContext,
        *,
        key_id: str | None = None,
        packing: Packing = Packing.SMALLEST,
    ) -> bytes:
        """Return `payload` in its stored form; sealing it twice gives different bytes.

        `key_id` is the id that will be stored beside it. Read `Sealer.key_id` once and use
        that for both: the keyring may be rotated between two reads. Raises
        `EntryTooLargeError` over 16 MiB, `KeyUnavailableError` for an unknown key id.
        """
        if len(payload) > MAX_PART_BYTES:
            raise EntryTooLargeError(
                f"{context} has {len(payload)} bytes; the limit is {MAX_PART_BYTES}",
                hint="split the transaction, or keep large values outside the logged tables",
            )
        frame = self._frame(payload, packing)
        if self._keyring is None:
            return frame
        name = self._keyring.current_key_id if key_id is None else key_id
        salt = self._draw_salt(_SALT)
        key, nonce, commitment = _derive(self._keyring.data_key(name), salt, context, name)
        return salt + commitment + AESGCM(key).encrypt(nonce, frame, None)

    def open(
        self,
        data: bytes,
        context: SealContext,
        *,
        format: int,
        key_id: str,
        check_value: bytes | None = None,
    ) -> bytes:
        """Return the payload of `data`, which was sealed for `context` and stored so.

        `format` and `key_id` are those stored beside it. `check_value` is the key's check value
        in the log (`Keyring.check_value`), if there is one: with it a wrong key and altered
        bytes can be told apart. Raises `KeyUnavailableError` without the key; `WrongKeyError`
        if the keyring has another key under the id, or if that is as likely as altered bytes;
        `SealError` for bytes that were altered or belong to another record; `DecodeError` for
        bytes that no version of `seal` has written.
        """
        if format == FORMAT_SEALED:
            frame = self._open_sealed(data, context, key_id, check_value)
        elif format == FORMAT_PLAIN:
            frame = self._open_plain(data, context, key_id)
        else:
            raise DecodeError(
                f"{context} has the unknown format number {format}",
                hint="it was written by a newer version of this library: upgrade the library",
            )
        return self._unframe(frame, context)

    def _open_sealed(
        self, data: bytes, context: SealContext, key_id: str, check_value: bytes | None
    ) -> bytes:
        if self._keyring is None:
            raise KeyUnavailableError(
                f"{context} is sealed with key {key_id!r}, and there is no keyring",
                hint="give the log the keyring that wrote it: Oplog(..., keyring=...)",
            )
        if not _OVERHEAD <= len(data) <= _OVERHEAD + MAX_PART_BYTES:
            raise _not_ours(context, f"a sealed part cannot have {len(data)} bytes")
        data_key = self._keyring.data_key(key_id)
        if check_value is not None and not hmac.compare_digest(
            self._keyring.check_value(key_id), check_value
        ):
            raise WrongKeyError(
                f"the key {key_id!r} in the keyring is not the one this log was written with",
                hint="find the keyring that wrote the log, or its backup; the record itself was "
                "not checked",
            )
        salt, claimed = data[:_SALT], data[_SALT:_CLEAR]
        key, nonce, commitment = _derive(data_key, salt, context, key_id)
        # Before decrypting: a ciphertext that opens under two keys must not reach the cipher.
        if not hmac.compare_digest(claimed, commitment):
            raise _refused(context, key_id, key_is_right=check_value is not None)
        try:
            return AESGCM(key).decrypt(nonce, data[_CLEAR:], None)
        except InvalidTag as cause:
            raise SealError(
                f"{context} was altered or cut short after it was sealed with key {key_id!r}",
                hint="restore it from the archive or a backup; the key is the right one",
            ) from cause

    def _open_plain(self, data: bytes, context: SealContext, key_id: str) -> bytes:
        if not self._accept_plain:
            raise SealError(
                f"{context} is stored in plaintext, in a log that is read with a keyring",
                hint="if the log was begun without a keyring, allow plaintext too; if not, it "
                "was written without a key and must not be trusted",
            )
        if key_id:
            raise _not_ours(context, f"it is stored in plaintext but names the key {key_id!r}")
        return data

    def _frame(self, payload: bytes, packing: Packing) -> bytes:
        if packing is Packing.PADDED:
            return _FRAME.pack(_PADDED, len(payload)) + pad(payload)
        if packing is Packing.SMALLEST and len(payload) >= _MIN_COMPRESSED:
            body = self._zstd.compress(payload)
            if len(body) < len(payload):
                return _FRAME.pack(_ZSTD, len(payload)) + body
        return _FRAME.pack(_STORED, len(payload)) + payload

    def _unframe(self, frame: bytes, context: SealContext) -> bytes:
        if len(frame) < _FRAME.size:
            raise _not_ours(context, f"a frame cannot have {len(frame)} bytes")
        compression, length = _FRAME.unpack_from(frame)
        # Plaintext is not authenticated, so the frame's numbers may be forged.
        if length > MAX_PART_BYTES:
            raise _not_ours(context, f"it claims {length} bytes, over {MAX_PART_BYTES}")
        body = frame[_FRAME.size :]
        if compression == _ZSTD:
            return self._decompress(body, length, context)
        if compression == _PADDED:
            try:
                return strip_padding(body, size=length)
            except ValueError as cause:
                raise _not_ours(context, str(cause)) from cause
        if compression != _STORED:
            raise DecodeError(
                f"{context} has the unknown compression number {compression}",
                hint="it was written by a newer version of this library: upgrade the library",
            )
        if len(body) != length:
            raise _not_ours(context, f"it claims {length} bytes and has {len(body)}")
        return body

    def _decompress(self, body: bytes, length: int, context: SealContext) -> bytes:
        if length == 0:
            raise _not_ours(context, "it claims 0 bytes, and is compressed")
        try:
            return self._zstd.decompress(body, size=length)
        except ValueError as cause:
            raise _not_ours(context, str(cause)) from cause


def _derive(
    data_key: Secret, salt: bytes, context: SealContext, key_id: str
) -> tuple[Secret, bytes, bytes]:
    """Derive key, nonce and commitment of one part.

    A data key is uniformly random, so HKDF-Extract is not needed. Two blocks of HKDF-Expand hold
    all three; made here, they need none of the objects that `HKDFExpand` gives the same bytes with.
    """
    place = check_text(context.name, "name of what is sealed", EntryError)
    name = key_id.encode()
    info = b"".join(
        (
            _LABEL,
            salt,
            _UNTIL_LOG_ID.pack(4, FORMAT_SEALED, 16, context.log_id.bytes),
            _LENGTH.pack(len(place)),
            place,
            _UNTIL_KEY_ID.pack(16, context.object_id.bytes, len(name)),
            name,
        )
    )
    first = Secret(hmac.digest(data_key, info + b"\x01", "sha512"))
    derived = Secret(first + hmac.digest(data_key, first + info + b"\x02", "sha512"))
    nonce, commitment = derived[_KEY : _KEY + _NONCE], derived[_KEY + _NONCE : _DERIVED]
    return derived[:_KEY], bytes(nonce), bytes(commitment)


def _refused(context: SealContext, key_id: str, *, key_is_right: bool) -> SealError:
    if key_is_right:
        return SealError(
            f"{context} was altered, or was sealed for another record, place or log",
            hint=f"the key {key_id!r} is the right one; restore the record from the archive or "
            "a backup",
        )
    return WrongKeyError(
        f"{context} does not open with the key {key_id!r}: either the key is wrong, or the "
        "part was altered or moved here from elsewhere",
        hint="if others with this key id open, the key is right and this one is "
        "damaged; if none does, find the keyring that wrote them",
    )


def _not_ours(context: SealContext, why: str) -> DecodeError:
    return DecodeError(
        f"{context} does not hold what this library writes: {why}",
        hint="the stored bytes are damaged or cut short; restore the record from the archive "
        "or a backup",
    )
