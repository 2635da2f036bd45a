"""The embedded server: whom it runs as, what it survives, and that nothing of it stays."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import OperationalError

from oplog.errors import ConfigurationError
from oplog.testing import EmbeddedServer
from oplog.testing.binaries import find_binaries

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

SECONDS = 20.0

OWNER = """
import sys
from oplog.testing import EmbeddedServer
server = EmbeddedServer().start()
print(server.pid, server.watchdog_pid, server.directory, flush=True)
sys.stdin.read()
"""

FORKING_OWNER = """
import os, sys
from oplog.testing import EmbeddedServer
server = EmbeddedServer().start()
child = os.fork()
if child:
    print(server.pid, server.watchdog_pid, server.directory, flush=True)
sys.stdin.read()
"""

INTERRUPTED_OWNER = """
import sys
from pathlib import Path
from oplog.testing import EmbeddedServer
EmbeddedServer(bin_dir=Path(sys.argv[1])).start()
"""


@contextmanager
def connected(server: EmbeddedServer) -> Iterator[Engine]:
    engine = sa.create_engine(server.url)
    try:
        yield engine
    finally:
        engine.dispose()


def scalar(engine: Engine, statement: str) -> object:
    with engine.begin() as connection:
        return connection.scalar(sa.text(statement))


def write(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def await_end(pid: int) -> None:
    """Wait until the process has ended; the kernel says so, nobody polls."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], SECONDS)[0], f"process {pid} still runs"
    finally:
        os.close(handle)


