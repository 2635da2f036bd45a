"""Step three, a bank: processes that transfer money between the same accounts at the same time.

Proves that conflicts happened and were retried, that the total amount of money is unchanged, and
that the log has every balance and who changed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from examples.demo.database import (
    Database,
    count_differing,
    count_rows,
    describe_differences,
    drop_schema,
    verify,
)
from examples.demo.models import Account, Base, Transfer
from examples.demo.narration import Narrator
from examples.demo.teller import TILL
from examples.demo.worker import Worker

OWNERS = ("the till", "Ada", "Bo", "Chidi", "Dana", "Elif", "Femi", "Grace")
OPENING = Decimal(1000)
SHOWN = 5


def open_bank(database: Database) -> None:
    """Open the accounts, with the same balance in each."""
    with database.sessions.begin() as session:
        database.log.annotate(session, actor="the founders", purpose="opening")
        session.add_all(
            Account(id=number, owner=owner, balance=OPENING)
            for number, owner in enumerate(OWNERS, TILL)
        )


def run_tellers(
    database: Database,
    narrator: Narrator,
    *,
    tellers: int,
    transfers: int,
    seed: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Let the tellers work concurrently; return the number of transfers.

    `meanwhile` is called when they have begun.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker(
                    "teller", database, name=f"teller-{n}", accounts=len(OWNERS),
                    transfers=transfers, seed=seed + n,
                )
            )
            for n in range(1, tellers + 1)
        ]  # fmt: skip
        for worker in workers:
            worker.expect("holding")
        started = time.monotonic()
        for worker in workers:
            worker.tell(go=True)
        meanwhile()
        told = [worker.expect("done") for worker in workers]
    # The tellers' own clock: `meanwhile` may take longer than they do.
    seconds = max(t["seconds"] for t in told)
    made: int
    made, refused, retries = (sum(t[k] for t in told) for k in ("made", "refused", "retries"))
    narrator.say(
        f"{tellers} processes made {made:,} transfers between {len(OWNERS)} accounts in "
        f"{seconds:.1f} s, {made / seconds:,.0f} a second, after {started - began:.1f} s to start; "
        f"{refused} were refused for lack of money."
    )
    narrator.prove(
        f"conflicts happened, and were resolved: {retries:,} transactions were run again",
        # All tellers begin with a ticket for the same till: all but one have to retry.
        holds=retries >= tellers - 1,
        otherwise=f"{retries} transactions were run again, {tellers - 1} had to be",
    )
    return made


def prove_money(database: Database, narrator: Narrator, *, made: int) -> None:
    """Prove that the total is unchanged and that transfers explain every balance."""
    opened = OPENING * len(OWNERS)
    with database.engine.connect() as connection:
        total = connection.scalar(sa.select(sa.func.sum(Account.balance)))
        kept = count_rows(connection, Transfer.metadata.tables["transfer"])
        wrong = connection.execute(_select_unexplained()).all()
    narrator.prove(
        f"money is conserved: {total} before and after",
        holds=total == opened,
        otherwise=f"{opened} were paid in, {total} are there",
    )
    narrator.prove(
        f"each balance is what the {kept:,} transfers made of it",
        holds=kept == made and not wrong,
        otherwise=f"{made} transfers were made, {kept} are stored; unexplained balances: {wrong}",
    )


def _select_unexplained() -> sa.Executable:
    """Accounts whose balance is not the opening balance plus transfers in minus transfers out."""

    def add_up(side: sa.orm.InstrumentedAttribute[int]) -> sa.ScalarSelect[Any]:
        return (
            sa.select(sa.func.coalesce(sa.func.sum(Transfer.amount), 0))
            .where(side == Account.id)
            .scalar_subquery()
        )

    explained = OPENING + add_up(Transfer.target_id) - add_up(Transfer.source_id)
    return sa.select(Account.owner, Account.balance).where(Account.balance != explained)


def prove_replay(database: Database, narrator: Narrator) -> None:
    """Rebuild all tables from the log and compare them with the live ones, twice."""
    schema = "replayed"
    with database.engine.begin() as connection:
        began = time.monotonic()
        report = database.log.replay(connection, into=schema)
        seconds = time.monotonic() - began
        tables = Base.metadata.sorted_tables
        differing = {t.name: count_differing(connection, t, schema=schema) for t in tables}
        live = sum(count_rows(connection, t) for t in tables)
        drop_schema(connection, schema)
    verdict, checking = verify(database)
    narrator.prove(
        f"replay equals live: {report.rows:,} rows rebuilt from {report.entries:,} entries in "
        f"{seconds:.2f} s, compared in plain SQL",
        holds=not any(differing.values()) and report.rows == live,
        otherwise=f"of {live} live and {report.rows} rebuilt rows differ: {differing}",
    )
    narrator.prove(
        f"the log's own verify says the same, in {checking:.2f} s",
        holds=verdict.ok,
        otherwise=describe_differences(verdict.differences),
    )


def prove_history(database: Database, narrator: Narrator) -> None:
    """Show what happened to the busiest account, and who did it."""
    with database.engine.connect() as connection:
        account = connection.execute(sa.select(Account.__table__).filter_by(id=TILL)).one()
        history = database.log.history(connection, Account, TILL)
        expected = 1 + _count_touching(connection, TILL)
    changes = list(history)
    narrator.say(f"History of account {TILL}, {account.owner!r}: the last {SHOWN} changes.")
    narrator.show(
        [
            f"{change.recorded_at:%H:%M:%S.%f}  {change.kind.name:<6}  "
            f"balance {change.fields.get('balance', ''):>9}  "
            f"by {', '.join(change.metadata['actor'])} for {', '.join(change.metadata['purpose'])}"
            for change in changes[-SHOWN:]
        ]
    )
    last = changes[-1].fields.get("balance") if changes else None
    narrator.prove(
        f"all {len(changes):,} changes of this account are known, and who made each",
        holds=len(changes) == expected
        and last == account.balance
        and all(change.metadata["actor"] for change in changes),
        otherwise=f"{len(changes)} of {expected} changes are known; the last one left {last}, "
        f"the account has {account.balance}",
    )


def _count_touching(connection: Connection, account: int) -> int:
    touching = sa.or_(Transfer.source_id == account, Transfer.target_id == account)
    return connection.scalar(sa.select(sa.func.count()).where(touching)) or 0
