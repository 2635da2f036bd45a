"""Schema changes of tables: keys, names, schemas, partitions, replacement, several at once."""

from __future__ import annotations

from dataclasses import replace

from tests.evolving import BASE, SEED, WRITES, Change

KEYS = {
    "key int to bigint": Change("ALTER TABLE acct ALTER id TYPE bigint", anew=True),
    "key renamed": Change(
        "ALTER TABLE acct RENAME id TO nr",
        writes="INSERT INTO acct (nr, a) VALUES (5, 5);UPDATE acct SET a = 1 WHERE nr = 2;"
        "DELETE FROM acct WHERE nr = 3",
        old="stops",
    ),
    "key to text": Change(
        "ALTER TABLE acct ALTER id TYPE text USING 'n' || id",
        writes="INSERT INTO acct (id, a) VALUES ('x', 5);UPDATE acct SET a = 1 WHERE id = 'n2';"
        "DELETE FROM acct WHERE id = 'n3'",
        anew=True,
        old="stops",
    ),
    "key to uuid": Change(
        "ALTER TABLE acct ALTER id TYPE uuid USING lpad(id::text, 32, '0')::uuid",
        writes="INSERT INTO acct (id, a) VALUES (gen_random_uuid(), 5);"
        "UPDATE acct SET a = 1 WHERE id = lpad('2', 32, '0')::uuid",
        anew=True,
        old="stops",
    ),
    "key's values changed": Change(
        "ALTER TABLE acct ALTER id TYPE int USING id + 100",
        writes="INSERT INTO acct (id, a) VALUES (1, 5);UPDATE acct SET a = 1 WHERE id = 102;"
        "DELETE FROM acct WHERE id = 103",
        anew=True,
        old="either",
    ),
    "key to another column": Change(
        "ALTER TABLE acct ADD u int GENERATED ALWAYS AS IDENTITY;"
        "ALTER TABLE acct DROP CONSTRAINT acct_pkey;ALTER TABLE acct ADD PRIMARY KEY (u)",
        writes="INSERT INTO acct (id, a) VALUES (1, 5);UPDATE acct SET a = 1 WHERE u = 2;"
        "DELETE FROM acct WHERE u = 3",
        old="either",
        replaced=("acct",),
    ),
    "key widened by a column": Change(
        "ALTER TABLE acct ADD t int NOT NULL DEFAULT 1;"
        "ALTER TABLE acct DROP CONSTRAINT acct_pkey;ALTER TABLE acct ADD PRIMARY KEY (id, t)",
        writes="INSERT INTO acct (id, t) VALUES (1, 2);UPDATE acct SET a = 1 WHERE id = 2;"
        "DELETE FROM acct WHERE id = 3",
        old="either",
        replaced=("acct",),
    ),
    "key narrowed by a column": Change(
        "ALTER TABLE acct DROP CONSTRAINT acct_pkey;ALTER TABLE acct ADD PRIMARY KEY (id)",
        before=BASE.replace("id int PRIMARY KEY", "id int, k int DEFAULT 0").replace(
            "DEFAULT 'c')", "DEFAULT 'c', PRIMARY KEY (id, k))"
        ),
        old="either",
        replaced=("acct",),
    ),
}

_OTHER = "CREATE TABLE other (id int PRIMARY KEY, a int, e int, b text, c varchar(20) DEFAULT 'o')"
_BOTH = f"{BASE};{_OTHER}"
_BOTH_SEED = f"{SEED};INSERT INTO other (id, a) VALUES (1, 100), (2, 200), (8, 800)"


def _named(name: str) -> str:
    return WRITES.replace("acct", name)


NAMES = {
    "table renamed": Change(
        "ALTER TABLE acct RENAME TO ledger", writes=_named("ledger"), old="stops"
    ),
    "table moved": Change(
        "CREATE SCHEMA elsewhere;ALTER TABLE acct SET SCHEMA elsewhere",
        writes=_named("elsewhere.acct"),
        old="stops",
    ),
    "table renamed and moved": Change(
        "CREATE SCHEMA elsewhere;ALTER TABLE acct RENAME TO ledger;"
        "ALTER TABLE ledger SET SCHEMA elsewhere",
        writes=_named("elsewhere.ledger"),
        old="stops",
    ),
    "schema renamed": Change(
        "ALTER SCHEMA one RENAME TO two",
        before="CREATE SCHEMA one;" + BASE.replace("acct", "one.acct"),
        seed=SEED.replace("acct", "one.acct"),
        writes=_named("two.acct"),
        old="stops",
    ),
    "table and column renamed": Change(
        "ALTER TABLE acct RENAME a TO z;ALTER TABLE acct RENAME TO ledger;"
        "ALTER TABLE ledger ADD a int DEFAULT 3",
        writes=_named("ledger"),
        old="stops",
    ),
    "two tables swap names": Change(
        "ALTER TABLE acct RENAME TO t;ALTER TABLE other RENAME TO acct;"
        "ALTER TABLE t RENAME TO other",
        before=_BOTH,
        seed=_BOTH_SEED,
        writes="INSERT INTO acct (id) VALUES (5);INSERT INTO other (id) VALUES (5);"
        "UPDATE acct SET b = 'x' WHERE id = 8;UPDATE other SET b = 'y' WHERE id = 3;"
        "DELETE FROM acct WHERE id = 1;DELETE FROM other WHERE id = 2",
        moved={"acct": "other", "other": "acct"},
    ),
    "table renamed, and another one of its name": Change(
        f"ALTER TABLE acct RENAME TO ledger;ALTER INDEX acct_pkey RENAME TO l;{BASE};TRACK acct",
        writes=f"{_named('ledger')};INSERT INTO acct (id, a) VALUES (1, 1), (2, 2);"
        "UPDATE acct SET a = 3 WHERE id = 1",
        moved={"acct": "ledger"},
    ),
    "table renamed, the other way next time": Change(
        "ALTER TABLE acct RENAME TO ledger;LOGGED UPDATE ledger SET a = 5 WHERE id = 1;"
        "ALTER TABLE ledger RENAME TO acct"
    ),
}

