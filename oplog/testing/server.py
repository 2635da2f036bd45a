"""A PostgreSQL server for tests and demonstrations that leaves nothing behind.

`EmbeddedServer` runs in the owner's process: it finds the programs, sends the settings and talks
to the watchdog. The watchdog (`oplog/testing/watchdog.py`) is a process of its own, which ends
the server and deletes its directory however the owner ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from oplog.errors import ConfigurationError
from oplog.testing.binaries import find_binaries

WATCHDOG = Path(__file__).with_name("watchdog.py")


class EmbeddedServer:
    """A private server in a temporary directory, reached through a Unix socket only.

    As root it runs under the account `postgres` or `nobody`. It ends, and its directory is
    deleted, when `stop` is called, when the `with` block is left, and when the process that
    started it ends in any other way, `kill -9` included.

    `fsync`: whether a commit waits for the disk; without it data survives killed processes but
    not a power failure. `settings`: further server settings, by name. `bin_dir`: directory
    of `initdb` and `postgres`; by default the `embedded` extra's, else an installed server's.
    `standby_of`: a running server; this one becomes its hot standby, a copy made by
    `pg_basebackup` that follows it until `SELECT pg_promote()`, with its settings and programs.
    """

    def __init__(
        self,
        *,
        fsync: bool = False,
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | None = None,
        standby_of: EmbeddedServer | None = None,
    ) -> None:
        # `full_page_writes` stays on even without fsync: a process that is killed while it
        # writes a page may leave a torn page.
        self.settings: dict[str, str] = {
            "fsync": "on" if fsync else "off",
            "max_connections": "200",
            "max_prepared_transactions": "20",
            "timezone": "UTC",
            # A standby must allow as much as its primary, or it does not start.
            **(standby_of.settings if standby_of else {}),
            **(settings or {}),
        }
        self.bin_dir: Path | None = bin_dir or (standby_of.bin_dir if standby_of else None)
        self._primary = standby_of
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._directory = Path()
        self._pid = 0

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `postgres`, with its superuser."""
        return f"postgresql+psycopg://postgres@/postgres?host={quote(str(self.directory))}"

    @property
    def directory(self) -> Path:
        """Directory of the data, the socket and the server's `log`; deleted by `stop`."""
        self._process()
        return self._directory

    @property
    def pid(self) -> int:
        """Process id of the server, 0 after `kill9`."""
        self._process()
        return self._pid

    @property
    def watchdog_pid(self) -> int:
        """Process id of the watchdog."""
        return self._process().pid

    def start(self) -> Self:
        """Start the server and wait until it accepts connections (about half a second).

        Raises `ConfigurationError` when no server is installed, when it runs already, or when
        it does not start; then with the end of its output.
        """
        if self._watchdog is not None:
            raise ConfigurationError(
                "this embedded server runs already", hint="make another EmbeddedServer"
            )
        if os.name != "posix":
            raise ConfigurationError(
                "the embedded server needs a POSIX system",
                hint="run a PostgreSQL server and give its URL instead",
            )
        job = {"bin": str(find_binaries(self.bin_dir)), "settings": self.settings}
        if self._primary is not None:
            job["follows"] = str(self._primary.directory)
        self._owner = os.getpid()
        self._watchdog = subprocess.Popen(
            # -I and -S: only the standard library, whatever the environment variables are.
            [sys.executable, "-I", "-S", str(WATCHDOG), str(self._owner)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            cwd="/",
        )
        try:
            self._ask(job)
        except BaseException:
            self._dismiss()
            raise
        return self

    def stop(self) -> None:
        """End the server and delete its directory. Does nothing when it does not run.

        In a process forked from the one that started the server it does nothing either.
        """
        if self._watchdog is None or os.getpid() != self._owner:
            return
        try:
            self._ask({"do": "stop"})
        finally:
            self._dismiss()

    def kill9(self) -> None:
        """End the server and all its processes at once with SIGKILL; the data stays."""
        self._ask({"do": "kill"})

    def restart(self) -> None:
        """Start the server again on its data: in good order, or recovering after `kill9`."""
        self._ask({"do": "restart"})

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _process(self) -> subprocess.Popen[bytes]:
        if self._watchdog is None:
            raise ConfigurationError(
                "the embedded server does not run", hint="call start(), or use it in a with block"
            )
        return self._watchdog

    def _ask(self, request: Mapping[str, Any]) -> None:
        answer = _converse(self._process(), request)
        if "error" in answer:
            raise ConfigurationError(
                f"the embedded PostgreSQL server failed: {answer['error']}",
                hint=f"it was run from {find_binaries(self.bin_dir)}; "
                "another one can be named with bin_dir",
            )
        self._directory, self._pid = Path(answer["directory"]), answer["pid"]

    def _dismiss(self) -> None:
        """Let the watchdog see the end of the conversation, and wait until it has cleaned up."""
        process, self._watchdog = self._process(), None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


def _converse(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, Any]:
    if process.stdin is None or process.stdout is None:
        return {"error": "its watchdog has no pipe"}
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        line = process.stdout.readline()
    except OSError as error:
        return {"error": f"its watchdog does not listen: {error}"}
    answer: dict[str, Any] = json.loads(line) if line else {"error": "its watchdog ended"}
    return answer
