"""Which types are taken, refused and told apart by name; fields of COPY."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oplog.errors import NotCapturableError
from oplog.value import Kind, codec_for, copy_field, declared_kind

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("pg_type", "kind"),
    [
        ("boolean", Kind.BOOL),
        ("smallint", Kind.INT),
        ("real", Kind.FLOAT4),
        ("double precision", Kind.FLOAT8),
        ("bytea", Kind.BYTES),
        ("numeric(10,2)", Kind.TEXT),
        ("integer[]", Kind.TEXT),
        ("oid", Kind.TEXT),
        ("some.thing", Kind.TEXT),
    ],
)
def test_kinds(pg_type: str, kind: Kind) -> None:
    assert codec_for(pg_type).kind is kind
    assert codec_for(pg_type).pg_type == pg_type


def test_the_numbers_of_kinds_are_the_wire_format() -> None:
    assert [(kind.name, kind.value) for kind in Kind] == [
        ("BOOL", 1),
        ("INT", 2),
        ("FLOAT4", 3),
        ("FLOAT8", 4),
        ("BYTES", 5),
        ("TEXT", 6),
    ]


@pytest.mark.parametrize(
    "pg_type",
    ["money", "money[]", "regclass", "regrole[]", "aclitem", "bpchar", "pg_node_tree", "record"],
)
def test_what_text_cannot_carry_is_refused(pg_type: str) -> None:
    with pytest.raises(
        NotCapturableError, match=f"type {re.escape(pg_type.strip('[]'))} "
    ) as caught:
        codec_for(pg_type)
    assert caught.value.hint


def test_a_pseudo_type_is_told_by_its_category() -> None:
    with pytest.raises(NotCapturableError, match="pseudo-type"):
        codec_for("anycompatible", category="P")


@pytest.mark.parametrize(
    ("sql_type", "kind"),
    [
        ("INTEGER", Kind.INT),
        ("BIGSERIAL", Kind.INT),
        ("smallserial", Kind.INT),
        ("BOOLEAN", Kind.BOOL),
        ("FLOAT", Kind.FLOAT8),
        ("FLOAT(24)", Kind.FLOAT4),
        ("FLOAT(25)", Kind.FLOAT8),
        ("DOUBLE  PRECISION", Kind.FLOAT8),
        ("REAL", Kind.FLOAT4),
        ("BYTEA", Kind.BYTES),
        ("INTEGER[]", Kind.TEXT),
        ("VARCHAR(40)", Kind.TEXT),
        ("NUMERIC(10, 2)", Kind.TEXT),
        ("TIMESTAMP WITH TIME ZONE", Kind.TEXT),
        ("mood", Kind.TEXT),
        ('VARCHAR(4) COLLATE "C"', Kind.TEXT),
    ],
)
def test_declared_kinds(sql_type: str, kind: Kind) -> None:
    assert declared_kind(sql_type) is kind


def test_copy_fields() -> None:
    assert copy_field(None) == r"\N"
    assert copy_field(r"\N") == r"\\N"
    assert copy_field("") == ""
    assert copy_field("a\tb\nc\rd\be\ff\vg\\h é\u00a0") == r"a\tb\nc\rd\be\ff\vg\\h é" + "\u00a0"


@given(st.text(st.sampled_from("\\\b\f\n\r\t\vNnbx é\u2028\x01")))
def test_a_copy_field_reads_back_and_cannot_end_a_line(text: str) -> None:
    escapes = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
    field = copy_field(text)
    assert set(field).isdisjoint("\n\r\t")
    assert re.sub(r"\\(.)", lambda match: escapes[match[1]], field) == text


def test_a_type_whose_name_begins_like_an_interval_is_none() -> None:
    assert codec_for("interval_kind").to_python("12:30:00") == "12:30:00"
    assert codec_for("interval").to_python("12:30:00") != "12:30:00"


@pytest.mark.parametrize("pg_type", ["interval", "interval(3)", "interval day to second"])
def test_the_interval_that_postgres_does_not_read_back_is_spelled_otherwise(pg_type: str) -> None:
    least = "1 mon -2562047788:00:54.775808"
    codec = codec_for(pg_type)
    assert codec.from_text(least) == "1 mon -9223372036854775808us"
    inside = codec_for(f"{pg_type}[]").from_text(f'{{"{least}",NULL}}')
    assert inside == '{"1 mon -9223372036854775808us",NULL}'
