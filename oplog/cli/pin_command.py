"""`oplog pin`, `oplog unpin` and `oplog pins`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from oplog.cli.invocation import Invocation
from oplog.cli.option import (
    archive_option,
    pass_invocation,
    single_writer_option,
    standard_options,
)
from oplog.cli.presentation import escape
from oplog.upkeep.pin import Pin


@click.command()
@click.argument("name")
@archive_option
@single_writer_option
@standard_options
@pass_invocation
def pin(invocation: Invocation, *, name: str) -> None:
    """Keep all that the archive holds now, under NAME, until unpin."""
    log, archive = invocation.load_log(), invocation.open_archive()
    document = asdict(log.pin(archive, name))
    invocation.emit(lambda: document, lambda: [_show_pin(document)])


@click.command()
@click.argument("name")
@archive_option
@standard_options
@pass_invocation
def unpin(invocation: Invocation, *, name: str) -> None:
    """Remove a pin; collect then deletes what nothing else needs."""
    log, archive = invocation.load_log(), invocation.open_archive()
    _emit_pins(invocation, log.unpin(archive, name))


@click.command()
@archive_option
@standard_options
@pass_invocation
def pins(invocation: Invocation) -> None:
    """List the pins."""
    log, archive = invocation.load_log(), invocation.open_archive()
    _emit_pins(invocation, log.list_pins(archive))


def _emit_pins(invocation: Invocation, found: Sequence[Pin]) -> None:
    documents = [one.to_json() for one in found]
    invocation.emit(lambda: {"pins": documents}, lambda: map(_show_pin, documents))


def _show_pin(document: Mapping[str, Any]) -> str:
    return f"{escape(document['name'])}  head {document['head']}  {escape(document['path'])}"
