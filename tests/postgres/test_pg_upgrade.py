"""A database moved by `pg_upgrade` with commits that were not published yet: none is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url

from oplog.errors import ForeignServerError
from oplog.testing import EmbeddedServer
from oplog.testing.binaries import find_binaries
from tests.postgres.archived import dump_all, open_memory, reopen, restore_into
from tests.postgres.copied import open_copy
from tests.postgres.keeping import add_task, harmful
from tests.postgres.pruned import prune
from tests.postgres.replay_models import Bench, make_bench, write_history
from tests.postgres.restored import make_target
from tests.support import administer, install_log

pytestmark = pytest.mark.postgres

DATABASE = "moved"


@pytest.fixture
def servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """The old one and the new one; the new one as initdb leaves it."""
    if not (find_binaries() / "pg_upgrade").is_file():
        pytest.skip("there is no pg_upgrade beside the server's programs")
    with ExitStack() as stack:
        yield stack.enter_context(EmbeddedServer()), stack.enter_context(EmbeddedServer())


def connect(server: EmbeddedServer) -> Engine:
    url = make_url(server.url).set(database=DATABASE)
    return sa.create_engine(url, poolclass=sa.NullPool)


def run_as_server(data: Path, directory: Path, *command: str) -> None:
    """The programs of PostgreSQL refuse to run as root, and want the data to be their own."""
    owner = data.stat()
    account = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=directory,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        **account,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout + done.stderr


def find_programs(server: EmbeddedServer) -> Path:
    """Those that the server's account can run."""
    copies = list(server.directory.glob("server/*/*/bin"))
    return copies[0] if copies else find_binaries()


def upgrade(old: EmbeddedServer, new: EmbeddedServer) -> None:
    programs = find_programs(old)
    places = [server.directory / "data" for server in (old, new)]
    for place in places:
        run_as_server(
            place, place, str(programs / "pg_ctl"), "-D", str(place), "-m", "fast", "stop"
        )
    run_as_server(
        places[0],
        new.directory,
        *(str(programs / "pg_upgrade"), "-U", "postgres", "-s", str(new.directory)),
        *("-b", str(programs), "-B", str(programs), "-d", str(places[0]), "-D", str(places[1])),
    )
    new.restart()


@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
def test_the_hint_loses_nothing(
    servers: tuple[EmbeddedServer, EmbeddedServer], spare_engine: Engine, *, pruned: bool
) -> None:
    old, new = servers
    administer(make_url(old.url), f"CREATE DATABASE {DATABASE}")
    engine = connect(old)
    with engine.begin() as connection:
        install_log(connection)
    before: Bench = make_bench(engine)
    archive = open_memory()
    write_history(before)
    before.log.sync(engine, archive)
    if pruned:
        assert prune(before, archive).entries
    for _ in range(5):
        before.write(add_task)
    wanted = dump_all(before)
    upgrade(old, new)
    after = open_copy(connect(new), before)
    published = reopen(archive).read_head().sequence
    with pytest.raises(ForeignServerError) as caught:
        after.log.sync(after.engine, reopen(archive))
    # The archive is behind: to restore it would lose what it does not have.
    assert "oplog incarnate --replace" in str(caught.value.hint)
    assert "restore" not in str(caught.value)
    with after.engine.connect() as connection:
        after.log.incarnate(connection, replaces_original=True)
    report = after.log.sync(after.engine, reopen(archive))
    assert report.sequence == published + 5
    assert dump_all(after)[0] == wanted[0]
    assert harmful(after.log.check(reopen(archive), after.engine)) == []
    target = make_target(spare_engine, after)
    restore_into(target, reopen(archive))
    assert dump_all(target)[0] == wanted[0]
