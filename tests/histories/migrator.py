"""Runs the revisions of an application whose environment has the log too."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from oplog import Oplog
from tests.histories.applications import Application

CAST = re.compile(r"(?<=\w=)(%\(\w+\)s)::VARCHAR\b")
PERCENT = re.compile(r"%%|%(?![(sbt])")
Names = Sequence[str]


@dataclass
class Migrator:
    """Runs the application's revisions, as Alembic's command does."""

    application: Application
    scripts: ScriptDirectory = field(init=False)

    def __post_init__(self) -> None:
        self.config = self.application.make_config()
        self.scripts = ScriptDirectory.from_config(self.config)
        metadata = self.application.load_metadata()
        self.options: dict[str, Any] = {"target_metadata": metadata, **self.application.options}

    def list_revisions(self) -> Sequence[Script]:
        """All revisions, each after those that it needs."""
        return list(self.scripts.walk_revisions("base", self.application.head))[::-1]

    def set_up(self, engine: Engine, setup: str) -> None:
        """Make what is there before the first revision."""
        with engine.begin() as connection:
            self.application.set_up(connection, setup)

    def upgrade(
        self, engine: Engine, revision: str, *, log: Oplog | None = None, replaced: Names = ()
    ) -> None:
        """Upgrade to a revision, with a log if the engine has none attached.

        Revisions end with `op.replace_type` for each of `replaced`.
        """

        def find_steps(current: Any, _context: Any) -> Any:
            return self.scripts._upgrade_revs(revision, current)

        if self.application.other_driver:
            sa.event.listen(engine, "before_cursor_execute", _adapt, retval=True)
        if self.application.autocommit:
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        options = {**self.options, **({"oplog": log} if log else {})}
        with (
            _extended(self.scripts.get_revision(revision), replaced),
            EnvironmentContext(self.config, self.scripts, fn=find_steps) as environment,
            engine.connect() as connection,
        ):
            environment.configure(connection=connection, **options)
            with environment.begin_transaction():
                environment.run_migrations()
            if connection.in_transaction():
                connection.commit()


@contextlib.contextmanager
def _extended(script: Script | None, replaced: Names) -> Iterator[None]:
    """Have a revision end with the lines that its author would add."""
    if script is None or not replaced:
        yield
        return
    module: Any = script.module
    upgrade = module.upgrade

    def extended() -> None:
        upgrade()
        for name in replaced:
            # Alembic's proxy has the operations of plugins at run time only.
            operations: Any = op
            operations.replace_type(name, reason="the application's revision replaces it")

    module.upgrade = extended
    try:
        yield
    finally:
        module.upgrade = upgrade


def _adapt(
    _connection: Connection,
    _cursor: Any,
    statement: str,
    parameters: Any,
    context: Any,
    *_rest: Any,
) -> tuple[str, Any]:
    """What psycopg2 and asyncpg accept: assigned text without a type, a percent sign."""
    if context.execution_options.get("no_parameters"):
        return statement, parameters
    return PERCENT.sub("%%", CAST.sub(r"\1", statement)), parameters
