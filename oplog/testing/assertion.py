"""Assertions for an application's tests: `assert_logged` and `assert_tracked`.

They raise `AssertionError` and do not need pytest. The message of a failed assertion lists what
the log holds instead, so that a failure in CI can be understood without a debugger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.catalog import TypeCatalog
from oplog.declared_models import Models, list_model_tables
from oplog.entry import LoggedEntry, Operation, OpType
from oplog.errors import ConfigurationError, ReplayError
from oplog.facade import Oplog
from oplog.reading.model_tables import choose_model_types
from oplog.replay import Difference, VerifyReport

_SHOWN = 20
"""Number of differences and near misses that a message lists."""
_WIDTH = 200
_ABSENT = object()


@dataclass(frozen=True)
class _Wanted:
    names: set[str] | None
    key: Mapping[str, Any] | None
    kind: OpType | None
    fields: Mapping[str, Any]
    metadata: Sequence[tuple[str, str]]

    def compare(self, entry: LoggedEntry, operation: Operation) -> list[bool]:
        """Return whether type, key, kind, fields and metadata match, in this order."""
        return [
            self.names is None or operation.type_name in self.names,
            self.key is None or dict(operation.key) == self.key,
            self.kind is None or operation.kind is self.kind,
            all(
                (found := operation.fields.get(name, _ABSENT)) is value or found == value
                for name, value in self.fields.items()
            ),
            all(value in entry.metadata.get(name, ()) for name, value in self.metadata),
        ]

    def __str__(self) -> str:
        words = ["any operation" if self.kind is None else self.kind.name.lower()]
        words.append("of any type" if self.names is None else " or ".join(sorted(self.names)))
        if self.key is not None:
            words.append(_show(self.key))
        if self.fields:
            words.append(f"with {_show(self.fields)}")
        if self.metadata:
            said = ", ".join(f"{name}={value!r}" for name, value in self.metadata)
            words.append(f"in a transaction that says {said}")
        return " ".join(words)


def assert_logged(
    log: Oplog,
    connection: Connection,
    model_or_type: Any = None,
    *,
    key: Any = None,
    kind: OpType | str | None = None,
    fields: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str | Iterable[str]] | None = None,
) -> None:
    """Raise `AssertionError` unless the log holds the expected operation.

    With log and connection only, every tracked table must equal its rebuilt rows
    (`Oplog.verify`); if the connection's transaction has written, as it sees them itself.
    Otherwise at least one operation, committed or of that transaction, must match: of this mapped
    class, table or type name (of a table in several schemas the one that the connection means),
    with this primary key (a value, a tuple or a mapping), of this kind (`OpType` or 'create',
    'update', 'delete'), with at least these fields, in a transaction with at least this metadata.
    """
    wanted_kind = OpType[kind.upper()] if isinstance(kind, str) else kind
    pairs = [
        (name, value)
        for name, given in (metadata or {}).items()
        for value in ([given] if isinstance(given, str) else given)
    ]
    if model_or_type is None and all(given is None for given in (key, kind, fields, metadata)):
        _assert_equal(log, connection)
        return
    types = None
    if model_or_type is not None:
        types = choose_model_types(log.catalog, connection, model_or_type)
    names = None if types is None else {declared.type_name for declared in types}
    wanted_key = (
        None if key is None else _spread_key(key, None if types is None else types[0].table)
    )
    wanted = _Wanted(
        names=names, key=wanted_key, kind=wanted_kind, fields=fields or {}, metadata=pairs
    )
    near: list[tuple[int, LoggedEntry, Operation]] = []
    entries = 0
    for entry in log.read(connection):
        entries += 1
        for operation in entry.operations:
            agreed = wanted.compare(entry, operation)
            if all(agreed):
                return
            if agreed[0]:
                # An equal key outweighs all else: a reader looks for what happened to the row.
                near.append((sum(agreed) + 4 * agreed[1], entry, operation))
    raise AssertionError("\n".join([f"not logged: {wanted}", *_describe_near(near, entries)]))


def assert_tracked(catalog: TypeCatalog, models: Models) -> None:
    """Raise `AssertionError` unless every mapped table is logged or untracked with a reason.

    `models` are one or several declarative bases, registries or `MetaData`. A table is untracked by
    `untracked={"table": "reason"}`; an empty reason does not count.
    """
    complaints = []
    for table in list_model_tables(models):
        if catalog.find_table(table) is not None or catalog.find_tenants(table):
            continue
        reason = catalog.untracked.get(table.fullname)
        if reason is None:
            complaints.append(f"{table.fullname}: neither tracked nor in untracked={{...}}")
        elif not reason.strip():
            complaints.append(f"{table.fullname}: in untracked={{...}} without a reason")
    if complaints:
        raise AssertionError(
            "\n  ".join(["tables neither logged nor untracked with a reason:", *sorted(complaints)])
        )


def describe_report(report: VerifyReport) -> str:
    """Describe a report of `verify`, one line for each difference."""
    number = f"{report.count} difference{'' if report.count == 1 else 's'}"
    lines = [f"tables and log differ: {number}"]
    lines += [f"  {_describe_difference(found)}" for found in report.differences[:_SHOWN]]
    if report.count > _SHOWN:
        lines.append(f"  and {report.count - _SHOWN} more")
    return "\n".join(lines)


def _assert_equal(log: Oplog, connection: Connection) -> None:
    try:
        report = log.verify(connection, uncommitted=True)
    except ReplayError as error:
        raise AssertionError(f"the log cannot be compared with the tables: {error}") from error
    if not report.ok:
        raise AssertionError(describe_report(report))


def _describe_difference(found: Difference) -> str:
    where = f"{found.table} {_show(found.key)}"
    if found.kind == "changed":
        return (
            f"{where} column {found.column}: live {_cut(found.live)}, logged {_cut(found.logged)}"
        )
    if found.kind == "missing":
        return f"{where}: the log has this row, the table has not: {_show(found.logged)}"
    return f"{where}: the table has this row, the log has not: {_show(found.live)}"


def _spread_key(key: Any, table: sa.Table | None) -> dict[str, Any]:
    """Return a primary key as a mapping by column."""
    if isinstance(key, Mapping):
        return dict(key)
    names = None if table is None else [column.name for column in table.primary_key]
    parts = list(key) if isinstance(key, tuple | list) else [key]
    if names is None or len(names) != len(parts):
        shown = "any table" if names is None else f"({', '.join(names)})"
        raise ConfigurationError(
            f"{key!r} is not a primary key of {shown}",
            hint="give the mapped class or type name, and a value for each column of its key",
        )
    return dict(zip(names, parts, strict=True))


def _describe_near(near: list[tuple[int, LoggedEntry, Operation]], entries: int) -> Iterator[str]:
    if not near:
        read = f"{entries} entr{'y' if entries == 1 else 'ies'}"
        yield f"the log has nothing of the kind; it holds {read}"
        return
    yield "the log has instead:"
    # The closest matches, and the newest of equally close ones, in the order they were logged.
    best = sorted(near, key=lambda found: (-found[0], -found[1].position))[:_SHOWN]
    for _, entry, operation in sorted(best, key=lambda found: found[1].position):
        said = f", says {_show(entry.metadata)}" if entry.metadata else ""
        yield (
            f"  position {entry.position}: {operation.kind.name.lower()} {operation.type_name} "
            f"{_show(operation.key)} wrote {_show(operation.fields)}{said}"
        )
    if len(near) > _SHOWN:
        yield f"  and {len(near) - _SHOWN} more"


def _show(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name}={_cut(value)}" for name, value in (values or {}).items()) or "nothing"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}…"
