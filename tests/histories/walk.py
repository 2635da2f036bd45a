"""The course of one history, in the environment of its application.

`python -m tests.histories.walk mlflow --url … --directory …`. Each revision is first run in a
copy of the database without a log: that is what it does by itself, and tells a migration that
rows of the generator offend from one that the log hinders. Then it runs with the log attached.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.script import Script
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

import oplog
from oplog.errors import OplogError
from tests.histories.applications import BY_NAME, Application
from tests.histories.cluster import Cluster
from tests.histories.endings import end_era, end_history
from tests.histories.forms import list_forms
from tests.histories.ledger import Ledger, StepError, staged
from tests.histories.migrator import Migrator, Names
from tests.histories.relayed import RelayedMigrator, Revision, read_version
from tests.histories.results import History, Step
from tests.histories.rows import Generator
from tests.histories.tables import compare_content, read_content, read_tables, sort_by_reference

LINE = re.compile(r"op\.replace_type\('([^']+)'")
ROWS = 4
MOMENT_EVERY = 6
SYNC_EVERY = 4
CHECK_EVERY = 3
SNAPSHOT_EVERY = 9


@dataclass
class Walk:
    """One history on its way."""

    application: Application
    cluster: Cluster
    directory: Path
    suffix: str = ""
    """Of the names of databases and results, where an application is walked twice at once."""
    python: Path | None = None
    """Interpreter of another environment, to which migrations are left."""
    report: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        name = self.application.name
        base = f"{name}{self.suffix}"
        self.live, self.bare, self.restored = f"{base}_live", f"{base}_bare", f"{base}_restored"
        self.migrator: Migrator | RelayedMigrator
        if self.python is None:
            self.migrator = Migrator(self.application)
            version = importlib.metadata.version(self.application.distribution)
        else:
            url = self.cluster.url.render_as_string(hide_password=False)
            self.migrator = RelayedMigrator(self.application, python=self.python, url=url)
            version = read_version(self.python, self.application.distribution)
        self.generator = Generator(self.application.samples)
        self.era = 0
        self.told: list[str] = []
        self.history = History(name, version, self.read_version())
        self.ledger = self.open_ledger()

    def read_version(self) -> str:
        """The server's version."""
        engine = sa.create_engine(self.cluster.url, poolclass=NullPool)
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SHOW server_version").scalar_one()
        return f"PostgreSQL {found.split()[0]}, SQLAlchemy {sa.__version__}"

    def open_ledger(self) -> Ledger:
        """A ledger for the next era."""
        self.era += 1
        archive = self.directory / f"{self.application.name}{self.suffix}-{self.era}"
        shutil.rmtree(archive, ignore_errors=True)
        return Ledger(self.cluster.url.set(database=self.live), archive, self.application.hidden)

    # -- the course ---------------------------------------------------------------------------

    def run(self, *, first: int = 1, last: int | None = None) -> History:
        """Walk the revisions from the first to the last, those before without a log.

        A failure of the harness itself ends it, and is in the history.
        """
        revisions: Sequence[Script | Revision] = self.migrator.list_revisions()
        last = min(last or len(revisions), len(revisions))
        try:
            self.begin(revisions[first - 2].revision if first > 1 else "")
            for number, script in enumerate(revisions[first - 1 : last], first):
                step = Step(self.application.name, script.revision, script.doc.splitlines()[0])
                self.history.steps.append(step)
                start = time.perf_counter()
                self.take(step, number)
                step.seconds = round(time.perf_counter() - start, 2)
                self.note(step, number, last)
            end_history(self, revisions[last - 1].revision)
        except Exception:  # noqa: BLE001 - the report says so
            self.history.broken = traceback.format_exc()[-3000:]
        self.report()
        return self.history

    def begin(self, before: str) -> None:
        """Make the database as of a revision, or of before all; and the log."""
        self.cluster.create(self.live)
        engine = self.ledger.open_engine()
        self.migrator.set_up(engine, self.application.setup)
        if before:
            self.migrator.upgrade(engine, before)
        engine.dispose()
        self.ledger.begin(before or "base")
        if before:
            for _ in range(2):
                self.write()

    def note(self, step: Step, number: int, of: int) -> None:
        """Say how the step went."""
        self.history.unguarded |= self.ledger.untracked
        self.history.ungenerated |= self.generator.refused
        self.report()
        state = f"{step.stage}: {step.error[:180]}" if step.stage else "passed"
        print(
            f"{step.application} {number}/{of} {step.revision} {step.seconds}s {state}", flush=True
        )

    def take(self, step: Step, number: int) -> None:
        """One revision. If it does not pass, the log begins anew after it."""
        self.rehearse(step)
        migrated = False
        try:
            with staged("migration"):
                self.migrate(step, number)
            migrated = True
            self.follow_up(step, number)
        except StepError as error:
            step.stage, step.error = error.stage, str(error)
            if not (migrated and self.recovers(step)):
                self.start_anew(step, migrated=migrated)
        finally:
            self.cluster.run(f'DROP DATABASE IF EXISTS "{self.bare}" WITH (FORCE)')

    def recovers(self, step: Step) -> bool:
        """Whether all is well after the application wrote for the first time; then go on."""
        try:
            with staged("writing"):
                self.write()
            self.ledger.check(replayed=True)
            self.ledger.publish(snapshot=False)
        except StepError as error:
            step.notes.append(f"after a first write: {error.stage}: {error}"[:500])
            return False
        step.notes.append("after a first write: equal")
        return True

    def migrate(self, step: Step, number: int) -> None:
        """The revision with the log: attached to the engine, or given to Alembic, in turns.

        Where an error says which line to add to the revision, it is added.
        """
        replaced: list[str] = []
        while True:
            try:
                self._migrate(step.revision, attached=number % 2 == 0, replaced=replaced)
            except OplogError as error:
                line = LINE.search(error.hint)
                if line is None or line[1] in replaced:
                    raise
                replaced.append(line[1])
                step.notes.append(f"asks for op.replace_type({line[1]!r}): {error}"[:400])
            else:
                return

    def _migrate(self, revision: str, *, attached: bool, replaced: Names) -> None:
        try:
            if attached:
                with self.ledger.attached() as engine:
                    self.migrator.upgrade(engine, revision, replaced=replaced)
            else:
                engine = self.ledger.open_engine()
                log = self.ledger.make_log()
                self.migrator.upgrade(engine, revision, log=log, replaced=replaced)
                engine.dispose()
        finally:
            self.ledger.renew()

    def follow_up(self, step: Step, number: int) -> None:
        """What must hold after a revision, and rows for the next one."""
        with staged("guards of new tables"):
            self.ledger.track()
        self.ledger.check(replayed=True)
        self.compare_with_bare(step)
        with staged("writing"):
            step.rows = self.write()
        if number % CHECK_EVERY == 0:
            # In between, the check after the next revision finds what is wrong.
            self.ledger.check(replayed=False)
        step.tables = len(self.ledger.list_logged())
        if number % MOMENT_EVERY == 0:
            copy = f"{self.live}_{number}"
            self.ledger.release()
            self.cluster.create(copy, template=self.live)
            self.ledger.remember(step.revision, copy)
        if number % SYNC_EVERY == 0 or number % SNAPSHOT_EVERY == 0:
            self.ledger.publish(snapshot=number % SNAPSHOT_EVERY == 0)

    def write(self) -> int:
        """Insert, update and delete through the log; returns how many rows."""
        tables = self.ledger.read()
        with self.ledger.attached() as engine:
            with engine.begin() as connection:
                done = self.generator.fill(connection, tables, rows=ROWS)
            with engine.begin() as connection:
                done += self.generator.change(connection, tables)
            with engine.begin() as connection:
                done += self.generator.remove(connection, tables, above=ROWS - 1)
        return done

    # -- without a log ------------------------------------------------------------------------

    def rehearse(self, step: Step) -> None:
        """Run the revision in a copy without a log; take rows away if they are in its way.

        First those in tables that its statements name, then all that were made up, then all.
        """
        for widen in range(3):
            try:
                self.run_bare(step)
            except Exception as error:  # noqa: BLE001 - any error of the application's own code
                text = str(getattr(error, "orig", None) or error).splitlines()[0][:300]
                removed = self.remove_rows(everywhere=widen > 0, every=widen > 1)
                where = ", ".join(removed) if widen == 0 else "all tables"
                step.notes.append(f"fails without a log too, rows removed from {where}: {text}")
            else:
                return
        self.run_bare(step)

    def run_bare(self, step: Step) -> None:
        """The revision on a plain engine, in a copy without a log; its statements are noted."""
        self.ledger.release()
        url = self.cluster.create(self.bare, template=self.live)
        engine = sa.create_engine(url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS oplog CASCADE")
        self.record(engine, step)

    def record(self, engine: Engine, step: Step) -> None:
        """Upgrade, and note the statements."""
        statements: list[str] = []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def keep(_connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
            statements.append(statement)

        try:
            self.migrator.upgrade(engine, step.revision)
        finally:
            engine.dispose()
            self.told = statements
            step.forms = list_forms(statements)
            step.statements = [one for one in statements if list_forms([one])]

    def list_statements(self) -> History:
        """Only note what all revisions execute on empty tables, without a log."""
        self.cluster.create(self.live)
        engine = self.ledger.open_engine()
        self.migrator.set_up(engine, self.application.setup)
        scripts: Sequence[Script | Revision] = self.migrator.list_revisions()
        for script in scripts:
            step = Step(self.application.name, script.revision, script.doc.splitlines()[0])
            self.history.steps.append(step)
            self.record(self.ledger.open_engine(), step)
        self.report()
        return self.history

    def remove_rows(self, *, everywhere: bool, every: bool) -> list[str]:
        """Delete what the generator made, through the log; returns the tables' names."""
        told = " ".join(self.told)
        tables = [
            one
            for one in sort_by_reference(self.ledger.read())
            if everywhere or re.search(rf"\b{re.escape(one.name)}\b", told)
        ]
        for _ in range(2):
            with self.ledger.attached() as engine, engine.begin() as connection:
                for table in reversed(tables):
                    self.generator.forget(connection, table, every=every)
        return sorted(one.name for one in tables)

    def compare_with_bare(self, step: Step) -> None:
        """Whether the revision did the same with the log as without; else a note."""
        engine = sa.create_engine(self.cluster.url.set(database=self.bare), poolclass=NullPool)
        with engine.connect() as connection:
            tables = read_tables(connection, without=self.application.hidden)
            expected = read_content(connection, tables)
        engine.dispose()
        with self.ledger.connect() as connection:
            found = read_content(connection, self.ledger.read())
        differences = compare_content(expected, found)
        if differences:
            step.notes.append("other than without a log: " + "; ".join(differences)[:400])

    def start_anew(self, step: Step, *, migrated: bool) -> None:
        """End the era at the revision before, and begin one with all rows adopted."""
        if migrated or not self.application.autocommit:
            end_era(self, step.revision if migrated else "")
        self.ledger.release()
        if not migrated:
            self.cluster.replace(self.live, by=self.bare)
        self.ledger = self.open_ledger()
        self.ledger.begin(step.revision)
        try:
            self.ledger.check(replayed=True)
            with staged("writing"):
                self.write()
            self.ledger.check(replayed=False)
        except StepError as error:
            step.notes.append(f"after a new start: {error.stage}: {error}"[:500])


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk one history; the result is `NAME.json` in the directory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("application", choices=sorted(BY_NAME))
    parser.add_argument("--url", required=True)
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--python", type=Path, help="interpreter that has the application")
    parser.add_argument("--first", type=int, default=1, help="number of a revision")
    parser.add_argument("--last", type=int, help="number of a revision")
    parser.add_argument("--suffix", default="", help="of the names of databases and results")
    parser.add_argument("--statements", action="store_true", help="only list statements")
    given = parser.parse_args(arguments)
    application = BY_NAME[given.application]
    given.directory = given.directory.resolve()
    os.environ.update(application.make_variables(given.url))
    assert Path(oplog.__file__).parents[1] == Path(__file__).parents[2], "another oplog"
    cluster = Cluster(sa.make_url(given.url))
    walk = Walk(application, cluster, given.directory, python=given.python, suffix=given.suffix)
    walk.report = lambda: walk.history.save(
        given.directory / f"{application.name}{given.suffix}.json"
    )
    if given.statements:
        return bool(walk.list_statements().broken)
    return bool(walk.run(first=given.first, last=given.last).broken)


if __name__ == "__main__":
    sys.exit(main())
