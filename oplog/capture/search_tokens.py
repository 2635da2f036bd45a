"""The tokens of a transaction's values in searchable columns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from oplog.capture.record import GatheredWork
from oplog.crypto.blind_index import BlindIndex, IndexedColumn, tag_pairs
from oplog.crypto.keyring import Keyring
from oplog.payload.effect import Effect
from oplog.payload.shape import Shape
from oplog.value.sameness import name_value

MOST_TOKENS = 64
"""Of a record with more values than this, only the columns are named: a search opens it."""


def make_tags(keyring: Keyring, work: GatheredWork) -> list[tuple[str, str]]:
    """The metadata by which the transaction's record is found; none without searchable columns."""
    log = work.work.log
    if not log.searchable:
        return []
    blind = BlindIndex(keyring, log.log_id)
    effects = (effect for several in work.effects.values() for effect in several)
    values = _list_values(effects, log.searchable)
    many: set[IndexedColumn] = set()
    for rows in work.bulk:
        # Their values are read a page at a time, while they are sealed.
        shape = rows.bound.shape
        names = log.searchable.get(shape.type_name, frozenset()).intersection(rows.written)
        many.update(name_column(shape, name) for name in names)
    tokens = [blind.name_column(log.key_id, column) for column in {*values, *many}]
    if sum(map(len, values.values())) > MOST_TOKENS:
        many.update(values)
        values = {}
    tokens += [blind.name_many(log.key_id, column) for column in many]
    tokens += [
        blind.name_value(log.key_id, column, value)
        for column, several in values.items()
        for value in several
    ]
    return tag_pairs(tokens)


def name_column(shape: Shape, name: str) -> IndexedColumn:
    """A column as its tokens know it."""
    return IndexedColumn(shape.type_name, shape.by_name[name].number)


def _list_values(
    effects: Iterable[Effect], searchable: Mapping[str, frozenset[str]]
) -> dict[IndexedColumn, set[bytes]]:
    """What was written to each searchable column."""
    found: dict[IndexedColumn, set[bytes]] = {}
    for effect in effects:
        shape = effect.shape
        names = searchable.get(shape.type_name)
        for name in names.intersection(effect.values) if names else ():
            value = name_value(shape.codecs[name].pg_type, effect.values[name])
            found.setdefault(name_column(shape, name), set()).add(value)
    return found
