"""Which rows of some tables the records of a stretch of the log touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from oplog.past.key_folds import TouchFold
from oplog.past.moment_plans import list_types
from oplog.payload.codec import Effect
from oplog.reading.reader import OpenedRecord, RecordReader
from oplog.replay.fold import Fold
from oplog.replay.table_plan import TablePlan


@dataclass(slots=True)
class Touched:
    """Touched rows by table.

    `anew`: rows were adopted, or logged again after DDL, so that the aggregates are not those that
    the rows are in. `too_many`: more rows were touched than was asked for, and the scan ended
    there.
    """

    folds: Mapping[TablePlan, TouchFold]
    anew: bool = False
    too_many: bool = False


def scan_touched(
    reader: RecordReader,
    plans: Sequence[TablePlan],
    *,
    snapshot: str,
    after: int,
    through: int | None = None,
    most: int | None = None,
) -> Touched:
    """The rows that records after position `after` touched.

    With `most` the scan ends where it finds more of them, or rows that were logged anew.
    """
    folds = {plan: TouchFold(plan) for plan in plans}
    by_type = {name: folds[plan] for name, plan in list_types(plans).items()}
    touched = Touched(folds)
    fold = Fold(by_type)
    for record in reader.iterate_records(snapshot, after=after, through=through):
        for effect in choose_effects(record, by_type):
            touched.anew = touched.anew or effect.adopted
            by_type[effect.shape.type_name].aggregate = record.stored.aggregates[effect.place]
            fold.add((effect,), position=record.stored.position)
        if most is not None and touched.anew:
            # Such a scan is of no use to its caller, and an adoption is long.
            break
        if most is not None and sum(len(one.first) for one in folds.values()) > most:
            touched.too_many = True
            break
    return touched


def choose_effects(record: OpenedRecord, types: Mapping[str, object]) -> Iterator[Effect]:
    """A record's effects on rows of these types."""
    return (effect for effect in record.effects if effect.shape.type_name in types)
