"""Images that the guards kept, made into net rows.

An image says which rows a statement touched that was not announced to the guard. Images have no
order, because cascades and triggers nest, and need none: how often a row entered and left its
key, and whether it is there now, say whether it was there before. Its values are read from the
table, where the last writer left them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.net_row import NetRow
from oplog.capture.readback import read_rows
from oplog.capture.returned_columns import is_loose
from oplog.capture.row_change import Key, RowChange, TrackedType
from oplog.capture.unseen import describe_hidden, hides_rows
from oplog.entry import OpType
from oplog.errors import CaptureMismatchError, UnloggedWriteError
from oplog.schema.touched_keys import weigh
from oplog.store.guard_state import Image
from oplog.type_binding import BoundType
from oplog.value import Wire

Group = tuple[Wire | None, ...]
Stored = Mapping[str, Wire | None]


_NOTHING: frozenset[str] = frozenset()


@dataclass(slots=True)
class TouchedRow:
    """One key of one table, and what images and changes say of the rows under it.

    `balance` counts, for each state of the columns that name its aggregate, how often a row
    left it less how often one entered it; None if nothing came or went.
    """

    bound: BoundType
    key: Key
    changed: frozenset[str] = _NOTHING
    balance: dict[Group, int] | None = None

    def leave(self, group: Group) -> None:
        """A row was deleted, or moved away."""
        self._count(group, 1)

    def enter(self, group: Group) -> None:
        """A row was inserted, or moved here."""
        self._count(group, -1)

    def _count(self, group: Group, times: int) -> None:
        if self.balance is None:
            self.balance = {}
        self.balance[group] = self.balance.get(group, 0) + times

    @property
    def is_doubtful(self) -> bool:
        """If the row is not found, it may be hidden.

        Otherwise it left once more than it entered, so it is certainly gone.
        """
        return sum((self.balance or {}).values()) != 1


Touched = dict[tuple[str, Key], TouchedRow]


def measure(images: Iterable[Image]) -> int:
    """What the rows of the images added to the transaction's tally."""
    return sum(image.rows * weigh(image.operation, image.relation) for image in images)


def touch_rows(
    images: Iterable[Image], *, binding: Binding, changes: Iterable[RowChange]
) -> Touched:
    """Every row that an image touched, with what `changes` did to the same rows.

    Raises `UnloggedWriteError` for a table that the catalog does not have.
    """
    touched: Touched = {}
    for image in images:
        _add_image(touched, image, binding.find_relation(image.relation))
    for change in changes if touched else ():
        _add_change(touched, change)
    return touched


def read_touched_rows(connection: Connection, touched: Touched) -> list[NetRow]:
    """What happened to the touched rows, with their values as the tables have them now.

    A row whose final state equals its initial one yields a `NetRow` without values. Raises
    `CaptureMismatchError` where images and table contradict each other, and
    `NotCapturableError` where a row may be hidden.
    """
    net_rows: list[NetRow] = []
    by_type: dict[str, list[TouchedRow]] = {}
    for row in touched.values():
        by_type.setdefault(row.bound.shape.type_name, []).append(row)
    for rows in by_type.values():
        net_rows += _read_type(connection, rows)
    return net_rows


def list_group_names(bound: TrackedType) -> tuple[str, ...]:
    """Columns that name the aggregate and are not in the key."""
    return tuple(n for n in bound.template.columns if n not in bound.shape.key_names)


def _add_image(touched: Touched, image: Image, bound: BoundType) -> None:
    split = _Splitter(image, bound)
    name = bound.shape.type_name
    olds = [] if image.old_rows is None else [split(texts) for texts in image.old_rows]
    news = [] if image.new_rows is None else [split(texts) for texts in image.new_rows]

    def touch(key: Key) -> TouchedRow:
        row = touched.get((name, key))
        if row is None:
            row = touched[name, key] = TouchedRow(bound, key)
        return row

    if image.operation == "U":
        # One set shared by all rows of the image, which may be a hundred thousand.
        changed = frozenset(image.changed).intersection(bound.shape.names)
        for n, new in enumerate(news):
            row = touch(new[0])
            row.changed = row.changed | changed if row.changed else changed
            if olds and olds[n] != new:
                touch(olds[n][0]).leave(olds[n][1])
                row.enter(new[1])
    for key, group in olds if image.operation == "D" else ():
        touch(key).leave(group)
    for key, group in news if image.operation == "I" else ():
        touch(key).enter(group)


class _Splitter:
    """From an image's texts to a key and a group."""

    def __init__(self, image: Image, bound: BoundType) -> None:
        kept = list(image.kept)
        codecs = bound.shape.codecs
        try:
            self._key = [(kept.index(n), codecs[n].from_text) for n in bound.shape.key_names]
            self._group = [(kept.index(n), codecs[n].from_text) for n in list_group_names(bound)]
        except ValueError as cause:
            raise UnloggedWriteError(
                f"table {bound.live.qualified} was changed before its aggregate template "
                f"{bound.template.text!r} was known to the log",
                hint="it is known now: run the transaction again",
                retryable=True,
            ) from cause

    def __call__(self, texts: Sequence[str | None]) -> tuple[Key, Group]:
        return self._read(self._key, texts), self._read(self._group, texts)

    @staticmethod
    def _read(places: Sequence[tuple[int, object]], texts: Sequence[str | None]) -> Group:
        values = []
        for place, parse in places:
            text = texts[place]
            values.append(None if text is None else parse(text))  # type: ignore[operator]
        return tuple(values)


