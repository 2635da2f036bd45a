"""Defines the kinds of wire value, `ValueCodec`, and the settings under which text is read.

What `::text` prints depends on the session: another DateStyle or time zone gives other text for
the same row. Text of a value is valid only under `TEXT_SETTINGS`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast


class Kind(enum.IntEnum):
    """How a value is encoded on the wire. The numbers are part of the wire format."""

    BOOL = 1
    INT = 2
    FLOAT4 = 3
    FLOAT8 = 4
    BYTES = 5
    TEXT = 6


Wire: TypeAlias = bool | int | float | bytes | str
"""A logged value that is not NULL. Its Python type follows from its `Kind`."""


class Unsure(enum.Enum):
    """Answer of `to_wire` when the stored value cannot be predicted: read it back instead."""

    UNSURE = "unsure"


UNSURE: Final[Literal[Unsure.UNSURE]] = Unsure.UNSURE

TEXT_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "datestyle": "ISO, MDY",
        "intervalstyle": "postgres",
        "timezone": "UTC",
        "extra_float_digits": "1",
        "bytea_output": "hex",
        "xmloption": "content",
        # Off would read an unquoted NULL inside an array literal as the word 'NULL'.
        "array_nulls": "on",
        # A money column is refused, but a domain or a composite may contain money: under one
        # fixed locale its text at least reads back as the same number of units.
        "lc_monetary": "C",
    }
)
"""Session settings under which text is read from and written to Postgres, by name."""


@dataclass(frozen=True, slots=True)
class ValueCodec:
    """Conversions of one Postgres type. None (SQL NULL) is never passed to any of them.

    `pg_type` is the name as `format_type()` prints it.

    `to_wire` takes a bound parameter as it was given to the driver, and returns the wire form
    of the value that Postgres will store in a column of this type, or `UNSURE`. It never
    raises.

    `to_python` returns the natural Python value, or the text itself where Python cannot hold
    the value (infinite or BC timestamps, years over 9999, 24:00:00, intervals with months).
    It never raises on text that Postgres printed.

    `from_text` reads `column::text` printed under `TEXT_SETTINGS`. `to_text` writes text
    that the type's input function reads back as the same stored value under the same
    settings; for COPY it still has to pass through `copy_field`.

    `compare_as_text` is True when the type has no IS DISTINCT FROM, or when it treats
    different stored values as equal. Compare `column::text COLLATE "C"` then: `::text` alone
    keeps the column's collation, which may ignore case.
    """

    pg_type: str
    kind: Kind
    to_wire: Callable[[object], Wire | Unsure]
    to_python: Callable[[Wire], object]
    from_text: Callable[[str], Wire]
    to_text: Callable[[Wire], str]
    compare_as_text: bool


def _return_same(value: object) -> object:
    return value


wire_as_python: Final = cast("Callable[[Wire], object]", _return_same)
text_as_wire: Final = cast("Callable[[str], Wire]", _return_same)
wire_as_text: Final = cast("Callable[[Wire], str]", _return_same)


def refuse_to_guess(value: object) -> Unsure:  # noqa: ARG001 - the shape of every `to_wire`
    """`to_wire` of types whose stored form cannot be predicted from the parameter."""
    return UNSURE


def make_text_codec(
    pg_type: str,
    *,
    compare_as_text: bool,
    to_wire: Callable[[object], Wire | Unsure] = refuse_to_guess,
    to_python: Callable[[str], object] | None = None,
    from_text: Callable[[str], Wire] = text_as_wire,
) -> ValueCodec:
    """A codec of kind TEXT: the wire value is Postgres' own text.

    `to_python` may declare a str parameter: the kind guarantees it, and a check on every call
    would double the cost of the cheapest conversions.
    """
    read = wire_as_python if to_python is None else cast("Callable[[Wire], object]", to_python)
    return ValueCodec(
        pg_type=pg_type,
        kind=Kind.TEXT,
        to_wire=to_wire,
        to_python=read,
        from_text=from_text,
        to_text=wire_as_text,
        compare_as_text=compare_as_text,
    )
