"""Celery: its database backend, used by threads and by forked processes."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

from celery import Celery, states
from celery.result import GroupResult


def open_application(url: str) -> Celery:
    """An application whose results are in the database."""
    application = Celery("work", broker="memory://", backend="db+" + url)
    application.conf.update(result_extended=True, result_serializer="json")
    return application


def prepare(url: str) -> None:
    """Make the tables."""
    backend = open_application(url).backend
    backend.mark_as_done("first", 1)


def _use(application: Celery, name: str) -> None:
    backend = application.backend
    backend.mark_as_started(name, pid=os.getpid())
    backend.mark_as_retry(name, ValueError("again"))
    if name.endswith("7"):
        backend.mark_as_failure(name, ValueError("no"), traceback="…")
    else:
        backend.mark_as_done(name, {"value": [1, name]})
    if name.endswith("5"):
        backend.forget(name)
    else:
        assert backend.get_state(name) in (states.SUCCESS, states.FAILURE)


def work(url: str) -> None:
    """Results of a group; then children write with the engine of their parent's URL."""
    application = open_application(url)
    names = [f"{uuid.uuid4()}-{number}" for number in range(30)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: _use(application, name), names))
    group = GroupResult(uuid.uuid4().hex, [application.AsyncResult(one) for one in names[:5]])
    group.save(application.backend)
    assert application.GroupResult.restore(group.id, backend=application.backend) is not None
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            code = 1
            try:
                for turn in range(5):
                    _use(application, f"child-{number}-{turn}")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(one, 0)[1] for one in children] == [0, 0, 0]
    group.delete(application.backend)
    application.backend.cleanup()
