"""Ways to change guarded rows, and ways to have a change done by something else.

Texts of SQL for `tests/sessions/arena.py`, which has the tables. `{lair}` is the role's own schema,
`{other}` that of another ordinary role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

INSERT = "INSERT INTO account (id, owner, balance) VALUES (11, 'x', 1)"
UPDATE = "UPDATE account SET balance = balance + 1"
LONG = tuple(f"a{n}_{'long' * 14}" for n in range(4))
"""Names of guarded tables, which are told before the others."""


@dataclass(frozen=True)
class Write:
    """Statements that change guarded rows.

    `newest` is the oldest server that has them; `alone` if they cannot stand in a function.
    """

    statements: tuple[str, ...]
    oldest: int = 14
    alone: bool = False


def one(statement: str, *, oldest: int = 14) -> Write:
    return Write((statement,), oldest)


def alone(statement: str) -> Write:
    return Write((statement,), alone=True)


WRITES: Mapping[str, Write] = {
    "insert": one(INSERT),
    "insert rows": one(
        "INSERT INTO account (id, owner, balance) SELECT g, 'x', g FROM generate_series(21, 23) g"
    ),
    "upsert": one(
        "INSERT INTO account (id, owner, balance) VALUES (1, 'u', 1), (12, 'u', 1) "
        "ON CONFLICT (id) DO UPDATE SET balance = 9"
    ),
    "upsert or nothing": one(
        "INSERT INTO account (id, owner, balance) VALUES (1, 'u', 1), (12, 'u', 1) "
        "ON CONFLICT DO NOTHING"
    ),
    "update": one(UPDATE),
    "update of the key": one("UPDATE account SET id = id + 100"),
    "update from": one(
        "UPDATE account SET owner = v.o FROM (VALUES (1, 'v')) v (i, o) WHERE id = i"
    ),
    "delete": one("DELETE FROM account WHERE id = 1"),
    "delete using": one("DELETE FROM account USING child c WHERE account.id = c.id"),
    "merge": one(
        "MERGE INTO account a USING (VALUES (1), (2), (13)) v (i) ON a.id = v.i "
        "WHEN MATCHED AND a.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET owner = 'm' "
        "WHEN NOT MATCHED THEN INSERT (id, owner, balance) VALUES (v.i, 'm', 1)",
        oldest=15,
    ),
    "merge into a partitioned table": one(
        "MERGE INTO whole w USING (VALUES (1), (5)) v (i) ON w.id = v.i "
        "WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.i, 5)",
        oldest=15,
    ),
    "copy": alone("COPY account (id, owner, balance) FROM STDIN\n14\tc\t1\n15\tc\t2\n"),
    "copy into a partitioned table": alone("COPY whole FROM STDIN\n7\t1\n70\t1\n"),
    "copy into a partition": alone("COPY part FROM STDIN\n7\t1\n"),
    "copy of what is written": alone("COPY (DELETE FROM account RETURNING id) TO STDOUT"),
    "in a cte": one("WITH gone AS (DELETE FROM account RETURNING 1) SELECT count(*) FROM gone"),
    "two tables in a cte": one(
        "WITH a AS (UPDATE account SET owner = 'y' RETURNING 1), c AS (DELETE FROM child) "
        "INSERT INTO whole VALUES (8, 8)"
    ),
    "cascade": one("DELETE FROM parent WHERE id = 1"),
    "cascade of a key": one("UPDATE parent SET id = id + 50 WHERE id = 1"),
    "set null": one("DELETE FROM parent WHERE id = 2"),
    "set default": one("DELETE FROM parent WHERE id = 3"),
    "truncate": alone("TRUNCATE account"),
    "truncate a partition": alone("TRUNCATE part"),
    "truncate by cascade": alone("TRUNCATE parent CASCADE"),
    "truncate and rows": Write((UPDATE, "TRUNCATE whole"), alone=True),
    "partitioned": one("INSERT INTO whole VALUES (5, 5), (50, 5)"),
    "partition": one("INSERT INTO part VALUES (6, 6)"),
    "partition's update": one("UPDATE rest SET v = v + 1"),
    "partition's move": one("UPDATE whole SET id = id + 40 WHERE id = 1"),
    "partition's delete": one("DELETE FROM whole"),
    "two tables": Write((UPDATE, "DELETE FROM child WHERE id = 1")),
    "two tables, the other first": Write(("DELETE FROM child WHERE id = 1", UPDATE)),
    "table and partition": Write(("DELETE FROM whole WHERE id = 1", UPDATE)),
    "many tables": Write((*(f"UPDATE {name} SET v = v + 1" for name in LONG), UPDATE)),
    "view": one("INSERT INTO {lair}.seen (id, owner, balance) VALUES (16, 'v', 1)"),
    "alter": alone("ALTER TABLE account ALTER balance TYPE bigint USING 0"),
    "disable": Write(("ALTER TABLE account DISABLE TRIGGER ALL", UPDATE), alone=True),
    "explain analyze": one("EXPLAIN ANALYZE " + UPDATE),
    "create table as": one("CREATE TEMP TABLE made AS SELECT {lair}.run($x$" + UPDATE + "$x$)"),
    "and back again": Write((UPDATE, "UPDATE account SET balance = balance - 1"), alone=False),
    "inserted and deleted": Write((INSERT, "DELETE FROM account WHERE id = 11")),
}


Shape = Callable[[str], list[str]]
"""Statements that have another statement done."""


def quoted(statement: str) -> str:
    return f"$w${statement}$w$"


def function(settings: str = "") -> Shape:
    def shape(write: str) -> list[str]:
        body = f"BEGIN EXECUTE {quoted(write)}; END"
        head = "CREATE OR REPLACE FUNCTION pg_temp.f() RETURNS void LANGUAGE plpgsql"
        return [f"{head} {settings} AS $f$ {body} $f$", "SELECT pg_temp.f()"]

    return shape


def calling(pattern: str) -> Shape:
    return lambda write: [pattern.replace("WRITE", quoted(write))]


def block(body: str) -> Shape:
    return lambda write: [f"DO $d$ BEGIN {body.replace('WRITE', quoted(write))} END $d$"]


SHAPES: Mapping[str, Shape] = {
    "plain": lambda write: [write],
    "prepared": lambda write: ["DEALLOCATE ALL", f"PREPARE p AS {write}", "EXECUTE p"],
    "do": block("EXECUTE WRITE;"),
    "do, caught": block("BEGIN EXECUTE WRITE; EXCEPTION WHEN OTHERS THEN NULL; END;"),
    "do, undone and done": block(
        "BEGIN EXECUTE WRITE; RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END; EXECUTE WRITE;"
    ),
    "do, done and undone": block(
        "EXECUTE WRITE; BEGIN UPDATE account SET note = 'undone'; RAISE 'no'; "
        "EXCEPTION WHEN OTHERS THEN NULL; END;"
    ),
    "function": function(),
    "function in a path of its own": function("SET search_path = public, pg_temp"),
    "function that is a replica": function("SET session_replication_role = replica"),
    "function with a tally": function("SET oplog.tally = '0'"),
    "function that is armed": function("SET oplog.armed = ''"),
    "function of another": calling("SELECT {other}.run(WRITE)"),
    "function of another, in a path of its own": calling("SELECT {other}.run_apart(WRITE)"),
    "held cursor": calling("DECLARE held CURSOR WITH HOLD FOR SELECT {lair}.run(WRITE)"),
    "held cursor, read": lambda write: [
        f"DECLARE held CURSOR WITH HOLD FOR SELECT {{lair}}.run({quoted(write)})",
        "FETCH ALL FROM held",
    ],
    "trigger": calling("INSERT INTO {lair}.free VALUES (WRITE)"),
    "trigger before": calling("INSERT INTO {lair}.before VALUES (WRITE)"),
    "trigger of a trigger": calling("INSERT INTO {lair}.twice VALUES (WRITE)"),
    "deferred trigger": calling("INSERT INTO {lair}.late VALUES (WRITE)"),
    "deferred trigger of one": calling("INSERT INTO {lair}.later VALUES (WRITE)"),
    "view with a trigger": calling("INSERT INTO {lair}.shown VALUES (WRITE)"),
    "rule": calling("INSERT INTO {lair}.ruled VALUES (WRITE)"),
    "check": calling("INSERT INTO {lair}.checked VALUES (WRITE)"),
    "procedure that commits": calling("CALL {lair}.call(WRITE)"),
    "materialized view": calling(
        "CREATE MATERIALIZED VIEW {lair}.made AS SELECT {lair}.run(WRITE) x"
    ),
}


def _behind(statement: str) -> str:
    # What is copied stands on lines of its own.
    head, *rows = statement.split("\n", 1)
    return "\n".join((f"{head} /*oplog:{{account}}*/", *rows))


COMMENTS: Mapping[str, Callable[[list[str]], list[str]]] = {
    # Copies of what an attached session says of its own statements.
    "": lambda statements: statements,
    "one": lambda statements: [f"/*oplog:{{account}}*/ {s}" for s in statements],
    "every": lambda statements: [
        _behind(f"/*oplog:{{whole}}*/ /*oplog:{{child}}*/ {s}") for s in statements
    ],
    "the first": lambda s: [f"/*oplog:{{account}}*/ {s[0]}", *s[1:]],
    "the last": lambda s: [*s[:-1], _behind(s[-1])],
}
