"""Finds the revision of each type that the tables of a database have, to restore rows into them.

The database may have been migrated to any revision of the log, as long as all that the restored
rows hold has a place in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from oplog.errors import SchemaDriftError
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.postgres.table_place import (
    Labels,
    Name,
    fits,
    has_labels,
    is_same_type,
    read_labels,
    read_named_tables,
)
from oplog.replay.type_target import TypeTarget, find_then, leave_later
from oplog.store.adopted import Turns


@dataclass(slots=True)
class Targets:
    """Tables of a database, each with the revision of a type that it has the columns of.

    `refused` has, by type, why there is none; `absent` are those of them of which the database
    has no table at all.
    """

    placed: list[tuple[LiveTable, TypeTarget]] = field(default_factory=list)
    refused: dict[str, SchemaDriftError] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    @property
    def by_type(self) -> Mapping[str, TypeTarget]:
        """The revision of each type that has a table."""
        return {target.shape.type_name: target for _, target in self.placed}


def find_targets(
    connection: Connection,
    revisions: Mapping[str, Sequence[Shape]],
    turns: Mapping[str, Turns],
    *,
    through: int | None = None,
    whole: Mapping[str, Turns] | None = None,
    lossy: bool = False,
) -> Targets:
    """The table and the revision of each type that has rows at position `through`, None for now.

    `revisions` are all of the log, rising; `turns` are those up to there, `whole` those of the
    whole log. Types whose tables were gone there are left out. With `lossy`, a table may lack
    places for some of the values.
    """
    names = {(s.schema, s.table) for shapes in revisions.values() for s in shapes}
    live = read_named_tables(connection, names)
    labels = read_labels(connection, [table.oid for table in live.values()])
    then = {}
    for name, shapes in revisions.items():
        all_turns = (whole or turns).get(name, Turns())
        found = find_then(shapes, turns.get(name, Turns()), through, whole=all_turns)
        if found is not None:
            then[name] = found
    chosen = Targets()
    then = leave_later(then, revisions)
    for name, shape in then.items():
        others = {
            column
            for other, one in then.items()
            if other != name and (one.schema, one.table) == (shape.schema, shape.table)
            for column in one.names
        }
        try:
            chosen.placed.append(
                _choose(shape, revisions[name], _Tables(live, labels), others, lossy=lossy)
            )
        except SchemaDriftError as error:
            chosen.refused[name] = error
            if not any((one.schema, one.table) in live for one in revisions[name]):
                chosen.absent.add(name)
    _refuse_shared(chosen)
    return chosen


@dataclass(frozen=True, slots=True)
class _Tables:
    """Tables by name, and the labels of their enums."""

    live: Mapping[Name, LiveTable]
    labels: Labels


def _choose(
    then: Shape,
    shapes: Sequence[Shape],
    tables: _Tables,
    others: Iterable[str],
    *,
    lossy: bool,
) -> tuple[LiveTable, TypeTarget]:
    best: tuple[LiveTable, TypeTarget] | None = None
    for shape in _order(then, shapes):
        table = tables.live.get((shape.schema, shape.table))
        if table is None or not fits(shape, table, shapes, others=others):
            continue
        if not has_labels(shape, table, shapes, tables.labels):
            continue
        target = TypeTarget(shape, shapes)
        if not target.list_lost(then):
            return table, target
        best = best or (table, target)
    if best is not None and lossy:
        return best
    if best is not None:
        raise refuse_loss(then, best[0], best[1])
    raise _refuse_unknown(then, shapes, tables.live)


def _order(then: Shape, shapes: Sequence[Shape]) -> Iterator[Shape]:
    """The revision of then, earlier ones from the newest on, later ones from the oldest on."""
    yield from (s for s in reversed(shapes) if s.revision <= then.revision)
    yield from (s for s in shapes if s.revision > then.revision)


def _refuse_shared(chosen: Targets) -> None:
    """Refuse types that were found in the table of another: only one of the two is in its own."""
    for place, (table, target) in enumerate(chosen.placed):
        for other_table, other in chosen.placed[:place]:
            mine, its = target.shapes[-1], other.shapes[-1]
            if table.oid == other_table.oid and (mine.schema, mine.table) != (
                its.schema,
                its.table,
            ):
                raise SchemaDriftError(
                    f"table {table.schema}.{table.name} is that of type {mine.type_name!r} "
                    f"revision {target.shape.revision} and of type {its.type_name!r} revision "
                    f"{other.shape.revision}",
                    hint="migrate the database to one revision of the application",
                )


def refuse_loss(then: Shape, table: LiveTable, target: TypeTarget) -> SchemaDriftError:
    """The error for rows of revision `then` whose values the table has no place for."""
    lost = ", ".join(target.list_lost(then))
    return SchemaDriftError(
        f"{table.schema}.{table.name} has the columns of type {then.type_name!r} revision "
        f"{target.shape.revision}, and rows to be restored are of revision {then.revision}: values "
        f"of {lost} would be lost",
        hint=f"migrate the empty database to revision {then.revision} of the type: "
        f"{_describe(then)}",
    )


def _refuse_unknown(
    then: Shape, shapes: Sequence[Shape], live: Mapping[Name, LiveTable]
) -> SchemaDriftError:
    hint = (
        f"migrate the empty database to revision {then.revision} of type {then.type_name!r}: "
        f"{_describe(then)}"
    )
    table = live.get((then.schema, then.table))
    for shape in _order(then, shapes):
        table = table or live.get((shape.schema, shape.table))
    if table is None:
        return SchemaDriftError(
            f"table {then.schema}.{then.table} is in the log (type {then.type_name!r}) and not in "
            "the database",
            hint=hint,
        )
    aside = {name for known in shapes for name in known.excluded}
    columns = {c.name: c for c in table.columns if not c.generated}
    whys = [
        *(f"column {name} is not in the table" for name in then.names if name not in columns),
        *(
            f"column {name} is {columns[name].pg_type} in the table and {column.pg_type} in the log"
            for name, column in then.by_name.items()
            if name in columns and not is_same_type(columns[name].pg_type, column.pg_type)
        ),
        *(
            f"column {name} is in the table and not in the log"
            for name in columns
            if name not in then.by_name and name not in aside
        ),
    ]
    if set(table.key_names) != set(then.key_names):
        whys.append(
            f"the primary key is ({', '.join(table.key_names)}) in the table and "
            f"({', '.join(then.key_names)}) in the log"
        )
    return SchemaDriftError(
        f"{table.schema}.{table.name} has the columns of no revision of type {then.type_name!r}: "
        f"{'; '.join(whys) or 'they are other columns of these names, or enums with other labels'}",
        hint=hint,
    )


def _describe(shape: Shape) -> str:
    columns = ", ".join(f"{column.name} {column.pg_type}" for column in shape.columns)
    return f"table {shape.schema}.{shape.table} ({columns})"