def start_owner(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_owner(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait(SECONDS)
    for pipe in (owner.stdin, owner.stdout):
        assert pipe is not None
        pipe.close()


def read_words(owner: subprocess.Popen[str]) -> list[str]:
    assert owner.stdout is not None
    return owner.stdout.readline().split()


def test_fresh_database_answers(bare_database_url: URL) -> None:
    engine = sa.create_engine(bare_database_url)
    version = scalar(engine, "select current_setting('server_version_num')::int")
    schemas = scalar(engine, "select count(*) from pg_namespace where nspname = 'oplog'")
    engine.dispose()
    assert isinstance(version, int)
    assert version >= 140000
    assert schemas == 0


def test_template_carries_the_log(engine: Engine) -> None:
    assert scalar(engine, "select count(*) from oplog.oplog_entry") == 0


def test_runs_as_an_ordinary_account_whoever_starts_it() -> None:
    with EmbeddedServer() as server:
        owner = server.directory.stat().st_uid
        assert owner != 0
        assert owner == os.geteuid() or os.geteuid() == 0
        with connected(server) as engine:
            assert scalar(engine, "show listen_addresses") == ""


def test_programs_out_of_the_account_s_reach(tmp_path: Path) -> None:
    """pytest's directories are closed to others, like root's home: the server is copied."""
    install = find_binaries().parent
    package = install.parent
    closed = tmp_path / package.name
    shutil.copytree(install, closed / install.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, tmp_path / libraries.name)
    tmp_path.chmod(0o700)

    with EmbeddedServer(bin_dir=closed / install.name / "bin") as server, connected(server) as it:
        assert scalar(it, "select 1") == 1
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_two_servers_side_by_side() -> None:
    with EmbeddedServer() as one, EmbeddedServer() as two:
        assert one.directory != two.directory
        with connected(one) as first, connected(two) as second:
            write(first, "create table only_here (id int)")
            assert scalar(first, "select to_regclass('only_here') is not null") is True
            assert scalar(second, "select to_regclass('only_here') is null") is True


def test_stop_leaves_nothing() -> None:
    server = EmbeddedServer().start()
    directory, pid, watchdog = server.directory, server.pid, server.watchdog_pid
    memory = shared_memory(pid)
    server.stop()
    assert not directory.exists()
    assert not any(Path(segment).exists() for segment in memory)
    await_end(watchdog)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()


def test_stop_after_kill_leaves_nothing() -> None:
    server = EmbeddedServer().start()
    directory, memory = server.directory, shared_memory(server.pid)
    server.kill9()
    assert server.pid == 0
    server.stop()
    assert not directory.exists()
    assert not any(Path(segment).exists() for segment in memory)


def test_killed_server_recovers_what_was_committed() -> None:
    with EmbeddedServer() as server, connected(server) as engine:
        write(engine, "create table kept (id int)", "insert into kept values (1)")
        with engine.connect() as open_connection:
            open_connection.execute(sa.text("insert into kept values (2)"))
            server.kill9()
            with pytest.raises(OperationalError):
                open_connection.execute(sa.text("select 1"))
            open_connection.invalidate()
        with pytest.raises(OperationalError):
            scalar(engine, "select 1")
        server.restart()
        assert scalar(engine, "select array_agg(id) from kept") == [1]
        assert "not properly shut down" in (server.directory / "log").read_text()


def test_restart_in_good_order() -> None:
    with EmbeddedServer() as server, connected(server) as engine:
        write(engine, "create table kept (id int)")
        engine.dispose()
        before = server.pid
        server.restart()
        assert server.pid != before
        assert scalar(engine, "select count(*) from kept") == 0
        assert "not properly shut down" not in (server.directory / "log").read_text()


@pytest.mark.parametrize("program", [OWNER, FORKING_OWNER], ids=["alone", "with a forked child"])
def test_owner_killed(program: str) -> None:
    owner = start_owner(program)
    server, watchdog, directory = read_words(owner)
    owner.kill()
    await_end(int(server))
    await_end(int(watchdog))
    assert not Path(directory).exists()
    kill_owner(owner)


def test_owner_killed_while_starting(tmp_path: Path) -> None:
    """The programs are wrapped: `initdb` tells where it works, then waits to be let go on."""
    bin_dir = find_binaries()
    told, go = tmp_path / "told", tmp_path / "go"
    for fifo in (told, go):
        os.mkfifo(fifo)
        fifo.chmod(0o666)
    wrapped = tmp_path / "bin"
    wrapped.mkdir()
    (wrapped / "postgres").symlink_to(bin_dir / "postgres")
    script = f'#!/bin/sh\necho $PPID "$2" > {told}\nread line < {go}\nexec {bin_dir}/initdb "$@"\n'
    (wrapped / "initdb").write_text(script)
    (wrapped / "initdb").chmod(0o755)
    open_to_all(tmp_path)

    owner = start_owner(INTERRUPTED_OWNER, str(wrapped))
    watchdog, data = told.read_text().split()
    kill_owner(owner)
    go.write_text("on\n")
    await_end(int(watchdog))
    assert not Path(data).parent.exists()


def test_server_ends_with_its_watchdog() -> None:
    with EmbeddedServer() as server:
        pid, directory = server.pid, server.directory
        os.kill(server.watchdog_pid, signal.SIGKILL)
        await_end(pid)
        with pytest.raises(ConfigurationError, match="watchdog"):
            server.restart()
        with pytest.raises(ConfigurationError, match="watchdog"):
            server.stop()
    shutil.rmtree(directory)


def test_forked_child_does_not_stop_its_parent_s_server() -> None:
    with EmbeddedServer() as server, connected(server) as engine:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert scalar(engine, "select 1") == 1


def test_settings_reach_the_server() -> None:
    server = EmbeddedServer(fsync=True, settings={"max_connections": "17"})
    with server, connected(server) as engine:
        assert scalar(engine, "show fsync") == "on"
        assert scalar(engine, "show max_connections") == "17"


def test_unknown_setting_is_reported_in_the_server_s_words() -> None:
    with pytest.raises(ConfigurationError, match='parameter "no_such_setting"'):
        EmbeddedServer(settings={"no_such_setting": "1"}).start()


def test_named_directory_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not hold") as caught:
        EmbeddedServer(bin_dir=tmp_path).start()
    assert "bin directory of a PostgreSQL" in caught.value.hint


def test_not_started() -> None:
    with pytest.raises(ConfigurationError, match="does not run"):
        _ = EmbeddedServer().url


def test_started_twice() -> None:
    with EmbeddedServer() as server, pytest.raises(ConfigurationError, match="already"):
        server.start()


def shared_memory(pid: int) -> set[str]:
    """Files of shared memory that the server has mapped (it has at least one)."""
    found = set(re.findall(r"/dev/shm/PostgreSQL\.\d+", Path(f"/proc/{pid}/maps").read_text()))
    assert found
    return found


def open_to_all(directory: Path) -> None:
    """Let the server's account in; pytest's directories are of mode 700."""
    for step in (directory, *directory.parents):
        if step.stat().st_uid == os.geteuid() and not step.stat().st_mode & 0o001:
            step.chmod(step.stat().st_mode | 0o011)
