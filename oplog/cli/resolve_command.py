"""`oplog resolve`.

Asking by receipt may decide the outcome; the help says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import click

from oplog.cli.exit_code import FAILED
from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape
from oplog.outcome import Outcome, Resolution
from oplog.receipt import Receipt


@click.command()
@click.argument("key", required=False)
@click.option("--entry", type=click.UUID, help="Entry id of a receipt.")
@click.option("--aggregate", metavar="NAME", help="Aggregate of the same receipt.")
@click.option(
    "--version",
    type=click.IntRange(min=0),
    default=0,
    help="Version of the same receipt, if known.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for a session that may still commit.",
)
@standard_options
@pass_invocation
def resolve(
    invocation: Invocation,
    *,
    key: str | None,
    entry: UUID | None,
    aggregate: str | None,
    version: int,
    wait: float,
) -> int:
    """Report the outcome of a transaction whose COMMIT was not answered.

    By idempotency KEY, or by the --entry and --aggregate of a receipt. Asked by receipt, a
    transaction that is not there is declared aborted, for ever: its COMMIT is refused should it
    still arrive. Exit code 1 while the outcome is open (pending); the
    sessions that hold it are shown.
    """
    question = _read_question(key, entry, aggregate, version)
    log = invocation.load_log()
    with invocation.open_engine() as engine:
        found = log.inquire(question, engine, wait_seconds=wait)
    invocation.emit(found.to_json, lambda: _show(found))
    return FAILED if found.outcome is Outcome.PENDING else 0


def _read_question(
    key: str | None, entry: UUID | None, aggregate: str | None, version: int
) -> Receipt | str:
    if key is not None and entry is None and aggregate is None:
        return key
    if key is None and entry is not None and aggregate is not None:
        return Receipt(entry, aggregate, version, b"")
    raise click.UsageError("give an idempotency KEY, or --entry and --aggregate of a receipt")


def _show(found: Resolution) -> Iterator[str]:
    yield found.outcome.value
    for receipt in found.receipts:
        yield f"  {escape(receipt.aggregate)} version {receipt.version}, entry {receipt.entry_id}"
    for blocker in found.blockers:
        who = f"process {blocker.process_id}" if blocker.process_id else "a prepared transaction"
        told = ", ".join(
            part for part in (blocker.state, blocker.application_name, blocker.client) if part
        )
        yield f"  waits for {who}: {escape(told)}, for {blocker.transaction_seconds:.0f} s"
