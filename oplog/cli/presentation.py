"""Values, entries and changes as JSON and as text for people.

Pure. Must not know commands, connections or click. The hard thing is that rows hold anything:
escape sequences that would drive the terminal, numbers that JSON does not have, megabytes of
bytes. JSON keeps every value exactly, text stays readable and harmless.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from oplog.entry import Change, LoggedEntry, Operation

REDACTED = "***"
"""Stands for every value when they are to be hidden, NULL included."""
_SHOWN_BYTES = 16
_SAFE_INTEGER = 1 << 53
"""Beyond it JSON readers that know only doubles change the number silently."""


def to_json_value(value: object) -> Any:
    """`value` as JSON holds it exactly: a string wherever a number would not.

    bytes are hex after a backslash and x, times ISO 8601, decimals and intervals their text.
    """
    held: Any
    if value is None or isinstance(value, bool | str):
        held = value
    elif isinstance(value, int):
        held = value if -_SAFE_INTEGER < value < _SAFE_INTEGER else str(value)
    elif isinstance(value, float):
        held = value if math.isfinite(value) else _show_float(value)
    elif isinstance(value, bytes):
        held = f"\\x{value.hex()}"
    elif isinstance(value, Mapping):
        held = {str(key): to_json_value(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        held = [to_json_value(item) for item in value]
    else:
        held = _show_plain(value)
    return held


def show_value(value: object) -> str:
    """`value` for people: strings quoted, bytes as the start of their hex, NULL as NULL."""
    if value is None:
        shown = "NULL"
    elif isinstance(value, bool):
        shown = "true" if value else "false"
    elif isinstance(value, str):
        shown = f"'{escape(value)}'"
    elif isinstance(value, float):
        shown = _show_float(value)
    elif isinstance(value, bytes):
        whole = len(value) <= _SHOWN_BYTES
        rest = "" if whole else f"… ({len(value)} bytes)"
        shown = f"\\x{value[:_SHOWN_BYTES].hex()}{rest}"
    elif isinstance(value, dict | list | tuple):
        shown = escape(json.dumps(to_json_value(value), ensure_ascii=False))
    else:
        shown = escape(_show_plain(value))
    return shown


def escape(text: str) -> str:
    """`text` without what a terminal would obey: control characters, overrides of direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show_time(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC, to the microsecond, so that it can be given back as a bound."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def show_instant(microseconds: int) -> str | None:
    """`show_time` of microseconds since 1970, as the archive has them; None for none."""
    if not microseconds:
        return None
    return show_time(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds))


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


def hide(fields: Mapping[str, object], *, redact: bool) -> dict[str, object]:
    """`fields`, or their names alone when values are to be hidden."""
    return dict.fromkeys(fields, REDACTED) if redact else dict(fields)


def entry_to_json(entry: LoggedEntry, *, redact: bool) -> dict[str, Any]:
    """An entry as a JSON object."""
    return {
        "position": entry.position,
        "sequence": entry.sequence,
        "aggregate": entry.aggregate,
        "version": entry.version,
        "recorded_at": show_time(entry.recorded_at),
        "entry_id": str(entry.entry_id),
        "entry_hash": entry.entry_hash.hex(),
        "transaction_id": entry.transaction_id,
        "transaction_position": entry.transaction_position,
        "metadata": {key: list(values) for key, values in entry.metadata.items()},
        "operations": [_operation_to_json(o, redact=redact) for o in entry.operations],
    }


def show_entry(entry: LoggedEntry, *, redact: bool) -> Iterator[str]:
    """An entry as lines of text."""
    yield (
        f"{entry.position}  {show_time(entry.recorded_at)}  {escape(entry.aggregate)}  "
        f"version {entry.version}"
    )
    yield from _show_metadata(entry.metadata)
    for operation in entry.operations:
        kind, name = operation.kind.name.lower(), escape(operation.type_name)
        yield f"  {kind} {name} {show_key(operation.key)}"
        yield from _show_fields(operation.fields, redact=redact, indent=4)


def change_to_json(change: Change, *, redact: bool) -> dict[str, Any]:
    """A step of a row's history as a JSON object."""
    return {
        "position": change.position,
        "kind": change.kind.name.lower(),
        "recorded_at": show_time(change.recorded_at),
        "metadata": {key: list(values) for key, values in change.metadata.items()},
        "fields": to_json_value(hide(change.fields, redact=redact)),
    }


def show_change(change: Change, *, redact: bool) -> Iterator[str]:
    """A step of a row's history as lines of text."""
    yield f"{change.position}  {show_time(change.recorded_at)}  {change.kind.name.lower()}"
    yield from _show_metadata(change.metadata)
    yield from _show_fields(change.fields, redact=redact, indent=2)


def _operation_to_json(operation: Operation, *, redact: bool) -> dict[str, Any]:
    return {
        "kind": operation.kind.name.lower(),
        "type": operation.type_name,
        "key": to_json_value(operation.key),
        "fields": to_json_value(hide(operation.fields, redact=redact)),
    }


def _show_metadata(metadata: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for key, values in metadata.items():
        yield f"  {escape(key)}: {', '.join(escape(value) for value in values)}"


def _show_fields(fields: Mapping[str, object], *, redact: bool, indent: int) -> Iterator[str]:
    for name, value in fields.items():
        shown = REDACTED if redact else show_value(value)
        yield f"{' ' * indent}{escape(name)} = {shown}"


def _show_float(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def _show_plain(value: object) -> str:
    """Text of the other types that columns have: times, decimals, uuids."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _show_interval(value)
    return str(value)


def _show_interval(span: timedelta) -> str:
    """Days, and a clock with one sign, as Postgres reads it back."""
    rest = span - timedelta(days=span.days)
    return f"{span.days} days +{rest}" if span.days < 0 else str(span)
