"""Cuts the effects of a record to the payloads of its parts.

Parts are about equally large, so that reading one aggregate, or sending an archive, needs little
memory however large the transaction was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from oplog.entry import MAX_PART_BYTES, MAX_RECORD_BYTES, PART_BYTES
from oplog.errors import EntryTooLargeError
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect

MOST_EFFECTS: Final = 65_536
"""Most effects of one part."""
_UNMEASURED = 1024
"""Up to so many effects are encoded without an estimate of their size."""
_SAMPLED = 32
_AIM = PART_BYTES * 15 // 16
"""A part that was estimated to be so large seldom comes out over the limit."""


def cut_parts(codec: PayloadCodec, effects: Sequence[Effect]) -> list[tuple[int, bytes]]:
    """Return the payloads of a record's parts, each with the number of its first aggregate.

    `effects` are sorted by place, then by ordinal. A payload has at most `PART_BYTES`, unless
    it is that of a single effect. Raises `EntryTooLargeError` for an effect over `MAX_PART_BYTES`
    and for payloads that have over `MAX_RECORD_BYTES` together.
    """
    if len(effects) <= _UNMEASURED:
        payload = codec.encode(effects)
        if len(payload) <= PART_BYTES:
            return [(0, payload)]
        length = _find_cut(effects, len(payload))
    else:
        sample = effects[:: len(effects) // _SAMPLED]
        length = _fit(len(sample), len(codec.encode(sample)))
    parts: list[tuple[int, bytes]] = []
    start = total = 0
    while start < len(effects):
        chunk = effects[start : start + length]
        payload = codec.encode(chunk, first=chunk[0].place)
        while len(payload) > PART_BYTES and len(chunk) > 1:
            chunk = chunk[: _find_cut(chunk, len(payload))]
            payload = codec.encode(chunk, first=chunk[0].place)
        total += len(payload)
        _check_size(chunk, len(payload), total=total)
        parts.append((chunk[0].place, payload))
        start += len(chunk)
        if len(payload) <= PART_BYTES:
            length = _fit(len(chunk), len(payload))
    return parts


def _fit(count: int, size: int) -> int:
    """How many effects fill a part if so many have so many bytes."""
    return min(max(count * _AIM // size, 1), MOST_EFFECTS)


def _find_cut(effects: Sequence[Effect], size: int) -> int:
    """How many of the effects, which have `size` bytes together, fill a part.

    At least one, and not all if there are several.
    """
    sums = list(accumulate([_weigh(effect) for effect in effects]))
    fitting = bisect_right(sums, sums[-1] * _AIM // size)
    return max(min(fitting, len(effects) - 1), 1)


def _weigh(effect: Effect) -> int:
    """About how many bytes an effect has, in no certain unit."""
    values = [*effect.key, *effect.values.values()]
    return sum([len(value) + 2 if isinstance(value, str | bytes) else 4 for value in values])


def _check_size(chunk: Sequence[Effect], size: int, *, total: int) -> None:
    if size > MAX_PART_BYTES:
        effect = chunk[0]
        raise EntryTooLargeError(
            f"the {effect.kind.name.lower()} of a row of type {effect.shape.type_name!r} has "
            f"{size} bytes, the limit is {MAX_PART_BYTES}",
            hint="keep large values outside the logged tables, or exclude their column from "
            "the log",
        )
    if total > MAX_RECORD_BYTES:
        raise EntryTooLargeError(
            f"the transaction's changes have over {MAX_RECORD_BYTES} bytes, which is the limit",
            hint="write fewer rows in one transaction",
        )
