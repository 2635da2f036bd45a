"""Finds the codec of a Postgres type by its name, or refuses the type.

An unknown type is logged as text, which its own input function must read back, and is never
predicted. A type is refused when its text means something else in another database, or cannot
be read back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from oplog.errors import NotCapturableError
from oplog.value.array import make_array_codec
from oplog.value.json_text import make_json_codec, make_jsonb_codec
from oplog.value.kind import ValueCodec, make_text_codec, text_as_wire
from oplog.value.moment import (
    make_date_codec,
    make_interval_codec,
    make_time_codec,
    make_timestamp_codec,
    make_timestamptz_codec,
    make_timetz_codec,
    spell_interval,
)
from oplog.value.number import (
    make_bool_codec,
    make_double_codec,
    make_int_codec,
    make_numeric_codec,
    make_single_codec,
)
from oplog.value.string import (
    make_bytes_codec,
    make_character_codec,
    make_enum_codec,
    make_string_codec,
    make_uuid_codec,
)

_NAME = re.compile(r"(?P<base>[a-z0-9_ ]+?)(?:\((?P<modifiers>[0-9, -]+)\))?(?P<zone> with.*)?")

_MAKERS: Final[Mapping[str, Callable[..., ValueCodec]]] = MappingProxyType(
    {
        "boolean": make_bool_codec,
        "smallint": partial(make_int_codec, bits=16),
        "integer": partial(make_int_codec, bits=32),
        "bigint": partial(make_int_codec, bits=64),
        "real": make_single_codec,
        "double precision": make_double_codec,
        "numeric": make_numeric_codec,
        "text": make_string_codec,
        "character varying": make_string_codec,
        "character": make_character_codec,
        "bytea": make_bytes_codec,
        "uuid": make_uuid_codec,
        "date": make_date_codec,
        "timestamp with time zone": make_timestamptz_codec,
        "timestamp without time zone": make_timestamp_codec,
        "time with time zone": make_timetz_codec,
        "time without time zone": make_time_codec,
        "json": make_json_codec,
        "jsonb": make_jsonb_codec,
    }
)

# Floats are printed with other digits inside of an array, and character(n) with its blanks.
_PREDICTABLE_ELEMENTS: Final = frozenset(
    {*_MAKERS, "citext"} - {"real", "double precision", "character"}
)

_PSEUDO_TYPES: Final = frozenset(
    {"any", "anyarray", "anyelement", "cstring", "internal", "record", "trigger", "unknown", "void"}
)
_UNREADABLE_TYPES: Final = frozenset(
    {
        "gtsvector",
        "pg_brin_bloom_summary",
        "pg_brin_minmax_multi_summary",
        "pg_dependencies",
        "pg_mcv_list",
        "pg_ndistinct",
        "pg_node_tree",
    }
)
_CATALOG_REFERENCES: Final = frozenset(
    {
        "aclitem",
        "regclass",
        "regcollation",
        "regconfig",
        "regdatabase",
        "regdictionary",
        "regnamespace",
        "regoper",
        "regoperator",
        "regproc",
        "regprocedure",
        "regrole",
        "regtype",
    }
)

_REFUSED_ANYWHERE: Final = (
    (
        _CATALOG_REFERENCES,
        (
            "it names an object of this one database",
            "store the name as text, or leave the column out with exclude={...}",
        ),
    ),
    (
        _UNREADABLE_TYPES,
        (
            "Postgres prints its values but does not read them back",
            "leave the column out with exclude={...}",
        ),
    ),
)
"""Types refused both as a column's type and as a part of it, each with reason and hint."""


def codec_for(pg_type: str, *, category: str = "") -> ValueCodec:
    """Return the codec of a Postgres type.

    `pg_type` is spelled as `format_type(atttypid, atttypmod)` prints it. `category` is
    `pg_type.typcategory` if it is known: 'E' makes an unknown name an enum. An unknown type is
    logged as its text and never predicted. Build one codec per column and keep it.

    Raises `NotCapturableError` for types whose text does not mean the same in another
    database, or that cannot be read back from text at all.
    """
    if pg_type.endswith("[]"):
        return _make_array_codec(pg_type)
    base, modifiers = _split_name(pg_type)
    _check_capturable(pg_type, base, category)
    if category == "E":
        return make_enum_codec(pg_type)
    if _is_interval(base):
        return make_interval_codec(pg_type, restricted=pg_type != "interval")
    if base == "citext" and category in ("", "S"):
        return make_string_codec(pg_type)
    maker = _MAKERS.get(base)
    if maker is None:
        return make_text_codec(pg_type, compare_as_text=True)
    return maker(pg_type, *modifiers)


def _split_name(pg_type: str) -> tuple[str, tuple[int, ...]]:
    """'numeric(10,2)' -> 'numeric', (10, 2); the schema of citext is dropped."""
    # An extension may be in any schema, and format_type prints it if the search path lacks it.
    if pg_type.endswith(".citext"):
        return "citext", ()
    match = _NAME.fullmatch(pg_type)
    if match is None:
        return pg_type, ()
    numbers = match["modifiers"]
    modifiers = tuple(int(number) for number in numbers.split(",")) if numbers else ()
    return match["base"] + (match["zone"] or ""), modifiers


def check_parts(pg_type: str, parts: Iterable[str]) -> None:
    """Raise `NotCapturableError` if a part of the type cannot be logged as text.

    `parts` are the types of its elements, fields and bounds, at any depth. bpchar is allowed
    as a part: only `column::text` removes its blanks, the text of a row or an array keeps them.
    """
    for part in parts:
        for refused, (reason, hint) in _REFUSED_ANYWHERE:
            if part.removesuffix("[]") in refused:
                raise NotCapturableError(
                    f"type {pg_type} cannot be logged exactly: it contains {part}, and {reason}",
                    hint=hint,
                )


def _is_interval(base: str) -> bool:
    # 'interval day to second' is an interval; a user's type 'interval_kind' is not.
    return base == "interval" or base.startswith("interval ")


def _make_array_codec(pg_type: str) -> ValueCodec:
    element = codec_for(pg_type.removesuffix("[]"))
    base, _ = _split_name(element.pg_type)
    return make_array_codec(
        pg_type,
        element,
        predictable=base in _PREDICTABLE_ELEMENTS,
        nests=base not in ("json", "jsonb"),
        readable=base in _MAKERS or base == "citext" or _is_interval(base),
        from_text=spell_interval if _is_interval(base) else text_as_wire,
    )


def _check_capturable(pg_type: str, base: str, category: str) -> None:
    for refused, (reason, hint) in _REFUSED_ANYWHERE:
        if base in refused:
            raise NotCapturableError(
                f"type {pg_type} cannot be logged exactly: {reason}", hint=hint
            )
    if base == "money":
        reason = "its text depends on the server's lc_monetary setting"
        hint = "use numeric(19,2), or leave the column out with exclude={...}"
    elif base == "bpchar":
        reason = "its trailing blanks are stored but lost in every conversion to text"
        hint = "use text, or give it a length: character(n)"
    elif category == "P" or base in _PSEUDO_TYPES:
        reason = "it is a pseudo-type"
        hint = "give the column a real type"
    else:
        return
    raise NotCapturableError(f"type {pg_type} cannot be logged exactly: {reason}", hint=hint)
