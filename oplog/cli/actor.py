"""Who a command is run by, and which one it is: metadata of every record that it writes."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from oplog.cli.invocation import Invocation
from oplog.entry import check_metadata
from oplog.errors import InvalidMetadataError
from oplog.metadata_context import Metadata, context

F = TypeVar("F", bound=Callable[..., Any])


def actor_option(function: F) -> F:
    """`--actor`: of a command that writes; as before the command's name."""

    def remember(given: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        try:
            check_metadata("actor", value)
        except InvalidMetadataError as cause:
            raise click.BadParameter(str(cause), given, parameter) from cause
        if not value.strip():
            raise click.BadParameter("it is empty", given, parameter)
        given.ensure_object(Invocation).actor = value

    return click.option(
        "--actor",
        metavar="NAME",
        expose_value=False,
        callback=remember,
        help="Who does it, for the metadata of what is written. Default: the OS user.",
    )(function)


def enter_context(given: click.Context, invocation: Invocation) -> None:
    """Until the program ends, what it writes has `actor` and `command` in its metadata."""

    def describe() -> Metadata:
        # The command and an option behind it are known by then.
        names = [given.info_name or "oplog", *_list_subcommands(given)]
        return {"actor": invocation.actor or find_os_user(), "command": " ".join(names)}

    given.with_resource(context(describe))


def find_os_user() -> str:
    """Name of the account that the process runs as.

    Not from the environment, which says whatever somebody put there, where there are accounts.
    """
    if sys.platform == "win32":
        return getpass.getuser()
    import pwd  # noqa: PLC0415 - it is on POSIX systems alone

    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        # As in a container that is run with a number of its own.
        return f"uid {number}"


def _list_subcommands(given: click.Context) -> list[str]:
    found = click.get_current_context(silent=True)
    names: list[str] = []
    while found is not None and found is not given:
        names.insert(0, found.info_name or "")
        found = found.parent
    return names
