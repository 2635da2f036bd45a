"""`oplog doctor`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count
from oplog.doctor.key_status import KEY_DAYS
from oplog.finding import Finding

_WIDTH = 80
_INDENT = " " * 9


@click.command()
@click.option(
    "--key-days",
    type=click.IntRange(min=0),
    default=KEY_DAYS,
    show_default=True,
    metavar="NUMBER",
    help="Report the newest key that seals if it is older.",
)
@standard_options
@pass_invocation
def doctor(invocation: Invocation, *, key_days: int) -> int:
    """Report what is wrong with the log, its guards and its database.

    Tables, triggers, functions, guards, types, keys, owners and settings, compared with what they
    should be. Rows are not compared: that is verify. Changes nothing, and runs on a standby
    too. Exit code 3 when there is a problem; notices alone are 0.
    """
    log = invocation.load_log()
    with invocation.connect() as connection:
        findings = log.diagnose(connection, key_days=key_days)
    problems = sum(finding.severity == "problem" for finding in findings)
    invocation.emit(
        lambda: _to_json(findings, problems),
        lambda: _show(findings, problems),
    )
    return DIFFERENCES if problems else 0


def _to_json(findings: Sequence[Finding], problems: int) -> dict[str, Any]:
    return {
        "ok": not problems,
        "problems": problems,
        "notices": len(findings) - problems,
        "findings": [finding.to_json() for finding in findings],
    }


def _show(findings: Sequence[Finding], problems: int) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.severity:<9}{escape(finding.where)}  {finding.what}"
        for text in (finding.message, f"hint: {finding.hint}"):
            yield from textwrap.wrap(
                escape(text),
                _WIDTH,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
    told = f"{show_count(problems, 'problem')}, {show_count(len(findings) - problems, 'notice')}"
    yield told if findings else "nothing found"
