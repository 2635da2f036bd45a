"""JSON documents of the archive: one spelling for each, and nothing else is accepted.

A document is a `msgspec.Struct` that lists its members with types and limits. `read_document`
finds the struct for the document's format number, decodes, encodes again and compares. So a
document that could be read in two ways (a name twice, a float, other white space) is refused:
it could say one thing to the program that checks it and another to the one that uses it.

To add a format: write a struct with its number as tag, and enter it in the table of formats of
its kind of document. The structs of released formats stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from oplog.errors import ManifestInvalidError

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Largest document that is an object by itself."""
MAX_DEPTH = 16
"""Deepest nesting of a document."""
MAX_INTEGER = (1 << 63) - 1
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)
"""A string, up to the end if it has none, or a bracket. Possessive: it never tries twice."""
_SHA256 = r"\A[0-9a-f]{64}\Z"
_PUBLIC_KEY = r"\A[0-9a-f]{32}[0-9a-f]{32}\Z"
_SIGNATURE = r"\A[0-9a-f]{128}\Z"
_HEX = r"\A(?:[0-9a-f]{2})*\Z"
_STORABLE = r"\A[^\x00]*\Z"
_MEANINGS = {
    _SHA256: "a SHA-256 in 64 hexadecimal digits",
    _PUBLIC_KEY: "an Ed25519 public key in 64 hexadecimal digits",
    _SIGNATURE: "an Ed25519 signature in 128 hexadecimal digits",
    _HEX: "pairs of hexadecimal digits",
    _STORABLE: "text without a NUL",
}

Natural: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Integer: TypeAlias = Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Moment: TypeAlias = Annotated[int, Meta(ge=-(1 << 62), le=MAX_INTEGER)]
"""Microseconds since 1970."""
Flag: TypeAlias = Annotated[int, Meta(ge=0, le=1)]
Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
PathText: TypeAlias = Annotated[str, Meta(max_length=120)]
"""The name of an object; `parse_content` says whether it is one."""
Sha256Text: TypeAlias = Annotated[str, Meta(pattern=_SHA256)]
PublicKeyText: TypeAlias = Annotated[str, Meta(pattern=_PUBLIC_KEY)]
SignatureText: TypeAlias = Annotated[str, Meta(pattern=_SIGNATURE)]
HexText: TypeAlias = Annotated[str, Meta(max_length=4096, pattern=_HEX)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255, pattern=_STORABLE)]
"""A name of something in Postgres."""
LongName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1024, pattern=_STORABLE)]
"""A name that the application gave."""
KeyId: TypeAlias = Annotated[str, Meta(max_length=255, pattern=_STORABLE)]
"""The id of a key; empty for what is stored as plaintext."""


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """A document, or an object inside of one."""


_Document = TypeVar("_Document", bound=Struct)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Format(Generic[_Document, _Value]):
    """How documents of one format are read.

    `document` has the format's number as its tag. `read(document, what)` makes the value, holds
    members to each other, and raises `ManifestInvalidError` or `SegmentCorruptError`.
    """

    document: type[_Document]
    read: Callable[[_Document, str], _Value]


class _Numbered(Struct):
    """The one member that documents of every format have."""

    format: int


def encode_document(document: Struct | Mapping[str, Any]) -> bytes:
    """The one spelling: names sorted, no white space, UTF-8, nothing escaped that need not be."""
    return msgspec.json.encode(document, order="sorted")


def read_document(
    data: bytes, formats: Mapping[int, Format[Any, _Value]], *, most: int, what: str
) -> _Value:
    """The value of the document `data`, which names itself `what` in errors.

    Raises `ManifestInvalidError` for more than `most` bytes, for a format number that `formats`
    does not have, and for anything that `encode_document` would have spelled otherwise.
    """
    if len(data) > most:
        raise invalid(what, f"it has {len(data)} bytes, over the limit of {most}")
    _check_depth(data, what)
    # Alone and first: what another format has, and means by it, is not known here.
    number = _decode(data, _Numbered, what).format
    found = formats.get(number)
    if found is None:
        known = ", ".join(str(one) for one in sorted(formats))
        raise invalid(what, f"its format number is {number}, this library knows {known}")
    document = _decode(data, found.document, what)
    try:
        same = encode_document(document) == data
    except UnicodeEncodeError as cause:
        raise invalid(what, "it holds half a character") from cause
    if not same:
        raise invalid(what, "it is not in canonical form, or has a name twice")
    return found.read(document, what)


def list_members(value: object, document: type[Struct]) -> dict[str, Any]:
    """The attributes of `value` that `document` has as members, as keywords to make it with."""
    return {name: getattr(value, name) for name in document.__struct_fields__}


def invalid(what: str, why: str) -> ManifestInvalidError:
    """The error for a document that is not what this library writes."""
    return ManifestInvalidError(
        f"{what} is not what this library writes: {why}",
        hint="it was altered, or written by a newer version: run oplog check, then oplog resync",
    )


def _decode(data: bytes, kind: type[_Document], what: str) -> _Document:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as cause:
        raise invalid(what, _explain(cause)) from cause
    except (ValueError, RecursionError) as cause:
        raise invalid(what, f"it is not JSON: {cause}") from cause


def _explain(error: msgspec.ValidationError) -> str:
    """What was expected where; a regular expression is given by its meaning."""
    text = str(error)
    for pattern, meaning in _MEANINGS.items():
        text = text.replace(f"`str` matching regex {pattern!r}", meaning)
    return text[:300]


def _check_depth(data: bytes, what: str) -> None:
    # Asked before parsing: the parser recurses, and a megabyte of brackets is cheap to send.
    depth = 0
    for token in _TOKEN.finditer(data):
        byte = data[token.start()]
        if byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise invalid(what, f"it is nested over {MAX_DEPTH} deep")
        elif byte in b"]}":
            depth -= 1
