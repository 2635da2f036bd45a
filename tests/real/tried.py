"""What became of each program, as JSON and as a table of Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

EQUAL = "equal"
NONE = "-"
HEAD = (
    "| program | version | what it did | tables | records | tests without | tests with "
    "| verify | replay |"
)


@dataclass
class Tried:
    """One program."""

    name: str
    version: str = ""
    work: str = ""
    """What it did, in a few words."""
    tables: int = 0
    """With a guard."""
    records: int = 0
    verify: str = ""
    """`equal`, or what differs; nothing where no work was done."""
    replay: str = ""
    without: str = ""
    """How its own tests end without the log, counted; nothing if it ships none."""
    attached: str = ""
    selected: str = ""
    """Which of its tests these are."""
    looks: int = 0
    """How often what its tests had written was verified."""
    differing: list[str] = field(default_factory=list)
    """Tests that end otherwise with the log."""
    differences: list[str] = field(default_factory=list)
    """What `verify` found during the tests."""
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    """Why the program was not run: what cannot be fetched here."""
    broken: str = ""
    """What went wrong in the runner or the program."""

    @property
    def failed(self) -> bool:
        """Whether the log did anything that it must not do."""
        judged = [one for one in (self.verify, self.replay) if one]
        return bool(self.broken or self.differing or self.differences) or any(
            one != EQUAL for one in judged
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tried:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def print_table(found: Sequence[Tried]) -> str:
    """Markdown: a row for each program that was run, then what was skipped and what failed."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    for one in found:
        if not one.skipped:
            cells = (
                *(one.name, one.version, one.work, one.tables or "", one.records or ""),
                *(one.without, one.attached, _shorten(one.verify), _shorten(one.replay)),
            )
            lines.append("| " + " | ".join(str(cell) or NONE for cell in cells) + " |")
    for one in found:
        if one.skipped:
            lines += ["", f"Skipped: {one.name}: {one.skipped}"]
    for one in found:
        if one.failed or one.notes:
            lines += ["", f"## {one.name}", "", *_list_details(one)]
    return "\n".join(lines) + "\n"


def _shorten(text: str) -> str:
    return text if text in ("", EQUAL) else "**differs**"


def _list_details(one: Tried) -> list[str]:
    judged = [f"{word}: {text}" for word, text in (("verify", one.verify), ("replay", one.replay))]
    return [
        f"- {line}"
        for line in (
            *([one.broken] if one.broken else []),
            *(line for line in judged if not line.endswith((": ", f": {EQUAL}"))),
            *one.differing,
            *one.differences,
            *one.notes,
        )
    ]
