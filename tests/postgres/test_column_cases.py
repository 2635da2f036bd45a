"""Columns with a story: refused by name, computed, decorated, huge, changed while in use."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.errors import NotCapturableError
from tests.logged import LoggedDatabase, open_logged
from tests.property.type_samples import PLANES
from tests.property.type_tables import Spelled, require

pytestmark = pytest.mark.postgres

REFUSED = {
    "money": ("v money", "v", "lc_monetary"),
    "money[]": ("v money[]", "v", "lc_monetary"),
    "a domain over money": ("v price", "v", "lc_monetary"),
    "bpchar": ("v bpchar", "v", "trailing blanks"),
    "regclass": ("v regclass", "v", "object of this one database"),
    "an array of regtype": ("v regtype[]", "v", "object of this one database"),
    "aclitem": ("v aclitem", "v", "object of this one database"),
    "a row with a regclass": ("v with_class", "v", "it contains regclass"),
    "an array of rows with a regclass": ("v with_class[]", "v", "it contains regclass"),
    "an array of domains over regclass": ("v class_name[]", "v", "it contains regclass"),
    "a range of regclass": ("v class_range", "v", "it contains regclass"),
    "an array of domains over pg_node_tree": ("v pg_ndistinct", "v", "does not read them back"),
    "a type with a cast to text": ("v terse", "v", r"what tell\(terse\) makes of it"),
    "a computed key": ("k integer GENERATED ALWAYS AS (id + 1) STORED", "k", "computed"),
}
TYPES = (
    "CREATE DOMAIN price AS money",
    "CREATE DOMAIN class_name AS regclass",
    "CREATE TYPE with_class AS (a integer, b regclass)",
    "CREATE TYPE class_range AS RANGE (subtype = regclass)",
    "CREATE TYPE terse AS (a integer, b integer)",
    "CREATE FUNCTION tell(terse) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1.a::text'",
    "CREATE CAST (terse AS text) WITH FUNCTION tell(terse)",
)


def open_table(
    engine: Engine, *columns: Any, ddl: tuple[str, ...], **catalog: Any
) -> LoggedDatabase:
    """A logged table `t` made by `ddl`, as far as `columns` tell the model."""
    with engine.begin() as connection:
        for statement in ddl:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    metadata = sa.MetaData()
    sa.Table("t", metadata, *columns)
    return open_logged(engine, metadata, **catalog)


def insert(db: LoggedDatabase, **values: Any) -> None:
    with db.sessions.begin() as session:
        session.execute(sa.insert(table_of(db)).values(**values))


def update(db: LoggedDatabase, id_: int, **values: Any) -> None:
    table = table_of(db)
    with db.sessions.begin() as session:
        session.execute(sa.update(table).where(table.c.id == id_).values(**values))


def table_of(db: LoggedDatabase) -> sa.Table:
    (declared,) = db.log.catalog.types.values()
    return declared.table


def make_id(**options: Any) -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True, **options)


@pytest.mark.parametrize(("column", "name", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_column_that_cannot_be_logged_exactly_is_refused_by_name(
    engine: Engine, column: str, name: str, why: str
) -> None:
    key = "k" if name == "k" else "id"
    db = open_table(
        engine,
        sa.Column("id", sa.Integer, primary_key=key == "id"),
        sa.Column(name, sa.Integer, primary_key=key == "k"),
        ddl=(*TYPES, f"CREATE TABLE t (id integer NOT NULL, {column}, PRIMARY KEY ({key}))"),
    )
    with pytest.raises(NotCapturableError, match=rf"column public\.t\.{name}: .*{why}") as caught:
        insert(db, id=1)
    assert caught.value.hint
    assert db.count("t") == 0


def test_a_refused_column_can_be_left_out(engine: Engine) -> None:
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", Spelled("money")),
        ddl=("CREATE TABLE t (id integer PRIMARY KEY, v money)",),
        exclude={"t.v": "depends on the locale"},
    )
    insert(db, id=1, v="1.50")
    db.assert_replays()


@pytest.fixture
def blind(engine: Engine) -> None:
    """A collation that takes 'a' for 'A'."""
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql(
                "CREATE COLLATION blind"
                " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        except sa.exc.NotSupportedError:
            pytest.skip("this server was built without ICU, the only source of such collations")
        connection.commit()


def test_a_collation_that_ignores_case_hides_no_change(engine: Engine, blind: None) -> None:
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", sa.Text),
        ddl=("CREATE TABLE t (id integer PRIMARY KEY, v text COLLATE blind)",),
    )
    insert(db, id=1, v="a")
    update(db, 1, v="A")
    db.assert_replays()
    db.execute("UPDATE t SET v = 'a'")
    with db.engine.connect() as connection:
        (found,) = db.log.verify(connection).differences
    assert (found.live, found.logged) == ("a", "A")


@pytest.mark.parametrize("sql", ["text", "varchar(9)", "char(9)", "text[]"])
def test_a_key_whose_collation_ignores_case_is_refused(
    engine: Engine, blind: None, sql: str
) -> None:
    db = open_table(
        engine,
        sa.Column("id", Spelled(sql), primary_key=True),
        ddl=(f"CREATE TABLE t (id {sql} COLLATE blind PRIMARY KEY)",),
    )
    with pytest.raises(NotCapturableError, match=r"column public\.t\.id: .*collation") as caught:
        insert(db, id="{a}")
    assert "deterministic" in caught.value.hint


def test_an_enum_takes_values_added_while_the_process_runs(engine: Engine) -> None:
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", Spelled("mood")),
        sa.Column("w", Spelled("mood[]")),
        ddl=(
            "CREATE TYPE mood AS ENUM ('sad', 'glad')",
            "CREATE TABLE t (id integer PRIMARY KEY, v mood, w mood[])",
        ),
    )
    insert(db, id=1, v="sad", w="{sad}")
    db.execute("ALTER TYPE mood ADD VALUE 'so \"so' BEFORE 'glad'")
    insert(db, id=2, v='so "so', w='{"so \\"so",NULL,glad}')
    update(db, 1, v='so "so')
    assert db.read_last().fields["v"] == 'so "so'
    db.assert_replays()


def test_ten_megabytes_of_every_plane(engine: Engine) -> None:
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", sa.Text),
        sa.Column("w", sa.LargeBinary),
        ddl=("CREATE TABLE t (id integer PRIMARY KEY, v text, w bytea)",),
    )
    text = "\\\t" + PLANES * (10_000_000 // len(PLANES.encode()) + 1)
    assert len(text.encode()) >= 10_000_000
    insert(db, id=1, v=text)
    update(db, 1, v=sa.func.reverse(text), w=b"\x00\xff" * 500_000)
    db.assert_replays()
    assert db.read_last().fields["v"] == text[::-1]


def test_a_row_of_nulls_is_not_null(engine: Engine) -> None:
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", Spelled("pair")),
        ddl=(
            "CREATE TYPE pair AS (a integer, b text)",
            "CREATE TABLE t (id integer PRIMARY KEY, v pair)",
        ),
    )
    insert(db, id=1, v="(,)")
    insert(db, id=2, v=sa.null())
    insert(db, id=3, v=sa.text("ROW(NULL, NULL)"))
    update(db, 2, v=sa.text("ROW(NULL, '')"))
    update(db, 3, v=None)
    assert [e.operations[0].fields["v"] for e in db.read()] == ["(,)", None, "(,)", '(,"")', None]
    db.assert_replays()
    db.execute("UPDATE t SET v = NULL WHERE id = 1")
    with db.engine.connect() as connection:
        assert db.log.verify(connection).count == 1


def test_computed_columns_are_computed_anew_and_compared(engine: Engine) -> None:
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", sa.Text),
        sa.Column("r", sa.REAL),
        ddl=(
            (
                "CREATE TABLE t (id integer PRIMARY KEY, v text, r real, "
                '"l%s" integer GENERATED ALWAYS AS (length(v)) STORED, '
                'u text COLLATE "C" GENERATED ALWAYS AS (upper(v)) STORED, '
                "d double precision GENERATED ALWAYS AS (-r / 3) STORED)"
            ),
        ),
    )
    insert(db, id=1, v="aß", r=-0.0)
    insert(db, id=2)
    update(db, 1, v="b", r=1e-30)
    assert set(db.read()[0].operations[0].fields) == {"id", "v", "r"}
    db.assert_replays()


def test_a_tampered_computed_column_is_found(engine: Engine) -> None:
    """A function that is declared IMMUTABLE and replaced leaves rows as it made them before."""
    price = "CREATE OR REPLACE FUNCTION price(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS "
    table = "(id integer PRIMARY KEY, v integer, p integer GENERATED ALWAYS AS (price(v)) STORED)"
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", sa.Integer),
        ddl=(f"{price} 'SELECT $1 * 2'", f"CREATE TABLE t {table}"),
    )
    insert(db, id=1, v=0)
    insert(db, id=2, v=3)
    db.assert_replays()
    db.execute(f"{price} 'SELECT $1 * 20'")
    with engine.connect() as connection:
        (difference,) = db.log.verify(connection).differences
    assert (difference.kind, difference.key, difference.column) == ("changed", {"id": 2}, "p")
    assert (difference.live, difference.logged) == (6, 60)


def test_virtual_columns_are_compared(engine: Engine) -> None:
    with engine.connect() as connection:
        if connection.dialect.server_version_info < (18,):  # type: ignore[operator]
            pytest.skip("virtual columns came with PostgreSQL 18")
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", sa.Integer),
        ddl=(
            (
                "CREATE TABLE t (id integer PRIMARY KEY, v integer, "
                "w integer GENERATED ALWAYS AS (v * 2))"
            ),
        ),
    )
    insert(db, id=1, v=4)
    update(db, 1, v=5)
    db.assert_replays()


@pytest.mark.parametrize("always", [True, False])
def test_identities(engine: Engine, always: bool) -> None:
    kind = "ALWAYS" if always else "BY DEFAULT"
    db = open_table(
        engine,
        sa.Column("id", sa.BigInteger, sa.Identity(always=always), primary_key=True),
        sa.Column("n", sa.SmallInteger, sa.Identity(always=always)),
        sa.Column("v", sa.Text),
        ddl=(
            (
                f"CREATE TABLE t (id bigint GENERATED {kind} AS IDENTITY "
                "(START -9223372036854775808 "
                f"MINVALUE -9223372036854775808) PRIMARY KEY, n smallint GENERATED {kind} AS "
                "IDENTITY (START 32767 MAXVALUE 32767 INCREMENT -1), v text)"
            ),
        ),
    )
    insert(db, v="first")
    if not always:
        insert(db, id=2**63 - 1, n=-32768)
    with db.sessions.begin() as session:
        for text in ("a", "b"):
            session.execute(sa.insert(table_of(db)).values(v=text))
    update(db, -(2**63), v="changed")
    db.assert_replays()
    assert db.read()[0].operations[0].key == {"id": -(2**63)}


class Doubled(sa.TypeDecorator[str]):
    """Stores something else than it is given."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value * 2


