"""Jobs of RQ, with a stand-in for Redis in this process, and in a worker that forks for each."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from oplog import context, current_context
from tests.examples.kept_notes import ROOT, Shelf

pytestmark = pytest.mark.postgres

MISSING = "packages of the extra `examples` are not installed"
rq = pytest.importorskip("rq", reason=MISSING)
fakeredis = pytest.importorskip("fakeredis", reason=MISSING)
rq_notes = pytest.importorskip("examples.applications.rq_notes", reason=MISSING)


@pytest.fixture
def redis() -> Any:
    return fakeredis.FakeStrictRedis()


@pytest.fixture
def server() -> Iterator[str]:
    """URL of the stand-in, for other processes."""
    served = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"redis://127.0.0.1:{served.server_address[1]}"
    served.shutdown()
    thread.join()
    served.server_close()


def work(redis: Any, queue: Any) -> None:
    """Run what is enqueued, in this process."""
    from oplog.rq import ContextJob  # noqa: PLC0415 - of an extra

    worker = rq.SimpleWorker([queue], connection=redis, job_class=ContextJob)
    worker.work(burst=True)


def test_jobs_say_who_enqueued_them(shelf: Shelf, redis: Any) -> None:
    queue = rq_notes.make_queue(redis)
    with context(actor="ada", request="r-1"):
        first = queue.enqueue(rq_notes.add, 1, on_success=rq.Callback(rq_notes.note_success))
        second = queue.enqueue(rq_notes.add_patiently, 2, retry=rq.Retry(max=1))
    with context(actor="bob"):
        third = queue.enqueue(rq_notes.add, 4)
    nobody = queue.enqueue(rq_notes.add, 5)
    work(redis, queue)
    assert current_context() == {}
    ada = {"actor": ["ada"], "request": ["r-1"]}

    def of(job: Any, task: str) -> dict[str, list[str]]:
        return {"job": [job.id], "task": [f"examples.applications.rq_notes.{task}"]}

    assert dict(shelf.tell()) == {
        "CREATE note/1": ada | of(first, "add"),
        "CREATE note/11": ada | of(first, "add"),
        "CREATE note/2": ada | of(second, "add_patiently"),
        "CREATE note/3": ada | of(second, "add_patiently"),
        "CREATE note/4": {"actor": ["bob"]} | of(third, "add"),
    }
    assert nobody.is_failed
    assert "MissingMetadataError" in nobody.latest_result().exc_string


def test_in_a_worker_that_forks(shelf: Shelf, server: str) -> None:
    with rq_notes.Redis.from_url(server) as redis:
        with context(actor="ada"):
            job = rq_notes.make_queue(redis).enqueue(rq_notes.add, 1)
        command = ["-m", "rq.cli", "worker", "--burst", "--job-class", "oplog.rq.ContextJob"]
        subprocess.run(
            [sys.executable, *command, "--url", server],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            timeout=60,
        )
    said = {
        "actor": ["ada"],
        "job": [job.id],
        "task": ["examples.applications.rq_notes.add"],
    }
    assert shelf.tell() == [("CREATE note/1", said)]
