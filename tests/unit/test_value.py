"""What the codecs promise without asking a server; `tests/postgres` asks one."""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum, StrEnum
from fractions import Fraction
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.value import UNSURE, codec_for
from oplog.value.json_text import JsonText, print_jsonb
from oplog.value.number import parse_single

pytestmark = pytest.mark.unit

BERLIN = ZoneInfo("Europe/Berlin")
IDENTITY = UUID("12345678-1234-5678-1234-567812345678")
TSTZ = "timestamp with time zone"
TIMETZ = "time with time zone"


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Label(str):
    __slots__ = ()


class Vague(tzinfo):
    def utcoffset(self, _moment: datetime | None) -> timedelta | None:
        return None

    dst = utcoffset

    def tzname(self, _moment: datetime | None) -> str | None:
        return None


def zone(**offset: int) -> timezone:
    return timezone(timedelta(**offset))


def naive(year: int, month: int, day: int, *clock: int) -> datetime:
    hour, minute, second, micro = (*clock, 0, 0, 0, 0)[:4]
    return datetime.combine(date(year, month, day), time(hour, minute, second, micro))


@pytest.mark.parametrize(
    ("pg_type", "value", "wire"),
    [
        ("boolean", True, True),
        ("smallint", -32768, -32768),
        ("integer", 2**31 - 1, 2**31 - 1),
        ("bigint", -(2**63), -(2**63)),
        ("double precision", 0.1, 0.1),
        ("double precision", 2**53, float(2**53)),
        ("real", 0.1, struct.unpack("f", struct.pack("f", 0.1))[0]),
        ("real", 2**24, float(2**24)),
        ("bytea", b"\x00\xff", b"\x00\xff"),
        ("text", "", ""),
        ("text", "naïve 🐘", "naïve 🐘"),
        ("character varying", "x" * 9, "x" * 9),
        ("character varying(3)", "äöü", "äöü"),
        ("character(3)", "a", "a"),
        ("character(3)", " a ", " a"),
        ("character(3)", "abc  ", "abc"),
        ("citext", "MiXed", "MiXed"),
        ("public.citext", "MiXed", "MiXed"),
        ("uuid", IDENTITY, str(IDENTITY)),
        ("numeric", Decimal("1.10"), "1.10"),
        ("numeric", Decimal("1E+5"), "100000"),
        ("numeric", Decimal("-0"), "0"),
        ("numeric", Decimal("-0.00"), "0.00"),
        ("numeric", Decimal("0E-7"), "0.0000000"),
        ("numeric", Decimal("NaN"), "NaN"),
        ("numeric", Decimal("-Infinity"), "-Infinity"),
        ("numeric", 10**100, "1" + "0" * 100),
        ("numeric(10,2)", Decimal("1.5"), "1.50"),
        ("numeric(10,2)", Decimal("0.005"), "0.01"),
        ("numeric(10,2)", Decimal("-0.005"), "-0.01"),
        ("numeric(10,2)", Decimal("-0.004"), "0.00"),
        ("numeric(10,2)", Decimal("NaN"), "NaN"),
        ("numeric(10,2)", 7, "7.00"),
        ("numeric(10,0)", Decimal("2.5"), "3"),
        ("numeric(12,10)", Decimal("1E-9"), "0.0000000010"),
        ("numeric(5,-2)", Decimal(12350), "12400"),
        ("numeric(5,-2)", 49, "0"),
        ("numeric(2,4)", Decimal("0.00125"), "0.0013"),
        (TSTZ, datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "2024-01-02 03:04:05+00"),
        (TSTZ, datetime(2024, 1, 2, 3, 4, 0, 120000, UTC), "2024-01-02 03:04:00.12+00"),
        (TSTZ, datetime(2024, 7, 2, 0, 4, 5, 1, BERLIN), "2024-07-01 22:04:05.000001+00"),
        (TSTZ, datetime(9, 1, 2, tzinfo=zone(hours=-1)), "0009-01-02 01:00:00+00"),
        (
            "timestamp(3) with time zone",
            datetime(2024, 1, 2, 0, 0, 0, 5000, UTC),
            "2024-01-02 00:00:00.005+00",
        ),
        ("timestamp without time zone", naive(2024, 1, 2, 3, 4, 50), "2024-01-02 03:04:50"),
        ("timestamp(0) without time zone", naive(2024, 1, 2), "2024-01-02 00:00:00"),
        ("date", date(1, 1, 1), "0001-01-01"),
        ("time without time zone", time(3, 4, 10, 500000), "03:04:10.5"),
        (TIMETZ, time(3, 4, tzinfo=zone(hours=2)), "03:04:00+02"),
        (TIMETZ, time(3, 4, tzinfo=zone(hours=-5, minutes=-30)), "03:04:00-05:30"),
        (TIMETZ, time(3, 4, 5, 10, zone(seconds=75)), "03:04:05.00001+00:01:15"),
        ("interval", timedelta(), "00:00:00"),
        ("interval", timedelta(days=1), "1 day"),
        ("interval", timedelta(hours=-1), "-1 days +23:00:00"),
        ("interval", timedelta(days=-1), "-1 days"),
        ("interval", timedelta(days=2, microseconds=100), "2 days 00:00:00.0001"),
        ("integer[]", [], "{}"),
        ("integer[]", [1, None, -3], "{1,NULL,-3}"),
        ("boolean[]", [True, False], "{t,f}"),
        ("uuid[]", [IDENTITY], f"{{{IDENTITY}}}"),
        (
            "text[]",
            ["", "null", "NULLs", "a b", 'q"\\', "ä\u00a0b"],
            '{"","null",NULLs,"a b","q\\"\\\\",ä\u00a0b}',
        ),
        ("character varying(2)[]", ["ab", "{}"], '{ab,"{}"}'),
        (
            "jsonb",
            {"bb": 1, "é": {}, "c": [True, None, 1.5, "\x01é"]},
            '{"c": [true, null, 1.5, "\\u0001é"], "bb": 1, "é": {}}',
        ),
        ("jsonb", [], "[]"),
        ("jsonb", {"a": 1e20, "b": -0.0}, '{"a": 100000000000000000000, "b": 0.0}'),
        ("character varying(3)", "abc ", "abc"),
        ("uuid", str(IDENTITY).upper(), str(IDENTITY)),
        (
            "timestamp(3) with time zone",
            datetime(2024, 1, 2, 0, 0, 0, 5500, UTC),
            "2024-01-02 00:00:00.006+00",
        ),
        (
            "timestamp(3) with time zone",
            datetime(1999, 1, 2, 0, 0, 0, 5500, UTC),
            "1999-01-02 00:00:00.005+00",
        ),
        (
            "timestamp(0) without time zone",
            naive(1999, 12, 31, 23, 59, 59, 500001),
            "2000-01-01 00:00:00",
        ),
        ("date", naive(2024, 1, 2, 23), "2024-01-02"),
        ("time(2) without time zone", time(3, 0, 0, 5000), "03:00:00.01"),
        ("time(0) without time zone", time(23, 59, 59, 500000), "24:00:00"),
        ("integer[]", [[1, None], [2, 3]], "{{1,NULL},{2,3}}"),
        ("numeric[]", [Decimal("1.0"), Decimal("NaN")], "{1.0,NaN}"),
        ("numeric(4,1)[]", [1, Decimal("0.05")], "{1.0,0.1}"),
        ("date[]", [date(2024, 1, 2)], "{2024-01-02}"),
        (f"{TSTZ}[]", [datetime(2024, 1, 2, tzinfo=UTC)], '{"2024-01-02 00:00:00+00"}'),
        ("bytea[]", [b"\x00\xff", b""], '{"\\\\x00ff","\\\\x"}'),
        ("jsonb[]", [{"a": 1}, None, JsonText("1e1")], '{"{\\"a\\": 1}",NULL,10}'),
        ("json[]", [JsonText("null"), JsonText("[1,\n2]")], '{"null","[1,\n2]"}'),
        ("json", JsonText(' {"a":1, "a":2}'), ' {"a":1, "a":2}'),
        ("json", JsonText('"\\u0000"'), '"\\u0000"'),
    ],
)
def test_a_parameter_is_predicted(pg_type: str, value: object, wire: object) -> None:
    predicted = codec_for(pg_type).to_wire(value)
    assert predicted == wire
    assert type(predicted) is type(wire)


