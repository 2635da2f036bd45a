"""Canonical JSON: what was written is read, and no other spelling of it, nor anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.archive.format.canonical_json import (
    MAX_DEPTH,
    MAX_INTEGER,
    Fields,
    decode_document,
    encode_document,
)
from oplog.errors import ManifestInvalidError

pytestmark = pytest.mark.unit

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), VALUES, max_size=4)
MOST = 1 << 20


def decode(data: bytes) -> dict[str, Any]:
    return decode_document(data, most=MOST, what="a document")


def refused(data: bytes) -> str:
    with pytest.raises(ManifestInvalidError, match="a document is not") as caught:
        decode(data)
    return str(caught.value)


@given(DOCUMENTS)
def test_what_was_encoded_is_decoded(document: dict[str, Any]) -> None:
    assert decode(encode_document(document)) == document


@given(DOCUMENTS, st.data())
def test_no_document_has_a_second_spelling(document: dict[str, Any], data: st.DataObject) -> None:
    bytes_ = bytearray(encode_document(document))
    place = data.draw(st.integers(0, len(bytes_) - 1))
    bytes_[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(bytes_))
    except ManifestInvalidError:
        return
    assert encode_document(found) == bytes_
    assert found != document


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"a":{"b":1,"b":2}}',
        '{"a":1.0}',
        '{"a":1e3}',
        '{"a":-0}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a": 1}',
        ' {"a":1}',
        '{"a":1}\n',
        '{"a":1}{"a":1}',
        '{"b":1,"a":1}',
        '{"a":"\\u0062"}',
        '{"a":"\\/"}',
        '{"a":"\\u00e9"}',
        '{"a":"\\ud800"}',
        '{"\\udc00":1}',
        '{"a":"\x01"}',
        f'{{"a":{MAX_INTEGER + 1}}}',
        f'{{"a":-{MAX_INTEGER + 1}}}',
        '{"a":01}',
        '{"a":' + "9" * 100_000 + "}",
        "[1]",
        "1",
        "null",
        "",
        "\ufeff{}",
        "{",
        '{"a":"',
        '{"a":"\\',
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    refused(text.encode())


@pytest.mark.parametrize("data", [b"\xff", b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b"\x00"])
def test_bytes_that_are_not_text_are_refused(data: bytes) -> None:
    refused(data)


def test_depth_is_limited_before_parsing() -> None:
    inside: Any = 1
    for _ in range(MAX_DEPTH - 1):
        inside = [inside]
    assert decode(encode_document({"a": inside})) == {"a": inside}
    assert "nested" in refused(encode_document({"a": [inside]}))
    assert "nested" in refused(b"[" * MOST)
    assert "nested" in refused(b'{"a":' * 100_000)
    assert "nested" in refused(b'{"a":"\\""' + b"[" * 100)


def test_brackets_in_strings_are_no_depth() -> None:
    document = {'[{"\\': "[" * 100, "b": '\\"' + "{" * 100}
    assert decode(encode_document(document)) == document


def test_size_is_limited() -> None:
    data = encode_document({"a": "b" * 100})
    assert decode_document(data, most=len(data), what="it")
    with pytest.raises(ManifestInvalidError, match="over the limit"):
        decode_document(data, most=len(data) - 1, what="it")


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\0123456789.eEtrufalsn-', max_size=40))
def test_anything_is_a_document_or_refused(data: bytes | str) -> None:
    data = data.encode() if isinstance(data, str) else data
    try:
        found = decode(data)
    except ManifestInvalidError:
        return
    assert encode_document(found) == data


@pytest.mark.parametrize("value", [True, "1", None, -1, 11, [1], {}])
def test_an_integer_is_one_and_in_range(value: object) -> None:
    with pytest.raises(ManifestInvalidError, match="its 'n' is"):
        Fields({"n": value}, "it").take_integer("n", most=10)


@pytest.mark.parametrize("value", [1, None, "abc", ["a"], True])
def test_a_text_is_one_and_short_enough(value: object) -> None:
    with pytest.raises(ManifestInvalidError, match="its 'n' is"):
        Fields({"n": value}, "it").take_text("n", most=2)
    if value is not None:
        with pytest.raises(ManifestInvalidError, match="its 'n' is"):
            Fields({"n": value}, "it").take_optional_text("n", most=2)


@pytest.mark.parametrize(
    "value", [1, "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "\u0660" * 64, "0" * 62 + "0x"]
)
def test_a_hash_is_64_lower_case_digits(value: object) -> None:
    with pytest.raises(ManifestInvalidError, match="not a SHA-256"):
        Fields({"n": value}, "it").take_hash("n")


def test_members_are_taken_once_and_all() -> None:
    fields = Fields(json.loads('{"a":1,"b":[1,2,3]}'), "it")
    assert fields.take_integer("a") == 1
    with pytest.raises(ManifestInvalidError, match="has no 'a'"):
        fields.take("a")
    with pytest.raises(ManifestInvalidError, match="unknown name 'b'"):
        fields.finish()
    with pytest.raises(ManifestInvalidError, match="a list of at most 2"):
        fields.take_list("b", most=2)
    with pytest.raises(ManifestInvalidError, match="a list stands"):
        Fields([], "it")
    with pytest.raises(ManifestInvalidError, match="format number is 2"):
        Fields({"format": 2}, "it").take_format(1)
