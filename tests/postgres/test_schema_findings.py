"""Changes of tables that the log does not know yet: what doctor, check, sync and snapshot say."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine

from oplog import Archive
from oplog.errors import SchemaDriftError
from tests.postgres.archived import open_memory
from tests.postgres.builds import BASE, MOVE, REPLACE, SWAP, Build, declare, open_first

pytestmark = pytest.mark.postgres

REWRITE = "ALTER TABLE acct ADD COLUMN c int DEFAULT (random() * 100)::int"
PROVEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "renamed": ("ALTER TABLE acct RENAME a TO z", ("id int", "z int", "b text", "kind mood")),
    "names swapped": (SWAP, ("id int", "b int", "a text", "kind mood")),
    "added again": (
        "ALTER TABLE acct DROP COLUMN a; ALTER TABLE acct ADD COLUMN a int",
        ("id int", "b text", "kind mood", "a int"),
    ),
    "moved": (MOVE, BASE),
    "a label renamed": ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", BASE),
}


@pytest.fixture
def first(engine: Engine) -> Build:
    return open_first(engine)


@pytest.fixture
def archive(first: Build) -> Archive:
    archive = open_memory()
    first.log.sync(first.engine, archive)
    return archive


def list_codes(build: Build) -> list[str]:
    return sorted(what for severity, what, _ in build.diagnose() if severity == "problem")


def list_schema_problems(build: Build, archive: Archive, *, alone: bool = False) -> list[str]:
    """Messages of `check`, which must have no other problems."""
    report = build.log.check(archive, None if alone else build.engine)
    assert {problem.what.value for problem in report.problems} <= {"schema"}
    assert report.ok == (not report.problems)
    return [problem.message for problem in report.problems]


@pytest.mark.parametrize("name", PROVEN)
def test_what_the_database_proves_stops_no_publishing(
    first: Build, archive: Archive, name: str
) -> None:
    ddl, columns = PROVEN[name]
    first.run(ddl)
    build = first.build(declare(*columns, schema="books" if ddl == MOVE else None))
    assert list_codes(build) == ["table-differs"]
    # An archive of now cannot be restored into the tables of now: it does not know them.
    (message,) = list_schema_problems(build, archive)
    assert "oplog types sync" in message
    assert list_schema_problems(build, archive, alone=True) == []
    assert build.log.sync(build.engine, archive).problems == ()
    if name != "moved":
        with pytest.raises(SchemaDriftError, match=r"public\.acct") as refused:
            build.log.snapshot(build.engine, archive)
        assert "oplog types sync" in refused.value.hint
    build.sync()
    assert list_codes(build) == []
    build.log.sync(build.engine, archive)
    assert build.log.snapshot(build.engine, archive).problems == ()
    assert list_schema_problems(build, archive) == []
    assert list_schema_problems(build, archive, alone=True) == []


def test_a_writer_notes_it_too(first: Build, archive: Archive) -> None:
    ddl, columns = PROVEN["renamed"]
    first.run(ddl)
    build = first.build(declare(*columns))
    build.write("INSERT INTO acct VALUES (3, 31, '32', 'sad')")
    assert list_codes(build) == []
    assert build.log.sync(build.engine, archive).problems == ()
    assert list_schema_problems(build, archive) == []


@pytest.mark.parametrize("noted", [False, True])
def test_rows_that_are_still_to_be_logged(first: Build, archive: Archive, noted: bool) -> None:
    first.run(REWRITE)
    build = first.build(declare(*BASE, "c int"))
    if noted:
        build.give_up()
    expected = ["change-unfinished"] if noted else ["change-unfinished", "table-differs"]
    assert list_codes(build) == expected
    synced = build.log.sync(build.engine, archive)
    assert [problem.what for problem in synced.problems] == ["change-unfinished"]
    assert "oplog types sync" in synced.problems[0].hint
    # What is new is off-site all the same; a snapshot would have another shape than the log.
    with pytest.raises(
        SchemaDriftError, match=r"public\.acct: a migration wrote c anew"
    ) as refused:
        build.log.snapshot(build.engine, archive)
    assert "oplog types sync" in refused.value.hint
    assert not archive.read_head().snapshots
    assert any("wrote c anew" in one for one in list_schema_problems(build, archive))
    # An archive shows it once the revision is in it.
    alone = list_schema_problems(build, archive, alone=True)
    assert [("wrote c anew" in one, "oplog sync" in one) for one in alone] == [(True, True)] * noted
    build.sync()
    assert list_codes(build) == []
    assert build.log.sync(build.engine, archive).problems == ()
    assert build.log.snapshot(build.engine, archive).taken
    assert list_schema_problems(build, archive) == []
    assert list_schema_problems(build, archive, alone=True) == []


UNPROVEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "another table with rows": (REPLACE, BASE),
    "another key": (
        "ALTER TABLE acct DROP CONSTRAINT acct_pkey; ALTER TABLE acct ADD PRIMARY KEY (a)",
        ("a int", "id int", "b text", "kind mood"),
    ),
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_the_database_does_not_prove(first: Build, archive: Archive, name: str) -> None:
    ddl, columns = UNPROVEN[name]
    first.run(ddl)
    build = first.build(declare(*columns))
    assert "table-replaced" in list_codes(build)
    (problem,) = build.log.sync(build.engine, archive).problems
    assert problem.what == "table-replaced"
    assert "op.replace_type('acct', reason=...)" in problem.hint
    assert any("op.replace_type" in one for one in list_schema_problems(build, archive))
    with build.engine.connect() as connection:
        build.log.replace_type(connection, "acct", reason="as the hint says")
    assert "table-replaced" not in list_codes(build)
    assert build.log.sync(build.engine, archive).problems == ()
    assert build.log.snapshot(build.engine, archive).taken
    assert list_schema_problems(build, archive) == []
    assert list_schema_problems(build, archive, alone=True) == []


def test_a_table_that_was_emptied_by_another_one(first: Build, archive: Archive) -> None:
    first.run("DROP TABLE acct; CREATE TABLE acct (id int PRIMARY KEY, a int, b text, kind mood)")
    (problem,) = first.log.sync(first.engine, archive).problems
    assert problem.what == "type-table-missing"
    assert "begins anew" in problem.hint
    first.sync()
    assert "type-table-missing" not in list_codes(first)
    assert first.check().ok


def test_an_archive_whose_first_records_are_gone_says_nothing(
    first: Build, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark that ends a change may be among them."""
    first.run(REWRITE)
    build = first.build(declare(*BASE, "c int"))
    build.give_up()
    build.log.sync(build.engine, archive)
    assert list_schema_problems(build, archive, alone=True)
    monkeypatch.setattr("oplog.archive.archived_log.ArchivedLog.whole", False)
    assert list_schema_problems(build, archive, alone=True) == []
