"""Cuts the effects of a record to the payloads of its parts.

Parts are about equally large, so that reading one aggregate, or sending an archive, needs little
memory however large the transaction was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from oplog.entry import (
    MAX_AGGREGATE_BYTES,
    MAX_AGGREGATES,
    MAX_NAMES_BYTES,
    MAX_PART_BYTES,
    MAX_RECORD_BYTES,
    PART_BYTES,
)
from oplog.errors import EntryTooLargeError
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect

MOST_EFFECTS: Final = 65_536
"""Most effects of one part."""
_UNMEASURED = 1024
"""Up to so many effects are encoded without an estimate of their size."""
_SAMPLED = 32
_NAME_BYTES = 48
"""What each aggregate takes beside its name: length, version and the hash before."""
_FEW_NAMES = MAX_NAMES_BYTES // (MAX_AGGREGATE_BYTES + _NAME_BYTES)
"""So many names cannot be too long together."""
FILLED = 15 / 16
"""A part that was estimated to be filled so far seldom comes out over the limit."""


class CutPart(NamedTuple):
    """The payload of a part, and the number of its first aggregate.

    `hides`: it has an effect on a row of a secret type, of which its size must not tell.
    """

    first: int
    payload: bytes
    hides: bool = False


def cut_parts(
    codec: PayloadCodec, effects: Sequence[Effect], *, secret: Collection[str] = ()
) -> list[CutPart]:
    """Return the payloads of a record's parts.

    `effects` are sorted by place, then by ordinal. A payload has at most `PART_BYTES`, unless
    it is that of a single effect. Raises `EntryTooLargeError` for an effect over `MAX_PART_BYTES`
    and for payloads that have over `MAX_RECORD_BYTES` together.
    """
    sums: list[int] | None = None
    if len(effects) <= _UNMEASURED:
        payload = codec.encode(effects)
        if len(payload) <= PART_BYTES:
            return [CutPart(0, payload, hides_secrets(effects, secret))]
        sums = _sum_weights(effects)
        length = _reach(sums, 0, rate=len(payload) / sums[-1])
    else:
        sample = effects[:: len(effects) // _SAMPLED]
        length = fit(len(sample), len(codec.encode(sample)))
    parts: list[CutPart] = []
    start = total = 0
    while start < len(effects):
        chunk = effects[start : start + length]
        first, end = chunk[0].place, start + len(chunk)
        payload = codec.encode(chunk, first=first)
        size = len(payload)
        too_large = size > PART_BYTES and len(chunk) > 1
        if too_large and sums is None:
            # A guess by number has failed, so it may be rows of many sizes: guess by size.
            sums = _sum_weights(effects)
        rate = None if sums is None else size / (sums[end] - sums[start])
        if not too_large:
            total += size
            check_size(chunk[0], size, total=total)
            parts.append(CutPart(first, payload, hides_secrets(chunk, secret)))
            start = end
        if sums is None or rate is None:
            length = fit(len(chunk), size)
        else:
            length = _reach(sums, start, rate=rate)
            if too_large:
                length = min(length, len(chunk) - 1)
    return parts


def hides_secrets(effects: Iterable[Effect], secret: Collection[str]) -> bool:
    """Whether one of the effects is on a row of the types named in `secret`."""
    return bool(secret) and any(effect.shape.type_name in secret for effect in effects)


def check_names(aggregates: Sequence[str]) -> None:
    """Raise `EntryTooLargeError` for more aggregates than a segment of an archive can name."""
    if len(aggregates) <= _FEW_NAMES:
        return
    size = sum([len(name.encode()) + _NAME_BYTES for name in aggregates])
    if len(aggregates) > MAX_AGGREGATES or size > MAX_NAMES_BYTES:
        raise EntryTooLargeError(
            f"the transaction changes {len(aggregates)} aggregates, whose names have {size} bytes; "
            f"the limits are {MAX_AGGREGATES} and {MAX_NAMES_BYTES}",
            hint="write fewer rows in one transaction, or use a coarser aggregate template",
        )


def fit(count: int, size: int) -> int:
    """How many effects fill a part if so many have so many bytes."""
    return min(max(int(count * PART_BYTES * FILLED / size), 1), MOST_EFFECTS)


def _reach(sums: Sequence[int], start: int, *, rate: float) -> int:
    """How many effects from `start` on fill a part.

    `sums` are the weights of all effects before each, `rate` is the bytes for each of them.
    """
    end = bisect_right(sums, sums[start] + PART_BYTES * FILLED / rate) - 1
    return min(max(end - start, 1), MOST_EFFECTS)


def _sum_weights(effects: Sequence[Effect]) -> list[int]:
    return [0, *accumulate([weigh(effect) for effect in effects])]


def weigh(effect: Effect) -> int:
    """About how many bytes an effect has."""
    sizes = [len(value) for value in effect.values.values() if isinstance(value, (str, bytes))]
    sizes += [len(part) for part in effect.key if isinstance(part, (str, bytes))]
    return sum(sizes, 4 * (len(effect.values) + len(effect.key)) + 1)


def check_size(effect: Effect, size: int, *, total: int) -> None:
    """Raise `EntryTooLargeError` for a part that begins with `effect`, or all parts together."""
    if size > MAX_PART_BYTES:
        named = zip(effect.shape.key_names, effect.key, strict=True)
        key = ", ".join(f"{name}={part!r:.80}" for name, part in named)
        raise EntryTooLargeError(
            f"the {effect.kind.name.lower()} of a row of type {effect.shape.type_name!r} ({key}) "
            f"has {size} bytes, the limit is {MAX_PART_BYTES}",
            hint="keep large values outside the logged tables, or exclude their column from "
            "the log",
        )
    if total > MAX_RECORD_BYTES:
        raise EntryTooLargeError(
            f"the transaction's changes have over {MAX_RECORD_BYTES} bytes, which is the limit",
            hint="write fewer rows in one transaction",
        )
