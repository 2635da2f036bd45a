"""What commands share: the application's `Oplog`, a connection, an archive, the output.

Importing the application runs its code, which may print, fail or exit. Its output goes to stderr,
and its failures are reported as those of the application.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from oplog.archive.archive import Archive
from oplog.archive.opening import DEADLINE_SECONDS, open_archive
from oplog.cli.exit_code import UnexpectedError, print_data
from oplog.cli.pager import show_in_pager
from oplog.cli.presentation import Look
from oplog.crypto.signing_keyring import SigningKeyring
from oplog.crypto.trust import Trust
from oplog.errors import OplogError
from oplog.facade import Oplog
from oplog.outside.engine_plugin import without_plugin
from oplog.outside.learned_log import learn_log
from oplog.outside.program_settings import read_settings

_APP_HINT = "give --app module:attr, or set OPLOG_APP"
REFLECTED = "reflected"
"""In place of module:attr: no application, but the tables that are guarded in the database."""


@dataclass
class Invocation:
    """One run of the program: the options before the command, and `--json`."""

    app: str | None = None
    actor: str | None = None
    database: str | None = None
    archive: str | None = None
    single_writer: bool = False
    accept_older: bool = False
    store_deadline_seconds: float = DEADLINE_SECONDS
    signing_keyring: Path | None = None
    trust_file: Path | None = None
    unsigned: bool = False
    replace_publisher: bool = False
    expect_at_least: str = ""
    as_json: bool = False

    def load_log(self) -> Oplog:
        """The `Oplog` that `--app` names, or that the callable it names returns."""
        if not self.app:
            raise click.UsageError(f"no application: {_APP_HINT}")
        if self.app == REFLECTED:
            settings = read_settings(os.environ, Path.cwd())
            with self.connect() as connection:
                return learn_log(settings, connection)
        return load_log(self.app)

    @contextlib.contextmanager
    def connect(
        self,
        *,
        read_only: bool = True,
        commit: bool = False,
        isolation: IsolationLevel = "REPEATABLE READ",
    ) -> Iterator[Connection]:
        """A connection in one snapshot of the database; rolled back unless `commit`."""
        with self.open_engine() as engine, engine.connect() as connection:
            connection.execution_options(isolation_level=isolation)
            if read_only:
                connection.execution_options(postgresql_readonly=True)
            yield connection
            if commit:
                connection.commit()

    @contextlib.contextmanager
    def open_engine(self, *, pooled: bool = False) -> Iterator[Engine]:
        """An engine of our own: nothing that the application attached to its own hears of it.

        `pooled` keeps a connection between two uses, for a command that connects every second.
        """
        options: dict[str, Any] = {"poolclass": NullPool}
        if pooled:
            # After a pause the server may be another one: asking first saves a failed pass.
            options = {"pool_size": 1, "max_overflow": 9, "pool_pre_ping": True}
        engine = sa.create_engine(
            parse_url(self.database), connect_args={"application_name": "oplog"}, **options
        )
        try:
            yield engine
        finally:
            engine.dispose()

    def name_database(self) -> str:
        """Database and host for people; never the password, wherever it stands in the URL."""
        url = parse_url(self.database)
        return (
            f"{url.database or '(default)'} on {url.host or url.query.get('host') or 'localhost'}"
        )

    def open_archive(self) -> Archive:
        """The archive that was named."""
        archive = self.find_archive()
        if archive is None:
            raise click.UsageError("no archive: give --archive URL, or set OPLOG_ARCHIVE_URL")
        return archive

    def find_archive(self) -> Archive | None:
        """The archive that was named; None if none was."""
        return self.reach_archive(self.archive)

    def reach_archive(self, url: str | None) -> Archive | None:
        """The archive at `url`; None for none."""
        if not url:
            return None
        if url.lower().startswith("memory:"):
            raise click.UsageError("memory:// ends with this process; name a store that stays")
        return open_archive(
            url,
            single_writer=self.single_writer,
            accept_older=self.accept_older,
            deadline_seconds=self.store_deadline_seconds,
            signing_keyring=None
            if self.signing_keyring is None
            else SigningKeyring.from_file(self.signing_keyring),
            trust=None if self.trust_file is None else Trust.from_file(self.trust_file),
            unsigned=self.unsigned,
            replace_publisher=self.replace_publisher,
            expect_at_least=self.expect_at_least,
        )

    def emit(
        self,
        document: Callable[[], Any],
        text: Callable[[], Iterable[str]],
        *,
        paged: bool = False,
    ) -> None:
        """Print the answer on stdout: one JSON document, or lines of text as they come.

        With `paged` a terminal shows lines in its pager.
        """
        if self.as_json:
            print_data(json.dumps(document(), indent=2, allow_nan=False))
        elif paged and sys.stdout.isatty():
            show_in_pager(text())
        else:
            for line in text():
                print_data(line)

    def look(self, *, redact: bool, full: bool) -> Look:
        """How entries are shown: in colour on a terminal, unless NO_COLOR is set."""
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        return Look(redact=redact, full=full, colour=colour)


def say(message: str) -> None:
    """A remark that is not data: stderr."""
    sys.stderr.write(message + "\n")


def parse_url(text: str | None) -> URL:
    """The URL of a PostgreSQL database, with the driver that is installed with the log."""
    if not text:
        raise click.UsageError("no database: give --database URL, or set OPLOG_DATABASE_URL")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as cause:
        # The text may hold a password: it is not repeated.
        raise click.UsageError(
            "the database URL cannot be read; write postgresql://user:password@host/database"
        ) from cause
    if url.drivername.partition("+")[0] not in {"postgresql", "postgres"}:
        raise click.UsageError(f"the log needs PostgreSQL, and the URL says {url.drivername!r}")
    # The engine of a command is its own: it is not logged by its URL.
    return without_plugin(url.set(drivername="postgresql+psycopg"))


def load_log(path: str) -> Oplog:
    """The `Oplog` at `module:attr`; the current directory is importable."""
    with contextlib.redirect_stdout(sys.stderr):
        found = load_name(path, option="--app")
        if not isinstance(found, Oplog) and callable(found):
            with _of_application(f"calling {path} failed"):
                found = found()
    if not isinstance(found, Oplog):
        raise click.UsageError(
            f"--app {path!r} is a {type(found).__name__}, not an Oplog or a function that "
            "returns one"
        )
    return found


def load_name(path: str, *, option: str) -> Any:
    """What is at `module:attr`; the current directory is importable. `option` is for messages."""
    module_name, _, names = path.partition(":")
    if not module_name or not names:
        raise click.UsageError(f"{option} {path!r} is not of the form module:attr")
    found: Any = load_module(module_name, option=option)
    for name in names.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as cause:
            raise click.UsageError(
                f"{option} {path!r}: {module_name} has no attribute {names!r}"
            ) from cause
    return found


def load_module(name: str, *, option: str) -> ModuleType:
    """A module of the application; what it prints goes to stderr."""
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    with contextlib.redirect_stdout(sys.stderr):
        return _import(name, option)


def _import(name: str, option: str) -> ModuleType:
    try:
        with _of_application(f"importing {name} failed"):
            return importlib.import_module(name)
    except UnexpectedError as error:
        cause = error.__cause__
        if (
            isinstance(cause, ModuleNotFoundError)
            and cause.name is not None
            and (name == cause.name or name.startswith(f"{cause.name}."))
        ):
            raise click.UsageError(
                f"{option}: there is no module {name!r}, neither installed nor in {Path.cwd()}"
            ) from cause
        raise


@contextlib.contextmanager
def _of_application(doing: str) -> Iterator[None]:
    try:
        yield
    except OplogError:
        raise
    except SystemExit as cause:
        raise UnexpectedError(doing) from RuntimeError(f"it exited with {cause.code!r}")
    except Exception as cause:
        raise UnexpectedError(doing) from cause
