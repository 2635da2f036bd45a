"""Every way to write a tracked table, each with what the log must then tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from tests.models.depot import TABLES, Bin, Part, Reading, Setting, Slot

PART, SLOT, BIN = TABLES["part"], TABLES["slot"], TABLES["bin"]
SEED = """
INSERT INTO part (id, sku, stock, note)
  VALUES (1, 'a', 10, NULL), (2, 'b', 20, ''), (3, 'c', 0, 'x');
INSERT INTO bin (id, label, up)
  VALUES (1, 'root', NULL), (2, 'left', 1), (3, 'leaf', 2), (4, 'x', NULL);
INSERT INTO slot (id, bin_id, part_id, amount) VALUES (1, 1, 1, 5), (2, 3, 1, 6), (3, 4, 2, 7);
INSERT INTO setting (name, value) VALUES ('zone', '{"a":  1}');
INSERT INTO reading (id, day, value) VALUES (1, 1, 0.5), (2, 1, 1.5), (3, 2, 2.5);
"""


@dataclass(frozen=True)
class Way:
    """`write` is done in a session; `tells` are the operations of the transaction, sorted."""

    write: Callable[[Session], Any]
    tells: Sequence[str]
    returns: Any = None


def text(statement: str) -> Callable[[Session], Any]:
    def write(session: Session) -> None:
        session.execute(sa.text(statement))

    return write


def driver(statement: str) -> Callable[[Session], None]:
    def write(session: Session) -> None:
        raw: Any = session.connection().connection
        # SQLAlchemy 2.0's asynchronous cursors are no context managers.
        with closing(raw.cursor()) as cursor:
            cursor.execute(statement)

    return write


def rows(statement: Any, *parameters: Any) -> Callable[[Session], Any]:
    return lambda s: sorted(tuple(row) for row in s.execute(statement, *parameters))


def count(statement: Any, *parameters: Any, **options: Any) -> Callable[[Session], Any]:
    # SQLAlchemy forgets how many rows an INSERT made unless it is asked to remember.
    options["preserve_rowcount"] = True
    return lambda s: s.execute(statement, *parameters, execution_options=options).rowcount  # type: ignore[attr-defined]


def copy_in(session: Session) -> None:
    raw: Any = session.connection().connection.driver_connection
    with raw.cursor() as cursor, cursor.copy("COPY part (id, sku) FROM STDIN") as copy:
        copy.write("10\tten\n11\televen\n")


def update_by_key(session: Session) -> None:
    session.execute(sa.update(Part), [{"id": 1, "note": "k"}, {"id": 2, "note": "l"}])


def query_update(session: Session) -> int:
    return session.query(Part).filter(Part.id < 3).update({"note": "q"})


def query_delete(session: Session) -> int:
    return session.query(Slot).filter(Slot.amount > 5).delete()


def bulk_mappings(session: Session) -> None:
    session.bulk_insert_mappings(sa.inspect(Part), [{"id": 10, "sku": "k"}, {"id": 11, "sku": "l"}])
    session.bulk_update_mappings(sa.inspect(Part), [{"id": 1, "note": "m"}, {"id": 2, "sku": "n"}])


def bulk_objects(session: Session) -> None:
    known = session.get_one(Part, 1)
    known.note = "again"
    session.bulk_save_objects([Part(id=10, sku="k"), Part(id=11, sku="l", note="x"), known])


def swap_unique(session: Session) -> None:
    swap = "UPDATE part SET sku = CASE id WHEN 1 THEN 'b~' ELSE 'a' END WHERE id < 3"
    session.execute(sa.text(swap))
    session.execute(sa.update(Part).where(Part.sku == "b~").values(sku="b"))


def come_and_go(session: Session) -> None:
    session.add(Part(id=10, sku="ten"))
    session.flush()
    session.execute(sa.text("UPDATE part SET note = 'raw' WHERE id = 10"))
    session.execute(sa.delete(Part).where(Part.sku == "ten"))


def delete_and_insert(session: Session) -> None:
    session.delete(session.get_one(Part, 3))
    session.flush()
    session.execute(sa.text("INSERT INTO part (id, sku, note) VALUES (3, 'again', NULL)"))
    session.execute(sa.text("UPDATE part SET stock = 5 WHERE id = 3"))


def merge(session: Session) -> None:
    session.execute(
        sa.text(
            "MERGE INTO part p USING (VALUES (1, 'a2'), (2, ''), (10, 'ten')) AS v (id, sku) "
            "ON p.id = v.id WHEN MATCHED AND v.sku = '' THEN DELETE "
            "WHEN MATCHED THEN UPDATE SET sku = v.sku "
            "WHEN NOT MATCHED THEN INSERT (id, sku) VALUES (v.id, v.sku)"
        )
    )


def cte(session: Session) -> None:
    gone = sa.delete(PART).where(PART.c.id == 3).returning(PART.c.sku).cte("gone")
    added = PART.insert().from_select(["id", "sku"], sa.select(sa.literal(10), gone.c.sku))
    session.execute(added)


def move_out_and_back(session: Session) -> None:
    session.execute(sa.text("UPDATE slot SET bin_id = 4 WHERE id = 1"))
    session.get_one(Slot, 1).amount = 50
    session.flush()
    session.execute(sa.text("UPDATE slot SET bin_id = 1 WHERE id = 1"))


def upserted(session: Session) -> Any:
    statement = upsert(PART).values([{"id": 1, "sku": "new"}, {"id": 10, "sku": "ten"}])
    statement = statement.on_conflict_do_update(
        index_elements=["id"], set_={"sku": statement.excluded.sku}
    )
    return sorted(session.scalars(statement.returning(PART.c.sku)))


NOTED = sa.update(Part).where(Part.stock >= 10).values(note="n")
BOTH = ["UPDATE part 1", "UPDATE part 2"]
TEN = ["CREATE part 10", "CREATE part 11"]
ROWS = [{"id": 10, "sku": "k"}, {"id": 11, "sku": "l", "note": "x"}]

WAYS: dict[str, Way] = {
    # -- ORM bulk
    "orm insert list": Way(
        rows(sa.insert(Part).returning(Part.id, Part.stock), ROWS), TEN, [(10, 0), (11, 0)]
    ),
    "orm insert values": Way(count(sa.insert(Part).values(ROWS)), TEN, 2),
    "orm update evaluate": Way(count(NOTED, synchronize_session="evaluate"), BOTH, 2),
    "orm update fetch": Way(count(NOTED, synchronize_session="fetch"), BOTH, 2),
    "orm update auto": Way(count(NOTED, synchronize_session="auto"), BOTH, 2),
    "orm update unsynchronized": Way(count(NOTED, synchronize_session=False), BOTH, 2),
    "orm update returning": Way(
        rows(NOTED.returning(Part.id, Part.note)), BOTH, [(1, "n"), (2, "n")]
    ),
    "orm update by key list": Way(update_by_key, BOTH),
    "orm delete": Way(
        count(sa.delete(Slot).where(Slot.part_id == 1)), ["DELETE slot 1", "DELETE slot 2"], 2
    ),
    "orm delete returning": Way(
        rows(sa.delete(Slot).where(Slot.amount > 6).returning(Slot.id)), ["DELETE slot 3"], [(3,)]
    ),
    "orm nothing matched": Way(count(sa.update(Part).where(Part.id > 99).values(note="n")), [], 0),
    "query update": Way(query_update, BOTH, 2),
    "query delete": Way(query_delete, ["DELETE slot 2", "DELETE slot 3"], 2),
    "bulk mappings": Way(bulk_mappings, [*TEN, *BOTH]),
    "bulk objects": Way(bulk_objects, [*TEN, "UPDATE part 1"]),
    # -- Core
    "core insert": Way(count(PART.insert(), {"id": 10, "sku": "k"}), TEN[:1], 1),
    "core multi-values": Way(count(PART.insert().values(ROWS)), TEN, 2),
    "core insert from select": Way(
        count(
            PART.insert().from_select(
                ["id", "sku"], sa.select(PART.c.id + 9, PART.c.sku + "x").where(PART.c.id < 3)
            )
        ),
        TEN,
        2,
    ),
    "on conflict do nothing": Way(
        count(upsert(PART).values(id=1, sku="z").on_conflict_do_nothing()), [], 0
    ),
    "on conflict do update": Way(upserted, ["CREATE part 10", "UPDATE part 1"], ["new", "ten"]),
    "update from": Way(
        count(
            SLOT.update()
            .where(SLOT.c.part_id == PART.c.id, PART.c.stock > 10)
            .values(amount=PART.c.stock)
        ),
        ["UPDATE slot 3"],
        1,
    ),
    "delete using": Way(
        count(SLOT.delete().where(SLOT.c.part_id == PART.c.id, PART.c.sku == "a")),
        ["DELETE slot 1", "DELETE slot 2"],
        2,
    ),
    "merge": Way(merge, ["CREATE part 10", "DELETE part 2", "UPDATE part 1", "UPDATE slot 3"]),
    "data-modifying cte": Way(cte, ["CREATE part 10", "DELETE part 3"]),
    "core json": Way(
        count(TABLES["setting"].update().values(value={"b": [None, "é"]})),
        ["UPDATE setting zone"],
        1,
    ),
    # -- text, driver, functions
    "text": Way(text("UPDATE part SET note = coalesce(note, '') || '!'"), [*BOTH, "UPDATE part 3"]),
    "text that changes nothing": Way(text("UPDATE part SET note = note"), []),
    "text insert": Way(text("INSERT INTO part (id, sku) VALUES (10, 'k'), (11, 'l')"), TEN),
    "driver": Way(driver("DELETE FROM slot WHERE amount > 5"), ["DELETE slot 2", "DELETE slot 3"]),
    "several in one text": Way(
        driver(
            "DELETE FROM slot; UPDATE part SET note = 'd' WHERE id = 1; "
            "INSERT INTO part VALUES (10, 'k')"
        ),
        ["CREATE part 10", "DELETE slot 1", "DELETE slot 2", "DELETE slot 3", "UPDATE part 1"],
    ),
    "copy": Way(copy_in, TEN),
    "stored function": Way(
        lambda s: s.scalar(sa.select(sa.func.restock(1, 5))),
        ["CREATE movement 1", "UPDATE part 1"],
        15,
    ),
    "do block": Way(
        text(
            "DO $$ BEGIN UPDATE part SET note = 'do' WHERE id = 1; BEGIN "
            "DELETE FROM slot; RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END; END $$"
        ),
        ["UPDATE part 1"],
    ),
    # -- what the database does by itself
    "trigger on another table": Way(
        lambda s: setattr(s.get_one(Part, 1), "stock", 99), ["CREATE movement 1", "UPDATE part 1"]
    ),
    "deferred trigger": Way(
        lambda s: setattr(s.get_one(Part, 1), "note", "late"),
        ["CREATE movement 1", "UPDATE part 1"],
    ),
    "cascade to itself and others": Way(
        count(BIN.delete().where(BIN.c.id == 1)),
        ["DELETE bin 1", "DELETE bin 2", "DELETE bin 3", "DELETE slot 1", "DELETE slot 2"],
        1,
    ),
    "cascade of an object": Way(
        lambda s: s.delete(s.get_one(Bin, 2)), ["DELETE bin 2", "DELETE bin 3", "DELETE slot 2"]
    ),
    "set null": Way(
        count(PART.delete().where(PART.c.id == 1)),
        ["DELETE part 1", "UPDATE slot 1", "UPDATE slot 2"],
        1,
    ),
    "on update cascade": Way(
        text("UPDATE bin SET id = 40 WHERE id = 4"),
        ["CREATE bin 40", "CREATE slot 3", "DELETE bin 4", "DELETE slot 3"],
    ),
    "view with instead of trigger": Way(
        text("UPDATE part_label SET label = 'v' WHERE id = 2"), ["UPDATE part 2"]
    ),
    # -- keys and moves
    "key changes": Way(
        text("UPDATE part SET id = id + 100 WHERE id = 3"), ["CREATE part 103", "DELETE part 3"]
    ),
    "keys rotate": Way(
        driver(
            "UPDATE reading SET id = -id WHERE day = 1; UPDATE reading SET id = 3 + id WHERE id < 0"
        ),
        ["UPDATE reading 1/1", "UPDATE reading 2/1"],
    ),
    "unique values swap": Way(swap_unique, BOTH),
    "moves to another aggregate": Way(
        text("UPDATE slot SET bin_id = 2 WHERE id IN (1, 3)"),
        ["CREATE slot 1", "CREATE slot 3", "DELETE slot 1", "DELETE slot 3"],
    ),
    "moves out and back": Way(move_out_and_back, ["UPDATE slot 1"]),
    "moves to another partition": Way(
        text("UPDATE reading SET day = 2 WHERE id = 1"),
        ["CREATE reading 1/2", "DELETE reading 1/1"],
    ),
    "object moves to another partition": Way(
        lambda s: setattr(s.get_one(Reading, (2, 1)), "day", 2),
        ["CREATE reading 2/2", "DELETE reading 2/1"],
    ),
    "partition by name": Way(
        text("UPDATE reading_1 SET value = 9"), ["UPDATE reading 1/1", "UPDATE reading 2/1"]
    ),
    "object in a partition": Way(
        lambda s: s.add(Reading(id=9, day=2, value=1.0)), ["CREATE reading 9/2"]
    ),
    "inserted, updated, deleted": Way(come_and_go, []),
    "deleted and inserted": Way(delete_and_insert, ["CREATE movement 1", "UPDATE part 3"]),
    "object only": Way(lambda s: s.add(Setting(name="new", value={})), ["CREATE setting new"]),
}
