"""A ticket taken by hand holds even where the write that needed it changes nothing."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Oplog
from oplog.errors import TicketConflictError
from tests.concurrency.workload import Member
from tests.logged import track

pytestmark = [pytest.mark.postgres, pytest.mark.concurrency]


def test_two_increments_are_never_one(
    engine: Engine, log: Oplog, sessions: sessionmaker[Session]
) -> None:
    """Both read 0 and write 1: the second changes no value, and is a lost update."""
    track(engine, Member.__table__)  # type: ignore[arg-type]
    log.refresh()
    with sessions.begin() as session:
        session.add(Member(id=1, team="a", points=0))
    with sessions() as slow:
        log.take_ticket(slow, "team/a")
        stale = slow.get_one(Member, 1)
        with sessions.begin() as fast:
            log.take_ticket(fast, "team/a")
            fast.get_one(Member, 1).points += 1
        stale.points += 1
        with pytest.raises(TicketConflictError):
            slow.commit()
