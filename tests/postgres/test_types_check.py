"""What a build's models change for a log, asked before the deploy: read from real databases."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import URL, Engine

import oplog.migration
from oplog import Keyring, Oplog, TypeCatalog, TypesCheckReport
from oplog.errors import SchemaVersionError
from oplog.schema.tables import create_statements
from tests.logged import track
from tests.models.messages import make_message
from tests.postgres.builds import (
    BASE,
    MOVE,
    REPLACE,
    SWAP,
    Build,
    add_table,
    declare,
    open_first,
)
from tests.postgres.roles import APPLICATION, AUDITOR, CONSUMER, OWNER, WORKER, Roles, open_roles
from tests.postgres.shop import Shop, open_shop

pytestmark = pytest.mark.postgres


def brief(report: TypesCheckReport) -> list[tuple[str, str, str, bool]]:
    return [(c.type_name, c.kind.value, c.column, c.breaks) for c in report.changes]


@pytest.fixture
def first(engine: Engine) -> Build:
    return open_first(engine)


def test_nothing_changes(first: Build) -> None:
    assert first.check() == TypesCheckReport()
    assert first.check().ok


def test_a_log_without_types(engine: Engine) -> None:
    build = Build(engine, Keyring.generate(), declare("id int"))
    report = build.check()
    assert brief(report) == [("acct", "added", "", False)]
    assert "does not have its table acct yet" in report.changes[0].message
    assert report.ok
    build.run("CREATE TABLE acct (id int PRIMARY KEY)")
    assert "database" not in build.check().changes[0].message


def test_no_log(bare_database_url: URL) -> None:
    engine = sa.create_engine(bare_database_url)
    with pytest.raises(SchemaVersionError):
        Build(engine, Keyring.generate(), declare("id int")).check()
    engine.dispose()


MIGRATIONS: dict[str, tuple[str, tuple[str, ...], list[tuple[str, str, bool]], list[str]]] = {
    # DDL, the columns of the next models, what the check says, and what doctor says.
    "a column with a value": (
        "ALTER TABLE acct ADD COLUMN c int DEFAULT 5",
        (*BASE, "c int"),
        [("added", "c", False)],
        ["table-differs"],
    ),
    "a column with a value for each row": (
        "ALTER TABLE acct ADD COLUMN c int DEFAULT (random() * 100)::int",
        (*BASE, "c int"),
        [("refill", "", True), ("added", "c", False)],
        ["change-unfinished", "table-differs"],
    ),
    "a column dropped": (
        "ALTER TABLE acct DROP COLUMN b",
        ("id int", "a int", "kind mood"),
        [("dropped", "b", True)],
        ["table-differs"],
    ),
    "a column renamed": (
        "ALTER TABLE acct RENAME a TO z",
        ("id int", "z int", "b text", "kind mood"),
        [("renamed", "z", False)],
        ["table-differs"],
    ),
    "two names swapped": (
        SWAP,
        ("id int", "b int", "a text", "kind mood"),
        [("renamed", "b", False), ("renamed", "a", False)],
        ["table-differs"],
    ),
    "dropped and added again": (
        "ALTER TABLE acct DROP COLUMN a; ALTER TABLE acct ADD COLUMN a int",
        BASE,
        [("dropped", "a", True), ("added", "a", False)],
        ["table-differs"],
    ),
    "a wider type": (
        "ALTER TABLE acct ALTER a TYPE bigint",
        ("id int", "a bigint", "b text", "kind mood"),
        [("refill", "", True), ("converted", "a", False)],
        ["change-unfinished", "table-differs"],
    ),
    "a longer text": (
        "ALTER TABLE acct ALTER b TYPE varchar",
        BASE,
        [("converted", "b", False)],
        ["table-differs"],
    ),
    "a type of another kind": (
        "ALTER TABLE acct ALTER a TYPE text USING a || ' pieces'",
        ("id int", "a text", "b text", "kind mood"),
        [("converted", "a", True), ("refill", "", True)],
        ["change-unfinished", "table-differs"],
    ),
    "values converted in place": (
        "ALTER TABLE acct ALTER b TYPE text USING b || '!'",
        BASE,
        [("refill", "", True)],
        ["change-unfinished"],
    ),
    "a label renamed": (
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        BASE,
        [("relabelled", "kind", False)],
        ["table-differs"],
    ),
    "the key replaced": (
        "ALTER TABLE acct DROP CONSTRAINT acct_pkey; ALTER TABLE acct ADD PRIMARY KEY (a)",
        ("a int", "id int", "b text", "kind mood"),
        [("key", "", True)],
        ["table-replaced"],
    ),
    "the key converted": (
        "ALTER TABLE acct ALTER id TYPE text",
        ("id text", "a int", "b text", "kind mood"),
        [("converted", "id", True), ("refill", "", True)],
        ["change-unfinished", "table-differs"],
    ),
    "another table with rows": (
        REPLACE,
        BASE,
        [("replaced", "", True)],
        ["table-replaced"],
    ),
    "another table without rows": (
        "DROP TABLE acct; CREATE TABLE acct (id int PRIMARY KEY, a int, b text, kind mood)",
        BASE,
        [("replaced", "", False)],
        ["type-table-missing"],
    ),
    "a table moved": (
        MOVE,
        BASE,
        [("moved", "", False), ("regrouped", "", False)],
        ["table-differs"],
    ),
    "written anew without a change": ("ALTER TABLE acct SET (fillfactor = 50)", BASE, [], []),
}
UNPROVEN = {"the key replaced", "another table with rows"}


@pytest.mark.parametrize("name", MIGRATIONS)
def test_a_migration_that_nobody_noted(first: Build, name: str) -> None:
    ddl, columns, expected, codes = MIGRATIONS[name]
    first.run(ddl)
    build = first.build(declare(*columns, schema="books" if ddl == MOVE else None))
    assert sorted(brief(build.check())) == sorted(("acct", *one) for one in expected)
    found = [one for one in build.diagnose() if not one[1].startswith("guard-")]
    assert sorted(what for _, what, _ in found) == sorted(codes)
    assert {severity for severity, _, _ in found} <= {"problem"}
    if name in UNPROVEN:
        return
    # Once it is noted, nothing is left to say.
    build.sync()
    assert build.check() == TypesCheckReport()
    assert [one for one in build.diagnose() if not one[1].startswith("guard-")] == []


@pytest.mark.parametrize("name", sorted(UNPROVEN))
def test_what_is_not_proven_is_said_by_the_line_of_the_hint(first: Build, name: str) -> None:
    ddl, columns, _, _ = MIGRATIONS[name]
    first.run(ddl)
    build = first.build(declare(*columns))
    (change,) = build.check().changes
    line = "op.replace_type('acct', reason=...)"
    assert line in change.hint
    with build.engine.connect() as connection:
        build.log.replace_type(connection, "acct", reason="as the hint says")
    assert build.check() == TypesCheckReport()
    assert [one for one in build.diagnose() if not one[1].startswith("guard-")] == []


def test_rows_of_a_noted_change_that_are_still_to_be_logged(first: Build) -> None:
    first.run("ALTER TABLE acct ADD COLUMN c int DEFAULT (random() * 100)::int")
    build = first.build(declare(*BASE, "c int"))
    build.give_up()
    report = build.check()
    assert brief(report) == [("acct", "refill", "", True)]
    assert "oplog types sync" in report.changes[0].hint
    assert build.diagnose() == [("problem", "change-unfinished", "public.acct")]
    build.sync()
    assert build.check().ok
    assert build.diagnose() == []


# -- before the migration ------------------------------------------------------------------------


def test_models_that_are_ahead_of_the_database(first: Build) -> None:
    models = declare(*BASE, "c int")
    add_table(models, "other", "id int")
    build = first.build(models)
    report = build.check()
    assert brief(report) == [("acct", "added", "c", False), ("other", "added", "", False)]
    assert report.ok
    assert all("run the migrations" in change.hint for change in report.changes)
    assert ("problem", "models-ahead", "public.acct") in build.diagnose()
    assert ("problem", "table-missing", "other") in build.diagnose()


def test_models_that_leave_out_what_is_logged(first: Build) -> None:
    build = first.build(declare("id int", "a int", "kind mood"))
    assert brief(build.check()) == [("acct", "dropped", "b", True)]
    assert build.diagnose() == [("notice", "models-behind", "public.acct")]
    build.log.catalog.downcast("acct", to_revision=1, step=lambda row: {**row, "b": ""})
    assert build.check().ok


def test_models_of_before(first: Build) -> None:
    first.run("ALTER TABLE acct RENAME a TO z")
    assert brief(first.check()) == [("acct", "behind", "a", True), ("acct", "renamed", "z", False)]
    assert ("problem", "models-ahead", "public.acct") in first.diagnose()
    first.run("ALTER TABLE acct RENAME TO ledger")
    assert ("acct", "regrouped", "", False) not in brief(first.check())
    assert ("acct", "behind", "", True) in brief(first.check())
    assert ("problem", "models-behind", "acct") in first.diagnose()


def test_a_table_that_the_models_do_not_have(first: Build) -> None:
    build = first.build(declare("id int", table="other"))
    first.run("CREATE TABLE other (id int PRIMARY KEY)")
    assert brief(build.check()) == [
        ("acct", "undeclared", "", False),
        ("other", "added", "", False),
    ]
    first.run("DROP TABLE acct")
    report = build.check()
    assert brief(report) == [("acct", "retired", "", False), ("other", "added", "", False)]
    assert ("problem", "type-table-missing", "public.acct") in build.diagnose()
    build.sync()
    assert build.check() == TypesCheckReport()
    assert "type-table-missing" not in [what for _, what, _ in build.diagnose()]


def test_a_name_that_another_table_has_now(first: Build) -> None:
    """The type goes on under the table's name of now; the other table is a new type."""
    first.run(
        "ALTER TABLE acct RENAME TO ledger;"
        "CREATE TABLE acct (id int PRIMARY KEY, a int, b text, kind mood)"
    )
    models = declare(*BASE)
    add_table(models, "ledger", *BASE)
    for build in (first, first.build(models)):
        found = brief(build.check())
        assert ("acct", "moved", "", False) in found
        assert ("acct", "added", "", False) in found
        assert build.check().ok


