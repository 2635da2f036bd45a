"""A real PgBouncer in transaction pooling, in front of any server.

The one that is installed, if one is. The hard thing is that it leaves nothing behind: it does
not run as root, so it gets an account and a directory of its own, and it ends with the process
that started it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from oplog.testing.watchdog import _die_with_parent

PORT = 6432
DEADLINE_SECONDS = 30
INI = """
[databases]
{database} = {target}
[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
server_round_robin = 1
logfile = {directory}/log
"""
"""`server_round_robin`: a client gets another server connection each time, as under load."""


def find_pgbouncer() -> str:
    """The program; skips the test where there is none."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        pytest.skip("pgbouncer is neither on PATH nor in /usr/sbin")
    return found


@contextmanager
def open_pgbouncer(url: URL, *, size: int) -> Iterator[URL]:
    """The database's URL through a PgBouncer that shares `size` server connections."""
    program = find_pgbouncer()
    account = _find_account()
    # Not pytest's directory: that is root's alone, and too long for a socket.
    directory = Path(tempfile.mkdtemp(prefix="oplog-pgbouncer-"))
    try:
        if account is not None:
            os.chown(directory, account.pw_uid, account.pw_gid)
        ini = directory / "ini"
        ini.write_text(
            INI.format(
                database=url.database,
                target=_describe_target(url),
                directory=directory,
                port=PORT,
                size=size,
            )
        )
        # It may hold the server's password.
        ini.chmod(0o600)
        if account is not None:
            os.chown(ini, account.pw_uid, account.pw_gid)
        privileges: dict[str, Any] = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        )
        with subprocess.Popen(
            [program, "-q", str(ini)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - before the test starts its threads
            **privileges,
        ) as process:
            try:
                _wait_until_ready(process, directory)
                yield URL.create(
                    url.drivername,
                    username="client",
                    database=url.database,
                    query={"host": str(directory), "port": str(PORT)},
                )
            finally:
                process.kill()
    finally:
        shutil.rmtree(directory)


def _find_account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("pgbouncer does not run as root, and there is no account postgres or nobody")


def _describe_target(url: URL) -> str:
    known = {
        "host": url.host or url.query.get("host"),
        "port": url.port or url.query.get("port"),
        "user": url.username or "postgres",
        "password": url.password,
        "dbname": url.database,
    }
    quoted = {name: str(value).replace("'", "''") for name, value in known.items() if value}
    return " ".join(f"{name}='{value}'" for name, value in quoted.items())


def _wait_until_ready(process: subprocess.Popen[bytes], directory: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(str(directory / f".s.PGSQL.{PORT}"))
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
            break
    log = directory / "log"
    said = log.read_text() if log.exists() else "nothing"
    raise AssertionError(f"pgbouncer did not start; it said {said}")
