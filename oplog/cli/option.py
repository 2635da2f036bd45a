"""Options that several commands share.

An option that is accepted before and after the name of a command sets one and the same flag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from oplog.archive.opening import DEADLINE_SECONDS
from oplog.cli.invocation import Invocation

F = TypeVar("F", bound=Callable[..., Any])


def full_option(function: F) -> F:
    """`--full`: nothing is cut."""
    return click.option(
        "--full", is_flag=True, help="Cut neither long values nor entries of many operations."
    )(function)


def remember_as(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that sets the invocation's `name`, unless the option was not given here."""

    def remember(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Invocation), name, value)

    return remember


def json_option(function: F) -> F:
    """`--json`: the answer as one JSON document."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
        invocation = context.ensure_object(Invocation)
        invocation.as_json = invocation.as_json or value

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print one JSON document on stdout, errors included.",
    )(function)


def debug_option(function: F) -> F:
    """`--debug`: read where failures are reported, so that it also works while parsing."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure."
    )(function)


def redact_option(function: F) -> F:
    """`--redact`: names and keys, no values."""
    return click.option(
        "--redact", is_flag=True, help="Hide the values of columns; keys stay readable."
    )(function)


def row_limit_option(function: F) -> F:
    """`--limit`: of rows that are shown."""
    return click.option(
        "--limit",
        type=click.IntRange(min=0),
        default=100,
        show_default=True,
        help="Show at most this many rows; 0 shows all.",
    )(function)


def archive_option(function: F) -> F:
    """`--archive`: as before the command's name."""
    return click.option(
        "--archive",
        metavar="URL",
        expose_value=False,
        callback=remember_as("archive"),
        help="Archive to use instead of OPLOG_ARCHIVE_URL.",
    )(function)


def reach_option(function: F) -> F:
    """`--archive` of a command that reads the log. Opt-in, because reading an archive is slow."""
    return click.option(
        "--archive",
        "reach",
        metavar="URL",
        help="Read published entries from this archive, pruned ones too.",
    )(function)


def archive_argument(function: F) -> F:
    """`ARCHIVE`: the same in words that read well: restore ARCHIVE --database URL."""
    argument = click.argument(
        "archive",
        metavar="[ARCHIVE]",
        required=False,
        expose_value=False,
        callback=remember_as("archive"),
    )
    return argument(function)


def database_option(function: F) -> F:
    """`--database` after the name of a command, which works on another one than usual."""
    return click.option(
        "--database",
        metavar="URL",
        expose_value=False,
        callback=remember_as("database"),
        help="Database to use instead of OPLOG_DATABASE_URL.",
    )(function)


def single_writer_option(function: F) -> F:
    """`--single-writer`: for stores that cannot tell two writers apart."""
    return click.option(
        "--single-writer",
        is_flag=True,
        expose_value=False,
        callback=remember_as("single_writer"),
        help="Promise that only one worker writes; for stores without If-None-Match.",
    )(function)


def accept_older_option(function: F) -> F:
    """`--accept-older`: go on although the archive names heads that are gone."""
    return click.option(
        "--accept-older",
        is_flag=True,
        expose_value=False,
        callback=remember_as("accept_older"),
        help="Continue from the newest readable head although LATEST names a newer one.",
    )(function)


def store_deadline_option(function: F) -> F:
    """`--store-deadline`: how long requests to the archive's store are tried."""
    return click.option(
        "--store-deadline",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        default=DEADLINE_SECONDS,
        show_default=True,
        expose_value=False,
        callback=remember_as("store_deadline_seconds"),
        help="How long a request to the archive's store is tried before it fails.",
    )(function)


def fork_option(function: F) -> F:
    """`--fork`: what to do when the database lost records that were published."""
    return click.option(
        "--fork",
        type=click.Choice(["stop", "fork"]),
        default="stop",
        show_default=True,
        help="Stop, or begin a new generation, when the database lost published records.",
    )(function)


def stop_within_option(when: str = "") -> Callable[[F], F]:
    """`--stop-within`: how long what was asked to end may take."""
    what = "end at once if it has not ended so long after the signal."
    return click.option(
        "--stop-within",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help=f"{when}: {what}" if when else what.capitalize(),
    )


def standard_options(function: F) -> F:
    """What every command has, in the order that its help shows."""
    return json_option(debug_option(function))


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
