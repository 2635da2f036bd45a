"""`oplog init`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from oplog.cli.invocation import Invocation, load_module, load_name, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape
from oplog.crypto.keyring import Keyring
from oplog.errors import ConfigurationError
from oplog.migration.first_revision import Environment, open_environment
from oplog.outside.first_log import (
    FirstLog,
    add_import,
    add_setting,
    name_log_path,
    write_downgrade,
    write_upgrade,
)
from oplog.outside.found_application import (
    FoundApplication,
    FoundName,
    find_application,
    name_module,
)
from oplog.schema.tables import VERSION

_FILE = click.Path(dir_okay=False, path_type=Path)
_NO_KEY = "it has no primary key"


@click.command()
@click.option(
    "--models",
    metavar="MODULE:NAME",
    help="The base of the mapped classes, or a MetaData, where none or several are found.",
)
@click.option("--log", "log_path", type=_FILE, help="Where to write the log's module.")
@click.option(
    "--keyring",
    "keyring_path",
    type=_FILE,
    help="Where to write the keyring; the default is in the user's configuration.",
)
@click.option(
    "--alembic",
    "configuration",
    type=_FILE,
    default=Path("alembic.ini"),
    show_default=True,
    help="The configuration of Alembic.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@standard_options
@pass_invocation
def init(
    invocation: Invocation,
    *,
    models: str | None,
    log_path: Path | None,
    keyring_path: Path | None,
    configuration: Path,
    dry_run: bool,
) -> None:
    """Write the first files of a log for the application in this directory.

    A module that makes the log and attaches it, a keyring outside of the repository, the line that
    env.py needs, a revision that creates the log's tables and guards those of the application, and
    the setting that says where the log is. Changes no database and overwrites no file.
    """
    directory = Path.cwd()
    found = find_application(directory)
    module, expression = _choose_models(found, models)
    metadata = _load_metadata(module, expression, found.tables)
    path = log_path or name_log_path(_find_file(module, found.models))
    draft = _Draft(directory, keyring_path or _name_keyring(directory))
    draft.plan_log(path.absolute(), found, module=module, expression=expression, metadata=metadata)
    draft.plan_setting()
    environment = open_environment(configuration) if configuration.exists() else None
    draft.plan_env(environment)
    document = draft.describe(found, environment)
    if not dry_run:
        draft.write(environment, metadata)
    invocation.emit(
        lambda: document, lambda: _show(document, "would write" if dry_run else "wrote")
    )
    if dry_run:
        say("nothing was written: this was a dry run")


def _choose_models(found: FoundApplication, given: str | None) -> tuple[str, str]:
    if given is not None:
        module, _, expression = given.partition(":")
        return module, expression
    if len(found.models) == 1:
        return found.models[0].module, found.models[0].expression
    names = ", ".join(f"{one.module}:{one.expression}" for one in found.models)
    raise ConfigurationError(
        f"there are several bases of models here: {names}"
        if names
        else "no SQLAlchemy models were found in this directory",
        hint="name them: oplog init --models MODULE:NAME",
    )


def _load_metadata(module: str, expression: str, tables: tuple[str, ...]) -> sa.MetaData:
    for one in tables:
        load_module(one, option="init")
    found = load_name(f"{module}:{expression}", option="--models")
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, sa.MetaData) or not metadata.tables:
        raise ConfigurationError(
            f"{module}:{expression} declares no table",
            hint="name the base of the mapped classes: oplog init --models MODULE:NAME",
        )
    return metadata


def _find_file(module: str, models: tuple[FoundName, ...]) -> Path:
    for one in models:
        if one.module == module:
            return one.path
    file = load_module(module, option="--models").__file__
    return Path(file) if file else Path.cwd() / "log.py"


def _name_keyring(directory: Path) -> Path:
    place = Path(click.get_app_dir("oplog"))
    # With an empty XDG_CONFIG_HOME the place would be in the repository.
    place = place if place.is_absolute() else Path.home() / ".config/oplog"
    return place / f"{directory.name}.keyring"


@dataclass
class _Draft:
    """What will be written: by path, text to write; and what stays as it is."""

    directory: Path
    keyring: Path
    texts: dict[Path, str] = field(default_factory=dict)
    kept: list[Path] = field(default_factory=list)
    app: str = ""

    def plan_log(
        self,
        path: Path,
        found: FoundApplication,
        *,
        module: str,
        expression: str,
        metadata: sa.MetaData,
    ) -> None:
        self.app = f"{name_module(path, self.directory)}:log"
        if path.exists():
            if "Oplog(" not in path.read_text(encoding="utf-8"):
                raise ConfigurationError(
                    f"{self.show(path)} is there already, and makes no log",
                    hint="say where the log's module shall be: oplog init --log PATH",
                )
            self.kept.append(path)
            return
        plain = [one for one in found.sessions if one.module != name_module(path, self.directory)]
        first = FirstLog(
            module,
            expression,
            imported=found.tables,
            untracked={name: _NO_KEY for name, table in metadata.tables.items() if not _key(table)},
            sessions=[(one.module, one.expression) for one in plain],
        )
        self.texts[path] = first.write()

    def plan_setting(self) -> None:
        path = self.directory / "pyproject.toml"
        text = add_setting(path.read_text("utf-8"), self.app) if path.exists() else None
        if text is not None:
            self.texts[path] = text

    def plan_env(self, environment: Environment | None) -> None:
        if environment is None:
            return
        text = add_import(environment.env.read_text(encoding="utf-8"))
        if text is None:
            self.kept.append(environment.env)
        else:
            self.texts[environment.env] = text
        if environment.has_log is not None:
            self.kept.append(environment.has_log)

    def describe(
        self, found: FoundApplication, environment: Environment | None
    ) -> Mapping[str, Any]:
        """What is written and kept, and what is left to do."""
        written = [self.show(path) for path in self.texts]
        if not self.keyring.exists():
            written.append(self.show(self.keyring))
        if environment is not None and environment.has_log is None:
            written.append(f"a revision beside {self.show(environment.env)}")
        return {
            "written": written,
            "kept": [self.show(path) for path in self.kept],
            "next": [*self._list_steps(found, environment)],
        }

    def _list_steps(
        self, found: FoundApplication, environment: Environment | None
    ) -> Iterator[str]:
        module = self.app.partition(":")[0]
        yield f"export OPLOG_KEYRING={self.keyring}  (and keep a copy of the file elsewhere)"
        if not (self.directory / "pyproject.toml").exists():
            yield f"export OPLOG_APP={self.app}"
        if found.sessions:
            yield f"import {module} where the application starts, before its first session"
        else:
            yield f"in {module}: log.attach(Sessions), with what makes the application's sessions"
        if environment is None:
            yield f"create the log's tables in a migration: op.create_oplog(version={VERSION})"
        else:
            yield "alembic upgrade head  (from then on changes that are not logged are refused)"
        yield "oplog adopt  (logs the rows that are there already)"
        yield "oplog doctor"

    def write(self, environment: Environment | None, metadata: sa.MetaData) -> None:
        if not self.keyring.exists():
            self.keyring.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            Keyring.generate().save(self.keyring)
        for path, text in self.texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if environment is not None and environment.has_log is None:
            tables: dict[str | None, list[str]] = {}
            for table in metadata.sorted_tables:
                if _key(table):
                    tables.setdefault(table.schema, []).append(table.name)
            environment.write_revision(
                upgrade=write_upgrade(tables, version=VERSION), downgrade=write_downgrade(tables)
            )

    def show(self, path: Path) -> str:
        """A path for people, short where it is below the directory."""
        try:
            return str(path.relative_to(self.directory))
        except ValueError:
            return str(path)


def _key(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key]


def _show(document: Mapping[str, Any], wrote: str) -> Iterator[str]:
    yield from (f"{wrote} {escape(one)}" for one in document["written"])
    yield from (f"kept {escape(one)}" for one in document["kept"])
    yield "next:"
    yield from (f"  {number}. {escape(one)}" for number, one in enumerate(document["next"], 1))