@pytest.mark.parametrize(
    ("pg_type", "value"),
    [
        ("boolean", 1),
        ("integer", True),
        ("integer", 2**31),
        ("smallint", -32769),
        ("integer", 1.0),
        ("integer", "1"),
        ("integer", Level.LOW),
        ("double precision", 2**53 + 1),
        ("double precision", Decimal(1)),
        ("real", 1e300),
        ("real", 1e-300),
        ("real", 2**24 + 1),
        ("bytea", bytearray(b"x")),
        ("bytea", memoryview(b"x")),
        ("text", 5),
        ("text", "nul\0"),
        ("text", "é\0"),
        ("text", "\ud800"),
        ("text", Label("x")),
        ("text", Colour.RED),
        ("character varying(3)", "abcd"),
        ("character(3)", "abcd"),
        ("numeric", 1.5),
        ("numeric", True),
        ("numeric", Decimal("sNaN")),
        ("numeric", Decimal("-NaN")),
        ("numeric", Decimal("NaN7")),
        ("numeric", Decimal("1E+999999999")),
        ("numeric", Decimal("1E-20000")),
        ("numeric(4,2)", Decimal(100)),
        ("numeric(4,2)", Decimal("99.995")),
        ("numeric(4,2)", 100),
        ("numeric(4,2)", Decimal("Infinity")),
        ("numeric(4,2)", Decimal("sNaN")),
        ("numeric(4,2)", Decimal("-NaN")),
        ("numeric(4,2)", "1.50"),
        (TSTZ, naive(2024, 1, 2)),
        (TSTZ, datetime(2024, 1, 2, tzinfo=Vague())),
        (TSTZ, datetime(1, 1, 1, tzinfo=zone(hours=1))),
        (TSTZ, datetime(2024, 1, 2, tzinfo=zone(hours=16))),
        (TSTZ, datetime(2024, 1, 2, tzinfo=zone(microseconds=1))),
        (TSTZ, date(2024, 1, 2)),
        ("timestamp without time zone", datetime(2024, 1, 2, tzinfo=UTC)),
        ("date", "2024-01-02"),
        ("time without time zone", time(3, tzinfo=UTC)),
        (TIMETZ, time(3)),
        (TIMETZ, time(3, tzinfo=BERLIN)),
        ("interval day to second", timedelta(1)),
        ("interval(3)", timedelta(1)),
        ("integer[]", (1, 2)),
        ("integer[]", [1, True]),
        ("double precision[]", [1.0]),
        ("character(3)[]", ["a"]),
        ("json", {"a": 1}),
        ("jsonb", "text"),
        ("jsonb", 1),
        ("jsonb", {1: 2}),
        ("jsonb", {"a": math.nan}),
        ("jsonb", ["\ud800"]),
        ("jsonb", ["\0"]),
        ("jsonb", {"\0": 1}),
        ("jsonb", {"a": 10**1000}),
        ("jsonb[]", [[{"a": 1}]]),
        ("json", JsonText('"\0"')),
        ("timestamp(0) without time zone", naive(9999, 12, 31, 23, 59, 59, 500000)),
        ("character varying(3)", "abc \t"),
        ("uuid", IDENTITY.hex),
        ("uuid", f"{{{IDENTITY}}}"),
        ("integer[]", [[1], []]),
        ("integer[]", [[[[[[[1]]]]]]]),
        ("jsonb", [(1, 2)]),
        ("inet", "10.0.0.1"),
        ("int4range", "[1,2)"),
        ('"char"', "x"),
        ("posint", 1),
        ("mood", "sad"),
    ],
)
def test_doubt_is_admitted(pg_type: str, value: object) -> None:
    assert codec_for(pg_type).to_wire(value) is UNSURE


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("1e2", "100"),
        ("1.50e1", "15.0"),
        ("1.5E-3", "0.0015"),
        ("-0", "0"),
        ("-0.00", "0.00"),
        ("-0e-3", "0.000"),
        ("0e5", "0"),
        ("12.3400", "12.3400"),
        ("9" * 1000, "9" * 1000),
        ('{"bb":1,"a":2,"é":3,"a":4,"":null}', '{"": null, "a": 4, "bb": 1, "é": 3}'),
        (r'"\u0041\/\u00e9\n\u001f\u007f\ud83d\ude00"', '"A/é\\n\\u001f\x7f😀"'),
        (" [ 1 , [] , { } , true ]\n", "[1, [], {}, true]"),
    ],
)
def test_jsonb_is_printed_in_its_normal_form(text: str, printed: str) -> None:
    assert print_jsonb(text) == printed
    assert print_jsonb(printed) == printed


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "NaN", "[Infinity]", "01", "'a'", '{"a": -Infinity}', "1 2"),
        *(r'"\u0000"', r'{"\u0000": 1}', r'"\ud800"', "9" * 1001),
        *("1e1000", "1e-1001", "1e999999999999999999999", "0e-2000", "1" * 100 + "e1"),
        "[" * 100_000 + "]" * 100_000,
    ],
)
def test_a_document_that_is_refused_or_out_of_bounds_is_not_predicted(text: str) -> None:
    assert print_jsonb(text) is UNSURE


