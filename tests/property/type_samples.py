"""Hostile values for every type of column: as text that a literal may hold, and as Python has them.

`tests/postgres/value_samples.py` tries the codecs alone; what is here goes into columns of
logged tables, hence only what Postgres takes.
"""

from __future__ import annotations

import json
import string
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql as pg

from tests.postgres.value_samples import GENERATED, STORED

Strategy = st.SearchStrategy[Any]
KeyUse = Literal["exact", "text", "python", "refused"]
"""As a primary key: given as text or as Python values, as one of them, or not at all."""

TYPES = (
    """CREATE TYPE mood AS ENUM ('sad', 'so so', 'q"\\', 'NULL', '')""",
    "CREATE DOMAIN posint AS integer CHECK (VALUE > 0)",
    "CREATE DOMAIN small AS posint NOT NULL CHECK (VALUE < 100)",
    "CREATE DOMAIN code AS character(4) DEFAULT 'c'",
    "CREATE DOMAIN since AS timestamp with time zone CHECK (VALUE > '-infinity')",
    "CREATE DOMAIN measured AS double precision",
    "CREATE DOMAIN numbers AS integer[] CHECK (cardinality(VALUE) < 9)",
    "CREATE TYPE pair AS (number integer, word text, code character(3))",
    "CREATE TYPE nest AS (one pair, many pair[], at timestamp with time zone, r real, d posint)",
    "CREATE DOMAIN even_pair AS pair CHECK ((VALUE).number % 2 = 0)",
    'CREATE TYPE textrange AS RANGE (subtype = text, collation = "C")',
    "CREATE TYPE purse AS (owner text, coins money)",
)
"""What the samples' types are made of; created in every database of these tests."""

NOTHING = st.nothing()
ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
PLANES = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0x20, 0xFFFD, 0xFFFE))
_ODD = ["", " ", "NULL", "null", "\\N", "\\.", "a\tb\nc\rd\be\ff\vg\\h", "'\"{}(),[]%s%%:x", PLANES]
_ASCII = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=9)
_ROUNDED = st.decimals(-(10**7), 10**7, allow_nan=False, allow_infinity=False, places=3)


@dataclass(frozen=True, slots=True)
class Sample:
    """A type, and what to put into columns of it; all of `always`, some of `texts` and `python`.

    The first of `always` is also what the column's default gives.
    """

    sql: str
    always: tuple[str, ...]
    texts: Strategy = NOTHING
    column: Any = None
    """The type that a model would have, to be given `python` values."""
    python: Strategy = NOTHING
    key: KeyUse = "refused"
    given: tuple[Any, ...] = ()
    """Python values that are always among those given."""
    needs: str = ""
    """An extension, or 'xml'."""
    nullable: bool = True


def _stored(pg_type: str, *more: str) -> tuple[str, ...]:
    return (*STORED[pg_type], *more)


def _single(bits: bytes) -> float:
    return float(struct.unpack("<f", bits)[0])


_INT = {bits: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (16, 32, 64)}
_LONG = st.builds(
    lambda whole, digits, sign: f"{sign}{whole}.{digits}",
    st.integers(0, 10**500 - 1),
    st.text("0123456789", min_size=1, max_size=499),
    st.sampled_from(["", "-"]),
)
_DECIMALS = st.decimals(allow_nan=False, allow_infinity=False).filter(
    lambda number: abs(number.adjusted()) < 900 and -int(number.as_tuple().exponent) < 900
)
_ZONES = st.integers(-57599, 57599).map(lambda seconds: timezone(timedelta(seconds=seconds)))
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _FINITE | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
).filter(lambda document: document is not None)
_MAX_DIGITS = "9" * 1000
_GIVEN_FLOATS = (0.5, float("nan"), -0.0, 1.0, 0.1, float("-inf"), 1e-38, 16777217.0)
_FLOATS = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 5e-324, float("nan")])

