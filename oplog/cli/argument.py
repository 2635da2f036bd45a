"""Types of arguments: places in the log, durations, shares, metadata.

A time without a zone is UTC, because that is what every command prints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

_MAX_POSITION = (1 << 63) - 1
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([dhms])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_POSITIONS = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?")
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(%?)")


class PlaceType(click.ParamType[int | datetime]):
    """A position, or a time in ISO 8601 that stands for the last position recorded by then."""

    name = "POSITION|TIME"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | datetime:
        """The int or the aware datetime that the text spells."""
        if isinstance(value, int | datetime):
            return value
        text = str(value).strip()
        if text.isascii() and text.isdigit():
            position = int(text)
            if position <= _MAX_POSITION:
                return position
            self.fail(f"{text} is not a position: too large", param, ctx)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(
                f"{text!r} is neither a position nor a time such as 2025-01-31T12:00:00Z",
                param,
                ctx,
            )
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


class DurationType(click.ParamType[timedelta]):
    """A number with its unit: 90d, 12h, 30m, 45s."""

    name = "DURATION"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """The duration that the text spells; never negative."""
        if isinstance(value, timedelta):
            return value
        matched = _DURATION.fullmatch(str(value).strip())
        if matched is None:
            self.fail(f"{value!r} is not a duration such as 90d, 12h, 30m or 45s", param, ctx)
        try:
            return timedelta(**{_UNITS[matched[2]]: float(matched[1])})
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


class ShareType(click.ParamType[float]):
    """A part of a whole: 5% or 0.05."""

    name = "SHARE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number from 0 to 1 that the text spells."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        matched = _SHARE.fullmatch(text)
        share = float(matched[1]) / (100 if matched[2] else 1) if matched else -1.0
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not a share such as 5% or 0.05", param, ctx)
        return share


class PositionsType(click.ParamType[range]):
    """A position, or a range of them with its last one: 5, or 5-9."""

    name = "POSITION"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        """The positions that the text spells."""
        if isinstance(value, range):
            return value
        matched = _POSITIONS.fullmatch(str(value).strip())
        first = int(matched[1]) if matched else 0
        last = int(matched[2] or first) if matched else 0
        if not 0 < first <= last <= _MAX_POSITION:
            self.fail(f"{value!r} is not a position such as 5, or a range such as 5-9", param, ctx)
        return range(first, last + 1)


PLACE = PlaceType()
POSITIONS = PositionsType()
DURATION = DurationType()
SHARE = ShareType()


def parse_metadata(pairs: Sequence[str]) -> dict[str, list[str]]:
    """`key=value` texts as metadata; a key given twice must have both values."""
    parsed: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--metadata {pair!r} is not of the form key=value")
        parsed.setdefault(key, []).append(value)
    return parsed
