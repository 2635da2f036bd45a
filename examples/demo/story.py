"""The seven steps of the demonstration in order, with the sizes they run at.

However the demonstration ends, its server, processes and directory are removed, and it reports
that only after it has checked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from examples.demo import afternoon, bank, commits, disaster, interruption, tampering
from examples.demo.database import Database, dispose, make_keys, migrate, open_database
from examples.demo.figures import measure
from examples.demo.history import find_history
from examples.demo.narration import Narrator
from examples.demo.publishing import publish
from oplog.testing import EmbeddedServer


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the steps."""

    commits: int = 400
    replays: int = 6
    tellers: int = 4
    transfers: int = 150
    deaths: int = 8


QUICK = Sizes(commits=60, replays=3, tellers=2, transfers=20, deaths=4)
"""Every step and every proof, on little data."""


def tell(narrator: Narrator, *, sizes: Sizes, seed: int, bundled: bool = False) -> None:
    """Tell the whole story; `ProofFailedError` when something in it is not true."""
    narrator.title("oplog: a log of row changes that commits with the rows it describes")
    with TemporaryDirectory(prefix="oplog-demo-") as place:
        server = EmbeddedServer()
        try:
            with open_place(server, narrator, directory=Path(place)) as database:
                tell_steps(database, narrator, sizes=sizes, seed=seed, bundled=bundled)
                figures = measure(database)
            data = server.directory
        finally:
            server.stop()
    leftovers = [str(path) for path in (data, Path(place)) if path.exists()]
    narrator.step("What was proved, and measured")
    narrator.prove(
        "nothing is left behind: the server has ended, its directory and the keys are deleted",
        holds=not leftovers,
        otherwise=f"{', '.join(leftovers)} is still there",
    )
    proofs = ("proofs", f"{len(narrator.proved)} of {len(narrator.proved)}")
    narrator.table([proofs, *figures.list_lines(), ("seconds", f"{narrator.seconds:.0f}")])


@contextmanager
def open_place(
    server: EmbeddedServer, narrator: Narrator, *, directory: Path
) -> Iterator[Database]:
    """Step one: a server of our own, migrated."""
    narrator.step("A PostgreSQL server of its own, migrated with Alembic")
    began = time.monotonic()
    server.start()
    seconds = time.monotonic() - began
    make_keys(directory)
    database = open_database(server.url, directory, name="oplog-demo")
    try:
        with database.engine.connect() as connection:
            version = connection.scalar(sa.text("SHOW server_version"))
        narrator.say(f"PostgreSQL {version} started in {seconds:.1f} s in a temporary directory.")
        began = time.monotonic()
        revision = migrate(database.engine)
        seconds = time.monotonic() - began
        tables = sa.inspect(database.engine).get_table_names(schema=database.log.schema)
        narrator.prove(
            f"Alembic revision {revision} created the log's {len(tables)} tables and partitions "
            f"({seconds:.2f} s)",
            holds="oplog_record" in tables,
            otherwise=f"schema {database.log.schema} has the tables {tables}",
        )
        yield database
    finally:
        dispose(database)


def tell_steps(
    database: Database, narrator: Narrator, *, sizes: Sizes, seed: int, bundled: bool
) -> None:
    """Steps two to seven."""
    history = find_history(limit=sizes.commits, bundled=bundled)
    narrator.step(f"Real input: {history.source}")
    commits.load_history(database, narrator, history=history)
    commits.prove_commits(database, narrator, history=history, replays=sizes.replays)

    narrator.step("A bank, with everybody at the counter at once, and an archive")
    bank.open_bank(database)
    with publish(database, narrator) as press:
        made = bank.run_tellers(
            database,
            narrator,
            tellers=sizes.tellers,
            transfers=sizes.transfers,
            seed=seed,
            meanwhile=press.replace,
        )
        bank.prove_money(database, narrator, made=made)
        bank.prove_replay(database, narrator)
        bank.prove_history(database, narrator)

        narrator.step("Somebody tampers with a row, behind the log's back")
        tampering.prove_detection(database, narrator)

        narrator.step("kill -9, in the middle of the work")
        interruption.prove_survival(database, narrator, deaths=sizes.deaths, seed=seed)
        interruption.prove_agreement(database, narrator)

        narrator.step("The database is destroyed, and comes back from the archive")
        disaster.prove_archived(press)
        press.worker.end()
    disaster.prove_recovery(press, history=history)

    narrator.step("A teller's afternoon is taken back")
    afternoon.prove_undo(database, narrator)
