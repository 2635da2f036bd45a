"""The exact bytes of format 1 (sealed), format 2 (plain), the chain and the keyring's text.

Logs hold these for ever. When a test here fails, the code is wrong, not the data: what is
once written must open with every later version, and its hashes must come out the same.
"""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from oplog.crypto.hashing import ZERO_HASH, hash_body, hash_entry, hash_metadata
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED, SealContext, Sealer

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data"
SEALED = json.loads((DATA / "sealed_v1.json").read_text(encoding="utf-8"))
CHAIN = json.loads((DATA / "chain_v1.json").read_text(encoding="utf-8"))
each_entry = pytest.mark.parametrize("entry", SEALED["entries"], ids=lambda entry: entry["name"])


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    path = tmp_path / "keyring.json"
    path.write_text(SEALED["keyring"])
    path.chmod(0o600)
    return Keyring.from_file(path)


def context_of(entry: dict[str, Any]) -> SealContext:
    return SealContext(UUID(entry["log_id"]), entry["aggregate"], UUID(entry["entry_id"]))


def test_format_numbers() -> None:
    assert (FORMAT_SEALED, FORMAT_PLAIN) == (1, 2)


def test_keyring_text_reads_and_writes_the_same(keyring: Keyring) -> None:
    assert (keyring.key_ids, keyring.current_key_id) == (("k1", "k2"), "k2")
    assert keyring.to_text() == SEALED["keyring"]


def test_check_values(keyring: Keyring) -> None:
    found = {key_id: keyring.check_value(key_id).hex() for key_id in keyring.key_ids}
    assert found == SEALED["check_values"]


@each_entry
def test_pinned_sealed_bytes_open(keyring: Keyring, entry: dict[str, Any]) -> None:
    key_id = entry["key_id"]
    opened = Sealer(keyring).open(
        bytes.fromhex(entry["sealed"]),
        context_of(entry),
        format=1,
        key_id=key_id,
        check_value=bytes.fromhex(SEALED["check_values"][key_id]),
    )
    assert opened.hex() == entry["payload"]


@each_entry
def test_pinned_plain_bytes_open(entry: dict[str, Any]) -> None:
    data = bytes.fromhex(entry["plain"])
    opened = Sealer(None).open(data, context_of(entry), format=2, key_id="")
    assert opened.hex() == entry["payload"]


@each_entry
def test_sealing_gives_the_pinned_bytes(keyring: Keyring, entry: dict[str, Any]) -> None:
    salt, payload = bytes.fromhex(entry["salt"]), bytes.fromhex(entry["payload"])
    sealer = Sealer(keyring, draw_salt=lambda count: salt[:count])
    sealed = sealer.seal(payload, context_of(entry), key_id=entry["key_id"]).hex()
    plain = Sealer(None).seal(payload, context_of(entry)).hex()
    if entry["compressed"]:
        # Another release of zstd may compress to other bytes; only what is before and
        # independent of them is pinned.
        assert sealed[:112] == entry["sealed"][:112]
        assert plain[:10] == entry["plain"][:10]
    else:
        assert sealed == entry["sealed"]
        assert plain == entry["plain"]


@each_entry
def test_layout_is_what_the_documentation_says(keyring: Keyring, entry: dict[str, Any]) -> None:
    # A second reader, written from the description alone.
    sealed, key_id = bytes.fromhex(entry["sealed"]), entry["key_id"]
    parts = [
        struct.pack(">I", 1),
        UUID(entry["log_id"]).bytes,
        entry["aggregate"].encode(),
        UUID(entry["entry_id"]).bytes,
        key_id.encode(),
    ]
    info = b"oplog/v1/entry+AEAD_AES_256_GCM\0" + sealed[:24]
    info += b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    derived = HKDFExpand(SHA512(), 76, info).derive(keyring.data_key(key_id))
    assert sealed[24:56] == derived[44:]
    frame = AESGCM(derived[:32]).decrypt(derived[32:44], sealed[56:], None)
    assert frame.hex() == entry["plain"]


@pytest.mark.parametrize("case", CHAIN["metadata"])
def test_metadata_hash(case: dict[str, Any]) -> None:
    pairs = [(key, value) for key, value in case["pairs"]]
    assert hash_metadata(pairs).hex() == case["metadata_hash"]
    framed = struct.pack(">I", len(pairs))
    for text in (text.encode() for pair in pairs for text in pair):
        framed += struct.pack(">I", len(text)) + text
    expected = hashlib.sha256(b"oplog/v1/metadata\0" + framed).hexdigest()
    assert expected == case["metadata_hash"]


@pytest.mark.parametrize("case", CHAIN["bodies"])
def test_body_hash(case: dict[str, Any]) -> None:
    found = hash_body(
        format=case["format"],
        entry_id=UUID(case["entry_id"]),
        aggregate=case["aggregate"],
        key_id=case["key_id"],
        metadata_hash=bytes.fromhex(case["metadata_hash"]),
        transaction_size=case["transaction_size"],
        idempotency_key=case["idempotency_key"],
        data=bytes.fromhex(case["data"]),
    )
    assert found.hex() == case["body_hash"]
    assert hashlib.sha256(_body_of(case)).hexdigest() == case["body_hash"]


def _body_of(case: dict[str, Any]) -> bytes:
    def framed(part: bytes) -> bytes:
        return struct.pack(">I", len(part)) + part

    request = case["idempotency_key"]
    return (
        b"oplog/v1/body\0"
        + struct.pack(">I", case["format"])
        + UUID(case["entry_id"]).bytes
        + framed(case["aggregate"].encode())
        + framed(case["key_id"].encode())
        + bytes.fromhex(case["metadata_hash"])
        + struct.pack(">I", case["transaction_size"])
        + (b"\0" if request is None else b"\1" + framed(request.encode()))
        + framed(bytes.fromhex(case["data"]))
    )


@pytest.mark.parametrize("case", CHAIN["entries"])
def test_entry_hash_is_the_one_postgres_computed(case: dict[str, Any]) -> None:
    # Each was computed by PostgreSQL 15 and 18, from the expression in oplog/chain.py.
    found = hash_entry(
        prev_hash=bytes.fromhex(case["prev_hash"]),
        version=case["version"],
        recorded_at=datetime.fromisoformat(case["recorded_at"]),
        body_hash=bytes.fromhex(case["body_hash"]),
    )
    assert found.hex() == case["entry_hash"]


def test_first_entry_of_an_aggregate_links_to_zeros() -> None:
    assert bytes(32) == ZERO_HASH
