"""Step seven, a teller's afternoon: all of it is taken back, and given back again.

Proves that the plan names what others did meanwhile, that nothing of theirs is lost, and that
undoing the undo gives the very state that was there before it.
"""

from __future__ import annotations

from decimal import Decimal

import sqlalchemy as sa

from examples.demo.database import Database, describe_differences, verify
from examples.demo.models import Account, Base, Transfer
from examples.demo.narration import Narrator
from examples.demo.teller import TILL

TELLER = "teller-late"
TRANSFERS = 6
AMOUNT = Decimal("1.00")
_TABLES = tuple(Base.metadata.tables[name] for name in ("account", "transfer"))


def read_bank(database: Database) -> list[tuple[object, ...]]:
    """Every account and every transfer."""
    with database.engine.connect() as connection:
        return [
            (table.name, *row)
            for table in _TABLES
            for row in connection.execute(sa.select(table).order_by(*table.primary_key))
        ]


def move(database: Database, *, actor: str, source: int, target: int) -> None:
    """Move money, as a teller does it."""
    with database.sessions.begin() as session:
        database.log.annotate(session, actor=actor, purpose="by mistake")
        session.get_one(Account, source).balance -= AMOUNT
        session.get_one(Account, target).balance += AMOUNT
        session.add(Transfer(source_id=source, target_id=target, amount=AMOUNT))


def prove_undo(database: Database, narrator: Narrator) -> None:
    """A teller works for an afternoon; it is previewed, undone, and undone again."""
    log = database.log
    # It is another database by now, of the same name.
    log.refresh()
    rich = [account for account in list_accounts(database) if account != TILL]
    before = read_bank(database)
    for number in range(TRANSFERS):
        move(database, actor=TELLER, source=rich[number % 2], target=rich[2])
    with database.sessions.begin() as session:
        log.annotate(session, actor="Grace", purpose="she married")
        session.get_one(Account, rich[2]).owner += " (and Hal)"
    worked = read_bank(database)
    plan = log.plan_undo(database.engine, metadata={"actor": TELLER})
    narrator.show(plan.preview(limit=4).splitlines())
    narrator.prove(
        f"the plan takes back {TRANSFERS} transactions and leaves Grace's alone",
        holds=len(plan.records) == TRANSFERS and not plan.conflicts,
        otherwise=f"{len(plan.records)} records, {len(plan.conflicts)} conflicts",
    )
    receipts = log.undo(database.sessions, plan, reason="the wrong customer")
    renamed = {(row[1], row[2]) for row in worked if row[0] == "account"}
    expected = [
        (row[0], row[1], dict(renamed)[row[1]], *row[3:]) if row[0] == "account" else row
        for row in before
    ]
    narrator.prove(
        "undone: every balance and transfer is as it was, and what Grace wrote stays",
        holds=read_bank(database) == expected,
        otherwise="the bank is in another state",
    )
    log.undo(database.sessions, log.plan_undo(database.engine, records=receipts))
    narrator.prove(
        "the undo undone: the afternoon is back, to the last row",
        holds=read_bank(database) == worked,
        otherwise="the bank is in another state",
    )
    prove_conflict(database, narrator, source=rich[2], target=rich[0])


def prove_conflict(database: Database, narrator: Narrator, *, source: int, target: int) -> None:
    """Somebody else moves the same money: that is not lost, but named."""
    move(database, actor="teller-early", source=source, target=target)
    plan = database.log.plan_undo(database.engine, metadata={"actor": TELLER})
    named = {one.changes[-1].metadata["actor"][0] for one in plan.conflicts if one.changes}
    narrator.show([one.describe() for one in plan.conflicts[:1]])
    verdict, _ = verify(database)
    narrator.prove(
        "balances that another teller has changed since are conflicts with that teller's name, "
        "and verify is clean",
        holds=named == {"teller-early"} and verdict.ok,
        otherwise=f"named are {sorted(named)}; verify: {describe_differences(verdict.differences)}",
    )


def list_accounts(database: Database) -> list[int]:
    """The accounts, the richest first."""
    with database.engine.connect() as connection:
        chosen = sa.select(Account.id).order_by(Account.balance.desc(), Account.id)
        return list(connection.scalars(chosen))
