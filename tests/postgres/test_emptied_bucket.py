"""A bucket that a lifecycle rule has emptied, while the database has everything."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive
from oplog.archive.objectstore.memory import Call, MemoryStore
from oplog.archive.objectstore.probe import Verdict
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.backoff import Backoff
from oplog.errors import (
    ArchiveError,
    ConfigurationError,
    HeadRolledBackError,
    LeaseHeldError,
    PrunedError,
    StorageConfigError,
)
from oplog.store.export import ExportStore, Lease
from oplog.sync import exact_view
from tests.postgres.archived import dump_all, dump_objects, restore_into
from tests.postgres.keeping import add_task, harmful
from tests.postgres.pruned import prune
from tests.postgres.replay_models import Bench, make_bench, write_history
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres


class NamedStore(MemoryStore):
    """One that has a URL of its own: what is published there is known by it."""

    def __init__(self) -> None:
        super().__init__("test")
        self.url = "test://bucket/prefix"


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


def open_store(store: ObjectStore) -> Archive:
    return Archive(store, verdict=Verdict.ATOMIC)


@pytest.fixture
def store(bench: Bench) -> NamedStore:
    """What is published, with a snapshot."""
    store = NamedStore()
    write_history(bench)
    bench.log.snapshot(bench.engine, open_store(store))
    bench.write(add_task)
    bench.log.sync(bench.engine, open_store(store))
    return store


def empty(store: ObjectStore, *left: str) -> None:
    for info in list(store.list("")):
        if not info.path.startswith(left or ("nothing",)):
            store.delete(info.path)


LEFT = ((), ("LATEST",), ("COLLECTED", "LATEST"), ("LOG/", "BLOB/", "PIN/", "LATEST"))


@pytest.mark.parametrize("left", LEFT, ids=lambda left: " ".join(left) or "nothing")
def test_it_is_filled_again_when_somebody_says_so(
    bench: Bench, target: Bench, store: NamedStore, left: tuple[str, ...]
) -> None:
    old = open_store(store).read_head()
    store.put("COLLECTED", b"collected\n")
    empty(store, *left)
    before = dump_objects(open_store(store))
    # Never by itself, whoever publishes: a second history must be somebody's will.
    for work in (bench.log.sync, bench.log.snapshot):
        with pytest.raises(ArchiveError) as caught:
            work(bench.engine, open_store(store))
        assert isinstance(caught.value, HeadRolledBackError) or "head" in str(caught.value)
        assert left not in ((), ("LATEST", "COLLECTED")) or "resync --anew" in str(caught.value)
    assert not bench.log.resync(bench.engine, open_store(store)).ok
    assert dump_objects(open_store(store)) == before
    report = bench.log.resync(bench.engine, open_store(store), anew=True)
    assert report.ok
    head = open_store(store).read_head()
    # Another archive: who has seen the old one is to notice.
    assert head.archive_id != old.archive_id
    assert (head.generation, head.sequence) == (0, old.sequence)
    assert harmful(bench.log.check(open_store(store), bench.engine)) == []
    # From now on it is an archive as any other.
    bench.write(add_task)
    assert bench.log.sync(bench.engine, open_store(store)).entries == 1
    assert bench.log.snapshot(bench.engine, open_store(store)).taken
    restore_into(target, open_store(store))
    assert dump_all(target) == dump_all(bench)


def test_an_archive_object_that_has_seen_it_goes_on(bench: Bench, store: NamedStore) -> None:
    archive = open_store(store)
    archive.read_head()
    empty(store)
    assert bench.log.resync(bench.engine, archive, anew=True).ok


def test_another_prefix_begins_another_archive(
    bench: Bench, target: Bench, store: NamedStore
) -> None:
    other = MemoryStore("other")
    bench.log.sync(bench.engine, open_store(other))
    assert bench.log.snapshot(bench.engine, open_store(other)).taken
    restore_into(target, open_store(other))
    assert dump_all(target) == dump_all(bench)
    assert open_store(store).read_head().archive_id != open_store(other).read_head().archive_id


def test_an_archive_with_a_head_is_not_begun_anew(bench: Bench, store: NamedStore) -> None:
    head = open_store(store).read_head()
    empty(store, f"HEAD/{head.number:016x}")
    before = dump_objects(open_store(store))
    with pytest.raises(ConfigurationError, match="has 1 heads"):
        bench.log.resync(bench.engine, open_store(store), anew=True)
    assert dump_objects(open_store(store)) == before


def test_what_was_pruned_cannot_be_made_again(bench: Bench, store: NamedStore) -> None:
    prune(bench, open_store(store))
    empty(store)
    with pytest.raises(PrunedError, match="no archive can begin without them"):
        bench.log.resync(bench.engine, open_store(store), anew=True)
    assert dump_objects(open_store(store)) == {}


def test_a_database_that_never_published_there_is_refused(bench: Bench, store: NamedStore) -> None:
    del store
    with pytest.raises(ConfigurationError, match="has published nothing"):
        bench.log.resync(bench.engine, open_store(MemoryStore("other")), anew=True)
    with pytest.raises(ConfigurationError, match="dry run"):
        bench.log.resync(bench.engine, open_store(MemoryStore("x")), anew=True, dry_run=True)


def test_a_worker_in_its_turn_is_waited_for(
    bench: Bench, store: NamedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_view, "PATIENCE", Backoff(deadline_seconds=0.0))
    archive_id = open_store(store).read_head().archive_id
    empty(store)
    engine = sa.create_engine(bench.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection, connection.begin():
        assert ExportStore("oplog").try_lease(connection, archive_id) is Lease.OURS
        with pytest.raises(LeaseHeldError):
            bench.log.resync(bench.engine, open_store(store), anew=True)
    assert dump_objects(open_store(store)) == {}
    assert bench.log.resync(bench.engine, open_store(store), anew=True).ok


def test_without_permission_to_delete_the_way_out_is_said(bench: Bench, store: NamedStore) -> None:
    empty(store, "LATEST")

    def refuse(call: Call) -> None:
        if call.operation == "delete" and not call.done:
            raise StorageConfigError("denied", hint="a test")

    store.on_call = refuse
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"LATEST of .* cannot be deleted"):
            bench.log.resync(bench.engine, open_store(store), anew=True)
    store.on_call = lambda _: None
    assert bench.log.resync(bench.engine, open_store(store), anew=True).ok


def test_the_first_head_of_another_worker_does_not_look_like_an_emptied_bucket(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers begin at once: one has found no head when the other publishes the first one."""
    store, begin = NamedStore(), ExportStore.begin
    others: list[int] = []

    def begin_late(self: ExportStore, connection: sa.Connection) -> None:
        if not others:
            others.append(0)
            others[0] = bench.log.sync(bench.engine, open_store(store)).entries
        begin(self, connection)

    monkeypatch.setattr(ExportStore, "begin", begin_late)
    bench.write(add_task)
    report = bench.log.sync(bench.engine, open_store(store))
    # It begins again, and finds that the other one has done the work.
    assert others[0] > 0
    assert report.entries == 0
    assert harmful(bench.log.check(open_store(store), bench.engine)) == []
