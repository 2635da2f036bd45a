"""Options that several commands share.

Must not know a command. The hard thing: an option given before the command's name and the
same one given after it set one and the same flag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from oplog.cli.invocation import Invocation

F = TypeVar("F", bound=Callable[..., Any])


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


def standard_options(function: F) -> F:
    """What every command has, in the order that its help shows."""
    return json_option(debug_option(function))


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
