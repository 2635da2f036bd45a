"""Tables as they were: all rows of a model, and selects over several tables at one moment."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import aliased

from oplog.errors import ConfigurationError, UnknownTypeError
from tests.postgres.pruned import list_positions, write_random
from tests.postgres.replay_models import (
    Account,
    Base,
    Bench,
    Car,
    Line,
    Node,
    Owner,
    Task,
    Vehicle,
    make_bench,
    write_history,
)
from tests.sampling import Sample

pytestmark = pytest.mark.postgres

Child = aliased(Node)
TASKS_AND_LINES = (
    sa.select(Task.id, Task.project, Line.number, Line.weight)
    .join(Line, Line.order_id == Task.id, isouter=True)
    .order_by(Task.id, Line.number)
)
SELECTS: list[Any] = [
    sa.select(Task).order_by(Task.id),
    sa.select(Account).where(Account.balance > 0),
    sa.select(Account.id, Owner.name).join(Owner),
    sa.select(Node.id, Child.id).join(Child, Child.parent_id == Node.id),
    sa.select(Car).order_by(Car.id),
    sa.select(sa.func.count()).select_from(Vehicle),
    TASKS_AND_LINES,
    sa.union(sa.select(Task.id), sa.select(Line.order_id)).order_by(sa.text("1")),
    sa.select(Line)
    .where(Line.order_id.in_(sa.select(Task.id)))
    .order_by(Line.order_id, Line.number),
]


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def connection(bench: Bench) -> Iterator[Connection]:
    # Not the attached engine: nothing that the application has is needed.
    engine = sa.create_engine(bench.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


def show(rows: Any) -> list[str]:
    """Rows as text, for NaN."""
    return [repr(dict(row)) for row in rows]


def check_moment(bench: Bench, connection: Connection, position: int) -> None:
    """Selects give at a moment what they give of the tables that a replay builds."""
    with connection.begin() as transaction:
        bench.log.replay(connection, through=position)
        options = {"schema_translate_map": {None: "replayed"}}
        rebuilt = [
            show(connection.execute(select, execution_options=options).mappings())
            for select in SELECTS
        ]
        transaction.rollback()
    with bench.log.moment(connection, at=position) as then:
        assert [show(then.rows(select)) for select in SELECTS] == rebuilt
    models: tuple[Any, ...] = (Task, Line, Account, Owner, Car)
    for model in models:
        found = list(bench.log.as_of(connection, model, at=position))
        for row in found:
            names = [c.name for c in model.__table__.primary_key]
            key = tuple(row[name] for name in names)
            one = bench.log.as_of(connection, model, key=key, at=position)
            assert show([row]) == show([one or {}])
    connection.rollback()


@pytest.mark.sampled
def test_selects_are_those_of_a_replay(
    bench: Bench, connection: Connection, sample: Sample
) -> None:
    write_history(bench)
    write_random(bench, random.Random(5), 8)
    for position in sample(list_positions(bench), 5):
        check_moment(bench, connection, position)


def test_nothing_is_written_and_nothing_stays(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    at = list_positions(bench)[3]
    with connection.begin():
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.exec_driver_sql("SET LOCAL timezone = 'Asia/Tokyo'")
        connection.exec_driver_sql("SET LOCAL intervalstyle = 'iso_8601'")
        assert len(list(bench.log.as_of(connection, Task, at=at))) == 2
        assert len(list(bench.log.as_of(connection, TASKS_AND_LINES, at=at))) == 2
        local = bench.log.as_of(connection, sa.select(sa.cast(Account.opened, sa.Text)), at=at)
        assert all("+09" in str(row) for row in local)
        for name, value in (("timezone", "Asia/Tokyo"), ("intervalstyle", "iso_8601")):
            assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value
        assert connection.exec_driver_sql("SHOW row_security").scalar() == "on"
        found = connection.exec_driver_sql(
            "SELECT pg_current_xact_id_if_assigned(), pg_my_temp_schema()"
        )
        assert tuple(found.one()) == (None, 0)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "AUTOCOMMIT"])
def test_a_transaction_is_left_as_it_was(bench: Bench, isolation: Any) -> None:
    write_history(bench)
    at = list_positions(bench)[3]
    engine = sa.create_engine(bench.engine.url, isolation_level=isolation)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        before = connection.in_transaction()
        assert len(list(bench.log.as_of(connection, Task, at=at))) == 2
        assert connection.in_transaction() is before
    engine.dispose()


def test_changes_that_are_not_committed_yet_are_no_past(bench: Bench) -> None:
    write_history(bench)
    at = bench.last_position()
    with bench.sessions() as session:
        before = list(bench.log.as_of(session, Task, at=at))
        session.add(Task(id=77, project="new", title=None))
        session.execute(sa.update(Task).where(Task.id == 1).values(title="mine"))
        session.flush()
        assert list(bench.log.as_of(session, Task, at=at)) == before
        assert list(bench.log.as_of(session, sa.select(Task.title), at=at)) == [
            {"title": row["title"]} for row in before
        ]
        session.commit()
        assert session.get_one(Task, 77).project == "new"


def test_writes_beside_a_moment_are_committed(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    at = list_positions(bench)[3]
    with bench.sessions() as session, bench.log.moment(session, at=at) as then:
        count = len(list(then.rows(Task)))
        session.add(Task(id=77, project="new", title=None))
        session.commit()
    assert count == 2
    assert connection.exec_driver_sql("SELECT count(*) FROM task WHERE id = 77").scalar() == 1


def test_changes_in_the_block_are_no_past(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    with bench.log.moment(connection, at=bench.last_position()) as then:
        before = list(then.rows(Task))
        titles = list(then.rows(sa.select(Task.title)))
        connection.execute(sa.update(Task).values(title="mine"))
        assert list(then.rows(Task)) == before
        assert list(then.rows(sa.select(Task.title))) == titles
        assert len(list(then.rows(TASKS_AND_LINES))) > 1
    with bench.engine.connect() as other:
        mine = "SELECT count(*) FROM task WHERE title = 'mine'"
        assert other.exec_driver_sql(mine).scalar() == len(before)


def test_a_row_written_past_the_log_shows_as_it_is(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    at = bench.last_position()
    bench.tamper("UPDATE task SET title = 'past the log' WHERE id = 1")
    rows = bench.log.as_of(connection, Task, at=at)
    assert [row["title"] for row in rows if row["id"] == 1] == ["past the log"]


def test_an_engine_streams(bench: Bench) -> None:
    write_history(bench)
    rows = bench.log.as_of(bench.engine, Task, at=bench.last_position())
    first = next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert first["id"] == 1
    assert bench.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    found = bench.log.as_of(bench.engine, sa.select(Task.id), at=bench.last_position())
    assert [row["id"] for row in found] == [1, 2]


def test_a_moment_by_time(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    with connection.begin():
        created, changed, gone, *_ = bench.log.history(connection, Account, 1)
    found = bench.log.as_of(connection, Account, at=changed.recorded_at)
    assert [str(row["balance"]) for row in found] == ["-0.05"]
    assert list(bench.log.as_of(connection, Account, at=gone.position)) == []
    with bench.log.moment(connection, at=created.recorded_at) as then:
        assert then.position >= created.position
        assert [row["id"] for row in then.rows(Account, limit=1)] == [1]


def test_moments_that_no_log_has(bench: Bench, connection: Connection) -> None:
    with pytest.raises(ConfigurationError, match="the log is empty"):
        bench.log.as_of(connection, Task, at=1)
    write_history(bench)
    first, last = list_positions(bench)[0], bench.last_position()
    for at in (0, first - 1, datetime(2001, 1, 1, tzinfo=UTC)):
        with pytest.raises(ConfigurationError, match=f"first record has position {first}"):
            bench.log.as_of(connection, Task, at=at)
    for later in (last + 1, datetime.now(UTC) + timedelta(days=1)):
        with pytest.raises(ConfigurationError, match="in the future"):
            bench.log.as_of(connection, Task, at=later)
    with pytest.raises(ConfigurationError, match="no time zone"):
        bench.log.as_of(connection, Task, at=datetime(2001, 1, 1))


def test_selects_that_cannot_be_answered(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    at = bench.last_position()
    other = sa.Table("elsewhere", sa.MetaData(), sa.Column("id", sa.Integer))

    def ask(select: Any, **options: Any) -> None:
        bench.log.as_of(connection, select, at=at, **options)

    with pytest.raises(UnknownTypeError, match="elsewhere is not logged"):
        ask(sa.select(Task.id).join(other, other.c.id == Task.id))
    with pytest.raises(ConfigurationError, match="by its name alone"):
        ask(sa.select(sa.table("task", sa.column("id"))))
    with pytest.raises(ConfigurationError, match="names no table"):
        ask(sa.select(sa.literal(1)))
    with pytest.raises(ConfigurationError, match="cannot be locked"):
        ask(sa.select(Task).with_for_update())
    with pytest.raises(ConfigurationError, match="columns of now"):
        ask(sa.select(Task), shape="then")
    with pytest.raises(ConfigurationError, match="neither 'now' nor 'then'"):
        ask(sa.select(Task), shape="once")
    with pytest.raises(ConfigurationError, match="no key is given"):
        ask(Task, revisions={"task": 1})
    with pytest.raises(ConfigurationError, match="not a key"):
        bench.log.as_of(connection, Task, key=(None, 1), at=at)
    with pytest.raises(UnknownTypeError):
        ask("nothing")
    with (
        pytest.raises(ConfigurationError, match="its own limit"),
        bench.log.moment(connection, at=at) as then,
    ):
        then.rows(sa.select(Task), limit=3)
    assert set(Base.metadata.tables) >= {"task"}


def test_on_an_engine_that_is_logged(bench: Bench) -> None:
    write_history(bench)
    at = bench.last_position()
    bench.log.attach(bench.engine)
    with bench.engine.begin() as connection:
        connection.execute(sa.insert(Task).values(id=80, project="p", title="a"))
    with bench.engine.begin() as connection:
        assert len(list(bench.log.as_of(connection, TASKS_AND_LINES, at=at))) > 1
        connection.execute(sa.update(Task).where(Task.id == 80).values(title="b"))
        rows = bench.log.as_of(connection, sa.select(Task.title).where(Task.id == 80), at=at + 1)
        assert list(rows) == [{"title": "a"}]
    bench.log.detach(bench.engine)
    with bench.engine.connect() as connection:
        changes = bench.log.history(connection, Task, 80)
    assert [change.fields["title"] for change in changes] == ["a", "b"]


def test_a_moment_that_is_over(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    with bench.log.moment(connection, at=bench.last_position()) as then:
        pass
    with pytest.raises(ConfigurationError, match="the moment is over"):
        then.rows(Task)
    with (
        pytest.raises(ZeroDivisionError),
        bench.log.moment(connection, at=bench.last_position()) as then,
    ):
        raise ZeroDivisionError
    assert not connection.in_transaction()


def test_a_statement_that_fails_leaves_the_moment(bench: Bench, connection: Connection) -> None:
    write_history(bench)
    wrong = sa.select(sa.cast(Task.project, sa.Integer))
    with pytest.raises(sa.exc.DataError):
        bench.log.as_of(connection, wrong, at=bench.last_position())
    connection.rollback()
    assert list(bench.log.as_of(connection, sa.select(Task.id), at=bench.last_position()))


@pytest.mark.parametrize("key", [1, (1,), None])
def test_a_select_has_no_key(bench: Bench, connection: Connection, key: object) -> None:
    write_history(bench)
    with pytest.raises(ConfigurationError):
        bench.log.as_of(connection, sa.select(Task), key, at=bench.last_position())


def test_streams_beside_one_another(bench: Bench) -> None:
    write_history(bench)
    at = sorted(set(list_positions(bench)))[9]
    engine = sa.create_engine(
        bench.engine.url, connect_args={"options": "-c timezone=Asia/Tokyo -c datestyle=German"}
    )
    zone = sa.select(Line.number, sa.cast(sa.func.now(), sa.Text).label("now"))
    with bench.log.moment(engine, at=at) as then:
        wanted = [list(then.rows(asked)) for asked in (Line, Account, Task)]
        lines, local, tasks = then.rows(Line), then.rows(zone), then.rows(Task)
        beside = [(next(tasks), next(lines), next(local)) for _ in range(2)]
        assert [show([a, b]) for a, b, _ in beside] == [
            show([a, b]) for a, b in zip(wanted[2], wanted[0], strict=False)
        ]
        assert all("JST" in str(row["now"]) or "+09" in str(row["now"]) for *_, row in beside)
        assert show(lines) == show(wanted[0][2:])
        assert show(then.rows(Account)) == show(wanted[1])
    engine.dispose()
