"""Applications whose published migrations are walked: what to install, where the scripts are."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection


@dataclass(frozen=True)
class Application:
    """One history. `scripts` and `versions` are directories inside an installed package."""

    name: str
    requirements: tuple[str, ...]
    distribution: str
    package: str
    scripts: str
    versions: str = ""
    head: str = "heads"
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment of the process; `{url}` and `{home}` are filled in."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts by name, written to `{home}`."""
    modules: tuple[str, ...] = ()
    """Imported before the scripts, as the application does."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For `context.configure`, as in the application's `env.py`."""
    patches: Mapping[str, Any] = field(default_factory=dict)
    """Values for attributes of modules, which the application would set."""
    relayed: bool = False
    """The application pins SQLAlchemy 1.4, so its process relays statements to another one."""
    factory: str = ""
    """Then `module:function` that makes the Flask application."""
    other_driver: bool = False
    """Some revisions only run with another driver, if their statements are left as they are."""
    autocommit: bool = False
    """The application migrates with this isolation level."""
    hidden: tuple[str, ...] = ("alembic_version",)
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata: str = ""
    naming: Mapping[str, str] = field(default_factory=dict)
    setup: str = ""
    """SQL, or `package.module:attribute` of the metadata from which the history starts."""

    def open_scripts(self) -> ScriptDirectory:
        """The revisions. Call it in the application's environment."""
        config = self.make_config()
        return ScriptDirectory.from_config(config)

    def make_config(self) -> Config:
        """Alembic's configuration, as far as scripts can depend on it."""
        for module in self.modules:
            importlib.import_module(module)
        for path, value in self.patches.items():
            module, _, name = path.partition(":")
            setattr(importlib.import_module(module), name, value)
        found = importlib.util.find_spec(self.package)
        assert found is not None
        assert found.submodule_search_locations
        root = Path(next(iter(found.submodule_search_locations)))
        config = Config()
        config.set_main_option("script_location", str(root / self.scripts))
        if self.versions:
            config.set_main_option("version_locations", str(root / self.versions))
            config.set_main_option("path_separator", "os")
        return config

    def load_metadata(self) -> Any:
        """The application's models, for what takes names of constraints from them."""
        if not self.metadata:
            return None
        metadata = _find(self.metadata)
        if self.naming:
            metadata.naming_convention = dict(self.naming)
        return metadata

    def set_up(self, connection: Connection, setup: str) -> None:
        """Make what is there before the first revision."""
        if ":" in setup and " " not in setup:
            _find(setup).create_all(connection)
        elif setup:
            connection.exec_driver_sql(setup)

    def make_variables(self, url: str) -> dict[str, str]:
        """The environment variables of the process."""
        home = tempfile.mkdtemp(prefix=f"histories-{self.name}-")
        plain = url.replace("postgresql+psycopg://", "postgresql+psycopg2://")
        for name, text in self.files.items():
            (Path(home) / name).write_text(text.format(url=url, plain=plain), encoding="utf-8")
        return {
            key: value.format(url=url, plain=plain, home=home)
            for key, value in self.variables.items()
        }


def _find(path: str) -> Any:
    """The object at `package.module:attribute.attribute`."""
    module, _, attributes = path.partition(":")
    target: Any = importlib.import_module(module)
    for one in attributes.split("."):
        target = getattr(target, one)
    return target


