"""Every fault that can be planted in a database is found, and a healthy one has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import NullPool

from oplog import Finding, Oplog, TypeCatalog
from oplog.postgres.quoting import (
    qualify,
)
from oplog.schema.expected import list_log_functions, list_log_tables, list_log_triggers
from oplog.schema.partitions import AHEAD, PARTITIONED
from oplog.schema.tables import (
    create_statements,
    track_statements,
    untrack_statements,
)
from tests.logged import LoggedDatabase, open_logged, track
from tests.models.depot import AGGREGATES, OBJECTS, TABLES, Base, Part
from tests.postgres.shop import open_shop
from tests.support import administer, install_log
from tests.ways import SEED

pytestmark = pytest.mark.postgres

PREMISES = {"setting", "owner-connected", "owner-superuser"}
"""What depends on the server of the test run and its account, and has tests of its own."""


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    """Guarded tables with rows, cascades, triggers of the application's own and partitions."""
    db = open_logged(engine, Base, guarded=True, objects=OBJECTS, aggregates=AGGREGATES)
    with db.sessions.begin() as session:
        session.connection().exec_driver_sql(SEED)
    return db


def find(db: LoggedDatabase, log: Oplog | None = None) -> list[Finding]:
    with db.engine.connect() as connection:
        found = (log or db.log).diagnose(connection)
    assert all(f.message and f.hint and f.where for f in found)
    assert [f.severity for f in found] == sorted((f.severity for f in found), reverse=True)
    return [f for f in found if f.what not in PREMISES]


def brief(found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(f.severity, f.what, f.where) for f in found]


def test_nothing_is_found_where_nothing_is_wrong(db: LoggedDatabase) -> None:
    assert find(db) == []
    with db.sessions.begin() as session:
        session.add(Part(id=10, sku="k"))
        session.flush()
        with db.engine.connect() as connection:
            # What another transaction keeps, and what one's own does, is nothing left over.
            assert [f for f in db.log.diagnose(connection) if f.what not in PREMISES] == []
        session.execute(sa.text("UPDATE part SET note = 'x'"))
        own = db.log.diagnose(session.connection())
        assert [f for f in own if f.what not in PREMISES] == []


def test_nothing_is_found_before_anything_was_logged(engine: Engine) -> None:
    db = open_logged(engine, Base, guarded=True, aggregates=AGGREGATES)
    assert find(db) == []


