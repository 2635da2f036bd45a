"""Codecs of strings, enums, bytea and uuid.

character(n) is stored padded with blanks. `::text` removes them, and the text of a row or an
array does not. The wire value never has them.
"""

from __future__ import annotations

import re
from typing import cast
from uuid import UUID

from oplog.value.kind import (
    UNSURE,
    Kind,
    Unsure,
    ValueCodec,
    Wire,
    make_text_codec,
    wire_as_python,
)

_SPELLED_UUID = re.compile("[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def _is_storable(text: str) -> bool:
    """Return False for text that Postgres cannot store: with NUL or with lone surrogates."""
    if "\0" in text:
        return False
    if text.isascii():
        return True  # a flag of the str object, so nearly all text skips the encoding below
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _keep_text(value: object) -> Wire | Unsure:
    return value if type(value) is str and _is_storable(value) else UNSURE


def make_string_codec(pg_type: str, *modifiers: int) -> ValueCodec:
    """Codec of text, character varying and character varying(n), citext.

    Compared as text because a column's collation may be nondeterministic.
    """
    limit = modifiers[0] if modifiers else None

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is not str or not _is_storable(value):
            return UNSURE
        if len(value) <= cast("int", limit):
            return value
        # Postgres raises an error for text that is too long, unless only blanks exceed the
        # limit: it removes those silently.
        return UNSURE if value[limit:].strip(" ") else value[:limit]

    return make_text_codec(
        pg_type, compare_as_text=True, to_wire=_keep_text if limit is None else to_wire
    )


def make_character_codec(pg_type: str, *modifiers: int) -> ValueCodec:
    """Codec of character(n).

    The wire value has no trailing blanks; the Python value is padded, as SELECT returns it.
    """
    width = modifiers[0] if modifiers else 1

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is not str or not _is_storable(value):
            return UNSURE
        text = value.rstrip(" ")
        return text if len(text) <= width else UNSURE

    def to_python(text: str) -> str:
        return text.ljust(width)

    def from_text(text: str) -> str:
        # `::text` removes the trailing blanks; the text of a row or an array keeps them.
        return text.rstrip(" ")

    return make_text_codec(
        pg_type, compare_as_text=True, to_wire=to_wire, to_python=to_python, from_text=from_text
    )


def make_enum_codec(pg_type: str) -> ValueCodec:
    """Codec of an enum. Every str is predicted: Postgres refuses all but its labels."""
    return make_text_codec(pg_type, compare_as_text=False, to_wire=_keep_text)


def make_bytes_codec(pg_type: str) -> ValueCodec:
    """Codec of bytea."""

    def to_wire(value: object) -> Wire | Unsure:
        return value if type(value) is bytes else UNSURE

    def from_text(text: str) -> bytes:
        return bytes.fromhex(text[2:])

    def to_text(wire: Wire) -> str:
        return "\\x" + cast("bytes", wire).hex()

    return ValueCodec(
        pg_type=pg_type,
        kind=Kind.BYTES,
        to_wire=to_wire,
        to_python=wire_as_python,
        from_text=from_text,
        to_text=to_text,
        compare_as_text=False,
    )


def make_uuid_codec(pg_type: str) -> ValueCodec:
    """Codec of uuid; of the ways to spell one, the usual one is predicted."""

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is UUID:
            return str(value)
        if type(value) is str and _SPELLED_UUID.fullmatch(value):
            return value.lower()
        return UNSURE

    return make_text_codec(pg_type, compare_as_text=False, to_wire=to_wire, to_python=UUID)
