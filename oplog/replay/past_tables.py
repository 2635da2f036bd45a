"""The tables of a log at one of its positions, whatever became of them since.

A table that the database has in that shape is made like the live one. Any other is made from the
stored revision: its columns and its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy.engine import Connection

from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.postgres.table_place import Place, find_places, fits
from oplog.replay.table_plan import TablePlan, make_stored_plan, read_plans
from oplog.replay.type_target import TypeTarget, find_then, leave_later
from oplog.store.adopted import Turns


def plan_past(
    connection: Connection,
    shapes: Iterable[Shape],
    turns: Mapping[str, Turns],
    *,
    through: int | None,
    whole: Mapping[str, Turns],
) -> list[TablePlan]:
    """Plans of all tables that there were at position `through`, None for now.

    `shapes` are all revisions of all types, `turns` those up to there, `whole` those of the log.
    Text settings must be pinned.
    """
    revisions = group_shapes(shapes)
    places = find_places(connection, revisions)
    placed: list[tuple[LiveTable, TypeTarget]] = []
    stored: list[TypeTarget] = []
    then = {
        name: found
        for name, known in revisions.items()
        for found in [_find_then(name, known, places, turns, through=through, whole=whole)]
        if found is not None
    }
    for name, shape in leave_later(then, revisions).items():
        known = revisions[name]
        target, live = TypeTarget(shape, known), places[name].live
        others = _list_others(name, places, revisions)
        if live is not None and _is_live(shape, places[name], known, others):
            placed.append((live, target))
        else:
            stored.append(target)
    plans = read_plans(connection, placed)
    spelled = _find_types(connection, {c.pg_type for one in stored for c in one.shape.columns})
    return [*plans, *(_plan_stored(target, spelled) for target in stored)]


def _find_then(
    name: str,
    known: Sequence[Shape],
    places: Mapping[str, Place],
    turns: Mapping[str, Turns],
    *,
    through: int | None,
    whole: Mapping[str, Turns],
) -> Shape | None:
    found = find_then(known, turns.get(name, Turns()), through, whole=whole.get(name, Turns()))
    place = places[name]
    if through is None and found is not None and place.live is not None and place.noted is not None:
        # A database that was restored with the columns of an earlier revision has these.
        own = place.noted if place.noted is not found else found
        return own if fits(own, place.live, known) else found
    return found


def _is_live(then: Shape, place: Place, known: Sequence[Shape], others: set[str]) -> bool:
    live = place.live
    return (
        live is not None
        and not place.dropped
        and (live.schema, live.name) == (then.schema, then.table)
        and fits(then, live, known, others=others)
        and not _list_relabelled(then, known)
        and not _list_rewritten(then, known)
    )


def _list_others(
    name: str, places: Mapping[str, Place], revisions: Mapping[str, Sequence[Shape]]
) -> set[str]:
    """Columns that other types of the same table log."""
    live = places[name].live
    return {
        column
        for other, place in places.items()
        if other != name and live is not None and place.live is not None
        if place.live.oid == live.oid
        for column in revisions[other][-1].names
    }


def _list_relabelled(then: Shape, known: Sequence[Shape]) -> set[int]:
    """Columns whose enum has other labels now."""
    return {
        number
        for shape in known
        if shape.revision > then.revision
        for number in shape.change.labels
        if number in then.by_number
    }


def _list_rewritten(then: Shape, known: Sequence[Shape]) -> set[int]:
    """Columns that were converted since: a type of the same name may be another one now."""
    return {
        number
        for shape in known
        if shape.revision > then.revision
        for number in shape.change.rewritten
        if number in then.by_number
    }


def _plan_stored(target: TypeTarget, spelled: Mapping[str, bool]) -> TablePlan:
    shape = target.shape
    newest = target.shapes[-1]
    # Labels and fields of types are not in the log: one of that name may have others now.
    changed = _list_relabelled(shape, target.shapes) | {
        column.number
        for column in shape.columns
        if (column.category == "E" or spelled.get(column.pg_type))
        and (
            column.number not in newest.by_number
            or column.number in _list_rewritten(shape, target.shapes)
        )
    }
    return make_stored_plan(
        target,
        spelled={
            column.number: column.pg_type
            for column in shape.columns
            if column.pg_type in spelled and column.number not in changed
        },
        schema=shape.schema,
        table=shape.table,
    )


def _find_types(connection: Connection, names: Iterable[str]) -> Mapping[str, bool]:
    """Those that the database has, unless it has a domain in it that could refuse values of then.

    True for one that was created here, or has such elements.
    """
    rows = connection.exec_driver_sql(
        "SELECT w.name, t.oid >= 16384 OR t.typelem >= 16384 "
        "FROM pg_catalog.unnest(%s::text[]) AS w(name) "
        "JOIN pg_catalog.pg_type t ON t.oid = pg_catalog.to_regtype(w.name) "
        "WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.oid = t.typelem "
        "AND e.typtype = 'd')",
        (sorted(names),),
    )
    return {row[0]: row[1] for row in rows}