def test_a_log_in_an_odd_schema(bare_database_url: URL) -> None:
    odd = 'odd "name". of a (schema)%'
    engine = sa.create_engine(bare_database_url)
    table = sa.Table("odd (table)'s", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    log = Oplog(TypeCatalog.from_models(table.metadata), plaintext=True, schema=odd)
    with engine.begin() as connection:
        table.metadata.create_all(connection)
        statements = create_statements(odd) + track_statements(
            qualify([table.name], None), schema=odd
        )
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        for path in ("public", f"public, {qualify([odd], None)[0]}", "pg_temp"):
            connection.exec_driver_sql("SELECT set_config('search_path', %s, true)", (path,))
            found = [f for f in log.diagnose(connection) if f.what not in PREMISES]
            expected = ["table-missing", "guard-undeclared"] if path == "pg_temp" else []
            assert [f.what for f in found] == expected
    engine.dispose()


# -- the log itself -----------------------------------------------------------------------------

REFUSE = "oplog.oplog_refuse_change()"

LOG_FAULTS = {
    "trigger disabled": (
        "ALTER TABLE oplog.oplog_entry DISABLE TRIGGER oplog_append_only",
        "log-trigger-disabled",
        "oplog.oplog_entry trigger oplog_append_only",
    ),
    "trigger not always": (
        "ALTER TABLE oplog.oplog_type ENABLE TRIGGER oplog_append_only",
        "log-trigger-disabled",
        "oplog.oplog_type trigger oplog_append_only",
    ),
    "trigger dropped": (
        "DROP TRIGGER oplog_append_only_step ON oplog.oplog_ticket",
        "log-trigger-missing",
        "oplog.oplog_ticket trigger oplog_append_only_step",
    ),
    "trigger on fewer events": (
        (
            "CREATE OR REPLACE TRIGGER oplog_append_only BEFORE UPDATE ON oplog.oplog_token "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {REFUSE}; "
            "ALTER TABLE oplog.oplog_token ENABLE ALWAYS TRIGGER oplog_append_only"
        ),
        "log-trigger-altered",
        "oplog.oplog_token trigger oplog_append_only",
    ),
    "trigger with another condition": (
        (
            "CREATE OR REPLACE TRIGGER oplog_append_only_step BEFORE UPDATE ON oplog.oplog_ticket "
            "FOR EACH ROW WHEN (NEW.version IS DISTINCT FROM OLD.version + 1) "
            f"EXECUTE FUNCTION {REFUSE}; "
            "ALTER TABLE oplog.oplog_ticket ENABLE ALWAYS TRIGGER oplog_append_only_step"
        ),
        "log-trigger-altered",
        "oplog.oplog_ticket trigger oplog_append_only_step",
    ),
    "trigger function replaced": (
        (
            "CREATE OR REPLACE FUNCTION oplog.oplog_refuse_change() RETURNS trigger "
            "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        ),
        "log-function-altered",
        "function oplog.oplog_refuse_change",
    ),
    "function dropped": (
        "DROP FUNCTION oplog.oplog_append",
        "log-function-missing",
        "function oplog.oplog_append",
    ),
    "function overloaded": (
        (
            "CREATE FUNCTION oplog.oplog_settle(p_tally integer) RETURNS void "
            "LANGUAGE sql AS 'SELECT'; "
            "REVOKE EXECUTE ON FUNCTION oplog.oplog_settle(integer) FROM PUBLIC"
        ),
        "log-function-altered",
        "function oplog.oplog_settle",
    ),
    "function with other rights": (
        "ALTER FUNCTION oplog.oplog_guard_check() SECURITY INVOKER",
        "log-function-altered",
        "function oplog.oplog_guard_check",
    ),
    "function with another path": (
        "ALTER FUNCTION oplog.oplog_guard() SET search_path = public",
        "log-function-altered",
        "function oplog.oplog_guard",
    ),
    "table dropped": (
        "DROP TABLE oplog.oplog_consumer",
        "log-table-missing",
        "oplog.oplog_consumer",
    ),
    "version gone": ("COMMENT ON TABLE oplog.oplog_record IS NULL", "log-missing", "schema oplog"),
    "version newer": (
        "COMMENT ON TABLE oplog.oplog_record IS 'oplog schema version 9'",
        "log-version",
        "schema oplog",
    ),
    "version older": (
        "COMMENT ON TABLE oplog.oplog_record IS 'oplog schema version 0'",
        "log-version",
        "schema oplog",
    ),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("statement", "what", "where"), LOG_FAULTS.values(), ids=LOG_FAULTS.keys())
def test_faults_in_the_log(db: LoggedDatabase, statement: str, what: str, where: str) -> None:
    db.execute(statement)
    assert brief(find(db)) == [("problem", what, where)]


def test_every_trigger_and_function_is_watched(db: LoggedDatabase) -> None:
    partitions = [f"oplog_{table}_p{number}" for table in PARTITIONED for number in range(AHEAD)]
    expected = list_log_triggers("oplog", partitions=partitions)
    triggers = [(table, name) for table, names in expected.items() for name in names]
    assert len(triggers) == 15 + len(partitions)
    functions = list_log_functions("oplog")
    with db.engine.connect() as connection:
        count = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'oplog'::regnamespace"
        assert connection.exec_driver_sql(count).scalar() == len(functions)
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'oplog'"
        names = [*list_log_tables("oplog"), *partitions]
        assert connection.exec_driver_sql(tables).scalar() == len(names)
    db.execute(
        *(f"ALTER TABLE oplog.{table} DISABLE TRIGGER {name}" for table, name in triggers),
        "DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE pronamespace "
        "= 'oplog'::regnamespace LOOP EXECUTE format('ALTER FUNCTION %s SET work_mem = 64', f); "
        "END LOOP; END $$",
    )
    assert {f.where for f in find(db)} == {
        *(f"oplog.{table} trigger {name}" for table, name in triggers),
        *(f"function oplog.{name}" for name in functions),
    }


def test_no_log_at_all(bare_database_url: URL) -> None:
    engine = sa.create_engine(bare_database_url)
    log = Oplog(TypeCatalog.from_models(Base), plaintext=True)
    with engine.connect() as connection:
        found = [f for f in log.diagnose(connection) if f.what not in PREMISES]
        assert brief(found) == [("problem", "log-missing", "schema oplog")]
        assert "op.create_oplog(version=1)" in found[0].hint
        connection.exec_driver_sql("CREATE SCHEMA oplog")
        found = [f for f in log.diagnose(connection) if f.what not in PREMISES]
        assert [f.what for f in found] == ["log-missing"]
    engine.dispose()


# -- guards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["part", "reading", "reading_2"])
def test_every_guard_trigger_is_watched(db: LoggedDatabase, table: str) -> None:
    with db.engine.connect() as connection:
        names = list(
            connection.exec_driver_sql(
                f"SELECT tgname FROM pg_trigger WHERE tgrelid = '{table}'::regclass "
                "AND tgname LIKE 'oplog%%' ORDER BY 1"
            ).scalars()
        )
    assert len(names) == (5 if table == "part" else 3)
    for name in names:
        db.execute(f"ALTER TABLE ONLY {table} DISABLE TRIGGER {name}")
    expected = {("problem", "guard-disabled", f"public.{table} trigger {name}") for name in names}
    assert expected <= set(brief(find(db)))
    for name in names:
        db.execute(f"ALTER TABLE ONLY {table} ENABLE REPLICA TRIGGER {name}")
    assert expected <= set(brief(find(db)))
    for name in names:
        db.execute(f"ALTER TABLE ONLY {table} ENABLE ALWAYS TRIGGER {name}")
    if table != "reading_2":
        # A partition's clones go with the root's.
        for name in names[:-1]:
            db.execute(f"DROP TRIGGER {name} ON {table}")
        expected = {
            ("problem", "guard-incomplete", f"public.{table} trigger {name}") for name in names[:-1]
        }
        assert expected <= set(brief(find(db)))
        track(db.engine, TABLES[table])
        assert find(db) == []


ALTERED = {
    "function": "AFTER INSERT ON part FOR EACH STATEMENT EXECUTE FUNCTION oplog.shrug()",
    "level": (
        "AFTER INSERT ON part FOR EACH ROW WHEN (false) EXECUTE FUNCTION oplog.oplog_guard('oplog')"
    ),
    "condition": (
        "AFTER INSERT ON part REFERENCING NEW TABLE AS oplog_new FOR EACH STATEMENT "
        "WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION oplog.oplog_guard('oplog')"
    ),
    "another log's name": (
        "AFTER INSERT ON part REFERENCING NEW TABLE AS oplog_new FOR EACH STATEMENT "
        "EXECUTE FUNCTION oplog.oplog_guard('other')"
    ),
    "event": (
        "AFTER DELETE ON part REFERENCING OLD TABLE AS oplog_old FOR EACH STATEMENT "
        "EXECUTE FUNCTION oplog.oplog_guard('oplog')"
    ),
}


@pytest.mark.parametrize("definition", ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_guard(db: LoggedDatabase, definition: str) -> None:
    db.execute(
        "CREATE FUNCTION oplog.shrug() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; "
        "END'",
        "DROP TRIGGER oplog_guard_insert ON part",
        f"CREATE TRIGGER oplog_guard_insert {definition}",
        "ALTER TABLE part ENABLE ALWAYS TRIGGER oplog_guard_insert",
    )
    (found,) = find(db)
    assert (found.severity, found.what) == ("problem", "guard-altered")
    assert found.where == "public.part trigger oplog_guard_insert"
    if "shrug" in definition:
        assert "calls shrug" in found.message
    assert "DROP TRIGGER oplog_guard_insert ON public.part" in found.hint
    db.execute("DROP TRIGGER oplog_guard_insert ON public.part")
    track(db.engine, TABLES["part"])
    assert find(db) == []


def test_guards_gone_without_a_word(db: LoggedDatabase) -> None:
    db.execute("SELECT oplog.oplog_drop_guard('part')")
    (found,) = find(db)
    assert (found.severity, found.what, found.where) == ("problem", "guard-missing", "public.part")
    assert "op.track_tables('part')" in found.hint


def test_guards_taken_away_by_a_migration(db: LoggedDatabase) -> None:
    for statement in untrack_statements(['"part"'], reason="loaded by another team"):
        db.execute(statement)
    (found,) = find(db)
    assert (found.severity, found.what, found.where) == ("notice", "guard-waived", "public.part")
    assert "loaded by another team" in found.message


@pytest.mark.parametrize("guard", [True, False])
def test_tables_that_never_had_a_guard(engine: Engine, guard: bool) -> None:
    db = open_logged(engine, Base)
    log = Oplog(db.log.catalog, plaintext=True, guard=guard)
    severity = "problem" if guard else "notice"
    assert set(brief(find(db, log))) == {
        (severity, "guard-missing", f"public.{name}") for name in TABLES
    }


def test_a_partition_made_later(db: LoggedDatabase) -> None:
    db.execute("CREATE TABLE reading_3 PARTITION OF reading FOR VALUES IN (3)")
    (found,) = find(db)
    assert (found.severity, found.what) == ("problem", "guard-partition")
    assert found.where == "public.reading_3"
    assert "op.track_tables('reading')" in found.hint
    track(db.engine, TABLES["reading"])
    assert find(db) == []


def test_a_guarded_table_that_the_catalog_lacks(db: LoggedDatabase) -> None:
    db.execute("CREATE SCHEMA audit", "CREATE TABLE audit.other (id int PRIMARY KEY)")
    db.execute(*track_statements(["audit.other"]))
    (found,) = find(db)
    assert brief([found]) == [("notice", "guard-undeclared", "audit.other")]
    assert "op.untrack_tables('other', schema='audit', reason=...)" in found.hint


# -- tables and types -----------------------------------------------------------------------------

DRIFTS = {
    "column added": ("ALTER TABLE part ADD COLUMN extra text", "column extra is new"),
    "column retyped": (
        "ALTER TABLE bin ALTER COLUMN label TYPE varchar(40)",
        "column label is character varying(40), was character varying",
    ),
    "column dropped": ("ALTER TABLE part DROP COLUMN note CASCADE", "column note is gone"),
    "column renamed": (
        "ALTER TABLE bin RENAME COLUMN label TO name",
        "column label is called name now",
    ),
    "column not capturable": ("ALTER TABLE part ADD COLUMN price money", "money"),
    "primary key changed": (
        "ALTER TABLE setting DROP CONSTRAINT setting_pkey, ADD PRIMARY KEY (name, value)",
        "primary key",
    ),
    "made a view": (
        "ALTER TABLE setting RENAME TO kept; CREATE VIEW setting AS SELECT * FROM kept",
        "not a table",
    ),
}


@pytest.mark.parametrize(("statement", "told"), DRIFTS.values(), ids=DRIFTS.keys())
def test_ddl_that_went_by(db: LoggedDatabase, statement: str, told: str) -> None:
    if "ADD PRIMARY KEY" in statement:
        db.execute("ALTER TABLE setting ALTER COLUMN value TYPE jsonb")
    db.execute(statement)
    found = [f for f in find(db) if told in f.message and f.what == "table-differs"]
    assert [f.severity for f in found] == ["problem"]
    assert found[0].where in {"public.part", "public.bin", "public.setting"}


def test_ddl_that_the_log_has_learnt_of(db: LoggedDatabase) -> None:
    db.execute("ALTER TABLE part ADD COLUMN extra text")
    db.log.refresh()
    with db.sessions.begin() as session:
        session.get_one(Part, 1).note = "x"
    # That the models do not have it yet is worth knowing, and no more.
    assert brief(find(db)) == [("notice", "models-behind", "public.part")]


def test_a_table_that_is_gone(db: LoggedDatabase) -> None:
    db.execute("DROP TABLE setting")
    assert ("problem", "table-missing", "setting") in brief(find(db))


def test_types_of_tables_that_are_gone_or_not_declared(db: LoggedDatabase) -> None:
    part_only = sa.MetaData()
    TABLES["part"].to_metadata(part_only)
    log = Oplog(TypeCatalog.from_models(part_only), keyring=db.log.keyring)
    db.execute("DROP TABLE setting")
    found = brief(find(db, log))
    assert ("problem", "type-table-missing", "public.setting") in found
    assert ("notice", "type-undeclared", "public.bin") in found
    assert not any(where == "public.part" for _, _, where in found)


# -- traces ---------------------------------------------------------------------------------------


def write_unattached(db: LoggedDatabase, statement: str) -> None:
    """As another program would: the engine that the sessions share is a logged one."""
    administer(db.engine.url, f"BEGIN; {statement}; COMMIT")


def test_bypassed_transactions(db: LoggedDatabase) -> None:
    for reason in ("first", "second night"):
        write_unattached(
            db,
            f"SET LOCAL oplog.bypass = '{reason}'; UPDATE part SET stock = stock + 1 WHERE id < 3",
        )
    (found,) = find(db)
    assert (found.severity, found.what) == ("notice", "bypassed")
    assert "2 transactions" in found.message
    assert "public.movement (2 rows), public.part (2 rows)" in found.message
    assert "'second night'" in found.message
    with db.engine.connect() as connection:
        role = connection.exec_driver_sql("SELECT session_user::text").scalar()
    assert found.where == f"role {role}"


def test_images_that_nobody_collected(db: LoggedDatabase) -> None:
    # Armed by hand: the check of COMMIT is not queued by the rows that come after.
    armed = "SELECT oplog.oplog_arm(); UPDATE part SET sku = sku || '!'"
    with pytest.raises(sa.exc.DBAPIError, match="does not log them"):
        write_unattached(db, armed)
    # Only an owner of the log takes away the check of the images themselves.
    db.execute("ALTER TABLE oplog.oplog_image DISABLE TRIGGER oplog_image_collected")
    (found,) = find(db)
    assert brief([found]) == [
        ("problem", "log-trigger-disabled", "oplog.oplog_image trigger oplog_image_collected")
    ]
    write_unattached(db, armed)
    db.execute("ALTER TABLE oplog.oplog_image ENABLE ALWAYS TRIGGER oplog_image_collected")
    (found,) = find(db)
    assert brief([found]) == [("problem", "images-left", "part")]
    assert "3 changed rows" in found.message
    with db.engine.connect() as connection:
        assert not db.log.verify(connection).ok


def test_a_guard_without_its_check_refuses(db: LoggedDatabase) -> None:
    db.execute("ALTER TABLE part DISABLE TRIGGER oplog_guard_armed")
    with pytest.raises(sa.exc.DBAPIError, match="oplog_guard_armed is missing or disabled"):
        write_unattached(db, "UPDATE part SET sku = sku || '!'")


# -- premises: settings, owners, rights -----------------------------------------------------------


@pytest.fixture
def other_role(engine: Engine, server_url: URL) -> Iterator[str]:
    """A role that may log in and nothing else."""
    role = f"oplog_app_{uuid4().hex[:8]}"
    administer(server_url, f"CREATE ROLE {role} LOGIN")
    yield role
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role} CASCADE")
    administer(server_url, f"DROP ROLE {role}")


def premises(db: LoggedDatabase, *statements: str) -> list[tuple[str, str, str]]:
    with db.engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        found = db.log.diagnose(connection)
    return brief([f for f in found if f.what in {*PREMISES, "owner-differs"}])


@pytest.mark.parametrize(
    ("setting", "weak", "strong", "severity"),
    [
        ("synchronous_commit", "off", "local", "problem"),
        ("session_replication_role", "replica", "origin", "problem"),
        ("idle_in_transaction_session_timeout", "0", "30s", "notice"),
    ],
)
def test_weak_settings_of_the_session(
    db: LoggedDatabase, setting: str, weak: str, strong: str, severity: str
) -> None:
    found = (severity, "setting", setting)
    assert found in premises(db, f"SET LOCAL {setting} = '{weak}'")
    assert found not in premises(db, f"SET LOCAL {setting} = '{strong}'")


def test_weak_settings_of_another_role(
    db: LoggedDatabase, server_url: URL, other_role: str
) -> None:
    administer(server_url, f"ALTER ROLE {other_role} SET synchronous_commit = off")
    found = ("problem", "setting", f"synchronous_commit of role {other_role}")
    assert found in premises(db)
    administer(server_url, f"ALTER ROLE {other_role} SET synchronous_commit = on")
    assert found not in premises(db)


def test_an_encoding_that_holds_less(server_url: URL) -> None:
    name = f"oplog_test_{uuid4().hex[:12]}"
    administer(
        server_url, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )
    engine = sa.create_engine(server_url.set(database=name), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            install_log(connection)
            found = Oplog(TypeCatalog(), plaintext=True).diagnose(connection)
    finally:
        administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")
    assert ("problem", "setting", "server_encoding") in brief(found)


def test_owners(db: LoggedDatabase, other_role: str) -> None:
    with db.engine.connect() as connection:
        me = connection.exec_driver_sql("SELECT current_user::text").scalar()
    assert ("notice", "owner-connected", f"role {me}") in premises(db)
    give = f"ALTER FUNCTION oplog.oplog_guard_check() OWNER TO {other_role}"
    assert ("problem", "owner-differs", "schema oplog") in premises(db, give)
    schema = f"ALTER SCHEMA oplog OWNER TO {other_role}"
    assert ("notice", "owner-differs", "schema oplog") in premises(db, schema)


def test_a_role_that_may_not_look(db: LoggedDatabase, other_role: str) -> None:
    with db.engine.connect() as connection:
        connection.exec_driver_sql(f"SET LOCAL ROLE {other_role}")
        found = db.log.diagnose(connection)
        assert ("problem", "log-unreadable", "schema oplog") in brief(found)
        connection.rollback()
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA oplog TO {other_role}")
        connection.exec_driver_sql(f"GRANT SELECT ON oplog.oplog_type TO {other_role}")
        connection.exec_driver_sql(f"SET LOCAL ROLE {other_role}")
        found = [f for f in db.log.diagnose(connection) if f.what not in PREMISES]
    assert {f.severity for f in found} == {"notice"}
    unreadable = {f.where for f in found if f.what == "log-unreadable"}
    assert "oplog.oplog_image" in unreadable
    assert "oplog.oplog_type" not in unreadable


# -- the command ----------------------------------------------------------------------------------


def test_doctor(tmp_path: Path, database_url: URL) -> None:
    shop = open_shop(tmp_path, database_url)
    shop.fill()
    shop.execute(*track_statements(["account", "line"]))
    shop.execute("ALTER TABLE account DISABLE TRIGGER oplog_guard_armed")
    document = shop.ask("doctor", code=3)
    assert document["ok"] is False
    assert document["problems"] + document["notices"] == len(document["findings"])
    (found,) = [f for f in document["findings"] if f["what"] not in PREMISES]
    assert found["what"] == "guard-disabled"
    assert set(found) == {"severity", "what", "where", "message", "hint"}
    out, _ = shop.call("doctor", code=3)
    assert "problem  public.account trigger oplog_guard_armed  guard-disabled" in out
    assert max(map(len, out.splitlines())) <= 100
