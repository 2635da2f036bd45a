"""Optuna: studies with many trials, by several threads at once."""

from __future__ import annotations

import optuna


def _objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    trial.set_user_attr("note", {"kind": kind, "tries": [1, 2.5]})
    for step in range(4):
        trial.report((x - 2) ** 2 + step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    if trial.number % 9 == 8:
        raise ValueError("this trial fails")
    return (x - 2) ** 2 + trial.suggest_int("n", 1, 100, log=True)


def prepare(url: str) -> None:
    """Make the tables."""
    optuna.storages.RDBStorage(url).remove_session()


def work(url: str) -> None:
    """Three studies; the last one is deleted, with its trials."""
    storage = optuna.storages.RDBStorage(url, heartbeat_interval=1, grace_period=2)
    study = optuna.create_study(
        study_name="threads", storage=storage, pruner=optuna.pruners.MedianPruner()
    )
    study.set_user_attr("owner", "someone")
    study.optimize(_objective, n_trials=50, n_jobs=3, catch=(ValueError,))
    study.enqueue_trial({"x": 2.0, "kind": "a"})
    study.optimize(_objective, n_trials=5)
    study.add_trial(optuna.trial.create_trial(value=float("inf")))
    several = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
    several.optimize(lambda one: (one.suggest_float("a", 0, 1), 2.0), n_trials=15)
    gone = optuna.create_study(study_name="gone", storage=storage)
    gone.optimize(_objective, n_trials=8, catch=(ValueError,))
    optuna.delete_study(study_name="gone", storage=storage)
    assert len(optuna.load_study(study_name="threads", storage=storage).trials) == 56
