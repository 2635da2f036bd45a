"""Numbers of the protobuf wire format, for what looks at a message before it is parsed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from oplog.errors import OplogError

LAST_IN_NUMBER: Final = 0x80
"""A byte below is the last one of a number."""
_MOST_BITS = 70


def read_varint(
    data: memoryview, place: int, *, refuse: Callable[[str], OplogError]
) -> tuple[int, int]:
    """The number at `place`, and where it ends; raises what `refuse` makes of a reason.

    It ends within ten bytes, or a long run of bytes that go on would be a number whose every
    further byte costs more than the one before.
    """
    value = shift = 0
    while place < len(data) and shift < _MOST_BITS:
        byte = data[place]
        place += 1
        if byte < LAST_IN_NUMBER:
            return value | byte << shift, place
        value |= (byte & 0x7F) << shift
        shift += 7
    raise refuse("a number has no end")