_NUMBERS = (
    Sample("boolean", ("t", "f"), column=sa.Boolean(), python=st.booleans(), key="text"),
    *(
        Sample(name, _stored(name, "0"), _INT[bits].map(str), column, _INT[bits], "exact")
        for name, bits, column in (
            ("smallint", 16, sa.SmallInteger()),
            ("integer", 32, sa.Integer()),
            ("bigint", 64, sa.BigInteger()),
        )
    ),
    Sample(
        "numeric",
        _stored("numeric", _MAX_DIGITS, f"-0.{_MAX_DIGITS}", f"1.{'0' * 999}", "-0", "1e-20"),
        _LONG,
        sa.Numeric(),
        _DECIMALS | st.sampled_from([Decimal("NaN"), Decimal("-Infinity"), Decimal("1.000")]),
        "exact",
        given=tuple(map(Decimal, ("-0", "-0.00", "1E+5", "0E-7", "NaN", "1.10", "1E-900"))),
    ),
    Sample(
        "numeric(10,2)",
        _stored("numeric(10,2)"),
        _ROUNDED.map(str),
        sa.Numeric(10, 2),
        _ROUNDED,
        "exact",
        given=tuple(map(Decimal, ("-0", "-0.004", "0.005", "-0.005", "1", "NaN"))),
    ),
    Sample("numeric(1000,500)", (f"{'9' * 500}.{'9' * 500}", "-0.005", "NaN"), _LONG, key="exact"),
    Sample(
        "numeric(5,-2)",
        ("149", "-151", "9999900", "NaN"),
        st.integers(-9999849, 9999849).map(str),
        key="exact",
    ),
    Sample(
        "numeric(3,5)",
        ("0.00999", "-0.000004", "0.000005"),
        st.integers(-999, 999).map("{}e-5".format),
        key="exact",
    ),
    Sample(
        "real",
        _stored("real", "-1e-45", "-3.4028235e38", "1.1754942e-38"),
        GENERATED["real"],
        sa.REAL(),
        st.binary(min_size=4, max_size=4).map(_single),
        "python",
        given=_GIVEN_FLOATS,
    ),
    Sample(
        "double precision",
        _stored(
            "double precision", "-4.9e-324", "2.2250738585072011e-308", "-1.7976931348623157e308"
        ),
        GENERATED["double precision"],
        sa.Double(),
        _FLOATS,
        "python",
        given=_GIVEN_FLOATS,
    ),
)

_STRINGS = (
    Sample(
        "text",
        tuple(_ODD),
        ANY_TEXT,
        sa.Text(),
        ANY_TEXT | st.sampled_from(_ODD),
        "exact",
        given=("", "NULL", "\\N", PLANES),
    ),
    Sample(
        "character varying(30)",
        tuple(text[:30] for text in _ODD),
        ANY_TEXT,
        sa.String(30),
        ANY_TEXT,
        "exact",
    ),
    Sample(
        "character(12)",
        ("", "ab", "ab  ", "  ab", "a\tb\\", "\n \r"),
        ANY_TEXT,
        sa.CHAR(12),
        ANY_TEXT,
        "exact",
        given=("ab  ", "ab", "", " a", "\n ", "\\"),
    ),
    Sample('"char"', ("x", "", "\\", "\\377", "\\200"), st.sampled_from(string.printable)),
    Sample("name", ("", "a b", "n" * 63, "é" * 31), ANY_TEXT.map(lambda text: text[:15])),
    Sample(
        "bytea",
        ("\\x", "\\x00ff5c0a", "\\\\ \\001 octal"),
        st.binary().map(lambda data: f"\\x{data.hex()}"),
        sa.LargeBinary(),
        st.binary(),
        "python",
    ),
    Sample(
        "uuid",
        ("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{00000000-0000-0000-0000000000000000}"),
        st.uuids().map(str),
        sa.Uuid(),
        st.uuids(),
        "exact",
    ),
    Sample("citext", tuple(_ODD), ANY_TEXT, key="text", needs="citext"),
    Sample("bit(3)", ("101", "000"), st.text("01", min_size=3, max_size=3)),
    Sample("bit varying(90)", ("", "10", "1" * 90), st.text("01", max_size=90)),
)


def _moments(digits: str, zone: str, column: Any, zones: Strategy) -> Sample:
    any_time = st.datetimes(timezones=zones)
    mostly_whole = any_time.map(
        lambda moment: moment.replace(microsecond=0) if moment.minute % 4 else moment
    )
    # The last second that there is cannot be rounded up.
    last = "294276-12-31 23:59:59.999999"
    plain = f"timestamp {'with' if zone else 'without'} time zone"
    return Sample(
        f"timestamp{digits}{plain.removeprefix('timestamp')}",
        (
            *(text for text in STORED[plain] if not digits or not text.startswith(last)),
            f"4714-11-24 00:00:00{zone} BC",
            f"10000-01-01 00:00:00.000001{zone}",
        ),
        GENERATED[plain],
        column,
        mostly_whole if digits else any_time,
        "python",
        given=tuple(
            datetime(2024, 1, 2, 3, 4, 5, micros, UTC if zone else None)
            for micros in (0, 670_000, 678_901, 999_999)
        ),
    )


