"""A place in the log as a caller gives it: a position, or a time that stands for one."""

from __future__ import annotations

from datetime import datetime
from typing import overload

from oplog.errors import ConfigurationError
from oplog.postgres.work import check_moment
from oplog.reading.reader import RecordReader


@overload
def find_place(reader: RecordReader, place: int | datetime, *, snapshot: str) -> int: ...
@overload
def find_place(
    reader: RecordReader, place: int | datetime | None, *, snapshot: str
) -> int | None: ...
def find_place(reader: RecordReader, place: int | datetime | None, *, snapshot: str) -> int | None:
    """`place` as a position: of a datetime, the last up to which nothing is younger.

    Raises `ConfigurationError` for a datetime without a time zone, and for anything else.
    """
    if isinstance(place, datetime):
        return reader.source.find_position(check_moment(place), snapshot=snapshot)
    # A bool is an int, and a mistake here.
    if place is not None and (isinstance(place, bool) or not isinstance(place, int)):
        raise ConfigurationError(
            f"{place!r:.80} is not a place in the log",
            hint="give a position, as entry.position is one, or an aware datetime",
        )
    return place
