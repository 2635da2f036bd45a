"""Codecs of the date and time types.

A predicted value must be printed exactly as Postgres prints it under `TEXT_SETTINGS`: fractions
without trailing zeros, offsets in hours where possible, a sign after a negative part of an
interval. Values that the session's time zone would convert are not predicted: a pooler may give a
server session whose zone was never reported to the driver.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

from oplog.value.kind import UNSURE, Unsure, ValueCodec, Wire, make_text_codec

_MAX_OFFSET = timedelta(hours=16)
"""Postgres takes no offset this far from UTC."""

_MAX_DIGITS = 6
"""Digits of a second's fraction, in Postgres and in Python."""

_INTERVAL = re.compile(
    r"(?:(?P<days>-?[0-9]+) days?)?"
    r"(?: ?(?P<sign>[+-])?(?P<hours>[0-9]+):(?P<minutes>[0-9]{2}):(?P<seconds>[0-9]{2})"
    r"(?:\.(?P<fraction>[0-9]{1,6}))?)?"
)


_LEAST_CLOCK = "-2562047788:00:54.775808"
"""The smallest time part of an interval. Postgres prints it but refuses to read it back."""

_LEAST_CLOCK_SPELLED = "-9223372036854775808us"
"""The same in a form that Postgres reads; without a blank, which an array would quote."""


def spell_interval(text: str) -> str:
    """Rewrite the text of an interval, or an array of intervals, so that Postgres reads it."""
    return text.replace(_LEAST_CLOCK, _LEAST_CLOCK_SPELLED)


def _find_grain(modifiers: tuple[int, ...]) -> int:
    """Return the microseconds between storable values; Postgres rounds values in between."""
    digits = modifiers[0] if modifiers else _MAX_DIGITS
    return int(10 ** (_MAX_DIGITS - digits))


_ZERO = datetime(2000, 1, 1)  # noqa: DTZ001 - in whatever zone the other operand is
"""Postgres counts microseconds from here, and rounds halves away from it."""
_TICK = timedelta(microseconds=1)


