"""The program's options, accepted after the name of every command as well as before it.

`--archive` of a command that reads the log stays what that command says it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click


def accept_everywhere(program: click.Group) -> None:
    """Give every command of `program` the options of `program` that it does not have itself."""
    shared = [one for one in program.params if _is_shared(one)]
    for command in _list_commands(program):
        taken = {name for own in command.params for name in own.opts}
        command.params += [_copy(one) for one in shared if taken.isdisjoint(one.opts)]


def _is_shared(parameter: click.Parameter) -> bool:
    # What is eager, such as --version, ends the program.
    return isinstance(parameter, click.Option) and not parameter.is_eager


def _list_commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from _list_commands(command)
        else:
            yield command


def _copy(one: click.Parameter) -> click.Option:
    """The same option without a default, which would undo what was said before the command."""
    is_flag = isinstance(one, click.Option) and one.is_flag
    return click.Option(
        # A name of its own: an argument may have that of the option.
        [f"program_{one.name}", *one.opts],
        type=None if is_flag else one.type,
        is_flag=is_flag,
        hidden=True,
        expose_value=False,
        callback=_set_if_given(one.callback),
    )


def _set_if_given(
    callback: Callable[[click.Context, click.Parameter, Any], Any] | None,
) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def set_if_given(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if callback is not None and value not in {None, False}:
            callback(context, parameter, value)
        return value

    return set_if_given