class Turned(sa.TypeDecorator[str]):
    """Passes through a function of the database on its way in, and another on its way out."""

    impl = sa.Text
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        return sa.func.reverse(sa.func.upper(bindvalue), type_=sa.Text())

    def column_expression(self, column: Any) -> Any:
        return sa.func.repeat(column, 2, type_=sa.Text())


@pytest.mark.parametrize(
    ("decorator", "stored"), [(Doubled, "ab\\ab\\"), (Turned, "\\BA")], ids=["value", "sql"]
)
def test_what_a_decorator_makes_of_a_value_is_logged(
    engine: Engine, decorator: type[sa.TypeDecorator[str]], stored: str
) -> None:
    db = open_table(
        engine,
        make_id(),
        sa.Column("v", decorator),
        ddl=("CREATE TABLE t (id integer PRIMARY KEY, v text)",),
    )
    insert(db, id=1, v="ab\\")
    with db.sessions.begin() as session:
        session.execute(sa.insert(table_of(db)), [{"id": 2, "v": None}, {"id": 3, "v": PLANES}])
    update(db, 2, v="ab\\")
    assert [db.read()[0].operations[0].fields["v"], db.read_last().fields["v"]] == [stored] * 2
    db.assert_replays()


def test_a_key_that_is_a_row_with_a_null_inside(engine: Engine) -> None:
    db = open_table(
        engine,
        sa.Column("id", Spelled("pair"), primary_key=True),
        sa.Column("v", sa.Text),
        ddl=(
            "CREATE TYPE pair AS (a integer, b text)",
            "CREATE TABLE t (id pair PRIMARY KEY, v text)",
        ),
    )
    with pytest.raises(NotCapturableError, match=r'"public"\."t"'):
        insert(db, id="(1,)")
    db.assert_replays()


def test_a_key_that_ignores_case_is_logged_as_it_is_stored(engine: Engine) -> None:
    require(engine, "citext")
    db = open_table(
        engine,
        sa.Column("id", Spelled("citext"), primary_key=True),
        sa.Column("v", sa.Text),
        ddl=("CREATE TABLE t (id citext PRIMARY KEY, v text)",),
    )
    table = table_of(db)
    insert(db, id="Ab", v="x")
    with db.sessions.begin() as session:
        session.execute(sa.update(table).where(table.c.id == "aB").values(v="y"))
    with db.sessions.begin() as session:
        session.execute(sa.update(table).where(table.c.id == "ab").values(id="AB"))
    assert db.tell()[:2] == ["CREATE t Ab", "UPDATE t Ab"]
    assert set(db.tell()[2:]) == {"DELETE t Ab", "CREATE t AB"}
    db.assert_replays()
    with db.sessions.begin() as session:
        session.execute(sa.delete(table).where(table.c.id == "ab"))
    db.assert_replays()
