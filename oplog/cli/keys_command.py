"""`oplog keys generate`, `list`, `rotate` and `retire`.

Only `generate --print` shows key bytes: a printed key stays in a terminal's scrollback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count
from oplog.crypto.keyring import Keyring
from oplog.doctor.key_status import KeyStatus
from oplog.errors import ConfigurationError

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
@standard_options
def keys() -> None:
    """Make, list, rotate and retire the keys that seal the log.

    A lost key is a lost log: keep a copy of the keyring somewhere else.
    """


@keys.command()
@click.option("--file", type=_FILE, help="Write the keyring here (mode 0600).")
@click.option("--print", "shown", is_flag=True, help="Print the keyring, which is a secret.")
@standard_options
@pass_invocation
def generate(invocation: Invocation, *, file: Path | None, shown: bool) -> None:
    """Make a keyring with one fresh key. Never overwrites a file."""
    if (file is None) == (not shown):
        raise click.UsageError("give either --file PATH or --print")
    keyring = Keyring.generate()
    if file is not None:
        if file.exists():
            raise ConfigurationError(
                f"there is a file at {file}", hint=f"oplog keys rotate --file {file} adds a key"
            )
        keyring.save(file)
    document = _describe(keyring)
    if shown:
        document["keyring"] = keyring.to_text()
    invocation.emit(lambda: document, lambda: [keyring.to_text()] if shown else _show(keyring))
    say("keep a copy of it: without its keys the log cannot be read")


@keys.command(name="list")
@click.option("--file", type=_FILE, help="Keyring to list; the default is the application's.")
@click.option("--log", "of_log", is_flag=True, help="List the keys that the log knows, with ages.")
@standard_options
@pass_invocation
def list_keys(invocation: Invocation, *, file: Path | None, of_log: bool) -> None:
    """List the ids of a keyring's keys, oldest first.

    With --log those that the log in the database was sealed with: since when, which of them were
    retired, and which the application's keyring has.
    """
    if of_log:
        if file is not None:
            raise click.UsageError("give either --file PATH or --log")
        log = invocation.load_log()
        with invocation.connect() as connection:
            report = log.list_keys(connection)
        invocation.emit(report.to_json, lambda: map(_show_logged, report.keys))
        return
    keyring = Keyring.from_file(file) if file is not None else invocation.load_log().keyring
    if keyring is None:
        raise ConfigurationError(
            "the application's log has no keyring: its entries are not sealed",
            hint="give --file PATH for a keyring that the application does not use",
        )
    invocation.emit(lambda: _describe(keyring), lambda: _show(keyring))


@keys.command()
@click.option("--file", type=_FILE, required=True, help="The keyring to change.")
@standard_options
@pass_invocation
def rotate(invocation: Invocation, *, file: Path) -> None:
    """Add a key, which seals new entries from now on; the old ones stay readable.

    Processes that run already seal with the key they know until they start again or that key is
    retired, and read the file anew when they meet a key that they do not know.
    """
    keyring = Keyring.from_file(file)
    keyring.rotate()
    invocation.emit(lambda: _describe(keyring), lambda: _show(keyring))
    say("keep a copy of the file as it is now: the new key is in no older one")


@keys.command()
@click.argument("key_id", metavar="ID")
@standard_options
@pass_invocation
def retire(invocation: Invocation, *, key_id: str) -> None:
    """Let the database refuse new records under the key ID, in whatever process.

    For a key that has leaked, or is old enough. Needs the role that owns the log, and a newer key
    that the log knows. Keep the key in the keyring: what it has sealed is read with it.
    """
    log = invocation.load_log()
    with invocation.open_engine() as engine, engine.begin() as connection:
        report = log.retire_key(connection, key_id)
    found = report.to_json()
    invocation.emit(lambda: found, lambda: [f"{key_id}  retired {found['retired_at']}"])
    say("keep the key in the keyring: the records that it has sealed are read with it")


def _show_logged(key: KeyStatus) -> str:
    found = key.to_json()
    since = f"since {found['registered_at']}, {show_count(key.age_days, 'day')}"
    retired = f"  retired {found['retired_at']}" if found["retired_at"] else ""
    return f"{escape(key.key_id)}  {key.state}  {since}{retired}"


def _describe(keyring: Keyring) -> dict[str, Any]:
    return {"current": keyring.current_key_id, "key_ids": list(keyring.key_ids)}


def _show(keyring: Keyring) -> list[str]:
    return [
        f"{key_id}  current" if key_id == keyring.current_key_id else key_id
        for key_id in keyring.key_ids
    ]
