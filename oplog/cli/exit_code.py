"""Runs a command, reports its failure, and gives the exit code.

Every way to fail (an error of the library, a database error, Ctrl-C, a closed pipe, a full disk)
ends in one line and its own code. A traceback is shown only with `--debug`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from oplog.cli.evidence import keep_evidence
from oplog.cli.presentation import escape
from oplog.errors import OplogError, QuarantineWarning, SignedForkError
from oplog.outside.program_settings import read_settings
from oplog.postgres.sqlstate import is_away, read_sqlstate

DIFFERENCES = 3
"""Exit code of a command that worked and found differences."""
LAGGING = 4
"""Exit code of a status that found the archive further behind than it may be."""
FAILED = 1
_INTERRUPTED = 130
_PIPE_CLOSED = 141
"""What a shell reports for a process that SIGINT or SIGPIPE ended."""


class UnexpectedError(Exception):
    """An exception of the application's own code, with what was being done at the time."""


class OutputLostError(Exception):
    """Stdout takes no more; the cause says why. Click would call every closed pipe a failure."""


def print_data(text: str) -> None:
    """Write `text` and a line break to stdout; `OutputLostError` if that is impossible."""
    try:
        sys.stdout.write(text + "\n")
    except OSError as cause:
        raise OutputLostError from cause


def run_program(program: click.Command, arguments: list[str]) -> int:
    """Run `program`, report a failure, and return the exit code."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = "--json" in options, "--debug" in options
    # Data may hold what the terminal's encoding cannot; a name is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with _showing_advice():
                code = program.main(
                    args=arguments,
                    prog_name="oplog",
                    standalone_mode=False,
                    default_map=_read_defaults(),
                )
        except OutputLostError:
            raise
        except Exception as error:  # noqa: BLE001 - the last one to see it; it is reported
            code = _report(error, as_json=as_json, debug=debug)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (OutputLostError, OSError) as error:
        return _give_up_output(error.__cause__ or error)
    return code if isinstance(code, int) else 0


def _read_defaults() -> dict[str, str]:
    """Options that neither the command line nor the environment gives, from pyproject.toml."""
    settings = read_settings({}, Path.cwd())
    names = {"app": "app", "database": "database-url", "archive": "archive-url"}
    found = {option: settings.find(name) for option, name in names.items()}
    return {option: value for option, value in found.items() if value is not None}


@contextmanager
def _showing_advice() -> Iterator[None]:
    """Warnings of the library in one line each, without the place in its code."""
    show = warnings.showwarning

    def show_advice(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
    ) -> None:
        if issubclass(category, QuarantineWarning):
            sys.stderr.write(f"warning: {escape(str(message))}\n")
        else:
            show(message, category, filename, lineno, *rest)

    with warnings.catch_warnings():
        warnings.showwarning = show_advice  # type: ignore[assignment]
        yield


def _report(error: Exception, *, as_json: bool, debug: bool) -> int:
    """Say what went wrong, and return the exit code for it."""
    if isinstance(error, click.Abort):
        return _INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        # The whole help is its message: no error was made, only no choice.
        sys.stderr.write(error.format_message() + "\n")
        return error.exit_code
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    name, message, hint, code = _explain(error)
    if isinstance(error, SignedForkError):
        message = f"{message}; {keep_evidence(error.heads)}"
    if as_json:
        print_data(json.dumps({"error": name, "message": message, "hint": hint}, indent=2))
    sys.stderr.write(f"error: {message}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")
    return code


def _explain(error: Exception) -> tuple[str, str, str, int]:
    """Name, message, hint and exit code."""
    name = type(error).__name__
    if isinstance(error, OplogError):
        notes = [*getattr(error, "__notes__", [])]
        return (
            name,
            _join([Exception.__str__(error).partition("\n  hint: ")[0], *notes]),
            (error.hint),
            error.exit_code,
        )
    if isinstance(error, click.ClickException):
        hint = ""
        if isinstance(error, click.UsageError):
            path = error.ctx.command_path if error.ctx is not None else "oplog"
            hint = f"{path} --help"
        return name, error.format_message(), hint, error.exit_code
    if isinstance(error, DBAPIError):
        return name, f"the database says: {_join([str(error.orig)])}", _advise(error), FAILED
    if isinstance(error, SQLAlchemyError):
        return name, _join([str(error).partition("\n(Background on")[0]]), "", FAILED
    cause = error.__cause__ if isinstance(error, UnexpectedError) else None
    if isinstance(cause, Exception):
        text = f"{error}: {type(cause).__name__}: {cause}"
        return type(cause).__name__, _join([text]), "--debug shows the traceback", FAILED
    return name, _join([f"{name}: {error}"]), "--debug shows the traceback", FAILED


def _advise(error: DBAPIError) -> str:
    if is_away(error):
        return "check --database or OPLOG_DATABASE_URL, and that the server is up"
    return {
        "3D000": "check the database's name in --database or OPLOG_DATABASE_URL",
        "28P01": "check user and password in --database or OPLOG_DATABASE_URL",
        "42501": "grant this role what it lacks: oplog grants prints what an application, a worker "
        "and an auditor need; or connect as the owner of the log's tables",
    }.get(read_sqlstate(error) or "", "")


def _join(texts: list[str]) -> str:
    """One line out of several: a message of the database or a driver has many."""
    return escape("; ".join(" ".join(text.split()) for text in texts if text.strip()))


def _give_up_output(cause: BaseException) -> int:
    """Nobody reads stdout any more, or it cannot be written; say so unless it is a pipe."""
    # What is left in the buffer would fail again when the interpreter flushes it at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    if isinstance(cause, BrokenPipeError):
        return _PIPE_CLOSED
    reason = cause.strerror if isinstance(cause, OSError) else cause
    sys.stderr.write(f"error: the output cannot be written: {reason}\n")
    return FAILED
