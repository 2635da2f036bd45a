"""Snapshots: whole and layered ones give the tables, whatever was done to them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from oplog import Keyring, Oplog, TypeCatalog
from oplog.archive.format.manifest import Dataset, NumberedColumn, SnapshotManifest
from oplog.errors import (
    ChainBrokenError,
    ConfigurationError,
    ManifestInvalidError,
    SchemaDriftError,
    SegmentCorruptError,
    WrongKeyError,
)
from oplog.postgres.quoting import (
    qualify,
)
from oplog.schema.partitions import PARTITION_POSITIONS
from oplog.schema.tables import (
    track_statements,
)
from oplog.snapshot import table_data as livedata
from oplog.snapshot.policy import MAX_KEPT_LAYERS
from oplog.snapshot.stored import StoredSnapshot
from oplog.snapshot.touched_rows import iterate_changes
from tests.kept import KeptLog
from tests.logged import LoggedDatabase, open_logged
from tests.models.depot import AGGREGATES, OBJECTS, Bin, Part, Slot
from tests.models.depot import Base as DepotBase
from tests.older import FIRST_WITH, READ_SINCE
from tests.postgres.replay_models import (
    HISTORY,
    Account,
    Bench,
    Car,
    Line,
    Node,
    Owner,
    Task,
    make_bench,
    unlock,
    write_history,
)
from tests.property.type_samples import TYPES, Sample
from tests.property.type_samples_made import NEVER_KEYS, SAMPLES
from tests.property.type_tables import Spelled
from tests.sampling import Sample as Draw
from tests.shelf import Shelf

pytestmark = pytest.mark.postgres


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.generate()


@pytest.fixture
def bench(engine: Engine, keyring: Keyring) -> Bench:
    return make_bench(engine, keyring)


@pytest.fixture
def shelf(bench: Bench, keyring: Keyring) -> Shelf:
    return Shelf(bench.engine, bench.log, keyring)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows in each chunk."""
    monkeypatch.setattr(livedata, "CHUNK_BYTES", 100)


def never_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oplog.snapshot.take.is_merge_due", lambda *_, **__: False)


def taken(manifest: SnapshotManifest | None) -> SnapshotManifest:
    assert manifest is not None
    return manifest


def find(manifest: SnapshotManifest, table: str) -> Dataset:
    (found,) = (one for one in manifest.tables if one.table == table)
    return found


# -- a snapshot is the tables -----------------------------------------------------------------


def test_a_whole_snapshot_is_the_tables(bench: Bench, shelf: Shelf) -> None:
    write_history(bench)
    bench.write(lambda s: s.add_all([Car(id=n, maker="m", doors=n) for n in range(20, 30)]))
    manifest = taken(shelf.take())
    shelf.check(manifest)
    assert manifest.rows == 28
    names = [column.name for column in find(manifest, "owner").columns]
    assert names == ["id", "name", "motto"]
    assert "doubled" not in find(manifest, "account").names
    assert b"hush" not in b"".join(shelf.objects.values())


@pytest.mark.usefixtures("small_chunks")
def test_many_small_chunks(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add_all([Node(id=n, label="x" * n) for n in range(200)]))
    manifest = taken(shelf.take())
    assert len(find(manifest, "node").base) > 50
    shelf.check(manifest)


