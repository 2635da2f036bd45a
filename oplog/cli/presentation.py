"""Values, entries and changes as text for people.

Rows hold anything, also escape sequences that would drive the terminal: text is made harmless.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from oplog.entry import Change, LoggedEntry, Operation
from oplog.json_value import REDACTED, format_float, format_plain, format_time, to_json_value
from oplog.schema.mark_names import ADOPTION_PREFIX
from oplog.search.found_change import FoundChange

_SHOWN_BYTES = 16
_SHOWN_ROWS = 10
"""A chunk of adopted rows that has more is not shown row by row."""
_SHOWN_OPERATIONS = 20
"""Operations of an entry that are shown unless all are asked for."""
_SHOWN_CHARACTERS = 200
"""Of a value, unless all of it is asked for."""
_COLOURS = {"create": "green", "update": "yellow", "delete": "red"}


@dataclass(frozen=True, slots=True)
class Look:
    """How entries and changes are shown: `full` cuts nothing, `redact` hides values."""

    redact: bool = False
    full: bool = False
    colour: bool = False

    def kind(self, kind: str) -> str:
        """The name of an operation's kind."""
        return click.style(kind, fg=_COLOURS.get(kind)) if self.colour else kind

    def head(self, line: str) -> str:
        """The first line of an entry."""
        return click.style(line, bold=True) if self.colour else line

    def value(self, value: object) -> str:
        """A value for people, cut where it is long."""
        if self.redact:
            return REDACTED
        shown = show_value(value)
        if self.full or len(shown) <= _SHOWN_CHARACTERS:
            return shown
        return f"{shown[:_SHOWN_CHARACTERS]}… ({len(shown)} characters)"


def show_value(value: object) -> str:
    """`value` for people: strings quoted, bytes as the start of their hex, NULL as NULL."""
    if value is None:
        shown = "NULL"
    elif isinstance(value, bool):
        shown = "true" if value else "false"
    elif isinstance(value, str):
        shown = f"'{escape(value)}'"
    elif isinstance(value, float):
        shown = format_float(value)
    elif isinstance(value, bytes):
        whole = len(value) <= _SHOWN_BYTES
        rest = "" if whole else f"… ({len(value)} bytes)"
        shown = f"\\x{value[:_SHOWN_BYTES].hex()}{rest}"
    elif isinstance(value, dict | list | tuple):
        shown = escape(json.dumps(to_json_value(value), ensure_ascii=False))
    else:
        shown = escape(format_plain(value))
    return shown


def escape(text: str) -> str:
    """`text` without what a terminal would obey: control characters, overrides of direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show_size(count: int) -> str:
    """A number of bytes for people."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:  # noqa: PLR2004 - the factor that the units are made of
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_count(number: int, one: str, *, many: str = "") -> str:
    """A number of things; `many` where the plural takes more than an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def show_key(key: Mapping[str, object]) -> str:
    """A primary key on one line."""
    return ", ".join(f"{escape(name)}={show_value(value)}" for name, value in key.items())


def show_entry(entry: LoggedEntry, *, look: Look) -> Iterator[str]:
    """An entry as lines of text."""
    yield look.head(
        f"{entry.position}  {format_time(entry.recorded_at)}  {escape(entry.aggregate)}  "
        f"version {entry.version}"
    )
    yield from _show_metadata(entry.metadata)
    if entry.quarantined is not None:
        yield f"  quarantined, its changes are not read: {escape(entry.quarantined)}"
    if entry.aggregate.startswith(ADOPTION_PREFIX) and len(entry.operations) > _SHOWN_ROWS:
        yield _show_block(entry.operations)
        return
    most = len(entry.operations) if look.full else _SHOWN_OPERATIONS
    for operation in entry.operations[:most]:
        kind, name = look.kind(operation.kind.name.lower()), escape(operation.type_name)
        yield f"  {kind} {name} {show_key(operation.key)}"
        yield from _show_fields(operation.fields, look=look, indent=4)
    rest = len(entry.operations) - most
    if rest > 0:
        yield f"  … {show_count(rest, 'more operation')} (--full shows all)"


def _show_block(operations: Sequence[Operation]) -> str:
    """A chunk of adopted rows on one line: it has thousands."""
    first, last = operations[0], operations[-1]
    return (
        f"  {first.kind.name.lower()} {escape(first.type_name)} "
        f"{show_count(len(operations), 'row')}, {show_key(first.key)} to {show_key(last.key)}"
    )


def show_change(change: Change, *, look: Look) -> Iterator[str]:
    """A step of a row's history as lines of text."""
    kind = look.kind(change.kind.name.lower())
    yield f"{look.head(f'{change.position}  {format_time(change.recorded_at)}')}  {kind}"
    yield from _show_metadata(change.metadata)
    yield from _show_fields(change.fields, look=look, indent=2)


def show_found(change: FoundChange, *, look: Look) -> Iterator[str]:
    """A change that a search found as lines of text."""
    kind = look.kind(change.kind.name.lower())
    place = look.head(f"{change.position}  {format_time(change.recorded_at)}")
    yield f"{place}  {kind} {escape(change.type_name)} {show_key(change.key)}"
    yield from _show_metadata(change.metadata)
    for name, value in change.before.items():
        yield f"  {escape(name)} was {look.value(value)}"
    yield from _show_fields(change.fields, look=look, indent=2)


def _show_metadata(metadata: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for key, values in metadata.items():
        yield f"  {escape(key)}: {', '.join(escape(value) for value in values)}"


def _show_fields(fields: Mapping[str, object], *, look: Look, indent: int) -> Iterator[str]:
    for name, value in fields.items():
        yield f"{' ' * indent}{escape(name)} = {look.value(value)}"


def show_quarantined(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Records that were passed over, as a report has them."""
    for one in records:
        named = ", ".join(escape(name) for name in one["aggregates"])
        more = one["entries"] - len(one["aggregates"])
        yield (
            f"quarantined: position {one['position']}, record {one['record_id']}"
            f"{f', {named}' if named else ''}{f' and {more} more' if more else ''}"
        )
        role, mark = escape(one["role"]), one["marked_at_position"]
        yield f"  {escape(one['reason'])} (by {role}, at position {mark})"


def show_guards(document: Mapping[str, Any]) -> Iterator[str]:
    """Partitions that were made after their table was tracked, as a report has them."""
    for name in document["guarded"]:
        yield f"guarded against TRUNCATE: {escape(name)}"
    for name in document["unguarded"]:
        yield (
            f"not guarded against TRUNCATE: {escape(name)}; it is in use, or this role may not "
            "create its trigger"
        )


def show_problems(problems: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Problems of an archive, as a report has them."""
    for problem in problems:
        harmless = ", harmless" if problem["harmless"] else ""
        yield f"{problem['what']}{harmless}: {escape(problem['path'] or 'database')}"
        yield f"  {escape(problem['message'])}"
