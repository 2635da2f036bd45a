"""Celery: tasks that write on behalf of the one who sent them, in a worker of forked processes.

The broker is a directory (`filesystem://`, a transport of kombu's), so that no server is needed;
nothing here depends on it. Settings come from the environment, as both sides have to have them:

    celery -A examples.applications.celery_notes worker --concurrency 2
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery
from sqlalchemy.orm import sessionmaker

from examples.applications.notes import Note, count_words, make_log
from oplog.celery import connect_signals

connect_signals()
folder = Path(os.environ["NOTES_FOLDER"])
application = Celery("notes", broker="filesystem://", backend=f"file://{folder / 'results'}")
application.conf.broker_transport_options = {
    "data_folder_in": str(folder / "queue"),
    "data_folder_out": str(folder / "queue"),
    "control_folder": str(folder / "control"),
}
sessions = sessionmaker(sa.create_engine(os.environ["NOTES_DATABASE_URL"]))
make_log().attach(sessions)


@application.task(name="notes.add")
def add(key: int) -> int:
    """Add a note."""
    with sessions.begin() as session:
        session.add(Note(id=key, text="a note"))
    return key


@application.task(name="notes.index")
def index(key: int) -> int:
    """Count the words of a note."""
    with sessions.begin() as session:
        count_words(session.get_one(Note, key))
    return key


@application.task(name="notes.add_patiently", bind=True, max_retries=1, default_retry_delay=0)
def add_patiently(self: Any, key: int) -> int:
    """Add two notes, the second one in a retry; then leave a third one to another task."""
    with sessions.begin() as session:
        session.add(Note(id=key + self.request.retries, text="a note"))
    if not self.request.retries:
        raise self.retry()
    child: int = add.delay(key + 2).id
    return child
