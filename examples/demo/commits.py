"""Step two, real input: a git history, each commit in one transaction.

Proves, with git's own listing, that a replay through a commit rebuilds exactly its files.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from examples.demo.database import Database, drop_schema
from examples.demo.history import Commit, History, Listing, choose_listed
from examples.demo.models import TrackedFile
from examples.demo.narration import Narrator, ProofFailedError

LONGEST_SUBJECT = 200


def load_history(database: Database, narrator: Narrator, *, history: History) -> None:
    """Write every commit through an ordinary session, which logs it."""
    began = time.monotonic()
    for commit in history.commits:
        with database.sessions.begin() as session:
            database.log.annotate(
                session,
                actor=commit.author,
                commit=commit.commit,
                subject=commit.subject[:LONGEST_SUBJECT],
            )
            apply_commit(session, commit)
    seconds = time.monotonic() - began
    commits, changes = len(history.commits), sum(len(c.changes) for c in history.commits)
    authors = len({c.author for c in history.commits})
    people = "one author" if authors == 1 else f"{authors} authors"
    narrator.say(
        f"{commits:,} commits by {people} are {commits:,} transactions with "
        f"{changes:,} changed files: {seconds:.1f} s, {commits / seconds:,.0f} a second."
    )


def apply_commit(session: Session, commit: Commit) -> None:
    """Change the table of files as the commit does."""
    touched = [c.path for c in commit.changes if c.kind != "A"]
    found = session.scalars(sa.select(TrackedFile).where(TrackedFile.path.in_(touched)))
    files = {file.path: file for file in found}
    for change in commit.changes:
        file = files.get(change.path)
        if change.kind == "A":
            session.add(TrackedFile(path=change.path, mode=change.mode, blob=change.blob))
        elif file is None:
            raise ProofFailedError(
                f"commit {commit.commit} changes {change.path!r}, which no earlier one added"
            )
        elif change.kind == "D":
            session.delete(file)
        else:
            file.mode, file.blob = change.mode, change.blob


def prove_commits(
    database: Database, narrator: Narrator, *, history: History, replays: int
) -> None:
    """Rebuild the files as of several commits, from the log alone, and ask git."""
    numbers = {commit.commit: n for n, commit in enumerate(history.commits, 1)}
    chosen = choose_listed(history, replays)
    for commit in chosen:
        expected = history.list_files(commit)
        schema = f"commit_{numbers[commit]}"
        with database.engine.begin() as connection:
            position = find_position(connection, database, commit=commit)
            began = time.monotonic()
            database.log.replay(connection, into=schema, through=position)
            seconds = time.monotonic() - began
            rebuilt = read_files(connection, schema)
            drop_schema(connection, schema)
        narrator.prove(
            f"replayed through commit {numbers[commit]} ({commit[:10]}), {len(expected):,} files "
            f"in {seconds:.2f} s: exactly {history.witness}",
            holds=rebuilt == expected,
            otherwise=_tell_apart(rebuilt, expected),
        )


def find_position(connection: Connection, database: Database, *, commit: str) -> int:
    """Return the position in the log where a commit ends, found by its metadata."""
    entries = database.log.read(connection, metadata={"commit": commit})
    return max(entry.position for entry in entries)


def read_files(connection: Connection, schema: str) -> Listing:
    """The table of files in `schema`."""
    table = TrackedFile.metadata.tables["file"].to_metadata(sa.MetaData(), schema=schema)
    rows = connection.execute(sa.select(table.c.path, table.c.mode, table.c.blob))
    return {path: (mode, blob) for path, mode, blob in rows}


def _tell_apart(rebuilt: Listing, expected: Listing) -> str:
    wrong = sorted(
        path for path in {*rebuilt, *expected} if rebuilt.get(path) != expected.get(path)
    )
    return f"{len(wrong)} files differ from git's listing, such as {wrong[:3]}"
