"""Celery: a task's records have the metadata of the code that sent it, and the task's own id.

The metadata travels in a header of the message. So it is as true as the broker's clients are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import signals

from oplog.errors import InvalidMetadataError
from oplog.metadata_context import Describe, Metadata, current_context, put_in_force

__all__ = ["connect_signals", "disconnect_signals"]

_HEADER = "oplog_context"
_TOKEN = "oplog_token"  # noqa: S105 - of a context variable
_RECEIVER = "oplog"


def connect_signals() -> None:
    """Let the context of the code that sends a task go with it, in every Celery application here.

    Call it where the Celery application is made: the module is imported by those who send tasks
    and by the workers. Records that a task writes then have the sender's metadata, and `job`, the
    task's id, and `task`, its name. A retry is the same job; the tasks of a chain, group or chord
    each have a job of their own. Calling it again changes nothing.
    """
    signals.before_task_publish.connect(_send_along, weak=False, dispatch_uid=_RECEIVER)
    signals.task_prerun.connect(_enter, weak=False, dispatch_uid=_RECEIVER)
    signals.task_postrun.connect(_leave, weak=False, dispatch_uid=_RECEIVER)


def disconnect_signals() -> None:
    """Undo `connect_signals`."""
    signals.before_task_publish.disconnect(dispatch_uid=_RECEIVER)
    signals.task_prerun.disconnect(dispatch_uid=_RECEIVER)
    signals.task_postrun.disconnect(dispatch_uid=_RECEIVER)


def _send_along(headers: dict[str, Any], **_: Any) -> None:
    # Also where there is nothing: a retry is sent with the headers of its first run.
    headers[_HEADER] = current_context()


def _enter(task_id: str, task: Any, **_: Any) -> None:
    carried = (task.request.headers or {}).get(_HEADER, {})
    # On the request, which is the innermost one: in eager mode a task may call another.
    setattr(task.request, _TOKEN, put_in_force(_describe(carried, task_id, task.name), {}))


def _describe(carried: object, job: str, name: str) -> Describe:
    def describe() -> Metadata:
        # Celery only logs what a signal raises. Raised at COMMIT, it stops the task.
        if not isinstance(carried, Mapping):
            raise InvalidMetadataError(
                f"the header {_HEADER} of task {job} is a {type(carried).__name__}, not a mapping",
                hint="send tasks from processes that call oplog.celery.connect_signals()",
            )
        return {**carried, "job": job, "task": name}

    return describe


def _leave(task: Any, **_: Any) -> None:
    token = getattr(task.request, _TOKEN, None)
    if token is not None:
        token.var.reset(token)
