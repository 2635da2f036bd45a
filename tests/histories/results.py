"""What became of each revision, as JSON lines and as tables of Markdown."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NAME = re.compile(r"""'[^']*'|"[^"]*"|\b\d+\b""")


@dataclass
class Step:
    """A revision: whether it passed, where it failed, and what it executes."""

    application: str
    revision: str
    title: str = ""
    stage: str = ""
    """Nothing if it passed; else the check that failed first."""
    error: str = ""
    statements: list[str] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: int = 0
    rows: int = 0
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """Stage and error, without names."""
        return f"{self.stage}: {NAME.sub('…', self.error)[:160]}"


@dataclass
class Ending:
    """A restore or replay at the end of an era."""

    application: str
    what: str
    error: str = ""
    refused: str = ""
    """The log refuses, because values would be lost; nothing was written."""


@dataclass
class History:
    """All of one application."""

    application: str
    version: str = ""
    server: str = ""
    steps: list[Step] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    unguarded: dict[str, str] = field(default_factory=dict)
    """Tables that could not have a guard at some time, with the reason."""
    ungenerated: dict[str, str] = field(default_factory=dict)
    """Tables for which no row was made at some time, with the reason."""
    broken: str = ""
    """Why the walk ended early."""

    @property
    def failed(self) -> bool:
        """Whether anything did not pass."""
        return bool(self.broken) or any(
            [*(one.stage for one in self.steps), *(one.error for one in self.endings)]
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        data["steps"] = [Step(**one) for one in data["steps"]]
        data["endings"] = [Ending(**one) for one in data["endings"]]
        return cls(**data)


def print_report(histories: Sequence[History]) -> str:
    """Markdown: a table of all, then each failure."""
    lines = [
        "| application | version | revisions | passed | failed | ends equal | refused | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in histories:
        failed = sum(bool(step.stage) for step in one.steps)
        bad = sum(bool(ending.error) for ending in one.endings)
        refused = sum(bool(ending.refused) for ending in one.endings)
        lines.append(
            f"| {one.application} | {one.version} | {len(one.steps)} | {len(one.steps) - failed}"
            f" | {failed} | {len(one.endings) - bad - refused} | {refused} | {bad} |"
        )
    for one in histories:
        lines += ["", *_print_history(one)]
    return "\n".join(lines) + "\n"


def _print_history(history: History) -> Iterable[str]:
    yield f"## {history.application} {history.version} ({history.server})"
    if history.broken:
        yield f"\nEnded early: {history.broken}"
    yield from _print_failures(history)
    noted = [(step, note) for step in history.steps for note in step.notes]
    if noted:
        yield "\n### Notes\n"
        yield from (f"- `{step.revision}`: {note}" for step, note in noted)
    if history.endings:
        yield "\n### Endings\n"
        for ending in history.endings:
            yield f"- {ending.what}: {(ending.error or ending.refused)[:700] or 'equal'}"
    for title, found in (
        ("Without guard", history.unguarded),
        ("Without rows", history.ungenerated),
    ):
        if found:
            yield f"\n### {title}\n"
            yield from (f"- `{name}`: {reason}" for name, reason in sorted(found.items()))


def _print_failures(history: History) -> Iterable[str]:
    groups: dict[str, list[Step]] = defaultdict(list)
    for step in history.steps:
        if step.stage:
            groups[step.kind].append(step)
    for kind, steps in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield f"\n### {len(steps)} times: {kind}\n"
        for step in steps:
            yield f"- `{step.revision}` {step.title}: {', '.join(step.forms) or 'no statements'}"
            yield f"  - {step.error[:700]}"


def print_forms(histories: Sequence[History]) -> str:
    """Markdown: each form of statement, and the revisions that have it."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in histories:
        for step in one.steps:
            for form in step.forms:
                found[form][one.application].append(step.revision)
    lines = ["| form | revisions |", "|---|---|"]
    for form, places in sorted(found.items()):
        told = "; ".join(
            f"{name} ({len(all_)}): {', '.join(all_[:8])}{' …' if len(all_) > 8 else ''}"
            for name, all_ in sorted(places.items())
        )
        lines.append(f"| {form} | {told} |")
    return "\n".join(lines) + "\n"
