"""Tasks of Celery: in a real worker with forked processes, and eagerly."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from oplog import context, current_context
from oplog.errors import InvalidMetadataError, MissingMetadataError
from tests.examples.kept_notes import ROOT, Shelf

pytestmark = pytest.mark.postgres

celery = pytest.importorskip("celery", reason="packages of the extra `examples` are missing")

MODULE = "examples.applications.celery_notes"
DEADLINE_SECONDS = 60


@pytest.fixture
def notes(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The application's module, with a broker of this test's own."""
    from oplog.celery import disconnect_signals  # noqa: PLC0415 - of an extra

    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NOTES_FOLDER", str(tmp_path))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = importlib.import_module(MODULE)
    yield module
    module.sessions.kw["bind"].dispose()
    module.application.close()
    disconnect_signals()
    del sys.modules[MODULE]


@contextmanager
def run_worker(tmp_path: Path) -> Iterator[None]:
    """`celery worker` with two forked processes."""
    log = tmp_path / "worker.log"
    command = ["-m", "celery", "-A", MODULE, "worker", "-c", "2", "-P", "prefork", "-l", "INFO"]
    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, *command, "--without-gossip", "--without-mingle"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(DEADLINE_SECONDS)


def test_tasks_say_who_sent_them_in_a_real_worker(notes: Any, shelf: Shelf, tmp_path: Path) -> None:
    with run_worker(tmp_path):
        with context(actor="ada", request="r-1"):
            plain = notes.add.delay(1)
            chain = celery.chain(notes.add.s(2), notes.index.s()).delay()
            patient = notes.add_patiently.delay(10)
        with context(actor="bob"):
            other = notes.add.delay(3)
        nobody = notes.add.delay(4)
        for sent in (plain, chain, other):
            sent.get(timeout=DEADLINE_SECONDS)
        child = notes.application.AsyncResult(patient.get(timeout=DEADLINE_SECONDS))
        child.get(timeout=DEADLINE_SECONDS)
        with pytest.raises(Exception, match="says nothing of actor") as refused:
            nobody.get(timeout=DEADLINE_SECONDS)
    assert type(refused.value).__name__ == MissingMetadataError.__name__
    ada = {"actor": ["ada"], "request": ["r-1"]}

    def of(job: Any, task: str) -> dict[str, list[str]]:
        return {"job": [job.id], "task": [f"notes.{task}"]}

    assert dict(shelf.tell()) == {
        "CREATE note/1": ada | of(plain, "add"),
        "CREATE note/2": ada | of(chain.parent, "add"),
        "UPDATE note/2": ada | of(chain, "index"),
        "CREATE note/3": {"actor": ["bob"]} | of(other, "add"),
        # A retry is the same job; the task that it sent is another one.
        "CREATE note/10": ada | of(patient, "add_patiently"),
        "CREATE note/11": ada | of(patient, "add_patiently"),
        "CREATE note/12": ada | of(child, "add"),
    }


def test_eager_tasks_run_in_the_context_of_their_caller(notes: Any, shelf: Shelf) -> None:
    notes.application.conf.task_always_eager = True
    with context(actor="ada", task="the caller"):
        patient = notes.add_patiently.delay(1)
        assert current_context() == {"actor": ["ada"], "task": ["the caller"]}
    assert current_context() == {}
    told = shelf.tell()
    assert [done for done, _ in told] == [f"CREATE note/{key}" for key in (1, 2, 3)]
    tasks = [said["task"] for _, said in told]
    assert tasks == [["notes.add_patiently"], ["notes.add_patiently"], ["notes.add"]]
    assert all(said["actor"] == ["ada"] for _, said in told)
    assert told[0][1]["job"] == told[1][1]["job"] == [patient.id]
    assert told[2][1]["job"] != [patient.id]


def test_a_failed_task_leaves_nothing_in_force(notes: Any, shelf: Shelf) -> None:
    notes.application.conf.task_always_eager = True
    assert notes.index.delay(99).failed()
    assert current_context() == {}


@pytest.mark.parametrize("header", ["ada", 7, {"actor": 7}, {"actor": []}])
def test_a_header_that_is_no_metadata_stops_the_commit(
    notes: Any, shelf: Shelf, header: Any
) -> None:
    done = notes.add.apply(args=[1], headers={"oplog_context": header})
    assert isinstance(done.result, InvalidMetadataError)
    assert shelf.count() == 0


def test_a_task_that_is_sent_by_nobody_carries_nothing_stale(notes: Any) -> None:
    from oplog.celery import connect_signals  # noqa: PLC0415 - of an extra

    connect_signals()
    headers: dict[str, Any] = {"oplog_context": {"actor": ["of the first run"]}}
    answers = celery.signals.before_task_publish.send(sender="notes.add", headers=headers)
    assert len(answers) == 1
    assert headers == {"oplog_context": {}}