# -- restoring -----------------------------------------------------------------------------------


def test_what_a_restore_would_refuse(engine: Engine) -> None:
    metadata = sa.MetaData()
    sa.Table("country", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("country_id", sa.Integer, sa.ForeignKey("country.id")),
    )
    options = {
        "untracked": {"country": "reference data"},
        "exclude": {"users.secret": "not for the log"},
    }
    build = Build(engine, Keyring.generate(), metadata, **options)
    expected = [("users", "restore", "secret", True), ("users", "restore", "", True)]
    # By the models alone, and by the database.
    found = brief(build.check())
    assert [one[:2] for one in found if one[3]] == [one[:2] for one in expected]
    metadata.create_all(engine)
    found = brief(build.check())
    assert sorted(one for one in found if one[3]) == sorted(expected)
    build.run("ALTER TABLE users ALTER secret DROP NOT NULL")
    assert [one for one in brief(build.check()) if one[3]] == expected[1:]


def test_a_column_that_cannot_be_logged(first: Build) -> None:
    first.run("ALTER TABLE acct ADD COLUMN price money")
    report = first.check()
    assert brief(report) == [("acct", "refused", "", True)]
    assert "price" in report.changes[0].message
    assert ("problem", "table-differs", "public.acct") in first.diagnose()


# -- messages of the application's own -----------------------------------------------------------


