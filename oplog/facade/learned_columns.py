"""What a program's settings say of columns whose tables are learned from the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from oplog.catalog import DeclaredType
from oplog.errors import ConfigurationError
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.postgres.type_evolution import follow_names, name_each_row

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """Columns that are left out, each with the reason, and secret ones, as `table.column`.

    A table in another schema than `public` may also be named with its schema.
    """

    exclude: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    secret: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for equal choices, to remember what was learned under each."""
        return tuple(sorted(self.exclude.items())), tuple(sorted(self.secret))

    def declare(self, live: LiveTable, stored: list[Shape]) -> DeclaredType | None:
        """What this says of a table; None if nothing. What the log leaves out stays left out.

        Raises `ConfigurationError` for a column that the table does not have, and for one of its
        key.
        """
        excluded, secret = self._find(live, self.exclude), self._find(live, self.secret)
        if not (excluded or secret):
            return None
        for name in excluded:
            if name in live.key_names:
                raise ConfigurationError(
                    f"exclude names {live.qualified}.{name}, which is a part of the primary key",
                    hint="the log cannot tell rows without it: leave it in, or untrack the table",
                )
        template = name_each_row(live)
        kept: dict[str, str] = {}
        if stored:
            names = follow_names(stored[-1], live)
            kept = {names[n]: why for n, why in stored[-1].excluded.items() if n in names}
            template = AggregateTemplate(stored[-1].aggregate).rename(names).text
        reasons = {name: self.exclude[given] for name, given in excluded.items()}
        table = sa.Table(live.name, sa.MetaData(), schema=live.schema)
        return DeclaredType(
            live.name,
            table,
            AggregateTemplate(template),
            excluded={**kept, **reasons},
            secret=frozenset(secret),
        )

    def mark(self, found: DeclaredType, declared: DeclaredType | None) -> DeclaredType:
        """A type as it was found, with what is secret of its logged columns."""
        if declared is None:
            return found
        return replace(found, secret=declared.secret - set(found.excluded))

    def _find(self, live: LiveTable, names: Mapping[str, str] | frozenset[str]) -> dict[str, str]:
        """The columns of a table that are among these names, each with the name as it was given."""
        places = {live.name, f"{live.schema}.{live.name}"}
        present = {column.name for column in live.columns}
        found = {}
        for given in sorted(names):
            table, _, column = given.rpartition(".")
            if table not in places:
                continue
            if column not in present:
                raise ConfigurationError(
                    f"the settings name {given}, and {live.qualified} has no column {column!r}",
                    hint=f"its columns are {', '.join(sorted(present))}",
                )
            found[column] = given
        return found
