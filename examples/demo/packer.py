"""A writer that will be killed, in a process of its own: stores one shipment after the other.

It reports a shipment as stored only after its commit returned. At the point that the job names
it stops in the middle of a transaction, reports that, and waits to be killed.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from sqlalchemy.orm import Session

from examples.demo.database import Database, open_database
from examples.demo.models import PARCELS, Parcel, Shipment
from examples.demo.worker import read_message, send_message
from oplog.events import EntriesAppended, EntriesDrafted, Event

POINTS = ("half", "flushed", "drafted", "appended")


class Packer:
    """Stores shipments; `point` names where it stops, `after` the shipment at which."""

    def __init__(self, *, name: str, point: str | None, after: int) -> None:
        self.name = name
        self.point = point
        self.after = after
        self.number = 0
        self.shipment = 0

    def hear(self, event: Event) -> None:
        """Stop at an event of the log, in the middle of a commit."""
        if isinstance(event, EntriesDrafted):
            self.reach("drafted")
        if isinstance(event, EntriesAppended):
            self.reach("appended", committed=event.committed)

    def reach(self, point: str, *, committed: bool = False) -> None:
        """Stop if this is the point that the job names."""
        if point == self.point and self.number > self.after:
            send_message("stopped", shipment=self.shipment, committed=committed)
            read_message()

    def work(self, database: Database) -> None:
        """Store shipments until killed."""
        for self.number in itertools.count(1):
            with database.sessions.begin() as session:
                database.log.annotate(session, actor=self.name, purpose="packing")
                self.pack(session)
            send_message("stored", shipment=self.shipment)

    def pack(self, session: Session) -> None:
        """One shipment and all its parcels."""
        shipment = Shipment(destination=f"door {self.number}")
        session.add(shipment)
        session.flush()
        self.shipment = shipment.id
        for parcel in range(1, PARCELS + 1):
            session.add(Parcel(shipment_id=shipment.id, number=parcel, weight_grams=100 * parcel))
            if parcel == PARCELS // 2:
                session.flush()
                self.reach("half")
        session.flush()
        self.reach("flushed")


def main() -> None:
    """Do the one job that the parent sends."""
    job = read_message()
    packer = Packer(name=job["name"], point=job["point"], after=job["after"])
    packer.work(
        open_database(job["url"], Path(sys.argv[1]), name=job["name"], on_event=packer.hear)
    )


if __name__ == "__main__":
    main()
