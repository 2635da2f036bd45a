"""The exact bytes of formats 1 (sealed) and 2 (plain), padded too, the chain, the keyring's text.

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

from oplog.crypto.hashing import ZERO_HASH, hash_body, hash_record
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import (
    FORMAT_PLAIN,
    FORMAT_SEALED,
    Packing,
    SealContext,
    Sealer,
    name_part,
)

pytestmark = pytest.mark.golden

DATA = Path(__file__).parent / "data"
SEALED = json.loads((DATA / "sealed_v1.json").read_text(encoding="utf-8"))
PADDED = json.loads((DATA / "sealed_padded_v1.json").read_text(encoding="utf-8"))
CHAIN = json.loads((DATA / "chain_v1.json").read_text(encoding="utf-8"))
each_case = pytest.mark.parametrize(
    "case", [*SEALED["cases"], *PADDED["cases"]], ids=lambda case: case["about"]
)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    path = tmp_path / "keyring.json"
    path.write_text(SEALED["keyring"])
    path.chmod(0o600)
    return Keyring.from_file(path)


def context_of(case: dict[str, Any]) -> SealContext:
    return SealContext(UUID(case["log_id"]), case["name"], UUID(case["object_id"]))


def test_format_numbers() -> None:
    assert (FORMAT_SEALED, FORMAT_PLAIN) == (1, 2)


def test_keyring_text_reads_and_writes_the_same(keyring: Keyring) -> None:
    assert (keyring.key_ids, keyring.current_key_id) == (("k1", "k2"), "k2")
    assert keyring.to_text() == SEALED["keyring"]


def test_check_values(keyring: Keyring) -> None:
    found = {key_id: keyring.check_value(key_id).hex() for key_id in keyring.key_ids}
    assert found == SEALED["check_values"]


@each_case
def test_pinned_sealed_bytes_open(keyring: Keyring, case: dict[str, Any]) -> None:
    key_id = case["key_id"]
    opened = Sealer(keyring).open(
        bytes.fromhex(case["sealed"]),
        context_of(case),
        format=1,
        key_id=key_id,
        check_value=bytes.fromhex(SEALED["check_values"][key_id]),
    )
    assert opened.hex() == case["payload"]


@each_case
def test_pinned_plain_bytes_open(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["plain"])
    opened = Sealer(None).open(data, context_of(case), format=2, key_id="")
    assert opened.hex() == case["payload"]


@each_case
def test_sealing_gives_the_pinned_bytes(keyring: Keyring, case: dict[str, Any]) -> None:
    salt, payload = bytes.fromhex(case["salt"]), bytes.fromhex(case["payload"])
    sealer = Sealer(keyring, draw_salt=lambda count: salt[:count])
    packing = Packing(case.get("packing", "smallest"))
    context = context_of(case)
    sealed = sealer.seal(payload, context, key_id=case["key_id"], packing=packing).hex()
    plain = Sealer(None).seal(payload, context, packing=packing).hex()
    if case["compressed"]:
        # Another release of zstd may compress to other bytes; only what is before and
        # independent of them is pinned.
        assert sealed[:112] == case["sealed"][:112]
        assert plain[:10] == case["plain"][:10]
    else:
        assert sealed == case["sealed"]
        assert plain == case["plain"]


@each_case
def test_layout_is_what_the_documentation_says(keyring: Keyring, case: dict[str, Any]) -> None:
    # A second reader, written from the description alone.
    sealed, key_id = bytes.fromhex(case["sealed"]), case["key_id"]
    parts = [
        struct.pack(">I", 1),
        UUID(case["log_id"]).bytes,
        case["name"].encode(),
        UUID(case["object_id"]).bytes,
        key_id.encode(),
    ]
    info = b"oplog/v1/sealed+AEAD_AES_256_GCM\0" + sealed[:24]
    info += b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    derived = HKDFExpand(SHA512(), 76, info).derive(keyring.data_key(key_id))
    assert sealed[24:56] == derived[44:]
    frame = AESGCM(derived[:32]).decrypt(derived[32:44], sealed[56:], None)
    assert frame.hex() == case["plain"]


def test_parts_of_records_are_named_by_their_number() -> None:
    named = [case for case in SEALED["cases"] if "part" in case]
    assert {case["part"] for case in named} == {0, 1, 12}
    for case in named:
        log_id, record_id = UUID(case["log_id"]), UUID(case["object_id"])
        assert name_part(log_id, record_id, case["part"]) == context_of(case)


@pytest.mark.parametrize("case", CHAIN["bodies"])
def test_body_hash(case: dict[str, Any]) -> None:
    found = hash_body(
        format=case["format"],
        record_id=UUID(case["record_id"]),
        key_id=case["key_id"],
        metadata=[(key, value) for key, value in case["metadata"]],
        idempotency_key=case["idempotency_key"],
        aggregates=case["aggregates"],
        parts=[(part["first"], bytes.fromhex(part["data"])) for part in case["parts"]],
    )
    assert found.hex() == case["body_hash"]
    assert hashlib.sha256(_body_of(case)).hexdigest() == case["body_hash"]


def _body_of(case: dict[str, Any]) -> bytes:
    def number(value: int) -> bytes:
        return struct.pack(">I", value)

    def framed(text: str) -> bytes:
        return number(len(text.encode())) + text.encode()

    request = case["idempotency_key"]
    body = b"oplog/v1/record-body\0" + number(case["format"]) + UUID(case["record_id"]).bytes
    body += framed(case["key_id"]) + number(len(case["metadata"]))
    body += b"".join(framed(key) + framed(value) for key, value in case["metadata"])
    body += b"\0" if request is None else b"\1" + framed(request)
    body += number(len(case["aggregates"])) + b"".join(map(framed, case["aggregates"]))
    body += number(len(case["parts"]))
    for part in case["parts"]:
        body += number(part["first"]) + hashlib.sha256(bytes.fromhex(part["data"])).digest()
    return body


@pytest.mark.parametrize("case", CHAIN["records"])
def test_record_hash_is_the_one_postgres_computed(case: dict[str, Any]) -> None:
    # Each was computed by PostgreSQL 15, from the expression in oplog/crypto/hashing.py.
    found = hash_record(
        body_hash=bytes.fromhex(case["body_hash"]),
        position=case["position"],
        recorded_at=datetime.fromisoformat(case["recorded_at"]),
        versions=case["versions"],
        prev_hashes=[bytes.fromhex(prev_hash) for prev_hash in case["prev_hashes"]],
    )
    assert found.hex() == case["record_hash"]


def test_first_record_of_an_aggregate_links_to_zeros() -> None:
    assert bytes(32) == ZERO_HASH
