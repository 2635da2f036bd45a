"""Schema changes of column types, across kinds, and of enums and domains."""

from __future__ import annotations

from tests.evolving import Change, convert

_UUIDS = (
    "'urn:uuid:0b4a7c4e-1111-4222-8333-123456789abc'",
    "'urn:uuid:0b4a7c4e-1111-4222-8333-123456789abd'",
)
_UUID = "'0b4a7c4e-1111-4222-8333-123456789abe'"

OTHER_KIND = {
    "bool to int": convert("bool", ("true", "false"), "int USING a::int", "7"),
    "bool to smallint": convert(
        "bool", ("true", "false"), "smallint USING CASE WHEN a THEN 2 ELSE 1 END", "7"
    ),
    "text n/a to int": convert("text", ("'n/a'", "'5'"), "int USING NULLIF(a, 'n/a')::int", "7"),
    "text money to numeric": convert(
        "text", ("'EUR 5'", "'EUR 6.50'"), "numeric USING substr(a, 5)::numeric", "7.25"
    ),
    "double to int": convert("double precision", ("1.6", "2.4"), "int USING round(a)::int", "7"),
    "int to bool": convert("int", ("2", "0"), "bool USING a > 0", "true"),
    "text to jsonb": convert(
        "text", ("'plain'", "'{}'"), "jsonb USING to_jsonb(a)", """'{"x": 1}'"""
    ),
    "text to text[]": convert(
        "text", ("'a,b'", "''"), "text[] USING string_to_array(a, ',')", "'{x}'"
    ),
    "text to enum": convert(
        "text",
        ("'Old'", "'New'"),
        "mood USING lower(a)::mood",
        "'new'",
        prepare="CREATE TYPE mood AS ENUM ('old', 'new')",
    ),
    "int to interval": convert(
        "int", ("90", "3600"), "interval USING make_interval(secs => a)", "'1 day'"
    ),
    "epoch to timestamptz": convert(
        "bigint",
        ("1760000000", "1760000001"),
        "timestamptz USING to_timestamp(a)",
        "'2026-01-01 00:00:00Z'",
    ),
    "text to uuid": convert("text", _UUIDS, "uuid USING substr(a, 10)::uuid", _UUID),
    "bigint to int, too big before": convert(
        "bigint", ("1099511627776", "5"), "int USING (a % 1000)::int", "7"
    ),
    "date to year": convert(
        "date", ("'2026-01-02'", "'2025-01-02'"), "int USING extract(year FROM a)::int", "7"
    ),
    "bytea to text": convert(
        "bytea", ("'\\xff01'", "'\\x00'"), "text USING encode(a, 'hex')", "'x'"
    ),
    "text to bytea": convert("text", ("'a'", "'b'"), "bytea USING a::bytea", "'\\xff'"),
    "int to text": convert("int", ("1", "2"), "text", "'x'"),
    "int to numeric": convert("int", ("1", "2"), "numeric(8,2)", "3.25"),
    "real to double": convert("real", ("1.1", "2.5"), "double precision", "1.1"),
    "double to real": convert("double precision", ("1.123456789", "2.5"), "real", "1.1"),
    "timestamp to timestamptz": convert(
        "timestamp",
        ("'2026-01-01 10:00'", "'2026-06-01 10:00'"),
        "timestamptz USING a AT TIME ZONE 'Europe/Berlin'",
        "now()",
    ),
    "timestamptz to date": convert("timestamptz", ("now()", "'2026-01-01Z'"), "date", "'2027-1-1'"),
    "json to jsonb": convert(
        "json", ("""'{"b":1, "a" : 2}'""", "'[]'"), "jsonb", """'{"x": 1.50}'"""
    ),
    "jsonb to text": convert("jsonb", ("""'{"b":1}'""", "'[]'"), "text", "'x'"),
    "int[] to bigint[]": convert("int[]", ("'{1,2}'", "'{}'"), "bigint[]", "'{5000000000}'"),
    "text[] to text": convert(
        "text[]", ("'{a,b}'", "'{}'"), "text USING array_to_string(a, '-')", "'x'"
    ),
    "int to int[]": convert("int", ("1", "2"), "int[] USING ARRAY[a]", "'{7,8}'"),
    "inet to text": convert("inet", ("'10.0.0.1'", "'::1'"), "text USING host(a)", "'x'"),
    "time to interval": convert("time", ("'10:00'", "'23:59:59'"), "interval", "'1 day'"),
}

