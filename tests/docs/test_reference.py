"""The reference pages name everything that there is."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

import oplog
from oplog import entry, errors
from oplog.schema import append, append_checks, append_only
from oplog.schema.partitions import PARTITION_PATTERN
from tests.docs.pages import DOCS, list_code_words, split_sections

pytestmark = pytest.mark.docs

API = DOCS / "reference/api.md"
SCHEMA = DOCS / "reference/schema.md"


@pytest.mark.parametrize(
    "module",
    [
        "oplog",
        "oplog.arrow",
        "oplog.errors",
        "oplog.migration",
        "oplog.testing",
        "oplog.testing.plugin",
    ],
)
def test_public_names_are_documented(module: str) -> None:
    public = set(importlib.import_module(module).__all__)
    assert public - list_code_words(API) == set()


@pytest.mark.parametrize("public", sorted(oplog.__all__))
def test_public_methods_are_documented(public: str) -> None:
    value = getattr(oplog, public)
    if not inspect.isclass(value):
        assert public in list_code_words(API)
        return
    members = {
        member
        # A class may be put together from parts that are not public by themselves.
        for part in value.__mro__
        if part.__module__.startswith("oplog")
        for member, found in vars(part).items()
        if not member.startswith("_")
        and (inspect.isroutine(found) or isinstance(found, property | classmethod | staticmethod))
    }
    assert members - list_code_words(API) == set()


def test_errors_are_documented_with_their_exit_codes() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", API.read_text("utf-8"), re.MULTILINE))
    assert {error: int(code) for error, code in rows.items()} == {
        error: getattr(errors, error).exit_code
        for error in errors.__all__
        if issubclass(getattr(errors, error), errors.OplogError)
    }


def test_limits_are_those_of_the_code() -> None:
    text = " ".join(API.read_text("utf-8").split())
    for limit in (
        f"{entry.MAX_AGGREGATE_BYTES} bytes",
        f"{entry.MAX_METADATA_KEY_BYTES} bytes",
        f"{entry.MAX_METADATA_VALUE_BYTES} bytes",
        f"{entry.MAX_METADATA_VALUES} values",
        f"{entry.MAX_PART_BYTES // 1024 // 1024} MiB",
        f"{entry.MAX_RECORD_BYTES // 1024 // 1024} MiB",
        f"{entry.MAX_AGGREGATES:,}",
        f"{entry.MAX_NAMES_BYTES // 1024 // 1024} MiB",
    ):
        assert limit in text


def test_columns_are_documented(engine: Engine) -> None:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = 'oplog' AND NOT table_name ~ %s",
            (PARTITION_PATTERN,),
        ).all()
    sections = split_sections(SCHEMA)
    documented = {
        (title, column)
        for title, text in sections.items()
        for column in re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
        if title.startswith("oplog_")
    }
    assert documented == {(row.table_name, row.column_name) for row in rows}


def test_functions_indexes_and_triggers_are_documented(engine: Engine) -> None:
    with engine.connect() as connection:
        names = connection.scalars(
            sa.text(
                "SELECT proname FROM pg_proc WHERE pronamespace = 'oplog'::regnamespace "
                "UNION SELECT tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
                "WHERE c.relnamespace = 'oplog'::regnamespace AND NOT tgisinternal "
                # Of a partitioned table, the one on all partitions.
                "UNION SELECT relname FROM pg_class WHERE relkind IN ('i', 'I') "
                "AND NOT relispartition AND relnamespace = 'oplog'::regnamespace "
                "UNION SELECT sequencename FROM pg_sequences WHERE schemaname = 'oplog'"
            )
        ).all()
    keys = {n for n in names if n.endswith(("_pkey", "_key"))}
    assert set(names) - keys - list_code_words(SCHEMA) == set()
    states = {
        append.STALE_TICKET,
        append_checks.ASYNCHRONOUS_COMMIT,
        append.FENCED,
        append_only.APPEND_ONLY,
    }
    states |= {append.SENT_TWICE, append.HEAD_MISSING, append_checks.KEY_RETIRED}
    assert states <= list_code_words(SCHEMA)