_COPY = "CREATE TABLE acct2 (LIKE acct INCLUDING ALL);ROWS INSERT INTO acct2 SELECT * FROM acct"
_MOVE = "DROP TABLE acct;ALTER TABLE acct2 RENAME TO acct;TRACK acct"

REPLACED = {
    "table dropped": Change(
        "DROP TABLE other",
        before=_BOTH,
        seed=_BOTH_SEED,
        old="stops",
    ),
    "table dropped and made again, empty": Change(
        f"DROP TABLE acct;{BASE};TRACK acct",
        writes="INSERT INTO acct (id, a) VALUES (1, 1), (9, 9);UPDATE acct SET a = 2 WHERE id = 1",
    ),
    "table dropped and made again, another one": Change(
        "DROP TABLE acct;CREATE TABLE acct (id text PRIMARY KEY, a jsonb);TRACK acct",
        writes="INSERT INTO acct VALUES ('1', '{}'), ('2', '[1]');"
        "UPDATE acct SET a = NULL WHERE id = '1'",
        old="stops",
    ),
    "table dropped and made again, filled": Change(
        f"DROP TABLE acct;{BASE};ROWS INSERT INTO acct (id, a) VALUES (1, 1), (2, 2), (3, 3);"
        "TRACK acct",
        replaced=("acct",),
    ),
    "table rebuilt by copying": Change(f"{_COPY};{_MOVE}", replaced=("acct",)),
    "table rebuilt with other columns": Change(
        f"{_COPY};{_MOVE};ALTER TABLE acct DROP b;ALTER TABLE acct ADD d int DEFAULT 4",
        replaced=("acct",),
        old="stops",
    ),
    "table copied, the former one kept": Change(
        f"{_COPY};ALTER TABLE acct RENAME TO former;ALTER TABLE acct2 RENAME TO acct;"
        "ROWS TRUNCATE acct;TRACK acct",
        writes=f"INSERT INTO acct (id, a) VALUES (1, 1);{_named('former')}",
        moved={"acct": "former"},
    ),
}

_PARTED = (
    "CREATE TABLE acct (id int PRIMARY KEY, a int, e int, b text, "
    "c varchar(20) NOT NULL DEFAULT 'c') PARTITION BY RANGE (id);"
    "CREATE TABLE acct_1 PARTITION OF acct FOR VALUES FROM (0) TO (3);"
    "CREATE TABLE acct_2 PARTITION OF acct FOR VALUES FROM (3) TO (50)"
)
_THIRD = "CREATE TABLE acct_3 (LIKE acct INCLUDING DEFAULTS)"
_ATTACH = "ALTER TABLE acct ATTACH PARTITION acct_3 FOR VALUES FROM (50) TO (100)"
_THIRD_WRITES = f"{WRITES};INSERT INTO acct (id) VALUES (60);UPDATE acct SET a = 3 WHERE id >= 50"


def _parted(
    ddl: str,
    *,
    writes: str = WRITES,
    old_row: int = 40,
    before: str = _PARTED,
    old: str = "goes on",
    anew: bool = False,
) -> Change:
    row = {"id": old_row, "a": 71}
    return Change(ddl, before=before, writes=writes, old_row=row, old=old, anew=anew)


