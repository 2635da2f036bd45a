"""Counts what a payload holds before it is parsed, and before it is decoded.

Two bytes are an operation to the parser, and cost it fifty times that. So a payload is looked
through first if it is large enough for that to matter; the parts that the library cuts are smaller,
unless a single row, or a block of adopted rows, fills them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from oplog.errors import DecodeError
from oplog.payload.varint import read_varint

MAX_MESSAGES: Final = 131_072
"""Most types, operations, blocks and runs of one part together: many times what is written."""
MAX_RUN_FIELDS: Final = 8192
"""Most fields of one run: columns with NULLs, and a dozen others."""
_UNCOUNTED = 1024 * 1024
"""A payload of so many bytes is parsed at once: whatever it holds fits into memory."""
_RUN = 0x22
"""First byte of a run in a payload: field 4, with a length."""
_VARINT, _FIXED64, _WITH_LENGTH, _FIXED32 = 0, 1, 2, 5


def check_fields(payload: bytes) -> None:
    """Raise `DecodeError` for a payload of more messages than a part has."""
    if len(payload) <= _UNCOUNTED:
        return
    view = memoryview(payload)
    for tag, start, end in _iterate_fields(view, MAX_MESSAGES):
        if tag == _RUN:
            for _ in _iterate_fields(view[start:end], MAX_RUN_FIELDS):
                pass


def check_messages(total: int) -> None:
    """Raise `DecodeError` for more messages in a part than it may have."""
    if total > MAX_MESSAGES:
        raise _refuse(f"it has {total} types, operations, blocks and runs")


def check_columns(numbers: int, columns: int) -> None:
    """Raise `DecodeError` for a message that names more columns than its type has."""
    if numbers > columns:
        raise _refuse(f"it names {numbers} columns of a type that has {columns}")


def _iterate_fields(data: memoryview, most: int) -> Iterable[tuple[int, int, int]]:
    """Tag, start and end of each outermost field; `DecodeError` for over `most`."""
    place = count = 0
    while place < len(data):
        tag, place = read_varint(data, place, refuse=_refuse)
        start, kind = place, tag & 7
        if kind == _VARINT:
            _, place = read_varint(data, place, refuse=_refuse)
        elif kind == _WITH_LENGTH:
            length, start = read_varint(data, place, refuse=_refuse)
            place = start + length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise _refuse(f"a field has the kind {kind}")
        count += 1
        if count > most:
            raise _refuse(f"it has more than {most} fields")
        if place > len(data):
            raise _refuse("a field is cut short")
        yield tag, start, place


def _refuse(why: str) -> DecodeError:
    return DecodeError(
        f"a record's payload is none that this library writes: {why}",
        hint="the record is damaged or written by a newer library; upgrade and run verify",
    )
