"""`oplog status`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from oplog.cli.exit_code import LAGGING
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    archive_option,
    pass_invocation,
    standard_options,
)
from oplog.cli.presentation import (
    escape,
    show_count,
    show_size,
)
from oplog.doctor.archive_status import ArchiveStatus
from oplog.errors import ConfigurationError


@click.command()
@click.option(
    "--max-lag",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Exit with code 4 when the archive is behind by more.",
)
@archive_option
@standard_options
@pass_invocation
def status(invocation: Invocation, *, max_lag: float | None) -> int:
    """Show how large the log is, and whether it is in order.

    Counts, last position and time, the types and keys it was written with, the server, and
    whether the triggers that keep it append-only are all in place. Of an archive, if one is
    given, how far it is behind.
    """
    log = invocation.load_log()
    archive = invocation.find_archive() if max_lag is None else invocation.open_archive()
    with invocation.connect() as connection:
        report = log.status(connection, archive=archive)
    code = _judge(report.archive, most_seconds=max_lag)
    found = report.to_json()
    invocation.emit(lambda: found, lambda: _show_status(found))
    for problem in report.guard_problems:
        say(f"warning: {problem}")
    for key in report.keys:
        if key.state in {"missing", "different"}:
            say(f"warning: the keyring's key {key.key_id} is {key.state}")
    for warning in report.warnings:
        say(f"warning: {escape(f'{warning.where}: {warning.message}')}")
    if report.archive is not None and report.archive.error is not None:
        error = found["archive"]["error"]
        say(f"warning: {escape(error['message'])}")
        say(f"hint: {escape(error['hint'])}")
    return code


def _judge(archive: ArchiveStatus | None, *, most_seconds: float | None) -> int:
    """The exit code: that of the archive's error, or `LAGGING` beyond `most_seconds`."""
    if archive is None:
        return 0
    if archive.error is not None:
        return archive.error.exit_code
    if most_seconds is None:
        return 0
    if archive.lag is None:
        raise ConfigurationError(
            "a standby cannot tell how far the archive is behind",
            hint="ask the primary, or leave --max-lag out",
        )
    return LAGGING if round(archive.lag.lag_seconds, 3) > most_seconds else 0


def _show_status(found: Mapping[str, Any]) -> Iterator[str]:
    server = found["server"]
    standby = ", standby" if server["standby"] else ""
    lines = {
        "log": f"{found['log_id']} (schema {escape(found['schema'])}, "
        f"version {found['schema_version']})",
        "server": f"PostgreSQL {server['version']}{standby}, database {escape(server['database'])}",
        "entries": f"{found['entries']} of {show_count(found['aggregates'], 'aggregate')}, "
        f"{show_size(found['bytes'])}",
        "last": f"position {found['position']}, {found['recorded_at']}"
        if found["entries"]
        else "nothing yet",
        "append-only": "yes, every trigger is in place"
        if found["append_only"]["ok"]
        else "NO, see the warnings",
        "open": _show_open(found["transactions"]["open"]),
        "types": "" if found["types"] else "none yet",
    }
    for name, text in lines.items():
        yield f"{name + ':':<13}{text}".rstrip()
    for described in found["types"]:
        revisions = ", ".join(map(str, described["revisions"]))
        label = "revision" if len(described["revisions"]) == 1 else "revisions"
        yield f"  {escape(described['name'])}  {label} {revisions}"
    yield "keys:" if found["keys"] else "keys:        none, the log is not sealed"
    for key in found["keys"]:
        retired = ", retired" if key["retired_at"] else ""
        yield f"  {key['key_id']}  {key['state']}{retired}"
    if "archive" in found:
        yield from _show_archive(found["archive"])


def _show_open(transactions: Sequence[Mapping[str, Any]]) -> str:
    if not transactions:
        return "no other transaction"
    prepared = sum(one["prepared"] is not None for one in transactions)
    told = f", {prepared} of them prepared" if prepared else ""
    oldest = max(one["seconds"] for one in transactions)
    return f"{show_count(len(transactions), 'other transaction')}{told}, the oldest for {oldest} s"


def _show_archive(found: Mapping[str, Any]) -> Iterator[str]:

    yield f"archive:     {escape(found['url'])}"
    if found["error"] is not None:
        yield "  unknown, see the warnings"
        return
    published, lag = found["published"], found["lag"]
    if published is None:
        yield "  nothing published yet"
    else:
        yield (
            f"  sequence {published['sequence']} of generation {published['generation']}, "
            f"position {published['position']}"
        )
        yield f"  last entry {published['recorded_at'] or 'none'}"
        newest = published["snapshot"]
        yield (
            "  no snapshot yet"
            if newest is None
            else f"  newest snapshot at sequence {newest['sequence']}, {newest['recorded_at']}, "
            f"{show_size(newest['bytes'])}"
        )
    if lag is None:
        return
    entries = show_count(lag["entries"], "entry", many="entries")
    yield (
        f"  behind by {entries}, for {lag['seconds']:.1f} s"
        if lag["entries"]
        else "  everything is published"
    )
