"""Restores a database from an archive and records there what the archive has of it.

The row in `oplog_archive` is written by the transaction that restores. A worker then goes on
publishing to the same archive without comparing everything that is in it.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.archive.archived_log import ArchivedLog
from oplog.archive.ownership import identify, read_origin
from oplog.reading.log_opener import LogOpener
from oplog.recovery.restore import restore_log
from oplog.recovery.restore_report import RestoreReport
from oplog.replay.rebuild import Progress
from oplog.snapshot.base import SnapshotReader
from oplog.store.cursor import Cursor
from oplog.store.export import ExportStore
from oplog.store.intake import RESTORED_SNAPSHOT
from oplog.sync.archive_row import make_restored


def restore_archive(
    connection: Connection,
    source: ArchivedLog,
    *,
    log: LogOpener,
    schema: str,
    through: int | None,
    snapshot: SnapshotReader | None,
    progress: Progress | None = None,
) -> RestoreReport:
    """`restore_log` from the head that `source` reads, and record it in `oplog_archive`.

    `through` is a position. New records get positions above all in the archive.
    """

    def finish(inside: Connection, report: RestoreReport) -> None:
        _write_row(inside, source, report, schema=schema)

    return restore_log(
        connection,
        source,
        log=log,
        schema=schema,
        through=through,
        snapshot=snapshot,
        least_position=source.head.position,
        progress=progress,
        finish=finish,
    )


def _write_row(
    connection: Connection, source: ArchivedLog, report: RestoreReport, *, schema: str
) -> None:
    origin = read_origin(connection, schema)
    row = make_restored(
        source.archive,
        source.head,
        sequence=report.sequence,
        chain=source.find_chain(report.sequence) or b"",
        cursor=Cursor(origin.system_identifier, origin.timeline, RESTORED_SNAPSHOT).to_json(),
        here=identify(origin),
    )
    ExportStore(schema).write_row(connection, row, position=report.position)