_MOOD = "CREATE TYPE mood AS ENUM ('ok', 'sad', 'old')"
_MOODY = f"{_MOOD};CREATE TABLE acct (id int PRIMARY KEY, a mood, b text)"
_MOODS = """
INSERT INTO acct VALUES (1, 'ok', 'x'), (2, 'sad', 'y'), (3, NULL, 'z'), (4, 'old', NULL);
UPDATE acct SET a = 'old' WHERE id = 1;
DELETE FROM acct WHERE id = 4;
UPDATE acct SET b = 'w' WHERE id = 2"""


def _mood(
    ddl: str, value: str, *, alone: bool = False, old: str = "goes on", past: str = "text"
) -> Change:
    return Change(
        ddl,
        before=_MOODY,
        seed=_MOODS,
        writes=f"INSERT INTO acct VALUES (5, '{value}', 'v');"
        f"UPDATE acct SET a = '{value}' WHERE id = 2;UPDATE acct SET b = 'u' WHERE id = 1",
        old=old,
        old_row={"id": 70, "b": "old", "a": "ok"},
        alone=alone,
        past={"a": past},
    )


ENUMS = {
    "enum value added": _mood("ALTER TYPE mood ADD VALUE 'new'", "new", alone=True, past="mood"),
    "enum value added before": _mood(
        "ALTER TYPE mood ADD VALUE 'new' BEFORE 'sad'", "new", alone=True, past="mood"
    ),
    "enum value renamed": _mood("ALTER TYPE mood RENAME VALUE 'old' TO 'aged'", "aged"),
    "enum value renamed, and the old name added": _mood(
        "ALTER TYPE mood RENAME VALUE 'old' TO 'aged';ALTER TYPE mood ADD VALUE 'old'",
        "old",
        alone=True,
    ),
    "enum values swapped": _mood(
        "ALTER TYPE mood RENAME VALUE 'old' TO 't';ALTER TYPE mood RENAME VALUE 'ok' TO 'old';"
        "ALTER TYPE mood RENAME VALUE 't' TO 'ok'",
        "old",
    ),
    "enum value renamed twice with rows between": _mood(
        "ALTER TYPE mood RENAME VALUE 'old' TO 'aged';"
        "LOGGED UPDATE acct SET a = 'aged' WHERE id = 2;"
        "ALTER TYPE mood RENAME VALUE 'aged' TO 'ancient'",
        "ancient",
    ),
    "enum renamed": _mood("ALTER TYPE mood RENAME TO humor", "sad", old="either"),
    "enum to another enum": _mood(
        "CREATE TYPE humor AS ENUM ('OK', 'SAD', 'OLD');"
        "ALTER TABLE acct ALTER a TYPE humor USING upper(a::text)::humor",
        "SAD",
        old="either",
    ),
    "enum replaced by one of its name": _mood(
        "ALTER TYPE mood RENAME TO former;CREATE TYPE mood AS ENUM ('ok', 'sad');"
        "ALTER TABLE acct ALTER a TYPE mood USING replace(a::text, 'old', 'sad')::mood;"
        "DROP TYPE former",
        "sad",
        old="either",
    ),
    "enum to text": _mood("ALTER TABLE acct ALTER a TYPE text", "anything", old="either"),
    "enum moved to another schema": _mood(
        "CREATE SCHEMA elsewhere;ALTER TYPE mood SET SCHEMA elsewhere",
        "sad",
        old="either",
        past="elsewhere.mood",
    ),
}

_MADE = (
    "CREATE TYPE mood AS ENUM ('ok', 'sad', 'old');CREATE DOMAIN humour AS mood;"
    "CREATE TYPE place AS (street text, mood mood);CREATE TABLE acct (id int PRIMARY KEY, "
    "a mood[], e humour, p place, b text)"
)
_MADE_SEED = """
INSERT INTO acct VALUES (1, '{ok,old}', 'old', '(x,old)', 'x'), (2, '{}', 'sad', NULL, 'y'),
  (3, NULL, NULL, '(,)', 'z');
UPDATE acct SET a = '{old}' WHERE id = 2"""


def _made(ddl: str, *, label: str = "old", place: str = "(y,sad)", text: str = "aep") -> Change:
    return Change(
        ddl,
        before=_MADE,
        seed=_MADE_SEED,
        writes=f"INSERT INTO acct VALUES (5, '{{sad,{label}}}', '{label}', '{place}', 'v');"
        f"UPDATE acct SET a = '{{{label}}}' WHERE id = 3;UPDATE acct SET b = 'u' WHERE id = 1",
        old_row={"id": 70, "b": "old"},
        # A table of then that is made from the stored revision has base types.
        past={"e": "mood"} | dict.fromkeys(text, "text") if text else {},
    )


