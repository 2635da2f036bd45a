"""Rows that are logged and that a restore will refuse: said long before it."""

from __future__ import annotations

import warnings

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import RestoreWarning
from tests.postgres.archived import open_memory

pytestmark = pytest.mark.postgres


def declare(*columns: sa.Column[object]) -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table("country", metadata, sa.Column("id", sa.Integer, primary_key=True))
    sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True), *columns)
    return metadata


def attach(metadata: sa.MetaData, engine: Engine, **options: dict[str, str]) -> Oplog:
    catalog = TypeCatalog.from_models(metadata, **options)
    log = Oplog(catalog, keyring=Keyring.generate())
    log.attach(sessionmaker(engine))
    return log


EXCLUDED = {"exclude": {"users.secret": "not for the log"}}
UNTRACKED = {"untracked": {"country": "reference data"}}


def refer() -> sa.Column[object]:
    return sa.Column("country_id", sa.Integer, sa.ForeignKey("country.id"))


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (
            sa.Column("secret", sa.Text, nullable=False),
            EXCLUDED,
            r"users\.secret is excluded from the log, may not be NULL and has no server default",
        ),
        (refer(), UNTRACKED, "users refers to country, which is not logged"),
    ],
)
def test_attach_warns(
    engine: Engine, column: sa.Column[object], options: dict[str, dict[str, str]], message: str
) -> None:
    with pytest.warns(RestoreWarning, match=message):
        attach(declare(column), engine, **options)


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (sa.Column("secret", sa.Text), EXCLUDED),
        (sa.Column("secret", sa.Text, nullable=False, server_default=""), EXCLUDED),
        (sa.Column("secret", sa.Integer, sa.Identity()), EXCLUDED),
        (refer(), {}),
    ],
)
def test_attach_does_not_warn_of_what_works(
    engine: Engine, column: sa.Column[object], options: dict[str, dict[str, str]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(declare(column), engine, **options)


def test_a_reference_to_models_that_are_not_here_is_left_to_doctor(engine: Engine) -> None:
    metadata = declare(sa.Column("other_id", sa.Integer, sa.ForeignKey("other.id")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(metadata, engine)


@pytest.mark.parametrize(
    ("ddl", "options", "where"),
    [
        ("secret text NOT NULL", EXCLUDED, ("restore-excluded", "public.users.secret")),
        (
            "country_id int REFERENCES country",
            UNTRACKED,
            ("restore-reference", "public.users"),
        ),
    ],
)
def test_doctor_and_check_report_it(
    engine: Engine, ddl: str, options: dict[str, dict[str, str]], where: tuple[str, str]
) -> None:
    name, kind = ddl.split()[:2]
    metadata = declare(sa.Column(name, sa.Text if kind == "text" else sa.Integer))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE country (id int PRIMARY KEY)")
        connection.exec_driver_sql(f"CREATE TABLE users (id int PRIMARY KEY, {ddl})")
    log = attach(metadata, engine, **options)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    with sessions.begin() as session:
        row = {"id": 1} if kind == "int" else {"id": 1, "secret": "x"}
        session.execute(metadata.tables["users"].insert().values(row))
    with engine.connect() as connection:
        found = [f for f in log.diagnose(connection) if f.what.startswith("restore-")]
    assert [(f.what, f.where, f.severity) for f in found] == [(*where, "problem")]
    archive = open_memory()
    # A restore elsewhere may fill what is missing: publishing goes on without a word.
    assert log.sync(engine, archive).problems == ()
    report = log.check(archive, engine)
    assert [problem.what for problem in report.problems] == ["schema"]
    assert found[0].message in report.problems[0].message
    assert log.check(archive).ok
