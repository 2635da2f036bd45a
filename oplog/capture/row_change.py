"""One statement's effect on one row, and what has to be known of the row's type.

Plain data without SQL. `TrackedType` is the part of `oplog.binding.BoundType` that does not
depend on a database, so that folding, grouping and building need no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from oplog.entry import OpType
from oplog.payload.shape import Shape
from oplog.value import Wire

Key = tuple[Wire | None, ...]
"""The primary key of a row, in the order of `shape.key_columns`."""


class Template(Protocol):
    """The aggregate template of a type; implemented by `AggregateTemplate` in `oplog.payload`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the aggregate's name depends on."""
        ...

    @property
    def constant(self) -> str:
        """The name of every row's aggregate, where the template has no columns."""
        ...

    def render(self, texts: Mapping[str, str | None]) -> str:
        """The aggregate's name for these column values, given as text."""
        ...


class TrackedType(Protocol):
    """The type of a tracked table; implemented by `oplog.binding.BoundType`."""

    @property
    def shape(self) -> Shape:
        """The logged columns and their codecs."""
        ...

    @property
    def template(self) -> Template:
        """How rows are grouped into aggregates."""
        ...

    @property
    def affixes(self) -> tuple[str, str] | None:
        """What stands around the key in a name, if a whole number there needs no check."""
        ...

    @property
    def regroups(self) -> bool:
        """The aggregate's name depends on more than the primary key."""
        ...


@dataclass(slots=True)
class RowChange:
    """One statement's effect on one row.

    `values` are written values that are certain, `unknown` written columns whose value only the
    database knows, `group` the row's template columns before the statement, where they are not
    part of the key. `moved_to` is the new key of an update that changes the key.
    """

    kind: OpType
    bound: TrackedType
    key: Key
    values: dict[str, Wire | None]
    unknown: tuple[str, ...] = ()
    group: Mapping[str, Wire | None] | None = None
    moved_to: Key | None = None
