"""The reference page of types says what the codecs do."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from oplog.errors import NotCapturableError
from oplog.value import TEXT_SETTINGS, UNSURE, Kind, codec_for
from oplog.value.json_text import JsonText
from oplog.value.typename import check_parts
from tests.docs.pages import DOCS, split_sections
from tests.property.type_samples_made import SAMPLES

pytestmark = pytest.mark.docs

TYPES = DOCS / "reference/types.md"
SECTIONS = split_sections(TYPES)
CARRIED = re.findall(
    r"^\| `(.+?)` \| (\w+) \| ?(.*?) \| (\w+) \|$", SECTIONS["Carried"], re.MULTILINE
)
REFUSED = re.findall(r"^\| `(.+?)` \|", SECTIONS["Refused"], re.MULTILINE)
WORDS = {
    Kind.BOOL: "bool",
    Kind.INT: "sint64",
    Kind.FLOAT4: "float",
    Kind.FLOAT8: "double",
    Kind.BYTES: "bytes",
    Kind.TEXT: "text",
}
PROBES = {
    "bool": True,
    "int": 1,
    "float": 0.5,
    "Decimal": Decimal("1.5"),
    "str": "a",
    "bytes": b"a",
    "UUID": UUID(int=1),
    "date": date(2024, 1, 2),
    "naive datetime": datetime(2024, 1, 2),
    "aware datetime": datetime(2024, 1, 2, tzinfo=UTC),
    "naive time": time(1),
    "aware time": time(1, tzinfo=UTC),
    "timedelta": timedelta(1),
    "dict": {"a": 1},
    "list": [{}],
    "list of int": [1],
    "list of str": ["a"],
    "list of bool": [True],
    "list of UUID": [UUID(int=1)],
    "list of Decimal": [Decimal("1.5")],
    "list of bytes": [b"a"],
    "list of aware datetime": [datetime(2024, 1, 2, tzinfo=UTC)],
    "JSON text": JsonText("{}"),
    "list of JSON text": [JsonText("{}")],
}
MADE_FOR_TESTS = frozenset(
    {"mood", "posint", "small", "code", "since", "measured", "numbers", "pair", "even_pair"}
    | {"nest", "purse", "textrange", "textmultirange", "mood[]", "posint[]", "pair[]"}
    | {"even_pair[]", "numeric(1000,500)", "numeric(5,-2)", "numeric(3,5)", "character(12)"}
    | {"character varying(30)"}
)


@pytest.mark.parametrize(("pg_type", "carried", "predicted", "compared"), CARRIED)
def test_a_carried_type_is_described(
    pg_type: str, carried: str, predicted: str, compared: str
) -> None:
    codec = codec_for(pg_type)
    assert WORDS[codec.kind] == carried
    assert {"text" if codec.compare_as_text else "value"} == {compared}
    found = [name for name, probe in PROBES.items() if codec.to_wire(probe) is not UNSURE]
    if "list" in found:
        found = [name for name in found if not name.startswith("list of")]
    assert ", ".join(found) == predicted


@pytest.mark.parametrize("pg_type", REFUSED)
def test_a_refused_type_is_refused(pg_type: str) -> None:
    with pytest.raises(NotCapturableError):
        codec_for(pg_type)
    if pg_type in ("money", "bpchar"):
        check_parts("pair", [pg_type])
        return
    with pytest.raises(NotCapturableError, match=f"type pair .* contains {pg_type}"):
        check_parts("pair", ["text", pg_type])


def test_every_type_that_is_tested_is_listed() -> None:
    listed = {pg_type for pg_type, *_ in CARRIED}
    assert {sample.sql for sample in SAMPLES} - MADE_FOR_TESTS == listed - {
        *("character varying", "character varying(9)", "character(9)")
    }


def test_the_settings_are_listed() -> None:
    for name in TEXT_SETTINGS:
        assert f"`{name}`" in SECTIONS["Text"]