def register(engine: Engine, keyring: Keyring, revision: int, **fields: int) -> Build:
    build = Build(engine, keyring, declare("id int", *(f"{name} int" for name in fields)))
    numbered = {"id": (1, "int64"), **{name: (n, "int64") for name, n in fields.items()}}
    build.log.catalog.register(
        "acct",
        build.models.tables["acct"],
        message=make_message(f"shop.Acct{revision}", numbered),
        revision=revision,
        aggregate="acct/{id}",
    )
    return build


@pytest.fixture
def own(engine: Engine) -> Build:
    build = register(engine, Keyring.generate(), 1, a=2, b=3)
    build.run("CREATE TABLE acct (id int PRIMARY KEY, a int, b int)")
    track(engine, *build.models.tables.values())
    build.write("INSERT INTO acct VALUES (1, 11, 12)")
    return build


def test_own_messages(own: Build) -> None:
    assert own.check() == TypesCheckReport()
    moved = register(own.engine, own.keyring, 2, a=3, b=2)
    assert sorted(one for one in brief(moved.check()) if one[3]) == [
        ("acct", "message", "a", True),
        ("acct", "message", "b", True),
        ("acct", "waiting", "", True),
    ]
    same = register(own.engine, own.keyring, 1, a=2)
    assert brief(same.check()) == [("acct", "dropped", "b", True)]
    own.run("ALTER TABLE acct ADD COLUMN c int")
    (waiting,) = own.check().changes
    assert (waiting.kind.value, waiting.breaks) == ("waiting", True)
    assert "raise the revision" in waiting.hint
    assert ("problem", "message-waiting", "public.acct") in own.diagnose()
    grown = register(own.engine, own.keyring, 2, a=2, b=3, c=4)
    report = grown.check()
    assert ("acct", "added", "c", False) in brief(report)
    assert report.ok
    other = register(own.engine, own.keyring, 2, a=2, c=4, d=3)
    assert ("acct", "message", "d", True) in brief(other.check())


