"""Texts of several statements are cut where Postgres would cut them, and nowhere else."""

from __future__ import annotations

import pytest

from oplog.capture.script import split_script

pytestmark = pytest.mark.unit

ONE = [
    "UPDATE a SET b = 1",
    "UPDATE a SET b = ';'",
    "UPDATE a SET b = 'it''s; '",
    "UPDATE a SET b = E'\\'; '",
    'UPDATE "a;b" SET c = 1',
    'UPDATE "a"";b" SET c = 1',
    "SELECT 1 -- a; comment",
    "SELECT 1 /* a; /* nested; */ still; */",
    "DO $$ BEGIN UPDATE a SET b = 1; END $$",
    "DO $do$ BEGIN PERFORM $$;$$; END $do$",
    "CREATE RULE r AS ON INSERT TO a DO (DELETE FROM b; DELETE FROM c)",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END",
    "SELECT 1 ;  -- nothing follows\n ; /* nothing; */ ",
    "",
    " ; ",
]


@pytest.mark.parametrize("text", ONE)
def test_one_statement_stays_as_it_is(text: str) -> None:
    assert split_script(text) == [text]


SEVERAL = {
    "UPDATE a SET b = 1; ALTER TABLE a ADD c int": [
        "UPDATE a SET b = 1",
        " ALTER TABLE a ADD c int",
    ],
    "-- first;\nSELECT ';';;\n/* then; */ SELECT $x$;$$;$x$;": [
        "-- first;\nSELECT ';'",
        "\n/* then; */ SELECT $x$;$$;$x$",
    ],
    "SELECT e1'; ' FROM a; SELECT $1 + 2; SELECT a$b, c$d": [
        "SELECT e1'; ' FROM a",
        " SELECT $1 + 2",
        " SELECT a$b, c$d",
    ],
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SELECT (1); END": [
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END",
        " SELECT (1)",
        " END",
    ],
}


@pytest.mark.parametrize(("text", "statements"), SEVERAL.items())
def test_several_statements_are_cut(text: str, statements: list[str]) -> None:
    assert split_script(text) == statements
