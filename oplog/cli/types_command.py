"""`oplog types list`, `proto`, `check` and `sync`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import click

from oplog.adoption.schema_changes import ChangesReport
from oplog.cli.actor import actor_option
from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count, show_guards
from oplog.doctor.type_change import TypesCheckReport
from oplog.payload.shape import Shape
from oplog.reading.step_check import StepReport

_WIDTH = 80
_INDENT = " " * 8


@click.group()
@standard_options
def types() -> None:
    """List the types that the log knows, and store new ones."""


@types.command(name="list")
@standard_options
@pass_invocation
def list_types(invocation: Invocation) -> None:
    """List every stored type with its revisions, columns and field numbers."""
    log = invocation.load_log()
    with invocation.connect() as connection:
        report = log.list_types(connection)
    invocation.emit(
        report.to_json, lambda: (line for shape in report.shapes for line in _show(shape))
    )
    if report.not_stored:
        names = ", ".join(report.not_stored)
        say(f"declared and not stored yet: {names}; oplog types sync stores them")


@types.command()
@click.argument("type_name", metavar="TYPE")
@click.option(
    "--revision", type=click.IntRange(min=1), help="Revision to print; the default is the newest."
)
@standard_options
@pass_invocation
def proto(invocation: Invocation, *, type_name: str, revision: int | None) -> None:
    """Print the .proto text of a stored type."""
    log = invocation.load_log()
    with invocation.connect() as connection:
        report = log.print_proto(connection, type_name, revision=revision)
    invocation.emit(report.to_json, lambda: _show_files(report.files))


def _show_files(files: Mapping[str, str]) -> Iterator[str]:
    for name, text in files.items():
        if len(files) > 1:
            yield f"// {name}"
        yield from text.splitlines()


@types.command()
@click.option("--dry-run", is_flag=True, help="Show what would be stored, and store nothing.")
@actor_option
@standard_options
@pass_invocation
def sync(invocation: Invocation, *, dry_run: bool) -> None:
    """Note what migrations made of the tables, and store types and key of the application.

    Retires the types of dropped tables, and logs again the columns that a migration wrote anew.
    An application does so itself with its first transaction, unless many rows are to be logged.
    Interrupted, it goes on where it stopped when it is run again.
    Partitions of tracked tables that were made later are guarded against TRUNCATE, if the role
    may.
    """
    log = invocation.load_log()
    # Waiting for another process that stores the same type must not end in a conflict.
    with invocation.connect(isolation="READ COMMITTED", read_only=False) as connection:
        if dry_run:
            # Ends with the connection.
            connection.begin()
        report = log.store_types(connection)
    document = {**report.to_json(), "dry_run": dry_run}
    invocation.emit(lambda: document, lambda: _show_stored(report.stored, document))
    _say_noted(report, "would be" if dry_run else "")


@types.command()
@click.option(
    "--steps", is_flag=True, help="Also try the declared steps on every effect of the log."
)
@standard_options
@pass_invocation
def check(invocation: Invocation, *, steps: bool) -> int:
    """Compare these models with what the log knows, before they are deployed.

    What the log would note, what readers of earlier revisions lose, what a restore would refuse.
    Changes nothing. Exit code 3 when something breaks; what is only added is 0.
    """
    log = invocation.load_log()
    with invocation.connect() as connection:
        report = log.check_types(connection)
        tried = log.check_steps(connection) if steps else None
    ok = report.ok and (tried is None or tried.ok)
    more = {} if tried is None else {"steps": tried.to_json()}
    invocation.emit(
        lambda: {**report.to_json(), "ok": ok, **more},
        lambda: chain(_show_changes(report), _show_steps(tried)),
    )
    return 0 if ok else DIFFERENCES


def _show_steps(report: StepReport | None) -> Iterator[str]:
    if report is None:
        return
    for one in report.failures:
        yield (
            f"position {one.position}: {escape(one.type_name)} of revision {one.revision} does "
            f"not read as revision {one.towards}: {escape(one.error)}"
        )
    yield f"steps: {show_count(report.converted, 'effect')} converted, {report.count} failed"


def _show_changes(report: TypesCheckReport) -> Iterator[str]:
    for change in report.changes:
        where = ".".join(filter(None, (change.type_name, change.column))) or "log"
        state = "breaks" if change.breaks else "fine"
        yield f"{state:<8}{escape(where)}  {change.kind}"
        for text in (change.message, f"hint: {change.hint}" if change.hint else ""):
            yield from textwrap.wrap(
                escape(text),
                _WIDTH,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
    broken = sum(change.breaks for change in report.changes)
    told = f"{show_count(len(report.changes), 'change')}, {broken} of them breaking"
    yield told if report.changes else "nothing changes"


def _say_noted(report: ChangesReport, would: str) -> None:
    said = [
        (f"{show_count(len(report.stored), 'type')}", "stored", bool(report.stored)),
        *((escape(name), "retired: its table is gone", True) for name in report.retired),
        *(
            (f"{show_count(count, 'row')} of {escape(name)}", "logged again", True)
            for name, count in report.rows.items()
        ),
    ]
    lines = [" ".join(filter(None, (what, would, done))) for what, done, wanted in said if wanted]
    for line in lines or ["the log knows every type already"]:
        say(line)
    for name in report.waiting:
        say(
            f"{escape(name)}: its table changed, and its message is the application's own: deploy "
            "the version that has the fields"
        )


def _show_stored(shapes: Sequence[Shape], document: Mapping[str, Any]) -> Iterator[str]:
    for shape in shapes:
        yield from _show(shape)
    yield from show_guards(document)


def _show(shape: Shape) -> Iterator[str]:
    yield (
        f"{escape(shape.type_name)}  revision {shape.revision}  "
        f"table {escape(shape.schema)}.{escape(shape.table)}  aggregate {escape(shape.aggregate)}"
    )
    for column in shape.columns:
        mark = "  key" if column.primary_key else ""
        yield f"  {column.number:>3}  {escape(column.name)}  {column.pg_type}{mark}"
    for name, reason in shape.excluded.items():
        yield f"    -  {escape(name)}  excluded: {escape(reason)}"