def _round(moment: datetime, grain: int) -> datetime:
    """Round a naive datetime as Postgres does; OverflowError after the year 9999."""
    ticks = (moment - _ZERO) // _TICK
    steps = (abs(ticks) + grain // 2) // grain * grain
    return _ZERO + timedelta(microseconds=-steps if ticks < 0 else steps)


def _print_moment(moment: datetime) -> str:
    # Takes half the time of datetime.isoformat(), which computes the offset again.
    text = f"{moment.date().isoformat()} {moment.time().isoformat()}"
    return text.rstrip("0") if moment.microsecond else text


def _print_rounded(moment: datetime, grain: int, *, zone: str) -> str | Unsure:
    if moment.microsecond % grain:
        try:
            moment = _round(moment.replace(tzinfo=None), grain)
        except OverflowError:
            return UNSURE
    return _print_moment(moment) + zone


def make_timestamptz_codec(pg_type: str, *modifiers: int) -> ValueCodec:
    """Codec of timestamp with time zone; a naive datetime would pass through the session's zone."""
    grain = _find_grain(modifiers)

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is not datetime:
            return UNSURE
        moment = value
        if moment.tzinfo is not UTC:
            if _offset_of(moment.utcoffset()) is None:
                return UNSURE
            try:
                moment = moment.astimezone(UTC)
            except OverflowError:
                return UNSURE
        return _print_rounded(moment, grain, zone="+00")

    return make_text_codec(
        pg_type, compare_as_text=False, to_wire=to_wire, to_python=_parse_timestamp
    )


def make_timestamp_codec(pg_type: str, *modifiers: int) -> ValueCodec:
    """Codec of timestamp without time zone.

    An aware datetime would pass through the session's zone.
    """
    grain = _find_grain(modifiers)

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is not datetime or value.tzinfo is not None:
            return UNSURE
        return _print_rounded(value, grain, zone="")

    return make_text_codec(
        pg_type, compare_as_text=False, to_wire=to_wire, to_python=_parse_timestamp
    )


def make_date_codec(pg_type: str) -> ValueCodec:
    """Codec of date; an aware datetime would pass through the session's zone."""

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is datetime:
            return UNSURE if value.tzinfo is not None else value.date().isoformat()
        return value.isoformat() if type(value) is date else UNSURE

    return make_text_codec(pg_type, compare_as_text=False, to_wire=to_wire, to_python=_parse_date)


def make_time_codec(pg_type: str, *modifiers: int) -> ValueCodec:
    """Codec of time without time zone."""
    grain = _find_grain(modifiers)

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is not time or value.tzinfo is not None:
            return UNSURE
        return _print_clock(value, grain)

    return make_text_codec(pg_type, compare_as_text=False, to_wire=to_wire, to_python=_parse_time)


def make_timetz_codec(pg_type: str, *modifiers: int) -> ValueCodec:
    """Codec of time with time zone, whose offset is stored with it."""
    grain = _find_grain(modifiers)

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is not time:
            return UNSURE
        offset = _offset_of(value.utcoffset())
        if offset is None:
            return UNSURE
        return _print_clock(value.replace(tzinfo=None), grain) + _print_offset(offset)

    return make_text_codec(pg_type, compare_as_text=False, to_wire=to_wire, to_python=_parse_time)


def make_interval_codec(pg_type: str, *, restricted: bool) -> ValueCodec:
    """Codec of interval; `restricted`: fields or precision are limited, so values are cut."""

    def to_wire(value: object) -> Wire | Unsure:
        return UNSURE if restricted or type(value) is not timedelta else _print_interval(value)

    # '24:00:00' = '1 day' in SQL, though days and hours are stored apart.
    return make_text_codec(
        pg_type,
        compare_as_text=True,
        to_wire=to_wire,
        to_python=_parse_interval,
        from_text=spell_interval,
    )


def _offset_of(offset: timedelta | None) -> timedelta | None:
    """Return `offset`, or None when Postgres would refuse or change it."""
    if offset is None or offset.microseconds or not -_MAX_OFFSET < offset < _MAX_OFFSET:
        return None
    return offset


def _print_offset(offset: timedelta) -> str:
    seconds = offset // timedelta(seconds=1)
    sign = "-" if seconds < 0 else "+"
    minutes, seconds = divmod(abs(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if seconds:
        return f"{sign}{hours:02}:{minutes:02}:{seconds:02}"
    return f"{sign}{hours:02}:{minutes:02}" if minutes else f"{sign}{hours:02}"


def _print_clock(clock: time, grain: int) -> str:
    if clock.microsecond % grain:
        rounded = _round(datetime.combine(_ZERO, clock), grain)
        if rounded.day != _ZERO.day:
            return "24:00:00"
        clock = rounded.time()
    text = clock.isoformat()
    return text.rstrip("0") if clock.microsecond else text


def _print_interval(span: timedelta) -> str:
    days, seconds, micros = span.days, span.seconds, span.microseconds
    unit = "day" if days == 1 else "days"
    if days and not seconds and not micros:
        return f"{days} {unit}"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours:02}:{minutes:02}:{seconds:02}"
    if micros:
        clock = f"{clock}.{micros:06}".rstrip("0")
    if not days:
        return clock
    # After a negative part Postgres prints a sign before a positive one; without the sign it
    # would be read as negative.
    return f"{days} {unit} {'+' if days < 0 else ''}{clock}"


def _parse_timestamp(text: str) -> object:
    # A year of five digits or BC could be mistaken for another spelling of ISO 8601.
    if text[4:5] != "-" or text[-1] == "C":
        return text
    return datetime.fromisoformat(text)


def _parse_date(text: str) -> object:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def _parse_time(text: str) -> object:
    # Some Pythons read 24:00 as midnight, which Postgres keeps apart from 00:00.
    return text if text.startswith("24") else time.fromisoformat(text)


def _parse_interval(text: str) -> object:
    match = _INTERVAL.fullmatch(text.replace(_LEAST_CLOCK_SPELLED, _LEAST_CLOCK))
    if match is None:
        return text
    clock = timedelta(
        hours=int(match["hours"] or 0),
        minutes=int(match["minutes"] or 0),
        seconds=int(match["seconds"] or 0),
        microseconds=int((match["fraction"] or "").ljust(6, "0")),
    )
    try:
        return timedelta(days=int(match["days"] or 0)) + (-clock if match["sign"] == "-" else clock)
    except OverflowError:
        return text