_AWARE = st.none() | st.just(UTC) | _ZONES
_MOMENTS = (
    Sample(
        "date",
        _stored("date", "4714-11-24 BC", "0001-12-31 BC", "10000-01-01"),
        st.integers(0, 2_147_483_493).map("J{}".format),
        sa.Date(),
        st.dates(),
        "python",
    ),
    _moments("", "", sa.DateTime(), st.none()),
    _moments("(2)", "", pg.TIMESTAMP(precision=2), st.none()),
    _moments("", "+00", sa.DateTime(timezone=True), _AWARE),
    _moments("(0)", "+00", pg.TIMESTAMP(timezone=True, precision=0), _ZONES),
    Sample(
        "time without time zone",
        _stored("time without time zone", "23:59:59.999999", "23:59:60"),
        st.times().map(str),
        sa.Time(),
        st.times(),
        "python",
    ),
    Sample(
        "time with time zone",
        _stored("time with time zone", "00:00:00.000001+15:59:59", "24:00:00+00"),
        st.builds("{}{:+03}:{:02}".format, st.times(), st.integers(-15, 15), st.integers(0, 59)),
        sa.Time(timezone=True),
        st.times(timezones=_ZONES),
        "python",
    ),
    Sample(
        "interval",
        _stored(
            "interval",
            "-178956970 years -8 mons -2147483648 days -2562047788:00:54.775807",
            "178956970 years 7 mons 2147483646 days 2562047788:00:54.775807",
            "-9223372036854775808 microseconds",
            "1 mon -1 days -9223372036854775808 microseconds",
        ),
        GENERATED["interval"],
        sa.Interval(),
        st.timedeltas() | st.timedeltas(timedelta(-3), timedelta(3)),
        "python",
        given=tuple(timedelta(days, 0, micros) for days in (-1, 0, 1) for micros in (-1, 0, 9)),
    ),
    Sample(
        "interval(3)", ("1 mon 00:00:00.123456", "-1 days +00:00:00.9999"), GENERATED["interval"]
    ),
    Sample("interval day to second", ("1 mon -2 days", "1 year 1 day 00:00:00.000001")),
)

_DOCUMENTS = (
    Sample(
        "json",
        _stored("json", '  {"b" : 1,\n\t"a":[ ],"b":2 } ', '"é\\u00e9"', "-0.0", "1.00"),
        _JSON.map(lambda document: json.dumps(document, indent=1)),
        sa.JSON(),
        _JSON,
        given=({"b": [1.50, None], "a": "é"}, [1e16, 0.1], []),
    ),
    Sample(
        "jsonb",
        _stored("jsonb", '{"b":1.50,"a":[],"b":-0.0}', "-0.0", '"\\\\"', "[[[]]]", _MAX_DIGITS),
        _JSON.map(json.dumps),
        pg.JSONB(),
        _JSON,
        "text",
        given=({"b": [1.50, None], "aa": "\\", "é": -0.0}, [1e16, 0.1], {"a": [10**40]}, []),
    ),
    Sample(
        "xml",
        (
            "",
            " a <b>&amp;</b>\n",
            '<?xml version="1.0" encoding="latin1"?><a>é</a>',
            "<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>",
            "<a><![CDATA[]]]]><![CDATA[>\\]]></a><!-- c --><?p i?>",
        ),
        st.text("a é🐘\t\\'\"]", max_size=9).map("<a>{}</a>".format),
        needs="xml",
    ),
    Sample("tsvector", ("", "'\\\\':1A,16383 '''' 'a b'", "fat:2A it''s:1B")),
    Sample("tsquery", ("", "'fat' & ( 'rat' | !'c d':*AB ) <16384> x", "!!a", "'\\\\' <-> ''''")),
    Sample("jsonpath", ('$.a[*] ? (@ like_regex "x" flag "i").b', 'strict $."a b" + 1.50', "$")),
)

SCALARS = (*_NUMBERS, *_STRINGS, *_MOMENTS, *_DOCUMENTS)
