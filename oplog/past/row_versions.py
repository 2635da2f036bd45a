"""The versions of one row: what each transaction made of it, and who did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from oplog.catalog import DeclaredType
from oplog.entry import Change, OpType
from oplog.json_value import format_time, hide, to_json_value
from oplog.reading.reader import RecordReader
from oplog.reading.type_match import match_type


class VersionRow(Mapping[str, Any]):
    """A row's columns, by name and as attributes; values have the types that `history` gives.

    A column that is called like a method of mappings, such as `items`, is found by name alone.
    """

    __slots__ = ("_columns",)

    def __init__(self, columns: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_columns", dict(columns))

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._columns[name]
        except KeyError:
            raise AttributeError(f"the row has no column {name!r}") from None

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} cannot be set: the row is of the past")

    def __reduce__(self) -> tuple[type[VersionRow], tuple[dict[str, Any]]]:
        # A copy is made without __init__ first, and has no columns to look a name up in.
        return VersionRow, (self._columns,)

    def __repr__(self) -> str:
        return f"VersionRow({self._columns!r})"


@dataclass(frozen=True, slots=True)
class RowVersion:
    """A row after one transaction.

    `number` counts from 1. `row` is None after a delete, and where the log did not know the row: it
    was changed before it was adopted. `changes` are the columns that became others, each with the
    old and the new value. `previous` and `next` are the versions beside this one, or None.
    """

    number: int
    position: int
    kind: OpType
    row: VersionRow | None
    changes: Mapping[str, tuple[Any, Any]]
    metadata: Mapping[str, list[str]]
    recorded_at: datetime
    _all: Sequence[RowVersion] = field(repr=False, compare=False)

    @property
    def previous(self) -> RowVersion | None:
        """The version before; None for the first."""
        return self._all[self.number - 2] if self.number > 1 else None

    @property
    def next(self) -> RowVersion | None:
        """The version after; None for the newest."""
        return self._all[self.number] if self.number < len(self._all) else None

    def to_json(self, *, redact: bool = False) -> dict[str, Any]:
        """The version as one JSON object; `redact` hides values."""
        return {
            "number": self.number,
            "position": self.position,
            "kind": self.kind.name.lower(),
            "recorded_at": format_time(self.recorded_at),
            "metadata": {key: list(values) for key, values in self.metadata.items()},
            "row": None if self.row is None else to_json_value(hide(self.row, redact=redact)),
            "changes": show_changes(self.changes, redact=redact),
        }


def show_changes(changes: Mapping[str, tuple[Any, Any]], *, redact: bool) -> dict[str, Any]:
    """Changed columns for JSON: of each the value `from` which and `to` which it changed."""
    before = to_json_value(hide({n: old for n, (old, _) in changes.items()}, redact=redact))
    after = to_json_value(hide({n: new for n, (_, new) in changes.items()}, redact=redact))
    return {name: {"from": before[name], "to": after[name]} for name in changes}


def list_versions(
    changes: Sequence[Change],
    reader: RecordReader,
    types: Sequence[DeclaredType],
    *,
    now: bool,
) -> list[RowVersion]:
    """The versions that a row's changes make, oldest first; with all columns of `now` if asked."""
    names: list[str] = []
    for declared in types if now else ():
        shape = match_type(reader.types.latest, declared)
        names += [] if shape is None else shape.names
    versions: list[RowVersion] = []
    before: dict[str, Any] | None = None
    for number, change in enumerate(changes, 1):
        row = before
        if change.kind is OpType.CREATE:
            row = dict.fromkeys(names) | dict(change.fields)
        elif change.kind is OpType.DELETE:
            row = None
        elif before is not None:
            row = before | dict(change.fields)
        version = RowVersion(
            number=number,
            position=change.position,
            kind=change.kind,
            row=None if row is None else VersionRow(row),
            changes=compare_rows(before, row),
            metadata=change.metadata,
            recorded_at=change.recorded_at,
            _all=versions,
        )
        versions.append(version)
        before = row
    return versions


def compare_rows(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """Columns that differ, with both values; of a row that is not there they are None."""
    one, other = before or {}, after or {}
    return {
        name: (one.get(name), other.get(name))
        for name in dict.fromkeys((*one, *other))
        if not is_same(one.get(name), other.get(name))
    }


def is_same(one: object, other: object) -> bool:
    """Whether two values are the same as stored: NaN is itself, -0.0 is not 0.0, 1.0 not 1.00."""
    return one is other or (type(one) is type(other) and repr(one) == repr(other))
