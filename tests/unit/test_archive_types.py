"""The object with types and check values: one spelling, complete, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.archive.format.canonical_json import encode_document
from oplog.archive.format.typefile import LoggedTypes, decode_types, encode_types
from oplog.errors import ManifestInvalidError
from tests.archived import make_shape

pytestmark = pytest.mark.unit

SHAPES = [make_shape("account"), make_shape("account", 2), make_shape("bank")]
TYPES = LoggedTypes(SHAPES, {"k1": bytes(16), "k2": b"\xff" * 16})
DATA = encode_types(TYPES)


def refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalidError, match="BLOB/x"):
        decode_types(data, what="BLOB/x")


@given(
    st.permutations(SHAPES).flatmap(lambda all_: st.integers(0, 3).map(lambda n: all_[:n])),
    st.dictionaries(st.text("k012", min_size=1, max_size=3), st.binary(max_size=20), max_size=3),
)
def test_types_come_back_in_order(shapes: list[Any], checks: dict[str, bytes]) -> None:
    data = encode_types(LoggedTypes(shapes, checks))
    found = decode_types(data, what="it")
    assert found.shapes == sorted(shapes, key=lambda shape: (shape.type_name, shape.revision))
    assert found.key_checks == checks
    assert encode_types(found) == data


def edit(change: Callable[[Any], None]) -> bytes:
    document = json.loads(DATA)
    change(document)
    return encode_document(document)


def put(*path: str | int, value: Any) -> bytes:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return edit(change)


@pytest.mark.parametrize(
    "data",
    [
        put("format", value=2),
        put("new", value=1),
        put("types", value={}),
        put("types", value=[1]),
        put("types", 0, "revision", value=0),
        put("types", 0, "revision", value=2),
        put("types", 0, "name", value="zebra"),
        put("types", 0, "name", value=1),
        put("types", 0, "descriptor", value="===="),
        put("types", 0, "descriptor", value="QR=="),
        put("types", 0, "descriptor", value="QQ==\n"),
        put("types", 0, "descriptor", value="é"),
        put("types", 0, "shape", value=[]),
        put("types", 0, "shape", value={}),
        put("types", 0, "shape", "new", value=1),
        put("types", 0, "shape", "table", value=["account"]),
        put("types", 0, "shape", "excluded", value=[]),
        put("types", 0, "shape", "excluded", value={"a": 1}),
        put("types", 0, "shape", "columns", value={}),
        put("types", 0, "shape", "columns", 0, value="id"),
        put("types", 0, "shape", "columns", 0, "kind", value="nothing"),
        put("types", 0, "shape", "columns", 0, "kind", value="INT"),
        put("types", 0, "shape", "columns", 0, "number", value="1"),
        put("types", 0, "shape", "columns", 0, "number", value=True),
        put("types", 0, "shape", "columns", 0, "primary_key", value=1),
        put("types", 0, "shape", "columns", 0, "name", value=None),
        put("keys", value=[]),
        put("keys", "k1", value="0"),
        put("keys", "k1", value="00 00"),
        put("keys", "k1", value="FF"),
        put("keys", "k1", value=0),
    ],
    ids=count(),
)
def test_other_documents_are_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("name", ["format", "types", "keys"])
def test_no_member_may_be_missing(name: str) -> None:
    refused(edit(lambda document: document.pop(name)))


def test_members_of_types_may_not_be_missing() -> None:
    for name in ("name", "revision", "shape", "descriptor"):
        refused(edit(lambda document, name=name: document["types"][0].pop(name)))  # type: ignore[misc]
    for name in json.loads(DATA)["types"][0]["shape"]:
        refused(edit(lambda document, name=name: document["types"][0]["shape"].pop(name)))  # type: ignore[misc]


@given(st.data())
def test_altered_bytes_are_refused_or_say_something_else(data: st.DataObject) -> None:
    altered = bytearray(DATA)
    altered[data.draw(st.integers(0, len(DATA) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_types(bytes(altered), what="it")
    except ManifestInvalidError:
        return
    # A descriptor may say nearly anything; the name of the object has the hash of its bytes.
    assert encode_types(found) == altered
    assert found != TYPES


@given(st.binary(max_size=100))
def test_random_bytes_are_refused(data: bytes) -> None:
    refused(data)
    refused(DATA[: len(data) * 10])
