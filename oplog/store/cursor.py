"""A consumer's place in the log: a Postgres snapshot, tied to one server history.

Pure rules on snapshots as text (`xmin:xmax:xip,...`). Ids are not in the order of commits, and
transaction ids are issued again after a crash: a cursor lists the transactions that were running,
and never claims to have seen more than what it was given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from oplog.errors import ConfigurationError, DecodeError


@dataclass(frozen=True, slots=True)
class Cursor:
    """Everything visible in `snapshot` has been consumed; `None` is the beginning.

    With a `target`, the way from `snapshot` to it is being consumed in pages: of what is new
    there, the transactions that begin at or before position `after` are done.
    """

    system_identifier: str
    timeline: int
    snapshot: str | None
    target: str | None = None
    after: int = 0

    def to_json(self) -> str:
        """The text that is stored."""
        return json.dumps(
            {
                "system_identifier": self.system_identifier,
                "timeline": self.timeline,
                "snapshot": self.snapshot,
                "target": self.target,
                "after": self.after,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Cursor:
        """The inverse of `to_json`; `DecodeError` if the text is something else."""
        try:
            data = json.loads(text)
            snapshot, target = data["snapshot"], data["target"]
            for given in (snapshot, target):
                if given is not None:
                    _parse(given)
            return cls(
                system_identifier=str(data["system_identifier"]),
                timeline=int(data["timeline"]),
                snapshot=snapshot,
                target=target,
                after=int(data["after"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as cause:
            raise DecodeError(
                f"a stored cursor cannot be read: {text[:100]!r}",
                hint="it was altered by hand: delete the consumer's row in oplog_consumer, or the "
                "archive's in oplog_archive; a consumer then begins again",
            ) from cause

    def check_origin(self, system_identifier: str, *, timeline: int) -> None:
        """Raise `ConfigurationError` when the server's history is not the cursor's.

        After a failover, a restore or a dump the same transaction ids mean other
        transactions: going on would skip entries silently.
        """
        if (self.system_identifier, self.timeline) != (system_identifier, timeline):
            raise ConfigurationError(
                f"the cursor belongs to server {self.system_identifier} timeline "
                f"{self.timeline}, this is server {system_identifier} timeline {timeline}",
                hint="the database was restored, upgraded or failed over: compare what the "
                "consumer has with the log, then reset its checkpoint",
            )

    def is_behind(self, other: Cursor) -> bool:
        """Whether something was consumed at `other` that is not yet at this cursor.

        A saved cursor only goes forward. One that is behind another that was saved before
        was set back, and the log may have been with it.
        """
        if self.snapshot == other.snapshot:
            return other.target is not None and (
                self.target != other.target or self.after < other.after
            )
        if other.snapshot is None:
            return False
        if self.snapshot is None:
            return True
        _, xmax, running = _parse(self.snapshot)
        _, other_xmax, other_running = _parse(other.snapshot)
        missing = {xid for xid in running if xid < other_xmax} - set(other_running)
        return xmax < other_xmax or bool(missing)

    def advance(self, snapshot: str, transaction_ids: Iterable[int]) -> Cursor:
        """The cursor after consuming a batch that `snapshot` showed.

        Clamped to what was seen: ids above the batch may belong to aborted transactions,
        which a crash hands out again. An empty batch leaves the cursor where it is.
        """
        seen = max(transaction_ids, default=None)
        if seen is None:
            return self
        old_xmax = 0 if self.snapshot is None else _parse(self.snapshot)[1]
        _, _, running = _parse(snapshot)
        xmax = max(old_xmax, seen + 1)
        below = [xid for xid in running if xid < xmax]
        xmin = min(below, default=xmax)
        text = f"{xmin}:{xmax}:{','.join(map(str, below))}"
        return Cursor(self.system_identifier, self.timeline, text)

    def begin(self, goal: Cursor, *, after: int) -> Cursor:
        """The cursor on its way to `goal`, which `advance` gave, with nothing of it consumed.

        The goal is clamped, so the stored way stays true when a crash comes between two pages.
        """
        return replace(self, target=goal.snapshot, after=after)

    def reach(self, after: int) -> Cursor:
        """The cursor on its way, with the transactions that begin up to `after` consumed."""
        return replace(self, after=after)

    def finish(self) -> Cursor:
        """The cursor at its target."""
        return Cursor(self.system_identifier, self.timeline, self.target)


def is_shown(transaction_id: int, snapshot: str) -> bool:
    """Whether a snapshot, as text, shows what a transaction did."""
    xmin, xmax, running = _parse(snapshot)
    return transaction_id < xmin or (transaction_id < xmax and transaction_id not in running)


def _parse(snapshot: str) -> tuple[int, int, list[int]]:
    xmin, xmax, running = snapshot.split(":")
    return int(xmin), int(xmax), [int(xid) for xid in running.split(",") if xid]
