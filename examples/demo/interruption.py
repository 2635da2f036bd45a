"""Step five, `kill -9`: writers that are killed at chosen points and at random moments.

Proves after each kill that every acknowledged shipment is there, that none is there in part, and
that the log agrees.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import sqlalchemy as sa

from examples.demo.database import Database, describe_differences, verify
from examples.demo.models import PARCELS, Parcel, Shipment
from examples.demo.narration import Narrator, ProofFailedError
from examples.demo.packer import POINTS
from examples.demo.worker import PATIENCE_SECONDS, Worker

WORDS = {
    "half": "with half its rows written",
    "flushed": "with all rows written, before its commit",
    "drafted": "with its record sealed and not yet sent",
    "appended": "with its record written, before it could hear of it",
    None: "at a random moment",
}
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Death:
    """What a writer had been told (`stored`) and where it was when it died.

    `open`: the shipment it was working on, if known, and whether its commit was sent.
    """

    stored: frozenset[int]
    open: int | None = None
    committed: bool = False


def prove_survival(database: Database, narrator: Narrator, *, deaths: int, seed: int) -> None:
    """Kill writers, and look after each death."""
    draw = random.Random(seed)
    # Every second one dies at a random moment, the others at each point in turn.
    planned = [None if n % 2 else POINTS[n // 2 % len(POINTS)] for n in range(deaths)]
    known: set[int] = set()
    for number, point in enumerate(planned, 1):
        name = f"packer-{number}"
        death = kill_writer(database, name=name, point=point, draw=draw)
        wait_until_gone(database, name)
        present = read_shipments(database)
        known |= death.stored
        check_shipments(present, death=death, known=known)
        known |= present.keys()
        narrator.say(f"Writer {number} killed {WORDS[point]}: {len(death.stored)} acknowledged.")
    narrator.prove(
        f"after {deaths} times kill -9 nothing is half-written: {len(known):,} shipments, each "
        f"with all of its {PARCELS} parcels, every acknowledged one among them",
        holds=set(read_shipments(database).values()) == {PARCELS},
        otherwise="there are shipments without all of their parcels",
    )


def kill_writer(database: Database, *, name: str, point: str | None, draw: random.Random) -> Death:
    """Start a writer, let it store a few shipments, kill it."""
    after = draw.randint(2, 12)
    stored: set[int] = set()
    with Worker("packer", database, name=name, point=point, after=after) as worker:
        deadline = None
        while deadline is None or time.monotonic() < deadline:
            wait = PATIENCE_SECONDS if deadline is None else deadline - time.monotonic()
            message = worker.hear(seconds=max(wait, 0))
            if message is None:
                break
            if message["said"] == "stopped":
                worker.kill9()
                return Death(frozenset(stored), message["shipment"], message["committed"])
            stored.add(message["shipment"])
            if point is None and len(stored) == after:
                # A few milliseconds from here, which is about as long as a shipment takes.
                deadline = time.monotonic() + draw.uniform(0, 0.02)
        stored |= {message["shipment"] for message in worker.kill9()}
    if len(stored) < after:
        raise ProofFailedError(f"{name} stored {len(stored)} of {after} shipments and hung")
    return Death(frozenset(stored))


def wait_until_gone(database: Database, name: str) -> None:
    """Wait until the server has noticed, and rolled back what was open."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
    while time.monotonic() < deadline:
        with database.engine.connect() as connection:
            if connection.scalar(query, {"name": name}) == 0:
                return
        time.sleep(POLL_SECONDS)
    raise ProofFailedError(f"the server still serves {name}, which is dead")


def read_shipments(database: Database) -> dict[int, int]:
    """How many parcels each stored shipment has."""
    parcels = sa.func.count(Parcel.number)
    query = sa.select(Shipment.id, parcels).outerjoin_from(
        Shipment, Parcel, Parcel.shipment_id == Shipment.id
    )
    with database.engine.connect() as connection:
        rows = connection.execute(query.group_by(Shipment.id)).all()
    return {row[0]: row[1] for row in rows}


def check_shipments(present: dict[int, int], *, death: Death, known: set[int]) -> None:
    """Raise `ProofFailedError` unless each shipment is there completely or not at all."""
    lost = known - present.keys()
    half = {shipment: count for shipment, count in present.items() if count != PARCELS}
    # The commit that was in progress may have succeeded without an answer.
    untold = present.keys() - known
    if lost or half or len(untold) > 1:
        raise ProofFailedError(f"lost {lost}, half-written {half}, from nowhere {untold}")
    if death.open is not None and (death.open in present) != death.committed:
        raise ProofFailedError(
            f"shipment {death.open} is {'there' if death.open in present else 'not there'}, its "
            f"commit had {'returned' if death.committed else 'not been sent'}"
        )


def prove_agreement(database: Database, narrator: Narrator) -> None:
    """The log holds exactly the shipments that are there, and knows who packed each."""
    present = read_shipments(database)
    with database.engine.connect() as connection:
        entries = list(database.log.read(connection, metadata={"purpose": "packing"}))
    verdict, _ = verify(database)
    logged = {entry.aggregate: len(entry.operations) for entry in entries}
    expected = {f"shipment/{shipment}": count + 1 for shipment, count in present.items()}
    narrator.prove(
        f"the log has one entry for each of them, {len(logged):,} in all, and verify is clean",
        holds=logged == expected and len(entries) == len(logged) and verdict.ok,
        otherwise=f"{len(entries)} entries for {len(present)} shipments; verify found "
        f"{describe_differences(verdict.differences)}",
    )
