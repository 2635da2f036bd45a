"""A client's journal: one line of JSON for each event, in a file that outlives the client.

Holds writing and reading. Must not know what is judged. The hard thing is that the writer may be
killed at any instant: a line is one write, made before what it announces begins and after what it
reports has ended, and it is the kernel's when the write returns, so no fsync is needed.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oplog import Receipt
from tests.fault.history import Event, Promise

NOTED = "noted"
"""Not an event of an operation: a path was reached. `why` says which."""


class Journal:
    """The open journal of one client."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(
        self,
        what: str,
        operation: str = "",
        *,
        receipts: Sequence[Receipt] = (),
        **details: str | None,
    ) -> None:
        """Write an event; its time is now."""
        line: dict[str, Any] = {"what": what, "operation": operation, "at": time.monotonic_ns()}
        if receipts:
            line["receipts"] = [
                (str(r.record_id), r.aggregate, r.version, r.entry_hash.hex()) for r in receipts
            ]
        line |= {name: value for name, value in details.items() if value is not None}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def note(self, what: str) -> None:
        """A path was reached."""
        self.say(NOTED, why=what)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)


@dataclass
class Journals:
    """What all clients wrote so far; more is read by each `catch_up`."""

    directory: Path
    events: list[Event] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """Events by what they are."""
    _read: dict[Path, int] = field(default_factory=dict)

    def catch_up(self) -> None:
        """Read whole lines that are new."""
        for path in sorted(self.directory.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            self._take(json.loads(line) for line in whole.splitlines())

    def _take(self, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            self.counts[line["what"]] += 1
            if line["what"] == NOTED:
                self.notes[line["why"]] += 1
            else:
                receipts = tuple(Promise(*values) for values in line.pop("receipts", ()))
                self.events.append(Event(receipts=receipts, **line))
