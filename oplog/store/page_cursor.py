"""`PageCursor`: where a page of entries ended, so that the next page begins there.

A position alone does not say it: an archive gives records in the order of their sequence, where a
low position may come after a high one, and a record that is in the tables now may be in the archive
when the next page is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from oplog.errors import ConfigurationError
from oplog.store.rows import StoredRecord

_TEXT = re.compile(r"(n|o)(?:p([0-9]{1,19}))?(?:s([0-9]{1,19}))?(?:e([0-9]{1,9}))?")
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class PageCursor:
    """A place between two entries, and the direction in which they are read.

    With a `position`, the page ended in the tables at that record, and `sequence` is the last one
    that was read from an archive then, 0 without one: what has a sequence up to it is on the other
    side. Without a position, the page ended in the archive at the record with this `sequence`.
    `given` counts entries of the record that the page has had, if there are more of it.
    """

    newest_first: bool
    position: int | None
    sequence: int = 0
    given: int = 0

    def to_text(self) -> str:
        """The text that callers hand back."""
        return (
            f"{'n' if self.newest_first else 'o'}"
            f"{'' if self.position is None else f'p{self.position}'}"
            f"{f's{self.sequence}' if self.sequence else ''}"
            f"{f'e{self.given}' if self.given else ''}"
        )

    @classmethod
    def from_text(cls, text: object, *, newest_first: bool) -> PageCursor:
        """The inverse of `to_text`; `ConfigurationError` for other text or the other direction."""
        matched = _TEXT.fullmatch(text) if isinstance(text, str) else None
        numbers = [int(group or 0) for group in matched.groups()[1:]] if matched else []
        if matched is None or max(numbers) > _LARGEST or not (matched[2] or matched[3]):
            raise ConfigurationError(
                f"{text!r:.80} is no cursor", hint="give the cursor of a page as it was"
            )
        if (matched[1] == "n") is not newest_first:
            raise ConfigurationError(
                f"the cursor {text!r:.80} is of a page in the other direction",
                hint="read on with newest_first as it was for the page that gave the cursor",
            )
        position = int(matched[2]) if matched[2] else None
        return cls(newest_first, position, int(matched[3] or 0), int(matched[4] or 0))

    def require_tables(self) -> int:
        """The position; `ConfigurationError` for a cursor of a page that ended in an archive."""
        if self.position is None:
            raise ConfigurationError(
                "the cursor is of a page that ended in an archive, and none is read now",
                hint="give the same archive=... as for the page that gave the cursor",
            )
        return self.position

    def takes(self, record: StoredRecord, sequence: int) -> bool:
        """Whether a record of an archive comes after the place, or is cut by it."""
        if self.position is None:
            mine, its = self.sequence, sequence
        elif sequence <= self.sequence:
            return self.newest_first
        else:
            mine, its = self.position, record.position
        if mine == its:
            return self.given > 0
        return its < mine if self.newest_first else its > mine

    def bound_positions(self) -> tuple[int | None, int | None]:
        """`after` and `through` of the tables' records that come after the place."""
        position = self.require_tables()
        whole = self.given == 0
        if self.newest_first:
            return None, position - 1 if whole else position
        return position if whole else position - 1, None
