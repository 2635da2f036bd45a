"""Sample values per Postgres type: parameters that a driver is given, and texts that are stored."""

from __future__ import annotations

import string
import struct
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import chain
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

ENUM_LABELS = ("sad", "so so", 'q"\\', "NULL", "")

_WHOLE = st.integers(-(2**64), 2**64) | st.sampled_from(
    [
        sign * 2**bits + step
        for sign in (1, -1)
        for bits in (15, 24, 31, 53, 63)
        for step in (-1, 0, 1)
    ]
)
_DECIMALS = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent),
    st.integers(-(10**12), 10**12),
    st.integers(-20, 20),
) | st.sampled_from(
    [
        *(Decimal(text) for text in ("-0", "-0.00", "0E+3", "0E-7", "NaN", "-NaN", "sNaN", "NaN7")),
        *(Decimal(text) for text in ("Infinity", "-Infinity", "2.5", "0.005", "-0.005", "-0.004")),
        *(
            Decimal(text)
            for text in ("99999999.995", "99999999.994", "1E+900", "1E-900", "1E+2000")
        ),
    ]
)
_TEXTS = st.text(max_size=12) | st.text("aé🐘 \\\"{},'NUL\n\t\0", max_size=7)
_ZONES = st.sampled_from(
    [
        UTC,
        *(ZoneInfo(name) for name in ("UTC", "Europe/Amsterdam", "America/New_York", "Asia/Kabul")),
    ]
) | st.builds(
    timezone,
    st.timedeltas(timedelta(hours=-17), timedelta(hours=17)).map(
        lambda offset: timedelta(seconds=offset // timedelta(seconds=1))
    ),
)
_INT32 = st.integers(-(2**31) + 1, 2**31 - 1)
_ROUND = st.sampled_from([10**3, 10**4, 10**6])
_DATETIMES = st.datetimes(timezones=st.none() | _ZONES)
_TIMES = st.times(timezones=st.none() | _ZONES)
_SPANS = (
    st.timedeltas()
    | st.timedeltas(timedelta(-3), timedelta(3))
    | st.sampled_from([timedelta(days=days) for days in (-1, 0, 1)])
)
_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


def _blunt(moment: datetime, step: int) -> datetime:
    return moment.replace(microsecond=moment.microsecond // step * step)


_BLUNT = st.builds(_blunt, _DATETIMES, _ROUND)


def _nullable(element: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(st.none() | element, max_size=5)


PARAMETERS: dict[str, st.SearchStrategy[object]] = {
    "boolean": st.booleans() | st.integers(0, 1),
    "smallint": _WHOLE | st.integers(-40000, 40000),
    "integer": _WHOLE,
    "bigint": _WHOLE | st.booleans(),
    "real": st.floats() | st.floats(width=32) | st.floats(-1e-37, 1e-37) | _WHOLE,
    "double precision": st.floats() | _WHOLE,
    "numeric": _DECIMALS | _WHOLE | st.floats(),
    "numeric(10,2)": _DECIMALS | _WHOLE,
    "numeric(5,-2)": _DECIMALS | st.integers(-(10**8), 10**8),
    "numeric(3,5)": _DECIMALS | st.decimals(-1, 1, places=7),
    "text": _TEXTS | st.text(st.characters(), max_size=3),
    "character varying": _TEXTS,
    "character varying(5)": _TEXTS,
    "character(5)": _TEXTS | st.text("a \t", max_size=8),
    "mood": st.sampled_from(ENUM_LABELS),
    "bytea": st.binary() | st.binary().map(bytearray),
    "uuid": st.uuids() | st.uuids().map(str) | st.uuids().map(lambda value: str(value).upper()),
    "date": st.dates() | st.datetimes(),
    "timestamp with time zone": _DATETIMES | _BLUNT,
    "timestamp(2) with time zone": _DATETIMES | _BLUNT,
    "timestamp without time zone": _DATETIMES | _BLUNT,
    "timestamp(0) without time zone": _DATETIMES | _BLUNT,
    "time without time zone": _TIMES | _BLUNT.map(datetime.timetz),
    "time(3) without time zone": _TIMES | _BLUNT.map(datetime.timetz),
    "time with time zone": _TIMES | _BLUNT.map(datetime.timetz),
    "interval": _SPANS,
    "interval(2)": _SPANS,
    "smallint[]": _nullable(st.integers(-40000, 40000)),
    "bigint[]": _nullable(st.integers(-(2**63), 2**63 - 1)),
    "boolean[]": _nullable(st.booleans()),
    "integer[]": st.lists(st.lists(_INT32 | st.none(), min_size=2, max_size=2), max_size=3),
    "numeric[]": _nullable(_DECIMALS),
    "numeric(10,2)[]": _nullable(_DECIMALS | st.decimals(-(10**6), 10**6, places=3)),
    "date[]": _nullable(st.dates()),
    "time without time zone[]": _nullable(st.times()),
    "timestamp without time zone[]": _nullable(st.datetimes()),
    "timestamp(2) with time zone[]": _nullable(st.datetimes(timezones=_ZONES)),
    "bytea[]": _nullable(st.binary(max_size=5)),
    "text[]": _nullable(_TEXTS | st.sampled_from(["", "null", "Null", "NULLs", " ", "\v"])),
    "character varying(3)[]": _nullable(_TEXTS),
    "uuid[]": _nullable(st.uuids()),
    "jsonb": _DOCUMENTS,
}
"""What a driver may be given for a column of the type, including what must not be predicted."""


def _space(text: str, blanks: tuple[str, str]) -> str:
    return blanks[0] + text + blanks[1]


def _spell_object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"


_BLANK = st.sampled_from(["", "", "", " ", "\n\t", "\r\n "])
_ESCAPES = [r"\n", r"\"", r"\\", r"\/", r"\b", r"\u0041", r"\u00E9", r"\ud83d\ude00", r"\u001f"]
_JSON_STRINGS = st.lists(
    st.sampled_from([*_ESCAPES, "a", "b", "é", "🐘", " ", "\x7f", r"\u0000", r"\ud800", "'"])
    | st.characters(exclude_characters='"\\', exclude_categories=["Cc", "Cs"]),
    max_size=4,
).map(lambda parts: f'"{"".join(parts)}"')
_JSON_NUMBERS = st.from_regex(
    r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?\Z"
) | st.sampled_from(["-0", "-0.00", "1e2", "1E+0400", "0e-5", "1.50", "9" * 1000, "1e-999", "NaN"])

JSON_TEXTS: st.SearchStrategy[str] = st.recursive(
    st.sampled_from(["null", "true", "false"]) | _JSON_STRINGS | _JSON_NUMBERS,
    lambda inner: st.builds(
        _space,
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(_JSON_STRINGS, inner), max_size=5).map(_spell_object),
        st.tuples(_BLANK, _BLANK),
    ),
    max_leaves=8,
)
"""Documents as serializers spell them: white space, escapes, number forms, keys twice."""

NEVER_PREDICTED = frozenset({"interval(2)"})


def _years(suffix: str = "") -> list[str]:
    days = ("4713-01-01 00:00:00{} BC", "0044-03-15 12:00:00.5{} BC", "0001-01-01 00:00:00{}")
    ends = (
        "9999-12-31 23:59:59.999999{}",
        "10000-01-01 00:00:00{}",
        "294276-12-31 23:59:59.999999{}",
    )
    return ["infinity", "-infinity", *(text.format(suffix) for text in (*days, *ends))]


_FLOATS = ["0", "-0", "NaN", "Infinity", "-Infinity", "0.1", "1e-7", "16777217", "7.038531e-26"]
_ODD_TEXTS = ["", "NULL", "\\N", "\\.", "a\tb\nc\rd\be\ff\vg\\h", "🐘 é\u00a0\u2028", "'\"{}(),"]

STORED: dict[str, list[str]] = {
    "boolean": ["t", "f"],
    "smallint": ["-32768", "32767"],
    "integer": ["-2147483648", "2147483647"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "real": [*_FLOATS, "3.4028235e38", "1e-45", "1.17549435e-38"],
    "double precision": [*_FLOATS, "1.7976931348623157e308", "4.9e-324", "1e16"],
    "numeric": ["NaN", "Infinity", "-Infinity", "0", "0.00", "1.0", "1.00", "1e131071", "1e-16383"],
    "numeric(10,2)": ["NaN", "0", "-0.004", "1.0", "1.00", "99999999.99"],
    "text": _ODD_TEXTS,
    "character varying(40)": _ODD_TEXTS,
    "character(30)": [*_ODD_TEXTS, "ab", "ab   ", "  ab"],
    '"char"': ["x", ""],
    "name": ["oplog", "a b"],
    "bytea": ["\\x", "\\x00ff5c0a"],
    "uuid": ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    "date": ["infinity", "-infinity", "4713-01-01 BC", "0001-01-01", "2024-02-29", "5874897-12-31"],
    "timestamp without time zone": _years(),
    "timestamp with time zone": [*_years("+00"), "2024-07-01 12:00+02", "2024-07-01 10:00+00"],
    "timestamp(3) with time zone": ["2024-07-01 12:00:00.123456+02"],
    "time without time zone": ["00:00", "24:00:00", "00:00:00.000001", "12:30:00.5"],
    "time with time zone": [
        "24:00:00-15:59:59",
        "12:00+05:30",
        "10:00+02",
        "08:00+00",
        "09:00:00.1-01",
    ],
    "interval": [
        *("0", "1 day", "24:00:00", "1 mon", "30 days", "-00:00:00.000001", "-1 days +00:00:01"),
        *("1 year -2 mons +3 days -04:05:06.789", "-178000000 years", "2147483647 days"),
        *("1 day -24:00:00", "2562047788:00:54.775807", "-1 years -1 mons +1 day"),
    ],
    "interval(3)": ["1 mon 00:00:00.123456"],
    "interval year to month": ["14 mons"],
    "json": ['{"a": 1,  "a":2}', "1e400", "[1,\n2]", '"\\ud800"', "null", '"\\u0000"'],
    "jsonb": ["1.0", "1.00", "1e400", '{"b": 1, "aa": 2, "a": null}', '"\\u00e9\\t"', "{}"],
    "integer[]": ["{}", "{1,NULL}", "{{1,2},{3,NULL}}", "[2:3]={1,2}", "[-1:0][5:5]={{1},{2}}"],
    "text[]": ['{"",NULL,"NULL",null,"a\\"b\\\\","{,}"," x","\n\t"}', "{é}", '{{"a b"},{c}}'],
    "boolean[]": ["{t,f,NULL}"],
    "bytea[]": ['{"\\\\x00ff"}'],
    "real[]": ["{0.1,-0,0,NaN,Infinity}"],
    "numeric(10,2)[]": ["{1,2.5}"],
    "character(3)[]": ['{"a  ",b}'],
    "timestamp with time zone[]": [
        '{infinity,"2024-01-02 03:04:05+00","0044-03-15 00:00:00+00 BC"}'
    ],
    "interval[]": ['{"1 day","1 mon 2 days"}'],
    "jsonb[]": ['{"{\\"a\\": [1]}",NULL}'],
    "int4range": ["empty", "[1,5)", "(,5]", "(,)"],
    "numrange": ["[1.0,2.0)", "[1.00,2.0)"],
    "tstzrange": ['["2024-01-01 00:00:00+00",infinity]'],
    "int4multirange": ["{}", "{[1,3),[5,8)}"],
    "inet": ["10.0.0.1", "10.0.0.1/24", "::1", "fe80::1/64"],
    "cidr": ["10.0.0.0/8", "2001:db8::/32"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(3)": ["101"],
    "bit varying(5)": ["", "10"],
    "pg_lsn": ["16/B374D848"],
    "oid": ["4294967295"],
    "xid8": ["18446744073709551615"],
    "tsvector": ["'fat':2A 'it''s':1 '\\\\':3"],
    "tsquery": ["'fat' & ( 'rat' | !'cat':* )"],
    "point": ["(0.1,-0)"],
    "box": ["(2,2),(1,1)"],
    "box[]": ["{(1,1),(0,0);(2,2),(1,1)}"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1))"],
    "circle": ["<(0.1,0.2),3>"],
    "mood": list(ENUM_LABELS),
    "mood[]": ['{sad,"so so","q\\"\\\\","NULL",""}'],
    "posint": ["1"],
    "pair": ['(1,"a b","a  ")', "(,,)", '(1,"q""\\\\",)'],
    "pair[]": ['{"(1,\\"a b\\",\\"a  \\")"}'],
}
"""Text that a column of the type can hold, with several spellings of what SQL calls equal."""


def _spell_moment(micros: int) -> str:
    # Beyond what Python's datetime holds: the day is counted by Postgres itself.
    days, rest = divmod(micros, 86_400_000_000)
    seconds, fraction = divmod(rest, 1_000_000)
    return f"J{days} {seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"


def _spell_interval(months: int, days: int, micros: int) -> str:
    return f"{months} months {days} days {micros} microseconds"


def _spell_array(items: list[str | None]) -> str:
    quoted = (
        "NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for item in items
    )
    return "{" + ",".join(chain(quoted)) + "}"


_MOMENTS = st.integers(0, 109_000_000 * 86_400_000_000).map(_spell_moment)
_PRINTED = st.text(string.printable + "é🐘\u2028", max_size=9)

GENERATED: dict[str, st.SearchStrategy[str]] = {
    "real": st.binary(min_size=4, max_size=4).map(lambda bits: repr(struct.unpack("<f", bits)[0])),
    "double precision": st.floats().map(repr),
    "numeric": st.from_regex(r"-?[0-9]{1,40}(\.[0-9]{1,40})?", fullmatch=True),
    "text": _PRINTED,
    "character(9)": _PRINTED,
    "timestamp with time zone": _MOMENTS.map("{} UTC".format),
    "timestamp without time zone": _MOMENTS,
    "interval": st.builds(_spell_interval, _INT32, _INT32, st.integers(-(2**62), 2**62)),
    "text[]": st.lists(st.none() | _PRINTED, max_size=4).map(_spell_array),
    "character(9)[]": st.lists(st.none() | _PRINTED, max_size=4).map(_spell_array),
}
