"""Says in the log that one of its records cannot be read, so that readers go past it.

Only of a record that really cannot be: one that opens, decodes and fits the rows before it is
refused. Without that check a quarantine would be a way to take history out of the log. Nothing is
changed or removed: the record stays where it is, is published and chained like any other, and the
mark is one more record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED
from oplog.errors import (
    ConfigurationError,
    KeyUnavailableError,
    OplogError,
    SealError,
    WrongKeyError,
)
from oplog.postgres.standby import require_primary
from oplog.postgres.work import open_work
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import OpenedRecord, RecordReader, check_hashes, describe
from oplog.replay.misfit import find_misfit
from oplog.schema.guard import FORMAT_MARK
from oplog.store import EntryFilter, StoredRecord
from oplog.store.quarantine_marks import QuarantineStore
from oplog.store.quarantined import MAX_REASON, QuarantinedRecord


@dataclass(frozen=True, slots=True)
class QuarantineReport:
    """The record that is quarantined now, and why it cannot be read.

    `already`: it was before, and nothing was written.
    """

    record: QuarantinedRecord
    error: str
    already: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**self.record.to_json(), "error": self.error, "already": self.already}


def quarantine_records(
    connection: Connection,
    log: LogOpener,
    *,
    positions: Iterable[int | range],
    reason: str,
    lost_key: bool = False,
) -> tuple[QuarantineReport, ...]:
    """Write marks that the records at `positions` cannot be read: all of them, or none.

    Of a range all records that there are. Runs in the caller's transaction if there is one, which
    the caller commits; else in one of its own. With `lost_key` also records whose key the keyring
    lacks: a role that may append can register a key that nobody has. Raises `ConfigurationError`
    for a record that can be read or is not there, for a role that is no member of the log's
    owner, and on a standby; `ChainBrokenError` for a record that was altered, and
    `KeyUnavailableError` or `WrongKeyError` where a key is lacking that may open it.
    """
    _check_reason(reason)
    spans = _join_spans(positions)
    # What is refused takes back the marks before it, also where the caller goes on.
    with open_work(connection), connection.begin_nested():
        require_primary(connection, "a quarantine")
        marks = QuarantineStore(log.store.schema)
        run = _Quarantine(connection, log, lost_key=lost_key)
        if not marks.may_mark(connection):
            raise ConfigurationError(
                "only the owner of the log's tables, or a member of that role, may quarantine a "
                "record",
                hint="do it as the role that runs the migrations",
            )
        # Found before anything is written: a mark is a record, too.
        found = [position for span in spans for position in run.list_positions(span)]
        judged = []
        for position in found:
            stored = run.find_record(position)
            error = run.judge(stored)
            if error is not None:
                marks.write_mark(connection, stored, reason=reason)
                run.stale = True
            judged.append((stored._replace(parts=()), error))
        known = run.refresh().skipped
        return tuple([_report(known.find(stored), stored, error) for stored, error in judged])


def _report(
    record: QuarantinedRecord | None, stored: StoredRecord, error: str | None
) -> QuarantineReport:
    if record is None:
        raise ConfigurationError(
            f"the mark for position {stored.position} was written and is not seen",
            hint="the function oplog_write_mark was replaced: run oplog doctor",
        )
    return QuarantineReport(record, error or "", already=error is None)


def _join_spans(positions: Iterable[int | range]) -> list[range]:
    """Ascending ranges that have no position in common; each stays one that was given, or more."""
    given = [range(one, one + 1) if isinstance(one, int) else one for one in positions]
    if not given or any(one.step != 1 or not one or one.start < 1 for one in given):
        raise ConfigurationError(
            "no record stands there",
            hint="give positions over 0, or ranges of them such as range(5, 10)",
        )
    joined: list[range] = []
    for one in sorted(given, key=lambda span: span.start):
        if joined and one.start < joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(one.stop, joined[-1].stop))
        else:
            joined.append(one)
    return joined


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > MAX_REASON or "\0" in reason:
        raise ConfigurationError(
            "a record is quarantined for a reason",
            hint=f"say in 1 to {MAX_REASON} characters what is known of it",
        )


class _Quarantine:
    """Finds the records and judges them, one after the other."""

    def __init__(self, connection: Connection, log: LogOpener, *, lost_key: bool) -> None:
        self._connection = connection
        self._log = log
        self._lost_key = lost_key
        self._reader = log.open(connection, whole=False)
        self.stale = False
        """Whether marks were written that the reader does not know."""

    def refresh(self) -> RecordReader:
        """A reader that knows every mark."""
        if self.stale:
            self._reader = self._log.open(self._connection, whole=False)
            self.stale = False
        return self._reader

    def list_positions(self, span: range) -> list[int]:
        """Positions of a span that have a record; `ConfigurationError` if there is none."""
        found = [stored.position for stored in self._iterate(span)]
        if not found:
            last = f" to {span.stop - 1}" if len(span) > 1 else ""
            raise ConfigurationError(
                f"there is no record at position {span.start}{last}",
                hint="give the position that the error names; if the record was pruned, give the "
                "archive",
            )
        return found

    def find_record(self, position: int) -> StoredRecord:
        """The record at a position where there is one."""
        return next(self._iterate(range(position, position + 1)))

    def judge(self, stored: StoredRecord) -> str | None:
        """Why nobody can read a record; None for one that is quarantined already.

        `ConfigurationError` if somebody can. That it opens does not depend on marks, and whether
        it fits does: without the records that they name other rows are there before it.
        """
        if self._reader.skipped.find(stored) is not None:
            return None
        opened = self._open(stored)
        if isinstance(opened, str):
            return opened
        misfit = find_misfit(self._connection, self.refresh(), opened)
        if misfit is None:
            raise _refuse(stored, "can be read, and fits the rows before it")
        return _first_line(misfit)

    def _iterate(self, span: range) -> Iterator[StoredRecord]:
        source = self._reader.source
        chosen = EntryFilter(after=span.start - 1, through=span.stop - 1)
        for page in source.iterate(chosen, snapshot=source.read_snapshot()):
            yield from (stored for stored in page if stored.position in span)

    def _open(self, stored: StoredRecord) -> OpenedRecord | str:
        """The record as it opens, or why nobody can open it."""
        reader = self._reader
        check_hashes(stored)
        if stored.format == FORMAT_MARK:
            raise _refuse(stored, "is a mark of the database, which has nothing to open")
        try:
            opened = OpenedRecord(stored, reader.decode(stored))
            reader.list_operations(opened)
        except OplogError as error:
            if self._lost_key and isinstance(error, KeyUnavailableError):
                return _first_line(error)
            if not reader.is_unreadable(error, stored):
                _explain_refusal(error, stored)
                raise
            if stored.format == FORMAT_PLAIN and isinstance(error, SealError):
                _require_sealed_log(reader, stored)
            return _first_line(error)
        return opened


def _explain_refusal(error: OplogError, stored: StoredRecord) -> None:
    lacking = isinstance(error, (KeyUnavailableError, WrongKeyError))
    error.add_note(
        f"position {stored.position} is not quarantined: "
        + (
            f"the key {stored.key_id!r}, which the log knows, may open it; with --lost-key it is, "
            "if nobody has that key"
            if lacking
            else "that this version cannot read it does not say that none can"
        )
    )


def _require_sealed_log(reader: RecordReader, stored: StoredRecord) -> None:
    """Refuse a plaintext record of a time when the log had no key.

    With plaintext=True it can be read. After the first sealed record no writer leaves plaintext.
    """
    chosen = EntryFilter(through=stored.position - 1)
    for page in reader.source.iterate(chosen, snapshot=reader.source.read_snapshot()):
        if any(record.format == FORMAT_SEALED for record in page):
            return
    raise _refuse(
        stored,
        "is in plaintext, and no record before it is sealed: it may be of a time before the log "
        "had a key",
        hint="read this log with Oplog(..., plaintext=True)",
    )


def _refuse(stored: StoredRecord, why: str, *, hint: str = "") -> ConfigurationError:
    return ConfigurationError(
        f"position {stored.position} ({describe(stored)}) {why}: it is not quarantined",
        hint=hint
        or "a quarantine takes a record's changes out of what readers see, so it is for records "
        "that cannot be read; a wrong change is corrected by another one",
    )


def _first_line(error: OplogError) -> str:
    return str(error.args[0]).split("\n", 1)[0]