def test_another_application_does_not_wait_for_a_message_that_fits(own: Build) -> None:
    other = Oplog(TypeCatalog(), plaintext=True)
    with own.engine.connect() as connection:
        assert [c.kind.value for c in other.check_types(connection).changes] == ["undeclared"]
        codes = [finding.what for finding in other.diagnose(connection)]
    assert "message-waiting" not in codes
    with own.engine.connect() as connection:
        assert other.note_changes(connection).waiting == []


# -- roles ---------------------------------------------------------------------------------------


@pytest.fixture
def roles(each_bare_database_url: URL) -> Iterator[Roles]:
    with open_roles(each_bare_database_url, create_statements()) as roles:
        sessions = roles.open_sessions()
        with sessions.begin() as session:
            session.execute(sa.text("INSERT INTO account (id, owner, balance) VALUES (1, 'a', 2)"))
        yield roles


@pytest.mark.parametrize("role", [AUDITOR, APPLICATION, WORKER, CONSUMER, OWNER])
def test_every_role_that_reads_may_ask(roles: Roles, role: str) -> None:
    with roles.engine(role).connect() as connection:
        report = roles.open_log().check_types(connection)
    assert report.ok
    assert {change.kind.value for change in report.changes} <= {"added"}
    roles.run(OWNER, "ALTER TABLE account ADD COLUMN extra int DEFAULT (random() * 9)::int")
    with roles.engine(role).connect() as connection:
        found = brief(roles.open_log().check_types(connection))
        codes = {finding.what for finding in roles.open_log().diagnose(connection)}
    assert ("account", "refill", "", True) in found
    assert {"change-unfinished", "table-differs", "models-behind"} <= codes


