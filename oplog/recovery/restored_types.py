"""The types of a log in the database that it is restored into: found, stored, and kept.

A database that goes on by itself with the columns of an earlier revision gets a next one, so that
its newest revision is that of its tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from oplog.errors import SchemaDriftError
from oplog.payload.lineage import group_shapes
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable, read_database_id
from oplog.reading.given_place import find_place
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import RecordReader
from oplog.recovery.named_tables import require_named
from oplog.recovery.renumbered_types import make_next, mark_absent, place_shapes
from oplog.recovery.target_revisions import find_targets
from oplog.replay.rules import find_turns
from oplog.replay.table_plan import TablePlan, read_plans
from oplog.replay.type_target import TypeTarget
from oplog.store import Store
from oplog.store.adopted import Turns
from oplog.store.type_store import TypeStore


@dataclass(frozen=True)
class Aim:
    """What is restored into which tables, up to position `limit`.

    `absent` are types of which the database has no table, each with the error for its first row.
    """

    placed: Sequence[tuple[LiveTable, TypeTarget]]
    plans: Sequence[TablePlan]
    turns: Mapping[str, Turns]
    limit: int | None
    absent: Mapping[str, SchemaDriftError]


def find_aim(
    connection: Connection,
    reader: RecordReader,
    *,
    log: LogOpener,
    through: int | datetime | None,
) -> Aim:
    """The tables of all types; `SchemaDriftError` if one of them cannot hold what is restored.

    As of an earlier position a type may have no table: the log does not say where its first
    revision begins, so only rows show that there was one. Text settings must be pinned.
    `ConfigurationError` for tables that nobody here names.
    """
    visible = reader.source.read_snapshot()
    limit = find_place(reader, through, snapshot=visible)
    turns = find_turns(reader, snapshot=visible, through=limit)
    whole = turns if limit is None else find_turns(reader, snapshot=visible)
    revisions = group_shapes(reader.types.shapes)
    found = find_targets(connection, revisions, turns, through=limit, whole=whole)
    absent = {} if limit is None else {name: found.refused[name] for name in found.absent}
    for name, error in found.refused.items():
        if name not in absent:
            raise error
    require_named(connection, [live for live, _ in found.placed], log=log)
    reader.aim_steps({name: one.shape.revision for name, one in found.by_type.items()})
    return Aim(found.placed, read_plans(connection, found.placed), turns, limit, absent=absent)


def write_types(
    connection: Connection, log: Store, aim: Aim, shapes: Sequence[Shape], *, lasting: bool
) -> None:
    """Store all revisions, and where this database keeps their columns.

    `lasting`: the database goes on by itself, and does not follow the log.
    """
    here = read_database_id(connection)
    placed = place_shapes(shapes, aim.placed)
    for shape in mark_absent(placed, aim.absent, database=here):
        log.insert_type(connection, shape)
    for live, target in aim.placed:
        following = make_next(live, target) if lasting else None
        if following is not None:
            log.insert_type(connection, following)


def keep_states(connection: Connection, schema: str, aim: Aim, *, lasting: bool) -> None:
    """Keep what the next migration is compared with, where the newest revision is that of now."""
    kept = TypeStore(schema)
    for live, target in aim.placed:
        if target.shape is target.shapes[-1] or (lasting and make_next(live, target) is not None):
            kept.keep_state(connection, target.shape.type_name, table=live.oid)
