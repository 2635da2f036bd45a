"""The walk's side of `tests.histories.relay`: executes what a migration elsewhere sends."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, CursorResult, Engine, NestedTransaction

from oplog import Oplog
from tests.histories.applications import Application
from tests.histories.channel import Channel, Message

JSON_OIDS = frozenset({114, 3802})


class RelayError(Exception):
    """The migration failed in the other process."""


@dataclass(frozen=True)
class Revision:
    """What a walk needs of a script."""

    revision: str
    doc: str


class RelayedMigrator:
    """Runs revisions in the process of another environment, on connections of this one."""

    def __init__(self, application: Application, *, python: Path, url: str) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "tests.histories.relay"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.channel = Channel(self.process.stdout, self.process.stdin)
        plain = sa.make_url(url).set(drivername="postgresql")
        root = next(python.parents[1].glob(f"lib/python*/site-packages/{application.package}"))
        self.channel.send(
            {
                "factory": application.factory,
                "scripts": str(root / application.scripts),
                "url": plain.render_as_string(hide_password=False),
            }
        )
        self.revisions = [Revision(*one) for one in self.channel.receive()[1]]

    def list_revisions(self) -> Sequence[Revision]:
        """All revisions, each after those that it needs."""
        return self.revisions

    def set_up(self, engine: Engine, setup: str) -> None:
        """Make what is there before the first revision."""
        self._order(engine, "create", setup)

    def upgrade(
        self,
        engine: Engine,
        revision: str,
        *,
        log: Oplog | None = None,
        replaced: Sequence[str] = (),
    ) -> None:
        """Upgrade to a revision. Raises `RelayError`, or the error of the last statement.

        What became of the tables is noted before each COMMIT, as Alembic's door does it.
        """
        self._order(engine, "upgrade", revision, log=log, replaced=replaced)

    def _order(
        self,
        engine: Engine,
        *message: str,
        log: Oplog | None = None,
        replaced: Sequence[str] = (),
    ) -> None:
        self.channel.send(*message)
        with engine.connect() as connection:
            log = log or connection.info.get("oplog.log")
            with nullcontext() if log is None else log.migrating(connection):
                self._converse(Answerer(connection, log=log, replaced=replaced))

    def _converse(self, answerer: Answerer) -> None:
        while True:
            message = self.channel.receive()
            if message[0] == "failed":
                raise answerer.error or RelayError(f"{message[1]}: {message[2]}")
            if message[0] == "done":
                return
            self.channel.send(*answerer.answer(message))


class Answerer:
    """Executes the messages of one upgrade."""

    def __init__(
        self, connection: Connection, *, log: Oplog | None, replaced: Sequence[str]
    ) -> None:
        self.connection, self.log, self.replaced = connection, log, replaced
        self.savepoints: list[NestedTransaction] = []
        self.error: Exception | None = None
        """The last error, which the migration may have passed on."""

    def answer(self, message: Message) -> Message:
        """What is sent back."""
        try:
            if message[0] == "commit":
                if self.log is not None:
                    for name in self.replaced:
                        self.log.replace_type(self.connection, name, reason="replaced")
                    self.log.note_changes(self.connection)
                self.connection.commit()
                return ("done",)
            if message[0] == "rollback":
                self.connection.rollback()
                self.savepoints.clear()
                return ("done",)
            return self._execute(message[1])
        except Exception as error:  # noqa: BLE001 - the migration is told
            self.error = error
            cause = getattr(error, "orig", None) or error
            return ("error", getattr(cause, "sqlstate", None) or "", str(cause))

    def _execute(self, statement: str) -> Message:
        words = statement.split()
        if words[0] == "SAVEPOINT":
            self.savepoints.append(self.connection.begin_nested())
        elif words[0] == "RELEASE":
            self.savepoints.pop().commit()
        elif words[:2] == ["ROLLBACK", "TO"]:
            self.savepoints.pop().rollback()
        else:
            found = self.connection.exec_driver_sql(
                statement, execution_options={"no_parameters": True}
            )
            return _tell(found)
        return ("rows", None, [], -1)


def _tell(found: CursorResult[Any]) -> Message:
    """Names, rows and number of rows, as a driver for SQLAlchemy 1.4 gives them."""
    if not found.returns_rows:
        return ("rows", None, [], found.rowcount)
    description: Any = found.cursor.description
    is_json = [one.type_code in JSON_OIDS for one in description]
    rows = [
        tuple(
            json.dumps(value) if text and value is not None else _simplify(value)
            for value, text in zip(row, is_json, strict=True)
        )
        for row in found
    ]
    return ("rows", [one.name for one in description], rows, len(rows))


def _simplify(value: Any) -> Any:
    return str(value) if isinstance(value, uuid.UUID) else value


def read_version(python: Path, distribution: str) -> str:
    """The version of a distribution in another environment."""
    paths = [str(one) for one in python.parents[1].glob("lib/python*/site-packages")]
    return next(iter(importlib.metadata.distributions(name=distribution, path=paths))).version
