"""Cuts effects to the payloads of a record's parts without holding more than a page of them.

What is cut is known by number: how many effects there are, in which order. A page of them is
loaded, encoded, and gone when its part is made. So memory does not grow with the transaction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Protocol

from oplog.entry import MAX_PART_BYTES, MAX_RECORD_BYTES, PART_BYTES
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.parts import FILLED, CutPart, check_size, fit, hides_secrets, weigh
from oplog.payload.row_run import RunRows

FIRST_PAGE: Final = 1024
"""So many effects are loaded before anything is known of their size."""
_HALF = PART_BYTES // 2


@dataclass(slots=True)
class Page:
    """Effects that stand one after another in the record, some of them as columns.

    `effects` and each of `rows` are sorted by place, then by ordinal.
    """

    effects: list[Effect] = field(default_factory=list)
    rows: list[RunRows] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.effects) + sum([len(rows) for rows in self.rows])

    @property
    def first(self) -> int:
        """The number of the first aggregate."""
        places = [rows.places[0] for rows in self.rows if len(rows)]
        return min(places + [effect.place for effect in self.effects[:1]])

    def hides(self, secret: Collection[str]) -> bool:
        """Whether one of them is on a row of the types named in `secret`."""
        return hides_secrets(self.effects, secret) or any(
            len(rows) and rows.shape.type_name in secret for rows in self.rows
        )

    def encode(self, codec: PayloadCodec) -> bytes:
        """The payload of a part that has these effects and no other."""
        effects, runs = list(self.effects), []
        for rows in self.rows:
            if rows.fits_run:
                runs.append(rows)
            else:
                effects += rows.list_effects()
        if len(effects) != len(self.effects):
            effects.sort(key=_order)
        return codec.encode(effects, first=self.first, rows=runs)

    def weigh(self) -> list[int]:
        """About how many bytes each effect has, in their order."""
        return [weigh(effect) for effect in self.list_effects()]

    def list_effects(self) -> list[Effect]:
        """All effects in their order, none as columns."""
        effects = [*self.effects, *(effect for rows in self.rows for effect in rows.list_effects())]
        effects.sort(key=_order)
        return effects

    def take(self, count: int) -> Page:
        """The first `count` effects."""
        if count >= len(self):
            return self
        kept = {effect.ordinal for effect in self.list_effects()[:count]}
        rows = [one.take(sum([n in kept for n in one.ordinals])) for one in self.rows]
        return Page(
            [effect for effect in self.effects if effect.ordinal in kept],
            [one for one in rows if len(one)],
        )


class Pages(Protocol):
    """Effects in the order of a record: by place, then by ordinal."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def load(self, start: int, *, count: int) -> Page:
        """Those from number `start` on: `count`, or fewer if they are large, but one at least."""
        ...


def cut_pages(codec: PayloadCodec, pages: Pages, *, secret: Collection[str] = ()) -> list[CutPart]:
    """As `cut_parts`, with the same limits and errors."""
    parts: list[CutPart] = []
    start = total = 0
    count = FIRST_PAGE
    while start < len(pages):
        asked = min(count, len(pages) - start)
        page = pages.load(start, count=asked)
        payload = page.encode(codec)
        while len(payload) > PART_BYTES and len(page) > 1:
            page = page.take(_reach(page.weigh(), len(payload)))
            payload = page.encode(codec)
        size, found = len(payload), len(page)
        count = fit(found, size)
        more = min(count, len(pages) - start)
        if not parts and found == asked < more and size < _HALF:
            # Loaded before anything was known of it: the first part shall be no smaller.
            continue
        total += size
        if size > MAX_PART_BYTES or total > MAX_RECORD_BYTES:
            check_size(page.list_effects()[0], size, total=total)
        parts.append(CutPart(page.first, payload, page.hides(secret)))
        start += found
    return parts


def _reach(weights: Sequence[int], size: int) -> int:
    """How many effects of a page that came out too large fill a part."""
    sums = list(accumulate(weights))
    return min(max(bisect_right(sums, sums[-1] * PART_BYTES * FILLED / size), 1), len(sums) - 1)


def _order(effect: Effect) -> tuple[int, int]:
    return effect.place, effect.ordinal
