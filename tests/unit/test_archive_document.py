"""Canonical JSON: what was written is read, and no other spelling of it, nor anything else."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.archive.format.canonical_json import (
    MAX_DEPTH,
    MAX_INTEGER,
    Document,
    Format,
    HexText,
    Moment,
    Name,
    Natural,
    Sha256Text,
    Text,
    encode_document,
    list_members,
    read_document,
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


class Anything(Document, frozen=True, tag=1, tag_field="format"):
    """A document with a member of any kind."""

    a: Any


class Inner(Document, frozen=True):
    n: int


class Typed(Document, frozen=True, tag=1, tag_field="format"):
    """A document with members of the kinds that are used."""

    a: Natural
    b: Sha256Text
    c: Text | None
    d: tuple[Inner, ...]
    e: Annotated[tuple[Name, ...], msgspec.Meta(max_length=2)]


ANYTHING = {1: Format(Anything, lambda document, _: document.a)}
TYPED = {1: Format(Typed, lambda document, _: document)}
MOST = 1 << 20


def decode(data: bytes) -> Any:
    return read_document(data, ANYTHING, most=MOST, what="a document")


def spell(value: Any) -> bytes:
    """A document that holds `value`, as the standard library spells it."""
    document = {"a": value, "format": 1}
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def refused(data: bytes) -> str:
    with pytest.raises(ManifestInvalidError, match="a document is not") as caught:
        decode(data)
    return str(caught.value)


@given(VALUES)
def test_the_spelling_is_that_of_the_standard_library_sorted_and_dense(value: Any) -> None:
    assert encode_document(Anything(a=value)) == spell(value)
    assert encode_document({"format": 1, "a": value}) == spell(value)


def test_a_document_takes_the_attributes_that_it_has_as_members() -> None:
    class Longer(Document, frozen=True):
        n: int
        m: int

    assert list_members(Longer(n=1, m=2), Inner) == {"n": 1}


@given(VALUES)
def test_what_was_encoded_is_decoded(value: Any) -> None:
    assert decode(spell(value)) == value


@given(VALUES, st.data())
def test_no_document_has_a_second_spelling(value: Any, data: st.DataObject) -> None:
    bytes_ = bytearray(spell(value))
    place = data.draw(st.integers(0, len(bytes_) - 1))
    bytes_[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(bytes_))
    except ManifestInvalidError:
        return
    assert spell(found) == bytes_
    assert found != value


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1,"format":1}',
        '{"a":1,"format":1,"format":1}',
        '{"a":1,"format":2,"format":1}',
        '{"a":{"b":1,"b":2},"format":1}',
        '{"a":1,"b":1,"format":1}',
        '{"a":-0,"format":1}',
        '{"a":NaN,"format":1}',
        '{"a":Infinity,"format":1}',
        '{"a": 1,"format":1}',
        ' {"a":1,"format":1}',
        '{"a":1,"format":1}\n',
        '{"a":1,"format":1}{"a":1,"format":1}',
        '{"format":1,"a":1}',
        '{"a":1,"format":1.0}',
        '{"a":1,"format":1e0}',
        '{"a":1,"format":true}',
        '{"a":1,"format":"1"}',
        '{"a":1,"format":null}',
        '{"a":1}',
        '{"format":1}',
        '{"a":"\\u0062","format":1}',
        '{"a":"\\/","format":1}',
        '{"a":"\\u00e9","format":1}',
        '{"a":"\\ud800","format":1}',
        '{"a":{"\\udc00":1},"format":1}',
        '{"\\udc00":1,"a":1,"format":1}',
        '{"a":"\x01","format":1}',
        '{"a":01,"format":1}',
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


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b'{"a":"\xff","format":1}',
        b'{"a":"\xed\xa0\x80","format":1}',
        b'{"a":{"\xff":1},"format":1}',
        b'{"a":1,"format":1,"\xff":1}',
        b"\x00",
    ],
)
def test_bytes_that_are_not_text_are_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize(
    "number",
    ["1.0", "1e3", str(MAX_INTEGER + 1), f"-{MAX_INTEGER + 1}", "9" * 100, "9" * 100_000],
)
@pytest.mark.parametrize("kind", [Natural, Moment])
def test_numbers_that_are_no_integers_of_64_bits_are_refused(number: str, kind: Any) -> None:
    numbered = msgspec.defstruct(
        "Numbered", [("a", kind)], bases=(Document,), tag=1, tag_field="format"
    )
    formats: Any = {1: Format(numbered, lambda document, _: document.a)}
    assert read_document(b'{"a":5,"format":1}', formats, most=MOST, what="it") == 5
    with pytest.raises(ManifestInvalidError):
        read_document(
            b'{"a":%s,"format":1}' % number.encode(), formats, most=MOST, what="a document"
        )


def test_integers_of_64_bits_are_read_up_to_the_last() -> None:
    assert decode(spell((1 << 63) - 1)) == MAX_INTEGER == (1 << 63) - 1
    typed = read_document(encode_document(GOOD | {"a": MAX_INTEGER}), TYPED, most=MOST, what="it")
    assert typed.a == MAX_INTEGER


def test_a_format_that_is_not_known_is_refused_by_its_number() -> None:
    # Its other members may be anything: what they mean is not known.
    for data in (b'{"format":2}', b'{"a":1.5,"format":2,"z":[null]}'):
        assert "its format number is 2, this library knows 1" in refused(data)
    for number in (0, -1, MAX_INTEGER):
        assert f"its format number is {number}, " in refused(b'{"a":1,"format":%d}' % number)


def test_each_format_is_read_in_its_own_way() -> None:
    class Second(Document, frozen=True, tag=2, tag_field="format"):
        b: Natural

    formats: Any = {2: Format(Second, lambda document, _: -document.b), **ANYTHING}

    def read(data: bytes) -> Any:
        return read_document(data, formats, most=MOST, what="it")

    assert read(encode_document(Anything(a=7))) == 7
    assert read(encode_document(Second(b=7))) == -7
    with pytest.raises(ManifestInvalidError, match="format number is 3, this library knows 1, 2"):
        read(b'{"b":7,"format":3}')
    with pytest.raises(ManifestInvalidError, match="unknown field `b`"):
        read(b'{"b":7,"format":1}')


def test_depth_is_limited_before_parsing() -> None:
    inside: Any = 1
    for _ in range(MAX_DEPTH - 1):
        inside = [inside]
    assert decode(spell(inside)) == inside
    assert "nested" in refused(spell([inside]))
    assert "nested" in refused(b"[" * MOST)
    assert "nested" in refused(b'{"a":' * 100_000)
    assert "nested" in refused(b'{"a":"\\""' + b"[" * 100)


def test_what_stands_side_by_side_is_no_depth() -> None:
    flat: list[Any] = [[], {}] * (MAX_DEPTH * 2)
    assert decode(spell(flat)) == flat
    assert decode(spell({str(n): [n] for n in range(MAX_DEPTH * 2)}))
    inside: Any = [[] for _ in range(MAX_DEPTH * 2)]
    for _ in range(MAX_DEPTH - 3):
        inside = [[], inside, []]
    assert decode(spell(inside)) == inside
    assert "nested" in refused(spell([[], inside, []]))


def test_brackets_in_strings_are_no_depth() -> None:
    value = {'[{"\\': "[" * 100, "b": '\\"' + "{" * 100}
    assert decode(spell(value)) == value


def test_size_is_limited() -> None:
    data = spell("b" * 100)
    assert read_document(data, ANYTHING, most=len(data), what="it")
    with pytest.raises(ManifestInvalidError, match="over the limit"):
        read_document(data, ANYTHING, most=len(data) - 1, what="it")


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\0123456789.eEtrufalsn-', max_size=40))
def test_anything_is_a_document_or_refused(data: bytes | str) -> None:
    data = data.encode() if isinstance(data, str) else data
    whole = b'{"a":' + data + b',"format":1}'
    for one in (data, whole):
        try:
            found = decode(one)
        except ManifestInvalidError:
            continue
        assert not isinstance(found, float) or not math.isnan(found)
        assert encode_document(Anything(a=found)) == one


NO_NUMBERS: list[Any] = [True, "1", None, -1, 1.5, 1 << 63, [1], {}]
NO_TEXTS: list[Any] = [1, "x" * 4097, ["a"], True]
NO_HASHES: list[Any] = [1, "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "\u0660" * 64]
NO_OBJECTS: list[Any] = [None, {}, [1], [{}], [{"n": True}]]
NO_NAMES: list[Any] = [["a", "b", "c"], [""], ["x" * 256], [1]]
GOOD: dict[str, Any] = {
    "a": 0,
    "b": "0" * 64,
    "c": None,
    "d": [{"n": -1}],
    "e": ["x"],
    "format": 1,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *[({"a": value}, r"`\$\.a`") for value in NO_NUMBERS],
        *[({"b": value}, r"`\$\.b`") for value in NO_HASHES],
        ({"b": "0" * 62 + "0x"}, r"Expected a SHA-256 in 64 hexadecimal digits - at `\$\.b`"),
        *[({"c": value}, r"`\$\.c`") for value in NO_TEXTS],
        *[({"d": value}, r"`\$\.d") for value in NO_OBJECTS],
        ({"d": [{"n": 1}, {"n": 1, "m": 2}]}, r"unknown field `m` - at `\$\.d\[1\]`"),
        *[({"e": value}, r"`\$\.e") for value in NO_NAMES],
        ({"e": ["a\x00b"]}, r"Expected text without a NUL - at `\$\.e\[0\]`"),
        ({"z": 1}, "unknown field `z`"),
    ],
)
def test_members_are_of_their_kind_and_within_their_limits(
    changed: dict[str, Any], message: str
) -> None:
    good = read_document(encode_document(GOOD), TYPED, most=MOST, what="it")
    assert encode_document(good) == encode_document(GOOD)
    with pytest.raises(ManifestInvalidError, match=message):
        read_document(encode_document(GOOD | changed), TYPED, most=MOST, what="it")


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"format"}))
def test_no_member_may_be_missing(name: str) -> None:
    less = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(ManifestInvalidError, match=f"missing required field `{name}`"):
        read_document(encode_document(less), TYPED, most=MOST, what="it")


@pytest.mark.parametrize("text", ["0", "00 00", "FF", "0x", "00\n"])
def test_hexadecimal_digits_come_in_pairs_and_in_lower_case(text: str) -> None:
    class Hex(Document, frozen=True, tag=1, tag_field="format"):
        h: HexText

    formats: Any = {1: Format(Hex, lambda document, _: document.h)}
    assert read_document(b'{"format":1,"h":"00ff"}', formats, most=MOST, what="it") == "00ff"
    with pytest.raises(ManifestInvalidError, match="pairs of hexadecimal digits"):
        read_document(encode_document({"format": 1, "h": text}), formats, most=MOST, what="it")
