"""Says in the log that one of its records cannot be read, so that readers go past it.

Only of a record that really cannot be: one that opens, decodes and fits the rows before it is
refused. Without that check a quarantine would be a way to take history out of the log. Nothing is
changed or removed: the record stays where it is, is published and chained like any other, and the
mark is one more record.
"""

from __future__ import annotations

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


def quarantine_record(
    connection: Connection, log: LogOpener, *, position: int, reason: str, lost_key: bool = False
) -> QuarantineReport:
    """Write the mark that the record at `position` cannot be read.

    Runs in the caller's transaction if there is one, which the caller commits; else in one of its
    own. With `lost_key` also a record whose key the keyring lacks: a role that may append can
    register a key that nobody has. Raises `ConfigurationError` for a record that can be read or is
    not there, for a role that is no member of the log's owner, and on a standby;
    `ChainBrokenError` for a record that was altered, and `KeyUnavailableError` or `WrongKeyError`
    where a key is lacking that may open it.
    """
    _check_reason(reason)
    with open_work(connection):
        require_primary(connection, "a quarantine")
        reader = log.open(connection, whole=False)
        marks = QuarantineStore(log.store.schema)
        if not marks.may_mark(connection):
            raise ConfigurationError(
                "only the owner of the log's tables, or a member of that role, may quarantine a "
                "record",
                hint="do it as the role that runs the migrations",
            )
        stored = _find_record(reader, position)
        known = reader.skipped.find(stored)
        if known is not None:
            return QuarantineReport(known, "", already=True)
        why = _require_unreadable(connection, reader, stored, lost_key=lost_key)
        marks.write_mark(connection, stored, reason=reason)
        written = log.open(connection, whole=False).skipped.find(stored)
    if written is None:
        raise ConfigurationError(
            f"the mark for position {position} was written and is not seen",
            hint="the function oplog_write_mark was replaced: run oplog doctor",
        )
    return QuarantineReport(written, why)


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > MAX_REASON or "\0" in reason:
        raise ConfigurationError(
            "a record is quarantined for a reason",
            hint=f"say in 1 to {MAX_REASON} characters what is known of it",
        )


def _find_record(reader: RecordReader, position: int) -> StoredRecord:
    chosen = EntryFilter(after=position - 1, through=position)
    for page in reader.source.iterate(chosen, snapshot=reader.source.read_snapshot()):
        for stored in page:
            if stored.position == position:
                return stored
    raise ConfigurationError(
        f"there is no record at position {position}",
        hint="give the position that the error names; if the record was pruned, give the archive",
    )


def _require_unreadable(
    connection: Connection, reader: RecordReader, stored: StoredRecord, *, lost_key: bool
) -> str:
    """Why nobody can read the record; `ConfigurationError` if somebody can."""
    check_hashes(stored)
    if stored.format == FORMAT_MARK:
        raise _refuse(stored, "is a mark of the database, which has nothing to open")
    try:
        opened = OpenedRecord(stored, reader.decode(stored))
        reader.list_operations(opened)
    except OplogError as error:
        if lost_key and isinstance(error, KeyUnavailableError):
            return _first_line(error)
        if not reader.is_unreadable(error, stored):
            _explain_refusal(error, stored)
            raise
        if stored.format == FORMAT_PLAIN and isinstance(error, SealError):
            _require_sealed_log(reader, stored)
        return _first_line(error)
    misfit = find_misfit(connection, reader, opened)
    if misfit is None:
        raise _refuse(stored, "can be read, and fits the rows before it")
    return _first_line(misfit)


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
