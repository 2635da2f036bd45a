"""APScheduler: jobs in a store that the scheduler's thread and the program both write."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from apscheduler.jobstores.base import ConflictingIdError, JobLookupError
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

LATER = datetime(2999, 1, 1, tzinfo=UTC)


def do_nothing(*_: object) -> None:
    """What the jobs do."""


def open_scheduler(url: str) -> BackgroundScheduler:
    """A scheduler with its store."""
    return BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(url=url)}, timezone=UTC)


def prepare(url: str) -> None:
    """Make the table."""
    scheduler = open_scheduler(url)
    scheduler.start(paused=True)
    scheduler.shutdown()


def work(url: str) -> None:
    """Add, run, change and remove jobs while the scheduler runs."""
    scheduler = open_scheduler(url)
    scheduler.start()
    for number in range(20):
        scheduler.add_job(do_nothing, "date", run_date=LATER, id=f"later {number}", args=[number])
    for number in range(5):
        scheduler.add_job(do_nothing, "interval", seconds=0.2, id=f"often {number}")
        scheduler.add_job(do_nothing, "date", run_date=datetime.now(UTC) + timedelta(seconds=0.3))
    try:
        scheduler.add_job(do_nothing, "date", run_date=LATER, id="later 3")
        raise AssertionError("an id was taken twice")
    except ConflictingIdError:
        pass
    scheduler.add_job(do_nothing, "date", run_date=LATER, id="later 4", replace_existing=True)
    time.sleep(2)
    for number in range(5):
        scheduler.pause_job(f"later {number}")
        scheduler.reschedule_job(f"later {number + 5}", trigger="cron", hour=3)
        scheduler.modify_job(f"later {number + 10}", name="changed")
        scheduler.remove_job(f"later {number + 15}")
    try:
        scheduler.remove_job("later 15")
        raise AssertionError("a job was removed twice")
    except JobLookupError:
        pass
    scheduler.remove_job("often 1")
    assert len(scheduler.get_jobs()) == 19
    scheduler.shutdown()
