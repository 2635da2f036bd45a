"""Commands that read the log as it is: status, tail, history.

Must not change anything; their transactions are read only. The hard thing is a long log: what
is shown is what is read, never the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.cli.archive_status import judge_standing, read_standing, show_standing
from oplog.cli.argument import PLACE, parse_key, parse_metadata
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    archive_option,
    pass_invocation,
    reach_option,
    redact_option,
    standard_options,
)
from oplog.cli.presentation import (
    change_to_json,
    entry_to_json,
    escape,
    show_change,
    show_count,
    show_entry,
    show_key,
    show_size,
    show_time,
    to_json_value,
)
from oplog.doctor.activity import read_activity
from oplog.doctor.environment import judge_activity
from oplog.doctor.inspection import (
    find_tail_start,
    list_guard_problems,
    read_key,
    read_server_status,
)
from oplog.entry import LoggedEntry
from oplog.facade import Oplog
from oplog.store.rows import EntryFilter


@click.command()
@click.option(
    "--max-lag",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Exit code 4 when the archive is behind for longer.",
)
@archive_option
@standard_options
@pass_invocation
def status(invocation: Invocation, *, max_lag: float | None) -> int:
    """How large the log is, and whether it is in order.

    Counts, last position and time, the types and keys it was written with, the server, and
    whether the triggers that keep it append-only are all in place. Of an archive, if one is
    given, how far it is behind.
    """
    log = invocation.load_log()
    archive = invocation.find_archive() if max_lag is None else invocation.open_archive()
    with invocation.connect() as connection:
        found = _read_status(log, connection)
    code = 0
    if archive is not None:
        with invocation.open_engine() as engine:
            found["archive"] = read_standing(
                log,
                engine,
                archive,
                log_id=found["log_id"],
                standby=found["server"]["standby"],
            )
        code = judge_standing(found["archive"], most_seconds=max_lag)
    invocation.emit(lambda: found, lambda: _show_status(found))
    for problem in found["append_only"]["problems"]:
        say(f"warning: {problem}")
    for key in found["keys"]:
        if key["state"] in {"missing", "different"}:
            say(f"warning: the keyring's key {key['key_id']} is {key['state']}")
    for warning in found["transactions"]["warnings"]:
        say(f"warning: {escape(warning)}")
    if archive is not None and found["archive"]["error"] is not None:
        say(f"warning: {escape(found['archive']['error']['message'])}")
        say(f"hint: {escape(found['archive']['error']['hint'])}")
    return code


def _read_status(log: Oplog, connection: Connection) -> dict[str, Any]:
    log.store.require_current(connection)
    counted = log.store.read_status(connection)
    server = read_server_status(connection, log.schema)
    problems = list_guard_problems(connection, log.schema)
    activity = read_activity(connection)
    types: dict[str, dict[str, Any]] = {}
    for shape in log.store.list_types(connection):
        described = types.setdefault(shape.type_name, {"name": shape.type_name, "revisions": []})
        described["table"] = f"{shape.schema}.{shape.table}"
        described["revisions"].append(shape.revision)
    return {
        "schema": log.schema,
        "schema_version": log.store.read_version(connection),
        "log_id": str(log.store.read_log_id(connection)),
        "entries": counted["entries"],
        "aggregates": counted["aggregates"],
        "position": counted["position"],
        "recorded_at": show_time(counted["recorded_at"]),
        "bytes": server.log_bytes,
        "types": list(types.values()),
        "keys": _list_keys(log, log.store.list_keys(connection)),
        "append_only": {"ok": not problems, "problems": problems},
        "transactions": {
            "open": [asdict(one) for one in activity.transactions],
            "warnings": [f"{f.where}: {f.message}" for f in judge_activity(activity)],
        },
        "server": {
            "version": server.version,
            "standby": server.standby,
            "database": server.database,
        },
    }


def _list_keys(log: Oplog, known: Mapping[str, bytes]) -> list[dict[str, str]]:
    """The log's key ids, each with what the application's keyring has under it."""
    keyring = log.keyring
    listed = []
    for key_id, check_value in sorted(known.items()):
        if keyring is None or key_id not in keyring.key_ids:
            state = "missing"
        elif keyring.check_value(key_id) != check_value:
            state = "different"
        else:
            state = "current" if key_id == keyring.current_key_id else "held"
        listed.append({"key_id": key_id, "state": state})
    return listed


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
        yield f"  {key['key_id']}  {key['state']}"
    if "archive" in found:
        yield from show_standing(found["archive"])


def _show_open(transactions: Sequence[Mapping[str, Any]]) -> str:
    if not transactions:
        return "no other transaction"
    prepared = sum(one["prepared"] is not None for one in transactions)
    told = f", {prepared} of them prepared" if prepared else ""
    oldest = max(one["seconds"] for one in transactions)
    return f"{show_count(len(transactions), 'other transaction')}{told}, the oldest for {oldest} s"


@click.command()
@click.option(
    "-n",
    "--last",
    "count",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many of the newest entries; 0 is all of them.",
)
@click.option("--aggregate", metavar="NAME", help="Only entries of this aggregate.")
@click.option(
    "--metadata",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Only transactions that say so; may be repeated, all must hold.",
)
@click.option("--after", type=PLACE, help="Only entries after this place.")
@click.option("--through", type=PLACE, help="Only entries up to this place.")
@redact_option
@reach_option
@standard_options
@pass_invocation
def tail(
    invocation: Invocation,
    *,
    count: int,
    aggregate: str | None,
    pairs: tuple[str, ...],
    after: int | datetime | None,
    through: int | datetime | None,
    redact: bool,
    reach: str | None,
) -> None:
    """The last entries, oldest first: what was done, to what, by whom.

    A time without a zone is UTC.
    """
    metadata = parse_metadata(pairs)
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect() as connection:
        log.store.require_current(connection)
        first, last = (_find_position(log, connection, p, archive) for p in (after, through))
        if count and archive is None:
            flat = tuple((key, value) for key, values in metadata.items() for value in values)
            first = find_tail_start(
                connection,
                EntryFilter(aggregate, flat, first, last),
                schema=log.schema,
                count=count,
            )
        entries: Iterable[LoggedEntry] = log.read(
            connection,
            aggregate=aggregate,
            metadata=metadata,
            after=first,
            through=last,
            archive=archive,
        )
        if count and archive is not None:
            # What the database has no longer cannot be counted from its end.
            entries = deque(entries, maxlen=count)
        invocation.emit(
            lambda: [entry_to_json(entry, redact=redact) for entry in entries],
            lambda: (line for entry in entries for line in show_entry(entry, redact=redact)),
        )


def _find_position(
    log: Oplog,
    connection: Connection,
    place: int | datetime | None,
    archive: Archive | None,
) -> int | None:
    if not isinstance(place, datetime):
        return place
    snapshot = log.store.read_snapshot(connection)
    found = log.store.find_position(connection, place, snapshot=snapshot)
    if archive is None:
        return found
    return max(found, log.open_source(archive).find_position(place))


@click.command()
@click.argument("type_name", metavar="TYPE")
@click.argument("key_texts", metavar="KEY...", nargs=-1, required=True)
@redact_option
@reach_option
@standard_options
@pass_invocation
def history(
    invocation: Invocation,
    *,
    type_name: str,
    key_texts: tuple[str, ...],
    redact: bool,
    reach: str | None,
) -> None:
    """Every change of one row, oldest first.

    When and what, and what its transaction said about itself.
    KEY is the row's primary key as Postgres prints it. A key of several columns is given as
    several arguments, in the key's order, or each as column=value.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    declared = log.catalog.find_types(type_name)[0]
    texts = parse_key(key_texts, [column.name for column in declared.table.primary_key])
    with invocation.connect() as connection:
        log.store.require_current(connection)
        key = read_key(connection, declared.table, texts=texts)
        changes = log.history(connection, declared.table, key, archive=archive)
    document = {
        "type": type_name,
        "key": to_json_value(key),
        "changes": [change_to_json(change, redact=redact) for change in changes],
    }
    invocation.emit(
        lambda: document,
        lambda: (line for change in changes for line in show_change(change, redact=redact)),
    )
    if not changes:
        say(f"the log has nothing about {type_name} {show_key(key)}")
