"""DBOS: durable workflows, whose state is written by many threads, also in AUTOCOMMIT."""

from __future__ import annotations

import time
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID, run_dbos_database_migrations


def prepare(url: str) -> None:
    """Make the tables, by the migrations of DBOS itself."""
    run_dbos_database_migrations(system_database_url=url)


@DBOS.step()
def count(number: int) -> int:
    """A step."""
    return number + 1


@DBOS.step(retries_allowed=True, max_attempts=2, interval_seconds=0.01)
def fail(number: int) -> int:
    """A step that fails."""
    raise ValueError(f"no {number}")


@DBOS.workflow()
def add(number: int) -> int:
    """Steps, an event, a pause."""
    DBOS.set_event("started", {"number": number})
    for _ in range(3):
        number = count(number)
    DBOS.sleep(0.01)
    return number


@DBOS.workflow()
def wait() -> Any:
    """A message from another workflow."""
    return DBOS.recv("topic", timeout_seconds=20)


@DBOS.workflow()
def lead(number: int) -> int:
    """A child, and a step that fails."""
    with SetWorkflowID(f"child-{number}"):
        result = add(number)
    try:
        fail(number)
    except Exception:  # noqa: BLE001 - the step has failed as often as it may
        DBOS.send("waiting", number, "topic")
    return result


def work(url: str) -> None:
    """Workflows directly and by a queue, forked, cancelled and resumed."""
    config: DBOSConfig = {"name": "work", "system_database_url": url, "run_admin_server": False}
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue("work", worker_concurrency=3)
    with SetWorkflowID("waiting"):
        waiting = DBOS.start_workflow(wait)
    handles = [DBOS.enqueue_workflow("work", add, number) for number in range(12)]
    assert [one.get_result() for one in handles] == [number + 3 for number in range(12)]
    for number in range(4):
        with SetWorkflowID(f"lead-{number}"):
            assert lead(number) == number + 3
    assert waiting.get_result() == 0
    assert DBOS.get_event("child-1", "started") == {"number": 1}
    assert DBOS.fork_workflow("lead-2", 2).get_result() == 5
    DBOS.cancel_workflow("child-3")
    time.sleep(1)
    DBOS.destroy()
