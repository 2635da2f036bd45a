"""Records of a migration name its revision, whatever wrote them and whenever they commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from oplog import Keyring, Oplog, context
from oplog.errors import MissingMetadataError
from tests.postgres.revisions import START, Project

pytestmark = pytest.mark.postgres

FILL = """
op.add_column("acct", sa.Column("kind", sa.Text))
op.execute("UPDATE acct SET kind = 'personal'")
op.alter_column("acct", "kind", nullable=False)
op.execute("UPDATE acct SET name = lower(name) WHERE id = 1")
"""
EMPTY = """
op.execute("DELETE FROM acct WHERE id = 2")
op.drop_column("acct", "kind")
"""


@pytest.fixture
def project(tmp_path: Path, database_url: URL) -> Iterator[Project]:
    project = Project(tmp_path, database_url)
    yield project
    project.engine.dispose()


def tell(project: Project) -> list[tuple[str, str | None, str | None]]:
    """Kind and key of each operation, the revision, and the direction; each at its first time."""
    with project.engine.connect() as connection:
        found = [
            (
                f"{operation.kind.name} {operation.key['id']}",
                entry.metadata.get("revision", (None,))[0],
                entry.metadata.get("migration", (None,))[0],
            )
            for entry in project.log.read(connection)
            for operation in entry.operations
        ]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("per_migration", [False, True], ids=["one transaction", "each its own"])
def test_each_record_names_the_revision_it_is_of(project: Project, per_migration: bool) -> None:
    project.per_migration = per_migration
    project.add(START)
    project.add(FILL, downgrade=EMPTY)
    project.add("op.execute(\"INSERT INTO acct VALUES (9, 'nine', 'business')\")")
    project.upgrade()
    project.downgrade("1")
    assert tell(project) == [
        *((f"CREATE {n}", "1", "upgrade") for n in range(3)),
        *((f"UPDATE {n}", "2", "upgrade") for n in range(3)),
        ("CREATE 9", "3", "upgrade"),
        ("DELETE 2", "2", "downgrade"),
    ]
    with project.engine.connect() as connection:
        assert project.log.verify(connection).ok


def test_what_the_environment_says_is_there_too(project: Project) -> None:
    project.log = Oplog(project.log.catalog, keyring=Keyring.generate(), require=("actor",))
    project.options["oplog"] = project.log
    project.add(START)
    with pytest.raises(MissingMetadataError, match="says nothing of actor"):
        project.upgrade()
    assert sa.inspect(project.engine).get_table_names() == []
    with context(actor="deploy", revision="not this"):
        project.upgrade()
    with project.engine.connect() as connection:
        said = [dict(entry.metadata) for entry in project.log.read(connection)]
    whole = {"actor": ["deploy"], "migration": ["upgrade"], "revision": ["1"]}
    assert said == [whole] * 3


def test_rows_that_are_adopted_in_a_revision(project: Project) -> None:
    project.add(
        """
op.create_table("acct", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
op.execute("INSERT INTO acct VALUES (1)")
"""
    )
    project.add('op.track_tables("acct"); op.adopt_table("acct")')
    project.upgrade()
    assert tell(project) == [("CREATE 1", "2", "upgrade")]


def test_afterwards_nothing_is_in_force(project: Project) -> None:
    project.add(START)
    project.add("raise InterruptedError('in the middle')")
    with pytest.raises(InterruptedError):
        project.upgrade()
    project.upgrade("1")
    with project.engine.begin() as connection:
        project.log.adopt(connection, ["acct"], again=True)
        said = [dict(entry.metadata) for entry in project.log.read(connection)][-1]
    assert "revision" not in said
