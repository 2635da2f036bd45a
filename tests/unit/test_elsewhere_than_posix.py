"""The package is imported where POSIX's names are missing, and says there what does not work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oplog.archive.objectstore.directory import DirectoryStore
from oplog.errors import StorageConfigError

pytestmark = pytest.mark.unit

IMPORT_ALL = """
import importlib, importlib.util, os, pkgutil, signal, socket, sys
# Whatever is not ours knows such systems by itself.
import alembic, asyncio, click, cryptography.hazmat.primitives.ciphers.aead, ctypes, google.protobuf
import msgspec, multiprocessing, obstore, psycopg, pytest, sqlalchemy.ext.asyncio, subprocess
import tempfile, tomllib, zstandard

for name in ("pwd", "grp", "fcntl", "resource", "termios", "pty", "posix"):
    sys.modules[name] = None
for name in dir(os):
    if name.startswith(("O_NO", "O_DIRECTORY", "O_CLOEXEC", "O_SYNC", "O_DSYNC")) or name in {
        *("fork", "register_at_fork", "getuid", "geteuid", "getgid", "fchmod", "fchown", "chown"),
        *("fchdir", "killpg", "setsid", "getpgid", "sched_getaffinity", "umask", "pread", "sync"),
    }:
        delattr(os, name)
for name in ("SIGHUP", "SIGQUIT", "SIGKILL", "SIGSTOP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM"):
    if hasattr(signal, name):
        delattr(signal, name)
del socket.AF_UNIX
import oplog
# Each is for who has that package.
needs = {"oplog.celery": "celery", "oplog.rq": "rq"}
for found in pkgutil.walk_packages(oplog.__path__, "oplog."):
    if found.name in needs and importlib.util.find_spec(needs[found.name]) is None:
        continue
    if found.name != "oplog.__main__":
        importlib.import_module(found.name)
oplog.Oplog(oplog.TypeCatalog(), keyring=oplog.Keyring.generate())
print(len([name for name in sys.modules if name.startswith("oplog.")]))
"""


def test_every_module_is_imported_without_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


def test_an_archive_in_a_directory_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "supports_dir_fd", set())
    with pytest.raises(StorageConfigError, match="needs a POSIX system") as refused:
        DirectoryStore(tmp_path)
    assert "s3://" in refused.value.hint