@pytest.mark.usefixtures("small_chunks")
def test_many_deleted_rows(bench: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    never_merge(monkeypatch)
    bench.write(lambda s: s.add_all([Node(id=n, label="x") for n in range(1000, 1200)]))
    taken(shelf.take())

    def delete(session: Session) -> None:
        for number in range(1010, 1190):
            session.delete(session.get_one(Node, number))

    bench.write(delete)
    manifest = taken(shelf.take())
    (layer,) = find(manifest, "node").layers
    assert sum(ref.tombstones for ref in layer) == 180
    assert len(layer) > 5
    shelf.check(manifest)


def test_a_ticket_that_was_never_redeemed_is_left_out(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add(Node(id=1)))
    bench.tamper("INSERT INTO oplog.oplog_ticket VALUES ('begun', 0)")
    manifest = taken(shelf.take())
    assert manifest.heads.rows == 1
    shelf.check(manifest)


def test_an_empty_log(shelf: Shelf) -> None:
    manifest = taken(shelf.take())
    assert (manifest.tables, manifest.heads.rows, manifest.sequence) == ((), 0, 0)
    shelf.check(manifest)
    assert shelf.take() is None


@pytest.mark.sampled
@pytest.mark.usefixtures("small_chunks")
def test_every_kind_of_change_as_layers(
    bench: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, sample: Draw
) -> None:
    never_merge(monkeypatch)
    checked = {*sample(range(len(HISTORY)), 4), len(HISTORY) - 1}
    for number, work in enumerate(HISTORY):
        bench.write(work)
        manifest = taken(shelf.take())
        if number in checked:
            shelf.check(manifest)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_random_work_as_layers(
    bench: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, *, seed: int, merges: bool
) -> None:
    if not merges:
        never_merge(monkeypatch)
    monkeypatch.setattr("oplog.snapshot.touched_rows._HELD_KEYS", 3)
    chance = random.Random(seed)
    bench.write(lambda s: s.add_all([Owner(name=f"o{n}") for n in range(5)]))
    for _ in range(12):
        for _ in range(chance.randrange(4)):
            bench.write(lambda s: do_anything(s, chance))
        manifest = shelf.take()
        if manifest is not None:
            shelf.check(manifest)


def do_anything(session: Session, chance: random.Random) -> None:
    """A few changes of rows that are there or not."""
    for _ in range(chance.randrange(1, 6)):
        number = chance.randrange(30)
        for make in (
            lambda n: Node(id=n, label=chance.choice([None, "", "\\N", "tab\tend\n"])),
            lambda n: Line(order_id=n % 3, number=f"{n}\\", weight=chance.choice([None, 0.1])),
            lambda n: Car(id=n, maker=None, doors=n),
            lambda n: Task(id=n, project=f"p{n % 2}", title="t"),
            lambda n: Account(id=n, owner_id=1, balance=Decimal(n)),
        ):
            if chance.random() < 0.6:
                continue
            row = make(number)
            key = sa.orm.object_mapper(row).primary_key_from_instance(row)
            found = session.get(type(row), tuple(key))
            if found is None:
                session.add(row)
            elif chance.random() < 0.4:
                session.delete(found)
            else:
                session.merge(row)
            session.flush()
    if chance.random() < 0.4:
        tasks = session.scalars(sa.select(Task.id)).all()
        for number in tasks[:2]:
            session.execute(
                sa.update(Task).where(Task.id == number).values(id=chance.randrange(100, 10**6))
            )
    if chance.random() < 0.1:
        for number in session.scalars(sa.select(Node.id)).all():
            session.execute(sa.delete(Node).where(Node.id == number))


def test_partitions_cascades_and_triggers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    never_merge(monkeypatch)
    db, shelf = open_depot(engine)
    shelf.check(taken(shelf.take()))
    for statement in (
        "UPDATE reading SET day = 3 - day WHERE id < 5",
        "DELETE FROM bin WHERE id = 2",
        "UPDATE part SET stock = stock + 1, note = 'late' WHERE id < 3",
        "DELETE FROM slot",
        "INSERT INTO bin (id, label) VALUES (2, 'again')",
    ):
        with db.sessions.begin() as session:
            session.execute(sa.text(statement))
        shelf.check(taken(shelf.take()))
    assert len(find(taken(shelf.previous), "reading").layers) == 1
    assert find(taken(shelf.previous), "slot").rows == 0


def open_depot(engine: Engine) -> tuple[LoggedDatabase, Shelf]:
    db = open_logged(engine, DepotBase, aggregates=AGGREGATES)
    db.execute(*OBJECTS, *track_statements(qualify(DepotBase.metadata.tables, None)))
    shelf = Shelf(engine, db.log, db.log.keyring)
    with db.sessions.begin() as session:
        session.add_all([Part(id=n, sku=f"s{n}") for n in range(1, 5)])
        session.add_all([Bin(id=n, label="b") for n in range(1, 4)])
        session.flush()
        session.add_all([Slot(id=n, bin_id=1 + n % 3, part_id=1, amount=n) for n in range(9)])
        session.execute(
            sa.text(
                "INSERT INTO reading (id, day, value) SELECT n, 1 + n % 2, n "
                "FROM generate_series(1, 20) n"
            )
        )
    return db, shelf


def test_a_table_emptied_behind_the_log_gets_a_new_base(engine: Engine) -> None:
    db, shelf = open_depot(engine)
    taken(shelf.take())
    db.execute("SET LOCAL oplog.bypass = 'test'; TRUNCATE slot")
    with db.sessions.begin() as session:
        session.add(Slot(id=1, bin_id=1, part_id=None, amount=3))
    manifest = taken(shelf.take())
    shelf.check(manifest)
    assert (find(manifest, "slot").rows, find(manifest, "slot").layers) == (1, ())


def test_adopted_rows(bench: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    never_merge(monkeypatch)
    bench.tamper(
        "INSERT INTO node (id, label) SELECT n, 'old' FROM generate_series(1, 100) n",
        "INSERT INTO line (order_id, number) SELECT n, n FROM generate_series(1, 100) n",
    )
    with bench.engine.connect() as connection:
        bench.log.adopt(connection, ["node"])
    shelf.check(taken(shelf.take()))
    bench.write(lambda s: setattr(s.get_one(Node, 7), "label", "new"))
    # As many as before, so that counting them tells nothing.
    bench.tamper("DELETE FROM node WHERE id = 8", "INSERT INTO node (id) VALUES (108)")
    with bench.engine.connect() as connection:
        bench.log.adopt(connection, ["line"])
        bench.log.adopt(connection, ["node"], again=True)
    shelf.check(taken(shelf.take()))


# -- every type -------------------------------------------------------------------------------


def test_columns_and_keys_of_every_type(engine: Engine, keyring: Keyring) -> None:
    metadata = sa.MetaData()
    with engine.begin() as connection:
        told: str = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
        version = int(told) // 10_000
        first = {**FIRST_WITH, **READ_SINCE}
        samples = [s for s in SAMPLES if not s.needs and first.get(s.sql, 0) <= version]
        for statement in TYPES:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    for number, sample in enumerate(samples):
        sa.Table(
            f"t{number}",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("v", Spelled(sample.sql)),
        )
        if sample.sql not in NEVER_KEYS and sample.key == "exact":
            sa.Table(f"k{number}", metadata, sa.Column("id", Spelled(sample.sql), primary_key=True))
    metadata.create_all(engine)
    with engine.begin() as connection:
        for number, sample in enumerate(samples):
            fill(connection, f"t{number}", sample)
            if f"k{number}" in metadata.tables:
                fill_keys(connection, f"k{number}", sample)
    log = Oplog(TypeCatalog.from_models(metadata), keyring=keyring)
    with engine.connect() as connection:
        log.adopt(connection)
    shelf = Shelf(engine, log, keyring)
    manifest = taken(shelf.take())
    assert manifest.rows > 3 * len(samples)
    shelf.check(manifest)


def fill(connection: sa.Connection, table: str, sample: Sample) -> None:
    for number, text in enumerate(sample.always):
        connection.execute(
            sa.text(f"INSERT INTO {table} VALUES (:n, CAST(CAST(:text AS text) AS {sample.sql}))"),
            {"n": number, "text": text},
        )
    if sample.nullable:
        connection.exec_driver_sql(f"INSERT INTO {table} VALUES (-1, NULL)")


def fill_keys(connection: sa.Connection, table: str, sample: Sample) -> None:
    for text in sample.always:
        connection.execute(
            sa.text(
                f"INSERT INTO {table} VALUES (CAST(CAST(:text AS text) AS {sample.sql})) "
                "ON CONFLICT DO NOTHING"
            ),
            {"text": text},
        )


# -- what is uploaded -------------------------------------------------------------------------


class SizeBase(DeclarativeBase):
    pass


class Numbered(SizeBase):
    __tablename__ = "numbered"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[int]


class Drawn(SizeBase):
    __tablename__ = "drawn"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[int]


def test_a_scattered_hundredth_uploads_a_hundredth(engine: Engine, keyring: Keyring) -> None:
    count = 50_000
    db = open_logged(engine, SizeBase, aggregates={"numbered": "numbered", "drawn": "drawn"})
    db.execute(
        f"INSERT INTO numbered SELECT n, md5(n::text), n * 7 FROM generate_series(1, {count}) n",
        "INSERT INTO drawn SELECT gen_random_uuid(), md5(n::text), n * 7 "
        f"FROM generate_series(1, {count}) n",
    )
    with engine.connect() as connection:
        db.log.adopt(connection)
    shelf = Shelf(engine, db.log, keyring)
    shelf.sealer = db.log._log.sealer
    first = taken(shelf.take())
    chance = random.Random(7)
    with db.sessions.begin() as session:
        for table in (Numbered, Drawn):
            keys = session.scalars(sa.select(table.id).order_by(table.id)).all()
            for key in chance.sample(list(keys), count // 100):
                session.execute(
                    sa.update(table).where(table.id == key).values(amount=table.amount + 1)
                )
    known = set(shelf.objects)
    second = taken(shelf.take())
    shelf.check(second)
    for name in ("numbered", "drawn"):
        whole = find(first, name)
        layer = find(second, name)
        assert layer.base == whole.base
        assert [sum(ref.rows for ref in one) for one in layer.layers] == [count // 100]
        assert layer.layer_bytes <= 0.03 * whole.base_bytes
    assert shelf.measure(second, since=known) <= 0.03 * shelf.measure(first, since=set())


def test_tables_without_changes_are_carried_over(bench: Bench, shelf: Shelf) -> None:
    write_history(bench)
    first = taken(shelf.take())
    known = set(shelf.objects)
    bench.write(lambda s: s.add(Node(id=50)))
    second = taken(shelf.take())
    for dataset in first.tables:
        if dataset.table != "node":
            assert find(second, dataset.table) == dataset
    new = [ref for ref in second.iterate_chunks() if ref.path not in known]
    assert len(new) == len(set(shelf.objects) - known) == 2  # of nodes and of heads


def test_nothing_is_stored_when_nothing_changed(bench: Bench, shelf: Shelf) -> None:
    write_history(bench)
    taken(shelf.take())
    known = dict(shelf.objects)
    bench.tamper("SELECT nextval(pg_get_serial_sequence('owner', 'id'))")
    assert shelf.take() is None
    assert shelf.objects == known


def relabel(number: int) -> Callable[[Session], None]:
    return lambda s: setattr(s.get_one(Node, number), "label", "new")


def test_layers_are_merged_when_they_are_many(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add_all([Node(id=n, label=uuid4().hex) for n in range(1000)]))
    taken(shelf.take())
    layers = []
    for turn in range(MAX_KEPT_LAYERS + 2):
        bench.write(relabel(turn))
        manifest = taken(shelf.take())
        layers.append(len(find(manifest, "node").layers))
    assert layers == [*range(1, MAX_KEPT_LAYERS + 1), 0, 1]
    shelf.check(manifest)


def test_layers_are_merged_when_they_are_large(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add_all([Node(id=n, label=f"{n}") for n in range(100)]))
    first = taken(shelf.take())
    layers = []
    for turn in range(4):

        def change(session: Session, turn: int = turn) -> None:
            for number in range(10):
                session.get_one(Node, 10 * turn + number).label = f"new {number}"

        bench.write(change)
        manifest = taken(shelf.take())
        layers.append(len(find(manifest, "node").layers))
        shelf.check(manifest)
    assert layers[0] == 1
    assert 0 in layers
    assert find(manifest, "node").base != find(first, "node").base


def test_a_table_whose_columns_changed_gets_a_new_base(bench: Bench, shelf: Shelf) -> None:
    write_history(bench)
    first = taken(shelf.take())
    bench.tamper("ALTER TABLE node ALTER label TYPE varchar(20)")
    with pytest.raises(SchemaDriftError, match=r"public\.node was changed"):
        shelf.take()
    with bench.engine.begin() as connection:
        bench.log.note_changes(connection)
    manifest = taken(shelf.take())
    assert find(manifest, "node").base != find(first, "node").base
    assert find(manifest, "line") == find(first, "line")
    shelf.check(manifest)


def test_a_table_that_was_dropped_is_left_out(bench: Bench, shelf: Shelf) -> None:
    write_history(bench)
    taken(shelf.take())
    bench.tamper("DROP TABLE car")
    manifest = taken(shelf.take())
    assert "car" not in {one.table for one in manifest.tables}
    shelf.check(manifest)


# -- the transaction's state ------------------------------------------------------------------


def test_writers_during_a_snapshot_do_not_show(
    bench: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_merge(monkeypatch)
    bench.write(lambda s: s.add_all([Node(id=n, label="first") for n in range(100)]))
    taken(shelf.take())
    bench.write(lambda s: setattr(s.get_one(Node, 1), "label", "second"))
    store = shelf.put

    def put(data: bytes) -> str:
        # Another transaction commits between any two chunks.
        number = 1000 + len(shelf.objects)
        writer = threading.Thread(target=bench.write, args=(lambda s: s.add(Node(id=number)),))
        writer.start()
        writer.join()
        return store(data)

    monkeypatch.setattr(shelf, "put", put)
    for whole in (False, True):
        with shelf.open() as connection:
            manifest = taken(shelf.take_inside(connection, whole=whole))
            shelf.check(manifest, connection)
        with shelf.open() as connection:
            live = connection.exec_driver_sql("SELECT count(*) FROM node").scalar_one()
        assert live > find(manifest, "node").rows
    monkeypatch.setattr(shelf, "put", store)
    shelf.check(taken(shelf.take()))


@pytest.mark.parametrize(
    "statement",
    [
        # Rewritten, a table looks empty to whoever began before.
        "ALTER TABLE node ALTER id TYPE bigint",
        "ALTER TABLE node DROP label, ADD label varchar",
        "SET LOCAL oplog.bypass = 'test'; TRUNCATE node",
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_migration_during_a_snapshot_is_noticed(
    bench: Bench, shelf: Shelf, statement: str, *, whole: bool
) -> None:
    bench.write(lambda s: s.add_all([Node(id=n, label="first") for n in range(100)]))
    taken(shelf.take())
    bench.write(relabel(1))
    with shelf.open() as connection:
        connection.exec_driver_sql("SELECT 1")
        bench.tamper(statement)
        with pytest.raises(SchemaDriftError, match=r"public\.node was changed by a migration"):
            shelf.take_inside(connection, whole=whole)


def test_a_detached_partition_is_noticed(engine: Engine) -> None:
    db, shelf = open_depot(engine)
    with shelf.open() as connection:
        connection.exec_driver_sql("SELECT 1")
        db.execute("ALTER TABLE reading DETACH PARTITION reading_2")
        with pytest.raises(SchemaDriftError, match=r"public\.reading was changed"):
            shelf.take_inside(connection)


def test_partitions_of_the_log_may_come_while_a_snapshot_is_taken(
    bench: Bench, shelf: Shelf
) -> None:
    bench.write(lambda s: s.add(Node(id=1)))
    with shelf.open() as connection:
        connection.exec_driver_sql("SELECT 1")
        bench.tamper(f"SELECT oplog.oplog_make_partitions({5 * PARTITION_POSITIONS})")
        manifest = taken(shelf.take_inside(connection))
    assert manifest.heads.rows == 1
    shelf.check(manifest)


def test_a_partition_of_the_log_that_goes_is_noticed(bench: Bench, shelf: Shelf) -> None:
    """With it go the hashes of heads, which the snapshot would lack."""
    bench.write(lambda s: s.add(Node(id=1)))
    with shelf.open() as connection:
        connection.exec_driver_sql("SELECT 1")
        bench.tamper("DROP TABLE oplog.oplog_record_p0")
        with pytest.raises(SchemaDriftError, match=r"oplog\.oplog_record was changed"):
            shelf.take_inside(connection)


def test_heads_of_a_few_aggregates_are_not_looked_for_among_all(
    bench: Bench, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_merge(monkeypatch)
    bench.write(lambda s: s.add_all([Node(id=n) for n in range(3)]))
    taken(shelf.take())
    unlock(
        bench,
        "oplog_entry",
        "INSERT INTO oplog.oplog_entry SELECT 'other/' || n, v, 1 "
        "FROM generate_series(1, 20000) n, generate_series(1, 3) v",
        "ANALYZE oplog.oplog_entry",
    )
    bench.write(lambda s: setattr(s.get_one(Node, 1), "label", "x"))
    with shelf.open() as connection:
        before = count_read(connection)
        manifest = taken(shelf.take_inside(connection))
        assert count_read(connection) - before < 100
    assert [ref.rows for layer in manifest.heads.layers for ref in layer] == [1]
    assert manifest.heads.rows == 3


def count_read(connection: sa.Connection) -> int:
    """Rows that this transaction has read from the index of entries."""
    found = connection.exec_driver_sql(
        "SELECT pg_stat_get_xact_tuples_returned('oplog.oplog_entry'::regclass) "
        "+ pg_stat_get_xact_tuples_returned('oplog.oplog_entry_pkey'::regclass)"
    )
    return int(found.scalar_one())


def test_tables_without_changes_are_not_locked(bench: Bench, shelf: Shelf) -> None:
    write_history(bench)
    taken(shelf.take())
    bench.write(lambda s: s.add(Node(id=50)))
    with shelf.open() as connection:
        taken(shelf.take_inside(connection))
        locked = connection.exec_driver_sql(
            "SELECT relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid() "
            "AND relation = ANY(ARRAY['node', 'line', 'owner']::regclass[])"
        )
        assert set(locked.scalars()) == {"node"}


def test_another_isolation_is_refused(bench: Bench, shelf: Shelf) -> None:
    with bench.engine.connect() as connection, pytest.raises(ConfigurationError, match="READ COM"):
        shelf.take_inside(connection)


def test_records_that_are_missing_between_snapshots_are_noticed(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add(Node(id=1)))
    taken(shelf.take())
    bench.write(lambda s: s.add(Node(id=2)))
    shelf.seen.add(bench.last_position())
    with pytest.raises(ChainBrokenError, match=r"0 records were found .* count 1"):
        shelf.take()


def test_changes_come_in_sequence_from_a_log_elsewhere(bench: Bench) -> None:
    kept = KeptLog(bench.log.store, page=2)
    write_history(bench)
    bench.write(lambda s: s.add_all([Node(id=n) for n in range(60, 65)]))
    bench.write(lambda s: s.add(Node(id=70)))
    with bench.engine.connect() as connection:
        kept.take(connection, order=lambda position: -position)
        reader = bench.log.open_reader(connection, source=kept)
        for after, through in ((0, 6), (1, 6), (6, 6), (6, kept.sequence), (0, kept.sequence)):
            changes = list(iterate_changes(reader, kept, after=after, through=through))
            assert [one.stored for one in changes] == kept.records[after:through]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"log_id": UUID(int=1)}, "of the log"),
        ({"sequence": 99}, "at sequence 99"),
        ({"chain": bytes(32)}, "another branch"),
    ],
)
def test_what_cannot_be_built_on_is_refused(
    bench: Bench, shelf: Shelf, values: dict[str, object], message: str
) -> None:
    bench.write(lambda s: s.add(Node(id=1)))
    shelf.previous = replace(taken(shelf.take()), **values)  # type: ignore[arg-type]
    with pytest.raises(ManifestInvalidError, match=message):
        shelf.take()


def test_the_clients_settings_do_not_show_in_chunks(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add(Line(order_id=1, number="é", weight=0.1, blob=b"\x00\xff")))
    with shelf.open() as connection:
        for statement in (
            "SET client_encoding = 'LATIN1'",
            "SET extra_float_digits = -15",
            "SET bytea_output = 'escape'",
        ):
            connection.exec_driver_sql(statement)
        manifest = taken(shelf.take_inside(connection))
        assert connection.exec_driver_sql("SHOW client_encoding").scalar() == "LATIN1"
    shelf.check(manifest)


# -- what belongs to it -----------------------------------------------------------------------


def test_sequences_and_revisions_are_recorded(bench: Bench, shelf: Shelf) -> None:
    bench.tamper(
        "CREATE SEQUENCE free START 40",
        "CREATE TABLE untracked (id serial PRIMARY KEY)",
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('b2'), ('a1')",
    )
    bench.write(lambda s: s.add_all([Owner(name="a"), Owner(name="b"), Node(id=1)]))
    manifest = taken(shelf.take())
    assert manifest.revisions == ("a1", "b2")
    found = {one.name: one for one in manifest.sequences}
    assert {"owner_id_seq", "node_id_seq", "free"} <= set(found)
    assert not {"oplog_position_seq", "untracked_id_seq"} & set(found)
    owner = found["owner_id_seq"]
    assert (owner.owner, owner.last_value, owner.is_called) == (
        NumberedColumn("public", "owner", "id"),
        2,
        True,
    )
    assert (found["free"].owner, found["free"].last_value, found["free"].is_called) == (
        None,
        40,
        False,
    )
    bench.tamper("UPDATE alembic_version SET version_num = 'c3' WHERE version_num = 'a1'")
    known = set(shelf.objects)
    assert taken(shelf.take()).revisions == ("b2", "c3")
    assert set(shelf.objects) == known


# -- read back --------------------------------------------------------------------------------


def replace_type(dataset: Dataset, name: str, pg_type: str) -> Dataset:
    columns = [c._replace(pg_type=pg_type) if c.name == name else c for c in dataset.columns]
    return replace(dataset, columns=tuple(columns))


def test_a_chunk_in_the_place_of_another_is_refused(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add_all([Node(id=1), Task(id=1, project="p")]))
    manifest = taken(shelf.take())
    (node,), (task,) = find(manifest, "node").base, find(manifest, "task").base
    shelf.objects[node.path] = shelf.objects[task.path]
    with pytest.raises(SegmentCorruptError, match=node.path):
        shelf.check(manifest)


def test_another_key_under_the_same_name_is_refused(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add(Node(id=1)))
    (ref,) = find(taken(shelf.take()), "node").base
    checks = {"k1": bytes(32)}
    snapshot = StoredSnapshot(
        taken(shelf.previous),
        get=shelf.objects.__getitem__,
        sealer=shelf.sealer,
        key_checks=dict.fromkeys([shelf.sealer.key_id], checks["k1"]),
    )
    (node,) = (table for table in snapshot.tables() if table.dataset.base == (ref,))
    with pytest.raises(WrongKeyError):
        list(node.rows())


@pytest.mark.usefixtures("small_chunks")
def test_an_error_while_reading_ahead_reaches_the_reader(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add_all([Node(id=n, label="12345678") for n in range(300)]))
    manifest = taken(shelf.take())
    del shelf.objects[find(manifest, "node").base[20].path]
    with shelf.open() as connection:
        tables = {table.name[1]: table for table in shelf.read_back(connection, manifest).tables()}
        with pytest.raises(KeyError):
            list(tables["node"].rows())
    assert not [t for t in threading.enumerate() if t.name.startswith("oplog-snapshot")]


def test_heads_of_layers_take_the_place_of_older_ones(bench: Bench, shelf: Shelf) -> None:
    bench.write(lambda s: s.add_all([Node(id=n) for n in range(100)]))
    taken(shelf.take())
    bench.write(lambda s: setattr(s.get_one(Node, 5), "label", "x"))
    manifest = taken(shelf.take())
    assert len(manifest.heads.layers) == 1
    shelf.check(manifest)
    with shelf.open() as connection:
        versions = [head.version for head in shelf.read_back(connection, manifest).heads()]
    assert sorted(versions) == [1] * 99 + [2]