PARTITIONS = {
    "partitioned: add with a constant": _parted("ALTER TABLE acct ADD d int DEFAULT 4"),
    "partitioned: add with random": _parted(
        "ALTER TABLE acct ADD d int DEFAULT (random() * 1000)::int"
    ),
    "partitioned: rename": _parted("ALTER TABLE acct RENAME a TO z", old="stops"),
    "partitioned: convert": _parted("ALTER TABLE acct ALTER a TYPE text USING a * 2", old="either"),
    "partitioned: attach an empty one": _parted(f"{_THIRD};{_ATTACH}", writes=_THIRD_WRITES),
    "partitioned: create one": _parted(
        "CREATE TABLE acct_3 PARTITION OF acct FOR VALUES FROM (50) TO (100)", writes=_THIRD_WRITES
    ),
    "partitioned: attach a filled one": _parted(
        f"{_THIRD};ROWS INSERT INTO acct_3 (id, a) VALUES (55, 5), (56, 6);{_ATTACH}",
        writes=_THIRD_WRITES,
        anew=True,
    ),
    "partitioned: attach a filled one later": replace(
        _parted(
            f"{_THIRD};ROWS INSERT INTO acct_3 (id, a) VALUES (55, 5), (56, 6);{_ATTACH}",
            writes=_THIRD_WRITES,
            anew=True,
        ),
        alone=True,
    ),
    "partitioned: attach a filled tree": _parted(
        f"{_THIRD} PARTITION BY RANGE (id);"
        "CREATE TABLE acct_31 PARTITION OF acct_3 FOR VALUES FROM (50) TO (80);"
        f"ROWS INSERT INTO acct_3 (id, a) VALUES (55, 5), (56, 6);{_ATTACH}",
        writes=_THIRD_WRITES,
        anew=True,
    ),
    "partitioned: detach": _parted(
        "ALTER TABLE acct DETACH PARTITION acct_2;DROP TABLE acct_2",
        writes="UPDATE acct SET a = 3 WHERE id = 1;DELETE FROM acct WHERE id = 2",
        anew=True,
        old_row=0,
    ),
    "partitioned: drop one": _parted(
        "DROP TABLE acct_2",
        writes="UPDATE acct SET a = 3 WHERE id = 1;DELETE FROM acct WHERE id = 2",
        anew=True,
        old_row=0,
    ),
    "partitioned: drop an empty one": _parted(
        "DROP TABLE acct_3",
        before=f"{_PARTED};CREATE TABLE acct_3 PARTITION OF acct FOR VALUES FROM (50) TO (100)",
        anew=True,
    ),
}

NOTHING = {
    "vacuum full": Change("VACUUM FULL acct", alone=True),
    "cluster": Change("CLUSTER acct USING acct_pkey"),
    "unlogged and back": Change("ALTER TABLE acct SET UNLOGGED;ALTER TABLE acct SET LOGGED"),
    "owner, tablespace, replica identity": Change(
        "ALTER TABLE acct REPLICA IDENTITY FULL;ALTER TABLE acct SET TABLESPACE pg_default;"
        "ALTER TABLE acct OWNER TO CURRENT_USER"
    ),
    "inherits for a while": Change(
        "ALTER TABLE acct INHERIT parent;ALTER TABLE acct NO INHERIT parent",
        before=f"CREATE TABLE parent (a int, e int, b text);{BASE}",
        untracked=("parent",),
    ),
    "vacuum full, then a column": Change(
        "VACUUM FULL acct;ALTER TABLE acct ADD d int DEFAULT 4", alone=True
    ),
}

SEVERAL = {
    "rename, drop, add, convert": Change(
        "ALTER TABLE acct RENAME a TO z;ALTER TABLE acct DROP b;ALTER TABLE acct ADD b text;"
        "ALTER TABLE acct ADD d int NOT NULL DEFAULT 4;"
        "ALTER TABLE acct ALTER e TYPE text USING 'e' || e",
        writes="INSERT INTO acct (id, e) VALUES (5, 'x');UPDATE acct SET z = 1 WHERE id = 2;"
        "DELETE FROM acct WHERE id = 3",
        old="stops",
    ),
    "a column split in two": Change(
        "ALTER TABLE acct ADD f text, ADD g text;"
        "LOGGED UPDATE acct SET f = left(b, 1), g = substr(b, 2);ALTER TABLE acct DROP b",
        old="stops",
    ),
    "a table split in two": Change(
        "CREATE TABLE part (id int PRIMARY KEY, b text);TRACK part;"
        "LOGGED INSERT INTO part SELECT id, b FROM acct;ALTER TABLE acct DROP b",
        old="stops",
    ),
    "three changes with rows between": Change(
        "ALTER TABLE acct ALTER a TYPE bigint;LOGGED UPDATE acct SET a = 5000000000 WHERE id = 1;"
        "ALTER TABLE acct RENAME a TO big;LOGGED UPDATE acct SET big = big + 1;"
        "ALTER TABLE acct ALTER big TYPE text USING 'b' || big",
        old="stops",
    ),
    "two tables at once": Change(
        "ALTER TABLE acct RENAME a TO z;ALTER TABLE other ADD d int DEFAULT (random() * 9)::int",
        before=_BOTH,
        seed=_BOTH_SEED,
        writes=f"{WRITES};INSERT INTO other (id) VALUES (5);DELETE FROM other WHERE id = 1",
        old="stops",
    ),
    "a table dropped, its name given to another": Change(
        "DROP TABLE acct;ALTER TABLE other RENAME TO acct",
        before=_BOTH,
        seed=_BOTH_SEED,
        writes="INSERT INTO acct (id) VALUES (5);UPDATE acct SET b = 'x' WHERE id = 8",
        old="either",
        moved={"acct": "", "other": "acct"},
    ),
}
