"""A restore and a follower write no table that only the archive names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive
from oplog.archive.format.head import TypesRef
from oplog.archive.format.path import BLOB, name_content, name_head
from oplog.archive.format.typefile import LoggedTypes, encode_types
from oplog.errors import ConfigurationError
from tests.logged import track
from tests.postgres.archived import dump_all, open_memory, reopen, restore_into
from tests.postgres.keeping import add_task
from tests.postgres.replay_models import Bench, make_bench
from tests.postgres.restored import make_target

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


def name_other_table(bench: Bench) -> Archive:
    """A head that says of every row of tasks that it belongs into another table."""
    archive = open_memory()
    bench.write(add_task)
    bench.log.sync(bench.engine, archive)
    head = archive.read_head()
    types = archive.read_types(head)
    shapes = [
        replace(shape, table="keepme") if shape.table == "task" else shape for shape in types.shapes
    ]
    data = encode_types(LoggedTypes(shapes, types.key_checks))
    path = name_content(BLOB, 1, data=data)
    archive.store.put(path, data)
    ref = TypesRef(path, len(shapes), len(types.key_checks))
    changed = replace(head, number=head.number + 1, previous=head.link(), types=ref)
    archive.store.put(name_head(changed.number), changed.encode())
    return reopen(archive)


@pytest.fixture
def target(bench: Bench, spare_engine: Engine) -> Bench:
    """A database with a table of its own, which has the columns of `task`."""
    target = make_target(spare_engine, bench)
    with target.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE keepme (LIKE task INCLUDING ALL)")
    return target


def test_a_restore_does_not_write_a_table_that_nobody_names(bench: Bench, target: Bench) -> None:
    archive, before = name_other_table(bench), dump_all(target)
    with pytest.raises(ConfigurationError, match=r"rows of public\.keepme, which is neither"):
        restore_into(target, archive)
    assert dump_all(target) == before


def test_a_follower_does_not_empty_one(bench: Bench, target: Bench) -> None:
    archive = name_other_table(bench)
    engine = sa.create_engine(target.engine.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO keepme SELECT * FROM json_populate_record(null::keepme, "
            '\'{"id": 1, "project": "mine", "title": "mine"}\')'
        )
    with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match=r"rows of public\.keepme, which is neither"):
            target.log.follow(archive, connection)
        assert connection.exec_driver_sql("SELECT count(*) FROM keepme").scalar_one() == 1


def test_a_guard_names_a_table(bench: Bench, target: Bench) -> None:
    table = sa.Table("keepme", sa.MetaData(), autoload_with=target.engine)
    track(target.engine, table)
    restore_into(target, name_other_table(bench))
    with target.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM keepme").scalar_one() == 1
