"""Expand and contract while old and new processes write: nothing is lost, nothing refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.orm import Session

from oplog import Keyring
from tests.evolved import Application
from tests.fault.rolling_process import SHARED
from tests.logged import run

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

ROOT = Path(__file__).parents[2]
BATCH = 20


@dataclass
class Worker:
    """A process of the application."""

    process: subprocess.Popen[str]
    version: int
    steps: int = 0
    """Schema changes that it ran through."""
    told: dict[str, Any] = field(default_factory=dict)

    def wait_until_it_writes(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.told = json.loads(self.process.stdout.readline())
        self.process.wait(30)


class Deploy:
    """A deployment with workers of several versions, and its migrations."""

    def __init__(self, engine: Engine, url: URL, keyring: Path, stack: ExitStack) -> None:
        self.engine = engine
        self.url = url.render_as_string(hide_password=False)
        self.path = keyring
        self.keyring = Keyring.generate()
        self.keyring.save(keyring)
        self.stack = stack
        self.workers: list[Worker] = []
        run(engine, "CREATE TABLE person (id int PRIMARY KEY, name text NOT NULL, hits int)")
        app = Application(engine, self.keyring)
        app.track()
        for key in range(SHARED):
            app.write(f"INSERT INTO person VALUES ({key}, 'shared', 0)")

    def start(self, version: int, number: int, *, how: str = "run") -> None:
        command = [sys.executable, "-m", "tests.fault.rolling_process", self.url, str(self.path)]
        process = subprocess.Popen(
            [*command, str(version), str(number), how],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        self.workers.append(Worker(process, version))

    def wait(self, *versions: int) -> None:
        """Until each of these workers has written."""
        for worker in self.workers:
            if worker.version in versions:
                worker.wait_until_it_writes()

    def stop(self, version: int) -> None:
        for worker in self.workers:
            if worker.version == version:
                worker.stop()

    def migrate(self, *statements: str) -> None:
        """As a revision of Alembic that notes what it did at its end."""
        log = Application(self.engine, self.keyring).log
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
            log.note_changes(connection)
        for worker in self.workers:
            worker.steps += not worker.told

    def backfill(self, *, most: int) -> None:
        """In batches, which compete with the writes of all workers."""
        app = Application(self.engine, self.keyring)

        def work(session: Session) -> int:
            done = session.execute(
                sa.text(
                    "UPDATE person SET full_name = name WHERE id IN (SELECT id FROM person "
                    f"WHERE full_name IS NULL ORDER BY id LIMIT {BATCH})"
                )
            )
            return int(done.rowcount)  # type: ignore[attr-defined]

        for _ in range(most):
            if app.log.run(app.sessions, work) < BATCH:
                break

    def list_acknowledged(self) -> list[str]:
        return [token for worker in self.workers for token in worker.told["acknowledged"]]


@pytest.fixture
def deploy(engine: Engine, database_url: URL, tmp_path: Path) -> Iterator[Deploy]:
    with ExitStack() as stack:
        yield Deploy(engine, database_url, tmp_path / "keyring.json", stack)


def count_tokens(app: Application) -> Counter[str]:
    """In how many records each token is; a record has an entry for each of its aggregates."""
    found: dict[int, str] = {}
    with app.engine.connect() as connection:
        for entry in app.log.read(connection):
            for token in entry.metadata.get("token", []):
                found[entry.position] = token
    return Counter(found.values())


def test_a_rolling_deploy_loses_nothing_and_refuses_nothing(deploy: Deploy) -> None:
    for number in (1, 2):
        deploy.start(1, number)
    deploy.start(1, 3, how="plain")
    deploy.wait(1)
    deploy.migrate("ALTER TABLE person ADD COLUMN full_name text")
    for number in (4, 5):
        deploy.start(2, number)
    deploy.wait(2)
    # Former processes go on adding rows without it.
    deploy.backfill(most=4)
    deploy.migrate("ALTER TABLE person ALTER name DROP NOT NULL")
    deploy.stop(1)
    deploy.backfill(most=1000)
    for number in (6, 7):
        deploy.start(3, number)
    deploy.wait(3)
    deploy.stop(2)
    deploy.migrate(
        "ALTER TABLE person ALTER full_name SET NOT NULL", "ALTER TABLE person DROP COLUMN name"
    )
    deploy.stop(3)

    for worker in deploy.workers:
        assert worker.told["errors"] == []
        again = worker.told["again"]
        assert again.get("SchemaChangedError", 0) <= worker.steps
        assert len(worker.told["acknowledged"]) > 1
    app = Application(deploy.engine, deploy.keyring)
    app.assert_whole()
    tokens = count_tokens(app)
    acknowledged = deploy.list_acknowledged()
    assert len(acknowledged) == len(set(acknowledged))
    assert tokens == Counter(acknowledged)
    with deploy.engine.connect() as connection:
        hits = connection.exec_driver_sql(f"SELECT sum(hits) FROM person WHERE id < {SHARED}")
        assert hits.scalar() == len(acknowledged)
