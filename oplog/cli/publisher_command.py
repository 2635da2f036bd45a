"""`oplog publisher generate`, `list` and `rotate`: the keys that sign an archive's heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.crypto.signing_keyring import SIGNING_KEYRING, SigningKeyring
from oplog.errors import ConfigurationError

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
@standard_options
def publisher() -> None:
    """Make, list and rotate the key that signs an archive.

    Only the worker that publishes needs it. It opens no record.
    """


@publisher.command()
@click.option("--file", type=_FILE, required=True, help="Write the signing keyring here (0600).")
@standard_options
@pass_invocation
def generate(invocation: Invocation, *, file: Path) -> None:
    """Make a signing keyring with one fresh key. Never overwrites a file."""
    keyring = SigningKeyring.generate()
    keyring.save(file)
    _show(invocation, keyring)
    say("readers pin this key: oplog trust add KEY; keep a copy of the file somewhere else")


@publisher.command(name="list")
@click.option("--file", type=_FILE, help="The signing keyring; else the usual one.")
@standard_options
@pass_invocation
def list_publishers(invocation: Invocation, *, file: Path | None) -> None:
    """List the public keys of a signing keyring, oldest first."""
    _show(invocation, open_signing_keyring(invocation, file))


@publisher.command()
@click.option("--file", type=_FILE, help="The signing keyring to change; else the usual one.")
@standard_options
@pass_invocation
def rotate(invocation: Invocation, *, file: Path | None) -> None:
    """Add a key, which the old one signs, and which signs the archive from now on.

    The next publication carries the signature of the old key. Who pins that believes the new one.
    """
    keyring = open_signing_keyring(invocation, file)
    keyring.rotate()
    _show(invocation, keyring)
    say("publish once (oplog sync), then let readers pin the new key: oplog trust add KEY")


def open_signing_keyring(invocation: Invocation, file: Path | None = None) -> SigningKeyring:
    """The signing keyring in `file`, or else the usual one; `ConfigurationError` without."""
    path = file or invocation.signing_keyring
    keyring = SigningKeyring.from_env() if path is None else SigningKeyring.from_file(path)
    if keyring is None:
        raise ConfigurationError(
            "there is no signing keyring", hint=f"give --file PATH, or set {SIGNING_KEYRING}"
        )
    return keyring


def _show(invocation: Invocation, keyring: SigningKeyring) -> None:
    document: dict[str, Any] = {
        "current": keyring.publisher,
        "publishers": list(keyring.publishers),
    }
    invocation.emit(
        lambda: document,
        lambda: [
            f"{key}  current" if key == keyring.publisher else key for key in keyring.publishers
        ],
    )
