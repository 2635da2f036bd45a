"""`oplog types list`, `proto` and `sync`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from oplog.adoption.schema_changes import ChangesReport
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count, show_guards
from oplog.payload.shape import Shape


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