def _add_change(touched: Touched, change: RowChange) -> None:
    """An announced change of a row that an image touched too."""
    name, bound = change.bound.shape.type_name, change.bound
    row = touched.get((name, change.key))
    if row is not None:
        row.changed = row.changed.union(change.values, change.unknown)
        if change.kind is OpType.CREATE:
            row.enter(_group_of(bound, change.values))
        elif change.kind is OpType.DELETE or change.moved_to not in (None, change.key):
            row.leave(_group_of(bound, change.group or {}))
    if change.moved_to is not None and change.moved_to != change.key:
        moved = touched.get((name, change.moved_to))
        if moved is not None:
            moved.enter(_group_of(bound, change.group or {}))


def _group_of(bound: TrackedType, values: Stored) -> Group:
    # Announced changes have their group (see `planning`), unless the stored form of a value is
    # not certain. "?" then stands for it: the row is still counted, and where the group would
    # have to be known the images contradict each other, which is refused.
    return tuple(values.get(name, "?") for name in list_group_names(bound))


def _read_type(connection: Connection, rows: Sequence[TouchedRow]) -> list[NetRow]:
    """Net rows of one table, as the table has them now."""
    bound = rows[0].bound
    wanted: dict[str, None] = dict.fromkeys((*list_group_names(bound), *_list_loose(bound)))
    if any(row.balance is not None for row in rows):
        wanted = dict.fromkeys(bound.shape.names)
    else:
        for changed in {row.changed for row in rows}:
            wanted.update(dict.fromkeys(changed))
    # The statement that collected the images has set the text settings.
    found = read_rows(
        connection, bound, [row.key for row in rows], columns=tuple(wanted), settings_fixed=True
    )
    return settle_rows(connection, rows, found)


def settle_rows(
    connection: Connection, rows: Sequence[TouchedRow], found: Sequence[Stored | None]
) -> list[NetRow]:
    """Net rows of touched rows of one table, which were found as they are given."""
    bound = rows[0].bound
    keys = frozenset(bound.shape.key_names)
    found = _drop_respelled(bound, rows, found)
    for row, stored in zip(rows, found, strict=True):
        if stored is None and row.is_doubtful and hides_rows(connection, bound):
            raise describe_hidden(bound, f"the row with key {row.key!r} was written")
    net_rows = []
    for row, stored in zip(rows, found, strict=True):
        if row.balance is None and stored is not None and not bound.regroups:
            # The usual row of a bulk update: its key, which names its aggregate, did not change.
            values = {name: stored[name] for name in row.changed - keys}
            net_rows.append(NetRow(bound, row.key, existed=True, values=values))
            continue
        net = _make_net(row, stored)
        if net is not None:
            net_rows.append(net)
    return net_rows


def _list_loose(bound: BoundType) -> list[str]:
    """Columns of the key whose stored forms differ and are equal in SQL: 1.0 and 1.00."""
    return [name for name in bound.shape.key_names if is_loose(bound, name)]


def _drop_respelled(
    bound: BoundType, rows: Sequence[TouchedRow], found: Sequence[Stored | None]
) -> Sequence[Stored | None]:
    """The found rows, without those that were found under another form of their key."""
    loose = [(bound.shape.key_names.index(name), name) for name in _list_loose(bound)]
    if not loose:
        return found

    def is_same(row: TouchedRow, stored: Stored) -> bool:
        # With repr, -0.0 differs from 0.0, and NaN equals itself.
        return all(repr(stored[name]) == repr(row.key[n]) for n, name in loose)

    return [
        stored if stored is not None and is_same(row, stored) else None
        for row, stored in zip(rows, found, strict=True)
    ]


def _make_net(row: TouchedRow, stored: Stored | None) -> NetRow | None:
    bound, key = row.bound, row.key
    exists = stored is not None
    balance = row.balance or {}
    if not exists and row.balance is None:
        raise CaptureMismatchError(
            f"{bound.live.qualified} key {key!r}: the guards' images say that the row was "
            "updated, and it is not there",
            hint="the row was changed on a way that the guards do not see; run `oplog doctor`",
        )
    before = int(exists) + sum(balance.values())
    left = [group for group, times in balance.items() if times > 0]
    if before not in (0, 1) or len(left) > 1:
        raise CaptureMismatchError(
            f"{bound.live.qualified} key {key!r}: the guards' images say that {before} such rows "
            "were there before this transaction",
            hint="the row was changed on a way that the guards do not see; run `oplog doctor`",
        )
    existed = before == 1
    names = list_group_names(bound)
    group: dict[str, Wire | None] | None = None
    if existed and left:
        group = dict(zip(names, left[0], strict=True))
    elif existed and stored is not None:
        group = {name: stored[name] for name in names}
    if group is not None:
        group.update(zip(bound.shape.key_names, key, strict=True))
    if stored is None:
        return NetRow(bound, key, existed=True, exists=False, group=group) if existed else None
    values = dict(stored)
    if existed and row.balance is None:
        # The key cannot have changed, and is in the operation anyway.
        written = row.changed.difference(bound.shape.key_names)
        values = {name: value for name, value in stored.items() if name in written}
    return NetRow(bound, key, existed=existed, values=values, group=group)
