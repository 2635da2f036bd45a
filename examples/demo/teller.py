"""One of the bank's tellers, a process of its own: makes transfers and counts its conflicts."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from sqlalchemy.orm import Session

from examples.demo.database import Database, open_database
from examples.demo.models import Account, Transfer
from examples.demo.worker import read_message, send_message

TILL = 1
"""The account that most transfers touch, so that the tellers have conflicts."""
RETRIES = 200
PURPOSES = ("rent", "groceries", "wages", "books", "a present")


@dataclass(frozen=True, slots=True)
class Errand:
    """Money to be moved, and what for."""

    source: int
    target: int
    amount: Decimal
    purpose: str


def draw_errands(draw: random.Random, *, accounts: int, count: int) -> Iterator[Errand]:
    """Yield random errands; every second one or so concerns the till, the first one always."""
    for number in range(count):
        pair = draw.sample(range(TILL + 1, accounts + 1), 2)
        if number == 0 or draw.getrandbits(1):
            pair[0] = TILL
        if draw.getrandbits(1):
            pair.reverse()
        amount = Decimal(draw.randint(100, 9900)) / 100
        yield Errand(pair[0], pair[1], amount, draw.choice(PURPOSES))


class Teller:
    """Does errands and counts the attempts of each."""

    def __init__(self, database: Database, *, name: str) -> None:
        self.database = database
        self.name = name
        self.attempts = 0
        self.began = 0.0

    def serve(self, errand: Errand) -> bool:
        """Do one errand, however often it takes; False when there is not enough money."""
        return self.database.log.run(
            self.database.sessions, lambda session: self.transfer(session, errand), retries=RETRIES
        )

    def transfer(self, session: Session, errand: Errand) -> bool:
        """Move money in the session's transaction.

        Tickets are taken before the balances are read: if another session changes a balance
        after that, the commit fails instead of overwriting it.
        """
        log = self.database.log
        self.attempts += 1
        log.annotate(session, actor=self.name, purpose=errand.purpose)
        for account in sorted((errand.source, errand.target)):
            log.take_ticket(session, f"account/{account}")
        if self.attempts == 1:
            # All tellers hold a ticket for the till now: only one of them can win.
            send_message("holding")
            read_message()
            self.began = time.monotonic()
        payer = session.get_one(Account, errand.source)
        payee = session.get_one(Account, errand.target)
        if payer.balance < errand.amount:
            return False
        payer.balance -= errand.amount
        payee.balance += errand.amount
        session.add(
            Transfer(source_id=errand.source, target_id=errand.target, amount=errand.amount)
        )
        return True


def main() -> None:
    """Do the one job that the parent sends."""
    job = read_message()
    name, transfers = job["name"], job["transfers"]
    teller = Teller(open_database(job["url"], Path(sys.argv[1]), name=name), name=name)
    errands = draw_errands(random.Random(job["seed"]), accounts=job["accounts"], count=transfers)
    made = sum([teller.serve(errand) for errand in errands])
    send_message(
        "done",
        made=made,
        refused=transfers - made,
        retries=teller.attempts - transfers,
        seconds=time.monotonic() - teller.began,
    )


if __name__ == "__main__":
    main()
