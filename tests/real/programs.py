"""Programs that are run with a log attached from outside: what to install, what to test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shipped:
    """Tests in the source distribution, run in its directory."""

    paths: tuple[str, ...]
    """Arguments for pytest: files, and which of their tests."""
    requirements: tuple[str, ...] = ()
    replaced: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Texts of files that name a server; `{host}` is the directory of its socket."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment; `{url}` is filled in."""
    moved: bool = False
    """They use SQLite, and are run on PostgreSQL instead."""
    noticing: tuple[str, ...] = ()
    """Tests that no attached log passes: they ask for listeners, count statements, or replace
    parts of SQLAlchemy. The report names them, and they are no failure."""
    dburi: bool = False
    """SQLAlchemy's own suite is told its database by an option."""
    extensions: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """One program. What it does is in `tests/real/works`, in the module of its name."""

    name: str
    requirements: tuple[str, ...]
    distribution: str
    work: str = ""
    """What the module does, in a few words; nothing if there is none."""
    shipped: Shipped | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Module with `prepare(url)` and `work(url)`."""
        return f"tests.real.works.{self.name.replace('-', '_')}_work"


PYTEST = ("pytest", "pytest-timeout")
ALL = (
    Program(
        "optuna",
        ("optuna",),
        "optuna",
        "79 trials in three studies, one of them by threads: pruned, failed, deleted",
        Shipped(
            ("tests/storages_tests/rdb_tests",),
            moved=True,
        ),
    ),
    Program(
        "advanced-alchemy",
        # It does not know SQLAlchemy 2.1 yet.
        ("advanced-alchemy", "sqlalchemy<2.1"),
        "advanced-alchemy",
        "repositories and services, blocking and async: add, upsert, update and delete of many",
        Shipped(("tests/integration", "-k", "sqlite"), ("pytest-databases",), moved=True),
    ),
    Program(
        "flask-sqlalchemy",
        ("flask-sqlalchemy",),
        "flask-sqlalchemy",
        "requests of an application that add, update, page and delete",
        Shipped(("tests",), moved=True),
    ),
    Program(
        "apscheduler",
        ("apscheduler>=3,<4", "sqlalchemy"),
        "apscheduler",
        "jobs of a running scheduler: added, run, moved, paused, replaced, removed",
        Shipped(("tests/test_jobstores.py", "-k", "sqlalchemy"), ("pytz",), moved=True),
    ),
    Program(
        "mlflow",
        ("mlflow",),
        "mlflow",
        "experiments, runs, metrics in batches and registered models, by threads",
        variables={"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
    ),
    Program(
        "dbos",
        ("dbos",),
        "dbos",
        "workflows with steps, queues, events, messages, forks",
        Shipped(
            (
                "tests/test_dbos.py",
                "tests/test_queue.py",
                "tests/test_workflow_management.py",
                "tests/test_async.py",
            ),
            ("pytest-asyncio", "pytest-mock", "opentelemetry-sdk", "requests"),
            {
                "tests/conftest.py": {
                    "@localhost:5432/": "@/",
                    '_dbos_sys"': '_dbos_sys?host={host}"',
                }
            },
        ),
    ),
    Program(
        "sqlalchemy-continuum",
        ("sqlalchemy-continuum",),
        "sqlalchemy-continuum",
        "versioned articles with tags: changed, deleted, reverted",
        Shipped(
            ("tests",),
            ("flask", "flask-login", "flask-sqlalchemy", "sqlalchemy-utils", "sqlalchemy-i18n"),
            variables={"DB": "postgres", "DATABASE_URL": "{url}"},
        ),
    ),
    Program(
        "fastapi-users",
        ("fastapi-users-db-sqlalchemy",),
        "fastapi-users-db-sqlalchemy",
        "users, their OAuth accounts and access tokens, on an async engine",
        Shipped(
            ("tests", "-o", "asyncio_mode=auto"),
            ("pytest-asyncio",),
            variables={"DATABASE_URL": "{url}"},
        ),
    ),
    Program(
        "celery",
        ("celery[sqlalchemy]",),
        "celery",
        "results of tasks and groups, by threads and forked processes",
        Shipped(("t/unit/backends/test_database.py",), ("pytest-subtests",), moved=True),
    ),
    Program(
        "sqlalchemy",
        ("sqlalchemy[asyncio]",),
        "sqlalchemy",
        "",
        Shipped(
            # A tenth of its tests for sessions, engines and PostgreSQL; all take hours. `--tests`
            # has others run.
            (
                "test/orm/test_unitofwork.py",
                "test/orm/test_unitofworkv2.py",
                "test/orm/test_session.py",
                "test/orm/test_transaction.py",
                "test/orm/test_naturalpks.py",
                "test/orm/test_versioning.py",
                "test/orm/test_defaults.py",
                "test/orm/test_cycles.py",
                "test/orm/dml",
                "test/engine/test_execute.py",
                "test/engine/test_transaction.py",
                "test/dialect/postgresql/test_query.py",
                "test/dialect/postgresql/test_on_conflict.py",
            ),
            noticing=(
                "test_add_event_after_connect",
                "test_connection_clslevel_events[not_engine_has_events]",
                "test_force_conn_events_false",
                "test_generative_engine_event_dispatch_hasevents",
                "test_clientsql_insert_defaults_nonpresent",
                "test_server_insert_defaults_nonpresent",
                "test_update_defaults_present",
                "test_no_update_no_change",
                "test_bumped_version_id_on_delete",
                "test_bumped_version_id_on_update",
                "test_update_multi_missing_broken_multi_rowcount",
            ),
            dburi=True,
            extensions=("hstore", "citext", "btree_gist"),
            schemas=("test_schema", "test_schema_2"),
        ),
    ),
)
BY_NAME = {one.name: one for one in ALL}
