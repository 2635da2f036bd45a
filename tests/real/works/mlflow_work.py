"""MLflow: its tracking store and its registry, used by threads as by requests of a server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking


def prepare(url: str) -> None:
    """Make the tables, by MLflow's own migrations."""
    Tracking(url, "/tmp")


def work(url: str) -> None:
    """Runs of an experiment at once, then models."""
    store = Tracking(url, "/tmp")
    experiment = store.create_experiment("work", tags=[])
    gone = store.create_experiment("gone")

    def run(number: int) -> str:
        now = int(time.time() * 1000)
        started = store.create_run(experiment, "someone", now, [], f"run {number}")
        run_id = str(started.info.run_id)
        metrics = [Metric(f"m{n % 4}", n / 3, now, n) for n in range(200)]
        metrics += [Metric("odd", value, now, 0) for value in (float("nan"), float("inf"))]
        store.log_batch(
            run_id, metrics, [Param(f"p{n}", str(n)) for n in range(20)], [RunTag("a", "b")]
        )
        store.log_metric(run_id, Metric("m0", 9.5, now, 999))
        store.set_tag(run_id, RunTag("a", "c"))
        store.delete_tag(run_id, "a")
        try:
            store.log_param(run_id, Param("p1", "other"))
            raise AssertionError("a parameter was changed")
        except MlflowException:
            pass
        store.update_run_info(run_id, RunStatus.FINISHED, now + 5, None)
        if number % 3 == 0:
            store.delete_run(run_id)
        return run_id

    with ThreadPoolExecutor(3) as threads:
        runs = list(threads.map(run, range(9)))
    store.restore_run(runs[0])
    store.delete_experiment(gone)
    store.rename_experiment(experiment, "renamed")
    assert len(store.search_runs([experiment], "", ViewType.ACTIVE_ONLY, 100)) == 7
    _register(url)


def _register(url: str) -> None:
    registry = Registry(url)
    registry.create_registered_model("model", description="first")
    for number in range(3):
        registry.create_model_version("model", f"file:///tmp/{number}", run_id=None)
    registry.set_registered_model_alias("model", "champion", "2")
    registry.transition_model_version_stage(
        "model", "1", "Archived", archive_existing_versions=False
    )
    registry.rename_registered_model("model", "renamed")
    registry.delete_model_version("renamed", "3")
    registry.create_registered_model("gone")
    registry.delete_registered_model("gone")
    assert registry.get_model_version_by_alias("renamed", "champion").version in (2, "2")
