"""Options that say who signs an archive, whose signatures are believed, and what it must hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from oplog.cli.option import remember_as
from oplog.crypto.signing_keyring import SIGNING_KEYRING
from oplog.crypto.trust import TRUST

F = TypeVar("F", bound=Callable[..., Any])


def signing_keyring_option(function: F) -> F:
    """`--signing-keyring`: the file of the publisher's keys."""
    return click.option(
        "--signing-keyring",
        type=click.Path(dir_okay=False, path_type=Path),
        expose_value=False,
        callback=remember_as("signing_keyring"),
        help=f"The publisher's keys, which sign the archive. Else what {SIGNING_KEYRING} names.",
    )(function)


def trust_option(function: F) -> F:
    """`--trust`: the file with the publishers that are believed."""
    return click.option(
        "--trust",
        "trust_file",
        type=click.Path(dir_okay=False, path_type=Path),
        expose_value=False,
        callback=remember_as("trust_file"),
        help=f"The publishers' keys that are pinned (oplog trust). Else what {TRUST} names.",
    )(function)


def unsigned_option(function: F) -> F:
    """`--unsigned`: an archive that nobody signs is what is wanted."""
    return click.option(
        "--unsigned",
        is_flag=True,
        expose_value=False,
        callback=remember_as("unsigned"),
        help="Begin and read an unsigned archive without a warning.",
    )(function)


def replace_publisher_option(function: F) -> F:
    """`--replace-publisher`: sign what another key has signed, or nobody."""
    return click.option(
        "--replace-publisher",
        is_flag=True,
        expose_value=False,
        callback=remember_as("replace_publisher"),
        help="Believe the newest head without looking at its key, and sign with this keyring "
        "from now on: after the old key was lost, or for an unsigned archive. Run oplog check "
        "first.",
    )(function)


def expect_option(function: F) -> F:
    """`--expect-at-least`: what the archive is known to hold."""
    return click.option(
        "--expect-at-least",
        "expect",
        metavar="SEQUENCE:HASH",
        expose_value=False,
        callback=remember_as("expect_at_least"),
        help="Refuse an archive that does not hold this, which oplog sync printed.",
    )(function)
