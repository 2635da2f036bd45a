"""The end of an era: earlier positions are replayed, and the archive is restored.

Each restore goes into a database of the newest schema: a copy of the live one whose rows are
gone, and in the end also one that was migrated from nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from oplog import open_archive
from tests.histories.ledger import REPLAYED, Ledger, Moment, StepError, staged
from tests.histories.results import Ending
from tests.histories.tables import (
    Content,
    compare_content,
    describe_rows,
    quote,
    read_content,
    read_tables,
)

if TYPE_CHECKING:
    from tests.histories.walk import Walk

MOST_MOMENTS = 4
LOST = "would be lost"


def end_era(walk: Walk, revision: str) -> None:
    """Replay and restore at several positions; what fails is noted.

    Without a `revision` the live database is in no good state for it, since a migration failed:
    it is at the revision before, so that is what is restored.
    """
    ledger = walk.ledger
    moments = pick(ledger.moments)
    where = f"{ledger.first}..{revision or 'failure'}"
    for moment in moments:
        attempt(
            walk, f"{where}: replay as of {moment.revision}", lambda m=moment: replay(ledger, m)
        )
    try:
        ledger.publish(snapshot=False)
    except StepError as error:
        walk.history.endings.append(
            Ending(walk.application.name, f"{where}: publish", f"{error.stage}: {error}")
        )
        return
    if not moments and not revision:
        return
    restore_moments(walk, moments, where)


def restore_moments(walk: Walk, moments: list[Moment], where: str) -> None:
    """Restore the archive as of now, and as of each moment into two schemas."""
    attempt(walk, f"{where}: restore", lambda: restore(walk, None))
    for moment in moments:
        as_of = f"{where}: restore as of {moment.revision}"
        attempt(walk, f"{as_of} into the schema of then", lambda m=moment: restore_then(walk, m))
        attempt(walk, f"{as_of} into the schema of now", lambda m=moment: restore(walk, m))
    for moment in walk.ledger.moments:
        walk.cluster.run(f'DROP DATABASE IF EXISTS "{moment.copy}" WITH (FORCE)')


def end_history(walk: Walk, revision: str) -> None:
    """The last era's end; and its archive, restored into a database migrated from nothing."""
    end_era(walk, revision)
    attempt(walk, "restore into a database migrated from nothing", lambda: restore_fresh(walk))
    attempt(walk, "restore of an archive without snapshot", lambda: restore_plain(walk))


def pick(moments: list[Moment]) -> list[Moment]:
    """The first and the last, and some between them."""
    if len(moments) <= MOST_MOMENTS:
        return list(moments)
    step = (len(moments) - 1) / (MOST_MOMENTS - 1)
    return [moments[round(step * n)] for n in range(MOST_MOMENTS)]


def attempt(walk: Walk, what: str, work: object) -> None:
    """Do one ending, and note how it went."""
    assert callable(work)
    error = refused = ""
    try:
        with staged("ending"):
            work()
    except StepError as found:
        # Nothing was written: the schema of now has no place for values of then.
        refused = str(found) if LOST in str(found) else ""
        error = "" if refused else str(found)
    walk.history.endings.append(Ending(walk.application.name, what, error, refused))
    print(f"{walk.application.name} {what}: {error or refused or 'equal'}"[:500], flush=True)


def replay(ledger: Ledger, moment: Moment) -> None:
    """The position in the shape of then."""
    ledger.compare_replay(ledger.make_log(), moment)


def restore(walk: Walk, moment: Moment | None) -> None:
    """The archive, into the newest schema; compared by number of column."""
    walk.ledger.release()
    url = walk.cluster.create(walk.restored, template=walk.live)
    _restore(walk, url, walk.ledger.archive_path, moment)


def restore_then(walk: Walk, moment: Moment) -> None:
    """Into a copy of the database as it was at the moment."""
    url = walk.cluster.create(walk.restored, template=moment.copy)
    _restore(walk, url, walk.ledger.archive_path, moment, by_name=True)


def restore_fresh(walk: Walk) -> None:
    """Into a database that the application's migrations made at once."""
    url = walk.cluster.create(walk.restored)
    engine = sa.create_engine(url, poolclass=NullPool)
    walk.migrator.set_up(engine, walk.application.setup)
    walk.migrator.upgrade(engine, walk.history.steps[-1].revision)
    engine.dispose()
    _restore(walk, url, walk.ledger.archive_path, None)


def restore_plain(walk: Walk) -> None:
    """From an archive that has every record and no snapshot."""
    walk.ledger.release()
    url = walk.cluster.create(walk.restored, template=walk.live)
    path = walk.ledger.archive_path.with_name(walk.ledger.archive_path.name + "-plain")
    shutil.rmtree(path, ignore_errors=True)
    engine = walk.ledger.open_engine()
    walk.ledger.make_log().sync(engine, open_archive(f"file://{path}"))
    engine.dispose()
    _restore(walk, url, path, None)


def _restore(
    walk: Walk, url: sa.URL, path: Path, moment: Moment | None, *, by_name: bool = False
) -> None:
    target = Ledger(url, path, walk.ledger.hidden)
    try:
        with walk.ledger.connect() as connection:
            content = read_content(connection, walk.ledger.list_logged())
        with target.connect() as connection:
            empty(connection)
        target.begin("restored")
        engine = target.open_engine()
        with engine.connect() as connection:
            target.make_log().restore(
                open_archive(f"file://{path}"),
                connection,
                through=moment.position if moment else None,
            )
        engine.dispose()
        with target.connect() as connection:
            found = read_content(connection, target.list_logged(), generated=not by_name)
        if moment is None:
            differences = compare_content(content, found)
        elif by_name:
            differences = compare_content(moment.content, found)
        else:
            differences = compare_by_number(moment.content, found)
        if differences:
            raise StepError("restore", "; ".join(differences)[:1500])
    finally:
        target.release()
        walk.cluster.run(f'DROP DATABASE IF EXISTS "{url.database}" WITH (FORCE)')


def empty(connection: Connection) -> None:
    """Remove the log and all rows."""
    connection.exec_driver_sql("DROP SCHEMA IF EXISTS oplog CASCADE")
    connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {REPLAYED} CASCADE")
    names = ", ".join(quote(one) for one in read_tables(connection, without=["alembic_version"]))
    if names:
        connection.exec_driver_sql(f"TRUNCATE {names} CASCADE")


def compare_by_number(then: Mapping[str, Content], found: Mapping[str, Content]) -> list[str]:
    """What differs in the columns that have been the same since then.

    Tables are the same by oid (a copy of a database keeps them), columns by number and type.
    """
    lines = []
    now = {one.table.oid: one for one in found.values()}
    for name, old in then.items():
        new = now.get(old.table.oid)
        if new is None:
            continue
        numbers = {one.number: one for one in new.table.columns.values()}
        same = [
            (column, numbers[column.number].name)
            for column in old.table.columns.values()
            if column.name in old.columns
            and column.number in numbers
            and numbers[column.number].type_name == column.type_name
        ]
        left = _project(old, [column.name for column, _ in same])
        right = _project(new, [other for _, other in same])
        if left.rows != right.rows:
            lines.append(f"{name}: {describe_rows(left, right)}")
    return lines


def _project(content: Content, columns: list[str]) -> Content:
    places = [content.columns.index(one) for one in columns]
    rows = type(content.rows)()
    for row, count in content.rows.items():
        rows[tuple(row[place] for place in places)] += count
    return Content(content.table, tuple(columns), rows)
