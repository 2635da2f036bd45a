"""Hostile values for types made of other types, and for those of networks and geometry.

The second half of `type_samples.py`.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from datetime import UTC
from ipaddress import ip_interface, ip_network

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql as pg

from tests.postgres.value_samples import ENUM_LABELS, GENERATED, STORED
from tests.property.type_samples import ANY_TEXT, SCALARS, Sample


def _array(items: Iterable[str | None]) -> str:
    quoted = (
        "NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for item in items
    )
    return f"{{{','.join(quoted)}}}"


def _row(*fields: str | None) -> str:
    doubled = (None if f is None else f.replace("\\", "\\\\").replace('"', '""') for f in fields)
    quoted = ("" if field is None else f'"{field}"' for field in doubled)
    return f"({','.join(quoted)})"


def _range(low: int, length: int, bounds: str) -> str:
    return f"{bounds[0]}{low},{low + length}{bounds[1]}"


def _quote(text: str | None) -> str:
    return "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _pairs(some: dict[str, str | None]) -> str:
    return ", ".join(f"{_quote(key)}=>{_quote(value)}" for key, value in some.items())


_WORDS = st.text(string.printable + "é🐘\u2028\ufffd", max_size=9)
_LABEL = st.text(string.ascii_letters + "_1", min_size=1, max_size=5)
_INT32 = st.integers(-(2**31), 2**31 - 1)
_UINT32 = st.integers(0, 2**32 - 1)
_SINGLES = st.floats(width=32, allow_nan=False, allow_infinity=False)
_PAIRS = st.builds(
    _row,
    _INT32.map(str) | st.none(),
    _WORDS | st.none(),
    st.text("a ü", max_size=3) | st.none(),
)
_RANGES = st.builds(
    _range,
    st.integers(-(10**6), 10**6),
    st.integers(0, 1000),
    st.sampled_from(["[]", "()", "[)", "(]"]),
)
_BOUNDS = ("empty", "(,)", "(,5]", "[5,)", "[1,1]", "(1,5)", "[1,5)", "[-5,5]", "(1,5]")
_MULTI = ("{}", *(f"{{{bounds}}}" for bounds in _BOUNDS if bounds != "empty"))
_DOCUMENTS = st.dictionaries(_WORDS, _INT32 | _WORDS | st.floats(allow_nan=False), max_size=3)
_LABELS = st.sampled_from(ENUM_LABELS)
_SPACES = ("{}", "{{1,2},{3,NULL}}", "[2:3]={1,2}", "[-1:0][5:5]={{1},{2}}", "{NULL}")
_LEAST = "-9223372036854775808 microseconds"

_ARRAYS = (
    Sample(
        "integer[]",
        _SPACES,
        st.lists(_INT32.map(str) | st.none(), max_size=4).map(_array),
        pg.ARRAY(sa.Integer()),
        st.lists(_INT32 | st.none(), max_size=4),
        key="python",
    ),
    Sample(
        "text[]",
        (*STORED["text[]"], "{}", "[0:1]={a,NULL}", "{{{{{{x}}}}}}"),
        GENERATED["text[]"],
        pg.ARRAY(sa.Text()),
        st.lists(ANY_TEXT | st.none() | st.sampled_from(["NULL", "null", ""]), max_size=4),
        key="python",
    ),
    Sample("character(3)[]", ("{}", '{"a  ",b,NULL,""}')),
    Sample(
        "numeric(10,2)[]",
        ("{}", "{1,2.5,NaN,NULL,-0.001}"),
        column=pg.ARRAY(sa.Numeric(10, 2)),
        python=st.lists(st.decimals(-(10**7), 10**7, places=3) | st.none(), max_size=4),
        key="python",
    ),
    Sample(
        "double precision[]",
        ("{}", "{0.1,-0,0,NaN,Infinity,5e-324,NULL}"),
        st.lists(st.floats().map(repr), max_size=4).map(_array),
        pg.ARRAY(sa.Double()),
        st.lists(st.floats(), max_size=4),
    ),
    Sample(
        "boolean[]",
        ("{}", "{t,f,NULL}"),
        column=pg.ARRAY(sa.Boolean()),
        python=st.lists(st.booleans(), max_size=3),
        key="python",
    ),
    Sample(
        "bytea[]",
        ("{}", '{"\\\\x00ff",NULL,"\\\\x"}'),
        column=pg.ARRAY(sa.LargeBinary()),
        python=st.lists(st.binary(max_size=5) | st.none(), max_size=4),
        key="python",
    ),
    Sample(
        "timestamp with time zone[]",
        (*STORED["timestamp with time zone[]"], "{}"),
        column=pg.ARRAY(sa.DateTime(timezone=True)),
        python=st.lists(st.datetimes(timezones=st.just(UTC)) | st.none(), max_size=4),
        key="python",
    ),
    Sample(
        "interval[]",
        ("{}", '{"1 day","24:00:00","-1 mon +1 day"}', _array([_LEAST, None, f"1 mon {_LEAST}"])),
    ),
    Sample(
        "uuid[]",
        ("{}",),
        column=pg.ARRAY(sa.Uuid()),
        python=st.lists(st.uuids(), max_size=3),
        key="python",
    ),
    Sample(
        "json[]",
        ("{}", _array(['{"a": 1,  "a":2}', "null", None])),
        column=pg.ARRAY(sa.JSON()),
        python=st.lists(_DOCUMENTS, max_size=3),
    ),
    Sample(
        "jsonb[]",
        ("{}", _array(['{"a": [1.50]}', "null", None])),
        column=pg.ARRAY(pg.JSONB()),
        python=st.lists(_DOCUMENTS, max_size=3),
    ),
    Sample("int4range[]", ("{}", _array(["[1,5)", "empty", None]))),
    Sample("box[]", ("{}", "{(1,1),(0,0);(2,2),(1,1)}")),
    Sample("mood[]", ("{}", _array([*ENUM_LABELS, None])), st.lists(_LABELS).map(_array)),
    Sample("posint[]", ("{}", "{1,NULL}", "[5:5]={7}")),
    Sample(
        "pair[]",
        ("{}", _array([_row("1", 'a"b\\', "c"), _row(None, None, None), None])),
        st.lists(_PAIRS, max_size=3).map(_array),
    ),
    Sample("even_pair[]", ("{}", _array([_row("2", "", "c"), None]))),
    Sample("int2vector", ("", "1 2 -3")),
    Sample("oidvector", ("", "1 4294967295")),
)

_SPANS = (
    *(Sample(name, _BOUNDS, _RANGES) for name in ("int4range", "int8range")),
    Sample("numrange", (*_BOUNDS, "[1.0,2.00)", "[NaN,NaN]", "[-Infinity,Infinity]"), _RANGES),
    Sample("daterange", ("empty", "(,)", "[infinity,]", "[4713-01-01 BC,2024-02-29]")),
    Sample("tsrange", ("empty", "(,)", '["0044-03-15 12:00:00.5 BC",infinity]')),
    Sample("tstzrange", ("empty", "(,)", '("2024-07-01 12:00:00.000001+02",infinity]')),
    Sample("textrange", ("empty", "(,)", '["","]")', '("a""b\\\\c",)', "[a,a]")),
    Sample(
        "int4multirange",
        (*_MULTI, "{[1,3),[5,8)}"),
        st.lists(_RANGES, max_size=4).map(lambda some: f"{{{','.join(some)}}}"),
    ),
    Sample("nummultirange", (*_MULTI, "{[1.0,1.50],(2,)}")),
    Sample("tstzmultirange", ("{}", '{(,2024-01-01),["2024-02-01 00:00:00.5","9999-01-01"]}')),
    Sample("textmultirange", ("{}", '{["a,b","c""d")}')),
)

_NAMED = (
    Sample(
        "mood",
        ENUM_LABELS,
        _LABELS,
        pg.ENUM(*ENUM_LABELS, name="mood", create_type=False),
        _LABELS,
        "exact",
    ),
    Sample(
        "posint",
        ("1", "2147483647"),
        st.integers(1, 2**31 - 1).map(str),
        sa.Integer(),
        st.integers(1, 2**31 - 1),
        "exact",
    ),
    Sample(
        "small",
        ("1", "99"),
        st.integers(1, 99).map(str),
        sa.Integer(),
        st.integers(1, 99),
        "exact",
        nullable=False,
    ),
    Sample(
        "code",
        ("a", "", " a", "abcd", "a  "),
        st.text("a ü", max_size=4),
        sa.CHAR(4),
        st.text("a ü", max_size=4),
        "exact",
    ),
    Sample(
        "since",
        ("infinity", "4713-01-01 BC", "294276-12-31 23:59:59.999999 UTC"),
        GENERATED["timestamp with time zone"],
    ),
    Sample(
        "measured",
        ("-0", "0", "NaN", "4.9e-324"),
        st.floats().map(repr),
        sa.Double(),
        st.floats(),
        key="python",
    ),
    Sample(
        "numbers", _SPACES, st.lists(st.integers(0, 2**31 - 1).map(str), max_size=4).map(_array)
    ),
    Sample("pair", ("(,,)", '(1,"q""\\\\","a  ")', '(,"",)', "(-1, x,)"), _PAIRS),
    Sample("even_pair", ("(2,,)", '(,"NULL",)')),
    Sample(
        "nest",
        (
            "(,,,,)",
            _row(_row(None, None, None), "{}", "infinity", "-0", "1"),
            _row(
                _row("1", '",\\()', "c"),
                _array([_row("1", '{}"', ""), None]),
                "0044-03-15 BC",
                "1e-45",
                None,
            ),
        ),
    ),
    Sample("purse", (_row("a", "$1,234.56"), _row(None, "-$92,233,720,368,547,758.08"), "(,)")),
)

_OTHERS = (
    Sample("oid", ("0", "4294967295"), _UINT32.map(str), pg.OID(), _UINT32),
    Sample("xid8", ("0", "18446744073709551615"), st.integers(0, 2**64 - 1).map(str)),
    Sample("xid", ("3", "4294967295")),
    Sample("tid", ("(0,1)", "(4294967295,65535)")),
    Sample("pg_lsn", ("0/0", "FFFFFFFF/FFFFFFFF"), _UINT32.map("{0:X}/{0:X}".format)),
    Sample("pg_snapshot", ("10:20:10,14,15", "1:1:")),
    Sample(
        "inet",
        (*STORED["inet"], "0.0.0.0/0", "::ffff:1.2.3.4/100", "::/0"),
        st.ip_addresses().map(str),
        pg.INET(),
        st.ip_addresses() | st.ip_addresses().map(ip_interface),
    ),
    Sample(
        "cidr",
        (*STORED["cidr"], "0.0.0.0/0", "::/0", "10.1.2.3/32"),
        st.ip_addresses().map(str),
        pg.CIDR(),
        st.ip_addresses().map(ip_network),
    ),
    Sample(
        "macaddr",
        ("08:00:2b:01:02:03", "FF-FF-FF-FF-FF-FF"),
        st.binary(min_size=6, max_size=6).map(bytes.hex),
    ),
    Sample(
        "macaddr8",
        ("08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03"),
        st.binary(min_size=8, max_size=8).map(bytes.hex),
    ),
    Sample(
        "point",
        ("(0.1,-0)", "(NaN,Infinity)", "(1e-320,-1e308)"),
        st.builds("({!r},{!r})".format, st.floats(), st.floats()),
    ),
    Sample("line", ("{1,-1,0}", "{NaN,1,2}", "{0.1,0.30000000000000004,-0}")),
    Sample("lseg", ("[(1,2),(3,4)]", "[(0,-0),(NaN,inf)]")),
    Sample("box", ("(2,2),(1,1)", "(-1,5),(5,-0)", "(0,0),(-inf,1e-320)")),
    Sample("path", ("[(0,0),(1,1)]", "((0,-0),(1,1))", "[(1,2)]", "((NaN,1e308))")),
    Sample("polygon", ("((0,-0),(1e308,-1e-320),(1,1))", "((0,0))")),
    Sample("circle", ("<(0.1,0.2),3>", "<(NaN,inf),0>")),
    Sample(
        "hstore",
        ("", 'a=>NULL, "b c"=>"NULL", ""=>"", "\\"\\\\"=>"=>,"', "x=>1, x=>2"),
        st.dictionaries(_WORDS, _WORDS | st.none(), max_size=3).map(_pairs),
        needs="hstore",
    ),
    Sample(
        "ltree",
        ("", "Top.Science.a_1"),
        st.lists(_LABEL, max_size=4).map(".".join),
        needs="ltree",
    ),
    Sample(
        "vector",
        ("[0.1,-0,1e-40]",),
        st.lists(_SINGLES, min_size=3, max_size=3).map(str),
        needs="vector",
    ),
)

SAMPLES = (*SCALARS, *_ARRAYS, *_SPANS, *_NAMED, *_OTHERS)

NEVER_KEYS = frozenset(
    {
        *("json", "json[]", "jsonpath", "xml", "xid", "pg_snapshot"),
        *("point", "line", "lseg", "box", "box[]", "path", "polygon", "circle"),
        # Postgres has keys of it, and no way to join by them.
        "vector",
    }
)
"""Types that Postgres has no primary keys of."""
