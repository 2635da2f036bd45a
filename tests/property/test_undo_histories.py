"""Random histories over tables with foreign keys and unique columns, undone in part.

What an undo has to leave is worked out from whole states of the tables, and not from the log: a
column that only the undone transactions changed has its value of before, a column that others
changed later keeps theirs, and where both did so there is a conflict that names the row. Then the
undo is undone, which has to give the state that was there before it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from oplog.errors import StalePlanError, UndoConflictError
from tests.logged import LoggedDatabase, open_logged
from tests.sampling import Sample
from tests.support import assert_replays

pytestmark = [pytest.mark.property, pytest.mark.postgres]

META = sa.MetaData()
NODE = sa.Table(
    "node",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent", sa.ForeignKey("node.id", ondelete="SET NULL")),
    sa.Column("name", sa.Text, unique=True),
    sa.Column("note", sa.Float),
)
ITEM = sa.Table(
    "item",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("node", sa.ForeignKey("node.id", ondelete="CASCADE"), nullable=False),
    sa.Column("code", sa.Integer, nullable=False, unique=True),
    sa.Column("text", sa.Text),
)
TAG = sa.Table(
    "tag",
    META,
    sa.Column("item", sa.ForeignKey("item.id", onupdate="CASCADE"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("weight", sa.Numeric(6, 2)),
)
TABLES = (NODE, ITEM, TAG)
KEYS = st.integers(1, 4)
NAMES = st.sampled_from(["a", "b", "c"])
State = Mapping[tuple[Any, ...], Mapping[str, Any]]
ABSENT = object()

NODE_ROW = "INSERT INTO node VALUES (:id, :ref, :name, :note) ON CONFLICT DO NOTHING"
ITEM_ROW = "INSERT INTO item VALUES (:id, :ref, :code, :text) ON CONFLICT DO NOTHING"
TAG_ROW = "INSERT INTO tag VALUES (:id, :name, :weight) ON CONFLICT DO NOTHING"
STEPS = st.one_of(
    st.tuples(
        st.just(NODE_ROW),
        st.fixed_dictionaries(
            {
                "id": KEYS,
                "ref": st.none() | KEYS,
                "name": st.none() | NAMES,
                "note": st.sampled_from([0.0, -0.0, float("nan"), 1.5]),
            }
        ),
    ),
    st.tuples(
        st.sampled_from(
            [
                "UPDATE node SET name = :name WHERE id = :id",
                "UPDATE node SET note = :note WHERE id = :id",
                "UPDATE node SET parent = :ref WHERE id = :id",
                "UPDATE node SET parent = :ref, name = :name, note = :note WHERE id = :id",
                "DELETE FROM node WHERE id = :id",
                "DELETE FROM node WHERE id < :id",
            ]
        ),
        st.fixed_dictionaries(
            {
                "id": KEYS,
                "ref": st.none() | KEYS,
                "name": st.none() | NAMES,
                "note": st.sampled_from([0.0, -0.0, 1.5]),
            }
        ),
    ),
    st.tuples(
        st.sampled_from(
            [
                ITEM_ROW,
                "UPDATE item SET code = :code WHERE id = :id",
                "UPDATE item SET text = :text WHERE id = :id",
                "UPDATE item SET node = :ref, text = :text WHERE id = :id",
                "UPDATE item SET code = 100 - code",
                "DELETE FROM item WHERE id = :id AND NOT EXISTS (SELECT FROM tag WHERE item = :id)",
                "UPDATE item SET id = :ref WHERE id = :id",
            ]
        ),
        st.fixed_dictionaries({"id": KEYS, "ref": KEYS, "code": st.integers(1, 5), "text": NAMES}),
    ),
    st.tuples(
        st.sampled_from(
            [
                TAG_ROW,
                "UPDATE tag SET weight = :weight WHERE item = :id",
                "UPDATE tag SET name = :name WHERE item = :id AND weight = :weight",
                "DELETE FROM tag WHERE item = :id",
            ]
        ),
        st.fixed_dictionaries({"id": KEYS, "name": NAMES, "weight": st.integers(0, 2)}),
    ),
    st.tuples(
        st.just(
            "UPDATE node a SET name = b.name FROM node b WHERE a.id = :id AND b.id = :ref "
            "AND b.name IS NULL"
        ),
        st.fixed_dictionaries({"id": KEYS, "ref": KEYS}),
    ),
    st.tuples(st.just("SWAP"), st.fixed_dictionaries({"id": KEYS, "ref": KEYS})),
)
TOUCHES = st.tuples(
    st.sampled_from(
        [
            "UPDATE node SET note = coalesce(nullif(note, 'NaN'), 0) + 1 WHERE id = :id",
            "UPDATE item SET text = coalesce(text, '') || 'x' WHERE id = :id",
            "UPDATE item SET text = coalesce(text, '') || 'y'",
            "UPDATE tag SET weight = weight + 1 WHERE item = :id",
            "UPDATE node SET name = NULL WHERE id = :id",
        ]
    ),
    st.fixed_dictionaries({"id": KEYS}),
)
TRANSACTIONS = st.lists(
    st.tuples(st.integers(0, 2), st.lists(STEPS | TOUCHES, min_size=1, max_size=3)),
    min_size=3,
    max_size=8,
)


def take_state(connection: Connection) -> State:
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for table in TABLES:
        width = len(table.primary_key)
        for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings():
            # As text, -0.0 is not 0.0, and NaN is itself.
            texts = {name: None if value is None else repr(value) for name, value in row.items()}
            found[table.name, *list(row.values())[:width]] = texts
    return found


def execute(connection: Connection, step: tuple[str, Mapping[str, Any]]) -> None:
    text, values = step
    try:
        with connection.begin_nested():
            if text != "SWAP":
                connection.execute(sa.text(text), values)
                return
            one, other = values["id"], values["ref"]
            codes = [
                connection.execute(sa.select(ITEM.c.code).where(ITEM.c.id == key)).scalar()
                for key in (one, other)
            ]
            if None in codes or one == other:
                return
            for key, code in ((one, -1), (other, codes[0]), (one, codes[1])):
                connection.execute(ITEM.update().where(ITEM.c.id == key).values(code=code))
    except IntegrityError:
        # What the constraints refuse did not happen.
        return


class History:
    """Transactions that were done, each with its actor, position and the state after it."""

    def __init__(self, db: LoggedDatabase) -> None:
        self.db = db
        with db.sessions.begin() as session:
            for table in reversed(TABLES):
                session.execute(sa.delete(table))
        self.begun = self.find_newest()
        self.states = [self.take()]
        self.done: list[tuple[int, int]] = []

    def populate(self, actor: int) -> None:
        """Rows to work with."""
        nodes = [
            (NODE_ROW, {"id": key, "ref": max(key - 1, 1), "name": name, "note": 1.5})
            for key, name in enumerate([*"abc", None], 1)
        ]
        items = [(ITEM_ROW, {"id": n, "ref": n, "code": n, "text": "a"}) for n in range(1, 4)]
        tags = [(TAG_ROW, {"id": n, "name": "a", "weight": 1}) for n in range(1, 3)]
        self.write(actor, [*nodes, *items, *tags])

    def take(self) -> State:
        with self.db.engine.connect() as connection:
            return take_state(connection)

    def find_newest(self) -> int:
        with self.db.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT max(position) FROM oplog.oplog_record")
            return int(found.scalar() or 0)

    def write(self, actor: int, steps: Any) -> int | None:
        before = self.find_newest()
        with self.db.sessions.begin() as session:
            self.db.log.annotate(session, actor=str(actor))
            for step in steps:
                execute(session.connection(), step)
        position = self.find_newest()
        if position == before:
            return None
        self.done.append((actor, position))
        self.states.append(self.take())
        return position

    def list_values(self, row: tuple[Any, ...]) -> Mapping[str, list[Any]]:
        """By column, its values in all states."""
        columns = next(table for table in TABLES if table.name == row[0]).columns.keys()
        return {
            name: [state[row][name] if row in state else ABSENT for state in self.states]
            for name in columns
        }


def foretell(history: History, chosen: set[int]) -> tuple[dict[Any, Any], set[Any], set[Any]]:
    """What has to be: values by row and column, rows with conflicts, and values not to be lost."""
    wanted: dict[Any, Any] = {}
    contested, kept = set(), set()
    rows = {row for state in history.states for row in state}
    for row in rows:
        for column, values in history.list_values(row).items():
            changes = [n for n in range(1, len(values)) if values[n] != values[n - 1]]
            ours = [n for n in changes if n in chosen]
            wanted[row, column] = values[-1]
            if not ours:
                continue
            later = [n for n in changes if n > ours[0] and n not in chosen]
            before = values[ours[0] - 1]
            if not later:
                wanted[row, column] = before
            elif before != values[-1]:
                contested.add(row)
                kept.add((row, column))
        columns = history.list_values(row)
        # Without its key there is no row, whatever its other columns had at another time.
        if row not in contested and any(wanted[row, column] is ABSENT for column in columns):
            wanted |= dict.fromkeys(((row, column) for column in columns), ABSENT)
    return wanted, contested, kept


def spread(state: State) -> dict[Any, Any]:
    return {(row, name): value for row, fields in state.items() for name, value in fields.items()}


def name_rows(conflicts: Any) -> set[Any]:
    return {(one.table.partition(".")[2], *one.key.values()) for one in conflicts}


def check_history(
    db: LoggedDatabase,
    transactions: Any,
    *,
    populated: int,
    chosen: int,
    late: Any,
    choice: Any,
    tally: Any,
) -> None:
    history = History(db)
    history.populate(populated)
    for actor, steps in transactions:
        history.write(actor, steps)
    ours = {n for n, (actor, _) in enumerate(history.done, 1) if actor == chosen}
    if not ours:
        return
    plan = db.log.plan_undo(
        db.engine, metadata={"actor": str(chosen)}, after=history.begun, on_conflict=choice
    )
    assert {note.position for note in plan.records} == {history.done[n - 1][1] for n in ours}
    wanted, contested, kept = foretell(history, ours)
    found = name_rows(one for one in plan.conflicts if one.kind == "changed")
    assert found == contested
    tally["conflicts"] += bool(plan.conflicts)
    if late is not None and history.write(9, late) is not None:
        changed = {
            row
            for row in {*history.states[-1], *history.states[-2]}
            if history.states[-1].get(row) != history.states[-2].get(row)
        }
        if changed & {(table.live.name, *key) for table, keys in plan.rows for key in keys}:
            with pytest.raises(StalePlanError):
                db.log.undo(db.sessions, plan)
            assert history.take() == history.states[-1]
            tally["stale"] += 1
        return
    before = history.states[-1]
    if plan.undecided:
        with pytest.raises(UndoConflictError) as caught:
            db.log.undo(db.sessions, plan)
        assert caught.value.conflicts == plan.undecided
        assert history.take() == before
        tally["refused"] += 1
        return
    done = db.log.undo(db.sessions, plan)
    after = history.take()
    if not plan.conflicts:
        assert spread(after) == {at: v for at, v in wanted.items() if v is not ABSENT}
        tally["exact"] += 1
    if choice == "skip":
        now = spread(before)
        for at in kept:
            assert spread(after).get(at, ABSENT) == now.get(at, ABSENT)
    if not done:
        assert after == before
        return
    again = db.log.plan_undo(db.engine, records=done)
    assert not again.conflicts
    db.log.undo(db.sessions, again)
    assert history.take() == before
    tally["undone again"] += 1


@pytest.fixture
def db(engine: Engine) -> LoggedDatabase:
    return open_logged(engine, META, guarded=True, seed="")


@pytest.mark.sampled
def test_undo_of_random_histories(db: LoggedDatabase, sample: Sample) -> None:
    tally = dict.fromkeys(("conflicts", "stale", "refused", "exact", "undone again"), 0)
    count = 10_000 if sample.whole else 60

    @seed(random.Random(sample.sampling.seed).randrange(2**32))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        transactions=TRANSACTIONS,
        populated=st.sampled_from([3, 3, 3, 0]),
        chosen=st.integers(0, 2),
        late=st.none() | st.none() | st.lists(TOUCHES, min_size=1, max_size=2),
        choice=st.sampled_from(["fail", "skip", "overwrite"]),
    )
    def run(transactions: Any, **options: Any) -> None:
        check_history(db, transactions, tally=tally, **options)

    run()
    assert_replays(db.log, db.engine)
    assert tally["exact"], tally
    assert tally["undone again"], tally
    assert tally["conflicts"] + tally["stale"] + tally["refused"], tally