MADE = {
    "label of elements, a domain and fields renamed": _made(
        "ALTER TYPE mood RENAME VALUE 'old' TO 'aged'", label="aged"
    ),
    "labels of elements, a domain and fields swapped": _made(
        "ALTER TYPE mood RENAME VALUE 'old' TO 't';ALTER TYPE mood RENAME VALUE 'ok' TO 'old';"
        "ALTER TYPE mood RENAME VALUE 't' TO 'ok'"
    ),
    "field added": _made("ALTER TYPE place ADD ATTRIBUTE n int", place="(y,sad,3)", text="p"),
    "field dropped": _made("ALTER TYPE place DROP ATTRIBUTE mood", place="(y)", text="p"),
    "field renamed": _made("ALTER TYPE place RENAME ATTRIBUTE mood TO other", text=""),
    "field added and dropped": _made(
        "ALTER TYPE place ADD ATTRIBUTE n int;ALTER TYPE place DROP ATTRIBUTE n", text=""
    ),
}

_POS = "CREATE DOMAIN pos AS int CONSTRAINT positive CHECK (VALUE > 0)"
_DOMAIN = f"{_POS};CREATE TABLE acct (id int PRIMARY KEY, a pos, e int, b text)"
_POS_SEED = """
INSERT INTO acct VALUES (1, 11, 12, 'one'), (2, 21, 22, 'two'), (3, NULL, NULL, NULL);
UPDATE acct SET a = 13 WHERE id = 1"""


def _domain(
    ddl: str, *, value: str = "30", old: str = "goes on", past: str = "pos", seed: str = _POS_SEED
) -> Change:
    return Change(
        ddl,
        before=_DOMAIN,
        seed=seed,
        writes=f"INSERT INTO acct VALUES (5, {value}, 1, 'x');UPDATE acct SET a = {value} "
        "WHERE id = 2",
        old=old,
        past={"a": past},
    )


DOMAINS = {
    "domain's check replaced": _domain(
        "ALTER DOMAIN pos DROP CONSTRAINT positive;"
        "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 1000)"
    ),
    "domain's check narrowed, NOT VALID": Change(
        "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20) NOT VALID",
        before=_DOMAIN,
        seed=f"{_POS_SEED};UPDATE acct SET a = 33 WHERE id = 3",
        writes="INSERT INTO acct VALUES (5, 15, 1, 'x');UPDATE acct SET b = 'y' WHERE id = 2",
        old_row={"id": 70, "a": 7, "e": 8, "b": "old"},
        past={"a": "integer"},
        loose={"a": "integer"},
    ),
    "domain's check narrowed after its rows were": Change(
        "LOGGED UPDATE acct SET a = 5 WHERE a > 20;"
        "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20)",
        before=_DOMAIN,
        seed=_POS_SEED,
        writes="INSERT INTO acct VALUES (5, 15, 1, 'x');UPDATE acct SET b = 'y' WHERE id = 2",
        old_row={"id": 70, "a": 7, "e": 8, "b": "old"},
        past={"a": "integer"},
    ),
    "domain's check narrowed, of a generated column": Change(
        "LOGGED UPDATE acct SET a = 5 WHERE a > 20;"
        "ALTER DOMAIN pos ADD CONSTRAINT small CHECK (VALUE < 20)",
        before=f"{_DOMAIN};ALTER TABLE acct ADD g pos GENERATED ALWAYS AS (a + 1) STORED",
        seed="INSERT INTO acct VALUES (1, 11, 12, 'one'), (2, 21, 22, 'two');"
        "UPDATE acct SET a = 13 WHERE id = 1",
        writes="INSERT INTO acct VALUES (5, 15, 1, 'x');UPDATE acct SET b = 'y' WHERE id = 2",
        old_row={"id": 70, "a": 7, "e": 8, "b": "old"},
        past={"a": "integer"},
        computed=("g",),
    ),
    "domain's default": _domain("ALTER DOMAIN pos SET DEFAULT 8"),
    "domain to its base": _domain("ALTER TABLE acct ALTER a TYPE int", value="-1", past="integer"),
    "domain renamed": _domain(
        "ALTER DOMAIN pos RENAME TO positive_number", old="either", past="positive_number"
    ),
    "column to a domain": _domain("ALTER TABLE acct ALTER e TYPE pos", past="integer"),
    "column to a domain that its values did not fit": _domain(
        "ALTER TABLE acct ALTER e TYPE pos USING abs(e)",
        seed=f"{_POS_SEED};UPDATE acct SET e = -5 WHERE id = 2",
        past="integer",
    ),
    "domain to another domain": _domain(
        "CREATE DOMAIN big AS bigint CHECK (VALUE <> 0);ALTER TABLE acct ALTER a TYPE big",
        old="either",
        past="integer",
    ),
}
