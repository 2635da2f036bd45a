"""Step four, tampering: the owner of the database changes a row without the log.

Proves that `verify` names the row, the column and both values and nothing else, and that it finds
no difference once the row is corrected.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import psycopg
import sqlalchemy as sa

from examples.demo.database import Database, describe_differences, verify
from examples.demo.models import Account
from examples.demo.narration import Narrator

VICTIM = 3
GREED = Decimal(5000)


def set_balance(database: Database, *, balance: Decimal) -> None:
    """Write into the row without any session, with the table's triggers switched off."""
    _, settings = database.engine.dialect.create_connect_args(database.engine.url)
    with psycopg.connect(**settings) as connection:
        connection.execute("ALTER TABLE account DISABLE TRIGGER ALL")
        connection.execute("UPDATE account SET balance = %s WHERE id = %s", (balance, VICTIM))
        connection.execute("ALTER TABLE account ENABLE TRIGGER ALL")


def read_balance(database: Database) -> Decimal:
    """The balance as it stands in the table."""
    with database.engine.connect() as connection:
        chosen = sa.select(Account.balance).where(Account.id == VICTIM)
        return connection.execute(chosen).scalar_one()


def prove_detection(database: Database, narrator: Narrator) -> None:
    """Tamper with a row, find it, correct it, find nothing."""
    before = read_balance(database)
    set_balance(database, balance=before + GREED)
    narrator.say(f"The owner of the database, with triggers off, adds {GREED} to account {VICTIM}.")
    verdict, seconds = verify(database)
    narrator.show([_describe(difference) for difference in verdict.differences])
    narrator.prove(
        f"verify finds exactly that row and column, in {seconds:.2f} s",
        holds=not verdict.ok and _is_exactly(verdict.differences, logged=before),
        otherwise=f"verify found {describe_differences(verdict.differences)}",
    )
    set_balance(database, balance=before)
    verdict, seconds = verify(database)
    narrator.prove(
        f"put right by hand, the table agrees with the log again ({seconds:.2f} s)",
        holds=verdict.ok and not verdict.differences,
        otherwise=f"verify still found {describe_differences(verdict.differences)}",
    )


def _is_exactly(differences: Any, *, logged: Decimal) -> bool:
    if len(differences) != 1:
        return False
    (found,) = differences
    where = (found.table.rpartition(".")[2], dict(found.key), found.column, found.kind)
    values = (Decimal(str(found.live)), Decimal(str(found.logged)))
    return where == ("account", {"id": VICTIM}, "balance", "changed") and values == (
        logged + GREED,
        logged,
    )


def _describe(difference: Any) -> str:
    key = ", ".join(f"{name} = {value}" for name, value in difference.key.items())
    return (
        f"{difference.table}, {key}: column {difference.column} was {difference.kind}, "
        f"live {difference.live}, logged {difference.logged}"
    )