def test_a_role_that_only_selects_says_what_it_could_not_ask(roles: Roles) -> None:
    roles.run(OWNER, f"GRANT USAGE ON SCHEMA oplog TO {roles.names['stranger']}")
    roles.run(OWNER, f"GRANT SELECT ON ALL TABLES IN SCHEMA oplog TO {roles.names['stranger']}")
    roles.run(OWNER, "ALTER TABLE account RENAME owner TO holder")
    with roles.engine("stranger").connect() as connection:
        report = roles.open_log().check_types(connection)
        notices = [f.what for f in roles.open_log().diagnose(connection) if f.severity == "notice"]
    found = brief(report)
    assert ("account", "renamed", "holder", False) in found
    assert ("", "unknown", "", False) in found
    assert "change-unknown" in notices


def test_a_table_that_the_role_may_not_read(roles: Roles) -> None:
    """Whether it has rows is not known, so it is taken to have some."""
    roles.run(
        OWNER,
        "CREATE TABLE account2 AS SELECT * FROM account",
        "DROP TABLE account CASCADE",
        "ALTER TABLE account2 RENAME TO account",
        "ALTER TABLE account ADD PRIMARY KEY (id)",
    )
    for role in (AUDITOR, OWNER):
        with roles.engine(role).connect() as connection:
            found = brief(roles.open_log().check_types(connection))
        assert ("account", "replaced", "", True) in found


# -- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, database_url: URL) -> None:
    shop: Shop = open_shop(tmp_path, database_url)
    shop.fill()
    assert shop.ask("types", "check") == {"ok": True, "changes": []}
    assert shop.call("types", "check")[0] == "nothing changes\n"
    shop.execute("ALTER TABLE account ADD COLUMN extra int")
    assert shop.ask("types", "check")["ok"]
    shop.execute("ALTER TABLE account DROP COLUMN photo")
    document = shop.ask("types", "check", code=3)
    assert not document["ok"]
    assert {json.dumps(sorted(change)) for change in document["changes"]} == {
        json.dumps(["breaks", "column", "hint", "kind", "message", "type"])
    }
    kinds = [(one["kind"], one["column"], one["breaks"]) for one in document["changes"]]
    assert ("dropped", "photo", True) in kinds
    assert ("added", "extra", False) in kinds
    out, _ = shop.call("types", "check", code=3)
    assert "breaks  account.photo  dropped\n" in out
    assert "fine    account.extra  added\n" in out
    assert "hint: " in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_command_tries_steps(tmp_path: Path, database_url: URL) -> None:
    shop: Shop = open_shop(tmp_path, database_url)
    shop.fill()
    steps = shop.ask("types", "check", "--steps")["steps"]
    assert (steps["ok"], steps["converted"], steps["effects"]) == (True, 0, 5)
    assert "steps: 0 effects converted, 0 failed\n" in shop.call("types", "check", "--steps")[0]
    shop.execute("ALTER TABLE account ADD COLUMN extra int")
    shop.ask("types", "sync")
    with (tmp_path / "shop.py").open("a") as module:
        module.write("log.catalog.upcast('account', from_revision=1, step=lambda row: row['no'])\n")
    sys.modules.pop("shop", None)
    document = shop.ask("types", "check", "--steps", code=3)
    assert not document["ok"]
    assert document["steps"]["count"] == len(document["steps"]["failures"]) > 0
    out, _ = shop.call("types", "check", "--steps", code=3)
    assert "account of revision 1 does not read as revision 2" in out


def test_the_hints_of_a_migration_run(first: Build) -> None:
    """The operation of a migration that a hint names does what the check asks for."""
    build = first.build(declare(*BASE), untracked={"acct": "not logged any more"})
    (change,) = build.check().changes
    assert change.breaks
    assert "op.retire_type('acct', reason=...)" in change.hint
    with first.engine.begin() as connection:
        context = MigrationContext.configure(connection)
        operation = oplog.migration.RetireTypeOp(
            "acct", reason="as the hint says", log_schema="oplog"
        )
        Operations(context).invoke(operation)
    assert build.check() == TypesCheckReport()
