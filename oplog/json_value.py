"""Values, times and rows in the form that reports have in JSON.

A value that a JSON number would not keep exactly becomes a string.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

REDACTED = "***"
"""Stands for every value when values are hidden, NULL included."""
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
        held = value if math.isfinite(value) else format_float(value)
    elif isinstance(value, bytes):
        held = f"\\x{value.hex()}"
    elif isinstance(value, Mapping):
        held = {str(key): to_json_value(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        held = [to_json_value(item) for item in value]
    else:
        held = format_plain(value)
    return held


def hide(fields: Mapping[str, object], *, redact: bool) -> dict[str, object]:
    """`fields`, or their names alone when values are to be hidden."""
    return dict.fromkeys(fields, REDACTED) if redact else dict(fields)


def format_time(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC, to the microsecond, so that it can be given back as a bound."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def format_instant(microseconds: int) -> str | None:
    """`format_time` of microseconds since 1970, as the archive has them; None for 0."""
    if not microseconds:
        return None
    return format_time(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds))


def format_float(value: float) -> str:
    """A float as Postgres prints it: `NaN` and `Infinity` are values too."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def format_plain(value: object) -> str:
    """Text of the other types that columns have: times, decimals, uuids."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _format_interval(value)
    return str(value)


def _format_interval(span: timedelta) -> str:
    """Days, and a clock with one sign, as Postgres reads it back."""
    rest = span - timedelta(days=span.days)
    return f"{span.days} days +{rest}" if span.days < 0 else str(span)
