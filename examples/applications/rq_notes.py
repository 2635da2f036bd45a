"""RQ: jobs that write on behalf of the one who enqueued them.

rq worker --job-class oplog.rq.ContextJob
"""

from __future__ import annotations

import os

import sqlalchemy as sa
from redis import Redis
from rq import Queue, get_current_job
from rq.job import Job
from sqlalchemy.orm import sessionmaker

from examples.applications.notes import Note, make_log
from oplog.rq import ContextJob


def make_queue(redis: Redis) -> Queue:
    """The queue for those who enqueue jobs."""
    return Queue(connection=redis, job_class=ContextJob)


def add(key: int) -> None:
    """Add a note: a job."""
    engine = sa.create_engine(os.environ["NOTES_DATABASE_URL"])
    sessions = sessionmaker(engine)
    make_log().attach(sessions)
    with sessions.begin() as session:
        session.add(Note(id=key, text="a note"))
    engine.dispose()


def add_patiently(key: int) -> None:
    """Add a note with each try, and fail in the first: a job that is retried."""
    job = get_current_job()
    first = job is not None and job.retries_left == 1
    add(key if first else key + 1)
    if first:
        raise InterruptedError("the first try")


def note_success(job: Job, _connection: Redis, _result: object) -> None:
    """Add another note when a job is done: a callback."""
    add(job.args[0] + 10)