SUPERSET = """
SECRET_KEY = "x" * 42
SQLALCHEMY_DATABASE_URI = "{plain}"
CACHE_CONFIG = DATA_CACHE_CONFIG = {{"CACHE_TYPE": "SimpleCache"}}
FILTER_STATE_CACHE_CONFIG = EXPLORE_FORM_DATA_CACHE_CONFIG = CACHE_CONFIG
"""
EVENT = '{"dagster_event": {"event_type_value": "STEP_START"}, "timestamp": 1575000000.5}'
DAGSTER = """
CREATE TABLE event_log (
    id serial PRIMARY KEY, run_id varchar(255) NOT NULL, event_body varchar NOT NULL);
CREATE TABLE event_logs (
    id serial PRIMARY KEY, run_id varchar(255), event text NOT NULL, dagster_event_type text,
    timestamp timestamp);
CREATE TABLE runs (
    id serial PRIMARY KEY, run_id varchar(255) UNIQUE, pipeline_name varchar, status varchar(63),
    run_body varchar, create_timestamp timestamp DEFAULT current_timestamp,
    update_timestamp timestamp DEFAULT current_timestamp);
CREATE TABLE run_tags (
    id serial PRIMARY KEY, run_id varchar(255) REFERENCES runs (run_id), key varchar,
    value varchar);
CREATE TABLE schedules (
    id serial PRIMARY KEY, repository_name varchar(255), schedule_name varchar,
    status varchar(63), schedule_body varchar,
    create_timestamp timestamp DEFAULT current_timestamp,
    update_timestamp timestamp DEFAULT current_timestamp,
    UNIQUE (repository_name, schedule_name));
CREATE TABLE schedule_ticks (
    id serial PRIMARY KEY, repository_name varchar(255), schedule_name varchar,
    status varchar(63), tick_body varchar,
    create_timestamp timestamp DEFAULT current_timestamp,
    update_timestamp timestamp DEFAULT current_timestamp);
"""
"""Dagster's tables before it had migrations, as its first revisions expect them."""


ALL = (
    Application(
        "mlflow",
        ("mlflow",),
        "mlflow",
        "mlflow",
        "store/db_migrations",
        variables={"MLFLOW_DISABLE_TELEMETRY": "true"},
        options={"render_as_batch": True},
        metadata="mlflow.store.db.base_sql_model:Base.metadata",
        setup="mlflow.store.tracking.dbmodels.initial_models:Base.metadata",
    ),
    Application(
        "prefect",
        ("prefect",),
        "prefect",
        "prefect",
        "server/database/_migrations",
        versions="server/database/_migrations/versions/postgresql",
        variables={"PREFECT_HOME": "{home}"},
        modules=("prefect",),
        options={"include_schemas": True, "transaction_per_migration": True},
        other_driver=True,
    ),
    Application(
        "airflow",
        ("apache-airflow",),
        "apache-airflow-core",
        "airflow",
        "migrations",
        variables={
            "AIRFLOW_HOME": "{home}",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "{url}",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "{url}",
        },
        metadata="airflow.models.base:Base.metadata",
        options={"render_as_batch": True, "transaction_per_migration": True},
        other_driver=True,
    ),
    Application(
        "dagster",
        ("dagster", "dagster-postgres"),
        "dagster",
        "dagster",
        "_core/storage/alembic",
        patches={
            "dagster._core.storage.migration.utils:_UPGRADING_INSTANCE": SimpleNamespace(
                scheduler=None
            )
        },
        samples={
            "event_log.event_body": (EVENT, EVENT.replace("START", "SUCCESS")),
            "event_logs.event": (EVENT, EVENT.replace("START", "FAILURE")),
        },
        autocommit=True,
        setup=DAGSTER,
    ),
    Application(
        "langflow",
        ("langflow-base",),
        "langflow-base",
        "langflow",
        "alembic",
        variables={"LANGFLOW_CONFIG_DIR": "{home}"},
        options={"render_as_batch": True},
        metadata="langflow.services.database.service:SQLModel.metadata",
        naming={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        },
    ),
    Application(
        "superset",
        ("apache-superset", "flask-caching<2.4"),
        "apache-superset",
        "superset",
        "migrations",
        relayed=True,
        factory="superset.app:create_app",
        setup="flask_appbuilder.security.sqla.models:Model.metadata ab_",
        variables={"SUPERSET_CONFIG_PATH": "{home}/superset_config.py"},
        files={"superset_config.py": SUPERSET},
        samples={
            "*.position_json": ("{}",),
            "*.json_metadata": ("{}",),
            "*.params": ("{}",),
            "*.query_context": ("{}",),
            "*.extra": ("{}",),
        },
    ),
)
BY_NAME = {one.name: one for one in ALL}
