"""Types over time: stable field numbers, compiled messages, revisions and steps."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf import descriptor_pb2
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import ConfigurationError, NotCapturableError, UpcastError
from oplog.payload.shape import Shape
from tests.models.messages import make_message
from tests.support import assert_replays

pytestmark = pytest.mark.postgres

KEYRING = Keyring.generate()


def declare(*columns: sa.Column[Any], name: str = "thing") -> tuple[sa.MetaData, type[Any]]:
    """One mapped table with these columns after its primary key."""

    class Base(DeclarativeBase):
        pass

    table = sa.Table(name, Base.metadata, sa.Column("id", sa.Integer, primary_key=True), *columns)
    mapped = type("Thing", (Base,), {"__table__": table})
    return Base.metadata, mapped


def attach(engine: Engine, catalog: TypeCatalog) -> tuple[Oplog, sessionmaker[Session]]:
    """A log of its own, as a newly started process has it."""
    log = Oplog(catalog, keyring=KEYRING)
    sessions = sessionmaker(engine)
    log.attach(sessions)
    return log, sessions


def list_shapes(log: Oplog, engine: Engine) -> list[Shape]:
    """Stored revisions, oldest first."""
    with engine.connect() as connection:
        return log.store.list_types(connection)


def numbers(shape: Shape) -> dict[str, int]:
    """Field numbers by column."""
    return {column.name: column.number for column in shape.columns}


def test_a_column_keeps_its_number_through_every_change_of_the_table(engine: Engine) -> None:
    steps = [
        ("CREATE TABLE thing (id int PRIMARY KEY, a text, b int)", ["a", "b"]),
        ("ALTER TABLE thing ADD c text", ["a", "b", "c"]),
        ("ALTER TABLE thing DROP b", ["a", "c"]),
        ("ALTER TABLE thing ADD d text", ["a", "c", "d"]),
        ("ALTER TABLE thing ADD b int", ["a", "b", "c", "d"]),
    ]
    types = {"a": sa.Text, "b": sa.Integer, "c": sa.Text, "d": sa.Text}
    for turn, (ddl, names) in enumerate(steps):
        with engine.begin() as connection:
            connection.exec_driver_sql(ddl)
        metadata, thing = declare(*(sa.Column(name, types[name]) for name in names))
        log, sessions = attach(engine, TypeCatalog.from_models(metadata))
        with sessions.begin() as session:
            session.add(thing(id=turn, a="x"))
    shapes = list_shapes(log, engine)
    assert [shape.revision for shape in shapes] == [1, 2, 3, 4, 5]
    assert numbers(shapes[0]) == {"id": 1, "a": 2, "b": 3}
    assert numbers(shapes[3]) == {"id": 1, "a": 2, "c": 4, "d": 5}
    # The number of a column that is gone is not that of another one with its name.
    assert numbers(shapes[4]) == {"id": 1, "a": 2, "b": 6, "c": 4, "d": 5}
    file = descriptor_pb2.FileDescriptorSet.FromString(shapes[3].descriptor).file[0]
    assert [(r.start, r.end) for r in file.message_type[0].reserved_range] == [(3, 4)]


def test_a_column_of_another_kind_gets_a_new_number(engine: Engine) -> None:
    for ddl, kind in (
        ("CREATE TABLE thing (id int PRIMARY KEY, a int)", sa.Integer),
        ("ALTER TABLE thing ALTER a TYPE text", sa.Text),
    ):
        with engine.begin() as connection:
            connection.exec_driver_sql(ddl)
        metadata, thing = declare(sa.Column("a", kind))
        log, sessions = attach(engine, TypeCatalog.from_models(metadata))
        with sessions.begin() as session:
            session.add(thing(id=1 if kind is sa.Integer else 2))
    assert [numbers(shape)["a"] for shape in list_shapes(log, engine)] == [2, 3]


def test_old_and_new_processes_side_by_side_do_not_make_revisions_in_turn(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE thing (id int PRIMARY KEY, a text, secret text)")
    old, _ = declare(sa.Column("a", sa.Text), sa.Column("secret", sa.Text))
    catalogs = [
        TypeCatalog.from_models(old),
        TypeCatalog.from_models(old, exclude={"thing.secret": "not for the log"}),
    ]
    for turn in range(4):
        log, sessions = attach(engine, catalogs[turn % 2])
        with sessions.begin() as session:
            session.execute(sa.insert(old.tables["thing"]), {"id": turn, "a": "x", "secret": "s"})
    assert [shape.revision for shape in list_shapes(log, engine)] == [1, 2]


def make_catalog(metadata: sa.MetaData, thing: type[Any], revision: int, **fields: Any) -> Any:
    """The thing under a name of its own with a compiled message."""
    catalog = TypeCatalog.from_models(metadata)
    catalog.register(
        "shop.thing",
        thing,
        message=make_message("shop.Thing", fields),
        revision=revision,
        aggregate="thing/{id}",
    )
    return catalog


FIELDS = {"id": (1, "int64"), "name": (2, "string"), "price": (5, "string"), "sold": (9, "bool")}
COLUMNS = (("name", sa.Text), ("price", sa.Numeric(8, 2)), ("sold", sa.Boolean))


def declare_thing(engine: Engine) -> tuple[sa.MetaData, type[Any]]:
    metadata, thing = declare(*(sa.Column(name, kind) for name, kind in COLUMNS))
    metadata.create_all(engine)
    return metadata, thing


def test_null_default_and_unwritten_stay_apart_in_a_message_without_presence(
    engine: Engine,
) -> None:
    metadata, thing = declare_thing(engine)
    log, sessions = attach(engine, make_catalog(metadata, thing, 1, **FIELDS))
    with sessions.begin() as session:
        session.add(thing(id=0, name="", price=Decimal(0), sold=False))
        session.add(thing(id=1))
    with sessions.begin() as session:
        session.get_one(thing, 0).name = None
        session.get_one(thing, 1).sold = False
    with sessions.begin() as session:
        session.delete(session.get(thing, 0))
    assert_replays(log, engine)
    with engine.connect() as connection:
        fields = [
            dict(operation.fields)
            for entry in log.read(connection)
            for operation in entry.operations
        ]
        kinds = {entry.operations[0].type_name for entry in log.read(connection)}
    assert kinds == {"shop.thing"}
    assert fields == [
        {"id": 0, "name": "", "price": Decimal("0.00"), "sold": False},
        {"id": 1, "name": None, "price": None, "sold": None},
        {"name": None},
        {"sold": False},
        {},
    ]
    assert numbers(list_shapes(log, engine)[0]) == {"id": 1, "name": 2, "price": 5, "sold": 9}


def test_another_shape_under_a_known_revision_is_refused(engine: Engine) -> None:
    metadata, thing = declare_thing(engine)
    _, sessions = attach(engine, make_catalog(metadata, thing, 1, **FIELDS))
    with sessions.begin() as session:
        session.add(thing(id=1))
    other = {**FIELDS, "name": (3, "string")}
    _, sessions = attach(engine, make_catalog(metadata, thing, 1, **other))
    with pytest.raises(ConfigurationError, match="another shape") as caught, sessions.begin() as s:
        s.add(thing(id=2))
    assert "revision=2" in caught.value.hint


def test_a_field_keeps_its_number_in_every_revision(engine: Engine) -> None:
    metadata, thing = declare_thing(engine)
    _, sessions = attach(engine, make_catalog(metadata, thing, 1, **FIELDS))
    with sessions.begin() as session:
        session.add(thing(id=1))
    other = {**FIELDS, "name": (12, "string")}
    _, sessions = attach(engine, make_catalog(metadata, thing, 2, **other))
    with pytest.raises(ConfigurationError, match="as field 12") as caught, sessions.begin() as s:
        s.add(thing(id=2))
    assert "number 2 again" in caught.value.hint


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"id": (1, "int32"), "price": (5, "double")}, NotCapturableError, "price"),
        ({"sold": (9, "int64")}, NotCapturableError, "sold"),
        ({"name": None}, ConfigurationError, "thing.name"),
    ],
)
def test_a_message_that_cannot_hold_every_value_is_refused_at_registration(
    engine: Engine, changed: dict[str, Any], error: type[Exception], says: str
) -> None:
    metadata, thing = declare_thing(engine)
    fields = {name: kind for name, kind in {**FIELDS, **changed}.items() if kind is not None}
    with pytest.raises(error, match=says):
        make_catalog(metadata, thing, 1, **fields)


def test_entries_are_read_as_another_revision_through_the_declared_steps(engine: Engine) -> None:
    metadata, thing = declare_thing(engine)
    log, sessions = attach(engine, make_catalog(metadata, thing, 1, **FIELDS))
    with sessions.begin() as session:
        session.add(thing(id=1, name="kettle", price=Decimal("9.50"), sold=True))
    catalog = make_catalog(metadata, thing, 2, **FIELDS)

    def shout(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "name": row["name"].upper()} if row.get("name") else row

    def whisper(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "name": row["name"].lower()} if row.get("name") else row

    catalog.upcast("shop.thing", from_revision=1, step=shout)
    catalog.downcast("shop.thing", to_revision=1, step=whisper)
    log, sessions = attach(engine, catalog)
    with sessions.begin() as session:
        session.get_one(thing, 1).name = "TEAPOT"

    def names(**options: Any) -> list[str]:
        with engine.connect() as connection:
            entries = list(log.read(connection, **options))
        # One says that the table has the shape of revision 2 from there on.
        return [operation.fields["name"] for entry in entries for operation in entry.operations]

    assert names() == ["KETTLE", "TEAPOT"]
    assert names(revisions={"shop.thing": 1}) == ["kettle", "teapot"]
    with pytest.raises(UpcastError, match="no step from revision 2 to 3"):
        names(revisions={"shop.thing": 3})


def test_a_step_that_fails_says_which(engine: Engine) -> None:
    metadata, thing = declare_thing(engine)
    _, sessions = attach(engine, make_catalog(metadata, thing, 1, **FIELDS))
    with sessions.begin() as session:
        session.add(thing(id=1))
    catalog = make_catalog(metadata, thing, 2, **FIELDS)
    catalog.upcast("shop.thing", from_revision=1, step=lambda row: {"none": row["missing"]})
    log, sessions = attach(engine, catalog)
    with sessions.begin() as session:
        session.add(thing(id=2))
    with (
        engine.connect() as connection,
        pytest.raises(UpcastError, match=r"shop.thing.*revision 2"),
    ):
        list(log.read(connection))