def test_a_document_that_contains_itself_is_not_predicted() -> None:
    document: list[object] = []
    document.append(document)
    assert codec_for("jsonb").to_wire(document) is UNSURE


def test_blanks_that_pad_are_not_on_the_wire() -> None:
    codec = codec_for("character(3)")
    assert codec.from_text("a") == codec.from_text("a  ") == codec.to_wire("a  ") == "a"


@pytest.mark.parametrize("pg_type", ["double precision", "real"])
def test_nan_is_one_value_and_zero_keeps_its_sign(pg_type: str) -> None:
    codec = codec_for(pg_type)
    for wire in (codec.to_wire(math.nan), codec.to_wire(-math.nan), codec.from_text("NaN")):
        assert isinstance(wire, float)
        assert struct.pack("d", wire) == struct.pack("d", math.nan)
    zero = codec.to_wire(-0.0)
    assert isinstance(zero, float)
    assert math.copysign(1, zero) == -1
    assert codec.to_text(zero) == "-0.0"


def test_an_enum_is_told_by_its_category() -> None:
    codec = codec_for('public."Mood"', category="E")
    assert codec.to_wire("sad") == "sad"
    assert codec.to_wire(Colour.RED) is UNSURE
    assert not codec.compare_as_text


@pytest.mark.parametrize(
    ("pg_type", "text", "value"),
    [
        ("boolean", "true", True),
        ("boolean", "t", True),
        ("boolean", "f", False),
        ("bigint", "-9223372036854775808", -(2**63)),
        ("double precision", "-Infinity", -math.inf),
        ("bytea", "\\x00ff", b"\x00\xff"),
        ("character(3)", "a", "a  "),
        ("numeric", "1.10", Decimal("1.10")),
        ("numeric(4,2)", "-Infinity", Decimal("-Infinity")),
        ("uuid", str(IDENTITY), IDENTITY),
        (TSTZ, "2024-01-02 03:04:05.12+00", datetime(2024, 1, 2, 3, 4, 5, 120000, UTC)),
        (TSTZ, "0044-03-15 00:00:00+00 BC", "0044-03-15 00:00:00+00 BC"),
        (TSTZ, "10000-01-01 00:00:00+00", "10000-01-01 00:00:00+00"),
        (TSTZ, "-infinity", "-infinity"),
        ("timestamp without time zone", "infinity", "infinity"),
        ("date", "2024-02-29", date(2024, 2, 29)),
        ("date", "0044-03-15 BC", "0044-03-15 BC"),
        ("date", "5874897-12-31", "5874897-12-31"),
        ("time without time zone", "24:00:00", "24:00:00"),
        ("time without time zone", "23:59:59.5", time(23, 59, 59, 500000)),
        (
            TIMETZ,
            "03:04:05-15:59:59",
            time(3, 4, 5, tzinfo=zone(hours=-15, minutes=-59, seconds=-59)),
        ),
        ("interval", "1 day 02:03:04.5", timedelta(1, 7384, 500000)),
        ("interval", "-1 days +23:00:00", timedelta(hours=-1)),
        ("interval", "1 day -00:00:01", timedelta(1, -1)),
        ("interval", "-100:00:00.000001", -timedelta(hours=100, microseconds=1)),
        ("interval", "3 days", timedelta(3)),
        ("interval", "1 mon", "1 mon"),
        ("interval", "1 year 2 days", "1 year 2 days"),
        ("interval", "infinity", "infinity"),
        ("interval", "-2147483648 days", "-2147483648 days"),
        ("jsonb", '{"a": [1, null]}', {"a": [1, None]}),
        ("json", "1" * 5000, "1" * 5000),
        ("json", "[" * 100000, "[" * 100000),
        ("integer[]", "{1,NULL,3}", [1, None, 3]),
        ("integer[]", "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
        ("integer[]", "[0:1]={1,2}", "[0:1]={1,2}"),
        ("integer[]", "{}", []),
        ("integer[]", "{1}}", "{1}}"),
        ("integer[]", "{1", "{1"),
        ("text[]", '{"",NULL,"NULL","a\\"b\\\\","{,}"}', ["", None, "NULL", 'a"b\\', "{,}"]),
        ("bytea[]", '{"\\\\x00ff"}', [b"\x00\xff"]),
        ("character(3)[]", '{"a  "}', ["a  "]),
        ("jsonb[]", '{"{\\"a\\": 1}"}', [{"a": 1}]),
        ("date[]", "{2024-01-02,infinity}", [date(2024, 1, 2), "infinity"]),
        ("box[]", "{(1,1),(0,0);(2,2),(1,1)}", "{(1,1),(0,0);(2,2),(1,1)}"),
        ("mood[]", "{sad}", "{sad}"),
        ("int4range", "[1,5)", "[1,5)"),
    ],
)
def test_text_becomes_python(pg_type: str, text: str, value: object) -> None:
    codec = codec_for(pg_type)
    read = codec.to_python(codec.from_text(text))
    assert read == value
    assert type(read) is type(value)


def _nearest_single(text: str) -> float:
    """By exact arithmetic among the neighbours of a first guess."""
    guess = struct.unpack("<i", struct.pack("<f", float(text)))[0]
    near = [struct.unpack("<f", struct.pack("<i", guess + step))[0] for step in (-1, 0, 1)]
    return float(min(near, key=lambda single: abs(Fraction(single) - Fraction(text))))


@pytest.mark.parametrize(
    "text", ["7.038531e-26", "1.000000059604644775390625000001", "16777217.0000000001", "0.1"]
)
def test_a_single_is_rounded_once(text: str) -> None:
    assert parse_single(text) == _nearest_single(text)


def test_rounding_twice_would_be_seen() -> None:
    text = "7.038531e-26"
    twice = struct.unpack("f", struct.pack("f", float(text)))[0]
    assert twice != _nearest_single(text)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_singles_survive_their_text(value: float) -> None:
    codec = codec_for("real")
    assert struct.pack("f", parse_single(codec.to_text(value))) == struct.pack("f", value)
