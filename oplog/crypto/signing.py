"""Ed25519 signatures of the publisher: of heads, and of the key that takes a key's place.

Keys and signatures are lower-case hexadecimal text, as they stand in documents. What is signed
begins with a label, so that a signature of one kind is none of the other.
"""

from __future__ import annotations

import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from oplog.crypto.secret import Secret

_HEAD_LABEL = b"oplog/v1/head\0"
_SUCCESSOR_LABEL = b"oplog/v1/publisher\0"
_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")


def derive_public_key(seed: Secret) -> str:
    """The public key of a seed of 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(bytes(seed)).public_key().public_bytes_raw().hex()


def is_public_key(text: str) -> bool:
    """Whether `text` is a public key as this library writes it."""
    return _PUBLIC_KEY.fullmatch(text) is not None


def sign_head(seed: Secret, document: bytes) -> str:
    """The signature of a head's document."""
    return _sign(seed, _HEAD_LABEL + document)


def is_head_signed(publisher: str, document: bytes, signature: str) -> bool:
    """Whether `publisher` has signed this document as a head."""
    return _is_signed(publisher, _HEAD_LABEL + document, signature)


def sign_successor(seed: Secret, publisher: str) -> str:
    """The signature by which the key of `seed` says that `publisher` takes its place."""
    return _sign(seed, _write_succession(derive_public_key(seed), publisher))


def is_successor_signed(by: str, publisher: str, signature: str) -> bool:
    """Whether the key `by` has said that `publisher` takes its place."""
    return _is_signed(by, _write_succession(by, publisher), signature)


def _write_succession(by: str, publisher: str) -> bytes:
    return _SUCCESSOR_LABEL + bytes.fromhex(by) + bytes.fromhex(publisher)


def _sign(seed: Secret, message: bytes) -> str:
    return Ed25519PrivateKey.from_private_bytes(bytes(seed)).sign(message).hex()


def _is_signed(public_key: str, message: bytes, signature: str) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        # ValueError: a signature or key of another length, or a key that is no point.
        return False
    return True
