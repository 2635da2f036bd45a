"""Primary keys as parameters give them, in the form that the database stores.

What a parameter is certain to be stored as is known without asking. Text is asked for, where its
meaning does not depend on the session. Anything else cannot be spelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from oplog.capture.readback import normalise_keys, require_fixed_text
from oplog.capture.row_change import Key
from oplog.capture.statement_plan import BoundColumn, StatementPlan
from oplog.capture.uncertain import describe_uncertain
from oplog.postgres.sent_value import find_foreign, is_read_plainly
from oplog.type_binding import BoundType
from oplog.value import UNSURE


@dataclass(frozen=True, slots=True)
class GivenKeys:
    """Parts of keys, one list for each set of parameters.

    In the columns with the numbers `unsure` some may be stored in another form.
    """

    rows: list[list[Any]]
    unsure: Sequence[int]


def list_parameters(context: Any) -> Sequence[Mapping[str, Any]]:
    """The parameters as sent, by name, one mapping for each set."""
    sets: Sequence[Any] = context.parameters
    if sets and not isinstance(sets[0], Mapping):
        names = context.compiled.positiontup
        return [dict(zip(names, values, strict=True)) for values in sets]
    return sets


def find_foreign_types(
    connection: Connection, columns: Sequence[BoundColumn], parameters: Sequence[Mapping[str, Any]]
) -> frozenset[type]:
    """Types whose values the application adapts itself: what is stored is anyone's guess."""
    names = [column.parameter for column in columns]
    return find_foreign(connection, [sent[name] for sent in parameters for name in names])


def take_keys(
    connection: Connection,
    bound: BoundType,
    columns: Sequence[BoundColumn],
    parameters: Sequence[Mapping[str, Any]],
) -> GivenKeys:
    """The keys that parameters give; asks the database nothing.

    Raises `NotCapturableError` for keys that cannot be spelled.
    """
    foreign = find_foreign_types(connection, columns, parameters)
    keys: list[list[Any]] = []
    unsure: dict[int, None] = {}
    for sent in parameters:
        key = []
        for place, column in enumerate(columns):
            value = sent[column.parameter]
            wire = None if value is None else column.to_wire(value)
            if wire is UNSURE or type(value) in foreign:
                unsure[place] = None
                wire = value
            key.append(wire)
        keys.append(key)
    for place in unsure:
        _check_spellable(bound, [key[place] for key in keys], name=columns[place].name)
    return GivenKeys(keys, tuple(unsure))


def _check_spellable(bound: BoundType, given: Sequence[Any], *, name: str) -> None:
    if not all(isinstance(value, str) for value in given):
        raise describe_uncertain(
            bound,
            f"the value given for key column {name} may be stored in another form",
            hint="use the Python type that matches the column for primary keys, or guard the table",
        )
    require_fixed_text(bound, name)


def spell_keys(
    connection: Connection, bound: BoundType, columns: Sequence[BoundColumn], given: GivenKeys
) -> list[Key]:
    """The same keys in the form the database stores."""
    for place in given.unsure:
        texts = [key[place] for key in given.rows]
        spelled = normalise_keys(connection, bound, texts, name=columns[place].name)
        for key, wire in zip(given.rows, spelled, strict=True):
            key[place] = wire
    return [tuple(key) for key in given.rows]


def check_moves(
    connection: Connection, plan: StatementPlan, parameters: Sequence[Mapping[str, Any]]
) -> None:
    """Raise unless the new keys of an UPDATE that changes keys are stored as they are sent."""
    names = plan.bound.shape.key_names
    moved = [column for column in plan.columns if column.name in names]
    if moved and take_keys(connection, plan.bound, moved, parameters).unsure:
        raise describe_uncertain(plan.bound, "its new primary key is not stored as it is sent")


def check_returned(connection: Connection, plan: StatementPlan) -> None:
    """Raise unless the driver reads the key that an INSERT returns as it is stored."""
    for column in plan.returned_key:
        if not column.exact or not is_read_plainly(connection, column.loaded):
            raise describe_uncertain(
                plan.bound,
                f"what comes back of the key column {column.name} may be stored in another form",
                hint="give the key's values in the parameters, or guard the table",
            )
