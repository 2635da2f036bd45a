"""Ids that nobody hands out, and that grow with time: UUIDs of version 7.

An index on random ids is written all over; one on these is written at its end. Where the clock
goes back, ids are as unique as before, and the index is a little less local.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from uuid import UUID

_RANDOM_BITS = 74
_MILLISECONDS_MASK = (1 << 48) - 1
_NANOSECONDS = 1_000_000
"""In a millisecond."""


def draw_ordered_id(
    clock: Callable[[], int] = time.time_ns, draw_bits: Callable[[int], int] = secrets.randbits
) -> UUID:
    """A UUID of version 7 (RFC 9562): 48 bits of milliseconds since 1970, then 74 random ones.

    `clock` gives nanoseconds since 1970.
    """
    drawn = draw_bits(_RANDOM_BITS)
    value = (clock() // _NANOSECONDS & _MILLISECONDS_MASK) << 80
    # Version 7 and the variant of RFC 9562 stand between the random bits.
    value |= 7 << 76 | (drawn >> 62) << 64 | 0b10 << 62 | drawn & (1 << 62) - 1
    return UUID(int=value)
