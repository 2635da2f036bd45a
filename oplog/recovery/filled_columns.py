"""Gives a follower's rows what rows of the log got when a column was added.

A follower is migrated by itself, and a default such as `now()` had another value there. Rows that
are there when its table first has the column are all from before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.postgres.quoting import quote
from oplog.postgres.work import Driver
from oplog.replay.table_plan import TablePlan
from oplog.replay.type_target import TypeTarget


def list_added(live: LiveTable, target: TypeTarget, known: Iterable[Shape]) -> set[str]:
    """Columns that the table has since it was last looked at.

    `known` are the revisions as this database had them then, rising.
    """
    before = [
        shape
        for shape in known
        if shape.type_name == target.shape.type_name
        and any((n.database, n.table) == (live.database, live.oid) for n in shape.numbers)
    ]
    if not before:
        return set()
    return {c.name for c in target.shape.columns if c.number not in before[-1].by_number}


def fill_columns(
    driver: Driver, plans: Sequence[TablePlan], added: Iterable[tuple[TypeTarget, set[str]]]
) -> None:
    """Set the columns of all rows to what the log says; triggers must be disabled."""
    by_type = {name: plan for plan in plans for name in plan.types}
    for target, names in added:
        plan, fills = by_type[target.shape.type_name], target.find_fills()
        for name in sorted(names & fills.keys() & set(plan.names)):
            # Without one, the log says that there was no value.
            fill = plan.fills.get(name, "NULL")
            if fill == "NULL" and plan.live_columns[name].not_null:
                continue
            column = quote(name)
            # As text: not every type can be compared.
            driver.execute(
                f"UPDATE {plan.live.qualified} SET {column} = {fill} WHERE {column}::text "
                f'COLLATE "C" IS DISTINCT FROM ({fill})::text COLLATE "C"'
            )
