"""`oplog trust add`, `list`, `remove` and `revoke`: whose signatures this reader believes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.publisher_command import open_signing_keyring
from oplog.crypto.trust import TRUST, Trust, change_trust_file
from oplog.errors import ConfigurationError

_file_option = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"The trust file; else what --trust or {TRUST} names.",
)


@click.group(name="trust")
@standard_options
def trust() -> None:
    """Pin the keys of publishers whose archives are believed.

    With a pinned key, an archive that was signed by another one, or by none, is refused. Take the
    key from the publisher's operator (oplog publisher list), not from the archive.
    """


@trust.command()
@click.argument("key", metavar="[KEY]", required=False)
@click.option("--log", type=click.UUID, help="Believe it for the log with this id only.")
@_file_option
@standard_options
@pass_invocation
def add(invocation: Invocation, *, key: str | None, log: UUID | None, file: Path | None) -> None:
    """Pin the publisher's KEY, for any log or for one.

    Without KEY, the one that signs on this machine: that of the signing keyring.
    """
    path = _find(invocation, file)
    wanted = key or open_signing_keyring(invocation).publisher
    _emit(invocation, change_trust_file(path, lambda found: found.add(wanted, log=log)))


@trust.command(name="list")
@_file_option
@standard_options
@pass_invocation
def list_trust(invocation: Invocation, *, file: Path | None) -> None:
    """List the keys that are pinned, and those that were revoked."""
    _emit(invocation, Trust.from_file(_find(invocation, file)))


@trust.command()
@click.argument("key", metavar="KEY")
@_file_option
@standard_options
@pass_invocation
def remove(invocation: Invocation, *, key: str, file: Path | None) -> None:
    """Pin KEY no longer. One that is pinned may still vouch for it."""
    path = _find(invocation, file)
    _emit(invocation, change_trust_file(path, lambda found: found.remove(key)))


@trust.command()
@click.argument("key", metavar="KEY")
@_file_option
@standard_options
@pass_invocation
def revoke(invocation: Invocation, *, key: str, file: Path | None) -> None:
    """Never believe KEY again, nor keys that only it vouches for: it was stolen."""
    path = _find(invocation, file)
    _emit(invocation, change_trust_file(path, lambda found: found.revoke(key)))


def _find(invocation: Invocation, file: Path | None) -> Path:
    path = file or invocation.trust_file
    if path is None:
        named = os.environ.get(TRUST, "").strip()
        path = Path(named) if named else None
    if path is None:
        raise ConfigurationError(
            "there is no trust file", hint=f"give --file PATH, or set {TRUST} to its path"
        )
    return path


def _emit(invocation: Invocation, found: Trust) -> None:
    document: dict[str, Any] = {
        "publishers": [
            {"key": key, "log": None if log is None else str(log)}
            for key, log in found.publishers.items()
        ],
        "revoked": sorted(found.revoked),
    }
    invocation.emit(lambda: document, lambda: _show(found))


def _show(found: Trust) -> Iterator[str]:
    for key, log in found.publishers.items():
        yield f"{key}  pinned" if log is None else f"{key}  pinned for the log {log}"
    for key in sorted(found.revoked):
        yield f"{key}  revoked"
